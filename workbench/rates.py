"""Rates and their uncertainty: intervals, exact tests of pairs, corrections for many of them.

Scores lie in [0, 1], such as 1, .5 and 0 for "yes, in between, no". Where one question is asked with several seeds its
answers are not independent: give means per question to the intervals, and the questions as `units` to the test.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import WorkbenchError

GRID = (1, 2, 3, 4, 6, 12)  # scores may be whole, halves, thirds, ... twelfths: means of a few judges


def wilson(rate: Any, n: Any, confidence: float = 0.95) -> tuple[Any, Any]:
    """Wilson score interval of a rate over n trials; for rates near 0 or 1 it covers where a bootstrap does not.

    rate may be a mean of scores in [0, 1] such as CSR, whose variance a Bernoulli's bounds from above: the interval is
    then a little wide, never too narrow. n may be a number of independent trials that many dependent ones are worth.
    Two floats, or arrays for arrays that broadcast. NaN without trials.
    """
    rate, n = np.asarray(rate, float), np.asarray(n, float)
    z = _z(confidence)
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return _plain(np.maximum(0.0, centre - half)), _plain(np.minimum(1.0, centre + half))


def newcombe(rate: float, n: int, base: float, n_base: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of rate - base, two independent rates, from their Wilson intervals (Newcombe 1998, method 10)."""
    low, high = wilson(rate, n, confidence)
    base_low, base_high = wilson(base, n_base, confidence)
    difference = rate - base
    return (
        difference - math.hypot(rate - low, base_high - base),
        difference + math.hypot(high - rate, base - base_low),
    )


def newcombe_paired(first: Any, second: Any, confidence: float = 0.95) -> tuple[Any, Any]:
    """Interval of mean(first) - mean(second), scores (pair, ...) of the same things, from their Wilson intervals.

    With the halves l, u of each interval: difference - sqrt(l1² - 2 r l1 u2 + u2²), and the same with u1, l2 upwards. r
    is the scores' correlation, phi where they are 0 or 1, its covariance drawn towards 0 by 1 / 2n where positive, and
    0 where one side does not vary. Pairs with NaN do not count; NaN without pairs.

    Source: Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10.
    """
    first, second = np.broadcast_arrays(np.asarray(first, float), np.asarray(second, float))
    there = ~np.isnan(first - second)
    first, second = np.where(there, first, 0), np.where(there, second, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        n = there.sum(0)
        p, q = first.sum(0) / n, second.sum(0) / n
        covariance = (first * second).sum(0) / n - p * q
        variances = ((first**2).sum(0) / n - p * p) * ((second**2).sum(0) / n - q * q)
        drawn = np.where(covariance > 0, np.maximum(covariance - 1 / (2 * n), 0), covariance)
        r = np.where(variances > 1e-18, drawn / np.sqrt(np.maximum(variances, 1e-18)), 0)
    (p_low, p_high), (q_low, q_high) = wilson(p, n, confidence), wilson(q, n, confidence)

    def length(a: Any, b: Any) -> Any:
        return np.sqrt(np.maximum(a * a - 2 * r * a * b + b * b, 0))

    return _plain(p - q - length(p - p_low, q_high - q)), _plain(p - q + length(p_high - p, q - q_low))


def mover(estimates: Any, low: Any, high: Any) -> tuple[float, float]:
    """Interval of the mean of independent estimates from their own intervals; NaN ones do not count.

    mean - sqrt(sum (e_i - l_i)²) / k, and so upwards: MOVER, Zou and Donner 2008, Statistics in Medicine 27, 1693-1702.
    """
    estimates, low, high = (np.asarray(part, float) for part in (estimates, low, high))
    there = ~np.isnan(estimates + low + high)
    if not there.any():
        return math.nan, math.nan
    mean, count = estimates[there].mean(), there.sum()
    below, above = (np.sqrt((((end - estimates)[there]) ** 2).sum()) / count for end in (low, high))
    return float(mean - below), float(mean + above)


def sign_flip(first: Any, second: Any, units: Sequence[Any] | np.ndarray | None = None) -> float:
    """Exact two-sided p that paired scores do not differ: every difference might as well have had the other sign.

    The share of all 2^n ways to choose signs whose sum of differences is at least as far from 0 as the one observed,
    counted by convolution and not by sampling. McNemar's exact test where scores are 0 or 1. units: one label per pair;
    differences of one unit, such as the seeds of a question, change sign together. Pairs of several strata (values) may
    stand in one call: it tests their sum. Pairs with NaN do not count; NaN without pairs.

    Raises WorkbenchError for scores that are no multiples of 1/2, 1/3, 1/4, 1/6 or 1/12.
    """
    from scipy.stats import binom

    difference = np.asarray(first, float) - np.asarray(second, float)
    there = ~np.isnan(difference)
    if not there.any():
        return math.nan
    difference = difference[there]
    grid = next((k for k in GRID if np.allclose(difference * k, np.rint(difference * k), atol=1e-6)), None)
    if grid is None:
        raise WorkbenchError("An exact test of paired scores was asked for.",
                             found=f"differences such as {difference[np.abs(difference * 12 % 1 - 0.5).argmin()]:.4g}",
                             allowed="scores in steps of 1, 1/2, 1/3, 1/4, 1/6 or 1/12",
                             do="Round the scores to 0, .5 and 1.")  # fmt: skip
    steps = np.rint(difference * grid).astype(int)
    if units is not None:
        _, code = np.unique(np.asarray(units)[there], return_inverse=True)
        steps = np.rint(np.bincount(code, weights=steps)).astype(int)
    mass = np.ones(1)  # of the sum of those that are flipped
    for size, count in zip(*np.unique(np.abs(steps[steps != 0]), return_counts=True), strict=True):
        part = np.zeros(size * count + 1)
        part[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        mass = np.convolve(mass, part)
    total = np.abs(steps).sum()
    return float(min(1.0, mass[np.abs(total - 2 * np.arange(total + 1)) >= abs(steps.sum())].sum()))


def mcnemar(first: Any, second: Any) -> float:
    """McNemar's exact two-sided p of paired scores that are 0 or 1 (or NaN): `sign_flip` with its input checked."""
    first, second = np.asarray(first, float), np.asarray(second, float)
    both = np.concatenate([first, second])
    if other := set(both[~np.isnan(both)]) - {0.0, 1.0}:
        raise WorkbenchError("McNemar's test was asked for.", found=f"scores {sorted(map(float, other))[:5]}",
                             allowed="0 and 1", do="Use sign_flip for scores in between.")  # fmt: skip
    return sign_flip(first, second)


def holm(p: Any) -> np.ndarray:
    """P values corrected for their number (Holm 1979); NaN stays NaN and is not counted."""
    p = np.asarray(p, float)
    out, known = np.full(p.shape, np.nan), np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    out[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return out


def bootstrap_mean(x: Any, resamples: int = 1000, seed: int = 0, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean of numbers without bounds (tokens, nats); rates have `wilson`."""
    x = np.asarray(x, float)
    x = x[~np.isnan(x)]
    if not len(x):
        return math.nan, math.nan
    counts = np.random.default_rng(seed).multinomial(len(x), np.full(len(x), 1 / len(x)), size=resamples)
    low, high = np.quantile(counts @ x / len(x), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def _z(confidence: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(0.5 + confidence / 2))


def _plain(x: np.ndarray) -> Any:
    return float(x) if np.ndim(x) == 0 else x
