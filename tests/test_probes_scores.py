"""What is told of held-out logits is true of them, and the intervals hold what they promise."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from planted import probes_of
from scipy.special import expit
from scipy.stats import binom, norm
from sklearn.metrics import brier_score_loss, roc_auc_score

from workbench.probes.scores import area_under_roc, auroc_interval, brier, calibration_error, pair_correlation, roc
from workbench.rates import wilson


def covers(held: int, draws: int, at_least: float = 0.95) -> bool:
    """Whether so many of the intervals held the truth as those of this coverage or more do 99.9 times of 100."""
    return held >= binom.ppf(0.001, draws, at_least)


# -- points --------------------------------------------------------------------------------------------------


def test_auroc_counts_ties_half():
    y, score = np.array([1, 1, 0, 0, 0], bool), np.array([3.0, 1.0, 1.0, 0.0, 2.0])
    assert area_under_roc(score, y) == pytest.approx(roc_auc_score(y, score)) == 4.5 / 6


def test_brier_is_scikit_learns():
    rng = np.random.default_rng(0)
    logit, y = rng.normal(size=50), rng.random(50) < 0.3
    assert brier(logit, y) == pytest.approx(brier_score_loss(y, expit(logit)))
    assert brier(np.zeros(4), np.array([True, False, True, True])) == 0.25
    assert brier(np.array([900.0, -900.0]), np.array([True, False])) == 0


def test_calibration_error_counts_bin_by_bin():
    rng = np.random.default_rng(1)
    logit, y = rng.normal(size=47), rng.random(47) < 0.5
    table = pd.DataFrame({"p": expit(logit), "y": y}).sort_values("p").reset_index(drop=True)
    bins = np.repeat(np.arange(10), [5] * 7 + [4] * 3)  # 47 texts: as many in each as can be
    means = table.groupby(bins).mean()
    exact = (np.bincount(bins) * (means["p"] - means["y"]).abs()).sum() / 47
    assert calibration_error(logit, y) == pytest.approx(exact)
    assert calibration_error(np.repeat([-40.0, 40.0], 10), np.repeat([False, True], 10)) == pytest.approx(0)
    assert calibration_error(np.full(20, 40.0), np.repeat([False, True], 10)) == pytest.approx(0.5, abs=0.51)
    assert calibration_error(np.full(40, 40.0), np.zeros(40, bool)) == pytest.approx(1)


@pytest.mark.parametrize("p", [0.5, 0.8])
def test_calibration_error_of_the_calibrated_is_near_what_chance_gives(p):
    rng = np.random.default_rng(2)
    logit = np.full(400, np.log(p / (1 - p)))
    found = np.mean([calibration_error(logit, rng.random(400) < p) for _ in range(200)])
    assert found == pytest.approx(0.8 * np.sqrt(p * (1 - p) / 40), rel=0.08)


# -- intervals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 40, 200])
def test_an_auroc_interval_holds_its_own_area_and_stays_in_bounds(n):
    low, high = auroc_interval(1.0, n)
    assert high == 1 and 0.5 < low < 1 and low > wilson(1.0, 2 * n)[0] - 0.15
    below, above = auroc_interval(0.5, n)
    assert above - 0.5 == pytest.approx(0.5 - below, abs=1e-3), "even about one half"
    error = np.sqrt((2 * n + 1) / (12 * n * n))  # of Mann-Whitney's statistic where nothing is to be told
    assert above - 0.5 == pytest.approx(1.96 * error, rel=0.2)
    for area in (0.0, 0.3, 0.77, 0.99, 1.0):
        low, high = auroc_interval(area, n)
        assert 0 <= low <= area <= high <= 1
        inner = auroc_interval(area, n, confidence=0.8)
        assert low <= inner[0] and inner[1] <= high
        wide = auroc_interval(area, n / 2)
        assert wide[0] <= low and high <= wide[1]


@pytest.mark.parametrize("apart", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("n", [15, 50])
def test_auroc_intervals_cover(apart, n):
    rng, truth = np.random.default_rng(3), norm.cdf(apart / np.sqrt(2))
    y, held, draws = np.arange(2 * n) < n, 0, 400
    for _ in range(draws):
        low, high = auroc_interval(area_under_roc(rng.normal(size=2 * n) + apart * y, y), n)
        held += low <= truth <= high
    assert covers(held, draws, 0.94)
    assert held < draws, "an interval that always holds tells nothing"


@pytest.mark.parametrize("planted", [0.0, 0.3, 0.8])
def test_a_planted_correlation_of_the_two_texts_is_found(planted):
    rng = np.random.default_rng(4)
    both = rng.random((200, 1, 1, 100)) < 0.8
    hits = np.where(rng.random((200, 1, 1, 100)) < planted, both, rng.random((200, 1, 2, 100)) < 0.8)
    assert pair_correlation(list(hits)) == pytest.approx(planted, abs=0.03)


def test_what_was_never_wrong_tells_nothing_of_pairs():
    assert pair_correlation([np.ones((3, 2, 20), bool)]) == 1
    apart = np.stack([np.ones(20, bool), np.zeros(20, bool)])[None]
    assert pair_correlation([apart]) == 0, "a probe that says yes to all: its texts are never wrong together"


@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_intervals_cover_where_the_two_texts_of_a_pair_share_their_fate(shared):
    """Each draw: ten values, 30 pairs each, the logit of a text its margin, part of which is the pair's."""
    rng, draws, n, margin = np.random.default_rng(5), 40, 30, 0.7
    accuracy, area = norm.cdf(margin), norm.cdf(margin * np.sqrt(2))
    held = dict.fromkeys(("accuracy", "plain", "auroc", "plain auroc"), 0)
    for _ in range(draws):
        of_pair, of_text = rng.normal(size=(10, 1, 1, n)), rng.normal(size=(10, 1, 2, n))
        own = margin + np.sqrt(shared) * of_pair + np.sqrt(1 - shared) * of_text
        signed = own * np.array([1, -1])[:, None]
        probes = probes_of({f"value {k}": signed[k] for k in range(10)})
        inside(held, "accuracy", probes.intervals.values[:, 0], accuracy)
        inside(held, "auroc", probes.auroc_intervals.values[:, 0], area)
        inside(held, "plain", [wilson(float(rate), 2 * n) for rate in probes.accuracy.values[:, 0]], accuracy)
        inside(held, "plain auroc", [auroc_interval(float(a), n) for a in probes.auroc.values[:, 0]], area)
    assert covers(held["accuracy"], 10 * draws, 0.93) and covers(held["auroc"], 10 * draws, 0.93)
    for name in ("plain", "plain auroc"):
        assert covers(held[name], 10 * draws, 0.93) == (shared == 0), "texts counted as if they came alone"


def inside(held: dict[str, int], name: str, intervals: Sequence, truth: float) -> None:
    held[name] += sum(low <= truth <= high for low, high in np.asarray(intervals))


def test_scores_are_of_held_out_logits_value_by_value():
    rng = np.random.default_rng(6)
    logits = {"power": rng.normal(size=(3, 2, 12)), "security": rng.normal(size=(3, 2, 20))}
    probes = probes_of(logits)
    for value, own in logits.items():
        n = own.shape[2]
        y, where = np.repeat([True, False], n), {"value": value, "layer": 2}
        logit = own[2].ravel()
        assert float(probes.accuracy.sel(where)) == np.mean((logit > 0) == y)
        assert float(probes.auroc.sel(where)) == pytest.approx(roc_auc_score(y, logit))
        assert float(probes.brier.sel(where)) == pytest.approx(brier_score_loss(y, expit(logit)))
        assert float(probes.calibration_error.sel(where)) == calibration_error(logit, y)
        worth = 2 * n / (1 + probes.pair_correlation)
        rate = float(probes.accuracy.sel(where))
        assert probes.intervals.sel(where).values.tolist() == pytest.approx(wilson(rate, worth))
    hits = [(own > 0) == np.array([True, False])[:, None] for own in logits.values()]
    assert probes.pair_correlation == pair_correlation(hits)


def test_a_roc_turns_where_all_thresholds_do():
    rng = np.random.default_rng(0)
    for n in (3, 40):
        y = np.arange(2 * n) < n
        score = np.round(rng.normal(size=2 * n) + y, 1)  # with ties
        alarms, hits = roc(score, y)
        assert (alarms[0], hits[0], alarms[-1], hits[-1]) == (0, 0, 1, 1)
        assert np.trapezoid(hits, alarms) == pytest.approx(area_under_roc(score, y))
        points = {(round(n * np.mean(score[~y] > at)), round(n * np.mean(score[y] > at))) for at in (*score, -np.inf)}
        assert points >= {(round(n * x), round(n * height)) for x, height in zip(alarms, hits, strict=True)}
    assert [part.tolist() for part in roc(np.arange(6.0), np.arange(6) > 2)] == [[0, 0, 1], [0, 1, 1]]
