"""The steering studio: one prompt, base and steered side by side, and what decided between them.

A view of `SteeringState`, which holds and computes everything. All of it happens in the thread that made the panel, the
one in which cells run: JupyterLab hands what is clicked to a thread of its own (a subshell), and two threads in one
model would steer each other. Generation takes a token at a step and hands the event loop back in between, so that the
buttons work meanwhile; another cell runs between two tokens. Without an event loop (plain Python) it runs to its end.
"""

import asyncio
import html
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any

import ipywidgets as w
import numpy as np
import plotly.graph_objects as go
import xarray as xr
from scipy.special import expit, logit

from .. import figures
from ..errors import WorkbenchError
from ..gates import Gate
from ..models import Model
from ..probes import Probes
from ..steering.intervention import SCOPES
from .state import SETTINGS, SteeringState

PAUSE = 0.2  # seconds without a change before the prompt is read again
STYLE = """<style>
.wb-two { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 12px; }
.wb-card { border: 1px solid rgba(128, 128, 128, .5); border-radius: 6px; padding: 8px 12px; }
.wb-card, .wb-problem { line-height: 1.5; }
.wb-card h4 { margin: 0 0 4px; font-size: 1em; }
.wb-said { white-space: pre-wrap; overflow-wrap: anywhere; min-height: 3em; }
.wb-small { font-size: .9em; opacity: .85; }
.wb-problem { border: 2px solid #d55e00; border-radius: 6px; padding: 8px 12px; white-space: pre-wrap; }
</style>"""
"""Colours are the page's own, light or dark; only borders and the figure's white card are ours."""
LABELS = {"target": "P ≥ {:.4g}", "threshold": "opens above P(related) = {:.4g}"}
WRAP = w.Layout(flex_flow="row wrap", align_items="center", grid_gap="4px 14px")


def studio(
    model: Model, probes: Probes, gate: Gate | None = None, layers: Iterable[int] | None = None, **settings: Any
) -> "Studio":
    """The steering studio for a model and its logistic probes.

    gate: who is steered; of a ProbeGate the threshold can be moved. layers: steered ones, None as `ConVA` chooses.
    settings: those of `SteeringState`, such as value="power", target=.9, prompt="Should ...?".
    """
    return Studio(SteeringState(model, probes, gate, layers, **settings))


class Studio(w.VBox):
    """The panel. `state` holds settings and findings; `run` and `cancel` do what the buttons do."""

    def __init__(self, state: SteeringState):
        self.state = state
        self._home = _loop()
        self._steps: Generator[None] | None = None  # of the run that is going on
        self._task: asyncio.Task | None = None
        self._later: asyncio.TimerHandle | None = None
        self.ending = ""  # "running", or how the last run ended
        self.counter, self.decision, self.answers, self.status, self.problem = (w.HTML() for _ in range(5))
        self.start = w.Button(description="Run", button_style="primary", icon="play", tooltip="Let both answer")
        self.stop = w.Button(description="Cancel", icon="stop", disabled=True, tooltip="Stop the running answers")
        self.start.on_click(lambda _: self._guarded(self.run))
        self.stop.on_click(lambda _: self._guarded(self.cancel))
        short = dict(layout=w.Layout(width="12em"), style=dict(description_width="7em"))
        self.controls: dict[str, Any] = {
            "value": w.Dropdown(options=state.probes.values, description="value"),
            "target": w.FloatSlider(min=-4, max=8, step=0.05, readout=False, description="target, logit"),
            "threshold": w.FloatSlider(min=-8, max=8, step=0.05, readout=False, description="gate, logit"),
            "prompt": w.Textarea(description="prompt", rows=2, layout=w.Layout(width="min(100%, 62em)")),
            "scope": w.Dropdown(options=SCOPES, description="scope"),
            "temperature": w.BoundedFloatText(description="temperature", min=0, max=10, step=0.1, **short),
            "seed": w.BoundedIntText(description="seed", min=0, max=2**31 - 1, **short),
            "max_new_tokens": w.BoundedIntText(description="new tokens", min=1, max=2**20, **short),
        }
        self.labels = {"target": w.Label(), "threshold": w.Label()}
        self._guarded(state.look)
        self.figure: Any = go.FigureWidget(self._reading())  # the only one: it brings 5 MB of plotly along
        held = self.controls
        sliders = [w.HBox([held[name], label]) for name, label in self.labels.items()][: 1 + state.has_threshold]
        super().__init__([
            w.HTML(STYLE),
            w.HBox([held["value"], *sliders], layout=WRAP),
            held["prompt"],
            self.counter,
            w.HBox([held[name] for name in ("scope", "temperature", "seed", "max_new_tokens")], layout=WRAP),
            w.HBox([self.start, self.stop, self.status], layout=WRAP),
            self.problem,
            self.decision,
            self.answers,
            w.Box([self.figure], layout=w.Layout(overflow="auto")),
        ])  # fmt: skip
        self.add_class("wb-studio")
        for name, control in held.items():
            self._bind(name, control)
        state.observe(lambda _: self._guarded(self._changed), SETTINGS)
        state.observe(lambda _: self._tell(), ["base", "steered", "note", "after"])
        state.observe(lambda _: self._draw(), "after")
        self._tell()

    # -- settings ------------------------------------------------------------------------------------------------------

    def _bind(self, name: str, control: Any) -> None:
        """State and control follow each other; what the state refuses is shown, and the control goes back."""
        slider = isinstance(control, w.FloatSlider)  # of a probability, on a logit scale
        taking = False  # what the hand holds is not moved: it may be further on already

        def show(_: Any = None) -> None:
            setting = getattr(self.state, name)
            if slider:
                self.labels[name].value, setting = LABELS[name].format(setting), round(float(logit(setting)), 2)
                control.min, control.max = min(control.min, setting), max(control.max, setting)
            if not taking:
                control.value = setting

        def take(change: Any) -> None:
            nonlocal taking
            if slider and abs(change["new"] - logit(getattr(self.state, name))) <= control.step / 2:
                return  # the browser's echo of what it was told, rounded to a step
            taking = True
            try:
                setattr(self.state, name, round(float(expit(change["new"])), 6) if slider else change["new"])
            except WorkbenchError:
                taking = False
                show()
                raise
            finally:
                taking = False

        show()
        control.observe(lambda change: self._guarded(lambda: take(change)), "value")
        self.state.observe(show, name)

    def _changed(self) -> None:
        """A setting changed: read the prompt again, after a pause in the dragging or typing."""
        self._tell()
        self._forget()
        if self._home is None:
            self.state.look()
        else:
            self._later = self._home.call_later(PAUSE, self._guarded, self.state.look)

    def _forget(self) -> None:
        if self._later is not None:
            self._later.cancel()
        self._later = None

    def _guarded(self, act: Callable[[], Any]) -> None:
        """Run a callback of the view at home. JupyterLab would swallow what it raises, so the panel shows it."""
        if self._home not in (None, _loop()):
            self._home.call_soon_threadsafe(self._guarded, act)
            return
        try:
            self.problem.value = ""
            act()
        except Exception as problem:
            self._show(problem)

    def _show(self, problem: Exception) -> None:
        known = isinstance(problem, WorkbenchError)
        told = str(problem) if known else "".join(traceback.format_exception(problem, limit=-3))
        self.problem.value = f'<div class="wb-problem" role="alert">{html.escape(told)}</div>'

    # -- reading and running -------------------------------------------------------------------------------------------

    def run(self, wait: bool = False) -> None:
        """Answer with the settings as they stand; a run that is going on is cancelled first.

        wait: come back when the answers are complete, and raise what goes wrong (it is shown either way). Without it
        the answers stream in while the kernel does other things; where no event loop runs, it waits all the same.
        """
        self.cancel()
        self._forget()
        self._steps = steps = self.state.speak()
        if self._home is not None and not wait:
            self._task = self._home.create_task(self._drive(steps))
            return
        with self._running(steps):
            for _ in steps:
                pass

    async def _drive(self, steps: Generator[None]) -> None:
        with suppress(Exception), self._running(steps):  # the panel has shown it
            await asyncio.sleep(PAUSE / 2)  # the browser holds back what was typed last, the click overtakes it
            for _ in steps:
                await asyncio.sleep(0)  # here the kernel sees to Cancel, to sliders, to other cells
                if self._steps is not steps:
                    return

    @contextmanager
    def _running(self, steps: Generator[None]) -> Iterator[None]:
        """Buttons and status round a run; whatever goes wrong is shown and goes on."""
        self.problem.value = ""
        self._press(running=True)
        ending = "cancelled"
        try:
            yield
            ending = "done" if self._steps is steps else ending
        except Exception as problem:
            ending = "failed"
            self._show(problem)
            raise
        finally:
            steps.close()
            if self._steps is steps or self._steps is None:
                self._steps = None
                self._press(running=False, ending=ending)

    def cancel(self) -> None:
        """Stop the answers that are being written; what is there stays. Without any, nothing happens."""
        self._steps = None

    def _press(self, running: bool, ending: str = "") -> None:
        self.stop.disabled = not running
        self.ending = "running" if running else ending
        self._tell()

    # -- showing -------------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        self.counter.value = counter(self.state)
        self.decision.value = decision(self.state)
        self.answers.value = answers(self.state, complete=self.ending == "done")
        stale = self.state.asked not in (None, self.state.settings) and self.ending != "running"
        told = "settings have changed since: press Run" if stale else self.ending
        self.status.value = f'<span role="status">{told}</span>'

    def _reading(self) -> go.Figure:
        state, probes = self.state, self.state.probes
        before, after = state.before, state.after
        if before is None or after is None:  # not read yet, or not readable
            nothing = np.full((len(probes.values), len(probes.layers)), np.nan)
            before = after = xr.DataArray(nothing, coords={"value": probes.values, "layer": probes.layers})
        drawn = figures.steering_reading(before, after, state.value, state.target, state.steered_layers)
        return drawn.update_layout(width=860)  # a FigureWidget does not fill its place by itself

    def _draw(self) -> None:
        fresh: Any = self._reading()
        with self.figure.batch_update():
            for held, trace in zip(self.figure.data, fresh.data, strict=True):
                held.update(trace.to_plotly_json())
            for part in ("title", "shapes", "yaxis"):
                setattr(self.figure.layout, part, getattr(fresh.layout, part))
        # A view that opens later (a page made without a screen, Voila, a second tab) reads these, which plotly sets at
        # birth and leaves alone afterwards.
        self.figure._widget_data = deepcopy(self.figure._data)
        self.figure._widget_layout = self.figure.layout.to_plotly_json()


def counter(state: SteeringState) -> str:
    """How much of the context the prompt takes."""
    room = state.model.context - state.tokens
    told = f"{state.tokens} of {state.model.context} tokens"
    if room < 1:
        told += f" — <b>too long by {1 - room}</b>: shorten it, nothing is cut"
    elif room < state.max_new_tokens:
        told += f", which leaves {room} for the answer"
    return f'<span class="wb-small" role="status">{told}</span>'


def decision(state: SteeringState) -> str:
    """What the gate decided, and P of the value before and after."""
    if state.after is None or state.before is None:
        return ""
    gate = "No gate" if state.gate is None else type(state.gate).__name__
    if state.has_threshold and state.score is not None:
        gate = f"Gate: P(related) = {state.score:.4g} {'&gt;' if state.open else '≤'} {state.threshold:.4g}"
    opened = "<b>open</b>, this prompt is steered" if state.open else "<b>closed</b>, this prompt is left alone"
    layer = max(state.steered_layers)
    before, after = (float(p.sel(value=state.value, layer=layer)) for p in (state.before, state.after))
    return (
        f'<div class="wb-card">{gate}: {opened}. At the last prompt token, layer {layer}, P of '
        f"<b>{html.escape(state.value)}</b>: {before:.3f} before, <b>{after:.3f}</b> after (target {state.target:.4g})."
        "</div>"
    )


def answers(state: SteeringState, complete: bool) -> str:
    """Both answers side by side, and what the exact judge reads in complete ones."""
    if state.asked is None:
        return '<div class="wb-card wb-small">Press Run to let the model answer, base and steered side by side.</div>'
    asked = state.asked
    how = f"T = {asked['temperature']:g}, seed {asked['seed']}" if asked["temperature"] else "greedy"
    cards = []
    for title, answer in (("Base", state.base), (f"Steered towards {html.escape(asked['value'])}", state.steered)):
        read = f'<div class="wb-small">{verdict(state, answer)}</div>' if complete else ""
        said = f'<div class="wb-said">{html.escape(answer.strip())}</div>'
        cards.append(f'<div class="wb-card"><h4>{title}</h4>{said}{read}</div>')
    same = " Both answers are the same." if complete and state.base == state.steered else ""
    note = f" {html.escape(state.note)}" if state.note else ""
    foot = f'<div class="wb-small">{how}, the same for both.{same}{note}</div>'
    return f'<div class="wb-two">{"".join(cards)}</div>{foot}'


def verdict(state: SteeringState, answer: str) -> str:
    """The exact judge's reading of an answer in words."""
    read = state.reading(answer)
    if read is None:
        return "No judge: the exact one reads embedded worlds only."
    said = [f"affirms <b>{', '.join(read.affirms) or 'no value'}</b>"]
    said += [f"affirms and denies {', '.join(read.both)}"] if read.both else []
    return f"Judge: {'; '.join(said)}; {'grammatical' if read.fluent else '<b>not grammatical</b>'}."


def _loop() -> asyncio.AbstractEventLoop | None:
    """The event loop of this thread, if it runs inside one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
