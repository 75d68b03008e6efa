"""The steering studio: one prompt, as the model answers it and under up to three steerings, side by side.

A view of `SteeringState`. While the dial is dragged the prompt is read again and the next token previewed, always for
the last position; when it is let go, the answers are written, a token of each in turn.
"""

import html
import re
from collections.abc import Iterable, Mapping
from typing import Any

import ipywidgets as w
import numpy as np
import plotly.graph_objects as go
import xarray as xr
from scipy.special import expit, logit

from .. import figures
from ..errors import WorkbenchError
from ..figures import METHODS as COLOURS
from ..gates import Gate
from ..models import Model
from ..neurons import Neurons
from ..probes import Probes
from ..steering.intervention import ranges
from ..values import VALUES
from .dial import Dial
from .panel import PAUSE, ROW, Panel
from .speaking import beside, card, counter, next_words
from .states.doses import METHODS
from .states.steering import SETTINGS, SteeringState

LETTERS = "ABC"
LEGEND = (
    '<div class="wb-small wb-middle">Angle: which value, or a blend of two. Radius: strength, the middle is off. '
    "Dots: where this model holds the ten values, the ring is Schwartz's ideal. Dashed: P of each value at the last "
    "prompt token; filled: the same, steered (radius 1 is P = 1).</div>"
)
STRIP = 0.3  # seconds between two drawings of the strip while answers are written


def studio(
    model: Model, probes: Probes, gate: Gate | None = None, layers: Iterable[int] | None = None,
    differences: Probes | None = None, neurons: Mapping[str, Neurons] | None = None, **settings: Any,
) -> "Studio":  # fmt: skip
    """The steering studio for a model and its logistic probes.

    gate: who is steered; its threshold can be moved. layers: steered ones, None as `ConVA` chooses, or the one that
    reads best where none is good enough. differences: mean-difference probes for CAA; neurons: of each value, for NeVA;
    made of the probes' pairs where they are not given. settings: those of `SteeringState`, such as value="power",
    target=.9, prompt="Should ...?".
    """
    return Studio(SteeringState(model, probes, gate, layers, differences, neurons, **settings))


class Studio(Panel):
    """The panel. `state` holds settings and findings; `run` and `cancel` do what the buttons do."""

    label = "Steering studio"

    def __init__(self, state: SteeringState):
        super().__init__(state)
        self.dial = Dial(state.places())
        self.counter, self.decision, self.answers, self.status, self.words = (w.HTML() for _ in range(5))
        small = dict(layout=w.Layout(width="auto"))
        self.go = w.Button(description="Run", button_style="primary", icon="play", tooltip="Let all answer", **small)
        self.stop = w.Button(description="Cancel", icon="stop", disabled=True, tooltip="Stop the answers", **small)
        self.more = w.Button(description="Add", icon="plus", tooltip="One more steering, a copy of this one", **small)
        self.less = w.Button(description="Remove", icon="minus", tooltip="Take the active steering away", **small)
        buttons = {self.go: self.run, self.stop: self.cancel, self.more: state.add, self.less: state.remove}
        for button, act in buttons.items():
            button.on_click(lambda _, act=act: self.guarded(act))
        self.live = w.Checkbox(True, description="answer on release", indent=False,
                               tooltip="Write the answers when the dial is let go")  # fmt: skip
        self.controls = self._controls()
        self.guarded(state.look)
        self.strip = self.plot(self._strip)
        self.profile = self.plot(self._profile, "profiles")
        self.reading = self.plot(self._reading)
        self._lay_out()
        self.dial.observe(lambda change: self.guarded(self._hold, change["new"]), "hand")
        self.follow(("steerings", "active"), self._show_dial)
        self.follow([name for name in SETTINGS if name not in ("prompt", "seed", "temperature", "max_new_tokens")],
                    self.read)  # fmt: skip
        self.follow("prompt", self.read, PAUSE)
        self.follow((*SETTINGS, "tokens", "asked", "note", "words", "answers", "profiles"), self._tell)
        self.follow("words", self.reading.redraw)
        self.follow(("before", "after"), self._show_read)
        self._show_dial()
        self._show_read()
        self._tell()

    def _controls(self) -> dict[str, Any]:
        state, short = self.state, dict(layout=w.Layout(width="11em"), style=dict(description_width="6.5em"))
        wide = dict(style=dict(description_width="6.5em"), layout=w.Layout(width="min(100%, 22em)"))
        held: dict[str, Any] = {
            "prompt": w.Textarea(description="prompt", rows=2, style=wide["style"], layout=w.Layout(width="100%")),
            "method": w.Dropdown(options=[*METHODS], description="method", **wide),
            "strength": w.FloatSlider(min=0, max=1, step=0.01, readout=False, description="strength", **wide),
            "scope": w.Dropdown(options=METHODS[state.method].scopes or [state.scope], description="scope", **wide),
            "layers": w.Text(description="layers", continuous_update=False, **wide,
                             placeholder="such as 3-5, 8", tooltip="Blocks whose output is steered: 3-5, 8"),
            "temperature": w.BoundedFloatText(description="temperature", min=0, max=10, step=0.1, **short),
            "seed": w.BoundedIntText(description="seed", min=0, max=2**31 - 1, **short),
            "max_new_tokens": w.BoundedIntText(description="new tokens", min=1, max=2**20, **short),
        }  # fmt: skip
        shown: dict[str, Any] = {"layers": (ranges, lambda text: layers_of(text))}
        if state.gate is not None:
            held["gated"] = w.Checkbox(description="gate decides", indent=False)
        if state.has_threshold:
            least, most = state._means.scale
            probable = least > 0
            low, high = (-8, 8) if probable else (least, most)
            held["threshold"] = w.FloatSlider(
                min=low, max=high, step=0.05 if probable else 0.005, readout=False, **wide,
                description="threshold")  # fmt: skip
            if probable:
                shown["threshold"] = (lambda p: round(float(logit(p)), 2), lambda x: round(float(expit(x)), 6))
        state.observe(self._offer, "method")
        self._offer_to(held["scope"], held["layers"])
        for name, control in held.items():
            self.bind(name, control, *shown.get(name, ()))
        return held

    def _offer(self, _: Any) -> None:
        self._offer_to(self.controls["scope"], self.controls["layers"])

    def _offer_to(self, scope: Any, layers: Any) -> None:
        """What the method lets one choose."""
        method = METHODS[self.state.method]
        scopes = list(method.scopes) or [self.state.scope]
        if list(scope.options) != scopes:
            self.offer(scope, scopes, self.state.scope if self.state.scope in scopes else scopes[0])
        scope.disabled, layers.disabled = len(method.scopes) < 2, not method.layered

    def _lay_out(self) -> None:
        held = self.controls
        self.picked = w.ToggleButtons(options=[("A", 0)], style=w.ToggleButtonsStyle(button_width="3.2em"))
        self.bind("active", self.picked)
        self.about = w.HTML()
        self.dose, self.bar = w.Label(), w.Label()
        own = [held["method"], w.HBox([held["strength"], self.dose]), held["scope"], held["layers"]]
        gate = [held[name] for name in ("gated", "threshold") if name in held] + [self.bar] * ("threshold" in held)
        right = w.VBox([
            held["prompt"], self.counter,
            w.HBox([self.picked, self.more, self.less], layout=ROW),
            self.about, *own, *([w.HBox(gate, layout=ROW)] if gate else []), self.decision,
            w.HBox([held[name] for name in ("temperature", "seed", "max_new_tokens")], layout=ROW),
            w.HBox([self.go, self.stop, self.live, self.status], layout=ROW),
        ], layout=w.Layout(flex="1 1 24em", min_width="20em"))  # fmt: skip
        left = w.VBox([self.dial, w.HTML(LEGEND), self.words], layout=w.Layout(flex="1 1 30em", min_width="19em"))
        more = w.Accordion(
            [self.strip, self.profile, self.reading], selected_index=0,
            titles=("Token by token: the push, and P", "Values of the answers", "What the probes read in the prompt"),
        )  # fmt: skip
        self.lay_out(
            w.HBox([left, right], layout=w.Layout(flex_flow="row wrap", grid_gap="8px 24px", align_items="flex-start")),
            self.answers, more,
        )  # fmt: skip
        self.add_class("wb-studio")

    # -- the dial ------------------------------------------------------------------------------------------------------

    def _hold(self, hand: Mapping[str, Any]) -> None:
        """A hand is on a handle: its place is the steering's; when it lets go, the answers are written."""
        state = self.state
        state.active = hand["index"]
        with state.hold_trait_notifications():
            state.angle, state.strength = float(hand["angle"]), round(float(hand["radius"]), 3)
        if not hand["held"]:
            self._show_dial()  # where it snapped to
            if self.live.value:
                self.run()

    def _show_dial(self) -> None:
        state, dial = self.state, self.dial
        many = len(state.steerings)
        with dial.hold_sync():
            dial.handles = [
                {"angle": own["angle"], "radius": own["strength"], "colour": COLOURS[k], "text": state.told(own),
                 "letter": LETTERS[k] * (many > 1), "label": f"Steering {LETTERS[k]}"}
                for k, own in enumerate(state.steerings)
            ]  # fmt: skip
            dial.active, dial.told = state.active, state.told()
            dial.rings = [list(ring) for ring in METHODS[state.method].rings()]
        options = [(LETTERS[k], k) for k in range(many)]
        if list(self.picked.options) != options:
            self.offer(self.picked, options, state.active)
        self.more.disabled, self.less.disabled = many >= len(LETTERS), many < 2
        self.dose.value = state.told().rpartition(", ")[2]
        self.about.value = f'<span class="wb-small">{METHODS[state.method].about}.</span>'

    def read(self) -> None:
        """Read the prompt again."""
        self.forget(self.read)
        self.state.look()

    def _show_read(self) -> None:
        """What was read, on the dial."""
        state, profiles = self.state, [[], []]
        if state.before is not None and state.after is not None and {*state.probes.values} == {*VALUES}:
            at = max(state.at)
            profiles = [p.sel(layer=at, value=list(VALUES)).values.tolist() for p in (state.before, state.after)]
        with self.dial.hold_sync():
            self.dial.before, self.dial.after = profiles

    # -- running -------------------------------------------------------------------------------------------------------

    def run(self, wait: bool = False) -> None:
        """Let all answer with the settings as they stand; a run that is going on is cancelled first.

        wait: come back when the answers are complete, and raise what goes wrong (it is shown either way). Without it
        the answers stream in while the kernel does other things; where no event loop runs, it waits all the same.
        """
        self.forget(self.read)
        self.start(self.state.speak(), wait)

    def ended(self) -> None:
        self.stop.disabled = self.ending != "running"
        self._tell()
        if self.ending != "running":
            self.strip.redraw()

    # -- showing -------------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        state = self.state
        self.counter.value = counter(state)
        self.bar.value = f"opens above {state.threshold:.4g}"
        self.decision.value = decision(state)
        self.words.value = next_words(state.words, "steered")
        self.answers.value = answers(state)
        stale = state.asked not in (None, state.settings) and self.ending != "running"
        told = "settings have changed since: press Run" if stale else self.ending
        self.status.value = f'<span role="status">{told}</span>'
        if self.ending == "running" and self._home is not None:
            self.soon(self.strip.redraw, 0 if self.strip.redraw in self._due else STRIP)

    def _reading(self) -> go.Figure:
        state = self.state
        value = state.value if state.value in state.probes.values else next(iter(state._means.shares(state.angle)))
        before, after = state.before, state.after
        if before is None or after is None:  # not read yet, or not readable
            names = {"value": state.probes.values, "layer": state.probes.layers}
            before = after = xr.DataArray(np.full([*map(len, names.values())], np.nan), names, [*names])
        target = np.nan if state.target is None else state.target
        return figures.steering_reading(before, after, value, target, state.at or state.layers)

    def _strip(self) -> go.Figure:
        state = self.state
        at = state.active if state.active < len(state.traces) else 0
        trace = state.traces[at] if state.traces else None
        if not _layered(trace):
            at, trace = next(((k, trace) for k, trace in enumerate(state.traces) if _layered(trace)), (0, None))
        if trace is None:
            return figures.nothing("Token by token", "Nothing was steered layer by layer yet: press Run.")
        own = state.asked["steerings"][at]
        target = METHODS[own["method"]].target(own["strength"])
        return figures.steering_strip(trace, target=target, name=state.told(own))

    def _profile(self) -> go.Figure:
        state = self.state
        if state.profiles is None or not np.isfinite(state.profiles.values).any():
            return figures.nothing("Values of the answers", "No complete answers yet: press Run.")
        names = ["Base", *(state.told(own) for own in state.asked["steerings"])]
        return figures.answer_profiles(state.profiles, names)


def _layered(trace: Any) -> bool:
    """Whether a trace is of a method that steers layers, and there."""
    return trace is not None and len(trace) > 0 and bool(trace["layer"].notna().any())


def layers_of(text: str) -> tuple[int, ...]:
    """ "3-5, 8" as 3, 4, 5, 8. WorkbenchError for anything else."""
    parts = [re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", part) for part in re.split(r"[,\s]+", text.strip(", "))]
    if not all(parts):
        raise WorkbenchError(f"Layers {text!r} were asked for.", allowed="numbers and ranges, such as 3-5, 8")
    return tuple(k for part in parts if part for k in range(int(part[1]), int(part[2] or part[1]) + 1))


def decision(state: SteeringState) -> str:
    """What the gate decided, and P of the value before and after."""
    if state.after is None or state.before is None:
        return ""
    gate = "No gate" if state.gate is None or not state.gated else type(state.gate).__name__
    if state.has_threshold and state.score is not None:
        gate = f"Gate: score {state.score:.4g} {'&gt;' if state.open else '≤'} {state.threshold:.4g}"
    opened = "<b>open</b>, this prompt is steered" if state.open else "<b>closed</b>, this prompt is left alone"
    opened = "<b>off</b>, nothing is steered" if state.strength == 0 else opened
    layer, told = max(state.at), []
    shares = state._means.shares(state.angle)
    if len(shares) > 1 and not np.isnan(state.aimed[1]):
        told.append(f"P of the <b>blend</b> {state.aimed[0]:.3f} before, <b>{state.aimed[1]:.3f}</b> after")
    for value in shares:
        before, after = (float(p.sel(value=value, layer=layer)) for p in (state.before, state.after))
        told.append(f"P of <b>{html.escape(value)}</b> {before:.3f} before, <b>{after:.3f}</b> after")
    return (f'<div class="wb-card" role="status">{gate}: {opened}. At the last prompt token, layer {layer}: '
            f"{'; '.join(told)}.</div>")  # fmt: skip


def answers(state: SteeringState) -> str:
    """All answers side by side, and what the exact judge reads in complete ones."""
    complete = state.profiles is not None
    if state.asked is None:
        return '<div class="wb-card wb-small">Let the dial go, or press Run: the model answers, base and steered.</div>'
    asked, several = state.asked, len(state.asked["steerings"]) > 1
    titles = [("Base", "currentColor")] + [
        (f"{LETTERS[k]}: " * several + state.told(own), COLOURS[k]) for k, own in enumerate(asked["steerings"])
    ]
    cards = [
        card(title, answer, verdict(state, answer) if complete else "", colour)
        for (title, colour), answer in zip(titles, state.answers, strict=True)
    ]
    same = " All answers are the same." if complete and len({*state.answers}) == 1 else ""
    return beside(cards, asked, same, state.note)


def verdict(state: SteeringState, answer: str) -> str:
    """The exact judge's reading of an answer in words."""
    read = state.reading(answer)
    if read is None:
        return "No judge: the exact one reads embedded worlds only."
    said = [f"affirms <b>{', '.join(read.affirms) or 'no value'}</b>"]
    said += [f"affirms and denies {', '.join(read.both)}"] if read.both else []
    return f"Judge: {'; '.join(said)}; {'grammatical' if read.fluent else '<b>not grammatical</b>'}."
