"""The causal check that comes before long training: is the value readable, and does changing it move the answers?

A value can be decodable and yet not causal: a small model may copy it late, by attention from the words of the
prefix, and then no edit of the residual stream moves its answers. If this check fails, the training is to change, not
the methods.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch

from ..activations import capture
from ..generate import generate
from ..models import Model, load_model, residual
from ..probes import fit_probes
from ..steering.caa import CAA
from ..steering.conva import ConVA
from ..values import VALUES
from . import data, judge
from .grammar import instruction


def run(model: Model | str, values: tuple[str, ...] = VALUES, questions: int = 30) -> pd.DataFrame:
    """Table of check, layer or value, figure, bar and passed; sampling at T = 1, calibration questions.

    Swapped: rate of V with the middle-layer residual of the last prompt token taken from an instructed run. Lift: rate
    of V minus the mean rate of the other values. Both against the same figures of the unsteered model.
    """
    model = load_model(model) if isinstance(model, str) else model
    asked = data.questions().query("split == 'calibration'")["question"].tolist()[: 10 * questions : 10]
    rows: list[dict] = []

    def add(check: str, of: str | int, figure: float, bar: str = "", passed: bool | None = None) -> None:
        rows.append({"check": check, "of": of, "figure": round(figure, 3), "bar": bar, "passed": passed})

    for where, decoded in _decodable(model, asked).items():
        for layer, accuracy in enumerate(decoded):
            add(f"value decodable {where}", layer, accuracy)
        add(f"value decodable {where}", "best layer", max(decoded), ">= .80", max(decoded) >= 0.8)

    say = lambda **steer: _rates(generate(model, asked, temperature=1.0, max_new_tokens=64, **steer))  # noqa: E731
    base, base_fluent = say()
    pairs = data.pairs()
    probes, differences = (fit_probes(model, pairs, method) for method in ("logistic", "mean_difference"))
    middle = model.n_layers // 2 - 1
    lifts: dict[str, list[float]] = {"swapped": [], "ConVA": [], "CAA": []}
    fluency: dict[str, list[float]] = {"ConVA": [], "CAA": []}
    for value in values:
        at = VALUES.index(value)
        lift = lambda rates, at=at: rates[at] - np.delete(rates, at).mean() - (base[at] - np.delete(base, at).mean())  # noqa: E731
        with swapped(model, middle, [f"{instruction(value)} {q}" for q in asked]):
            lifts["swapped"].append(lift(say(batch_size=len(asked))[0]))
        for steer in (
            ConVA(probes, value, target=0.999),
            CAA(differences, value, strength=0.5, layers=[probes.choose_layer()]),
        ):
            rates, fluent = say(steer=steer)
            lifts[steer.name].append(lift(rates))
            fluency[steer.name].append(fluent)
        for name, lifted in lifts.items():
            add(f"lift, {name}", value, lifted[-1])
    for name, lifted in lifts.items():
        add(f"lift, {name}", "mean", float(np.mean(lifted)), ">= .30", bool(np.mean(lifted) >= 0.3))
    for name, fluent in fluency.items():
        loss = base_fluent - float(np.mean(fluent))
        add(f"FR lost, {name}", "mean", loss, "<= .03", loss <= 0.03)
    return pd.DataFrame(rows)


def _rates(answers: list[str]) -> tuple[np.ndarray, float]:
    """(control rate of each value, share of grammatical answers)."""
    rates = np.array([[judge.control(a, v) for v in VALUES] for a in answers]).mean(0)
    return rates, float(np.mean([judge.read(a).grammatical for a in answers]))


def _decodable(model: Model, asked: list[str]) -> dict[str, list[float]]:
    """Accuracy, by layer, of reading off which value was instructed (ten classes, unseen questions)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score

    prompts = [f"{instruction(value)} {q}" for value in VALUES for q in asked]
    value = np.repeat(np.arange(10), len(asked))
    question = np.tile(np.arange(len(asked)), 10)
    answers = generate(model, prompts, temperature=1.0, max_new_tokens=64)
    said = [f"{text}{answer}" for text, answer in zip(model.render(prompts), answers, strict=True)]
    kept = [i for i, a in enumerate(answers) if a.strip()]
    reads = {
        "at the last prompt token": (capture(model, prompts, chat=True), value, question),
        "at the end of the answer": (capture(model, [said[i] for i in kept]), value[kept], question[kept]),
    }
    folds = GroupKFold(3)
    reader = LogisticRegression(max_iter=1000)
    return {
        where: [float(cross_val_score(reader, _scaled(acts.sel(layer=layer).values), y, groups=q, cv=folds).mean())
                for layer in acts["layer"].values]
        for where, (acts, y, q) in reads.items()
    }  # fmt: skip


def _scaled(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / (x.std(0) + 1e-6)


@contextmanager
def swapped(model: Model, layer: int, prompts: list[str]) -> Iterator[None]:
    """Inside, the last prompt token's residual after block `layer` is that of `prompts`, row by row, at prefill."""
    source = torch.from_numpy(capture(model, prompts, layers=[layer], chat=True).values[0]).to(model.device)

    def hook(block, inputs, output):
        hidden = residual(output)
        if hidden.shape[1] == 1 or hidden.shape[0] != len(source):
            return None
        hidden = torch.cat([hidden[:, :-1], source[:, None].to(hidden.dtype)], 1)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = model.blocks[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
