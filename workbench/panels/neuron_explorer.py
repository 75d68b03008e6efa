"""The neuron explorer: which neurons carry a value, what one of them does, and what happens without it.

A view of `NeuronState` and its `ScalingState`. Pairs are read, sets chosen and texts found while the kernel goes on.
"""

import html
from collections.abc import Iterable, Mapping
from typing import Any

import ipywidgets as w
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from .. import figures
from ..figures.neurons import neuron_map, neuron_overlaps, neuron_responses
from ..models import Model
from ..neurons import Neurons
from ..probes import Probes
from .panel import PAUSE, ROW, Steps
from .pieces import Part, PiecePanel
from .quoting import quoted, quoted_line
from .scaled import answers, words
from .speaking import counter, shown
from .states.neurons import SETTINGS as SELECTING
from .states.neurons import NeuronState
from .states.scaling import SETTINGS, ScalingState

TITLE = "Which values move the neuron"
WHOLE = 'style="white-space: nowrap"'  # numbers are not broken
LISTED = 200  # neurons that can be picked from the list; all can be clicked
TARGETS = {"neuron": "this neuron", "set": "the whole set", "random": "a random set"}
SCOPES = {"all": "every token", "token": "from the last prompt token on"}
NUMBERS = {
    "s": ("contrast s", "c times the mean difference: what it adds to the difference of the probe's mean logits"),
    "c": ("effect c", "W_out · probe: logits per unit of activation"),
    "difference": ("mean difference", "mean activation on positive texts minus on negative ones"),
    "d": ("Cohen's d", "that difference over the pooled standard deviation"),
    "delta": ("delta", "share of tokens it is on under high minus under low levels of the value"),
    "a95": ("a95", "95 % quantile of its activation under high levels"),
    "entropy": ("entropy", "of how often it is on for each value, nats"),
    "write_norm": ("|W_out|", "length of what it writes to the residual stream per unit of activation"),
}


def neuron_explorer(
    model: Model, probes: Probes, pairs: pd.DataFrame | xr.Dataset | None = None,
    sets: Mapping[str, Neurons] | None = None, layers: Iterable[int] | None = None, **settings: Any,
) -> "NeuronExplorer":  # fmt: skip
    """The neurons that carry the values of a model, as a panel.

    pairs: of all values, or their `neuron_contrasts`; None takes those that the probes were fitted on. They are read
        once, while the kernel goes on.
    sets: value -> `Neurons` by any rule, in place of those that `select_neurons` chooses here.
    layers: that are chosen from; None takes all that have probes.
    settings: those of `NeuronState` and `ScalingState`, such as value="power", min_d=.5, factor=0, prompt="Should I?".

    Raises WorkbenchError for probes, contrasts or sets of another model and for unknown settings. That a model lets no
    neurons be chosen (a norm follows its MLP: Gemma 2 and 3) is told inside the panel.
    """
    return NeuronExplorer(NeuronState(model, probes, pairs, sets, layers, **settings))


class NeuronExplorer(PiecePanel):
    """The panel. `state` and `state.edit` hold settings and findings; `run` and `cancel` do what the buttons do.

    speaking: "running", or how the last answers ended: "done", "cancelled", "failed".
    """

    label = "Neuron explorer"

    def __init__(self, state: NeuronState):
        super().__init__(state)
        self.edit: ScalingState = state.edit
        self.speaking, self._offering = "", False
        self._speech: Steps | None = None
        self.status, self.card, self.listed, self.counter, self.words, self.said, self.told = (
            w.HTML() for _ in range(7))  # fmt: skip
        self.map = self.plot(self._map, clicked=self._pick)
        self.profile = self.plot(self._profile)
        self.shared = self.plot(self._shared, clicked=self._take)
        self.go = w.Button(description="Run", button_style="primary", icon="play", tooltip="Let both answer")
        self.stop = w.Button(description="Cancel", icon="stop", disabled=True, tooltip="Stop the running answers")
        self.go.on_click(lambda _: self.guarded(self.run))
        self.stop.on_click(lambda _: self.guarded(self.hush))
        self.controls = self._controls()
        self.neuron = w.Dropdown(description="neuron", layout=w.Layout(width="min(100%, 26em)"),
                                 tooltip="The one looked at; or click a mark above")  # fmt: skip
        self.neuron.observe(lambda change: self.guarded(self._choose, change["new"]), "value")
        self.parts = [
            Part(lambda: self._now(), self.map.redraw),
            Part(lambda: self._now(), self._offer),
            Part(lambda: self._now(state.tokens is None), self._tell_neuron),
            Part(lambda: self._now() if state.refusal or state.responses is not None else None, self.profile.redraw),
            Part(lambda: self._now(), lambda: self.guarded(self.edit.look)),
            Part(lambda: self._now() if state.refusal or state.texts is not None else None, self._tell_texts),
            Part(lambda: (state.selection, state.value, state.overlaps is None) if state.tried else None,
                 self.shared.redraw),
        ]  # fmt: skip
        self._lay_out()
        self.follow((*SELECTING, "found"), self.work)
        self.follow(("progress", "found", "value", "share", "min_d", "selective"), self._tell)
        self.follow(("target", "factor", "scope", "seed"), self.edit.look, of=self.edit)
        self.follow("prompt", self.edit.look, PAUSE, of=self.edit)
        self.follow((*SETTINGS, "tokens", "base", "edited", "asked", "note", "words"), self._tell_edit, of=self.edit)
        self.follow("picked", self._tell_edit)
        self._tell()
        self._tell_edit()
        self.work()

    def _controls(self) -> dict[str, Any]:
        state, short = self.state, dict(layout=w.Layout(width="12em"), style=dict(description_width="7em"))
        wide = dict(style=dict(description_width="5em"), layout=w.Layout(width="min(100%, 22em)"))
        held: dict[str, Any] = {"value": w.Dropdown(options=state.values, description="value", style=wide["style"],
                                                    layout=w.Layout(width="18em"))}  # fmt: skip
        percent = (lambda share: 100 * share, lambda shown: shown / 100)
        if state.rule is not None:
            held |= {
                "share": w.FloatSlider(min=0.1, max=5, step=0.1, readout_format=".1f", description="share, %", **wide,
                                       tooltip="Of all neurons of these layers, at most"),
                "min_d": w.FloatSlider(min=0, max=2, step=0.05, description="least |d|", **wide,
                                       tooltip="How far positive and negative texts must be apart"),
                "selective": w.Checkbox(description="selective", indent=False, layout=w.Layout(width="10em"),
                                        tooltip="Leave out what is as strong for a value of another group"),
            }  # fmt: skip
        for name, control in held.items():
            self.bind(name, control, *(percent if name == "share" else ()))
        own: dict[str, Any] = {
            "target": w.ToggleButtons(options=[(title, name) for name, title in TARGETS.items()],
                                      style=w.ToggleButtonsStyle(button_width="9em"),
                                      tooltips=["The one looked at", "All neurons chosen for the value",
                                                "As many in the same layers, drawn by the seed: the control"]),
            "factor": w.FloatSlider(min=-5, max=10, step=0.1, description="factor", readout_format=".1f", **wide,
                                    tooltip="0 ablates, 1 changes nothing, more amplifies, below 0 turns round"),
            "scope": w.Dropdown(options=[(title, name) for name, title in SCOPES.items()], description="at", **wide),
            "prompt": w.Textarea(description="prompt", rows=2, style=wide["style"], layout=w.Layout(width="100%")),
            "temperature": w.BoundedFloatText(description="temperature", min=0, max=10, step=0.1, **short),
            "seed": w.BoundedIntText(description="seed", min=0, max=2**31 - 1, **short),
            "max_new_tokens": w.BoundedIntText(description="new tokens", min=1, max=2**20, **short),
        }  # fmt: skip
        for name, control in own.items():
            self.bind(name, control, of=self.edit)
        return held | own

    def _lay_out(self) -> None:
        held = self.controls
        half = dict(flex="1 1 24em", min_width="0")
        one = w.VBox([self.neuron, self.card], layout=w.Layout(**half))
        answer = w.HTML('<h4 style="margin: 12px 0 4px">Ablate or amplify, and see</h4>')
        self.lay_out(
            w.HBox([held[name] for name in ("value", "share", "min_d", "selective") if name in held], layout=ROW),
            self.status,
            self.map,
            w.HBox([one, w.VBox([self.profile], layout=w.Layout(**half))],
                   layout=w.Layout(flex_flow="row wrap", grid_gap="8px")),
            self.listed,
            answer,
            w.HBox([held["target"], held["factor"], held["scope"]], layout=ROW),
            held["prompt"],
            self.counter,
            w.HBox([held[name] for name in ("temperature", "seed", "max_new_tokens")], layout=ROW),
            w.HBox([self.go, self.stop, self.told], layout=ROW),
            self.said,
            self.words,
            self.shared,
        )  # fmt: skip

    # -- acting --------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Answer with the settings as they stand; answers that are being written are stopped first."""
        self.hush()
        self._speech, self.speaking = self.edit.speak(), "running"
        self._tell_edit()
        self.work()

    def hush(self) -> None:
        """Stop the answers that are being written; what is there stays."""
        if self._speech is not None:
            self._end_speech("cancelled")

    def beside(self) -> bool:
        """One token of the answers that are being written."""
        if self._speech is None:
            return False
        try:
            next(self._speech)
        except StopIteration:
            self._end_speech("done")
        except Exception as problem:
            self._end_speech("failed")
            self.show_problem(problem)
        return True

    def _end_speech(self, how: str) -> None:
        if self._speech is not None:
            self._speech.close()
        self._speech, self.speaking = None, how
        self._tell_edit()

    def _now(self, *more: Any) -> Any:
        """What is looked at; None while it is not found."""
        state = self.state
        found = state.neurons if state.neurons is not None else state.refusal
        return (found, state.rule, state.picked, state.value, *more) if found else None

    def _pick(self, clicked: dict[str, Any]) -> None:
        if clicked.get("data"):
            self.state.picked = tuple(clicked["data"])

    def _take(self, clicked: dict[str, Any]) -> None:
        if clicked.get("data"):
            self.state.value = str(clicked["data"])

    def _choose(self, chosen: Any) -> None:
        if chosen and not self._offering:
            self.state.picked = chosen

    def _offer(self) -> None:
        """The set's neurons in the list, the strongest first."""
        state = self.state
        rows = state.neurons.table() if state.neurons else pd.DataFrame(columns=["layer", "neuron"])
        by = next((name for name in ("s", "delta", "difference", "entropy") if name in rows), "write_norm")
        options = [(f"layer {int(row['layer'])}, neuron {int(row['neuron'])} ({NUMBERS[by][0]} {row[by]:.3g})",
                    (int(row["layer"]), int(row["neuron"]))) for _, row in rows.head(LISTED).iterrows()]  # fmt: skip
        if state.picked and state.picked not in [own for _, own in options]:
            options.append(("layer {}, neuron {}".format(*state.picked), state.picked))
        self._offering = True  # new options make the widget choose one by itself
        try:
            if [*self.neuron.options] != options:
                self.neuron.options = options
            self.neuron.value = state.picked or None
        finally:
            self._offering = False
        self.neuron.disabled = not options

    # -- showing -------------------------------------------------------------------------------------------------------

    def _map(self) -> go.Figure:
        state = self.state
        if state.neurons is None:
            why = self._why() if state.refusal else "being found"
            return figures.nothing(f"Neurons for {figures.escape(state.value)}", why)
        return neuron_map(state.neurons, state.picked or None)

    def _why(self) -> str:
        """Why no neuron was chosen, in a line."""
        state = self.state
        if state.norm_follows or not state.largest or state.largest[0] >= state.min_d:
            return "none chosen: see below"
        return f"none: the largest |d| is {state.largest[0]:.2f}, the bar is at {state.min_d:g}"

    def _profile(self) -> go.Figure:
        state, d = self.state, self.state.responses
        if d is None:
            why = "no neuron is looked at" if state.refusal else "the pairs are not read"
            return figures.nothing(TITLE, why)
        layer, neuron = state.picked
        return neuron_responses({str(value): float(one) for value, one in d.items()}, layer, neuron, state.value,
                                state.min_d if state.rule else None)  # fmt: skip

    def _shared(self) -> go.Figure:
        if self.state.overlaps is None:
            why = "fewer than two values have neurons" if self.state.tried else "not counted yet"
            return figures.nothing("Neurons that the sets of two values share", why)
        return neuron_overlaps(self.state.overlaps, self.state.value)

    def _tell(self) -> None:
        state = self.state
        told = [f"<b>{html.escape(state.progress)}</b>"] if state.progress else []
        if state.neurons is not None:
            told.append(f"{len(state.neurons):,} neurons for <b>{html.escape(state.value)}</b>, layers "
                        f"{', '.join(map(str, state.layers))}")
        count = {} if state.contrasts is None else state.contrasts.attrs.get("n_pairs", {})
        if state.value in count:
            told.append(f"read on {count[state.value]} pairs of texts")
        if state.largest and state.rule:
            d, layer, neuron = state.largest
            told.append(f"largest |d| of all: {d:.2f} (layer {layer}, neuron {neuron})")
        problem = ""
        if state.refusal:
            lower = (" Lower <b>least |d|</b> to choose all the same: such neurons hardly tell the two sides apart."
                     if state.largest and state.largest[0] < state.min_d else "")
            problem = f'<div class="wb-problem" role="alert">{html.escape(state.refusal)}{lower}</div>'
        self.status.value = f'<div class="wb-small" role="status">{"; ".join(told)}</div>{problem}'

    def _tell_neuron(self) -> None:
        state, row = self.state, self.state.row
        if row is None:
            self.card.value = '<div class="wb-card wb-small">No neuron is looked at.</div>'
            return
        numbers = "".join(f"<tr><td {WHOLE}>{title}</td><td {WHOLE}>{row[name]:.3g}</td><td>{what}</td></tr>"
                          for name, (title, what) in NUMBERS.items() if name in row)  # fmt: skip
        self.card.value = (
            f'<div class="wb-card" role="status"><h4>Layer {state.picked[0]}, neuron {state.picked[1]}</h4>'
            f'<table class="wb-table wb-small">{numbers}</table>{self._effects()}</div>'
        )

    def _effects(self) -> str:
        """The tokens that the neuron raises and lowers most."""
        state = self.state
        if state.norm_follows:
            return '<div class="wb-small">Its effect on tokens is not told: a norm follows the MLP.</div>'
        if state.tokens is None:
            return ""
        half = len(state.tokens) // 2
        ends = {"raises": state.tokens.iloc[:half], "lowers": state.tokens.iloc[half:].iloc[::-1]}
        lists = "".join(f"<div>{how} most: " + ", ".join(
            f"<code>{quoted(shown(row.token), 40)}</code> {row.effect:+.2f}" for row in own.itertuples()) + "</div>"
            for how, own in ends.items())  # fmt: skip
        return (f'<div class="wb-small" style="margin-top: 6px"><b>Direct effect on tokens</b> (W_out · unembedding: '
                "logits per unit of activation on the direct way; the final norm is left out, so compare tokens, not "
                f"sizes)</div>{lists}")  # fmt: skip

    def _tell_texts(self) -> None:
        table = self.state.texts
        if table is None:
            self.listed.value = ""
            return
        half = (len(table) + 1) // 2
        cards = []
        for title, own in (("highest", table.iloc[:half]), ("lowest", table.iloc[half:].iloc[::-1])):
            rows = "".join(f"<tr><td {WHOLE}>{row.activation:+.2f}</td><td>{quoted_line(row.text)}</td>"
                           f"<td>{quoted_line(row.of)}</td></tr>" for row in own.itertuples())  # fmt: skip
            cards.append(f'<div class="wb-card"><h4>Texts of {title} activation</h4><table class="wb-table wb-small">'
                         f"<tr><th>a</th><th>text</th><th>pair of</th></tr>{rows}</table></div>")
        which = "Layer {}, neuron {}".format(*self.state.picked)
        self.listed.value = (f'<div class="wb-two" role="status">{"".join(cards)}</div><div class="wb-small">{which}: '
                             "its activation a at the last token, of all texts of the pairs.</div>")  # fmt: skip

    def _tell_edit(self) -> None:
        edit = self.edit
        self.counter.value, self.words.value = counter(edit), words(edit)
        self.said.value = answers(edit, self.speaking == "done")
        self.stop.disabled = self.speaking != "running"
        stale = self.speaking != "running" and edit.asked not in (None, edit.settings)
        told = "settings have changed since: press Run" if stale else self.speaking
        self.told.value = f'<span role="status">{told}</span>'
