"""Figures drawn as plain dicts are what plotly makes of the same calls, and valid; later changes are checked."""

import base64
import copy
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import xarray as xr
from drawn import every_figure, figures, known_curve, known_probes
from plotly.subplots import make_subplots

from workbench.figures.draft import Draft, Part, _names, as_json

FIGURES = every_figure()
LINE: dict[str, Any] = dict(color="#123456", dash=None, width=2)


def plain(fig: Any) -> Any:
    """A figure's data and layout with arrays and tuples as lists."""
    return _plain({"data": fig._data, "layout": fig._layout})


def _plain(node: Any) -> Any:
    if isinstance(node, np.ndarray | np.generic):
        return _plain(node.tolist())
    if isinstance(node, dict):
        return {key: _plain(part) for key, part in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(part) for part in node]
    return "NaN" if isinstance(node, float) and np.isnan(node) else node


# --- the figures are valid ---


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_passes_plotlys_validation(name, theme):
    fig = FIGURES[name] if theme == "light" else figures.dark(FIGURES[name])
    assert go.Figure(fig.to_plotly_json()) == fig
    assert plain(go.Figure(fig)) == plain(fig), "plotly would hold something else"


def test_a_draft_itself_checks_nothing_so_that_the_test_above_can_fail():
    fig = Draft().add_scatter(y=[1], colour="red").figure()
    with pytest.raises(ValueError, match="colour"):
        go.Figure(fig.to_plotly_json())


# --- the same calls, the same figure ---


def underscores(fig: Any) -> None:
    fig.add_scatter(x=[1, 2], y=[3, 4], line=LINE, line_width=5, error_x=dict(array=[1, 1], color="red"),
                    error_y_array=[1, 2], error_x_copy_ystyle=True, marker_line_color="blue", marker_line_width=1,
                    legendgrouptitle_text="each", hovertext=None, textfont={})  # fmt: skip
    fig.add_heatmap(z=[[1, 2], [3, 4]], colorscale=["#000000", "#ff0000", "#ffffff"], colorbar_title_text="z")
    fig.update_layout(paper_bgcolor="white", title=dict(text="a", subtitle=dict(text="")), title_subtitle_text="b",
                      coloraxis=dict(colorscale=[[0, "#000000"], [1, "#ffffff"]], colorbar_title_text="c"),
                      margin=dict(l=1, r=2), margin_r=3, xaxis_title_text="x", legend=dict(title_text="l"))  # fmt: skip
    fig.update_xaxes(tickfont_size=10, title="replaced").update_yaxes(title_font_color="red")


def arrays(fig: Any) -> None:
    table = pd.DataFrame({"a": [1.0, np.nan, 3.0], "b": ["x", "y", "z"], "c": [True, False, True], "d": [1, 2, 3]},
                         index=[5, 6, 7])  # fmt: skip
    fig.add_scatter(x=table["d"], y=table["a"], text=table["b"], error_y=dict(array=table["a"], visible=True))
    fig.add_scatter(x=table.index, y=xr.DataArray(np.arange(3.0), dims="k"), hovertext=np.array(["p", "q", "r"]))
    fig.add_bar(x=[np.float64(1), np.int64(2)], y=(1, float("nan")), width=np.float32(0.5), name=str(np.int64(1)))
    fig.add_heatmap(z=np.arange(6, dtype=np.int8).reshape(2, 3)[:, ::-1], x=table["c"], y=table["b"].to_numpy()[:2])
    fig.add_box(y=table["a"].to_list(), x0=np.int64(0), showlegend=False, customdata=[{"a_b": 1}] * 3)
    fig.update_xaxes(range=[np.float64(0), 2], tickvals=np.arange(3), ticktext=("a", "b", "c"))


def changes(fig: Any) -> None:
    fig.add_scatter(y=[1], mode="lines", name="one")
    fig.data[-1].update(mode="markers", marker_size=3, name=None)
    fig.update_layout(width=50, legend=dict(x=1, y=1), shapes=[dict(type="rect", x0=0, x1=1, y0=0, y1=1)])
    fig.update_layout(width=None, legend=dict(y=None), shapes=[dict(x0=2, line_width=0)])
    fig.add_annotation(x=1, y=1, text="a").add_annotation(x=2, y=2, text="b", font=dict(size=3))
    fig.update_annotations(font_size=13)
    for note in fig.layout.annotations:
        note.update(yshift=24, font_color="red")
    fig.update_layout(shapes=[*fig.layout.shapes, dict(type="line", x0=9)], annotations=[])


def lines(fig: Any) -> None:
    for row, col in ((1, 1), (1, 2), (2, 1)):
        fig.add_scatter(y=[1, 2], row=row, col=col)
    fig.add_vline(x=1, line=LINE)
    fig.add_hline(y=2, row=1, col=2, annotation=dict(text="bar"), annotation_position="bottom right")
    fig.add_hline(y=3, row=2, col="all", annotation_text="over the row", annotation_font_size=9)
    fig.add_vrect(x0=0, x1=1, row=1, col=1, fillcolor="red", annotation_text="band")
    fig.add_hrect(y0=0, y1=1, line_width=0, annotation=dict(text="all", x=0.5), annotation_position="inside left")
    fig.add_shape(type="line", x0=0, x1=1, y0=0, y1=1, row=2, col=2)
    fig.add_vline(x=7)  # the last plot holds something now


def lonely_lines(fig: Any) -> None:
    fig.add_scatter(y=[1, 2])
    fig.add_hline(y=0.5, line=LINE, annotation=dict(text="chance", font=dict(color="red")),
                  annotation_position="bottom right")  # fmt: skip
    fig.add_vline(x=1, row=1, col=1, annotation_text="bar", annotation_position="top left")
    fig.add_vline(x=2, yref="y2")
    fig.add_shape(type="line", x0=0, x1=1, y0=0, y1=1)


def notes(fig: Any) -> None:
    fig.update_annotations(font_size=13)
    fig.add_annotation(x=1, y=1, text="a", row=2, col=1)
    fig.add_annotation(x=1, y=1, text="b", row=1, col=2, xref="x domain", yref="y domain")
    fig.add_annotation(x=1, y=1, text="c", row=1, col=2, yref="y4")
    fig.add_annotation(x=1, y=1, text="d", row=1, col=2, yref="paper")
    fig.add_annotation(x=1, y=1, text="e", xref="x2 domain", yref="paper")
    fig.add_shape(type="rect", x0=0, x1=1, y0=0, y1=1, row=2, col=2, xref="x domain", line_width=0)


def axes(fig: Any) -> None:
    fig.update_xaxes(showgrid=False, title_text="every")
    fig.update_xaxes(title_text="row", row=2)
    fig.update_yaxes(title_text="column", range=[0, 1], col=2)
    fig.update_yaxes(title_text="cell", type="log", row=2, col=1)
    fig.update_layout(xaxis3=dict(dtick=1), xaxis_range=[0, 1])


def circles(fig: Any) -> None:
    fig.add_scatter(y=[1], row=1, col=1)
    fig.add_scatterpolar(r=[1], theta=[0], row=1, col=2)
    fig.add_barpolar(r=[1], theta=[0], base=1.03, row=2, col=1)
    fig.update_polars(radialaxis=dict(range=[0, 1], tickfont=dict(size=10)), angularaxis_rotation=10)
    fig.update_polars(bgcolor="red", row=2, col=1)
    fig.update_xaxes(title_text="x")


def holes(fig: Any) -> None:
    fig.add_scatter(y=[1], row=1, col=1).add_scatter(y=[1], row=2, col=2)
    fig.add_trace(go.Bar(y=[2], marker_line_width=0), row=1, col=1)
    fig.add_hline(y=1, row=2)
    fig.update_xaxes(title_text="x", row=1)


SQUARE: dict[str, Any] = dict(rows=2, cols=2, subplot_titles=["a", "b", "c", "d"], shared_yaxes=True,
                              horizontal_spacing=0.1, row_heights=[0.7, 0.3])  # fmt: skip
CALLS: list[tuple[Callable[[Any], None], dict[str, Any] | None]] = [
    (underscores, None), (arrays, None), (changes, None), (lonely_lines, None),
    (lines, SQUARE), (notes, SQUARE), (axes, SQUARE), (underscores, SQUARE),
    (axes, dict(rows=2, cols=2, shared_xaxes=True)), (lonely_lines, dict(cols=1)),
    (circles, dict(rows=2, cols=2, specs=[[{"type": "xy"}, {"type": "polar"}], [{"type": "polar"}, None]])),
    (holes, dict(rows=2, cols=2, specs=[[{"colspan": 2}, None], [None, {}]])),
]  # fmt: skip


@pytest.mark.parametrize(("draw", "grid"), CALLS, ids=lambda part: getattr(part, "__name__", None))
def test_the_same_calls_give_the_same_figure(draw, grid):
    wanted: Any = go.Figure() if grid is None else make_subplots(**copy.deepcopy(grid))
    draft = Draft() if grid is None else Draft.subplots(**copy.deepcopy(grid))
    draw(wanted)
    draw(draft)
    made: Any = draft.figure()
    assert plain(made) == plain(wanted)
    assert json.loads(made.to_json()) == json.loads(wanted.to_json())
    assert (made._grid_ref, made._grid_str) == (wanted._grid_ref, wanted._grid_str)


def test_names_with_an_underscore_of_their_own_are_kept():
    layout: Any = go.Layout()
    kinds = [kind for name in dir(go) if hasattr(kind := getattr(go, name), "_valid_props")]
    held = {name for kind in (*kinds, go.scatter.ErrorX, layout) for name in kind._valid_props if "_" in name}
    assert {"error_x", "plot_bgcolor", "copy_ystyle"} <= held
    assert {name: _names(name) for name in held} == {name: (name,) for name in held}
    assert _names("error_x_color") == ("error_x", "color") and _names("xaxis2_title_font_size")[0] == "xaxis2"


def test_drafts_share_nothing_with_what_they_were_given_or_with_one_another():
    y, line, note = np.arange(3.0), dict(width=1), dict(text="a")
    draft = Draft.subplots(**SQUARE).add_scatter(y=y, line=line, row=1, col=1).add_scatter(y=y, line=line, row=1, col=2)
    draft.add_hline(y=1, annotation=note, row=1, col=1)
    draft.data[0].update(line_width=7)
    draft.update_annotations(text="changed").update_xaxes(title_text="changed")
    y[0], line["width"] = 9, 9
    fig: Any = draft.figure()
    assert fig.data[0].y[0] == 0 and [trace.line.width for trace in fig.data] == [7, 1] and note == {"text": "a"}
    again: Any = Draft.subplots(**SQUARE).figure()
    assert plain(again) == plain(make_subplots(**SQUARE))
    again.layout.annotations[0].text = "mine"
    assert Draft.subplots(**SQUARE).layout.annotations[0].text == "a"


def test_what_a_draft_holds_can_be_read():
    draft = Draft().add_bar(y=[1], name="n").update_layout(title_text="t")
    assert draft.data[0].name == "n" and draft.layout.title.text == "t" and draft.layout.shapes == []
    with pytest.raises(AttributeError, match="mode"):
        draft.data[0].mode  # noqa: B018
    with pytest.raises(AttributeError):
        draft.layout.width = 3  # type: ignore[attr-defined]
    assert Part(a_b=1) == {"a": {"b": 1}}


# --- afterwards it is a figure like any other ---


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_later_changes_are_checked(theme):
    light = figures.transfer_by_step(known_probes(), trap=known_probes())
    fig: Any = light if theme == "light" else figures.dark(light)
    for wrong in (
        lambda: fig.update_layout(widht=3), lambda: fig.update_layout(width="wide"),
        lambda: fig.update_layout(title_fontt_size=3), lambda: fig.update_xaxes(tickangle="steep"),
        lambda: fig.layout.xaxis2.update(tickangle="steep"), lambda: fig.layout.annotations[0].update(x_ref="x"),
        lambda: fig.data[0].update(mode="dots"), lambda: fig.data[0].marker.update(size="big"),
        lambda: fig.add_scatter(y=[1], colour="red"), lambda: fig.add_annotation(txt="a"),
        lambda: fig.layout.template.layout.font.update(size="big"), lambda: fig.update_traces(line_width="big"),
        lambda: setattr(fig.layout, "height", "tall"), lambda: setattr(fig.data[0], "name2", "n"),
    ):  # fmt: skip
        before = fig.to_json()
        with pytest.raises((ValueError, AttributeError)):
            wrong()
        assert fig.to_json() == before


def test_later_changes_take_effect():
    fig: Any = figures.transfer_by_step(known_probes(), trap=known_probes())
    count = len(fig.data)
    fig.update_layout(title="mine", width=300, title_font_size=9, xaxis2_title_text="two", font=dict(size=20))
    fig.update_traces(marker_size=3, selector=dict(name="power")).update_yaxes(title_text="y", col=1)
    fig.add_scatter(y=[1, 2], name="new", row=1, col=2).add_vline(x=1, row=1, col=2)
    fig.data[0].marker.color = "red"
    fig.layout.annotations[-1].text = "changed"
    fig.layout.template.layout.font.size = 30
    told = json.loads(fig.to_json())
    assert told["layout"]["title"]["text"] == "mine" and told["layout"]["font"]["size"] == 20
    assert told["layout"]["xaxis2"]["title"]["text"] == "two" and told["layout"]["yaxis"]["title"]["text"] == "y"
    assert told["data"][count] == {"type": "scatter", "y": [1, 2], "name": "new", "xaxis": "x2", "yaxis": "y2"}
    assert told["layout"]["shapes"][-1]["xref"] == "x2" and told["data"][0]["marker"]["color"] == "red"
    assert told["layout"]["annotations"][-1]["text"] == "changed"
    assert told["layout"]["template"]["layout"]["font"]["size"] == 30 != figures.TEMPLATE.layout.font.size
    assert copy.deepcopy(fig) == fig == go.Figure(fig)
    fig.data = fig.data[:1]
    assert len(json.loads(fig.to_json())["data"]) == 1


def test_the_template_is_the_one_of_all_figures_as_it_stands():
    held = copy.deepcopy(figures.TEMPLATE)
    fig: Any = figures.dose_response(known_curve())
    assert fig.layout.template == figures.TEMPLATE
    try:
        figures.TEMPLATE.layout.font.size = 40
        assert figures.dose_response(known_curve()).layout.template.layout.font.size == 40
        assert fig.layout.template.layout.font.size == held.layout.font.size
    finally:
        figures.TEMPLATE.layout.font.size = held.layout.font.size


def test_a_dark_figure_shares_no_array_with_the_light_one():
    light: Any = Draft().add_scatter(y=np.arange(3.0), hovertext=["a", "b", "c"]).figure()
    dark = figures.dark(light)
    dark._data[0]["y"][0], dark._data[0]["hovertext"][0] = 9, "z"
    assert light.data[0].y[0] == 0 and light.data[0].hovertext[0] == "a"
    widget = SimpleNamespace(_data=light._data, _layout=light._layout)
    assert figures.dark(widget) == figures.dark(light)


@pytest.mark.parametrize("name", FIGURES)
def test_the_fast_json_is_the_same_figure(name):
    def listed(node: Any) -> Any:
        if isinstance(node, dict) and "bdata" not in node:
            return {key: listed(part) for key, part in node.items()}
        if isinstance(node, dict):
            flat = np.frombuffer(base64.b64decode(node["bdata"]), node["dtype"])
            return listed(flat.reshape([*map(int, str(node.get("shape", len(flat))).split(","))]).tolist())
        return [listed(part) for part in node] if isinstance(node, list) else None if node != node else node

    text = as_json(FIGURES[name])
    assert json.loads(text, parse_constant=pytest.fail) == listed(json.loads(FIGURES[name].to_json()))
