"""State of a blind review: what is shown of an item, what was judged of it, and the record. No widgets.

Neither the order of the items nor that of a pair's sides follows the table: both come from a hash of seed and row,
which is the same on every machine and in every version.
"""

import os
import threading
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import traitlets as t

from ..errors import WorkbenchError
from ..evaluation.records import SHOWN, Record
from ..prompts import data_hash
from ..values import DEFINITIONS, check_value

SIDES = ["positive", "negative"]
LETTERS = ("A", "B")
LABELS = ("yes", "partly", "no")
PAIR_LABELS = (*LETTERS, "neither")
EXPORTED = ("item", "annotator", "label", "side", "first", "at")  # columns that `table` puts before the items' own


class ReviewState(t.HasTraits):
    """One annotator's review of items; parameters as in `annotate`.

    position: of the item that is shown, from 0, in the order of showing (`order`: rows of the items); a number outside
    is refused with WorkbenchError. given: label by row. note: what the record told when it was opened.
    """

    position = t.Int(0)
    given: Any = t.Dict()
    note = t.Unicode("")

    def __init__(
        self,
        items: pd.DataFrame,
        annotator: str = "annotator",
        record: str | Path = "review.jsonl",
        labels: Sequence[str] | None = None,
        ask: str | None = None,
        value: str | None = None,
        seed: int = 0,
    ):
        if not (isinstance(items, pd.DataFrame) and isinstance(annotator, str) and annotator.strip()):
            raise WorkbenchError(f"A review of a {type(items).__name__} by {annotator!r} was asked for.",
                                 allowed="a pandas DataFrame, and a name")  # fmt: skip
        super().__init__()
        self.items, self.annotator = items.reset_index(drop=True), annotator.strip()
        self.pairs = set(SIDES) <= set(items.columns)
        if ask is None:
            about = "the value" if value is None else check_value(value)
            ask = f"Which text expresses {about}?" if self.pairs else f"Does the answer express {about}?"
            ask += "" if value is None else f"\n{value.capitalize()}: {DEFINITIONS[value]}."
        self._shown = _shown(self.items, self.pairs, ask)
        self.labels = _checked(labels, self.pairs)
        digests = [sha256(f"{seed}:{row}".encode()).digest() for row in range(len(items))]
        self.order = sorted(range(len(items)), key=lambda row: digests[row][:-1])
        self._swapped = [digest[-1] % 2 == 1 for digest in digests]  # the negative is shown as A
        header = {"items": data_hash(self._shown), "n": len(items), "labels": self.labels, "seed": int(seed)}
        self._lock = threading.RLock()  # JupyterLab hands keys to a thread of its own
        self._record = Record(record, header)
        self.path = self._record.path
        self.given, self._done = self._replay()
        self.position = self._next(-1)

    def _replay(self) -> tuple[dict[int, str], list[tuple[int, str | None]]]:
        """Label by row, and what could be undone: (row, label before), the latest last."""
        given: dict[int, str] = {}
        done: list[tuple[int, str | None]] = []
        lines, torn = self._record.lines()
        for line in lines:
            if line["annotator"] != self.annotator:
                continue
            item, label = line["item"], line["label"]
            if not line.get("undo"):
                done.append((item, given.get(item)))
            elif done:
                done.pop()
            given = _with(given, item, label)
        if torn:
            self.note = (f"The record was cut short in line {', '.join(map(str, torn))}: that line is left out, all "
                         "others count.")  # fmt: skip
        return given, done

    @t.validate("position")
    def _check_position(self, proposal: Any) -> int:
        if proposal["value"] not in range(len(self.items)):
            raise WorkbenchError(f"Position {proposal['value']} was asked for.", allowed=f"0 to {len(self.items) - 1}")
        return proposal["value"]

    def _next(self, after: int) -> int:
        """The next position, round the end, whose item is not judged; where all are, it stays."""
        turned = ((after + 1 + step) % len(self.order) for step in range(len(self.order)))
        return next((place for place in turned if self.order[place] not in self.given), max(after, 0))

    @property
    def shown(self) -> dict[str, Any]:
        """All that the annotator is shown of the item at `position`: ask, question, texts by A and B, or by ""."""
        row = self.order[self.position]
        cells = {str(name): str(cell) for name, cell in self._shown.loc[row].items()}
        texts = [["", cells.get("text", "")]]
        if self.pairs:
            texts = [[letter, cells[side]] for letter, side in zip(LETTERS, self._sides(row), strict=True)]
        return {"ask": cells["ask"], "question": cells.get("question", ""), "texts": texts}

    def _sides(self, row: int) -> list[str]:
        """The sides of a pair as A and B."""
        return SIDES[::-1] if self._swapped[row] else SIDES

    # -- judging -------------------------------------------------------------------------------------------------------

    def judge(self, label: str) -> None:
        """Judge the item that is shown and show the next one that is not judged; it is on the disk before that."""
        if label not in self.labels:
            raise WorkbenchError(f"The label {label!r} was given.", allowed=", ".join(map(repr, self.labels)))
        with self._lock:
            row = self.order[self.position]
            self._record.append(self.annotator, row, label)
            self._done.append((row, self.given.get(row)))
            self.given = _with(self.given, row, label)
            self.position = self._next(self.position)

    def undo(self) -> None:
        """Take the last judgement back, whenever it was made, and show its item; the record grows by a line."""
        with self._lock:
            if not self._done:
                raise WorkbenchError("Undo was asked for.", found="no judgement to be taken back")
            row, label = self._done[-1]
            self._record.append(self.annotator, row, label, undo=True)
            self._done.pop()
            self.given = _with(self.given, row, label)
            self.position = self.order.index(row)

    def move(self, step: int) -> None:
        """Show another item without judging; the ends stop it."""
        with self._lock:
            self.position = min(max(self.position + step, 0), len(self.order) - 1)

    # -- results -------------------------------------------------------------------------------------------------------

    def table(self) -> pd.DataFrame:
        """What the record holds, a row per item in the items' order: item, annotator, label, at, then all columns.

        label is an ordered categorical, missing where nothing was judged. Pairs have two columns more: side, the label
        with "positive" or "negative" for the letter, and first, the side that was shown as A.
        """
        latest = {line["item"]: line for line in self._record.lines()[0] if line["annotator"] == self.annotator}
        label = [latest.get(row, {}).get("label") for row in range(len(self.items))]
        found = pd.DataFrame({"item": range(len(self.items)), "annotator": self.annotator})
        found["label"] = pd.Categorical(label, self.labels, ordered=True)
        if self.pairs:
            sides = [dict[str, str](zip(LETTERS, self._sides(row), strict=True)) for row in range(len(label))]
            found["side"] = [side.get(str(given), given) for side, given in zip(sides, label, strict=True)]
            found["first"] = [side["A"] for side in sides]
        found["at"] = [latest[row]["at"] if given else None for row, given in enumerate(label)]
        return pd.concat([found, self.items], axis=1)

    def export(self, path: str | Path | None = None) -> Path:
        """Write `table` as CSV, whole or not at all; None: beside the record, under its name and the annotator's."""
        name = "".join(letter if letter.isalnum() else "_" for letter in self.annotator)
        path = self.path.with_name(f"{self.path.stem}-{name}.csv") if path is None else Path(path).expanduser()
        part = path.with_name(path.name + ".part")
        try:
            self.table().to_csv(part, index=False)
            os.replace(part, path)
        except OSError as problem:
            raise WorkbenchError(f"An export to {path} was asked for.", found=str(problem.strerror)) from problem
        return path


def _with(given: dict[int, str], item: int, label: str | None) -> dict[int, str]:
    rest = {row: held for row, held in given.items() if row != item}
    return rest if label is None else {**rest, item: label}


def _shown(items: pd.DataFrame, pairs: bool, ask: str) -> pd.DataFrame:
    """The columns that annotators see, texts checked; a missing question is an empty one."""
    if len(items) == 0 or pairs == ("text" in items):
        raise WorkbenchError("A review was asked for.", f"{len(items)} items of {', '.join(map(str, items))}",
                             "items with either text, or positive and negative; question, ask")  # fmt: skip
    if taken := [name for name in EXPORTED if name in items]:
        raise WorkbenchError("A review was asked for.", f"columns {', '.join(taken)}, which the export writes itself",
                             do="Rename them: items.rename(columns={...}).")  # fmt: skip
    shown = items[[name for name in SHOWN if name in items]]
    shown = shown if "ask" in shown else shown.assign(ask=ask)
    shown = shown.fillna({"question": ""})
    wrong = [
        f"{name} in row {row}"
        for name in shown
        for row, cell in enumerate(shown[name])
        if not isinstance(cell, str) or cell != cell.encode("utf-8", "replace").decode()
    ]
    if wrong:
        raise WorkbenchError("A review was asked for.", f"no text: {', '.join(wrong[:8])}", "valid text in every cell")
    return shown


def _checked(labels: Sequence[str] | None, pairs: bool) -> list[str]:
    labels = list((PAIR_LABELS if pairs else LABELS) if labels is None else labels)
    fine = 2 <= len(set(labels)) == len(labels) <= 9 and all(isinstance(label, str) and label for label in labels)
    if not fine or pairs and not set(LETTERS) <= set(labels):
        raise WorkbenchError(f"The labels {labels} were asked for.", allowed="two to nine different ones, a key for "
                             "each" + (", A and B among them" if pairs else ""))  # fmt: skip
    return labels
