"""One intervention that is on: its prompts, its edits of the residual stream, its trace."""

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import pandas as pd
import torch
import xarray as xr

from ..errors import WorkbenchError
from ..models import Model
from .passes import Pass, Prompt
from .trace import Trace, dataset

if TYPE_CHECKING:
    from .intervention import Intervention


class Run:
    """One intervention that is on: `steer`, its `trace` and how often its hooks `fired`, per layer."""

    def __init__(
        self,
        steer: "Intervention",
        model: Model,
        trace: bool = False,
        prompt_lengths: Sequence[int] | None = None,
        questions: Sequence[str] | None = None,
    ):
        self.steer, self.model, self.questions = steer, model, questions
        self.lengths = None if prompt_lengths is None else torch.as_tensor(prompt_lengths, dtype=torch.long)
        self.gate_layer = None if steer.gate is None else steer.gate.layer
        self.per_token = steer.gate is not None and steer.gate.per_token
        # Not fixed at the prompt but computed for every token that is steered, from its own state.
        self.anew = steer.scope == "token" or steer.site == "mlp_out"
        self.fired = dict.fromkeys(steer.layers, 0)
        self.rows = 0
        self._trace = Trace() if trace else None
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
        """Ask the gate about each prompt, or each token; `hidden` is the unsteered residual at its layer."""
        prompt, gate = now.prompts[self], self.steer.gate
        if self.per_token:
            assert gate is not None and hidden is not None
            tokens = self._tokens(now).to(hidden.device)
            score = torch.full(tokens.shape, float("nan"), device=hidden.device)
            opened = torch.zeros_like(tokens)
            score[tokens] = found = gate.score(hidden[tokens].float())
            opened[tokens] = gate.decide(found)
            now.gated[self] = score, opened
            return
        if gate is None:
            prompt.score = torch.full((now.rows,), float("nan"))
            prompt.open = torch.ones(now.rows, dtype=torch.bool)
            return
        if gate.reads == "text":
            prompt.score = self._asked(prompt.first_row, now.rows)
        else:
            prompt.score = gate.score(torch.zeros(now.rows, 1) if hidden is None else self._read(now, hidden))
        prompt.open = gate.decide(prompt.score)

    def _asked(self, first: int, rows: int) -> torch.Tensor:
        """Scores (row) of a gate that reads the question's text."""
        gate, questions = self.steer.gate, (self.questions or ())[first : first + rows]
        assert gate is not None
        if len(questions) != rows:
            raise WorkbenchError(
                f"{gate} was to decide about rows {first} to {first + rows - 1}.",
                found=f"{len(self.questions or ())} questions, where it reads the text of each",
                do="Use generate(model, prompts, steer=...), or .on(model, questions=[one for each row]).",
            )
        return torch.as_tensor(gate.scores(questions))

    def _read(self, now: Pass, hidden: torch.Tensor) -> torch.Tensor:
        """Residuals (row, d_model), float32, at the last prompt token of each row of a prefill."""
        return hidden[now.last(now.prompts[self].lengths).to(hidden.device)].float()

    # -- editing ---------------------------------------------------------------------------------------------

    def _tokens(self, now: Pass) -> torch.Tensor:
        """Tokens of the pass that the scope names (row, column), whoever the gate opens for."""
        if self.steer.scope == "all":
            return now.real
        answer = now.index - (now.prompts[self].lengths.to(now.real.device)[:, None] - 1)  # 0: last prompt token
        first, end = self.steer.window or (0, None)
        return now.real & (answer >= first) & (answer < end if end is not None else True)

    def _where(self, now: Pass, device: torch.device) -> tuple[torch.Tensor, str]:
        """Tokens of the pass that are changed (row, column): "none" of them, "some" or "all"."""
        if self not in now.where:
            prompt = now.prompts[self]
            opened = now.gated[self][1] if prompt.open is None else prompt.open[:, None].to(device)
            where = self._tokens(now).to(device) & opened
            now.where[self] = where, "all" if bool(where.all()) else "some" if bool(where.any()) else "none"
        return now.where[self]

    def edit(self, layer: int, hidden: torch.Tensor, now: Pass, read: torch.Tensor | None = None) -> torch.Tensor:
        """What stands at the method's site, (row, column, d), after this intervention's edit at one layer: a new
        tensor, or `hidden` itself where nothing is to be changed. read (row, column, ...): what the shift is computed
        from, None for `hidden`.
        """
        self.fired[layer] += 1
        prompt, steer = now.prompts[self], self.steer
        lengths = None
        if self.anew:
            where, share = self._where(now, hidden.device)
            if share != "none":
                at = slice(None) if share == "all" else where
                with torch.no_grad():
                    shift = steer.shift(layer, (hidden if read is None else read)[at].float())
                    now.sums.append((self, layer, shift.sum()))  # looked at when the pass ends, all at once
                if self._trace is not None:
                    lengths = torch.zeros(where.shape, device=hidden.device)
                    lengths[at] = shift.norm(dim=-1)
        else:
            if layer not in prompt.added:
                self._fix(layer, hidden, now)
            where, share = self._where(now, hidden.device)
            at, shift = slice(None), prompt.added[layer]
            if self._trace is not None:
                lengths = prompt.shift[layer].norm(dim=-1, keepdim=True).expand(where.shape)
        # Tokens that are not steered keep their bits: -0.0 is what changes no number when it is added.
        if share == "none":
            edited = hidden
        elif not self.anew:
            edited = hidden + shift if share == "all" else torch.where(where[..., None], hidden + shift, hidden)
        elif share == "all":
            edited = hidden + _neutral(shift).to(hidden.dtype)
        else:
            edited = hidden.index_put((where,), hidden[where] + _neutral(shift).to(hidden.dtype))
        if self._trace is not None:
            self._record(layer, now, hidden, edited, lengths)
        return edited

    @torch.no_grad()
    def _fix(self, layer: int, hidden: torch.Tensor, now: Pass) -> None:
        """What this prompt's rows are given at a layer, from here on: found at the last prompt token."""
        prompt = now.prompts[self]
        if layer not in prompt.shift:
            e = self._read(now, hidden)
            if prompt.open is None or bool(prompt.open.all()):  # None: the gate decides token by token
                prompt.shift[layer] = self.steer.shift(layer, e)
            else:  # a method may refuse a shift: not for rows that get none
                opened = prompt.open.to(e.device)
                prompt.shift[layer] = torch.zeros_like(e)
                if bool(opened.any()):
                    prompt.shift[layer][opened] = self.steer.shift(layer, e[opened])
        shift = prompt.shift[layer]
        if not bool(torch.isfinite(shift).all()):
            self._refuse_nan(layer)
        prompt.added[layer] = _neutral(shift)[:, None].to(hidden)

    def _refuse_nan(self, layer: int) -> NoReturn:
        raise WorkbenchError(
            f"{self.steer} was to steer layer {layer}.",
            found="NaN or inf in the residual stream or the shift",
            do="Load the model with dtype='float32', or look at what was steered before.",
        )

    def close(self, now: Pass) -> None:
        """After a pass: no hook may have been missed; the cache now belongs to the prompt."""
        steer = self.steer
        if sums := [(layer, total) for run, layer, total in now.sums if run is self]:
            layers, totals = zip(*sums, strict=True)
            broken = ~torch.isfinite(torch.stack([total.to(totals[0].device) for total in totals]))
            if bool(broken.any()):
                self._refuse_nan(layers[int(broken.nonzero()[0])])
        if missed := [layer for layer in steer.layers if (steer.site, layer) not in now.fired]:
            raise WorkbenchError(
                f"{self.steer} was on during a forward pass.",
                found=f"its hooks at layers {missed} never fired",
                allowed="models that run every steered block in every pass",
            )
        prompt = now.prompts[self]
        prompt.columns = now.past + now.real.shape[1]
        if self._trace is not None:
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
        self, layer: int, now: Pass, before: torch.Tensor, after: torch.Tensor, lengths: torch.Tensor | None
    ) -> None:
        """Lines for the tokens from the last prompt token on; lengths (row, column) of the shifts, None for none."""
        assert self._trace is not None
        prompt, device = now.prompts[self], before.device
        start = torch.as_tensor(prompt.lengths[:, None] - 1).clamp(min=prompt.traced)
        tokens = (now.real & (now.index >= start)).to(device)
        rows = tokens.nonzero()[:, 0]
        was, is_now = before[tokens].float(), after[tokens].float()
        if prompt.open is None:
            score, opened = (gated[tokens] for gated in now.gated[self])
        else:
            assert prompt.score is not None
            score, opened = (fixed.to(device)[rows] for fixed in (prompt.score, prompt.open))
        # A push below the resolution of the dtype is none.
        eps = was.new_zeros(len(was)) if lengths is None else torch.where((was != is_now).any(-1), lengths[tokens], 0)
        self._trace.add(
            prompt.first_row + rows,
            layer=layer,
            position=now.index.to(device)[tokens],
            token=-1 if now.ids is None else now.ids.to(device)[tokens],
            gate=score,
            open=opened,
            p_before=self.steer.probability(layer, was),
            p_after=self.steer.probability(layer, is_now),
            eps=eps,
            share=eps / was.norm(dim=-1),
        )

    @property
    def trace(self) -> pd.DataFrame:
        """One line per row, token from the last prompt token on, and layer.

        row: number of the prompt among those run in this context. position: number of the token in its row,
        pads not counted. gate: the gate's score, NaN without gate; of the prompt, or of the token where the gate
        decides per token. p_before, p_after: the probe's P_V there, NaN for methods without a probe. eps: length of
        the shift, in units of the residual stream (of the activations at site "neurons"), 0 where the edit changed
        no bit. share: eps over the length of what it is added to.
        """
        if self._trace is None:
            raise WorkbenchError(
                "The trace of a run was asked for.",
                found="it was switched on with trace=False",
                do="Use .on(model, trace=True).",
            )
        return self._trace.table({t: self.model.tokenizer.decode([t]) for t in self._trace.tokens() if t >= 0})

    def dataset(self) -> xr.Dataset:
        """The trace with axes (row, layer, position); `attrs["steer"]` says what was on."""
        return dataset(self.trace).assign_attrs(steer=repr(self.steer))


def _neutral(shift: torch.Tensor) -> torch.Tensor:
    """The same numbers, zeros as -0.0: x + 0.0 would turn -0.0 into 0.0."""
    return torch.where(shift == 0, -0.0, shift)


def _refuse_reordering(*_: Any, **__: Any) -> None:
    raise WorkbenchError(
        "A cache was to be reordered while an intervention is on.",
        found="beam search, or another search that moves rows",
        allowed="greedy decoding and sampling: each row keeps its gate, its eps and its place",
    )
