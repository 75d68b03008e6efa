"""Evaluate steering on the embedded models: every method, all ten values, test questions, sampled and greedily.

    workbench bench eval_embedded

Probes come from the probe pairs, the gate and all strengths from calibration questions of `circle`; `confirm` is
evaluated with the very settings chosen on `circle`. Writes results/eval_embedded.csv.
"""

from pathlib import Path

import pandas as pd
import torch

import workbench as wb

RESULTS = Path(__file__).parent / "results"
C = 1e-4  # of the steering probes: with 1 they separate their pairs completely and P saturates
LAYERS = [3]  # the middle of the eight blocks
TARGETS = [(LAYERS, p) for p in (0.8, 0.85, 0.9, 0.94)]
STRENGTHS = [(LAYERS, s) for s in (0.3, 0.4, 0.5, 0.6)]


def setup(name: str):
    """(model, logistic probes, mean differences, gate) of an embedded model, fitted as the tour does."""
    model = wb.load_model(f"embedded:{name}")
    pairs, questions, unrelated = wb.load_pairs(), wb.load_questions(), wb.load_unrelated()
    questions, unrelated = (t[t["split"] == "calibration"] for t in (questions, unrelated))
    related = [*questions["question"], *unrelated.query("related")["prompt"]]
    gate = wb.ProbeGate.fit(model, related, unrelated.query("not related")["prompt"].tolist())
    return model, wb.fit_probes(model, pairs, C=C), wb.fit_probes(model, pairs, method="mean_difference"), gate


def main() -> None:
    torch.set_num_threads(1)
    tables, chosen = [], {}
    for name in ("circle", "confirm"):
        model, probes, differences, gate = setup(name)

        def conva(value, setting, gate=gate, probes=probes):
            return wb.ConVA(probes, value, target=setting[1], layers=setting[0], gate=gate)

        def caa(value, setting, gate=gate, differences=differences):
            return wb.CAA(differences, value, strength=setting[1], layers=setting[0], gate=gate)

        if name == "circle":
            for method, family, grid in (("ConVA", conva, TARGETS), ("CAA", caa, STRENGTHS)):
                chosen[method], _ = wb.evaluation.tune(model, family, grid, wb.load_questions())
        methods = {
            "Base": lambda value: wb.Base(),
            "ICA": lambda value: wb.ICA(value),
            "CAA": lambda value, caa=caa: caa(value, chosen["CAA"][value]),
            "ConVA": lambda value, conva=conva: conva(value, chosen["ConVA"][value]),
            "ConVA, no gate": lambda value, conva=conva: conva(value, chosen["ConVA"][value], gate=None),
            "random direction": lambda value, conva=conva: wb.RandomDirection(conva(value, chosen["ConVA"][value])),
        }
        for decoding, temperature in (("T = 1", 1.0), ("greedy", 0.0)):
            table = wb.evaluate(model, methods, wb.load_questions(), temperature=temperature)
            right = wb.evaluation.unrelated_accuracy(
                model, methods, wb.load_unrelated(), temperature=temperature, limit=40
            )
            table = table.merge(right[["method", "value", "accuracy"]], on=["method", "value"])
            table = table.rename(columns={"accuracy": "unrelated_accuracy"})
            setting = [
                chosen.get(m.split(",")[0], {}).get(v) for m, v in zip(table["method"], table["value"], strict=True)
            ]
            tables.append(table.assign(model=name, decoding=decoding, setting=setting))
            means = table.groupby("method", sort=False)[["csr", "fr", "leakage", "unrelated_accuracy"]].mean()
            print(f"{name}, {decoding}\n{means.round(3)}\n", flush=True)
    RESULTS.mkdir(exist_ok=True)
    pd.concat(tables).round(4).to_csv(RESULTS / "eval_embedded.csv", index=False)


if __name__ == "__main__":
    main()
