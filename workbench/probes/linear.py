"""Linear readers of two classes, fitted in the span of the texts.

With n texts and d_model dimensions every reader here has its w in the span of the centred rows, w = a X: n unknowns
instead of d_model. So all fits, folds and resamples of one value at one layer share one matrix of inner products,
K = X X', and only a K-sized problem is left of each. Where there are more texts than dimensions, the d-sized problem
is the smaller one (`PRIMAL`). The optima are those of the full space either way; nothing is truncated.
"""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh, solve
from scipy.linalg.blas import dsyrk  # pyright: ignore[reportAttributeAccessIssue], made at run time
from scipy.linalg.lapack import dpotrf, dpotrs  # pyright: ignore[reportAttributeAccessIssue]
from scipy.special import expit

from ..errors import WorkbenchError

STEPS = 100
Products = Callable[[np.ndarray], np.ndarray]


class Reader(NamedTuple):
    """logit = w.e + b."""

    weight: np.ndarray
    bias: float


class Dual(NamedTuple):
    """logits = K a + b: a reader by its coefficients on the rows."""

    a: np.ndarray
    b: float


class Rows:
    """The texts of two classes at one layer, and readers of them.

    X: (n, d), any float; y: (n,) bool; d: dimensions. Where the rows are pairs, the positives stand first and the
    negatives after them in the same order (`pca` needs this).
    """

    def __init__(self, X: np.ndarray, y: np.ndarray):
        self.X, self.y, self.d = X, y, X.shape[1]
        self.mean = X.mean(0, dtype=np.float64)  # a free intercept makes the shift harmless, and rounding small

    @cached_property
    def centred(self) -> np.ndarray:
        """X - mean, (n, d) float64."""
        return self.X - self.mean

    @cached_property
    def K(self) -> np.ndarray:
        """Inner products of the centred rows: (n, n)."""
        gram = dsyrk(1.0, (self.X - self.mean).T, trans=True)  # upper triangle
        return gram + np.triu(gram, 1).T

    def fit(self, method: str, C: float, counts: np.ndarray | None = None, start: Dual | None = None) -> Dual:
        """Reader of all rows; counts (n,): how often each row counts, 0 for left out.

        start: a reader of nearly the same rows, from where "logistic" is soon there; the optimum does not depend on it.
        """
        counts = np.ones(len(self.y)) if counts is None else counts
        kept = np.flatnonzero(counts)
        whole = len(kept) == len(counts)
        if len(kept) > self.d:
            begun = start and Reader(start.a @ self.centred, start.b)  # rows that are left out count for its direction
            X = self.centred if whole else self.centred[kept]
            own = PRIMAL[method](X, self.y[kept], counts[kept], self.d, C, begun)
        else:
            begun = start and Dual(start.a[kept], start.b)
            K = self.K if whole else self.K[np.ix_(kept, kept)]
            own = METHODS[method](K, self.y[kept], counts[kept], self.d, C, begun)
        a = np.zeros(len(counts))
        a[kept] = own.a
        return Dual(a, own.b)

    def lift(self, dual: Dual) -> Reader:
        """The reader in the raw residual stream."""
        weight = dual.a @ self.X - dual.a.sum() * self.mean
        return Reader(weight, float(dual.b - weight @ self.mean))

    def held_out(self, method: str, C: float, fold: np.ndarray, whole: Dual | None = None) -> np.ndarray:
        """Logit of each row from the reader that did not see its fold. whole: that of all rows, if it is there."""
        logits = np.zeros(len(fold))
        for k in np.unique(fold):
            away = fold == k
            if method == "logistic" and (~away).sum() > self.d:  # what is asked are weights: no coefficients are needed
                begun = whole and Reader(whole.a @ self.centred, whole.b)
                w, b = _logistic_weights(self.centred[~away], self.y[~away], np.full((~away).sum(), C), begun)
                logits[away] = self.centred[away] @ w + b
                continue
            own = self.fit(method, C, (~away).astype(float), whole)
            if len(self.X) > self.d:
                logits[away] = self.centred[away] @ (own.a @ self.centred) + own.b
            else:
                logits[away] = self.K[away] @ own.a + own.b
        return logits


def logistic(K: np.ndarray, y: np.ndarray, counts: np.ndarray, d: int, C: float, start: Dual | None = None) -> Dual:
    """L2 logistic regression, intercept free: |w|^2 / 2 + C sum of counts * log(1 + exp(-sign (w.e + b))).

    Newton's method on the logits (Rasmussen and Williams 2006, algorithm 3.1, with an intercept): of the curvature D
    only the square root enters, so that rows fitted to rounding (D = 0) do no harm.
    """

    def step(a: np.ndarray, f: np.ndarray, gradient: np.ndarray, D: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        root = np.sqrt(D)
        B = K * root
        B *= root[:, None]
        B.flat[:: len(y) + 1] += 1.0
        factor, _ = dpotrf(B.T, clean=False, overwrite_a=True)  # of a symmetric matrix, so the transpose spares a copy
        rest = D * f - gradient  # the quadratic model's optimum: (I + D K) a + D 1 b = D f - gradient
        ones, aim = dpotrs(factor, np.array([root, root * (K @ rest)]).T)[0].T * root
        aim = rest - aim
        b = aim.sum() / max(ones.sum(), 1e-300)  # and 1'a = 0
        move = aim - b * ones - a
        return move, b, K @ move

    near = start and (start.a, start.b, K @ start.a)
    return Dual(*_newton(len(y), y, C * counts, step, dot=lambda u, v, Xv: u @ Xv, near=near))


def logistic_primal(
    X: np.ndarray, y: np.ndarray, counts: np.ndarray, d: int, C: float, start: Reader | None = None
) -> Dual:
    """The same optimum by its d weights, where there are more rows than dimensions."""
    # The rows' coefficients are read off the gradient, where the curvature enlarges what is left of a step.
    w, b = _logistic_weights(X, y, C * counts, start, close=1e-12)
    return Dual(C * counts * (y - expit(X @ w + b)), b)  # at the optimum w is the sum of these times the rows


def _logistic_weights(
    X: np.ndarray, y: np.ndarray, weight: np.ndarray, start: Reader | None = None, close: float = 1e-9
) -> Reader:
    """weight: C times the count of each row."""
    Z = np.c_[X, np.ones(len(X))]

    def step(w: np.ndarray, f: np.ndarray, gradient: np.ndarray, D: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        hessian = dsyrk(1.0, (np.sqrt(D)[:, None] * Z).T)  # upper triangle
        hessian.flat[:: len(hessian) + 1] += np.r_[np.ones(len(w)), 1e-12]  # all fitted to rounding: b has no curvature
        factor, _ = dpotrf(hessian, clean=False)
        aim = dpotrs(factor, Z.T @ (D * f - gradient))[0]
        return aim[:-1] - w, float(aim[-1]), X @ (aim[:-1] - w)

    near = start and (start.weight, start.bias, X @ start.weight)
    return Reader(*_newton(X.shape[1], y, weight, step, dot=lambda u, v, Xv: u @ v, close=close, near=near))


def _newton(
    unknowns: int, y: np.ndarray, weight: np.ndarray, step: Callable, dot: Callable, close: float = 1e-7,
    near: tuple[np.ndarray, float, np.ndarray] | None = None,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """Coefficients u and intercept b of the least dot(u, u) / 2 + sum of weight * log(1 + exp(-sign logit)).

    step(u, f, gradient, curvature), the last two by the logits f: (to the quadratic model's optimum, its intercept,
    the logits' move without intercept). dot(u, v, Xv): inner product of weight vectors, Xv what v adds to the logits.
    near: u, b and Xu to start from where they are better than 0.
    """
    sign = np.where(y, 1.0, -1.0)
    u, b, f, Xu = np.zeros(unknowns), 0.0, np.zeros(len(y)), np.zeros(len(y))

    def objective(f: np.ndarray, norm: float) -> float:
        return 0.5 * norm + float(weight @ np.logaddexp(0.0, -sign * f))

    value = objective(f, 0.0)
    if near is not None and (better := objective(near[2] + near[1], dot(near[0], near[0], near[2]))) < value:
        (u, b, Xu), value = near, better
        f = Xu + b
    for _ in range(STEPS):
        p = expit(f)
        gradient = weight * (p - y)
        du, new_b, Xdu = step(u, f, gradient, weight * p * (1 - p))
        move = Xdu + (new_b - b)
        norm, cross, own = dot(u, u, Xu), dot(u, du, Xdu), dot(du, du, Xdu)
        slope = cross + gradient @ move
        if -slope <= close * value:  # so near, the step squares the distance: what is left is rounding
            return u + du, new_b

        def along(size: float) -> float:
            return objective(f + size * move, norm + 2 * size * cross + size * size * own)  # noqa: B023, used at once

        size, trial = 1.0, along(1.0)
        while trial > value + 1e-4 * size * slope and size > 1e-10:
            size /= 2
            trial = along(size)
        while size >= 1 and (farther := along(2 * size)) < trial:
            size, trial = 2 * size, farther  # in the loss's exponential tail Newton's step is too short
        u, b, f, Xu, value = u + size * du, b + size * (new_b - b), f + size * move, Xu + size * Xdu, trial
    raise _no_optimum()


def _no_optimum() -> WorkbenchError:
    return WorkbenchError("A logistic probe was to be fitted.", found=f"no optimum after {STEPS} Newton steps",
                          do="Look for enormous activations, or pass a smaller C.")  # fmt: skip


def mean_difference(
    K: np.ndarray, y: np.ndarray, counts: np.ndarray, d: int, C: float, start: Dual | None = None
) -> Dual:
    """w = mean of positives - mean of negatives; b puts 0 midway (Rimsky et al. 2024)."""
    return _midway(K.__matmul__, _difference(y, counts), y, counts)


def mean_difference_primal(
    X: np.ndarray, y: np.ndarray, counts: np.ndarray, d: int, C: float, start: Reader | None = None
) -> Dual:
    """The same, without inner products."""
    return _midway(_products(X), _difference(y, counts), y, counts)


def lda(K: np.ndarray, y: np.ndarray, counts: np.ndarray, d: int, C: float, start: Dual | None = None) -> Dual:
    """w = S^-1 (difference of means), S the within-class covariance shrunk towards a multiple of the identity by as
    much as Ledoit and Wolf (2004) find best; b puts 0 midway. By Woodbury's identity only K is needed.
    """
    n, a = counts.sum(), _difference(y, counts)
    share = np.where(y, counts / (counts @ y), counts / (counts @ ~y))  # subtracts a row's own class mean
    within = np.eye(len(y)) - (y[:, None] == y) * share
    half = np.sqrt(counts)[:, None] * within
    S = half @ K @ half.T  # inner products of the centred rows, each as often as it counts
    shrink, ridge = _shrinkage(S, np.diagonal(S) / np.maximum(counts, 1), counts, d)
    if ridge <= 1e-12 * np.trace(K) / (n * d):  # no spread within the classes, but for rounding
        return _midway(K.__matmul__, a, y, counts)
    if shrink >= 1.0:
        return _midway(K.__matmul__, a / ridge, y, counts)
    inner = solve(S + (ridge * n / (1 - shrink)) * np.eye(len(y)), half @ (K @ a), assume_a="pos")
    return _midway(K.__matmul__, (a - half.T @ inner) / ridge, y, counts)


def lda_primal(
    X: np.ndarray, y: np.ndarray, counts: np.ndarray, d: int, C: float, start: Reader | None = None
) -> Dual:
    """The same by the d x d covariance."""
    n, a = counts.sum(), _difference(y, counts)
    own = X - np.where(y[:, None], (counts * y) @ X / (counts @ y), (counts * ~y) @ X / (counts @ ~y))
    S = dsyrk(1.0, (np.sqrt(counts)[:, None] * own).T)  # upper triangle
    S += np.triu(S, 1).T
    shrink, ridge = _shrinkage(S, (own * own).sum(1), counts, d)
    if ridge <= 1e-12 * (X * X).sum() / (n * d):
        return _midway(_products(X), a, y, counts)
    keep = (1 - shrink) / n
    w = solve(keep * S + ridge * np.eye(d), a @ X, assume_a="pos")
    return _midway(_products(X), (a - keep * counts * (own @ w)) / ridge, y, counts)


def _shrinkage(S: np.ndarray, squared: np.ndarray, counts: np.ndarray, d: int) -> tuple[float, float]:
    """Weight of the identity, 0 to 1, and that times the mean variance (Ledoit and Wolf 2004).

    S: the centred rows' inner products or n times their covariance, which have one trace and one norm; squared: length
    of each row, squared.
    """
    n = counts.sum()
    scale, power = np.trace(S) / (n * d), (S * S).sum() / n**2
    noise, spread = ((counts @ squared**2) / n - power) / n, power - d * scale**2
    shrink = float(min(noise, spread) / spread) if spread > 0 else 1.0
    return shrink, shrink * scale


def pca(K: np.ndarray, y: np.ndarray, counts: np.ndarray, d: int, C: float, start: Dual | None = None) -> Dual:
    """First principal axis of the pairs' differences about zero, towards the positives, as long as the mean difference
    along it; b puts 0 midway (Zou et al. 2023, without their random signs: about zero they change nothing).
    """
    m = len(y) // 2
    half = np.sqrt(counts[:m])[:, None] * np.c_[np.eye(m), -np.eye(m)]
    _, top = eigh(half @ K @ half.T, subset_by_index=[m - 1, m - 1])
    return _along(K.__matmul__, half.T @ top[:, 0], y, counts)


def pca_primal(
    X: np.ndarray, y: np.ndarray, counts: np.ndarray, d: int, C: float, start: Reader | None = None
) -> Dual:
    """The same by the differences themselves."""
    m, root = len(y) // 2, np.sqrt(counts[: len(y) // 2])
    differences = root[:, None] * (X[:m] - X[m:])
    small = min(m, d)
    gram = differences @ differences.T if m <= d else differences.T @ differences
    _, top = eigh(gram, subset_by_index=[small - 1, small - 1])
    top = root * (top[:, 0] if m <= d else differences @ top[:, 0])
    return _along(_products(X), np.r_[top, -top], y, counts)


METHODS: dict[str, Callable[..., Dual]] = {
    "logistic": logistic, "mean_difference": mean_difference, "lda": lda, "pca": pca,
}  # fmt: skip
PRIMAL: dict[str, Callable[..., Dual]] = {
    "logistic": logistic_primal, "mean_difference": mean_difference_primal, "lda": lda_primal, "pca": pca_primal,
}  # fmt: skip
"""The same readers from the centred rows themselves: for more rows than dimensions."""


def _difference(y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Coefficients of mean of positives - mean of negatives."""
    return np.where(y, counts / (counts @ y), -counts / (counts @ ~y))


def _products(X: np.ndarray) -> Products:
    """Coefficients -> logits."""
    return lambda a: X @ (a @ X)


def _along(products: Products, axis: np.ndarray, y: np.ndarray, counts: np.ndarray) -> Dual:
    """The axis, as long as the mean difference along it."""
    logits, apart = products(axis), _difference(y, counts)
    return _midway(products, axis * ((logits @ apart) / max(axis @ logits, 1e-300)), y, counts)


def _midway(products: Products, a: np.ndarray, y: np.ndarray, counts: np.ndarray) -> Dual:
    """The direction a with 0 midway between the class means."""
    return Dual(a, -float(np.abs(_difference(y, counts)) @ products(a)) / 2)


def cross_validated(X: np.ndarray, y: np.ndarray, fold: np.ndarray, method: str, C: float) -> tuple[Reader, np.ndarray]:
    """Reader of all rows (n, d), and each row's logit from the reader that did not see its fold."""
    rows = Rows(X, y)
    whole = rows.fit(method, C)
    return rows.lift(whole), rows.held_out(method, C, fold, whole)
