"""The values in the plane: principal axes, multidimensional scaling, cosine profiles, silhouettes of the groups."""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations as arrangements
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..errors import WorkbenchError
from ..values import GROUPS, REFINED, VALUES19, Order, angles, check_value, circular_order
from .labellings import (
    EXACT,
    TIE,
    Circle,
    blocks,
    distinct_labellings,
    pairs_of,
    principal_plane,
    procrustes,
    random_labellings,
    share_at_least,
    stress,
)
from .similarity import checked, checked_matrix, cosine_matrices, names_of, random_cosines

KINDS = ("classical", "metric", "nonmetric")
STARTS = ("classical", "theory")


def align(plane: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Planes (…, n) turned and mirrored onto a target (n) by Procrustes, shifted to its mean and scaled to its size."""
    spread = target - target.mean()
    plane = plane - plane.mean(-1, keepdims=True)
    mirrored = abs(plane @ spread) > abs(plane.conj() @ spread)
    plane = np.where(mirrored[..., None], plane.conj(), plane)
    plane = plane * (np.linalg.norm(spread) / np.linalg.norm(plane, axis=-1, keepdims=True))
    return target.mean() + plane * np.exp(1j * np.angle(plane.conj() @ spread))[..., None]


def table_of(plane: np.ndarray, circle: Circle) -> pd.DataFrame:
    return pd.DataFrame({"value": circle.names, "x": np.real(plane), "y": np.imag(plane)})


def planted_axis_map(vectors: Any, order: Order = None, layout: str = "equal") -> pd.DataFrame:
    """The values in the plane beside their ideal places: value, x, y, ideal_x, ideal_y.

    vectors: as for `circumplex_fit` (a similarity matrix serves too). The first two principal axes of the
    centred unit vectors, turned and mirrored onto the ideal unit circle by Procrustes and scaled to its size,
    so that a poor fit is not drawn small; how good the fit is, `circumplex_fit(...).procrustes_r2` says.
    """
    names = names_of(vectors, order)
    circle = Circle(layout, circular_order(order, names))
    if "other" in getattr(vectors, "dims", ()):
        similarity = checked_matrix(vectors, names).values
    else:
        similarity = cosine_matrices(checked(vectors, names), True, names)
    ideal = np.exp(1j * circle.angles)
    table = table_of(align(principal_plane(similarity), ideal), circle)
    return table.assign(ideal_x=np.real(ideal), ideal_y=np.imag(ideal))


# --- Multidimensional scaling ---


@dataclass(frozen=True)
class Scaling:
    """Ten values in the plane by MDS of the distances sqrt(2 - 2 similarity).

    points: value, x, y, turned onto the ideal ring and scaled to its size. stress1 with its p against random vectors
    of as many dimensions (NaN for a given matrix); procrustes_r2 on the ideal ring with its p. nulls name both.
    """

    kind: str
    start: str
    points: pd.DataFrame
    stress1: float
    stress_p: float
    procrustes_r2: float
    procrustes_p: float
    nulls: dict[str, str]

    def __repr__(self) -> str:
        return (f"Scaling({self.kind} from a {self.start} start: Stress-1 {self.stress1:.3f}, p {self.stress_p:.2g}; "
                f"Procrustes R² {self.procrustes_r2:.3f}, p {self.procrustes_p:.2g})")


def scaling(similarity: np.ndarray, circle: Circle, kind: str, start: str, d_model: int | None, centred: bool,
            draws: int = 999, seed: int = 0) -> Scaling:
    for name, given, allowed in (("kind", kind, KINDS), ("start", start, STARTS)):
        check_value(given, allowed, kind=f"{name} of MDS")
    if kind == "classical" and start == "theory":
        raise WorkbenchError("Classical MDS from a theory-based start was asked for.", found="it takes no start",
                             do='Pass kind="metric" or "nonmetric", or leave start out.')
    ideal = np.exp(1j * circle.angles)
    n, mine = len(ideal), np.arange(len(ideal))[:, None]

    def solve(matrices: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        planes = principal_plane(matrices)
        return (planes, stress(planes, matrices)) if kind == "classical" else smacof(
            matrices, starts if start == "theory" else planes, kind == "metric")

    (plane,), (stress1,) = solve(similarity[None], ideal[None])
    r2 = float(procrustes(plane[None], ideal, mine)[0, 0])
    if start == "theory":  # the plane was drawn towards the labels: so it is under every labelling
        names = random_labellings(n, draws, seed).T
        planes, _ = solve(np.broadcast_to(similarity, (len(names), n, n)), ideal[names])
        null = np.array([r2, *(procrustes(one[None], ideal[labels], mine)[0, 0]
                               for one, labels in zip(planes[1:], names[1:], strict=True))])
        told = f"{len(null):,} labellings, each scaled again from its own start (Monte Carlo)"
    else:
        labels = distinct_labellings(circle.layout, n) if n <= EXACT else random_labellings(n, 19_999, seed)
        null = np.concatenate([procrustes(plane[None], ideal, block)[0] for block in blocks(labels)])
        told = f"{null.size:,} {'orders (exact)' if n <= EXACT else 'labellings (Monte Carlo)'}"
    stress_p, against = math.nan, "none"
    if d_model:
        random = solve(random_cosines(draws, n, d_model, centred, seed), np.broadcast_to(ideal, (draws, n)))[1]
        stress_p, against = (1 + int((random <= stress1).sum())) / (1 + draws), f"{draws:,} draws of random vectors"
    points = table_of(align(plane, ideal), circle)
    return Scaling(kind, start, points, float(stress1), stress_p, r2, share_at_least(null, r2),
                   {"stress1": against, "procrustes_r2": told})


def smacof(similarity: np.ndarray, start: np.ndarray, metric: bool, most: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Planes (m, n) and Stress-1 (m) by majorisation from starts (m, n), all at once.

    The rule is scikit-learn's, whose one-by-one runs would take minutes for a null; stops where Stress-1 falls by less
    than 1e-6. Non-metric: distances are regressed on the order of the dissimilarities (Kruskal 1964). A ring that the
    data contradict altogether stays a ring there: a theory-based start needs its null.
    """
    from scipy.optimize import isotonic_regression

    given = np.sqrt(np.clip(2 - 2 * similarity, 0, None))
    upper = np.triu_indices(similarity.shape[-1], 1)
    ascending = np.argsort(np.round(pairs_of(given), 9), axis=-1, kind="stable")
    planes, found = start - start.mean(-1, keepdims=True), np.full(len(start), np.inf)
    running = np.arange(len(start))
    for step in range(most + 1):
        apart = planes[running, :, None] - planes[running, None, :]
        drawn, wanted = abs(apart), given[running]
        if not metric:
            wanted = np.zeros_like(drawn)
            for row, pairs, order in zip(wanted, pairs_of(drawn), ascending[running], strict=True):
                row[upper[0][order], upper[1][order]] = isotonic_regression(pairs[order]).x
            wanted = wanted + wanted.swapaxes(-1, -2)
        explained = (drawn * wanted).sum((-2, -1)) ** 2 / ((drawn**2).sum((-2, -1)) * (wanted**2).sum((-2, -1)))
        now = np.sqrt(np.clip(1 - explained, 0, None))
        better = (found[running] - now > 1e-6) | (step < 2)
        found[running] = now
        if step == most or not better.any():
            break
        running = running[better]
        planes[running] = (wanted / np.where(drawn > 0, drawn, np.inf) * apart)[better].mean(-1)
    return planes, found


# --- Profiles ---


class CosineProfile(NamedTuple):
    """y = elevation + amplitude cos(theta - displacement), in radians; r2 is NaN for a flat profile."""

    elevation: float
    amplitude: float
    displacement: float
    r2: float


def cosine_profile(y: Any, theta: Any = None) -> CosineProfile:
    """Least-squares cosine through a profile round the circle: a row of similarities, or of leakage.

    y: ten numbers in the order of `VALUES`, NaN where a value is to be left out (its own entry, say).
    theta: their angles in radians, `angles()` by default. Raises WorkbenchError under three different angles.
    """
    y, theta = np.asarray(y, np.float64), np.asarray(angles() if theta is None else theta, np.float64)
    asked = "A cosine through a profile was asked for."
    if y.ndim != 1 or y.shape != theta.shape or np.isinf(y).any() or not np.isfinite(theta).all():
        raise WorkbenchError(asked, found=f"y {y.shape}, theta {theta.shape}", allowed="an angle per number")
    y, theta = y[~np.isnan(y)], theta[~np.isnan(y)]
    design = np.column_stack([np.ones_like(theta), np.cos(theta), np.sin(theta)])
    (elevation, across, up), _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    if rank < 3:
        raise WorkbenchError(asked, found=f"{len(y)} usable numbers", allowed="three different angles")
    spread, left = ((y - y.mean()) ** 2).sum(), ((y - design @ [elevation, across, up]) ** 2).sum()
    r2 = float(1 - left / spread) if spread > TIE**2 else math.nan
    return CosineProfile(float(elevation), math.hypot(across, up), math.atan2(up, across) % math.tau, r2)


def row_profiles(similarity: np.ndarray, circle: Circle) -> pd.DataFrame:
    """`cosine_profile` of every value's row, its own entry left out; `off`: displacement minus its own ideal angle."""
    rows = np.where(np.eye(len(similarity), dtype=bool), np.nan, similarity)
    table = pd.DataFrame([cosine_profile(row, circle.angles) for row in rows])
    table.insert(0, "value", circle.names)
    return table.assign(off=(table["displacement"] - circle.angles + math.pi) % math.tau - math.pi)


# --- Groups ---


class Silhouettes(NamedTuple):
    """mean: of all silhouettes, -1 to 1; p over relabellings, as `null` says; table: value, group, silhouette."""

    mean: float
    p: float
    null: str
    table: pd.DataFrame


@lru_cache(maxsize=2)
def _groups(names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Rows that belong to just one higher-order group, and which."""
    part_of = {part: whole for whole, parts in REFINED.items() for part in parts} if names == VALUES19 else {}
    of = [[k for k, members in enumerate(GROUPS.values()) if part_of.get(name, name) in members] for name in names]
    rows = np.flatnonzero([len(groups) == 1 for groups in of])
    return rows, np.array([of[row][0] for row in rows])


@lru_cache(maxsize=2)
def _assignments(names: tuple[str, ...], draws: int, seed: int) -> np.ndarray:
    """Ways to share the values out to groups of these sizes, (ways, n): all for the ten, the observed one first."""
    _, group = _groups(names)
    if len(group) > EXACT:
        return np.stack([group[labels] for labels in random_labellings(len(group), draws, seed).T])
    return np.array([group.tolist(), *sorted(set(arrangements(group.tolist())) - {tuple(group)})])


def mean_silhouettes(distances: np.ndarray, assignments: np.ndarray) -> np.ndarray:
    """Silhouette of each value (ways, n) in a matrix of distances, under many assignments to groups."""
    member = assignments[:, :, None] == np.arange(assignments.max() + 1)  # (ways, n, groups)
    total, size = distances @ member, member.sum(1, keepdims=True)
    within = (total * member).sum(-1) / np.maximum((size * member).sum(-1) - 1, 1)
    nearest = np.where(member, np.inf, total / size).min(-1)
    return (nearest - within) / np.maximum(nearest, within)


def group_silhouettes(similarity: np.ndarray, circle: Circle, draws: int, seed: int) -> Silhouettes:
    rows, group = _groups(circle.names)
    if len(set(group.tolist())) < len(GROUPS):
        raise WorkbenchError("Silhouettes of the higher-order groups were asked for.",
                             found=f"the values {', '.join(circle.names)}", allowed="the ten values, or the nineteen")
    distances = np.sqrt(np.clip(2 - 2 * similarity[np.ix_(rows, rows)], 0, None))
    np.fill_diagonal(distances, 0)
    ways = _assignments(circle.names, draws, seed)
    every = mean_silhouettes(distances, ways)
    means = every.mean(1)
    names = list(GROUPS)
    left = [name for row, name in enumerate(circle.names) if row not in rows]
    null = f"{len(means):,} ways to form the groups{'' if len(rows) <= EXACT else ' (Monte Carlo)'}"
    table = pd.DataFrame({"value": [circle.names[row] for row in rows], "group": [names[k] for k in group],
                          "silhouette": every[0]})
    return Silhouettes(float(means[0]), share_at_least(means, means[0]), f"{null}, without {', '.join(left)}", table)
