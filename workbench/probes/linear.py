"""Linear readers of two classes, cross-validated, and how their accuracy is told."""

from collections.abc import Sequence

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dsyrk  # pyright: ignore[reportAttributeAccessIssue], made at run time
from scipy.special import expit

from ..errors import WorkbenchError


def cross_validated_logistic(
    X: np.ndarray, y: np.ndarray, fold: np.ndarray, C: float
) -> tuple[np.ndarray, float, np.ndarray]:
    """Logistic regression on all rows (n, d), and each row's logit from the fit that did not see its fold.

    Newton's method in float64 to the optimum that scikit-learn's lbfgs approaches. With fewer texts than
    dimensions the optimum lies in the span of the texts, so it is sought there, in n coordinates.
    """
    reduced = X.shape[0] < X.shape[1]
    Q, Z = np.eye(0), X
    if reduced:
        Q, R = np.linalg.qr(X.T)
        Z = R.T
    Z1, sign = np.c_[Z, np.ones(len(Z))], np.where(y, 1.0, -1.0)
    whole = _newton(Z1, sign, C, np.zeros(Z1.shape[1]))
    held_out = np.zeros(len(y))
    for k in np.unique(fold):
        train = fold != k
        held_out[~train] = Z1[~train] @ _newton(Z1[train], sign[train], C, whole)  # near the optimum already
    w = Q @ whole[:-1] if reduced else whole[:-1]
    return w, float(whole[-1]), held_out


def _newton(Z: np.ndarray, sign: np.ndarray, C: float, start: np.ndarray, steps: int = 100) -> np.ndarray:
    """argmin over u = (w, b) of |w|^2 / 2 + C sum log(1 + exp(-sign (Z u))), the last column of Z being ones."""
    penalty = np.ones(Z.shape[1])
    penalty[-1] = 0.0

    def objective(u: np.ndarray) -> float:
        return 0.5 * (penalty * u) @ u + C * np.logaddexp(0.0, -sign * (Z @ u)).sum()

    u, value = start.copy(), objective(start)
    for _ in range(steps):
        miss = expit(-sign * (Z @ u))
        gradient = penalty * u - C * Z.T @ (sign * miss)
        hessian = dsyrk(C, np.sqrt(miss * (1 - miss))[:, None] * Z, trans=True)  # upper triangle
        hessian[np.diag_indices_from(hessian)] += penalty
        hessian[-1, -1] += 1e-12  # all labels fitted to rounding: the intercept's curvature underflows
        step = cho_solve(cho_factor(hessian, lower=False, check_finite=False), gradient, check_finite=False)
        decrement = gradient @ step
        if decrement <= 1e-12 * (1 + abs(value)):
            return u
        size, trial = 1.0, objective(u - step)
        while trial > value - 1e-4 * size * decrement and size > 1e-10:
            size /= 2
            trial = objective(u - size * step)
        u, value = u - size * step, trial
    raise WorkbenchError(
        "A logistic probe was to be fitted.",
        found=f"no optimum after {steps} Newton steps",
        do="Look for enormous activations, or pass a smaller C.",
    )


def cross_validated_difference(X: np.ndarray, y: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    def fit(rows: np.ndarray) -> tuple[np.ndarray, float]:
        positive, negative = X[rows & y].mean(0), X[rows & ~y].mean(0)
        w = positive - negative
        return w, -float(w @ (positive + negative)) / 2

    held_out = np.zeros(len(y))
    for k in np.unique(fold):
        w, b = fit(fold != k)
        held_out[fold == k] = X[fold == k] @ w + b
    return *fit(np.ones(len(y), bool)), held_out


def area_under_roc(score: np.ndarray, y: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties half (Mann-Whitney)."""
    from scipy.stats import rankdata

    n = int(y.sum())
    return float((rankdata(score)[y].sum() - n * (n + 1) / 2) / (n * (len(y) - n)))


def wilson(hits: np.ndarray) -> tuple[float, float]:
    from scipy.stats import binomtest

    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return interval.low, interval.high


def tfidf_hits(texts: Sequence[str], y: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Which texts words alone (unigrams and bigrams, logistic) put on the right side, each from the other folds."""
    hit, everything = np.zeros(len(y), bool), np.array(texts, dtype=object)
    for k in np.unique(fold):
        words = word_classifier().fit(everything[fold != k], y[fold != k])
        hit[fold == k] = words.predict(everything[fold == k]) == y[fold == k]
    return hit


def word_classifier():
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b"), LogisticRegression())
