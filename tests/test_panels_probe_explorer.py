"""The probe explorer without a screen: the probes' own numbers, refits as `fit` makes them, texts as captured."""

import asyncio
import math
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
from panelled import HOSTILE, drawn, in_a_loop, inside, until
from scipy.special import expit

from workbench.activations import capture
from workbench.errors import WorkbenchError
from workbench.panels.probe_explorer import probe_explorer
from workbench.panels.states.probing import ProbingState
from workbench.probes import PairActivations, Probes, fit_probes
from workbench.probes.scores import area_under_roc
from workbench.prompts import load_pairs, that_fit
from workbench.values import VALUES

WORDS = "house bakery family customs race team forest friend leader novelty".split()
LAYERS = [0, 2]


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model()


@pytest.fixture(scope="module")
def probes(model):
    """Of pairs whose two sides are exchanged now and then, so that no probe is always right."""
    rows = []
    for k, value in enumerate(VALUES):
        for n in (n for n in range(10) if n != k):
            for who in ("I see", "She wants"):
                sides = [f"{who} the {WORDS[word]} {n}." for word in (k, n)]
                sides = sides[::-1] if (n + k) % 5 == 1 and who == "I see" else sides
                rows.append({"value": value, **dict(zip(("positive", "negative"), sides, strict=True))})
    return fit_probes(model, pd.DataFrame(rows), layers=LAYERS, folds=3, C=0.01)


@pytest.fixture(scope="module")
def loaded(probes, tmp_path_factory):
    return Probes.load(probes.save(tmp_path_factory.mktemp("probes") / "probes.safetensors"))


@pytest.fixture
def panel(model, probes):
    panel = probe_explorer(model, probes, value="power", layer=2)
    assert panel.problem.value == ""
    return panel


def numbers(array: Any) -> np.ndarray:
    """Of a figure's JSON, where plotly writes arrays in base64."""
    if isinstance(array, dict):
        import base64

        flat = np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"])
        return flat.reshape([int(n) for n in str(array.get("shape", len(flat))).split(",")])
    return np.array([[math.nan if x is None else x for x in row] if isinstance(row, list) else row for row in array],
                    float)  # fmt: skip


def grid_of(plot) -> np.ndarray:
    return numbers(drawn(plot)["data"][0]["z"])


# --- state ---


@pytest.mark.parametrize(
    ("setting", "wrong", "said"),
    [
        ("value", "Power", "Did you mean 'power'"),
        ("layer", 1, "Probes at layer 1 were asked for.\nFound: none was fitted there\nAllowed: layers 0, 2"),
        ("method", "svm", "Probes by 'svm' were asked for.\nAllowed: 'logistic', 'mean_difference', 'lda', 'pca'"),
        ("C", 0.0, "Probes with C=0.0 were asked for.\nAllowed: a number above 0"),
        ("C", math.nan, "Probes with C=-1 were asked for."),
    ],
)
def test_wrong_settings_are_refused_and_change_nothing(model, probes, setting, wrong, said):
    state = ProbingState(model, probes)
    before = state.settings
    with pytest.raises(WorkbenchError) as error:
        setattr(state, setting, wrong)
    assert said in str(error.value) and state.settings == before
    with pytest.raises(WorkbenchError):
        ProbingState(model, probes, **{setting: wrong})


def test_unknown_settings_and_foreign_probes_are_refused(model, tiny_model, probes):
    with pytest.raises(WorkbenchError, match="Settings strength were asked for.\nAllowed: value, layer"):
        probe_explorer(model, probes, strength=3)
    with pytest.raises(WorkbenchError, match="were to be used with"):
        probe_explorer(tiny_model("qwen2"), probes)


def test_it_begins_with_the_probes_as_they_are(model, probes):
    state = ProbingState(model, probes)
    assert (state.method, state.C, state.layer) == ("logistic", 0.01, probes.choose_layer())
    assert state.fitted == state.total == 20 and state.refitted() is probes and list(state.refit()) == []
    np.testing.assert_allclose(state.accuracy, probes.accuracy)
    np.testing.assert_allclose(state.bounds, probes.intervals)


def test_one_probe_is_told_as_the_probes_tell_it(model, probes):
    state = ProbingState(model, probes, value="hedonism", layer=0)
    one, at = state.one(), {"value": "hedonism", "layer": 0}
    assert 0.5 < one.accuracy < 1, "nothing is misjudged: nothing to see"
    assert one.accuracy == pytest.approx(float(probes.accuracy.sel(at)))
    assert one.auroc == pytest.approx(float(probes.auroc.sel(at)))
    np.testing.assert_allclose(one.bounds, probes.intervals.sel(at))
    np.testing.assert_allclose(one.auroc_bounds, probes.auroc_intervals.sel(at))
    alarms, hits = one.curve
    assert (alarms[0], hits[0], alarms[-1], hits[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(hits, alarms) == pytest.approx(one.auroc)
    own = probes.examples[probes.examples["value"] == "hedonism"].assign(logit=one.logits)
    wrong = own[(own["logit"] > 0) != own["positive"]]
    assert sorted(one.misjudged["text"]) == sorted(wrong["text"])
    assert np.abs(one.misjudged["p"] - 0.5).is_monotonic_decreasing
    for row in one.misjudged.itertuples():
        number = own.loc[(own["text"] == row.text) & (own["positive"] == row.positive), "pair"].iloc[0]
        other = own[(own["pair"] == number) & (own["positive"] != row.positive)].iloc[0]
        assert (row.other, row.other_p) == (other["text"], pytest.approx(expit(other["logit"])))


def test_two_views_read_a_text_once(model, probes, monkeypatch):
    state, passes = ProbingState(model, probes), []
    monkeypatch.setattr("workbench.panels.states.probing.capture", lambda *a, **k: passes.append(a) or capture(*a, **k))
    for text in ("I see.", "I see.", "She wants.", "She wants."):
        state.text = text
        state.read()
    assert len(passes) == 2


@pytest.mark.parametrize(("method", "C"), [("logistic", 3.0), ("mean_difference", 0.01), ("lda", 1.0), ("pca", 1.0)])
def test_a_refit_is_what_fit_gives(model, probes, method, C):
    state = ProbingState(model, probes, method=method, C=C, layer=2, value="power")
    assert state.fitted == 0 and np.isnan(state.accuracy).all()
    with pytest.raises(WorkbenchError, match="All probes by .* were asked for.\nFound: 0 of 20"):
        state.refitted()
    again = probes.activations.fit(method, C, folds=3)
    at = {"value": "power", "layer": 2}
    assert state.one().accuracy == pytest.approx(float(again.accuracy.sel(at))) and state.fitted == 1
    steps = [state.fitted for _ in state.refit()]
    assert steps == list(range(2, 21)), "what was there was fitted again, or more than one at a step"
    refitted = state.refitted()
    for name in ("weight", "bias", "held_out"):
        np.testing.assert_allclose(getattr(refitted, name), getattr(again, name), rtol=1e-5, atol=1e-6)
    assert refitted.provenance == {**again.provenance, "C": C} and refitted.method == method
    np.testing.assert_allclose(state.bounds, again.intervals)
    np.testing.assert_allclose(state.one().auroc_bounds, again.auroc_intervals.sel(at))
    np.testing.assert_allclose(refitted.cross, again.cross)


def test_the_layer_looked_at_comes_first_and_a_change_ends_the_refit(model, probes):
    state = ProbingState(model, probes, method="lda", layer=2)
    steps = state.refit()
    for _ in range(10):
        next(steps)
    done = state.accuracy.notnull()
    assert done.sel(layer=2).all() and not done.sel(layer=0).any()
    state.method = "pca"
    assert next(steps, None) is None and state.fitted == 0


def test_what_was_fitted_is_kept(model, probes, monkeypatch):
    state, fits = ProbingState(model, probes), []
    fit = PairActivations.fit_one
    monkeypatch.setattr(PairActivations, "fit_one", lambda *given: fits.append(given[-2:]) or fit(*given))
    for method, C in (("lda", 1.0), ("logistic", 2.0)):
        with state.hold_trait_notifications():
            state.method, state.C = method, C
        list(state.refit())
    assert fits == [*[("lda", 1.0)] * 20, *[("logistic", 2.0)] * 20]
    there = len(fits)
    for method, C in (("lda", 7.0), ("logistic", 0.01), ("logistic", 2.0)):
        state.method, state.C = method, C
        state.one()
        assert state.fitted == 20
    assert len(fits) == there


def test_a_text_is_read_as_capture_reads_it(model, probes):
    text = "She wants to lead the team."
    state = ProbingState(model, probes, value="power", layer=2, text=text)
    assert state.tokens() == [] and state.profile() == {}
    state.read()
    acts = capture(model, [text], layers=LAYERS, position="all")
    p = probes.probability(acts.sel(layer=2))
    words, found = zip(*state.tokens(), strict=True)
    np.testing.assert_allclose(found, p.sel(value="power"), atol=1e-5)
    assert "".join(words).endswith("lead the team.")
    last = probes.probability(capture(model, [text], layers=[2])).isel(text=0, layer=0)
    np.testing.assert_allclose([*state.profile().values()], last, atol=1e-5)
    state.method = "mean_difference"
    again = probes.activations.fit("mean_difference", folds=3)
    assert state.tokens()[-1][1] == pytest.approx(float(again.probability(acts.sel(layer=2)).sel(value="power")[-1]))
    profile = state.profile()
    assert not math.isnan(profile["power"]) and math.isnan(profile["security"]), "a probe that is not there was read"


def test_empty_and_long_texts(model, probes):
    state = ProbingState(model, probes, text="house " * 200)
    with pytest.raises(WorkbenchError, match=r"of 128 tokens\nWhat to do: Shorten it"):
        state.read()
    assert state.acts is None
    state.text = "I see."
    state.read()
    assert state.acts is not None
    state.text = " \n "
    state.read()
    assert state.acts is None and state.tokens() == []


def test_probes_of_a_file_are_looked_at_and_not_refitted(model, probes, loaded):
    state = ProbingState(model, loaded, value="power", layer=2)
    assert not state.can_refit and state.C == 0.01
    with pytest.raises(WorkbenchError) as error:
        state.method = "lda"
    assert "Probes by 'lda' with C=0.01 were asked for.\nFound: probes without activations" in str(error.value)
    with pytest.raises(WorkbenchError, match="with C=3 were asked for"):
        state.C = 3.0
    assert (state.method, state.C) == ("logistic", 0.01)
    whole = ProbingState(model, probes, value="power", layer=2)
    assert state.one().auroc == whole.one().auroc and state.one().bounds == whole.one().bounds
    panel = probe_explorer(model, loaded)
    assert panel.controls["method"].disabled and panel.controls["C"].disabled
    assert any("Method and C are fixed" in widget.value for widget in inside(panel) if isinstance(widget, widgets.HTML))
    assert "Method and C are fixed" not in str([getattr(w, "value", "") for w in inside(probe_explorer(model, probes))])


# --- the panel ---


def test_controls_and_state_follow_each_other(panel):
    held = panel.controls
    held["value"].value, held["layer"].value, held["text"].value = "security", 0, "I see the house."
    assert (panel.state.value, panel.state.layer, panel.state.text) == ("security", 0, "I see the house.")
    assert held["C"].value == pytest.approx(-2)
    held["C"].value = 0.5
    assert panel.state.C == 3.16 and panel.penalty.value == "C = 3.16"
    panel.state.C = 10.0
    assert held["C"].value == pytest.approx(1.0)
    held["method"].value = "lda"
    assert panel.state.method == "lda" and held["C"].disabled and panel.penalty.value == "C is for logistic only"
    panel.state.method = "logistic"
    assert not held["C"].disabled
    with pytest.raises(WorkbenchError):
        panel.state.layer = 1
    assert held["layer"].value == 0


def test_a_click_on_a_cell_looks_at_its_probe(panel, probes):
    panel.grid.clicked = {"trace": 0, "point": [VALUES.index("hedonism"), 0], "x": "0", "y": "hedonism", "at": 1}
    assert (panel.state.value, panel.state.layer) == ("hedonism", 0)
    assert panel.controls["value"].value == "hedonism" and panel.controls["layer"].value == 0
    assert drawn(panel.reading)["layout"]["title"]["text"] == "hedonism at layer 0"
    (frame,) = drawn(panel.grid)["layout"]["shapes"]
    assert (frame["x0"], frame["y0"]) == (-0.5, VALUES.index("hedonism") - 0.5)
    for point, trace in (([10, 1], 0), ([2, 0], 1)):  # the mean, and words alone
        panel.grid.clicked = {"trace": trace, "point": point, "at": 2}
        assert (panel.state.value, panel.state.layer) == ("hedonism", 0) and panel.problem.value == ""


def test_every_number_is_told(panel, probes):
    at = {"value": "power", "layer": 2}
    accuracy, (low, high) = float(probes.accuracy.sel(at)), probes.intervals.sel(at).values
    told = panel.facts.value
    assert "<b>power, layer 2</b>, logistic, C = 0.01" in told and 'role="status"' in told
    assert f"accuracy <b>{accuracy:.3f}</b> ({low:.3f} to {high:.3f}) on 36 held-out texts of 18 pairs, 3 folds" in told
    assert f"chance is .5, words alone (TF-IDF) give {float(probes.tfidf.sel(value='power')):.3f}" in told
    assert f"AUROC <b>{float(probes.auroc.sel(at)):.3f}</b>" in told
    wrong = round(36 * (1 - accuracy))
    assert wrong and f"Misjudged: {wrong} of 36 held-out texts" in panel.wrong.value
    assert panel.wrong.value.count("<tr>") == 1 + wrong
    assert "20 of 20 probes" in panel.progress.value


def test_the_figures_show_what_was_found(panel, probes):
    np.testing.assert_allclose(grid_of(panel.grid)[:10], probes.accuracy.sel(value=list(VALUES)))
    np.testing.assert_allclose(grid_of(panel.grid)[10], probes.accuracy.mean("value"))
    figure = drawn(panel.reading)
    logits = probes._logits["power"][0][1]
    bars = [trace for trace in figure["data"] if trace["type"] == "bar"]
    assert [bar["name"] for bar in bars] == ["negatives, n = 18", "positives, n = 18"]
    for bar, side in zip(bars, (slice(18, 36), slice(0, 18)), strict=True):
        x, y = numbers(bar["x"]), numbers(bar["y"])
        assert y.sum() == pytest.approx(1), "a text fell outside the bins"
        assert y[x > 0].sum() == pytest.approx(np.mean(logits[side] > 0)), "0 is inside a bin"
    mark = figure["data"][-1]
    assert mark["x"][0] == pytest.approx(np.mean(logits[18:] > 0))
    assert mark["y"][0] == pytest.approx(np.mean(logits[:18] > 0))
    area = area_under_roc(logits, np.arange(36) < 18)
    assert any(f"AUROC <b>{area:.3f}</b>" in note["text"] for note in figure["layout"]["annotations"])


def test_a_typed_text_is_shown_token_by_token(panel, probes):
    assert panel.strip.value.count("wb-token") == len(panel.state.tokens()) > 3
    panel.controls["text"].value = "She wants the novelty."
    p = panel.state.tokens()[-1][1]
    assert f"at the last one: <b>{p:.3f}</b>" in panel.strip.value
    assert "only there is P what it was tested for" in panel.strip.value
    assert f"<b>power {p:.2f}".replace("0.", ".") in panel.strip.value and "universalism" in panel.strip.value
    before = panel.strip.value
    panel.state.layer = 0
    assert panel.strip.value != before and "layer 0" in panel.strip.value
    panel.state.text = "  "
    assert "Type a text" in panel.strip.value
    panel.state.text = "house " * 200
    assert "of 128 tokens" in panel.problem.value and "This text was not read." in panel.strip.value


def test_text_of_files_and_users_is_escaped(model):
    rows = [{"value": "power", "positive": f"{HOSTILE} {WORDS[n]} house {k}", "negative": f"a {WORDS[n]} {k}"}
            for n in range(10) for k in "ab"]  # fmt: skip
    acts = PairActivations.capture(model, pd.DataFrame(rows), layers=[0])
    probes = acts.with_sides_at_random(1).fit("mean_difference", folds=2)  # wrong of many texts
    panel = probe_explorer(model, probes, text=HOSTILE)
    assert "&lt;script&gt;" in panel.wrong.value and "&lt;" in panel.strip.value
    panel.state.text = HOSTILE * 10
    assert "&lt;script&gt;" in panel.problem.value
    for widget in inside(panel):
        if isinstance(widget, widgets.HTML):
            assert "<script" not in widget.value and "<img" not in widget.value


def test_two_views_of_one_state_stay_equal(model, probes):
    one = probe_explorer(model, probes, value="power", layer=2)
    two = type(one)(one.state)
    one.controls["method"].value = "lda"
    two.controls["value"].value = "hedonism"
    one.grid.clicked = {"trace": 0, "point": [3, 1], "at": 1}
    two.controls["text"].value = "I see the team."
    for name, control in one.controls.items():
        assert control.value == two.controls[name].value
    for part in ("facts", "wrong", "strip", "progress", "penalty"):
        assert getattr(one, part).value == getattr(two, part).value, part
    assert drawn(one.grid) == drawn(two.grid) and drawn(one.reading) == drawn(two.reading)


def test_an_error_inside_is_shown(panel, monkeypatch):
    monkeypatch.setattr(panel.state, "one", lambda: 1 / 0)
    panel.state.value = "security"
    assert "ZeroDivisionError" in panel.problem.value
    monkeypatch.undo()
    panel.state.value = "power"
    assert panel.problem.value == ""


# --- in an event loop, as in a kernel ---


def test_the_probe_looked_at_is_refitted_first_and_a_change_stops_the_rest(model, probes):
    async def steps():
        panel = probe_explorer(model, probes, value="power", layer=2)
        seen = []
        panel.state.observe(lambda change: seen.append((panel.state.method, change["new"])), "fitted")
        panel.controls["method"].value = "lda"
        assert seen == [("lda", 0)]
        await until(lambda: "lda" in panel.facts.value)
        assert panel.state.fitted == 1, "the others were not waited with"
        assert "refitting 1 of 20" in panel.progress.value
        await until(lambda: panel.state.fitted > 3)
        assert panel.ending == "running" and "refitting" in panel.progress.value
        panel.state.method = "pca"
        await until(lambda: "pca" in panel.facts.value)
        there = len(panel.state._grids["lda", None])
        assert there < 20
        await until(lambda: panel.ending == "done")
        assert panel.state.fitted == 20 and len(panel.state._grids["lda", None]) == there
        assert "20 of 20 probes" in panel.progress.value
        await until(lambda: not np.isnan(grid_of(panel.grid)).any())
        again = probes.activations.fit("pca", folds=3)
        np.testing.assert_allclose(grid_of(panel.grid)[:10], again.accuracy.sel(value=list(VALUES)))
        panel.state.method = "lda"
        await until(lambda: "lda" in panel.facts.value)
        assert panel.state.fitted == there, "what was fitted before was lost"

    in_a_loop(steps())


def test_dragging_C_fits_what_it_comes_to_and_queues_nothing(model, probes, monkeypatch):
    async def steps():
        panel, fits = probe_explorer(model, probes, value="power", layer=2), []
        fit = PairActivations.fit_one
        monkeypatch.setattr(PairActivations, "fit_one", lambda *given: fits.append(given[-1]) or fit(*given))
        for step in range(10):
            panel.controls["C"].value = step / 10
        assert fits == []
        await until(lambda: "C = 7.94" in panel.facts.value)
        assert fits == [7.94], "positions that were passed were fitted too"
        blank = np.isnan(grid_of(panel.grid)).sum()
        assert blank == 0, "the map went blank while the hand still moved"
        await until(lambda: panel.ending == "running")
        assert np.isnan(grid_of(panel.grid)[:10]).sum() >= 19, "cells that were not refitted are shown"
        await until(lambda: panel.ending == "done")
        assert set(fits) == {7.94} and len(fits) == 20
        await until(lambda: not np.isnan(grid_of(panel.grid)).any())

    in_a_loop(steps())


def test_typing_reads_once_it_rests_and_its_error_stays(model, probes, monkeypatch):
    async def steps():
        panel, reads = probe_explorer(model, probes), []
        read = panel.state.read
        monkeypatch.setattr(panel.state, "read", lambda: reads.append(panel.state.text) or read())
        for text in ("I", "I see", "house " * 200):
            panel.controls["text"].value = text
        await until(lambda: "of 128 tokens" in panel.problem.value)
        await asyncio.sleep(0.1)
        assert reads == ["house " * 200] and "of 128 tokens" in panel.problem.value, "the error went away by itself"

    in_a_loop(steps())


# --- another model ---


def test_on_craftgpt(craftgpt):
    pairs = that_fit(craftgpt, load_pairs("natural"), ["positive", "negative"])[0]
    pairs = pairs.groupby("value", sort=False).head(12)
    panel = probe_explorer(craftgpt, fit_probes(craftgpt, pairs, layers=[1, 4], folds=2))
    assert panel.problem.value == "" and "chance is .5" in panel.facts.value
    panel.controls["method"].value = "mean_difference"
    assert panel.ending == "done" and "20 of 20 probes" in panel.progress.value
    panel.controls["text"].value = "I love my home and my old customs."
    assert panel.strip.value.count("wb-token") >= 8
    panel.controls["text"].value = "I love my home and my old customs. " * 20
    assert "of 64 tokens" in panel.problem.value
