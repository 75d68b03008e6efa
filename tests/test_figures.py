"""Figures as data: traces, annotations, ranges; never pixels. Those of geometry and of colours have files of their own.
"""

import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from drawn import (
    CONTROLS,
    EVIL,
    LAYERS,
    clusters,
    every_figure,
    figures,
    known_blocks,
    known_controls,
    known_gate,
    known_probes,
    known_table,
    planted,
    reading,
)
from scipy.special import expit, logit

from workbench.errors import WorkbenchError
from workbench.figures.style import readable
from workbench.probes import Probes
from workbench.rates import wilson
from workbench.values import VALUES


@pytest.fixture
def probes() -> Probes:
    return known_probes()


@pytest.fixture
def gate():
    return known_gate()


@pytest.fixture
def table() -> pd.DataFrame:
    return known_table()


HOSTILE = set("accuracy transfer curves calibration generalisation cloud round gate csr profile audit".split())


@pytest.mark.parametrize(("name", "figure"), every_figure().items())
def test_every_figure_says_what_is_measured_and_is_safe_to_show(name, figure):
    text = json.dumps(json.loads(figure.to_json()), allow_nan=False)
    assert figure.layout.title.text
    assert figure.layout.template.layout.paper_bgcolor == "white"
    assert "<a " not in text and "$" not in text, "markup or a formula from the data"
    if name in HOSTILE:
        assert "&lt;a href" in text, "the hostile text is not shown at all: the check above proves nothing"
    hovers = [t for t in figure.data if getattr(t, "hovertemplate", None)]
    assert hovers and all(t.hovertemplate == "%{hovertext}<extra></extra>" for t in hovers)
    if name not in ("circle", "profile", "cosines"):
        axes = [axis.title.text for axis in (*figure.select_xaxes(), *figure.select_yaxes())]
        assert sum(bool(axis) for axis in axes) >= (1 if name in ("accuracy", "csr", "no csr", "round") else 2)


def test_figures_leave_their_data_alone(probes, gate, table):
    held, vectors = table.copy(deep=True), planted()
    oof, copy = gate.oof.copy(deep=True), vectors.copy(deep=True)
    figures.csr_bars(table)
    figures.gate_histogram(gate, pd.DataFrame({"prompt": gate.oof["prompt"], "kind": EVIL}))
    figures.cosine_heatmap(vectors)
    figures.circle_map(vectors)
    assert table.equals(held) and gate.oof.equals(oof) and vectors.identical(copy)


def test_escape():
    assert figures.escape("a <b>b</b>\n & $x$") == "a &lt;b&gt;b&lt;/b&gt; &amp; &#36;x&#36;"
    assert figures.escape("abcdef", 4) == "abc…"


# --- probes ---


def test_probe_accuracy_holds_the_numbers_in_circular_order(probes):
    held_out = xr.DataArray(np.full(10, 0.8), coords={"value": probes.values}).assign_coords(layer=5)
    figure = figures.probe_accuracy(probes, held_out)
    layers, beside = figure.data
    wanted = probes.accuracy.sel(value=list(VALUES)).values
    assert list(layers.y) == [*VALUES, "<b>mean</b>"] and list(layers.x) == [str(layer) for layer in LAYERS]
    np.testing.assert_allclose(layers.z, np.vstack([wanted, wanted.mean(0)]))
    np.testing.assert_allclose(np.array(beside.z)[:-1, 0], probes.tfidf.sel(value=list(VALUES)))
    assert list(beside.x) == ["TF-IDF", "held out,<br>layer 5"] and np.array(beside.z)[-1, 1] == pytest.approx(0.8)
    assert figure.layout.coloraxis.cmin == 0.5 and figure.layout.coloraxis.cmax == 1
    rate = wanted[0, 2]
    assert f"accuracy {rate:.3f}" in layers.hovertext[0][2] and "400 texts of 200 pairs" in layers.hovertext[0][2]
    low, high = probes.intervals.sel(value=VALUES[0], layer=2).values
    assert low < rate < high and f"interval {low:.3f} to {high:.3f}" in layers.hovertext[0][2]


def test_the_chosen_layer_is_framed(probes):
    chosen = probes.choose_layer()
    (frame,) = figures.probe_accuracy(probes).layout.shapes
    assert (frame.x0, frame.x1) == (chosen - 0.5, chosen + 0.5)
    late = replace(probes, weight=probes.weight.sel(layer=[5]), held_out=probes.held_out[5:])
    assert figures.probe_accuracy(late).layout.shapes == ()


def test_transfer_shows_every_probe_on_every_pair(probes):
    figure = figures.transfer_by_step(probes, layer=2)
    dots = {trace.name: trace for trace in figure.data if trace.mode == "markers"}
    assert set(dots) == set(VALUES) and all(len(trace.x) == 10 for trace in dots.values())
    own = probes.transfer_by_step(2)
    for value, trace in dots.items():
        assert trace.marker.color == figures.COLOURS[value]
        rows = own[own["probe"] == value]
        np.testing.assert_allclose(trace.y, rows["accuracy"])
        assert abs(np.array(trace.x) - rows["step"]).max() < 0.3  # beside its step, never at another
    (mean,) = [trace for trace in figure.data if trace.name == "mean"]
    np.testing.assert_allclose(mean.y, own.groupby("step")["accuracy"].mean())
    assert any(annotation.text == "chance" for annotation in figure.layout.annotations)
    assert "400 texts" in dots["power"].hovertext[0]


def test_the_trap_stands_beside(probes):
    figure = figures.transfer_by_step(probes, trap=probes)
    assert {trace.xaxis for trace in figure.data} == {"x", "x2"}
    assert "polarity pairs: the trap" in [annotation.text for annotation in figure.layout.annotations]
    assert figure.layout.yaxis2.matches == "y"


def test_layer_curves_hold_mean_values_controls_and_words(probes):
    controls = known_controls()
    figure = figures.layer_curves(probes, controls, threshold=0.7)
    lines = {trace.name: trace for trace in figure.data if trace.name}
    accuracy = probes.accuracy.sel(value=list(VALUES)).values
    np.testing.assert_allclose(lines["mean of 10 values"].y, accuracy.mean(0))
    for value, own in zip(VALUES, accuracy, strict=True):
        np.testing.assert_allclose(lines[value].y, own)
    for control in CONTROLS:
        own = controls.sel(control=control).values.reshape(-1, 6, order="A")
        np.testing.assert_allclose(lines[control].y, np.nanmean(own, 0))
        (band,) = [t for t in figure.data if t.fill == "toself" and t.legendgroup == control]
        low = np.nanquantile(own, 0.025, 0)
        np.testing.assert_allclose(band.y[:5:-1], low)
        np.testing.assert_allclose(band.y[:6], np.nanquantile(own, 0.975, 0))
        count = 20 if control == "random weights" else 50
        assert f"of {count} draws and values {low[2]:.3f}" in lines[control].hovertext[2]
    assert set(lines["TF-IDF"].y) == {float(probes.tfidf.mean())}
    chosen = probes.choose_layers(0.7)
    shaded = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert [(shape.x0 + shape.x1) / 2 for shape in shaded] == list(chosen) != []
    assert chosen.reason in figure.layout.title.subtitle.text.replace("<br>", " ")
    low, high = probes.intervals.sel(value="power", layer=3).values
    assert f"interval {low:.3f} to {high:.3f}<br>400 texts of 200 pairs" in lines["power"].hovertext[3]


def test_the_interval_of_the_mean_covers(probes):
    """Ten rates of known spread: the true mean lies below the mean's interval 2.5 times in 100, above it as often."""
    rng, below, above = np.random.default_rng(0), 0, 0
    truth = np.linspace(0.6, 0.9, 10)
    for _ in range(300):
        right = rng.random((10, 200)) < truth[:, None]
        held = np.where(right, 1.0, -1.0) * np.where(np.arange(200) < 100, 1, -1)
        examples = pd.DataFrame({"value": np.repeat(VALUES, 200), "pair": 0, "fold": 0, "text": "",
                                 "positive": np.tile(np.arange(200) < 100, 10)})  # fmt: skip
        layer = xr.DataArray(held.reshape(1, -1), dims=("layer", "example"))
        few = replace(probes, weight=probes.weight.sel(value=list(VALUES), layer=[0]), held_out=layer,
                      examples=examples)  # fmt: skip
        (mean,) = [t for t in figures.layer_curves(few).data if t.name == "mean of 10 values"]
        below += truth.mean() < mean.y[0] - mean.error_y.arrayminus[0]
        above += truth.mean() > mean.y[0] + mean.error_y.array[0]
    assert 1 <= below <= 17 and 1 <= above <= 17, (below, above)  # 99.9 % band of 7.5 in 300


def test_layer_curves_of_auroc_stand_without_what_is_no_auroc(probes):
    figure = figures.layer_curves(probes, known_controls(), measure="auroc")
    names = {trace.name for trace in figure.data}
    assert not names & {*CONTROLS, "TF-IDF"} and "AUROC" in figure.layout.yaxis.title.text
    (mean,) = [trace for trace in figure.data if trace.name == "mean of 10 values"]
    np.testing.assert_allclose(mean.y, probes.auroc.mean("value"))
    assert "No layer has a mean accuracy above 0.9" in figure.layout.title.subtitle.text
    with pytest.raises(WorkbenchError, match="Layer curves of 'f1'"):
        figures.layer_curves(probes, measure="f1")
    with pytest.raises(WorkbenchError, match="Controls were to be drawn"):
        figures.layer_curves(probes, known_controls().mean("draw"))


def test_calibration_bins_hold_every_text_once(probes):
    figure = figures.calibration_curve(probes, 2)
    curve = next(trace for trace in figure.data if trace.mode == "lines+markers")
    p, positive = expit(probes.held_out.values[2].astype(float)), probes.examples["positive"].to_numpy()
    last = p >= 0.9
    assert curve.x[-1] == pytest.approx(p[last].mean()) and curve.y[-1] == pytest.approx(positive[last].mean())
    low, high = wilson(positive[last].mean(), last.sum())
    assert f"interval {low:.3f} to {high:.3f}<br>{last.sum()} texts" in curve.hovertext[-1]
    assert sum(sum(trace.y) for trace in figure.data if trace.type == "bar") == len(p) == 4000
    said = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert f"Brier score {float(probes.brier.sel(layer=2).mean()):.3f}" in said
    assert f"calibration error {float(probes.calibration_error.sel(layer=2).mean()):.3f}" in said
    with pytest.raises(WorkbenchError, match="Calibration at layer 9"):
        figures.calibration_curve(probes, 9)


def test_perfect_probabilities_lie_on_the_diagonal(probes):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 40_000)
    positive = rng.random(40_000) < expit(logits)
    honest = replace(probes, held_out=xr.DataArray(logits[None], {"layer": [3]}, ("layer", "example")),
                     weight=probes.weight.sel(layer=[3], value=["power"]),
                     examples=pd.DataFrame({"value": "power", "positive": positive}))  # fmt: skip
    curve = next(t for t in figures.calibration_curve(honest, 3).data if t.mode == "lines+markers")
    assert abs(np.array(curve.x) - curve.y).max() < 0.03


def test_generalisation_shows_blocks_against_blocks():
    blocks = known_blocks()
    figure = figures.generalisation(blocks)
    assert "layer 4" in figure.layout.title.text, "the layer of best accuracy within blocks"
    np.testing.assert_allclose(figure.data[0].z, [[0.9, 0.7], [0.7, 0.9]])
    assert "lowest value 0.680" in figure.data[0].hovertext[0][1]
    same, other = (next(t for t in figure.data if t.name == name) for name in ("same block", "another block"))
    np.testing.assert_allclose(np.array(same.y) - other.y, 0.2)
    assert sum(getattr(trace, "mode", "") == "lines" for trace in figure.data) == 4
    assert "layer 1" in figures.generalisation(blocks, layer=1).layout.title.text
    with pytest.raises(WorkbenchError, match="across blocks"):
        figures.generalisation(blocks.mean("value"))
    with pytest.raises(WorkbenchError, match="at layer 7"):
        figures.generalisation(blocks, layer=7)


def test_an_activation_map_tells_how_stable_it_is():
    acts, labels = clusters()
    figure = figures.activation_map(acts, labels, method="umap", seeds=2)
    assert torch.get_num_threads() == 1, "umap leaves the models their threads"
    said = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert "Procrustes R² between 2 layouts" in said and "mean little" in said and "trustworthiness" in said
    assert sorted(len(trace.x) for trace in figure.data) == [30, 30, 30]
    assert figure.data[0].marker.color == figures.COLOURS["power"]
    centres = np.array([[np.mean(trace.x), np.mean(trace.y)] for trace in figure.data])
    for trace, centre in zip(figure.data, centres, strict=True):  # three clusters, each with its own
        apart = np.linalg.norm(np.c_[trace.x, trace.y][:, None] - centres, axis=2)
        assert (apart.argmin(1) == np.flatnonzero((centres == centre).all(1))).all()
    again = figures.activation_map(acts, labels, method="umap", seeds=1)
    assert all(np.array_equal(a.x, b.x) for a, b in zip(figure.data, again.data, strict=True)), "seeded"
    assert "not known" in again.layout.title.subtitle.text


def test_layouts_agree_when_one_is_the_other_turned(monkeypatch):
    class Turned:
        def __init__(self, random_state, **_):
            self.turn = np.array([[np.cos(random_state), np.sin(random_state)], [np.sin(random_state),
                                                                                 -np.cos(random_state)]])  # fmt: skip

        def fit_transform(self, points):
            return 3 * points[:, :2] @ self.turn + 1

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Turned))
    acts, labels = clusters()
    said = figures.activation_map(acts, labels, seeds=3).layout.title.subtitle.text.replace("<br>", " ")
    assert "between 3 layouts (others start at random): 1.00." in said


def test_a_map_by_principal_axes_is_theirs():
    acts, labels = clusters()
    figure = figures.activation_map(acts, labels, method="pca")
    drawn = np.concatenate([np.c_[trace.x, trace.y] for trace in figure.data])
    centred = acts.values - acts.values.mean(0)
    np.testing.assert_allclose(np.linalg.svd(drawn)[1], np.linalg.svd(centred)[1][:2])
    for wrong, match in (({"method": "tsne"}, "tsne"), ({"neighbours": 60}, "60 neigh"), ({"seeds": 0}, "0 seeds")):
        with pytest.raises(WorkbenchError, match=match):
            figures.activation_map(acts, labels, **wrong)
    with pytest.raises(WorkbenchError, match="3 labels"):
        figures.activation_map(acts, labels[:3])
    acts.values[0, 0] = np.nan
    with pytest.raises(WorkbenchError, match="finite"):
        figures.activation_map(acts, labels)


# --- gate and steering ---


def test_the_gate_histogram_counts_both_sides_and_marks_the_threshold(gate):
    figure = figures.gate_histogram(gate)
    bars = {trace.name: trace for trace in figure.data if trace.type == "bar"}
    assert set(bars) == {"unrelated, n = 60", "related, n = 30"}
    assert all(sum(trace.y) == pytest.approx(1) for trace in bars.values()), "a prompt fell outside the bins"
    assert figure.layout.shapes[0].x0 == pytest.approx(logit(0.25))
    assert figure.layout.annotations[0].text == "threshold 0.25"
    opened = gate.rates["open"]
    low, high = wilson(opened, 30)
    hover = bars["related, n = 30"].hovertext[0]
    assert f"opens for {opened:.1%}" in hover and f"{low:.3f} to {high:.3f}" in hover


def test_the_gate_histogram_shows_kinds_row_by_row(gate):
    kinds = pd.DataFrame({"prompt": gate.oof["prompt"][30:], "kind": ["fact", "sum"] * 30})
    figure = figures.gate_histogram(gate, kinds)
    dots = [trace for trace in figure.data if trace.type == "scatter"]
    assert sorted(len(trace.x) for trace in dots) == [30, 30, 30]
    assert list(figure.layout.yaxis2.ticktext) == ["fact, 30", "sum, 30", "dilemmas, 30"]


def test_csr_bars_are_the_table_with_its_intervals(table):
    figure = figures.csr_bars(table)
    assert [trace.name for trace in figure.data[:3]] == ["Base", "ConVA", figures.escape(EVIL)]
    own, bars = table[table["method"] == "ConVA"], figure.data[1]
    np.testing.assert_allclose(bars.y[:-1], own["csr"])
    low, high = wilson(own["csr"].mean(), 300)
    np.testing.assert_allclose(np.array(bars.y) + bars.error_y.array, [*own["high"], high])
    np.testing.assert_allclose(np.array(bars.y) - bars.error_y.arrayminus, [*own["low"], low])
    assert "n = 30" in bars.hovertext[0] and "n = 300" in bars.hovertext[-1]
    fluency = figure.data[4]
    np.testing.assert_allclose(fluency.y[:-1], own["fr"])
    assert bars.marker.color == fluency.marker.color != figure.data[0].marker.color
    assert "30 answers" in figure.layout.title.subtitle.text


def test_without_a_judge_the_reason_stands_in_the_place_of_csr(table):
    empty = table.assign(**dict.fromkeys(["csr", "low", "high", "fr", "fr_low", "fr_high"], np.nan), p_reader=0.7)
    empty.attrs["reason"] = "no judge: it reads embedded worlds only"
    figure = figures.csr_bars(empty)
    said = [annotation.text for annotation in figure.layout.annotations]
    assert said == ["<i>empty: no judge: it reads embedded worlds only</i>"] * 2
    assert all(math.isnan(y) for trace in figure.data[:6] for y in trace.y)
    np.testing.assert_allclose(figure.data[6].y, 0.7)
    assert "probe of other pairs" in figure.layout.yaxis3.title.text
    assert figures.csr_bars(table).layout.annotations == ()


def test_a_profile_goes_once_round_the_circle():
    before, after = xr.DataArray(np.full(10, 0.1), coords={"value": list(VALUES)}), dict.fromkeys(VALUES, 0.3)
    after["power"] = 0.9
    figure = figures.value_profile(before, pd.Series(after), "power")
    low, high = figure.data
    assert list(high.theta) == [*range(0, 360, 36), 0] and high.r[0] == high.r[-1] == 0.3
    assert high.r[VALUES.index("power")] == 0.9 and set(low.r) == {0.1}
    assert high.line.color == readable(figures.COLOURS["power"])
    assert list(figure.layout.polar.angularaxis.ticktext) == list(VALUES)
    assert figure.layout.polar.radialaxis.range == (0, 1)
    del after["hedonism"]
    assert len(figures.value_profile(after, after).data[0].r) == 10


def test_the_reading_shows_the_value_by_layer_and_all_values_at_the_last_steered_one():
    figure = reading()
    before, after, target, *profile = figure.data
    assert list(before.y) == [0.2] * 6 and list(after.y) == [0.2, 0.2, 0.2, 0.9, 0.9, 0.2]
    assert list(target.y) == [0.9, 0.9]
    assert profile[1].r[VALUES.index("tradition")] == 0.9 and profile[1].r[0] == 0.2
    assert [(shape.x0 + shape.x1) / 2 for shape in figure.layout.shapes] == [3, 4]
    unread = reading(math.nan)
    assert [trace.type for trace in unread.data] == [trace.type for trace in figure.data]
    assert unread.data[1].y[3] is None, "NaN is no JSON"
