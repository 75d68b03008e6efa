"""Choosing strengths: the objective, the halving, the record that a kill leaves."""

import json

import pandas as pd
import pytest
from spoken import WordJudge
from voiced import Foreign, Voice, give_voice

from workbench import evaluation as ev
from workbench.errors import WorkbenchError
from workbench.evaluation import tuning
from workbench.values import VALUES

VALUES3 = VALUES[:3]
QUESTIONS = pd.DataFrame(
    [(v, f"{v} {split} {i}", split) for v in VALUES3 for split in ("calibration", "test") for i in range(16)],
    columns=["value", "question", "split"],
)


class Calls(list):
    """(value, strength, prompts) of what was asked, and `speak`, who answered."""


@pytest.fixture()
def asked(monkeypatch):
    """Of 16 questions strength s wins 4 s, of hedonism's 16 - 4 s; from strength 4 on one answer breaks."""
    calls = Calls()

    def speak(model, prompts, steer=None, seed=0, **decoding):
        strength, value = getattr(steer, "strength", 0.0), getattr(steer, "value", "")
        calls.append((value, strength, tuple(prompts)))
        out = []
        for prompt in prompts:
            place = int(prompt.rsplit(" ", 1)[1])
            won = 4 * strength if value != "hedonism" else 16 - 4 * strength
            broken = " *" if strength >= 4 and place == 3 else ""
            out.append((value if (place % 4) * 4 + place // 4 < won else "") + broken)
        return out

    give_voice(monkeypatch, speak)
    calls.speak = speak
    return calls


def tuned(settings=(1, 2, 3, 4), **more):
    return ev.tune(Foreign(), Voice, list(settings), QUESTIONS, judge=WordJudge(), **more)


def test_the_best_fluent_setting_of_each_value_is_chosen_on_calibration_questions(asked):
    chosen, curve = tuned()
    assert chosen == {"self-direction": 3, "stimulation": 3, "hedonism": 1}, "4 breaks one answer of 16"
    assert all(" calibration " in prompt for _, _, prompts in asked for prompt in prompts)
    own = curve[curve["value"] == "stimulation"].set_index("setting")
    assert list(own.index) == ["Base", "1", "2", "3", "4"] and own["csr"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert own["fluent"].tolist() == [True, True, True, True, False] and own.loc["3", "chosen"]
    assert (own.loc["3", "low"], own.loc["3", "high"]) == pytest.approx(ev.wilson(0.75, 16))
    assert (own["n"] == 16).all()
    assert curve["chosen"].sum() == 3


def test_without_a_fluent_setting_the_first_is_taken(asked):
    assert set(tuned((4, 5)).chosen.values()) == {4}
    assert tuned((5, 4), fluency=0.0).chosen["stimulation"] == 5, "no fluency asked: the best control"


def test_a_base_that_is_not_fluent_itself_lowers_the_bar(asked, monkeypatch):
    give_voice(monkeypatch, lambda model, prompts, steer=None, **d: [
        answer + (" *" if i % 16 == 3 and "*" not in answer else "")
        for i, answer in enumerate(asked.speak(model, prompts, steer, **d))])  # fmt: skip
    assert tuned().chosen["stimulation"] == 4, "15 of 16 fluent, as Base is"


def test_halving_asks_less_and_chooses_alike(asked):
    whole = tuned()
    first, asked[:] = sum(len(prompts) for _, _, prompts in asked), []
    halved = tuned(rounds=3)
    assert sum(len(prompts) for _, _, prompts in asked) < 0.7 * first and halved.chosen == whole.chosen
    reached = halved.curve.query("value == 'stimulation'").set_index("setting")
    assert reached["n"].to_dict() == {"Base": 16, "1": 4, "2": 8, "3": 16, "4": 4}
    assert reached["round"].to_dict() == {"Base": 2, "1": 0, "2": 1, "3": 2, "4": 0}
    everything = [(value, strength, prompt) for value, strength, prompts in asked for prompt in prompts]
    own = [one for one in everything if one[0]]
    assert len(own) == len(set(own)), "no question is asked twice"


def test_what_was_said_before_a_kill_is_not_asked_again(asked, tmp_path, monkeypatch):
    record = tmp_path / "run" / "tune.jsonl"

    def killed(*args, **more):
        if len(asked) == 7:
            raise KeyboardInterrupt
        return asked.speak(*args, **more)

    give_voice(monkeypatch, killed)
    with pytest.raises(KeyboardInterrupt):
        tuned(record=record, rounds=2)
    give_voice(monkeypatch, asked.speak)
    lines = record.read_text().splitlines()
    assert len(lines) == 7 and json.loads(lines[0])["said"]
    record.write_text("\n".join(lines)[:-5])  # the last line was cut short
    asked.clear()
    again = tuned(record=record, rounds=2)
    asked_again = len(asked)
    asked.clear()
    fresh = tuned(rounds=2)
    assert len(asked) == asked_again + 6 and fresh.chosen == again.chosen
    pd.testing.assert_frame_equal(fresh.curve, again.curve)
    asked.clear()
    tuned(record=record, rounds=2)
    assert not asked, "all of it is in the record, the line after the torn one too"
    tuned(record=record, rounds=2, seed=1)
    assert asked, "another seed is another run"


def test_a_setting_that_costs_unrelated_accuracy_is_passed_over(asked, monkeypatch):
    seen = []

    def accuracy(model, methods, unrelated, values, split, limit, **more):
        steer = methods["this"](values[0])
        seen.append((values[0], steer.strength, split, limit))
        loss = 0.02 if steer.strength == 3 else 0.01
        return pd.DataFrame({"method": ["Base", "this"], "accuracy": [0.9, 0.9 - loss]})

    monkeypatch.setattr(tuning, "unrelated_accuracy", accuracy)
    table = pd.DataFrame({"prompt": []})
    chosen, curve = tuned(unrelated=table)
    assert chosen["stimulation"] == 2 and chosen["hedonism"] == 1
    assert {(split, limit) for *_, split, limit in seen} == {("calibration", 40)}
    lost = curve.query("value == 'stimulation'").set_index("setting")["unrelated"]
    assert lost["3"] == pytest.approx(-0.02) and pd.isna(lost["4"]), "what is not fluent is not asked"
    assert tuned(unrelated=table, unrelated_loss=0.02).chosen["stimulation"] == 3


def test_bad_requests_are_refused(asked):
    with pytest.raises(WorkbenchError, match="no judge"):
        ev.tune(Foreign(), Voice, [1], QUESTIONS)
    for wrong in ({"settings": ()}, {"rounds": 0}):
        with pytest.raises(WorkbenchError, match="settings, .* rounds"):
            tuned(**wrong)
