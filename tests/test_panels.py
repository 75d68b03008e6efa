"""The studio without a screen: set a trait, run, look at what the traits and the HTML say."""

import asyncio
import json
import threading
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from scipy.special import expit, logit

from workbench.activations import capture
from workbench.errors import WorkbenchError
from workbench.evaluation import ExactJudge
from workbench.gates import AlwaysOpen, ProbeGate
from workbench.generate import generate
from workbench.panels import SteeringState, Studio, studio
from workbench.panels.studio import PAUSE
from workbench.probes import fit_probes
from workbench.prompts import data_path, load_pairs
from workbench.steering.conva import ConVA
from workbench.values import VALUES

WORDS = "house bakery family customs race team forest friend leader novelty".split()
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"
LAYERS = [0, 1]


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


def inside(panel) -> list[widgets.Widget]:
    """All widgets of a panel."""
    found: list[widgets.Widget] = [panel]
    for widget in found:
        found += getattr(widget, "children", ())
    return found


# --- state ---


@pytest.mark.parametrize(
    ("setting", "wrong", "said"),
    [
        ("value", "Power", "Did you mean 'power'"),
        ("target", 1.0, "A target of 1.0 was asked for.\nAllowed: a probability, above 0 and below 1"),
        ("threshold", 0.0, "A threshold of 0.0 was asked for."),
        ("scope", "some", "Scope 'some' was asked for.\nAllowed: 'all', 'generated', 'token'"),
        ("temperature", -1.0, "A temperature of -1.0 was asked for.\nAllowed: 0 or more"),
        ("temperature", float("nan"), "A temperature of nan was asked for."),
        ("seed", -1, "A seed of -1 was asked for."),
        ("max_new_tokens", 0, "A max new tokens of 0 was asked for.\nAllowed: 1 or more"),
    ],
)
def test_wrong_settings_are_refused_and_change_nothing(model, probes, gate, setting, wrong, said):
    state = SteeringState(model, probes, gate, LAYERS)
    before = state.settings
    with pytest.raises(WorkbenchError) as error:
        setattr(state, setting, wrong)
    assert said in str(error.value)
    assert state.settings == before
    with pytest.raises(WorkbenchError):
        SteeringState(model, probes, gate, LAYERS, **{setting: wrong})


def test_unknown_settings_and_foreign_probes_are_refused(model, tiny_model, probes):
    with pytest.raises(WorkbenchError, match="Settings strength were asked for.\nAllowed: value, target"):
        studio(model, probes, strength=3)
    with pytest.raises(WorkbenchError, match="were to be used with"):
        studio(tiny_model("qwen2"), probes)
    with pytest.raises(WorkbenchError, match="threshold of 0.5 was asked for.\nFound: no ProbeGate"):
        SteeringState(model, probes, AlwaysOpen(), threshold=0.5)


def test_look_reads_what_capture_and_the_gate_read(model, probes, gate):
    state = SteeringState(model, probes, gate, LAYERS, value="power", target=0.99, prompt="Should Mira do race?")
    state.look()
    assert state.tokens == len(model.encode([state.prompt], chat=True)[0])
    assert state.score == pytest.approx(gate.scores([state.prompt])[0], abs=1e-6)
    alone = probes.probability(capture(model, [state.prompt], chat=True)).isel(text=0)
    np.testing.assert_allclose(state.before, alone.transpose("value", "layer"), atol=1e-6)
    assert state.open and state.steered_layers == (0, 1)
    assert float(state.before.sel(value="power", layer=0)) < 0.99, "already there: nothing to see"
    np.testing.assert_allclose(state.after.sel(value="power", layer=LAYERS), 0.99, atol=1e-4)
    assert state.score is not None
    state.threshold = min(state.score + 1e-3, 1 - 1e-6)
    state.look()
    assert not state.open
    assert state.after.identical(state.before), "a closed gate changed what the model computes"


def test_speak_is_generate_beside_generate(model, probes, gate):
    state = SteeringState(model, probes, gate, LAYERS, temperature=1.0, seed=3, max_new_tokens=8, threshold=1e-6)
    for _ in state.speak():
        pass
    same: dict[str, Any] = dict(temperature=1.0, seed=3, max_new_tokens=8)
    steer = ConVA(probes, state.value, layers=LAYERS)
    assert [state.base] == generate(model, [state.prompt], **same)
    assert [state.steered] == generate(model, [state.prompt], steer=steer, **same)
    assert state.base != state.steered and state.asked == state.settings


def test_a_stopped_answer_leaves_the_model_as_it_was(model, probes):
    ids = torch.tensor(model.encode(["A friend."]))
    before = model.twin(ids).logits
    state = SteeringState(model, probes, layers=LAYERS)
    steps = state.speak()
    for _ in range(5):
        next(steps)
    steps.close()
    assert torch.equal(model.twin(ids).logits, before)
    assert 0 < len(model.encode([state.steered], chat=False)[0]) < 8


def test_base_is_never_read_while_something_steers(model, probes):
    state = SteeringState(model, probes, layers=LAYERS)
    with ConVA(probes, "power", layers=LAYERS).on(model):
        with pytest.raises(WorkbenchError, match="without steering was asked for.\nFound: ConVA"):
            state.look()


# --- panel ---


def test_a_run_shows_gate_probabilities_and_both_answers(panel):
    panel.state.judge = ExactJudge()
    panel.run(wait=True)
    state = panel.state
    assert panel.ending == "done" and ">done<" in panel.status.value
    assert f"P(related) = {state.score:.4g} &gt; {state.threshold:.4g}: <b>open</b>" in panel.decision.value
    assert f"{float(state.after.sel(value=state.value, layer=1)):.3f}</b> after" in panel.decision.value
    assert panel.answers.value.count('class="wb-said"') == 2
    assert panel.answers.value.count("affirms <b>no value</b>; <b>not grammatical</b>") == 2
    assert f"{state.tokens} of 128 tokens" in panel.counter.value
    panel.state.threshold = 1 - 1e-6
    assert "<b>closed</b>" in panel.decision.value and "settings have changed since" in panel.status.value
    panel.run(wait=True)
    assert "Both answers are the same" in panel.answers.value


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
    assert panel.controls["threshold"] not in inside(panel)
    assert "AlwaysOpen: <b>open</b>" in studio(model, probes, AlwaysOpen(), layers=LAYERS).decision.value


def test_controls_and_state_follow_each_other(panel):
    panel.controls["value"].value = "power"
    panel.controls["target"].value = 4.0
    panel.controls["seed"].value = 7
    assert (panel.state.value, panel.state.seed) == ("power", 7)
    assert panel.state.target == pytest.approx(expit(4), abs=1e-6)
    panel.state.target, panel.state.prompt = 0.5, "Should Mira do team?"
    assert panel.controls["target"].value == pytest.approx(0, abs=0.02)
    assert panel.labels["target"].value == "P ≥ 0.5"
    assert panel.controls["prompt"].value == "Should Mira do team?"
    panel.controls["target"].value = 0.02  # the browser's echo, rounded to its step
    assert panel.state.target == 0.5
    panel.state.threshold = 1e-5
    assert panel.controls["threshold"].value == pytest.approx(logit(1e-5), abs=0.02)


def test_what_the_state_refuses_is_shown_and_the_control_goes_back(panel):
    panel.controls["target"].max = 40
    panel.controls["target"].value = 39.0  # a probability of 1
    assert "A target of 1.0 was asked for." in panel.problem.value
    assert panel.controls["target"].value == pytest.approx(logit(0.95), abs=0.01) and panel.state.target == 0.95


def test_a_prompt_too_long_is_said_and_not_cut(panel):
    panel.run(wait=True)
    panel.state.prompt = "house " * 150
    tokens = panel.state.tokens
    assert f"{tokens} of 128 tokens — <b>too long by {tokens - 127}</b>" in panel.counter.value
    assert "of 128 tokens" in panel.problem.value and 'role="alert"' in panel.problem.value
    assert panel.decision.value == "", "the decision about another prompt is still shown"
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
    panel.start.click()
    assert "ZeroDivisionError" in panel.problem.value
    monkeypatch.undo()
    panel.start.click()
    assert panel.problem.value == "" and panel.ending == "done"


def test_text_of_model_and_prompt_is_escaped(panel):
    panel.state.prompt = HOSTILE
    panel.run(wait=True)
    panel.state.base = panel.state.steered = panel.state.note = HOSTILE
    assert "&lt;script&gt;" in panel.answers.value
    panel.state.prompt = HOSTILE * 20  # now the error quotes it
    assert "&lt;script&gt;" in panel.problem.value
    for widget in inside(panel):
        if isinstance(widget, widgets.HTML):
            assert "<script" not in widget.value and "<img" not in widget.value


def test_one_figure_widget_is_born_whole_and_kept(panel):
    figure: Any
    (figure,) = [widget for widget in inside(panel) if isinstance(widget, go.FigureWidget)]
    traces = [trace.uid for trace in figure.data]
    assert len(traces) == 5
    panel.state.value = "power"
    assert [trace.uid for trace in figure.data] == traces
    np.testing.assert_allclose(figure.data[1].y, panel.state.after.sel(value="power"))
    assert "power by layer" in figure.layout.title.text and figure.layout.yaxis.title.text == "P of power"
    assert len(figure.layout.shapes) == 2
    # What a view that opens later is given.
    np.testing.assert_allclose(figure._widget_data[1]["y"], figure.data[1].y)
    assert figure._widget_layout["title"]["text"] == figure.layout.title.text
    panel.state.prompt = "house " * 150  # nothing can be read, and JSON has no NaN
    assert json.dumps(figure._widget_data[1]["y"], allow_nan=False) == "[null, null, null]"


# --- in an event loop, as in a kernel ---


def in_a_loop(steps):
    async def guarded():
        await asyncio.wait_for(steps, timeout=120)

    asyncio.run(guarded())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


def test_answers_stream_while_the_kernel_goes_on_and_can_be_cancelled(model, probes):
    async def steps():
        panel = studio(model, probes, layers=LAYERS, max_new_tokens=90)
        seen = []
        panel.state.observe(lambda change: seen.append(change["new"]), "steered")
        panel.run()
        assert panel.ending == "running" or panel.state.asked is None  # it came back at once
        await until(lambda: len(seen) > 5)
        assert panel.ending == "running" and not panel.stop.disabled
        panel.stop.click()
        there = len(seen)
        await until(lambda: panel.ending == "cancelled")
        assert len(seen) <= there + 1 < 80, "the answer was written to its end"
        said = panel.state.steered
        await asyncio.sleep(0.1)
        assert panel.state.steered == said == seen[-1] and panel.stop.disabled
        assert not vars(model).get("active")
        panel.state.max_new_tokens = 3
        panel.run()
        panel.run()  # takes the place of the first
        await until(lambda: panel.ending == "done")
        wanted = generate(model, [panel.state.prompt], steer=panel.state.steer(), max_new_tokens=3)
        assert [panel.state.steered] == wanted

    in_a_loop(steps())


def test_dragging_reads_the_prompt_once(model, probes, monkeypatch):
    async def steps():
        panel = studio(model, probes, layers=LAYERS)
        looks = []
        look = panel.state.look
        monkeypatch.setattr(panel.state, "look", lambda: looks.append(panel.state.target) or look())
        for step in range(10):
            panel.controls["target"].value = 3 + step / 10
        assert looks == []
        await until(lambda: looks)
        await asyncio.sleep(2 * PAUSE)
        assert looks == [panel.state.target]

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
            panel.controls["value"].value = "power"
            panel.start.click()

        await asyncio.to_thread(click)
        await until(lambda: panel.ending == "done")
        assert panel.state.asked["value"] == "power"
        assert threads == {threading.current_thread()}

    in_a_loop(steps())


# --- the model that ships ---


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
