"""Tables of texts, read and checked row by row: all that is wrong is told at once, and nothing is half loaded."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from .errors import WorkbenchError
from .values import VALUES, check_value

MANY = 50  # problems told; of more only the number
_RENAMED = {"question_1": "positive", "question_2": "negative"}  # ConVA's released column names

Check = Callable[[dict[str, str], dict[object, str], str], str | None]
"""(row, what was seen -> where, where this row stands) -> what is wrong with the row, or None."""


class Layout(NamedTuple):
    """What a table must hold. Other columns are kept; rows of empty cells only are skipped."""

    required: tuple[str, ...]
    check: Check
    may_be_empty: tuple[str, ...] = ()


class Problem(NamedTuple):
    where: str
    found: str
    allowed: str | None = None
    do: str | None = None


def read(sources: Mapping[str, Path | pd.DataFrame], layout: Layout, values: Mapping[str, str] = {}) -> pd.DataFrame:  # noqa: B006 (never written)
    """Tables of one layout as one table of strings, in the order given.

    sources: what a table is called -> CSV (UTF-8, comma-separated, any line ends) or data frame. values: name
    of a table without a column `value` -> the value all of it is about.

    Raises WorkbenchError with every problem of every table and the row where it stands.
    """
    tables: list[pd.DataFrame] = []
    problems: list[Problem] = []
    for name, source in sources.items():
        tables.append(_read(name, source, layout, values.get(name), problems))
    if problems:
        raise _told(" and ".join(sources) if len(sources) < 4 else f"{len(sources)} tables", problems)
    return pd.concat(tables, ignore_index=True)


def _told(what: str, problems: list[Problem]) -> WorkbenchError:
    lines = [f"{problem.where}: {problem.found}" for problem in problems[:MANY]]
    if len(problems) > MANY:
        lines.append(f"... and {len(problems) - MANY} more.")
    found = lines[0] if len(lines) == 1 else "\n  ".join([f"{len(problems)} problems", *lines])
    once = lambda parts: "; ".join(dict.fromkeys(part for part in parts if part)) or None  # noqa: E731
    asked = f"{what} {'was' if ' ' not in what else 'were'} to be read."
    return WorkbenchError(asked, found, once(p.allowed for p in problems), once(p.do for p in problems))


def _read(
    name: str, source: Path | pd.DataFrame, layout: Layout, value: str | None, problems: list[Problem]
) -> pd.DataFrame:
    before = len(problems)
    rows_in = _frame_rows(name, source) if isinstance(source, pd.DataFrame) else _file_rows(name, source, problems)
    header = [_RENAMED.get(column.strip(), column.strip()) for column in next(rows_in, (name, []))[1]]
    given = {*header, "value"} if value else {*header}
    columns = [*layout.required, *(column for column in header if column not in layout.required)]
    if missing := [column for column in layout.required if column not in given]:
        if len(problems) == before:
            problems.append(Problem(name, f"no column {', '.join(missing)}; it has {', '.join(header) or 'none'}",
                                    f"columns {', '.join(layout.required)}"))  # fmt: skip
        return pd.DataFrame(columns=columns)
    if len({*header}) < len(header):
        problems.append(Problem(name, f"a column that stands twice among {', '.join(header)}"))
        return pd.DataFrame(columns=columns)
    rows, seen = [], {}
    for where, cells in rows_in:
        if len(cells) != len(header):
            problems.append(Problem(where, f"{len(cells)} cells", f"{len(header)} cells, as in the header",
                                    "Put quotes round cells that hold a comma."))  # fmt: skip
            continue
        row = dict(zip(header, map(str.strip, cells), strict=True))
        if "value" in layout.required:
            try:
                row["value"] = the_value(row.get("value", value) or "")
            except WorkbenchError as problem:
                problems.append(
                    Problem(where, f"the value {row.get('value', value)!r}", problem.allowed, problem.do)
                )
                continue
        if empty := [c for c in layout.required if not row[c] and c not in layout.may_be_empty]:
            problems.append(Problem(where, f"nothing under {', '.join(empty)}"))
        elif found := layout.check(row, seen, where):
            problems.append(Problem(where, found))
        rows.append(row)
    if not rows and len(problems) == before:
        problems.append(Problem(name, "no rows", f"rows of {', '.join(layout.required)}"))
    return pd.DataFrame(rows, columns=columns)


def _frame_rows(name: str, frame: pd.DataFrame) -> Iterator[tuple[str, Sequence[str]]]:
    """(where, cells), the column names first."""
    yield name, [str(column) for column in frame.columns]
    for label, *cells in frame.itertuples():
        yield f"{name}, row {label}", ["" if pd.isna(cell) else str(cell) for cell in cells]


def _file_rows(name: str, file: Path, problems: list[Problem]) -> Iterator[tuple[str, Sequence[str]]]:
    data = file.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        problems.append(Problem(name, "UTF-16 text", "UTF-8", "Save the file as UTF-8."))
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        problems.append(Problem(f"{name}, line {line}", f"bytes that are not UTF-8 ({data[problem.start]:#x})",
                                "UTF-8", "Save the file as UTF-8."))  # fmt: skip
        return
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    end = 0
    try:
        for cells in reader:
            line, end = end + 1, reader.line_num  # a quoted cell may span lines: a row is where it starts
            if any(cell.strip() for cell in cells):
                yield name if line == 1 else f"{name}, line {line}", cells
    except csv.Error as problem:
        problems.append(Problem(f"{name}, line {end + 1}", str(problem), "a comma-separated file in UTF-8"))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


_BY_PLAIN_NAME = {_plain(value): value for value in VALUES}


def the_value(name: str) -> str:
    """Self_Direction -> self-direction. Raises WorkbenchError for what names no value."""
    return _BY_PLAIN_NAME.get(_plain(name)) or check_value(name)


def value_of(file: Path) -> str | None:
    """The value that a file is named after, or None."""
    return _BY_PLAIN_NAME.get(_plain(file.stem))
