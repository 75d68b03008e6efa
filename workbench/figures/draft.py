"""A figure being drawn: plain dicts, handed to plotly once, when it is finished.

Plotly checks every property at once when it is set; for a figure of ours that takes 35 to 350 ms, and panels draw one
at every move of a slider. A `Draft` has the calls of `go.Figure` and `make_subplots` that the figures here use, with
the same results, and checks nothing: it is for code whose figures are known to be valid. The figure that leaves it is
an ordinary one, and whatever is changed in it later is checked.
"""

import json
import re
from collections.abc import Iterator
from functools import cache, lru_cache, partialmethod
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.io.json import to_json_plotly
from plotly.shapeannotation import axis_spanning_shape_annotation
from plotly.subplots import make_subplots

_ITSELF = {str, int, float, bool, type(None)}
_OWN = ("customdata", "meta")  # the caller's words, no properties
_NAME = re.compile(r"(?:error_[xyz]|(?:paper|plot)_bgcolor|copy_[yz]style|[^_]+)(?=_|$)")
"""A property in `marker_line_width`; all of plotly's names with an underscore of their own."""


class Part(dict):
    """Properties of a trace, an axis, an annotation, the layout: a dict that is updated as plotly's objects are.

    Dicts are merged, also those of a list, `line_width=2` is `line=dict(width=2)`, None takes a property away. Arrays,
    Series and DataArrays become numpy's, numbers and lists Python's.
    """

    __slots__ = ()

    def __init__(self, given: Any = (), /, **more: Any) -> None:
        super().__init__()
        self.update(given, **more)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def update(self, given: Any = (), /, **more: Any) -> "Part":
        for key, value in {**dict(given), **more}.items():
            *holders, name = _names(key)
            part = self
            for holder in holders:
                part = part.setdefault(holder, Part())
            part._set(name, value)
        return self

    def _set(self, name: str, value: Any) -> None:
        held = self.get(name)
        if isinstance(value, dict) and isinstance(held, Part):
            held.update(value)
            return
        value = value if name in _OWN and isinstance(value, dict | list) else _plain(value)
        if value is None:
            self.pop(name, None)
        elif name == "title" and not isinstance(value, dict):
            self[name] = Part(text=value)
        elif name == "colorscale" and isinstance(value, list) and isinstance(value[0], str):
            self[name] = [[place / (len(value) - 1), colour] for place, colour in enumerate(value)]
        elif held and isinstance(held, list) and isinstance(held[0], Part):
            for k, part in enumerate(held if value else ()):
                part.update(value[k % len(value)])
            held += value[len(held) :]
        else:
            self[name] = value


@cache
def _names(key: str) -> tuple[str, ...]:
    """ "error_x_color": ("error_x", "color")."""
    return tuple(_NAME.findall(key))


def _plain(value: Any) -> Any:
    """A value as plotly's validators leave it."""
    if type(value) in _ITSELF:
        return value
    if isinstance(value, list | tuple | range):
        return [one if type(one) in _ITSELF else _plain(one) for one in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return Part(value)
    if hasattr(value, "to_plotly_json"):
        return Part(value.to_plotly_json())
    array = np.array(value, order="C")
    return array if array.ndim else array.item()


class Draft:
    """A figure being drawn. See `go.Figure` for its methods; those that add or update return the draft.

    data: traces. layout: what is not a trace. row, col: of a draft made by `subplots`, as there from 1 on.
    """

    def __init__(self) -> None:
        self.data: list[Part] = []
        self.layout = Part(annotations=[], shapes=[])
        self._grid: Any = None
        self._grid_text: str | None = None

    @classmethod
    def subplots(cls, rows: int = 1, cols: int = 1, **more: Any) -> "Draft":
        """An empty grid: the arguments of `plotly.subplots.make_subplots`, which is asked once for each set of them."""
        draft, (layout, draft._grid, draft._grid_text) = cls(), _subplots(json.dumps(dict(more, rows=rows, cols=cols)))
        draft.layout.update(layout)
        return draft

    # -- what is drawn -------------------------------------------------------------------------------------------------

    def add_trace(self, trace: Any, row: int | None = None, col: int | None = None) -> "Draft":
        """A trace: a dict with its type, or one of plotly's."""
        drawn = Part({"type": "scatter"} | _plain(trace))
        if row is not None and col is not None:
            drawn.update(self._grid[row - 1][col - 1][0].trace_kwargs)
        self.data.append(drawn)
        return self

    def _add(self, kind: str, row: int | None = None, col: int | None = None, **properties: Any) -> "Draft":
        return self.add_trace({"type": kind, **properties}, row, col)

    add_bar = partialmethod(_add, "bar")
    add_barpolar = partialmethod(_add, "barpolar")
    add_box = partialmethod(_add, "box")
    add_heatmap = partialmethod(_add, "heatmap")
    add_histogram = partialmethod(_add, "histogram")
    add_scatter = partialmethod(_add, "scatter")
    add_scatterpolar = partialmethod(_add, "scatterpolar")
    add_violin = partialmethod(_add, "violin")

    def add_annotation(self, row: Any = None, col: Any = None, **properties: Any) -> "Draft":
        self._note("annotations", Part(properties), row, col)
        return self

    def add_shape(self, row: Any = None, col: Any = None, **properties: Any) -> "Draft":
        self._note("shapes", Part(properties), row, col)
        return self

    def add_vline(self, x: Any, row: Any = "all", col: Any = "all", **more: Any) -> "Draft":
        return self._span("vline", dict(type="line", x0=x, x1=x, y0=0, y1=1), row, col, **more)

    def add_hline(self, y: Any, row: Any = "all", col: Any = "all", **more: Any) -> "Draft":
        return self._span("hline", dict(type="line", x0=0, x1=1, y0=y, y1=y), row, col, **more)

    def add_vrect(self, x0: Any, x1: Any, row: Any = "all", col: Any = "all", **more: Any) -> "Draft":
        return self._span("vrect", dict(type="rect", x0=x0, x1=x1, y0=0, y1=1), row, col, **more)

    def add_hrect(self, y0: Any, y1: Any, row: Any = "all", col: Any = "all", **more: Any) -> "Draft":
        return self._span("hrect", dict(type="rect", x0=0, x1=1, y0=y0, y1=y1), row, col, **more)

    # -- what is changed -----------------------------------------------------------------------------------------------

    def update_layout(self, **properties: Any) -> "Draft":
        self.layout.update(properties)
        return self

    def update_annotations(self, **properties: Any) -> "Draft":
        for annotation in self.layout.annotations:
            annotation.update(properties)
        return self

    def update_xaxes(self, row: int | None = None, col: int | None = None, **properties: Any) -> "Draft":
        return self._each("xaxis", row, col, properties)

    def update_yaxes(self, row: int | None = None, col: int | None = None, **properties: Any) -> "Draft":
        return self._each("yaxis", row, col, properties)

    def update_polars(self, row: int | None = None, col: int | None = None, **properties: Any) -> "Draft":
        return self._each("polar", row, col, properties)

    # -- the end -------------------------------------------------------------------------------------------------------

    def figure(self) -> go.Figure:
        """What was drawn, as plotly's figure."""
        layout = {key: part for key, part in _bare(self.layout).items() if part or key not in ("annotations", "shapes")}
        return unchecked([_bare(trace) for trace in self.data], layout, self._grid, self._grid_text)

    # -- places --------------------------------------------------------------------------------------------------------

    def _cells(self, row: Any, col: Any) -> Iterator[tuple[int, int]]:
        every = (None, "all")
        for r in range(1, len(self._grid) + 1) if row in every else [row]:
            for c in range(1, len(self._grid[0]) + 1) if col in every else [col]:
                if self._grid[r - 1][c - 1]:
                    yield r, c

    def _each(self, kind: str, row: int | None, col: int | None, properties: dict[str, Any]) -> "Draft":
        """Every axis or polar of the kind updated; those of a row, a column, a cell."""
        if row is None and col is None:
            keys = {kind, *(key for key in self.layout if re.fullmatch(rf"{kind}\d+", key))}
        else:
            keys = {key for r, c in self._cells(row, col) for ref in self._grid[r - 1][c - 1] for key in ref.layout_keys
                    if key.startswith(kind)}  # fmt: skip
        for key in keys:
            self.layout.setdefault(key, Part()).update(properties)
        return self

    def _note(self, kind: str, given: Part, row: Any, col: Any, drawn: bool = False) -> list[Part]:
        """An annotation or shape added, or one for each cell; drawn: for each that holds something."""
        if row is None and col is None:
            self.layout[kind].append(given)
            return [given]
        added = []
        for r, c in self._cells(row, col):
            x, y = (key.replace("axis", "") for key in self._grid[r - 1][c - 1][0].layout_keys)
            own = given.get("yref", "y")
            y = y if own == "y" or "paper" in own or "domain" in own else own  # another axis was asked for
            if not drawn or (x, y) in self._held():
                refs = {f"{axis}ref": f"{ref} domain" if "domain" in given.get(f"{axis}ref", "") else ref
                        for axis, ref in (("x", x), ("y", y))}  # fmt: skip
                added.append(Part(given, **refs))
                self.layout[kind].append(added[-1])
        return added

    def _held(self) -> set[tuple[str, str]]:
        """Axes of all that was drawn."""
        traces = {(trace.get("xaxis", "x"), trace.get("yaxis", "y")) for trace in self.data}
        return traces | {(part.get("xref", "x"), part.get("yref", "y")) for kind in ("annotations", "shapes")
                         for part in self.layout[kind]}  # fmt: skip

    def _span(self, kind: str, ends: dict[str, Any], row: Any, col: Any, annotation: Any = None, **more: Any) -> Any:
        """A line or band from edge to edge of the plots that hold something, and its annotation."""
        row, col = (row, col) if self._grid else (None, None)
        told = {key: more.pop(key) for key in [*more] if key.startswith("annotation_")}
        text = axis_spanning_shape_annotation(annotation and dict(annotation), kind, ends, told)
        added = self._note("shapes", Part(ends, **more), row, col, drawn=True)
        if text is not None:
            added += self._note("annotations", Part(text, yref=more.get("yref", "y")), row, col, drawn=True)
        along = "yref" if kind.startswith("v") else "xref"
        for part in added:
            part.update({"xref": part.get("xref", "x"), "yref": part.get("yref", "y")})
            part[along] += " domain"
        return self


@lru_cache(maxsize=128)
def _subplots(arguments: str) -> tuple[dict[str, Any], Any, str]:
    """Layout of a grid, the axes of its cells and how it prints."""
    made: Any = make_subplots(**json.loads(arguments))
    layout = made.layout.to_plotly_json()
    del layout["template"]
    return layout, made._grid_ref, made._grid_str


def _bare(node: Any) -> Any:
    """Without the parts that hold nothing, which plotly does not keep."""
    if isinstance(node, Part):
        bare = {key: _bare(value) for key, value in node.items()}
        return {key: value for key, value in bare.items() if not (isinstance(node[key], Part) and not value)}
    if isinstance(node, list) and node and isinstance(node[0], Part):
        return [_bare(part) for part in node]
    return node


def unchecked(data: list[dict], layout: dict[str, Any], grid: Any = None, text: str | None = None) -> go.Figure:
    """A figure that holds these very dicts, known to be valid; later changes are checked as ever.

    Plotly makes one without properties, which are then filled in.
    """
    bare: dict[str, Any] = {key: {} for key in layout if key[-1].isdigit()}  # xaxis2: such names are to be made known
    if "template" in layout:
        bare["template"] = {"layout": {}}  # else plotly puts its own, which is large
    fig: Any = go.Figure({"data": [{"type": trace["type"]} for trace in data], "layout": bare, "_grid_ref": grid,
                          "_grid_str": text}, _validate=False)  # fmt: skip
    fig._validate = fig.layout._validate = True
    fig._layout.update(layout)
    for trace, held, given in zip(fig.data, fig._data, data, strict=True):
        trace._validate = True
        held.update(given)
    return fig


def as_json(fig: Any) -> str:
    """What `fig.to_json()` says, arrays as lists instead of base64: some three times faster where there are many."""
    told: Any = to_json_plotly({"data": fig._data, "layout": fig._layout})
    return told
