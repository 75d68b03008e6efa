"""The geometry of the values: drag the layer, and the circle, its null and the sentence that may be claimed follow.

A view of `GeometryState`. What is shown is drawn first; other layers are found while nothing else is asked for.
"""

import html
from typing import Any

import ipywidgets as w
import plotly.graph_objects as go

from .. import figures
from ..figures.style import narrow
from ..geometry.labellings import TITLES
from .panel import ROW
from .pieces import Part, PiecePanel
from .quoting import quoted_line
from .states.geometry import SETTINGS, GeometryState, Key

ORDERS = {"schwartz": "Schwartz's", "swapped": "last two swapped"}
LAYOUTS = {"equal": "equal steps", "wedges": "nine wedges"}
TIMES = 1000  # how often pairs are resampled
BESIDE = 420  # pixels, about what is left beside the circle
AHEAD = 32  # layers whose figures are drawn while nothing else is asked for
SHOWN = 5  # opposed values that are listed


def geometry(probes: Any, words: Any = None, human: Any = None, **settings: Any) -> "Geometry":
    """The geometry of value vectors as a panel: heat map, circle, null and claim of any layer.

    probes: `Probes`, `ValueVectors`, or vectors (value, d_model) of one layer, or (layer, value, d_model) of several.
        Probes that hold their activations can be fitted by other methods too, and their pairs of texts resampled.
    words: the lexical reference, "is that just lexical?": True fits TF-IDF of the same texts (it needs probes with
        activations), or a fit of such vectors by `circumplex_fit`.
    human: people to be shown beside, the name of a `human_reference` or a matrix like it.
    settings: those of `GeometryState`, such as layer=4, method="lda", centred=False.

    Raises WorkbenchError for vectors that are not of the ten values or the nineteen, and for unknown settings.
    """
    return Geometry(GeometryState(probes, words, human, **settings))


class Geometry(PiecePanel):
    """The panel. `state` holds settings and findings."""

    label = "Geometry of the values"

    def __init__(self, state: GeometryState):
        super().__init__(state)
        self.ahead = self._home is not None  # without an event loop there is no idle time to use
        self.claim, self.lexical, self.conflicts, self.status = (w.HTML() for _ in range(4))
        self.guarded(self._first)
        self.circle = self.plot(self._circle, of=lambda: (self._fit, state.people))
        self.heat = self.plot(self._heat, of=lambda: (self._fit and state.key, state.centred, state.people))
        self.null = self.plot(self._null, of=lambda: (self._fit if state.ready else None, state.statistic))
        self.parts = [
            Part(lambda: self._fit and (self._fit, state.people), self.circle.redraw),
            Part(lambda: self._fit if state.ready else None, self._tell_claim),
            Part(lambda: (self._fit, state.statistic) if state.ready else None, self.null.redraw),
            Part(lambda: self._fit and (self._fit, state.people), self.heat.redraw),
            Part(lambda: self._fit if state.ready else None, self._tell_conflicts),
            Part(lambda: (self._fit, state.words_fit) if state.ready and state.words_fit else None, self._tell_words),
        ]
        self.go = w.Button(description=f"Resample {TIMES:,} times", icon="random", layout=w.Layout(width="16em"),
                           tooltip="Draw the pairs of texts anew, fit again: ellipses and 95 % intervals")  # fmt: skip
        self.stop = w.Button(description="Cancel", icon="stop", disabled=True, tooltip="Stop resampling")
        self.go.on_click(lambda _: self.guarded(self.resample))
        self.stop.on_click(lambda _: self.guarded(state.stop_resampling))
        self.controls = self._controls()
        held = self.controls
        beside = w.VBox([self.null, self.conflicts], layout=w.Layout(flex="1 1 28em", min_width="0"))
        self.circle.layout.flex = "0 1 760px"
        self.body = w.VBox([w.HBox([self.circle, beside], layout=w.Layout(flex_flow="row wrap", grid_gap="8px")),
                            self.heat])  # fmt: skip
        self.lay_out(
            w.HBox([held[name] for name in ("layer", "method", "centred") if name in held], layout=ROW),
            w.HBox([held[n] for n in ("layout", "order", "statistic", "people") if n in held], layout=ROW),
            w.HBox([self.go, self.stop, self.status], layout=ROW),
            self.claim,
            self.lexical,
            self.body,
        )
        self.follow((*SETTINGS, "found"), self.work)
        self.follow((*SETTINGS, "found", "progress"), self._tell)
        self._tell()
        self.work()

    def _controls(self) -> dict[str, Any]:
        state, short = self.state, dict(style=dict(description_width="5.5em"), layout=w.Layout(width="21em"))
        choices = state.choices
        held: dict[str, Any] = {}
        if len(state.layers) > 1:
            held["layer"] = w.SelectionSlider(options=state.layers, description="layer", continuous_update=True,
                                              style=short["style"], layout=w.Layout(width="min(100%, 34em)"),
                                              tooltip="Whose residual stream the vectors are read from")  # fmt: skip
        if len(state.methods) > 1:
            given = {state.methods[0]: f"{state.methods[0]} (as fitted)"}
            held["method"] = w.Dropdown(options=[(given.get(name, name), name) for name in state.methods], **short,
                                        description="method", tooltip="By what the vectors are fitted")  # fmt: skip
        held["centred"] = w.ToggleButtons(
            options=[("centred", True), ("raw", False)], style=w.ToggleButtonsStyle(button_width="6em"),
            tooltips=["Minus the mean of the vectors", "As they are: what all values share hides the circle"])
        for name, titles, tooltip in (
            ("layout", LAYOUTS, "Where the circle puts the values"), ("order", ORDERS, "Which value stands where"),
            ("statistic", TITLES, "Whose null is shown"), ("people", {}, "Whose answers are shown beside")
        ):  # fmt: skip
            if len(choices[name]) > 1:
                held[name] = w.Dropdown(options=[(titles.get(own, own), own) for own in choices[name]], **short,
                                        description="null of" if name == "statistic" else name, tooltip=tooltip)
        for name, control in held.items():
            self.bind(name, control)
        return held

    # -- working -------------------------------------------------------------------------------------------------------

    def _first(self) -> None:
        """What the panel opens with."""
        while not self.state.ready:
            self.state.step()

    def resample(self) -> None:
        """Resample the pairs of texts of this layer and method."""
        self.state.resample(TIMES)
        self.work()

    def ended(self) -> None:
        self.body.layout.display = "none" if self.ending == "failed" and self._fit is None else ""

    # -- showing -------------------------------------------------------------------------------------------------------

    @property
    def _fit(self) -> Any:
        return self.state.fit

    def _circle(self, fit: Any, people: str) -> go.Figure:
        if fit is None:
            return figures.nothing("The values in the model, on the circle", "not fitted")
        return figures.circle_map(None, fit, human=self.state.references[people])

    def _heat(self, key: Key | None, centred: bool, people: str) -> go.Figure:
        state = self.state
        if key is None:
            return figures.nothing("Cosine similarity of the value vectors", "not fitted")
        drawn = figures.cosine_heatmap(state.vectors(key), centred, state.references[people], key.order,
                                       layout=key.layout)  # fmt: skip
        return drawn.update_traces(textfont_size=10)  # to be read on a wall

    def _null(self, fit: Any, statistic: str) -> go.Figure:
        if fit is None:
            return figures.nothing("Under every relabelling of the values", "not found yet")
        return narrow(figures.permutation_null(fit, statistic=statistic), BESIDE)

    def spare(self) -> bool:
        """Draw a figure of another layer, so that dragging only shows it."""
        state = self.state
        return any(
            self.circle.prepare(fit, state.people) or self.null.prepare(fit, state.statistic)
            or self.heat.prepare(key, state.centred, state.people)
            for key, fit in state.found_ahead()[:AHEAD]
        )  # fmt: skip

    def _tell(self) -> None:
        state = self.state
        self.stop.disabled = not state.progress
        self.go.disabled = bool(state.progress or state.resampled or state.resamplable)
        told = f"Resampling: {html.escape(state.progress)}" if state.progress else state.resamplable
        if state.resampled:
            told = f"Intervals and ellipses: {TIMES:,} resamples of the pairs of texts of each value."
        self.status.value = f'<span class="wb-small" role="status">{told}</span>'

    def _tell_claim(self) -> None:
        counts = self.state.given.attrs.get("n_pairs") or {}
        least, most = min(counts.values(), default=0), max(counts.values(), default=0)
        each = f"{least}" if least == most else f"{least} to {most}"
        texts = f'<div class="wb-small">Each vector is fitted on {each} pairs of texts.</div>' if counts else ""
        self.claim.value = (f'<div class="wb-claim" role="status"><b>What may be claimed.</b> '
                            f"{html.escape(self._fit.claim())}</div>{texts}")  # fmt: skip

    def _tell_words(self) -> None:
        told = html.escape(self._fit.beyond(self.state.words_fit))
        self.lexical.value = f'<div class="wb-claim" role="status"><b>Is that just lexical?</b> {told}</div>'

    def _tell_conflicts(self) -> None:
        table = self.state.conflicts()
        first, clear = table.iloc[0], int(table["conflict"].sum())
        judged = "the 95 % interval lies above 0" if self.state.resampled else "it is above 0 (no intervals yet)"
        rows = []
        for row in table.head(SHOWN).itertuples():
            told = f"{row.similarity:.2f}{interval(row.low, row.high)}"
            told = f"<b>{told}</b>" if row.conflict else told
            rows.append(f"<tr><td>{row.value} and {row.other}</td><td>{row.step}</td><td>{told}</td></tr>")
        texts = [
            f"<li>{row.value}: <q>{quoted_line(row.positive)}</q> against <q>{quoted_line(row.negative)}</q> "
            f"({row.share:+.3f})</li>" for row in self.state.texts_of(first["value"], first["other"]).itertuples()
        ]  # fmt: skip
        added = (f'<div class="wb-small">Pairs of texts that add most to the cosine of {first["value"]} and '
                 f'{first["other"]}:</div><ul class="wb-list wb-small">{"".join(texts)}</ul>')  # fmt: skip
        self.conflicts.value = (
            f'<div class="wb-card" role="status"><h4>Opposed values encoded alike: {clear} of {len(table)}</h4>'
            '<div class="wb-small">Pairs that stand .8 of half the circle apart or more, the most similar first; they '
            f'count as alike where {judged}.</div><table class="wb-table"><tr><th>values</th><th>steps apart</th>'
            f"<th>{self._fit.similarity.name}</th></tr>{''.join(rows)}</table>{added * bool(texts)}</div>"
        )


def interval(low: float, high: float) -> str:
    """An interval in a table; nothing for NaN."""
    return f" [{low:.2f}, {high:.2f}]" if low == low else ""
