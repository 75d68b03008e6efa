"""Value vectors with a known geometry, and pairs of texts that scatter about them."""

import math
from typing import Any

import numpy as np
import xarray as xr

from workbench.values import VALUES, angles

SCRAMBLED = [0, 4, 8, 1, 3, 2, 9, 7, 6, 5]
PAIRS = np.triu_indices(10, 1)


def planted(layout="equal", order=None, noise=0.0, shared=2.0, d_model=24, seed=0, among=VALUES):
    """Vectors on a circle in a random plane, all of them shifted by one shared direction."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(d_model, d_model)))[0]
    theta = angles(layout, order, among)
    circle = np.column_stack([np.cos(theta), np.sin(theta)]) @ axes[:2]
    return circle + shared * axes[2] + noise * rng.normal(size=(len(theta), d_model)) / math.sqrt(d_model)


def named(vectors, order: Any = range(10), among=VALUES):
    order = list(order)
    return xr.DataArray(vectors[order], {"value": [among[i] for i in order]}, ("value", "d_model"))


def pair_activations(vectors, noise=1.0, pairs=12, seed=0, values=VALUES, layers=1):
    """Activations of pairs whose differences scatter about `vectors` (value, d_model), at each layer anew."""
    import pandas as pd

    from workbench.probes.pairs import PairActivations

    rng, d_model = np.random.default_rng(seed), vectors.shape[1]
    table = pd.DataFrame([{"value": v, "positive": f"{v} {k} yes", "negative": f"{v} {k} no"}
                          for v in values for k in range(pairs)])  # fmt: skip
    common = rng.normal(size=(layers, len(table), d_model))
    off = noise * rng.normal(size=(layers, len(table), d_model)) / math.sqrt(d_model)
    half = (np.repeat(vectors, pairs, axis=0) + off) / 2
    acts = np.stack([common + half, common - half], axis=2).reshape(layers, -1, d_model).astype(np.float32)
    content = table[["positive", "negative"]].to_numpy().ravel().tolist()
    coords = {"layer": range(layers), "content": ("text", content)}
    return PairActivations(xr.DataArray(acts, coords, ("layer", "text", "d_model")), table,
                           {"model": "synthetic", "n_layers": 10})  # fmt: skip
