"""Intervals cover what they promise, exact tests are exact, corrections count what is known."""

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom, binomtest, multinomial

from workbench.errors import WorkbenchError
from workbench.rates import (
    bootstrap_mean,
    holm,
    mcnemar,
    mover,
    newcombe,
    newcombe_paired,
    sign_flip,
    wilson,
)


def pairs(both, first, second, neither):
    """Binary scores of a 2 x 2 table of pairs."""
    counts = (both, first, second, neither)
    return np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)


# -- intervals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hits, n", [(0, 30), (29, 30), (30, 30), (7, 40)])
def test_wilson_equals_scipy(hits, n):
    known = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits / n, n) == pytest.approx((known.low, known.high))


def test_wilson_of_arrays_is_that_of_each_and_nan_without_trials():
    rate, n = np.array([0.0, 0.5, 1.0, np.nan, 0.3]), np.array([30, 70, 7.5, 10, 0])
    low, high = wilson(rate, n, 0.9)
    for k in range(3):
        assert (low[k], high[k]) == wilson(rate[k], n[k], 0.9)
    assert np.isnan([low[3:], high[3:]]).all() and all(map(math.isnan, wilson(0.5, 0)))
    assert all(type(end) is float for end in wilson(0.5, 10))


@pytest.mark.parametrize("n", [30, 70, 700])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.97, 0.99])
def test_wilson_covers(p, n):
    hits = np.arange(n + 1)
    low, high = wilson(hits / n, n)
    assert binom.pmf(hits, n, p)[(low <= p) & (p <= high)].sum() >= 0.92


def test_newcombe_of_a_published_example():
    """56/70 against 48/80: .0524 to .3339 (Newcombe 1998, Statistics in Medicine 17, 873-890, table II)."""
    assert newcombe(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def literal(a, b, c, d):
    """Method 10 as a 2 x 2 table has it: phi with its continuity correction."""
    n = a + b + c + d
    p, q, phi = (a + b) / n, (a + c) / n, 0.0
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    if margins:
        above = a * d - b * c
        phi = (max(above - n / 2, 0) if above > 0 else above) / math.sqrt(margins)
    (l1, u1), (l2, u2) = (binomtest(k, n).proportion_ci(method="wilson") for k in (a + b, a + c))
    return (p - q - math.sqrt((p - l1) ** 2 - 2 * phi * (p - l1) * (u2 - q) + (u2 - q) ** 2),
            p - q + math.sqrt((u1 - p) ** 2 - 2 * phi * (u1 - p) * (q - l2) + (q - l2) ** 2))  # fmt: skip


def test_the_paired_interval_of_a_published_example():
    """36, 12, 2, 0: .0569 to .3404 (Newcombe 1998, Statistics in Medicine 17, 2635-2650, table II, method 10)."""
    assert newcombe_paired(*pairs(36, 12, 2, 0)) == pytest.approx((0.0569, 0.3404), abs=1e-4)


def test_the_paired_interval_equals_the_literal_one_of_any_table():
    draw = np.random.default_rng(0)
    edges = [(18, 0, 3, 19), (0, 9, 5, 0), (30, 0, 0, 0), (0, 0, 4, 6), (5, 5, 5, 5)]
    for table in [*edges, *draw.integers(1, 20, (9, 4))]:
        assert newcombe_paired(*pairs(*table)) == pytest.approx(literal(*table), abs=1e-9), table


@pytest.mark.parametrize("n", [30, 60])
def test_the_paired_interval_covers_correlated_pairs(n):
    """Exact: every table of n pairs, weighed by its probability."""
    tables = np.array([(a, b, c, n - a - b - c) for a in range(n + 1) for b in range(n + 1 - a)
                       for c in range(n + 1 - a - b)])  # fmt: skip
    ends = np.cumsum(tables, axis=1)
    at = np.arange(n)[:, None]
    first, second = at < ends[:, 1], (at < ends[:, 0]) | ((at >= ends[:, 1]) & (at < ends[:, 2]))
    low, high = newcombe_paired(first, second)
    for p, q, both in [(0.5, 0.5, 0.4), (0.7, 0.5, 0.45), (0.97, 0.9, 0.895), (0.99, 0.97, 0.965), (0.6, 0.2, 0.12)]:
        weights = multinomial.pmf(tables, n, [both, p - both, q - both, 1 - p - q + both])
        assert weights.sum() == pytest.approx(1)
        assert weights[(low <= p - q) & (p - q <= high)].sum() >= 0.92, (p, q)


def test_pairs_that_agree_more_give_shorter_intervals_and_nan_does_not_count():
    draw = np.random.default_rng(0)
    first = draw.choice([0, 0.5, 1], 200)
    alike, other = np.where(draw.random(200) < 0.8, first, 0.5), draw.permutation(first)
    widths = [np.diff(newcombe_paired(first, second))[0] for second in (alike, other)]
    assert widths[0] < 0.75 * widths[1]
    columns = np.column_stack([alike, other])
    holed = columns.copy()
    holed[:50, 0] = np.nan
    low, high = newcombe_paired(first[:, None], holed)
    assert (low[0], high[0]) == pytest.approx(newcombe_paired(first[50:], alike[50:]))
    assert (low[1], high[1]) == pytest.approx(newcombe_paired(first, other))
    assert newcombe_paired(holed[:, 0], first) == pytest.approx((-high[0], -low[0]))
    assert all(map(math.isnan, newcombe_paired([np.nan, 1], [1, np.nan])))
    low, high = newcombe_paired(first, other)
    assert newcombe_paired(other, first) == pytest.approx((-high, -low))


def test_mover_of_one_is_itself_of_many_shorter_and_covers():
    assert mover([0.2], [0.1], [0.4]) == pytest.approx((0.1, 0.4))
    assert mover([0.2, np.nan], [0.1, 0], [0.4, 1]) == pytest.approx((0.1, 0.4))
    assert mover([0.2] * 4, [0.1] * 4, [0.4] * 4) == pytest.approx((0.15, 0.3))
    assert all(map(math.isnan, mover([np.nan], [0], [1])))
    draw, truth = np.random.default_rng(1), np.linspace(0.02, 0.98, 10)
    rates = draw.binomial(30, truth, size=(2000, 10)) / 30
    ends = np.array([mover(row, *wilson(row, 30)) for row in rates])
    assert ((ends[:, 0] <= truth.mean()) & (truth.mean() <= ends[:, 1])).mean() > 0.92


# -- tests of pairs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [(3, 7, 1, 5), (0, 5, 5, 0), (9, 0, 0, 1), (0, 6, 0, 0), (40, 25, 11, 30)])
def test_mcnemar_and_sign_flip_are_the_binomial_test_of_discordant_pairs(table):
    _, first, second, _ = table
    known = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(*pairs(*table)) == pytest.approx(known)
    assert sign_flip(*pairs(*table)) == pytest.approx(known)


def every_sign(difference):
    sums = np.array([np.dot(signs, difference) for signs in product((1, -1), repeat=len(difference))])
    return sums, (np.abs(sums) >= abs(sum(difference)) - 1e-9).mean()


@pytest.mark.parametrize("seed", range(5))
def test_sign_flip_counts_every_choice_of_signs(seed):
    draw = np.random.default_rng(seed)
    first, second = draw.choice([0, 0.5, 1], (2, 11))
    assert sign_flip(first, second) == pytest.approx(every_sign(first - second)[1])
    units = draw.integers(0, 5, 11)
    summed = [(first - second)[units == unit].sum() for unit in range(5)]
    assert sign_flip(first, second, units) == pytest.approx(every_sign(summed)[1])
    assert sign_flip(first, second, [f"q{u}" for u in units]) == sign_flip(second, first, units)
    thirds = draw.integers(0, 4, 8) / 3
    assert sign_flip(thirds, np.zeros(8)) == pytest.approx(every_sign(thirds)[1])


def test_sign_flip_keeps_its_level_exactly():
    """Given the sizes of the differences, at most 5 % of all choices of signs are called significant."""
    sizes = np.array([1, 1, 0.5, 0.5, 0.5, 1, 0.5, 1, 1, 0.5, 1, 0.5])
    sums, _ = every_sign(sizes)
    p = np.array([(np.abs(sums) >= abs(s) - 1e-9).mean() for s in np.unique(sums)])
    share = np.array([(sums == s).mean() for s in np.unique(sums)])
    assert share[p <= 0.05].sum() <= 0.05
    for s, known in zip(np.unique(sums), p, strict=True):
        signs = next(k for k in product((1, -1), repeat=12) if np.dot(k, sizes) == s)
        assert sign_flip(np.array(signs) * sizes, np.zeros(12)) == pytest.approx(known)


def test_sign_flip_keeps_its_level_with_seeds_of_one_question_and_has_power():
    draw = np.random.default_rng(3)

    def rejected(rise, units):
        found = []
        for _ in range(300):
            p = draw.beta(0.3, 0.7, (2, 40, 1))  # each method has its own hard questions: no difference on average
            first, second = (draw.random((2, 40, 4)) < np.clip(p + [[[rise]], [[0]]], 0, 1)).astype(float)
            asked = np.repeat(np.arange(40), 4) if units else None
            found.append(sign_flip(first.ravel(), second.ravel(), asked) <= 0.05)
        return np.mean(found)

    assert rejected(0, True) <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / 300)
    assert rejected(0, False) > 0.15  # what `units` is for
    assert rejected(0.35, True) > 0.8


def test_sign_flip_far_out_and_at_the_edges():
    ones = np.ones(1000)
    assert sign_flip(ones, 0 * ones) == pytest.approx(2.0**-999)
    assert sign_flip(ones, ones) == 1 and math.isnan(sign_flip([np.nan], [1]))
    assert sign_flip([1, 1, np.nan], [0, 0, 0]) == sign_flip([1, 1], [0, 0]) == 0.5


def test_scores_that_no_exact_test_counts():
    with pytest.raises(WorkbenchError, match=r"Allowed: scores in steps of 1, 1/2"):
        sign_flip([0.123, 1], [0, 0])
    with pytest.raises(WorkbenchError, match=r"scores \[0.5\].*\n.*\n.*sign_flip"):
        mcnemar([0.5, 1], [0, 1])
    assert mcnemar([1, np.nan, 1], [0, 1, 0]) == 0.5


def test_holm_counts_what_is_known():
    """.01 x 4, .02 x 3, max(.03 x 2, .06), .04 -> .06."""
    p = [0.03, np.nan, 0.01, 0.04, 0.02]
    assert holm(p) == pytest.approx([0.06, np.nan, 0.04, 0.06, 0.06], nan_ok=True)
    assert holm([0.7, 0.6]).tolist() == [1, 1] and np.isnan(holm([np.nan])).all()


def test_bootstrap_mean_covers_a_skewed_mean():
    draw = np.random.default_rng(0)
    samples = draw.exponential(3, (400, 60))
    ends = np.array([bootstrap_mean(x, 400) for x in samples])
    assert 0.88 < ((ends[:, 0] <= 3) & (3 <= ends[:, 1])).mean() < 0.98
    assert bootstrap_mean([2.0, np.nan, 2.0]) == (2, 2) and all(map(math.isnan, bootstrap_mean([np.nan])))
