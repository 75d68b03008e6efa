"""Answers: what a steered model says to questions, with what its gate decided and how hard it was pushed."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ..errors import WorkbenchError
from ..generate import generate
from ..models import Instruction, Model
from ..steering.intervention import Intervention

Methods = Mapping[str, Callable[[str], Any]]
"""Name -> function from the steered value to an intervention."""
ROOM = 4  # tokens of the context that a prompt must leave for its answer


def ask(
    model: Model,
    steer: Intervention,
    questions: Sequence[str],
    instruction: Instruction = None,
    temperature: float = 0.0,
    seed: int = 0,
    max_new_tokens: int = 64,
    kl: bool = False,
    batch_size: int = 32,
) -> pd.DataFrame:
    """One row per question: question, answer, note, open, share, tokens, and with `kl` also kl.

    A prompt that leaves no room in the context is not cut: its answer stays empty and its `note` says "79 of 64
    tokens". open: whether the gate opened (at one token or more; True without gate). share: mean length of the edit
    over that of the state it was added to, over the answer's tokens and layers. kl: mean nats per token, KL(steered ||
    base). Row r is sampled by the generator of (seed, r) under every method, r among the prompts that fit. Warns
    where the context cut an answer.
    """
    asked = list(questions)
    each = [instruction] * len(asked) if instruction is None or isinstance(instruction, str) else list(instruction)
    note = too_long(model, asked, steer, each)
    fitting = [row for row, why in enumerate(note) if not why]
    table = pd.DataFrame({"question": asked, "answer": "", "note": note, "open": True, "share": np.nan, "tokens": 0})
    if kl:
        table["kl"] = np.nan
    if not fitting:
        return table
    answers, trace = generate(
        model, [asked[row] for row in fitting], steer=steer, temperature=temperature, seed=seed,
        max_new_tokens=max_new_tokens, return_trace=True, kl=kl, batch_size=batch_size,
        instruction=[each[row] for row in fitting],
    )  # fmt: skip
    table.loc[fitting, "answer"] = answers
    table.loc[fitting, "tokens"] = [len(ids) for ids in model.encode(answers)]
    if len(trace):
        trace = trace.assign(row=trace["row"].map(dict(enumerate(fitting))))
        told = {"share": trace.groupby("row")["share"].mean()}
        told |= {"open": trace.dropna(subset=["open"]).groupby("row")["open"].any().astype(bool)}
        told |= {"kl": trace.drop_duplicates(["row", "position"]).groupby("row")["kl"].mean()} if kl else {}
        for column, found in told.items():
            table[column] = table.index.map(found).where(table.index.isin(found.index), table[column])
        table["open"] = table["open"].astype(bool)
    return table


def answer(
    model: Model,
    methods: Methods,
    questions: pd.DataFrame,
    temperature: float | None = None,
    progress: bool = False,
    **decoding: Any,
) -> pd.DataFrame:
    """Answers of every method to every value's questions: method, value, temperature, then the columns of `ask`.

    questions: columns value, question. temperature: None is 1 for embedded models and greedy for others (contract 10).
    decoding: seed and others, as for `ask`.
    """
    temperature = default_temperature(model) if temperature is None else temperature
    parts, cut = [], []
    jobs = [(name, value) for name in methods for value in dict.fromkeys(questions["value"])]
    for name, value in tqdm(jobs, desc="answers", disable=not progress):
        asked = questions.loc[questions["value"] == value, "question"].tolist()
        table, was_cut = ask_quietly(model, methods[name](value), asked, temperature=temperature, **decoding)
        cut += [name] * was_cut
        parts.append(table.assign(method=name, value=value, temperature=temperature))
    warn_of_cuts(model, cut)
    table = pd.concat(parts, ignore_index=True)
    first = ["method", "value", "temperature"]
    return table[[*first, *(column for column in table if column not in first)]]


def ask_quietly(*given: Any, **decoding: Any) -> tuple[pd.DataFrame, bool]:
    """`ask`, and whether the context cut an answer, in place of its warning; other warnings come through."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        table = ask(*given, **decoding)
    of_cuts = [str(warning.message).startswith("The context of") for warning in told]
    for warning, known in zip(told, of_cuts, strict=True):
        if not known:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return table, any(of_cuts)


def warn_of_cuts(model: Model, names: Sequence[str]) -> None:
    """Says once, and not for every value, whose answers the context cut."""
    if names:
        warnings.warn(
            f"Answers were cut where the context of {model.name} ({model.context} tokens) was full: "
            f"{', '.join(dict.fromkeys(names))}.",
            stacklevel=3,
        )


def default_temperature(model: Model) -> float:
    return 1.0 if model.world else 0.0


def too_long(
    model: Model, questions: Sequence[str], steer: Intervention, instructions: Sequence[str | None]
) -> list[str]:
    """For each question "" or, where its prompt leaves no room for an answer in the context, "79 of 64 tokens"."""

    def told(prompts: Sequence[Any], rows: Sequence[int]) -> list[str]:
        counts = [len(i) for i in model.encode(prompts, chat=True, instruction=[instructions[row] for row in rows])]
        return [f"{n} of {model.context} tokens" if n + ROOM > model.context else "" for n in counts]

    note = told(questions, range(len(questions)))
    fitting = [row for row, why in enumerate(note) if not why]
    edited, _ = steer.edit_prompts([questions[row] for row in fitting], model) if fitting else ([], None)
    for row, why in zip(fitting, told(edited, fitting), strict=True):
        note[row] = why
    return note


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
