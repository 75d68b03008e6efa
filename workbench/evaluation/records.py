"""The record of a review: an append-only file of JSON lines that a kill at any moment leaves readable.

The first line, the header, says what is judged: a hash of what is shown, the number of items, the labels, the seed of
their order. Every further line says what holds of one item for one annotator from then on; label null: taken back.

    {"annotator": "Ana", "item": 3, "label": "yes", "at": "2026-05-04T10:11:12+00:00"}

Nothing is rewritten and each line is on the disk before the next item is shown. A line that was cut short is left out,
named in `torn`, and closed by the next one. Several annotators may share a file.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import WorkbenchError

SHOWN = ("ask", "question", "text", "positive", "negative")
"""Columns of an item that annotators see."""
FORMAT = "workbench review 1"
WHAT = {"items": "other items", "n": "another number of items", "labels": "other labels", "seed": "another seed"}


class Record:
    """A record file. header: what is judged; None takes the file's own, and the file must be there.

    Raises WorkbenchError for a file that holds something else, or a review of other items, labels or seed.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any] | None = None):
        self.path = Path(path).expanduser()
        begun = None if header is None else json.dumps({"record": FORMAT, **header}).encode() + b"\n"
        try:
            if begun is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.touch()
                if begun.startswith(there := self.path.read_bytes()):  # new, or killed within its first line
                    append(self.path, begun[len(there) :], whole=False)
                    if os.name == "posix":  # a new name is on the disk when its folder is
                        _sync(self.path.parent)
            self.header, _, _ = self._read()
        except OSError as problem:
            raise self._error("could not be opened", problem.strerror) from problem
        if header is not None and (other := [told for key, told in WHAT.items() if self.header[key] != header[key]]):
            raise WorkbenchError(
                f"A review of {header['n']} items was to be resumed from {self.path}.",
                found=f"a record of {', '.join(other)}: {self.header['n']} items, labels "
                f"{', '.join(self.header['labels'])}, seed {self.header['seed']}",
                allowed="the items in their order, with the question asked, labels and seed that the record began with",
                do="Give these, or another record=... for a new review.",
            )

    def append(self, annotator: str, item: int, label: str | None, undo: bool = False) -> None:
        """Add a line; it is on the disk when this returns. WorkbenchError if it could not be written."""
        at = pd.Timestamp.now("UTC").isoformat(timespec="seconds")
        line = {"annotator": annotator, "item": item, "label": label, **({"undo": True} if undo else {}), "at": at}
        try:
            append(self.path, json.dumps(line).encode() + b"\n")
        except OSError as problem:
            raise self._error("could not be written", problem.strerror) from problem

    def lines(self) -> tuple[list[dict[str, Any]], list[int]]:
        """All whole lines after the header, and the numbers (from 1) of lines that were cut short."""
        try:
            _, lines, torn = self._read()
        except OSError as problem:
            raise self._error("could not be read", problem.strerror) from problem
        return lines, torn

    def _read(self) -> tuple[dict[str, Any], list[dict[str, Any]], list[int]]:
        found, torn = [], []
        for number, raw in enumerate(self.path.read_bytes().split(b"\n"), 1):
            try:
                line = json.loads(raw)
            except ValueError:
                torn += [number] if raw else []
                continue
            found.append((number, line))
        header = found[0][1] if found else None
        if not (isinstance(header, dict) and header.get("record") == FORMAT and WHAT.keys() <= header.keys()):
            raise self._error("is no record of a review", do="Give the path of a new file, or of a record.")
        lines = [(number, line) for number, line in found[1:] if line != header]  # two began it at the same time
        for number, line in lines:
            if not (isinstance(line, dict) and isinstance(line.get("annotator"), str)
                    and line.get("item") in range(header["n"]) and line.get("label") in [None, *header["labels"]]):
                raise self._error("is damaged", f"line {number}: {str(line)[:80]}")  # fmt: skip
        return header, [line for _, line in lines], torn

    def _error(self, what: str, found: str | None = None, do: str | None = None) -> WorkbenchError:
        return WorkbenchError(f"The record {self.path} {what}.", found, do=do)


def judgements(record: str | Path, *others: str | Path) -> pd.DataFrame:
    """What holds at the end of records of one review: columns item (row of the items, from 0), annotator, label, at.

    label is an ordered categorical of the review's labels. Raises WorkbenchError for records of different reviews, and
    for an annotator in two of them: two people under one name would pass for one.
    """
    first, rows, home = Record(record).header, {}, {}
    for path in (record, *others):
        for line in Record(path, {key: first[key] for key in WHAT}).lines()[0]:
            name = line["annotator"]
            if home.setdefault(name, path) != path:
                raise WorkbenchError("Judgements of several records were asked for.",
                                     found=f"annotator {name!r} in both {home[name]} and {path}",
                                     do="Review under different names.")  # fmt: skip
            rows[name, line["item"]] = line
    table = pd.DataFrame(list(rows.values()), columns=["item", "annotator", "label", "at"])
    table["label"] = pd.Categorical(table["label"], first["labels"], ordered=True)
    return table.dropna(subset=["label"]).reset_index(drop=True)


def append(path: Path, data: bytes, whole: bool = True) -> None:
    """Add a line to a file that is there; it is on the disk when this returns. whole: end a line that was cut short."""
    binary = getattr(os, "O_BINARY", 0)
    file = os.open(path, os.O_RDWR | os.O_APPEND | binary)  # no O_CREAT: a record that vanished is missed
    try:
        if whole and os.fstat(file).st_size and os.lseek(file, -1, os.SEEK_END) and os.read(file, 1) != b"\n":
            data = b"\n" + data
        if os.write(file, data) < len(data):
            raise OSError(28, "the disk is full")
        os.fsync(file)
    finally:
        os.close(file)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
