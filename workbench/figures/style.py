"""What all figures share: colours with their sources, the template, text that is safe to show."""

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ..values import REFINED, VALUES
from .draft import Draft

COLOURS: dict[str, str] = dict(zip(VALUES, (
    "#79384c", "#94512d", "#ab7730", "#c2a149", "#d4c978", "#b8dfc4", "#7dc2ce", "#599ec4", "#4f76ae", "#5e4f85",
), strict=True))  # fmt: skip
"""Colour of each value: the cyclic map romaO (Crameri 2018, doi:10.5281/zenodo.1243862) at ten steps equal in OKLab,
so that near on the circle is near in colour, also under simulated red, green or blue blindness (Machado 2009). Five of
them are fainter than 3:1 on white: marks carry an outline of `INK`, lines go through `readable`."""

METHODS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442")
"""Colours of anything else, such as methods, in order of appearance (Okabe and Ito 2008); Base is always grey."""

CONTROLS = {"random labels": "#7c8894", "control task": "#3246a9", "random weights": "#953c47", "TF-IDF": "#d55e00"}
"""Colours of what a probe is held against: bands and lines, so each is 3:1 on white; told apart by any sight, as above.
"""

HUMAN = "#007d5a"
"""People, wherever a model's geometry is shown beside theirs."""

SEQUENTIAL = ["#f7fbff", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6"]
DIVERGING = ["#dd6f5c", "#f4a582", "#fddbc7", "#f7f7f7", "#d1e5f0", "#92c5de", "#4f9fcb"]
"""ColorBrewer's Blues and RdBu, cut where dark numbers in the cells would be lost; both colour-blind safe, the
diverging one only ever with its middle at zero."""

INK, FAINT, LINE, MARK = "#1f2933", "#66727f", "#d5dbe1", "#d55e00"
MARK_TEXT, BARS, SHADE = "#b34a00", "#7f97ad", "#eef1f4"
"""Words in the colour of a mark; bars that stand for chance; stripes behind what was chosen."""

HOVER = "%{hovertext}<extra></extra>"
"""Hovers are written in Python, so that nothing in the data is ever read as a template."""

MEAN = "<b>mean</b>"

TEMPLATE = go.layout.Template(layout=dict(
    paper_bgcolor="white", plot_bgcolor="white", colorway=METHODS,
    font=dict(family="Inter, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif", size=13, color=INK),
    title=dict(x=0, xref="paper", xanchor="left", y=1, yref="container", yanchor="top", pad=dict(t=16),
               font=dict(size=17), subtitle=dict(font=dict(size=13, color=FAINT))),
    xaxis=dict(gridcolor=LINE, linecolor=LINE, zeroline=False, ticks="outside", tickcolor=LINE, automargin=True,
               title=dict(standoff=10, font=dict(size=13))),
    yaxis=dict(gridcolor=LINE, linecolor=LINE, zeroline=False, automargin=True,
               title=dict(standoff=10, font=dict(size=13))),
    polar=dict(bgcolor="white", radialaxis=dict(gridcolor=LINE, linecolor=LINE),
               angularaxis=dict(gridcolor=LINE, linecolor=LINE, direction="counterclockwise", rotation=0)),
    hoverlabel=dict(bgcolor="white", bordercolor=LINE, font=dict(color=INK), align="left"),
    legend=dict(font=dict(size=12), tracegroupgap=0),
    coloraxis=dict(colorbar=dict(thickness=12, outlinewidth=0, title=dict(side="right", font=dict(size=13)))),
))  # fmt: skip
"""Light, for white pages; every figure carries it, plotly's default template stays as it is."""

ABOVE = dict(orientation="h", x=1, xanchor="right", y=1, yanchor="bottom")
"""Place of a legend between subtitle and plot."""


def colour_of(value: str) -> str:
    """Colour of a value; a refined one has that of the basic value it is part of ("face", part of none, is grey)."""
    parents = {part: basic for basic, parts in REFINED.items() for part in parts}
    return COLOURS.get(value) or COLOURS.get(parents.get(value, ""), FAINT)


def contrast(a: str, b: str) -> float:
    """Contrast of two "#rrggbb" colours, 1 to 21 (WCAG 2.2: 4.5 for text, 3 for marks)."""
    dark, light = sorted(float(_linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (a, b))
    return (light + 0.05) / (dark + 0.05)


@lru_cache(maxsize=256)
def readable(colour: str, ground: str = "#ffffff", ratio: float = 3.0) -> str:
    """The colour, where it needs it made darker or lighter (in OKLab, its hue kept) until `contrast` suffices."""
    lab = _TO_LAB @ np.cbrt(_TO_CONES @ _linear(colour))
    away = 0.01 if contrast(ground, "#000000") < contrast(ground, "#ffffff") else -0.01
    while contrast(colour, ground) < ratio:
        lab[0] += away
        linear = np.clip(np.linalg.solve(_TO_CONES, np.linalg.solve(_TO_LAB, lab) ** 3), 0, 1)
        rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        colour = "#" + "".join(f"{round(255 * x):02x}" for x in rgb)
    return colour


def _linear(colour: str) -> np.ndarray:
    rgb = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


_TO_CONES = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
_TO_LAB = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])  # Ottosson 2020


def escape(text: Any, limit: int = 0) -> str:
    """Text of a model or a file for a plotly figure: no tags, links or formulas in it, cut to `limit` characters."""
    text = " ".join(str(text).split())
    if limit and len(text) > limit:
        text = text[: limit - 1] + "…"
    return html.escape(text, quote=False).replace("$", "&#36;")  # plotly reads <...> as markup, $...$ as TeX


def finish(fig: Draft | go.Figure, title: str, subtitle: str, height: int, above: int = 0, **layout: Any) -> go.Figure:
    """The figure with template, title and subtitle (its own words, foreign ones escaped) and room for them.

    above: pixels between subtitle and plot, for a legend or labels there.
    """
    lines = textwrap.wrap(subtitle, min(130, layout.get("width", 1000) // 7))
    margin = dict(t=56 + 18 * len(lines) + above, b=50, l=20, r=20)
    heading = dict(text=title, subtitle=dict(text="<br>".join(lines)))
    fig.update_layout(template=TEMPLATE, title=heading, height=height, **{"margin": margin, **layout})
    return fig.figure() if isinstance(fig, Draft) else fig


def narrow(fig: go.Figure, width: int) -> go.Figure:
    """The figure for a place so many pixels wide: its title and subtitle wrapped to it, its height grown with them."""
    heading: Any = fig.layout.title
    told = textwrap.wrap(heading.text or "", max(20, width // 10))
    beside = textwrap.wrap((heading.subtitle.text or "").replace("<br>", " "), max(30, width // 7))
    before = (heading.text or "").count("<br>") + (heading.subtitle.text or "").count("<br>") + 2
    more = 20 * max(0, len(told) + len(beside) - before)
    margin: Any = fig.layout.margin
    return fig.update_layout(
        title=dict(text="<br>".join(told), subtitle_text="<br>".join(beside)), height=fig.layout.height + more,
        margin_t=(margin.t or 60) + more)  # fmt: skip


def interval(low: float, high: float) -> str:
    """An interval as hovers say it; nothing for NaN."""
    return "" if math.isnan(low) else f"<br>95 % interval {low:.3f} to {high:.3f}"


def p_value(p: float) -> str:
    """ "p = .032", "p = 5.5 × 10⁻⁶"."""
    if p >= 0.001:
        return f"p = {p:.3f}".replace("0.", ".")
    mantissa, exponent = f"{p:.1e}".split("e")
    return f"p = {mantissa} × 10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def in_circle(values: Sequence[str]) -> list[str]:
    """The ten in circular order first, others as they come."""
    return [v for v in VALUES if v in values] + [v for v in values if v not in VALUES]


def source(provenance: Mapping[str, Any]) -> str:
    """Which model the data are of, where they say it: the start of a subtitle."""
    return f"{escape(provenance['model'], 60)}. " if provenance.get("model") else ""


def tint(colour: str, alpha: float) -> str:
    """A "#rrggbb" colour made transparent."""
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha})"
