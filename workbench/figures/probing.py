"""Figures of probes: how well they read, and how they read one another's pairs."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from ..errors import WorkbenchError
from ..probes import Probes
from ..rates import wilson
from ..values import VALUES
from .draft import Draft
from .style import (
    COLOURS,
    FAINT,
    HOVER,
    INK,
    MARK,
    MARK_TEXT,
    MEAN,
    SEQUENTIAL,
    escape,
    finish,
    in_circle,
    interval,
    source,
)


def probe_accuracy(probes: Probes, held_out: xr.DataArray | None = None) -> go.Figure:
    """Out-of-fold accuracy of each value's probe at each layer, the chosen layer framed, TF-IDF beside it.

    held_out: accuracy (value) on pairs that no fold has seen, as `probes.accuracy_on` returns it: one more column.
    """
    values, pairs = in_circle(probes.values), probes.provenance.get("n_pairs", {})
    layers, n = [str(layer) for layer in probes.layers], [2 * pairs.get(value, 0) for value in values]
    accuracy, bounds = probes.accuracy.sel(value=values).values, probes.intervals.sel(value=values).values
    widths = [len(layers), 1.3 if held_out is None else 2.6]
    fig = Draft.subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.03, column_widths=widths)

    def hover(i: int, where: str, rate: float, bounds: Sequence[float] = (np.nan, np.nan), texts: int = 0) -> str:
        counted = f"<br>{texts} texts of {texts // 2} pairs" if texts else ""
        return f"<b>{escape(values[i])}</b>, {where}<br>accuracy {rate:.3f}{interval(*bounds)}{counted}"

    def add(table: np.ndarray, columns: Sequence[str], hovers: list[list[str]], col: int) -> None:
        table = np.vstack([table, table.mean(0)])
        last = [f"mean of {len(values)} values: {rate:.3f}" for rate in table[-1]]
        fig.add_heatmap(
            z=table, x=columns, y=[*map(escape, values), MEAN], coloraxis="coloraxis", xgap=2, ygap=2,
            hovertext=[*hovers, last], hovertemplate=HOVER, texttemplate="%{z:.2f}", textfont=dict(size=11, color=INK),
            row=1, col=col,
        )  # fmt: skip

    add(accuracy, layers, [
        [hover(i, f"layer {layer}, out of fold", rate, bounds[i, j], n[i])
         for j, (layer, rate) in enumerate(zip(layers, accuracy[i], strict=True))]
        for i in range(len(values))
    ], 1)  # fmt: skip
    words = probes.tfidf.sel(value=values).values
    beside = [("TF-IDF", words, [
        hover(i, "words alone (TF-IDF), same folds", rate, wilson(rate, n[i]), n[i]) for i, rate in enumerate(words)
    ])]  # fmt: skip
    if held_out is not None:
        unseen, at = held_out.reindex(value=values).values, int(held_out["layer"])
        hovers = [hover(i, f"unseen pairs, layer {at}", rate) for i, rate in enumerate(unseen)]
        beside.append((f"held out,<br>layer {at}", unseen, hovers))
    names, columns, texts = zip(*beside, strict=True)
    add(np.stack(columns, 1), names, [list(row) for row in zip(*texts, strict=True)], 2)

    try:
        at = probes.layers.index(probes.choose_layer())
        frame = dict(x0=at - 0.5, x1=at + 0.5, y0=-0.5, y1=len(values) + 0.5)
        fig.add_shape(type="rect", line=dict(color=MARK, width=3), **frame)
        fig.add_annotation(x=at, y=-0.5, yshift=10, text="chosen", showarrow=False, font=dict(color=MARK_TEXT, size=12))
    except WorkbenchError:  # probes of the last layers only: none can be chosen
        pass
    fig.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    fig.update_xaxes(showgrid=False, ticks="", type="category")
    fig.update_xaxes(title_text="layer (output of the block)", col=1)
    return finish(
        fig,
        f"Probe accuracy by value and layer: {escape(probes.method).replace('_', ' ')}",
        f"{source(probes.provenance)}Out of fold, residual stream at the last token. Chance is .5; whatever is below "
        "has its colour. TF-IDF: what words alone give.",
        height=170 + 34 * (len(values) + 1),
        above=16,
        coloraxis=dict(colorscale=SEQUENTIAL, cmin=0.5, cmax=1, colorbar_title_text="accuracy"),
    )


def transfer_by_step(probes: Probes, layer: int | None = None, trap: Probes | None = None) -> go.Figure:
    """Accuracy of each value's probe on every value's pairs, by the steps between the two round the circle.

    A probe that reads its value falls with the step; one that reads "affirmed or denied" does not. layer: None takes
    the chosen one. trap: probes to be shown beside, such as those of polarity pairs.
    """
    layer = probes.choose_layer() if layer is None else layer
    names = [] if trap is None else ["value-balanced pairs", "polarity pairs: the trap"]
    fig = Draft.subplots(cols=1 + bool(names), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=names)
    fig.update_annotations(font_size=13)
    for col, shown in enumerate([probes] if trap is None else [probes, trap], 1):
        table, pairs = shown.transfer_by_step(layer), shown.provenance.get("n_pairs", {})
        place = dict(hovertemplate=HOVER, showlegend=col == 1, row=1, col=col)
        for name, own in table.groupby("probe", sort=False):
            value = str(name)
            aside = (VALUES.index(value) - 4.5) / 4.5 * 0.28  # dots of one step stand side by side, in circular order
            hovers = [
                f"probe of <b>{value}</b> on pairs of <b>{w}</b><br>{step} steps apart: accuracy {rate:.3f}"
                + (" (out of fold)" if step == 0 else "")
                + (interval(*wilson(rate, 2 * pairs[w])) + f"<br>{2 * pairs[w]} texts" if w in pairs else "")
                for w, step, rate in zip(own["pairs"], own["step"], own["accuracy"], strict=True)
            ]
            mark = dict(color=COLOURS[value], size=8, line=dict(color=INK, width=0.6))
            fig.add_scatter(x=own["step"] + aside, y=own["accuracy"], mode="markers", name=value, legendgroup=value,
                            marker=mark, hovertext=hovers, **place)  # fmt: skip
        rates = [table.loc[table["step"] == step, "accuracy"] for step in range(6)]
        mean = [float(own.mean()) for own in rates]
        hovers = [f"{step} steps apart: mean of {len(rates[step])} dots {mean[step]:.3f}" for step in range(6)]
        fig.add_scatter(x=list(range(6)), y=mean, mode="lines+markers", name="mean", legendgroup="mean",
                        line=dict(color=INK, width=2.5), marker=dict(size=9, symbol="diamond"), hovertext=hovers,
                        **place)  # fmt: skip
    fig.add_hline(y=0.5, line=dict(color=FAINT, dash="dash", width=1))
    fig.add_annotation(x=1, xref="x domain", y=0.5, yshift=9, xanchor="right", text="chance", showarrow=False,
                       font=dict(color=FAINT))  # fmt: skip
    fig.update_xaxes(title_text="steps round the circle, from the probe's value to the pairs'", tickvals=list(range(6)),
                     range=[-0.5, 5.5], showgrid=False)  # fmt: skip
    fig.update_yaxes(range=[-0.03, 1.03])
    fig.update_yaxes(title_text="accuracy", col=1)
    return finish(
        fig,
        f"Transfer: each value's probe on every value's pairs, layer {layer}",
        f"{source(probes.provenance)}One dot per probe and set of pairs, coloured by the probe's value. Below .5 a "
        "probe takes the other value's pairs for the opposite of its own.",
        height=480,
        above=16 * len(names),
        legend_title_text="probe of",
    )
