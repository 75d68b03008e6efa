"""What the figures are drawn from in tests, and one figure of every kind."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import expit

from workbench import figures as plain_figures
from workbench import geometry
from workbench.audit import audit_pairs
from workbench.gates import ProbeGate
from workbench.probes import Probes
from workbench.rates import wilson
from workbench.values import VALUES, angles, circular_steps

figures: Any = plain_figures  # plotly's types do not say what its objects hold
EVIL = "<a href='javascript:1'>x</a> $\\alpha$"
SCRAMBLED = (0, 4, 8, 1, 3, 2, 9, 7, 6, 5)
LAYERS = range(6)
CONTROLS = ("random labels", "control task", "random weights")


def planted(noise: float = 0.3, order=None, seed: int = 0, among=VALUES) -> xr.DataArray:
    """Vectors on a circle, with what all share and noise."""
    rng, theta = np.random.default_rng(seed), angles(order=order, among=among)
    circle = np.stack([np.cos(theta), np.sin(theta)], 1) @ np.linalg.qr(rng.normal(size=(40, 2)))[0].T
    shared, off = rng.normal(size=40) / 4, noise * rng.normal(size=(len(among), 40)) / np.sqrt(40)
    return xr.DataArray(circle + shared + off, dims=("value", "d_model"), coords={"value": list(among)})


def resampled(vectors: xr.DataArray, noise: float = 0.3, n: int = 200) -> np.ndarray:
    """Stand-ins for vectors of resampled pairs: the vectors and noise, (resample, value, d_model)."""
    return vectors.values + noise * np.random.default_rng(1).normal(size=(n, *vectors.shape)) / np.sqrt(40)


def known_probes() -> Probes:
    """Probes with known numbers; their values do not come in circular order."""
    values, rng = [VALUES[k] for k in SCRAMBLED], np.random.default_rng(0)
    accuracy = 0.6 + 0.05 * np.arange(6) + 0.01 * np.arange(10)[:, None]
    cross = np.zeros((10, 10, 6)) + (0.5 + 0.4 * np.cos(np.pi * circular_steps() / 5))[..., None]
    order = [VALUES.index(v) for v in values]
    positive = np.tile(np.repeat([True, False], 200), 10)
    right = np.stack([rng.permutation(400)[None] < np.round(400 * own)[:, None] for own in accuracy], 1).reshape(6, -1)
    size = np.abs(rng.normal(1.5, 1, positive.shape)) + 0.01
    arrays = {
        "weight": (("value", "layer", "d_model"), rng.normal(size=(10, 6, 4))),
        "bias": (("value", "layer"), np.zeros((10, 6))),
        "held_out": (("layer", "example"), np.where(right == positive, size, -size)),
        "tfidf": (("value",), np.linspace(0.4, 0.58, 10)),
        "transferred": (("probe", "pairs", "layer"), cross[np.ix_(order, order)]),
    }
    names = {"value": values, "probe": values, "pairs": values, "layer": list(LAYERS)}
    arrays = {name: xr.DataArray(array, dims=dims, coords={dim: names[dim] for dim in dims if dim in names})
              for name, (dims, array) in arrays.items()}
    examples = pd.DataFrame({"value": np.repeat(values, 400), "pair": np.tile(np.arange(200), 20), "positive": positive,
                             "fold": np.tile(np.arange(200) % 5, 20), "text": EVIL})
    provenance = {"model": EVIL, "n_layers": 6, "n_pairs": dict.fromkeys(values, 200)}
    return Probes("logistic", **arrays, examples=examples, provenance=provenance)


def known_controls() -> xr.DataArray:
    """Draws about .5, .6 and .7; the last has two draws only."""
    rates = np.array([0.5, 0.6, 0.7])[:, None, None, None] + np.random.default_rng(0).normal(0, 0.02, (3, 5, 10, 6))
    rates[2, 2:] = np.nan
    coords = {"control": list(CONTROLS), "value": list(VALUES), "layer": list(LAYERS)}
    return xr.DataArray(rates, coords, ("control", "draw", "value", "layer"))


def known_blocks() -> xr.DataArray:
    """Accuracy within blocks .9, across .7, rising to layer 4."""
    rates = np.array([[0.9, 0.7], [0.7, 0.9]]) - 0.03 * abs(np.arange(6) - 4)[:, None, None]
    rates = rates + 0.02 * np.linspace(-1, 1, 10)[:, None, None, None]
    coords = {"value": list(VALUES), "layer": list(LAYERS), "train": ["statement", EVIL], "test": ["statement", EVIL]}
    return xr.DataArray(rates, coords, ("value", "layer", "train", "test"))


def known_rise() -> xr.DataArray:
    """Everything rises by .05, each value by .2 cos(angle) about the one steered."""
    rise = 0.05 + 0.2 * np.cos(np.pi * circular_steps() / 5)
    return xr.DataArray(rise, {"steered": list(VALUES), "value": list(VALUES)}, ("steered", "value"))


def clusters() -> tuple[xr.DataArray, list[str]]:
    """Activations of thirty texts of each of three values, far apart."""
    rng = np.random.default_rng(0)
    points = np.repeat(3 * np.eye(3, 20), 30, axis=0) + 0.5 * rng.normal(size=(90, 20))
    labels = list(np.repeat(["power", "security", EVIL], 30))
    return xr.DataArray(points, {"layer": 3, "content": ("text", [EVIL] * 90)}, ("text", "d_model")), labels


def known_gate() -> ProbeGate:
    rng, related = np.random.default_rng(0), np.repeat([True, False], [30, 60])
    score = expit(np.where(related, 4, -5) + rng.normal(size=90))
    score[0] = 1.0  # saturated: its logit is infinite
    prompts = [f"{EVIL} {number}" for number in range(90)]
    oof = pd.DataFrame({"prompt": prompts, "related": related, "score": score})
    return ProbeGate(3, np.zeros(4, np.float32), 0.25, "as given", oof)


def known_table() -> pd.DataFrame:
    rows = []
    for (m, method), (v, value) in itertools.product(enumerate(("Base", "ConVA", EVIL)), enumerate(VALUES)):
        csr, fr, n = 0.1 + 0.3 * m + 0.01 * v, 1.0 - 0.02 * m, 30
        (low, high), (fr_low, fr_high) = wilson(csr, n), wilson(fr, n)
        rows.append(dict(method=method, value=value, csr=csr, low=low, high=high, fr=fr, fr_low=fr_low,
                         fr_high=fr_high, leakage=0.0, n=n))  # fmt: skip
    return pd.DataFrame(rows)


def some_pairs() -> pd.DataFrame:
    """Eight pairs each of two values, fit for an audit."""
    rows = [dict(value=value, positive=f"{who} {good} {what}", negative=f"{who} {bad} {what}")
            for value, good, bad in (("power", "commands", "obeys"), ("security", "guards", "risks"))
            for who, what in itertools.product(("Ann", "Ben", "Cem", "Dee"), ("the house", "a ship"))]
    return pd.DataFrame(rows)


def known_trace() -> pd.DataFrame:
    """Row 1 of a run at layers 2 and 4: seven tokens, of which every third is not steered."""
    return pd.DataFrame([
        {"row": 1, "layer": layer, "position": 5 + k, "token": EVIL if k == 2 else f"w{k}", "gate": 0.9, "open": True,
         "p_before": 0.2 + 0.05 * k, "p_after": 0.9 + 0.01 * layer, "eps": 0.0 if k % 3 == 0 else 10.0 * layer + k,
         "share": 0.0 if k % 3 == 0 else 0.1 * layer, "kl": 0.1 * k}
        for k in range(7) for layer in (2, 4)])  # fmt: skip


def known_curve() -> pd.DataFrame:
    """Of `evaluation.tune`: Base and three settings of two values; the second setting is chosen."""
    rows = [(value, setting, k, 20, 0.1 + 0.2 * k + 0.05 * i) for i, value in enumerate(("power", "tradition"))
            for k, setting in enumerate(("Base", EVIL, "2", "3"))]  # fmt: skip
    table = pd.DataFrame(rows, columns=["value", "setting", "round", "n", "csr"])
    low, high = zip(*[wilson(rate, 20) for rate in table["csr"]], strict=True)
    return table.assign(low=low, high=high, chosen=table["setting"] == "2", fr=1 - 0.05 * table["round"])


def reading(after_at_4: float = 0.9) -> Any:
    before = xr.DataArray(np.full((10, 6), 0.2), coords={"value": list(VALUES), "layer": list(LAYERS)})
    after = before.copy()
    after.loc[{"value": "tradition", "layer": [3, 4]}] = after_at_4
    return figures.steering_reading(before, after, "tradition", 0.9, [3, 4])


def every_figure() -> dict[str, Any]:
    vectors, probes, gate, table = planted(), known_probes(), known_gate(), known_table()
    kinds = pd.DataFrame({"prompt": gate.oof["prompt"], "kind": EVIL})
    empty = table.assign(csr=np.nan, low=np.nan, high=np.nan, p_reader=0.5)
    empty.attrs["reason"] = EVIL
    rates, fit = dict.fromkeys(VALUES, 0.2), geometry.circumplex_fit(vectors, resampled(vectors))
    scan = geometry.layer_scan(np.stack([planted(noise).values for noise in (2, 1, 0.5)]))
    acts, labels = clusters()
    return {
        "accuracy": figures.probe_accuracy(probes),
        "transfer": figures.transfer_by_step(probes, trap=probes),
        "curves": figures.layer_curves(probes, known_controls()),
        "calibration": figures.calibration_curve(probes),
        "generalisation": figures.generalisation(known_blocks()),
        "cloud": figures.activation_map(acts, labels, method="pca"),
        "cosines": figures.cosine_heatmap(vectors, reference="svs"),
        "circle": figures.circle_map(vectors, fit, human="svs"),
        "null": figures.permutation_null(fit),
        "steps": figures.similarity_by_step(fit, human="svs"),
        "round": figures.circular_profile(fit.similarity.sel(value="power"), measure=EVIL),
        "layers": figures.layer_geometry(scan),
        "gate": figures.gate_histogram(gate, kinds),
        "roc": figures.gate_roc(gate),
        "csr": figures.csr_bars(table),
        "no csr": figures.csr_bars(empty),
        "dose": figures.dose_response(known_curve()),
        "strip": figures.steering_strip(known_trace(), 1, target=0.94),
        "profile": figures.value_profile(rates, rates, EVIL, EVIL),
        "reading": reading(),
        "audit": figures.audit_figure(audit_pairs(some_pairs(), name=EVIL)),
    }
