"""Do value vectors lie on Schwartz's circle? Circumplex statistics with exact nulls.

Everything starts from one 10 x 10 matrix of cosines, centred by default: the mean of the value vectors is
subtracted first, as people are centred on their own mean before their ratings are correlated. The null
permutes the ten labels and is enumerated, not sampled: 10!/20 = 181,440 distinct orders of ten equal steps,
10!/4 = 907,200 of nine wedges, 10! = 3,628,800 labellings where the better of several circles is chosen. It
says "not exchangeable" and nothing about why: words alone make circles too, so a lexical reference belongs
beside every fit.

Sources: correspondence index, Hubert and Arabie 1987, Tracey 1997 (RTHOR); Fisher and gap test, Acton and
Revelle 2004; classical MDS, Torgerson 1952; label permutation of a matrix correlation, Mantel 1967.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from ..errors import WorkbenchError
from ..values import VALUES, Order, angles, check_value, circular_order, circular_steps
from .labellings import (
    FIRST,
    SECOND,
    STATISTICS,
    TIE,
    Circle,
    compute_statistic,
    count_predictions,
    null_distribution,
    principal_plane,
    roundness,
    share_at_least,
)

HUMAN_REFERENCES = ("pvq40", "pvq40-ipsatised", "svs")

_NAMES = np.array(VALUES)


# --- Similarities ---


def cosines(vectors: Any, centred: bool = True) -> xr.DataArray:
    """Cosine similarity of every two value vectors, dims (value, other), in the order of `VALUES`.

    vectors: (10, d_model) array in the order of `VALUES`, or a DataArray whose `value` names them.
    centred: subtract the mean of the ten vectors first. Where the centred norms are equal, this forces the
        mean off-diagonal cosine to -1/9: negative centred cosines alone prove nothing.

    Raises WorkbenchError: other shape, unknown or missing value, NaN or infinity, a vector without direction.
    """
    return _labelled(_cosines(_checked(vectors), centred), f"{'centred' if centred else 'raw'} cosine")


def human_reference(name: str = "pvq40-ipsatised") -> xr.DataArray:
    """Correlations of the ten values among people, dims (value, other), to show a model's geometry beside.

    name: "pvq40" (151 US adults, raw), "pvq40-ipsatised" (each person centred), "svs" (327 UK respondents,
    each centred). Computed from data of the R package smacof (Borg, Bardi and Schwartz 2017).
    """
    from ..prompts import data_path

    check_value(name, HUMAN_REFERENCES, kind="human reference")
    table = pd.read_csv(data_path("human", f"{name}.csv"), index_col="value")
    return _labelled(table.loc[list(VALUES), list(VALUES)].to_numpy(), f"correlation among people ({name})")


def _labelled(matrix: np.ndarray, name: str) -> xr.DataArray:
    return xr.DataArray(matrix, {"value": list(VALUES), "other": list(VALUES)}, ("value", "other"), name)


def _cosines(vectors: np.ndarray, centred: bool) -> np.ndarray:
    """Cosines of (…, 10, d) vectors over the last two axes."""
    lengths = np.linalg.norm(vectors, axis=-1)
    if centred:
        vectors = vectors - vectors.mean(-2, keepdims=True)
    norms = np.linalg.norm(vectors, axis=-1)
    # Below this share of the longest vector what centring leaves is rounding error, in float32 too.
    lost = norms <= (1e-6 * lengths.max(-1, keepdims=True) if centred else 0)
    if lost.any():
        what = "equal to the mean of all, so that centring leaves nothing" if centred else "of length 0"
        raise WorkbenchError("Cosines of value vectors were asked for.", found=f"{_list(lost)}: {what}",
                             allowed="ten vectors that differ from zero and from their mean")
    unit = vectors / norms[..., None]
    return np.clip(unit @ unit.swapaxes(-1, -2), -1, 1)


def _list(which: np.ndarray) -> str:
    """Names of the values marked along the last axis of (…, 10)."""
    return ", ".join(_NAMES[which.reshape(-1, len(VALUES)).any(0)])


def _checked(vectors: Any, *leading: str, last: str = "d_model") -> np.ndarray:
    """Finite float64 (*leading, 10, d), reordered by name to `VALUES`; WorkbenchError otherwise."""
    asked = "The geometry of value vectors was asked for."
    if isinstance(vectors, pd.DataFrame):  # its names would be lost, and a correlation table read as vectors
        raise WorkbenchError(asked, found="a DataFrame", allowed="a DataArray, or a plain array")
    if isinstance(vectors, xr.DataArray):
        dims = (*leading, "value", last)
        if sorted(map(str, vectors.dims)) != sorted(dims) or "value" not in vectors.coords:
            raise WorkbenchError(asked, found=f"dims {vectors.dims}, coordinates {(*vectors.coords,)}",
                                 allowed=f"dims {dims}, with the names of the values along `value`")
        names = [check_value(str(name)) for name in vectors["value"].values]
        if sorted(names) != sorted(VALUES):
            missing = ", ".join(value for value in VALUES if value not in names)
            raise WorkbenchError(asked, allowed="each of the ten values once",
                                 found=f"no vector of {missing}" if missing else "a value named twice")
        vectors = vectors.sel(value=list(VALUES)).transpose(*dims)
    array = np.asarray(vectors, dtype=np.float64)
    if array.ndim != len(leading) + 2 or array.shape[-2] != len(VALUES) or not array.size:
        raise WorkbenchError(asked, found=f"an array of shape {array.shape}",
                             allowed=f"({', '.join((*leading, '10', last))}), in the order of VALUES")
    if (bad := np.asarray(np.any(~np.isfinite(array), axis=-1))).any():
        raise WorkbenchError(asked, found=f"NaN or infinity in {_list(bad)}", allowed="finite numbers")
    return array


def _checked_matrix(matrix: xr.DataArray) -> xr.DataArray:
    """A (value, other) similarity matrix in the order of `VALUES`."""
    array = _checked(matrix, last="other")
    others = [str(name) for name in matrix["other"].values] if "other" in matrix.coords else []
    if sorted(others) == sorted(VALUES):
        array = array[:, [others.index(value) for value in VALUES]]
        if np.allclose(array, array.T, atol=1e-6):
            return _labelled(array, str(matrix.name or "similarity"))
    raise WorkbenchError("The geometry of a similarity matrix was asked for.",
                         found="no symmetry" if len(others) == len(VALUES) else f"along `other`: {others}",
                         allowed="a symmetric matrix with the ten values along `value` and `other`")


@lru_cache(maxsize=64)
def _random_shape(d_model: int, centred: bool) -> dict[str, np.ndarray]:
    """`roundness` of 2,000 draws of ten isotropic Gaussian vectors."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2000, 10, min(d_model, 10)))
    if d_model > 10:  # Bartlett: but for a turn, ten such vectors are the rows of this triangle
        vectors = np.tril(vectors, -1)
        vectors[:, range(10), range(10)] = np.sqrt(rng.chisquare(d_model - np.arange(10), size=(2000, 10)))
    return roundness(_cosines(vectors, centred))


# --- The fit ---

_TITLES = {
    "ci": "correspondence index",
    "spearman": "Spearman with closeness",
    "pearson": "Pearson with closeness",
    "procrustes_r2": "Procrustes R²",
    "fisher": "Fisher: sd / mean of radius",
    "gap": "gap: variance of angle gaps",
    "stress": "Stress-1 in the plane",
}


def _tested(statistic: str) -> tuple[cached_property[float], cached_property[float]]:
    """Two attributes: the statistic, and its exact p over all labellings."""

    def observed(fit: "CircumplexFit") -> float:
        return compute_statistic(statistic, fit.similarity.values, fit.circle)

    def p(fit: "CircumplexFit") -> float:
        ready = fit.null if statistic == "ci" else null_distribution(statistic, fit.similarity.values, fit.candidates)
        return share_at_least(ready, getattr(fit, statistic))

    return cached_property(observed), cached_property(p)


@dataclass(frozen=True, repr=False, eq=False)
class CircumplexFit:
    """How well ten values keep a circular order. Made by `circumplex_fit`; each test runs on first access.

    similarity: the matrix tested, dims (value, other): centred cosines, or the matrix that was given.
    circle: layout and order it is held against: the best of `candidates` by correspondence index.
    raw: raw cosines against the same circle; None where a matrix was given.
    d_model: dimensions of the vectors; None where a matrix was given.
    intervals: statistic, estimate, low, high (reflected, 95 %); None without `bootstrap`.

    ci, p: correspondence index, -1 to 1: (predictions met - violated) / all; a tie is neither.
    spearman, spearman_p, pearson, pearson_p: the 45 similarities against cos(angle between) on the circle.
    procrustes_r2, procrustes_p: of the first two principal axes on the ideal circle; above 0 also by chance.
    Every p is exact, one-sided: the share of all labellings that do as well. (Pairs share values: a
    parametric p over 45 pairs would be wrong.) fisher, gap and stress, blind to labels, are in `shape`.
    """

    similarity: xr.DataArray
    circle: Circle
    candidates: tuple[Circle, ...]
    raw: "CircumplexFit | None" = None
    d_model: int | None = None
    intervals: pd.DataFrame | None = None

    ci, p = _tested("ci")
    spearman, spearman_p = _tested("spearman")
    pearson, pearson_p = _tested("pearson")
    procrustes_r2, procrustes_p = _tested("procrustes_r2")

    @cached_property
    def shape(self) -> pd.DataFrame:
        """Roundness whatever the labels: index fisher, gap, stress; columns value (small is round) and p.

        Fisher test sd(radius) / mean(radius); gap test, variance of the gaps between sorted angles (rad²);
        Stress-1 of the plane. p: share of 2,000 draws of ten random vectors as round; NaN for a given matrix.
        """
        values = {name: float(value) for name, value in roundness(self.similarity.values).items()}
        null = _random_shape(self.d_model, centred=self.raw is not None) if self.d_model else {}
        p = {name: (1 + (draws <= values[name]).sum()) / (1 + draws.size) for name, draws in null.items()}
        return pd.DataFrame({"value": values, "p": p or math.nan})

    @cached_property
    def null(self) -> np.ndarray:
        """The correspondence index under every labelling, the observed one among them."""
        return null_distribution("ci", self.similarity.values, self.candidates)

    @property
    def predictions(self) -> int:
        """Number of order predictions: 800 for ten equal steps, 770 for nine wedges."""
        return count_predictions(self.circle)

    @property
    def by_step(self) -> pd.Series:
        """Mean similarity of the pairs at each circular step."""
        steps, pairs = circular_steps(*self.circle)[FIRST, SECOND], self.similarity.values[FIRST, SECOND]
        means = {int(step): pairs[steps == step].mean() for step in np.unique(steps)}
        return pd.Series(means, name=f"mean {self.similarity.name}").rename_axis("step")

    def conflicts(self) -> pd.DataFrame:
        """The violated order predictions, value by value, worst first: `far` is more similar than `near`.

        Columns: value, near (a pair), near_step, far (a pair), far_step, excess (of similarity). A prediction
        stands under each of its three or four values: drop_duplicates(["near", "far"]) counts it once.
        """
        steps, pairs = circular_steps(*self.circle)[FIRST, SECOND], self.similarity.values[FIRST, SECOND]
        near, far = np.nonzero((steps[:, None] < steps) & (pairs - pairs[:, None] > TIE))
        name = np.array([f"{VALUES[a]} / {VALUES[b]}" for a, b in zip(FIRST, SECOND, strict=True)])
        table = pd.DataFrame({"near": name[near], "near_step": steps[near], "far": name[far],
                              "far_step": steps[far], "excess": pairs[far] - pairs[near]})
        table = table.sort_values("excess", ascending=False)
        about = {value: table[(table["near"] + table["far"]).str.contains(value)] for value in VALUES}
        return pd.concat(about, names=["value"]).reset_index("value").reset_index(drop=True)

    def table(self) -> pd.DataFrame:
        """All statistics: statistic, raw, centred, p, null; and low, high where `bootstrap` was given.

        p belongs to the centred column (`.raw` has its own) and to the null named beside it. For a matrix,
        one column, `given`, stands for both.
        """
        table = pd.DataFrame({"statistic": _TITLES.values()})
        for name, fit in {"raw": self.raw, "centred": self}.items() if self.raw else [("given", self)]:
            table[name] = [*(getattr(fit, key) for key in STATISTICS), *fit.shape["value"]]
        table["p"] = [self.p, self.spearman_p, self.pearson_p, self.procrustes_p, *self.shape["p"]]
        table["null"] = [self._orders] * 4 + ["2,000 random draws" if self.d_model else "none"] * 3
        if self.intervals is None:
            return table
        return table.merge(self.intervals[["statistic", "low", "high"]], how="left", on="statistic")

    def claim(self, alpha: float = 0.05) -> str:
        """The one sentence that the test supports, and no more."""
        found = f"correspondence index {self.ci:.2f}, exact p = {self.p:.2g} over {self._orders}"
        if len(self.candidates) > 1:
            found += f", the best of {len(self.candidates)} circles with that choice inside the null"
        if self.p > alpha:
            return f"By {self.similarity.name} no circular order can be claimed: {self.circle} has {found}."
        return (f"By {self.similarity.name} the ten values are not exchangeable: they keep {self.circle} "
                f"better than when relabelled ({found}); why, it does not say: words alone make circles too.")

    @property
    def _orders(self) -> str:
        if len(self.candidates) > 1:
            return "3,628,800 labellings"
        return {"equal": "181,440 orders", "wedges": "907,200 orders"}[self.circle.layout]

    def __repr__(self) -> str:
        return f"CircumplexFit(ci={self.ci:.3f}, p={self.p:.2g}: {self.similarity.name}, {self.circle})"


def circumplex_fit(vectors: Any, bootstrap: Any = 0, order: Order = None, layout: str = "equal",
                   better_of: Iterable[tuple[str, Order]] = ()) -> CircumplexFit:
    """Hold ten value vectors against a circle: centred, with the raw fit beside it as `.raw`.

    vectors: as for `cosines`; or a similarity matrix (value, other) like `human_reference`'s, used as it is.
    bootstrap: 0, or vectors fitted on resampled pairs of texts, (resample, 10, d_model), for `.intervals`.
        Uncertainty comes from the texts and vectors alone hold none, so a mere number is refused. Intervals
        are reflected: percentile ones hardly ever cover the truth when vectors are unreliable.
    order: None (Schwartz's), "swapped", or a permutation, see `values.circular_order`.
    layout: "equal" (ten steps) or "wedges" (nine; the values in the seventh and eighth place share one, which
        weights that side: centring then bends even a perfect circle a little).
    better_of: further candidates, say [("equal", "swapped"), ("wedges", None)]. The circle with the highest
        correspondence index is kept, and every p is over the best of all of them in each of 10! labellings.

    Raises WorkbenchError as `cosines` does, and for an unknown layout or order.
    """
    asked = [(layout, order), *better_of]
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in asked):
        raise WorkbenchError("The better of several circles was asked for.", found=f"better_of={better_of!r}",
                             allowed='(layout, order) pairs, say better_of=[("equal", "swapped")]')
    candidates = tuple(dict.fromkeys(Circle(layout, circular_order(order)) for layout, order in asked))
    raw, d_model = None, None
    if given := isinstance(vectors, xr.DataArray) and "other" in vectors.dims:
        matrix = _checked_matrix(vectors)
    else:
        array = _checked(vectors)
        d_model, matrix, raw = array.shape[1], cosines(array), cosines(array, centred=False)
    circle = max(candidates, key=lambda candidate: compute_statistic("ci", matrix.values, candidate))
    intervals = None
    if np.ndim(bootstrap) or bootstrap:
        if given or not np.ndim(bootstrap):
            raise WorkbenchError("Bootstrap intervals of a circumplex fit were asked for.",
                                 found="a similarity matrix" if given else f"bootstrap={bootstrap!r}",
                                 allowed="vectors, and beside them resampled ones (resample, 10, d_model)",
                                 do="Resample the pairs of texts, fit the vectors again and pass them all.")
        intervals = _reflected(matrix.values, circle, _cosines(_checked(bootstrap, "resample"), centred=True))
    raw_fit = None if raw is None else CircumplexFit(raw, circle, candidates, d_model=d_model)
    return CircumplexFit(matrix, circle, candidates, raw_fit, d_model, intervals)


def _reflected(similarity: np.ndarray, circle: Circle, resampled: np.ndarray) -> pd.DataFrame:
    """Reflected (basic) 95 % intervals, cut to the range of the statistic."""
    rows = []
    for key in STATISTICS:
        estimate = compute_statistic(key, similarity, circle)
        ends = np.quantile([compute_statistic(key, matrix, circle) for matrix in resampled], [0.975, 0.025])
        low, high = np.clip(2 * estimate - ends, 0 if key == "procrustes_r2" else -1, 1)
        rows.append({"statistic": _TITLES[key], "estimate": estimate, "low": low, "high": high})
    return pd.DataFrame(rows)


def layer_scan(vectors: Any, order: Order = None, layout: str = "equal") -> pd.DataFrame:
    """The centred fit at every layer, and what is left of the best one once it is known to be the best.

    vectors: (layer, 10, d_model) array, or a DataArray with those dims (layer, value, d_model).
    Returns layer, ci, p (as if that layer had been named beforehand), p_selected (share of orders whose best
    layer does as well: to be quoted for a layer chosen by its fit), spearman, best (ties: the later layer).
    """
    matrices = _cosines(_checked(vectors, "layer"), centred=True)
    named = isinstance(vectors, xr.DataArray) and "layer" in vectors.coords
    circle = Circle(layout, circular_order(order))
    table = pd.DataFrame({"layer": vectors["layer"].values if named else range(len(matrices))})
    table["ci"] = [compute_statistic("ci", matrix, circle) for matrix in matrices]
    largest = np.array(-1.0)
    for row, matrix in enumerate(matrices):
        null = null_distribution("ci", matrix, [circle])
        table.loc[row, "p"] = share_at_least(null, compute_statistic("ci", matrix, circle))
        largest = np.maximum(largest, null)
    table["p_selected"] = [share_at_least(largest, ci) for ci in table["ci"]]
    table["spearman"] = [compute_statistic("spearman", matrix, circle) for matrix in matrices]
    return table.assign(best=table.index == max(table.index, key=lambda row: (table["ci"][row], row)))


# --- Profiles and maps ---


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


def planted_axis_map(vectors: Any, order: Order = None, layout: str = "equal") -> pd.DataFrame:
    """The ten values in the plane beside their ideal places: value, x, y, ideal_x, ideal_y.

    vectors: as for `circumplex_fit` (a similarity matrix serves too). The first two principal axes of the
    centred unit vectors, turned and mirrored onto the ideal unit circle by Procrustes and scaled to its size,
    so that a poor fit is not drawn small; how good the fit is, `circumplex_fit(...).procrustes_r2` says.
    """
    fit = circumplex_fit(vectors, order=order, layout=layout)
    plane, ideal = principal_plane(fit.similarity.values), np.exp(1j * angles(*fit.circle))
    spread = ideal - ideal.mean()
    plane = max(plane, plane.conj(), key=lambda way: abs(way.conj() @ spread))
    scale = np.linalg.norm(spread) / np.linalg.norm(plane)
    placed = ideal.mean() + plane * scale * np.exp(1j * np.angle(plane.conj() @ spread))
    return pd.DataFrame({"value": VALUES, "x": np.real(placed), "y": np.imag(placed),
                         "ideal_x": np.real(ideal), "ideal_y": np.imag(ideal)})
