"""Figures of gates and steering: who is steered, what the probes read then, what the answers become."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr
from scipy.special import logit

from ..gates import ThresholdGate
from ..rates import wilson
from ..values import VALUES
from .draft import Draft
from .style import (
    ABOVE,
    COLOURS,
    FAINT,
    HOVER,
    INK,
    MARK,
    MEAN,
    METHODS,
    SHADE,
    escape,
    finish,
    in_circle,
    interval,
    readable,
    tint,
)

_CUT = 1e-6
_TICKS = {
    1e-6: "10⁻⁶", 1e-4: "10⁻⁴", 0.01: ".01", 0.1: ".1", 0.5: ".5", 0.9: ".9", 0.99: ".99", 1 - 1e-4: "1 − 10⁻⁴",
    1 - 1e-6: "1 − 10⁻⁶",
}  # fmt: skip


def _logit(p: Any) -> np.ndarray:
    return logit(np.clip(np.asarray(p, np.float64), _CUT, 1 - _CUT))


# Kinds of `load_unrelated`, natural and embedded, that are easily taken for the other side; in the order of their rows.
_HARD = {"technical choice": "unrelated dilemmas", "colour": "unrelated dilemmas", "hard": "hard unrelated",
         "word": "hard unrelated", "value-laden": "value-laden, no dilemma", "plan": "value-laden, no dilemma",
         "dilemmas": "dilemmas"}  # fmt: skip


def gate_histogram(gate: ThresholdGate, kinds: pd.DataFrame | None = None) -> go.Figure:
    """Out-of-fold scores of the prompts that a gate was fitted on, related and unrelated, with its threshold.

    kinds: table with prompt and kind (as `load_unrelated` returns): below, a row of dots per kind, each a prompt, and
    the share that opens the gate; hard unrelated prompts, dilemmas about nothing of value and value-laden prompts that
    are no dilemmas stand next to the line between the sides. Prompts that the gate was not fitted on are shown where
    the table has their `score` too: kinds.assign(score=gate.scores(kinds["prompt"])).
    """
    probable, rates = gate.scale == "probability", gate.rates
    at, said = (_logit, "score" if gate.layer is None else "P(related)") if probable else (np.asarray, "cosine")
    table = pd.DataFrame(gate.oof)
    scattered, levels = table.assign(kind=""), []
    if kinds is not None:
        known = dict(zip(kinds["prompt"], kinds["kind"], strict=True))
        unknown = np.where(table["related"], "dilemmas", "other")
        scattered["kind"] = [known.get(prompt, kind) for prompt, kind in zip(table["prompt"], unknown, strict=True)]
        if "score" in kinds:
            scattered = pd.concat([scattered, kinds[~kinds["prompt"].isin(table["prompt"])]])
        names = list(_HARD.values())
        scattered["kind"] = [_HARD.get(kind, kind) for kind in scattered["kind"]]
        scattered["place"] = [names.index(kind) if kind in names else -1 for kind in scattered["kind"]]
        levels = [(bool(key[0]), str(key[2]), own) for key, own in scattered.groupby(["related", "place", "kind"])]
    rows = 1 + bool(levels)
    x = at(scattered["score"])
    edges = np.linspace(-14, 14, 57) if probable else np.linspace(x.min() - 1e-6, x.max() + 1e-6, 57)
    colours = {False: readable("#d98200"), True: METHODS[0]}
    heights = [220, 30 * len(levels)][:rows]
    fig = Draft.subplots(rows=rows, shared_xaxes=True, vertical_spacing=0.03, row_heights=heights)
    for related, name, opened in ((False, "unrelated", rates["false_positive"]), (True, "related", rates["open"])):
        own = at(table.loc[table["related"] == related, "score"])
        counts = np.histogram(own, edges)[0]
        some = counts > 0
        key = "open" if related else "false_positive"
        opens = f"the gate opens for {opened:.1%} of them{interval(*gate.intervals[key])}"
        fig.add_bar(
            x=(edges[:-1] + edges[1:])[some] / 2, y=counts[some] / max(len(own), 1), width=edges[1] - edges[0],
            name=f"{name}, n = {len(own)}", hovertemplate=HOVER, row=1, col=1,
            marker=dict(color=tint(colours[related], 0.55), line=dict(color=colours[related], width=1)),
            hovertext=[f"{n} of {len(own)} {name} prompts<br>{opens}" for n in counts[some]],
        )  # fmt: skip
    for level, (related, kind, own) in enumerate(levels):
        hovers = [f"{escape(prompt, 90)}<br>{escape(kind, 40)}, {said} = {score:.4f}"
                  for prompt, score in zip(own["prompt"], own["score"], strict=True)]  # fmt: skip
        aside = 0.3 * np.sin(2.4 * np.arange(len(own)))  # so that dots do not hide one another
        fig.add_scatter(x=at(own["score"]), y=level + aside, mode="markers", showlegend=False, hovertext=hovers,
                        hovertemplate=HOVER, row=2, col=1, marker=dict(
                            color=tint(colours[related], 0.6), size=5,
                            line=dict(color=colours[related], width=0.8)))  # fmt: skip
    bar = float(at(gate.threshold))
    fig.add_vline(x=bar, line=dict(color=INK, width=2, dash="dash"))
    fig.add_annotation(x=bar, y=1, yref="paper", yanchor="bottom", text=f"threshold {gate.threshold:.3g}",
                       showarrow=False)  # fmt: skip
    if probable:
        fig.update_xaxes(tickvals=_logit(list(_TICKS)), ticktext=list(_TICKS.values()), range=[-14.3, 14.3])
    title = f"{said} on a logit scale, cut at 10⁻⁶ from 0 and 1" if probable else f"{said} with the condition direction"
    fig.update_xaxes(title_text=title, row=rows)
    fig.update_yaxes(title_text="share of prompts", rangemode="tozero", row=1)
    if levels:
        names = [f"{escape(kind, 30)}, {len(own)}" for _, kind, own in levels]
        fig.update_yaxes(tickvals=list(range(len(names))), ticktext=names, range=[-0.6, len(names) - 0.4],
                         showgrid=False, row=2)  # fmt: skip
        for level, (_, _, own) in enumerate(levels):
            opened = float(gate.decide(torch.tensor(own["score"].to_numpy(np.float64))).double().mean())
            fig.add_annotation(x=1, xref="paper", xanchor="left", y=level, yref="y2", text=f"{opened:.0%}",
                               xshift=6, showarrow=False, font=dict(size=12, color=FAINT),
                               hovertext=f"the gate opens for {opened:.1%}{interval(*wilson(opened, len(own)))}",
                               )  # fmt: skip
    return finish(
        fig,
        "Scores of the gate for prompts it was not fitted on",
        f"{_reads(gate)} It opens for {rates['open']:.1%} of related and {rates['false_positive']:.1%} of unrelated "
        f"prompts; AUROC {rates['auroc']:.3f}." + " At the right: the share of each kind that opens it." * bool(levels),
        height=400 + 30 * len(levels),
        above=26,
        barmode="overlay",
        bargap=0,
        legend=ABOVE if bar < edges.mean() else dict(ABOVE, x=0, xanchor="left"),  # off the threshold's name
        **({"margin_r": 60} if levels else {}),
    )


def _reads(gate: ThresholdGate) -> str:
    """What a gate's scores are of, as a subtitle begins."""
    if gate.layer is None:
        return "A text classifier on the bare question."
    tokens = "each token" if "position" in pd.DataFrame(gate.oof) else "last prompt token"
    return f"Out of fold, layer {gate.layer}, {tokens}."


def gate_roc(gate: ThresholdGate) -> go.Figure:
    """What every threshold of a gate would cost: ROC and precision-recall side by side, the chosen one marked.

    Bands, bars and the numbers in hovers are 95 % Wilson intervals, point by point. ROC tells nothing of how rare
    related prompts are; precision does, and holds only where they are as frequent as in the gate's own table.
    """
    curve, rates, bounds = gate.curve(), gate.rates, gate.intervals
    chosen = curve[curve["threshold"] <= gate.threshold].iloc[[0]]
    prevalence = float(curve["precision"].iloc[-1])  # the last threshold opens for all
    colour = METHODS[0]
    each = [f"score > {at:.4g}" for at in curve["threshold"]]
    for name, what in (("open", "related prompts that open it"), ("false_positive", "unrelated prompts that open it"),
                       ("precision", "precision")):  # fmt: skip
        numbers = curve[[name, f"{name}_low", f"{name}_high"]].to_numpy()
        each = [f"{said}<br>{what}: {share:.3f}{interval(low, high).replace('<br>95 % interval', ',')}"
                for said, (share, low, high) in zip(each, numbers, strict=True)]  # fmt: skip
    fig = Draft.subplots(cols=2, horizontal_spacing=0.1)
    for col, (x, y, shape) in enumerate((("false_positive", "open", "linear"), ("open", "precision", "vh")), 1):
        own = curve.dropna(subset=[y])
        low, high = own[f"{y}_low"], own[f"{y}_high"]
        place = dict(row=1, col=col, hovertemplate=HOVER, showlegend=False)
        for edge, fill in ((high, None), (low, "tonexty")):
            fig.add_scatter(x=own[x], y=edge, mode="lines", fill=fill, fillcolor=tint(colour, 0.18), hoverinfo="skip",
                            line=dict(width=0, shape=shape), row=1, col=col, showlegend=False)  # fmt: skip
        fig.add_scatter(x=own[x], y=own[y], mode="lines", line=dict(color=colour, width=2.5, shape=shape),
                        hovertext=[each[k] for k in own.index], **place)  # fmt: skip
        bars = {axis: dict(array=chosen[f"{name}_high"] - chosen[name], color=MARK, thickness=1.5, width=4,
                           arrayminus=chosen[name] - chosen[f"{name}_low"])
                for axis, name in (("error_x", x), ("error_y", y))}  # fmt: skip
        fig.add_scatter(x=chosen[x], y=chosen[y], mode="markers", hovertext=[each[chosen.index[0]]],
                        marker=dict(color=MARK, size=10, line=dict(color=INK, width=1)), **bars, **place)  # fmt: skip
        chance = [0, 1] if col == 1 else [prevalence] * 2
        fig.add_scatter(x=[0, 1], y=chance, mode="lines", line=dict(color=FAINT, dash="dash", width=1),
                        hovertext="chance" if col == 1 else f"chance: {prevalence:.1%} of the prompts are related",
                        **place)  # fmt: skip
    fig.update_xaxes(title_text="unrelated prompts that open it (FPR)", range=[-0.02, 1.02], col=1)
    fig.update_xaxes(title_text="related prompts that open it (recall)", range=[-0.02, 1.02], col=2)
    fig.update_yaxes(title_text="related prompts that open it (TPR)", range=[-0.02, 1.02], col=1)
    fig.update_yaxes(title_text="precision", range=[-0.02, 1.02], col=2)
    told = {name: f"{rates[name]:.3f} ({bounds[name][0]:.3f} to {bounds[name][1]:.3f})" for name in bounds}
    return finish(
        fig,
        "What every threshold of the gate would cost: ROC and precision-recall",
        f"{_reads(gate)} AUROC {told['auroc']}, average precision {told['average_precision']}; 95 % intervals. Marked: "
        f"the threshold {gate.threshold:.3g} ({escape(gate.criterion)}).",
        height=460,
    )


def csr_bars(table: pd.DataFrame) -> go.Figure:
    """Control success rate and fluency rate by value and method, Wilson intervals on them; their means at the right.

    table: as `evaluation.evaluate` returns it. Without a judge CSR and FR are empty: the reason stands in their place,
    and below it `p_reader`, P_V of the answers under a probe fitted on other pairs, where the table has it.
    """
    methods, values = list(dict.fromkeys(table["method"])), in_circle(list(dict.fromkeys(table["value"])))
    shown = {"csr": ("CSR", "low", "high"), "fr": ("FR", "fr_low", "fr_high")}
    if "p_reader" in table:
        shown["p_reader"] = ("P of the answers,<br>probe of other pairs", "", "")
    empty = {key: bool(table[key].isna().all()) for key in shown}
    heights = [70 if empty[key] else 260 if key == "csr" else 170 for key in shown]
    others = iter(METHODS * len(methods))
    colours = {method: "#9aa5b1" if method == "Base" else next(others) for method in methods}
    fig = Draft.subplots(rows=len(shown), shared_xaxes=True, vertical_spacing=0.05, row_heights=heights)
    for row, (key, (name, low, high)) in enumerate(shown.items(), 1):
        for method in methods:
            own = table[table["method"] == method].set_index("value").reindex(values)
            n = [*own["n"], own["n"].sum()]
            rates = np.array([*own[key], (own[key] * own["n"]).sum(min_count=1) / n[-1]])
            each = zip(own[low], own[high], strict=True) if low else [(math.nan, math.nan)] * len(own)
            bounds = np.array([*each, wilson(rates[-1], n[-1]) if low else (math.nan, math.nan)])
            hovers = [
                f"<b>{escape(value)}</b>, {escape(method, 60)}<br>{name.replace('<br>', ' ')} {rate:.3f}"
                f"{interval(*bound)}<br>n = {count:.0f}"
                for value, rate, bound, count in zip([*values, f"mean of {len(values)}"], rates, bounds, n, strict=True)
            ]
            fig.add_bar(
                x=[*map(escape, values), MEAN], y=rates, name=escape(method, 40), legendgroup=escape(method),
                showlegend=row == 1, marker=dict(color=colours[method], line=dict(color=INK, width=0.6)),
                hovertext=hovers, hovertemplate=HOVER,
                error_y=dict(array=bounds[:, 1] - rates, arrayminus=rates - bounds[:, 0], visible=bool(low), width=2,
                             thickness=1, color=INK), row=row, col=1,
            )  # fmt: skip
        if empty[key]:
            reason = escape(table.attrs.get("reason", "no judge read these answers"), 160)
            fig.add_annotation(x=0.5, xref="x domain", y=0.5, yref="y domain", row=row, col=1, showarrow=False,
                               text=f"<i>empty: {reason}</i>", font=dict(color=FAINT))  # fmt: skip
            fig.update_yaxes(tickvals=[], row=row)
        fig.update_yaxes(title_text=name, range=[0, 1.04], row=row)
    sizes = sorted({int(n) for n in table["n"]})
    several = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
    return finish(
        fig,
        "What steering does to the answers: control success rate (CSR) and fluency rate (FR)",
        f"Shares of {several} answers per value and method, with 95 % Wilson intervals. "
        "CSR counts every answer, those that a gate left alone too.",
        height=160 + sum(heights),
        above=26,
        barmode="group",
        bargap=0.18,
        bargroupgap=0.04,
        legend=ABOVE,
    )


# --- profiles round the circle ----------------------------------------------------------------------------------------

_ROUND = dict(
    radialaxis=dict(range=[0, 1], tickvals=[0.5, 1], tickfont=dict(size=10, color=FAINT), angle=18, tickangle=18),
    angularaxis=dict(tickvals=list(range(0, 360, 36)), ticktext=list(VALUES)),
)


def value_profile(before: Any, after: Any, value: str | None = None, measure: str = "CSR") -> go.Figure:
    """A rate of each of the ten values round the circle, before and after steering `value`.

    before, after: value -> rate in 0..1 (dict, Series or DataArray); missing values are left out.
    """
    towards = f", steering {escape(value)}" if value else ""
    return finish(
        _profile(Draft(), before, after, value, measure),
        f"{escape(measure)} round the circle, before and after{towards}",
        "Distance from the middle is the rate, 0 to 1.",
        height=520,
        width=620,
        above=24,
        polar=_ROUND,
        legend=dict(orientation="h", x=0.5, xanchor="center", y=-0.08),
    )


def _profile(fig: Draft, before: Any, after: Any, value: str | None, measure: str, **place: Any) -> Draft:
    colour = readable(COLOURS.get(value or "", METHODS[0]))
    styles = {
        "before": dict(line=dict(color=FAINT, dash="dot", width=2)),
        "after": dict(line=dict(color=colour, width=3), fill="toself", fillcolor=tint(colour, 0.2)),
    }
    for (name, style), rates in zip(styles.items(), (before, after), strict=True):
        array = isinstance(rates, xr.DataArray)
        held = dict(zip(rates["value"].values, rates.values, strict=True)) if array else dict(rates)
        shown = [v for v in VALUES if v in held]
        closed = [*shown, *shown[:1]]
        colours = [COLOURS[v] if name == "after" else "white" for v in closed]
        fig.add_scatterpolar(
            r=_or_none(held[v] for v in closed), theta=[36 * VALUES.index(v) for v in closed], name=name, **style,
            mode="lines+markers", marker=dict(size=8, color=colours, line=dict(color=INK, width=0.6)),
            hovertemplate=HOVER, hovertext=[f"<b>{v}</b><br>{escape(measure)} {name}: {held[v]:.3f}" for v in closed],
            legendgroup=name if place else None, **place,
        )  # fmt: skip
    return fig


def _or_none(numbers: Iterable[Any]) -> list[float | None]:
    """NaN as None: widgets send their data as JSON, which has no NaN."""
    return [None if math.isnan(x) else float(x) for x in numbers]


def steering_reading(
    before: xr.DataArray, after: xr.DataArray, value: str, target: float, layers: Sequence[int]
) -> go.Figure:
    """P_V at the last prompt token, unsteered and steered: the value's by layer, all ten at the last steered layer.

    before, after: probabilities (value, layer). layers: the steered ones, shaded. Always the same traces, so that a
    FigureWidget can be born with them and be updated.
    """
    fig = Draft.subplots(cols=2, column_widths=[0.55, 0.45], horizontal_spacing=0.12,
                         specs=[[{"type": "xy"}, {"type": "polar"}]])  # fmt: skip
    at = [int(layer) for layer in before["layer"].values]
    ends, last = [at[0] - 0.5, at[-1] + 0.5], max(layers, default=at[-1])
    for name, p, fill, line in (("before", before, "white", dict(color=FAINT, dash="dot", width=2)),
                                ("after", after, COLOURS.get(value, INK), dict(color=INK, width=3))):  # fmt: skip
        own = p.sel(value=value).values
        fig.add_scatter(
            x=at, y=_or_none(own), name=name, legendgroup=name, mode="lines+markers", line=line, row=1, col=1,
            marker=dict(size=7, color=fill, line=dict(color=line["color"], width=1.5)), hovertemplate=HOVER,
            hovertext=[f"layer {layer}, {name}<br>P = {q:.3f}" for layer, q in zip(at, own, strict=True)],
        )  # fmt: skip
    fig.add_scatter(x=ends, y=[target] * 2, mode="lines", name="target", line=dict(color=MARK, width=1.5, dash="dash"),
                    hovertext=f"target {target:.3f}", hovertemplate=HOVER, row=1, col=1)  # fmt: skip
    _profile(fig, before.sel(layer=last), after.sel(layer=last), value, "P", showlegend=False, row=1, col=2)
    fig.update_xaxes(title_text="layer (steered ones shaded)", range=ends, dtick=1 if len(at) < 20 else 5,
                     showgrid=False)  # fmt: skip
    fig.update_yaxes(title_text=f"P of {escape(value)}", range=[-0.03, 1.03])
    shade = dict(type="rect", xref="x", yref="paper", y0=0, y1=1, layer="below", line_width=0, fillcolor=SHADE)
    return finish(
        fig,
        f"What the probes read at the last prompt token: {escape(value)} by layer, all ten at layer {last}",
        "",
        height=380,
        above=16,
        shapes=[dict(shade, x0=layer - 0.52, x1=layer + 0.52) for layer in layers],
        polar=_ROUND,
        legend=dict(ABOVE, x=0, xanchor="left"),
        title_font_size=15, margin_r=90,
    )
