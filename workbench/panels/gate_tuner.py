"""The gate tuner: a threshold dragged along the scores of related and unrelated prompts, and what it costs.

A view of `GatingState`. All prompts were scored when it was made, so that a move of the threshold is a comparison.
"""

import html
import math
from typing import Any

import ipywidgets as w
import pandas as pd

from .. import figures
from ..figures.gating import score_text, threshold_histogram, threshold_roc
from ..gates import Gate
from ..models import Model
from .panel import PAUSE, ROW, Panel
from .states.gating import RULES, GatingState

SHOWN = 60  # prompts that are listed
STEPS = 400  # of a cosine's slider


def gate_tuner(
    gate: Gate, model: Model | None = None, kinds: pd.DataFrame | None = None, **settings: Any
) -> "GateTuner":
    """The gate tuner for a gate with a threshold that was tried on prompts (`fit`, or `measured` for a detector).

    model: to score prompts with, where the gate was loaded without its own. kinds: table with prompt, kind and related,
        as `load_unrelated` returns it: names the kinds of the gate's prompts; others are scored and shown too. None: a
        model of the embedded world is shown that world's own.
    settings: those of `GatingState`: threshold, or rule and rate; typed.

    `panel.state.tuned()` is the gate with the threshold that was chosen. Raises WorkbenchError for a gate without.
    """
    return GateTuner(GatingState(gate, model, kinds, **settings))


class GateTuner(Panel):
    """The panel. `state` holds the threshold and what it does; `state.tuned()` is the gate to be used elsewhere."""

    label = "Gate tuner"

    def __init__(self, state: GatingState):
        super().__init__(state)
        low, high = state.span
        self._step = step = 0.05 if state.probable else (high - low) / STEPS
        if state.probable:  # so that the slider's places are round numbers
            low, high = math.trunc(low / step) * step, math.trunc(high / step) * step
        name = f"{state.said}, logit" if state.probable else state.said
        self.controls: dict[str, Any] = {
            "threshold": w.FloatSlider(min=low, max=high, step=step, readout=False, description=f"above {name}",
                                       tooltip="The gate opens for scores above it", layout=w.Layout(width="34em"),
                                       style=dict(description_width="initial")),
            "rule": w.Dropdown(options=[(told, rule) for rule, told in RULES.items()], description="set by",
                               tooltip="A rule that sets the threshold, on the gate's own out-of-fold scores"),
            "rate": w.BoundedFloatText(min=0, max=0.99, step=0.005, description="share, at most",
                                       tooltip="Largest share of unrelated prompts that may open it",
                                       layout=w.Layout(width="14em"), style=dict(description_width="initial")),
            "typed": w.Textarea(rows=3, description="prompts", layout=w.Layout(width="min(100%, 62em)"),
                                placeholder="One prompt a line: they are scored as you type"),
        }  # fmt: skip
        held = self.controls
        self.bind("threshold", held["threshold"], show=state.place, read=state.score_at)
        for trait in ("rule", "rate", "typed"):
            self.bind(trait, held[trait])
        self.bar, self.summary, self.kinds, self.changed, self.table = (w.HTML() for _ in range(5))
        self.histogram = self.plot(self._draw_histogram, after="scored")
        self.roc = self.plot(self._draw_roc)
        held["typed"].disabled = not state.can_score
        missing = [] if state.can_score else [w.HTML(
            '<div class="wb-small">Prompts cannot be scored here: this gate was loaded without its model or classifier.'
            "</div>")]  # fmt: skip
        self.lay_out(
            w.HBox([held["rule"], held["rate"]], layout=ROW),
            w.HBox([held["threshold"], self.bar], layout=ROW),
            self.histogram,
            self.summary,
            w.GridBox([self.roc, self.kinds], layout=w.Layout(
                grid_template_columns="repeat(auto-fit, minmax(min(100%, 420px), 1fr))", grid_gap="4px 20px")),
            self.changed,
            held["typed"],
            *missing,
            self.table,
        )  # fmt: skip
        self._hold()
        self.follow(["threshold", "rule"], self._moved)
        self.follow("typed", self._score, PAUSE)
        self.guarded(self._tell)
        self._tell_typed()
        if state.typed.strip():
            self._score()

    # -- the handle ----------------------------------------------------------------------------------------------------

    def _hold(self) -> None:
        """The handle on the histogram and the threshold follow each other."""
        state, plot, taking = self.state, self.histogram, False  # what the hand holds is not moved

        def tell(_: Any = None) -> None:
            if not taking:
                self._tell_handle()

        def take(handle: dict[str, Any]) -> None:
            nonlocal taking
            at = float(handle["at"])
            if abs(at - state.place(state.threshold)) < 1e-9:
                return
            taking = True
            try:
                state.threshold = state.score_at(at)
            finally:
                taking = False

        tell()
        plot.observe(lambda change: self.guarded(take, change["new"]), "handle")
        state.observe(tell, "threshold")
        self.follow("threshold", self._tell_handle, PAUSE)  # what it says of itself, once it rests

    def _tell_handle(self) -> None:
        state, (low, high) = self.state, self.state.span
        at = min(max(state.place(state.threshold), low), high)
        self.histogram.handle = {"at": at, "low": low, "high": high, "step": self._step,
                                 "label": f"threshold of the gate, {state.said}", "text": _told(state, state.threshold)}

    # -- what is done --------------------------------------------------------------------------------------------------

    def _moved(self) -> None:
        self._tell()
        self._tell_typed()
        self.roc.redraw()

    def _score(self) -> None:
        self.start(self.state.score())

    def ended(self) -> None:
        """The typed prompts were scored, or could not be."""
        self._tell_typed()

    # -- what is shown -------------------------------------------------------------------------------------------------

    def _draw_histogram(self) -> Any:
        state = self.state
        layer = "" if state.given.layer is None else f", layer {state.given.layer}"
        tokens = "each token" if "position" in state.table else "the last prompt token"
        where = f"{layer}, at {tokens}" if layer else " on the bare question"
        unseen = int((~state.table["seen"]).sum())
        more = f" Below also {unseen} prompts that the fit did not see." if unseen else ""
        told = f"{_source(state)}{type(state.given).__name__}{where}. Bars: prompts of the fit, out of fold.{more}"
        return threshold_histogram(state.table, state.probable, state.said, told, state.scored)

    def _draw_roc(self) -> Any:
        state, (area, low, high) = self.state, self.state.auroc
        n = [len(state.sides[side]) for side in (True, False)]
        told = (f"AUROC {area:.3f} ({low:.3f} to {high:.3f}), chance .5, on {n[0]} related and {n[1]} unrelated "
                "prompts, out of fold. Band and bars: 95 % intervals.")  # fmt: skip
        return threshold_roc(state.curve, state.rates(), state.rates(state.own_opened), told)

    def _tell(self) -> None:
        state = self.state
        self.controls["rate"].disabled = state.rule != "false_positive"
        self.bar.value = f"<b>{html.escape(state.said)} &gt; {_told(state, state.threshold)}</b>"
        self.summary.value, self.kinds.value, self.changed.value = summary(state), kinds_table(state), changes(state)

    def _tell_typed(self) -> None:
        self.table.value = typed_table(self.state)


def _source(state: GatingState) -> str:
    model = vars(state.given).get("model")
    return "" if model is None else f"{figures.escape(model.name, 60)}: "


def _told(state: GatingState, score: float) -> str:
    return score_text(score, state.probable)


def _share(share: float, low: float, high: float) -> str:
    return f"{share:.1%} ({low:.1%} to {high:.1%})"


def _cell(told: Any) -> str:
    """A cell that is not broken into lines."""
    return f'<td style="white-space: nowrap">{told}</td>'


def summary(state: GatingState) -> str:
    """What the threshold is, how it was chosen, and what it does to the prompts of the fit."""
    rates, counts = state.rates(), {side: (int(state.opened[at].sum()), len(at)) for side, at in state.sides.items()}
    parts = [f"<b>{counts[side][0]} of {counts[side][1]}</b> {name} prompts, {_share(*rates[key])}"
             for side, name, key in ((True, "related", "open"), (False, "unrelated", "false_positive"))]  # fmt: skip
    now, own = _told(state, state.threshold), _told(state, state.given.threshold)
    return (
        f'<div class="wb-claim" role="status">Open where {html.escape(state.said)} &gt; <b>{now}</b> '
        f"({html.escape(state.criterion)}; the gate's own is {own}): for {parts[0]}, and {parts[1]}, out of fold, with "
        "95 % intervals.</div>"
    )


def kinds_table(state: GatingState) -> str:
    """How many of each kind open it, here and at the gate's own threshold."""
    rows = [
        f"<tr><td>{html.escape(kind)}</td><td>{'open' if related else 'closed'}</td>"
        f"{_cell(n)}{_cell(f'<b>{count}</b>')}{_cell(_share(*share))}{_cell(own)}</tr>"
        for related, kind, n, count, *share, own in reversed([*state.counts().itertuples(index=False, name=None)])
    ]
    return (
        '<table class="wb-table"><tr><th>kind of prompt</th><th>should be</th><th>n</th><th>open</th>'
        f"<th>share (95 %)</th><th>at its own threshold</th></tr>{''.join(rows)}</table>"
    )


def changes(state: GatingState) -> str:
    """The prompts that change side against the gate's own threshold, with score and kind."""
    table = state.changes()
    own = _told(state, state.given.threshold)
    own = f"against the gate's own threshold, {own} ({html.escape(state.given.criterion)})"
    if not len(table):
        return f'<div class="wb-small">No prompt changes side {own}.</div>'
    opened = int(table["open"].sum())
    rows = [
        f"<tr>{_cell('now open' if is_open else 'now closed')}{_cell(_told(state, score))}"
        f"<td>{html.escape(kind)}</td><td>{html.escape(prompt)}</td></tr>"
        for is_open, score, kind, prompt in table[["open", "score", "kind", "prompt"]].head(SHOWN).itertuples(
            index=False, name=None)
    ]  # fmt: skip
    told = f"{opened} now open, {len(table) - opened} now closed." + f" The first {SHOWN}:" * (len(table) > SHOWN)
    return (
        f"<div><b>{len(table)}</b> prompts change side {own}: {told}</div>"
        '<div class="wb-list" tabindex="0" role="region" aria-label="Prompts that change side">'
        f'<table class="wb-table"><tr><th>side</th><th>{html.escape(state.said)}</th><th>kind</th><th>prompt</th></tr>'
        f"{''.join(rows)}</table></div>"
    )


def typed_table(state: GatingState) -> str:
    """The typed prompts, numbered as on the histogram, with score and decision."""
    if not state.scored:
        told = "" if state.typed.strip() or not state.can_score else "Typed prompts are marked on the histogram."
        return f'<div class="wb-small" role="status">{told}</div>'
    rows = [
        f"<tr>{_cell(k)}{_cell('<b>open</b>' if is_open else '<b>closed</b>')}{_cell(_told(state, score))}"
        f"<td>{html.escape(prompt)}</td></tr>"
        for k, ((prompt, score), is_open) in enumerate(zip(state.scored, state.typed_open(), strict=True), 1)
    ]
    return (
        f'<div role="status"><table class="wb-table"><tr><th>mark</th><th>gate</th><th>{html.escape(state.said)}</th>'
        f"<th>typed prompt</th></tr>{''.join(rows)}</table></div>"
    )
