"""The studio without a screen: set a trait, run, look at what the traits and the HTML say."""

import asyncio
import math
import threading
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
import torch
from panelled import HOSTILE, drawn, in_a_loop, inside, until
from scipy.special import expit, logit

from workbench.activations import capture
from workbench.errors import WorkbenchError
from workbench.evaluation import ExactJudge
from workbench.gates import AlwaysOpen, CosineGate, ProbeGate
from workbench.generate import generate
from workbench.panels import SteeringState, Studio, studio
from workbench.panels.panel import PAUSE
from workbench.panels.states.doses import METHODS
from workbench.panels.studio import layers_of
from workbench.probes import Probes, fit_probes
from workbench.prompts import data_path, load_pairs
from workbench.steering.caa import CAA
from workbench.steering.conva import ConVA
from workbench.steering.ica import ICA
from workbench.steering.random_direction import RandomDirection
from workbench.steering.scav import SCAV
from workbench.values import VALUES, angles

WORDS = "house bakery family customs race team forest friend leader novelty".split()
LAYERS = [0, 1]
PLACE = dict(zip(VALUES, angles().tolist(), strict=True))


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model()


@pytest.fixture(scope="module")
def probes(model):
    rows = [
        {"value": value, "positive": f"I {verb} the {WORDS[k]} {n}.", "negative": f"I {verb} the {WORDS[k - 5]} {n}."}
        for k, value in enumerate(VALUES)
        for n in range(2)
        for verb in ("like", "want", "see")
    ]
    return fit_probes(model, pd.DataFrame(rows), folds=2)


@pytest.fixture(scope="module")
def gate(model):
    related, unrelated = [f"Should Mira do {word}?" for word in WORDS], [f"What is {n} and {n}?" for n in range(10)]
    return ProbeGate.fit(model, related, unrelated, folds=2)


@pytest.fixture
def panel(model, probes, gate):
    panel = studio(model, probes, gate, layers=LAYERS, max_new_tokens=6)
    assert panel.problem.value == ""
    yield panel
    assert not vars(model).get("active"), "the panel left the model steered"


# --- state ---


@pytest.mark.parametrize(
    ("setting", "wrong", "said"),
    [
        ("angle", math.nan, "An angle of nan was asked for."),
        ("strength", 1.1, "A strength of 1.1 was asked for.\nAllowed: 0, which is off, to 1"),
        ("threshold", 0.0, "A threshold of 0.0 was asked for."),
        ("method", "conva", "Allowed: ConVA, CAA, SCAV, NeVA, ICA, random"),
        ("scope", "some", "Scope 'some' of ConVA was asked for.\nAllowed: 'all', 'generated', 'token'"),
        ("layers", (0, 99), "Layers [0, 99] were asked for.\nAllowed: one or more of 0, 1, 2"),
        ("layers", (), "Layers [] were asked for."),
        ("temperature", -1.0, "A temperature of -1.0 was asked for.\nAllowed: 0 or more"),
        ("temperature", float("nan"), "A temperature of nan was asked for."),
        ("seed", -1, "A seed of -1 was asked for."),
        ("max_new_tokens", 0, "A max new tokens of 0 was asked for.\nAllowed: 1 or more"),
        ("prompt", "half a \ud800", "half a character (a lone surrogate)"),
        ("active", 1, "Steering 1 was asked for.\nAllowed: 0 to 0"),
    ],
)
def test_wrong_settings_are_refused_and_change_nothing(model, probes, gate, setting, wrong, said):
    state = SteeringState(model, probes, gate, LAYERS)
    before = state.settings
    with pytest.raises(WorkbenchError) as error:
        setattr(state, setting, wrong)
    assert said in str(error.value)
    assert state.settings == before


def test_unknown_settings_and_foreign_probes_are_refused(model, tiny_model, probes):
    with pytest.raises(WorkbenchError, match="Settings dose were asked for.\nAllowed: value, target"):
        studio(model, probes, dose=3)
    with pytest.raises(WorkbenchError, match="were to be used with"):
        studio(tiny_model("qwen2"), probes)
    with pytest.raises(WorkbenchError, match="threshold of 0.5 was asked for.\nFound: no gate that has one"):
        SteeringState(model, probes, AlwaysOpen(), threshold=0.5)
    with pytest.raises(WorkbenchError, match="Did you mean 'power'"):
        studio(model, probes, value="Power")
    with pytest.raises(WorkbenchError, match="A target of 1.0 was asked for"):
        studio(model, probes, target=1.0)
    with pytest.raises(WorkbenchError, match="a value or an angle"):
        studio(model, probes, value="power", angle=1.0)


def test_value_and_target_are_an_angle_and_a_strength(model, probes):
    state = SteeringState(model, probes, layers=LAYERS, value="power", target=0.9)
    assert state.angle == pytest.approx(PLACE["power"]) and state.value == "power"
    assert state.target == pytest.approx(0.9)
    state.value, state.target = "security", 0.5
    assert state.angle == pytest.approx(PLACE["security"]) and state.strength == pytest.approx(0.4)
    state.angle = PLACE["power"] + math.radians(2)  # so near, the value is meant
    assert state.angle == PLACE["power"]
    state.angle = PLACE["power"] + math.radians(9)
    assert state.value == "153°" and state.told() == "ConVA, power 75 % + security 25 %, P ≥ 0.5"
    state.method = "CAA"  # which steers one value
    assert state.value == "power" and state.told() == "CAA, power, 0.40 × the mean difference"


def test_a_method_has_scopes_of_its_own(model, probes):
    state = SteeringState(model, probes, layers=LAYERS, scope="token")
    state.method = "CAA"
    assert state.scope == "all"
    with pytest.raises(WorkbenchError, match="Scope 'token' of CAA"):
        state.scope = "token"
    assert SteeringState(model, probes, layers=LAYERS, method="SCAV", scope="token").scope == "token"


def test_each_method_is_made_as_it_is_set(model, probes, gate):
    state = SteeringState(model, probes, gate, LAYERS, value="power", target=0.9)
    differences = probes.activations.fit("mean_difference", folds=2)
    wanted = {
        "ConVA": ConVA(probes, "power", target=0.9, layers=LAYERS, gate=gate),
        "SCAV": SCAV(probes, "power", target=0.9, gate=gate),
        "random": RandomDirection(ConVA(probes, "power", target=0.9, layers=LAYERS, gate=gate)),
        "ICA": ICA("power", gate=gate),
        "CAA": CAA(differences, "power", state.strength, layers=LAYERS, gate=gate),
    }
    for method, steer in wanted.items():
        state.method = method
        state.scope = METHODS[method].scopes[0] if METHODS[method].scopes else state.scope
        made = state.steer()
        prompts = ["Should Mira do race?"]
        assert type(made) is type(steer) and getattr(made, "layers", ()) == getattr(steer, "layers", ())
        assert generate(model, prompts, steer=made, max_new_tokens=8) == generate(
            model, prompts, steer=steer, max_new_tokens=8
        )
    state.gated = False
    assert state.steer().gate is None
    state.strength = 0
    assert state.steer() is None


def test_neva_selects_neurons_of_the_probes_own_pairs(model, probes):
    state = SteeringState(model, probes, layers=[0, 1, 2], method="NeVA", value="power")
    try:
        steer = state.steer()
    except WorkbenchError as problem:
        assert "Neurons of power by NeVA" in str(problem)
    else:
        assert steer.name == "NeVA" and steer.neurons.value == "power"


def test_what_probes_from_a_file_lack_is_told(model, probes, tmp_path):
    loaded = Probes.load(probes.save(tmp_path / "probes.safetensors"))
    state = SteeringState(model, loaded, layers=LAYERS, method="CAA")
    with pytest.raises(WorkbenchError, match="without their activations\nWhat to do: Pass differences="):
        state.steer()
    differences = probes.activations.fit("mean_difference", folds=2)
    assert SteeringState(model, loaded, layers=LAYERS, method="CAA", differences=differences).steer().name == "CAA"
    state.method = "NeVA"
    with pytest.raises(WorkbenchError, match="Pass neurons="):
        state.steer()


def test_steerings_are_added_kept_and_taken_away(model, probes):
    state = SteeringState(model, probes, layers=LAYERS, value="power", target=0.9)
    state.add()
    state.value, state.method = "security", "CAA"
    state.add()
    assert state.active == 2 and [own["method"] for own in state.steerings] == ["ConVA", "CAA", "CAA"]
    with pytest.raises(WorkbenchError, match="up to 3"):
        state.add()
    state.active = 0
    assert (state.value, state.method, state.target) == ("power", "ConVA", pytest.approx(0.9))
    state.strength = 0.2
    state.active = 1
    assert (state.value, state.method) == ("security", "CAA")
    state.remove()
    assert len(state.steerings) == 2 and state.steerings[0]["strength"] == 0.2 and state.method == "CAA"
    state.remove()
    assert state.value == "power" and state.strength == 0.2
    with pytest.raises(WorkbenchError, match="The only steering"):
        state.remove()


def test_look_reads_what_capture_and_the_gate_read(model, probes, gate):
    state = SteeringState(
        model, probes, gate, LAYERS, value="power", target=0.99, prompt="Should Mira do race?", threshold=1e-6
    )
    state.look()
    assert state.tokens == len(model.encode([state.prompt], chat=True)[0])
    assert state.score == pytest.approx(gate.scores([state.prompt])[0], abs=1e-6)
    alone = probes.probability(capture(model, [state.prompt], chat=True)).isel(text=0)
    np.testing.assert_allclose(state.before, alone.transpose("value", "layer"), atol=1e-6)
    assert state.open
    assert float(state.before.sel(value="power", layer=0)) < 0.99, "already there: nothing to see"
    np.testing.assert_allclose(state.after.sel(value="power", layer=LAYERS), 0.99, atol=1e-4)
    assert state.aimed[1] == pytest.approx(0.99, abs=1e-4)
    ids, mask = model.pad(model.encode([state.prompt], chat=True))
    with torch.no_grad():
        base = model.twin(input_ids=ids, attention_mask=mask).logits[0, -1].softmax(-1)
        with state.steer().on(model):
            steered = model.twin(input_ids=ids, attention_mask=mask).logits[0, -1].softmax(-1)
    for side, p in (("base", base), ("steered", steered)):
        best = state.words[side].idxmax()
        assert state.words[side][best] == pytest.approx(float(p.max()), abs=1e-6)
        assert state.words["token"][best] == model.tokenizer.decode([int(p.argmax())])
    state.threshold = min(state.score + 1e-3, 1 - 1e-6)
    state.look()
    assert not state.open
    np.testing.assert_array_equal(state.after, state.before, "a closed gate changed what the model computes")


def test_a_blend_meets_its_own_target(model, probes):
    state = SteeringState(model, probes, layers=LAYERS, angle=PLACE["power"] + 0.3, target=0.97)
    state.look()
    assert state.aimed[0] < 0.97 and state.aimed[1] == pytest.approx(0.97, abs=1e-4)


def test_speak_is_generate_beside_generate(model, probes, gate):
    state = SteeringState(model, probes, gate, LAYERS, temperature=1.0, seed=3, max_new_tokens=8, threshold=1e-6)
    state.add()
    state.method, state.value = "CAA", "security"
    for _ in state.speak():
        pass
    same: dict[str, Any] = dict(temperature=1.0, seed=3, max_new_tokens=8)
    assert state.answers == [
        *generate(model, [state.prompt], **same),
        *(generate(model, [state.prompt], steer=state.steer(k), **same)[0] for k in range(2)),
    ]
    assert state.answers[0] != state.answers[1] and state.asked == state.settings
    _, trace = generate(model, [state.prompt], steer=state.steer(0), return_trace=True, **same)
    pd.testing.assert_frame_equal(state.traces[0], trace)
    said = [answer for answer in state.answers if answer.strip()]
    read = probes.probability(capture(model, said, layers=[state.reader])).sel(layer=state.reader)
    np.testing.assert_allclose(state.profiles.dropna("answer"), read.transpose("text", "value"), atol=1e-6)


def test_a_stopped_answer_leaves_the_model_as_it_was(model, probes):
    ids = torch.tensor(model.encode(["A friend."]))
    before = model.twin(ids).logits
    state = SteeringState(model, probes, layers=LAYERS)
    steps = state.speak()
    for _ in range(5):
        next(steps)
    steps.close()
    assert torch.equal(model.twin(ids).logits, before)
    assert 0 < len(model.encode([state.answers[1]], chat=False)[0]) < 8


def test_base_is_never_read_while_something_steers(model, probes):
    state = SteeringState(model, probes, layers=LAYERS)
    with ConVA(probes, "power", layers=LAYERS).on(model):
        with pytest.raises(WorkbenchError, match="without steering was asked for.\nFound: ConVA"):
            state.look()


def test_a_gate_by_cosine_keeps_its_own_scale(model, probes):
    related, unrelated = [f"Should Mira do {word}?" for word in WORDS], [f"What is {n} and {n}?" for n in range(10)]
    panel = studio(model, probes, CosineGate.fit(model, related, unrelated, folds=2), layers=LAYERS)
    panel.state.threshold = -0.5
    assert panel.controls["threshold"].value == pytest.approx(-0.5) and panel.problem.value == ""
    with pytest.raises(WorkbenchError, match="-1 to 1"):
        panel.state.threshold = -2


# --- panel ---


def test_a_run_shows_gate_probabilities_and_all_answers(panel):
    panel.state.judge = ExactJudge()
    panel.run(wait=True)
    state = panel.state
    assert panel.ending == "done" and ">done<" in panel.status.value
    assert f"score {state.score:.4g} &gt; {state.threshold:.4g}: <b>open</b>" in panel.decision.value
    assert f"{float(state.after.sel(value=state.value, layer=1)):.3f}</b> after" in panel.decision.value
    assert panel.answers.value.count('class="wb-said"') == 2
    assert panel.answers.value.count("affirms <b>no value</b>; <b>not grammatical</b>") == 2
    assert f"{state.tokens} of 128 tokens" in panel.counter.value
    panel.state.threshold = 1 - 1e-6
    assert "<b>closed</b>" in panel.decision.value and "settings have changed since" in panel.status.value
    panel.run(wait=True)
    assert "All answers are the same" in panel.answers.value
    panel.state.strength = 0.0
    assert "<b>off</b>, nothing is steered" in panel.decision.value


def test_judged_answers_say_which_values_they_affirm(panel):
    class Judge(ExactJudge):
        def control(self, answer, value):
            return {"power": 1.0, "security": 0.5}.get(value, 0.0)

        def fluent(self, answer):
            return True

    assert "No judge" in (panel.run(wait=True) or panel.answers.value)
    panel.state.judge = Judge()
    panel.run(wait=True)
    assert "affirms <b>power</b>; affirms and denies security; grammatical" in panel.answers.value


def test_without_a_gate_everything_is_steered(model, probes):
    panel = studio(model, probes, layers=LAYERS)
    assert panel.state.open and "No gate: <b>open</b>" in panel.decision.value
    assert "threshold" not in panel.controls and "gated" not in panel.controls
    assert "AlwaysOpen: <b>open</b>" in studio(model, probes, AlwaysOpen(), layers=LAYERS).decision.value


def test_controls_and_state_follow_each_other(panel):
    state, held = panel.state, panel.controls
    held["method"].value, held["strength"].value, held["seed"].value = "CAA", 0.3, 7
    assert (state.method, state.strength, state.seed) == ("CAA", 0.3, 7)
    assert held["scope"].options == ("all", "generated") and not held["layers"].disabled
    held["method"].value = "ICA"
    assert held["scope"].disabled and held["layers"].disabled
    held["method"].value = "ConVA"
    state.strength, state.prompt = 0.55, "Should Mira do team?"
    assert held["strength"].value == 0.55 and held["prompt"].value == "Should Mira do team?"
    assert panel.dose.value == f"P ≥ {state.target:.3g}"
    held["layers"].value = "0, 2"
    assert state.layers == (0, 2)
    state.threshold = 1e-5
    assert held["threshold"].value == pytest.approx(logit(1e-5), abs=0.02)
    held["threshold"].value += 0.02  # the browser's echo, rounded to its step
    assert state.threshold == 1e-5
    held["threshold"].value = 2.0
    assert state.threshold == pytest.approx(expit(2), abs=1e-6)


def test_layers_are_written_as_ranges():
    assert layers_of("3-5, 8") == (3, 4, 5, 8) and layers_of(" 2 ") == (2,)
    for wrong in ("a", "3-", "-3", "3;4", "0-999999999"):
        with pytest.raises(WorkbenchError, match="numbers and ranges, such as 3-5, 8"):
            layers_of(wrong)


def test_what_the_state_refuses_is_shown_and_the_control_goes_back(panel):
    panel.controls["layers"].value = "0-7"
    assert "Layers [0, 1, 2, 3, 4, 5, 6, 7] were asked for." in panel.problem.value
    assert panel.controls["layers"].value == "0-1" and panel.state.layers == (0, 1)


def test_the_dial_is_a_hand_on_a_steering(panel):
    state, dial = panel.state, panel.dial
    dial.hand = {"index": 0, "angle": PLACE["power"] + 0.2, "radius": 0.5, "held": True, "at": 1}
    assert state.angle == pytest.approx(PLACE["power"] + 0.2) and state.strength == 0.5
    assert state.asked is None, "it was not let go"
    assert dial.told == state.told() and dial.handles[0]["text"] == state.told()
    at = max(state.layers)
    for shown, p in ((dial.before, state.before), (dial.after, state.after)):
        np.testing.assert_allclose(shown, p.sel(layer=at, value=list(VALUES)), atol=1e-6)
    assert dial.rings[1] == [pytest.approx(0.4), "P .5"]
    dial.hand = {"index": 0, "angle": PLACE["power"] + 0.01, "radius": 0.6, "held": False, "at": 2}
    assert state.asked is not None and panel.ending == "done"
    assert dial.handles[0]["angle"] == PLACE["power"], "it snaps to the value"
    panel.more.click()
    dial.hand = {"index": 0, "angle": 1.0, "radius": 0.1, "held": True, "at": 3}
    assert state.active == 0 and dial.active == 0 and state.steerings[1]["strength"] == 0.6
    assert [handle["letter"] for handle in dial.handles] == ["A", "B"]
    panel.live.value = False
    asked = state.asked
    dial.hand = {"index": 1, "angle": 1.0, "radius": 0.1, "held": False, "at": 4}
    assert state.asked == asked and panel.picked.value == 1
    panel.less.click()
    assert len(dial.handles) == 1 and panel.less.disabled


def test_what_is_added_in_a_loop_stays_active(model, probes):
    async def steps():
        panel = studio(model, probes, layers=LAYERS)
        other = Studio(panel.state)
        panel.more.click()
        await asyncio.sleep(0.3)
        panel.controls["method"].value = "CAA"
        await asyncio.sleep(0.3)
        assert [own["method"] for own in panel.state.steerings] == ["ConVA", "CAA"]
        assert panel.picked.value == other.picked.value == panel.state.active == 1

    in_a_loop(steps())


def test_the_models_own_places_stand_beside_the_ideal_ones(panel, probes):
    from workbench.geometry import planted_axis_map

    table = planted_axis_map(probes.vectors(panel.state.reader)).set_index("value").loc[list(VALUES), ["x", "y"]]
    np.testing.assert_allclose(panel.dial.positions, table, atol=1e-6)
    assert panel.dial.circle["names"] == list(VALUES)


def test_next_tokens_are_previewed(panel):
    table = panel.state.words
    assert len(table) <= 8 and (table[["base", "steered"]] <= 1).all(axis=None)
    assert panel.words.value.count("wb-bar-steered") == len(table)
    assert f"<td>{table['base'][0]:.3f}</td><td>{table['steered'][0]:.3f}</td>" in panel.words.value


def test_a_prompt_too_long_is_said_and_not_cut(panel):
    panel.run(wait=True)
    panel.state.prompt = "house " * 150
    tokens = panel.state.tokens
    assert f"{tokens} of 128 tokens — <b>too long by {tokens - 127}</b>" in panel.counter.value
    assert "of 128 tokens" in panel.problem.value and 'role="alert"' in panel.problem.value
    assert panel.decision.value == "", "the decision about another prompt is still shown"
    assert panel.dial.before == [] == panel.dial.after and panel.words.value == ""
    with pytest.raises(WorkbenchError, match="of 128 tokens"):
        panel.run(wait=True)
    assert panel.ending == "failed" and panel.stop.disabled
    panel.state.prompt = "Should Mira do team?"
    assert panel.problem.value == "" and "<b>" in panel.decision.value


def test_what_generation_warns_of_is_shown(panel):
    panel.state.prompt, panel.state.max_new_tokens = "house " * 40, 120
    room = panel.state.model.context - panel.state.tokens
    assert f"which leaves {room} for the answer" in panel.counter.value
    panel.run(wait=True)
    if "is full" not in panel.state.note:
        pytest.skip("both answers ended before the context was full")
    assert "is full" in panel.answers.value


def test_errors_are_shown_in_the_panel_whatever_they_are(panel, monkeypatch):
    monkeypatch.setattr(panel.state, "look", lambda: 1 / 0)
    panel.go.click()
    assert "ZeroDivisionError" in panel.problem.value
    assert __file__.rpartition("/")[2] in panel.problem.value
    monkeypatch.setenv("WORKBENCH_SERVED", "1")
    panel.go.click()
    assert "ZeroDivisionError" in panel.problem.value and ".py" not in panel.problem.value
    monkeypatch.undo()
    panel.go.click()
    assert panel.problem.value == "" and panel.ending == "done"


@pytest.mark.parametrize("hostile", [HOSTILE, HOSTILE * 250, "\x00\x07\x1b[31m\u202e" + HOSTILE, "</style></div>" * 20])
def test_a_hostile_prompt_is_harmless(panel, hostile):
    panel.controls["prompt"].value = hostile
    panel.go.click()
    panel.state.answers = [hostile] * len(panel.state.answers)
    panel.state.note = hostile
    for widget in inside(panel):
        if isinstance(widget, widgets.HTML):
            own = widget.value.split("</style>", 1)[-1] if widget.value.startswith("<style>") else widget.value
            assert "<script" not in own and "<img" not in own and "</style" not in own
    for plot in (panel.strip, panel.reading, panel.profile):
        assert "<script" not in plot.figure and "<img" not in plot.figure


def test_half_a_character_is_told(panel):
    panel.controls["prompt"].value = "half \ud800"
    assert "lone surrogate" in panel.problem.value
    assert panel.controls["prompt"].value == panel.state.prompt


def test_pictures_follow_and_hold_no_nan(panel):
    turn = panel.reading.turn
    panel.state.value = "power"
    assert panel.reading.turn > turn and "power by layer" in drawn(panel.reading)["layout"]["title"]["text"]
    assert "press Run" in drawn(panel.strip)["layout"]["annotations"][0]["text"]
    panel.run(wait=True)
    assert drawn(panel.strip)["data"][0]["type"] == "heatmap"
    assert [trace["name"] for trace in drawn(panel.profile)["data"]] == ["Base", panel.state.told()]
    panel.state.prompt = "house " * 150  # nothing can be read, and JSON has no NaN
    assert "NaN" not in panel.reading.figure
    panel.reading.dark = True
    assert drawn(panel.reading)["layout"]["template"]["layout"]["paper_bgcolor"] == "#15191e"


def test_two_views_of_one_state_stay_equal(panel):
    other = Studio(panel.state)
    panel.controls["strength"].value = 0.3
    other.controls["method"].value = "CAA"
    for view in (panel, other):
        assert (view.controls["strength"].value, view.controls["method"].value) == (0.3, "CAA")
        assert view.dial.told == panel.state.told()
    other.run(wait=True)
    assert other.answers.value == panel.answers.value and panel.answers.value.count("No judge") == 2


def test_a_slider_is_told_what_it_can_show(panel):
    """Else the browser's rounding of a setting comes back late and undoes the next one."""
    panel.state.target = 0.75
    exact, slider = panel.state.strength, panel.controls["strength"]
    assert slider.value == 0.51 and exact == pytest.approx(0.50986, abs=1e-5)
    panel.run(wait=True)
    slider.value = 0.51  # the echo
    assert panel.state.strength == exact and "done" in panel.status.value
    slider.value = 0.52  # the hand
    assert panel.state.strength == 0.52 and "press Run" in panel.status.value


# --- in an event loop, as in a kernel ---


def test_who_waits_for_answers_finds_them_shown(model, probes):
    async def steps():  # a notebook's last cell: what comes later, nbconvert does not keep
        panel = studio(model, probes, layers=LAYERS, max_new_tokens=8)
        panel.state.value = "power"
        panel.run(wait=True)
        assert [trace["name"] for trace in drawn(panel.profile)["data"]] == ["Base", panel.state.told()]
        assert drawn(panel.strip)["data"][0]["type"] == "heatmap"
        assert "done" in panel.status.value and panel.answers.value.count("No judge") == 2
        at = dict(layer=max(panel.state.at), value=list(VALUES))
        np.testing.assert_allclose(panel.dial.after, panel.state.after.sel(at).values)
        panel.state.prompt = "house " * 150
        with pytest.raises(WorkbenchError, match="of 128 tokens"):
            panel.run(wait=True)
        assert panel.dial.after == [] and panel.ending == "failed"

    asyncio.run(steps())


def test_answers_stream_while_the_kernel_goes_on_and_can_be_cancelled(model, probes):
    async def steps():
        panel = studio(model, probes, layers=LAYERS, max_new_tokens=90)
        seen = []
        panel.state.observe(lambda change: seen.append(change["new"][-1]), "answers")
        panel.run()
        assert panel.ending == "running" or panel.state.asked is None  # it came back at once
        await until(lambda: len(seen) > 8)
        assert panel.ending == "running" and not panel.stop.disabled
        panel.stop.click()
        there = len(seen)
        await until(lambda: panel.ending == "cancelled")
        assert len(seen) <= there + 2 < 160, "the answers were written to their end"
        said = panel.state.answers
        await asyncio.sleep(0.1)
        assert panel.state.answers == said and panel.stop.disabled
        assert not vars(model).get("active")
        panel.state.max_new_tokens = 3
        panel.run()
        panel.run()  # takes the place of the first
        await until(lambda: panel.ending == "done")
        wanted = generate(model, [panel.state.prompt], steer=panel.state.steer(), max_new_tokens=3)
        assert panel.state.answers[1:] == wanted

    in_a_loop(steps())


def test_dragging_reads_only_what_is_last(model, probes, monkeypatch):
    async def steps():
        panel = studio(model, probes, layers=LAYERS)
        looks = []
        look = panel.state.look
        monkeypatch.setattr(panel.state, "look", lambda: looks.append(panel.state.strength) or look())
        for step in range(10):
            panel.dial.hand = {"index": 0, "angle": 1.0, "radius": step / 10, "held": True, "at": step}
        assert looks == []
        await until(lambda: looks)
        await asyncio.sleep(2 * PAUSE)
        assert looks == [0.9]

    in_a_loop(steps())


def test_what_is_typed_meanwhile_is_not_overwritten(model, probes):
    async def steps():
        panel = studio(model, probes, layers=LAYERS)
        control, seen = panel.controls["prompt"], []
        control.observe(lambda change: seen.append(change["new"]), "value")

        def type_on():
            for text in ("A ho", "A hou", "A house"):
                control.value = text

        await asyncio.to_thread(type_on)
        await until(lambda: panel.state.prompt == "A house")
        assert seen == ["A ho", "A hou", "A house"]

    in_a_loop(steps())


def test_what_another_thread_clicks_happens_in_the_thread_of_the_cells(model, probes, monkeypatch):
    """JupyterLab hands clicks to a subshell, a thread of its own; two threads in one model would steer each other."""

    async def steps():
        panel = studio(model, probes, layers=LAYERS, max_new_tokens=3)
        threads = set()
        look = panel.state.look
        monkeypatch.setattr(panel.state, "look", lambda: threads.add(threading.current_thread()) or look())
        panel.state.observe(lambda _: threads.add(threading.current_thread()))

        def click():
            panel.dial.hand = {"index": 0, "angle": PLACE["power"], "radius": 0.5, "held": True, "at": 1}
            panel.go.click()

        await asyncio.to_thread(click)
        await until(lambda: panel.ending == "done")
        assert panel.state.asked["steerings"][0]["angle"] == PLACE["power"]
        assert threads == {threading.current_thread()}

    in_a_loop(steps())


# --- models that ship, and one that does not ---


def test_the_studio_on_the_embedded_model():
    from workbench.models import load_model

    try:
        data_path("embedded", "circle", "model.safetensors")
    except WorkbenchError:
        pytest.skip("the embedded model is not there yet")
    model = load_model("embedded:circle")
    pairs = load_pairs("embedded").groupby("value", sort=False).head(40)
    panel: Studio = studio(model, fit_probes(model, pairs, layers=[3, 4], folds=2), layers=[3, 4], max_new_tokens=40)
    assert panel.state.temperature == 1.0 and panel.state.prompt.endswith("?")
    panel.run(wait=True)
    assert panel.ending == "done" and panel.answers.value.count("Judge: affirms") == 2


def test_the_studio_on_a_model_that_reads_no_value(craftgpt):
    from workbench.prompts import that_fit

    pairs, _ = that_fit(craftgpt, load_pairs("natural"), ["positive", "negative"])
    probes = fit_probes(craftgpt, pairs.groupby("value", sort=False).head(20), folds=2)
    panel = studio(craftgpt, probes, prompt="Do you like to build?", value="power", max_new_tokens=12)
    assert len(panel.state.layers) == 1, "no layer reads at .9: the best one is steered"
    panel.run(wait=True)
    assert panel.ending == "done" and "No judge" in panel.answers.value
    panel.state.value, panel.state.method = "conformity", "ICA"  # whose instruction does not fit 64 tokens
    assert "tokens" in panel.problem.value
