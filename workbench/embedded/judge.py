"""The exact judge: the inverse of the grammar.

`read` returns which values a text affirms and denies and whether all of it is grammatical. A sentence that the
grammar cannot have produced (a word dropped, doubled, swapped or put in, a wrong pronoun, an unknown name) is
refused, and contributes no value.
"""

import re
from functools import cache
from typing import NamedTuple

from ..errors import WorkbenchError
from ..values import VALUES
from . import language
from .grammar import COLOURS, DAYS, MONTHS, THINGS, instruction


class Reading(NamedTuple):
    affirms: frozenset[str]
    denies: frozenset[str]
    grammatical: bool


class _Parsed(NamedTuple):
    polarity: str = ""
    value: str = ""
    subject: str | None = None  # the pronoun of the person spoken of: she, he, you


_SLOT = {"b": "(?P<b>.+)", "g": "(?P<g>.+)", "x": "(?P<x>.+)", "y": "(?P<y>.+)",
         "N": "(?P<N>[A-Z][a-z]+)", "s": "(?P<s>she|he|you)", "S": "(?P<s>She|He|You)"}  # fmt: skip


@cache
def _patterns() -> list[tuple[language.Frame, re.Pattern, bool]]:
    """(frame, pattern of one sentence, whether it starts with a name) for every sentence of every frame."""
    out = []
    for frame in language.frames():
        for sentence in language.sentences(frame.text):
            seen: set[str] = set()
            pattern = ""
            for part in re.split(r"(\{\w\})", sentence):
                slot = part[1] if re.fullmatch(r"\{\w\}", part) else None
                if slot is None:
                    pattern += re.escape(part)
                elif slot in seen:
                    pattern += f"(?P={slot})"
                else:
                    seen.add(slot)
                    pattern += _SLOT[slot]
            out.append((frame, re.compile(pattern), sentence.startswith("{N}")))
    return out


@cache
def _behaviours(form: str, owner: str) -> dict[str, str]:
    """Phrase -> value."""
    return {language.phrase(b, form, owner): b.value for b in language.behaviours()}


def _parse(sentence: str) -> _Parsed | None:
    for frame, pattern, name_first in _patterns():
        match = pattern.fullmatch(sentence)
        if match:
            parsed = _check(frame, match.groupdict(), name_first)
            if parsed:
                return parsed
    return _Parsed() if _unrelated(sentence) else None


def _check(frame: language.Frame, slots: dict[str, str], name_first: bool) -> _Parsed | None:
    subject = slots["s"].lower() if "s" in slots else None
    if "N" in slots:
        pronoun = language.names().get(slots["N"])
        if pronoun is None and name_first and frame.use == "statement" and slots["N"] in ("She", "He"):
            pronoun = slots["N"].lower()
        if pronoun is None or subject not in (None, pronoun):
            return None
        subject = pronoun
    chosen = [slots[k] for k in "xy" if k in slots]
    if any(option not in language.options() for option in chosen) or len(set(chosen)) < len(chosen):
        return None
    form = next((f for f in "bg" if f in slots), None)
    if form is None:
        return _Parsed(subject=subject or ("you" if "You " in frame.text else None))
    owner = {"s": subject or "", "generic": "you"}.get(frame.owner, frame.owner)
    value = _behaviours(form, owner).get(slots[form])
    return value and _Parsed(frame.polarity, value, subject) or None


@cache
def _fixed_sentences() -> frozenset[str]:
    fixed = {answer for _, answer in language.facts()}
    fixed |= {instruction(v, level) for v in VALUES for level in ("high", "low")}
    for row in (DAYS, MONTHS):
        fixed |= {f"{b} comes after {a}." for a in row for b in row if a != b}
    nouns = [noun for members in language.categories().values() for noun in members]
    for category in language.categories():
        for noun in nouns:
            said = f"{language.article(noun).capitalize()} is {language.article(category)}"
            fixed |= {f"{said}.", *(f"{said}, so the answer is {letter}." for letter in "ABCD")}
    for word in VALUES + THINGS:
        fixed |= {f"The first letter of {word} is {letter}." for letter in "abcdefghijklmnopqrstuvwxyz"}
        fixed |= {f"The word {word} has {n} letters." for n in range(2, 21)}
    fixed |= {f"{n} should paint the {t} {c}." for n in language.names() for t in THINGS for c in COLOURS}
    fixed |= {
        f"{a} {sign} {b} is {c}." for a in range(10) for b in range(10) for sign in ("plus", "minus") for c in range(19)
    }
    return frozenset(fixed)


def _unrelated(sentence: str) -> bool:
    """Whether it is a sentence of the unrelated answers: well formed, right or wrong."""
    return sentence in _fixed_sentences()


def read(text: str) -> Reading:
    """Which values a text affirms and denies, and whether all of it is grammatical (an empty text is not)."""
    parsed = [_parse(s) for s in language.sentences(text)]
    subjects = {p.subject for p in parsed if p and p.subject}
    known = [p for p in parsed if p and p.value]
    return Reading(
        frozenset(p.value for p in known if p.polarity == "affirm"),
        frozenset(p.value for p in known if p.polarity == "deny"),
        bool(parsed) and all(parsed) and len(subjects) <= 1,
    )


def control(text: str, value: str) -> float:
    """1 if the text affirms the value, .5 if it affirms and denies it, else 0."""
    if value not in VALUES:
        raise WorkbenchError(f"To judge {value!r}.", allowed=", ".join(VALUES))
    reading = read(text)
    return 0.0 if value not in reading.affirms else 0.5 if value in reading.denies else 1.0


def right(text: str, answers: str) -> bool:
    """Whether an unrelated question was answered rightly; answers: the right ones, joined by "|"."""
    return text.strip() in answers.split("|")


__all__ = ["Reading", "control", "read", "right"]
