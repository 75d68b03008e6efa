"""Methods held against one another: rates round the circle, what control costs, differences with their tests.

Every method has one colour and one symbol within a figure, by its place in the table; Base is grey. Tables are those of
`evaluation.comparison`, one row per method (and value): choose one set, prompt and temperature beforehand.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..errors import WorkbenchError
from ..values import GROUPS, VALUES
from .draft import Draft
from .style import (
    COLOURS,
    FAINT,
    HOVER,
    INK,
    LINE,
    METHODS,
    escape,
    finish,
    interval,
    p_value,
    readable,
    tint,
)

RATES = {
    "csr": ("CSR", "low", "high"),
    "fr": ("FR", "fr_low", "fr_high"),
    "unrelated": ("unrelated accuracy", "unrelated_low", "unrelated_high"),
    "intact": ("hard unrelated left intact", "intact_low", "intact_high"),
}
"""Rates of a table with one row per method: column -> what it is called, and the columns of its interval."""

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")


def styles(methods: Sequence[str], base: str = "Base") -> dict[str, dict[str, Any]]:
    """Colour, symbol and dash of each method, in order of appearance; no two of forty-two are the same."""
    others = [method for method in dict.fromkeys(methods) if method != base]
    held = {
        method: dict(color=readable(METHODS[i % len(METHODS)]), symbol=_SYMBOLS[i % len(_SYMBOLS)],
                     dash=("solid", "dash", "dot", "dashdot")[i // len(METHODS) % 4])
        for i, method in enumerate(others)
    }  # fmt: skip
    return {base: dict(color=FAINT, symbol="circle-open", dash="solid"), **held}


def csr_circle(table: pd.DataFrame, *, base: str = "Base", together: int = 4) -> go.Figure:
    """CSR of every value round Schwartz's circle: distance from the middle is the rate, a spoke its interval.

    table: method, value, csr, low, high, n. Up to `together` methods share one circle, turned a little against one
    another so that no spoke hides another; more stand side by side, each with `base` beneath.
    """
    rows = _single(table[table["value"].isin(VALUES)], ["method", "value"], "csr",
                   "A figure of CSR round the circle")
    methods = list(dict.fromkeys(rows["method"]))
    look = styles(methods, base)
    others = [method for method in methods if method != base]
    panels = [methods] if len(others) <= together else [[*({base} & {*methods}), m] for m in others]
    columns, large = min(4, len(panels)), len(panels) == 1
    fig = Draft.subplots(
        -(-len(panels) // columns), columns, specs=[[{"type": "polar"}] * columns] * -(-len(panels) // columns),
        horizontal_spacing=0.1, vertical_spacing=0.3 / -(-len(panels) // columns),
        subplot_titles=None if large else [escape(panel[-1], 30) for panel in panels])  # fmt: skip
    for title in fig.layout.annotations:
        title.update(font_size=13, yshift=24)
    for at, panel in enumerate(panels):
        place: dict[str, Any] = dict(row=at // columns + 1, col=at % columns + 1)
        fig.add_barpolar(r=[0.07] * 10, base=1.03, theta=[36 * k for k in range(10)], width=[35] * 10,
                         marker=dict(color=list(COLOURS.values()), line_width=0), hoverinfo="skip", showlegend=False,
                         **place)  # fmt: skip
        for k, method in enumerate(panel):
            own = rows[rows["method"] == method].set_index("value").reindex(VALUES)
            turn = [36 * i + 3 * (k - (len(panel) - 1) / 2) for i in range(10)]
            style, hovers = look[method], _told(own, "csr", method)
            spokes = [x for a, low, high in zip(turn, own["low"], own["high"], strict=True)
                      for x in ((low, a), (high, a), (math.nan, a))]  # fmt: skip
            fig.add_scatterpolar(r=[x for x, _ in spokes], theta=[a for _, a in spokes], mode="lines",
                                 line=dict(color=style["color"], width=1), hoverinfo="skip", showlegend=False,
                                 **place)  # fmt: skip
            fig.add_scatterpolar(
                r=[*own["csr"], own["csr"].iloc[0]], theta=[*turn, turn[0]], mode="lines+markers",
                name=escape(method, 40), legendgroup=escape(method), showlegend=large, hovertemplate=HOVER,
                hovertext=[*hovers, hovers[0]], fill="toself" if method == base else None,
                fillcolor=tint(FAINT, 0.15) if method == base else None,
                line=dict(color=style["color"], width=2, dash=style["dash"]),
                marker=dict(color=style["color"], symbol=style["symbol"], size=7 if large else 5), **place)  # fmt: skip
    short = {"self-direction": "self-dir.", "universalism": "univers.", "benevolence": "benev."}
    names = list(VALUES) if large else [short.get(v, f"{v[:6]}." if len(v) > 8 else v) for v in VALUES]
    fig.update_polars(
        radialaxis=dict(range=[0, 1.1], tickvals=[0.25, 0.5, 0.75, 1], ticktext=["", ".5", "", "1"], angle=18,
                        tickangle=18, tickfont=dict(size=10, color=FAINT), showline=False),
        angularaxis=dict(tickvals=[36 * k for k in range(10)], ticktext=names, showline=False,
                         tickfont_size=13 if large else 9),
    )  # fmt: skip
    sides = "; ".join(f"{group}: {', '.join(members)}" for group, members in GROUPS.items())
    return finish(
        fig,
        "Control round the circle: CSR of each value while it is steered",
        f"Distance from the middle is the rate, spokes are 95 % intervals; {_sizes(rows)}. Grey: {escape(base)}. "
        f"Groups, counterclockwise from the right: {sides}.",
        height=640 if large else 90 + 300 * -(-len(panels) // columns),
        above=26,
        legend=dict(orientation="v", x=1, xanchor="right", y=1),
        margin=dict(l=60, r=60, b=40, t=150 if large else 170),
    )


def pareto(table: pd.DataFrame, x: str = "fr", y: str = "csr", *, base: str = "Base") -> go.Figure:
    """What control costs: one cross of 95 % intervals per method, means over values, and the Pareto front.

    table: one row per method, columns of `RATES`; methods without the rate are named below, not drawn. x: "fr",
    "unrelated" or "intact". The front joins methods that no other surpasses in both by point estimate: crosses that
    overlap are not told apart by it.
    """
    if not {x, y} <= {*RATES}:
        raise WorkbenchError(f"A Pareto figure of {y} against {x} was asked for.", allowed=", ".join(RATES))
    asked = f"A Pareto figure of {y} against {x}"
    rows = _single(_single(table, ["method"], x, asked), ["method"], y, asked)
    shown = rows.dropna(subset=[x, y]).reset_index(drop=True)
    look, (x_name, *x_ends), (y_name, *y_ends) = styles([*rows["method"]], base), RATES[x], RATES[y]
    fig = Draft()
    points = shown[[x, y]].to_numpy(float)
    beaten = [any((other >= own).all() and (other > own).any() for other in points) for own in points]
    front = shown[~np.array(beaten, bool)].sort_values(x)
    fig.add_scatter(x=front[x], y=front[y], mode="lines", line=dict(color=FAINT, width=1.5, dash="dot", shape="vh"),
                    name="Pareto front", hoverinfo="skip", showlegend=False)  # fmt: skip
    for row in shown.to_dict("records"):
        style = look[row["method"]]
        fig.add_scatter(
            x=[row[x]], y=[row[y]], mode="markers", name=escape(row["method"], 40), showlegend=False,
            error_x=bars([row[x]], [row[x_ends[0]]], [row[x_ends[1]]], style["color"]),
            error_y=bars([row[y]], [row[y_ends[0]]], [row[y_ends[1]]], style["color"]),
            marker=dict(color=style["color"], symbol=style["symbol"], size=10), hovertemplate=HOVER,
            hovertext=[f"<b>{escape(row['method'], 60)}</b><br>{y_name} {row[y]:.3f}"
                       f"{interval(row[y_ends[0]], row[y_ends[1]])}<br>{x_name} {row[x]:.3f}"
                       f"{interval(row[x_ends[0]], row[x_ends[1]])}"])  # fmt: skip
    low, high = _range(shown, x, *x_ends)
    fig.update_xaxes(title_text=f"{x_name}, mean over values", range=[low, high])
    fig.update_yaxes(title_text=f"{y_name}, mean over values", range=[-0.03, 1.03])
    _label_right(fig, shown[x], shown[y], [escape(m, 32) for m in shown["method"]],
                 [look[m]["color"] for m in shown["method"]], high)  # fmt: skip
    absent = [escape(m, 40) for m in rows["method"] if m not in {*shown["method"]}]
    return finish(
        fig,
        f"What control costs: {y_name} against {x_name}",
        "Means over the values, crosses are 95 % intervals; up and to the right is better. Dotted: the Pareto front by "
        "point estimates." + f" Not drawn, since not measured: {', '.join(absent)}." * bool(absent),
        height=500, margin_r=190,
    )  # fmt: skip


def negative_prompts(table: pd.DataFrame, *, base: str = "Base") -> go.Figure:
    """CSR without and with the negative prompt ("You have low level of ..."), one line per method.

    table: method, prompt ("none", "negative"), csr, low, high, n; one row per method and prompt, means over values.
    """
    asked = "A figure of negative prompts"
    rows = _single(table[table["prompt"].isin(["none", "negative"])], ["method", "prompt"], "csr", asked)
    if "negative" not in {*rows["prompt"]}:
        raise WorkbenchError(f"{asked} was asked for.", found="no answers under a negative prompt",
                             do="Evaluate with negative prompts first.")  # fmt: skip
    methods, fig, ends = list(dict.fromkeys(rows["method"])), Draft(), []
    look = styles(methods, base)
    for k, method in enumerate(methods):
        own = rows[rows["method"] == method].set_index("prompt").reindex(["none", "negative"])
        style, aside = look[method], 0.05 * (k - (len(methods) - 1) / 2) / max(1, len(methods) / 4)
        fig.add_scatter(
            x=[aside, 1 + aside], y=own["csr"], mode="lines+markers", name=escape(method, 40), showlegend=False,
            line=dict(color=style["color"], width=2, dash=style["dash"]), hovertemplate=HOVER,
            hovertext=_told(own, "csr", method, [", no prompt", ", negative prompt"]),
            marker=dict(color=style["color"], symbol=style["symbol"], size=9),
            error_y=bars(own["csr"], own["low"], own["high"], style["color"]))  # fmt: skip
        ends.append((method, own["csr"].loc["negative"], 1 + aside))
    ends = [end for end in ends if not math.isnan(end[1])]
    _label_right(fig, [x for *_, x in ends], [y for _, y, _ in ends], [escape(m, 32) for m, *_ in ends],
                 [look[m]["color"] for m, *_ in ends], 1.2)  # fmt: skip
    fig.update_xaxes(tickvals=[0, 1], ticktext=["no prompt", "negative prompt"], range=[-0.2, 1.2], showgrid=False)
    fig.update_yaxes(title_text="CSR, mean over values", range=[-0.03, 1.03])
    return finish(
        fig,
        "Negative prompts: CSR when the prompt asks for little of the steered value",
        f"Means over the values with 95 % intervals; {_sizes(rows)}. A flat line withstands the prompt.",
        height=480, margin_r=190,
    )  # fmt: skip


def forest(comparison: pd.DataFrame, *, base: str = "Base", measure: str = "CSR") -> go.Figure:
    """Paired differences to `base` with 95 % intervals: filled where significant after Holm's correction, else open.

    comparison: of `evaluation.compare`: method, value ("all": together), difference, low, high, p, p_holm, n. With rows
    "all" alone the methods stand below one another, else each has a panel with a row per value.
    """
    rows = _single(comparison[comparison["method"] != base], ["method", "value"], "difference",
                   "A figure of paired differences")  # fmt: skip
    methods = list(dict.fromkeys(rows["method"]))
    look = styles(methods, base)
    values = [v for v in ("all", *VALUES) if v in {*rows["value"]}]
    alone = values == ["all"] or len(values) == 1
    columns = 1 if alone else min(4, len(methods))
    lines = 1 if alone else -(-len(methods) // columns)
    fig = Draft.subplots(
        lines, columns, shared_yaxes=True, shared_xaxes=True, horizontal_spacing=0.025,
        vertical_spacing=0.0 if lines == 1 else 0.16 / lines,
        subplot_titles=None if alone else [escape(method, 32) for method in methods])  # fmt: skip
    fig.update_annotations(font_size=13)
    for at, method in enumerate(methods):
        own = rows[rows["method"] == method].set_index("value").reindex(values)
        sure = own["p_holm"].fillna(1).lt(0.05).to_list()
        colour, place = look[method]["color"], {} if alone else dict(row=at // columns + 1, col=at % columns + 1)
        names = [escape(method, 40)] if alone else ["all values" if v == "all" else v for v in values]
        fig.add_scatter(
            x=own["difference"], y=names, mode="markers", showlegend=False, name=escape(method, 40),
            hovertemplate=HOVER, error_x=bars(own["difference"], own["low"], own["high"], colour),
            marker=dict(color=[colour if s else "white" for s in sure], size=9 if alone else 8,
                        symbol=["diamond" if s else "circle" for s in sure], line=dict(color=colour, width=1.8)),
            hovertext=[
                f"<b>{escape(method, 60)}</b>, {'all values' if row['value'] == 'all' else row['value']}<br>"
                f"{escape(measure)} {row['difference']:+.3f} against {escape(base)}{interval(row['low'], row['high'])}"
                + ("" if math.isnan(row["p_holm"]) else f"<br>{p_value(row['p'])}, Holm {p_value(row['p_holm'])}")
                + f"<br>{row['n']:.0f} questions" for row in own.reset_index().to_dict("records")],
            **place)  # fmt: skip
    fig.add_vline(x=0, line=dict(color=FAINT, width=1))
    first, last = np.nanmin(rows["low"], initial=-0.02), np.nanmax(rows["high"], initial=0.02)
    edge = 0.05 * (last - first)
    fig.update_xaxes(range=[float(first - edge), float(last + edge)])
    fig.update_xaxes(title_text=f"difference of {escape(measure)}", row=lines)
    fig.update_yaxes(autorange="reversed", showgrid=True)
    return finish(
        fig,
        f"Paired differences: {escape(measure)} against {escape(base)} on the same questions",
        "Bars are 95 % intervals. Filled diamonds: significant at .05 after Holm's correction"
        + (" over the methods" if alone else " (each value over the ten)") + "; open circles: not.",
        height=150 + (30 * len(methods) if alone else lines * (40 + 22 * len(values))), above=20,
    )  # fmt: skip


def ablations(table: pd.DataFrame, of: str = "ConVA", *, base: str = "Base") -> go.Figure:
    """A method beside its variants ("ConVA, no gate") and `base`: every rate that was measured.

    table: one row per method, columns of `RATES`. The dashed line is the method itself.
    """
    names = [m for m in table["method"] if m == of or variant(m, of)]
    if len(names) < 2 or of not in names:
        raise WorkbenchError(f"Ablations of {of} were to be drawn.", found=", ".join(names) or "no such method",
                             allowed=f"{of!r} and methods called '{of}, ...'")  # fmt: skip
    names = [m for m in table["method"] if m == base] + [of, *(m for m in names if m != of)]
    rows = _single(table, ["method"], "csr", f"A figure of ablations of {of}").set_index("method").loc[names]
    shown = [key for key in RATES if key in rows and rows[key].notna().any()]
    fig = Draft.subplots(cols=len(shown), shared_yaxes=True, horizontal_spacing=0.03,
                         subplot_titles=[RATES[key][0] for key in shown])  # fmt: skip
    fig.update_annotations(font_size=13)
    colours = [FAINT if m == base else METHODS[0] if m == of else INK for m in names]
    for col, key in enumerate(shown, 1):
        own, (name, low, high) = rows[key], RATES[key]
        place: dict[str, Any] = dict(row=1, col=col)
        for k, method in enumerate(names):
            fig.add_scatter(
                x=[own[method]], y=[escape(method, 44)], mode="markers", showlegend=False, hovertemplate=HOVER,
                marker=dict(color=colours[k], symbol="diamond" if method == of else "circle", size=9),
                error_x=bars(own[[method]], rows[low][[method]], rows[high][[method]], colours[k]),
                hovertext=[f"<b>{escape(method, 60)}</b><br>{name} {own[method]:.3f}"
                           f"{interval(rows[low][method], rows[high][method])}"], **place)  # fmt: skip
        fig.add_vline(x=float(own[of]), line=dict(color=METHODS[0], width=1, dash="dash"), **place)
        fig.update_xaxes(range=_range(rows, key, low, high), row=1, col=col)
    fig.update_xaxes(title_text="rate")
    fig.update_yaxes(autorange="reversed")
    return finish(
        fig,
        f"Ablations: what each part of {escape(of, 40)} does",
        f"Means over the values with 95 % intervals; dashed: {escape(of, 40)} itself. An axis shows the part of 0 to 1 "
        "where the rates lie.",
        height=170 + 32 * len(names), above=20,
    )  # fmt: skip


def variant(method: str, of: str) -> bool:
    """Whether a method's name says that it is a variant of another: "ConVA, no gate" of "ConVA"."""
    return method.startswith(f"{of}, ")


def _single(table: pd.DataFrame, keys: list[str], rate: str, asked: str) -> pd.DataFrame:
    """The table itself, where it holds the rate and no row stands twice."""
    twice = table.duplicated(keys).any()
    if twice or rate not in table or table[rate].isna().all():
        many = f"several rows for one {' and '.join(keys)}"
        raise WorkbenchError(f"{asked} was asked for.", found=many if twice else f"no {rate} in {len(table)} rows",
                             allowed=f"one row for each {' and '.join(keys)}, with {rate}",
                             do="Choose one set, prompt and temperature first." if twice else None)  # fmt: skip
    return table


def _sizes(rows: pd.DataFrame) -> str:
    """How many questions rates stand on."""
    least, most = int(rows["n"].min()), int(rows["n"].max())
    return f"{least} questions each" if least == most else f"{least} to {most} questions each"


def _told(own: pd.DataFrame, key: str, method: str, more: Sequence[str] = ()) -> list[str]:
    """Hovers of one rate of a method, row by row."""
    name, low, high = RATES[key]
    said = list(more) or [f", {value}" for value in own.index]
    return [f"<b>{escape(method, 60)}</b>{where}<br>{name} {row[key]:.3f}{interval(row[low], row[high])}"
            f"<br>n = {row['n']:.0f}" for where, row in zip(said, own.to_dict("records"), strict=True)]  # fmt: skip


def bars(middle: Any, low: Any, high: Any, colour: str) -> dict[str, Any]:
    """An interval round each mark."""
    middle, low, high = (np.asarray(part, float) for part in (middle, low, high))
    return dict(array=high - middle, arrayminus=middle - low, color=colour, thickness=1.2, width=3)


def _range(rows: pd.DataFrame, key: str, low: str, high: str) -> list[float]:
    """What of 0 to 1 the rates and their intervals need, and at least .1."""
    first, last = np.nanmin([rows[key], rows[low]], initial=1), np.nanmax([rows[key], rows[high]], initial=0)
    first = min(first, last - 0.1)
    edge = 0.06 * (last - first)
    return [float(max(-0.02, first - edge)), float(min(1.02, last + edge))]


def _label_right(
    fig: Draft, x: Any, y: Any, names: Sequence[str], colours: Sequence[str], edge: float, gap: float = 0.052
) -> None:
    """Names in the right margin, each at the height of its mark or as near as `gap` allows, and a thin line to it.

    edge: right end of the x axis. The nearest heights that keep gap and order are an isotonic regression.
    """
    from sklearn.isotonic import isotonic_regression

    x, y = np.asarray(x, float), np.asarray(y, float)
    if not len(y):
        return
    order = np.argsort(y, kind="stable")
    steps = gap * np.arange(len(order))
    places = isotonic_regression(y[order] - steps) + steps
    places -= max(0.0, places[-1] - 1.02)
    places += max(0.0, -0.02 - places[0])
    lead = [part for at, k in zip(places, order, strict=True) for part in ((x[k], y[k]), (edge, at), (math.nan,) * 2)]
    fig.add_scatter(x=[a for a, _ in lead], y=[b for _, b in lead], mode="lines", line=dict(color=LINE, width=1),
                    hoverinfo="skip", showlegend=False, zorder=-1)  # fmt: skip
    for at, k in zip(places, order, strict=True):
        fig.add_annotation(x=edge, xanchor="left", xshift=6, y=at, text=f"<b>{names[k]}</b>", showarrow=False,
                           font=dict(color=readable(colours[k], ratio=4.5), size=12))  # fmt: skip
