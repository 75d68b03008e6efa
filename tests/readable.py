"""An evaluation whose answers can be read: sentences that say what was judged of them, and hostile ones."""

import numpy as np
import pandas as pd
from evaluated import provenance

from workbench.evaluation.results import Evaluation
from workbench.values import VALUES, circular_steps

ATTACK = "<img src=x onerror=\"document.title='harmed'\"><script>document.title='harmed'</script>"
TURNED = "\u202e this was turned round \u2066 and never back \x07\x1b[31m"
METHODS = {  # gain of the steered value, leakage to its neighbours, lift of all
    "Base": (0.0, 0.0, 0.0), "CAA": (0.5, 0.35, 0.05), "ConVA": (0.65, 0.15, 0.0), "random direction": (0.0, 0.0, 0.03),
}  # fmt: skip
LIKES = dict(zip(VALUES, (
    "choosing one's own way", "a race through the hills", "a long warm bath", "winning the prize",
    "leading the council", "a safe house", "keeping to the rules", "the customs of the village", "helping a friend",
    "caring for all people",
), strict=True))  # fmt: skip
PEOPLE = "Mira Tomas Aiko Femi Lars Noor Priya Diego Hana Kofi Selma Jonas".split()


def _sentence(who: str, scores: np.ndarray, turn: int) -> str:
    said = [f"{who} should think of {LIKES[value]}." if score == 1 else
            f"Some would say {LIKES[value]}, others would not." for value, score in zip(VALUES, scores, strict=True)
            if score > 0]  # fmt: skip
    return " ".join([*(said or [f"It is up to {who}."]), f"There are {turn} days left to decide."])


def answers(questions: int = 12, seed: int = 0) -> pd.DataFrame:
    """Own questions of every value, two seeds and greedily, by all methods; no two answers are equal."""
    rng, closeness, rows = np.random.default_rng(seed), (1 + np.cos(np.pi * circular_steps() / 5)) / 2, []
    for temperature, s in ((1.0, 0), (1.0, 1), (0.0, 0)):
        for method, (gain, leak, lift) in METHODS.items():
            for place, value in enumerate(VALUES):
                p = 0.15 + lift + leak * closeness[place] ** 3
                p[place] = 0.15 + gain
                for n in range(questions):
                    draw, who = rng.random(len(VALUES)), PEOPLE[n % len(PEOPLE)]
                    scores = np.where(draw < p - 0.04, 1.0, np.where(draw < p + 0.04, 0.5, 0.0))
                    asked = f"Should {who} take up {LIKES[value]} or sell the bakery, as {n + 1} neighbours advise?"
                    rows.append({
                        "set": "own", "method": method, "value": value, "prompt": "none", "temperature": temperature,
                        "seed": s, "about": value, "question": asked, "answer": _sentence(who, scores, len(rows)),
                        "note": "", "open": bool(rng.random() < 0.9), "share": 1.0, "tokens": 20,
                        "fluent": float(rng.random() < 0.95), **dict(zip(VALUES, scores, strict=True)),
                    })  # fmt: skip
    table = pd.DataFrame(rows)
    caa = table.index[(table["method"] == "CAA") & (table["value"] == "power") & (table["temperature"] == 1.0)]
    for row, text in zip(caa, (ATTACK, TURNED, "power " * 20_000, "x" * 5000), strict=False):
        table.loc[row, "answer"] = text
        table.loc[row, list(VALUES)] = 0.0
        table.loc[row, ["power", "universalism"]] = 1.0
    table.loc[caa[4], ["answer", "note", "fluent", *VALUES]] = ["", "79 of 64 tokens", *[np.nan] * 11]
    return table


def evaluation() -> Evaluation:
    told = provenance(METHODS)
    told["model"] = {"model": "embedded:circle", "fingerprint": "0", "template": None}
    return Evaluation(answers(), told)


def second_judge(table: pd.DataFrame) -> pd.DataFrame:
    """Judgements of a third of the answers, another on every seventh of these."""
    part = table[table["note"] == ""].iloc[::3].copy()
    for row, value in part["value"].iloc[::7].items():
        part.loc[row, value] = 1 - part.loc[row, value]
    return part
