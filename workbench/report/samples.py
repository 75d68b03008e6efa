"""Answers side by side: the same question, all methods, what was judged of each."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..values import VALUES

if TYPE_CHECKING:
    from ..evaluation.results import Evaluation

LABELS = {1.0: "acts on it", 0.5: "in between", 0.0: "does not act on it"}
LIMIT = 600  # characters of an answer


def samples(ev: "Evaluation", each: int = 8, seed: int = 0) -> list[dict[str, Any]]:
    """Groups of questions (title, questions), each with its answers: rows of (method, answer, what was judged).

    A bounded choice: `each` questions per value and prompt, and per unrelated set, drawn by `seed`; the main
    temperature and first seed; answers cut at `LIMIT` characters. Texts are as the model wrote them: escape them.
    """
    rng, groups = np.random.default_rng(seed), []
    a, main = ev.answers, ev.provenance["temperatures"][0]
    a = a[(a["temperature"] == main) & (a["seed"] == ev.provenance["seeds"][0])]
    for set_, prompt in (("own", "none"), ("own", "negative"), ("unrelated", "none"), ("hard", "none")):
        part = a[(a["set"] == set_) & (a["prompt"] == prompt)]
        by = part.groupby(["value", "question"], sort=False)
        jobs = [v for v in VALUES if v in {*part["value"]}]
        keys = part.drop_duplicates(["value", "question"])[["value", "question"]]
        if set_ == "own":
            behind = " behind a negative prompt" if prompt == "negative" else ""
            wanted = [(f"{v}{behind}", keys[keys["value"] == v]) for v in jobs]
        else:
            title = "unrelated prompts" if set_ == "unrelated" else "hard unrelated prompts"
            wanted = [(title, keys)] if jobs else []
        for title, asked in wanted:
            drawn = asked.iloc[np.sort(rng.permutation(len(asked))[:each])]
            pairs = zip(drawn["value"], drawn["question"], strict=True)
            chosen = [_question(by.get_group((v, q)), v, q, title) for v, q in pairs]
            groups.append({"title": title, "questions": chosen})
    return groups


def _question(answers: pd.DataFrame, value: str, question: str, title: str) -> dict[str, Any]:
    told = question if title.startswith(value) else f"{question}\n(while {value} is steered)"
    return {"question": _cut(told), "answers": [
        [str(row["method"]), _cut(row["answer"]), _judged(row)]
        for row in answers.drop_duplicates("method").to_dict("records")]}  # fmt: skip


def _cut(text: Any) -> str:
    text = str(text)
    return text if len(text) <= LIMIT else f"{text[:LIMIT]} [cut: {len(text)} characters]"


def _judged(row: dict[Any, Any]) -> str:
    """What was judged of an answer, in words."""
    if row["note"]:
        return f"no answer: {row['note']}"
    parts = []
    if row["set"] == "own":
        score = float(row.get(row["value"], np.nan))
        parts.append(f"{row['value']}: {LABELS.get(score, 'undefined' if np.isnan(score) else f'{score:g}')}")
        also = [v for v in VALUES if v != row["value"] and row.get(v) == 1]
        parts += [f"also acts on {', '.join(also)}"] if also else []
        fluent = float(row.get("fluent", np.nan))
        parts.append("fluency undefined" if np.isnan(fluent) else "fluent" if fluent else "not fluent")
    elif not np.isnan(right := float(row.get("right", np.nan))):
        parts.append("right" if right else "wrong")
    return "; ".join(parts + ["gate shut"] * (not row.get("open", True)))
