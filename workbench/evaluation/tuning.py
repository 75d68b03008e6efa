"""Strength and layers, chosen value by value on calibration questions, with the whole curve kept.

**Objective.** Of the settings whose answers stay fluent (FR over all values at least `fluency`, or Base's own FR where
that is lower) and, where unrelated questions are given, whose unrelated accuracy stays within `unrelated_loss` of Base
on the same prompts, the one of highest CSR; of equals the first, so list the weakest first.

**Successive halving** (Jamieson and Talwalkar 2016). With `rounds` above 1 all settings start on a share of the
questions; in each round the better half of every value's settings goes on, and the questions double. Answers that are
there are kept, in memory and, with `record`, on disk: the same call after a kill goes on where it stopped.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ..errors import WorkbenchError
from ..models import Model
from ..rates import wilson
from ..steering.base import Base
from ..steering.intervention import Intervention
from .answers import ask, default_temperature, select
from .capability import unrelated_accuracy
from .judges import NO_JUDGE, Judge, default_judge, judged

CURVE = ("value", "setting", "round", "n", "csr", "low", "high", "fr", "fr_low", "fr_high", "unrelated", "fluent",
         "chosen")  # fmt: skip


class Tuning(NamedTuple):
    """chosen: value -> setting. curve: one row per value and setting as far as it came: value, setting (its repr;
    "Base" too), round, n, csr, low, high, fr, fr_low, fr_high, unrelated (accuracy minus Base's; NaN where it was not
    asked), fluent (over all values), chosen. Intervals are Wilson's, 95 %.
    """

    chosen: dict[str, Any]
    curve: pd.DataFrame


def tune(
    model: Model,
    family: Callable[[str, Any], Any],
    settings: Sequence[Any],
    questions: pd.DataFrame,
    judge: Judge | None = None,
    unrelated: pd.DataFrame | None = None,
    fluency: float = 0.97,
    unrelated_loss: float = 0.01,
    rounds: int = 1,
    limit: int | None = None,
    record: str | Path | None = None,
    progress: bool = False,
    seed: int = 0,
    **decoding: Any,
) -> Tuning:
    """Choose each value's setting; see the module's page for the objective.

    family(value, setting) -> intervention, or None for values that it cannot steer, which are left out; a setting is a
    strength, or whatever `family` takes, weakest first. Where no setting is fluent the first is taken. questions: those
    of split "calibration" are used, at most `limit` per value. unrelated: a table as for `unrelated_accuracy`, whose
    calibration rows, 40 at most, are asked of each value's best setting, and of the next where that costs too much.
    record: a file of JSON lines. decoding: as for `answer`.

    Raises WorkbenchError without a judge, without settings, and for fewer than 1 round.
    """
    judge = judge or default_judge(model)
    if judge is None:
        raise WorkbenchError("Settings were to be chosen.", found=NO_JUDGE, do="Pass a judge, or settings of your own.")
    if not settings or rounds < 1:
        raise WorkbenchError("Settings were to be chosen.", found=f"{len(settings)} settings, {rounds} rounds",
                             allowed="one of each or more")  # fmt: skip
    questions = select(questions, "calibration", limit)
    able = [value for value in dict.fromkeys(questions["value"]) if family(value, settings[0]) is not None]
    questions = questions[questions["value"].isin(able)]
    if questions.empty:
        return Tuning({}, pd.DataFrame(columns=list(CURVE)))
    tries = _Tries(model, family, settings, questions, judge, seed, decoding, record)
    alive = {value: list(range(len(settings))) for value in tries.values}
    longest = max(map(len, tries.asked.values()))
    fluent: set[int] = set()
    with tqdm(desc="tuning", disable=not progress, unit="question", total=0) as bar:
        for k in range(rounds):
            size = math.ceil(longest / 2 ** (rounds - 1 - k))
            jobs = [(value, index) for value in alive for index in (-1, *alive[value])]
            bar.total += sum(tries.missing(*job, size) for job in jobs)
            for job in jobs:
                bar.update(tries.extend(*job, size, k))
            fluent = tries.fluent(fluency)
            if k + 1 < rounds:
                for value, left in alive.items():
                    best = sorted(left, key=lambda index: (index not in fluent, -tries.csr(value, index), index))  # noqa: B023
                    alive[value] = sorted(best[: math.ceil(len(left) / 2)])
    chosen, lost = {}, {}
    for value, left in alive.items():
        kept = sorted((i for i in left if i in fluent), key=lambda i: (-tries.csr(value, i), i))  # noqa: B023
        while kept and unrelated is not None:  # the best first, until one costs little
            lost[value, kept[0]] = tries.unrelated_gain(value, kept[0], unrelated)
            if lost[value, kept[0]] >= -unrelated_loss - 1e-9:
                break
            kept.pop(0)
        chosen[value] = settings[kept[0]] if kept else settings[0]
    return Tuning(chosen, tries.curve(chosen, fluent, lost))


class _Tries:
    """What every setting has said of every value's questions so far; -1 is Base."""

    def __init__(self, model: Model, family: Callable[[str, Any], Any], settings: Sequence[Any],
                 questions: pd.DataFrame, judge: Judge, seed: int, decoding: dict[str, Any], record: Any):  # fmt: skip
        self.model, self.family, self.settings = model, family, settings
        self.judge, self.seed = judge, seed
        self.decoding = {"temperature": default_temperature(model), **decoding}
        self.asked = {str(v): own["question"].tolist() for v, own in questions.groupby("value", sort=False)}
        self.values = list(self.asked)
        self.said: dict[tuple[str, int], list[tuple[float, float]]] = {}  # (control, fluent) of each question
        self.rounds: dict[tuple[str, int], int] = {}
        self.unrelated: dict[Any, float] = {}  # Base's accuracy, once it is known
        self.record = None if record is None else Path(record)
        self.known = {} if self.record is None else dict(_lines(self.record))

    def missing(self, value: str, index: int, size: int) -> int:
        return max(0, min(size, len(self.asked[value])) - len(self.said.get((value, index), ())))

    def extend(self, value: str, index: int, size: int, k: int) -> int:
        """Ask what is missing up to `size` questions; how many were asked or read from the record."""
        there = self.said.setdefault((value, index), [])
        self.rounds[value, index] = k
        more = self.asked[value][len(there) : size]
        if not more:
            return 0
        steer = Base() if index < 0 else self.family(value, self.settings[index])
        key = self._key(steer, value, index, more, k)
        if key not in self.known:
            said = ask(self.model, steer, more, seed=self.seed + k, **self.decoding).assign(value=value)
            said = judged(said, self.judge, "own")
            self.known[key] = list(zip(said[value].tolist(), said["fluent"].tolist(), strict=True))
            if self.record is not None:
                self.record.parent.mkdir(parents=True, exist_ok=True)
                torn = self.record.is_file() and not self.record.read_bytes().endswith(b"\n")
                with self.record.open("a", encoding="utf-8") as file:
                    line = json.dumps({"key": key, "value": value, "said": self.known[key]})
                    file.write("\n" * torn + line + "\n")
        there += [tuple(one) for one in self.known[key]]
        return len(more)

    def _key(self, steer: Intervention, value: str, index: int, more: list[str], k: int) -> str:
        setting = "Base" if index < 0 else repr(self.settings[index])
        about = [getattr(self.model, "fingerprint", self.model.name), setting, value, more, self.seed + k,
                 self.decoding, self.judge.name, steer.pack()[1]]  # fmt: skip
        return hashlib.sha256(json.dumps(about, default=str, sort_keys=True).encode()).hexdigest()[:24]

    def _mean(self, value: str, index: int, which: int) -> tuple[float, int]:
        scores = np.array([one[which] for one in self.said[value, index]])
        scores = scores[~np.isnan(scores)]
        return (float(scores.mean()) if len(scores) else math.nan), len(scores)

    def csr(self, value: str, index: int) -> float:
        """CSR so far; nothing said counts as no control."""
        return float(np.nan_to_num(self._mean(value, index, 0)[0]))

    def fluent(self, bar: float) -> set[int]:
        """Settings whose answers to all values' questions are fluent enough, -1 too."""
        rates = {}
        for index in range(-1, len(self.settings)):
            own = [one[1] for (_, at), said in self.said.items() if at == index for one in said]
            rates[index] = float(np.nanmean(own)) if not np.isnan(own).all() else math.nan
        return {index for index, rate in rates.items() if rate >= min(bar, rates[-1]) - 1e-9}

    def unrelated_gain(self, value: str, index: int, unrelated: pd.DataFrame) -> float:
        methods = {"this": lambda v: self.family(v, self.settings[index])}
        methods |= {} if self.unrelated else {"Base": lambda _: Base()}
        table = unrelated_accuracy(self.model, methods, unrelated, [value], "calibration", 40, seed=self.seed,
                                   **{k: v for k, v in self.decoding.items() if k != "max_new_tokens"})  # fmt: skip
        rates = table.set_index("method")["accuracy"]
        self.unrelated = {**self.unrelated, **rates.filter(["Base"])}
        return float(rates["this"] - self.unrelated["Base"])

    def curve(self, chosen: dict[str, Any], fluent: set[int], lost: dict[tuple[str, int], float]) -> pd.DataFrame:
        rows = []
        for value, index in sorted(self.said, key=lambda key: (self.values.index(key[0]), key[1])):
            (csr, n), (fr, _) = (self._mean(value, index, which) for which in (0, 1))
            (low, high), (fr_low, fr_high) = wilson(csr, n), wilson(fr, n)
            rows.append({
                "value": value, "setting": "Base" if index < 0 else repr(self.settings[index]),
                "round": self.rounds[value, index], "n": n, "csr": csr, "low": low, "high": high, "fr": fr,
                "fr_low": fr_low, "fr_high": fr_high, "unrelated": lost.get((value, index), math.nan),
                "fluent": index in fluent, "chosen": index >= 0 and self.settings[index] is chosen[value],
            })  # fmt: skip
        return pd.DataFrame(rows)


def _lines(path: Path) -> Iterator[tuple[str, list[Any]]]:
    """What a record holds; a line that a kill cut short is asked again."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
            yield entry["key"], entry["said"]
        except (ValueError, KeyError, TypeError):
            continue
