"""Activations of pairs of texts, and all that is fitted on them: probes, resamples, halves, blocks."""

import hashlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from ..activations import capture
from ..errors import WorkbenchError
from ..models import Model
from .fitted import Probes, labelled
from .folds import assign_folds, check_pairs, in_order, pairs_hash
from .linear import METHODS, Rows
from .words import tfidf_hits, word_counts

ASKED = "Probes were to be fitted on activations of pairs."


class Fitted(NamedTuple):
    """The probe of one value at one layer: weight (d_model), bias, and held_out (text), positives first, float32."""

    weight: np.ndarray
    bias: float
    held_out: np.ndarray


@dataclass(frozen=True)
class Resampled:
    """Value vectors of one layer, fitted again on resampled pairs of texts.

    vectors (value, d_model): fitted on all pairs. bootstrap (resample, value, d_model): on each value's pairs drawn
    with replacement. halves (half, split, value, d_model): on the two halves of random splits of each value's pairs.
    differences (pair, d_model): positive minus negative, with the coordinates value, positive and negative.
    draws: two with the same `draws` drew the same pairs, so that their statistics compare draw by draw.
    """

    vectors: xr.DataArray
    bootstrap: xr.DataArray
    halves: xr.DataArray
    differences: xr.DataArray
    draws: str


@dataclass(frozen=True, eq=False, repr=False)
class PairActivations:
    """Activations of both texts of every pair, and what can be fitted on them. Made by `capture` or `of_words`.

    acts: DataArray (layer, text, d_model), each different text once, named by the coordinate `content`.
    pairs: value, positive, negative, and what else they carry.
    provenance: goes into everything fitted here.
    """

    acts: xr.DataArray
    pairs: pd.DataFrame
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "pairs", check_pairs(self.pairs))
        if not {"layer", "text", "d_model"} == set(self.acts.dims) or "content" not in self.acts.coords:
            raise WorkbenchError(ASKED, f"dims {self.acts.dims}, coordinates {(*self.acts.coords,)}",
                                 "dims layer, text, d_model, the texts along text as `content`")  # fmt: skip
        texts = pd.Index(self.acts["content"].values)
        if not texts.is_unique:
            raise WorkbenchError(ASKED, f"the text {texts[texts.duplicated()][0]!r} twice", "each different text once")
        if (missing := self.rows < 0).any():
            raise WorkbenchError(ASKED, f"no activation of {self.pairs['positive'].iloc[missing.any(1).argmax()]!r} "
                                        "or its negative", "activations of both texts of every pair")  # fmt: skip

    @classmethod
    def capture(
        cls, model: Model, pairs: pd.DataFrame, layers: Iterable[int] | None = None, store: Any = None,
        progress: bool = False,
    ) -> "PairActivations":
        """Residual stream after each block at the last token of both texts of every pair (see `workbench.capture`)."""
        texts = distinct_texts(pairs := check_pairs(pairs))
        acts = capture(model, texts, layers=layers, store=store, progress=progress)
        acts = acts.assign_coords(content=("text", texts))
        return cls(acts, pairs, {**acts.attrs, "n_layers": model.n_layers})

    @classmethod
    def of_words(cls, pairs: pd.DataFrame) -> "PairActivations":
        """TF-IDF of the texts (unigrams and bigrams) in place of a model: the lexical reference. One layer, 0."""
        texts = distinct_texts(pairs := check_pairs(pairs))
        table = word_counts().fit_transform(texts).toarray().astype(np.float32)
        acts = xr.DataArray(table[None], dims=("layer", "text", "d_model"),
                            coords={"layer": [0], "content": ("text", texts)})  # fmt: skip
        return cls(acts, pairs, {"model": "TF-IDF", "n_layers": 1})

    def __repr__(self) -> str:
        return (f"PairActivations({len(self.pairs)} pairs of {len(self.values)} values, {len(self.layers)} layers of "
                f"{self.provenance.get('model')})")  # fmt: skip

    @property
    def values(self) -> list[str]:
        return in_order(self.pairs["value"])

    @property
    def layers(self) -> list[int]:
        return [int(layer) for layer in self.acts["layer"].values]

    @cached_property
    def rows(self) -> np.ndarray:
        """Row of each pair's positive and negative text in `acts`: (pair, 2)."""
        texts = pd.Index(self.acts["content"].values)
        return np.stack([texts.get_indexer(pd.Index(self.pairs[side])) for side in ("positive", "negative")], axis=1)

    @cached_property
    def _kept(self) -> dict[Any, Any]:
        """What does not change between fits: the texts' inner products by layer and value, folds, words alone."""
        return {}

    def _layer(self, layer: int) -> np.ndarray:
        """Activations (text, d_model) of one layer, read once."""
        if layer not in self._kept:
            X = self.acts.sel(layer=layer).transpose("text", "d_model").values
            if not np.isfinite(X).all():
                raise WorkbenchError(ASKED, f"NaN or infinity at layer {layer}", "finite activations")
            if len(X) and (X == X[0]).all():
                raise WorkbenchError(ASKED, f"the same activation for every text at layer {layer}",
                                     do="Look at which token is read: all texts may end alike there.")  # fmt: skip
            self._kept[layer] = X
        return self._kept[layer]

    def _pairs_of(self, value: str) -> np.ndarray:
        return np.flatnonzero((self.pairs["value"] == value).to_numpy())

    def texts_of(self, value: str) -> np.ndarray:
        """Rows in `acts` of a value's texts, positives first."""
        return self.rows[self._pairs_of(value)].T.ravel()

    def _rows(self, layer: int, value: str) -> Rows:
        if (layer, value) not in self._kept:
            texts = self.texts_of(value)
            together = (np.diff(texts) == 1).all()  # then no copy is needed
            X = self._layer(layer)[slice(texts[0], texts[-1] + 1) if together else texts]
            self._kept[layer, value] = Rows(X, np.arange(len(texts)) < len(texts) // 2)
        return self._kept[layer, value]

    def _folds(self, folds: Any, seed: int) -> tuple[str, np.ndarray, np.ndarray, pd.DataFrame]:
        """By what pairs are kept together, each pair's fold, accuracy of words alone (value) there, the examples."""
        key = ("folds", folds, seed)
        if key not in self._kept:
            grouping, fold = assign_folds(self.pairs, self.values, folds, seed)
            words = []
            for value in self.values:
                own = self.pairs.iloc[pairs := self._pairs_of(value)]
                y = np.repeat([True, False], len(own))
                words.append(tfidf_hits([*own["positive"], *own["negative"]], y, np.tile(fold[pairs], 2)).mean())
            self._kept[key] = grouping, fold, np.array(words), self._examples(fold)
        return self._kept[key]

    # -- fits ------------------------------------------------------------------------------------------------

    def fit(
        self, method: str = "logistic", C: float = 1.0, folds: Any = 5, seed: int = 0,
        layers: Iterable[int] | None = None,
    ) -> Probes:
        """Probes of all values; see `workbench.fit_probes`. Again with another method or C, it takes a breath."""
        check_method(method, C)
        grouping, fold, words, examples = self._folds(folds, seed)
        values, layers = self.values, self.layers if layers is None else [int(layer) for layer in layers]
        at = {value: np.tile(fold[self._pairs_of(value)], 2) for value in values}
        if missing := [layer for layer in layers if layer not in self.layers]:
            raise WorkbenchError(f"Probes at layers {missing} were asked for.", "no activations of them",
                                 f"layers {', '.join(map(str, self.layers))}")  # fmt: skip
        shape = (len(values), len(layers))
        weight, bias = np.zeros((*shape, self.acts.sizes["d_model"]), np.float32), np.zeros(shape, np.float32)
        held_out = np.zeros((len(layers), 2 * len(self.pairs)), np.float32)
        for j, layer in enumerate(layers):
            own = []
            for i, value in enumerate(values):
                weight[i, j], bias[i, j], held = self.fit_one(value, layer, at[value], method, C)
                own.append(held)
            held_out[j] = np.concatenate(own)
        provenance = {
            **self.provenance, "method": method, "C": C, "folds": len(np.unique(fold)), "seed": seed,
            "folds_by": grouping, "pairs": pairs_hash(self.pairs),
            "n_pairs": self.pairs["value"].value_counts().to_dict(), "scikit-learn": version("scikit-learn"),
        }  # fmt: skip
        arrays = {"weight": weight, "bias": bias, "held_out": held_out, "tfidf": words}
        return Probes(method, **{name: labelled(name, array, values, layers) for name, array in arrays.items()},
                      examples=examples, provenance=provenance, activations=self)  # fmt: skip

    def fit_one(self, value: str, layer: int, fold: np.ndarray, method: str = "logistic", C: float = 1.0) -> Fitted:
        """The probe of one value at one layer. fold (text): of each of the value's texts, positives first, as the
        column `fold` of `Probes.examples` has them.
        """
        check_method(method, C)
        rows = self._rows(layer, value)
        whole = rows.fit(method, C)
        weight, bias = rows.lift(whole)
        held_out = rows.held_out(method, C, np.asarray(fold), whole)
        return Fitted(weight.astype(np.float32), bias, held_out.astype(np.float32))

    def accuracy_of(self, layer: int, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Accuracy of each probe (value, d_model), (value) on every value's texts: (probe, pairs)."""
        logits = self._layer(layer) @ weight.T + bias
        right = np.stack([logits[self.rows[:, 0]] > 0, logits[self.rows[:, 1]] <= 0]).mean(0)
        return np.stack([right[self._pairs_of(value)].mean(0) for value in self.values], axis=1)

    def _examples(self, fold: np.ndarray) -> pd.DataFrame:
        """See `Probes.examples`."""
        parts = []
        for value in self.values:
            pairs = self._pairs_of(value)
            own = self.pairs.iloc[pairs]
            parts.append(pd.DataFrame({
                "value": value, "pair": np.tile(pairs, 2), "positive": np.repeat([True, False], len(own)),
                "fold": np.tile(fold[pairs], 2), "text": [*own["positive"], *own["negative"]],
            }))  # fmt: skip
        return pd.concat(parts, ignore_index=True)

    def generalise(
        self, by: str, method: str = "logistic", C: float = 1.0, folds: int = 5, seed: int = 0,
        layers: Iterable[int] | None = None,
    ) -> xr.DataArray:
        """Accuracy (value, layer, train, test) of probes fitted on the pairs of one block only, on another block's.

        by: column that names the blocks, such as "form" (statement, question) or "person". Within a block, out of fold.
        """
        if by not in self.pairs.columns or self.pairs[by].nunique() < 2:
            raise WorkbenchError(f"Generalisation across {by!r} was asked for.",
                                 f"columns {', '.join(map(str, self.pairs.columns))}" if by not in self.pairs.columns
                                 else f"only {self.pairs[by].iloc[0]!r} in it",
                                 "a column with two blocks or more")  # fmt: skip
        blocks = {name: replace(self, pairs=own) for name, own in self.pairs.groupby(by, sort=False)}
        sides = self.pairs.melt(["value", by], ["positive", "negative"], value_name="text")
        homes = sides.groupby(["value", "text"])[by].nunique()
        if (homes > 1).any():
            value, text = homes[homes > 1].index[0]
            raise WorkbenchError(f"Generalisation across {by!r} was asked for.",
                                 f"the text {text!r} of {value} in two blocks, so that it would be learnt and asked",
                                 do="Keep equal texts in one block.")  # fmt: skip
        layers = self.layers if layers is None else list(layers)
        out = np.full((len(self.values), len(layers), len(blocks), len(blocks)), np.nan)
        for k, part in enumerate(blocks.values()):
            probes = part.fit(method, C, folds, seed, layers)
            at = [self.values.index(value) for value in part.values]
            out[at, :, k, k] = probes.accuracy
            for m, other in enumerate(blocks.values()):
                for i, value in enumerate(part.values):
                    if m == k or value not in other.values:
                        continue
                    for j, layer in enumerate(layers):
                        weight, bias = probes.weight.values[i, j], probes.bias.values[i, j]
                        right = other.accuracy_of(layer, weight[None], bias[None])
                        out[at[i], j, k, m] = right[0, other.values.index(value)]
        names = [str(name) for name in blocks]
        return xr.DataArray(out, {"value": self.values, "layer": layers, "train": names, "test": names},
                            ("value", "layer", "train", "test"), "accuracy", {**self.provenance, "by": by})  # fmt: skip

    # -- resamples and controls ------------------------------------------------------------------------------

    def vectors(
        self, layer: int, method: str = "logistic", C: float = 1.0, values: Iterable[str] | None = None
    ) -> xr.DataArray:
        """Value vectors (value, d_model) of one layer, raw: the weights of `fit`, without folds."""
        check_method(method, C)
        names = self.values if values is None else list(values)
        if layer not in self.layers or not {*names} <= {*self.values}:
            raise WorkbenchError(f"Vectors of {', '.join(names)} at layer {layer} were asked for.",
                                 allowed=f"{', '.join(self.values)}; layers {', '.join(map(str, self.layers))}")
        rows = [self._rows(layer, value) for value in names]
        weight = np.stack([own.lift(own.fit(method, C)).weight for own in rows]).astype(np.float32)
        return xr.DataArray(weight, {"value": names}, ("value", "d_model"), "vectors",
                            {**self.provenance, "method": method, "layer": layer})  # fmt: skip

    def resample(
        self, layer: int, n: int = 1000, method: str = "mean_difference", C: float = 1.0, seed: int = 0,
        splits: int = 50,
    ) -> Resampled:
        """Value vectors (raw, not unit) of one layer, and the same from `n` bootstraps and `splits` random halvings."""
        steps = self.resampling(layer, n, method, C, seed, splits)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                return done.value

    def resampling(
        self, layer: int, n: int = 1000, method: str = "mean_difference", C: float = 1.0, seed: int = 0,
        splits: int = 50,
    ) -> Generator[tuple[str, int], None, Resampled]:
        """`resample` in small steps, for whoever has other things to do meanwhile: after each fit it yields the value
        and how many of its 1 + 2 splits + n are done, and it returns what `resample` does.
        """
        check_method(method, C)
        if layer not in self.layers or n < 2 or splits < 1:
            raise WorkbenchError(
                f"{n} resamples and {splits} splits at layer {layer} were asked for.",
                allowed=f"layers {', '.join(map(str, self.layers))}, 2 resamples and 1 split or more")  # fmt: skip
        fitted = []
        for i, value in enumerate(self.values):
            rng, rows = np.random.default_rng([seed, i]), self._rows(layer, value)
            m = len(rows.y) // 2
            if m < 4:
                raise WorkbenchError("Pairs of texts were to be resampled.", f"{m} pairs of {value}", "4 or more")
            order = rng.permuted(np.tile(np.arange(m), (splits, 1)), axis=1) < m // 2
            counts = np.concatenate([order, ~order, rng.multinomial(m, np.full(m, 1 / m), size=n)]).astype(float)
            whole = rows.fit(method, C)
            duals, parts = [whole.a], []
            for k, own in enumerate(counts, 2):
                duals.append(rows.fit(method, C, np.tile(own, 2), whole).a)
                if len(duals) == 100 or k > len(counts):
                    parts.append((np.stack(duals) @ rows.X).astype(np.float32))
                    duals = []
                yield value, k
            fitted.append(np.concatenate(parts))
        vectors, dims = np.stack(fitted, axis=1), ("value", "d_model")
        names = {"value": self.values}

        def array(block: np.ndarray, *leading: str) -> xr.DataArray:
            return xr.DataArray(block, names, (*leading, *dims), "vectors", {**self.provenance, "layer": layer})

        halves = vectors[1 : 1 + 2 * splits].reshape(2, splits, *vectors.shape[1:])
        X = self._layer(layer)
        differences = xr.DataArray(
            X[self.rows[:, 0]] - X[self.rows[:, 1]], dims=("pair", "d_model"),
            coords={name: ("pair", self.pairs[name]) for name in ("value", "positive", "negative")},
        )  # fmt: skip
        draws = hashlib.sha256(f"{pairs_hash(self.pairs)} {n} {seed} {splits}".encode()).hexdigest()[:16]
        return Resampled(array(vectors[0]), array(vectors[1 + 2 * splits :], "resample"),
                         array(halves, "half", "split"), differences, draws)  # fmt: skip

    def with_sides_at_random(self, seed: int = 0) -> "PairActivations":
        """Which text of a pair is the positive one, drawn at random: nothing is left to read."""
        swap = np.random.default_rng(seed).random(len(self.pairs)) < 0.5
        positive, negative = self.pairs["positive"].to_numpy(), self.pairs["negative"].to_numpy()
        sides = {"positive": np.where(swap, negative, positive), "negative": np.where(swap, positive, negative)}
        return replace(self, pairs=self.pairs.assign(**sides))

    def with_values_at_random(self, seed: int = 0) -> "PairActivations":
        """Which value a pair belongs to, drawn at random: the values become exchangeable."""
        values = np.random.default_rng(seed).permutation(self.pairs["value"].to_numpy())
        return replace(self, pairs=self.pairs.assign(value=values))


def distinct_texts(pairs: pd.DataFrame) -> list[str]:
    """Each text once, value by value, positives first: so a value's activations mostly lie together."""
    sides = [own[side] for _, own in pairs.groupby("value", sort=False) for side in ("positive", "negative")]
    return [str(text) for text in pd.unique(pd.concat(sides))]


def check_method(method: str, C: float) -> None:
    if method not in METHODS:
        raise WorkbenchError(f"Probes by {method!r} were asked for.", allowed=", ".join(map(repr, METHODS)))
    if not C > 0:
        raise WorkbenchError(f"Probes with C={C} were asked for.", allowed="a number above 0")
