"""Figures for dark pages, and figures as files."""

import importlib.util
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ..errors import WorkbenchError
from .draft import unchecked
from .style import (
    BARS,
    COLOURS,
    CONTROLS,
    DIVERGING,
    FAINT,
    INK,
    LINE,
    MARK,
    MARK_TEXT,
    SEQUENTIAL,
    SHADE,
    readable,
    tint,
)

GROUND = "#15191e"
_DARK = {
    "white": GROUND, INK: "#e8edf2", FAINT: "#9aa7b4", LINE: "#38414b", SHADE: "#252c35", MARK: "#ff8b3d",
    MARK_TEXT: "#ff9d5c", BARS: "#6d859c", CONTROLS["random labels"]: "#9aa7b4", CONTROLS["control task"]: "#576ebf",
    CONTROLS["random weights"]: "#af545d",
}  # fmt: skip
for _light, _colour in zip(COLOURS.values(), (  # lightness in OKLab moved up and drawn together, hue and chroma kept
    "#a15c70", "#ba744f", "#cd9752", "#dfbe67", "#ede290", "#cff7db", "#98ddea", "#77bde4", "#6f98d2", "#8172ab",
), strict=True):  # fmt: skip
    _DARK |= {_light: _colour, readable(_light): _colour}
_SCALES = {
    tuple(SEQUENTIAL): ("#1b222a", "#20303f", "#254056", "#2a5374", "#2f6a9e"),
    tuple(DIVERGING): ("#a8443a", "#7a3b36", "#452f31", "#20262d", "#253a4b", "#2a5374", "#2d6ca6"),
}
FILES = (".html", ".json", ".svg", ".png", ".pdf")


def dark(fig: Any) -> go.Figure:
    """The same figure for a dark page: inks, grounds and colour scales exchanged, every other colour keeps its hue and
    is made as light as it has to be (marks 4:1, text 4.5:1). The figure itself stays as it is; a widget becomes a plain
    figure.
    """
    return unchecked([_recoloured(trace) for trace in fig._data], _recoloured(fig._layout))


def _recoloured(node: Any, key: str = "", text: bool = False) -> Any:
    """A figure's parts, each colour under a key that names one exchanged."""
    if isinstance(node, dict):
        return {name: _recoloured(part, name, text or "font" in name) for name, part in node.items()}
    if key == "colorscale":
        held = tuple(colour for _, colour in node)
        shown = _SCALES.get(held, held)
        return [[place, colour] for (place, _), colour in zip(node, shown, strict=True)]
    if isinstance(node, list | tuple):
        held = "color" in key or any(isinstance(part, dict | list | tuple) for part in node)
        return [_recoloured(part, key, text) for part in node] if held else [*node]
    if isinstance(node, str) and "color" in key:
        return _exchanged(node, 4.5 if text else 4.0)
    return node.copy() if isinstance(node, np.ndarray) else node


@lru_cache(maxsize=1024)
def _exchanged(colour: str, ratio: float) -> str:
    if known := _DARK.get(colour):
        return known
    if found := re.fullmatch(r"rgba\((\d+), (\d+), (\d+), (\S+)\)", colour):  # as `tint` writes it
        red, green, blue = map(int, found.groups()[:3])
        return tint(_exchanged(f"#{red:02x}{green:02x}{blue:02x}", ratio), float(found[4]))
    return readable(colour, GROUND, ratio) if re.fullmatch("#[0-9a-f]{6}", colour) else colour


def save(fig: go.Figure, path: str | Path, *, scale: float = 2) -> Path:
    """Write a figure; what, the ending says. Returns the path.

    .html holds all it needs and draws without network (some 5 MB); .json is what `plotly.io.read_json` reads; .svg,
    .pdf and .png (`scale` pixels to a point) are drawn by kaleido, which needs a Chrome or Chromium.
    """
    path = Path(path)
    asked = f"A figure was to be saved as {path.name}."
    if path.suffix not in FILES:
        raise WorkbenchError(asked, found=f"the ending {path.suffix!r}", allowed=", ".join(FILES))
    if path.suffix == ".html":
        fig.write_html(path, include_plotlyjs=True, include_mathjax=False)
    elif path.suffix == ".json":
        fig.write_json(path)
    else:
        if not importlib.util.find_spec("kaleido"):
            raise WorkbenchError(asked, found="no kaleido",
                                 do="pip install 'value-workbench[export]', or save .html or .json instead.")
        width = fig.layout.width or 1000  # what a notebook gives it, more or less
        try:
            fig.write_image(path, width=width, scale=scale if path.suffix == ".png" else 1)
        except RuntimeError as error:  # ChromeNotFoundError is one
            raise WorkbenchError(asked, found=str(error).strip().split("\n")[0],
                                 do="Install Chrome or Chromium, or save .html or .json instead.") from error
    return path
