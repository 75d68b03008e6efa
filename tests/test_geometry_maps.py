"""Scaling, silhouettes, profiles, the table of layouts."""

import math
from typing import Any

import numpy as np
import pytest
from circles import SCRAMBLED, planted
from scipy.spatial import procrustes
from sklearn.manifold import smacof
from sklearn.metrics import silhouette_samples

from workbench.errors import WorkbenchError
from workbench.geometry import circumplex_fit, human_reference, labellings, maps, planted_axis_map, similarity
from workbench.values import GROUPS, VALUES, VALUES19, angles, groups_of

KINDS = [("classical", "classical"), ("metric", "classical"), ("metric", "theory"), ("nonmetric", "classical"),
         ("nonmetric", "theory")]  # fmt: skip


def flat(plane):
    return np.c_[np.real(plane), np.imag(plane)]


@pytest.mark.parametrize("seed", range(6))
def test_a_plane_is_turned_and_if_need_be_mirrored(seed):
    mirrored = [-place % 10 for place in range(10)]
    for order in (range(10), mirrored):
        place = planted_axis_map(planted(order=order, seed=seed), order=order)
        assert place["x"].to_numpy() == pytest.approx(np.cos(angles(order=[*order])), abs=1e-6)
        assert place["y"].to_numpy() == pytest.approx(np.sin(angles(order=[*order])), abs=1e-6)


# --- Multidimensional scaling ---


@pytest.mark.parametrize("metric", [True, False])
def test_scaling_many_at_once_is_scikit_learns_one_by_one(metric):
    matrices = similarity.random_cosines(12, 10, 30, True)
    starts = labellings.principal_plane(matrices)
    planes, stress1 = maps.smacof(matrices, starts, metric)
    for matrix, start, plane, found in zip(matrices, starts, planes, stress1, strict=True):
        distances = np.sqrt(np.clip(2 - 2 * matrix, 0, None))
        np.fill_diagonal(distances, 0)
        points, theirs = smacof(distances, metric=metric, init=flat(start), n_init=1, normalized_stress=True)[:2]
        # Theirs divides by the drawn distances before they are scaled best: s² = (1 - r²) / r².
        assert found == pytest.approx(theirs / math.sqrt(1 + theirs**2), abs=2e-3)
        assert 1 - procrustes(points, flat(plane))[2] > 0.99
    alone, _ = maps.smacof(matrices[3:4], starts[3:4], metric)
    assert alone[0] == pytest.approx(planes[3])


@pytest.mark.parametrize("kind, start", KINDS)
def test_a_planted_circle_is_scaled_onto_its_ring(kind, start):
    fit = circumplex_fit(planted(noise=0.2))
    found = fit.mds(kind, start)
    assert found.procrustes_r2 > 0.98 and found.stress_p == 0.001
    assert found.procrustes_p < (1e-4 if start == "classical" else 0.05)
    assert found.procrustes_p >= (1 / 181_440 if start == "classical" else 0.001)
    assert found.points["value"].tolist() == list(VALUES)
    off = np.hypot(found.points["x"] - np.cos(angles()), found.points["y"] - np.sin(angles()))
    assert off.max() < 0.35
    assert ("exact" in found.nulls["procrustes_r2"]) == (start == "classical")
    assert "Monte Carlo" in found.nulls["procrustes_r2"] or start == "classical"
    assert repr(found).startswith(f"Scaling({kind} from a {start} start: Stress-1 0.")


def test_classical_scaling_is_the_map_and_its_tests_those_of_the_fit():
    fit: Any = circumplex_fit(planted(noise=2, seed=3))
    found = fit.mds()
    assert found.stress1 == pytest.approx(fit.shape["value"]["stress"])
    assert found.procrustes_r2 == pytest.approx(fit.procrustes_r2) and found.procrustes_p == fit.procrustes_p
    assert abs(found.stress_p - fit.shape["p"]["stress"]) < 0.06
    place = planted_axis_map(fit.similarity)
    assert found.points[["x", "y"]].to_numpy() == pytest.approx(place[["x", "y"]].to_numpy())


def test_iterating_lowers_the_stress_and_order_alone_lowers_it_further():
    fit = circumplex_fit(np.random.default_rng(3).normal(size=(10, 30)))
    stress = [fit.mds(kind).stress1 for kind in maps.KINDS]
    assert stress[0] > stress[1] > stress[2] and fit.mds().stress_p > 0.05


def test_a_start_at_the_theory_pulls_and_the_null_knows():
    circle = labellings.Circle("equal", VALUES)
    blind, pulled = ([maps.scaling(matrix, circle, "metric", start, None, True, draws=99)
                      for matrix in similarity.random_cosines(30, 10, 30, True)] for start in maps.STARTS)  # fmt: skip
    assert np.mean([p.procrustes_r2 for p in pulled]) > np.mean([b.procrustes_r2 for b in blind]) + 0.1
    p = np.array([found.procrustes_p for found in pulled])
    assert (p <= 0.05).sum() <= 6 and 0.3 < p.mean() < 0.7


def test_a_given_matrix_has_no_random_stress():
    found = circumplex_fit(human_reference()).mds("metric")
    assert math.isnan(found.stress_p) and found.nulls["stress1"] == "none" and found.procrustes_p < 1e-4


def test_unknown_scaling_is_named():
    fit = circumplex_fit(planted())
    with pytest.raises(WorkbenchError, match="Did you mean 'nonmetric'"):
        fit.mds("non-metric")
    with pytest.raises(WorkbenchError, match="start of MDS.*\n.*\nAllowed: classical, theory"):
        fit.mds("metric", "random")
    with pytest.raises(WorkbenchError, match="it takes no start"):
        fit.mds("classical", "theory")


# --- Silhouettes ---


def test_silhouettes_are_scikit_learns():
    fit = circumplex_fit(planted(noise=1, seed=2))
    found, names = fit.silhouettes(), [value for value in VALUES if value != "hedonism"]
    assert found.table["value"].tolist() == names
    assert found.table["group"].tolist() == [groups_of(value)[0] for value in names]
    matrix = fit.similarity.sel(value=names, other=names).values
    distances = np.sqrt(np.clip(2 - 2 * matrix, 0, None))
    np.fill_diagonal(distances, 0)
    wanted = silhouette_samples(distances, found.table["group"].to_numpy(), metric="precomputed")
    assert found.table["silhouette"].to_numpy() == pytest.approx(wanted)
    assert found.mean == pytest.approx(wanted.mean())
    rng, drawn = np.random.default_rng(0), []
    for _ in range(400):
        drawn.append(silhouette_samples(distances, rng.permutation(found.table["group"]), metric="precomputed").mean())
    sampled = np.mean(np.array(drawn) >= found.mean - 1e-9)
    assert abs(sampled - found.p) < 4 * math.sqrt(found.p * (1 - found.p) / 400) + 0.003
    assert found.null == "7,560 ways to form the groups, without hedonism"


def test_silhouettes_are_high_where_groups_are_and_not_where_others_are():
    rng = np.random.default_rng(0)
    centres = dict(zip(GROUPS, 3 * rng.normal(size=(4, 20)), strict=True))
    grouped = np.array([centres[groups_of(value)[0]] for value in VALUES]) + rng.normal(size=(10, 20))
    found = circumplex_fit(grouped).silhouettes()
    assert found.mean > 0.3 and found.p == pytest.approx(6 / 7560)  # three groups of two may change places
    assert circumplex_fit(grouped[SCRAMBLED]).silhouettes().p > 0.05
    table = circumplex_fit(grouped).table()
    assert table["statistic"].iloc[-1] == "silhouette of the four groups"
    assert table["p"].iloc[-1] == found.p and table["centred"].iloc[-1] == found.mean


def test_silhouettes_of_the_nineteen():
    found = circumplex_fit(planted(among=VALUES19, noise=0.3)).silhouettes()
    assert found.null == "20,000 ways to form the groups (Monte Carlo), without hedonism, face"
    assert len(found.table) == 17 and found.p < 0.001


# --- Profiles ---


def test_profiles_point_at_the_own_place():
    fit = circumplex_fit(planted(noise=0.1))
    profiles = fit.profiles()
    assert list(profiles) == ["value", "elevation", "amplitude", "displacement", "r2", "off"]
    assert profiles["off"].abs().max() < 0.1 and profiles["r2"].min() > 0.98
    assert profiles["amplitude"].to_numpy() == pytest.approx(1, abs=0.05)
    apart = (profiles["displacement"] - angles() - profiles["off"]) / math.tau
    assert apart.to_numpy() == pytest.approx(np.round(apart), abs=1e-9)
    # Two values that trade places point at each other's.
    moved = list(range(10))
    moved[1], moved[5] = 5, 1
    off = circumplex_fit(planted(noise=0.1)[moved]).profiles()["off"]
    assert off[[1, 5]].tolist() == pytest.approx([math.radians(144), -math.radians(144)], abs=0.15)


# --- Layouts ---


def test_layouts_are_the_four_circles_each_as_alone():
    vectors = planted(noise=2.5, seed=4)
    table = circumplex_fit(vectors).layouts()
    assert table[["layout", "order"]].to_numpy().tolist() == [
        ["equal", "schwartz"], ["equal", "swapped"], ["wedges", "schwartz"], ["wedges", "swapped"]]  # fmt: skip
    for row in table.itertuples():
        alone = circumplex_fit(vectors, layout=row.layout, order=row.order)  # type: ignore[arg-type]
        assert (row.ci, row.p) == (alone.ci, alone.p) and row.p_selected > row.p
    others: Any = [(layout, order) for layout, order in table[["layout", "order"]].to_numpy()[1:].tolist()]
    better = circumplex_fit(vectors, better_of=others)
    best = table[table["best"]].iloc[0]
    assert better.ci == best["ci"] and better.p == best["p_selected"]
    assert table.loc[table["best"], "ci"].item() == table["ci"].max()


@pytest.mark.parametrize("statistic", labellings.STATISTICS)
def test_the_best_of_circles_is_looked_up_as_it_would_be_computed(statistic):
    circles = [labellings.Circle(layout, order) for layout in ("equal", "wedges")
               for order in (VALUES, tuple(VALUES[i] for i in SCRAMBLED))]  # fmt: skip
    matrix = circumplex_fit(planted(noise=2, seed=1)).similarity.values
    null = labellings.null_distribution(statistic, matrix, circles)
    at = np.random.default_rng(0).integers(0, null.size, size=300)
    labels = labellings.permutations(10)[:, at]
    direct = [labellings.STATISTICS[statistic](matrix[None], circle, labels)[0] for circle in circles]
    assert null[at] == pytest.approx(np.max(direct, axis=0), abs=1e-9)
    assert (labellings.rank(labels) == at).all()


@pytest.mark.parametrize("layout, count", [("equal", 20), ("wedges", 4)])
def test_symmetries_leave_every_step(layout, count):
    steps = labellings.Circle(layout, VALUES).steps
    found = labellings.symmetries(layout)
    assert len({tuple(way) for way in found.tolist()}) == count
    for way in found:
        assert (steps[np.ix_(way, way)] == steps).all()
