"""The geometry panel without a screen: what it finds piece by piece is what the geometry finds at once."""

import html
import json
import re
import sys
from dataclasses import replace
from typing import Any

import ipywidgets as widgets
import numpy as np
import pytest
import xarray as xr
from circles import named, pair_activations, planted
from panelled import HOSTILE, drawn, in_a_loop, inside, until

from workbench.errors import WorkbenchError
from workbench.geometry import CircumplexFit, circumplex_fit, cosines, human_reference, planted_axis_map
from workbench.panels.geometry import Geometry, geometry
from workbench.panels.states.geometry import GeometryState
from workbench.panels.states.kept import KeptFit
from workbench.probes import PairActivations
from workbench.values import VALUES, VALUES19
from workbench.vectors import ValueVectors

views, states = (sys.modules[kind.__module__] for kind in (Geometry, GeometryState))


@pytest.fixture(scope="module")
def acts() -> PairActivations:
    return pair_activations(planted(noise=0.8), noise=2.0, layers=3)


@pytest.fixture(scope="module")
def probes(acts):
    return acts.fit("logistic", C=0.5, folds=2)


@pytest.fixture
def panel(probes) -> Geometry:
    panel = geometry(probes, layer=1)
    assert (panel.problem.value, panel.ending) == ("", "done")
    return panel


def numbers(packed: Any) -> np.ndarray:
    """An array of a figure's JSON, as plotly packs it or as a list."""
    if isinstance(packed, dict):
        import base64

        flat = np.frombuffer(base64.b64decode(packed["bdata"]), packed["dtype"])
        return flat.reshape([int(n) for n in packed["shape"].split(",")]) if "shape" in packed else flat
    return np.array(packed, float)


def places(plot) -> np.ndarray:
    """Where a circle's figure puts the values, (value, 2)."""
    (trace,) = [trace for trace in drawn(plot)["data"] if trace.get("name") == "value vector"]
    return np.stack([numbers(trace["x"]), numbers(trace["y"])], 1)


# --- pieces ---


def test_vectors_are_the_weights_of_a_whole_fit(acts):
    for method in ("logistic", "mean_difference", "lda", "pca"):
        whole = acts.fit(method, C=0.5, folds=2, layers=[2])
        np.testing.assert_array_equal(acts.vectors(2, method, 0.5), whole.weight.sel(layer=2))
        one = acts.vectors(2, method, 0.5, ["power"])
        np.testing.assert_array_equal(one.sel(value="power"), whole.weight.sel(layer=2, value="power"))
    for wrong in (dict(layer=7), dict(layer=0, values=["humour"])):
        with pytest.raises(WorkbenchError, match="Vectors of .* at layer . were asked for.\nAllowed: self-direction"):
            acts.vectors(**wrong)
    with pytest.raises(WorkbenchError, match="Probes by 'svm'"):
        acts.vectors(0, "svm")


def test_resampling_step_by_step_is_resampling(acts):
    steps, told = acts.resampling(1, 12, "logistic", 0.5, seed=3, splits=5), []
    while True:
        try:
            told.append(next(steps))
        except StopIteration as end:
            found = end.value
            break
    whole = acts.resample(1, 12, "logistic", 0.5, seed=3, splits=5)
    assert len(told) == 10 * 22 and told[0] == ("self-direction", 2) and told[-1] == ("universalism", 23)
    for name in ("vectors", "bootstrap", "halves", "differences"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert found.draws == whole.draws


@pytest.mark.parametrize(("layout", "order"), [("equal", "swapped"), ("wedges", "schwartz")])
def test_a_null_in_blocks_is_the_null(layout, order):
    fit = circumplex_fit(planted(noise=0.8), layout=layout, order=order)
    kept = KeptFit.of(fit)
    for plain, own in ((fit, kept), (fit.raw, kept.raw)):
        assert isinstance(plain, CircumplexFit) and isinstance(own, KeptFit)
        for statistic in ("ci", "spearman", "pearson", "procrustes_r2") if layout == "equal" else ("ci", "spearman"):
            assert not own.has(statistic)
            np.testing.assert_array_equal(own.null_of(statistic), plain.null_of(statistic))
            assert own.has(statistic)
        assert own.claim() == plain.claim() and own.spearman_p == plain.spearman_p
    with pytest.raises(WorkbenchError, match="The null of 'gap' was asked for"):
        kept.null_of("gap")


def test_a_null_of_nineteen_is_the_null():
    vectors = planted(among=VALUES19, noise=0.8)
    fit = circumplex_fit(vectors, labellings=5000)
    kept = KeptFit.of(fit)
    np.testing.assert_array_equal(kept.null, fit.null)
    assert len(kept._spans) == 1 and kept.p == fit.p


# --- state ---


@pytest.mark.parametrize(
    ("setting", "wrong", "said"),
    [
        ("layer", 3, "The geometry at layer 3 was asked for.\nAllowed: 0, 1, 2"),
        ("method", "svm", "The method 'svm' was asked for.\nAllowed: 'logistic', 'mean_difference', 'lda', 'pca'"),
        ("layout", "square", "The layout 'square' was asked for.\nAllowed: 'equal', 'wedges'"),
        ("order", "random", "The order 'random' was asked for.\nAllowed: 'schwartz', 'swapped'"),
        ("statistic", "gap", "The statistic 'gap' was asked for.\nAllowed: 'ci', 'spearman', 'pearson', 'procr"),
        ("people", "martians", "The people 'martians' was asked for.\nAllowed: 'none', 'pvq40', 'pvq40-ips"),
    ],
)
def test_wrong_settings_are_refused_and_change_nothing(probes, setting, wrong, said):
    state = GeometryState(probes)
    before = state.settings
    with pytest.raises(WorkbenchError) as error:
        setattr(state, setting, wrong)
    assert said in str(error.value) and state.settings == before
    with pytest.raises(WorkbenchError):
        GeometryState(probes, **{setting: wrong})


def test_what_cannot_be_shown_is_refused_at_once(probes):
    for make, said in (
        (lambda: geometry(probes, colour="red"), "Settings colour were asked for.\nAllowed: layer, method"),
        (lambda: geometry(np.zeros((7, 4))), r"an array of shape \(7, 4\)"),
        (lambda: geometry(probes, human="martians"), "The people 'martians' was asked for"),
        (lambda: geometry(planted(), words=True), "words alone was asked for.\nFound: vectors without their pairs"),
        (lambda: geometry(probes, words=3), "words alone was asked for.\nFound: int"),
        (lambda: geometry(probes, words=circumplex_fit(planted(among=VALUES19))), "Found: a fit of 19 values"),
        (lambda: GeometryState(planted(), method="lda"), "Found: vectors as they are, no activations to fit others on"),
        (lambda: GeometryState(planted(among=VALUES19), layout="wedges"), "Allowed: 'equal'"),
    ):
        with pytest.raises(WorkbenchError, match=f"(?s){said}"):
            make()


@pytest.mark.parametrize("method", ["logistic", "mean_difference", "lda", "pca"])
@pytest.mark.parametrize(("layout", "order"), [("equal", "swapped"), ("wedges", "schwartz")])
def test_the_fit_is_the_geometrys_own(acts, probes, method, layout, order):
    state = GeometryState(probes, layer=2, method=method, layout=layout, order=order).complete()
    expected = circumplex_fit(acts.fit(method, C=0.5, folds=2, layers=[2]), layer=2, layout=layout, order=order)
    assert state.fit is not None and state.fit.source == f"synthetic, {method}, layer 2"
    np.testing.assert_allclose(state.fit.similarity, expected.similarity, atol=1e-6)
    assert state.fit.claim() == expected.claim()
    state.centred = False
    assert state.complete().fit is not None and expected.raw is not None
    assert state.fit.claim() == expected.raw.claim() != expected.claim()
    xr.testing.assert_allclose(state.vectors().drop_attrs(), acts.vectors(2, method, 0.5).drop_attrs())


def test_the_most_urgent_piece_is_found_first(probes, monkeypatch):
    state = GeometryState(probes, layer=0, method="mean_difference")
    asked = []
    vectors = PairActivations.vectors
    monkeypatch.setattr(PairActivations, "vectors", lambda self, layer, *more: asked.append(layer)
                        or vectors(self, layer, *more))  # fmt: skip
    for _ in range(4):
        assert state.step(ahead=True)
    state.layer = 2
    while not state.ready:
        state.step(ahead=True)
    assert asked == [0] * 4 + [2] * 10, "something else came before what is shown"
    state.layer = 0
    state.complete()
    assert asked[14:] == [0] * 6, "vectors were fitted twice, or not at all"
    while state.step(ahead=True):
        pass
    assert asked[20:] == [1] * 10
    for layer in (2, 1):
        state.layer = layer
        assert state.ready, "the layer beside was not found ahead"


def test_nulls_are_kept_up_to_a_limit(probes, monkeypatch):
    state = GeometryState(probes, layer=0).complete()
    assert state.fit is not None
    one = state.fit.nbytes
    monkeypatch.setattr(states, "HELD", int(2.5 * one))
    while state.step(ahead=True):
        pass
    held = [layer for layer in range(3) if (fit := state._fits.get(state.key._replace(layer=layer))) and fit.nbytes]
    assert held == [0], "others were found ahead that there is no room for"
    for layer in (1, 2):
        state.layer = layer
        state.complete()
    held = [layer for layer in range(3) if state._fits[state.key._replace(layer=layer)].nbytes]
    assert held == [1, 2], "the oldest was not forgotten"
    state.layer = 0
    assert not state.ready and state.complete().ready


def test_resamples_are_those_of_the_geometry(acts, probes, monkeypatch):
    monkeypatch.setattr(states, "SLICE", 0.0)
    state: Any = GeometryState(probes, layer=1, words=True).complete()
    before = state.fit
    state.resample(20, seed=2)
    told = set()
    while state.progress:
        state.step()
        told.add(state.progress)
    assert any(re.fullmatch(r"power \(5 of 10 values\), \d+ fits", one) for one in told)
    assert any(one.startswith("words alone: ") for one in told)
    drawn = acts.resample(1, 20, "logistic", 0.5, seed=2)
    expected: Any = circumplex_fit(drawn)
    fit = state.fit
    assert fit is not before and state.resampled and fit.has("ci")
    np.testing.assert_allclose(fit.intervals[["low", "high"]], expected.intervals[["low", "high"]], atol=1e-9)
    np.testing.assert_allclose(fit.similarity_intervals, expected.similarity_intervals, atol=1e-9)
    np.testing.assert_allclose(fit.spread().iloc[:, 1:].astype(float), expected.spread().iloc[:, 1:].astype(float),
                               atol=1e-9)  # fmt: skip
    assert fit.claim().replace("synthetic, logistic, layer 1", "synthetic, layer 1") == expected.claim()
    words = circumplex_fit(PairActivations.of_words(acts.pairs).resample(0, 20, "logistic", 0.5, seed=2))
    row = expected.compare(words).differences.loc["ci"]
    assert f"difference {row['difference']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" in fit.beyond(state.words_fit)
    table = expected.conflicts(texts=2)
    first = state.conflicts().iloc[0]
    assert (first["value"], first["other"]) == (table.loc[0, "value"], table.loc[0, "other"])
    texts: Any = table.loc[0, "texts"]
    assert [*state.texts_of(first["value"], first["other"]).itertuples(index=False, name=None)] == [
        pytest.approx(row) for row in texts
    ]
    state.layout = "wedges"
    assert state.complete().fit.intervals is not None, "another circle, the same resamples"
    state.layer = 2
    assert not state.resampled and state.complete().fit.intervals is None


def test_resampling_stops_and_leaves_nothing(probes, monkeypatch):
    monkeypatch.setattr(states, "SLICE", 0.0)
    state = GeometryState(probes, layer=1).complete()
    state.resample(50)
    for _ in range(30):
        state.step()
    assert state.progress.startswith("self-direction")
    state.stop_resampling()
    assert state.progress == "" and not state.step() and not state.resampled
    assert state.fit is not None and state.fit.intervals is None
    for method in ("lda", "pca"):
        state.method = method
        with pytest.raises(WorkbenchError, match="Pairs are resampled for logistic and mean_difference only"):
            state.resample()
    with pytest.raises(WorkbenchError, match="came without their pairs of texts"):
        GeometryState(replace(probes, activations=None)).resample()


# --- panel ---


def test_the_figures_show_the_fit(panel, acts, probes):
    for layer in (1, 2):
        panel.controls["layer"].value = layer
        expected = circumplex_fit(probes, layer=layer)
        table = planted_axis_map(expected.similarity).set_index("value").loc[list(VALUES)]
        np.testing.assert_allclose(places(panel.circle), table[["x", "y"]], atol=1e-6)
        assert f"layer {layer}" in drawn(panel.circle)["layout"]["title"]["subtitle"]["text"]
        raw, centred = (numbers(trace["z"]) for trace in drawn(panel.heat)["data"][:2])
        for shown, is_centred in ((raw, False), (centred, True)):
            off = ~np.eye(10, dtype=bool)
            matrix = cosines(probes.weight.sel(layer=layer), centred=is_centred)
            np.testing.assert_allclose(shown[off], matrix.values[off], atol=1e-6)
        assert f"observed {expected.ci:.3f}" in drawn(panel.null)["layout"]["annotations"][0]["text"]
        assert html.escape(expected.claim()) in panel.claim.value
    assert "Each vector is fitted on 12 pairs of texts" in panel.claim.value
    clear = int((expected.conflicts()["conflict"]).sum())
    assert f"Opposed values encoded alike: {clear} of 15" in panel.conflicts.value
    panel.controls["centred"].value = False
    assert expected.raw is not None and html.escape(expected.raw.claim()) in panel.claim.value
    assert [a["text"] for a in drawn(panel.heat)["layout"]["annotations"]] == ["raw"]
    panel.controls["statistic"].value = "procrustes_r2"
    assert f"observed {expected.raw.procrustes_r2:.3f}" in drawn(panel.null)["layout"]["annotations"][0]["text"]
    assert panel.problem.value == ""


def test_people_are_shown_beside(probes):
    matrix = human_reference("svs").rename("our own survey")
    panel = geometry(probes, human=matrix)
    assert panel.state.people == "our own survey" and "our own survey" in panel.controls["people"].options[-1]
    theirs = planted_axis_map(matrix).set_index("value").loc[list(VALUES)][["x", "y"]]
    for setting in ("our own survey", "svs"):
        panel.controls["people"].value = setting
        (trace,) = [trace for trace in drawn(panel.circle)["data"] if trace.get("name") == "people"]
        np.testing.assert_allclose(np.stack([numbers(trace["x"]), numbers(trace["y"])], 1), theirs, atol=1e-6)
    assert "correlation among people (svs)" in [a["text"] for a in drawn(panel.heat)["layout"]["annotations"]]
    panel.state.people = "none"
    assert "people" not in [trace.get("name") for trace in drawn(panel.circle)["data"]]


@pytest.mark.parametrize("kind", ["array", "named", "vectors", "layers"])
def test_vectors_alone_have_no_methods_and_no_resamples(kind, probes):
    array = planted(noise=0.8)
    given: Any = {
        "array": array, "named": named(array, range(9, -1, -1)), "vectors": ValueVectors.of(probes),
        "layers": np.stack([planted(noise=0.8, seed=k) for k in range(2)]),
    }[kind]  # fmt: skip
    if kind == "layers":
        given = xr.DataArray(given, {"layer": [3, 5], "value": list(VALUES)}, ("layer", "value", "d_model"))
    panel = geometry(given)
    assert "method" not in panel.controls and panel.go.disabled
    assert ("layer" in panel.controls) == (kind in ("vectors", "layers"))
    assert "came without their pairs of texts" in panel.status.value
    if kind in ("array", "named"):
        assert html.escape(circumplex_fit(array).claim()) in panel.claim.value
        with pytest.raises(WorkbenchError, match="The geometry at layer 2 was asked for"):
            panel.state.layer = 2
    else:
        panel.controls["layer"].value = first = panel.state.layers[0]
        own = given.at(first) if kind == "vectors" else given.sel(layer=first)
        assert f"correspondence index {circumplex_fit(own).ci:.2f}" in panel.claim.value
        assert f"layer {first}" in panel.claim.value


def test_nineteen_values_have_a_panel_too():
    panel = geometry(planted(among=VALUES19, noise=0.5))
    assert "nineteen values" in panel.claim.value and "Monte Carlo" in panel.claim.value
    assert "layout" not in panel.controls and "people" not in panel.controls
    panel.controls["order"].value = "swapped"
    assert panel.problem.value == "" and "benevolence and universalism swapped" in panel.claim.value


def test_words_alone_stand_beside(acts, probes):
    panel = geometry(probes, words=True)
    assert "Is that just lexical?" in panel.lexical.value and "no interval of the difference" in panel.lexical.value
    assert panel.state.words_fit is not None
    expected = circumplex_fit(PairActivations.of_words(acts.pairs).vectors(0, "logistic", 0.5))
    np.testing.assert_allclose(panel.state.words_fit.similarity, expected.similarity, atol=1e-12)
    given = geometry(probes, words=expected)
    assert html.escape(f"against {expected.ci:.2f} of {expected.source}") in given.lexical.value
    assert geometry(probes).lexical.value == ""


def test_controls_and_state_follow_each_other_in_two_views(probes):
    state = GeometryState(probes)
    one, two = Geometry(state), Geometry(state)
    one.controls["layer"].value, one.controls["method"].value = 0, "pca"
    two.controls["layout"].value, two.controls["centred"].value = "wedges", False
    state.statistic = "pearson"
    for name, control in one.controls.items():
        assert control.value == two.controls[name].value == getattr(state, name)
    for name in ("circle", "heat", "null"):
        assert getattr(one, name).figure == getattr(two, name).figure
    assert one.claim.value == two.claim.value and "nine wedges" in one.claim.value


def test_resampling_by_the_button_draws_ellipses_and_intervals(panel, monkeypatch):
    monkeypatch.setattr(views, "TIMES", 25)
    assert not panel.go.disabled and panel.stop.disabled
    traces = len(drawn(panel.circle)["data"])
    panel.go.click()
    assert panel.state.resampled and panel.go.disabled and "25 resamples of the pairs" in panel.status.value
    assert len(drawn(panel.circle)["data"]) == traces + 10
    assert re.search(r"correspondence index [\d.-]+ \[[\d.-]+, [\d.-]+\]", panel.claim.value)
    assert re.search(r"<td>-?\d\.\d\d \[-?\d\.\d\d, -?\d\.\d\d\]", panel.conflicts.value)
    assert "the 95 % interval lies above 0" in panel.conflicts.value
    assert panel.conflicts.value.count("<li>") == 4
    panel.controls["method"].value = "lda"
    assert panel.go.disabled and "logistic and mean_difference only" in panel.status.value


def test_what_goes_wrong_is_shown_and_mended_by_another_setting(acts, probes):
    broken = acts.acts.copy()
    broken[{"layer": 0}] = 1.0
    panel = geometry(replace(probes, activations=replace(acts, acts=broken)), layer=1, method="lda")
    assert panel.problem.value == "" and panel.body.layout.display in (None, "")
    panel.controls["layer"].value = 0
    assert "the same activation for every text at layer 0" in panel.problem.value
    assert panel.ending == "failed" and panel.body.layout.display == "none"
    panel.controls["layer"].value = 2
    assert panel.problem.value == "" and panel.body.layout.display == "" and "layer 2" in panel.claim.value
    panel.controls["method"].options = ["logistic", "svm"]
    panel.controls["method"].value = "svm"
    assert "The method &#x27;svm&#x27; was asked for." in panel.problem.value
    assert panel.controls["method"].value == panel.state.method == "logistic"


def test_text_of_models_and_pairs_is_escaped(acts, monkeypatch):
    monkeypatch.setattr(views, "TIMES", 8)
    texts = acts.pairs.assign(positive=[f"{HOSTILE} {k}" for k in range(len(acts.pairs))])
    renamed = dict(zip(acts.pairs["positive"], texts["positive"], strict=True))
    content = [renamed.get(text, text) for text in acts.acts["content"].values]
    own = PairActivations(acts.acts.assign_coords(content=("text", content)), texts, {"model": HOSTILE, "n_layers": 10})
    panel = geometry(own.fit("mean_difference", folds=2), words=True)
    panel.go.click()
    assert "&lt;script&gt;" in panel.claim.value and "&lt;script&gt;" in panel.conflicts.value
    for widget in inside(panel):
        if isinstance(widget, widgets.HTML):
            assert "<script" not in widget.value and "<img" not in widget.value
    for plot in (panel.circle, panel.heat, panel.null):
        told = json.dumps(drawn(plot))  # plotly's JSON has escapes of its own
        assert "<script" not in told and "<img" not in told


# --- in an event loop, as in a kernel ---


def test_dragging_shows_the_last_position_and_finds_the_others_ahead(acts, probes):
    async def steps():
        panel = geometry(probes, layer=0)
        turns, shown = panel.circle.turn, []
        panel.circle.observe(lambda _: shown.append(panel.state.layer), "turn")
        for _ in range(10):
            for layer in (1, 2):
                panel.controls["layer"].value = layer
        assert panel.circle.turn == turns, "a move of the slider was drawn before the kernel was free"
        await until(lambda: panel.ending == "done")
        assert shown == [2], "positions in between were drawn"
        assert html.escape(circumplex_fit(probes, layer=2).claim()) in panel.claim.value
        for layer in (0, 1):
            assert panel.state._fits[panel.state.key._replace(layer=layer)].has("ci"), "not found ahead"

    in_a_loop(steps())


def test_resampling_can_be_cancelled_while_layers_are_looked_at(probes):
    async def steps():
        panel = geometry(probes, layer=0)
        await until(lambda: panel.ending == "done")
        panel.go.click()
        await until(lambda: "self-direction" in panel.status.value)
        assert not panel.stop.disabled and panel.go.disabled
        panel.controls["layer"].value = 2
        await until(lambda: "layer 2" in panel.claim.value)
        assert panel.state.progress, "looking at another layer stopped the resampling"
        panel.stop.click()
        await until(lambda: panel.ending == "done")
        assert panel.stop.disabled and not panel.go.disabled and not panel.state._resamples

    in_a_loop(steps())


# --- models ---


def test_craftgpt_has_a_panel(craftgpt):
    from workbench.probes import fit_probes
    from workbench.prompts import load_pairs, that_fit

    pairs, _ = that_fit(craftgpt, load_pairs("natural"), ["positive", "negative"])
    probes = fit_probes(craftgpt, pairs.groupby("value", sort=False).head(20), layers=[1, 3], folds=2)
    panel = geometry(probes, words=True)
    assert panel.problem.value == "" and panel.state.layer in (1, 3)
    expected = circumplex_fit(probes, layer=panel.state.layer)
    claim = expected.claim().replace(" chosen by held-out accuracy", "")
    assert html.escape(claim) in panel.claim.value
