"""Figures of geometry: cosines, the circle, and what chance would give."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from .. import geometry
from ..errors import WorkbenchError
from ..geometry import CircumplexFit
from ..values import GROUPS, VALUES, Order, angles, circular_order
from .style import COLOURS, DIVERGING, FAINT, HOVER, INK, MARK, escape, finish, p_value, tint


def cosine_heatmap(
    vectors: Any, centred: bool = True, reference: xr.DataArray | None = None, order: Order = None
) -> go.Figure:
    """Cosines of every two value vectors in circular order: raw, and beside them centred.

    vectors: as for `geometry.cosines`. centred=False shows the raw ones alone. reference: one more matrix (value,
    other), such as `geometry.human_reference()`. order: see `values.circular_order`.
    """
    shown = {"raw": geometry.cosines(vectors, centred=False)}
    if centred:
        shown["centred on their mean"] = geometry.cosines(vectors)
    if reference is not None:
        shown[escape(reference.name or "reference")] = reference
    names = list(circular_order(order))
    fig = make_subplots(cols=len(shown), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=list(shown))
    fig.update_annotations(font_size=13)
    for col, (title, matrix) in enumerate(shown.items(), 1):
        table = matrix.sel(value=names, other=names).to_numpy().copy()
        np.fill_diagonal(table, np.nan)
        fig.add_heatmap(
            z=table, x=names, y=names, coloraxis="coloraxis", xgap=1, ygap=1, hoverongaps=False, hovertemplate=HOVER,
            hovertext=[[f"<b>{a}</b> and <b>{b}</b><br>{title}: {x:.3f}" for b, x in zip(names, row, strict=True)]
                       for a, row in zip(names, table, strict=True)],
            text=[["" if np.isnan(x) else f"{x:.2f}".replace("0.", ".") for x in row] for row in table],
            texttemplate="%{text}", textfont=dict(size=9 if len(shown) < 3 else 8), row=1, col=col,
        )  # fmt: skip
    fig.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    fig.update_xaxes(showgrid=False, ticks="", tickangle=-45)
    return finish(
        fig,
        "Cosine similarity of the value vectors, in circular order",
        "Red is opposed, blue alike, white zero; the diagonal (1) is left out. Centred: minus the mean of the ten, "
        "without which what all values share hides the circle.",
        height=540,
        above=20,
        coloraxis=dict(colorscale=DIVERGING, cmin=-1, cmid=0, cmax=1, colorbar_title_text="cosine"),
    )


def circle_map(vectors: Any, fit: CircumplexFit | None = None, order: Order = None) -> go.Figure:
    """The ten value vectors in the plane, beside the ideal circle: a line leads from each to its ideal place.

    Positions are the first two principal axes of the centred vectors, turned onto the circle (`planted_axis_map`).
    fit: a fit of these vectors: its similarities are drawn on its circle. None fits here, on the circle of `order`.
    """
    if fit is not None and order is not None and circular_order(order) != fit.circle.order:
        raise WorkbenchError("A circle map in another order than its fit's was asked for.", found=str(fit.circle),
                             do="Pass a fit in that order, or leave order out.")  # fmt: skip
    fit = geometry.circumplex_fit(vectors, order=order) if fit is None else fit
    layout, held = fit.circle
    places = geometry.planted_axis_map(fit.similarity, order=held, layout=layout)
    half, fig = np.pi / (10 if layout == "equal" else 9), go.Figure()
    still = dict(mode="lines", hoverinfo="skip")
    reach = _label_round(fig, places)
    for group, colour, start, end in _sectors(held, layout, half):
        edge = np.r_[0, 0.98 * np.exp(1j * np.linspace(start, end, 91)), 0]
        fig.add_scatter(x=edge.real, y=edge.imag, fill="toself", fillcolor=tint(colour, 0.12), line_width=0, **still)
        x, y = np.sign([math.cos((start + end) / 2), math.sin((start + end) / 2)])
        fig.add_annotation(x=0.975 * reach * x, y=0.875 * reach * y, text=f"<i>{group}</i>", showarrow=False,
                           font=dict(size=15, color=FAINT), xanchor="right" if x > 0 else "left",
                           yanchor="top" if y > 0 else "bottom")  # fmt: skip
    for value, theta in zip(VALUES, angles(layout, held), strict=True):
        arc = np.exp(1j * np.linspace(theta - half + 0.012, theta + half - 0.012, 41))
        line = dict(color=tint(COLOURS[value], 0.5), width=9, simplify=False)
        fig.add_scatter(x=arc.real, y=arc.imag, line=line, **still)
    for x, ideal_x, y, ideal_y in zip(places["x"], places["ideal_x"], places["y"], places["ideal_y"], strict=True):
        fig.add_scatter(x=[ideal_x, x], y=[ideal_y, y], line=dict(color=INK, width=1.5), **still)
    fig.add_scatter(x=places["ideal_x"], y=places["ideal_y"], mode="markers", hoverinfo="skip", name="ideal place",
                    marker=dict(size=9, color="white", line=dict(color=INK, width=1.5)))  # fmt: skip
    away = np.hypot(places["x"] - places["ideal_x"], places["y"] - places["ideal_y"])
    fig.add_scatter(
        x=places["x"], y=places["y"], mode="markers", name="value vector", hovertemplate=HOVER,
        marker=dict(size=20, color=[COLOURS[value] for value in places["value"]], line=dict(color=INK, width=1.5)),
        hovertext=[f"<b>{v}</b><br>{d:.2f} radii from its ideal place"
                   for v, d in zip(places["value"], away, strict=True)],
    )  # fmt: skip
    axis, schwartz = dict(range=[-reach, reach], visible=False, fixedrange=True), held == VALUES
    finish(
        fig, f"The ten values in the model, on {'Schwartz’s' if schwartz else 'a'} circle", "", height=780, width=760,
        showlegend=False, xaxis=axis, yaxis={**axis, "range": [-0.905 * reach, 0.905 * reach], "scaleanchor": "x"},
        margin=dict(t=88, b=10, l=10, r=10),
    )  # fmt: skip
    return fig.update_layout(title_subtitle_text=(
        f"{'Schwartz’s' if schwartz else 'This'} order: correspondence index <b>{fit.ci:.2f}</b>, "
        f"exact {p_value(fit.p)} over all relabellings; Procrustes R² {fit.procrustes_r2:.2f}"
        f"<br>Filled: value vectors, first two principal axes of {escape(fit.similarity.name)}s. White: ideal places."
    ))  # fmt: skip


def _sectors(order: Sequence[str], layout: str, half: float) -> list[tuple[str, str, float, float]]:
    """The groups' sectors where each stands side by side, else none: name, colour, first and last angle."""
    theta = dict(zip(VALUES, angles(layout, order), strict=True))
    found = []
    for group, members in GROUPS.items():
        held = {order.index(v) for v in members}
        start = next((s for s in held if {(s + k) % 10 for k in range(len(held))} == held), None)
        if start is None:
            return []
        first, last = theta[order[start]], theta[order[(start + len(held) - 1) % 10]]
        last += 2 * np.pi * (last < first)
        found.append((group, COLOURS[order[(start + len(held) // 2) % 10]], first - half, last + half))
    return found


def _label_round(fig: go.Figure, places: pd.DataFrame) -> float:
    """Names outside the ring at their ideal angles, farther out where a vector lies in the way; how far all reaches."""
    points = places["x"].to_numpy() + 1j * places["y"].to_numpy()
    ideal = places["ideal_x"].to_numpy() + 1j * places["ideal_y"].to_numpy()
    reach = 1.6
    for index, (value, place) in enumerate(zip(places["value"], ideal, strict=True)):
        twins = np.flatnonzero(abs(ideal - place) < 1e-6)  # two values share a wedge: one name above the other
        near = abs(np.angle(points / place)) < 0.3
        spot = place * max([1.1, *(abs(points[near]) + 0.12)])
        reach = max(reach, 1.42 * abs(spot.real), 1.3 * abs(spot.imag), *(1.2 * abs(points)))
        fig.add_annotation(
            x=spot.real, y=spot.imag, text=f"<b>{value}</b>", showarrow=False, font=dict(size=15),
            xanchor="center" if abs(place.real) < 0.1 else "left" if place.real > 0 else "right",
            yanchor="middle" if abs(place.imag) < 0.2 else "bottom" if place.imag > 0 else "top",
            yshift=20 * (len(twins) - 1) * (index == twins[0]) * (1 if place.imag > -0.2 else -1),
        )  # fmt: skip
    return reach


def permutation_null(fit: CircumplexFit) -> go.Figure:
    """The correspondence index under every relabelling of the ten values, and where the observed one stands."""
    null = fit.null
    counts, edges = np.histogram(null, bins=80, range=(-1, 1))
    fig = go.Figure(go.Bar(
        x=(edges[:-1] + edges[1:]) / 2, y=counts, width=edges[1] - edges[0], marker=dict(color="#9fb3c8", line_width=0),
        hovertemplate=HOVER, hovertext=[f"index {low:.3f} to {high:.3f}<br>{n:,} of {null.size:,} orders"
                                        for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True)],
    ))  # fmt: skip
    side = -1 if fit.ci > 0 else 1
    fig.add_vline(x=fit.ci, line=dict(color=MARK, width=3))
    fig.add_annotation(
        x=fit.ci, y=1, yref="paper", xanchor="right" if side < 0 else "left", xshift=8 * side, yanchor="top",
        showarrow=False, align="left", font=dict(color="#b34a00"),
        text=f"observed {fit.ci:.3f}<br>exact {p_value(fit.p)}<br>{round(fit.p * null.size):,} of {null.size:,}"
             "<br>orders do as well",
    )  # fmt: skip
    fig.update_xaxes(title_text="correspondence index", range=[-1.02, 1.02])
    fig.update_yaxes(title_text="number of orders (log scale)", type="log", dtick=1,
                     range=[-0.2, math.log10(counts.max()) + 0.3])  # fmt: skip
    several = f"; of {len(fit.candidates)} circles the best for each order, as for the observed"
    return finish(
        fig,
        "Correspondence index under every relabelling of the values",
        f"{escape(fit.similarity.name).capitalize()}s held against {escape(fit.circle)}"
        f"{several if len(fit.candidates) > 1 else ''}.",
        height=400,
        showlegend=False,
    )
