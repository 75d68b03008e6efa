"""What resampled pairs of texts say of a fit: intervals, reliability, ellipses, and the texts behind a similarity.

Intervals of statistics are reflected (basic bootstrap, 2 estimate - quantile): percentile ones hardly ever cover the
truth when vectors are unreliable, since noise bends every resample away from the circle once more. Those of single
similarities are reflected in the inner products (`similarity.resampled_matrices`). benchmarks/geometry.py: coverage.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .labellings import STATISTICS, Circle, compute_statistic, principal_plane
from .maps import align
from .similarity import checked

if TYPE_CHECKING:
    from ..probes.pairs import Resampled

ELLIPSE = 5.991464547107979  # 95 % point of chi-square with two degrees of freedom
LOWEST = {"ci": -1, "spearman": -1, "pearson": -1, "procrustes_r2": 0}


def reflected(estimate: Any, resamples: np.ndarray, lowest: Any = -1, highest: Any = 1) -> np.ndarray:
    """Reflected 95 % interval over the first axis of (resample, …), cut to the range of the statistic: (2, …)."""
    ends = np.quantile(resamples, [0.975, 0.025], axis=0)
    return np.clip(2 * np.asarray(estimate) - ends, lowest, highest)


def resampled_statistics(matrices: np.ndarray, circle: Circle) -> pd.DataFrame:
    """Every statistic of each resample (resample, n, n): one column each."""
    return pd.DataFrame({name: compute_statistic(name, matrices, circle) for name in STATISTICS})


def split_half(halves: Any, names: Sequence[str]) -> pd.DataFrame:
    """Mean cosine of each vector between the two halves of a split: index value, columns centred and raw."""
    one, two = (checked(halves[half], names, "split") for half in (0, 1))

    def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        return ((a * b).sum(-1) / np.maximum(lengths, np.finfo(float).tiny)).mean(0)

    centred = cosine(*(half - half.mean(-2, keepdims=True) for half in (one, two)))
    return pd.DataFrame({"centred": centred, "raw": cosine(one, two)}, pd.Index(names, name="value"))


def contributions(resampled: "Resampled", a: str, b: str, names: Sequence[str]) -> pd.DataFrame:
    """How much each pair of texts of value `a` adds to the centred cosine of a with b: positive, negative, share.

    (d_i - m) . c_b / (n_a |c_a| |c_b|), with d_i the pair's difference, m the mean over the values of their mean
    differences, c_a = mean of a's d - m, c_b the centred vector of b. For mean differences the shares sum to that
    cosine; for other methods to the cosine of a's mean difference with b's vector.
    """
    differences, vectors = resampled.differences, checked(resampled.vectors, names)
    X, of = np.asarray(differences.values, float), differences["value"].values.astype(str)
    centre = np.mean([X[of == name].mean(0) for name in names], axis=0)
    own, other = X[of == a] - centre, vectors[names.index(b)] - vectors.mean(0)
    share = own @ other / (len(own) * np.linalg.norm(own.mean(0)) * np.linalg.norm(other))
    texts = {side: differences[side].values[of == a].astype(str) for side in ("positive", "negative")}
    return pd.DataFrame({"value": a, **texts, "share": share})


def ellipses(similarity: np.ndarray, matrices: np.ndarray, circle: Circle) -> pd.DataFrame:
    """Places of the values on the map, and the 95 % ellipse of each over the resamples."""
    ideal = np.exp(1j * circle.angles)
    observed = align(principal_plane(similarity), ideal)
    placed = align(principal_plane(matrices), observed)
    off = np.stack([np.real(placed), np.imag(placed)], axis=-1)
    off = off - off.mean(0)
    spread = np.einsum("rvi,rvj->vij", off, off) / (len(off) - 1) * ELLIPSE
    return pd.DataFrame({"value": circle.names, "x": np.real(observed), "y": np.imag(observed), "cxx": spread[:, 0, 0],
                         "cxy": spread[:, 0, 1], "cyy": spread[:, 1, 1]})
