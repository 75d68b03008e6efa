"""One row of a leakage: how much each value rises while one is steered, round the circle and framed in its matrix."""

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from ..values import VALUES, check_value
from .draft import Draft, Part
from .leaking import leakage_matrix
from .style import COLOURS, FAINT, HOVER, INK, MARK, MARK_TEXT, SHADE, TEMPLATE, escape, interval

if TYPE_CHECKING:
    from ..evaluation.leakage import Leakage

NARROW = 470  # pixels: two of these figures stand side by side


def rise_profile(leakage: "Leakage", steered: str, judged: str | None = None) -> go.Figure:
    """Rise of each value's CSR round the circle while `steered` is steered, with its 95 % interval.

    The heavy ring is no change, outwards is a rise; marks are filled where the interval leaves zero out. The steered
    value has a shaded sector; `judged`, if given, a ring. All rows of one leakage share their scale.
    """
    check_value(steered)
    at = VALUES.index(steered)
    table, lows, highs = leakage.matrix.values, leakage.low.values, leakage.high.values  # in circular order
    (first, last, ticks), rise, low, high = _scale(lows, highs), table[at], lows[at], highs[at]
    theta = [36 * k for k in range(len(VALUES))]
    fig = Draft().add_barpolar(r=[last - first], base=first, theta=[36 * at], width=[36], hoverinfo="skip",
                               marker=dict(color=SHADE, line_width=0), showlegend=False)  # fmt: skip
    whole = list(range(0, 361, 4))
    fig.add_scatterpolar(r=[0] * len(whole), theta=whole, mode="lines", line=dict(color=FAINT, width=2.5),
                         hoverinfo="skip", showlegend=False)  # fmt: skip
    spokes = [x for a, ends in zip(theta, zip(low, high, strict=True), strict=True) if np.isfinite(ends).all()
              for x in ((float(ends[0]), a), (float(ends[1]), a), (None, a))]  # fmt: skip
    fig.add_scatterpolar(r=[r for r, _ in spokes], theta=[a for _, a in spokes], mode="lines",
                         line=dict(color=INK, width=2), hoverinfo="skip", showlegend=False)  # fmt: skip
    there = [k for k in range(len(VALUES)) if np.isfinite(rise[k])]
    sure = (low > 0) | (high < 0)
    said = [f"steering <b>{steered}</b>: <b>{VALUES[k]}</b> {rise[k]:+.3f}{interval(low[k], high[k])}" for k in there]
    fig.add_scatterpolar(
        r=[float(rise[k]) for k in there], theta=[theta[k] for k in there], mode="markers", showlegend=False,
        customdata=[VALUES[k] for k in there], hovertext=said, hovertemplate=HOVER,
        marker=dict(opacity=1, size=[17 if k == at else 13 for k in there], symbol=["diamond" if k == at else "circle"
                    for k in there], color=[COLOURS[VALUES[k]] if sure[k] else "white" for k in there],
                    line=dict(color=INK, width=1.5)))  # fmt: skip
    if judged is not None and np.isfinite(rise[VALUES.index(judged)]):
        fig.add_scatterpolar(r=[float(rise[VALUES.index(judged)])], theta=[36 * VALUES.index(judged)], mode="markers",
                             marker=dict(size=25, symbol="circle-open", color=MARK, line=dict(color=MARK, width=3)),
                             hoverinfo="skip", showlegend=False)  # fmt: skip
    names = [f"<b>{name}</b>" if name == steered else name for name in VALUES]
    names[0] = names[0].replace("-", "-<br>")  # it stands at the right edge
    fig.update_polars(
        radialaxis=dict(range=[first, last], tickvals=ticks, ticktext=[_plain(x) for x in ticks], angle=18,
                        tickangle=18, tickfont=dict(size=11, color=INK), showline=False),
        angularaxis=dict(tickvals=theta, ticktext=names, showline=False, tickfont_size=13))  # fmt: skip
    told = "" if there else " Nothing was judged: the method cannot steer it, or its answers are missing."
    return _narrow(
        fig,
        f"Steering {steered} by {escape(leakage.method, 24)}",
        "Rise of each value's CSR over Base's on the same questions, with its 95 % interval. Heavy ring: no change; "
        f"outwards: a rise. Filled: the interval leaves zero out. Shaded: the steered value.{told}",
        height=560, margin=dict(l=86, r=80, t=124, b=36),
    )  # fmt: skip


def leakage_row(leakage: "Leakage", steered: str, judged: str | None = None, *, centred: bool = False) -> go.Figure:
    """`leakage_matrix` with the row of the steered value framed, and in it the cell of `judged`."""
    at = VALUES.index(check_value(steered))
    fig = _again(leakage_matrix(leakage, centred=centred))
    fig.add_shape(type="rect", x0=-0.5, x1=len(VALUES) - 0.5, y0=at - 0.5, y1=at + 0.5, line=dict(color=MARK, width=3))
    if judged is not None:
        cell = VALUES.index(check_value(judged))
        fig.add_shape(type="rect", x0=cell - 0.42, x1=cell + 0.42, y0=at - 0.4, y1=at + 0.4,
                      line=dict(color=MARK_TEXT, width=3))  # fmt: skip
    what = "Centred: what rows and columns share is taken out" if centred else "Bold: the 95 % interval leaves zero out"
    return _narrow(
        fig,
        f"All ten, by {escape(leakage.method, 24)}" + (", centred" if centred else ""),
        f"Rise of CSR over Base's: row steered, column judged. {what}. Framed in orange: the chosen row and cell. "
        "Blue rises, red falls, empty is undefined. Click a cell.",
        height=560, coloraxis_showscale=False,
    )


def _scale(lows: np.ndarray, highs: np.ndarray) -> tuple[float, float, list[float]]:
    """From where to where all intervals go, and some round numbers between."""
    last = max(float(np.nanmax(highs, initial=0)) * 1.06, 0.1)
    first = min(float(np.nanmin(lows, initial=0)) * 1.1, -0.4 * last)  # the ring of no change is large enough to see
    step = next((s for s in (0.05, 0.1, 0.2, 0.25, 0.5) if (last - first) / s <= 7), 0.5)
    ticks = [round(k * step, 2) for k in range(int(np.ceil(first / step)), int(last / step) + 1)]
    return first, last, [tick for tick in ticks if tick - first > 0.15 * (last - first)]  # no words in the very middle


def _plain(x: float) -> str:
    return "0" if x == 0 else f"{x:+.2f}".rstrip("0").replace("0.", ".").replace("-", "−")


def _again(fig: Any) -> Draft:
    """A finished figure as a draft, to be drawn on."""
    draft = Draft()
    draft.data = [Part(trace) for trace in fig._data]
    draft.layout.update({name: part for name, part in fig._layout.items() if name not in ("template", "title")})
    return draft


def _narrow(fig: Draft, title: str, subtitle: str, **layout: Any) -> go.Figure:
    """Finished for half a page; as wide as its place."""
    lines = textwrap.wrap(subtitle, NARROW // 7)
    heading = dict(text=title, x=0, xref="container", pad_l=16, subtitle_text="<br>".join(lines))
    margin = dict(t=56 + 18 * len(lines), b=50, l=20, r=20)
    return fig.update_layout(template=TEMPLATE, title=heading, **{"margin": margin, **layout}).figure()
