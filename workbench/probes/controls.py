"""What a probe's accuracy has to be held against: the same fit where there is nothing to find, or only memory."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..errors import WorkbenchError
from ..models import Model
from .files import check_fingerprint
from .folds import check_pairs, pairs_hash, spread
from .linear import cross_validated
from .pairs import PairActivations

CONTROLS = ("random labels", "control task", "random weights")


def probe_controls(
    model: Model,
    pairs: pd.DataFrame,
    method: str = "logistic",
    C: float = 1.0,
    layers: Iterable[int] | None = None,
    draws: int = 5,
    twins: int = 2,
    folds: Any = 5,
    seed: int = 0,
    activations: PairActivations | None = None,
    progress: bool = False,
) -> xr.DataArray:
    """Out-of-fold accuracy of three controls: (control, draw, value, layer); NaN beyond a control's own draws.

    - "random labels": in each pair a coin says which text is the positive one (`draws` times). Chance, and its spread.
    - "control task": a coin labels each last word, and texts bear their last word's label, whichever fold they are in
      (`draws` times; after Hewitt and Liang 2019). What is above chance is memory of words; the probe's accuracy
      minus this is its selectivity. Where no last word recurs it is chance.
    - "random weights": the same architecture before any training (`twins` times). What is above chance, architecture
      and words give.

    method, C, folds, seed: as for `fit_probes`. activations: of these pairs in this model, where they are there.
    """
    acts = PairActivations.capture(model, pairs, layers, progress=progress) if activations is None else activations
    if pairs_hash(acts.pairs) != pairs_hash(check_pairs(pairs)):
        raise WorkbenchError("Controls of probes were asked for.", "activations of other pairs", "those of these pairs")
    if "fingerprint" in acts.provenance:  # words have none
        check_fingerprint("Activations", acts.provenance, model)
    layers = acts.layers if layers is None else list(layers)
    found: dict[str, list[np.ndarray]] = {name: [] for name in CONTROLS}
    for draw in range(draws):
        shuffled = acts.with_sides_at_random(seed + draw)
        found["random labels"].append(shuffled.fit(method, C, folds, seed, layers).accuracy.values)
        found["control task"].append(_control_task(acts, method, C, layers, seed + draw))
    for twin in range(twins):
        other = PairActivations.capture(model.random_twin(seed + twin), acts.pairs, layers, progress=progress)
        found["random weights"].append(other.fit(method, C, folds, seed).accuracy.values)
    out = np.full((len(CONTROLS), max(draws, twins), len(acts.values), len(layers)), np.nan)
    for k, own in enumerate(found.values()):
        for draw, rates in enumerate(own):
            out[k, draw] = rates
    return xr.DataArray(out, {"control": list(CONTROLS), "value": acts.values, "layer": layers},
                        ("control", "draw", "value", "layer"), "accuracy", acts.provenance)  # fmt: skip


def _control_task(acts: PairActivations, method: str, C: float, layers: list[int], seed: int) -> np.ndarray:
    """(value, layer). Both labels have as many texts, one of each at a time: one half is chance, whatever the words."""
    content = acts.acts["content"].values
    out = np.full((len(acts.values), len(layers)), 0.5)
    for i, value in enumerate(acts.values):
        texts = np.unique(acts.texts_of(value))
        words = pd.factorize(np.array([(re.findall(r"\w+", text.lower()) or [""])[-1] for text in content[texts]]))[0]
        side, rng = spread(words, 2, seed), np.random.default_rng([seed, i])
        drawn = [rng.permutation(texts[side == label]) for label in (0, 1)]
        m = min(map(len, drawn))
        if m < 2:  # one last word for all: there is no task
            continue
        rows, fold = np.concatenate([texts[:m] for texts in drawn]), np.tile(np.arange(m) % 5, 2)
        y = np.arange(2 * m) < m
        for j, layer in enumerate(layers):
            X = acts.acts.sel(layer=layer).values[rows]
            out[i, j] = np.mean((cross_validated(X, y, fold, method, C)[1] > 0) == y)
    return out
