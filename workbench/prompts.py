"""The texts of an experiment: value pairs, dilemma questions and unrelated prompts, loaded and checked.

"embedded" is written by the embedded world's grammar, "natural" lies under `data/natural/`; your own come as
a data frame, a CSV, a folder of `pairs.csv`, `questions.csv` and `unrelated.csv`, or in ConVA's released
layout: a folder with one CSV per value. Texts that others labelled with values: `load_labelled`.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from .errors import WorkbenchError
from .reading import Layout, read, value_of
from .values import DEFINITIONS, VALUES

if TYPE_CHECKING:
    from .models import Model

SPLITS = ("calibration", "test")
PAIR = ("value", "positive", "negative")
QUESTION = ("value", "question", "split")
UNRELATED = ("prompt", "kind", "answer", "related", "split")
NEGATIVE = ("value", "kind", "prompt")
NATURAL = {"natural": "pairs.csv", "natural-uncontrolled": "uncontrolled.csv"}
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_PAIRS_ASKED = {"balanced": ("_context_controlled", ""), "hard": ("_hard",)}  # endings of ConVA's released files


def load_pairs(name: str | Path | pd.DataFrame = "embedded", pairs: str = "balanced", split: str = "probe"
               ) -> pd.DataFrame:
    """Pairs of texts that differ in one value: columns value, positive, negative, then the file's others.

    name: "embedded", "natural", "natural-uncontrolled" (positives that name their value, negatives about
        something else: the ablation), a data frame, a CSV, a folder with pairs.csv, or a folder with one CSV
        per value: question_1 is the positive, question_2 the negative, the file's name the value, in any case,
        with hyphen or underscore, and with ConVA's endings (security_context_controlled.csv, security_hard.csv).
    pairs: "balanced" sets a value against an opposed one. "polarity", which only the embedded world has,
        affirms and denies one behaviour: a trap kept for teaching, since such a probe reads polarity and not
        the value. "hard", in ConVA's layout only: the files that end in _hard.
    split: "probe", or "held-out", which only the embedded world has: behaviours that no probe pair holds.

    Raises WorkbenchError with every problem, naming file and line: missing columns, an unknown value, an empty
    cell, equal sides, a repeated pair.
    """
    if pairs not in ("balanced", "polarity", "hard"):
        raise WorkbenchError(f"Pairs of kind {pairs!r} were asked for.", allowed="'balanced', 'polarity', 'hard'")
    embedded = isinstance(name, str) and name == "embedded"
    if embedded and pairs != "hard":
        from .embedded import data

        return data.pairs(kind=pairs, split=split)
    if pairs == "polarity" or split != "probe":
        raise WorkbenchError(f"Pairs from {_called(name)}, {pairs} and {split}, were asked for.",
                             found="pairs as the file has them",
                             allowed="pairs='polarity' and split='held-out' with 'embedded' only")
    sources = _pair_files(name, pairs)
    about = {told: value for told, file in sources.items() if isinstance(file, Path) and (value := _about(file))}
    return read(sources, Layout(PAIR, _check_pair), about)


def load_questions(name: str | Path | pd.DataFrame = "embedded") -> pd.DataFrame:
    """Dilemma questions: columns value, question, split ("calibration" or "test"), then the file's others.

    name: "embedded", "natural", a data frame, a CSV, a folder with questions.csv, or a folder with ConVA's
        released test files (test_<value>_new.csv; all their questions are test questions). Raises
        WorkbenchError with every problem, naming file and line.
    """
    if isinstance(name, str) and name == "embedded":
        from .embedded import data

        return data.questions()
    if isinstance(name, str | Path) and (tests := _test_files(Path(name).expanduser())):
        frames = {file.name: _released_questions(file) for file in tests.values()}
        return read(frames, Layout(QUESTION, _check_question))
    return read(_source(name, "questions.csv"), Layout(QUESTION, _check_question))


def load_unrelated(name: str | Path | pd.DataFrame = "embedded") -> pd.DataFrame:
    """Prompts that a gate must tell from dilemmas: columns prompt, kind, answer, related, split.

    answer is "" where none is right; related is True for value-laden prompts that are no dilemmas, for which
    a gate should open. name: "embedded", "natural", a data frame, a CSV, or a folder with unrelated.csv and,
    where there is one, hard_unrelated.csv. Raises WorkbenchError with every problem, naming file and line.
    """
    if isinstance(name, str) and name == "embedded":
        from .embedded import data

        return data.unrelated()
    sources = _source(name, "unrelated.csv")
    for file in list(sources.values()):
        if isinstance(file, Path) and file.name == "unrelated.csv" and file.with_name("hard_unrelated.csv").exists():
            sources["hard_unrelated.csv"] = file.with_name("hard_unrelated.csv")
    frame = read(sources, Layout(UNRELATED, _check_unrelated, may_be_empty=("answer",)))
    return frame.assign(related=[_TRUTH[cell.lower()] for cell in frame["related"]])


def load_negative_prompts(name: str | Path | pd.DataFrame = "natural") -> pd.DataFrame:
    """Instructions that a value's steering must withstand: columns value, kind, prompt, put before a question.

    "natural" has six kinds for each value: "published" (Jin et al. 2025: a low level of it), and harsher ones:
    "opposed" (a system prompt with the opposed attitude), "role" (a character who lacks it), "ignore" ("ignore
    your values"), "reward" (rewards and threats), "style" (a form that leaves no room for it). Else as `load_pairs`.
    """
    return read(_source(name, "negative_prompts.csv"), Layout(NEGATIVE, _check_negative))


def published_instruction(value: str, level: str = "high") -> str:
    """The instruction of Jin et al. (2025) that asks for a "high" or "low" level of a value."""
    return f"You have {level} level of {value}. {value.capitalize()} means {DEFINITIONS[value]}."


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


# -- what a name means ------------------------------------------------------------------------------------


def _called(name: str | Path | pd.DataFrame) -> str:
    return "a data frame" if isinstance(name, pd.DataFrame) else repr(str(name))


def _source(name: str | Path | pd.DataFrame, file: str) -> dict[str, Path | pd.DataFrame]:
    """What a table is called -> the table that a name, a folder, a path or a frame means."""
    if isinstance(name, pd.DataFrame):
        return {"data frame": name}
    path = data_path("natural") if name == "natural" else Path(name).expanduser()
    inside = path / file if path.is_dir() else path
    if inside.exists():
        return {inside.name: inside}
    raise WorkbenchError(f"{file.removesuffix('.csv').capitalize()} from {str(name)!r} were asked for.",
                         found=f"no {file} in it" if path.is_dir() else "no such file or folder",
                         allowed=f"'embedded', 'natural', a CSV, or a folder with {file}")


def _pair_files(name: str | Path | pd.DataFrame, pairs: str) -> dict[str, Path | pd.DataFrame]:
    if isinstance(name, str) and name in NATURAL and pairs == "balanced":
        name = data_path("natural", NATURAL[name])
    folder = None if isinstance(name, pd.DataFrame) else Path(name).expanduser()
    if pairs == "balanced" and (folder is None or not folder.is_dir() or (folder / "pairs.csv").exists()):
        return _source(name, "pairs.csv")
    if folder is None or not folder.is_dir():
        raise WorkbenchError(f"Hard pairs from {_called(name)} were asked for.",
                             allowed="a folder with ConVA's released files (security_hard.csv)")
    released = [file for file in sorted(folder.glob("*.csv")) if not file.stem.startswith("test_")]
    if stray := [file.name for file in released if _about(file) is None]:
        raise WorkbenchError(f"Pairs from the folder {folder.name!r}, one CSV per value, were asked for.",
                             found=f"{', '.join(stray[:3])}, named after no value", allowed=", ".join(VALUES))
    files = [file for ending in _PAIRS_ASKED[pairs] for file in released if _ending(file) == ending]
    if not files:
        raise WorkbenchError(f"Pairs from the folder {folder.name!r} were asked for, {pairs}.",
                             found=", ".join(file.name for file in released[:4]) or "no CSV in it",
                             allowed=f"pairs.csv ({', '.join(PAIR)}), or one CSV per value "
                             "(question_1, question_2)")
    return {file.name: file for file in files}


def _ending(file: Path) -> str:
    endings = (ending for some in _PAIRS_ASKED.values() for ending in some if ending)
    return next((ending for ending in endings if file.stem.lower().endswith(ending)), "")


def _about(file: Path) -> str | None:
    """The value that a file is named after: Self_Direction.csv, security_hard.csv, test_power_new.csv."""
    stem = file.stem.lower().removesuffix(_ending(file))
    return value_of(Path(stem.removeprefix("test_").removesuffix("_new")))


def _test_files(folder: Path) -> dict[str, Path]:
    """Value -> ConVA's released test questions, of a folder without questions.csv."""
    if not folder.is_dir() or (folder / "questions.csv").exists():
        return {}
    return {value: file for file in sorted(folder.glob("test_*_new.csv")) if (value := _about(file))}


def _released_questions(file: Path) -> pd.DataFrame:
    """ConVA's test files have one column of questions: `question`, or their first column."""
    table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    column = "question" if "question" in table else table.columns[0]
    return pd.DataFrame({"value": _about(file), "question": table[column], "split": "test"})


# -- what a row must be -----------------------------------------------------------------------------------


def _check_pair(row: dict[str, str], seen: dict[object, str], where: str) -> str | None:
    value, *sides = (row[column] for column in PAIR)
    if sides[0] == sides[1]:
        return f"both sides are {sides[0]!r}"
    for order, note in ((tuple(sides), ""), (tuple(reversed(sides)), " with its sides exchanged")):
        if first := seen.get((value, order)):
            return f"the pair of {first} again{note}"
    seen[value, tuple(sides)] = where
    return None


def _check_question(row: dict[str, str], seen: dict[object, str], where: str) -> str | None:
    first = seen.setdefault((row["value"], row["question"]), where)
    return f"the question of {first} again" if first != where else _check_split(row)


def _check_negative(row: dict[str, str], seen: dict[object, str], where: str) -> str | None:
    first = seen.setdefault((row["value"], row["prompt"]), where)
    return f"the prompt of {first} again" if first != where else None


def _check_unrelated(row: dict[str, str], seen: dict[object, str], where: str) -> str | None:
    first = seen.setdefault(row["prompt"], where)
    if first != where:
        return f"the prompt of {first} again"
    if row["related"].lower() not in _TRUTH:
        return f"related is {row['related']!r}, neither 'true' nor 'false'"
    return _check_split(row)


def _check_split(row: dict[str, str]) -> str | None:
    known = row["split"] in SPLITS
    return None if known else f"split is {row['split']!r}, neither {' nor '.join(map(repr, SPLITS))}"
