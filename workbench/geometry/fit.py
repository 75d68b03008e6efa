"""The result of `circumplex_fit`: every statistic of a circular order, with its null, raw and centred."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from ..errors import WorkbenchError
from ..values import ORDERS, ORDERS19, VALUES, VALUES19
from .comparison import Comparison, beyond_words, compare
from .labellings import (
    EXACT,
    STATISTICS,
    TIE,
    TITLES,
    Circle,
    compute_statistic,
    count_predictions,
    null_distribution,
    pairs_of,
    roundness,
    share_at_least,
)
from .maps import Scaling, Silhouettes, group_silhouettes, row_profiles, scaling
from .resampling import LOWEST, contributions, ellipses, reflected, resampled_statistics
from .similarity import random_shape

if TYPE_CHECKING:
    from ..probes.pairs import Resampled


def _tested(statistic: str) -> tuple[cached_property[float], cached_property[float]]:
    """Two attributes: the statistic, and its p over labellings."""

    def observed(fit: "CircumplexFit") -> float:
        return float(compute_statistic(statistic, fit.similarity.values, fit.circle))

    def p(fit: "CircumplexFit") -> float:
        return share_at_least(fit.null if statistic == "ci" else fit.null_of(statistic), getattr(fit, statistic))

    return cached_property(observed), cached_property(p)


@dataclass(frozen=True, repr=False, eq=False)
class CircumplexFit:
    """How well values keep a circular order. Made by `circumplex_fit`; each test runs on first access.

    similarity: the matrix tested, dims (value, other): centred cosines, or the matrix that was given.
    circle: layout and order it is held against: the best of `candidates` by correspondence index.
    raw: raw cosines against the same circle; None where a matrix was given.
    d_model: dimensions of the vectors; None where a matrix was given.
    matrices: the similarities of every resample, (resample, n, n), and mirrored: of every resample's inner products
        mirrored about those observed, free of bias; None without `bootstrap`.
    reliability: mean cosine of each vector between random halves of its pairs (index value; columns centred, raw), and
        resampled: the resamples themselves, both None unless a `Resampled` stands behind the bootstrap.
    source: model, method, layer and how it was chosen, as far as known.
    labellings, seed: Monte Carlo labellings where there are too many to enumerate.

    ci, p: correspondence index, -1 to 1: (predictions met - violated) / all; a tie is neither.
    spearman, spearman_p, pearson, pearson_p: the similarities against cos(angle between) on the circle.
    procrustes_r2, procrustes_p: of the first two principal axes on the ideal circle; above 0 also by chance.
    Every p is one-sided: the share of labellings that do as well, all of them up to ten values (`exact`), else
    (1 + count) / (1 + labellings). (Pairs share values: a parametric p over 45 pairs would be wrong.) fisher, gap and
    stress, blind to labels, are in `shape`.
    """

    similarity: xr.DataArray
    circle: Circle
    candidates: tuple[Circle, ...]
    raw: "CircumplexFit | None" = None
    d_model: int | None = None
    matrices: np.ndarray | None = None
    mirrored: np.ndarray | None = None
    reliability: pd.DataFrame | None = None
    resampled: "Resampled | None" = None
    source: str = ""
    labellings: int = 19_999
    seed: int = 0

    ci, p = _tested("ci")
    spearman, spearman_p = _tested("spearman")
    pearson, pearson_p = _tested("pearson")
    procrustes_r2, procrustes_p = _tested("procrustes_r2")

    # -- nulls -----------------------------------------------------------------------------------------------

    @property
    def exact(self) -> bool:
        """Are the labellings enumerated, not drawn?"""
        return len(self.circle.names) <= EXACT

    @cached_property
    def null(self) -> np.ndarray:
        """The correspondence index under every labelling (see `exact`), the observed one among them."""
        return self.null_of("ci")

    def null_of(self, statistic: str) -> np.ndarray:
        """The same of "ci", "spearman", "pearson" or "procrustes_r2"."""
        if statistic not in STATISTICS:
            raise WorkbenchError(f"The null of {statistic!r} was asked for.", allowed=", ".join(STATISTICS))
        return null_distribution(statistic, self.similarity.values, self.candidates, self.labellings, self.seed)

    @cached_property
    def shape(self) -> pd.DataFrame:
        """Roundness whatever the labels: index fisher, gap, stress; columns value (small is round) and p.

        Fisher test sd(radius) / mean(radius); gap test, variance of the gaps between sorted angles (rad²);
        Stress-1 of the plane. p: share of 2,000 draws of random vectors as round; NaN for a given matrix.
        """
        values = {name: float(value) for name, value in roundness(self.similarity.values).items()}
        null = random_shape(self.d_model, self.raw is not None, len(self.circle.names)) if self.d_model else {}
        p = {name: (1 + (draws <= values[name]).sum()) / (1 + draws.size) for name, draws in null.items()}
        return pd.DataFrame({"value": values, "p": p or math.nan})

    def silhouettes(self) -> Silhouettes:
        """Do the four higher-order groups hold together? Hedonism, of two groups, is left out, as `null` says."""
        return group_silhouettes(self.similarity.values, self.circle, self.labellings, self.seed)

    def layouts(self) -> pd.DataFrame:
        """Every layout and both orders: layout, order, ci, p (as if named beforehand), p_selected, best.

        p_selected: share of labellings whose best circle does as well; to be quoted for a circle chosen by its fit.
        """
        orders = {VALUES: ORDERS, VALUES19: ORDERS19}.get(self.circle.names, {"as given": self.circle.order})
        kinds = ("equal", "wedges") if self.circle.names == VALUES else ("equal",)
        circles = {(kind, name): Circle(kind, order) for kind in kinds for name, order in orders.items()}
        fits = [replace(self, circle=circle, candidates=(circle,)) for circle in circles.values()]
        table = pd.DataFrame([*circles], columns=["layout", "order"]).assign(ci=[fit.ci for fit in fits])
        largest = replace(self, candidates=tuple(circles.values())).null
        table["p"] = [fit.p for fit in fits]
        table["p_selected"] = [share_at_least(largest, ci) for ci in table["ci"]]
        return table.assign(best=table.index == table["ci"].idxmax())

    # -- intervals -------------------------------------------------------------------------------------------

    @cached_property
    def resamples(self) -> pd.DataFrame | None:
        """Every statistic of each resample, one column each; None without `bootstrap`."""
        return None if self.matrices is None else resampled_statistics(self.matrices, self.circle)

    @cached_property
    def intervals(self) -> pd.DataFrame | None:
        """Index ci, spearman, pearson, procrustes_r2; columns statistic (title), estimate, low, high (reflected)."""
        if self.resamples is None:
            return None
        estimates = np.array([getattr(self, key) for key in STATISTICS])
        low, high = reflected(estimates, self.resamples.to_numpy(), [*LOWEST.values()])
        return pd.DataFrame({"statistic": [TITLES[key] for key in STATISTICS], "estimate": estimates, "low": low,
                             "high": high}, index=[*STATISTICS])

    @cached_property
    def similarity_intervals(self) -> xr.DataArray | None:
        """95 % interval of every similarity, dims (bound, value, other); None without `bootstrap`.

        Reflected in the inner products: what noise takes from a cosine is given back, so that an interval may lie
        beside the similarity seen. Wide where vectors are unreliable.
        """
        if self.mirrored is None:
            return None
        ends = np.quantile(self.mirrored, [0.025, 0.975], axis=0)
        return xr.DataArray(ends, {"bound": ["low", "high"], **self.similarity.coords}, ("bound", "value", "other"))

    @property
    def predictions(self) -> int:
        """Number of order predictions: 800 for ten equal steps, 770 for nine wedges."""
        return count_predictions(self.circle)

    @cached_property
    def by_step(self) -> pd.Series:
        """Mean similarity of the pairs at each circular step."""
        means = self._means_by_step(self.similarity.values)
        return pd.Series(means, self._steps, name=f"mean {self.similarity.name}").rename_axis("step")

    @cached_property
    def step_intervals(self) -> pd.DataFrame | None:
        """Interval of each mean of `by_step`, made as `similarity_intervals`: columns low, high."""
        if self.mirrored is None:
            return None
        ends = np.quantile(self._means_by_step(self.mirrored), [0.025, 0.975], axis=0)
        return pd.DataFrame({"low": ends[0], "high": ends[1]}, self.by_step.index)

    @property
    def _steps(self) -> list[int]:
        return np.unique(pairs_of(self.circle.steps)).tolist()

    def _means_by_step(self, matrices: np.ndarray) -> np.ndarray:
        steps, pairs = pairs_of(self.circle.steps), pairs_of(matrices)
        return np.stack([pairs[..., steps == step].mean(-1) for step in self._steps], axis=-1)

    # -- what does not fit -----------------------------------------------------------------------------------

    def conflicts(self, texts: int = 3) -> pd.DataFrame:
        """Opposed values encoded alike: every pair .8 of half the circle apart or more, most similar first.

        Columns: value, other, step, similarity (centred), low, high (of `similarity_intervals`; NaN without), raw (NaN
        for a given matrix), conflict (low > 0; without bootstrap similarity > 0), and with a `Resampled` texts: of each
        of the two values the `texts` pairs that add most to that cosine, (value, positive, negative, share).
        """
        names, steps = self.circle.names, self.circle.steps
        apart = np.arccos(np.clip(self.circle.closeness, -1, 1)) / math.pi
        intervals, raw = self.similarity_intervals, self.raw
        rows = []
        for a, b in zip(*np.nonzero(np.triu(apart > 0.8 - TIE)), strict=True):
            low, high = (math.nan, math.nan) if intervals is None else intervals.values[:, a, b]
            similarity = float(self.similarity.values[a, b])
            row = {"value": names[a], "other": names[b], "step": int(steps[a, b]), "similarity": similarity,
                   "low": low, "high": high, "raw": math.nan if raw is None else float(raw.similarity.values[a, b]),
                   "conflict": bool((similarity if intervals is None else low) > 0)}
            if self.resampled is not None:
                sides = [contributions(self.resampled, *pair, names).nlargest(texts, "share")
                         for pair in ((names[a], names[b]), (names[b], names[a]))]
                row["texts"] = [*pd.concat(sides).itertuples(index=False, name=None)]
            rows.append(row)
        return pd.DataFrame(rows).sort_values("similarity", ascending=False, ignore_index=True)

    def violations(self) -> pd.DataFrame:
        """The violated order predictions, value by value, worst first: `far` is more similar than `near`.

        Columns: value, near (a pair), near_step, far (a pair), far_step, excess (of similarity). A prediction
        stands under each of its three or four values: drop_duplicates(["near", "far"]) counts it once.
        """
        steps, pairs, names = pairs_of(self.circle.steps), pairs_of(self.similarity.values), self.circle.names
        near, far = np.nonzero((steps[:, None] < steps) & (pairs - pairs[:, None] > TIE))
        first, second = np.triu_indices(len(names), 1)
        name = np.array([f"{names[a]} / {names[b]}" for a, b in zip(first, second, strict=True)])
        table = pd.DataFrame({"near": name[near], "near_step": steps[near], "far": name[far],
                              "far_step": steps[far], "excess": pairs[far] - pairs[near]})
        order = np.argsort(-table["excess"].to_numpy(), kind="stable")
        table, near, far = table.iloc[order], near[order], far[order]
        about = {}
        for index, value in enumerate(names):
            has = (first == index) | (second == index)
            about[value] = table[has[near] | has[far]]
        return pd.concat(about, names=["value"]).reset_index("value").reset_index(drop=True)

    # -- maps ------------------------------------------------------------------------------------------------

    def mds(self, kind: str = "classical", start: str = "classical") -> Scaling:
        """The values in the plane by "classical", "metric" or "nonmetric" MDS, with Stress-1 and Procrustes R² tested.

        start: of the iteration, "classical", or "theory": the ideal ring, whose pull the null then contains.
        """
        centred = self.raw is not None
        return scaling(self.similarity.values, self.circle, kind, start, self.d_model, centred, seed=self.seed)

    def spread(self) -> pd.DataFrame | None:
        """95 % ellipses on the map: value, x, y (as in `planted_axis_map`), cxx, cxy, cyy; None without `bootstrap`.

        The ellipse is all z with (z - (x, y))' C^-1 (z - (x, y)) = 1: the resamples' covariance times 5.99. Each
        resample is turned onto the observed plane first, so that what the plane's own turning adds is not in it.
        """
        if self.matrices is None:
            return None
        return ellipses(self.similarity.values, self.matrices, self.circle)

    def profiles(self) -> pd.DataFrame:
        """Cosine through each value's row of similarities: value, elevation, amplitude, displacement, r2, off.

        off: displacement minus the value's own ideal angle, -pi to pi; 0 where its row peaks at itself.
        """
        return row_profiles(self.similarity.values, self.circle)

    # -- comparing and telling -------------------------------------------------------------------------------

    def compare(self, other: Any) -> Comparison:
        """This fit against another (a model, a method, words alone), or a matrix such as `human_reference()`."""
        return compare(self, other)

    def beyond(self, words: "CircumplexFit", alpha: float = 0.05) -> str:
        """Is the order circular beyond words? A sentence; `words`: the fit of TF-IDF vectors of the same texts."""
        return beyond_words(self, words, alpha)

    def figure(self, **options: Any) -> Any:
        """The map of the values beside the circle: `figures.circle_map` of this fit, with its options."""
        from ..figures import circle_map

        return circle_map(None, self, **options)

    def table(self) -> pd.DataFrame:
        """All statistics: statistic, raw, centred, p, null; with `bootstrap` low, high, raw_low, raw_high.

        p, low and high belong to the centred column (`.raw` has its own p) and to the null named beside it. For a
        matrix, one column, `given`, stands for both.
        """
        groups = self.circle.names in (VALUES, VALUES19)
        table = pd.DataFrame({"statistic": [*TITLES.values()][: 8 if groups else 7]})
        for name, fit in {"raw": self.raw, "centred": self}.items() if self.raw else [("given", self)]:
            table[name] = [*(getattr(fit, key) for key in STATISTICS), *fit.shape["value"],
                           *([fit.silhouettes().mean] if groups else [])]
        table["p"] = [self.p, self.spearman_p, self.pearson_p, self.procrustes_p, *self.shape["p"],
                      *([self.silhouettes().p] if groups else [])]
        table["null"] = [self._orders] * 4 + ["2,000 random draws" if self.d_model else "none"] * 3 + (
            [self.silhouettes().null] if groups else [])
        for prefix, fit in (("", self), ("raw_", self.raw)):
            if fit is not None and fit.intervals is not None:
                ends = fit.intervals.set_index("statistic")[["low", "high"]].add_prefix(prefix)
                table = table.join(ends, on="statistic")
        return table

    def claim(self, alpha: float = 0.05) -> str:
        """What the test supports, and no more: of one sentence, and one more where vectors are unreliable."""
        found = f"correspondence index {self.ci:.2f}"
        if self.intervals is not None:
            found += " [{low:.2f}, {high:.2f}]".format(**self.intervals.loc["ci"])
        found += f", {'exact' if self.exact else 'Monte Carlo'} p = {self.p:.2g} over "
        found += self._orders.removesuffix(" (Monte Carlo)")
        if len(self.candidates) > 1:
            found += f", the best of {len(self.candidates)} circles with that choice inside the null"
        half = math.inf if self.reliability is None else float(self.reliability["centred"].median())
        found += f", median split-half cosine {half:.2f}" if half < math.inf else ""
        what = f"{self.similarity.name}{f' ({self.source})' if self.source else ''}"
        warning = "" if half >= 0.5 else (" The vectors are unreliable: half of the pairs of texts gives other "
                                          "directions than the other half, and intervals are rough.")
        if self.p > alpha:
            return f"By {what} no circular order can be claimed: {self.circle} has {found}.{warning}"
        count = {10: "ten", 19: "nineteen"}.get(n := len(self.circle.names), str(n))
        return (f"By {what} the {count} values are not exchangeable: they keep {self.circle} better than when "
                f"relabelled ({found}); why, it does not say: words alone make circles too.{warning}")

    @property
    def _orders(self) -> str:
        several, n = len(self.candidates) > 1, len(self.circle.names)
        if not self.exact:
            return f"{self.labellings + 1:,} labellings (Monte Carlo)"
        if several:
            return f"{math.factorial(n):,} labellings"
        return "907,200 orders" if self.circle.layout == "wedges" else f"{math.factorial(n - 1) // 2:,} orders"

    def __repr__(self) -> str:
        return f"CircumplexFit(ci={self.ci:.3f}, p={self.p:.2g}: {self.similarity.name}, {self.circle})"
