"""A plotly figure in a panel: drawn again as a whole, at once, light or dark as the page is.

Plotly's own FigureWidget brings plotly.js (5 MB) with every figure, and what is added to it after its birth is lost to
views that open later. A `Plot` holds the figure's JSON and nothing else; all of a kernel's share one plotly.js, so that
a notebook full of panels loads it once, and a view that opens later (a second tab, a reload, Voila) shows the same.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as w
import plotly.graph_objects as go
import traitlets as t
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from .. import figures
from ..figures.draft import as_json


class _Library(anywidget.AnyWidget):
    """plotly.js, sent to a page once."""

    _esm = "export default {}"
    version = t.Unicode(get_plotlyjs_version()).tag(sync=True)
    source = t.Unicode().tag(sync=True)


_held: list[_Library] = []


def _library() -> _Library:
    """The kernel's own, made anew where all widgets were closed."""
    if not _held or _held[0].comm is None:
        _held[:] = [_Library(source=get_plotlyjs())]
    return _held[0]


class Plot(anywidget.AnyWidget):
    """A picture of what `draw` returns, drawn for light pages, whenever `redraw` is called.

    figure: its JSON. turn: how often it was drawn; the page says which one it shows (`data-turn`). dark: how the page
    looks, told by it. clicked: the last click on a mark: trace, point, x, y, data (its customdata). handle: a line
    across the first plot that hand and keyboard move, empty for none: at, low, high, step on the x axis; label and text
    say what it is and where it stands.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")
    _library = t.Instance(_Library).tag(sync=True, **w.widget_serialization)
    figure = t.Unicode().tag(sync=True)
    turn = t.Int().tag(sync=True)
    dark = t.Bool(False).tag(sync=True)
    clicked = t.Dict().tag(sync=True)
    handle = t.Dict().tag(sync=True)

    def __init__(self, draw: Callable[[], go.Figure]):
        self.draw = draw
        super().__init__(_library=_library(), layout=w.Layout(width="100%"))
        self.redraw()

    def redraw(self) -> None:
        """Draw anew."""
        drawn: Any = self.draw()
        told = as_json(figures.dark(drawn) if self.dark else drawn)
        with self.hold_sync():
            self.figure, self.turn = told, self.turn + 1
