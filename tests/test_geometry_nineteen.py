"""The nineteen values, and any others: Monte Carlo where there are too many orders to enumerate."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import xarray as xr
from circles import named, planted
from scipy import stats

from workbench.errors import WorkbenchError
from workbench.geometry import Circle, circumplex_fit, cosines, labellings, layer_scan, planted_axis_map
from workbench.values import VALUES, VALUES19, angles, circular_order, circular_steps

TWENTY = (*VALUES19[:17], "universalism-objectivity", *VALUES19[17:])
PAIRS19 = np.triu_indices(19, 1)


def nineteen(**given):
    return planted(among=VALUES19, **given)


def test_nineteen_equal_steps():
    assert angles(among=VALUES19) == pytest.approx(np.arange(19) * math.tau / 19)
    steps = circular_steps(among=VALUES19)
    assert steps.max() == 9 and (steps == steps.T).all() and steps[0, 18] == 1
    swapped = circular_order("swapped", VALUES19)
    assert swapped[14:] == ("universalism-concern", "universalism-nature", "universalism-tolerance",
                            "benevolence-dependability", "benevolence-caring")  # fmt: skip
    assert str(Circle("equal", VALUES19)) == "Schwartz's order of nineteen on nineteen equal steps"
    for wrong, message in (("reverse", "schwartz, swapped, or the nineteen"), (VALUES, "not a permutation of the nin")):
        with pytest.raises(WorkbenchError, match=message):
            circular_order(wrong, VALUES19)
    with pytest.raises(WorkbenchError, match="equal steps, but for the ten"):
        angles("wedges", among=VALUES19)


def test_the_index_of_nineteen_is_the_direct_count():
    fit = circumplex_fit(nineteen(noise=2, seed=1))
    pairs = list(itertools.combinations(range(19), 2))
    s = fit.similarity.values
    score = count = 0
    for near, far in itertools.permutations(pairs, 2):
        if fit.circle.steps[near] < fit.circle.steps[far]:
            count += 1
            score += int(np.sign(s[near] - s[far]))
    assert fit.predictions == count and fit.ci == pytest.approx(score / count)
    # The same by the sweep that serves the null: its small integers must not run over with 171 pairs.
    null = labellings.correspondence(s[None], fit.circle, np.tile(np.arange(19)[:, None], 3))
    assert null[0].tolist() == pytest.approx([fit.ci] * 3)
    theta = fit.circle.angles
    closeness = np.cos(theta[:, None] - theta)[PAIRS19]
    assert fit.spearman == pytest.approx(stats.spearmanr(s[PAIRS19], np.round(closeness, 9))[0])
    assert fit.pearson == pytest.approx(stats.pearsonr(s[PAIRS19], closeness)[0])


def test_the_null_of_nineteen_is_drawn_and_says_so():
    vectors = nineteen(noise=0.3)
    fit = circumplex_fit(vectors)
    assert not fit.exact and fit.null.size == 20_000 and fit.null[0] == fit.ci
    assert fit.p == fit.spearman_p == fit.pearson_p == fit.procrustes_p == 1 / 20_000
    assert fit.table()["null"][0] == "20,000 labellings (Monte Carlo)"
    claim = fit.claim()
    assert "the nineteen values are not exchangeable" in claim and "exact" not in claim
    assert "Monte Carlo p = 5e-05 over 20,000 labellings)" in claim
    weak = circumplex_fit(nineteen(noise=6, seed=4), labellings=999)
    p = [circumplex_fit(nineteen(noise=6, seed=4), labellings=999, seed=seed).p for seed in range(3)]
    assert p[0] == weak.p and len(set(p)) > 1 and weak.null.size == 1000  # seeded
    assert weak.p == (1 + (weak.null[1:] >= weak.ci - 1e-9).sum()) / 1000


def test_exchangeable_vectors_of_nineteen_are_rejected_at_the_nominal_rate():
    draws = np.random.default_rng(0).normal(size=(200, 19, 30))
    p = np.array([circumplex_fit(vectors, labellings=199, seed=k).p for k, vectors in enumerate(draws)])
    low, high = stats.binom.ppf([0.0005, 0.9995], 200, 0.05)
    assert low <= (p <= 0.05).sum() <= high and stats.kstest(p, "uniform").pvalue > 0.001  # type: ignore[attr-defined]


def test_nineteen_by_name_and_the_better_order():
    vectors = nineteen(order="swapped", noise=0.2)
    shuffled = named(vectors, np.random.default_rng(0).permutation(19), VALUES19)
    fit = circumplex_fit(shuffled, better_of=[("equal", "swapped")])
    assert fit.circle.order == circular_order("swapped", VALUES19) and fit.p == 1 / 20_000
    assert fit.ci == circumplex_fit(vectors, order="swapped").ci and "universalism swapped on nineteen" in fit.claim()
    table = fit.layouts()
    assert table[["layout", "order", "best"]].to_numpy().tolist() == [
        ["equal", "schwartz", False], ["equal", "swapped", True]]  # fmt: skip
    place = planted_axis_map(shuffled, order="swapped")
    assert place["value"].tolist() == list(VALUES19)
    scan: Any = layer_scan(np.stack([nineteen(noise=0.2), nineteen(noise=8, seed=1)]), labellings=499)
    assert scan["best"].tolist() == [True, False] and scan["p"][0] == 1 / 500


def test_everything_of_a_fit_serves_nineteen():
    vectors, rng = nineteen(noise=0.5), np.random.default_rng(0)
    fit: Any = circumplex_fit(vectors, bootstrap=vectors + 0.05 * rng.normal(size=(30, 19, 24)))
    assert fit.table().notna().sum()["low"] == 4 and len(fit.spread()) == len(fit.profiles()) == 19
    assert set(fit.conflicts()["step"]) == {8, 9}  # 7.6 steps and more
    assert fit.mds("metric", "theory").procrustes_p == 0.001
    compared = fit.compare(circumplex_fit(nineteen(noise=0.5, seed=0)))
    assert compared.pearson == pytest.approx(1) and compared.tests["p"].max() == 1e-5
    assert "Monte Carlo" in compared.table()["null"][1] and "Monte Carlo Mantel" in compared.claim()


# --- Any others ---


def test_other_values_stand_in_the_order_that_names_them():
    vectors = planted(among=TWENTY, noise=0.2)
    shuffled = named(vectors, np.random.default_rng(0).permutation(20), TWENTY)
    fit = circumplex_fit(shuffled, order=TWENTY)
    assert fit.similarity["value"].values.tolist() == list(TWENTY) and fit.p == 1 / 20_000
    assert fit.similarity.equals(cosines(shuffled, order=TWENTY)) and "twenty equal steps" in str(fit.circle)
    assert len(fit.layouts()) == 1 and len(fit.table()) == 7
    with pytest.raises(WorkbenchError, match="Allowed: the ten values, or the nineteen"):
        fit.silhouettes()
    with pytest.raises(WorkbenchError, match="Allowed: the ten values, or the nineteen"):
        circumplex_fit(shuffled, order=TWENTY, better_of=[("equal", TWENTY[::-1])])
    with pytest.raises(WorkbenchError, match="equal steps, but for the ten"):
        circumplex_fit(shuffled, order=TWENTY, layout="wedges")


@pytest.mark.parametrize("n", [4, 5, 7])
def test_few_values_are_enumerated(n):
    names = [f"v{k}" for k in range(n)]
    vectors = planted(among=names, noise=1.5, seed=n)
    fit = circumplex_fit(named(vectors, among=names, order=range(n)), order=names)
    assert fit.exact and fit.null.size == math.factorial(n - 1) / 2
    every = []
    for turn in itertools.permutations(range(n)):  # all labellings, symmetric ones too: the same share
        s = fit.similarity.values[np.ix_(turn, turn)]
        every.append(labellings.correspondence(s[None], fit.circle, np.arange(n)[:, None])[0, 0])
    assert fit.p == pytest.approx(np.mean(np.array(every) >= fit.ci - 1e-9))
    assert f"{math.factorial(n - 1) // 2:,} orders" in fit.claim()


def test_other_numbers_of_values_are_refused_unless_named():
    vectors = nineteen()
    array = xr.DataArray(planted(among=TWENTY), {"value": list(TWENTY)}, ("value", "d_model"))
    for asked, order, message in (
        (named(planted())[:9], None, "no vector of universalism"),
        (named(vectors, range(18), VALUES19), None, "no vector of universalism-tolerance"),
        (array, None, "(?s)'universalism-objectivity'.*Of other values, name all in order="),
        (array, VALUES19, "(?s)'universalism-objectivity' was asked for.*no value of that name"),
        (planted(among=TWENTY), None, r"(?s)shape \(20, 24\).*Of other values, name all in order="),
        (planted(among=TWENTY), TWENTY, r"(?s)shape \(20, 24\)|not a permutation"),
        (array[:3], TWENTY[:3], "four different values or more"),
        (array[:4], [TWENTY[0]] * 4, "four different values or more"),
        (vectors, VALUES, "not a permutation of the nineteen"),
        (named(planted()), VALUES19, "not a permutation of the ten"),
        (named(planted()), [*VALUES[:9], "universal"], "not a permutation of the ten"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            circumplex_fit(asked, order=order)
    with pytest.raises(WorkbenchError, match="Allowed: ci, spearman, pearson, procrustes_r2"):
        circumplex_fit(vectors).null_of("rho")
