"""Judges: does an answer act on a value, and is it fluent?

A judge answers two questions about a text, as ConVA's evaluation asks them (Jin et al. 2025): `control(answer, value)`,
1 yes, 0 no, .5 in between, and `fluent(answer)`. The exact judge of the embedded world parses the answer; it needs no
model and makes no mistakes on what the grammar can say.
"""

from typing import Protocol


class Judge(Protocol):
    name: str

    def control(self, answer: str, value: str) -> float:
        """1 if the answer acts on the value, 0 if not, .5 if it speaks for and against it."""
        ...

    def fluent(self, answer: str) -> bool:
        """Whether the answer is grammatical, nothing else."""
        ...


class ExactJudge:
    """Reads answers of the embedded models by the inverse of their grammar (`workbench.embedded.judge`)."""

    name = "exact"

    def control(self, answer: str, value: str) -> float:
        from ..embedded import judge

        return judge.control(answer, value)

    def fluent(self, answer: str) -> bool:
        from ..embedded import judge

        return judge.read(answer).grammatical

    def right(self, answer: str, answers: str) -> bool:
        """Whether an unrelated question was answered rightly; answers: the right ones, joined by "|"."""
        from ..embedded import judge

        return judge.right(answer, answers)
