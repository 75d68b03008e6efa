"""Probes as they are once fitted: how well they read, what they read, which layers to take, files of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import expit

from ..activations import capture
from ..errors import WorkbenchError
from ..models import Model
from ..rates import wilson
from ..values import VALUES, circular_step
from .files import check_fingerprint, load_arrays, save_arrays
from .folds import check_pairs, in_order
from .scores import area_under_roc, auroc_interval, brier, calibration_error, pair_correlation

if TYPE_CHECKING:
    from .pairs import PairActivations

RULES = ("published", "cross-fitted")
TAIL = 0.15
"""Share of the last layers that is never chosen: the last five of 32 in Jin et al. 2025."""


@dataclass(frozen=True, eq=False, repr=False)
class Probes:
    """Fitted probes of all values at all layers. Made by `fit_probes`, never changed.

    weight (value, layer, d_model) and bias (value, layer), in units of the raw residual stream.
    examples: one row per text of each value: value, pair, positive, fold, text. held_out (layer, example): the logit
    of each from the fit that did not see its fold; `accuracy`, `auroc`, `brier` and `calibration_error` come from it.
    tfidf (value): out-of-fold accuracy of words alone (unigrams and bigrams, logistic) on the same folds.
    activations: what they were fitted on, for refits and resamples; None where they were read from a file, which
    then holds `transferred`, what `cross` is.
    """

    method: str
    weight: xr.DataArray
    bias: xr.DataArray
    held_out: xr.DataArray
    tfidf: xr.DataArray
    examples: pd.DataFrame
    provenance: dict[str, Any] = field(default_factory=dict)
    activations: "PairActivations | None" = None
    transferred: xr.DataArray | None = None

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

    # -- how well they read ----------------------------------------------------------------------------------

    @cached_property
    def _logits(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Value -> held-out logits (layer, text), which texts are positive."""
        at = self.examples.groupby("value", sort=False).indices
        positive = self.examples["positive"].to_numpy()
        return {value: (self.held_out.values[:, at[value]], positive[at[value]]) for value in self.values}

    def _score(self, name: str, score: Callable[[np.ndarray, np.ndarray], float]) -> xr.DataArray:
        table = [[score(own, y) for own in logits] for logits, y in self._logits.values()]
        return labelled(name, np.array(table), self.values, self.layers)

    @cached_property
    def accuracy(self) -> xr.DataArray:
        """Share of texts on the right side of 0, out of fold: (value, layer)."""
        return self._score("accuracy", lambda logit, y: float(np.mean((logit > 0) == y)))

    @cached_property
    def auroc(self) -> xr.DataArray:
        """Probability that a positive stands above a negative, the folds' logits pooled: (value, layer)."""
        return self._score("auroc", area_under_roc)

    @cached_property
    def brier(self) -> xr.DataArray:
        """Mean squared error of the probabilities, out of fold: (value, layer)."""
        return self._score("brier", brier)

    @cached_property
    def calibration_error(self) -> xr.DataArray:
        """Expected calibration error over ten bins, out of fold: (value, layer)."""
        return self._score("calibration_error", calibration_error)

    @cached_property
    def pair_correlation(self) -> float:
        """How much the two texts of a pair are right or wrong together, over all values and layers: 0 to 1."""
        hits = [((logits > 0) == y).reshape(len(logits), 2, -1) for logits, y in self._logits.values()]
        return pair_correlation(hits)

    @cached_property
    def intervals(self) -> xr.DataArray:
        """Wilson 95 % interval of the accuracy (value, layer, bound), of as many texts as a pair's two are worth."""
        worth = 1 + self.pair_correlation
        table = [[wilson(float(rate), len(self._logits[value][1]) / worth) for rate in own]
                 for value, own in zip(self.values, self.accuracy.values, strict=True)]  # fmt: skip
        return labelled("intervals", np.array(table), self.values, self.layers)

    @cached_property
    def auroc_intervals(self) -> xr.DataArray:
        """95 % interval of the AUROC (value, layer, bound), of as many texts too; see `scores.auroc_interval`."""
        worth = 1 + self.pair_correlation
        table = [[auroc_interval(float(area), self._logits[value][1].sum() / worth) for area in own]
                 for value, own in zip(self.values, self.auroc.values, strict=True)]  # fmt: skip
        return labelled("auroc_intervals", np.array(table), self.values, self.layers)

    @cached_property
    def cross(self) -> xr.DataArray:
        """Accuracy of one value's probe on another's pairs: (probe, pairs, layer); on its own it counts out of fold."""
        if self.transferred is not None:
            return self.transferred
        if self.activations is None:
            raise WorkbenchError("Accuracy on other values' pairs was asked for.", "probes without activations")
        table = np.stack([self.activations.accuracy_of(layer, self.weight.values[:, j], self.bias.values[:, j])
                          for j, layer in enumerate(self.layers)], axis=2)  # fmt: skip
        own = np.arange(len(self.values))
        table[own, own] = self.accuracy
        return labelled("cross", table, self.values, self.layers)

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

    def choose_layers(self, threshold: float = 0.9, rule: str = "published") -> "Layers":
        """Layers to steer at: a list of ints with its `reason`, never from the last 15 % of the model.

        rule: "published" takes all with mean out-of-fold accuracy above `threshold` (Jin et al. 2025); the texts that
            choose are those whose accuracy is told. "cross-fitted" lets each fold's layers be chosen by the other
            folds and keeps what most of them choose (where none passes, their best): its `accuracy` is told on
            folds that took no part in the choice.
        """
        if rule not in RULES:
            raise WorkbenchError(f"Layers by the rule {rule!r} were asked for.", allowed=", ".join(map(repr, RULES)))
        mean = self._eligible()
        layers, last = mean["layer"].values, round(TAIL * int(self.provenance["n_layers"]))
        told = f"without the last {last} of {self.provenance['n_layers']}"
        if rule == "published":
            passed = mean.values > threshold
            if not passed.any():
                raise WorkbenchError(
                    f"Layers with mean accuracy above {threshold} were asked for.",
                    found=f"at best {float(mean.max()):.3f}, at layer {self.choose_layer()}",
                    do="Pass layers= or a lower threshold, and look at probes.accuracy first.",
                )
            reason = f"mean out-of-fold accuracy above {threshold:g}, {told}"
            return Layers(layers[passed].tolist(), reason, float(mean.values[passed].mean()))
        by_fold = self._accuracy_by_fold().sel(layer=layers)
        votes, accuracy, above = np.zeros(len(layers)), [], 0
        for k in by_fold["fold"].values:
            others = by_fold.drop_sel(fold=k).mean("fold").values
            passed = others > threshold
            above += passed.any()
            if not passed.any():
                passed = others == others.max()
            votes += passed
            accuracy.append(by_fold.sel(fold=k).values[passed].mean())
        kept = votes > len(accuracy) / 2 if (votes > len(accuracy) / 2).any() else votes == votes.max()
        what = f"mean accuracy above {threshold:g}" if above > len(accuracy) / 2 else f"best (none above {threshold:g})"
        reason = (f"{what} in most folds, each judged by the others, {told}; {np.mean(accuracy):.3f} on folds that "
                  "took no part in the choice")  # fmt: skip
        return Layers(layers[kept].tolist(), reason, float(np.mean(accuracy)))

    def _accuracy_by_fold(self) -> xr.DataArray:
        """Mean accuracy over values of each fold's own texts: (fold, layer)."""
        hits = (self.held_out.values > 0) == self.examples["positive"].to_numpy()
        names = [self.examples["value"], self.examples["fold"]]
        table = pd.DataFrame(hits.T, columns=self.layers).groupby([n.to_numpy() for n in names]).mean()
        table = table.groupby(level=1).mean()
        return xr.DataArray(table, {"fold": table.index, "layer": self.layers}, ("fold", "layer"))

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
        columns = self.examples.to_dict("list")
        texts = columns.pop("text")
        arrays = {name: getattr(self, name).values for name in (*STORED, "cross")}
        arrays |= {f"examples.{name}": np.asarray(column) for name, column in columns.items() if name != "value"}
        meta = {
            "method": self.method, "values": self.values, "layers": self.layers, "provenance": self.provenance,
            "examples": {"value": columns["value"], "text": texts},
        }  # fmt: skip
        return arrays, meta

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], model: Model | None = None) -> "Probes":
        named: dict[str, Any] = {name: labelled(name, arrays[name], meta["values"], meta["layers"])
                                 for name in (*STORED, "cross")}  # fmt: skip
        named["transferred"] = named.pop("cross")
        columns = {name: arrays[f"examples.{name}"] for name in ("pair", "positive", "fold")}
        examples = pd.DataFrame({**meta["examples"], **columns})[["value", *columns, "text"]]
        probes = cls(meta["method"], **named, examples=examples, provenance=dict(meta["provenance"]))
        if model is not None:
            probes.check(model)
        return probes

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, the texts and provenance in its header; returns its path."""
        return save_arrays(path, "probes", *self.pack())

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "Probes":
        """Read what `save` wrote; with `model`, refuse probes of another one."""
        return cls.unpack(*load_arrays(path, "probes"), model)


class Layers(list[int]):
    """Chosen layers; reason: why these; accuracy: mean over values and these layers, told as the reason says."""

    def __init__(self, layers: Iterable[int], reason: str, accuracy: float):
        super().__init__(layers)
        self.reason, self.accuracy = reason, accuracy


STORED = ("weight", "bias", "held_out", "tfidf")
DIMS = {
    "weight": ("value", "layer", "d_model"), "held_out": ("layer", "example"), "tfidf": ("value",),
    "cross": ("probe", "pairs", "layer"), "intervals": ("value", "layer", "bound"),
    "auroc_intervals": ("value", "layer", "bound"),
}  # fmt: skip


def labelled(name: str, array: np.ndarray, values: Sequence[str], layers: Sequence[int]) -> xr.DataArray:
    """An array of probes with its dims and their labels; (value, layer) where nothing else is said."""
    coords = {"value": list(values), "probe": list(values), "pairs": list(values), "layer": list(layers),
              "bound": ["low", "high"]}  # fmt: skip
    dims = DIMS.get(name, ("value", "layer"))
    return xr.DataArray(array, dims=dims, coords={dim: coords[dim] for dim in dims if dim in coords}, name=name)
