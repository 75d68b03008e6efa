"""A plotly figure in a panel: drawn again as a whole, at once, light or dark as the page is.

Plotly's own FigureWidget brings plotly.js (5 MB) with every figure, and what is added to it after its birth is lost to
views that open later. A `Plot` holds the figure's JSON and nothing else; all of a kernel's share one plotly.js, so that
a notebook full of panels loads it once, and a view that opens later (a second tab, a reload, Voila) shows the same.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
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


KEPT = 64  # figures of what was shown before
_held: list[_Library] = []


def _library() -> _Library:
    """The kernel's own, made anew where all widgets were closed."""
    if not _held or _held[0].comm is None:
        _held[:] = [_Library(source=get_plotlyjs())]
    return _held[0]


class Plot(anywidget.AnyWidget):
    """A picture of what `draw` returns, drawn for light pages, whenever `redraw` is called.

    of: what is to be shown, as arguments of `draw`; the same again is not drawn again. None: draw has none, and is
    always called.

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

    def __init__(self, draw: Callable[..., go.Figure], of: Callable[[], tuple[Hashable, ...]] | None = None):
        self.draw, self.of = draw, of
        self._kept: OrderedDict[Hashable, str] = OrderedDict()
        super().__init__(_library=_library(), layout=w.Layout(width="100%"))
        self.redraw()

    def redraw(self) -> None:
        """Draw anew."""
        told = self._drawn() if self.of is None else self._drawn_of(self.of())
        with self.hold_sync():
            self.figure, self.turn = told, self.turn + 1

    def prepare(self, *what: Hashable) -> bool:
        """Draw ahead what may be asked for; False where that was done."""
        if (what, self.dark) in self._kept:
            return False
        self._drawn_of(what)
        return True

    def _drawn_of(self, what: tuple[Hashable, ...]) -> str:
        key = what, self.dark
        told = self._kept.pop(key, None)
        self._kept[key] = told = self._drawn(*what) if told is None else told
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return told

    def _drawn(self, *what: Any) -> str:
        drawn: Any = self.draw(*what)
        return as_json(figures.dark(drawn) if self.dark else drawn)
