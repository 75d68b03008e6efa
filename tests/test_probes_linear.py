"""Linear readers are what they are named after: scikit-learn's optima, the textbook's covariance, the first axis."""

import numpy as np
import pytest
from planted import activations, two_classes
from scipy.special import expit
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression

from workbench.errors import WorkbenchError
from workbench.probes.linear import METHODS, Dual, Rows, cross_validated

SHAPES = [(200, 30), (60, 200), (40, 40)]


def objective(w: np.ndarray, b: float, X: np.ndarray, y: np.ndarray, C: float) -> float:
    return 0.5 * w @ w + C * np.logaddexp(0, -np.where(y, 1, -1) * (X @ w + b)).sum()


def reader(X: np.ndarray, y: np.ndarray, method: str, C: float = 1.0, counts: np.ndarray | None = None):
    rows = Rows(X, y)
    return rows.lift(rows.fit(method, C, counts))


def near(a: np.ndarray, b: np.ndarray) -> float:
    """Distance, relative to the second."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


# -- logistic regression -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_every_probe_is_the_full_spaces_optimum(n, d, C):
    """Of all values and layers at once; lbfgs is run where it converges, on centred data of moderate scale."""
    sides = np.stack([[two_classes(n, d, scale=s, seed=v)[0].reshape(2, -1, d) for v in (0, 1)] for s in (0.5, 2)])
    positive, negative = (side.reshape(2, n, d) for side in np.moveaxis(sides, 2, 0))
    probes = activations(positive + 1, negative + 1, np.repeat(["power", "security"], n // 2)).fit(C=C)
    for layer, value in np.ndindex(2, 2):
        X = np.float32(sides[layer, value].reshape(n, d) + 1).astype(float)
        y, centre = np.arange(n) < n // 2, X.mean(0)
        where = {"layer": layer, "value": ("power", "security")[value]}
        w = probes.weight.sel(where).values.astype(float)
        b = float(probes.bias.sel(where)) + w @ centre
        for settings in ({"tol": 1e-10, "max_iter": 100_000}, {"solver": "newton-cholesky", "tol": 1e-12}):
            exact = LogisticRegression(C=C, **settings).fit(X - centre, y)
            assert near(w, exact.coef_[0]) < 1e-4, (where, settings)
            assert b == pytest.approx(exact.intercept_[0], rel=1e-4, abs=1e-4)


@pytest.mark.filterwarnings("ignore")  # scikit-learn's, of what it makes of such rows
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_a_large_common_offset_costs_no_exactness(n, d):
    """Where lbfgs, on raw residuals, stops early: our objective is never above its."""
    X, y = two_classes(n, d, scale=3, offset=300)
    for C in (0.01, 1.0, 100.0):
        w, b = reader(X, y, "logistic", C)
        ours = objective(w, b, X, y, C)
        for settings in ({"tol": 1e-10}, {"tol": 1e-10, "solver": "newton-cholesky"}):
            theirs = LogisticRegression(C=C, max_iter=2000, **settings).fit(X, y)
            assert ours <= objective(theirs.coef_[0], theirs.intercept_[0], X, y, C) * (1 + 1e-9)
        shifted = reader(X - 7, y, "logistic", C)
        assert near(shifted.weight, w) < 1e-4, "w does not know where the origin is"


@pytest.mark.parametrize("n", [30, 60, 200])
@pytest.mark.parametrize("scale", [0.01, 1, 30])
@pytest.mark.parametrize("apart", [0.0, 1.0])
def test_one_more_newton_step_changes_nothing(n, scale, apart):
    """Whatever the scale and the penalty: in the full space, which no fit with n < d ever visits."""
    X, y = two_classes(n, 50, scale, offset=3 * scale, apart=apart)
    Z = np.c_[X - X.mean(0), np.ones(n)]
    for C in (1e-8, 1e-4, 1e-2, 1.0, 1e4):
        w, b = reader(X, y, "logistic", C)
        u, free = np.r_[w, b + w @ X.mean(0)], np.r_[np.ones(50), 0]
        p = expit(Z @ u)
        step = np.linalg.solve((C * p * (1 - p) * Z.T) @ Z + np.diag(free), free * u + C * Z.T @ (p - y))
        assert np.linalg.norm(w) > 0 and np.linalg.norm(step[:-1]) < 1e-4 * np.linalg.norm(w), C


@pytest.mark.parametrize(("method", "C"), [("logistic", 0.01), ("logistic", 100.0), *((m, 1.0) for m in METHODS)])
@pytest.mark.parametrize("d", [30, 60])
def test_dual_and_primal_are_one(method, C, d):
    """Also where the pairs are fewer than the dimensions, and the rows more."""
    X, y = two_classes(80, d, scale=2, offset=5)
    rows = Rows(X, y)
    for weights in (np.ones(80), np.tile(np.random.default_rng(0).integers(1, 4, 40).astype(float), 2)):
        primal = rows.lift(rows.fit(method, C, weights))
        dual = rows.lift(METHODS[method](rows.K, y, weights, d, C))
        assert near(dual.weight, primal.weight) < 1e-5 and dual.bias == pytest.approx(primal.bias, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_where_a_fit_starts_changes_nothing(n, d, C):
    X, y = two_classes(n, d, 2, 20)
    rows, fold = Rows(X, y), np.tile(np.arange(n // 2) % 5, 2)
    counts = (fold > 0).astype(float)
    cold = rows.lift(rows.fit("logistic", C, counts))
    for start in (rows.fit("logistic", C), rows.fit("logistic", 1e4), rows.fit("mean_difference", 1.0),
                  Dual(1e6 * np.random.default_rng(0).normal(size=n), 3e7)):  # fmt: skip
        warm = rows.lift(rows.fit("logistic", C, counts, start))
        assert near(warm.weight, cold.weight) < 1e-5 and warm.bias == pytest.approx(cold.bias, rel=1e-4, abs=1e-4)
    warm = rows.held_out("logistic", C, fold, rows.fit("logistic", C))
    assert warm == pytest.approx(rows.held_out("logistic", C, fold), rel=1e-4, abs=1e-4 * np.abs(warm).max())


def test_separable_texts_have_an_optimum_too():
    X = np.r_[np.full((20, 3), 50.0), np.full((20, 3), -50.0)] + np.random.default_rng(0).normal(size=(40, 3))
    y = np.repeat([True, False], 20)
    for rows in (X, np.c_[X, np.zeros((40, 60))]):  # in the space of dimensions, in that of texts
        (w, _), held_out = cross_validated(rows, y, np.arange(40) % 4, "logistic", 1.0)
        assert np.isfinite(w).all() and ((held_out > 0) == y).all()


# -- the others ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_mean_difference_keeps_its_norm(n, d):
    X, y = two_classes(n, d, 2, 50)
    assert near(reader(X, y, "mean_difference").weight, X[y].mean(0) - X[~y].mean(0)) < 1e-10


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_lda_shrinks_as_ledoit_and_wolf_do(n, d, weighted):
    X, y = two_classes(n, d, 2, 50)
    X = X * np.linspace(0.5, 3, d)  # far from a sphere, so that what is found is no multiple of the identity
    counts = np.random.default_rng(1).integers(0, 4, n) if weighted else np.ones(n, int)
    rows, side = np.repeat(X, counts, axis=0), np.repeat(y, counts)
    means = np.stack([rows[~side].mean(0), rows[side].mean(0)])
    shrunk = LedoitWolf(assume_centered=True).fit(rows - means[side.astype(int)])
    assert 0.01 < shrunk.shrinkage_ < 0.99
    exact = np.linalg.solve(shrunk.covariance_, means[1] - means[0])
    assert near(reader(X, y, "lda", counts=counts.astype(float)).weight, exact) < 1e-8


def test_lda_of_classes_without_spread_is_the_mean_difference():
    X = np.repeat([[3.0, 1.0, 0.0], [1.0, 1.0, 1.0]], 5, axis=0)
    assert reader(X, np.arange(10) < 5, "lda").weight == pytest.approx([2, 0, -1])


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_pca_is_the_first_axis_of_the_differences(n, d):
    for seed in range(6):  # so that the axis' own sign comes both ways
        X, y = two_classes(n, d, 2, 50, apart=0.5, seed=seed)
        differences = X[y] - X[~y]
        axis = np.linalg.svd(differences, full_matrices=False)[2][0]
        exact = axis * (axis @ differences.mean(0))
        assert near(reader(X, y, "pca").weight, exact) < 1e-6
        assert exact @ differences.mean(0) > 0


# -- what holds for all of them ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["mean_difference", "lda", "pca"])
def test_zero_lies_midway(method):
    X, y = two_classes(60, 200, 2, 50)
    w, b = reader(X, y, method)
    high, low = X[y].mean(0) @ w + b, X[~y].mean(0) @ w + b
    assert high > 1e-3 and high == pytest.approx(-low)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_a_count_is_a_row_repeated(method, n, d):
    X, y = two_classes(n, d, 2, 20)
    counts = np.tile(np.random.default_rng(2).integers(0, 4, n // 2), 2)  # both texts of a pair alike
    assert 0 in counts and 3 in counts
    repeated = reader(np.repeat(X, counts, axis=0), np.repeat(y, counts), method)
    counted = reader(X, y, method, counts=counts.astype(float))
    assert near(counted.weight, repeated.weight) < 1e-5
    assert counted.bias == pytest.approx(repeated.bias, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_held_out_logits_are_those_of_readers_that_never_saw_the_fold(method, n, d):
    X, y = two_classes(n, d, 2, 20)
    fold = np.tile(np.arange(n // 2) % 5, 2)
    whole, held_out = cross_validated(X, y, fold, method, 1.0)
    assert near(whole.weight, reader(X, y, method).weight) < 1e-6
    for k in range(5):
        away = fold == k
        w, b = reader(X[~away], y[~away], method)
        assert held_out[away] == pytest.approx(X[away] @ w + b, rel=1e-3, abs=1e-3 * np.abs(held_out).max())
        moved = np.where(away[:, None], X + 100 * np.random.default_rng(k).normal(size=d), X)
        if k == 0:  # whatever stands in the fold, its reader is the same
            again = cross_validated(moved, y, fold, method, 1.0)[1][away]
            assert again == pytest.approx(moved[away] @ w + b, rel=1e-3, abs=1e-2 * np.abs(again).max())


def test_enormous_rows_end_in_one_clear_sentence():
    X, y = two_classes(40, 60)
    try:
        w, _ = reader(X * 1e9, y, "logistic", 1e9)
    except WorkbenchError as problem:
        assert "Look for enormous activations" in str(problem)
    else:
        assert np.isfinite(w).all()
