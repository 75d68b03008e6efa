"""Value probes: one linear reader of each value at each layer, and how honestly it reads.

**Rule.** With e the residual stream at a text's last token, logit_V(e) = w.e + b and P_V(e) = sigmoid(w.e +
b).

- `logistic`: w, b minimise |w|^2 / 2 + C sum_i log(1 + exp(-y_i (w.e_i + b))), y = 1 on positives and -1 on
  negatives: scikit-learn's L2 logistic regression (b not penalised) on **raw** residuals. The published
  recipe does not standardise features, and neither does this: coordinates of large variance count for more
  (Jin et al. 2025, C = 1).
- `mean_difference`: w = mean of positives - mean of negatives, raw norm kept, b puts 0 midway (Rimsky et al.
  2024, CAA).

**Honesty.** Accuracy is out of fold: a pair never straddles folds, nor does a text, nor a behaviour where the
pairs name them. Beside it stand TF-IDF on the same folds and V's probe on the other values' pairs
(`transfer`): a probe that reads "affirmed or denied" instead of a value does well on both.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import expit

from ..activations import capture
from ..errors import WorkbenchError
from ..models import Model
from ..values import VALUES, circular_step
from .files import check_fingerprint, load_arrays, save_arrays
from .folds import assign_folds, check_pairs, in_order, pairs_hash
from .linear import (
    area_under_roc,
    cross_validated_difference,
    cross_validated_logistic,
    tfidf_hits,
    wilson,
)

METHODS = ("logistic", "mean_difference")
TAIL = 0.15
"""Share of the last layers that is never chosen: the last five of 32 in Jin et al. 2025."""


@dataclass(frozen=True, eq=False, repr=False)
class Probes:
    """Fitted probes of all values at all layers. Made by `fit_probes`, never changed.

    weight (value, layer, d_model) and bias (value, layer), in units of the raw residual stream.
    accuracy, auroc (value, layer): out of fold; auroc pools the folds' logits. intervals (value, layer,
    bound): Wilson 95 % on accuracy over texts (the two texts of a pair are not quite independent, so it is a
    little narrow).
    tfidf (value): out-of-fold accuracy of words alone (unigrams and bigrams, logistic) on the same folds.
    cross (probe, pairs, layer): accuracy of one value's probe on another's pairs; `transfer` is the door to
    it.
    """

    method: str
    weight: xr.DataArray
    bias: xr.DataArray
    accuracy: xr.DataArray
    auroc: xr.DataArray
    intervals: xr.DataArray
    tfidf: xr.DataArray
    cross: xr.DataArray
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> list[str]:
        return [str(value) for value in self.weight["value"].values]

    @property
    def layers(self) -> list[int]:
        return [int(layer) for layer in self.weight["layer"].values]

    def __repr__(self) -> str:
        best = self.accuracy.mean("value")
        return (
            f"Probes({self.method}, {len(self.values)} values, layers {self.layers[0]}-{self.layers[-1]} of "
            f"{self.provenance.get('model')}: accuracy up to {float(best.max()):.3f} at layer "
            f"{int(best.idxmax('layer'))}, TF-IDF {float(self.tfidf.mean()):.3f})"
        )

    # -- reading ---------------------------------------------------------------------------------------------

    def logit(self, acts: xr.DataArray) -> xr.DataArray:
        """w.e + b for activations with a d_model axis: every value at every layer that `acts` has.

        `acts` needs a `layer` dimension or a scalar `layer` coordinate (as `acts.sel(layer=5)` has).
        """
        if "d_model" not in acts.dims or "layer" not in acts.coords:
            raise WorkbenchError(
                "Logits of activations were asked for.",
                found=f"dimensions {acts.dims}",
                allowed="an array with d_model and layer, as capture returns",
            )
        weight, bias = self._at(np.atleast_1d(acts["layer"].values).tolist())
        if "layer" not in acts.dims:
            weight, bias = weight.isel(layer=0), bias.isel(layer=0)
        return xr.dot(weight, acts.astype(np.float64), dim="d_model").astype(np.float32) + bias

    def probability(self, acts: xr.DataArray) -> xr.DataArray:
        """P_V = sigmoid(w.e + b); see `logit`. Calibrated for `logistic` only."""
        return xr.apply_ufunc(expit, self.logit(acts))

    def vectors(self, layer: int) -> xr.DataArray:
        """Unit value vectors w / |w| at one layer: (value, d_model)."""
        weight, _ = self._at([layer])
        return (weight / self._norm(weight)).isel(layer=0)

    def norms(self, layer: int) -> xr.DataArray:
        """|w| at one layer: (value)."""
        return self._norm(self._at([layer])[0]).isel(layer=0)

    def transfer(self, layer: int) -> xr.DataArray:
        """Accuracy of each value's probe on every value's pairs: (probe, pairs); the diagonal is out of fold."""
        self._at([layer])
        return self.cross.sel(layer=layer)

    def transfer_by_step(self, layer: int) -> pd.DataFrame:
        """`transfer` as a tidy table: probe, pairs, step (0 to 5 round the circle), accuracy. The ten values only."""
        table = self.transfer(layer)
        return pd.DataFrame(
            [
                {
                    "probe": v,
                    "pairs": w,
                    "step": circular_step(v, w),
                    "accuracy": float(table.sel(probe=v, pairs=w)),
                }
                for v in self.values
                for w in self.values
                if v in VALUES and w in VALUES
            ]
        )

    def accuracy_on(self, model: Model, pairs: pd.DataFrame, layer: int) -> xr.DataArray:
        """Accuracy on other pairs, such as held-out behaviours: (value), for the values that `pairs` has."""
        self.check(model)
        pairs = check_pairs(pairs)
        logits = {}
        for column in ("positive", "negative"):
            acts = capture(model, pairs[column].tolist(), layers=[layer])
            logits[column] = self.logit(acts.sel(layer=layer))
        present = in_order(pairs["value"])
        self.check_values(present)
        rates = []
        for value in present:
            rows = np.flatnonzero(pairs["value"] == value)
            positive, negative = (logits[column].sel(value=value).values[rows] for column in logits)
            rates.append(np.mean(np.r_[positive > 0, negative <= 0]))
        return xr.DataArray(rates, dims="value", coords={"value": present, "layer": layer}, name="accuracy")

    # -- choosing --------------------------------------------------------------------------------------------

    def choose_layer(self) -> int:
        """Layer of best mean out-of-fold accuracy; ties go to the later; never in the last 15 % of the model."""
        mean = self._eligible()
        return int(mean["layer"].values[np.flatnonzero(mean.values == mean.values.max())[-1]])

    def choose_layers(self, threshold: float = 0.9) -> list[int]:
        """All layers with mean out-of-fold accuracy above `threshold`, without the last 15 % (Jin et al. 2025)."""
        mean = self._eligible()
        chosen = [int(layer) for layer in mean["layer"].values[mean.values > threshold]]
        if not chosen:
            raise WorkbenchError(
                f"Layers with mean accuracy above {threshold} were asked for.",
                found=f"at best {float(mean.max()):.3f}, at layer {self.choose_layer()}",
                do="Pass layers= or a lower threshold, and look at probes.accuracy first.",
            )
        return chosen

    def _eligible(self) -> xr.DataArray:
        depth = int(self.provenance["n_layers"])
        mean = self.accuracy.mean("value")
        early = mean.where(mean["layer"] < depth - round(TAIL * depth), drop=True)
        if not early.size:
            raise WorkbenchError(
                "A layer was to be chosen.",
                found=f"probes of layers {self.layers} of {depth} only",
                do="Fit probes on earlier layers: the last 15 % are never chosen.",
            )
        return early

    # -- checks, saving --------------------------------------------------------------------------------------

    def check(self, model: Model) -> None:
        """WorkbenchError unless these probes were fitted on this very model."""
        check_fingerprint("Probes", self.provenance, model)

    def check_values(self, values: Iterable[str]) -> None:
        """WorkbenchError for a value without a probe."""
        if unknown := [value for value in values if value not in self.values]:
            raise WorkbenchError(
                f"Probes of {', '.join(map(repr, unknown))} were asked for.",
                found="none was fitted",
                allowed=", ".join(self.values),
            )

    def _at(self, layers: Sequence[int]) -> tuple[xr.DataArray, xr.DataArray]:
        if missing := [layer for layer in layers if layer not in self.layers]:
            raise WorkbenchError(
                f"Probes at layers {missing} were asked for.",
                found="none was fitted there",
                allowed=f"layers {', '.join(map(str, self.layers))}",
            )
        return self.weight.sel(layer=list(layers)), self.bias.sel(layer=list(layers))

    @staticmethod
    def _norm(weight: xr.DataArray) -> xr.DataArray:
        return np.sqrt(xr.dot(weight, weight, dim="d_model"))

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays = {name: getattr(self, name).values for name in _ARRAYS}
        meta = {
            "method": self.method,
            "values": self.values,
            "layers": self.layers,
            "provenance": self.provenance,
        }
        return arrays, meta

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], model: Model | None = None) -> "Probes":
        named = {name: _labelled(name, arrays[name], meta["values"], meta["layers"]) for name in _ARRAYS}
        probes = cls(meta["method"], **named, provenance=dict(meta["provenance"]))
        if model is not None:
            probes.check(model)
        return probes

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, provenance in its header; returns its path."""
        return save_arrays(path, "probes", *self.pack())

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "Probes":
        """Read what `save` wrote; with `model`, refuse probes of another one."""
        return cls.unpack(*load_arrays(path, "probes"), model)


_ARRAYS = {
    "weight": ("value", "layer", "d_model"),
    "bias": ("value", "layer"),
    "accuracy": ("value", "layer"),
    "auroc": ("value", "layer"),
    "intervals": ("value", "layer", "bound"),
    "tfidf": ("value",),
    "cross": ("probe", "pairs", "layer"),
}


def _labelled(name: str, array: np.ndarray, values: Sequence[str], layers: Sequence[int]) -> xr.DataArray:
    coords = {
        "value": list(values),
        "probe": list(values),
        "pairs": list(values),
        "layer": list(layers),
        "bound": ["low", "high"],
    }
    dims = _ARRAYS[name]
    return xr.DataArray(array, dims=dims, coords={dim: coords[dim] for dim in dims if dim in coords}, name=name)


def fit_probes(
    model: Model,
    pairs: pd.DataFrame,
    method: str = "logistic",
    layers: Iterable[int] | None = None,
    folds: int = 5,
    C: float = 1.0,
    seed: int = 0,
    progress: bool = False,
    store: Any = None,
) -> Probes:
    """Fit a probe per value and layer on pairs of texts (columns value, positive, negative).

    method: "logistic" or "mean_difference". layers: block indices, None for all. C: inverse L2 penalty.
    folds, seed: how accuracy is cross-validated; the probes themselves are fitted on all pairs. store: where the
    activations are kept for the next fit (see `capture`). Raises
    WorkbenchError for malformed pairs, unknown methods, and values with too few independent pairs for the
    folds.
    """
    if method not in METHODS:
        raise WorkbenchError(f"Probes by {method!r} were asked for.", allowed=", ".join(map(repr, METHODS)))
    pairs = check_pairs(pairs)
    values = in_order(pairs["value"])
    grouping, fold = assign_folds(pairs, values, folds, seed)

    texts = pd.Index(pd.unique(pairs[["positive", "negative"]].to_numpy().ravel()))
    acts = capture(model, list(map(str, texts)), layers=layers, store=store, progress=progress)
    at = {  # value -> rows of its texts (positives, then negatives), labels, folds
        value: (
            texts.get_indexer(np.r_[own["positive"], own["negative"]]),
            np.r_[np.ones(len(own), bool), np.zeros(len(own), bool)],
            np.tile(fold[own.index.to_numpy()], 2),
        )
        for value, own in pairs.groupby("value", sort=False)
    }
    depth, shape = acts.sizes["layer"], (len(values), acts.sizes["layer"])
    weight, bias = np.zeros((*shape, acts.sizes["d_model"]), np.float32), np.zeros(shape, np.float32)
    accuracy, auroc, bounds = np.zeros(shape), np.zeros(shape), np.zeros((*shape, 2))
    cross = np.zeros((len(values), len(values), depth))
    for j in range(depth):
        X = acts.isel(layer=j).values.astype(np.float64)
        for i, value in enumerate(values):
            rows, y, own = at[value]
            if method == "logistic":
                w, b, held_out = cross_validated_logistic(X[rows], y, own, C)
            else:
                w, b, held_out = cross_validated_difference(X[rows], y, own)
            weight[i, j], bias[i, j] = w, b
            for k, other in enumerate(values):
                rows_k, y_k, _ = at[other]
                cross[i, k, j] = np.mean((X[rows_k] @ w + b > 0) == y_k)
            cross[i, i, j] = accuracy[i, j] = np.mean((held_out > 0) == y)
            auroc[i, j], bounds[i, j] = area_under_roc(held_out, y), wilson((held_out > 0) == y)
    tfidf = np.array([tfidf_hits(list(map(str, texts[at[v][0]])), at[v][1], at[v][2]).mean() for v in values])
    provenance = {
        **acts.attrs,
        "n_layers": model.n_layers,
        "method": method,
        "C": C,
        "folds": folds,
        "seed": seed,
        "folds_by": grouping,
        "pairs": pairs_hash(pairs),
        "n_pairs": pairs["value"].value_counts().to_dict(),
        "scikit-learn": version("scikit-learn"),
    }
    arrays = dict(zip(_ARRAYS, (weight, bias, accuracy, auroc, bounds, tfidf, cross), strict=True))
    coords = [int(layer) for layer in acts["layer"].values]
    return Probes(method, **{n: _labelled(n, a, values, coords) for n, a in arrays.items()}, provenance=provenance)
