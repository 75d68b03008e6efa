"""Leakage: which other values rise and fall while one is steered, on the circle, as a matrix, and by circular step."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from ..errors import WorkbenchError
from ..values import VALUES
from .draft import Draft
from .evaluating import bars, styles
from .style import (
    ABOVE,
    COLOURS,
    DIVERGING,
    FAINT,
    HOVER,
    INK,
    colour_of,
    escape,
    finish,
    interval,
    readable,
)

if TYPE_CHECKING:
    from ..evaluation.leakage import Leakage

OURS = "The workbench's own definition."


def leakage_matrix(leakage: "Leakage", *, centred: bool = False) -> go.Figure:
    """Rise of every value's CSR (columns) while one is steered (rows), in circular order; framed: the steered value.

    Bold numbers: the 95 % interval of the rise leaves zero out. centred: without what rows and columns share.
    """
    table = _table(leakage.centred() if centred else leakage.matrix)
    low, high = _table(leakage.low), _table(leakage.high)
    sure = (low > 0) | (high < 0)
    names = list(VALUES)
    text = [[_signed(x, bold and not centred) for x, bold in zip(*row, strict=True)]
            for row in zip(table, sure, strict=True)]  # fmt: skip
    hovers = [[f"steering <b>{a}</b>, judged for <b>{b}</b><br>"
               + ("undefined" if np.isnan(x) else f"{'residual ' if centred else 'CSR '}{x:+.3f}")
               + ("" if centred else interval(low[i, j], high[i, j]))
               for j, (b, x) in enumerate(zip(names, table[i], strict=True))] for i, a in enumerate(names)]  # fmt: skip
    reach = max(float(np.nanmax(np.abs(table), initial=0)), 0.05)
    fig = Draft().add_heatmap(
        z=table, x=names, y=names, coloraxis="coloraxis", xgap=1, ygap=1, hoverongaps=False, hovertemplate=HOVER,
        hovertext=hovers, text=text, texttemplate="%{text}", textfont=dict(size=11, color=INK))  # fmt: skip
    for k in range(10):
        fig.add_shape(type="rect", x0=k - 0.5, x1=k + 0.5, y0=k - 0.5, y1=k + 0.5, line=dict(color=INK, width=2))
    fig.update_xaxes(title_text="value judged", showgrid=False, ticks="", tickangle=-45)
    fig.update_yaxes(title_text="value steered", autorange="reversed", showgrid=False, ticks="")
    what = "what rows and columns share is taken out" if centred else "bold: the 95 % interval leaves zero out"
    return finish(
        fig,
        f"Leakage of {escape(leakage.method, 40)}: " + ("centred" if centred else "rise of every value's CSR"),
        f"{OURS} CSR steered minus CSR of Base, same questions; framed: the steered value itself; {what}. Blue rises, "
        "red falls, empty is undefined.",
        height=620, coloraxis=dict(colorscale=DIVERGING, cmin=-reach, cmid=0, cmax=reach, colorbar_title_text="rise"),
    )  # fmt: skip


def leakage_circle(leakage: "Leakage", *, most: int = 25) -> go.Figure:
    """The ten values on their circle; an arc leads from each steered value to those that rise or fall with it.

    A disc's area is the rise of the value itself, an arc's width that of the other; solid rises, dotted falls. Only
    the `most` largest whose 95 % interval leaves zero out are drawn. Leakage that follows the circle stays at its rim.
    """
    table, low, high = _table(leakage.matrix), _table(leakage.low), _table(leakage.high)
    place = np.exp(2j * np.pi * np.arange(10) / 10)
    away = ~np.eye(10, dtype=bool)
    sure = away & ((low > 0) | (high < 0))
    pairs = sorted(zip(*np.nonzero(sure), strict=True), key=lambda pair: -abs(table[pair]))
    largest = max((abs(table[pair]) for pair in pairs), default=1.0)
    fig = Draft()
    t = np.linspace(0, 1, 31)
    for i, j in reversed(pairs[:most]):
        a, b = place[i], place[j]
        middle = (a + b) / 2
        turned = middle * (0.35 + 0.3 * abs(middle)) + 0.12j * (b - a)  # to one side: there and back are two arcs
        arc = (1 - t) ** 2 * a + 2 * t * (1 - t) * turned + t**2 * b
        arc = arc[(abs(arc - a) > 0.05) & (abs(arc - b) > 0.09)]
        colour, rise = readable(colour_of(VALUES[i])), float(table[i, j])
        heading = arc[-1] - arc[-2]
        ends = interval(float(low[i, j]), float(high[i, j]))
        said = f"steering <b>{VALUES[i]}</b>: <b>{VALUES[j]}</b> {rise:+.3f}{ends}"
        fig.add_scatter(
            x=arc.real, y=arc.imag, mode="lines+markers", showlegend=False, hovertemplate=HOVER,
            hovertext=[said] * len(arc),
            line=dict(color=colour, width=1 + 6 * abs(rise) / largest, dash="solid" if rise > 0 else "dot",
                      simplify=False),
            marker=dict(color=colour, symbol="arrow", opacity=1, line_width=0,
                        size=[0] * (len(arc) - 1) + [13 + 9 * abs(rise) / largest],
                        angle=float((270 - np.degrees(np.angle(heading))) % 360 - 180)))  # fmt: skip
    own = np.diag(table)
    for k, value in enumerate(VALUES):
        rise = "undefined" if np.isnan(own[k]) else f"{own[k]:+.3f}"
        fig.add_scatter(
            x=[place[k].real], y=[place[k].imag], mode="markers", showlegend=False, hovertemplate=HOVER,
            marker=dict(color=COLOURS[value], line=dict(color=INK, width=1.2),
                        size=8 + 30 * np.sqrt(max(0.0, np.nan_to_num(own[k])))),
            hovertext=[f"<b>{value}</b> while steered: {rise}{interval(low[k, k], high[k, k])}"])  # fmt: skip
        side = place[k].real
        fig.add_annotation(x=1.17 * side, y=1.13 * place[k].imag, text=f"<b>{value}</b>", showarrow=False,
                           xanchor="center" if abs(side) < 0.35 else "left" if side > 0 else "right")  # fmt: skip
    axis = dict(visible=False, range=[-1.75, 1.75])
    return finish(
        fig,
        f"Leakage of {escape(leakage.method, 40)} on the circle",
        f"{OURS} An arc, in the colour of the steered value, leads to another whose CSR rises (solid) or falls "
        "(dotted), as wide as the change; a disc's area is the steered value's own rise. Of 90 pairs "
        f"{len(pairs)} have a 95 % interval that leaves zero out"
        + (f"; the {most} largest are drawn." if len(pairs) > most else "; all are drawn."),
        height=700, width=820, xaxis=axis,
        yaxis=dict(visible=False, range=[-1.25, 1.25], scaleanchor="x"), margin_b=10,
    )  # fmt: skip


def leakage_by_step(leakages: Sequence["Leakage"]) -> go.Figure:
    """Mean rise of the other values by their steps from the steered one, raw and centred; methods side by side.

    Bars are 95 % intervals, thin lines the cosine that fits best to all 90 pairs. Centred: rows and columns add up to
    nothing, so that only the shape is left.
    """
    if not leakages:
        raise WorkbenchError("A profile of leakage was asked for.", found="none", allowed="one or more of `leakage`")
    look = styles([leakage.method for leakage in leakages])
    fig = Draft.subplots(cols=2, shared_xaxes=True, horizontal_spacing=0.09,
                         subplot_titles=["raw", "centred: what rows and columns share taken out"])  # fmt: skip
    fig.update_annotations(font_size=13)
    fine, many = np.linspace(0.7, 5.3, 93), len(leakages)
    for k, leakage in enumerate(leakages):
        style, name = look[leakage.method], escape(leakage.method, 40)
        steps, fit = leakage.profile()
        steps = steps[steps["step"] > 0]
        aside = (k - (many - 1) / 2) * min(0.09, 0.6 / many)
        for col, what in enumerate(("raw", "centred"), 1):
            place: dict[str, Any] = dict(row=1, col=col)
            cosine = fit.loc[what]
            fig.add_scatter(x=fine, y=cosine["offset"] + cosine["amplitude"] * np.cos(np.radians(36 * fine)),
                            mode="lines", line=dict(color=style["color"], width=1, dash=style["dash"]),
                            hoverinfo="skip", showlegend=False, legendgroup=name, **place)  # fmt: skip
            said = (f"fit {cosine['offset']:+.3f} {cosine['amplitude']:+.3f} cos(36° x step), R² {cosine['r2']:.2f}; "
                    f"amplitude {cosine['low']:+.3f} to {cosine['high']:+.3f}")  # fmt: skip
            fig.add_scatter(
                x=steps["step"] + aside, y=steps[what], mode="markers", name=name, legendgroup=name,
                showlegend=col == 1, hovertemplate=HOVER,
                marker=dict(color=style["color"], symbol=style["symbol"], size=8),
                error_y=bars(steps[what], steps[f"{what}_low"], steps[f"{what}_high"], style["color"]),
                hovertext=[f"<b>{escape(leakage.method, 60)}</b>, {row['step']:.0f} steps away<br>{row[what]:+.3f}"
                           f"{interval(row[f'{what}_low'], row[f'{what}_high'])}<br>mean of {row['n']:.0f} pairs"
                           f"<br>{said}" for row in steps.to_dict("records")], **place)  # fmt: skip
            fig.add_hline(y=0, line=dict(color=FAINT, width=1), **place)
    fig.update_xaxes(title_text="steps from the steered value (5: its opposite)", tickvals=list(range(1, 6)),
                     showgrid=False, range=[0.5, 5.5])  # fmt: skip
    fig.update_yaxes(title_text="mean rise of CSR", col=1)
    return finish(
        fig,
        "Leakage by steps round the circle",
        f"{OURS} The steered value itself (step 0) is left out. Bars: 95 % intervals over resampled questions; lines: "
        "the best cosine.",
        height=470, above=40 + 20 * (many // 6), legend=dict(ABOVE, y=1.08),
    )  # fmt: skip


def _table(matrix: xr.DataArray) -> np.ndarray:
    """A matrix (steered, value) as (10, 10) in circular order; NaN where there is none."""
    named = matrix.reindex(steered=list(VALUES), value=list(VALUES)).transpose("steered", "value")
    return named.to_numpy().astype(float)


def _signed(x: float, bold: bool) -> str:
    """ "+.12"; "" for NaN."""
    text = "" if np.isnan(x) else f"{x:+.2f}".replace("0.", ".", 1).replace("-", "−")
    return f"<b>{text}</b>" if text and bold else text
