"""The sweep: every method on every value's questions, answered, judged, and told as rates with intervals.

Selection never touches test data: `tuning.tune` sees calibration questions only, `evaluate` test questions only.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ..activations import capture
from ..errors import WorkbenchError
from ..generate import generate
from ..models import Model
from ..probes import Probes
from ..rates import wilson
from ..steering.intervention import Intervention
from ..values import VALUES
from .judges import ExactJudge, Judge

Methods = Mapping[str, Callable[[str], Intervention]]
ROOM = 4  # tokens of the context that a prompt must leave for its answer
NO_JUDGE = "no judge: CSR and FR stay empty (the exact judge reads embedded worlds only)"


def default_judge(model: Model) -> ExactJudge | None:
    """The exact judge for an embedded model, None for any other."""
    return ExactJudge() if model.world else None


def answer(
    model: Model,
    methods: Methods,
    questions: pd.DataFrame,
    temperature: float | None = None,
    seed: int = 0,
    max_new_tokens: int = 64,
    progress: bool = False,
) -> pd.DataFrame:
    """Answers of every method to every value's questions: method, value, question, answer, note.

    A prompt that does not fit the model's context is not cut: its answer stays empty, its `note` "79 of 64 tokens".

    questions: columns value, question. temperature: None is 1 for embedded models and greedy for others (contract 10).
    Row r of a value is sampled from the same generator under every method, so methods differ by steering alone.
    """
    if temperature is None:
        temperature = 1.0 if model.world else 0.0
    parts, cut = [], []
    jobs = [(name, value) for name in methods for value in dict.fromkeys(questions["value"])]
    for name, value in tqdm(jobs, desc="answers", disable=not progress):
        asked = questions.loc[questions["value"] == value, "question"].tolist()
        steer = methods[name](value)
        note = too_long(model, asked, steer)
        given: list[str] = [""] * len(asked)
        fitting = [row for row, why in enumerate(note) if not why]
        if fitting:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                answers = generate(
                    model,
                    [asked[row] for row in fitting],
                    steer=steer,
                    temperature=temperature,
                    seed=seed,
                    max_new_tokens=max_new_tokens,
                )
            cut += [name for warning in told if "context" in str(warning.message)]
            for row, text in zip(fitting, answers, strict=True):
                given[row] = text
        parts.append(pd.DataFrame({"method": name, "value": value, "question": asked, "answer": given, "note": note}))
    if cut:  # said once, not for every value
        warnings.warn(
            f"Answers were cut where the context of {model.name} ({model.context} tokens) was full: "
            f"{', '.join(dict.fromkeys(cut))}.",
            stacklevel=2,
        )
    return pd.concat(parts, ignore_index=True)


def too_long(model: Model, questions: list[str], steer: Intervention) -> list[str]:
    """For each question "" or, where its prompt leaves no room for an answer in the context, "79 of 64 tokens"."""

    def told(prompts: Sequence[Any]) -> list[str]:
        counts = [len(ids) for ids in model.encode(prompts, chat=True)]
        return [f"{n} of {model.context} tokens" if n + ROOM > model.context else "" for n in counts]

    note = told(questions)
    fitting = [row for row, why in enumerate(note) if not why]
    edited, _ = steer.edit_prompts([questions[row] for row in fitting], model) if fitting else ([], None)
    for row, why in zip(fitting, told(edited), strict=True):
        note[row] = why
    return note


def score(answers: pd.DataFrame, judge: Judge | None) -> pd.DataFrame:
    """Rates per method and value: csr with its Wilson interval low, high; fr with fr_low, fr_high; leakage; n.

    csr: mean control over all answers, those that a gate left alone too. fr: share of fluent answers. leakage: mean
    over the other values of the rise of their csr above Base on the same questions (NaN without "Base"). Answers with a
    `note`, those whose prompts did not fit, count in `left_out` only.
    """
    counts = answers.groupby(["method", "value"], sort=False)["note"].agg(left_out=lambda note: (note != "").sum())
    answers = answers[answers["note"] == ""].reset_index(drop=True)
    if judge is None:
        n = answers.groupby(["method", "value"], sort=False).size().rename("n")
        table = counts.join(n).fillna({"n": 0}).astype({"n": int}).reset_index()
        empty = dict.fromkeys(("csr", "low", "high", "fr", "fr_low", "fr_high", "leakage"), np.nan)
        return table.assign(**empty)[["method", "value", *empty, "n", "left_out"]]
    control = np.array([[judge.control(text, value) for value in VALUES] for text in answers["answer"]])
    fluent = np.array([judge.fluent(text) for text in answers["answer"]], float)
    rates: dict[tuple[str, str], np.ndarray] = {}
    rows: list[dict[str, Any]] = []
    for (method, value), index in answers.groupby(["method", "value"], sort=False).indices.items():  # type: ignore[misc]
        csr, fr, n = control[index].mean(0), float(fluent[index].mean()), len(index)
        rates[method, value] = csr
        own = float(csr[VALUES.index(value)])
        (low, high), (fr_low, fr_high) = wilson(own, n), wilson(fr, n)
        rows.append(
            dict(method=method, value=value, csr=own, low=low, high=high, fr=fr, fr_low=fr_low, fr_high=fr_high, n=n)
        )
    for row in rows:
        base = rates.get(("Base", row["value"]))
        others = [i for i, value in enumerate(VALUES) if value != row["value"]]
        rise = np.nan if base is None else np.maximum(0, rates[row["method"], row["value"]] - base)[others].mean()
        row["leakage"] = rise
    table = pd.DataFrame(rows).merge(counts.reset_index(), on=["method", "value"])
    return table[["method", "value", "csr", "low", "high", "fr", "fr_low", "fr_high", "leakage", "n", "left_out"]]


def evaluate(
    model: Model,
    methods: Methods,
    questions: pd.DataFrame,
    judge: Judge | None = None,
    split: str | None = "test",
    limit: int | None = None,
    reader: Probes | None = None,
    **decoding: Any,
) -> pd.DataFrame:
    """Answer and score: one row per method and value (see `score` for the columns).

    judge: None takes the exact judge for embedded models; for other models csr and fr stay empty, and the table's
    attrs["reason"] says why. split: rows of `questions` to use where it has that column. limit: at most so many
    questions per value. reader: probes fitted on *other* pairs than those that steer; adds `p_reader`, the mean P_V of
    the answers at the reader's chosen layer: a reading by a probe, not a judgement. decoding: passed to `answer`.
    """
    questions = select(questions, split, limit)
    judge = judge or default_judge(model)
    answers = answer(model, methods, questions, **decoding)
    table = score(answers, judge)
    if reader is not None:
        table = table.merge(read_answers(model, answers, reader), on=["method", "value"], how="left")
    if judge is None:
        table.attrs["reason"] = NO_JUDGE
    return table


def select(questions: pd.DataFrame, split: str | None, limit: int | None = None) -> pd.DataFrame:
    """Questions of one split, at most `limit` per value; an error where that leaves none."""
    chosen = questions[questions["split"] == split] if split and "split" in questions else questions
    if limit is not None:
        chosen = chosen.groupby("value", sort=False).head(limit)
    if chosen.empty:
        raise WorkbenchError(
            f"Questions of split {split!r} were asked for.",
            found="none",
            allowed=", ".join(map(repr, questions.get("split", pd.Series(dtype=str)).unique())) or "split=None",
        )
    return chosen


def read_answers(model: Model, answers: pd.DataFrame, reader: Probes) -> pd.DataFrame:
    """Mean P_V of the answers under `reader` at its chosen layer: method, value, p_reader. Empty answers count .5."""
    layer = reader.choose_layer()
    answers = answers[answers["note"] == ""].reset_index(drop=True)
    texts = answers["answer"].where(answers["answer"].str.strip() != "", None)
    p = np.full(len(answers), 0.5)
    said = texts.notna().to_numpy()
    if said.any():
        read = reader.probability(capture(model, texts[said].tolist(), layers=[layer]).sel(layer=layer))
        p[said] = [float(read.sel(value=v)[i]) for i, v in enumerate(answers.loc[said, "value"])]
    return answers.assign(p_reader=p).groupby(["method", "value"], sort=False)["p_reader"].mean().reset_index()


def unrelated_accuracy(
    model: Model, methods: Methods, unrelated: pd.DataFrame, values: Sequence[str] = VALUES, split: str | None = "test",
    limit: int | None = None, judge: ExactJudge | None = None, **decoding: Any,
) -> pd.DataFrame:  # fmt: skip
    """Share of unrelated questions answered rightly while steering: method, value, accuracy, low, high, n.

    unrelated: columns prompt, kind, answer, related, split (embedded: `load_unrelated("embedded")`); rows without an
    answer are left out. limit: at most so many prompts, spread over the kinds.
    """
    judge = judge or ExactJudge()
    rows = unrelated[~unrelated["related"] & (unrelated["answer"] != "")]
    rows = rows[rows["split"] == split] if split else rows
    if limit is not None:
        turn = rows.groupby("kind").cumcount()
        rows = rows.loc[turn.sort_values(kind="stable").index[:limit]]
    asked = pd.concat([pd.DataFrame({"value": value, "question": rows["prompt"]}) for value in values])
    answers = answer(model, methods, asked, **{"max_new_tokens": 24, **decoding})
    expected = dict(zip(rows["prompt"], rows["answer"], strict=True))
    answers["right"] = [
        judge.right(a, expected[q]) for a, q in zip(answers["answer"], answers["question"], strict=True)
    ]
    out = []
    for (method, value), own in answers.groupby(["method", "value"], sort=False):  # type: ignore[misc]
        rate, n = float(own["right"].mean()), len(own)
        low, high = wilson(rate, n)
        out.append(dict(method=method, value=value, accuracy=rate, low=low, high=high, n=n))
    return pd.DataFrame(out)
