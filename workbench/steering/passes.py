"""What a forward pass was given: prompt and padding, cached and new. What is fixed at a prompt."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from ..errors import WorkbenchError
from ..models import Model

if TYPE_CHECKING:
    from .run import Run


@dataclass(eq=False)
class Prompt:
    """What is fixed from prefill until a new prompt starts, per row."""

    lengths: torch.Tensor  # real tokens of the prompt
    first_row: int  # number of this batch's first row among all rows of the run
    end: int  # columns up to the last prompt token of all rows
    padded: bool = False
    score: torch.Tensor | None = None  # of the gate; stays None where the gate decides per token
    open: torch.Tensor | None = None
    shift: dict[int, torch.Tensor] = field(default_factory=dict)  # layer -> (row, d), float32
    added: dict[int, torch.Tensor] = field(default_factory=dict)  # layer -> (row, 1, d), as the model adds it
    columns: int = 0  # of the cache, as this context has seen it grow
    traced: torch.Tensor | int = 0  # real tokens of each row that are in the trace already


@dataclass(eq=False)
class Pass:
    """One forward pass: its real tokens, their numbers in their rows, and what was in the cache before.

    gated: scores of a gate that decides per token, and which it opens for, both (row, column). where: which tokens
    of the pass an intervention changes (row, column), and whether that is none of them, some or all.
    """

    arguments: dict[str, Any]
    ids: torch.Tensor | None  # (row, column)
    full: torch.Tensor  # (row, cached and new column) bool: real tokens
    past: int  # columns in the cache
    masked: bool  # an attention mask was given
    cache: Any = None
    prompts: dict["Run", Prompt] = field(default_factory=dict)
    fired: set[tuple[str, int]] = field(default_factory=set)
    gated: dict["Run", tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    where: dict["Run", tuple[torch.Tensor, str]] = field(default_factory=dict)
    sums: list[tuple["Run", int, torch.Tensor]] = field(default_factory=list)  # of shifts, layer by layer

    @property
    def rows(self) -> int:
        return len(self.full)

    @cached_property
    def real(self) -> torch.Tensor:
        """(row, column) bool"""
        return self.full[:, self.past :]

    @cached_property
    def index(self) -> torch.Tensor:
        """(row, column): number of the token in its row, pads not counted"""
        return (self.full.cumsum(1) - 1)[:, self.past :]

    def last(self, lengths: torch.Tensor) -> torch.Tensor:
        """Where the last prompt token of each row is (row, column), one per row, given prompt lengths."""
        return self.real & (self.index == lengths[:, None] - 1)


def read_pass(arguments: dict[str, Any], model: Model, first_of_call: bool = False) -> Pass:
    """What a forward pass was given: real tokens by the attention mask, their numbers, the cache."""
    ids = arguments.get("input_ids")
    given: torch.Tensor = ids if ids is not None else arguments["inputs_embeds"]
    shape, device = given.shape[:2], given.device
    cache, mask = arguments.get("past_key_values"), arguments.get("attention_mask")
    past = int(cache.get_seq_length()) if cache is not None else 0
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.shape != (shape[0], past + shape[1])):
        found = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise WorkbenchError(
            "The last prompt token of every row was to be found.",
            found=f"attention_mask {found}",
            allowed=f"attention_mask (row, token), here {(shape[0], past + shape[1])}",
        )
    if ids is not None and past == 0 and (mask is None or (first_of_call and bool(mask.all()))):
        _refuse_pads(ids, model)
    full = mask.bool() if mask is not None else torch.ones(shape[0], past + shape[1], dtype=torch.bool, device=device)
    return Pass(arguments, ids, full, past, mask is not None, cache)


def _refuse_pads(ids: torch.Tensor, model: Model) -> None:
    """WorkbenchError when rows begin or end with pads that no mask tells from text.

    Where the pad is also a BOS or EOS, only rows that differ in their number of them can be called padded.
    """
    pad = model.tokenizer.pad_token_id
    pads = model.eos_ids if pad is None else {pad}
    text = ~torch.isin(ids, torch.tensor(sorted(pads), dtype=ids.dtype, device=ids.device))
    runs = [side.int().cumsum(1).eq(0).sum(1) for side in (text, text.flip(1))]
    if any(bool((run > (run.min() if pads & {model.bos_id, *model.eos_ids} else 0)).any()) for run in runs):
        raise WorkbenchError(
            "The last prompt token of every row was to be found.",
            found="rows that begin or end with pads, and no attention_mask that says so",
            do="Pass attention_mask=, as Model.pad returns it with the ids.",
        )
