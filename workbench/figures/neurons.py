"""Figures of MLP neurons: which were chosen for a value, how much of its probe they carry, which ones values share."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..neurons import Neurons
from .draft import Draft
from .style import FAINT, HOVER, INK, MARK, SEQUENTIAL, SHADE, colour_of, escape, finish, in_circle, p_value, source

_RULES = {  # column -> axis, what it is
    "s": ("contrast s (logits, log scale)", "Height: what the neuron adds to the difference of the probe's mean logit, "
          "positive minus negative texts"),
    "delta": ("delta", "Height: how much more often it is on under high than under low levels of the value"),
    "difference": ("mean difference", "Height: mean activation on positive minus on negative texts"),
    "entropy": ("entropy over values (nats)", "Height: entropy of how often it is on for each value; small: specific"),
    "write_norm": ("|W_out|", "Height: length of what it writes per unit of activation"),
}  # fmt: skip
_NUMBERS = {"s": "contrast s", "c": "effect c", "difference": "mean difference", "d": "Cohen's d", "delta": "delta",
            "entropy": "entropy", "write_norm": "|W_out|"}  # fmt: skip


def neuron_map(neurons: Neurons, picked: tuple[int, int] | None = None) -> go.Figure:
    """The chosen neurons of a value by layer and by the number of their rule; below, the share of the probe they carry.

    Within a layer they stand by their index. customdata of each mark: layer, neuron. picked: the one that is ringed.
    """
    table, layers, colour = neurons.table(), list(neurons.layers), colour_of(neurons.value)
    by = next((name for name in _RULES if name in table), "write_norm")
    index = {layer: k for k, layer in enumerate(layers)}  # layers stand side by side, also where some are left out
    x = table["layer"].map(index) + 0.84 * ((table["neuron"] + 0.5) / neurons.width - 0.5)
    size = np.clip(6 + 7 * table["d"].abs(), 8, 26) if "d" in table else np.full(len(table), 10.0)
    own = table["side"] > 0 if "side" in table else pd.Series(True, table.index)
    told = [
        f"<b>layer {int(row['layer'])}, neuron {int(row['neuron'])}</b>{', of the opposite pole' * (not mine)}<br>"
        + "<br>".join(f"{title} {row[name]:.3g}" for name, title in _NUMBERS.items() if name in table)
        for (_, row), mine in zip(table.iterrows(), own, strict=True)
    ]
    shares = neurons.share
    fig = Draft.subplots(2, 1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.7, 0.3]) if shares is not None \
        else Draft.subplots(1, 1)  # fmt: skip
    fig.add_scatter(
        x=x, y=table[by], mode="markers", hovertext=told, hovertemplate=HOVER, name="chosen neurons",
        customdata=table[["layer", "neuron"]].to_numpy().tolist(),
        marker=dict(size=size, color=[colour if mine else FAINT for mine in own], opacity=0.85,
                    line=dict(color=INK, width=1)), row=1, col=1,
    )  # fmt: skip
    at = (table["layer"] == picked[0]) & (table["neuron"] == picked[1]) if picked else pd.Series(False, table.index)
    ring = dict(color="rgba(0, 0, 0, 0)", line=dict(color=MARK, width=3))
    fig.add_scatter(x=x[at], y=table[by][at], mode="markers", hoverinfo="skip", name="picked", row=1, col=1,
                    marker=dict(ring, size=size[at] + 12))  # fmt: skip
    counts = table.groupby("layer").size().reindex(layers, fill_value=0)
    if shares is not None:
        carried = shares.sel(layer=layers).values
        fig.add_bar(
            x=list(range(len(layers))), y=carried, width=0.6, hovertemplate=HOVER, row=2, col=1,
            marker=dict(color=colour, line=dict(color=INK, width=0.6)), text=[f"{one:.1%}" for one in carried],
            textposition="outside", cliponaxis=False,
            hovertext=[f"layer {layer}: {counts[layer]} neurons carry {one:.2%} of the probe's mean logit difference"
                       for layer, one in zip(layers, carried, strict=True)],
        )  # fmt: skip
        low, high = min(0.0, float(carried.min())), max(0.0, float(carried.max()))
        room = 0.3 * (high - low or 0.01)
        fig.update_yaxes(title_text="share carried", tickformat=".0%" if high > 0.03 else ".1%", row=2, col=1,
                         range=[low - room * (low < 0), high + room])  # fmt: skip
    step = 1 if len(layers) <= 16 else 2
    fig.update_xaxes(range=[-0.5, len(layers) - 0.5], showgrid=False, ticks="")
    fig.update_xaxes(
        row=1 + (shares is not None), col=1, title_text="layer; below it, how many neurons were chosen there",
        tickvals=list(range(0, len(layers), step)), ticktext=[f"<b>{k}</b><br>{counts[k]}" for k in layers[::step]],
    )
    least, most = float(table[by].min()), float(table[by].max())
    if by == "s":  # of a layer or two, s is tens of times what it is elsewhere
        least, most = math.log10(max(least, most * 1e-6)), math.log10(most)
        fig.update_yaxes(type="log", dtick=1, row=1, col=1)
    room = 0.12 * (most - least) or 0.5
    fig.update_yaxes(title_text=_RULES[by][0], range=[least - room, most + room], row=1, col=1)
    shade = dict(type="rect", xref="x", yref="paper", y0=0, y1=1, layer="below", line_width=0, fillcolor=SHADE)
    sizes = " Large marks: large |Cohen's d|." if "d" in table else ""
    poles = "" if own.all() else " Grey: neurons of the opposite pole."
    share = " Below: what the set carries of the probe's mean logit difference at that layer." * (shares is not None)
    return finish(
        fig,
        f"{len(table):,} neurons for {escape(neurons.value)}, of {neurons.width * len(layers):,}",
        f"{source(neurons.provenance)}Chosen by {escape(neurons.rule, 60)}. {_RULES[by][1]}.{sizes}{poles}"
        f"{share} Click a mark to look at its neuron.",
        height=430 + 110 * (shares is not None),
        showlegend=False,
        shapes=[dict(shade, x0=k - 0.5, x1=k + 0.5) for k in range(0, len(layers), 2)],
    )


def neuron_overlaps(table: pd.DataFrame, value: str | None = None) -> go.Figure:
    """The table of `neurons.overlaps`: the Jaccard index of every two values' sets, beside what chance gives.

    Bold: more shared than by chance, at .05 over all pairs. value: whose row and column are framed.
    """
    names = in_circle(list(dict.fromkeys([*table["value"], *table["other"]])))
    shown, told = np.full((len(names), len(names)), np.nan), [[""] * len(names) for _ in names]
    texts = [[""] * len(names) for _ in names]
    for row in table.itertuples():
        said = (f"<b>{escape(row.value)}</b> and <b>{escape(row.other)}</b><br>{row.shared} neurons in both<br>Jaccard "
                f"{row.jaccard:.3f}, by chance {row.expected:.3f}<br>{p_value(_float(row.p))}")  # fmt: skip
        number = f"{row.jaccard:.2f}".replace("0.", ".")
        number = "0" if row.shared == 0 else f"<b>{number}</b>" if _float(row.p) <= 0.05 / len(table) else number
        a, b = names.index(str(row.value)), names.index(str(row.other))
        for i, j in ((a, b), (b, a)):
            shown[i, j], told[i][j], texts[i][j] = row.jaccard, said, number
    labels = [escape(name) for name in names]
    fig = Draft()
    fig.add_heatmap(
        z=shown, x=labels, y=labels, coloraxis="coloraxis", xgap=2, ygap=2, hoverongaps=False, hovertemplate=HOVER,
        hovertext=told, text=texts, texttemplate="%{text}", textfont=dict(size=12, color=INK),
        customdata=[[name] * len(names) for name in names],
    )  # fmt: skip
    if value in names:
        at, line = names.index(value), dict(color=MARK, width=2.5)
        ends = [-0.5, len(names) - 0.5]
        fig.add_shape(type="rect", x0=ends[0], x1=ends[1], y0=at - 0.5, y1=at + 0.5, line=line)
    fig.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    fig.update_xaxes(showgrid=False, ticks="", tickangle=-40)
    chance = float(table["expected"].mean())
    return finish(
        fig,
        "Neurons that the sets of two values share",
        f"Jaccard index: in both over in either; sets drawn at random within each layer share {chance:.3f} on average. "
        f"Bold: more than by chance (exact, p ≤ .05 over {len(table)} pairs). Click a row to take its value.",
        height=500,
        coloraxis=dict(colorscale=SEQUENTIAL, cmin=0, cmax=max(float(table["jaccard"].max()), 0.05),
                       colorbar_title_text="Jaccard"),
    )  # fmt: skip


def neuron_responses(
    d: Mapping[str, float], layer: int, neuron: int, value: str | None = None, least: float | None = None
) -> go.Figure:
    """Cohen's d of one neuron on the pairs of each value, as `neuron_contrasts` has it.

    value: whose bar is framed. least: the |d| that a selection asks for, dashed.
    """
    names = in_circle(list(d))
    sizes = [float(d[name]) for name in names]
    fig = Draft()
    fig.add_bar(
        x=[escape(name) for name in names], y=sizes, hovertemplate=HOVER,
        marker=dict(color=[colour_of(name) for name in names],
                    line=dict(color=[MARK if name == value else INK for name in names],
                              width=[3 if name == value else 0.8 for name in names])),
        hovertext=[f"<b>{escape(name)}</b><br>Cohen's d {size:.3f}" for name, size in zip(names, sizes, strict=True)],
    )  # fmt: skip
    fig.add_hline(y=0, line=dict(color=FAINT, width=1))
    for at in (least, -least) if least else ():
        fig.add_hline(y=at, line=dict(color=MARK, width=1.5, dash="dash"))
    fig.update_xaxes(showgrid=False, ticks="", tickangle=-40)
    fig.update_yaxes(title_text="Cohen's d")
    bar = f"; dashed: the bar, ±{least:g}" if least else ""
    lines = ["How far its activation on positive texts lies above that on", f"negative ones, by value{bar}."]
    return finish(
        fig, f"Layer {layer}, neuron {neuron}: which values move it", "", height=400, showlegend=False, bargap=0.3,
        margin=dict(t=56 + 18 * len(lines), b=50, l=20, r=20), title_subtitle_text="<br>".join(lines),
    )  # fmt: skip


def _float(number: Any) -> float:
    return float(number)
