"""Figures of single answers, as the studio shows them, and the place of a figure that is not there yet."""

from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr

from .draft import Draft
from .style import COLOURS, FAINT, HOVER, INK, METHODS, escape, finish, in_circle


def nothing(title: str, why: str) -> go.Figure:
    """An empty place that says why it is empty."""
    fig = Draft()
    fig.add_annotation(x=0.5, y=0.5, xref="paper", yref="paper", text=f"<i>{escape(why)}</i>", showarrow=False,
                       font=dict(size=14, color=FAINT))  # fmt: skip
    fig.update_xaxes(visible=False)
    fig.update_yaxes(visible=False)
    return finish(fig, title, "", height=170)


def answer_profiles(profiles: xr.DataArray, names: Sequence[str]) -> go.Figure:
    """P of the ten values in each answer, side by side: what the probes read at its last token.

    profiles: (answer, value), with a coordinate `layer`; NaN for an empty answer. names: of the answers, the base's
    first, which is grey.
    """
    values = in_circle([str(value) for value in profiles["value"].values])
    fig = Draft()
    for k, name in enumerate(names):
        p = profiles.isel(answer=k).sel(value=values).values
        colour = "#9aa5b1" if k == 0 else METHODS[(k - 1) % len(METHODS)]
        shown = escape(name, 60)
        fig.add_bar(x=values, y=p, name=shown, hovertemplate=HOVER,
                    marker=dict(color=colour, line=dict(color=INK, width=0.6)),
                    hovertext=[f"<b>{value}</b><br>{shown}<br>P = {q:.3f}"
                               for value, q in zip(values, p, strict=True)])  # fmt: skip
    fig.add_hline(y=0.5, line=dict(color=FAINT, dash="dash", width=1))
    fig.update_yaxes(title_text="P", range=[0, 1.03])
    fig.update_xaxes(showgrid=False, ticks="", tickvals=values, ticktext=[
        f"<span style='color:{COLOURS.get(value, INK)}'>●</span> {escape(value)}" for value in values])  # fmt: skip
    return finish(
        fig,
        "Values of the answers, as the probes read them",
        f"P at the last token of each answer, layer {int(profiles['layer'])}; .5 is undecided. A reading of the text "
        "that was written, not a judgement of it.",
        height=330, barmode="group", bargap=0.25, legend=dict(orientation="h", x=0, y=-0.35, yanchor="top"),
    )  # fmt: skip
