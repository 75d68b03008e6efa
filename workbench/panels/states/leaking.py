"""State of the leakage map: whose leakage is looked at, and which answers stand behind a cell. No widgets.

What an evaluation tells of a method is worked out once, with its 1,000 resamples; moving to another value, another cell
or another page only looks up.
"""

from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import traitlets as t

from ...errors import WorkbenchError
from ...evaluation.leakage import Leakage, leakage
from ...evaluation.results import Evaluation
from ...values import VALUES, check_value
from .answers import Answers

RESAMPLES = 1000
FLOORS = ("base", "random direction")
SETS = ("own", "pooled")
PAGE = 4


class Part(NamedTuple):
    """Answers that belong together: "own" questions of each steered value or "pooled" ones, and how they were asked."""

    set: str
    prompt: str
    temperature: float


class Pairs(NamedTuple):
    """rows: the method's answers behind a cell, those judged otherwise than the base's first. base: its answers, by
    row. How many of them: rises, falls, same, unjudged (one of the two was not judged for the value); questions.
    """

    rows: np.ndarray
    base: np.ndarray
    rises: int
    falls: int
    same: int
    unjudged: int
    questions: int


class LeakageState(t.HasTraits):
    """What steering one value does to all ten.

    Settings: part and method, one of `parts` and of `methods`; steered and judged, the values of the row and the cell;
    centred, whether the matrix is without what rows and columns share; page, from 0, of the answers behind the cell. A
    part without the method takes its first one. Wrong ones raise WorkbenchError and change nothing.

    found: the leakage of (part, method) in `asked`, by `resample`; None before the first. pairs: the answers behind the
    cell (of part and method as they are set). Raises WorkbenchError for an evaluation in which nothing can leak.
    """

    part = t.Instance(Part)
    method = t.Unicode()
    steered = t.Unicode()
    judged = t.Unicode()
    centred = t.Bool(False)
    page = t.Int(0)

    found: Any = t.Instance(Leakage, allow_none=True)
    asked: Any = t.Tuple()
    pairs: Any = t.Instance(Pairs, allow_none=True)

    def __init__(
        self, evaluation: Evaluation | str | Path, method: str | None = None, steered: str | None = None,
        set: str = "own", prompt: str = "none", temperature: float | None = None,
    ):  # fmt: skip
        self.answers = answers = Answers(evaluation)
        self._known: dict[tuple[Part, str], Leakage] = {}
        self.choices = _choices(answers)
        if not self.choices:
            raise WorkbenchError(
                "A leakage map was asked for.", "no method whose answers were judged for other values than the steered",
                f"answers of a method and of {answers.base_name!r}, to own or pooled questions, judged for all values",
                "Judge the answers for all ten: study(..., judged_values='all').")  # fmt: skip
        main = answers.evaluation.provenance.get("temperatures", [None])[0] if temperature is None else temperature
        wanted = [p for p in self.choices if (p.set, p.prompt) == (set, prompt)]
        part = next((p for p in wanted if p.temperature == main), None)
        if part is None and temperature is None:
            part = next(iter(wanted), None)
        if part is None:
            asked = f"{set!r}, prompt {prompt!r}" + ("" if temperature is None else f", T = {temperature:g}")
            there = "; ".join(f"{p.set!r}, {p.prompt!r}, T = {p.temperature:g}" for p in self.choices)
            raise WorkbenchError(f"A leakage map of the set {asked} was asked for.",
                                 found="no such answers that were judged", allowed=there)  # fmt: skip
        super().__init__()
        self.part, self.method = part, self.choices[part][0] if method is None else method
        there = answers.choices["value"]
        self.steered = there[0] if steered is None else steered
        self.judged = self.steered
        self.observe(self._follow, ["part", "method", "steered", "judged"])
        self._follow()

    # -- settings ------------------------------------------------------------------------------------------------------

    @property
    def parts(self) -> list[Part]:
        """What can be chosen; own questions first."""
        return list(self.choices)

    @property
    def methods(self) -> list[str]:
        """Methods with judged answers in the part."""
        return self.choices[self.part]

    @t.validate("part")
    def _check_part(self, proposal: Any) -> Part:
        if proposal["value"] not in self.choices:
            raise WorkbenchError(f"Leakage on {proposal['value']} was asked for.", "no such answers that were judged",
                                 "; ".join(map(str, self.choices)))  # fmt: skip
        return proposal["value"]

    @t.validate("method")
    def _check_method(self, proposal: Any) -> str:
        return check_value(proposal["value"], self.methods, "method")

    @t.validate("steered")
    def _check_steered(self, proposal: Any) -> str:
        return check_value(proposal["value"], self.answers.choices["value"])

    @t.validate("judged")
    def _check_judged(self, proposal: Any) -> str:
        return check_value(proposal["value"])

    @t.validate("page")
    def _check_page(self, proposal: Any) -> int:
        if proposal["value"] not in range(self.pages):
            raise WorkbenchError(f"Page {proposal['value'] + 1} was asked for.", allowed=f"1 to {self.pages}")
        return proposal["value"]

    # -- what is found -------------------------------------------------------------------------------------------------

    def _follow(self, change: Any = None) -> None:
        if self.method not in self.methods:
            self.method = self.methods[0]  # comes back here
            return
        with self.hold_trait_notifications():
            self.pairs = self._pairs()
            self.page = 0

    def _of_part(self) -> np.ndarray:
        answers, part = self.answers, self.part
        of_set, of_prompt = answers.is_("set", part.set), answers.is_("prompt", part.prompt)
        return of_set & of_prompt & answers.is_("temperature", part.temperature)

    def _pairs(self) -> Pairs:
        answers = self.answers
        own = self._of_part() & answers.is_("method", self.method) & answers.is_("value", self.steered)
        rows = np.flatnonzero(own & (answers.base >= 0))
        said = answers.said[:, VALUES.index(self.judged)]
        rise = said[rows] - said[answers.base[rows]]
        far = np.where(np.isnan(rise), -1, np.abs(rise))
        order = np.lexsort((-np.nan_to_num(rise), -far))
        rises, falls, same = (int(which.sum()) for which in (rise > 0, rise < 0, rise == 0))
        questions = len(np.unique(answers.question[rows[~np.isnan(rise)]]))
        return Pairs(rows[order], answers.base[rows[order]], rises, falls, same, len(rows) - rises - falls - same,
                     questions)  # fmt: skip

    @property
    def pages(self) -> int:
        """How many pages the answers behind the cell fill; one where there are none."""
        return 1 if self.pairs is None else max(1, -(-len(self.pairs.rows) // PAGE))

    def choose(self, steered: str, judged: str) -> None:
        """Look at a cell of the matrix."""
        check_value(steered, self.answers.choices["value"])
        check_value(judged)
        with self.hold_trait_notifications():
            self.steered, self.judged = steered, judged

    @property
    def known(self) -> bool:
        """Whether the leakage as it is set was worked out before."""
        return (self.part, self.method) in self._known

    def resample(self) -> Generator[None]:
        """Work out the leakage as it is set and show it: `found`, `asked`. Once known it is there at once.

        The one step that computes takes .2 to 1 s, since the resamples of a method belong together.
        """
        part, method = self.part, self.method
        if not self.known:
            yield  # whoever waits is told first
            answers = self.answers
            floors = [floor for floor in FLOORS if floor != method]
            needed = [name for name in (method, answers.base_name, *FLOORS) if name in answers.choices["method"]]
            rows = self._of_part() & np.logical_or.reduce([answers.is_("method", name) for name in needed])
            self._known[part, method] = leakage(
                answers.table[rows], method, answers.base_name, part.set, floors, RESAMPLES, 0, part.prompt,
                part.temperature)  # fmt: skip
        with self.hold_trait_notifications():
            self.found, self.asked = self._known[part, method], (part, method)


def _choices(answers: Answers) -> dict[Part, list[str]]:
    """Parts in which other values than the steered can be held against the base's, and their methods."""
    both = np.isfinite(answers.said) & np.isfinite(answers.said[answers.base]) & (answers.base >= 0)[:, None]
    both[np.arange(len(answers)), answers.steered] = False
    rows = answers.table[["set", "prompt", "temperature", "method"]][both.any(axis=1)].drop_duplicates()
    found: dict[Part, list[str]] = {}
    for set_, prompt, temperature, method in rows.itertuples(index=False):
        if set_ in SETS and method != answers.base_name:
            found.setdefault(Part(set_, prompt, float(temperature)), []).append(method)
    return {part: found[part] for part in sorted(found, key=lambda part: SETS.index(part.set))}
