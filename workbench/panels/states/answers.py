"""The answers of an evaluation as arrays, so that a panel asks 160,000 of them in milliseconds.

Everything that a filter, a page or a comparison needs is worked out once: codes of columns, scores, which row is what
the base said to the same question and seed. What other judges said of the same answers is found by question and answer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import WorkbenchError
from ...evaluation.comparison import EVERY, KEYS, QUESTION, checked, scores
from ...evaluation.judges import HumanJudge, judged
from ...evaluation.results import Evaluation, open_evaluation
from ...values import VALUES

COLUMNS = ("method", "value", "about", "set", "prompt", "temperature", "seed")
"""Columns with few different entries, each of which can be chosen."""


class Answers:
    """Answers of an evaluation, or of the folder of one, row by row.

    table: the answers, numbered from 0; n rows. judge: name of who judged them. choices: column -> its entries, values
    in circular order, numbers in theirs, others as they come. codes: column -> place of each row's entry among them
    (n,). question: number of each row's question (n,). base: row of what the base said to the same, -1 without (n,).
    said: what was judged for each value (n, 10); own: for the steered one, whose place is `steered` (n,); fluent (n,);
    NaN where not judged. answered: whether there is an answer (n,). texts (n,); differs: from the base's (n,).

    Raises WorkbenchError for anything but an evaluation with answers.
    """

    def __init__(self, evaluation: Evaluation | str | Path):
        if isinstance(evaluation, str | Path):
            evaluation = open_evaluation(evaluation)
        if not isinstance(evaluation, Evaluation) or not len(evaluation.answers):
            found = "no answers" if isinstance(evaluation, Evaluation) else f"a {type(evaluation).__name__}"
            raise WorkbenchError("The answers of an evaluation were asked for.", found,
                                 "an Evaluation, as `study` and `open_evaluation` give it, or its folder")  # fmt: skip
        self.evaluation, self.base_name = evaluation, evaluation.base
        self.table = table = checked(evaluation.answers)
        self.judge = str(evaluation.provenance.get("judge") or "no judge")
        self.choices: dict[str, list[Any]] = {}
        self.codes: dict[str, np.ndarray] = {}
        for name in COLUMNS:
            self.codes[name], self.choices[name] = _coded(table[name], name)
        self.question = table.groupby(QUESTION, **EVERY).ngroup().to_numpy()
        self.base = self._base()
        self.said = np.stack([scores(table, value) for value in VALUES], axis=1)
        self.steered = np.array([VALUES.index(value) for value in self.choices["value"]])[self.codes["value"]]
        self.own = self.said[np.arange(len(table)), self.steered]
        self.fluent = scores(table, "fluent")
        self.answered = (table["note"] == "").to_numpy()
        self.texts = table["answer"].fillna("").to_numpy(object)
        self.differs = (self.base >= 0) & (self.texts != self.texts[self.base])

    def __len__(self) -> int:
        return len(self.table)

    def is_(self, column: str, entry: Any) -> np.ndarray:
        """Which rows have this entry in a column of `COLUMNS`."""
        return self.codes[column] == self.choices[column].index(entry)

    def _base(self) -> np.ndarray:
        key = self.question.astype(np.int64)
        for name in KEYS[: -len(QUESTION)]:
            key = key * len(self.choices[name]) + self.codes[name]
        there = np.flatnonzero(self.is_("method", self.base_name)) if self.base_name in self.choices["method"] else []
        if not len(there):
            return np.full(len(key), -1)
        there = there[np.argsort(key[there])]
        found = there[np.minimum(np.searchsorted(key[there], key), len(there) - 1)]
        return np.where(key[found] == key, found, -1)


def _coded(column: pd.Series, name: str) -> tuple[np.ndarray, list[Any]]:
    """Place of each row's entry among the entries, and these in their order."""
    codes, found = pd.factorize(column, use_na_sentinel=False)
    entries = [entry.item() if isinstance(entry, np.generic) else entry for entry in found]
    if name in ("value", "about"):
        circle = {value: place for place, value in enumerate(VALUES)}
        entries.sort(key=lambda entry: (circle.get(entry, len(circle)), str(entry)))
    elif name in ("temperature", "seed"):
        entries.sort()
    place = {entry: k for k, entry in enumerate(entries)}
    return np.array([place[entry] for entry in found])[codes], entries


def others_said(
    answers: Answers, others: Mapping[str, Evaluation | pd.DataFrame]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What other judges said of the same answers: name -> scores by value (n, 10), fluent (n,); NaN where nothing.

    others: name -> an evaluation or a table of answers that were judged (columns question, answer, and for values what
    was said), or an export of `annotate` (columns text, label, and where they are there question and value). An answer
    is the same where question and text are; judged several times, its mean counts. Raises WorkbenchError for other
    tables, for one without any of these answers, and for names that are taken.
    """
    found = {}
    for name, other in others.items():
        asked = f"The judgements of {name!r} were to be held beside those of {answers.judge!r}."
        if not isinstance(name, str) or not name.strip() or name == answers.judge:
            raise WorkbenchError(asked, do="Give every judge a name of its own.")
        table = other.answers if isinstance(other, Evaluation) else other
        if not isinstance(table, pd.DataFrame):
            raise WorkbenchError(asked, f"a {type(table).__name__}", "an Evaluation, or a table of judgements")
        columns = set(table.columns)
        if {"question", "answer"} <= columns and columns & set(VALUES):
            told = _of_table(answers, table)
        elif {"text", "label"} <= columns:
            told = _of_people(answers, table)
        else:
            raise WorkbenchError(asked, f"columns {', '.join(map(str, table.columns[:12]))}",
                                 "question, answer and a column for each value, as `judged` adds them; or an export of "
                                 "annotate, with text and label")  # fmt: skip
        if np.isnan(told).all():
            raise WorkbenchError(asked, f"{len(table)} rows, and no judgement of these answers among them",
                                 "judgements of the same answers to the same questions")  # fmt: skip
        found[name] = told[:, : len(VALUES)], told[:, len(VALUES)]
    return found


def _of_table(answers: Answers, table: pd.DataFrame) -> np.ndarray:
    keys, columns = ["question", "answer"], [name for name in (*VALUES, "fluent") if name in table]
    if "note" in table:
        table = table[table["note"] == ""]
    said = table.groupby(keys, sort=False)[columns].mean().reset_index()
    merged = answers.table[keys].merge(said, on=keys, how="left").reindex(columns=[*VALUES, "fluent"])
    return np.where(answers.answered[:, None], merged.to_numpy(float), np.nan)


def _of_people(answers: Answers, table: pd.DataFrame) -> np.ndarray:
    out = np.full((len(answers), len(VALUES) + 1), np.nan)
    rows = np.flatnonzero(answers.answered & answers.table["answer"].isin(table["text"]).to_numpy())
    if len(rows):
        said = judged(answers.table.iloc[rows], HumanJudge(table))
        out[rows] = said[[*VALUES, "fluent"]].to_numpy(float)
    return out
