"""The texts of an experiment: value pairs, dilemma questions and unrelated prompts, loaded and checked.

"embedded" is written by the embedded world's grammar, "natural" lies under `data/natural/`; your own come as
a CSV, as a folder of `pairs.csv`, `questions.csv` and `unrelated.csv`, or in ConVA's released layout: a
folder with one CSV per value.
"""

import csv
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from .errors import WorkbenchError
from .values import VALUES, check_value

if TYPE_CHECKING:
    from .models import Model

SPLITS = ("calibration", "test")
PAIR = ("value", "positive", "negative")
QUESTION = ("value", "question", "split")
UNRELATED = ("prompt", "kind", "answer", "related", "split")
_RENAMED = {"question_1": "positive", "question_2": "negative"}  # ConVA's released column names
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def load_pairs(name: str | Path = "embedded", pairs: str = "balanced", split: str = "probe") -> pd.DataFrame:
    """Pairs of texts that differ in one value: columns value, positive, negative, then the file's others.

    name: "embedded", "natural", a CSV, a folder with pairs.csv, or a folder with one CSV per value:
        question_1 is the positive, question_2 the negative, the file's name the value, in any case, with
        hyphen or underscore.
    pairs: "balanced" sets a value against an opposed one. "polarity", which only the embedded world has,
        affirms and denies one behaviour: a trap kept for teaching, since such a probe reads polarity and not
        the value.
    split: "probe", or "held-out", which only the embedded world has: behaviours that no probe pair holds.

    Raises WorkbenchError, naming file and line, for missing columns, an unknown value, an empty cell, equal
    sides and a repeated pair.
    """
    if pairs not in ("balanced", "polarity"):
        raise WorkbenchError(f"Pairs of kind {pairs!r} were asked for.", allowed="'balanced', 'polarity'")
    if name == "embedded":
        from .embedded import data

        return data.pairs(kind=pairs, split=split)
    if (pairs, split) != ("balanced", "probe"):
        raise WorkbenchError(f"Pairs from {str(name)!r}, {pairs} and {split}, were asked for.",
                             found="pairs as the file has them",
                             allowed="pairs='polarity' and split='held-out' with 'embedded' only")
    source = _source(name, "pairs.csv")
    if source.is_file():
        return _read(source, PAIR, _check_pair, _value_of(source))
    values = {file: _value_of(file) for file in sorted(source.glob("*.csv"))}
    if stray := [file.name for file, value in values.items() if value is None]:
        raise WorkbenchError(f"Pairs from the folder {source.name!r}, one CSV per value, were asked for.",
                             found=f"{', '.join(stray[:3])}, named after no value", allowed=", ".join(VALUES))
    if not values:
        raise WorkbenchError(f"Pairs from the folder {source.name!r} were asked for.", found="no CSV in it",
                             allowed=f"pairs.csv ({', '.join(PAIR)}), or one CSV per value "
                             "(question_1, question_2)")
    tables = [_read(file, PAIR, _check_pair, value) for file, value in values.items()]
    return pd.concat(tables, ignore_index=True)


def load_questions(name: str | Path = "embedded") -> pd.DataFrame:
    """Dilemma questions: columns value, question, split ("calibration" or "test"), then the file's others.

    name: "embedded", "natural", a CSV, or a folder with questions.csv. Raises WorkbenchError with file and
        line.
    """
    if name == "embedded":
        from .embedded import data

        return data.questions()
    return _read(_source(name, "questions.csv"), QUESTION, _check_question)


def load_unrelated(name: str | Path = "embedded") -> pd.DataFrame:
    """Prompts that steering must leave alone: columns prompt, kind, answer, related, split.

    answer is "" where none is right; related is True for value-laden prompts that are no dilemmas, for which
    a gate should open. name: "embedded", "natural", a CSV, or a folder with unrelated.csv. Raises
    WorkbenchError with file and line.
    """
    if name == "embedded":
        from .embedded import data

        return data.unrelated()
    frame = _read(_source(name, "unrelated.csv"), UNRELATED, _check_unrelated, may_be_empty=("answer",))
    return frame.assign(related=[_TRUTH[cell.lower()] for cell in frame["related"]])


def that_fit(model: "Model", table: pd.DataFrame, columns: Sequence[str], chat: bool = False,
             room: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows whose texts all fit the model's context, and the others with a column `tokens`: "79 of 64 tokens".

    columns: those that hold texts. chat: count them as the chat template writes them. room: tokens to be left
    for an answer. Nothing is ever cut to fit.
    """
    counts = [[len(ids) + room for ids in model.encode(table[column], chat=chat)] for column in columns]
    longest = [max(row) for row in zip(*counts, strict=True)]
    fits = [n <= model.context for n in longest]
    told = [f"{n} of {model.context} tokens" for n, fit in zip(longest, fits, strict=True) if not fit]
    return table[fits].reset_index(drop=True), table[[not fit for fit in fits]].assign(tokens=told)


def data_hash(frame: pd.DataFrame) -> str:
    """SHA-256 of a table's columns and cells in their order: what provenance carries about the data."""
    return "sha256:" + hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()


def data_path(*parts: str) -> Path:
    """Path of a file or folder of the data that ships with the workbench.

    In a wheel the data lies inside the package (`workbench/_data`), in a checkout beside it (`data`).
    Raises WorkbenchError when it is not there.
    """
    package = Path(__file__).parent
    root = package / "_data" if (package / "_data").is_dir() else package.parent / "data"
    path = root.joinpath(*parts)
    if not path.exists():
        beside = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
        raise WorkbenchError(f"The workbench's own data {'/'.join(parts)!r} was asked for.",
                             found=f"in its place only: {', '.join(beside)}" if beside else "nothing there",
                             do="Reinstall the workbench, or run it from a complete checkout.")
    return path


# -- reading and checking -----------------------------------------------------------------------------------


def _source(name: str | Path, file: str) -> Path:
    """The CSV that a name, a folder or a path means; of pairs also a folder without pairs.csv."""
    path = data_path("natural") if name == "natural" else Path(name).expanduser()
    inside = path / file if path.is_dir() else path
    if inside.exists():
        return inside
    if path.is_dir() and file == "pairs.csv":
        return path
    raise WorkbenchError(f"{file.removesuffix('.csv').capitalize()} from {str(name)!r} were asked for.",
                         found=f"no {file} in it" if path.is_dir() else "no such file or folder",
                         allowed=f"'embedded', 'natural', a CSV, or a folder with {file}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


_BY_PLAIN_NAME = {_plain(value): value for value in VALUES}


def _value_of(file: Path) -> str | None:
    """The value that a file is named after: Self_Direction.csv -> self-direction."""
    return _BY_PLAIN_NAME.get(_plain(file.stem))


Check = Callable[[dict[str, str], dict[object, int], int], str | None]
"""(row, what was seen -> its line, this row's line) -> what is wrong with the row, or None."""


def _check_pair(row: dict[str, str], seen: dict[object, int], line: int) -> str | None:
    value, *sides = (row[column] for column in PAIR)
    if sides[0] == sides[1]:
        return f"both sides are {sides[0]!r}"
    for order, note in ((tuple(sides), ""), (tuple(reversed(sides)), " with its sides exchanged")):
        if first := seen.get((value, order)):
            return f"the pair of line {first} again{note}"
    seen[value, tuple(sides)] = line
    return None


def _check_question(row: dict[str, str], seen: dict[object, int], line: int) -> str | None:
    first = seen.setdefault((row["value"], row["question"]), line)
    return f"the question of line {first} again" if first != line else _check_split(row)


def _check_unrelated(row: dict[str, str], seen: dict[object, int], line: int) -> str | None:
    first = seen.setdefault(row["prompt"], line)
    if first != line:
        return f"the prompt of line {first} again"
    if row["related"].lower() not in _TRUTH:
        return f"related is {row['related']!r}, neither 'true' nor 'false'"
    return _check_split(row)


def _check_split(row: dict[str, str]) -> str | None:
    known = row["split"] in SPLITS
    return None if known else f"split is {row['split']!r}, neither {' nor '.join(map(repr, SPLITS))}"


def _read(
    file: Path, required: Sequence[str], check: Check, value: str | None = None, may_be_empty: Sequence[str]
        = ()
) -> pd.DataFrame:
    """A CSV as a table of strings, every row checked; `value` fills in for a column the file has not."""
    rows, seen = [], {}
    where = file.name
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            header = [_RENAMED.get(column.strip(), column.strip()) for column in next(reader, [])]
            given = {*header, "value"} if value else {*header}
            if missing := [column for column in required if column not in given]:
                raise _wrong(where, f"no column {', '.join(missing)}; it has {', '.join(header) or 'none'}",
                             allowed=f"columns {', '.join(required)}")
            if len({*header}) < len(header):
                raise _wrong(where, f"a column that stands twice among {', '.join(header)}")
            end = reader.line_num
            for cells in reader:
                line, end = end + 1, reader.line_num  # a quoted cell may span lines: a row is where it starts
                where = f"{file.name}, line {line},"
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise _wrong(where, f"{len(cells)} cells", allowed=f"{len(header)}, as in the header",
                                 do="Put quotes round cells that hold a comma.")
                row = dict(zip(header, map(str.strip, cells), strict=True))
                if "value" in required:
                    row["value"] = _value(row.get("value", value) or "", where)
                if empty := [c for c in required if not row[c] and c not in may_be_empty]:
                    raise _wrong(where, f"nothing under {', '.join(empty)}")
                if found := check(row, seen, line):
                    raise _wrong(where, found)
                rows.append(row)
    except (csv.Error, UnicodeDecodeError) as problem:
        raise _wrong(where, str(problem), allowed="a comma-separated file in UTF-8") from None
    if not rows:
        raise _wrong(file.name, "no rows", allowed=f"rows of {', '.join(required)}")
    return pd.DataFrame(rows, columns=[*required, *(column for column in header if column not in required)])


def _wrong(where: str, found: str, allowed: str | None = None, do: str | None = None) -> WorkbenchError:
    return WorkbenchError(f"{where} was to be read.", found, allowed, do)


def _value(name: str, where: str) -> str:
    try:
        return _BY_PLAIN_NAME.get(_plain(name)) or check_value(name)
    except WorkbenchError as problem:
        raise _wrong(where, f"the value {name!r}", problem.allowed, problem.do) from None
