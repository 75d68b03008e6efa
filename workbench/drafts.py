"""Drafts of value pairs: what is asked for, what a draft must be, and the record that keeps every one of them."""

import json
import math
import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from .audit import BARS, LEAK, SIDES
from .endpoint import Usage, plain
from .errors import WorkbenchError
from .reading import the_value
from .values import DEFINITIONS, VALUES

BLOCKS = tuple((person, form) for person in ("first", "third") for form in ("statement", "question"))
DOMAINS = tuple("work family money school health travel religion politics friends neighbourhood technology leisure"
                .split())  # fmt: skip
PLACES = ("West Africa", "South Asia", "Scandinavia", "Latin America", "East Asia", "the Arab world", "Eastern Europe",
          "the British Isles", "East Africa", "the Mediterranean", "Central Asia", "the Pacific", "North America")
WORDS, MOST_CHARACTERS = (6, 60), 400
LEAST_SHARED = 0.3  # of the words of a pair; the audit's bar holds for the mean
MOST_LIKE = 0.5  # cosine of the word pairs of two texts of different pairs

# A script without blanks between words is counted by its characters.
UNIT = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|[\w']+")
ASKS = re.compile(r"[?\uff1f\u061f]")
FIRST = re.compile(r"\b(?:I|me|my|mine|myself|we|us|our|ours|ourselves)\b", re.IGNORECASE)
SINGULAR = re.compile(r"\b(?:I|[Mm]e|[Mm]y|[Mm]ine|[Mm]yself)\b")
NEGATIONS = set("not no never do does did don't doesn't didn't isn't aren't wasn't weren't won't can't".split())


class Task(NamedTuple):
    """What the texts of one value are to be. avoid: words that no text may begin a word with."""

    value: str
    definition: str
    language: str = "English"
    avoid: tuple[str, ...] = ()

    def place(self, pair: int) -> dict[str, str]:
        """person, form, domain and place of a pair, counted from 1; they do not depend on how many there will be."""
        turn, block = divmod(pair - 1, len(BLOCKS))
        person, form = BLOCKS[block]
        domain = DOMAINS[(turn + 3 * block) % len(DOMAINS)]
        return {"person": person, "form": form, "domain": domain, "place": PLACES[pair % len(PLACES)]}


def the_task(value: str, definition: str | None = None, language: str = "English", avoid: Sequence[str] = ()) -> Task:
    """A task for one of the ten values, or for a new one, which needs a definition.

    Raises WorkbenchError for an unknown value without a definition, and for what cannot be a value's name.
    """
    try:
        name = the_value(value)
    except WorkbenchError:
        if not definition:
            raise
        name = "-".join(value.lower().split())
        if not re.fullmatch(r"[^\W\d_]+(?:-[^\W\d_]+)*", name) or len(name) > 40:
            raise WorkbenchError(f"Pairs for the value {plain(value, 60)!r} were to be written.",
                                 allowed="letters and hyphens, at most 40") from None
    definition, language = (plain(text, 500) for text in (definition or DEFINITIONS[name], language))
    return Task(name, definition, language, tuple(word.strip().lower() for word in avoid if word.strip()))


# -- checks -----------------------------------------------------------------------------------------------


def tidy(text: str) -> str:
    """`text` on one line, composed (NFC); what is too long to be kept stays as it is."""
    return " ".join(unicodedata.normalize("NFC", text).split()) if len(text) <= 2 * MOST_CHARACTERS else text


def unsafe(text: str) -> str | None:
    """What makes a text unfit for a table that others open: length, control characters, a formula, markup."""
    if len(text) > MOST_CHARACTERS:
        return f"longer than {MOST_CHARACTERS} characters"
    if odd := next((c for c in text if unicodedata.category(c)[0] == "C" and c not in "\u200c\u200d"), None):
        return f"it has the character U+{ord(odd):04X}"
    if text.startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20")):
        return f"it begins with {text[0]}, which a spreadsheet takes for a formula"
    found = re.search(r"[<>{}\\`|*_#]|https?:|\[key\]", text)
    return f"it has markup ({found[0]})" if found else None


def fault_of(text: str, task: Task, person: str, form: str) -> str | None:
    """What is wrong with one text, told so that a model can mend it; the person is checked in English only."""
    count = len(units(text))
    if not WORDS[0] <= count <= WORDS[1]:
        return f"it has {count} words, where 12 to 30 are wanted"
    if found := names_value(text, task):
        return f"it has the word {found!r}, which names a value or is to be avoided"
    if form == "question" and not (ASKS.search(text[-3:]) or ";" in text[-3:]):  # ; is the Greek question mark
        return "it does not end in a question"
    if form == "statement" and ASKS.search(text):
        return "it asks a question, where a statement is wanted"
    if task.language.lower() == "english":
        said = re.sub(r'"[^"]*"|“[^”]*”', "", text)
        if person == "first" and not FIRST.search(said):
            return "it is not told in the first person"
        if person == "third" and SINGULAR.search(said):
            return "it is told in the first person, where somebody else is to be spoken about"
    return None


def names_value(text: str, task: Task) -> str | None:
    """The first word made from the task's value, from one of the ten, or begun by one to be avoided."""
    own = () if task.value in VALUES else (part for part in task.value.split("-") if len(part) > 3)
    stems = [*(part[: max(4, math.ceil(0.6 * len(part)))] for part in own), *task.avoid]
    found = stems and re.search(rf"\b(?:{'|'.join(map(re.escape, stems))})\w*", text, re.IGNORECASE)
    return found[0] if (found := found or LEAK.search(text)) else None


def fault_between(positive: str, negative: str, language: str = "English") -> str | None:
    """What is wrong with a negative beside its positive."""
    a, b = units(positive), units(negative)
    most = BARS["longer side / shorter side, highest"].high or math.inf
    if max(len(a), len(b)) > most * min(len(a), len(b)):
        return f"it has {len(b)} words, the other text {len(a)}: too different in length"
    if a == b:
        return "it is the other text again"
    shared = len({*a} & {*b}) / len({*a} | {*b})
    if shared < LEAST_SHARED:
        return f"it shares {shared:.0%} of the words with the other text, where {LEAST_SHARED:.0%} is the least"
    bare = [[word.removesuffix("s") for word in words if word not in NEGATIONS] for words in (a, b)]  # trusts, trust
    if language.lower() == "english" and bare[0] == bare[1]:
        return "it only puts in or takes out a negation"
    return None


def units(text: str) -> list[str]:
    """Words in lower case; characters, where the script has no blanks between words."""
    return UNIT.findall(text.lower())


def likeness(a: str, b: str) -> float:
    """Cosine of the two sets of word pairs."""
    x, y = ({*pairwise(units(text))} for text in (a, b))
    return len(x & y) / math.sqrt(max(1, len(x)) * max(1, len(y)))


# -- the record -------------------------------------------------------------------------------------------


class Record:
    """Append-only JSON lines: the task, then every reply; reading them gives the state of the run.

    path: of the file, made where there is none. header: what the first line must say. A torn last line, left by
    a process that was killed, is cut off. One process at a time may hold a record.

    Raises WorkbenchError for the record of something else, a damaged line, and a record that is held already.
    """

    def __init__(self, path: Path, header: dict[str, Any]):
        self.path, self.usage = path, Usage()
        self.written: set[str] = set()  # SHA-256 of the tables made from it
        self.texts: dict[str, dict[int, str]] = {side: {} for side in SIDES}
        self.refused: dict[tuple[int, str], list[tuple[str, str]]] = {}  # reason, text
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            _lock(self._file, path)
            self._file.seek(0)
            *lines, torn = self._file.read().split(b"\n")
            if torn:
                self._file.truncate(self._file.tell() - len(torn))
            for number, line in enumerate(lines, 1):
                self._load(number, line, json.loads(json.dumps(header)))
            if not lines:
                self._append(header)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def open(self, pair: int, side: str, tries: int) -> bool:
        """Whether this text is still to be asked for."""
        waits = side == "negative" and pair not in self.texts["positive"]
        return not waits and pair not in self.texts[side] and len(self.refused.get((pair, side), ())) < tries

    def finished(self, pairs: int) -> list[int]:
        return [pair for pair in range(1, pairs + 1) if all(pair in self.texts[side] for side in SIDES)]

    def add(self, **event: Any) -> None:
        """Keep an event; it is on the disk when this returns."""
        self._append(event)
        self._apply(event)

    def _append(self, event: dict[str, Any]) -> None:
        self._file.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _load(self, number: int, line: bytes, header: dict[str, Any]) -> None:
        asked = f"The record {self.path} was to be continued."
        try:
            event = json.loads(line)
            if number > 1:
                return self._apply(event)
            other = [part for part in header if event.get(part) != header[part]]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise WorkbenchError(asked, f"line {number} is not as it was written",
                                 do="Mend the line, or move the record away.") from None
        if other:
            raise WorkbenchError(asked, "it is of " + ", ".join(f"{p} {plain(str(event.get(p)), 80)!r}" for p in other),
                                 ", ".join(f"{part} {header[part]!r}" for part in other),
                                 "Give another place for the output, or ask as before.")

    def _apply(self, event: dict[str, Any]) -> None:
        if "written" in event:
            self.written.add(event["written"])
        elif event.get("again"):
            self.refused.clear()
            for pair in self.texts["positive"].keys() - self.texts["negative"].keys():
                del self.texts["positive"][pair]  # its negative was given up: perhaps it cannot be flipped
        else:
            pair, side = int(event["pair"]), event["side"]
            if "tokens" in event:
                self.usage.add(event["tokens"])
            if "refused" not in event:
                if fault := unsafe(event["text"]):
                    raise ValueError(fault)
                self.texts[side][pair] = event["text"]
                return
            self.texts[side].pop(pair, None)  # there where the audit refuses what had passed
            self.refused.setdefault((pair, side), []).append((event["refused"], event["text"]))
            if side == "positive":
                self.texts["negative"].pop(pair, None)
                self.refused.pop((pair, "negative"), None)


def _lock(file: Any, path: Path) -> None:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(1 << 40)  # far beyond what is read and written
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise WorkbenchError(f"The record {path} was to be continued.", "another process that writes it",
                             do="Wait for its end, or give another place for the output.") from None


__all__ = ["Record", "Task", "fault_between", "fault_of", "likeness", "the_task", "tidy", "unsafe"]
