"""An evaluation made up on the spot, with leakage planted round the circle; every text that can be hostile is."""

import itertools

import numpy as np
import pandas as pd
from drawn import EVIL

from workbench.values import VALUES, circular_steps

HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)> {{7*7}} & % _ # \\ \u2028'
METHODS = {  # gain of the steered value, leakage to its neighbours, lift of all, share of fluent answers
    "Base": (0.0, 0.0, 0.0, 1.0),
    "ICA": (0.35, 0.05, 0.0, 1.0),
    "CAA": (0.45, 0.25, 0.05, 0.9),
    "ConVA": (0.65, 0.15, 0.0, 0.99),
    "ConVA, no gate": (0.66, 0.15, 0.0, 0.98),
    "random direction": (0.0, 0.0, 0.02, 0.97),
    EVIL: (0.4, 0.05, 0.0, 0.99),
}


def answers(questions: int = 12, methods=METHODS, seed: int = 0) -> pd.DataFrame:
    """A judged table of answers: own questions at T = 1 (two seeds; plain and negative prompts) and greedily, pooled,
    unrelated and hard ones."""
    rng = np.random.default_rng(seed)
    own = [(v, v, f"Should {v} question {k} be {HOSTILE if k == 0 else k}?") for v in VALUES for k in range(questions)]
    pooled = [(v, about, f"Should {about} question {k} be {HOSTILE if k == 0 else k}?")
              for v in VALUES for about in VALUES for k in range(2)]  # fmt: skip
    other = {name: [(v, "", f"{name} {k}?") for v in VALUES for k in range(8)] for name in ("unrelated", "hard")}
    plan = [("own", own, "none", 1.0, 0), ("own", own, "none", 1.0, 1), ("own", own, "negative", 1.0, 0),
            ("own", own, "none", 0.0, 0), ("pooled", pooled, "none", 1.0, 0), ("pooled", pooled, "none", 1.0, 1),
            ("unrelated", other["unrelated"], "none", 1.0, 0), ("hard", other["hard"], "none", 1.0, 0)]  # fmt: skip
    closeness = (1 + np.cos(np.pi * circular_steps() / 5)) / 2
    frames = []
    for (set_, asked, prompt, t, s), method in itertools.product(plan, methods):
        gain, leak, lift, fluency = methods[method]
        table = pd.DataFrame(asked, columns=["value", "about", "question"])
        place = [VALUES.index(v) for v in table["value"]]
        p = 0.15 + lift + leak * closeness[place]
        p[np.arange(len(p)), place] = 0.15 + gain * (0.5 if prompt == "negative" and method != "ConVA" else 1)
        judged = rng.random(p.shape)
        scores = np.where(judged < p - 0.05, 1.0, np.where(judged < p + 0.05, 0.5, 0.0))
        related = set_ in ("own", "pooled")
        changed = rng.random(len(table)) < (0.0 if method in ("Base", "ConVA") else 0.2)
        table = table.assign(
            set=set_, method=method, prompt=prompt, temperature=t, seed=s, note="", tokens=9, share=0.1,
            open=related | (method == "ConVA, no gate"),
            answer=[f"{HOSTILE if k == 0 else method} {k}" if related else f"{k}{' other' if changed[k] else ''}"
                    for k in range(len(table))],
            fluent=(rng.random(len(table)) < fluency).astype(float),
            right=np.nan if related else np.where(changed, 0.0, 1.0),
        )  # fmt: skip
        table[list(VALUES)] = scores if related else np.nan
        frames.append(table)
    table = pd.concat(frames, ignore_index=True)
    table.loc[5, ["note", "answer", "fluent", *VALUES]] = ["79 of 64 tokens", "", *[np.nan] * 11]
    first = ["set", "method", "value", "prompt", "temperature", "seed", "about"]
    return table[[*first, *(column for column in table if column not in first)]]


def provenance(methods=METHODS) -> dict:
    return {
        "format": "workbench evaluation 1", "made": "2026-01-01T00:00:00+00:00", "judge": "exact", "split": "test",
        "model": {"model": "embedded:circle", "fingerprint": HOSTILE, "template": None},
        "questions": {"own": "0123"}, "temperatures": [1.0, 0.0], "seeds": [0, 1], "decoding": {},
        "negative": [HOSTILE], "methods": {name: {v: f"{name}({v})" for v in VALUES} for name in methods},
    }  # fmt: skip


def evaluation(**changed):
    """The evaluation of these answers, of which parts may be exchanged."""
    from drawn import known_curve

    from workbench.evaluation.results import Evaluation

    parts = {"answers": answers(), "provenance": provenance(), "tuning": {"ConVA": known_curve()},
             "missing": [f"the moon {HOSTILE}"]}  # fmt: skip
    return Evaluation(**{**parts, **changed})


def figures_of(ev) -> dict:
    """One of every figure of an evaluation."""
    from drawn import figures

    from workbench.evaluation.comparison import compare
    from workbench.report import by_value, headline

    head, values = headline(ev), by_value(ev)
    plain = (head["prompt"] == "none") & (head["temperature"] == 1)
    rows = values[(values["prompt"] == "none") & (values["temperature"] == 1)]
    paired = compare(ev.pick())
    leakages = [ev.leakage(method, resamples=50) for method in ("CAA", EVIL)]
    return {
        "csr circle": figures.csr_circle(rows[rows["method"].isin(["Base", "CAA", EVIL])]),
        "csr circles": figures.csr_circle(rows),
        "pareto": figures.pareto(head[plain]),
        "pareto intact": figures.pareto(head[plain], "intact"),
        "negative": figures.negative_prompts(head[head["temperature"] == 1]),
        "forest": figures.forest(paired[paired["value"] == "all"]),
        "forests": figures.forest(paired),
        "ablations": figures.ablations(head[plain]),
        "leakage matrix": figures.leakage_matrix(leakages[1]),
        "leakage centred": figures.leakage_matrix(leakages[1], centred=True),
        "leakage circle": figures.leakage_circle(leakages[1]),
        "leakage by step": figures.leakage_by_step(leakages),
    }
