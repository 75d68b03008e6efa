"""The curve behind a choice of strength."""

import pandas as pd
import plotly.graph_objects as go

from .draft import Draft
from .style import FAINT, HOVER, INK, MARK, colour_of, escape, finish, in_circle, interval, readable


def dose_response(curve: pd.DataFrame, *, labels: dict[str, str] | None = None) -> go.Figure:
    """CSR of every value by setting, with Wilson intervals, and the fluency rate over all values; the chosen ringed.

    curve: of `evaluation.tune`, settings from weak to strong. labels: what to call a setting, by its repr. A setting
    that was dropped on the way stands on fewer answers, as its hover says.
    """
    steps = list(dict.fromkeys(curve["setting"]))
    shown = {step: escape((labels or {}).get(step, step), 24) for step in steps}
    fig = Draft()
    for value in in_circle(list(dict.fromkeys(curve["value"]))):
        own = curve[curve["value"] == value]
        hovers = [f"<b>{escape(value)}</b>, {shown[row['setting']]}<br>CSR {row['csr']:.3f}"
                  f"{interval(row['low'], row['high'])}<br>FR {row['fr']:.3f}<br>{row['n']} answers"
                  for row in own.to_dict("records")]  # fmt: skip
        fig.add_scatter(
            x=[shown[step] for step in own["setting"]], y=own["csr"], mode="lines+markers", name=escape(value),
            line=dict(color=readable(colour_of(value)), width=2), hovertext=hovers, hovertemplate=HOVER,
            error_y=dict(array=own["high"] - own["csr"], arrayminus=own["csr"] - own["low"], thickness=1, width=3),
            marker=dict(size=7, color=colour_of(value), line=dict(width=0.6, color=INK)),
        )  # fmt: skip
    kept = curve[curve["chosen"]]
    fig.add_scatter(x=[shown[step] for step in kept["setting"]], y=kept["csr"], mode="markers", name="chosen",
                    marker=dict(size=14, color="rgba(0, 0, 0, 0)", line=dict(color=MARK, width=2.5)), hoverinfo="skip",
                    )  # fmt: skip
    fr = (curve["fr"] * curve["n"]).groupby(curve["setting"], sort=False).sum() / (
        curve["n"].groupby(curve["setting"], sort=False).sum())
    fig.add_scatter(x=[shown[step] for step in fr.index], y=fr, mode="lines+markers", name="FR over all values",
                    line=dict(color=FAINT, dash="dash", width=2), hovertemplate=HOVER,
                    hovertext=[f"{shown[str(step)]}<br>FR over all values {rate:.3f}" for step, rate in fr.items()],
                    )  # fmt: skip
    fig.update_xaxes(title_text="setting, from weak to strong", type="category", categoryarray=[*shown.values()],
                     categoryorder="array", showgrid=False)  # fmt: skip
    fig.update_yaxes(title_text="rate", range=[-0.02, 1.04])
    return finish(
        fig, "Dose and response: control and fluency by setting",
        "Calibration questions, 95 % Wilson intervals. Ringed: chosen, the highest control among settings that stay "
        "fluent.", height=480,
    )  # fmt: skip
