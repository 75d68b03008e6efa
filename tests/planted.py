"""Pairs of texts with activations of one's own choice in place of a model's, and probes with logits of one's own."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from workbench.probes import PairActivations, Probes
from workbench.probes.fitted import labelled


def activations(
    positive: np.ndarray, negative: np.ndarray, /, values: Sequence[str] | None = None, **columns: Sequence
) -> PairActivations:
    """Of texts "p0 here", "n0 here", ...; positive, negative: ([layer,] pair, d_model), in a model of ten layers.

    values: of each pair, "power" by default; columns: what else the pairs carry, their own texts too.
    """
    sides = [side if np.ndim(side) > 2 else side[None] for side in (positive, negative)]
    n = sides[0].shape[1]
    texts = {"positive": [f"p{k} here" for k in range(n)], "negative": [f"n{k} here" for k in range(n)]}
    pairs = pd.DataFrame({"value": ["power"] * n if values is None else list(values), **texts, **columns})
    acts = xr.DataArray(
        np.concatenate(sides, axis=1).astype(np.float32), dims=("layer", "text", "d_model"),
        coords={"layer": range(len(sides[0])), "content": ("text", [*pairs["positive"], *pairs["negative"]])},
    )  # fmt: skip
    return PairActivations(acts, pairs, {"model": "planted", "n_layers": 10})


def probes_of(logits: Mapping[str, np.ndarray], folds: int = 5, n_layers: int = 10) -> Probes:
    """Probes with these held-out logits: value -> (layer, side, pair), positives first; weights are zero."""
    values, layers = list(logits), range(len(next(iter(logits.values()))))
    parts = []
    for value, own in logits.items():
        pair = np.tile(np.arange(own.shape[2]), 2)
        side = np.repeat([True, False], own.shape[2])
        parts.append(pd.DataFrame({"value": value, "pair": pair, "positive": side, "fold": pair % folds, "text": ""}))
    arrays = {
        "weight": np.zeros((len(values), len(layers), 2)), "bias": np.zeros((len(values), len(layers))),
        "tfidf": np.zeros(len(values)),
        "held_out": np.concatenate([own.reshape(len(layers), -1) for own in logits.values()], axis=1),
    }  # fmt: skip
    named: dict[str, xr.DataArray] = {name: labelled(name, array, values, layers) for name, array in arrays.items()}
    examples = pd.concat(parts, ignore_index=True)
    return Probes("logistic", **named, examples=examples, provenance={"model": "planted", "n_layers": n_layers})


def two_classes(n: int, d: int, scale: float = 1.0, offset: float = 0.0, apart: float = 1.0, seed: int = 0):
    """Rows (n, d), positives first, and which they are: Gaussian classes that differ along one random direction."""
    rng = np.random.default_rng([seed, n, d])
    y = np.arange(n) < n // 2
    return scale * (rng.normal(size=(n, d)) + np.outer(y, apart * rng.normal(size=d))) + offset * rng.normal(size=d), y
