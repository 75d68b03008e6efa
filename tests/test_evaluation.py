"""Rates, the sweep over methods and values, choosing strengths, prompts that do not fit."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from spoken import WordJudge

from workbench import evaluation as ev
from workbench.errors import WorkbenchError
from workbench.evaluation import sweep
from workbench.evaluation.sweep import select
from workbench.steering.base import Base
from workbench.values import VALUES


def answers(rows):
    return pd.DataFrame(rows, columns=["method", "value", "question", "answer", "note"])


# -- rates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hits, n", [(0, 30), (29, 30), (30, 30), (7, 40)])
def test_wilson_equals_scipy(hits, n):
    known = binomtest(hits, n).proportion_ci(method="wilson")
    assert ev.wilson(hits / n, n) == pytest.approx((known.low, known.high))


def test_wilson_without_trials_is_unknown():
    assert all(map(math.isnan, ev.wilson(0.5, 0))) and all(map(math.isnan, ev.wilson(math.nan, 10)))


def test_newcombe_of_a_published_example():
    """56/70 against 48/80: .0524 to .3339 (Newcombe 1998, table II, method 10)."""
    assert ev.newcombe(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)


# -- scores --------------------------------------------------------------------------------------------


def test_score_counts_control_fluency_and_leakage():
    rows = [("Base", "power", f"q{i}", "", "") for i in range(10)]
    rows += [("M", "power", f"q{i}", "power" * (i < 8) + " security" * (i < 5) + " *" * (i < 1), "") for i in range(10)]
    table = ev.score(answers(rows), WordJudge()).set_index("method")
    assert table.loc["M", "csr"] == 0.8 and table.loc["M", "fr"] == 0.9 and table.loc["M", "n"] == 10
    assert table.loc["M", "leakage"] == pytest.approx(0.5 / 9)
    assert (table.loc["M", "low"], table.loc["M", "high"]) == pytest.approx(ev.wilson(0.8, 10))


def test_without_base_leakage_is_undefined_and_without_judge_everything_is():
    rows = [("M", "power", "q", "power", "")]
    assert math.isnan(ev.score(answers(rows), WordJudge())["leakage"][0])
    empty = ev.score(answers(rows), None)
    assert empty[["csr", "fr", "low", "high"]].isna().all(axis=None) and empty["n"][0] == 1


def test_prompts_that_did_not_fit_are_left_out_and_counted():
    rows = [("M", "power", "q1", "power", ""), ("M", "power", "q2", "", "79 of 64 tokens")]
    table = ev.score(answers(rows), WordJudge())
    assert (table["csr"][0], table["n"][0], table["left_out"][0]) == (1.0, 1, 1)


def test_select_keeps_splits_apart():
    questions = pd.DataFrame({"value": ["power"] * 4, "question": list("abcd"), "split": ["calibration", "test"] * 2})
    assert list(select(questions, "test")["question"]) == ["b", "d"]
    assert list(select(questions, "test", limit=1)["question"]) == ["b"]
    with pytest.raises(WorkbenchError, match="'dev'.*\nFound: none\nAllowed: 'calibration', 'test'"):
        select(questions, "dev")


# -- the sweep, with the model's voice replaced ---------------------------------------------------------


class Voice(Base):
    """Stands for a method of a given strength: what it makes the model say is decided by `speak`."""

    def __init__(self, value="", strength=0.0):
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "strength", strength)


@pytest.fixture()
def spoken(monkeypatch):
    """Answers grow a value's name up to strength 2, and break (a star) from strength 3 on."""
    asked = []

    def speak(model, prompts, steer=None, **decoding):
        asked.append((prompts, decoding))
        strength = getattr(steer, "strength", 0.0)
        value = getattr(steer, "value", "")
        return [value * (i < 5 * strength) + " *" * (strength >= 3) for i, _ in enumerate(prompts)]

    monkeypatch.setattr(sweep, "generate", speak)
    monkeypatch.setattr(sweep, "too_long", lambda model, questions, steer: [""] * len(questions))
    return asked


class Foreign:
    world = None
    name = "foreign"


QUESTIONS = pd.DataFrame(
    [(v, f"{v} {split} {i}", split) for v in VALUES for split in ("calibration", "test") for i in range(10)],
    columns=["value", "question", "split"],
)


def test_evaluate_sees_test_only_and_decodes_greedily_without_world(spoken):
    table = ev.evaluate(Foreign(), {"Base": lambda v: Voice(), "M": lambda v: Voice(v, 1)}, QUESTIONS, WordJudge())
    assert all(" test " in prompt for prompts, _ in spoken for prompt in prompts)
    assert all(decoding["temperature"] == 0 for _, decoding in spoken)
    assert np.allclose(table.query("method == 'M'")["csr"], 0.5) and np.allclose(
        table.query("method == 'Base'")["csr"], 0
    )
    unjudged = ev.evaluate(Foreign(), {"Base": lambda v: Voice()}, QUESTIONS)
    assert unjudged["csr"].isna().all() and "no judge" in unjudged.attrs["reason"]


def test_unrelated_accuracy_asks_every_kind(spoken):
    unrelated = pd.DataFrame(
        [
            (f"{kind}{i}", kind, "yes|power", kind == "plan", "test")
            for kind in ("sum", "fact", "plan")
            for i in range(6)
        ],
        columns=["prompt", "kind", "answer", "related", "split"],
    )
    table = ev.unrelated_accuracy(
        Foreign(), {"M": lambda v: Voice(v, 1)}, unrelated, values=["power", "security"], limit=4
    )
    assert table["n"].tolist() == [4, 4] and table["accuracy"].tolist() == [1.0, 0.0]
    prompts = spoken[0][0]
    assert sorted(p[:3] for p in prompts) == ["fac", "fac", "sum", "sum"]
