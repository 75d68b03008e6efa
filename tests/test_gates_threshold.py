"""Thresholds that mean what they say: calibration, curves, intervals, reports."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from workbench.errors import WorkbenchError
from workbench.gates import AlwaysOpen, CosineGate, Never, ProbeGate
from workbench.gates.threshold import average_precision
from workbench.probes.scores import auroc_interval
from workbench.rates import wilson


def with_scores(related, unrelated, kind=ProbeGate):
    """A gate whose only known fact is what it scored."""
    table = pd.DataFrame({"related": [True] * len(related) + [False] * len(unrelated), "score": [*related, *unrelated]})
    return kind(0, np.ones(2, np.float32), 0.5, "as given", table.assign(prompt=[*map(str, range(len(table)))]))


def opened(gate, side: bool) -> int:
    return int((gate.oof.loc[gate.oof["related"] == side, "score"] > gate.threshold).sum())


# Few different scores, so that there are ties, saturated ones among them.
SCORES = st.lists(st.sampled_from([0.0, 1e-12, 0.2, 0.4, 0.5, 0.7, 1 - 1e-12, 1.0]), min_size=1, max_size=12)


@pytest.mark.parametrize(("rate", "number"), [(0.0, 0), (0.04, 0), (0.05, 1), (0.1, 2), (0.5, 10)])
def test_the_threshold_keeps_the_false_positive_rate(rate, number):
    made = with_scores([0.95, 0.97, 0.99], np.linspace(0.05, 0.9, 20)).calibrate(rate)
    assert opened(made, False) == number
    assert made.rates["false_positive"] == pytest.approx(number / 20) and made.rates["open"] == 1
    assert made.criterion == f"at most {rate:g} of unrelated prompts"
    if rate == 0:
        assert 0.9 < made.threshold < 0.95, "midway between the scores on its two sides"


@settings(max_examples=40, deadline=None)
@given(SCORES, SCORES, st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.5]))
def test_no_lower_threshold_keeps_the_rate(related, unrelated, rate):
    made = with_scores(related, unrelated).calibrate(rate)
    assert opened(made, False) <= rate * len(unrelated) + 1e-9
    for lower in {s for s in (*related, *unrelated, -1) if s < made.threshold}:
        looser = replace(made, threshold=lower)
        same = all(opened(looser, side) == opened(made, side) for side in (True, False))
        assert same or opened(looser, False) > rate * len(unrelated)


@settings(max_examples=40, deadline=None)
@given(SCORES, SCORES, st.sampled_from(["f1", "youden"]))
def test_f1_and_youden_are_the_best_of_all_thresholds_and_open_for_the_fewest(related, unrelated, by):
    made = with_scores(related, unrelated).calibrate(by=by)
    y = np.repeat([True, False], [len(related), len(unrelated)])
    score = np.array([*related, *unrelated])

    def good(threshold):
        told = score > threshold
        if by == "f1":
            return f1_score(y, told, zero_division=0)
        return told[y].mean() - told[~y].mean()

    every = {threshold: good(threshold) for threshold in [-1.0, *score]}
    assert good(made.threshold) == pytest.approx(max(every.values()))
    fewest = min((score > threshold).sum() for threshold, g in every.items() if g > max(every.values()) - 1e-9)
    assert (score > made.threshold).sum() == fewest


def test_f1_asks_for_precision_where_related_prompts_are_rare_and_youden_does_not():
    """F1: 16/18 above .7, 20/24 below it. J: .8 above, .96 below."""
    gate = with_scores([0.9] * 8 + [0.5] * 2, [0.7] * 4 + [0.1] * 96)
    assert 0.7 < gate.calibrate(by="f1").threshold < 0.9
    assert 0.1 < gate.calibrate(by="youden").threshold < 0.5


def test_midway_is_in_logits_for_probabilities_and_plain_for_cosines():
    assert with_scores([0.9], [0.1]).calibrate(0.0).threshold == pytest.approx(0.5)
    assert with_scores([1 - 1e-4], [0.5]).calibrate(0.0).threshold == pytest.approx(0.99, abs=1e-3)
    assert with_scores([0.4], [-0.3], CosineGate).calibrate(0.0).threshold == pytest.approx(0.05)


def test_a_gate_that_cannot_tell_stays_shut():
    made = with_scores([0.2, 0.3], [0.4, 0.99]).calibrate(0.0)
    assert {name: made.rates[name] for name in ("open", "false_positive", "auroc")} == {
        "open": 0.0, "false_positive": 0.0, "auroc": 0.0}  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(SCORES, SCORES)
def test_the_curve_is_what_each_threshold_does(related, unrelated):
    gate = with_scores(related, unrelated)
    curve = gate.curve()
    assert curve["threshold"].is_monotonic_decreasing and curve["threshold"].iloc[-1] == -np.inf
    for row in curve.to_dict("records"):
        here = replace(gate, threshold=row["threshold"])
        hits, alarms = opened(here, True), opened(here, False)
        assert row["open"] == hits / len(related) and row["false_positive"] == alarms / len(unrelated)
        assert (row["open_low"], row["open_high"]) == wilson(hits / len(related), len(related))
        if hits + alarms:
            assert row["precision"] == hits / (hits + alarms)
            assert (row["precision_low"], row["precision_high"]) == pytest.approx(
                wilson(row["precision"], hits + alarms)
            )
        else:
            assert np.isnan([row["precision"], row["precision_low"]]).all()
    area = np.trapezoid(curve["open"], curve["false_positive"])
    y = np.repeat([1, 0], [len(related), len(unrelated)])
    score = np.array([*related, *unrelated])
    assert gate.rates["auroc"] == pytest.approx(area) == pytest.approx(roc_auc_score(y, score))
    assert gate.rates["average_precision"] == pytest.approx(average_precision_score(y, score))


def test_average_precision_of_repeated_rows():
    rng = np.random.default_rng(0)
    score, y, times = rng.integers(0, 5, 20) / 5, rng.random(20) < 0.4, rng.integers(0, 3, (7, 20))
    each = [average_precision_score(np.repeat(y, own), np.repeat(score, own)) for own in times]
    np.testing.assert_allclose(average_precision(score, y, times), each)


def test_intervals_hold_the_rates_and_count_prompts_not_rows():
    rng = np.random.default_rng(0)
    gate = with_scores(rng.beta(3, 2, 40), rng.beta(2, 3, 40)).calibrate(0.1)
    rates, bounds = gate.rates, gate.intervals
    assert all(low <= rates[name] <= high for name, (low, high) in bounds.items()) and set(rates) == set(bounds)
    assert bounds["open"] == wilson(rates["open"], 40)
    assert bounds["auroc"] == auroc_interval(rates["auroc"], 40)
    low, high = bounds["average_precision"]
    assert 0.05 < high - low < 0.35
    many = replace(gate, oof=pd.concat([gate.oof] * 5))  # every prompt five times: nothing more is known
    assert many.rates == pytest.approx(rates)
    for name in ("open", "false_positive", "auroc", "average_precision"):
        assert many.intervals[name] == pytest.approx(bounds[name], abs=1e-9)
    assert many.curve()["precision_low"].iloc[-1] == pytest.approx(gate.curve()["precision_low"].iloc[-1])


def test_the_auroc_interval_of_unequal_sides_has_newcombes_error():
    """Var = A (1 - A) (1 + N (1 - A)/(2 - A) + N A/(1 + A)) / (m n), N = (m + n)/2 - 1, at the bounds themselves."""
    rng = np.random.default_rng(1)
    gate = with_scores(rng.beta(3, 2, 300), rng.beta(2, 3, 60))
    area, m, n = gate.rates["auroc"], 300, 60
    for bound in gate.intervals["auroc"]:
        rest = (m + n) / 2 - 1
        var = bound * (1 - bound) * (1 + rest * (1 - bound) / (2 - bound) + rest * bound / (1 + bound)) / (m * n)
        assert abs(bound - area) == pytest.approx(1.96 * np.sqrt(var), rel=0.02)


def test_a_report_counts_every_kind_apart():
    table = pd.DataFrame({"prompt": list("abcdef"), "kind": ["fact", "fact", "hard", "plan", "plan", "fact"],
                          "related": [False, False, False, True, True, False]})  # fmt: skip

    class Vowels(AlwaysOpen):
        def scores(self, prompts, instruction=None):
            return np.array([float(prompt in "ae") for prompt in prompts], np.float32)

    report = Vowels().report(table)
    assert report[["kind", "related", "n", "open"]].values.tolist() == [
        ["fact", False, 3, pytest.approx(1 / 3)], ["hard", False, 1, 0], ["plan", True, 2, 0.5]]  # fmt: skip
    for row in report.itertuples():
        assert (row.low, row.high) == wilson(row.open, row.n)
    plain = Never().report(["a", "b"])
    assert plain[["kind", "n", "open"]].values.tolist() == [["all", 2, 0.0]] and plain["related"].isna().all()
    assert Never().report(table.rename(columns={"prompt": "question"}))["n"].sum() == 6
    with pytest.raises(WorkbenchError, match="no prompts"):
        Never().report([])


def test_bad_scores_and_settings_are_refused():
    gate = with_scores([0.9], [0.1])
    for asked, message in (
        ({"max_false_positive": 1.5}, "false positive rate of 1.5"),
        ({"max_false_positive": float("nan")}, "false positive rate of nan"),
        ({"by": "hope"}, "'hope'"),
        ({"max_false_positive": 0.1, "by": "f1"}, "'f1' with max_false_positive=0.1"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            gate.calibrate(**asked)
    with pytest.raises(WorkbenchError, match="no finite score of '1'"):
        with_scores([0.9, np.nan], [0.1])
    with pytest.raises(WorkbenchError, match="prompts of one side only"):
        with_scores([0.9], [])
