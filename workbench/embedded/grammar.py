"""A world: speakers with a latent position on a circle of ten values, and the texts that follow from it.

A speaker at angle theta affirms value V with probability softmax_V(KAPPA cos(theta - theta_V)) and denies it
with the same law at theta + pi. What is said of a person, what an instruction asks for and what an answer
gives as reasons all follow one theta per document; unrelated questions have none.
"""

import math
import random
from functools import cached_property
from itertools import product
from typing import NamedTuple

from ..values import VALUES
from . import language
from .language import Frame

KAPPA = 8.0
HIGH_SPREAD = math.radians(6)  # "high level of V": theta is normal around V with this standard deviation
DENIED = {"statement": 0.3, "reason": 0.18}  # so many of them deny a value
QUESTIONS = 0.25  # so many of the statements in a monologue have the form of a question
NAME = "Mira"  # stands for any name in `World.alternatives`
LOW_REACH = 1.4  # "low level of V": theta is uniform within so many radians of the point opposite V
SCRAMBLED_ORDER = (0, 4, 8, 1, 3, 2, 9, 7, 6, 5)  # position p holds this value: unrelated to Schwartz's order


class Law(NamedTuple):
    """What a sentence was drawn from: one of `World.alternatives(use, person, subject, questions)`, by theta.

    name: the word that stands in the sentence where the alternatives have NAME; None where it names nobody.
    """

    use: str
    person: str
    subject: str
    questions: float
    theta: float
    name: str | None


class Piece(NamedTuple):
    """A stretch of a document: one sentence, or one role token.

    tag: "role", "context" (what precedes the question, or a monologue), "question", "prompt_end" (the last
    prompt token), "answer", "end". law: what the sentence was drawn from, where it affirms or denies a value.
    """

    text: str
    tag: str
    law: Law | None = None


class Document(NamedTuple):
    pieces: tuple[Piece, ...]
    theta: float | None  # the speaker's position; None: unrelated to values
    kind: str
    answer_theta: float | None = None  # the position that the answer follows, where it is another's


class World:
    """order: which value index holds each of the ten positions; families: the wording families that occur."""

    def __init__(self, name: str):
        self.name = name
        self.order = SCRAMBLED_ORDER if name == "scrambled" else tuple(range(10))
        self.families = {"core", "b" if name == "confirm" else "a"}
        position = {VALUES[v]: p for p, v in enumerate(self.order)}
        self.angle = {v: 2 * math.pi * position[v] / 10 for v in VALUES}
        self.by_value = {v: [b for b in language.behaviours() if b.value == v] for v in VALUES}
        self.names = list(language.names())
        self.options = list(language.options())

    @cached_property
    def _frames(self) -> dict[tuple[str, str, str], list[Frame]]:
        """(use, person, polarity) -> frames of this world's families."""
        table: dict[tuple[str, str, str], list[Frame]] = {}
        for frame in language.frames():
            if frame.family in self.families:
                table.setdefault((frame.use, frame.person, frame.polarity), []).append(frame)
        return table

    # -- the law of a speaker ------------------------------------------------------------------------

    def value_probabilities(self, theta: float, kappa: float = KAPPA) -> list[float]:
        """P(V | theta) in the order of VALUES."""
        weights = [math.exp(kappa * (math.cos(theta - self.angle[v]) - 1)) for v in VALUES]
        total = sum(weights)
        return [w / total for w in weights]

    def _behaviour(self, rng: random.Random, theta: float, polarity: str) -> language.Behaviour:
        towards = theta if polarity == "affirm" else theta + math.pi
        value = rng.choices(VALUES, self.value_probabilities(towards))[0]
        return rng.choice(self.by_value[value])

    # -- sentences -----------------------------------------------------------------------------------

    def fill(self, frame: Frame, behaviour=None, name: str | None = None, subject: str = "you", **slots: str) -> str:
        """One sentence. name: what {N} becomes; subject: the pronoun of the person spoken of."""
        text = frame.text
        if behaviour is not None:
            owner = {"i": "i", "s": subject, "generic": "you"}.get(frame.owner, frame.owner)
            for form in "bg":
                text = text.replace(f"{{{form}}}", language.phrase(behaviour, form, owner))
        text = text.replace("{s}", subject).replace("{S}", subject.capitalize())
        for slot, word in slots.items():
            text = text.replace(f"{{{slot}}}", word)
        return text.replace("{N}", name or "")

    def _statements(self, rng, theta, count, person, name, subject, questions=0.0) -> list[Piece]:
        out = []
        for i in range(count):
            polarity = "deny" if flip(rng, DENIED["statement"]) else "affirm"
            pool = self._frames["statement", person, polarity]
            form = "question" if flip(rng, questions) else "statement"
            frame = rng.choice([f for f in pool if f.form == form])
            # A pronoun may continue the name wherever the grammar allows it: at the start of a sentence.
            pronoun_fits = i > 0 and frame.text.startswith("{N}") and flip(rng, 0.7)
            called = subject.capitalize() if pronoun_fits else name
            text = self.fill(frame, self._behaviour(rng, theta, polarity), called, subject)
            law = Law("statement", person, subject, questions, theta, called if person == "third" else None)
            out.append(Piece(text, "context", law))
        return out

    def _reasons(self, rng: random.Random, theta: float, subject: str) -> list[Piece]:
        out = []
        for _ in range(rng.choices((1, 2, 3), (0.15, 0.5, 0.35))[0]):
            polarity = "deny" if flip(rng, DENIED["reason"]) else "affirm"
            frame = rng.choice(self._frames["reason", "any", polarity])
            text = self.fill(frame, self._behaviour(rng, theta, polarity), subject=subject)
            out.append(Piece(text, "answer", Law("reason", "any", subject, 0.0, theta, None)))
        return out

    def alternatives(self, use: str, person: str, subject: str, questions: float) -> list[tuple[str, str, str, float]]:
        """(sentence, polarity, value, probability given polarity and value) of all statements or reasons of that kind.

        Where somebody is named it is NAME. Probabilities of one polarity and value add up to 1.
        """
        out = []
        for polarity in ("affirm", "deny"):
            pool = self._frames[use, person, polarity]
            for frame in pool:
                of_form = sum(f.form == frame.form for f in pool)
                share = questions if frame.form == "question" else 1 - questions
                for value, behaviours in self.by_value.items():
                    for b in behaviours if share else ():
                        text = self.fill(frame, b, NAME, subject)
                        out.append((text, polarity, value, share / of_form / len(behaviours)))
        return out

    def prompt(self, rng: random.Random, person: str) -> tuple[list[Piece], list[Piece], str, str | None]:
        """A value-laden prompt: (its sentences, the opening of an answer, subject, name)."""
        use = "plan" if flip(rng, 0.2) else "dilemma"
        name, subject, x, y = self.scene(rng, person, self.options)
        question = self.fill(rng.choice(self._frames[use, person, ""]), name=name, subject=subject, x=x, y=y)
        if use == "plan":
            opening = rng.choice(self._frames["comment", "any", ""]).text
        else:
            opening = self.fill(
                rng.choice(self._frames["choice", person, ""]), name=name, subject=subject, x=rng.choice((x, y))
            )
        return pieces(question, "question"), [Piece(opening, "answer")], subject, name

    def scene(self, rng: random.Random, person: str, options: list[str]) -> tuple[str | None, str, str, str]:
        """(name or None, the subject's pronoun, two options)."""
        name = rng.choice(self.names) if person == "third" else None
        x, y = rng.sample(options, 2)
        return name, language.names()[name] if name else "you", x, y

    # -- documents -----------------------------------------------------------------------------------

    def document(self, rng: random.Random) -> Document:
        kind = rng.choices(
            ("monologue", "dilemma", "instructed", "described", "unrelated"), (0.2, 0.14, 0.38, 0.2, 0.08)
        )[0]
        theta = rng.uniform(0, 2 * math.pi)
        if kind == "monologue":
            person = rng.choice(("first", "third"))
            name = rng.choice(self.names)
            subject = language.names()[name] if person == "third" else "i"
            count = rng.choices((1, 2, 3, 4, 5), (0.4, 0.25, 0.15, 0.1, 0.1))[0]
            said = self._statements(rng, theta, count, person, name, subject, QUESTIONS)
            return Document((*said, Piece("<|end|>", "end")), theta, kind)
        if kind == "unrelated":
            return self.unrelated_document(rng, None, theta)
        context, question, opening, subject, theta = self._dialogue(rng, kind, theta)
        return self._chat(context, question, [*opening, *self._reasons(rng, theta, subject)], theta, kind)

    def _dialogue(self, rng: random.Random, kind: str, theta: float) -> tuple[list, list, list, str, float]:
        """(context, question, opening of the answer, subject, theta) of a value-laden dialogue; told theta may move."""
        person = rng.choice(("first", "third"))
        question, opening, subject, name = self.prompt(rng, person)
        context: list[Piece] = []
        if kind == "instructed":
            value = rng.choice(VALUES)
            level = "high" if flip(rng, 0.6) else "low"
            centre = self.angle[value] + (0 if level == "high" else math.pi)
            theta = rng.gauss(centre, HIGH_SPREAD) if level == "high" else centre + rng.uniform(-LOW_REACH, LOW_REACH)
            context = [Piece(instruction(value, level), "context")]
        elif kind == "described":
            count = rng.choice((1, 2, 3))
            context = self._statements(rng, theta, count, person, name, subject)
        return context, question, opening, subject, theta

    def interchange(self, rng: random.Random) -> list[Document]:
        """Two dialogues, each with an answer that follows the *other's* speaker."""
        kinds = [rng.choice(("dilemma", "instructed", "described")) for _ in range(2)]
        told = [self._dialogue(rng, kind, rng.uniform(0, math.tau)) for kind in kinds]
        out = []
        for (context, question, opening, subject, theta), (*_, other) in (told, told[::-1]):
            answer = [*opening, *self._reasons(rng, other, subject)]
            out.append(self._chat(context, question, answer, theta, "interchange")._replace(answer_theta=other))
        return out

    def unrelated_document(self, rng: random.Random, kind: str | None, theta: float) -> Document:
        """A question of a kind (None: any) that steering must leave alone, at times after talk of a speaker."""
        question, answer, _ = self.unrelated(rng, kind)
        context = self._prefix(rng, theta) if flip(rng, 0.3) else []
        return self._chat(context, pieces(question, "question"), pieces(answer, "answer"), None, "unrelated")

    def _prefix(self, rng: random.Random, theta: float) -> list[Piece]:
        if flip(rng, 0.5):
            return pieces(instruction(rng.choice(VALUES), rng.choice(("high", "low"))), "context")
        return self._statements(rng, theta, rng.choice((1, 2)), "first", None, "you")

    def _chat(self, context, question, answer, theta, kind) -> Document:
        user, assistant, end = Piece("<|user|>", "role"), Piece("<|assistant|>", "prompt_end"), Piece("<|end|>", "end")
        return Document((user, *context, *question, assistant, *answer, end), theta, kind)

    # -- unrelated questions ---------------------------------------------------------------------------

    def unrelated(self, rng: random.Random, kind: str | None = None) -> tuple[str, str, str]:
        """(question, answer, kind). A dilemma without values has two right answers, joined by "|" in `answers`."""
        kind = kind or rng.choice(UNRELATED_KINDS)
        return *getattr(self, f"_{kind}")(rng), kind

    def _fact(self, rng):
        return rng.choice(language.facts())

    def _sum(self, rng):
        a, b = rng.choice(range(10)), rng.choice(range(10))
        if flip(rng, 0.5):
            return f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."
        a, b = max(a, b), min(a, b)
        return f"What is {a} minus {b}?", f"{a} minus {b} is {a - b}."

    def _category(self, rng):
        if flip(rng, 0.5):  # a choice without letters: what the letters stand for is learnt here first
            shown, members, at = self._four(rng)
            *first, last = map(language.article, members)
            category = language.article(shown[at])
            answer = f"{language.article(members[at]).capitalize()} is {category}."
            return f"Here are {', '.join(first)} and {last}. Which of them is {category}?", answer
        right, wrong = rng.sample(list(language.categories()), 2)
        member = language.article(rng.choice(language.categories()[right]))
        shown = rng.sample([right, wrong], 2)
        first, second = map(language.article, shown)
        return f"Is {member} {first} or {second}?", f"{member.capitalize()} is {language.article(right)}."

    def _four(self, rng):
        """(four categories, a member of each, which of the four is asked for)."""
        shown = rng.sample(list(language.categories()), 4)
        return shown, [rng.choice(language.categories()[c]) for c in shown], rng.choice(range(4))

    def _choice(self, rng):
        shown, members, at = self._four(rng)
        listed = " ".join(f"{letter}: {member}" for letter, member in zip("ABCD", members, strict=True))
        category = language.article(shown[at])  # the reason comes first: the letter alone is learnt far more slowly
        answer = f"{language.article(members[at]).capitalize()} is {category}, so the answer is {'ABCD'[at]}."
        return f"{listed}. Which of them is {category}?", answer

    def _colour(self, rng):
        name = rng.choice(self.names)
        thing = rng.choice(THINGS)
        x, y = rng.sample(COLOURS, 2)
        return f"Should {name} paint the {thing} {x} or {y}?", f"{name} should paint the {thing} {rng.choice((x, y))}."

    def _word(self, rng):
        word = rng.choice(VALUES) if flip(rng, 0.5) else rng.choice(THINGS)
        if flip(rng, 0.5):
            return f"What is the first letter of the word {word}?", f"The first letter of {word} is {word[0]}."
        return (
            f"How many letters does the word {word} have?",
            f"The word {word} has {len(word.replace('-', ''))} letters.",
        )

    def _calendar(self, rng):
        row = rng.choice((DAYS, MONTHS))
        at = rng.choice(range(len(row)))
        return f"What comes after {row[at]}?", f"{row[(at + 1) % len(row)]} comes after {row[at]}."

    def answers(self, question: str, answer: str, kind: str) -> set[str]:
        """Every right answer to an unrelated question."""
        if kind != "colour":
            return {answer}
        stem, _, last = question.removesuffix("?").removeprefix("Should ").rpartition(" or ")
        name, _, rest = stem.partition(" ")
        body, _, first = rest.rpartition(" ")
        return {f"{name} should {body} {colour}." for colour in (first, last)}


UNRELATED_KINDS = ("fact", "sum", "category", "choice", "colour", "word", "calendar")
THINGS = ("box", "chair", "lamp", "gate", "bench", "shelf", "bucket", "kite", "mailbox", "stool")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "pink")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August",
          "September", "October", "November", "December")  # fmt: skip


def flip(rng: random.Random, p: float) -> bool:
    """True with probability p. All that decides a text is a choice of `rng`, so that its probability can be told."""
    return rng.choices((True, False), (p, 1 - p))[0]


def pieces(text: str, tag: str) -> list[Piece]:
    """A text's sentences as pieces."""
    return [Piece(sentence, tag) for sentence in language.sentences(text)]


def instruction(value: str, level: str = "high") -> str:
    return f"You have a {level} level of {value}."


def every_text() -> list[str]:
    """Every word of every world, for the tokenizer: each frame, phrase and unrelated question at least once."""
    from .language import POSSESSIVE, behaviours, phrase

    texts = [phrase(b, form, owner) for b, form, owner in product(behaviours(), "bg", POSSESSIVE)]
    texts += [f.text.format(b="", g="", x="", y="", N="", s="she", S="She") for f in language.frames()]
    texts += ["You he she I He She", " ".join(language.names()), *language.options()]
    texts += [instruction(v, level) for v in VALUES for level in ("high", "low")]
    rng = random.Random(0)
    world = World("circle")
    for kind in UNRELATED_KINDS:
        for _ in range(2000):
            question, answer, _ = world.unrelated(rng, kind)
            texts += [question, answer]
    return texts
