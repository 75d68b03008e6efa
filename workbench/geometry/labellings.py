"""Statistics of a similarity matrix against a circle, under many labellings of its ten rows at once.

The engine behind the exact nulls of `workbench.geometry`: similarities are (10, 10) in the order of `VALUES`,
labellings (10, n) columns of places.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from ..values import LAYOUTS, ORDERS, VALUES, angles, circular_steps

TIE = 1e-9  # similarities and statistics closer than this count as equal
BLOCK = 1 << 16  # labellings treated at once, so that a block of small integers stays in cache
FIRST, SECOND = np.triu_indices(len(VALUES), 1)  # the 45 pairs of values


class Circle(NamedTuple):
    """What a fit is held against: a layout, and the values place by place."""

    layout: str
    order: tuple[str, ...]

    def __str__(self) -> str:
        named = {VALUES: "Schwartz's order", ORDERS["swapped"]: "Schwartz's order, last two swapped"}
        steps = {"equal": "ten equal steps", "wedges": "nine wedges"}[self.layout]
        return f"{named.get(self.order) or 'the order ' + ', '.join(self.order)} on {steps}"


def permutations(n: int) -> np.ndarray:
    """All permutations of 0..n-1 as columns, (n, n!), int8."""
    if n == 0:
        return np.zeros((0, 1), np.int8)
    rest = permutations(n - 1)
    first = np.repeat(np.arange(n, dtype=np.int8), rest.shape[1])
    return np.vstack([first, np.hstack([rest + (rest >= k) for k in range(n)])])


@lru_cache(maxsize=len(LAYOUTS))
def distinct_labellings(layout: str) -> np.ndarray:
    """Place of each value, (10, orders): one of the labellings that symmetries of the layout make equal."""
    # held: which value each place holds.
    if layout == "equal":  # a turn brings value 0 to the front, mirroring puts the lesser neighbour after it
        others = permutations(len(VALUES) - 1) + 1
        others = others[:, others[0] < others[-1]]
        held = np.vstack([np.zeros_like(others[:1]), others])
    else:  # places 6 and 7 share a wedge, mirroring about it swaps 5 and 8
        held = permutations(len(VALUES))
        held = held[:, (held[6] < held[7]) & (held[5] < held[8])]
    places = np.empty_like(held)
    np.put_along_axis(places, held.astype(np.intp), np.arange(10, dtype=np.int8)[:, None], axis=0)
    return places


def pair_steps(circle: Circle, labels: np.ndarray) -> np.ndarray:
    """Step of each pair, (45, n) int8, when the vector of value v bears the name labels[v], (10, n)."""
    table = circular_steps(*circle).astype(np.int8).ravel()
    return np.stack([table[labels[a] * np.int8(10) + labels[b]] for a, b in zip(FIRST, SECOND, strict=True)])


def count_predictions(circle: Circle) -> int:
    counts = np.bincount(circular_steps(*circle)[FIRST, SECOND])
    return int(counts.sum() ** 2 - (counts**2).sum()) // 2


def correspondence(similarity: np.ndarray, circle: Circle, labels: np.ndarray) -> np.ndarray:
    """(agreements - disagreements) / predictions, over all predictions "a nearer pair is more similar".

    One pass over the pairs, most similar first. lead[k] is how many of the pairs passed lie nearer than step
    k minus how many lie farther: what a pair at step k adds to the score. Pairs of equal similarity are
    scored before any of them is passed. (Products of sign matrices give the same at four times the cost.)
    """
    pairs, steps = similarity[FIRST, SECOND], pair_steps(circle, labels)
    at = np.arange(steps.max() + 1, dtype=np.int8)[:, None]
    lead, score = np.zeros((len(at), steps.shape[1]), np.int8), np.zeros(steps.shape[1], np.int32)
    descending = np.argsort(-pairs)
    for tied in np.split(descending, np.flatnonzero(np.diff(-pairs[descending]) > TIE) + 1):
        for pair in tied:
            score += ((at == steps[pair]) * lead).sum(0, dtype=np.int8)
        for pair in tied:
            lead += np.sign(at - steps[pair])
    return score / count_predictions(circle)


def correlation(similarity: np.ndarray, circle: Circle, labels: np.ndarray, scale: Callable) -> np.ndarray:
    """Correlation over the 45 pairs of scale(similarity) with scale(closeness), cos(angle between)."""

    def standard(x: np.ndarray) -> np.ndarray:
        x = scale(np.round(x, 9))
        return (x - x.mean()) / max(np.linalg.norm(x - x.mean()), TIE)

    steps = circular_steps(*circle)[FIRST, SECOND]
    closeness = np.zeros(steps.max() + 1)
    closeness[steps] = standard(np.cos(2 * np.pi * steps / (LAYOUTS[circle.layout][-1] + 1)))
    return standard(similarity[FIRST, SECOND]) @ closeness[pair_steps(circle, labels)]


def principal_plane(similarity: np.ndarray) -> np.ndarray:
    """x + iy on the first two principal axes (classical MDS of sqrt(2 - 2 similarity)), (…, 10), mean 0."""
    centre = np.eye(len(VALUES)) - 1 / len(VALUES)
    roots, axes = np.linalg.eigh(centre @ similarity @ centre)
    scaled = axes[..., -2:] * np.sqrt(np.clip(roots[..., None, -2:], 0, None))
    return scaled[..., 1] + 1j * scaled[..., 0]


def procrustes(similarity: np.ndarray, circle: Circle, labels: np.ndarray) -> np.ndarray:
    """1 - disparity after the best shift, turn, mirroring and scale (in complex numbers, a factor)."""
    plane, ideal = principal_plane(similarity), np.exp(1j * angles(*circle))
    ideal = ideal - ideal.mean()
    turned, mirrored = (abs(np.einsum("v,vl->l", way, ideal[labels])) for way in (plane.conj(), plane))
    return np.maximum(turned, mirrored) ** 2 / ((abs(plane) ** 2).sum() * (abs(ideal) ** 2).sum())


STATISTICS: dict[str, Callable] = {
    "ci": correspondence,
    "spearman": lambda *given: correlation(*given, scale=rankdata),
    "pearson": lambda *given: correlation(*given, scale=np.asarray),
    "procrustes_r2": procrustes,
}


def compute_statistic(statistic: str, similarity: np.ndarray, circle: Circle) -> float:
    return float(STATISTICS[statistic](similarity, circle, np.arange(10, dtype=np.int8)[:, None])[0])


def null_distribution(statistic: str, similarity: np.ndarray, circles: Sequence[Circle]) -> np.ndarray:
    """The statistic under every labelling; of several circles the largest, so that the choice is inside."""
    if len(circles) == 1:  # the set of orders is the same whichever of them is asked about
        circles, labels = [Circle(circles[0].layout, VALUES)], distinct_labellings(circles[0].layout)
    else:  # what is a symmetry of one circle is none of another
        labels = permutations(len(VALUES))
    blocks = (labels[:, at : at + BLOCK] for at in range(0, labels.shape[1], BLOCK))
    compute = STATISTICS[statistic]
    best = [np.max([compute(similarity, c, block) for c in circles], axis=0) for block in blocks]
    return np.concatenate(best)


def share_at_least(null: np.ndarray, observed: float) -> float:
    return float((null >= observed - TIE).mean())


def roundness(similarity: np.ndarray) -> dict[str, np.ndarray]:
    """How round the plane is, whatever the labels, over (…, 10, 10); each smaller the rounder."""
    plane = principal_plane(similarity)
    radius, angle = abs(plane), np.sort(np.angle(plane), axis=-1)
    gaps = np.diff(angle, axis=-1, append=angle[..., :1] + 2 * np.pi)
    drawn = abs(plane[..., FIRST] - plane[..., SECOND])
    wanted = np.sqrt(np.clip(2 - 2 * similarity[..., FIRST, SECOND], 0, None))
    explained = (drawn * wanted).sum(-1) ** 2 / ((drawn**2).sum(-1) * (wanted**2).sum(-1))
    stress = np.sqrt(np.clip(1 - explained, 0, None))
    return {"fisher": radius.std(-1) / radius.mean(-1), "gap": gaps.var(-1), "stress": stress}
