"""The gate tuner without a screen: what a threshold does to prompts, counted anew; rules as `calibrate` sets them."""

import asyncio
import base64
import re
from dataclasses import replace
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
import torch
from drawn import EVIL, known_gate
from panelled import HOSTILE, drawn, in_a_loop, inside, until
from scipy.special import expit, logit

from workbench.errors import WorkbenchError
from workbench.figures.gating import score_text
from workbench.gates import AlwaysOpen, CosineGate, DetectorGate, Never, ProbeGate, ThresholdGate
from workbench.panels.gate_tuner import GateTuner, gate_tuner
from workbench.panels.states.gating import GatingState
from workbench.prompts import load_questions, load_unrelated, that_fit
from workbench.rates import wilson

WORDS = "house bakery family customs race team forest friend leader novelty".split()
PROMPTS = [f"Should Mira do {word}?" for word in WORDS], [f"What is {n} and {n}?" for n in range(10)]


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model()


@pytest.fixture(scope="module")
def gate(model):
    return ProbeGate.fit(model, *PROMPTS, folds=2, layer=1)


@pytest.fixture(scope="module")
def cosine(model):
    return CosineGate.fit(model, *PROMPTS, folds=2, layer=1)


@pytest.fixture
def kinds():
    """Of the known gate's prompts, some; and four that it has not seen."""
    own = known_gate().oof["prompt"].iloc[30:50]
    named = pd.DataFrame({"prompt": own, "kind": ["hard"] * 10 + [EVIL] * 10, "related": False})
    new = pd.DataFrame({"prompt": list("abcd"), "kind": "value-laden", "related": True, "score": [0.1, 0.2, 0.3, 0.9]})
    return pd.concat([named, new], ignore_index=True)


@pytest.fixture
def panel(kinds):
    panel = gate_tuner(known_gate(), kinds=kinds)
    assert panel.problem.value == ""
    return panel


def plain(widget) -> str:
    """HTML without looks."""
    return re.sub(' style="[^"]*"', "", widget.value)


def numbers(array: Any) -> np.ndarray:
    """Of a figure's JSON, where plotly writes arrays in base64."""
    packed = isinstance(array, dict)
    return np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"]) if packed else np.array(array)


# --- state ---


@pytest.mark.parametrize(
    ("setting", "wrong", "said"),
    [
        ("threshold", 1.2, "A threshold of 1.2 was asked for.\nAllowed: a probability, 0 to 1"),
        ("threshold", float("nan"), "A threshold of nan was asked for."),
        ("rule", "best", "A threshold by 'best' was asked for.\nAllowed: 'own', 'false_positive', 'f1', 'youden'"),
        ("rate", 1.0, "A false positive rate of 1.0 was asked for.\nAllowed: 0 up to 1"),
    ],
)
def test_wrong_settings_are_refused_and_change_nothing(setting, wrong, said):
    state = GatingState(known_gate())
    before = state.settings
    with pytest.raises(WorkbenchError) as error:
        setattr(state, setting, wrong)
    assert said in str(error.value) and state.settings == before
    with pytest.raises(WorkbenchError):
        GatingState(known_gate(), **{setting: wrong})


def test_what_cannot_be_tuned_is_refused(model, tiny_model, gate):
    for other in (AlwaysOpen(), Never()):
        with pytest.raises(WorkbenchError) as error:
            gate_tuner(other)
        assert f"Found: {type(other).__name__}, which has no threshold\nAllowed: ProbeGate" in str(error.value)
    with pytest.raises(WorkbenchError, match="never tried on any\nWhat to do: gate = gate.measured"):
        gate_tuner(DetectorGate(None, "power"))
    with pytest.raises(WorkbenchError, match="A gate of llama was|were to be used with"):
        gate_tuner(gate, tiny_model("qwen2"))
    with pytest.raises(WorkbenchError, match="Settings layer were asked for.\nAllowed: rule, rate, threshold, typed"):
        gate_tuner(gate, layer=3)
    with pytest.raises(WorkbenchError, match=r"Found: columns \['prompt'\]\nAllowed: a table with prompt and kind"):
        gate_tuner(gate, kinds=pd.DataFrame({"prompt": ["a"]}))
    with pytest.raises(WorkbenchError, match="Scores of prompts .*\nFound: a gate that was loaded without"):
        gate_tuner(replace(gate, model=None), kinds=pd.DataFrame({"prompt": ["a"], "kind": ["b"]}))
    with pytest.raises(WorkbenchError, match="A threshold of 1.5 was asked for.\nAllowed: a cosine, -1 to 1"):
        GatingState(CosineGate(0, np.ones(4, np.float32), 0.1, "", known_gate().oof)).threshold = 1.5


def test_it_begins_as_the_gate_is():
    gate = known_gate()
    state = GatingState(gate)
    assert (state.threshold, state.rule, state.criterion) == (0.25, "own", "as given")
    assert state.tuned() is gate and state.gate is gate and not len(state.changes())
    rates, bounds = gate.rates, gate.intervals
    for name in ("open", "false_positive"):
        assert state.rates()[name] == pytest.approx((rates[name], *bounds[name]))
    assert state.auroc == pytest.approx((rates["auroc"], *bounds["auroc"]))


@pytest.mark.parametrize("threshold", [0.0, 1e-4, 0.9, 1.0])
def test_a_threshold_does_what_the_gate_with_it_does(kinds, threshold):
    gate, state = known_gate(), GatingState(known_gate(), kinds=kinds)
    state.threshold = threshold
    tuned = state.tuned()
    assert isinstance(tuned, ProbeGate) and (tuned.threshold, tuned.criterion) == (threshold, "set by hand")
    assert state.rule == "hand" and gate.threshold == 0.25
    for name in ("open", "false_positive"):
        assert state.rates()[name] == pytest.approx((tuned.rates[name], *tuned.intervals[name]))
    scores = pd.concat([gate.oof, kinds.dropna()])["score"].to_numpy()
    assert state.opened.tolist() == (scores > threshold).tolist()
    changed = state.changes()
    assert len(changed) == ((scores > threshold) != (scores > 0.25)).sum()
    assert (changed["open"] == (changed["score"] > threshold)).all()


def test_kinds_are_counted_each_with_its_interval(kinds):
    state = GatingState(known_gate(), kinds=kinds, threshold=0.15)
    counts = state.counts().set_index("kind")
    assert [*counts.index] == [EVIL, "other", "hard unrelated", "value-laden, no dilemma", "dilemmas"]
    assert counts["n"].tolist() == [10, 40, 10, 4, 30]
    row = counts.loc["value-laden, no dilemma"]
    assert (row["related"], row["open"], row["share"], row["own"]) == (True, 3, 0.75, 2)
    assert (row["low"], row["high"]) == pytest.approx(wilson(0.75, 4))
    hard = known_gate().oof["score"].to_numpy()[30:40]
    assert counts.loc["hard unrelated", "open"] == (hard > 0.15).sum()
    assert len(state.table) == 94 and (~state.table["seen"]).sum() == 4
    assert len(state.sides[True]) == 30, "prompts that the fit did not see are in the rates"


def test_tokens_of_one_prompt_are_one_trial():
    oof = known_gate().oof
    tokens = pd.concat([oof.assign(position=0), oof.assign(position=1)], ignore_index=True)
    state = GatingState(replace(known_gate(), oof=tokens), threshold=0.5)
    single = GatingState(known_gate(), threshold=0.5)
    assert state.rates() == single.rates() and len(state.opened) == 180
    pd.testing.assert_frame_equal(state.counts()[["share", "low", "high"]], single.counts()[["share", "low", "high"]])


@pytest.mark.parametrize(("rule", "rate"), [("false_positive", 0.0), ("false_positive", 0.2), ("f1", 0), ("youden", 0)])
def test_rules_set_the_threshold_as_calibrate_does(rule, rate):
    gate, state = known_gate(), GatingState(known_gate())
    state.rate, state.rule = rate, rule
    wanted = gate.calibrate(rate, by=rule) if rule == "false_positive" else gate.calibrate(by=rule)
    assert (state.threshold, state.criterion, state.rule) == (wanted.threshold, wanted.criterion, rule)
    assert state.tuned().rates == wanted.rates
    state.threshold = 0.7
    assert state.rule == "hand" and state.criterion == "set by hand"
    state.rate = 0.1
    assert state.threshold == 0.7, "a rate counts for its rule only"
    state.rule = rule
    assert state.threshold == gate.calibrate(0.1 if rule == "false_positive" else None, by=rule).threshold
    state.rule = "own"
    assert state.tuned() is state.given


def test_two_rules_may_agree_and_are_told_apart():
    oof = pd.DataFrame({"prompt": list("abcd"), "related": [True, True, False, False], "score": [0.9, 0.8, 0.2, 0.1]})
    state = GatingState(replace(known_gate(), oof=oof))
    state.threshold = 0.4
    state.rule = "own"
    assert state.tuned() is state.given
    criteria = []
    for rule in ("f1", "youden"):
        state.rule = rule
        criteria.append(state.tuned().criterion)
    assert criteria == ["highest F1", "highest J"]


def test_a_detector_that_opens_for_low_scores_loses_that_with_its_threshold():
    gate = DetectorGate(None, "universalism", oof=known_gate().oof)
    assert gate.also_below == 0.3
    state = GatingState(gate)
    assert state.said == "score" and not state.can_score
    assert state.rates()["false_positive"][0] == gate.rates["false_positive"] > 0.9
    state.threshold = 0.5
    tuned = state.tuned()
    assert isinstance(tuned, DetectorGate) and tuned.also_below is None and tuned.value == "universalism"
    assert state.rates()["false_positive"][0] == tuned.rates["false_positive"] < 0.1
    state.rule = "own"
    assert state.tuned() is gate and state.rates()["false_positive"][0] > 0.9
    level = gate.calibrate(by="youden").threshold  # a rule that comes to the gate's own threshold
    state = GatingState(replace(gate, threshold=level))
    before = state.opened.sum()
    state.rule = "youden"
    assert state.threshold == level and state.tuned().criterion == "highest J"
    assert state.opened.sum() < before, "it still opens for low scores"


def test_a_threshold_outside_the_scale_is_the_gates_own_affair():
    state = GatingState(replace(known_gate(), threshold=1.5, criterion="never"))
    assert state.tuned().threshold == 1.5 and state.rates()["open"][0] == 0
    panel = GateTuner(state)
    assert panel.problem.value == "" and panel.histogram.handle["at"] == panel.histogram.handle["high"]
    state.threshold = 0.5
    state.rule = "own"
    assert state.threshold == 1.5


def test_the_axis_is_a_logit_with_ends_or_the_cosine_itself(cosine):
    state = GatingState(known_gate())
    assert state.place(0.25) == pytest.approx(logit(0.25)) and state.score_at(-2.0) == pytest.approx(expit(-2))
    low, high = state.span
    assert (state.score_at(low), state.score_at(high), state.place(0.0), state.place(1.0)) == (0.0, 1.0, low, high)
    plain = GatingState(cosine)
    assert plain.place(0.123) == plain.score_at(0.123) == 0.123
    low, high = plain.span
    scores = cosine.oof["score"]
    assert -1 <= low < scores.min() and scores.max() < high <= 1


def test_a_probability_near_an_end_is_told_by_what_it_lacks():
    told = {0.3: "0.3", 0.9991: "1 − 9.0 × 10⁻⁴", 1 - 2.1e-5: "1 − 2.1 × 10⁻⁵", 3e-7: "3.0 × 10⁻⁷", 0.0: "0", 1.0: "1"}
    for score, text in told.items():
        assert score_text(score, True) == text
    assert score_text(-0.00012345, False) == "-0.0001234"


def test_typed_prompts_are_scored_as_the_gate_scores_them(gate, monkeypatch):
    state, asked = GatingState(gate), []
    scores = ProbeGate.scores
    monkeypatch.setattr(ProbeGate, "scores", lambda self, prompts: asked.append(prompts) or scores(self, prompts))
    state.typed = "Should Mira do team?\n\n  What is 3 and 3?  \nShould Mira do team?"
    assert len(list(state.score())) == 2, "not one at a step"
    prompts = ["Should Mira do team?", "What is 3 and 3?"]
    assert [prompt for prompt, _ in state.scored] == prompts and asked == [[prompt] for prompt in prompts]
    np.testing.assert_allclose([score for _, score in state.scored], gate.scores(prompts), atol=1e-6)
    asked.clear()
    for threshold in (0.0, 0.5, 1.0, float(state.scored[0][1])):
        state.threshold = threshold
        tuned = state.tuned()
        assert state.typed_open().tolist() == tuned.decide(torch.tensor([s for _, s in state.scored])).tolist()
    assert state.typed_open()[0] == (np.float32(state.scored[0][1]) > np.float32(state.threshold))
    state.typed += "\nA new one."
    list(state.score())
    assert asked == [["A new one."]] and len(state.scored) == 3


def test_what_cannot_be_scored_is_said(gate):
    state = GatingState(gate, typed="Fine.")
    list(state.score())
    state.typed = "Fine.\n" + "house " * 200
    with pytest.raises(WorkbenchError, match=r"of 128 tokens\nWhat to do: Shorten it"):
        list(state.score())
    assert state.scored == ()
    state.typed = "\n".join(f"number {n}" for n in range(41))
    with pytest.raises(WorkbenchError, match="Typed prompts were to be scored.\nFound: 41\nAllowed: 40"):
        list(state.score())


def test_a_loaded_gate_is_given_its_model(model, gate, tmp_path):
    loaded = ThresholdGate.load(gate.save(tmp_path / "gate.safetensors"))
    panel = gate_tuner(loaded)
    assert panel.controls["typed"].disabled and any("Prompts cannot be scored here" in getattr(widget, "value", "")
                                                    for widget in inside(panel) if isinstance(widget, widgets.HTML))
    panel = gate_tuner(loaded, model)
    assert not panel.controls["typed"].disabled
    panel.controls["typed"].value = "Should Mira do team?"
    assert panel.state.scored[0][1] == pytest.approx(float(gate.scores(["Should Mira do team?"])[0]))


def test_what_the_gate_has_not_seen_is_scored_once(gate, monkeypatch):
    asked = []
    scores = ProbeGate.scores
    monkeypatch.setattr(ProbeGate, "scores", lambda self, prompts: asked.extend(prompts) or scores(self, prompts))
    new = [f"Say {word}." for word in WORDS]
    kinds = pd.DataFrame({"prompt": [gate.oof["prompt"].iloc[0], *new, new[0]], "kind": "word", "related": False})
    state = GatingState(gate, kinds=kinds)
    assert asked == new
    for threshold in np.linspace(0.01, 0.99, 20):
        state.threshold = float(threshold)
        assert len(state.counts()) and len(state.rates()) and state.changes() is not None
    assert asked == new, "a threshold that moves needs no forward pass"
    np.testing.assert_allclose(state.table["score"].iloc[20:], scores(gate, new), atol=1e-6)


# --- the panel ---


def test_handle_slider_and_state_follow_each_other(panel):
    handle = panel.histogram.handle
    assert handle["at"] == pytest.approx(logit(0.25)) and handle["text"] == "0.25" and "P(related)" in handle["label"]
    panel.histogram.handle = {**handle, "at": 2.0}  # as the browser moves it
    assert panel.state.threshold == pytest.approx(expit(2)) and panel.state.rule == "hand"
    assert panel.controls["threshold"].value == pytest.approx(2.0) and panel.controls["rule"].value == "hand"
    panel.controls["threshold"].value = -3.0
    assert panel.state.threshold == pytest.approx(expit(-3)) and panel.histogram.handle["at"] == pytest.approx(-3)
    assert panel.histogram.handle["text"] == f"{expit(-3):.4g}"
    panel.controls["rule"].value = "f1"
    wanted = known_gate().calibrate(by="f1")
    assert panel.state.tuned().threshold == wanted.threshold
    assert panel.histogram.handle["at"] == pytest.approx(logit(wanted.threshold))
    assert panel.controls["rate"].disabled
    panel.controls["rule"].value = "false_positive"
    assert not panel.controls["rate"].disabled
    panel.controls["rate"].value = 0.2
    assert panel.state.threshold == known_gate().calibrate(0.2).threshold
    panel.controls["threshold"].value = panel.controls["threshold"].value + 0.01  # the browser's echo, rounded
    assert panel.state.rule == "false_positive"
    panel.histogram.handle = {**panel.histogram.handle, "at": panel.histogram.handle["high"]}
    assert panel.state.threshold == 1.0 and "<b>0 of 30</b>" in panel.summary.value


def test_every_number_is_told(panel):
    panel.controls["threshold"].value = logit(0.15)
    rates = replace(known_gate(), threshold=panel.state.threshold).rates
    opened, alarms = round(30 * rates["open"]), round(60 * rates["false_positive"])
    low, high = wilson(rates["open"], 30)
    told = panel.summary.value
    assert f"<b>{opened} of 30</b> related prompts, {rates['open']:.1%} ({low:.1%} to {high:.1%})" in told
    assert f"<b>{alarms} of 60</b> unrelated prompts" in told and 'role="status"' in told
    assert "(set by hand; the gate's own is 0.25)" in told
    assert "<td>value-laden, no dilemma</td><td>open</td><td>4</td><td><b>3</b></td><td>75.0%" in plain(panel.kinds)
    changed = panel.state.changes()
    assert f"<b>{len(changed)}</b> prompts change side" in panel.changed.value
    assert "<td>now open</td><td>0.2</td><td>value-laden, no dilemma</td><td>b</td>" in plain(panel.changed)
    panel.controls["rule"].value = "own"
    assert "No prompt changes side" in panel.changed.value and "(as given;" in panel.summary.value


def test_the_histogram_shows_every_prompt_and_stays_while_the_threshold_moves(panel):
    figure, turn = drawn(panel.histogram), panel.histogram.turn
    bars = [trace for trace in figure["data"] if trace["type"] == "bar"]
    assert [bar["name"] for bar in bars] == ["unrelated, n = 60", "related, n = 30"]
    assert all(numbers(bar["y"]).sum() == pytest.approx(1) for bar in bars), "a prompt fell outside the bins"
    dots = [numbers(trace["x"]) for trace in figure["data"] if trace["type"] == "scatter"]
    assert [len(x) for x in dots] == [10, 40, 10, 4, 30]
    np.testing.assert_allclose(dots[3], logit([0.1, 0.2, 0.3, 0.9]))
    names = figure["layout"]["yaxis2"]["ticktext"]
    assert names[2:] == ["hard unrelated, 10", "value-laden, no dilemma, 4", "dilemmas, 30"]
    assert "4 prompts that the fit did not see" in figure["layout"]["title"]["subtitle"]["text"].replace("<br>", " ")
    for place in (-2.0, 0.0, 2.0):
        panel.controls["threshold"].value = place
    assert panel.histogram.turn == turn, "the threshold is a handle on it: nothing is drawn anew"


def test_the_roc_point_moves_along_the_curve_without_resampling(panel, monkeypatch):
    monkeypatch.setattr("workbench.gates.threshold.average_precision", lambda *given: 1 / 0)
    monkeypatch.setattr(ThresholdGate, "curve", lambda self: 1 / 0)
    for place in (-4.0, -1.0, 3.0):
        panel.controls["threshold"].value = place
        score, y = known_gate().oof["score"].to_numpy(), known_gate().oof["related"].to_numpy()
        own, now = drawn(panel.roc)["data"][-2:]
        assert now["x"] == [pytest.approx((score[~y] > expit(place)).mean())]
        assert now["y"] == [pytest.approx((score[y] > expit(place)).mean())]
        assert own["x"] == [pytest.approx((score[~y] > 0.25).mean())] and now["name"] == "set here"
        low, high = wilson(now["y"][0], 30)
        assert now["error_y"]["array"] == [pytest.approx(high - now["y"][0])]
        assert now["error_y"]["arrayminus"] == [pytest.approx(now["y"][0] - low)]
    assert panel.problem.value == ""


def test_the_curve_is_the_gates_at_its_corners(panel):
    whole = known_gate().curve()
    x, y = numbers(drawn(panel.roc)["data"][2]["x"]), numbers(drawn(panel.roc)["data"][2]["y"])
    assert 2 < len(x) < len(whole)
    ends = np.stack([x, y], 1)
    for point in whole[["false_positive", "open"]].to_numpy():
        ways = np.linalg.norm(ends[:-1] - point, axis=1) + np.linalg.norm(ends[1:] - point, axis=1)
        assert (ways - np.linalg.norm(np.diff(ends, axis=0), axis=1)).min() < 1e-9, "a point is off the lines drawn"
    assert np.trapezoid(y, x) == pytest.approx(panel.state.auroc[0])


def test_typed_prompts_are_marked_and_listed(gate):
    panel = gate_tuner(gate)
    assert "Typed prompts are marked" in panel.table.value
    panel.controls["typed"].value = "Should Mira do team?\nWhat is 3 and 3?"
    assert panel.ending == "done"
    first, second = (score for _, score in panel.state.scored)
    marks = drawn(panel.histogram)["data"][-1]
    assert marks["text"] == ["<b>1</b>", "<b>2</b>"]
    np.testing.assert_allclose(numbers(marks["x"]), [panel.state.place(first), panel.state.place(second)])
    panel.state.threshold = (first + second) / 2
    sides = ("open", "closed") if first > second else ("closed", "open")
    for k, (side, score, text) in enumerate(zip(sides, (first, second), ("Should Mira do team?", "What is 3 and 3?"),
                                                strict=True), 1):  # fmt: skip
        assert f"<td>{k}</td><td><b>{side}</b></td><td>{score:.4g}</td><td>{text}</td>" in plain(panel.table)
    panel.controls["typed"].value = "house " * 200
    assert "of 128 tokens" in panel.problem.value and panel.ending == "failed" and panel.state.scored == ()
    assert not any("text" in trace for trace in drawn(panel.histogram)["data"])
    panel.controls["typed"].value = ""
    assert panel.problem.value == "" and "Typed prompts are marked" in panel.table.value


def test_a_cosine_is_tuned_too(cosine):
    panel = gate_tuner(cosine, typed="Should Mira do team?")
    assert panel.state.scored and "cosine &gt;" in panel.bar.value
    figure = drawn(panel.histogram)
    assert "cosine with the condition direction" in figure["layout"]["xaxis2"]["title"]["text"]
    assert all(numbers(trace["y"]).sum() == pytest.approx(1) for trace in figure["data"][:2])
    panel.histogram.handle = {**panel.histogram.handle, "at": 0.0}
    assert panel.state.tuned().threshold == 0.0 and isinstance(panel.state.tuned(), CosineGate)
    low, high = panel.state.span
    panel.histogram.handle = {**panel.histogram.handle, "at": high}
    assert "<b>0 of 10</b> related" in panel.summary.value and low < high


def test_a_detector_is_tuned_too():
    panel = gate_tuner(DetectorGate(None, "power", oof=known_gate().oof))
    assert panel.state.threshold == 0.06 and "Jin et al. 2025, g0" in panel.summary.value
    assert "on the bare question" in drawn(panel.histogram)["layout"]["title"]["subtitle"]["text"]
    panel.controls["threshold"].value = 0.0
    assert panel.state.tuned().threshold == 0.5


def test_text_of_files_and_users_is_escaped(gate):
    kinds = pd.DataFrame({"prompt": [HOSTILE], "kind": [HOSTILE], "related": [False]})
    panel = gate_tuner(gate, kinds=kinds, typed=HOSTILE)
    panel.state.threshold = 0.0
    panel.state.threshold = 1.0 if panel.state.own_opened[-1] else 0.0
    for part in (panel.kinds, panel.changed, panel.table):
        assert "&lt;script&gt;" in part.value
    panel.state.typed = HOSTILE * 10
    assert "&lt;script&gt;" in panel.problem.value
    for widget in inside(panel):
        if isinstance(widget, widgets.HTML):
            assert "<script" not in widget.value and "<img" not in widget.value
    assert "<script" not in str(panel.histogram.figure) and "<img" not in str(panel.histogram.figure)


def test_two_views_of_one_state_stay_equal(gate):
    one = gate_tuner(gate)
    two = GateTuner(one.state)
    one.histogram.handle = {**one.histogram.handle, "at": 1.0}
    two.controls["rule"].value = "f1"
    one.controls["threshold"].value = -1.5
    two.controls["typed"].value = "Should Mira do team?"
    for name, control in one.controls.items():
        assert control.value == two.controls[name].value
    for part in ("bar", "summary", "kinds", "changed", "table"):
        assert getattr(one, part).value == getattr(two, part).value, part
    assert one.histogram.handle == two.histogram.handle
    assert drawn(one.histogram) == drawn(two.histogram) and drawn(one.roc) == drawn(two.roc)


def test_an_error_inside_is_shown(panel, monkeypatch):
    monkeypatch.setattr(panel.state, "counts", lambda: 1 / 0)
    panel.state.threshold = 0.6
    assert "ZeroDivisionError" in panel.problem.value
    monkeypatch.undo()
    panel.state.threshold = 0.7
    assert panel.problem.value == ""


# --- in an event loop, as in a kernel ---


def test_dragging_draws_the_last_position_and_does_not_move_the_hand(kinds):
    async def steps():
        panel = gate_tuner(known_gate(), kinds=kinds)
        turn, pushed = panel.roc.turn, []
        panel.histogram.observe(lambda change: pushed.append(change["new"]["at"]), "handle")
        for place in np.linspace(-2, 2, 10):
            panel.histogram.handle = {**panel.histogram.handle, "at": float(place)}
        assert panel.roc.turn == turn and pushed == pytest.approx(np.linspace(-2, 2, 10))
        await until(lambda: f"{expit(2):.4g}" in panel.summary.value)
        assert panel.roc.turn == turn + 1, "positions that were passed were drawn too"
        await until(lambda: panel.histogram.handle["text"] == f"{expit(2):.4g}")
        assert pushed[10:] == pytest.approx([2.0]), "the handle jumped"

    in_a_loop(steps())


def test_typing_scores_once_it_rests(gate, monkeypatch):
    async def steps():
        panel, asked = gate_tuner(gate), []
        scores = ProbeGate.scores
        monkeypatch.setattr(ProbeGate, "scores", lambda self, prompts: asked.append(prompts) or scores(self, prompts))
        for text in ("S", "Sh", "Should Mira do team?", "Should Mira do team?\nWhat is 3 and 3?"):
            panel.controls["typed"].value = text
        await until(lambda: panel.ending == "done")
        assert asked == [["Should Mira do team?"], ["What is 3 and 3?"]]
        await until(lambda: panel.table.value.count("<tr>") == 3)
        panel.controls["typed"].value = "house " * 200
        await until(lambda: panel.ending == "failed")
        await asyncio.sleep(0.1)
        assert "of 128 tokens" in panel.problem.value, "the error went away by itself"

    in_a_loop(steps())


# --- another model ---


def test_on_craftgpt(craftgpt):
    questions = that_fit(craftgpt, load_questions("natural"), ["question"], chat=True)[0].head(40)
    unrelated = that_fit(craftgpt, load_unrelated("natural"), ["prompt"], chat=True)[0]
    fit = unrelated[~unrelated["related"] & (unrelated["split"] == "calibration")].head(40)
    gate = ProbeGate.fit(craftgpt, questions, fit, layer=2, folds=2)
    panel = gate_tuner(gate, kinds=pd.concat([fit, unrelated[unrelated["split"] == "test"].head(30)]))
    assert panel.problem.value == "" and len(panel.state.table) > len(gate.oof)
    panel.controls["rule"].value = "youden"
    assert panel.state.tuned().threshold == gate.calibrate(by="youden").threshold
    panel.controls["typed"].value = "Should I move to the city?"
    assert panel.state.scored[0][1] == pytest.approx(float(gate.scores(["Should I move to the city?"])[0]), abs=1e-6)
    panel.controls["typed"].value = "Should I move to the city? " * 20
    assert "of 64 tokens" in panel.problem.value
