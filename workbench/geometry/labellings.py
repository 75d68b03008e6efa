"""Statistics of similarity matrices against a circle, under many labellings of their rows at once.

The engine behind the nulls of `workbench.geometry`. Similarities are (m, n, n), labellings (n, L): column l says
which name, by its index in `circle.names`, the vector of each row bears. Statistics are (m, L).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from ..values import ORDERS, ORDERS19, VALUES, VALUES19, angles, circular_steps

TIE = 1e-9  # similarities and statistics closer than this count as equal
BLOCK = 1 << 16  # labellings treated at once, so that a block of small integers stays in cache
EXACT = 10  # with more values there are too many orders to enumerate
NUMBERS = {4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten", 19: "nineteen", 20: "twenty"}
TITLES = {
    "ci": "correspondence index",
    "spearman": "Spearman with closeness",
    "pearson": "Pearson with closeness",
    "procrustes_r2": "Procrustes R²",
    "fisher": "Fisher: sd / mean of radius",
    "gap": "gap: variance of angle gaps",
    "stress": "Stress-1 in the plane",
    "silhouette": "silhouette of the four groups",
}


class Circle(NamedTuple):
    """What a fit is held against: a layout, and the values place by place."""

    layout: str
    order: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The values in the order of all arrays: `VALUES`, `VALUES19`, or that of the circle."""
        return next((known for known in (VALUES, VALUES19) if set(known) == set(self.order)), self.order)

    @property
    def angles(self) -> np.ndarray:
        return angles(self.layout, self.order, self.names)

    @property
    def steps(self) -> np.ndarray:
        return circular_steps(self.layout, self.order, self.names)

    @property
    def closeness(self) -> np.ndarray:
        """cos(angle between) of every two values, equal where it should be."""
        return np.round(np.cos(self.angles[:, None] - self.angles), 9)

    def __str__(self) -> str:
        named = {VALUES: "Schwartz's order", VALUES19: "Schwartz's order of nineteen",
                 ORDERS["swapped"]: "Schwartz's order, last two swapped",
                 ORDERS19["swapped"]: "Schwartz's order of nineteen, benevolence and universalism swapped"}
        steps = f"{NUMBERS.get(n := len(self.order), n)} equal steps" if self.layout == "equal" else "nine wedges"
        return f"{named.get(self.order) or 'the order ' + ', '.join(self.order)} on {steps}"


# --- Labellings ---


@cache
def permutations(n: int) -> np.ndarray:
    """All permutations of 0..n-1 as columns in lexicographic order, (n, n!), int8."""
    if n == 0:
        return np.zeros((0, 1), np.int8)
    rest = permutations(n - 1)
    first = np.repeat(np.arange(n, dtype=np.int8), rest.shape[1])
    return np.vstack([first, np.hstack([rest + (rest >= k) for k in range(n)])])


def rank(labels: np.ndarray) -> np.ndarray:
    """Column of `permutations` that equals each column, (L)."""
    n, ranks = len(labels), np.zeros(labels.shape[1], np.int32)
    for k in range(n - 1):
        ranks += (labels[k + 1 :] < labels[k]).sum(0, dtype=np.int32) * math.factorial(n - 1 - k)
    return ranks


@lru_cache(maxsize=4)
def distinct_labellings(layout: str, n: int = 10) -> np.ndarray:
    """Place of each value, (n, orders): one of the labellings that symmetries of the layout make equal."""
    # held: which value each place holds.
    if layout == "equal":  # a turn brings value 0 to the front, mirroring puts the lesser neighbour after it
        others = permutations(n - 1) + 1
        others = others[:, others[0] < others[-1]]
        held = np.vstack([np.zeros_like(others[:1]), others])
    else:  # places 6 and 7 share a wedge, mirroring about it swaps 5 and 8
        held = permutations(n)
        held = held[:, (held[6] < held[7]) & (held[5] < held[8])]
    places = np.empty_like(held)
    np.put_along_axis(places, held.astype(np.intp), np.arange(n, dtype=np.int8)[:, None], axis=0)
    return places


def symmetries(layout: str, n: int = 10) -> np.ndarray:
    """Permutations of the places that leave every step as it is, (2n or 4, n)."""
    if layout == "equal":
        turns = (np.arange(n) + np.arange(n)[:, None]) % n
        return np.vstack([turns, turns[:, ::-1]])
    same, mirrored = np.arange(10), np.array([3, 2, 1, 0, 9, 8, 6, 7, 5, 4])
    twins = np.array([0, 1, 2, 3, 4, 5, 7, 6, 8, 9])
    return np.stack([same, mirrored, same[twins], mirrored[twins]])


@lru_cache(maxsize=4)
def random_labellings(n: int, draws: int, seed: int) -> np.ndarray:
    """The labelling observed and `draws` random ones, (n, 1 + draws)."""
    drawn = np.random.default_rng(seed).permuted(np.tile(np.arange(n, dtype=np.int16), (draws, 1)), axis=1)
    return np.vstack([np.arange(n, dtype=np.int16), drawn]).T


def blocks(labels: np.ndarray) -> Iterator[np.ndarray]:
    return (labels[:, at : at + BLOCK] for at in range(0, labels.shape[1], BLOCK))


# --- Statistics ---


def pairs_of(matrices: np.ndarray) -> np.ndarray:
    """The entries above the diagonal, (…, pairs)."""
    return matrices[(..., *np.triu_indices(matrices.shape[-1], 1))]


def under(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Entry of a symmetric table for each pair of rows when they bear the names `labels`, (pairs, L)."""
    n = len(labels)
    first, second = np.triu_indices(n, 1)
    wide = labels.astype(np.int8 if n <= 11 else np.int16, copy=False)
    return np.take(table.ravel(), wide[first] * wide.dtype.type(n) + wide[second])


def count_predictions(circle: Circle) -> int:
    counts = np.bincount(pairs_of(circle.steps))
    return int(counts.sum() ** 2 - (counts**2).sum()) // 2


def correspondence(similarity: np.ndarray, circle: Circle, labels: np.ndarray) -> np.ndarray:
    """(agreements - disagreements) / predictions, over all predictions "a nearer pair is more similar"."""
    pairs, table = pairs_of(similarity), circle.steps.astype(np.int8)
    if labels.shape[1] > 1:
        steps = under(table, labels)
        return np.stack([_sweep(row, steps) for row in pairs]) / count_predictions(circle)
    steps = under(table, labels)[:, 0]
    near, far = np.nonzero(steps[:, None] < steps)
    excess = pairs[:, near] - pairs[:, far]
    return ((excess > TIE).sum(-1) - (excess < -TIE).sum(-1))[:, None] / len(near)


def _sweep(pairs: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Agreements - disagreements of one matrix (pairs) under many labellings (pairs, L).

    One pass over the pairs, most similar first. lead[k] is how many of the pairs passed lie nearer than step
    k minus how many lie farther: what a pair at step k adds to the score. Pairs of equal similarity are
    scored before any of them is passed. (Products of sign matrices give the same at four times the cost.)
    """
    narrow = np.int8 if len(pairs) < 128 else np.int16
    at = np.arange(steps.max() + 1, dtype=np.int8)[:, None]
    lead, score = np.zeros((len(at), steps.shape[1]), narrow), np.zeros(steps.shape[1], np.int32)
    descending = np.argsort(-pairs)
    for tied in np.split(descending, np.flatnonzero(np.diff(-pairs[descending]) > TIE) + 1):
        for pair in tied:
            score += ((at == steps[pair]) * lead).sum(0, dtype=narrow)
        for pair in tied:
            lead += np.sign(at - steps[pair])
    return score


def matrix_correlation(similarity: np.ndarray, target: np.ndarray, labels: np.ndarray, scale: Callable) -> np.ndarray:
    """Correlation over the pairs of scale(similarity) with scale(target), a symmetric (n, n) table (Mantel)."""

    def standard(x: np.ndarray) -> np.ndarray:
        x = scale(np.round(x, 9))
        x = x - x.mean(-1, keepdims=True)
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), TIE)

    table, upper = np.zeros_like(target, dtype=float), np.triu_indices(len(target), 1)
    table[upper] = standard(target[upper])
    return standard(pairs_of(similarity)) @ under(table + table.T, labels)


def ranks(x: np.ndarray) -> np.ndarray:
    return rankdata(x, axis=-1)


def principal_plane(similarity: np.ndarray) -> np.ndarray:
    """x + iy on the first two principal axes (classical MDS of sqrt(2 - 2 similarity)), (…, n), mean 0."""
    centre = np.eye(n := similarity.shape[-1]) - 1 / n
    roots, axes = np.linalg.eigh(centre @ similarity @ centre)
    scaled = axes[..., -2:] * np.sqrt(np.clip(roots[..., None, -2:], 0, None))
    return scaled[..., 1] + 1j * scaled[..., 0]


def procrustes(plane: np.ndarray, target: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1 - disparity of planes (m, n) after the best shift, turn, mirroring and scale (a complex factor)."""
    plane, target = plane - plane.mean(-1, keepdims=True), target - target.mean()
    turned, mirrored = (abs(way @ target[labels]) for way in (plane.conj(), plane))
    return np.maximum(turned, mirrored) ** 2 / ((abs(plane) ** 2).sum(-1)[:, None] * (abs(target) ** 2).sum())


STATISTICS: dict[str, Callable] = {
    "ci": correspondence,
    "spearman": lambda given, circle, labels: matrix_correlation(given, circle.closeness, labels, ranks),
    "pearson": lambda given, circle, labels: matrix_correlation(given, circle.closeness, labels, np.asarray),
    "procrustes_r2": lambda given, circle, labels: procrustes(
        principal_plane(given), np.exp(1j * circle.angles), labels),
}  # fmt: skip


def compute_statistic(statistic: str, similarity: np.ndarray, circle: Circle) -> np.ndarray:
    """The statistic of each of (…, n, n) as they are labelled."""
    flat, own = similarity.reshape(-1, *similarity.shape[-2:]), np.arange(similarity.shape[-1])[:, None]
    parts = [STATISTICS[statistic](flat[at : at + 100], circle, own)[:, 0] for at in range(0, len(flat), 100)]
    return np.concatenate(parts).reshape(similarity.shape[:-2])


def null_distribution(
    statistic: str, similarity: np.ndarray, circles: Sequence[Circle], draws: int = 19_999, seed: int = 0
) -> np.ndarray:
    """The statistic of each (…, n, n) under every labelling, (…, L); of several circles the largest, so that the
    choice is inside.

    Up to ten values all are enumerated; of more, the one observed and `draws` random ones.
    """
    compute, n = STATISTICS[statistic], similarity.shape[-1]
    given = similarity.reshape(-1, n, n)

    def over(labels: np.ndarray, circle: Circle) -> np.ndarray:
        found = np.concatenate([compute(given, circle, block) for block in blocks(labels)], axis=1)
        return found.reshape(*similarity.shape[:-2], -1)

    if n > EXACT:
        labels = random_labellings(n, draws, seed)
        return np.max([over(labels, circle) for circle in circles], axis=0)
    # The set of orders is the same whichever of them is asked about.
    plain = {c.layout: Circle(c.layout, c.names) for c in circles}
    distinct = {layout: over(distinct_labellings(layout, n), circle) for layout, circle in plain.items()}
    if len(circles) == 1:
        return distinct[circles[0].layout]
    # What is a symmetry of one circle is none of another: all n! labellings, looked up among the distinct ones.
    everything = permutations(n)
    largest = np.full((*similarity.shape[:-2], everything.shape[1]), -np.inf)
    for layout, values in distinct.items():
        whole = np.empty_like(largest)
        for way in symmetries(layout, n).astype(np.int8):
            whole[..., rank(way[distinct_labellings(layout, n)])] = values
        for circle in circles:
            if circle.layout == layout:
                place = np.array([circle.order.index(name) for name in circle.names], np.int8)
                same = (place == np.arange(n)).all()
                np.maximum(largest, whole if same else whole[..., rank(place[everything])], out=largest)
    return largest


def share_at_least(null: np.ndarray, observed: float) -> float:
    return float((null >= observed - TIE).mean())


def roundness(similarity: np.ndarray) -> dict[str, np.ndarray]:
    """How round the plane is, whatever the labels, over (…, n, n); each smaller the rounder."""
    plane = principal_plane(similarity)
    radius, angle = abs(plane), np.sort(np.angle(plane), axis=-1)
    gaps = np.diff(angle, axis=-1, append=angle[..., :1] + 2 * np.pi)
    return {"fisher": radius.std(-1) / radius.mean(-1), "gap": gaps.var(-1), "stress": stress(plane, similarity)}


def stress(plane: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """Stress-1 of planes (…, n), best scaled, against the distances sqrt(2 - 2 similarity)."""
    drawn = pairs_of(abs(plane[..., :, None] - plane[..., None, :]))
    wanted = np.sqrt(np.clip(2 - 2 * pairs_of(similarity), 0, None))
    explained = (drawn * wanted).sum(-1) ** 2 / ((drawn**2).sum(-1) * (wanted**2).sum(-1))
    return np.sqrt(np.clip(1 - explained, 0, None))
