"""What words, mood and topic alone tell of a set of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from ..errors import WorkbenchError
from .draft import Draft
from .style import COLOURS, FAINT, HOVER, INK, MARK, MARK_TEXT, METHODS, escape, finish, readable, tint

if TYPE_CHECKING:
    from ..audit import Audit


def audit_figure(audits: Audit | Sequence[Audit]) -> go.Figure:
    """Sets of pairs side by side: what words alone tell, on their own value and by circular step; overlap; mood.

    One dot per value; the audits' names stand below. Bars (`workbench.audit.BARS`) are drawn where there is one.
    """
    from ..audit import BARS

    sets = [audits] if not isinstance(audits, Sequence) else list(audits)
    if not sets:
        raise WorkbenchError("A figure of audits was asked for.", "none", "one or more of what audit_pairs returns")
    names = [escape(audit.name, 40) for audit in sets]
    fig = Draft.subplots(2, 2, horizontal_spacing=0.11, vertical_spacing=0.2, subplot_titles=[
        "Words alone tell the sides", "... and the sides of other values", "Words shared within a pair",
        "Mood: positives minus negatives",
    ])  # fmt: skip
    fig.update_annotations(font_size=14)
    for i, (audit, name) in enumerate(zip(sets, names, strict=True)):
        table, pairs = audit.by_value, audit.by_value["pairs"]
        aside = i + np.linspace(-0.25, 0.25, len(table))
        colours = [COLOURS.get(value, METHODS[i % len(METHODS)]) for value in table["value"]]
        mark = dict(color=colours, size=9, line=dict(color=INK, width=0.6))
        for row, column, what in ((1, "accuracy", "accuracy of words"), (2, "mood_gap", "mood gap")):
            place = dict(hovertemplate=HOVER, showlegend=False, row=row, col=row)
            hovers = [f"<b>{escape(v)}</b>, {name}<br>{what} {figure:.3f}<br>{n} pairs"
                      for v, figure, n in zip(table["value"], table[column], pairs, strict=True)]  # fmt: skip
            fig.add_scatter(x=aside, y=table[column], mode="markers", marker=mark, hovertext=hovers, **place)
            mean = float(table[column].mean())
            fig.add_scatter(x=[i - 0.35, i + 0.35], y=[mean, mean], mode="lines", line=dict(color=INK, width=2),
                            hovertext=f"{name}<br>mean over values {mean:.3f}", **place)  # fmt: skip
        colour = readable(METHODS[i % len(METHODS)])
        steps = audit.by_step.groupby("step")["accuracy"].agg(["mean", "size"])
        hovers = [f"{name}<br>{step} steps apart: mean accuracy {mean:.3f}<br>{n} classifiers and sets"
                  for step, mean, n in steps.itertuples()]  # fmt: skip
        fig.add_scatter(x=steps.index, y=steps["mean"], mode="lines+markers", name=name, hovertext=hovers,
                        line=dict(color=colour, width=2), hovertemplate=HOVER, row=1, col=2)  # fmt: skip
        fig.add_box(y=audit.overlap, x0=i, name=name, showlegend=False, row=2, col=1, boxpoints="outliers",
                    fillcolor=tint(colour, 0.25), line=dict(color=colour), marker=dict(size=4),
                    hoverinfo="y")  # fmt: skip
    def line(row: int, col: int, y: float, **more: Any) -> None:
        place: dict[str, Any] = dict(row=row, col=col)
        fig.add_hline(y=y, **place, **more)

    for (row, col), criterion in (((1, 1), "words alone tell the sides: mean over values"),
                                  ((1, 2), "words of a value tell other values' sides"),
                                  ((2, 1), "words shared within a pair: mean")):  # fmt: skip
        bar = BARS[criterion]
        line(row, col, bar.low or bar.high or 0.0, line=dict(color=MARK, dash="dot", width=1.5),
             annotation=dict(text=f"bar {bar}", font=dict(color=MARK_TEXT, size=11)),
             annotation_position="bottom right" if bar.low else "top right")  # fmt: skip
    for row, col, y in ((1, 1, 0.5), (1, 2, 0.5), (2, 2, 0.0)):
        line(row, col, y, line=dict(color=FAINT, dash="dash", width=1))
    for row, col in ((1, 1), (2, 1), (2, 2)):
        fig.update_xaxes(tickvals=list(range(len(sets))), ticktext=names, range=[-0.6, len(sets) - 0.4], showgrid=False,
                         row=row, col=col)  # fmt: skip
    fig.update_xaxes(title_text="steps round the circle", tickvals=list(range(6)), showgrid=False, row=1, col=2)
    fig.update_yaxes(title_text="accuracy, out of fold", range=[0, 1.03], row=1, col=1)
    fig.update_yaxes(title_text="accuracy", range=[0, 1.03], row=1, col=2)
    fig.update_yaxes(title_text="Jaccard", range=[0, 1.03], row=2, col=1)
    fig.update_yaxes(title_text="compound sentiment", row=2, col=2)
    return finish(
        fig,
        "Audit: what the texts give away without a model",
        "One dot per value, a line at the mean. A reader of words (TF-IDF) above .5 on other values' pairs reads "
        "polarity. Dashed: chance, or no difference.",
        height=760,
        above=40,
        legend=dict(orientation="h", x=1, xanchor="right", y=0.6, yanchor="bottom"),
    )
