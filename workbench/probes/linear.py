"""Linear readers of two classes, fitted in the span of the texts.

With n texts and d_model dimensions every reader here has its w in the span of the centred rows, w = a X: n unknowns
instead of d_model. So all fits, folds and resamples of one value at one layer share one matrix of inner products,
K = X X', and only a K-sized problem is left of each. The optima are those of the full space; nothing is truncated.
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
    def K(self) -> np.ndarray:
        """Inner products of the centred rows: (n, n)."""
        gram = dsyrk(1.0, (self.X - self.mean).T, trans=True)  # upper triangle
        return gram + np.triu(gram, 1).T

    def fit(self, method: str, C: float, counts: np.ndarray | None = None) -> Dual:
        """Reader of all rows; counts (n,): how often each row counts, 0 for left out."""
        counts = np.ones(len(self.y)) if counts is None else counts
        kept = np.flatnonzero(counts)
        if method == "logistic" and len(kept) > self.d:
            return self._primal(C, counts)
        K = self.K if len(kept) == len(counts) else self.K[np.ix_(kept, kept)]
        own = METHODS[method](K, self.y[kept], counts[kept], self.d, C)
        a = np.zeros(len(counts))
        a[kept] = own.a
        return Dual(a, own.b)

    def lift(self, dual: Dual) -> Reader:
        """The reader in the raw residual stream."""
        weight = dual.a @ self.X - dual.a.sum() * self.mean
        return Reader(weight, float(dual.b - weight @ self.mean))

    def held_out(self, method: str, C: float, fold: np.ndarray) -> np.ndarray:
        """Logit of each row from the reader that did not see its fold."""
        logits = np.zeros(len(fold))
        for k in np.unique(fold):
            away = fold == k
            own = self.fit(method, C, (~away).astype(float))
            if len(self.X) > self.d:
                weight, bias = self.lift(own)
                logits[away] = self.X[away] @ weight + bias
            else:
                logits[away] = self.K[away] @ own.a + own.b
        return logits

    def _primal(self, C: float, counts: np.ndarray) -> Dual:
        kept = np.flatnonzero(counts)
        X, y = (self.X - self.mean)[kept], self.y[kept]
        w, b = logistic_primal(X, y, counts[kept], C)
        a = np.zeros(len(self.y))
        a[kept] = C * counts[kept] * (y - expit(X @ w + b))  # at the optimum w is the sum of these times the rows
        return Dual(a, b)


def logistic(K: np.ndarray, y: np.ndarray, counts: np.ndarray, d: int, C: float) -> Dual:
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

    return Dual(*_newton(np.zeros(len(y)), y, C * counts, step, dot=lambda u, v, Xv: u @ Xv))


def logistic_primal(X: np.ndarray, y: np.ndarray, counts: np.ndarray, C: float) -> tuple[np.ndarray, float]:
    """(w, b) of the same optimum from centred rows, where there are more of them than dimensions."""
    Z = np.c_[X, np.ones(len(X))]

    def step(w: np.ndarray, f: np.ndarray, gradient: np.ndarray, D: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        hessian = dsyrk(1.0, (np.sqrt(D)[:, None] * Z).T)  # upper triangle
        hessian.flat[:: len(hessian) + 1] += np.r_[np.ones(len(w)), 1e-12]  # all fitted to rounding: b has no curvature
        factor, _ = dpotrf(hessian, clean=False)
        aim = dpotrs(factor, Z.T @ (D * f - gradient))[0]
        return aim[:-1] - w, float(aim[-1]), X @ (aim[:-1] - w)

    # `_primal` reads the rows' coefficients off the gradient, where the curvature enlarges what is left of a step.
    return _newton(np.zeros(X.shape[1]), y, C * counts, step, dot=lambda u, v, Xv: u @ v, close=1e-12)


def _newton(
    u: np.ndarray, y: np.ndarray, weight: np.ndarray, step: Callable, dot: Callable, close: float = 1e-7
) -> tuple[np.ndarray, float]:
    """Coefficients u and intercept b of the least dot(u, u) / 2 + sum of weight * log(1 + exp(-sign logit)), from 0.

    step(u, f, gradient, curvature), the last two by the logits f: (to the quadratic model's optimum, its intercept,
    the logits' move without intercept). dot(u, v, Xv): inner product of weight vectors, Xv what v adds to the logits.
    """
    sign = np.where(y, 1.0, -1.0)
    b, f, Xu = 0.0, np.zeros(len(y)), np.zeros(len(y))

    def objective(f: np.ndarray, norm: float) -> float:
        return 0.5 * norm + float(weight @ np.logaddexp(0.0, -sign * f))

    value = objective(f, 0.0)
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


def mean_difference(K: np.ndarray, y: np.ndarray, counts: np.ndarray, d: int, C: float) -> Dual:
    """w = mean of positives - mean of negatives; b puts 0 midway (Rimsky et al. 2024)."""
    return _midway(K, _difference(y, counts), y, counts)


def lda(K: np.ndarray, y: np.ndarray, counts: np.ndarray, d: int, C: float) -> Dual:
    """w = S^-1 (difference of means), S the within-class covariance shrunk towards a multiple of the identity by as
    much as Ledoit and Wolf (2004) find best; b puts 0 midway. By Woodbury's identity only K is needed.
    """
    n, a = counts.sum(), _difference(y, counts)
    share = np.where(y, counts / (counts @ y), counts / (counts @ ~y))  # subtracts a row's own class mean
    within = np.eye(len(y)) - (y[:, None] == y) * share
    root = np.sqrt(counts)
    half = root[:, None] * within
    S = half @ K @ half.T  # inner products of the centred rows, each as often as it counts
    squared = np.diagonal(S) / np.maximum(counts, 1)
    trace, power = np.trace(S) / n, (S * S).sum() / n**2
    scale = trace / d
    noise, spread = ((counts @ squared**2) / n - power) / n, power - d * scale**2
    shrink = min(noise, spread) / spread if spread > 0 else 1.0
    ridge = shrink * scale
    if ridge <= 1e-12 * np.trace(K) / (n * d):  # no spread within the classes, but for rounding
        return _midway(K, a, y, counts)
    if shrink >= 1.0:
        return _midway(K, a / ridge, y, counts)
    inner = solve(S + (ridge * n / (1 - shrink)) * np.eye(len(y)), half @ (K @ a), assume_a="pos")
    return _midway(K, (a - half.T @ inner) / ridge, y, counts)


def pca(K: np.ndarray, y: np.ndarray, counts: np.ndarray, d: int, C: float) -> Dual:
    """First principal axis of the pairs' differences about zero, towards the positives, as long as the mean difference
    along it; b puts 0 midway (Zou et al. 2023, without their random signs: about zero they change nothing).
    """
    m = len(y) // 2
    half = np.sqrt(counts[:m])[:, None] * np.c_[np.eye(m), -np.eye(m)]
    _, top = eigh(half @ K @ half.T, subset_by_index=[m - 1, m - 1])
    axis, apart = half.T @ top[:, 0], _difference(y, counts)
    return _midway(K, axis * ((axis @ K @ apart) / max(axis @ K @ axis, 1e-300)), y, counts)


METHODS: dict[str, Callable[..., Dual]] = {
    "logistic": logistic, "mean_difference": mean_difference, "lda": lda, "pca": pca,
}  # fmt: skip


def _difference(y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Coefficients of mean of positives - mean of negatives."""
    return np.where(y, counts / (counts @ y), -counts / (counts @ ~y))


def _midway(K: np.ndarray, a: np.ndarray, y: np.ndarray, counts: np.ndarray) -> Dual:
    """The direction a with 0 midway between the class means."""
    return Dual(a, -float(np.abs(_difference(y, counts)) @ K @ a) / 2)


def cross_validated(X: np.ndarray, y: np.ndarray, fold: np.ndarray, method: str, C: float) -> tuple[Reader, np.ndarray]:
    """Reader of all rows (n, d), and each row's logit from the reader that did not see its fold."""
    rows = Rows(X, y)
    return rows.lift(rows.fit(method, C)), rows.held_out(method, C, fold)
