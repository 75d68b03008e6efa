"""Figures of geometry: cosines, and the values in the plane beside the ideal circle and people."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from .. import geometry
from ..errors import WorkbenchError
from ..geometry import Circle, CircumplexFit
from ..values import GROUPS, REFINED, VALUES, VALUES19, Order, circular_order
from .circumplex import exactly, people
from .draft import Draft
from .style import DIVERGING, FAINT, HOVER, HUMAN, INK, colour_of, escape, finish, p_value, readable, tint


def cosine_heatmap(
    vectors: Any, centred: bool = True, reference: str | xr.DataArray | None = None, order: Order = None, *,
    ideal: bool = True, layout: str = "equal",
) -> go.Figure:
    """Cosines of every two value vectors in circular order: raw, centred, and beside them those of the ideal circle.

    vectors: as for `geometry.cosines`. centred=False shows the raw ones, and no ideal. reference: one more matrix
    (value, other), or the name of a `geometry.human_reference`. order: see `values.circular_order`. ideal, layout: the
    cosine of the angle between two values on the circle, of equal steps or wedges.
    """
    shown = {"raw": geometry.cosines(vectors, centred=False)}
    if centred:
        shown["centred on their mean"] = geometry.cosines(vectors)
    among = tuple(shown["raw"]["value"].values.tolist())
    names = list(circular_order(order, among))
    if centred and ideal:
        circle = Circle(layout, tuple(names))
        shown["ideal: cosine of the angle between"] = xr.DataArray(
            circle.closeness, {"value": list(circle.names), "other": list(circle.names)}, ("value", "other"))
    if reference is not None:
        shown[escape(people(reference).name or "reference")] = people(reference)
    many = len(names) > 10
    columns = min(2, len(shown)) if many or len(shown) == 4 else len(shown)
    rows = -(-len(shown) // columns)
    fig = Draft.subplots(rows, columns, shared_yaxes=True, shared_xaxes=True, horizontal_spacing=0.03,
                         vertical_spacing=0.07, subplot_titles=list(shown))  # fmt: skip
    fig.update_annotations(font_size=13)
    size = 9 if columns < 3 else 8
    for at, (title, matrix) in enumerate(shown.items()):
        table = matrix.reindex(value=names, other=names).to_numpy().copy()
        np.fill_diagonal(table, np.nan)
        fig.add_heatmap(
            z=table, x=names, y=names, coloraxis="coloraxis", xgap=1, ygap=1, hoverongaps=False, hovertemplate=HOVER,
            hovertext=[[f"<b>{a}</b> and <b>{b}</b><br>{title}: {x:.3f}" for b, x in zip(names, row, strict=True)]
                       for a, row in zip(names, table, strict=True)],
            row=at // columns + 1, col=at % columns + 1,
        )  # fmt: skip
        if not many:  # the nineteen leave no room for numbers
            fig.data[-1].update(texttemplate="%{text}", textfont=dict(size=size, color=INK), text=[
                ["" if np.isnan(x) else f"{x:.2f}".replace("0.", ".") for x in row] for row in table])  # fmt: skip
    fig.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    fig.update_xaxes(showgrid=False, ticks="", tickangle=-45)
    if many:
        fig.update_xaxes(tickvals=names, tickfont_size=10).update_yaxes(tickvals=names, tickfont_size=10)
    return finish(
        fig,
        "Cosine similarity of the value vectors, in circular order",
        "Red is opposed, blue alike, white zero; the diagonal (1) is left out. Centred: minus the mean of the "
        f"{len(names)}, without which what all values share hides the circle.",
        height=(540 if columns < 3 else 470) if rows == 1 else 960 + 140 * many,
        above=20,
        coloraxis=dict(colorscale=DIVERGING, cmin=-1, cmid=0, cmax=1, colorbar_title_text="cosine"),
    )


def circle_map(
    vectors: Any, fit: CircumplexFit | None = None, order: Order = None, *, kind: str = "classical",
    human: str | xr.DataArray | None = None,
) -> go.Figure:
    """The value vectors in the plane, beside the ideal circle: a line leads from each to its ideal place.

    Positions are the first two principal axes of the centred vectors, turned onto the circle (`planted_axis_map`); an
    ellipse round each is the 95 % region over resampled pairs of texts, where the fit has resamples.
    fit: a fit of these vectors: its similarities are drawn on its circle. None fits here, on the circle of `order`.
    kind: "classical" (these axes), or "metric", "nonmetric": places from `fit.mds` of that kind, without ellipses.
    human: name of a `geometry.human_reference`, or a matrix like it: where people's answers put the values, turned
    onto the same circle, in small squares.
    """
    if fit is not None and order is not None and circular_order(order, fit.circle.names) != fit.circle.order:
        raise WorkbenchError("A circle map in another order than its fit's was asked for.", found=str(fit.circle),
                             do="Pass a fit in that order, or leave order out.")  # fmt: skip
    fit = geometry.circumplex_fit(vectors, order=order) if fit is None else fit
    circle, names = fit.circle, fit.circle.names
    places = _placed(fit.similarity, circle)
    told = f"Procrustes R² {fit.procrustes_r2:.2f}"
    how = f"first two principal axes of {escape(fit.similarity.name)}s"
    if kind != "classical":
        scaled = fit.mds(kind)
        places[["x", "y"]] = scaled.points.set_index("value").loc[list(names), ["x", "y"]].to_numpy()
        told = f"Stress-1 {scaled.stress1:.2f}, Procrustes R² {scaled.procrustes_r2:.2f}"
        how = f"{kind.replace('nonm', 'non-m')} MDS of {escape(fit.similarity.name)}s"
    reference = None if human is None else people(human)
    theirs = None if reference is None else _placed(reference, circle)
    half, fig = np.pi / (9 if circle.layout == "wedges" else len(names)), Draft()
    still = dict(mode="lines", hoverinfo="skip")
    reach = _label_round(fig, places, places if theirs is None else pd.concat([places, theirs]))
    for (group, colour, start, end), (x, y) in _in_corners(_sectors(circle, half)):
        edge = np.r_[0, 0.98 * np.exp(1j * np.linspace(start, end, 91)), 0]
        fig.add_scatter(x=edge.real, y=edge.imag, fill="toself", fillcolor=tint(colour, 0.12), line_width=0, **still)
        fig.add_annotation(x=0.975 * reach * x, y=0.875 * reach * y, text=f"<i>{group}</i>", showarrow=False,
                           font=dict(size=15, color=FAINT), xanchor="right" if x > 0 else "left",
                           yanchor="top" if y > 0 else "bottom")  # fmt: skip
    for value, theta in zip(names, circle.angles, strict=True):
        arc = np.exp(1j * np.linspace(theta - half + 0.012, theta + half - 0.012, 41))
        line = dict(color=tint(colour_of(value), 0.5), width=9, simplify=False)
        fig.add_scatter(x=arc.real, y=arc.imag, line=line, **still)
    resampled = _ellipses(fit, fig) if kind == "classical" else ""
    fig.add_scatter(**_leads(places), line=dict(color=INK, width=1.5), **still)
    fig.add_scatter(x=places["ideal_x"], y=places["ideal_y"], mode="markers", hoverinfo="skip", name="ideal place",
                    marker=dict(size=9, color="white", line=dict(color=INK, width=1.5)))  # fmt: skip
    if reference is not None and theirs is not None:
        fig.add_scatter(**_leads(theirs), line=dict(color=HUMAN, width=1, dash="dot"), **still)
        fig.add_scatter(
            x=theirs["x"], y=theirs["y"], mode="markers", name="people", hovertemplate=HOVER,
            marker=dict(size=10, symbol="square", color=[colour_of(v) for v in names], line=dict(color=HUMAN, width=2)),
            hovertext=[f"<b>{v}</b><br>{escape(reference.name or 'people')}" for v in theirs["value"]],
        )  # fmt: skip
    away = np.hypot(places["x"] - places["ideal_x"], places["y"] - places["ideal_y"])
    fig.add_scatter(
        x=places["x"], y=places["y"], mode="markers", name="value vector", hovertemplate=HOVER,
        marker=dict(size=20, color=[colour_of(value) for value in names], line=dict(color=INK, width=1.5)),
        hovertext=[f"<b>{escape(v)}</b><br>{d:.2f} radii from its ideal place"
                   for v, d in zip(names, away, strict=True)],
    )  # fmt: skip
    axis, schwartz = dict(range=[-reach, reach], visible=False, fixedrange=True), circle.order in _SCHWARTZ
    many = {10: "ten", 19: "nineteen"}.get(len(names), len(names))
    also = [f"From {escape(fit.source, 90)}."] * bool(fit.source)
    also += [" ".join([resampled, "Green squares: people." * (theirs is not None)]).strip()]
    lines = [
        f"{'Schwartz’s' if schwartz else 'This'} order: correspondence index <b>{fit.ci:.2f}</b>, {exactly(fit)} "
        f"{p_value(fit.p)} over {'all' if fit.exact else 'random'} relabellings; {told}",
        f"Filled: value vectors, {how}. White: ideal places.", *filter(None, also),
    ]  # fmt: skip
    return finish(
        fig, f"The {many} values in the model, on {'Schwartz’s' if schwartz else 'a'} circle", "", height=780,
        width=760, showlegend=False, xaxis=axis,
        yaxis={**axis, "range": [-0.905 * reach, 0.905 * reach], "scaleanchor": "x"},
        margin=dict(t=52 + 18 * len(lines), b=10, l=10, r=10), title_subtitle_text="<br>".join(lines),
    )  # fmt: skip


_SCHWARTZ = (VALUES, VALUES19)


def _placed(similarity: xr.DataArray, circle: Circle) -> pd.DataFrame:
    """`planted_axis_map` of a matrix on a circle, rows in the order of `circle.names`."""
    table = geometry.planted_axis_map(similarity, order=circle.order, layout=circle.layout)
    return table.set_index("value").loc[list(circle.names)].reset_index()


def _leads(places: pd.DataFrame) -> dict[str, np.ndarray]:
    """Lines from each ideal place to the place found, as one trace: NaN parts them."""
    apart = np.full(len(places), np.nan)
    return {axis: np.column_stack([places[f"ideal_{axis}"], places[axis], apart]).ravel() for axis in "xy"}


def _ellipses(fit: CircumplexFit, fig: Draft) -> str:
    """The 95 % region of each value over the resamples, drawn; what the subtitle says of it, "" without resamples."""
    spread = fit.spread()
    if spread is None:
        return ""
    round_ = np.stack([np.cos(turn := np.linspace(0, 2 * np.pi, 61)), np.sin(turn)])
    shapes = spread[["cxx", "cxy", "cxy", "cyy"]].to_numpy(float).reshape(-1, 2, 2)
    for value, middle, shape in zip(spread["value"], spread[["x", "y"]].to_numpy(float), shapes, strict=True):
        roots, ways = np.linalg.eigh(shape)
        axes = np.sqrt(np.clip(roots, 0, None))
        x, y = ways @ (axes[:, None] * round_) + middle[:, None]
        colour, faint = colour_of(value), min(0.15, 0.01 / max(axes.prod(), 0.01))  # large ones hide what lies below
        fig.add_scatter(x=x, y=y, mode="lines", fill="toself", fillcolor=tint(colour, faint), hoverinfo="skip",
                        line=dict(color=readable(colour), width=1))  # fmt: skip
    half = "" if fit.reliability is None else f", median split-half cosine {fit.reliability['centred'].median():.2f}"
    return f"Ellipses: 95 % over resampled pairs of texts{half}."


def _sectors(circle: Circle, half: float) -> list[tuple[str, str, float, float]]:
    """The groups' sectors where each stands side by side, else none: name, colour, first and last angle."""
    order, n, found = circle.order, len(circle.order), []
    theta = dict(zip(circle.names, circle.angles, strict=True))
    for group, members in GROUPS.items():
        own = {part for value in members for part in (value, *REFINED[value])}
        held = {place for place, name in enumerate(order) if name in own}
        start = next((s for s in held if {(s + k) % n for k in range(len(held))} == held), None)
        if start is None:
            return []
        first, last = theta[order[start]], theta[order[(start + len(held) - 1) % n]]
        last += 2 * np.pi * (last < first)
        found.append((group, colour_of(order[(start + len(held) // 2) % n]), first - half, last + half))
    return found


def _in_corners(sectors: list[tuple[str, str, float, float]]) -> list[tuple[tuple[str, str, float, float], Any]]:
    """Each sector with the corner (signs of x and y) where its name stands: in turn, as near to it as may be."""
    sectors = sorted(sectors, key=lambda sector: sector[2] + sector[3])
    middles, corners = np.array([(s[2] + s[3]) / 2 for s in sectors]), np.pi / 4 + np.pi / 2 * np.arange(4)
    turn = max(range(4), key=lambda k: np.cos(middles - np.roll(corners, k)).sum()) if sectors else 0
    held = np.roll(corners, turn)[: len(sectors)]
    return list(zip(sectors, np.sign(np.stack([np.cos(held), np.sin(held)], 1)), strict=True))


def _label_round(fig: Draft, places: pd.DataFrame, marks: pd.DataFrame) -> float:
    """Names outside the ring at their ideal angles, farther out where a mark lies in the way; how far all reaches."""
    points = marks["x"].to_numpy() + 1j * marks["y"].to_numpy()
    ideal = places["ideal_x"].to_numpy() + 1j * places["ideal_y"].to_numpy()
    reach, size, middle = (1.6, 15, 0.1) if len(ideal) <= 10 else (1.6, 12, 0.02)
    for index, (value, place) in enumerate(zip(places["value"], ideal, strict=True)):
        twins = np.flatnonzero(abs(ideal - place) < 1e-6)  # two values share a wedge: one name above the other
        near = abs(np.angle(points / place)) < (0.3 if size == 15 else 4)  # crowded names keep to one ring
        spot = place * max([1.1, *(abs(points[near]) + 0.12)])
        room = 370 / (370 - 0.54 * size * len(value))  # of 370 pixels to each side
        reach = max(reach, room * abs(spot.real), 1.3 * abs(spot.imag), *(1.2 * abs(points)))
        fig.add_annotation(
            x=spot.real, y=spot.imag, text=f"<b>{escape(value)}</b>", showarrow=False, font=dict(size=size),
            xanchor="center" if abs(place.real) < middle else "left" if place.real > 0 else "right",
            yanchor="middle" if abs(place.imag) < 0.2 else "bottom" if place.imag > 0 else "top",
            yshift=20 * (len(twins) - 1) * (index == twins[0]) * (1 if place.imag > -0.2 else -1),
        )  # fmt: skip
    return reach
