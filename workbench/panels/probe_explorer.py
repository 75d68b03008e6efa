"""The probe explorer: all probes of a model at a glance, one of them up close, and what it reads in a typed text.

A view of `ProbingState`, which holds and fits everything. What changes how probes are fitted shows the probe looked at
first; the others follow step by step, and any further change stops them.
"""

import html
import math
import time
from typing import Any

import ipywidgets as w

from .. import figures
from ..figures.exploring import probe_grid, probe_reading
from ..figures.style import in_circle
from ..models import Model
from ..probes import METHODS, Probes
from .panel import PAUSE, ROW, Panel
from .states.probing import OneProbe, ProbingState

SHOWN = 40  # misjudged texts that are listed
REST = 0.5  # seconds without a change before all other probes are fitted anew
BEAT = 0.6  # seconds between two pictures of a grid that is being filled


def probe_explorer(model: Model, probes: Probes, **settings: Any) -> "ProbeExplorer":
    """The probe explorer for a model and its probes.

    settings: those of `ProbingState`: value, layer, method, C, text. Probes of `fit_probes` can be fitted again with
    another method or C; those of a file came without the activations for that.
    """
    return ProbeExplorer(ProbingState(model, probes, **settings))


class ProbeExplorer(Panel):
    """The panel. `state.refitted()` gives the probes as they are shown, once all are there."""

    label = "Probe explorer"

    def __init__(self, state: ProbingState):
        super().__init__(state)
        probes, several = state.probes, len(state.probes.layers) > 1
        wide = dict(layout=w.Layout(width="22em"))
        self.controls: dict[str, Any] = {
            "value": w.Dropdown(options=probes.values, description="value", tooltip="Whose probe is looked at"),
            "layer": (w.SelectionSlider if several else w.Dropdown)(
                options=probes.layers, description="layer", tooltip="After which block it reads", **wide),
            "method": w.Dropdown(options=[(name.replace("_", " "), name) for name in METHODS], description="method",
                                 tooltip="How all probes are fitted"),
            "C": w.FloatSlider(min=-4, max=4, step=0.1, readout=False, description="C, log scale", **wide,
                               tooltip="Inverse penalty of logistic probes: the larger, the closer to the texts"),
            "text": w.Textarea(rows=2, description="text", placeholder="A text to be read token by token",
                               layout=w.Layout(width="min(100%, 62em)")),
        }  # fmt: skip
        held = self.controls
        for name in ("value", "layer", "method", "text"):
            self.bind(name, held[name])
        self.bind("C", held["C"], show=math.log10, read=lambda shown: float(f"{10**shown:.3g}"))
        self.penalty, self.progress, self.facts, self.wrong, self.strip = w.Label(), *(w.HTML() for _ in range(4))
        self._drawn = 0.0  # when the grid was
        self.grid = self.plot(self._draw_grid, clicked=self._click)
        self.reading = self.plot(self._draw_reading)
        cells = "repeat(auto-fit, minmax(min(100%, 480px), 1fr))" if len(probes.layers) < 13 else "100%"
        why = "" if state.can_refit else (
            '<div class="wb-small">Method and C are fixed: these probes came without the activations that a refit '
            "needs. Fit them in this session, with <code>fit_probes</code>, to change them.</div>")  # fmt: skip
        self.lay_out(
            w.HBox([held["value"], held["layer"]], layout=ROW),
            w.HBox([held["method"], held["C"], self.penalty, self.progress], layout=ROW),
            *([w.HTML(why)] if why else []),
            w.GridBox([self.grid, self.reading], layout=w.Layout(grid_template_columns=cells, grid_gap="4px 16px")),
            self.facts,
            self.wrong,
            held["text"],
            self.strip,
        )
        self.follow(["value", "layer"], self._look)
        self.follow(["method", "C"], self._refit)
        self.follow("text", self._read, PAUSE)
        state.observe(lambda _: self.cancel(), ["method", "C"])  # at once: the run is of the settings before
        self.follow("fitted", self._progressed)
        self.guarded(self._tell)
        self.soon(self._read)
        if state.fitted < state.total:
            self.start(state.refit())

    # -- what is done --------------------------------------------------------------------------------------------------

    def _click(self, clicked: dict[str, Any]) -> None:
        """A cell of the grid was clicked: look at its probe."""
        point, probes = clicked.get("point"), self.state.probes
        if clicked.get("trace") == 0 and isinstance(point, list) and point[0] < len(probes.values):
            values = in_circle(probes.values)
            with self.state.hold_trait_notifications():
                self.state.value, self.state.layer = values[point[0]], probes.layers[point[1]]

    def _look(self) -> None:
        """Another probe is looked at."""
        self.reading.redraw()
        self.grid.redraw()
        self._tell()

    def _read(self) -> None:
        try:
            self.state.read()
        finally:  # also where there is nothing new to tell: what was read before goes
            self._tell_text()

    def _refit(self) -> None:
        """The settings of the fit changed: the probe looked at first, the rest once they rest."""
        self.reading.redraw()
        self._tell()
        self.soon(self._fill, REST)

    def _fill(self) -> None:
        self.grid.redraw()
        if self.state.fitted < self.state.total:
            self.start(self.state.refit())

    def _progressed(self) -> None:
        """One more probe is there."""
        whole = self.state.fitted == self.state.total
        self._tell_progress()
        if self.ending == "running" and not whole and time.monotonic() - self._drawn > BEAT:
            self.grid.redraw()

    def ended(self) -> None:
        """All probes are there, or a change stopped the refit."""
        if self.ending == "done":
            self.soon(self._look)
        self._tell_progress()

    # -- what is shown -------------------------------------------------------------------------------------------------

    def _draw_grid(self) -> Any:
        state, self._drawn = self.state, time.monotonic()
        return probe_grid(state.accuracy, state.value, state.layer, bounds=state.bounds, tfidf=state.probes.tfidf,
                          n=state.n, how=f"{_model(state)}: {state.how}.")  # fmt: skip

    def _draw_reading(self) -> Any:
        state, one = self.state, self.state.one()
        told = f"{_model(state)}, {state.how}: what the probe says of texts it was not fitted on."
        return probe_reading(one.logits, one.positive, one.curve, value=state.value, layer=state.layer,
                             auroc=one.auroc, bounds=one.auroc_bounds, told=figures.escape(told, 200))  # fmt: skip

    def _tell(self) -> None:
        state, fixed = self.state, not self.state.can_refit
        self.controls["method"].disabled = fixed
        self.controls["C"].disabled = fixed or state.method != "logistic"
        self.penalty.value = f"C = {state.C:.3g}" if state.method == "logistic" else "C is for logistic only"
        one = state.one()
        self.facts.value, self.wrong.value = facts(state, one), misjudged(state, one)
        self._tell_progress()
        self._tell_text()

    def _tell_progress(self) -> None:
        state = self.state
        told = f"{state.fitted} of {state.total}"
        if state.fitted == state.total:
            told += " probes"
        else:
            told = f"{told}: a refit failed" if self.ending == "failed" else f"refitting {told}"
        self.progress.value = f'<span class="wb-small" role="status">{told}</span>'

    def _tell_text(self) -> None:
        self.strip.value = strip(self.state)


def _model(state: ProbingState) -> str:
    return str(state.probes.provenance.get("model", state.model.name))


def facts(state: ProbingState, one: OneProbe) -> str:
    """How well the probe reads, with n, intervals, chance and words alone."""
    n, words = len(one.logits), float(state.probes.tfidf.sel(value=state.value))
    folds = state.probes.provenance.get("folds", state.probes.examples["fold"].nunique())
    return (
        f'<div class="wb-claim" role="status"><b>{html.escape(state.value)}, layer {state.layer}</b>, '
        f"{html.escape(state.how)}: accuracy <b>{one.accuracy:.3f}</b> ({one.bounds[0]:.3f} to {one.bounds[1]:.3f}) on "
        f"{n} held-out texts of {n // 2} pairs, {folds} folds; chance is .5, words alone (TF-IDF) give {words:.3f}. "
        f"AUROC <b>{one.auroc:.3f}</b> ({one.auroc_bounds[0]:.3f} to {one.auroc_bounds[1]:.3f}), chance .5. "
        f"95 % intervals.</div>"
    )


def misjudged(state: ProbingState, one: OneProbe) -> str:
    """The texts on the wrong side of 0, the worst first, each beside its pair's other text."""
    table = one.misjudged
    if not len(table):
        return '<div class="wb-small">No held-out text is on the wrong side of 0.</div>'
    rows = [
        f"<tr><td>{'positive' if positive else 'negative'}</td><td>{p:.3f}</td><td>{html.escape(text)}</td>"
        f'<td class="wb-small">{html.escape(other)} ({other_p:.3f})</td></tr>'
        for text, positive, p, other, other_p in table.head(SHOWN).itertuples(index=False, name=None)
    ]
    more = f", the {SHOWN} worst of them" if len(table) > SHOWN else ""
    calibrated = "" if state.method == "logistic" else f" (not calibrated for {html.escape(state.how)})"
    return (
        f"<div><b>Misjudged: {len(table)} of {len(one.logits)} held-out texts{more}</b></div>"
        '<div class="wb-list" tabindex="0" role="region" aria-label="Misjudged texts"><table class="wb-table">'
        f"<tr><th>it is</th><th>P{calibrated}</th><th>text</th><th>its pair's other text (P)</th></tr>{''.join(rows)}"
        "</table></div>"
    )


def strip(state: ProbingState) -> str:
    """The typed text, each token with P of the value there, and P of every value at the last."""
    read = state.tokens()
    if not read:
        told = "This text was not read." if state.text.strip() else "Type a text: the probe reads it token by token."
        return f'<div class="wb-small" role="status">{told}</div>'
    tokens, name = "".join(_token(word, p) for word, p in read), html.escape(state.value)
    each = [f"{'<b>' * (value == state.value)}{html.escape(value)} {_p(p)}{'</b>' * (value == state.value)}"
            for value, p in state.profile().items()]  # fmt: skip
    return (
        f'<div role="status"><div>P of <b>{name}</b> at every token, layer {state.layer}; at the last one: '
        f'<b>{read[-1][1]:.3f}</b></div><div class="wb-strip">{tokens}</div>'
        f'<div class="wb-small">All values at the last token: {" · ".join(each)}.</div>'
        '<div class="wb-small">The probes were fitted at the last token of whole texts: only there is P what it was '
        "tested for. At earlier tokens they read outside of what they learnt.</div></div>"
    )


def _token(word: str, p: float) -> str:
    """Blue above .5, orange below, nothing at .5: readable under the page's own ink, light or dark."""
    ground = f"rgba({'0, 114, 178' if p > 0.5 else '213, 94, 0'}, {abs(p - 0.5) * 1.1:.2f})"
    shown = html.escape(word).replace(" ", "&nbsp;").replace("\n", "↵") or "·"
    return f'<span class="wb-token" style="background: {ground}">{shown}<small>{_p(p)}</small></span>'


def _p(p: float) -> str:
    return "…" if math.isnan(p) else f"{p:.2f}".removeprefix("0")
