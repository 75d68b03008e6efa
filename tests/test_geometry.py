"""Circumplex statistics: planted truth, enumeration against a direct count, controls, human figures."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from circles import PAIRS, SCRAMBLED, named, planted
from scipy import stats
from scipy.spatial import procrustes

from workbench.errors import WorkbenchError
from workbench.geometry import (
    Circle,
    circumplex_fit,
    cosine_profile,
    cosines,
    human_reference,
    labellings,
    layer_scan,
    planted_axis_map,
    similarity,
)
from workbench.values import VALUES, angles, circular_order, circular_steps

SMALLEST = 1 / 181_440


def direct_index(similarity, steps):
    """The correspondence index as it is defined: every prediction looked at, one by one."""
    pairs = list(itertools.combinations(range(10), 2))
    score = count = 0
    for near, far in itertools.permutations(pairs, 2):
        if steps[near] < steps[far]:
            count += 1
            score += int(np.sign(np.round(similarity[near] - similarity[far], 9)))
    return score / count, count


# --- The enumeration ---


@pytest.mark.parametrize("layout, orders", [("equal", 181_440), ("wedges", 907_200)])
def test_every_distinct_order_is_enumerated_once(layout, orders):
    labels = labellings.distinct_labellings(layout)
    assert labels.shape == (10, orders)
    assert (np.sort(labels[:, :: orders // 1000], axis=0) == np.arange(10)[:, None]).all()
    key = np.random.default_rng(0).integers(1, 2**40, size=45)  # an order is its 45 steps
    steps = labellings.under(circular_steps(layout), labels)
    assert len(np.unique(sum(k * row.astype(np.int64) for k, row in zip(key, steps, strict=True)))) == orders


@pytest.mark.parametrize("layout, predictions", [("equal", 800), ("wedges", 770)])
@pytest.mark.parametrize("ties", [False, True])
def test_fast_index_equals_the_direct_count(layout, predictions, ties):
    rng = np.random.default_rng(1)
    similarity: Any = np.corrcoef(rng.normal(size=(10, 12)))
    similarity = np.round(similarity, 1) if ties else similarity
    labels = labellings.distinct_labellings(layout)[:, rng.integers(0, 181_440, size=12)]
    fast = labellings.correspondence(similarity[None], Circle(layout, VALUES), labels)[0]
    for index, places in zip(fast, labels.T, strict=True):
        found, count = direct_index(similarity, circular_steps(layout)[np.ix_(places, places)])
        assert count == predictions and index == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize("layout, predictions", [("equal", 800), ("wedges", 770)])
def test_observed_statistics_equal_independent_ones(layout, predictions):
    vectors = planted(noise=3, seed=4)
    fit = circumplex_fit(vectors, layout=layout, order=SCRAMBLED)
    steps, theta = circular_steps(layout, SCRAMBLED), angles(layout, SCRAMBLED)
    closeness = np.cos(theta[:, None] - theta)[PAIRS]
    pairs = fit.similarity.values[PAIRS]
    assert fit.predictions == predictions
    assert fit.ci == pytest.approx(direct_index(fit.similarity.values, steps)[0], abs=1e-12)
    assert fit.pearson == pytest.approx(stats.pearsonr(pairs, closeness)[0])
    assert fit.spearman == pytest.approx(stats.spearmanr(pairs, np.round(closeness, 9))[0])
    plane = labellings.principal_plane(fit.similarity.values)
    disparity = procrustes(np.c_[np.cos(theta), np.sin(theta)], np.c_[np.real(plane), np.imag(plane)])[2]
    assert fit.procrustes_r2 == pytest.approx(1 - disparity)


def test_exact_p_values_agree_with_sampled_permutations():
    vectors, rng = planted(noise=4, seed=2), np.random.default_rng(0)
    fit = circumplex_fit(vectors)
    samples = [circumplex_fit(vectors[rng.permutation(10)]) for _ in range(200)]  # no null here
    for name in ("ci", "spearman", "pearson", "procrustes_r2"):
        exact = getattr(fit, {"ci": "p", "procrustes_r2": "procrustes_p"}.get(name, f"{name}_p"))
        sampled = np.mean([getattr(sample, name) >= getattr(fit, name) - 1e-9 for sample in samples])
        assert 0.02 < exact < 0.9
        assert abs(sampled - exact) < 4 * math.sqrt(exact * (1 - exact) / 200)


# --- Planted truth and controls ---


@pytest.mark.parametrize("layout, smallest", [("equal", SMALLEST), ("wedges", 1 / 907_200)])
def test_a_planted_circle_has_the_smallest_possible_p(layout, smallest):
    # Nine wedges have a mean of their own, so that centring bends them a little; taken as they are, they fit.
    fit = circumplex_fit(cosines(planted(layout, shared=0), centred=False), layout=layout)
    assert fit.ci == 1 and fit.p == pytest.approx(smallest)
    assert fit.spearman == pytest.approx(1) and fit.spearman_p == pytest.approx(smallest)
    assert fit.pearson == pytest.approx(1) and fit.pearson_p == pytest.approx(smallest)
    assert fit.procrustes_r2 == pytest.approx(1) and fit.procrustes_p == pytest.approx(smallest)
    centred = circumplex_fit(planted(layout), layout=layout)
    assert centred.ci > 0.9 and centred.p == pytest.approx(smallest)
    columns = ["value", "near", "near_step", "far", "far_step", "excess"]
    assert fit.violations().empty and list(fit.violations()) == columns


def test_centring_uncovers_the_circle_behind_a_shared_direction():
    fit = circumplex_fit(planted(shared=40))
    assert fit.raw is not None and fit.raw.raw is None
    assert fit.raw.similarity.values[PAIRS].min() > 0.99
    assert fit.similarity.values[PAIRS].min() == pytest.approx(-1)


def test_random_vectors_have_uniform_p():
    p = [circumplex_fit(np.random.default_rng(seed).normal(size=(10, 30))).p for seed in range(40)]
    assert stats.kstest(p, "uniform")[1] > 0.001 and min(p) > 1e-4


def test_the_scrambled_circle_is_found_as_its_own_and_not_as_schwartzs():
    vectors = planted(order=SCRAMBLED, noise=0.2)
    own, schwartz = circumplex_fit(vectors, order=SCRAMBLED), circumplex_fit(vectors)
    assert own.p <= 1e-5 and own.ci > 0.95
    exact = circumplex_fit(planted(order=SCRAMBLED))
    assert abs(exact.ci) < 0.03 and abs(exact.pearson) < 0.03 and exact.p > 0.2
    assert schwartz.p > 0.2


def test_turning_and_mirroring_an_order_changes_nothing():
    vectors = planted(noise=3, seed=3)
    fit = circumplex_fit(vectors)
    turned = circumplex_fit(vectors, order=[(3 - place) % 10 for place in range(10)])
    assert (turned.ci, turned.p) == (fit.ci, fit.p)


def test_choosing_the_better_circle_is_inside_the_null():
    vectors = planted(noise=3, seed=3)
    fit = circumplex_fit(vectors)
    # The same circle under another name: the best of both is the first, and so is its p.
    same = circumplex_fit(vectors, better_of=[("equal", [(4 - place) % 10 for place in range(10)])])
    assert len(same.candidates) == 2 and same.p == pytest.approx(fit.p, abs=1e-12)
    swapped = circumplex_fit(vectors, order="swapped")
    better = circumplex_fit(vectors, better_of=[("equal", "swapped")])
    assert better.ci == max(fit.ci, swapped.ci)
    assert better.circle == (fit if fit.ci >= swapped.ci else swapped).circle
    assert min(fit.p, swapped.p) < better.p <= fit.p + swapped.p
    assert "over 3,628,800 labellings, the best of 2 circles" in better.claim()


def test_better_of_prefers_the_circle_that_was_planted():
    fit = circumplex_fit(planted("wedges", "swapped"), better_of=[("wedges", "swapped"), ("wedges", None)])
    assert fit.circle == Circle("wedges", circular_order("swapped"))
    with pytest.raises(WorkbenchError, match=r"Allowed: \(layout, order\) pairs"):
        circumplex_fit(planted(), better_of=["swapped"])  # type: ignore


def test_a_layer_chosen_by_its_fit_pays_for_the_choice():
    rng = np.random.default_rng(5)
    stack = np.stack([rng.normal(size=(10, 24)) for _ in range(5)] + [planted(noise=0.5)])
    coords = {"layer": range(2, 8), "value": list(VALUES)}
    scan: Any = layer_scan(xr.DataArray(stack, coords, ("layer", "value", "d_model")))
    assert scan["layer"].tolist() == [2, 3, 4, 5, 6, 7]
    assert scan.loc[scan["best"], "layer"].tolist() == [7]
    assert scan["p"].tolist() == [circumplex_fit(vectors).p for vectors in stack]
    assert (scan["p_selected"] >= scan["p"]).all() and scan["p_selected"][:5].min() > scan["p"][:5].min()
    assert scan["p_selected"][5] <= scan["p"].size * scan["p"][5] + 1e-12
    alone: Any = layer_scan(stack[-1:])
    assert alone["p_selected"][0] == alone["p"][0]
    twice = layer_scan(stack[[5, 5]])
    assert twice["p_selected"].tolist() == twice["p"].tolist() and twice["best"].tolist() == [False, True]


# --- Traps of centring ---


def test_centring_forces_the_mean_cosine_of_equal_norms():
    assert cosines(np.eye(10), centred=False).values[PAIRS] == pytest.approx(0)
    assert cosines(np.eye(10)).values[PAIRS] == pytest.approx(-1 / 9)
    assert cosines(planted()).values[PAIRS].mean() == pytest.approx(-1 / 9)
    apart = np.tile(np.eye(3)[0], (10, 1))
    apart[9] = np.eye(3)[1]
    assert cosines(apart).values[PAIRS].mean() > 0.4  # unequal norms: it can be anything
    assert circumplex_fit(np.eye(10)).p == 1  # all ties: nothing is claimed


# --- Human reference ---


@pytest.mark.parametrize("name, spearman", [("pvq40", 0.853), ("pvq40-ipsatised", 0.890), ("svs", 0.833)])
def test_human_correlations_follow_the_circle(name, spearman):
    matrix = human_reference(name)
    assert matrix.dims == ("value", "other") and matrix["value"].values.tolist() == list(VALUES)
    fit: Any = circumplex_fit(matrix)
    assert fit.spearman == pytest.approx(spearman, abs=5e-4) and fit.p == pytest.approx(SMALLEST)
    assert max(fit.pearson_p, fit.procrustes_p, fit.mds("nonmetric").procrustes_p, fit.silhouettes().p) < 0.005
    assert fit.raw is None and "given" in fit.table() and fit.shape["p"].isna().all()
    place = planted_axis_map(matrix).set_index("value")
    found = place.index[np.argsort(-np.arctan2(place["y"], place["x"]))].tolist()
    start = found.index("power")
    assert [*found[start:], *found[:start]] == [
        "power", "achievement", "hedonism", "stimulation", "self-direction",
        "universalism", "benevolence", "tradition", "conformity", "security",
    ]


def test_human_profile_by_step():
    by_step: Any = circumplex_fit(human_reference("pvq40-ipsatised")).by_step
    assert by_step.index.tolist() == [1, 2, 3, 4, 5]
    assert by_step.to_numpy() == pytest.approx([0.24, 0.03, -0.16, -0.38, -0.46], abs=0.006)


def test_unknown_human_reference():
    with pytest.raises(WorkbenchError, match="Did you mean 'pvq40'"):
        human_reference("PVQ-40")


# --- Tables, conflicts, claims ---


def test_table_has_raw_beside_centred():
    table: Any = circumplex_fit(planted(noise=0.3)).table()
    assert list(table) == ["statistic", "raw", "centred", "p", "null"]
    titles = ["correspondence index", "Spearman with closeness", "Pearson with closeness", "Procrustes R²"]
    assert table["statistic"].tolist()[:4] == titles
    assert table.notna().all(axis=None) and table["p"][:4].max() < 1e-4
    assert table["null"][0] == "181,440 orders"


def test_roundness_is_judged_against_random_vectors():
    ring: Any = circumplex_fit(planted(noise=0.1))
    cloud: Any = circumplex_fit(np.random.default_rng(2).normal(size=(10, 24)))
    assert ring.shape["p"].max() < 0.01 < cloud.shape["p"].min()
    assert ring.shape["value"]["fisher"] < 0.1 and ring.shape["value"]["gap"] < 0.02
    relabelled: Any = circumplex_fit(planted(noise=0.1)[SCRAMBLED])
    assert relabelled.shape["value"].to_numpy() == pytest.approx(ring.shape["value"].to_numpy())
    flat: Any = circumplex_fit(planted(noise=0.1, d_model=4))
    assert flat.shape["p"].notna().all()


def test_random_triangles_are_distributed_as_random_vectors():
    draws = np.random.default_rng(1).normal(size=(2000, 10, 24))
    plain = labellings.roundness(similarity.cosine_matrices(draws, True, VALUES))
    triangles = similarity.random_shape(24, True)
    for name in plain:
        test: Any = stats.ks_2samp(plain[name], triangles[name])
        assert test.pvalue > 0.001


def test_conflicts_are_the_violated_predictions():
    fit = circumplex_fit(planted(noise=2, seed=9))
    conflicts: Any = fit.violations()
    once = conflicts.drop_duplicates(["near", "far"])
    assert len(once) == round(fit.predictions * (1 - fit.ci) / 2)  # no ties: violated = (1 - ci) / 2 of all
    assert (conflicts["far_step"] > conflicts["near_step"]).all() and (conflicts["excess"] > 0).all()
    for value, rows in conflicts.groupby("value"):
        assert (rows["near"] + rows["far"]).str.contains(value).all()
        assert rows["excess"].is_monotonic_decreasing
    about = (once["near"] + " / " + once["far"]).str.split(" / ")
    assert len(conflicts) == sum(len(set(four)) for four in about)  # each stands under all its values
    a, b = once["near"].iloc[0].split(" / ")
    c, d = once["far"].iloc[0].split(" / ")
    cosine = lambda v, w: float(fit.similarity.sel(value=v, other=w))  # noqa: E731
    assert once["excess"].iloc[0] == pytest.approx(cosine(c, d) - cosine(a, b))


def test_a_planted_conflict_is_found_where_it_is():
    similarity = circumplex_fit(planted()).similarity.copy()
    for pair in ({"value": "power", "other": "universalism"}, {"value": "universalism", "other": "power"}):
        similarity.loc[pair] = 0.9  # opposed values, alike
    conflicts = circumplex_fit(similarity).violations()
    assert set(conflicts["far"]) == {"power / universalism"}
    assert conflicts["value"].value_counts().idxmax() in ("power", "universalism")


def test_the_claim_goes_no_further_than_the_test():
    found = circumplex_fit(planted(noise=0.2)).claim()
    assert "not exchangeable" in found and "p = 5.5e-06" in found and "words alone make circles too" in found
    assert "not lexical" not in found and found.count(". ") == 0
    nothing = circumplex_fit(planted(order=SCRAMBLED)).claim()
    assert "no circular order can be claimed" in nothing and "not exchangeable" not in nothing
    assert "By raw cosine" in circumplex_fit(planted()).raw.claim()  # type: ignore
    assert repr(circumplex_fit(planted())).startswith("CircumplexFit(ci=1.000, p=5.5e-06: centred cosine, ")


# --- Intervals ---


def test_intervals_are_reflected_about_the_estimate():
    vectors, rng = planted(noise=1, seed=6), np.random.default_rng(0)
    resamples = vectors + 0.1 * rng.normal(size=(40, *vectors.shape))
    fit: Any = circumplex_fit(vectors, bootstrap=resamples)
    row = fit.intervals.iloc[2]
    each = [circumplex_fit(v).pearson for v in resamples]
    assert row["estimate"] == fit.pearson
    assert row["low"] == pytest.approx(2 * fit.pearson - np.quantile(each, 0.975))
    assert row["high"] == pytest.approx(min(1, 2 * fit.pearson - np.quantile(each, 0.025)))
    assert fit.table()[["low", "high"]][:4].notna().all(axis=None)


@pytest.mark.parametrize("bootstrap", [200, True, np.zeros((10, 24)), np.ones((3, 9, 24))])
def test_vectors_alone_cannot_be_resampled(bootstrap):
    with pytest.raises(WorkbenchError, match=r"resample, 10, d_model"):
        circumplex_fit(planted(), bootstrap=bootstrap)


# --- Profiles and maps ---


def test_cosine_profile_recovers_what_was_planted():
    theta = angles()
    profile = cosine_profile(0.3 + 0.7 * np.cos(theta - 2.0))
    assert profile == pytest.approx((0.3, 0.7, 2.0, 1.0))
    assert cosine_profile(-np.cos(theta)).displacement == pytest.approx(math.pi)
    partial = 0.3 + 0.7 * np.cos(theta - 2.0)
    partial[4] = math.nan  # a value's own entry
    assert cosine_profile(partial) == pytest.approx((0.3, 0.7, 2.0, 1.0))
    assert cosine_profile(np.cos(3 * theta)).r2 == pytest.approx(0)
    flat = cosine_profile(np.full(10, 0.5))
    assert flat.elevation == pytest.approx(0.5) and flat.amplitude == pytest.approx(0) and math.isnan(flat.r2)
    wedges = angles("wedges")
    assert cosine_profile(np.sin(wedges), wedges) == pytest.approx((0, 1, math.pi / 2, 1), abs=1e-9)


def test_cosine_profile_refuses_what_it_cannot_fit():
    bad = (np.ones(9), None), (np.full(10, np.inf), None), (np.ones((2, 10)), None), ([1], [np.nan])
    for y, theta in bad:
        with pytest.raises(WorkbenchError, match="an angle per number"):
            cosine_profile(y, theta)
    with pytest.raises(WorkbenchError, match="2 usable numbers"):
        cosine_profile([1.0, 2.0] + [math.nan] * 8)


def test_map_lays_the_plane_onto_the_ideal_circle():
    place = planted_axis_map(planted(order=SCRAMBLED), order=SCRAMBLED)
    assert list(place) == ["value", "x", "y", "ideal_x", "ideal_y"]
    assert place["value"].tolist() == list(VALUES)
    assert place["x"].to_numpy() == pytest.approx(place["ideal_x"].to_numpy(), abs=1e-6)
    assert place["y"].to_numpy() == pytest.approx(place["ideal_y"].to_numpy(), abs=1e-6)
    wedges: Any = planted_axis_map(planted("wedges"), layout="wedges")
    assert np.hypot(wedges["x"] - wedges["ideal_x"], wedges["y"] - wedges["ideal_y"]).max() < 0.15
    noisy: Any = planted_axis_map(np.random.default_rng(0).normal(size=(10, 20)))
    assert (noisy["x"] ** 2 + noisy["y"] ** 2).mean() == pytest.approx(1)  # a poor fit is not drawn small


# --- Input ---


def test_named_vectors_are_reordered_by_name():
    vectors = planted(noise=1)
    shuffled = named(vectors, SCRAMBLED)
    assert cosines(shuffled).equals(cosines(vectors)) and cosines(shuffled.T).equals(cosines(vectors))
    assert circumplex_fit(shuffled).ci == circumplex_fit(vectors).ci
    matrix = human_reference("svs")
    assert circumplex_fit(matrix[SCRAMBLED, SCRAMBLED[::-1]].T).ci == circumplex_fit(matrix).ci


def test_wrong_input_is_named():
    vectors = planted()
    wrong = named(vectors).assign_coords(value=[*VALUES[:9], "universal"])
    twice = named(vectors).assign_coords(value=[*VALUES[:9], "power"])
    hole, zero, same = vectors.copy(), vectors.copy(), np.ones((10, 4))
    hole[3, 2], zero[6] = np.nan, 0
    for asked, message in (
        (vectors[:9], r"shape \(9, 24\)"),
        (vectors[0], r"shape \(24,\)"),
        (np.zeros((10, 0)), r"shape \(10, 0\)"),
        (xr.DataArray(vectors, dims=("value", "d_model")), "coordinates"),
        (xr.DataArray(vectors, dims=("a", "b")), "dims"),
        (pd.DataFrame(vectors), "a DataFrame"),
        (wrong, "Did you mean 'universalism'"),
        (named(vectors)[:9], "no vector of universalism"),
        (twice, "no vector of universalism"),
        (named(vectors, [*range(10), 0]), "a value named twice"),
        (hole, "NaN or infinity in achievement"),
        (zero, "conformity: of length 0"),
        (same, "equal to the mean of all"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            circumplex_fit(asked)
    with pytest.raises(WorkbenchError, match="conformity: of length 0"):
        cosines(zero, centred=False)


def test_a_wrong_similarity_matrix_is_named():
    matrix = human_reference()
    lopsided = matrix.copy()
    lopsided[0, 1] = 0.9
    for asked, message in (
        (lopsided, "no symmetry"),
        (matrix[:, :9], "along `other`"),
        (matrix[:9], "no vector of universalism"),
        (matrix.where(matrix < 1), "NaN or infinity"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            circumplex_fit(asked)


def test_unknown_layout_and_order_are_named():
    for call in (circumplex_fit, planted_axis_map):
        with pytest.raises(WorkbenchError, match="'circle'.*\nAllowed: equal, wedges"):
            call(planted(), layout="circle")
        with pytest.raises(WorkbenchError, match="'reversed'.*\nAllowed: schwartz, swapped"):
            call(planted(), order="reversed")
