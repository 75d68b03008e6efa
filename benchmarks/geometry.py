"""Are the circumplex tests calibrated, do the intervals cover, is what was planted found, and how fast is it?

    workbench bench geometry
    python benchmarks/geometry.py [--only calibration,real,coverage,recovery,speed] [--nulls 1000] [--repeats 500]

calibration: share of p <= .05 among sets of exchangeable vectors, of each statistic, with the best of eight correlated
    layers chosen, with the best of the four circles chosen, and of nineteen values by Monte Carlo.
real: the same on activations of `embedded:circle` whose pairs of texts change values at random.
coverage: of 95 % intervals, ours (reflected) and percentile ones, where the truth is a bent circle, at three split-half
    cosines.
recovery: cosines with and between planted vectors against what theory gives, at three noise levels.
speed: seconds on one thread, the median of several.
Writes results/geometry.json.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq

from workbench.geometry import circumplex_fit, human_reference, layer_scan
from workbench.geometry.labellings import STATISTICS, Circle, compute_statistic, null_distribution, share_at_least
from workbench.geometry.similarity import cosine_matrices
from workbench.values import VALUES, VALUES19, angles

RESULTS = Path(__file__).parent / "results"
TESTS = {"ci": "p", "spearman": "spearman_p", "pearson": "pearson_p", "procrustes_r2": "procrustes_p"}
CIRCLE = Circle("equal", VALUES)
D_MODEL, PAIRS, LAYERS = 64, 40, 8


# --- Calibration ---


def null_layers(rng: np.random.Generator, correlation: float = 0.8) -> np.ndarray:
    """Exchangeable vectors at LAYERS layers, each like the one before: (layer, value, d_model)."""
    layers = [rng.normal(size=(len(VALUES), D_MODEL))]
    for _ in range(LAYERS - 1):
        fresh = rng.normal(size=layers[0].shape)
        layers.append(correlation * layers[-1] + np.sqrt(1 - correlation**2) * fresh)
    return np.stack(layers)


def rejected(p: Any, **about: Any) -> dict[str, Any]:
    return {**about, "nulls": len(p), "rejected": float(np.mean(np.asarray(p) <= 0.05))}


def p_values(matrices: np.ndarray) -> dict[str, list[float]]:
    """p of each statistic of (m, n, n), as a fit has them."""
    p = {}
    for name in STATISTICS:
        observed, p[name] = compute_statistic(name, matrices, CIRCLE), []
        for at in range(0, len(matrices), 20):
            null = null_distribution(name, matrices[at : at + 20], [CIRCLE])
            p[name] += map(share_at_least, null, observed[at : at + 20])
    return p


def calibration(nulls: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    layers = [null_layers(rng) for _ in range(nulls)]
    rows = [rejected(p, test=name)
            for name, p in p_values(cosine_matrices(np.stack(layers)[:, 0], True, VALUES)).items()]  # fmt: skip
    best = pd.concat([scan[scan["best"]] for scan in map(layer_scan, layers)])
    circles = pd.concat([table[table["best"]] for table in
                         (circumplex_fit(vectors[0]).layouts() for vectors in layers[: nulls // 20])])  # fmt: skip
    nineteen = [circumplex_fit(rng.normal(size=(len(VALUES19), D_MODEL)), labellings=999, seed=k).p
                for k in range(nulls)]  # fmt: skip
    return rows + [rejected(best["p_selected"], test="ci of the best of 8 layers, the choice inside the null"),
                   rejected(best["p"], test="the same, the choice ignored (wrong)"),
                   rejected(circles["p_selected"], test="ci of the best of 4 circles, the choice inside the null"),
                   rejected(nineteen, test="ci of nineteen, 999 labellings (Monte Carlo)")]  # fmt: skip


def real(nulls: int) -> list[dict[str, Any]]:
    """Mean differences of real activations whose pairs were shared out among the values at random."""
    import workbench as wb
    from workbench.probes.pairs import PairActivations

    acts = PairActivations.capture(wb.load_model("embedded:circle"), wb.load_pairs())
    layer = acts.layers[len(acts.layers) // 2]
    drawn = acts.resample(layer, 2, splits=1).differences
    X, of = drawn.values.astype(float), drawn["value"].values.astype(str)
    found = circumplex_fit(np.stack([X[of == value].mean(0) for value in VALUES]))
    rng, mixed = np.random.default_rng(0), []
    for _ in range(nulls):
        order = rng.permutation(of)
        mixed.append(np.stack([X[order == value].mean(0) for value in VALUES]))
    about = {"layer": layer, "pairs": len(X)}
    return [rejected(p, test=name, **about, p_of_the_true_values=getattr(found, TESTS[name]))
            for name, p in p_values(cosine_matrices(np.stack(mixed), True, VALUES)).items()]  # fmt: skip


# --- Coverage ---


def bent_circle(rng: np.random.Generator, bend: float) -> np.ndarray:
    """Ten vectors near a circle, each off its place by `bend` radii in a direction of its own (of five, the circle's
    among them, so that the order suffers too): (value, d_model).
    """
    axes = np.linalg.qr(rng.normal(size=(D_MODEL, D_MODEL)))[0]
    theta = angles()
    circle = np.column_stack([np.cos(theta), np.sin(theta)]) @ axes[:2]
    return circle + 2 * axes[5] + bend * rng.normal(size=(len(VALUES), 5)) @ axes[:5] / np.sqrt(5)


def noise_for(vectors: np.ndarray, split_half: float) -> float:
    """Sd of each coordinate of a pair's difference that gives centred vectors this mean split-half cosine."""
    lengths, kept = ((vectors - vectors.mean(0)) ** 2).sum(1), D_MODEL * (1 - 1 / len(vectors)) / (PAIRS / 2)
    return brentq(lambda sd: (lengths / (lengths + kept * sd**2)).mean() - split_half, 1e-3, 1e3)  # type: ignore


def resample(differences: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Means of (value, pair, d_model) over pairs drawn with replacement: (resample, value, d_model)."""
    pairs = differences.shape[1]
    counts = rng.multinomial(pairs, np.full(pairs, 1 / pairs), size=(len(differences), n)) / pairs
    return (counts @ differences).swapaxes(0, 1)


def coverage(split_half: float, repeats: int, bend: float = 1.0, resamples: int = 400,
             seed: int = 0) -> list[dict[str, Any]]:
    """How often the 95 % intervals hold the truth, and how wide they are, over fresh texts of fresh bent circles."""
    rng, seen, halves, truths = np.random.default_rng(seed), [], [], []
    parts = {"every similarity": np.triu_indices(len(VALUES), 1), "opposed": ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])}
    for _ in range(repeats):
        planted = bent_circle(rng, bend)
        differences = planted[:, None] + noise_for(planted, split_half) * rng.normal(size=(len(VALUES), PAIRS, D_MODEL))
        a, b = (part.mean(1) - part.mean((0, 1)) for part in np.split(differences, 2, axis=1))
        halves.append(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())
        fit = circumplex_fit(differences.mean(1), bootstrap=resample(differences, resamples, rng))
        assert fit.resamples is not None and fit.intervals is not None and fit.similarity_intervals is not None
        assert fit.matrices is not None
        truth = cosine_matrices(planted, True, VALUES)
        true = np.array([compute_statistic(key, truth, CIRCLE) for key in STATISTICS])
        percentile, ends = (0.025, 0.975), fit.similarity_intervals.values
        cases = [(true, fit.intervals[["low", "high"]].to_numpy().T, fit.resamples.quantile(percentile).to_numpy())]
        cases += [(truth[at], ends[:, *at], np.quantile(fit.matrices[:, *at], percentile, axis=0))
                  for at in parts.values()]  # fmt: skip
        measured = [np.stack([(ours[0] <= t + 1e-9) & (t <= ours[1] + 1e-9), (theirs[0] <= t) & (t <= theirs[1]),
                              ours[1] - ours[0]]) for t, ours, theirs in cases]  # fmt: skip
        seen.append(np.hstack([measured[0], *(part.mean(1, keepdims=True) for part in measured[1:])]))
        truths.append([*true, *(truth[at].mean() for at in parts.values())])
    mean, true = np.mean(seen, axis=0), np.mean(truths, axis=0)
    return [{"statistic": name, "split_half": split_half, "split_half_seen": float(np.mean(halves)), "repeats": repeats,
             "truth": true[k], "covered": mean[0, k], "percentile": mean[1, k], "width": mean[2, k]}
            for k, name in enumerate([*STATISTICS, *parts])]  # fmt: skip


# --- Recovery ---


def recovery(noises: tuple[float, ...] = (0.3, 1.0, 3.0), draws: int = 40, d_model: int = 2048) -> list[dict[str, Any]]:
    """Vectors c_v + 2 g + e_v, c on a unit circle, |e| = noise in isotropic directions.

    Theory (large d_model): cosine with the planted vector sqrt(5 / (5 + s²)); raw similarity (cos + 4) / (5 + s²);
    centred similarity (cos - s²/n) / (1 + s² (1 - 1/n)).
    """
    rows, theta, n = [], angles(), len(VALUES)
    planted = np.zeros((n, d_model))
    planted[:, 0], planted[:, 1], planted[:, 2] = np.cos(theta), np.sin(theta), 2
    closeness, steps = CIRCLE.closeness, CIRCLE.steps
    for noise in noises:
        rng, s2 = np.random.default_rng(0), noise**2
        given = planted + noise * rng.normal(size=(draws, n, d_model)) / np.sqrt(d_model)
        lengths = np.linalg.norm(given, axis=-1) * np.linalg.norm(planted, axis=-1)
        rows.append({"noise": noise, "what": "cosine with the planted vector", "theory": np.sqrt(5 / (5 + s2)),
                     "found": float(((given * planted).sum(-1) / lengths).mean())})  # fmt: skip
        for centred, theory in ((False, (closeness + 4) / (5 + s2)),
                                (True, (closeness - s2 / n) / (1 + s2 * (1 - 1 / n)))):  # fmt: skip
            found = cosine_matrices(given, centred, VALUES).mean(0)
            for step in range(1, 6):
                at, what = steps == step, f"{'centred' if centred else 'raw'} similarity at step {step}"
                rows.append({"noise": noise, "what": what, "theory": float(theory[at].mean()),
                             "found": float(found[at].mean())})  # fmt: skip
    return [{**row, "off": row["found"] - row["theory"]} for row in rows]


# --- Speed ---


def a_resampled(rng: np.random.Generator, d_model: int, n: int = 1000, splits: int = 50) -> Any:
    """What `PairActivations.resample` returns, of a planted circle."""
    import xarray as xr

    vectors = rng.normal(size=(len(VALUES), d_model)) + 3 * rng.normal(size=d_model)
    vectors[:, :2] += 10 * np.column_stack([np.cos(angles()), np.sin(angles())])
    differences = vectors[:, None] + 3 * rng.normal(size=(len(VALUES), PAIRS, d_model))
    order = rng.permuted(np.tile(np.arange(PAIRS), (splits, 1)), axis=1) < PAIRS // 2
    halves = np.stack([np.stack([differences[:, half].mean(1) for half in side]) for side in (order, ~order)])
    names, dims = {"value": list(VALUES)}, ("value", "d_model")
    texts = [f"text {k}" for k in range(len(VALUES) * PAIRS)]
    return SimpleNamespace(
        vectors=xr.DataArray(differences.mean(1), names, dims), draws="same",
        bootstrap=xr.DataArray(resample(differences, n, rng).astype(np.float32), names, ("resample", *dims)),
        halves=xr.DataArray(halves, names, ("half", "split", *dims)),
        differences=xr.DataArray(differences.reshape(-1, d_model), dims=("pair", "d_model"), coords={
            "value": ("pair", np.repeat(VALUES, PAIRS)), "positive": ("pair", texts), "negative": ("pair", texts)}),
    )  # fmt: skip


def whole(resampled: Any) -> None:
    """Every statistic, interval and p of a fit."""
    fit = circumplex_fit(resampled)
    assert fit.raw is not None
    for each in (fit, fit.raw):
        _ = each.table(), each.conflicts(), each.spread(), each.profiles(), each.similarity_intervals
        _ = each.step_intervals
    for kind, start in (("classical", "classical"), ("metric", "theory"), ("nonmetric", "classical")):
        fit.mds(kind, start)
    _ = fit.claim(), fit.layouts(), fit.compare(human_reference()).table(), fit.compare(fit.raw).table()


def speed(repeat: int = 5) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    layers, resampled = rng.normal(size=(32, len(VALUES), 4096)), a_resampled(rng, 4096)
    nineteen, fit = rng.normal(size=(len(VALUES19), 4096)), circumplex_fit(layers[0])
    cases: dict[str, tuple[Callable[[], Any], int]] = {
        "exact RTHOR, ten equal steps": (lambda: circumplex_fit(layers[0]).p, repeat),
        "exact RTHOR, nine wedges": (lambda: circumplex_fit(layers[0], layout="wedges").p, repeat),
        "default fit, no p asked": (lambda: circumplex_fit(layers[0]), repeat),
        "table of a fit: every p": (lambda: circumplex_fit(layers[0]).table(), repeat),
        "nineteen, 19,999 labellings": (lambda: circumplex_fit(nineteen).p, repeat),
        "best of 32 layers": (lambda: layer_scan(layers), repeat),
        "four circles, best inside the null": (fit.layouts, 2),
        "comparison with people, 10! labellings": (lambda: fit.compare(human_reference()).table(), 2),
        "non-metric MDS with both nulls": (lambda: fit.mds("nonmetric"), 2),
        "everything, 1,000 resamples of d_model 4,096": (lambda: whole(resampled), 1),
    }
    rows = []
    for name, (run, times) in cases.items():
        seconds = []
        for _ in range(times + (times > 1)):  # the first round also enumerates the labellings
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        rows.append({"what": name, "seconds": median(seconds[times > 1 :]), "first": seconds[0]})
    return rows


def report(section: str, settings: dict[str, Any], rows: list[dict[str, Any]], out: Path) -> None:
    """Print the table and put it into its section of the results file."""
    print(f"\n{section}\n{pd.DataFrame(rows).round(4).to_string(index=False)}", flush=True)
    found = json.loads(out.read_text()) if out.is_file() else {}
    machine = {"cpus": os.cpu_count(), "processor": platform.machine(), "threads": 1,
               **{library: version(library) for library in ("numpy", "scipy", "scikit-learn")}}  # fmt: skip
    rounded = [{key: float(f"{x:.4g}") if isinstance(x, float) else x for key, x in row.items() if x == x}
               for row in rows]  # fmt: skip
    found[section] = {"machine": machine, "settings": settings, "rows": rounded}
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="calibration,real,coverage,recovery,speed")
    parser.add_argument("--nulls", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=500, help="simulated data sets for each coverage")
    parser.add_argument("--out", type=Path, default=RESULTS / "geometry.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    shape = {"d_model": D_MODEL, "pairs": PAIRS}
    sections: dict[str, tuple[dict[str, Any], Callable[[], list[dict[str, Any]]]]] = {
        "calibration": ({"d_model": D_MODEL, "layers": LAYERS}, lambda: calibration(args.nulls)),
        "real": ({"model": "embedded:circle"}, lambda: real(args.nulls)),
        "coverage": ({**shape, "resamples": 400, "bend": 1.0},
                     lambda: [row for h in (0.9, 0.6, 0.3) for row in coverage(h, args.repeats)]),
        "recovery": ({"d_model": 2048, "draws": 40}, recovery),
        "speed": ({}, speed),
    }  # fmt: skip
    for name in args.only.split(","):
        settings, run = sections[name]
        report(name, settings, run(), args.out)


if __name__ == "__main__":
    main()
