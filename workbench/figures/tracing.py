"""What steering did to one answer, token by token and layer by layer."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..errors import WorkbenchError
from .draft import Draft
from .style import ABOVE, BARS, FAINT, HOVER, INK, MARK, SEQUENTIAL, escape, finish

NEEDED = ("row", "layer", "position", "token", "eps", "p_before", "p_after")


def steering_strip(
    trace: pd.DataFrame, row: int = 0, *, target: float | None = None, limit: int = 60, name: str | None = None
) -> go.Figure:
    """The text of one row with each token's steering: gate, length of the edit by layer, P_V before and after, KL.

    trace: of a run (`return_trace=True`), one line per row, token and layer. The colour is the edit's share of the
    residual's length where the trace has `share`, else eps; a cell is empty where nothing was added. P_V is read before
    the first and after the last steered layer, and left out for methods without a probe. kl, where the trace has it: of
    the steered from the base distribution of the next token, in nats. At most `limit` tokens are shown, the first ones.
    name: what the title calls the row.
    """
    if missing := [name for name in NEEDED if name not in trace.columns]:
        raise WorkbenchError("A strip of steered tokens was asked for.", found=f"a table without {', '.join(missing)}",
                             allowed="the trace of generate(..., return_trace=True) or of a run")  # fmt: skip
    own = trace[trace["row"] == row]
    if own.empty or own["layer"].isna().any():
        rows = ", ".join(map(str, trace.dropna(subset=["layer"])["row"].unique()[:20]))
        raise WorkbenchError(f"The steering of row {row} was asked for.", found="nothing steered it layer by layer",
                             allowed=f"rows {rows or 'of a method that steers layers'}")  # fmt: skip
    places = np.sort(own["position"].unique())[:limit]
    own = own[own["position"].isin(places)]
    layers = [int(layer) for layer in np.sort(own["layer"].unique())]
    words = own.drop_duplicates("position").set_index("position")["token"].loc[places]
    at, what = np.arange(len(places)), "share" if "share" in own else "eps"
    table = own.pivot(index="layer", columns="position", values=what).loc[layers, places].to_numpy(float)
    lengths = own.pivot(index="layer", columns="position", values="eps").loc[layers, places].to_numpy(float)
    first, top = (own[own["layer"] == layer].set_index("position").loc[places] for layer in (layers[0], layers[-1]))
    panels = [name for name, shown in (("P", top["p_after"].notna().any()), ("kl", "kl" in own)) if shown]
    asked = top["gate"].notna().any()
    heights = [0.3 + 0.22 * (len(layers) + bool(asked)), *[1.0] * len(panels)]
    fig = Draft.subplots(rows=1 + len(panels), shared_xaxes=True, vertical_spacing=0.05,
                         row_heights=[height / sum(heights) for height in heights])  # fmt: skip
    fig.add_heatmap(
        z=np.where(lengths > 0, table, np.nan), x=at, y=[str(layer) for layer in layers], coloraxis="coloraxis", xgap=1,
        ygap=1, hoverongaps=False, hovertemplate=HOVER, row=1, col=1,
        hovertext=[[f"<b>{escape(word)}</b>, layer {layer}<br>edit {lengths[i, j]:.3g}"
                    + (f", {table[i, j]:.1%} of the residual" if what == "share" else "")
                    for j, word in enumerate(words)] for i, layer in enumerate(layers)],
    )  # fmt: skip
    if asked:
        opened = top["open"].to_numpy(bool)
        said = [f"<b>{escape(word)}</b><br>gate: score {score:.4g}, {'open' if lets else 'closed'}"
                for word, score, lets in zip(words, top["gate"], opened, strict=True)]  # fmt: skip
        fig.add_scatter(
            x=at, y=["gate"] * len(at), mode="markers", showlegend=False, hovertext=said, hovertemplate=HOVER, row=1,
            col=1, marker=dict(size=9, symbol=["circle" if lets else "circle-open" for lets in opened], color=MARK),
        )  # fmt: skip
    if "P" in panels:
        line = 1 + panels.index("P") + 1
        before, after = dict(color=FAINT, dash="dot", width=2), dict(color=INK, width=2.5)
        for side, p, style in ((f"P before layer {layers[0]}", first["p_before"], before),
                               (f"P after layer {layers[-1]}", top["p_after"], after)):  # fmt: skip
            hovers = [f"<b>{escape(word)}</b><br>{side}: {q:.3f}" for word, q in zip(words, p, strict=True)]
            fig.add_scatter(x=at, y=p, mode="lines+markers", name=side, line=style, hovertemplate=HOVER,
                            hovertext=hovers, row=line, col=1)  # fmt: skip
        if target is not None:
            place: dict = dict(row=line, col=1)
            fig.add_hline(y=target, line=dict(color=FAINT, dash="dash", width=1), **place)
        fig.update_yaxes(title_text="P", range=[-0.03, 1.03], row=line)
    if "kl" in panels:
        line = 1 + panels.index("kl") + 1
        kl = top["kl"].to_numpy(float)
        hovers = [f"after <b>{escape(word)}</b><br>KL {k:.3f} nats" for word, k in zip(words, kl, strict=True)]
        fig.add_bar(x=at, y=kl, marker=dict(color=BARS), name="KL", showlegend=False, hovertemplate=HOVER,
                    hovertext=hovers, row=line, col=1)  # fmt: skip
        fig.update_yaxes(title_text="KL (nats)", rangemode="tozero", row=line)
    fig.update_yaxes(title_text="layer", type="category", showgrid=False, row=1)
    fig.update_xaxes(showgrid=False)
    fig.update_xaxes(tickvals=at, ticktext=[escape(word, 14) or "·" for word in words], tickangle=-60,
                     title_text="token read (what stands at it produces the next)", row=1 + len(panels))  # fmt: skip
    shut = "open" in own and not bool(own["open"].any())
    told = "the gate stayed shut" if shut else "the gate was open" if own["gate"].notna().any() else "no gate"
    return finish(
        fig,
        f"Steering token by token: {f'row {row}' if name is None else escape(name, 60)}",
        f"From the last prompt token on; {told}{' (filled: open)' * bool(asked)}. Empty: nothing added there. "
        "Colour: length of the edit"
        + (" over that of the residual." if what == "share" else ", in units of the residual stream."),
        height=230 + 26 * (len(layers) + bool(asked)) + 130 * len(panels),
        above=18,
        legend=ABOVE,
        coloraxis=dict(colorscale=SEQUENTIAL, cmin=0, colorbar=dict(
            title_text="edit / residual" if what == "share" else "edit", tickformat=".0%" if what == "share" else "",
            len=0.5, y=1, yanchor="top")),
    )  # fmt: skip
