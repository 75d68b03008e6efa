"""Figures of a gate whose threshold is being moved: they take arrays that were prepared once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .draft import Draft
from .steering import _HARD, _TICKS, _logit
from .style import ABOVE, FAINT, HOVER, INK, MARK, METHODS, escape, finish, readable, tint

WIDEST = 14.0  # logits on either side; scores are cut at 10⁻⁶ from 0 and 1, which is 13.8


def score_text(score: float, probable: bool) -> str:
    """A score in words: near 0 and 1 what a probability lacks, "1 − 2.1 × 10⁻⁵"."""
    gap = min(score, 1 - score)
    if not probable or gap >= 0.001 or gap <= 0:
        return f"{score:.4g}"
    mantissa, exponent = f"{gap:.1e}".split("e")
    small = f"{mantissa} × 10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return small if score < 0.5 else f"1 − {small}"


def by_kind(oof: pd.DataFrame, kinds: pd.DataFrame | None = None) -> pd.DataFrame:
    """A gate's scored prompts with their kinds as figures name them: prompt, related, score, kind, place, seen.

    oof: of the gate. kinds: see `gate_histogram`; rows with a score whose prompt is not in oof are added, not `seen` by
    the fit. place: of the kind among those that are easily mistaken, -1 for all others.
    """
    named = {} if kinds is None else dict(zip(kinds["prompt"], kinds["kind"], strict=True))
    plain = ("related", "unrelated") if kinds is None else ("dilemmas", "other")
    table = oof.assign(kind=[named.get(prompt, plain[not related])
                             for prompt, related in zip(oof["prompt"], oof["related"], strict=True)], seen=True)
    if kinds is not None and "score" in kinds:
        table = pd.concat([table, kinds[~kinds["prompt"].isin(oof["prompt"])].assign(seen=False)], ignore_index=True)
    names = list(_HARD.values())
    table["kind"] = [_HARD.get(kind, kind) for kind in table["kind"]]
    table["place"] = [names.index(kind) if kind in names else -1 for kind in table["kind"]]
    return table.astype({"related": bool})


def threshold_histogram(
    table: pd.DataFrame, probable: bool, said: str, told: str, typed: Sequence[tuple[str, float]] = ()
) -> go.Figure:
    """Scores of prompts of every kind, on the axis along which a threshold moves.

    table: of `by_kind`. probable: scores are probabilities, on a logit scale. said: what a score is called; told: the
    subtitle. typed: prompts and scores, marked by their numbers.
    """
    at: Any = _logit if probable else np.asarray
    x, marks = at(table["score"]), at([score for _, score in typed])
    seen, y = table["seen"].to_numpy(), table["related"].to_numpy()
    levels = [(bool(key[0]), str(key[2]), own) for key, own in table.groupby(["related", "place", "kind"])]
    every = np.r_[x, marks]
    ends = (-WIDEST, WIDEST) if probable else (float(every.min()), float(every.max()))
    edges, spare = np.linspace(ends[0], ends[1] + 1e-9, 57), 0.02 * (ends[1] - ends[0])
    colours = {False: readable("#d98200"), True: METHODS[0]}
    rows = len(levels) + bool(typed)
    fig = Draft.subplots(rows=2, shared_xaxes=True, vertical_spacing=0.03, row_heights=[200, 28 * rows])
    for related, name in ((False, "unrelated"), (True, "related")):
        own = x[seen & (y == related)]
        counts = np.histogram(own, edges)[0]
        some = counts > 0
        fig.add_bar(
            x=((edges[:-1] + edges[1:]) / 2)[some], y=counts[some] / max(len(own), 1), width=edges[1] - edges[0],
            name=f"{name}, n = {len(own)}", hovertemplate=HOVER, row=1, col=1,
            marker=dict(color=tint(colours[related], 0.55), line=dict(color=colours[related], width=1)),
            hovertext=[f"{n} of {len(own)} {name} prompts" for n in counts[some]],
        )  # fmt: skip
    for level, (related, kind, own) in enumerate(levels):
        aside = 0.3 * np.sin(2.4 * np.arange(len(own)))  # so that dots do not hide one another
        fig.add_scatter(
            x=at(own["score"]), y=level + aside, mode="markers", showlegend=False, row=2, col=1, hovertemplate=HOVER,
            hovertext=[f"{escape(prompt, 90)}<br>{escape(kind, 40)}, {said} = {score_text(score, probable)}"
                       for prompt, score in zip(own["prompt"], own["score"], strict=True)],
            marker=dict(color=tint(colours[related], 0.6), size=5, line=dict(color=colours[related], width=0.8)),
        )  # fmt: skip
    names = [f"{escape(kind, 30)}, {len(own)}" for _, kind, own in levels]
    if typed:
        fig.add_scatter(
            x=marks, y=[len(levels) + 0.24 * (k % 3 - 1) for k in range(len(typed))], mode="markers+text", row=2, col=1,
            text=[f"<b>{k}</b>" for k in range(1, len(typed) + 1)], textfont=dict(size=11, color="white"),
            marker=dict(symbol="diamond", color=METHODS[2], size=19, line=dict(color=INK, width=1)), showlegend=False,
            hovertext=[f"{k}: {escape(prompt, 90)}<br>{said} = {score_text(score, probable)}"
                       for k, (prompt, score) in enumerate(typed, 1)],
            hovertemplate=HOVER, cliponaxis=False,
        )  # fmt: skip
        names.append("<b>typed</b>")
    if probable:
        fig.update_xaxes(tickvals=_logit(list(_TICKS)), ticktext=list(_TICKS.values()))
    fig.update_xaxes(range=[ends[0] - spare, ends[1] + spare])
    scale = " on a logit scale, cut at 10⁻⁶ from 0 and 1" if probable else " with the condition direction"
    fig.update_xaxes(title_text=said + scale, row=2)
    fig.update_yaxes(title_text="share of prompts", rangemode="tozero", row=1)
    fig.update_yaxes(tickvals=list(range(rows)), ticktext=names, range=[-0.6, rows - 0.4], showgrid=False, row=2)
    return finish(
        fig,
        "Scores of the gate: it opens to the right of the line",
        told,
        height=340 + 28 * rows,
        above=26,
        barmode="overlay",
        bargap=0,
        legend=ABOVE,
    )


def threshold_roc(
    curve: Mapping[str, np.ndarray], now: Mapping[str, tuple[float, float, float]],
    own: Mapping[str, tuple[float, float, float]], told: str,
) -> go.Figure:  # fmt: skip
    """ROC of a gate, with the threshold that is set and the gate's own.

    curve: false_positive, open, open_low and open_high of all thresholds (as `ThresholdGate.curve` has them, or their
    corners only), each with the threshold. now, own: false_positive and open, each with its interval.
    """
    colour = METHODS[0]
    fig = Draft()
    for edge, fill in (("open_high", None), ("open_low", "tonexty")):
        fig.add_scatter(x=curve["false_positive"], y=curve[edge], mode="lines", line=dict(width=0), fill=fill,
                        fillcolor=tint(colour, 0.18), hoverinfo="skip", showlegend=False)  # fmt: skip
    fig.add_scatter(
        x=curve["false_positive"], y=curve["open"], mode="lines", line=dict(color=colour, width=2.5), showlegend=False,
        hovertemplate=HOVER, hovertext=[f"score > {at:.4g}<br>opens for {hit:.1%} of related, {alarm:.1%} of unrelated"
                                        for at, hit, alarm in zip(curve["threshold"], curve["open"],
                                                                  curve["false_positive"], strict=True)],
    )  # fmt: skip
    fig.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=dict(color=FAINT, dash="dash", width=1), hovertext="chance",
                    hovertemplate=HOVER, showlegend=False)  # fmt: skip
    for name, point, mark in (("the gate's own", own, dict(color="white", size=11, line=dict(color=INK, width=2))),
                              ("set here", now, dict(color=MARK, size=13, line=dict(color=INK, width=1)))):  # fmt: skip
        (alarm, *alarms), (hit, *hits) = point["false_positive"], point["open"]
        bars = {} if point is own else {
            axis: dict(array=[high - rate], arrayminus=[rate - low], color=MARK, thickness=1.5, width=4)
            for axis, rate, (low, high) in (("error_x", alarm, alarms), ("error_y", hit, hits))}  # fmt: skip
        fig.add_scatter(
            x=[alarm], y=[hit], mode="markers", name=name, marker=mark, cliponaxis=False, hovertemplate=HOVER, **bars,
            hovertext=f"{name}<br>opens for {hit:.1%} of related ({hits[0]:.1%} to {hits[1]:.1%})<br>"
                      f"and {alarm:.1%} of unrelated ({alarms[0]:.1%} to {alarms[1]:.1%})",
        )  # fmt: skip
    fig.update_xaxes(title_text="unrelated prompts that open it", range=[-0.02, 1.02], tickformat=".0%")
    fig.update_yaxes(title_text="related prompts that open it", range=[-0.02, 1.02], tickformat=".0%")
    return finish(
        fig,
        "What the threshold costs (ROC)",
        told,
        height=400,
        width=490,  # of the subtitle's lines only
        above=26,
        legend=ABOVE,
    ).update_layout(width=None)
