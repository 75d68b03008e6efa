"""ICA: in-context alignment, asking the model to have the value.

**Rule.** The instruction `model.instruct(value, level)` is put before the question in the user's last turn.
Nothing inside the model changes.

**Parameters.** `level`: "high", or "low" for the negative prompt of Jin et al. `gate`: edits only prompts for
which it opens (the gate reads the bare question); None edits all. The wording belongs to the model's world;
real models get the published one, with the value's definition.

**Source.** Jin et al., ACL 2025, arXiv 2507.11316 (their baseline).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import pandas as pd

from ..errors import WorkbenchError
from ..gates import Gate
from ..models import Model, Prompt, instructed, question
from ..values import check_value
from .intervention import Intervention
from .trace import TRACE


@dataclass(frozen=True, eq=False, repr=False)
class ICA(Intervention):
    """Ask for a level of a value in the prompt; see the module's page."""

    value: str
    level: str = "high"
    gate: Gate | None = None

    def __post_init__(self):
        check_value(self.value)
        if self.level not in ("high", "low"):
            raise WorkbenchError(f"ICA with level {self.level!r} was asked for.", allowed="'high', 'low'")

    def edit_prompt(self, question: str, model: Model | None = None) -> str:
        """The question with the instruction before it, where the gate opens."""
        model = model or getattr(self.gate, "model", None)
        if model is None:
            raise WorkbenchError(
                "A prompt was to be edited by ICA.",
                found="no model, whose wording is needed",
                do="Pass it: edit_prompt(question, model).",
            )
        return str(self.edit_prompts([question], model)[0][0])

    def edit_prompts(self, prompts: Sequence[Prompt], model: Model) -> tuple[list[Prompt], pd.DataFrame]:
        self.check(model)
        instruction, asked = model.instruct(self.value, self.level), [question(prompt) for prompt in prompts]
        scores = [float("nan")] * len(prompts) if self.gate is None else self.gate.scores(asked)
        opened = [True] * len(prompts) if self.gate is None else self.gate.opens(asked)
        edited = [instructed(p, instruction) if opens else p for p, opens in zip(prompts, opened, strict=True)]
        trace = pd.DataFrame({"row": range(len(prompts)), "gate": scores, "open": opened}).reindex(
            columns=list(TRACE)
        )
        return edited, trace

    def on(self, model: Model, trace: bool = False, prompt_lengths: Sequence[int] | None = None) -> NoReturn:
        raise WorkbenchError(
            "ICA was to be switched on.",
            found="a method that edits prompts, not activations",
            do="Use generate(model, prompts, steer=ICA(...)), or ask edit_prompt(question, model) yourself.",
        )
