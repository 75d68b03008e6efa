"""Figures of an evaluation as data: their marks are the table's numbers, and they are safe and readable."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import xarray as xr
from drawn import EVIL, figures
from evaluated import evaluation, figures_of
from test_figures_themes import contrast, marks, texts

from workbench.errors import WorkbenchError
from workbench.figures.evaluating import styles, variant
from workbench.figures.style import METHODS, readable
from workbench.values import VALUES

FIGURES = figures_of(evaluation())


@pytest.fixture
def by_method() -> pd.DataFrame:
    """A and B are on the Pareto front, A beats C in one rate only, D equals B, E was not measured."""
    rows = [("A", 0.9, 0.6), ("B", 0.5, 0.99), ("C", 0.4, 0.6), ("D", 0.5, 0.99), ("E", 0.7, np.nan)]
    table = pd.DataFrame(rows, columns=["method", "csr", "fr"]).assign(n=70)
    for column, low, high in (("csr", "low", "high"), ("fr", "fr_low", "fr_high")):
        table[low], table[high] = table[column] - 0.03, table[column] + 0.01
    return table


def rates(methods=("Base", "A", "B")) -> pd.DataFrame:
    """CSR .01 per place and .1 per method, from .05 below to .1 above; values are not in circular order."""
    return pd.DataFrame([
        dict(method=m, value=v, csr=(r := 0.1 * i + 0.01 * VALUES.index(v)), low=r - 0.05, high=r + 0.1, n=70)
        for i, m in enumerate(methods) for v in VALUES[::-1]
    ])  # fmt: skip


def known_leakage(method: str = EVIL) -> SimpleNamespace:
    """Gains .5; power lifts security surely by .2 and hedonism by chance, tradition surely lowers stimulation."""
    matrix = xr.DataArray(0.5 * np.eye(10), {"steered": list(VALUES), "value": list(VALUES)}, ("steered", "value"))
    for steered, value, rise in (("power", "security", 0.2), ("power", "hedonism", 0.05),
                                 ("tradition", "stimulation", -0.15)):  # fmt: skip
        matrix.loc[steered, value] = rise
    matrix.loc["universalism"] = np.nan
    steps = pd.DataFrame({"step": range(6), "n": [10, 20, 20, 20, 20, 10]})
    for k, name in enumerate(("raw", "centred")):
        steps[name] = 0.3 - 0.05 * steps["step"] - 0.1 * k
        steps[f"{name}_low"], steps[f"{name}_high"] = steps[name] - 0.02, steps[name] + 0.03
    fit = pd.DataFrame({"amplitude": [0.1, 0.2], "low": 0.05, "high": 0.3, "offset": [0.02, 0.0], "r2": 0.9},
                       index=["raw", "centred"])  # fmt: skip
    shift = lambda: matrix - 0.04  # noqa: E731
    return SimpleNamespace(method=method, matrix=matrix.isel(value=slice(None, None, -1)), low=matrix - 0.1,
                           high=matrix + 0.1, centred=shift, profile=lambda: (steps, fit))  # fmt: skip


# --- all of them ---


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_titled_and_safe(name):
    figure = FIGURES[name]
    text = json.dumps(json.loads(figure.to_json()), allow_nan=False)
    assert json.loads(go.Figure(figure.to_plotly_json()).to_json() or "") == json.loads(figure.to_json()), "not valid"
    assert figure.layout.title.text and figure.layout.title.subtitle.text
    assert "<a " not in text and "$" not in text, "markup or a formula from the data"
    if name != "ablations":
        assert "&lt;a href" in text, "the hostile name is not shown: the check above proves nothing"
    hovers = [trace for trace in figure.data if trace.hoverinfo != "skip"]
    assert hovers and all(trace.hovertemplate == "%{hovertext}<extra></extra>" for trace in hovers)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", FIGURES)
def test_text_and_marks_stand_out(name, theme):
    figure = FIGURES[name] if theme == "light" else figures.dark(FIGURES[name])
    layout = figure.layout.to_plotly_json()
    template = layout.pop("template")["layout"]
    ground = {"white": "#ffffff"}.get(template["paper_bgcolor"], template["paper_bgcolor"])
    weak = [c for c in texts([layout, template], template["font"]["color"]) if contrast(c, ground) < 4.5]
    assert not weak, f"text in {weak}"
    weak = [(trace.name, shown) for trace in figure.data for shown in marks(trace)
            if max(contrast(colour, ground) for colour in shown) < 3]  # fmt: skip
    assert not weak, f"marks in {weak}"


def test_forty_two_methods_look_different_and_base_is_grey():
    look = styles(["Base", "m0", "m0", *(f"m{k}" for k in range(42))])
    assert len({(s["color"], s["symbol"], s["dash"]) for s in look.values()}) == len(look) == 43
    assert look["Base"]["color"] not in {readable(colour) for colour in METHODS}
    assert look["m1"]["color"] == readable(METHODS[1]), "a method keeps its colour however often it is named"


# --- rates ---


def test_the_circle_shows_each_rate_at_its_values_place_and_its_interval_as_a_spoke():
    table = rates()
    figure = figures.csr_circle(table)
    rim, *lines = figure.data
    assert list(rim.marker.color) == list(figures.COLOURS.values()) and rim.hoverinfo == "skip"
    for method in ("Base", "A", "B"):
        own = table[table["method"] == method].set_index("value").loc[list(VALUES)]
        at = next(k for k, trace in enumerate(lines) if trace.name == method)
        line, spokes = lines[at], lines[at - 1]
        np.testing.assert_allclose(line.r, [*own["csr"], own["csr"].iloc[0]])
        assert np.abs(np.array(line.theta[:10]) - 36 * np.arange(10)).max() <= 3
        np.testing.assert_allclose(np.array(spokes.r)[0::3], own["low"])
        np.testing.assert_allclose(np.array(spokes.r)[1::3], own["high"])
        assert list(spokes.theta[0::3]) == list(spokes.theta[1::3]) == list(line.theta[:10])
    assert len({trace.theta[0] for trace in lines if trace.name}) == 3, "spokes of two methods hide one another"


def test_many_methods_stand_side_by_side_each_over_base():
    figure = figures.csr_circle(rates(("Base", *"ABCDEF")))
    by_panel: dict = {}
    for trace in figure.data:
        if trace.name:
            by_panel.setdefault(trace.subplot, []).append(trace.name)
    assert list(by_panel.values()) == [["Base", letter] for letter in "ABCDEF"]
    assert [a.text for a in figure.layout.annotations] == list("ABCDEF")


def test_the_pareto_front_is_of_those_that_none_surpasses(by_method):
    figure = figures.pareto(by_method)
    front = next(trace for trace in figure.data if trace.name == "Pareto front")
    assert {*zip(front.x, front.y, strict=True)} == {(0.6, 0.9), (0.99, 0.5)}
    assert list(front.x) == sorted(front.x)
    crosses = {trace.name: trace for trace in figure.data if trace.mode == "markers"}
    assert list(crosses) == ["A", "B", "C", "D"] and "E" in figure.layout.title.subtitle.text
    a = crosses["A"]
    assert (a.x[0], a.y[0]) == (0.6, 0.9)
    np.testing.assert_allclose([a.error_x.array[0], a.error_x.arrayminus[0]], [0.01, 0.03])
    np.testing.assert_allclose([a.error_y.array[0], a.error_y.arrayminus[0]], [0.01, 0.03])


def test_names_beside_lines_keep_their_order_and_never_overlap(by_method):
    figure = figures.pareto(by_method)
    places = {a.text.removeprefix("<b>").removesuffix("</b>"): a.y for a in figure.layout.annotations}
    assert {*places} == {"A", "B", "C", "D"} and places["A"] == pytest.approx(0.9)
    heights = sorted(places.values())
    assert np.diff(heights).min() >= 0.052 - 1e-9
    assert places["C"] < min(places["B"], places["D"]) < max(places["B"], places["D"]) < places["A"]
    crowd = pd.concat([by_method.iloc[[0]].assign(method=f"m{k}", csr=1.0) for k in range(6)])
    assert max(a.y for a in figures.pareto(crowd).layout.annotations) <= 1.02 + 1e-9


def test_pareto_refuses_what_was_not_measured(by_method):
    with pytest.raises(WorkbenchError, match="csr, fr, unrelated, intact"):
        figures.pareto(by_method, "speed")
    with pytest.raises(WorkbenchError, match="no intact in 5 rows"):
        figures.pareto(by_method, "intact")


def test_negative_prompts_join_both_rates_of_a_method(by_method):
    table = pd.concat([by_method.assign(prompt="none"), by_method.assign(prompt="negative", csr=by_method["csr"] / 2)])
    figure = figures.negative_prompts(table)
    lines = {trace.name: trace for trace in figure.data if trace.mode == "lines+markers"}
    assert {name: tuple(line.y) for name, line in lines.items()} == {
        row["method"]: (row["csr"], row["csr"] / 2) for row in by_method.to_dict("records")}  # fmt: skip
    with pytest.raises(WorkbenchError, match="no answers under a negative prompt"):
        figures.negative_prompts(table[table["prompt"] == "none"])


def test_significance_is_told_by_shape(by_method):
    paired = pd.DataFrame([
        dict(method=m, value=v, difference=d, low=d - 0.1, high=d + 0.2, p=p / 3, p_holm=p, n=70)
        for m, d, p in (("A", 0.4, 0.049), ("B", 0.1, 0.051), ("C", 0.1, np.nan)) for v in ("all", *VALUES)
    ])  # fmt: skip
    for table, marks_each in ((paired[paired["value"] == "all"], 1), (paired, 11)):
        shown = {trace.name: trace for trace in figures.forest(table).data}
        assert {*shown["A"].marker.symbol} == {"diamond"} and "white" not in shown["A"].marker.color
        for method in "BC":
            assert {*shown[method].marker.symbol} == {"circle"} and {*shown[method].marker.color} == {"white"}
        assert len(shown["A"].x) == marks_each
        np.testing.assert_allclose(shown["A"].error_x.array, 0.2)
        np.testing.assert_allclose(shown["A"].error_x.arrayminus, 0.1)


def test_ablations_are_the_variants_of_one_method(by_method):
    names = ["Base", "ConVA", "ConVA, no gate", "ConVA at NeVA", "CAA"]
    table = by_method.assign(method=names, fr=0.9)
    figure = figures.ablations(table)
    assert list(dict.fromkeys(trace.y[0] for trace in figure.data)) == ["Base", "ConVA", "ConVA, no gate"]
    assert [shape.x0 for shape in figure.layout.shapes] == [0.5, 0.9]
    assert variant("ConVA, no gate", "ConVA") and not variant("ConVA at NeVA", "ConVA")
    with pytest.raises(WorkbenchError, match="'CAA, ...'"):
        figures.ablations(table, "CAA")


@pytest.mark.parametrize("draw", [figures.csr_circle, figures.forest])
def test_a_table_of_several_settings_or_without_judgements_is_refused(draw):
    table = rates().assign(difference=0.1, p=0.5, p_holm=0.5)
    with pytest.raises(WorkbenchError, match="several rows for one method and value(.|\n)*Choose one"):
        draw(pd.concat([table, table]))
    with pytest.raises(WorkbenchError, match="no (csr|difference) in"):
        draw(table.assign(csr=np.nan, difference=np.nan))


# --- leakage ---


def test_the_matrix_is_in_circular_order_with_sure_cells_bold_and_undefined_ones_empty():
    leakage = known_leakage()
    figure = figures.leakage_matrix(leakage)
    z, text = np.array(figure.data[0].z, float), np.array(figure.data[0].text)
    place = {v: k for k, v in enumerate(VALUES)}
    assert z[place["power"], place["security"]] == 0.2 and z[place["tradition"], place["stimulation"]] == -0.15
    assert text[place["power"], place["security"]] == "<b>+.20</b>"
    assert text[place["power"], place["hedonism"]] == "+.05"
    assert text[place["tradition"], place["stimulation"]] == "<b>−.15</b>"
    assert np.isnan(z[place["universalism"]]).all() and set(text[place["universalism"]]) == {""}
    assert "undefined" in figure.data[0].hovertext[place["universalism"]][0]
    assert len(figure.layout.shapes) == 10 and all(s.x0 == s.y0 and s.x1 == s.y1 for s in figure.layout.shapes)
    centred = figures.leakage_matrix(leakage, centred=True)
    np.testing.assert_allclose(np.array(centred.data[0].z, float), z - 0.04)
    assert "<b>" not in json.dumps(np.array(centred.data[0].text).tolist()), "intervals are of the raw matrix"


def test_arcs_lead_from_the_steered_value_to_those_that_surely_change():
    figure = figures.leakage_circle(known_leakage())
    arcs = [trace for trace in figure.data if trace.mode == "lines+markers"]
    place = np.exp(2j * np.pi * np.arange(10) / 10)
    ends = []
    for arc in arcs:
        first, last = (complex(arc.x[k], arc.y[k]) for k in (0, -1))
        ends.append((VALUES[abs(place - first).argmin()], VALUES[abs(place - last).argmin()], arc.line.dash))
    assert sorted(ends) == [("power", "security", "solid"), ("tradition", "stimulation", "dot")]
    widths = {arc.line.dash: arc.line.width for arc in arcs}
    assert widths["solid"] > widths["dot"] and "pairs 2 have" in figure.layout.title.subtitle.text.replace("<br>", " ")
    assert len([t for t in figures.leakage_circle(known_leakage(), most=1).data if t.mode == "lines+markers"]) == 1


def test_the_profile_shows_means_fit_and_no_steered_value():
    figure = figures.leakage_by_step([known_leakage("A"), known_leakage("B")])
    points = [trace for trace in figure.data if trace.mode == "markers"]
    assert [p.name for p in points] == ["A", "A", "B", "B"]
    np.testing.assert_allclose(points[0].y, 0.3 - 0.05 * np.arange(1, 6))
    np.testing.assert_allclose(points[1].y, 0.2 - 0.05 * np.arange(1, 6), atol=1e-12)
    np.testing.assert_allclose(points[0].error_y.arrayminus, 0.02)
    curve = next(trace for trace in figure.data if trace.mode == "lines")
    np.testing.assert_allclose(curve.y, 0.02 + 0.1 * np.cos(np.radians(36 * np.array(curve.x))))
    assert set(np.round(points[0].x)) == set(range(1, 6))
    with pytest.raises(WorkbenchError, match="one or more of `leakage`"):
        figures.leakage_by_step([])
