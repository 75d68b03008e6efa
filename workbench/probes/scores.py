"""How well held-out logits tell two classes apart, and how sure that is."""

from collections.abc import Sequence

import numpy as np
from scipy.special import expit
from scipy.stats import norm, rankdata


def area_under_roc(score: np.ndarray, y: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties half (Mann-Whitney)."""
    n = int(y.sum())
    return float((rankdata(score)[y].sum() - n * (n + 1) / 2) / (n * (len(y) - n)))


def roc(score: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates where they turn, from a threshold that none exceeds to one that all do."""
    at = np.append(np.unique(score)[::-1], -np.inf)
    alarms, hits = (1 - np.searchsorted(np.sort(score[own]), at, side="right") / own.sum() for own in (~y, y))
    turn = corners(alarms, hits)
    return alarms[turn], hits[turn]


def corners(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points of a line are its ends or turns (point, bool): the others lie straight between two of these."""
    dx, dy = np.diff(x), np.diff(y)
    return np.r_[True, np.abs(dx[:-1] * dy[1:] - dx[1:] * dy[:-1]) > 1e-12, True]


def auroc_interval(auroc: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of an AUROC of n positives and n negatives that, like Wilson's, holds up to 1 (Newcombe 2006, method 5).

    The bounds are the areas that lie z standard errors from the observed one, each by its own standard error
    (Hanley and McNeil 1982, exponential scores).
    """
    z, m = float(norm.ppf(0.5 + confidence / 2)), n - 1

    def error(area: np.ndarray) -> np.ndarray:
        return np.sqrt(area * (1 - area) * (1 + m * (1 - area) / (2 - area) + m * area / (1 + area))) / n

    area = np.linspace(0, 1, 20_001)
    inside = area[np.abs(area - auroc) <= z * error(area) + 1e-9]
    return float(inside[0]), float(inside[-1])


def brier(logit: np.ndarray, y: np.ndarray) -> float:
    """Mean squared error of the probabilities: 0 is perfect, .25 what .5 everywhere gives."""
    return float(np.mean((expit(logit) - y) ** 2))


def calibration_error(logit: np.ndarray, y: np.ndarray, bins: int = 10) -> float:
    """Mean distance of probability and rate over bins with as many texts each (expected calibration error).

    Above 0 by chance too: about .8 sqrt(p (1 - p) / texts in a bin).
    """
    order = np.argsort(logit, kind="stable")
    p = expit(logit)
    return float(sum(abs(np.sum(p[own] - y[own])) for own in np.array_split(order, bins)) / len(y))


def pair_correlation(hits: Sequence[np.ndarray]) -> float:
    """How much the two texts of a pair share their fate, 0 to 1; hits: for each value (layer, side, pair) bool.

    Pooled over values and layers, each about its own mean. An accuracy over the texts of n pairs is as sure as that
    over 2 n / (1 + this) independent ones. 1 where nothing was ever wrong, so that nothing is known.
    """
    together = spread = 0.0
    for own in hits:
        off = own - own.mean((1, 2), keepdims=True)
        together += (off[:, 0] * off[:, 1]).sum()
        spread += (off**2).sum() / 2
    return float(np.clip(together / spread, 0, 1)) if spread > 0 else 1.0
