"""Time the probes of a Llama-8B shape against the published recipe, in one run, one thread.

    workbench bench probes

Synthetic residuals: a large common part, coordinates of unequal scale, a direction per value and layer; 10 values,
100 pairs each, 32 layers, d_model 4096. The recipe is scikit-learn's `saga` in the full space, max_iter 10,000 (the
layer classifier of SCAV's released code, on which ConVA's follows); it is timed on a few fits and extrapolated. Writes
results/probes.json.
"""

import json
import statistics
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from threadpoolctl import threadpool_limits

from workbench.probes import METHODS, PairActivations
from workbench.values import VALUES

RESULTS = Path(__file__).parent / "results"
LAYERS, WIDTH, PAIRS, FOLDS = 32, 4096, 100, 5


def activations(layers: int = LAYERS, width: int = WIDTH, pairs: int = PAIRS, seed: int = 0) -> PairActivations:
    """Pairs whose residuals hold their value's direction, as far as one can be read at all: AUROC about .9."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame([{"value": v, "positive": f"{v} {k} +", "negative": f"{v} {k} -"}
                          for v in VALUES for k in range(pairs)])  # fmt: skip
    texts = table[["positive", "negative"]].to_numpy().ravel()
    acts = np.empty((layers, len(texts), width), np.float32)
    for layer in range(layers):
        scale = np.exp(0.8 * rng.normal(size=width)).astype(np.float32)
        acts[layer] = 10 * rng.normal(size=width) + rng.standard_normal((len(texts), width), np.float32) * scale
        for k in range(len(VALUES)):
            own = slice(2 * pairs * k, 2 * pairs * (k + 1))
            acts[layer, own][::2] += 4 * rng.normal(size=width) * scale / np.sqrt(width)
    array = xr.DataArray(acts, dims=("layer", "text", "d_model"),
                         coords={"layer": range(layers), "content": ("text", texts)})  # fmt: skip
    return PairActivations(array, table, {"model": "synthetic", "n_layers": layers})


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    from sklearn.linear_model import LogisticRegression

    torch.set_num_threads(1)
    with threadpool_limits(1):
        acts = activations()
        acts._folds(FOLDS, 0)  # words alone are no part of either recipe
        found: dict = {"shape": {"values": 10, "layers": LAYERS, "d_model": WIDTH, "texts per value": 2 * PAIRS}}
        probes = []
        ours = timed(lambda: probes.append(acts.fit("logistic", folds=FOLDS)))
        rng, fits = np.random.default_rng(1), []
        for _ in range(4):  # in turns with nothing else: one fit takes longer than our whole
            layer, value = int(rng.integers(LAYERS)), VALUES[rng.integers(10)]
            X = acts.acts.values[layer][acts.texts_of(value)]
            y = np.arange(len(X)) < PAIRS
            train = np.tile(np.arange(PAIRS) % FOLDS != 0, 2)
            recipe = LogisticRegression(solver="saga", max_iter=10_000)
            seconds = timed(lambda recipe=recipe, X=X, y=y, train=train: recipe.fit(X[train], y[train]))
            exact = LogisticRegression(tol=1e-10, max_iter=100_000)
            centred = X.astype(np.float64) - X.mean(0, dtype=np.float64)
            lbfgs = timed(lambda exact=exact, X=centred, y=y, train=train: exact.fit(X[train], y[train]))
            own = probes[0].weight.sel(value=value, layer=layer).values
            whole = exact.fit(centred, y).coef_[0]
            off = float(np.linalg.norm(own - whole) / np.linalg.norm(whole))
            fits.append({"layer": layer, "value": value, "saga": seconds, "epochs": int(recipe.n_iter_[0]),
                         "lbfgs, centred": lbfgs, "|w - lbfgs| / |lbfgs|": off})  # fmt: skip
        count = 10 * LAYERS * (FOLDS + 1)
        for name in ("saga", "lbfgs, centred"):
            one = statistics.median(fit[name] for fit in fits)
            found[f"{name}: seconds a fit"], found[f"{name}: times ours"] = one, one * count / ours
        found |= {"fits": fits, "number of fits": count, "seconds, all layers, values and folds": ours}
        def refit(method: str, layer: int) -> None:
            for rows in (acts._rows(layer, value) for value in VALUES):
                rows.lift(rows.fit(method, 0.5 + layer / 10))

        found["seconds of a refit of one layer, all values"] = {
            method: statistics.median(timed(lambda m=method, k=k: refit(m, k)) for k in range(7)) for method in METHODS}
        found["seconds of the same with five folds"] = {
            method: statistics.median(timed(lambda m=method, k=k: acts.fit(m, C=0.5 + k / 10, layers=[k]))
                                      for k in range(7)) for method in METHODS}  # fmt: skip
        found["seconds of 1,000 resamples of one layer"] = {
            method: timed(lambda m=method: acts.resample(3, 1000, m)) for method in ("mean_difference", "logistic")}
        found["mean AUROC, out of fold"] = float(probes[0].auroc.mean())
    print(json.dumps(found, indent=1))
    RESULTS.joinpath("probes.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
