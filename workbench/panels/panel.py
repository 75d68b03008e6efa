"""What all panels share: controls bound to state, errors shown inside, work that never queues, answers that stream.

A panel is a view of one state, a `traitlets.HasTraits` without widgets. Everything happens in the thread that made the
panel, the one in which cells run: JupyterLab hands what is clicked to a thread of its own (a subshell), and two threads
in one model would steer each other. Long work comes as a generator; between its steps the kernel sees to buttons,
sliders and other cells. Without an event loop (plain Python) everything happens at once.
"""

import asyncio
import html
import os
import sys
import traceback
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import ipywidgets as w
import plotly.graph_objects as go
import traitlets as t

from ..errors import WorkbenchError
from .keys import Keys
from .plot import Plot

SERVED = "WORKBENCH_SERVED"  # set in kernels of visitors, see `workbench app`
PAUSE = 0.2  # seconds without a change before slow work follows it
STYLE = f"<style>{Path(__file__).with_suffix('.css').read_text(encoding='utf-8')}</style>"
"""Colours are the page's own, light or dark; only borders and accents are ours."""
ROW = w.Layout(flex_flow="row wrap", align_items="center", grid_gap="4px 14px")
"""Controls side by side, in as many lines as they need."""
Steps = Generator[None]


class Panel(w.VBox):
    """Base of all panels: `state` holds settings and findings, subclasses lay out controls and pictures of it.

    `problem` shows what went wrong. `ending` is "running", or how the last run ended: "done", "cancelled", "failed".
    """

    label: ClassVar[str] = "Panel"

    def __init__(self, state: t.HasTraits):
        self.state: Any = state
        self._home = _loop()
        self._due: dict[Any, asyncio.Handle] = {}
        self._problems: dict[Any, str] = {}
        self._offering = False
        self._steps: Steps | None = None  # of the run that is going on
        self._task: asyncio.Task | None = None
        self.ending = ""
        self.problem = w.HTML()
        super().__init__()
        self.add_class("wb-panel")

    def lay_out(self, *parts: w.Widget) -> None:
        """Show these from top to bottom, problems at the end."""
        title = w.HTML(f'{STYLE}<h3 class="wb-heading">{html.escape(self.label)}</h3>')
        self.children = (Keys(), title, *parts, self.problem)

    def plot(
        self, draw: Callable[..., go.Figure], after: str | Iterable[str] = (), clicked: Any = None,
        of: Callable[[], tuple[Hashable, ...]] | None = None,
    ) -> Plot:  # fmt: skip
        """A figure that follows these traits of the state, and the page's light or dark.

        clicked: called with `Plot.clicked` when a mark was clicked. of: as `Plot` takes it.
        """
        plot = Plot(draw, of)
        plot.observe(lambda _: self.soon(plot.redraw), "dark")
        if after:
            self.follow(after, plot.redraw)
        if clicked is not None:
            plot.observe(lambda change: self.guarded(clicked, change["new"]), "clicked")
        return plot

    # -- state and controls --------------------------------------------------------------------------------------------

    def bind(
        self, name: str, control: Any, show: Callable[[Any], Any] = lambda setting: setting,
        read: Callable[[Any], Any] = lambda shown: shown, of: Any = None,
    ) -> Any:  # fmt: skip
        """Let a trait and a control follow each other: show(setting) -> the control's value, read is its inverse.

        What the state refuses is shown, and the control goes back. of: the state that has the trait, None the panel's.
        Returns the control.
        """
        state, taking = of or self.state, False  # what the hand holds is not moved: it may be further on already

        def tell(_: Any = None) -> None:
            if not taking:
                shown = show(getattr(state, name))
                if isinstance(control, w.FloatSlider):
                    if control.step:  # else the browser rounds, and says so later, when the state may be further on
                        steps = round((shown - control.min) / control.step)
                        shown = round(control.min + steps * control.step, 9)
                    control.min, control.max = min(control.min, shown), max(control.max, shown)
                control.value = shown

        def take(shown: Any) -> None:
            nonlocal taking
            if self._offering:
                return
            now = show(getattr(state, name))
            half = (control.step or 0) / 2 + 1e-9 if isinstance(control, w.FloatSlider) else 0
            if shown == now or half and abs(shown - now) <= half:
                return  # the echo of what the control was told, of a slider rounded to a step
            taking = True
            try:
                setattr(state, name, read(shown))
            except (WorkbenchError, t.TraitError):
                taking = False
                tell()
                raise
            finally:
                taking = False

        tell()
        control.observe(lambda change: self.guarded(take, change["new"]), "value")
        state.observe(tell, name)
        return control

    def offer(self, control: Any, options: Any, value: Any) -> None:
        """Give a bound dropdown or its like other options, and a value that the state has already."""
        self._offering = True  # in between it falls to its first option, which nobody chose
        try:
            control.options = options
            control.value = value
        finally:
            self._offering = False

    def follow(
        self, names: str | Iterable[str], act: Callable[[], Any], pause: float = 0.0, of: Any = None
    ) -> None:
        """After changes of these traits do `act`, once for however many: the last ones count, nothing queues.

        pause: seconds without a change to wait for; 0 acts as soon as the kernel is free.
        """
        (of or self.state).observe(lambda _: self.soon(act, pause), [names] if isinstance(names, str) else list(names))

    def soon(self, act: Callable[[], Any], pause: float = 0.0) -> None:
        """Do `act` at home, once, however often this is called before it happens; see `follow`."""
        if self._home is None:
            self._do(act)
        elif self._home is not _loop():
            self._home.call_soon_threadsafe(self.soon, act, pause)
        elif act not in self._due or pause:
            self.forget(act)

            def now() -> None:
                self._due.pop(act, None)
                self._do(act)

            self._due[act] = self._home.call_later(pause, now)

    def forget(self, act: Callable[[], Any]) -> None:
        """Do not do what was due."""
        if handle := self._due.pop(act, None):
            handle.cancel()

    def guarded(self, act: Callable[..., Any], *given: Any) -> None:
        """Do at home what a hand asked for. JupyterLab would swallow what it raises, so the panel shows it; what was
        shown before goes.
        """
        if self._home not in (None, _loop()):
            self._home.call_soon_threadsafe(self.guarded, act, *given)
            return
        self._problems.clear()
        self._do(act, *given)

    def _do(self, act: Callable[..., Any], *given: Any) -> None:
        """Run a callback; what follows from a change only takes back problems of its own."""
        self._problems.pop(act, None)
        try:
            act(*given)
        except Exception as problem:
            self.show_problem(problem, act)
        else:
            self._tell_problems()

    def show_problem(self, problem: Exception, act: Any = None) -> None:
        """Show what went wrong, as that of a callback; each has one at most."""
        told = str(problem)
        if not isinstance(problem, WorkbenchError | t.TraitError):
            told = "".join(traceback.format_exception(problem, limit=-3))
            if os.environ.get(SERVED):  # a visitor has no use for our files' names
                print(told, file=sys.__stderr__, flush=True)
                told = f"Something went wrong ({type(problem).__name__}). The server's log has the details."
        self._problems[act] = told
        self._tell_problems()

    def _tell_problems(self) -> None:
        told = dict.fromkeys(self._problems.values())
        self.problem.value = "".join(
            f'<div class="wb-problem" role="alert">{html.escape(one)}</div>' for one in told)  # fmt: skip

    # -- long work -----------------------------------------------------------------------------------------------------

    def start(self, steps: Steps, wait: bool = False) -> None:
        """Take the steps one by one while the kernel does other things; a run that is going on is cancelled first.

        wait: come back when they are done, and raise what goes wrong (it is shown either way). Where no event loop
        runs, it waits all the same.
        """
        self.cancel()
        self._steps = steps
        if self._home is not None and not wait:
            self._task = self._home.create_task(self._drive(steps))
            return
        try:
            with self._running(steps):
                for _ in steps:
                    pass
        finally:
            self.settle()

    def settle(self) -> None:
        """Do at once what is due: what comes after the end of a cell is lost where nobody listens, as in nbconvert."""
        for act in [*self._due]:
            self.forget(act)
            self._do(act)

    def cancel(self) -> None:
        """Stop the run that is going on; what is there stays. Without any, nothing happens."""
        self._steps = None

    def ended(self) -> None:
        """Called whenever `ending` changed, for subclasses."""

    async def _drive(self, steps: Steps) -> None:
        with suppress(Exception), self._running(steps):  # the panel has shown it
            for _ in steps:
                await asyncio.sleep(0)  # here the kernel sees to Cancel, to sliders, to other cells
                if self._steps is not steps:
                    return

    @contextmanager
    def _running(self, steps: Steps) -> Iterator[None]:
        """`ending` round a run; whatever goes wrong is shown and goes on."""
        self._problems.clear()
        self._tell_problems()
        self._end("running")
        ending = "cancelled"
        try:
            yield
            ending = "done" if self._steps is steps else ending
        except Exception as problem:
            ending = "failed"
            self.show_problem(problem)
            raise
        finally:
            steps.close()
            if self._steps is steps or self._steps is None:
                self._steps = None
                self._end(ending)

    def _end(self, ending: str) -> None:
        self.ending = ending
        self.ended()


def _loop() -> asyncio.AbstractEventLoop | None:
    """The event loop of this thread, if it runs inside one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
