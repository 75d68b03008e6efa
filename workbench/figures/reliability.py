"""Figures of how far probes can be trusted: beside their controls, their calibration, other blocks of pairs."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from scipy.special import expit

from ..errors import WorkbenchError
from ..probes import Probes
from ..rates import wilson
from .draft import Draft
from .style import (
    ABOVE,
    BARS,
    CONTROLS,
    FAINT,
    HOVER,
    INK,
    MARK,
    METHODS,
    SEQUENTIAL,
    SHADE,
    colour_of,
    escape,
    finish,
    in_circle,
    interval,
    readable,
    source,
    tint,
)

_MEASURES = {"accuracy": ("accuracy", "intervals"), "auroc": ("AUROC", "auroc_intervals")}


def layer_curves(
    probes: Probes, controls: xr.DataArray | None = None, *, threshold: float = 0.9, measure: str = "accuracy"
) -> go.Figure:
    """How well the values are read at each layer, in bold the mean over values; behind it what controls reach.

    controls: accuracy (control, draw, value, layer) as `probe_controls` returns it: a band from the 2.5 % to the
    97.5 % of all draws and values, a dashed line at their mean. Words alone (TF-IDF) have no layer: a line across.
    Controls and TF-IDF are accuracies and stand beside accuracy only. threshold: of `probes.choose_layers`, whose
    layers are shaded. measure: "accuracy" or "auroc", both out of fold.

    The interval of the mean combines those of the values as independent (MOVER, Zou and Donner 2008).
    """
    if measure not in _MEASURES:
        raise WorkbenchError(f"Layer curves of {measure!r} were asked for.", allowed=", ".join(_MEASURES))
    name, bounds = _MEASURES[measure]
    values, layers = in_circle(probes.values), probes.layers
    pairs = probes.provenance.get("n_pairs", {})
    rates = getattr(probes, measure).sel(value=values).transpose("value", "layer").values
    ends = getattr(probes, bounds).sel(value=values).transpose("value", "layer", "bound").values
    fig = Draft()
    if measure == "accuracy":
        for control, colour, drawn in _given(controls):
            own = drawn.sel(layer=layers).transpose("layer", ...).values.reshape(len(layers), -1)
            low, mean, high = np.nanquantile(own, 0.025, 1), np.nanmean(own, 1), np.nanquantile(own, 0.975, 1)
            n = np.isfinite(own).sum(1)
            fig.add_scatter(x=[*layers, *layers[::-1]], y=[*high, *low[::-1]], fill="toself", line_width=0,
                            mode="lines", fillcolor=tint(colour, 0.15), hoverinfo="skip", legendgroup=control,
                            showlegend=False)  # fmt: skip
            fig.add_scatter(
                x=layers, y=mean, mode="lines", line=dict(color=colour, width=2, dash="dash"), name=escape(control, 40),
                legendgroup=control, hovertemplate=HOVER,
                hovertext=[f"{escape(control, 40)}, layer {at}<br>mean {m:.3f}<br>95 % of {k} draws and values "
                           f"{a:.3f} to {b:.3f}" for at, m, a, b, k in zip(layers, mean, low, high, n, strict=True)],
            )  # fmt: skip
        words = float(probes.tfidf.mean())
        fig.add_scatter(
            x=[layers[0] - 0.5, layers[-1] + 0.5], y=[words] * 2, mode="lines", name="TF-IDF", hovertemplate=HOVER,
            line=dict(color=CONTROLS["TF-IDF"], width=2, dash="dot"),
            hovertext=f"words alone (TF-IDF), mean of {len(values)} values: {words:.3f}",
        )  # fmt: skip
    for i, value in enumerate(values):
        texts = f"<br>{2 * pairs[value]} texts of {pairs[value]} pairs" if value in pairs else ""
        fig.add_scatter(
            x=layers, y=rates[i], mode="lines", line=dict(color=readable(colour_of(value)), width=1),
            name=escape(value), legendgroup="each", legendgrouptitle_text="each value", hovertemplate=HOVER,
            hovertext=[f"<b>{escape(value)}</b>, layer {at}<br>{name} {rate:.3f}{interval(*ends[i, j])}{texts}"
                       for j, (at, rate) in enumerate(zip(layers, rates[i], strict=True))],
        )  # fmt: skip
    mean = rates.mean(0)
    low = mean - np.sqrt(((rates - ends[..., 0]) ** 2).sum(0)) / len(values)
    high = mean + np.sqrt(((ends[..., 1] - rates) ** 2).sum(0)) / len(values)
    fig.add_scatter(
        x=layers, y=mean, mode="lines+markers", name=f"mean of {len(values)} values", line=dict(color=INK, width=3),
        legendrank=1,
        marker=dict(size=7), hovertemplate=HOVER, error_y=dict(array=high - mean, arrayminus=mean - low, color=INK,
                                                               thickness=1.5, width=3),
        hovertext=[f"layer {at}<br>mean {name} of {len(values)} values {m:.3f}{interval(a, b)}"
                   for at, m, a, b in zip(layers, mean, low, high, strict=True)],
    )  # fmt: skip
    try:
        chosen = probes.choose_layers(threshold)
        told = f"Shaded: {chosen.reason}."
    except WorkbenchError as error:
        chosen, told = [], f"No layer has a mean accuracy above {threshold:g}: {error.found}."
    fig.add_hline(y=0.5, line=dict(color=FAINT, dash="dash", width=1), annotation=dict(
        text="chance", font=dict(color=FAINT)), annotation_position="bottom right")  # fmt: skip
    shade = dict(type="rect", xref="x", yref="paper", y0=0, y1=1, layer="below", line_width=0, fillcolor=SHADE)
    step = max(1, -(-len(layers) // 20))
    fig.update_xaxes(title_text="layer (output of the block)", showgrid=False, tickvals=layers[::step],
                     range=[layers[0] - 0.5, layers[-1] + 0.5])  # fmt: skip
    fig.update_yaxes(title_text=f"{name}, out of fold")
    return finish(
        fig,
        f"{name[0].upper()}{name[1:]} of the probes by layer: {escape(probes.method).replace('_', ' ')}",
        f"{source(probes.provenance)}{told} Bars: 95 % intervals of the mean."
        + " Bands: 95 % of a control's draws and values." * (controls is not None and measure == "accuracy"),
        height=520,
        shapes=[*fig.layout.shapes, *(dict(shade, x0=at - 0.5, x1=at + 0.5) for at in chosen)],
        legend=dict(traceorder="grouped", groupclick="toggleitem"),
    )


def _given(controls: xr.DataArray | None) -> list[tuple[str, str, xr.DataArray]]:
    """Each control's name, colour and accuracies (draw, value, layer); WorkbenchError for other dimensions."""
    if controls is None:
        return []
    wanted = ("control", "draw", "value", "layer")
    if sorted(map(str, controls.dims)) != sorted(wanted):
        raise WorkbenchError("Controls were to be drawn.", found=f"dimensions {controls.dims}",
                             allowed=f"{wanted}, as probe_controls returns them")  # fmt: skip
    others = iter(map(readable, METHODS * controls.sizes["control"]))
    names = [str(name) for name in controls["control"].values]
    return [(name, CONTROLS.get(name) or next(others), controls.isel(control=i)) for i, name in enumerate(names)]


def calibration_curve(probes: Probes, layer: int | None = None, *, bins: int = 10) -> go.Figure:
    """Is P what it says? Share of positives among texts by the probability their value's probe gives them, out of fold.

    Texts of all values together, in `bins` equal bins of P = sigmoid(held-out logit), each at its mean P with a Wilson
    interval; below, how many texts lie where. layer: None takes the chosen one.
    """
    layer = probes.choose_layer() if layer is None else layer
    if layer not in probes.layers:
        raise WorkbenchError(f"Calibration at layer {layer} was asked for.", allowed=f"layers {probes.layers}")
    p = expit(probes.held_out.sel(layer=layer).values.astype(np.float64))
    positive = probes.examples["positive"].to_numpy(bool)
    edges = np.linspace(0, 1, bins + 1)
    home = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, bins - 1)
    n = np.bincount(home, minlength=bins)
    some = np.flatnonzero(n)
    said, share = (np.bincount(home, what, bins)[some] / n[some] for what in (p, positive))
    ends = np.array([wilson(rate, count) for rate, count in zip(share, n[some], strict=True)])
    fig = Draft.subplots(rows=2, shared_xaxes=True, vertical_spacing=0.04, row_heights=[0.72, 0.28])
    fig.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=dict(color=FAINT, dash="dash", width=1), hoverinfo="skip",
                    showlegend=False, row=1, col=1)  # fmt: skip
    fig.add_scatter(
        x=said, y=share, mode="lines+markers", line=dict(color=METHODS[0], width=2), hovertemplate=HOVER,
        marker=dict(size=8), showlegend=False, row=1, col=1,
        error_y=dict(array=ends[:, 1] - share, arrayminus=share - ends[:, 0], color=METHODS[0], thickness=1.5, width=4),
        hovertext=[f"P from {edges[b]:.2g} to {edges[b + 1]:.2g}, mean {x:.3f}<br>positives: {y:.3f}{interval(*end)}"
                   f"<br>{n[b]} texts" for b, x, y, end in zip(some, said, share, ends, strict=True)],
    )  # fmt: skip
    for name, which, colour in (("negative texts", ~positive, BARS), ("positive texts", positive, METHODS[0])):
        counts = np.bincount(home[which], minlength=bins)
        fig.add_bar(x=(edges[:-1] + edges[1:]) / 2, y=counts, width=1 / bins, name=name, hovertemplate=HOVER,
                    marker=dict(color=colour, line=dict(color="white", width=1)), row=2, col=1,
                    hovertext=[f"{count} of {which.sum()} {name}<br>P from {edges[b]:.2g} to {edges[b + 1]:.2g}"
                               for b, count in enumerate(counts)])  # fmt: skip
    fig.update_xaxes(range=[-0.02, 1.02])
    fig.update_xaxes(title_text="P of the text's value, from the fit that did not see its fold", row=2)
    fig.update_yaxes(title_text="share of positive texts", range=[-0.03, 1.03], row=1)
    fig.update_yaxes(title_text="texts", row=2)
    brier, error = (float(scores.sel(layer=layer).mean()) for scores in (probes.brier, probes.calibration_error))
    return finish(
        fig,
        f"Calibration of the probes at layer {layer}: {escape(probes.method).replace('_', ' ')}",
        f"{source(probes.provenance)}Brier score {brier:.3f}, calibration error {error:.3f}, means over "
        f"{len(probes.values)} values; {len(p)} texts. Above the dashed line a probe says too little, below it too "
        "much. Bars: 95 % Wilson intervals.",
        height=560,
        width=720,
        above=22,
        barmode="stack",
        bargap=0,
        legend=ABOVE,
    )


def generalisation(table: xr.DataArray, *, layer: int | None = None) -> go.Figure:
    """Probes fitted on one block of pairs, on another: mean accuracy over values at one layer, and by layer.

    table: accuracy (value, layer, train, test), as `PairActivations.generalise` returns it. layer: None takes the one
    of best mean accuracy within blocks (train and test alike), ties to the later.
    """
    wanted = ("value", "layer", "train", "test")
    if sorted(map(str, table.dims)) != sorted(wanted):
        raise WorkbenchError("Generalisation across blocks was to be drawn.", found=f"dimensions {table.dims}",
                             allowed=", ".join(wanted))  # fmt: skip
    table = table.transpose(*wanted)
    layers, blocks = ([int(at) for at in table["layer"].values], [str(name) for name in table["train"].values])
    tests = [str(name) for name in table["test"].values]
    mean, least = table.mean("value").values, table.min("value").values
    same = np.array([[a == b for b in tests] for a in blocks])
    within, across = (np.nanmean(mean[:, which], 1) if which.any() else None for which in (same, ~same))
    if layer is None:
        best = np.nanmean(mean, (1, 2)) if within is None else within
        layer = layers[np.flatnonzero(best >= np.nanmax(best) - 1e-12)[-1]]
    if layer not in layers:
        raise WorkbenchError(f"Generalisation at layer {layer} was asked for.", allowed=f"layers {layers}")
    at, of = layers.index(layer), f"mean of {table.sizes['value']} values"
    fig = Draft.subplots(cols=2, column_widths=[0.4, 0.6], horizontal_spacing=0.16)
    rows, columns = ([escape(name, 30) for name in names] for names in (blocks, tests))
    fig.add_heatmap(
        z=mean[at], x=columns, y=rows, coloraxis="coloraxis", xgap=2, ygap=2, texttemplate="%{z:.2f}",
        textfont=dict(color=INK, size=13), hovertemplate=HOVER, row=1, col=1,
        hovertext=[[f"fitted on <b>{a}</b>, read on <b>{b}</b>, layer {layer}<br>accuracy {mean[at, i, j]:.3f}, {of}"
                    f"<br>lowest value {least[at, i, j]:.3f}" for j, b in enumerate(columns)]
                   for i, a in enumerate(rows)],
    )  # fmt: skip
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            fig.add_scatter(
                x=layers, y=mean[:, i, j], mode="lines", showlegend=False, hovertemplate=HOVER, row=1, col=2,
                line=dict(color=INK if same[i, j] else MARK, width=0.8),
                hovertext=[f"fitted on <b>{a}</b>, read on <b>{b}</b>, layer {k}<br>accuracy {x:.3f}, {of}"
                           for k, x in zip(layers, mean[:, i, j], strict=True)],
            )  # fmt: skip
    for name, y, colour in (("same block", within, INK), ("another block", across, MARK)):
        if y is not None:
            fig.add_scatter(x=layers, y=y, mode="lines+markers", name=name, line=dict(color=colour, width=3), row=1,
                            col=2, marker=dict(size=6), hovertemplate=HOVER,
                            hovertext=[f"{name}, layer {k}<br>mean accuracy {x:.3f}"
                                       for k, x in zip(layers, y, strict=True)])  # fmt: skip
    fig.add_vline(x=layer, line=dict(color=FAINT, dash="dot", width=1), row=1, col=2)
    fig.add_hline(y=0.5, line=dict(color=FAINT, dash="dash", width=1), row=1, col=2)
    fig.update_xaxes(title_text="read on", showgrid=False, ticks="", row=1, col=1)
    fig.update_yaxes(title_text="fitted on", autorange="reversed", showgrid=False, ticks="", row=1, col=1)
    fig.update_xaxes(title_text="layer (output of the block)", showgrid=False, dtick=max(1, len(layers) // 10), row=1,
                     col=2)  # fmt: skip
    fig.update_yaxes(title_text="mean accuracy", row=1, col=2)
    return finish(
        fig,
        f"Probes fitted on one block of pairs, on another: layer {layer}",
        f"Mean accuracy over {table.sizes['value']} values; chance is .5 (dashed). Within a block: out of fold. Thin "
        "lines: each way from block to block.",
        height=400,
        above=22,
        legend=ABOVE,
        coloraxis=dict(colorscale=SEQUENTIAL, cmin=0.5, cmax=1, showscale=False),
    )
