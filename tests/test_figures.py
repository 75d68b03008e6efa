"""Figures as data: traces, annotations, ranges; never pixels."""

import itertools
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.special import expit, logit

from workbench import figures as plain_figures
from workbench import geometry
from workbench.errors import WorkbenchError
from workbench.evaluation.metrics import wilson
from workbench.gates import ProbeGate
from workbench.probes import Probes
from workbench.values import VALUES, angles, circular_steps

figures: Any = plain_figures  # plotly's types do not say what its objects hold
EVIL = "<a href='javascript:1'>x</a> $\\alpha$"
SCRAMBLED = (0, 4, 8, 1, 3, 2, 9, 7, 6, 5)
LAYERS = range(6)


def planted(noise: float = 0.3, order=None, seed: int = 0) -> xr.DataArray:
    """Ten vectors on a circle, with what all share and noise."""
    rng, theta = np.random.default_rng(seed), angles(order=order)
    circle = np.stack([np.cos(theta), np.sin(theta)], 1) @ np.linalg.qr(rng.normal(size=(40, 2)))[0].T
    shared, off = rng.normal(size=40) / 4, noise * rng.normal(size=(10, 40)) / np.sqrt(40)
    return xr.DataArray(circle + shared + off, dims=("value", "d_model"), coords={"value": list(VALUES)})


@pytest.fixture
def probes() -> Probes:
    """Probes with known numbers; their values do not come in circular order."""
    values, rng = [VALUES[k] for k in SCRAMBLED], np.random.default_rng(0)
    accuracy = 0.6 + 0.05 * np.arange(6) + 0.01 * np.arange(10)[:, None]
    cross = np.zeros((10, 10, 6)) + (0.5 + 0.4 * np.cos(np.pi * circular_steps(order=None) / 5))[..., None]
    order = [VALUES.index(v) for v in values]
    arrays = {
        "weight": (("value", "layer", "d_model"), rng.normal(size=(10, 6, 4))),
        "bias": (("value", "layer"), np.zeros((10, 6))),
        "accuracy": (("value", "layer"), accuracy),
        "auroc": (("value", "layer"), accuracy),
        "intervals": (("value", "layer", "bound"), np.stack([accuracy - 0.04, accuracy + 0.03], -1)),
        "tfidf": (("value",), np.linspace(0.4, 0.58, 10)),
        "cross": (("probe", "pairs", "layer"), cross[np.ix_(order, order)]),
    }
    names = {"value": values, "probe": values, "pairs": values, "layer": list(LAYERS)}
    labelled = {
        name: xr.DataArray(array, dims=dims, coords={dim: names[dim] for dim in dims if dim in names})
        for name, (dims, array) in arrays.items()
    }
    provenance = {"model": EVIL, "n_layers": 6, "n_pairs": dict.fromkeys(values, 200)}
    return Probes("logistic", **labelled, provenance=provenance)


@pytest.fixture
def gate() -> ProbeGate:
    rng, related = np.random.default_rng(0), np.repeat([True, False], [30, 60])
    score = expit(np.where(related, 4, -5) + rng.normal(size=90))
    score[0] = 1.0  # saturated: its logit is infinite
    prompts = [f"{EVIL} {number}" for number in range(90)]
    oof = pd.DataFrame({"prompt": prompts, "related": related, "score": score})
    return ProbeGate(3, np.zeros(4, np.float32), 0.0, 0.25, 0.01, oof)


@pytest.fixture
def table() -> pd.DataFrame:
    rows = []
    for (m, method), (v, value) in itertools.product(enumerate(("Base", "ConVA", EVIL)), enumerate(VALUES)):
        csr, fr, n = 0.1 + 0.3 * m + 0.01 * v, 1.0 - 0.02 * m, 30
        (low, high), (fr_low, fr_high) = wilson(csr, n), wilson(fr, n)
        rows.append(dict(method=method, value=value, csr=csr, low=low, high=high, fr=fr, fr_low=fr_low,
                         fr_high=fr_high, leakage=0.0, n=n))  # fmt: skip
    return pd.DataFrame(rows)


def reading(after_at_4: float = 0.9) -> Any:
    before = xr.DataArray(np.full((10, 6), 0.2), coords={"value": list(VALUES), "layer": list(LAYERS)})
    after = before.copy()
    after.loc[{"value": "tradition", "layer": [3, 4]}] = after_at_4
    return figures.steering_reading(before, after, "tradition", 0.9, [3, 4])


def every_figure(probes, gate, table) -> dict[str, Any]:
    vectors, kinds = planted(), pd.DataFrame({"prompt": gate.oof["prompt"], "kind": EVIL})
    empty = table.assign(csr=np.nan, low=np.nan, high=np.nan, p_reader=0.5)
    empty.attrs["reason"] = EVIL
    rates = dict.fromkeys(VALUES, 0.2)
    return {
        "accuracy": figures.probe_accuracy(probes),
        "transfer": figures.transfer_by_step(probes, trap=probes),
        "cosines": figures.cosine_heatmap(vectors, reference=geometry.human_reference()),
        "circle": figures.circle_map(vectors),
        "null": figures.permutation_null(geometry.circumplex_fit(vectors)),
        "gate": figures.gate_histogram(gate, kinds),
        "csr": figures.csr_bars(table),
        "no csr": figures.csr_bars(empty),
        "profile": figures.value_profile(rates, rates, EVIL, EVIL),
        "reading": reading(),
    }


def test_every_figure_says_what_is_measured_and_is_safe_to_show(probes, gate, table):
    for name, figure in every_figure(probes, gate, table).items():
        text = json.dumps(json.loads(figure.to_json()), allow_nan=False)
        assert figure.layout.title.text, name
        assert figure.layout.template.layout.paper_bgcolor == "white", name
        assert "<a " not in text and "$" not in text, f"{name} shows markup or a formula from the data"
        if name in ("accuracy", "transfer", "gate", "csr", "profile"):
            assert "&lt;a href" in text, f"{name} does not show the hostile text at all: the check above proves nothing"
        hovers = [t for t in figure.data if getattr(t, "hovertemplate", None)]
        assert hovers and all(t.hovertemplate == "%{hovertext}<extra></extra>" for t in hovers), name
        if name not in ("circle", "profile", "cosines"):
            axes = [axis.title.text for axis in (*figure.select_xaxes(), *figure.select_yaxes())]
            assert sum(bool(axis) for axis in axes) >= 2 or name in ("accuracy", "csr", "no csr"), name


def test_figures_leave_their_data_alone(probes, gate, table):
    held, vectors = table.copy(deep=True), planted()
    oof, copy = gate.oof.copy(deep=True), vectors.copy(deep=True)
    every_figure(probes, gate, table)
    figures.cosine_heatmap(vectors)
    figures.circle_map(vectors)
    assert table.equals(held) and gate.oof.equals(oof) and vectors.identical(copy)


def test_escape():
    assert figures.escape("a <b>b</b>\n & $x$") == "a &lt;b&gt;b&lt;/b&gt; &amp; &#36;x&#36;"
    assert figures.escape("abcdef", 4) == "abc…"


# --- colours ---


def oklab(colour: str, sight: np.ndarray) -> np.ndarray:
    """A colour as eyes with `sight` (linear RGB to linear RGB) see it, in OKLab."""
    rgb = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    linear = np.clip(sight @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    to_cones = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
    to_lab = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
    return np.array(to_lab) @ np.cbrt(np.array(to_cones) @ linear)


@pytest.mark.parametrize(
    "sight",
    [
        np.eye(3),
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ],
    ids=["full sight", "deuteranopia", "protanopia", "tritanopia"],
)
def test_colours_of_values_are_told_apart_and_follow_the_circle(sight):
    seen = np.array([oklab(figures.COLOURS[value], np.array(sight)) for value in VALUES])
    apart, steps = np.linalg.norm(seen[:, None] - seen, axis=2), circular_steps()
    assert apart[steps > 0].min() > 0.07
    assert apart[steps == 1].max() < apart[steps == 2].min()


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
    assert f"interval {rate - 0.04:.3f} to {rate + 0.03:.3f}" in layers.hovertext[0][2]


def test_the_chosen_layer_is_framed(probes):
    chosen = probes.choose_layer()
    (frame,) = figures.probe_accuracy(probes).layout.shapes
    assert (frame.x0, frame.x1) == (chosen - 0.5, chosen + 0.5)
    late = Probes(**{**vars(probes), "accuracy": probes.accuracy.sel(layer=[5]), "weight": probes.weight.sel(layer=[5]),
                     "intervals": probes.intervals.sel(layer=[5])})  # fmt: skip
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


# --- geometry ---


def test_cosines_raw_beside_centred_on_one_scale_round_zero():
    vectors = planted()
    figure = figures.cosine_heatmap(vectors)
    for trace, centred in zip(figure.data, (False, True), strict=True):
        shown, wanted = np.array(trace.z, float), geometry.cosines(vectors, centred=centred).values
        off = ~np.eye(10, dtype=bool)
        np.testing.assert_allclose(shown[off], wanted[off])
        assert np.isnan(np.diag(shown)).all() and trace.coloraxis == "coloraxis"
    axis = figure.layout.coloraxis
    assert (axis.cmin, axis.cmid, axis.cmax) == (-1, 0, 1)
    assert len(figures.cosine_heatmap(vectors, centred=False).data) == 1
    assert list(figures.cosine_heatmap(vectors, order=SCRAMBLED).data[0].x) == [VALUES[k] for k in SCRAMBLED]


def boxes(figure) -> list[tuple[str, float, float, float, float]]:
    """Name, left, right, bottom, top of every label in pixels; letters 7.5 px wide, which is more than they are."""
    scale = (figure.layout.width - 20) / np.ptp(figure.layout.xaxis.range)
    found = []
    for label in figure.layout.annotations:
        text = label.text.replace("<b>", "").replace("</b>", "").replace("<i>", "").replace("</i>", "")
        wide, high, size = 7.5 * len(text), 20, (label.x * scale, label.y * scale + (label.yshift or 0))
        left = size[0] - {"left": 0, "center": wide / 2, "right": wide}[label.xanchor]
        bottom = size[1] - {"bottom": 0, "middle": high / 2, "top": high}[label.yanchor]
        found.append((text, left, left + wide, bottom, bottom + high))
    return found


@pytest.mark.parametrize("layout", ["equal", "wedges"])
@pytest.mark.parametrize("noise", [0, 0.5, 1.5, 4])
def test_labels_of_the_circle_neither_overlap_nor_leave_the_picture(noise, layout):
    figure = figures.circle_map(None, geometry.circumplex_fit(planted(noise), layout=layout))
    labels, half = boxes(figure), (figure.layout.width - 20) / 2
    assert {label[0] for label in labels} >= set(VALUES)
    for (a, l1, r1, b1, t1), (b, l2, r2, b2, t2) in itertools.combinations(labels, 2):
        assert r1 <= l2 or r2 <= l1 or t1 <= b2 or t2 <= b1, f"{a} lies on {b}"
    for name, left, right, _, _ in labels:
        assert -half <= left and right <= half, f"{name} leaves the picture"


def test_the_circle_map_draws_vectors_beside_their_ideal_places():
    vectors = planted(noise=0)
    fit = geometry.circumplex_fit(vectors)
    figure = figures.circle_map(vectors, fit)
    (points,) = [trace for trace in figure.data if trace.name == "value vector"]
    (ideal,) = [trace for trace in figure.data if trace.name == "ideal place"]
    theta = angles()
    np.testing.assert_allclose(np.c_[ideal.x, ideal.y], np.c_[np.cos(theta), np.sin(theta)], atol=1e-9)
    np.testing.assert_allclose(np.c_[points.x, points.y], np.c_[ideal.x, ideal.y], atol=1e-6)  # as planted
    assert list(points.marker.color) == list(figures.COLOURS.values())
    assert figure.layout.yaxis.scaleanchor == "x"
    said = figure.layout.title.subtitle.text
    assert "correspondence index <b>1.00</b>" in said and "p = 5.5 × 10⁻⁶" in said
    off = figures.circle_map(planted(noise=1))
    (points,) = [trace for trace in off.data if trace.name == "value vector"]
    assert np.hypot(np.array(points.x) - ideal.x, np.array(points.y) - ideal.y).max() > 0.05


def test_the_circle_map_of_another_order():
    vectors = planted(noise=0, order=SCRAMBLED)
    figure = figures.circle_map(vectors, order=SCRAMBLED)
    (points,) = [trace for trace in figure.data if trace.name == "value vector"]
    theta = angles(order=SCRAMBLED)
    np.testing.assert_allclose(np.c_[points.x, points.y], np.c_[np.cos(theta), np.sin(theta)], atol=1e-6)
    assert "Schwartz" not in figure.layout.title.text
    assert not any(trace.fill for trace in figure.data), "groups that do not stand together have no sectors"
    assert sum(trace.fill == "toself" for trace in figures.circle_map(planted()).data) == 4
    with pytest.raises(WorkbenchError, match="another order than its fit's"):
        figures.circle_map(vectors, geometry.circumplex_fit(vectors), order=SCRAMBLED)


def test_the_null_holds_every_order_once():
    fit = geometry.circumplex_fit(planted())
    figure = figures.permutation_null(fit)
    assert sum(figure.data[0].y) == 181_440
    assert figure.layout.shapes[0].x0 == figure.layout.shapes[0].x1 == fit.ci
    assert f"observed {fit.ci:.3f}" in figure.layout.annotations[0].text
    assert f"{round(fit.p * 181_440):,} of 181,440" in figure.layout.annotations[0].text
    assert figure.layout.yaxis.type == "log"


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
    assert high.line.color == figures.COLOURS["power"]
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
