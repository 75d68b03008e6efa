"""Two geometries beside each other: two models, two methods, a model and people, a model and words alone."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from ..errors import WorkbenchError
from .labellings import (
    EXACT,
    STATISTICS,
    TITLES,
    blocks,
    compute_statistic,
    matrix_correlation,
    pairs_of,
    permutations,
    principal_plane,
    procrustes,
    random_labellings,
    ranks,
    share_at_least,
)
from .resampling import LOWEST, reflected, resampled_statistics
from .similarity import checked_matrix

if TYPE_CHECKING:
    from .fit import CircumplexFit

MONTE_CARLO = 99_999


@dataclass(frozen=True, repr=False, eq=False)
class Comparison:
    """One fit against another, or against a matrix. Made by `CircumplexFit.compare`; each test runs on first access.

    congruence: Tucker's, of the similarities of different values: sum ab / sqrt(sum a² sum b²), blind to a common
    scale but not to a common mean. pearson, spearman: of the same (Mantel). procrustes_r2: of the two principal planes.
    Every p is one-sided, over all n! labellings of one of the two up to ten values, over 99,999 random ones of more.
    differences: index ci, spearman, pearson, procrustes_r2; columns this, that, difference, and low, high (reflected
    95 %), which are NaN unless both were fitted again on the same resampled pairs of texts. Both on this one's circle.
    """

    this: "CircumplexFit"
    that: "CircumplexFit"

    @cached_property
    def congruence(self) -> float:
        a, b = (pairs_of(fit.similarity.values) for fit in (self.this, self.that))
        return float(a @ b / math.sqrt((a @ a) * (b @ b)))

    @cached_property
    def tests(self) -> pd.DataFrame:
        """Index pearson, spearman, procrustes_r2; columns value, p."""
        a, b = (fit.similarity.values for fit in (self.this, self.that))
        (plane,), (target,) = principal_plane(a[None]), principal_plane(b[None])
        labels = permutations(n) if (n := len(a)) <= EXACT else random_labellings(n, MONTE_CARLO, self.this.seed)

        def all_of(labels: np.ndarray) -> np.ndarray:
            return np.stack([matrix_correlation(a[None], b, labels, np.asarray)[0],
                             matrix_correlation(a[None], b, labels, ranks)[0],
                             procrustes(plane[None], target, labels)[0]])

        observed, null = all_of(np.arange(n)[:, None])[:, 0], np.concatenate([*map(all_of, blocks(labels))], axis=1)
        p = [share_at_least(row, value) for row, value in zip(null, observed, strict=True)]
        return pd.DataFrame({"value": observed, "p": p}, ["pearson", "spearman", "procrustes_r2"])

    @property
    def pearson(self) -> float:
        return float(self.tests.loc["pearson", "value"])  # type: ignore[arg-type]

    @property
    def spearman(self) -> float:
        return float(self.tests.loc["spearman", "value"])  # type: ignore[arg-type]

    @property
    def procrustes_r2(self) -> float:
        return float(self.tests.loc["procrustes_r2", "value"])  # type: ignore[arg-type]

    @cached_property
    def paired(self) -> bool:
        """Were both fitted again on the same resampled pairs of texts?"""
        draws = [getattr(fit.resampled, "draws", None) for fit in (self.this, self.that)]
        return draws[0] is not None and draws[0] == draws[1]

    @cached_property
    def differences(self) -> pd.DataFrame:
        fits, circle = (self.this, self.that), self.this.circle
        this, that = (np.array([compute_statistic(key, fit.similarity.values, circle) for key in STATISTICS])
                      for fit in fits)
        ends = np.full((2, len(this)), math.nan)
        if self.paired:
            one, two = (resampled_statistics(fit.matrices, circle).to_numpy() for fit in fits)  # type: ignore[arg-type]
            most = 1 - np.array([*LOWEST.values()])
            ends = reflected(this - that, one - two, -most, most)
        return pd.DataFrame({"this": this, "that": that, "difference": this - that, "low": ends[0], "high": ends[1]},
                            index=[*STATISTICS])

    def table(self) -> pd.DataFrame:
        """Agreement (value, p, null), then the differences of the fits (value, low, high), by statistic."""
        tests, n = self.tests, len(self.this.circle.names)
        null = f"{math.factorial(n):,} labellings" if n <= EXACT else f"{MONTE_CARLO + 1:,} labellings (Monte Carlo)"
        agreement = {"Tucker congruence": (self.congruence, math.nan, "none"),
                     **{f"{name} of the similarities (Mantel)": (*tests.loc[name.lower()], null)
                        for name in ("Pearson", "Spearman")},
                     "Procrustes R² of the planes": (*tests.loc["procrustes_r2"], null)}
        rows = pd.DataFrame.from_dict(agreement, orient="index", columns=["value", "p", "null"])
        apart = self.differences.rename(columns={"difference": "value"})[["value", "low", "high"]]
        apart.index = [f"difference of {TITLES[key]}" for key in apart.index]
        return pd.concat([rows, apart]).rename_axis("statistic").reset_index()[
            ["statistic", "value", "low", "high", "p", "null"]]

    def claim(self, alpha: float = 0.05) -> str:
        """What the comparison supports, and no more."""
        row, (a, b) = self.differences.loc["ci"].to_dict(), self.names
        p = float(self.tests.loc["spearman", "p"])  # type: ignore[arg-type]
        how = "exact" if len(self.this.circle.names) <= EXACT else "Monte Carlo"
        alike = "alike beyond" if p <= alpha else "no more alike than"
        first = (f"{a} and {b} order their similarities {alike} chance: "
                 f"Spearman {self.spearman:.2f}, {how} Mantel p = {p:.2g}, "
                 f"Tucker congruence {self.congruence:.2f}")
        told = f"The correspondence index is {row['this']:.2f} against {row['that']:.2f}"
        if not self.paired:
            return f"{first}. {told}; without common resamples the difference has no interval."
        clear = row["low"] > 0 or row["high"] < 0
        return (f"{first}. {told}, a difference of {row['difference']:.2f} [{row['low']:.2f}, {row['high']:.2f}]: "
                f"{'it excludes 0' if clear else 'it may be nothing'}.")

    @property
    def names(self) -> tuple[str, str]:
        one, two = (fit.source or str(fit.similarity.name) for fit in (self.this, self.that))
        return (one, two) if one != two else (f"{one} (first)", f"{two} (second)")

    def __repr__(self) -> str:
        return f"Comparison({' | '.join(self.names)}: congruence {self.congruence:.3f})"


def compare(fit: "CircumplexFit", other: Any) -> Comparison:
    if isinstance(other, xr.DataArray) and "other" in other.dims:
        other = type(fit)(checked_matrix(other, fit.circle.names), fit.circle, (fit.circle,))
    if not isinstance(other, type(fit)) or other.circle.names != fit.circle.names:
        names = ", ".join(other.circle.names) if isinstance(other, type(fit)) else type(other).__name__
        raise WorkbenchError("Two geometries were to be compared.", found=names,
                             allowed=f"another fit, or a matrix (value, other), of {', '.join(fit.circle.names)}")
    return Comparison(fit, other)


def beyond_words(fit: "CircumplexFit", words: "CircumplexFit", alpha: float = 0.05) -> str:
    """The sentence on "circular beyond words": it may be said only where the interval of the difference excludes 0."""
    comparison = compare(fit, words)
    row, what = comparison.differences.loc["ci"].to_dict(), fit.source or f"the {fit.similarity.name}s"
    told = f"correspondence index {row['this']:.2f} against {row['that']:.2f} of {comparison.names[1]}"
    if fit.p > alpha:
        return f"By {what} no circular order can be claimed (p = {fit.p:.2g}), so nothing beyond words: {told}."
    if not comparison.paired:
        return (f"By {what} it cannot be said whether the order is circular beyond words: {told}, and no interval of "
                "the difference (both need resamples of the same pairs of texts).")
    interval = f"difference {row['difference']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    if row["low"] > 0:
        return f"By {what} the order is circular beyond words: {told}, {interval}."
    return f"By {what} it cannot be said that the order is circular beyond words: {told}, {interval}."
