"""The words of the embedded world, and their inflection.

Everything is hand-written and lies as CSV in `language/`. A behaviour ("choose {my} own path") expresses one
value; an option ("sell the old house") expresses none; a frame is a sentence with slots:

    {b} behaviour, base form      {g} behaviour, gerund      {x} {y} options
    {N} a name, or the pronoun that continues it             {s} {S} the subject's pronoun (capitalised)
"""

import csv
import re
from functools import cache
from importlib import resources
from typing import NamedTuple

# Which possessive and reflexive a behaviour takes, by who owns it.
POSSESSIVE = {"i": "my", "you": "your", "she": "her", "he": "his", "they": "their", "we": "our"}
REFLEXIVE = {
    "i": "myself",
    "you": "yourself",
    "she": "herself",
    "he": "himself",
    "they": "themselves",
    "we": "ourselves",
}

# Verbs that double their last letter in the gerund.
_DOUBLED = set(
    "babysit begin control defer dip drop excel fit get hug knit map nap nod pop put run set sip sit stop submit swim "
    "travel win".split()
)


class Behaviour(NamedTuple):
    index: int
    value: str
    text: str
    split: str  # "probe": may appear in probe pairs; "held-out": in training text only


class Frame(NamedTuple):
    family: str  # "core" in every world; "a" or "b" is a world's own wording
    use: str  # statement, reason, choice, comment, dilemma, plan
    person: str  # first, third, any
    form: str  # statement, question
    polarity: str  # affirm, deny or ""
    owner: str  # i, s (the subject), generic, they, we or ""
    text: str


def _rows(name: str) -> list[dict[str, str]]:
    text = resources.files("workbench.embedded").joinpath("language", name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


@cache
def behaviours() -> tuple[Behaviour, ...]:
    return tuple(Behaviour(i, r["value"], r["behaviour"], r["split"]) for i, r in enumerate(_rows("behaviours.csv")))


@cache
def frames() -> tuple[Frame, ...]:
    return tuple(Frame(**r) for r in _rows("frames.csv"))


@cache
def names() -> dict[str, str]:
    """Name -> "she" or "he"."""
    return {r["name"]: r["pronoun"] for r in _rows("names.csv")}


@cache
def options() -> dict[str, str]:
    """Option -> split: "training" (in training text only), "calibration" or "test" (in those questions too)."""
    return {r["option"]: r["split"] for r in _rows("options.csv")}


@cache
def facts() -> tuple[tuple[str, str], ...]:
    return tuple((r["question"], r["answer"]) for r in _rows("facts.csv"))


@cache
def categories() -> dict[str, tuple[str, ...]]:
    return {r["category"]: tuple(r["members"].split()) for r in _rows("categories.csv")}


def article(noun: str) -> str:
    return ("an " if noun[0] in "aeio" else "a ") + noun


def gerund(verb_phrase: str) -> str:
    """ "choose a path" -> "choosing a path"."""
    verb, _, rest = verb_phrase.partition(" ")
    if verb == "be":
        stem = "be"
    elif verb.endswith("ie"):
        stem = verb[:-2] + "y"
    elif verb in _DOUBLED:
        stem = verb + verb[-1]
    elif verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")):
        stem = verb[:-1]
    else:
        stem = verb
    return f"{stem}ing {rest}".rstrip()


@cache
def phrase(behaviour: Behaviour, form: str, owner: str) -> str:
    """The behaviour as it stands in a sentence. form: "b" or "g"; owner: a key of POSSESSIVE."""
    text = behaviour.text if form == "b" else gerund(behaviour.text)
    return text.replace("{my}", POSSESSIVE[owner]).replace("{myself}", REFLEXIVE[owner])


def sentences(text: str) -> list[str]:
    """Split at sentence ends, keeping the stop: "A b. C d?" -> ["A b.", "C d?"]; a last part without a stop is kept."""
    return [part for part in re.split(r"(?<=[.?])\s+", text.strip()) if part]
