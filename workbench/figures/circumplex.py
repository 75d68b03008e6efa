"""Figures of the circle as numbers: what chance gives, how similarity falls with the step, profiles round it."""

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from ..errors import WorkbenchError
from ..geometry import CircumplexFit, cosine_profile, human_reference
from ..geometry.labellings import TIE, pairs_of
from ..values import VALUES, VALUES19, angles
from .draft import Draft
from .style import (
    ABOVE,
    BARS,
    FAINT,
    HOVER,
    HUMAN,
    INK,
    MARK,
    MARK_TEXT,
    METHODS,
    colour_of,
    escape,
    finish,
    interval,
    p_value,
)

_STATISTICS = {
    "ci": ("correspondence index", "p"),
    "spearman": ("Spearman correlation with closeness on the circle", "spearman_p"),
    "pearson": ("Pearson correlation with closeness on the circle", "pearson_p"),
    "procrustes_r2": ("Procrustes R² of the plane on the ideal circle", "procrustes_p"),
}


def permutation_null(fit: CircumplexFit, *, statistic: str = "ci") -> go.Figure:
    """A statistic under every relabelling of the values, and where the observed one stands.

    statistic: "ci", "spearman", "pearson" or "procrustes_r2". Of more than ten values the relabellings are drawn at
    random, and the figure says so.
    """
    if statistic not in _STATISTICS:
        raise WorkbenchError(f"The null of {statistic!r} was asked for.", allowed=", ".join(_STATISTICS))
    name, p = _STATISTICS[statistic]
    observed, exact = getattr(fit, statistic), fit.exact
    null = fit.null if statistic == "ci" else fit.null_of(statistic)  # the one that is kept
    least = 0 if statistic == "procrustes_r2" else -1
    counts, edges = np.histogram(null, bins=80, range=(least, 1))
    what = "orders" if exact and len(fit.candidates) == 1 else "labellings"
    fig = Draft().add_bar(
        x=(edges[:-1] + edges[1:]) / 2, y=counts, width=edges[1] - edges[0], marker=dict(color=BARS, line_width=0),
        hovertemplate=HOVER, hovertext=[f"{low:.3f} to {high:.3f}<br>{n:,} of {null.size:,} {what}"
                                        for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True)],
    )  # fmt: skip
    outwards, room = (1, 1 - observed) if observed > null.mean() else (-1, observed - least)
    side = outwards if room > 0.35 else -outwards  # beside the bars, not over them
    fig.add_vline(x=observed, line=dict(color=MARK, width=3))
    fig.add_annotation(
        x=observed, y=1, yref="paper", xanchor="right" if side < 0 else "left", xshift=8 * side, yanchor="top",
        showarrow=False, align="left", font=dict(color=MARK_TEXT),
        text=f"observed {observed:.3f}<br>{exactly(fit)} {p_value(getattr(fit, p))}<br>"
             f"{round((null >= observed - TIE).sum()):,} of {null.size:,}<br>{what} do as well",
    )  # fmt: skip
    fig.update_xaxes(title_text=name, range=[least - 0.02, 1.02])
    fig.update_yaxes(title_text=f"number of {what} (log scale)", type="log", dtick=1,
                     range=[-0.2, math.log10(counts.max()) + 0.3])  # fmt: skip
    several = f"; of {len(fit.candidates)} circles the best for each, as for the observed"
    drawn = "" if exact else f" Monte Carlo: {null.size - 1:,} labellings drawn at random, and the one observed."
    return finish(
        fig,
        f"{name.split(' with')[0].split(' of')[0]}".capitalize().replace(" r²", " R²")
        + f" under {'every relabelling' if exact else 'random relabellings'} of the values",
        f"{escape(fit.similarity.name).capitalize()}s{origin(fit)} held against {escape(fit.circle)}"
        f"{several if len(fit.candidates) > 1 else ''}.{drawn}",
        height=400,
        showlegend=False,
    )


def exactly(fit: CircumplexFit) -> str:
    """How the p of a fit is known: "exact", or of more than ten values "Monte Carlo"."""
    return "exact" if fit.exact else "Monte Carlo"


def origin(fit: CircumplexFit) -> str:
    """Model, method and layer behind a fit, as far as it knows them, in brackets."""
    return f" ({escape(fit.source, 90)})" if fit.source else ""


def people(human: str | xr.DataArray) -> xr.DataArray:
    """A human reference by its name, or a similarity matrix (value, other) as it is."""
    return human_reference(human) if isinstance(human, str) else human


def similarity_by_step(fit: CircumplexFit, human: str | xr.DataArray | None = None) -> go.Figure:
    """Similarity of every pair of values by the steps between the two, with means, and the cosine that fits best.

    human: name of a `human_reference`, or a matrix like it: its means by step stand beside. Intervals of the means are
    reflected bootstrap ones, where the fit has resamples.
    """
    circle, names = fit.circle, fit.circle.names
    steps, pairs = pairs_of(circle.steps), pairs_of(fit.similarity.values)
    first, second = np.triu_indices(len(names), 1)
    fig, at, title = Draft(), np.unique(steps), escape(fit.similarity.name)
    aside = np.concatenate([np.linspace(-0.25, 0.25, (steps == step).sum() + 2)[1:-1] for step in at])
    order = np.lexsort((pairs, steps))
    fig.add_scatter(
        x=steps[order] + aside, y=pairs[order], mode="markers", name="pairs of values", hovertemplate=HOVER,
        marker=dict(size=6, color=BARS, line=dict(color=FAINT, width=0.8)),
        hovertext=[f"<b>{escape(names[first[k]])}</b> and <b>{escape(names[second[k]])}</b><br>{steps[k]} steps apart: "
                   f"{pairs[k]:.3f}" for k in order],
    )  # fmt: skip
    if human is not None:
        reference = people(human).sel(value=list(names), other=list(names))
        theirs = pairs_of(reference.values)
        means = [float(theirs[steps == step].mean()) for step in at]
        label = escape(reference.name or "human reference")
        fig.add_scatter(x=at, y=means, mode="lines+markers", name=label, hovertemplate=HOVER,
                        line=dict(color=HUMAN, width=2), marker=dict(size=8, symbol="square-open"),
                        hovertext=[f"{label}<br>{step} steps apart: mean {mean:.3f}"
                                   for step, mean in zip(at, means, strict=True)])  # fmt: skip
    closeness = pairs_of(circle.closeness)
    amplitude, elevation = np.polyfit(closeness, pairs, 1)
    angle = 2 * np.pi / (len(names) if circle.layout == "equal" else 9)
    curve = np.linspace(at[0], at[-1], 101)
    fitted = elevation + amplitude * np.cos(angle * curve)
    r2 = float(np.corrcoef(closeness, pairs)[0, 1]) ** 2
    fig.add_scatter(x=curve, y=fitted, mode="lines", name="ideal cosine, fitted", hovertemplate=HOVER,
                    line=dict(color=MARK, width=2, dash="dash"),
                    hovertext=[f"{elevation:.2f} + {amplitude:.2f} cos({math.degrees(angle * x):.0f}°) = {y:.3f}"
                               for x, y in zip(curve, fitted, strict=True)])  # fmt: skip
    means = fit.by_step.reindex(at).to_numpy()
    none = pd.DataFrame(math.nan, at, ["low", "high"])
    low, high = (none if fit.step_intervals is None else fit.step_intervals).loc[at].to_numpy().T
    fig.add_scatter(
        x=at, y=means, mode="lines+markers", name="mean", line=dict(color=INK, width=2.5), hovertemplate=HOVER,
        marker=dict(size=9, symbol="diamond"),
        error_y=dict(array=high - means, arrayminus=means - low, color=INK, thickness=1.5, width=5,
                     visible=bool(np.isfinite(low).all())),
        hovertext=[f"{step} steps apart: mean of {(steps == step).sum()} pairs {mean:.3f}{interval(a, b)}"
                   for step, mean, a, b in zip(at, means, low, high, strict=True)],
    )  # fmt: skip
    fig.add_hline(y=0, line=dict(color=FAINT, width=1))
    fig.update_xaxes(title_text="steps apart on the circle", tickvals=at, showgrid=False,
                     range=[at[0] - 0.4, at[-1] + 0.4],
                     ticktext=[f"{k}<br>{math.degrees(angle * k):.0f}°" for k in at])  # fmt: skip
    fig.update_yaxes(title_text=title)
    told = "95 % reflected bootstrap intervals on the means. " if np.isfinite(low).all() else ""
    return finish(
        fig,
        "Similarity of two values by the steps between them",
        f"On {escape(circle)}. {told}Dashed: elevation and amplitude of the ideal cosine fitted to all pairs, "
        f"{elevation:.2f} + {amplitude:.2f} cos(angle), R² {r2:.2f}.",
        height=460,
        above=22,
        legend=ABOVE,
    )


def circular_profile(
    y: Any, *, value: str | None = None, low: Any = None, high: Any = None, measure: str = "similarity"
) -> go.Figure:
    """A number for each value round the circle, and the cosine through them (`geometry.cosine_profile`).

    y: a row of a labelled matrix (`fit.similarity.sel(value="power")`, `rise.sel(steered="power")`), any DataArray or
    Series or dict by value, or ten numbers in the order of `VALUES`; NaN is left out. value: whose profile it is: it
    stands in the middle and takes no part in the fit; a row knows it. low, high: bounds, like y.
    """
    names, heights, own = _by_value(y)
    value = own if value is None else value
    if value is not None and value not in names:
        raise WorkbenchError(f"The profile of {value!r} was asked for.", allowed=", ".join(names))
    theta = angles(among=names)
    others = heights.copy()
    if value is not None:
        others[names.index(value)] = np.nan
    elevation, amplitude, displacement, r2 = cosine_profile(others, theta)
    middle = theta[names.index(value)] if value else np.pi

    def place(angle: Any) -> Any:
        return np.degrees((np.asarray(angle) - middle + np.pi - 1e-9) % (2 * np.pi) - np.pi + 1e-9)

    x, bounds = place(theta), [_by_value(b)[1] if b is not None else heights for b in (low, high)]
    turn = np.linspace(-180, 180, 181)
    curve = elevation + amplitude * np.cos(np.radians(turn) + middle - displacement)
    fig = Draft().add_scatter(
        x=turn, y=curve, mode="lines", line=dict(color=INK, width=2), name="cosine fit", hovertemplate=HOVER,
        hovertext=[f"cosine fit {c:.3f}" for c in curve],
    )  # fmt: skip
    fig.add_hline(y=elevation, line=dict(color=FAINT, dash="dash", width=1))
    peak = round(float(place(displacement))) or 0
    fig.add_shape(type="line", x0=peak, x1=peak, y0=elevation, y1=elevation + amplitude,
                  line=dict(color=MARK, dash="dot", width=2))  # fmt: skip
    fills = ["white" if name == value else colour_of(name) for name in names]
    said = [interval(a, b) if low is not None and high is not None else "" for a, b in zip(*bounds, strict=True)]
    fig.add_scatter(
        x=x, y=heights, mode="markers", name="values", hovertemplate=HOVER,
        marker=dict(size=12, color=fills, line=dict(color=INK, width=1.2)),
        error_y=dict(array=bounds[1] - heights, arrayminus=heights - bounds[0], color=INK, thickness=1.2, width=4,
                     visible=low is not None and high is not None),
        hovertext=[f"<b>{escape(n)}</b><br>{escape(measure)} {h:.3f}{t}{' (not fitted)' * (n == value)}"
                   for n, h, t in zip(names, heights, said, strict=True)],
    )  # fmt: skip
    fig.update_xaxes(tickvals=x, ticktext=[escape(n) for n in names], tickangle=-40, range=[-190, 190], showgrid=False)
    fig.update_yaxes(title_text=escape(measure))
    at = f"{peak:+}° from {escape(value)}" if value else f"{math.degrees(displacement):.0f}°"
    return finish(
        fig,
        f"{escape(measure)} round the circle{f', profile of {escape(value)}' if value else ''}".capitalize(),
        f"Cosine fit{f' without {escape(value)} itself' if value else ''}: elevation {elevation:.2f} (dashed), "
        f"amplitude {amplitude:.2f}, displacement {at} (dotted), R² {r2:.2f}.",
        height=440,
        showlegend=False,
    )


def _by_value(y: Any) -> tuple[list[str], np.ndarray, str | None]:
    """Names in circular order, their numbers, and the value whose row it is, if it says so."""
    own = None
    if isinstance(y, xr.DataArray):
        if y.ndim != 1 or y.dims[0] not in ("value", "other"):
            raise WorkbenchError("A profile round the circle was asked for.", found=f"dimensions {y.dims}",
                                 allowed="one row by value")  # fmt: skip
        own = next((str(y[k].values) for k in ("steered", "value") if k in y.coords and not y[k].ndim), None)
        held = dict(zip(y[y.dims[0]].values.tolist(), y.values.tolist(), strict=True))
        if y.dims[0] == "other":
            held[own] = math.nan  # its similarity with itself says nothing
    elif isinstance(y, dict | pd.Series):
        held = dict(y)
    else:
        held = dict(zip(VALUES, np.asarray(y, float), strict=True))
    order = next((known for known in (VALUES, VALUES19) if set(held) <= set(known)), None)
    if order is None:
        raise WorkbenchError("A profile round the circle was asked for.", found=", ".join(map(str, held)),
                             allowed="the ten values, or the nineteen")  # fmt: skip
    return list(order), np.array([float(held.get(name, math.nan)) for name in order]), own


def layer_geometry(scan: pd.DataFrame) -> go.Figure:
    """The table of `geometry.layer_scan`: index by layer, and the p of each layer as if named beforehand and as chosen.
    """
    fig = Draft.subplots(rows=2, shared_xaxes=True, vertical_spacing=0.14, row_heights=[0.55, 0.45])
    columns = ("layer", "ci", "spearman", "p", "p_selected")
    told = [f"layer {layer}<br>correspondence index {ci:.3f}<br>Spearman {spearman:.3f}<br>"
            f"{p_value(p)} named beforehand<br>{p_value(selected)} as the best of {len(scan)} layers"
            for layer, ci, spearman, p, selected in zip(*(scan[c].tolist() for c in columns), strict=True)]  # fmt: skip
    chosen = int(np.flatnonzero(scan["best"])[0])
    best = scan.iloc[chosen]
    for column, name, colour, dash, row in (
        ("ci", "correspondence index", INK, None, 1), ("spearman", "Spearman with closeness", METHODS[0], None, 1),
        ("p", "p, layer named beforehand", FAINT, "dot", 2), ("p_selected", "p, layer chosen by its fit", INK, None, 2),
    ):  # fmt: skip
        fig.add_scatter(x=scan["layer"], y=scan[column], mode="lines+markers", name=name, hovertext=told, row=row,
                        col=1, line=dict(color=colour, width=2.5, dash=dash), marker=dict(size=6), hovertemplate=HOVER,
                        legend="legend" if row == 1 else "legend2")  # fmt: skip
    fig.add_scatter(x=[best["layer"]], y=[best["ci"]], mode="markers", name="best layer", row=1, col=1,
                    hovertext=told[chosen], hovertemplate=HOVER,
                    marker=dict(size=15, color="rgba(0, 0, 0, 0)", line=dict(color=MARK, width=3)))  # fmt: skip
    fig.add_hline(y=0.05, line=dict(color=MARK, dash="dash", width=1), row=2, col=1)
    fig.add_annotation(x=1, xref="x2 domain", y=math.log10(0.05), yref="y2", xanchor="right", yanchor="bottom",
                       text=".05", showarrow=False, font=dict(color=MARK_TEXT))  # fmt: skip
    fig.add_hline(y=0, line=dict(color=FAINT, width=1), row=1, col=1)
    fig.update_xaxes(showgrid=False, dtick=max(1, len(scan) // 16))
    fig.update_xaxes(title_text="layer (output of the block)", row=2)
    fig.update_yaxes(title_text="index, correlation", row=1)
    least = math.floor(math.log10(min(scan["p"].min(), scan["p_selected"].min(), 0.01)))
    fig.update_yaxes(title_text="p (log scale)", type="log", range=[least - 0.2, 0.15], row=2,
                     tickvals=(powers := [10.0**k for k in range(least, 1)]),
                     ticktext=[f"{p:g}".lstrip("0") if p > 0.0009 else p_value(p)[10:] for p in powers])
    return finish(
        fig,
        "The circle layer by layer",
        f"Best at layer {int(best['layer'])}: correspondence index {best['ci']:.2f}, {p_value(best['p_selected'])} "
        f"with the choice among {len(scan)} layers inside the null, {p_value(best['p'])} had it been named beforehand.",
        height=520,
        above=22,
        legend=ABOVE,
        legend2=dict(orientation="h", x=1, xanchor="right", y=0.387, yanchor="bottom"),
    )
