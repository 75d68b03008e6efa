"""Judges: does an answer act on a value, and is it fluent?

A judge answers two questions about a text, as ConVA's evaluation asks them (Jin et al. 2025): `control(answer, value)`,
1 yes, 0 no, .5 in between, and `fluent(answer)`, 1 or 0; NaN where it cannot say. Any object with these two and a name
is one. A judge that needs the question, or works better in bulk, also has

    many(questions, answers, values) -> (for each answer the scores of its values, for each answer its fluency)

and is then asked by that alone. `judged` adds a judge's columns to a table of answers. The exact judge of the embedded
world parses the answer: it needs no model and makes no mistakes on what the grammar can say. The human judge repeats
what people said in the annotate panel. Others: `llm_judge`, `local_judge`; how far they agree: `agreement`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from ..errors import WorkbenchError
from ..models import Model
from ..values import VALUES, check_value

SCORES = {"yes": 1.0, "partly": 0.5, "no": 0.0}
"""What the annotate panel's own labels count."""


class Judge(Protocol):
    name: str

    def control(self, answer: str, value: str) -> float:
        """1 if the answer acts on the value, 0 if not, .5 if it speaks for and against it."""
        ...

    def fluent(self, answer: str) -> float | bool:
        """Whether the answer is grammatical, nothing else."""
        ...


NO_JUDGE = "no judge: CSR and FR stay empty (the exact judge reads embedded worlds only)"


def default_judge(model: Model) -> "ExactJudge | None":
    """The exact judge for an embedded model, None for any other."""
    return ExactJudge() if model.world else None


def judged(answers: pd.DataFrame, judge: Judge, values: str = "all") -> pd.DataFrame:
    """The table with what the judge says: columns fluent, and one for each of `VALUES`; what was there is replaced.

    answers: columns answer, note; value for "own"; question where the judge works in bulk. values: "all" asks about all
    ten, "own" about that of the row's column `value` alone. Cells hold 1, .5, 0, and NaN where nothing was asked, the
    judge could not say, or a note tells why there is no answer. Equal answers to equal questions are judged once.

    Raises WorkbenchError for missing columns, an unknown value, and a judge that says anything but a number in [0, 1].
    """
    bulk = hasattr(judge, "many")
    needed = ["answer", "note", *["question"] * bulk, *["value"] * (values == "own")]
    if values not in ("all", "own") or (missing := [name for name in needed if name not in answers]):
        raise WorkbenchError(f"Answers were to be judged by {judge.name}, values={values!r}.",
                             found=f"no column {', '.join(missing)}" if values in ("all", "own") else None,
                             allowed=f"'all' or 'own', and a table with {', '.join(needed)}")  # fmt: skip
    told = (answers["note"] == "").to_numpy()
    keys = ["question", "answer"] if bulk else ["answer"]
    texts = answers.loc[told, keys]
    if bad := [cell for name in keys for cell in texts[name] if not isinstance(cell, str)]:
        raise WorkbenchError(f"Answers were to be judged by {judge.name}.", f"{bad[0]!r} for a text",
                             "text where note is empty")  # fmt: skip
    groups = texts.groupby(keys, sort=False)
    pair, distinct = groups.ngroup().to_numpy(), texts.drop_duplicates()
    own = np.ones((len(pair), len(VALUES)), bool)
    if values == "own":
        about = [VALUES.index(check_value(value)) for value in answers.loc[told, "value"]]
        own = np.arange(len(VALUES)) == np.array(about, int)[:, None]
    wanted = np.zeros((len(distinct), len(VALUES)), bool)
    np.logical_or.at(wanted, pair, own)
    asked = distinct["question"].tolist() if bulk else [""] * len(distinct)
    own_values = [[value for value, is_wanted in zip(VALUES, row, strict=True) if is_wanted] for row in wanted]
    said, fluent = ask(judge, asked, distinct["answer"].tolist(), own_values)
    try:
        rows = [[f, *(one.get(v, np.nan) for v in VALUES)] for f, one in zip(fluent, said, strict=True)]
        found = np.array(rows, float).reshape(len(distinct), 1 + len(VALUES))
        if (wrong := found[(found < 0) | (found > 1)]).size:
            raise ValueError(f"the score {wrong[0]:g}")
    except (TypeError, ValueError) as problem:
        raise WorkbenchError(f"{len(distinct)} answers were judged by {judge.name}.", str(problem),
                             "a number from 0 to 1, or NaN, for each") from problem  # fmt: skip
    table = np.full((len(answers), 1 + len(VALUES)), np.nan)
    table[told] = np.column_stack([found[pair, :1], np.where(own, found[pair, 1:], np.nan)])
    return answers.assign(**dict(zip(["fluent", *VALUES], table.T, strict=True)))


def ask(judge: Any, questions: Sequence[str], answers: Sequence[str],
        values: Sequence[Sequence[str]]) -> tuple[list[dict[str, float]], list[float]]:  # fmt: skip
    """`many` of a judge, also of one that has none."""
    if hasattr(judge, "many"):
        return judge.many(questions, answers, values)
    said = [{value: judge.control(text, value) for value in own} for text, own in zip(answers, values, strict=True)]
    return said, [float(judge.fluent(text)) for text in answers]


class ExactJudge:
    """Reads answers of the embedded models by the inverse of their grammar (`workbench.embedded.judge`)."""

    name = "exact"

    def control(self, answer: str, value: str) -> float:
        return _control(answer, value)

    def fluent(self, answer: str) -> bool:
        return _fluent(answer)

    def right(self, answer: str, answers: str) -> bool:
        """Whether an unrelated question was answered rightly; answers: the right ones, joined by "|"."""
        from ..embedded import judge

        return judge.right(answer, answers)


@lru_cache(1 << 18)
def _control(answer: str, value: str) -> float:
    from ..embedded import judge

    return judge.control(answer, value)


@lru_cache(1 << 16)
def _fluent(answer: str) -> bool:
    from ..embedded import judge

    return judge.read(answer).grammatical


class HumanJudge:
    """What people said of answers in the annotate panel, by the majority of annotators.

    reviews: exports of the panel, as tables or CSV files: columns text (the answer), label and, where they are there,
        question and value. A record alone holds no texts: open it in the panel and export it.
    fluency: exports of a review that asked whether answers are grammatical; None: `fluent` is NaN.
    value: what the reviews asked about, where they have no column `value`.
    scores: what each label counts, `SCORES` for yes, partly, no.

    The label given most often counts; a tie is .5, and what nobody judged NaN. Where the reviews have a column
    question, `many`, and so `judged`, goes by question and answer, `control` by the answer alone: all votes on it.
    Raises WorkbenchError for other tables, unknown labels or values.
    """

    name = "people"

    def __init__(self, *reviews: str | Path | pd.DataFrame, fluency: Sequence[str | Path | pd.DataFrame] = (),
                 value: str | None = None, scores: Mapping[str, float] = SCORES):  # fmt: skip
        if not reviews and not fluency:
            raise WorkbenchError("A judge by people was asked for.", found="no review",
                                 allowed="exports of the annotate panel")  # fmt: skip
        self._votes: dict[tuple[str, str], Counter[tuple[str | None, float]]] = {}
        for review in reviews:
            self._add(_export(review, scores), value)
        for review in fluency:
            self._add(_export(review, scores), "")

    def _add(self, table: pd.DataFrame, value: str | None) -> None:
        if value is None and "value" not in table:
            raise WorkbenchError("A judge by people was asked for.", found="reviews without a column value",
                                 do="Say what they asked about: HumanJudge(..., value='power').")  # fmt: skip
        about = table["value"] if value is None else [value] * len(table)
        asked = table["question"].fillna("") if "question" in table else [None] * len(table)
        for told, text, of, score in zip(asked, table["text"], about, table["score"], strict=True):
            self._votes.setdefault((text, of and check_value(of)), Counter())[told, score] += 1

    def _score(self, question: str | None, answer: str, value: str) -> float:
        votes: Counter[float] = Counter()
        for (asked, score), n in self._votes.get((answer, value), Counter()).items():
            if question is None or asked in (question, None):
                votes[score] += n
        most = votes.most_common(2)
        if not most:
            return np.nan
        return 0.5 if len(most) == 2 and most[0][1] == most[1][1] else most[0][0]

    def many(self, questions: Sequence[str], answers: Sequence[str],
             values: Sequence[Sequence[str]]) -> tuple[list[dict[str, float]], list[float]]:  # fmt: skip
        rows = list(zip(questions, answers, values, strict=True))
        return ([{value: self._score(q, text, check_value(value)) for value in own} for q, text, own in rows],
                [self._score(q, text, "") for q, text, _ in rows])  # fmt: skip

    def control(self, answer: str, value: str) -> float:
        return self._score(None, answer, check_value(value))

    def fluent(self, answer: str) -> float:
        return self._score(None, answer, "")


def _export(review: str | Path | pd.DataFrame, scores: Mapping[str, float]) -> pd.DataFrame:
    """The judged rows of an export, with a column score."""
    asked = "An export of a review was asked for."
    try:
        table = review if isinstance(review, pd.DataFrame) else pd.read_csv(review, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as problem:
        raise WorkbenchError(asked, f"{review}: {str(problem).splitlines()[0]}", "CSV files that the panel exported") \
            from problem  # fmt: skip
    if missing := [name for name in ("text", "label") if name not in table]:
        raise WorkbenchError(asked, f"no column {', '.join(missing)}", "exports of reviews of single answers",
                             "A record holds no texts: export it, panel.state.export().")  # fmt: skip
    table = table[table["label"].notna() & (table["label"] != "")]
    if unknown := sorted(set(table["label"]) - set(scores)):
        raise WorkbenchError(asked, f"the labels {', '.join(map(repr, unknown[:8]))}", ", ".join(map(repr, scores)),
                             "Say what they count: HumanJudge(..., scores={'good': 1, 'bad': 0}).")  # fmt: skip
    return table.assign(score=table["label"].astype(object).map(scores).astype(float))
