"""State of the results browser: which answers match, at which rate, and which one is looked at. No widgets.

Every filter is a mask over all answers that is kept until its setting changes, so that a change costs milliseconds.
"""

from collections.abc import Generator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import traitlets as t

from ...errors import WorkbenchError
from ...evaluation.results import Evaluation
from ...rates import wilson
from ...values import VALUES
from .answers import COLUMNS, Answers, others_said

ANY = None
YES_NO = (ANY, "yes", "no", "missing")
SCORES = (ANY, "1", "between", "0", "missing")
AGREE, DISAGREE = "all agree", "two disagree"
FILTERS = (*COLUMNS, "score", "fluent", "gate", "differs", "judges", "text")
PAGE = 10
CLOSE = 1e-9  # scores that far apart are the same: means of equal numbers are rounded
CHUNK = 300  # rows of an export at a step


class Rate(NamedTuple):
    """A mean of scores, first within a question and then over questions, and Wilson's 95 % interval of so many."""

    mean: float
    low: float
    high: float
    questions: int
    answers: int  # that were judged


class ResultsState(t.HasTraits):
    """A view of an evaluation's answers through filters; None lets all through.

    method, value (that is steered), about (whose question it is), set, prompt, temperature, seed: one of `choices`.
    score: what the evaluation's judge said of the steered value: "1", "between", "0", "missing". fluent, gate (whether
    it let the method act), differs (the text from the base's on the same question and seed): "yes", "no", "missing".
    judges: "all agree" or "two disagree" on the steered value, or two names that do, of answers that two or more
    judged. text: plain text in question or answer, upper and lower case alike. position: of the answer that is looked
    at, among those that match, from 0. What is not to be had raises WorkbenchError and changes nothing.

    matches: rows that match, in the table's order. exported: path of the last export.
    """

    method = t.Any(ANY)
    value = t.Any(ANY)
    about = t.Any(ANY)
    set = t.Any(ANY)
    prompt = t.Any(ANY)
    temperature = t.Any(ANY)
    seed = t.Any(ANY)
    score = t.Any(ANY)
    fluent = t.Any(ANY)
    gate = t.Any(ANY)
    differs = t.Any(ANY)
    judges = t.Any(ANY)
    text = t.Unicode("")
    position = t.Int(0)

    matches: Any = t.Instance(np.ndarray)
    exported = t.Unicode("")

    def __init__(
        self, evaluation: Evaluation | str | Path, others: Mapping[str, Evaluation | pd.DataFrame] | None = None,
        folder: str | Path = ".", **filters: Any,
    ):  # fmt: skip
        """others: see `others_said`. folder: where exports go. filters: settings to begin with."""
        if unknown := [name for name in filters if name not in FILTERS]:
            raise WorkbenchError(f"Filters {', '.join(unknown)} were asked for.", allowed=", ".join(FILTERS))
        self.answers = answers = Answers(evaluation)
        self.folder = Path(folder).expanduser()
        self.said = {answers.judge: (answers.said, answers.fluent), **others_said(answers, others or {})}
        rows = np.arange(len(answers))
        self.own = np.stack([said[rows, answers.steered] for said, _ in self.said.values()], axis=1)
        self.choices: dict[str, list[Any]] = {name: [ANY, *answers.choices[name]] for name in COLUMNS}
        pairs = list(combinations(self.said, 2))
        self.choices |= {"score": list(SCORES), "fluent": list(YES_NO), "gate": list(YES_NO), "differs": list(YES_NO)}
        self.choices["judges"] = [ANY, DISAGREE, AGREE, *(pairs if len(pairs) > 1 else [])] if pairs else [ANY]
        questions = answers.table.groupby(answers.question)["question"].first().astype(str)
        self._questions = [question.casefold() for question in questions]
        self._texts = [str(text).casefold() for text in answers.texts]
        self._gate = _float(answers.table["open"]) if "open" in answers.table else np.full(len(answers), np.nan)
        self._two, self._spread = _spread(self.own)
        self._masks: dict[str, tuple[Any, np.ndarray]] = {}
        self._sought = "", np.zeros(len(answers), bool), np.zeros(len(answers), bool)  # text, rows searched, and found
        super().__init__(matches=rows, **filters)
        self.observe(lambda _: self._filter(), FILTERS)
        self._filter()

    # -- settings ------------------------------------------------------------------------------------------------------

    @t.validate(*FILTERS[:-1])
    def _check_filter(self, proposal: Any) -> Any:
        name, setting = proposal["trait"].name, proposal["value"]
        for choice in self.choices[name]:
            if setting is choice or choice is not ANY and setting == choice:
                return choice
        raise WorkbenchError(f"Answers with {name} {setting!r} were asked for.", found="no such choice",
                             allowed=", ".join(map(repr, self.choices[name][:40])))  # fmt: skip

    @t.validate("position")
    def _check_position(self, proposal: Any) -> int:
        if proposal["value"] not in range(max(1, len(self.matches))):
            raise WorkbenchError(f"Answer {proposal['value'] + 1} was asked for.",
                                 allowed=f"1 to {max(1, len(self.matches))}")  # fmt: skip
        return proposal["value"]

    @property
    def filters(self) -> dict[str, Any]:
        """The filters that are set."""
        held = {name: getattr(self, name) for name in FILTERS}
        return {name: held[name] for name in FILTERS if held[name] is not ANY and (name, held[name]) != ("text", "")}

    def clear(self) -> None:
        """Let all answers through."""
        with self.hold_trait_notifications():
            for name in FILTERS:
                setattr(self, name, "" if name == "text" else ANY)

    # -- filtering -----------------------------------------------------------------------------------------------------

    def _filter(self) -> None:
        through = np.ones(len(self.answers), bool)
        for name in self.filters:  # text is the last: only what the others let through is searched
            through &= self._with_text(through) if name == "text" else self._mask(name)
        matches, row = np.flatnonzero(through), self.row
        if np.array_equal(matches, self.matches):
            return
        at = int(np.searchsorted(matches, row)) if row is not None else 0
        stays = at < len(matches) and matches[at] == row
        with self.hold_trait_notifications():
            self.matches, self.position = matches, at if stays else 0

    def _mask(self, name: str) -> np.ndarray:
        setting = getattr(self, name)
        if name not in self._masks or self._masks[name][0] != setting:
            self._masks[name] = setting, self._made(name, setting)
        return self._masks[name][1]

    def _made(self, name: str, setting: Any) -> np.ndarray:
        answers = self.answers
        if name in COLUMNS:
            return answers.is_(name, setting)
        if name == "score":
            own = answers.own
            return {"1": own == 1, "0": own == 0, "between": (own > 0) & (own < 1), "missing": np.isnan(own)}[setting]
        if name == "differs":
            there = answers.base >= 0
            return {"yes": answers.differs, "no": there & ~answers.differs, "missing": ~there}[setting]
        if name in ("fluent", "gate"):
            said = answers.fluent if name == "fluent" else self._gate
            return {"yes": said >= 0.5, "no": said < 0.5, "missing": np.isnan(said)}[setting]
        if setting in (AGREE, DISAGREE):
            return self._two & ((self._spread > CLOSE) == (setting == DISAGREE))
        one, two = (self.own[:, list(self.said).index(judge)] for judge in setting)
        return np.abs(one - two) > CLOSE  # NaN is not

    def _with_text(self, among: np.ndarray) -> np.ndarray:
        """Which of these rows have the text; what lacked its beginning while it was typed is not searched again."""
        wanted, (before, searched, found) = self.text.casefold(), self._sought
        if wanted != before:
            searched = searched & ~found if before in wanted else np.zeros_like(searched)
            found = np.zeros_like(found)
        rows, texts = np.flatnonzero(among & ~searched), self._texts
        asked = np.array([wanted in question for question in self._questions])[self.answers.question[rows]]
        found[rows] = asked | np.array([wanted in texts[row] for row in rows.tolist()], bool)
        self._sought = wanted, searched | among, found
        return found

    # -- what matches --------------------------------------------------------------------------------------------------

    @property
    def row(self) -> int | None:
        """Row of the answer that is looked at; None where none matches."""
        return int(self.matches[self.position]) if len(self.matches) else None

    @property
    def page(self) -> np.ndarray:
        """Rows of the page on which the answer that is looked at stands; `PAGE` at most."""
        first = self.position - self.position % PAGE
        return self.matches[first : first + PAGE]

    def move(self, step: int) -> None:
        """Look at another of the matching answers; the ends stop it."""
        self.position = min(max(self.position + step, 0), max(0, len(self.matches) - 1))

    def rate(self, what: str = "control") -> Rate:
        """Of the answers that match: "control", the steered value's score by the evaluation's judge, or "fluent".

        As in `comparison.rates`: several answers to one question are not independent, so questions are counted.
        """
        scores = (self.answers.own if what == "control" else self.answers.fluent)[self.matches]
        there = ~np.isnan(scores)
        questions = self.answers.question[self.matches[there]]
        counts = np.bincount(questions)
        sums = np.bincount(questions, scores[there])
        asked = counts > 0
        if not asked.any():
            return Rate(np.nan, np.nan, np.nan, 0, 0)
        mean = float((sums[asked] / counts[asked]).mean())
        return Rate(mean, *wilson(mean, asked.sum()), int(asked.sum()), int(there.sum()))

    def agreement(self) -> tuple[int, int]:
        """Of the answers that match: how many two judges or more judged, and on how many of these they agree."""
        two = self._two[self.matches]
        return int(two.sum()), int((self._spread[self.matches][two] <= CLOSE).sum())

    # -- files ---------------------------------------------------------------------------------------------------------

    def table(self, rows: Any = None) -> pd.DataFrame:
        """The answers that match, with all columns, what other judges said ("power (Ana)", "fluent (Ana)"), "base
        answer", and "row", their place in the evaluation's table. rows: these instead.
        """
        rows = self.matches if rows is None else np.asarray(rows)
        answers, more = self.answers, {}
        for name, (said, fluent) in list(self.said.items())[1:]:
            more |= {f"{value} ({name})": said[rows, k] for k, value in enumerate(VALUES)}
            more[f"fluent ({name})"] = fluent[rows]
        base = pd.Series(np.where(answers.base[rows] >= 0, answers.texts[answers.base[rows]], None), rows, object)
        told = pd.DataFrame({**more, "base answer": base, "row": rows}, index=rows)
        return pd.concat([answers.table.iloc[rows], told], axis=1).reset_index(drop=True)

    def export(self, path: str | Path | None = None) -> Path:
        """Write `table` as CSV; None: as answers.csv, answers-2.csv ... in the folder. Nothing is ever overwritten.

        Returns the path; WorkbenchError where the file is there or cannot be written.
        """
        for _ in self.exporting(path):
            pass
        return Path(self.exported)

    def exporting(self, path: str | Path | None = None) -> Generator[None]:
        """`export` in steps; whoever stops leaves no file behind."""
        path, rows, whole = self._free() if path is None else Path(path).expanduser(), self.matches, False
        asked = f"An export to {path} was asked for."
        try:
            file = path.open("x", encoding="utf-8", errors="replace", newline="")
        except OSError as problem:
            found = "a file of that name" if isinstance(problem, FileExistsError) else str(problem.strerror)
            raise WorkbenchError(asked, found, do="Give another path: nothing is overwritten.") from problem
        try:
            with file:
                for first in range(0, max(1, len(rows)), CHUNK):
                    self.table(rows[first : first + CHUNK]).to_csv(file, index=False, header=first == 0)
                    yield
            whole = True
        except OSError as problem:
            raise WorkbenchError(asked, found=str(problem.strerror)) from problem
        finally:
            if not whole:
                path.unlink(missing_ok=True)
        self.exported = str(path.resolve())

    def _free(self) -> Path:
        numbers = iter(range(2, 10**9))
        path = self.folder / "answers.csv"
        while path.exists():
            path = self.folder / f"answers-{next(numbers)}.csv"
        return path


def _float(column: pd.Series) -> np.ndarray:
    return pd.to_numeric(column, errors="coerce").to_numpy(float, na_value=np.nan)


def _spread(own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether two judged (n,), and how far the highest score is from the lowest (n,)."""
    there = ~np.isnan(own)
    high, low = (np.where(there, own, gap).max(1) if gap < 0 else np.where(there, own, gap).min(1) for gap in (-1, 2))
    return there.sum(1) >= 2, high - low
