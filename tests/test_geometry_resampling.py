"""Fits with resampled pairs of texts behind them: intervals, reliability, conflicts, ellipses, comparisons."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from circles import PAIRS, SCRAMBLED, named, pair_activations, planted
from scipy import stats
from scipy.spatial import procrustes

from workbench.errors import WorkbenchError
from workbench.geometry import circumplex_fit, cosines, human_reference, labellings, layer_scan, resampling, similarity
from workbench.geometry.labellings import STATISTICS, Circle, compute_statistic
from workbench.values import VALUES, VALUES19, angles, circular_steps


@pytest.fixture(scope="module")
def acts():
    return pair_activations(planted(noise=0.5, shared=1), noise=1.5, pairs=14)


@pytest.fixture(scope="module")
def resampled(acts):
    return acts.resample(0, 200, splits=20)


@pytest.fixture(scope="module")
def fit(resampled) -> Any:
    return circumplex_fit(resampled)


def stand_in(vectors, bootstrap, draws="x") -> Any:
    """A Resampled of given bootstrap vectors; its halves are the first resamples."""
    dims, names = ("value", "d_model"), {"value": list(VALUES)}
    halves = xr.DataArray(np.stack([bootstrap[:5], bootstrap[5:10]]), names, ("half", "split", *dims))
    return SimpleNamespace(vectors=named(vectors), bootstrap=xr.DataArray(bootstrap, names, ("resample", *dims)),
                           halves=halves, differences=None, draws=draws)  # fmt: skip


# --- Statistics of many matrices at once ---


@pytest.mark.parametrize("layout", ["equal", "wedges"])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_many_matrices_at_once_are_each_alone(statistic, layout):
    rng, circle = np.random.default_rng(0), Circle(layout, tuple(VALUES[i] for i in SCRAMBLED))
    matrices = similarity.cosine_matrices(rng.normal(size=(130, 10, 12)), True, VALUES)
    matrices[0] = np.round(matrices[0], 1)  # ties
    together = compute_statistic(statistic, matrices, circle)
    own = np.arange(10)[:, None]
    for at in (0, 1, 99, 100, 129):
        two = np.hstack([own, own])  # more than one labelling: the other way to count
        alone = STATISTICS[statistic](matrices[at : at + 1], circle, two)[0, 0]
        assert together[at] == pytest.approx(alone, abs=1e-12)


# --- Where vectors come from ---


def test_a_resampled_is_its_own_bootstrap(resampled, fit):
    array: Any = circumplex_fit(resampled.vectors.values, bootstrap=resampled.bootstrap.values)
    beside = circumplex_fit(resampled.vectors, bootstrap=resampled)
    for other in (array, beside):
        assert other.ci == fit.ci and other.intervals.equals(fit.intervals)
        assert other.raw.intervals.equals(fit.raw.intervals)
    assert array.reliability is None and beside.reliability.equals(fit.reliability)
    assert fit.source == "synthetic, layer 0" and "(synthetic, layer 0)" in fit.claim()


def test_probes_bring_their_vectors_layer_and_resamples(acts, resampled):
    probes = acts.fit("mean_difference", folds=3)
    fit: Any = circumplex_fit(probes, bootstrap=200)
    assert fit.ci == pytest.approx(circumplex_fit(resampled).ci)
    assert fit.raw.similarity.values == pytest.approx(cosines(resampled.vectors, centred=False).values, abs=1e-5)
    assert fit.similarity.values == pytest.approx(cosines(resampled.vectors).values, abs=1e-5)  # not of unit vectors
    assert fit.source == "synthetic, mean_difference, layer 0 chosen by held-out accuracy"
    assert circumplex_fit(probes, layer=0).source == "synthetic, mean_difference, layer 0"
    assert fit.matrices.shape == (200, 10, 10)
    assert layer_scan(probes.weight)["ci"].tolist() == [pytest.approx(fit.ci)]
    with pytest.raises(WorkbenchError, match=r"loaded from a file[^\n]*\nWhat to do: Fit them again"):
        circumplex_fit(replace(probes, activations=None), bootstrap=10)
    assert circumplex_fit(replace(probes, activations=None)).intervals is None
    with pytest.raises(WorkbenchError, match="layers 0"):
        circumplex_fit(probes, layer=7)


def test_the_method_and_penalty_of_the_probes_are_the_resamples(acts):
    asked = {}
    probes = acts.fit("logistic", C=0.5, folds=3)

    def resample(layer, n, **how):
        asked.update(how, layer=layer, n=n)
        return acts.resample(layer, n, **how, splits=3)

    fit = circumplex_fit(replace(probes, activations=SimpleNamespace(resample=resample)), bootstrap=20, seed=3)
    assert asked == {"layer": 0, "n": 20, "method": "logistic", "C": 0.5, "seed": 3}
    assert fit.matrices is not None and fit.matrices.shape == (20, 10, 10)


def test_resamples_of_other_vectors_are_refused(resampled):
    unit = resampled.vectors / np.linalg.norm(resampled.vectors, axis=1, keepdims=True)
    for other in (unit, named(planted()), named(planted(d_model=30))):
        with pytest.raises(WorkbenchError, match="resamples of other vectors"):
            circumplex_fit(other, bootstrap=resampled)
    with pytest.raises(WorkbenchError, match="a similarity matrix"):
        circumplex_fit(human_reference(), bootstrap=resampled)
    with pytest.raises(WorkbenchError, match="Allowed: layer= beside Probes"):
        circumplex_fit(planted(), layer=3)


# --- Intervals and reliability ---


def test_intervals_of_similarities_are_reflected_in_the_inner_products(resampled, fit):
    def products(vectors):
        apart = vectors - vectors.mean(0)
        return apart @ apart.T

    observed, each = products(resampled.vectors.values.astype(float)), []
    for vectors in resampled.bootstrap.values.astype(float):
        mirrored = 2 * observed - products(vectors)
        each.append(np.clip(mirrored / np.sqrt(np.outer(np.diag(mirrored), np.diag(mirrored))), -1, 1))
    ends = np.quantile(each, [0.025, 0.975], axis=0)
    assert fit.similarity_intervals.values == pytest.approx(ends, abs=1e-6)
    assert fit.similarity_intervals.dims == ("bound", "value", "other")
    at = circular_steps()[PAIRS] == 5
    mean = np.array([matrix[PAIRS][at].mean() for matrix in each])
    assert fit.step_intervals.loc[5].tolist() == pytest.approx(np.quantile(mean, [0.025, 0.975]).tolist())
    bare = circumplex_fit(planted())
    assert bare.similarity_intervals is bare.step_intervals is bare.intervals is bare.resamples is bare.spread() is None


def test_reliability_is_the_cosine_of_halves(resampled, fit):
    one, two = resampled.halves.values.astype(float)
    value = VALUES.index("power")
    raw = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(one[:, value], two[:, value], strict=True)]
    assert fit.reliability.loc["power", "raw"] == pytest.approx(np.mean(raw))
    apart = [(a[value] - a.mean(0), b[value] - b.mean(0)) for a, b in zip(one, two, strict=True)]
    centred = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in apart]
    assert fit.reliability.loc["power", "centred"] == pytest.approx(np.mean(centred))
    assert fit.raw.reliability is fit.reliability and list(fit.reliability) == ["centred", "raw"]


def test_unreliable_vectors_are_warned_of():
    good, poor = (circumplex_fit(pair_activations(planted(), noise).resample(0, 20, splits=10)) for noise in (0.5, 6))
    assert "unreliable" not in good.claim() and "median split-half cosine 0.9" in good.claim()
    assert "The vectors are unreliable" in poor.claim()


def test_split_half_is_what_theory_gives():
    # Each half has n/2 pairs: cosine of centred halves = |c|² / (|c|² + (1 - 1/10) noise² / (n/2)).
    noise, pairs = 2.0, 20
    acts = pair_activations(planted(shared=0, d_model=400), noise, pairs)
    reliability: Any = circumplex_fit(acts.resample(0, 2, splits=20)).reliability
    wanted = 1 / (1 + 0.9 * noise**2 / (pairs / 2))
    assert reliability["centred"].mean() == pytest.approx(wanted, abs=0.03)


def test_intervals_hold_the_truth_where_percentile_ones_do_not():
    vectors = planted(noise=1, shared=1, d_model=64, seed=5)
    truth: Any = circumplex_fit(vectors)
    held = np.zeros((2, 2))  # ours, percentile; Pearson, all similarities
    for seed in range(40):
        fit: Any = circumplex_fit(pair_activations(vectors, 5, 20, seed).resample(0, 100, splits=1))
        for kind, ends in enumerate([fit.intervals.loc["pearson", ["low", "high"]],
                                     fit.resamples["pearson"].quantile([0.025, 0.975])]):  # fmt: skip
            held[kind, 0] += ends.iloc[0] <= truth.pearson <= ends.iloc[1]
        wanted = truth.similarity.values[PAIRS]
        percentile = np.quantile(fit.matrices, [0.025, 0.975], axis=0)
        for kind, (low, high) in enumerate([fit.similarity_intervals.values, percentile]):
            held[kind, 1] += ((low[PAIRS] <= wanted) & (wanted <= high[PAIRS])).mean()
    assert (held[0] >= 32).all() and (held[1] < 20).all()


def test_noise_alone_gives_wide_intervals_and_no_error():
    fit: Any = circumplex_fit(pair_activations(planted(shared=0), noise=40, pairs=6).resample(0, 60, splits=2))
    low, high = fit.similarity_intervals.values
    assert np.isfinite([low, high]).all() and np.median((high - low)[PAIRS]) > 1.2


# --- Conflicts ---


def with_a_conflict(strength=1.5, noise=1.0, **given):
    vectors = planted(shared=1, **given)
    both = np.random.default_rng(9).normal(size=vectors.shape[1])
    both *= strength / np.linalg.norm(both)
    for value in ("security", "self-direction"):
        vectors[VALUES.index(value)] += both
    return vectors


def test_conflicts_are_opposed_values_alike():
    bare = circumplex_fit(with_a_conflict())
    conflicts = bare.conflicts()
    assert len(conflicts) == 15 and set(conflicts["step"]) == {4, 5} and "texts" not in conflicts
    assert conflicts["similarity"].is_monotonic_decreasing and conflicts["low"].isna().all()
    found = conflicts[conflicts["conflict"]]
    assert found[["value", "other"]].to_numpy().tolist() == [["self-direction", "security"]]
    for row in conflicts.itertuples():
        assert circular_steps()[VALUES.index(row.value), VALUES.index(row.other)] == row.step
        assert row.similarity == bare.similarity.sel(value=row.value, other=row.other)
        assert row.raw == bare.raw.similarity.sel(value=row.value, other=row.other)  # type: ignore[union-attr]
    assert set(circumplex_fit(planted("wedges"), layout="wedges").conflicts()["step"]) == {4}
    assert circumplex_fit(human_reference()).conflicts()["raw"].isna().all()


def test_a_conflict_with_resamples_needs_its_interval_above_0():
    acts = pair_activations(with_a_conflict(), noise=1)
    fit = circumplex_fit(acts.resample(0, 100, splits=2))
    sure = fit.conflicts()
    assert sure.loc[sure["conflict"], ["value", "other"]].to_numpy().tolist() == [["self-direction", "security"]]
    assert (sure["conflict"] == (sure["low"] > 0)).all() and (sure["low"] < sure["high"]).all()
    acts = pair_activations(with_a_conflict(1.3), noise=3, seed=1)
    unsure = circumplex_fit(acts.resample(0, 100, splits=2)).conflicts()
    assert ((unsure["similarity"] > 0) & ~unsure["conflict"]).any()


def test_the_texts_of_a_conflict_add_up_to_its_cosine(resampled, fit):
    for a, b in (("power", "universalism"), ("universalism", "power"), ("security", "self-direction")):
        table = resampling.contributions(resampled, a, b, VALUES)
        assert len(table) == 14 and table["positive"].str.startswith(a).all()
        assert table["share"].sum() == pytest.approx(float(fit.similarity.sel(value=a, other=b)), abs=1e-5)
    row = fit.conflicts(texts=2).iloc[0]
    assert [text[0] for text in row["texts"]] == [row["value"]] * 2 + [row["other"]] * 2
    shares = resampling.contributions(resampled, row["value"], row["other"], VALUES)
    best = shares.loc[shares["share"].idxmax()]
    assert row["texts"][0] == (row["value"], best["positive"], best["negative"], best["share"])


def test_the_texts_that_make_two_values_alike_come_first():
    vectors = with_a_conflict(0)
    acts = pair_activations(vectors, noise=0.2)
    odd = [f"security {k} yes" for k in (3, 7)]  # two pairs of security that say self-direction
    rows = [acts.acts["content"].values.tolist().index(text) for text in odd]
    acts.acts.values[0, rows] += 4 * (vectors[0] - vectors.mean(0)).astype(np.float32)
    fit = circumplex_fit(acts.resample(0, 20, splits=2))
    conflicts = fit.conflicts(texts=2)
    row = conflicts[(conflicts["value"] == "self-direction") & (conflicts["other"] == "security")].iloc[0]
    assert {text[1] for text in row["texts"] if text[0] == "security"} == set(odd)


# --- Ellipses ---


def test_ellipses_hold_the_resamples():
    vectors, rng = planted(noise=0.3, d_model=12), np.random.default_rng(0)
    resamples = vectors + 0.1 * rng.normal(size=(400, *vectors.shape))
    table: Any = circumplex_fit(vectors, bootstrap=resamples).spread()
    assert list(table) == ["value", "x", "y", "cxx", "cxy", "cyy"]
    plane = np.array([table["x"], table["y"]]).T
    ideal = np.c_[np.cos(angles()), np.sin(angles())]
    inside = []
    for sample in resamples:  # each turned onto the observed plane by scipy
        there = labellings.principal_plane(cosines(sample).values)
        seen, turned, _ = procrustes(plane, np.c_[np.real(there), np.imag(there)])
        inside.append(turned - seen)
    off = np.array(inside) * np.linalg.norm(plane - plane.mean(0))
    for value in range(10):
        matrix = np.array([[table["cxx"][value], table["cxy"][value]], [table["cxy"][value], table["cyy"][value]]])
        apart = off[:, value] - off[:, value].mean(0)
        share = (np.einsum("ri,ij,rj->r", apart, np.linalg.inv(matrix), apart) <= 1).mean()
        assert 0.9 < share < 0.99
    assert np.hypot(*(plane - ideal).T).max() < 0.5
    tight: Any = circumplex_fit(vectors, bootstrap=vectors + 0.01 * rng.normal(size=(50, *vectors.shape))).spread()
    assert tight["cxx"].max() < table["cxx"].min() / 10


# --- Comparisons ---


def test_a_comparison_with_itself_is_perfect_and_with_a_turned_copy_too():
    vectors = planted(noise=0.5)
    fit = circumplex_fit(vectors)
    turned = circumplex_fit(7 * vectors @ np.linalg.qr(np.random.default_rng(1).normal(size=(24, 24)))[0])
    for other in (fit, turned, fit.similarity):
        same = fit.compare(other)
        assert [same.congruence, same.pearson, same.spearman, same.procrustes_r2] == [pytest.approx(1)] * 4
        assert same.tests["p"].tolist() == [pytest.approx(1 / math.factorial(10))] * 3
        assert same.differences["difference"].abs().max() < 1e-9


def test_a_comparison_equals_independent_statistics():
    a, b = (circumplex_fit(planted(noise=2, seed=seed)) for seed in (1, 2))
    x, y = a.similarity.values[PAIRS], b.similarity.values[PAIRS]
    found = a.compare(b)
    assert found.congruence == pytest.approx((x * y).sum() / math.sqrt((x**2).sum() * (y**2).sum()))
    assert found.pearson == pytest.approx(stats.pearsonr(x, y)[0])
    assert found.spearman == pytest.approx(stats.spearmanr(x, y)[0])
    planes = [np.c_[np.real(p), np.imag(p)] for p in
              (labellings.principal_plane(fit.similarity.values) for fit in (a, b))]  # fmt: skip
    assert found.procrustes_r2 == pytest.approx(1 - procrustes(*planes)[2])
    rng, drawn = np.random.default_rng(0), []
    for _ in range(400):
        turn = rng.permutation(10)
        drawn.append(stats.pearsonr(x, b.similarity.values[np.ix_(turn, turn)][PAIRS])[0])
    sampled, exact = np.mean(np.array(drawn) >= found.pearson), found.tests.loc["pearson", "p"]
    assert abs(sampled - exact) < 4 * math.sqrt(exact * (1 - exact) / 400) + 0.003
    assert found.differences["difference"].tolist() == pytest.approx(
        [getattr(a, key) - getattr(b, key) for key in STATISTICS])  # fmt: skip
    back = b.compare(a)
    assert back.tests["p"].tolist() == pytest.approx(found.tests["p"].tolist(), abs=1e-6)


def test_only_resamples_of_the_same_pairs_have_an_interval_of_the_difference():
    vectors, rng = planted(noise=0.5), np.random.default_rng(0)
    weak = planted(noise=3, seed=3)
    boot = [v + 0.05 * rng.normal(size=(60, 10, 24)) for v in (vectors, weak)]
    a = circumplex_fit(stand_in(vectors, boot[0]))
    b = circumplex_fit(stand_in(weak, boot[1]))
    table: Any = a.compare(b).differences
    ci = [np.array([circumplex_fit(v).ci for v in drawn]) for drawn in boot]
    ends = np.quantile(ci[0] - ci[1], [0.975, 0.025])
    wanted = np.clip(2 * (a.ci - b.ci) - ends, -2, 2)
    assert table.loc["ci", ["low", "high"]].tolist() == pytest.approx(wanted)
    assert "excludes 0" in a.compare(b).claim() and "may be nothing" in a.compare(a).claim()
    others = circumplex_fit(stand_in(weak, boot[1], draws="others")), circumplex_fit(weak, bootstrap=boot[1])
    for other in others:
        assert a.compare(other).differences["low"].isna().all() and "no interval" in a.compare(other).claim()
    shown = a.compare(b).table()
    assert list(shown) == ["statistic", "value", "low", "high", "p", "null"] and len(shown) == 8
    assert shown["null"][1] == "3,628,800 labellings"


def test_circular_beyond_words_needs_an_interval_above_0():
    good, words, none = planted(noise=0.3), planted(noise=3, seed=3), planted(order=SCRAMBLED)
    rng = np.random.default_rng(0)
    fits = [circumplex_fit(stand_in(v, v + 0.02 * rng.normal(size=(60, 10, 24)))) for v in (good, words, none)]
    assert "the order is circular beyond words" in fits[0].beyond(fits[1]) and "cannot" not in fits[0].beyond(fits[1])
    assert "it cannot be said that" in fits[0].beyond(fits[0])
    near = planted(noise=1.2)  # better than words, and not by enough
    rough = [circumplex_fit(stand_in(v, v + 0.5 * rng.normal(size=(60, 10, 24)))) for v in (good, near)]
    row = rough[0].compare(rough[1]).differences.loc["ci"]
    assert row["low"] < 0 < row["difference"] and "it cannot be said that" in rough[0].beyond(rough[1])
    assert "no circular order can be claimed" in fits[2].beyond(fits[1])
    assert "no interval" in fits[0].beyond(circumplex_fit(words))


def test_a_comparison_with_people():
    fit = circumplex_fit(planted())
    table = fit.compare(human_reference()).table()
    assert table["value"][0] > 0.85 and table["p"][1:4].max() < 1e-4
    assert "correlation among people (pvq40-ipsatised)" in fit.compare(human_reference()).claim()
    for other in (human_reference().values, "pvq40", circumplex_fit(planted(among=VALUES19))):
        with pytest.raises(WorkbenchError, match="Two geometries were to be compared"):
            fit.compare(other)


# --- Calibration ---


def rejections(p) -> int:
    return int((np.array(p) <= 0.05).sum())


LOW, HIGH = stats.binom.ppf([0.0005, 0.9995], 200, 0.05)


@pytest.mark.parametrize("p", ["p", "spearman_p", "pearson_p", "procrustes_p"])
def test_exchangeable_vectors_are_rejected_at_the_nominal_rate(p):
    draws = np.random.default_rng(1).normal(size=(200, 10, 30))
    assert LOW <= rejections([getattr(circumplex_fit(vectors), p) for vectors in draws]) <= HIGH


def test_choosing_a_layer_is_calibrated_only_with_the_choice_inside():
    rng, names = np.random.default_rng(0), [f"value {k}" for k in range(7)]  # 360 orders: fast
    chosen, ignored = [], []
    for _ in range(200):
        layers = [rng.normal(size=(7, 20))]
        for _ in range(7):
            layers.append(0.7 * layers[-1] + 0.7 * rng.normal(size=(7, 20)))
        scan: Any = layer_scan(xr.DataArray(layers, {"value": names}, ("layer", "value", "d_model")), order=names)
        chosen.append(scan.loc[scan["best"], "p_selected"].item())
        ignored.append(scan.loc[scan["best"], "p"].item())
    assert LOW <= rejections(chosen) <= HIGH < rejections(ignored)
