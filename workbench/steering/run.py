"""One intervention that is on: its prompts, its edits of the residual stream, its trace."""

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from ..errors import WorkbenchError
from ..models import Model
from .passes import Pass, Prompt

if TYPE_CHECKING:
    from .intervention import Intervention

TRACE = ("row", "layer", "position", "token", "gate", "open", "p_before", "p_after", "eps")


class Run:
    """One intervention that is on: `steer`, its `trace` and how often its hooks `fired`, per layer."""

    def __init__(
        self,
        steer: "Intervention",
        model: Model,
        trace: bool = False,
        prompt_lengths: Sequence[int] | None = None,
    ):
        self.steer, self.model = steer, model
        self.lengths = None if prompt_lengths is None else torch.as_tensor(prompt_lengths, dtype=torch.long)
        self.gate_layer = None if steer.gate is None else steer.gate.layer
        self.fired = dict.fromkeys(steer.layers, 0)
        self.rows = 0
        self._records: list[dict[str, Any]] | None = [] if trace else None
        self._caches: weakref.WeakKeyDictionary[Any, Prompt] = weakref.WeakKeyDictionary()
        self._held: tuple[object, Prompt] | None = None

    @property
    def name(self) -> str:
        return self.steer.name

    def __repr__(self) -> str:
        return repr(self.steer)

    # -- prompts ---------------------------------------------------------------------------------------------

    def prompt(self, now: Pass, call: object | None) -> Prompt:
        """The prompt that this pass belongs to: a new one at prefill, the cache's own afterwards."""
        if now.past:
            return self._continued(now)
        if call is not None and self._held is not None and self._held[0] is call:
            if len(self._held[1].lengths) != now.rows:
                raise WorkbenchError("One generation was to be steered.", found="the number of its rows changed")
            return self._held[1]  # an uncached generation reads its growing text again: still the same prompt
        lengths = self._read_lengths(now)
        end = int(now.last(lengths).int().argmax(1).max()) + 1
        prompt = Prompt(lengths, self.rows, end, bool((~now.real).any()))
        self.rows += now.rows
        if call is not None:
            self._held = (call, prompt)
        return prompt

    def _continued(self, now: Pass) -> Prompt:
        prompt = self._caches.get(now.cache)
        problem = None
        if prompt is None:
            problem = "a cache that was filled before this intervention was on"
        elif len(prompt.lengths) != now.rows:
            problem = f"{now.rows} rows, and {len(prompt.lengths)} in the cache's prompt"
        elif not prompt.end <= now.past <= prompt.columns:
            problem = f"{now.past} columns in the cache, where {prompt.end} to {prompt.columns} belong"
        elif prompt.padded and not now.masked:
            problem = "no attention_mask, though the prompts were padded"
        if prompt is None or problem:
            raise WorkbenchError(
                f"{self.steer} was to go on with a cached prompt.",
                found=problem,
                allowed="the cache that the prompt's own pass filled inside this context, its rows in order",
                do="Run the whole prompt inside the context.",
            )
        return prompt

    def _read_lengths(self, now: Pass) -> torch.Tensor:
        present = now.real.sum(1)
        if self.lengths is None:
            lengths = present
        elif len(self.lengths) != now.rows:
            raise WorkbenchError(
                f"{now.rows} rows were to be steered.",
                found=f"{len(self.lengths)} prompt lengths",
                do="Give prompt_lengths= the number of prompt tokens of each row, pads not counted.",
            )
        else:
            lengths = self.lengths.to(present.device)
        if bool(((lengths < 1) | (lengths > present)).any()):
            row = int(((lengths < 1) | (lengths > present)).nonzero()[0])
            raise WorkbenchError(
                "The last prompt token of every row was to be read.",
                found=f"row {row} with {int(present[row])} real tokens, {int(lengths[row])} of them prompt",
                allowed="at least one prompt token, and no more than the row holds",
            )
        return lengths

    @torch.no_grad()
    def decide(self, now: Pass, hidden: torch.Tensor | None = None) -> None:
        """Ask the gate; `hidden` is the unsteered residual at its layer."""
        prompt, gate = now.prompts[self], self.steer.gate
        if gate is None:
            prompt.score = torch.full((now.rows,), float("nan"))
            prompt.open = torch.ones(now.rows, dtype=torch.bool)
            return
        prompt.score = gate.score(torch.zeros(now.rows, 1) if hidden is None else self._read(now, hidden))
        prompt.open = gate.decide(prompt.score)

    def _read(self, now: Pass, hidden: torch.Tensor) -> torch.Tensor:
        """Residuals (row, d_model), float32, at the last prompt token of each row of a prefill."""
        return hidden[now.last(now.prompts[self].lengths).to(hidden.device)].float()

    # -- editing ---------------------------------------------------------------------------------------------

    def edit(self, layer: int, hidden: torch.Tensor, now: Pass) -> torch.Tensor:
        """The residual stream (row, column, d_model) after this intervention's edit at one layer: always a
        new tensor.
        """
        self.fired[layer] += 1
        prompt, steer, device = now.prompts[self], self.steer, hidden.device
        assert prompt.open is not None
        real, index = now.real.to(device), now.index.to(device)
        steered = real & (index >= prompt.lengths.to(device)[:, None] - 1)  # from the last prompt token on
        reported = steered
        with torch.no_grad():
            if steer.scope == "token":
                shift = torch.zeros(hidden.shape, device=device)
                shift[steered] = steer.shift(layer, hidden[steered].float())
            else:
                if layer not in prompt.shift:
                    prompt.shift[layer] = steer.shift(layer, self._read(now, hidden))
                shift = prompt.shift[layer][:, None]
                steered = real if steer.scope == "all" else steered
            if not bool(torch.isfinite(shift).all()):
                raise WorkbenchError(
                    f"{steer} was to steer layer {layer}.",
                    found="NaN or inf in the residual stream or the shift",
                    do="Load the model with dtype='float32', or look at what was steered before.",
                )
            steered = steered & prompt.open.to(device)[:, None] & (shift != 0).any(-1)
        # `where`, so that a row that is not steered keeps its bits.
        edited = torch.where(steered[..., None], hidden + shift.to(hidden.dtype), hidden)
        if self._records is not None:
            self._record(
                layer,
                now,
                prompt,
                reported & (now.index >= prompt.traced).to(device),
                hidden,
                edited,
                shift,
                steered,
            )
        return edited

    def close(self, now: Pass) -> None:
        """After a pass: no hook may have been missed; the cache now belongs to the prompt."""
        if missed := [layer for layer in self.steer.layers if not now.fired.get(layer)]:
            raise WorkbenchError(
                f"{self.steer} was on during a forward pass.",
                found=f"its hooks at layers {missed} never fired",
                allowed="models that run every steered block in every pass",
            )
        prompt = now.prompts[self]
        prompt.columns = now.past + now.real.shape[1]
        prompt.traced = (now.index[:, -1:] + 1).clamp(min=prompt.traced)
        if now.cache is not None:
            self._caches[now.cache] = prompt
            vars(now.cache)["reorder_cache"] = _refuse_reordering

    def release(self) -> None:
        """Leave the caches as they were found."""
        for cache in self._caches:
            vars(cache).pop("reorder_cache", None)

    # -- trace -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _record(
        self,
        layer: int,
        now: Pass,
        prompt: Prompt,
        where: torch.Tensor,
        before: torch.Tensor,
        after: torch.Tensor,
        shift: torch.Tensor,
        steered: torch.Tensor,
    ) -> None:
        assert self._records is not None and prompt.score is not None and prompt.open is not None
        rows, columns = (axis.cpu().numpy() for axis in where.nonzero(as_tuple=True))
        p_before, p_after = (self.steer.probability(layer, hidden[where].float()) for hidden in (before, after))
        eps = torch.where(steered, shift.norm(dim=-1), 0.0)[where]
        nothing = np.full(len(rows), np.nan)
        self._records.append(
            {
                "row": prompt.first_row + rows,
                "layer": np.full(len(rows), layer),
                "position": now.index.cpu().numpy()[rows, columns],
                "token": np.full(len(rows), -1) if now.ids is None else now.ids.cpu().numpy()[rows, columns],
                "gate": prompt.score.cpu().numpy()[rows],
                "open": prompt.open.cpu().numpy()[rows],
                "p_before": nothing if p_before is None else p_before.cpu().numpy(),
                "p_after": nothing if p_after is None else p_after.cpu().numpy(),
                "eps": eps.float().cpu().numpy(),
            }
        )

    @property
    def trace(self) -> pd.DataFrame:
        """One line per row, token from the last prompt token on, and layer.

        row: number of the prompt among those run in this context. position: number of the token in its row,
        pads not counted. gate: the gate's score, NaN without gate. p_before, p_after: the probe's P_V there,
        NaN for methods without a probe. eps: length of the shift, in units of the residual stream.
        """
        if self._records is None:
            raise WorkbenchError(
                "The trace of a run was asked for.",
                found="it was switched on with trace=False",
                do="Use .on(model, trace=True).",
            )
        table = pd.DataFrame(
            {name: np.concatenate([r[name] for r in self._records]) if self._records else [] for name in TRACE}
        )
        words = {token: self.model.tokenizer.decode([token]) for token in set(table["token"].tolist()) - {-1}}
        table["token"] = [words.get(token, "") for token in table["token"].tolist()]
        return table.sort_values(["row", "position", "layer"], kind="stable", ignore_index=True)


def _refuse_reordering(*_: Any, **__: Any) -> None:
    raise WorkbenchError(
        "A cache was to be reordered while an intervention is on.",
        found="beam search, or another search that moves rows",
        allowed="greedy decoding and sampling: each row keeps its gate, its eps and its place",
    )
