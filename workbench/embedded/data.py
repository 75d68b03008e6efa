"""Pairs, questions and unrelated prompts of the embedded world, always the same and the same for all its models.

Pairs are value-balanced: half affirm a behaviour of V against affirming one of an opposed value, half deny an
opposed behaviour against denying one of V, in the same frame, for the same person, at about the same length. A
linear reader of words therefore learns nothing from them. Opposed are values at least three steps away *both* on
Schwartz's circle and in the scrambled order, chosen so that their mean lies opposite V in both (to half a step):
the pairs favour neither order. A single opposed value would make V and its opposite mirror images by construction.
"""

import random

import pandas as pd

from ..errors import WorkbenchError
from ..values import VALUES
from . import language
from .grammar import UNRELATED_KINDS, World
from .language import Behaviour, Frame

OPPOSED = {
    0: (3, 7),
    1: (6,),
    2: (6, 8),
    3: (0, 6),
    4: (9,),
    5: (1, 2, 8, 9),
    6: (1,),
    7: (0, 1, 3, 4),
    8: (2, 5),
    9: (4,),
}
GROUPS = 8  # behaviours meet only within a group, so that folds can be made that share none
BLOCKS = [(person, form) for person in ("first", "third") for form in ("statement", "question")]


def _frames(polarity: str, person: str, form: str) -> list[Frame]:
    return [
        f for f in language.frames()
        if (f.family, f.use, f.polarity, f.person, f.form) == ("core", "statement", polarity, person, form)
    ]  # fmt: skip


def _by_group(value: str, split: str) -> list[list[Behaviour]]:
    members = [b for b in language.behaviours() if b.value == value and b.split == split]
    return [members[g::GROUPS] for g in range(GROUPS)]


def pairs(kind: str = "balanced", split: str = "probe") -> pd.DataFrame:
    """Pairs for all ten values: value, pair, person, form, kind (affirm or deny), split,
    behaviour (of the value), behaviour_positive, behaviour_negative, positive, negative.

    kind: "balanced", or "polarity", the trap: the same behaviour affirmed and denied.
    split: "probe" (256 pairs a value) or "held-out" (64 a value, behaviours that occur in no probe pair).
    """
    if kind not in ("balanced", "polarity"):
        raise WorkbenchError(f"Embedded pairs of kind {kind!r}.", allowed="balanced, polarity")
    if split not in ("probe", "held-out"):
        raise WorkbenchError(f"Embedded pairs of split {split!r}.", allowed="probe, held-out")
    rng = random.Random(20)
    world = World("circle")
    rows = []
    for v, value in enumerate(VALUES):
        own = _by_group(value, split)
        against = [_by_group(VALUES[w], split) for w in OPPOSED[v]]
        for group in range(GROUPS):
            for behaviour in own[group]:
                for person, form in BLOCKS:
                    for polarity in ("affirm", "deny"):
                        pool = [b for other in against for b in other[group]]
                        gap = min(abs(_length(b) - _length(behaviour)) for b in pool)
                        opposed = rng.choice([b for b in pool if abs(_length(b) - _length(behaviour)) <= max(gap, 1)])
                        name = rng.choice(world.names) if person == "third" else None
                        subject = language.names()[name] if name else "i"
                        frames = {p: rng.choice(_frames(p, person, form)) for p in ("affirm", "deny")}
                        fill = lambda p, b: world.fill(frames[p], b, name, subject)  # noqa: B023, E731
                        if kind == "polarity":
                            sides = (("affirm", behaviour), ("deny", behaviour))
                        elif polarity == "affirm":
                            sides = (("affirm", behaviour), ("affirm", opposed))
                        else:
                            sides = (("deny", opposed), ("deny", behaviour))
                        rows.append(dict(
                            value=value, pair=len(rows), person=person, form=form, kind=polarity, split=split,
                            behaviour=behaviour.text, behaviour_positive=sides[0][1].text,
                            behaviour_negative=sides[1][1].text, positive=fill(*sides[0]), negative=fill(*sides[1]),
                        ))  # fmt: skip
    return pd.DataFrame(rows).drop_duplicates(["value", "positive", "negative"], ignore_index=True)


def _length(behaviour: Behaviour) -> int:
    return len(behaviour.text.split())


def _scenes(split: str) -> list[str]:
    return [option for option, its in language.options().items() if its == split]


def questions() -> pd.DataFrame:
    """Dilemmas, 30 a value of split "calibration" and 100 of "test", which share no option: value, question, split."""
    rng = random.Random(21)
    world = World("circle")
    frames = [f for f in language.frames() if f.use == "dilemma" and f.family == "core"]
    rows, seen = [], set()
    for split, count in (("calibration", 30), ("test", 60), ("test", 40)):
        scenes = _scenes(split)
        for value in VALUES:
            wanted = len(rows) + count
            while len(rows) < wanted:
                frame = rng.choice(frames)
                name, subject, x, y = world.scene(rng, frame.person, scenes)
                question = world.fill(frame, name=name, subject=subject, x=x, y=y)
                if question not in seen:
                    seen.add(question)
                    rows.append(dict(value=value, question=question, split=split))
    return pd.DataFrame(rows)


def unrelated(per_kind: int = 60) -> pd.DataFrame:
    """Prompts a gate must tell apart from dilemmas: prompt, kind, answer, related, split.

    answer: the right answers joined by "|". Kind "plan" is value-laden without "should" (related is True); kind
    "colour" is a dilemma without values and kind "word" uses the values' names innocently (both unrelated).
    """
    rng = random.Random(22)
    world = World("circle")
    rows = []
    for kind in UNRELATED_KINDS:
        made: dict[str, str] = {}
        for _ in range(4000):
            if len(made) == 2 * per_kind:
                break
            question, answer, _ = world.unrelated(rng, kind)
            made.setdefault(question, "|".join(sorted(world.answers(question, answer, kind))))
        for i, (question, answer) in enumerate(made.items()):
            rows.append(
                dict(prompt=question, kind=kind, answer=answer, related=False, split="calibration" if i % 2 else "test")
            )
    plans = [f for f in language.frames() if f.use == "plan"]
    for split in ("calibration", "test"):
        for scene in rng.sample(_scenes(split), per_kind):
            frame = rng.choice(plans)
            name = rng.choice(world.names) if frame.person == "third" else None
            prompt = world.fill(frame, name=name, x=scene)
            rows.append(dict(prompt=prompt, kind="plan", answer="", related=True, split=split))
    return pd.DataFrame(rows)
