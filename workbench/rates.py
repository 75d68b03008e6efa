"""Rates and their uncertainty."""

import math


def wilson(rate: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a rate over n trials; for rates near 0 or 1 it covers where a bootstrap does not.

    rate may be a mean of scores in [0, 1] such as CSR, whose variance a Bernoulli's bounds from above: the interval is
    then a little wide, never too narrow. n may be a number of independent trials that many dependent ones are worth.
    NaN without trials.
    """
    from scipy.stats import norm

    if n == 0 or math.isnan(rate):
        return math.nan, math.nan
    z = float(norm.ppf(0.5 + confidence / 2))
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def newcombe(rate: float, n: int, base: float, n_base: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of rate - base, two independent rates, from their Wilson intervals (Newcombe 1998, method 10)."""
    low, high = wilson(rate, n, confidence)
    base_low, base_high = wilson(base, n_base, confidence)
    difference = rate - base
    return (
        difference - math.hypot(rate - low, base_high - base),
        difference + math.hypot(high - rate, base - base_low),
    )
