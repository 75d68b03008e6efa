"""Figures of the probe explorer: all probes at a glance, and one of them up close."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from .draft import Draft
from .style import ABOVE, FAINT, HOVER, INK, MARK, MEAN, METHODS, SEQUENTIAL, escape, finish, in_circle, readable, tint

CROWDED = 16  # layers from which numbers in the cells would touch: a colour bar says instead


def probe_grid(
    accuracy: xr.DataArray, value: str, layer: int, *, bounds: xr.DataArray, tfidf: xr.DataArray, n: dict[str, int],
    how: str,
) -> go.Figure:  # fmt: skip
    """Out-of-fold accuracy (value, layer) as a map, the probe that is looked at framed; NaN cells stay blank.

    bounds (value, layer, bound): its 95 % interval. tfidf (value): what words alone give, beside it; all three name
    their values in one order. n: texts of each value. how: the model, and how the probes were fitted, in words.
    """
    given, layers = [str(v) for v in accuracy["value"].values], accuracy["layer"].values.tolist()
    values = in_circle(given)
    order = [given.index(v) for v in values]
    rates, ends, words = accuracy.values[order], bounds.values[order], tfidf.values[order]
    means = np.where(np.isnan(rates).any(0), np.nan, rates.mean(0))
    names = [*map(escape, values), MEAN]
    hovers = [
        [f"<b>{escape(v)}</b>, layer {at}<br>"
         + ("not refitted yet" if np.isnan(rate) else
            f"accuracy {rate:.3f}, 95 % interval {low:.3f} to {high:.3f}<br>{n[v]} texts, out of fold")
         for at, rate, (low, high) in zip(layers, rates[i], ends[i], strict=True)]
        for i, v in enumerate(values)
    ]  # fmt: skip
    fig = Draft.subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.03, column_widths=[len(layers), 1.3])
    look = dict(y=names, coloraxis="coloraxis", xgap=2, ygap=2, hovertemplate=HOVER, textfont=dict(size=12, color=INK))
    fig.add_heatmap(
        z=np.vstack([rates, means]), x=[str(at) for at in layers], row=1, col=1, **look,
        texttemplate=None if len(layers) >= CROWDED else "%{z:.2f}",
        hovertext=[*hovers, [f"layer {at}: mean of {len(values)} values" + ("" if np.isnan(mean) else f" {mean:.3f}")
                             for at, mean in zip(layers, means, strict=True)]],
    )  # fmt: skip
    fig.add_heatmap(
        z=np.r_[words, words.mean()][:, None], x=["words"], row=1, col=2, texttemplate="%{z:.2f}", **look,
        hovertext=[[f"<b>{escape(v)}</b>, words alone (TF-IDF), same folds<br>accuracy {rate:.3f}"]
                   for v, rate in zip(values, words, strict=True)] + [[f"mean {words.mean():.3f}"]],
    )  # fmt: skip
    i, j, crowded = values.index(value), layers.index(layer), len(layers) >= CROWDED
    fig.add_shape(type="rect", x0=j - 0.5, x1=j + 0.5, y0=i - 0.5, y1=i + 0.5, line=dict(color=MARK, width=3))
    fig.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    fig.update_xaxes(showgrid=False, ticks="", type="category")
    fig.update_xaxes(title_text="layer (output of the block)", col=1)
    return finish(
        fig,
        "Accuracy of every probe",
        f"{escape(how, 200)} Out of fold; chance is .5, whatever is below has its colour. Words: TF-IDF.",
        height=150 + 29 * len(names),
        width=900 if crowded else 430,  # of the subtitle's lines only
        coloraxis=dict(colorscale=SEQUENTIAL, cmin=0.5, cmax=1, showscale=crowded, colorbar_title_text="accuracy"),
    ).update_layout(width=None)


def probe_reading(
    logits: np.ndarray, positive: np.ndarray, curve: tuple[np.ndarray, np.ndarray], *, value: str, layer: int,
    auroc: float, bounds: tuple[float, float], told: str,
) -> go.Figure:  # fmt: skip
    """One probe's held-out logits (text), of positives and of negatives, and its ROC.

    positive (text, bool); curve: false positive and true positive rates of all thresholds; auroc, bounds: with its 95 %
    interval; told: the subtitle.
    """
    fig = Draft.subplots(cols=2, column_widths=[0.6, 0.4], horizontal_spacing=0.11)
    low, high = float(logits.min()), float(logits.max())
    width = max(high - low, 1e-9) / np.clip(2 * np.sqrt(len(logits)), 12, 40)
    edges = width * np.arange(np.floor(low / width), np.ceil(high / width) + 1.5)  # 0 is one of them
    for side, name, colour in ((False, "negatives", readable("#d98200")), (True, "positives", METHODS[0])):
        own = logits[positive == side]
        counts = np.histogram(own, edges)[0]
        some = counts > 0
        right = int(((own > 0) == side).sum())
        fig.add_bar(
            x=(edges[:-1] + edges[1:])[some] / 2, y=counts[some] / len(own), width=width, row=1, col=1,
            name=f"{name}, n = {len(own)}", hovertemplate=HOVER,
            marker=dict(color=tint(colour, 0.55), line=dict(color=colour, width=1)),
            hovertext=[f"{count} of {len(own)} {name}<br>{right} of them are on their side of 0"
                       for count in counts[some]],
        )  # fmt: skip
    fig.add_vline(x=0, line=dict(color=INK, width=1.5, dash="dash"), row=1, col=1)
    alarms, hits = curve
    fig.add_scatter(x=alarms, y=hits, mode="lines", line=dict(color=METHODS[0], width=3), row=1, col=2,
                    showlegend=False, fill="tozeroy", fillcolor=tint(METHODS[0], 0.12), hovertemplate=HOVER,
                    hovertext=[f"{h:.1%} of positives above, {a:.1%} of negatives"
                               for a, h in zip(alarms, hits, strict=True)])  # fmt: skip
    fig.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=dict(color=FAINT, width=1, dash="dash"), hovertext="chance",
                    hovertemplate=HOVER, showlegend=False, row=1, col=2)  # fmt: skip
    at = [float(np.mean(logits[positive == side] > 0)) for side in (False, True)]
    fig.add_scatter(x=at[:1], y=at[1:], mode="markers", marker=dict(color=MARK, size=11, line=dict(color=INK, width=1)),
                    hovertext=f"at 0: {at[1]:.1%} of positives above, {at[0]:.1%} of negatives", hovertemplate=HOVER,
                    showlegend=False, cliponaxis=False, row=1, col=2)  # fmt: skip
    fig.add_annotation(x=0.97, y=0.06, xref="x2 domain", yref="y2 domain", xanchor="right", yanchor="bottom",
                       showarrow=False, align="right", font=dict(size=14),
                       text=f"AUROC <b>{auroc:.3f}</b><br>{bounds[0]:.3f} to {bounds[1]:.3f}<br>chance .5")  # fmt: skip
    fig.update_xaxes(title_text="held-out logit (right of 0: taken for positive)", row=1, col=1)
    fig.update_yaxes(title_text="share of texts", rangemode="tozero", row=1, col=1)
    fig.update_xaxes(title_text="negatives above threshold", range=[-0.02, 1.02], row=1, col=2)
    fig.update_yaxes(title_text="positives above threshold", range=[-0.02, 1.02], row=1, col=2)
    return finish(
        fig,
        f"{escape(value)} at layer {layer}",
        told,
        height=469,
        width=450,  # of the subtitle's lines only
        above=26,
        barmode="overlay",
        bargap=0,
        legend=dict(ABOVE, x=0, xanchor="left"),
    ).update_layout(width=None)
