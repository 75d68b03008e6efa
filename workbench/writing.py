"""New value pairs, written by a model behind an OpenAI-compatible endpoint and checked one by one.

All positives come first, spread over four blocks ({first, third} person x {statement, question}) and twelve
domains of life; then each gets one negative that flips the value alone. A text that fails a check is asked for
again with the reason. Every reply is kept in a record beside the output as it comes, so a run that was
interrupted goes on where it stopped. What a model writes is no more than a draft: read it before use.
"""

import hashlib
import math
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .audit import BARS, SIDES, Audit, audit_pairs
from .drafts import MOST_CHARACTERS, MOST_LIKE, Record, Task, fault_between, fault_of, likeness, tidy, units, unsafe
from .endpoint import Endpoint, Reply, Usage, plain
from .errors import WorkbenchError
from .probes.folds import check_pairs
from .prompts import load_pairs
from .reading import the_value
from .values import VALUES

COLUMNS = ("value", "pair", "person", "form", "domain", "positive", "negative")
PERSON = {"first": "the writer tells about himself or herself (\"I\", \"we\")",
          "third": "somebody else is spoken about, by name or role; the writer does not say \"I\""}
FORM = {"statement": "one or two statements, no question", "question": "it ends in a question, with a question mark"}
POSITIVE = """You write for a data set on human values. Answer with one JSON object and nothing else.

Value: {value}, that is: {definition}
Write one text in {language} in which somebody acts on this value or wants what it wants.
- Person: {person}.
- Form: {form}.
- Area of life: {domain}. A name, if there is one, is common in {place}.
- One particular scene, told plainly in 12 to 30 words on one line: what is done or wanted shows the value. No
  stock phrase, no moral, no explanation.
- No word made from the value's name, or from self-direction, stimulation, hedonism, achievement, power,
  security, conformity, tradition, benevolence or universalism.
- Somebody in the very same scene could as easily do without the value, told in nearly the same words.
{taken}{again}
Answer: {{"text": "..."}}"""
NEGATIVE = """You write for a data set on human values. Answer with one JSON object and nothing else.

Value: {value}, that is: {definition}
In this text, in {language}, somebody acts on the value or wants what it wants:
{positive}

Write its counterpart in {language}: the same person, the same scene and tone, as many of the same words as
possible and about the same number of them ({low} to {high}), but here nobody cares about the value, or they are
at ease without it.
- Change only what flips the value; do not just put in or take out a "not", and do not make the person wicked or
  the outcome sad.
- Bring in no other strong value.
- Person: {person}. Form: {form}. One line.
- No word made from the value's name, or from self-direction, stimulation, hedonism, achievement, power,
  security, conformity, tradition, benevolence or universalism.
{again}
Answer: {{"text": "..."}}"""


@dataclass(frozen=True)
class Written:
    """pairs: the finished ones, as in the file. audit: None where there are too few. refused: pair, side, reason."""

    pairs: pd.DataFrame
    audit: Audit | None
    refused: pd.DataFrame
    usage: Usage
    out: Path
    record: Path


def write_pairs(endpoint: Endpoint, task: Task, out: str | Path, pairs: int = 100, tries: int = 2,
                concurrency: int = 4, again: bool = False, say: Callable[[str], None] = print) -> Written:
    """Write pairs for `task` into the CSV `out`, with a record of every reply beside it (NAME.record.jsonl).

    tries: per text. concurrency: requests at a time. again: ask again for what earlier runs gave up. say: is told
    what happens, line by line. The file is written at the end, when no text is open; the record goes on from any
    end. For one of the ten values `load_pairs` reads the file; of others `pandas.read_csv(out)` does, and
    `fit_probes` and `audit_pairs` take the table, whatever its values are called.

    Raises WorkbenchError when the endpoint fails for good (nothing that came back is lost), when every pair was
    refused, when the record belongs to another task or model, or `out` is not what it wrote.
    """
    if pairs < 1 or tries < 1 or concurrency < 1:
        raise WorkbenchError(f"{pairs} pairs in {tries} tries, {concurrency} at a time, were asked for.",
                             allowed="1 or more of each")
    out = Path(out).expanduser()
    header = {"record": "workbench data write 1", "model": endpoint.model, **task._asdict()}
    with Record(out.with_name(out.stem + ".record.jsonl"), header) as record:
        if out.exists() and hashlib.sha256(out.read_bytes()).hexdigest() not in record.written:
            raise WorkbenchError(f"Pairs were to be written to {out}.", "a file there that its record did not write",
                                 do="Give another place for the output, or move the file away.")
        if again:
            record.add(again=True)
        run = _Run(endpoint, task, record, pairs, tries, say)
        try:
            frame, audit = run.draft(concurrency)
        except BaseException:
            say(f"Stopped with {len(record.finished(pairs))} of {pairs} pairs finished; {record.path} keeps what came "
                "back, and the same command goes on from there.")
            raise
        if frame.empty:
            reasons = Counter(reason for told in record.refused.values() for reason, _ in told)
            often = "; ".join(f"{reason} ({n} times)" for reason, n in reasons.most_common(3))
            raise WorkbenchError(f"{pairs} pairs were to be written by {endpoint.model!r}.",
                                 f"none passed: {often}", do="Take a stronger model, or ask again.")
        if task.value in VALUES:
            load_pairs(frame)  # what it would refuse is not to be written
        _replace(out, frame, record)
        return Written(frame, audit, run.given_up(), record.usage, out, record.path)


def pairs_of(name: str | Path) -> pd.DataFrame:
    """What `load_pairs` reads, and a CSV of pairs about other values than the ten."""
    if (path := Path(name).expanduser()).is_file():
        try:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        except ValueError:  # load_pairs says what is wrong with it
            return load_pairs(path)
        if "value" in frame and not any(_known(value) for value in frame["value"].unique()):
            return check_pairs(frame)
    return load_pairs(name)


def _known(value: str) -> bool:
    try:
        return bool(the_value(value))
    except WorkbenchError:
        return False


class _Run:
    def __init__(self, endpoint: Endpoint, task: Task, record: Record, pairs: int, tries: int,
                 say: Callable[[str], None]):
        self.endpoint, self.task, self.record = endpoint, task, record
        self.pairs, self.tries, self.say = pairs, tries, say
        self.lock = threading.Lock()  # of the record, and of what is judged by it

    def draft(self, concurrency: int) -> tuple[pd.DataFrame, Audit | None]:
        """Ask until no text is open and the audit finds no two texts too like each other."""
        while True:
            for side in SIDES:
                still = [pair for pair in range(1, self.pairs + 1) if self.record.open(pair, side, self.tries)]
                if still:
                    self.say(f"{len(still)} {side}s to write")
                self.endpoint.each(lambda pair, side=side: self._text(pair, side), still, concurrency)
            frame = self._frame()
            audit = _audit(frame, self.task.value)
            named = _too_like(audit, frame)
            for pair, side, reason in named:
                if text := self.record.texts[side].get(pair):  # a refused positive took its negative with it
                    self._refuse({"pair": pair, "side": side, "text": text}, f"by the audit: {reason}")
            if not named:
                return frame, audit

    def given_up(self) -> pd.DataFrame:
        """pair, side and the last reason of what was refused as often as was allowed."""
        refused = sorted(self.record.refused.items())
        rows = [(pair, side, told[-1][0]) for (pair, side), told in refused
                if pair <= self.pairs and pair not in self.record.texts[side]]  # fmt: skip
        return pd.DataFrame(rows, columns=["pair", "side", "reason"])

    def _text(self, pair: int, side: str) -> None:
        """Ask for one text until it passes or was refused as often as is allowed."""
        while self.record.open(pair, side, self.tries):
            with self.lock:
                prompt = self._prompt(pair, side)
            # One message, since not every model's chat template knows a system role.
            reply = self.endpoint.ask([{"role": "user", "content": prompt}], ("text",))
            with self.lock:
                text, fault = self._judge(pair, side, reply)
                event = {"pair": pair, "side": side, "text": text, "tokens": reply.tokens}
                if fault:
                    self._refuse(event, fault)
                    continue
                self.record.add(**event)
                if (done := len(self.record.texts[side])) % 20 == 0:
                    self.say(f"{done} of {self.pairs} {side}s")

    def _refuse(self, event: dict, fault: str) -> None:
        self.record.add(**event, refused=fault)
        self.say(f"pair {event['pair']}, {event['side']}, refused: {fault}")

    def _prompt(self, pair: int, side: str) -> str:
        place, positives = self.task.place(pair), self.record.texts["positive"]
        again = f"- Nor any of these words: {', '.join(self.task.avoid)}.\n" if self.task.avoid else ""
        if told := self.record.refused.get((pair, side)):
            reason, text = told[-1]
            again += f"Your last answer was refused: {reason}.\n" + (f"It was: {plain(text, 300)}\n" if text else "")
        say = {**self.task._asdict(), **place, "person": PERSON[place["person"]], "form": FORM[place["form"]]}
        if side == "negative":
            n = len(units(positives[pair]))
            return NEGATIVE.format(**say, positive=positives[pair], low=math.ceil(n / 1.2), high=int(n * 1.2),
                                   again=again)
        near = [text for other, text in positives.items() if self.task.place(other)["domain"] == place["domain"]]
        taken = "- A new scene, unlike these:\n" + "".join(f"  {text}\n" for text in near[-10:]) if near else ""
        return POSITIVE.format(**say, taken=taken, again=again)

    def _judge(self, pair: int, side: str, reply: Reply) -> tuple[str, str | None]:
        """The text of a reply as it is kept, and what is wrong with it."""
        if reply.data is None:
            return "", reply.problem
        raw = reply.data["text"]
        if not isinstance(raw, str):
            return "", "text is no string"
        text = tidy(raw)
        if fault := unsafe(text):
            return plain(text, MOST_CHARACTERS), fault
        place = self.task.place(pair)
        fault = fault_of(text, self.task, place["person"], place["form"])
        if not fault and side == "negative":
            fault = fault_between(self.record.texts["positive"][pair], text, self.task.language)
        others = ((o, other) for of in SIDES for o, other in self.record.texts[of].items() if o != pair)
        like = next((o for o, other in others if likeness(text, other) > MOST_LIKE), None)
        return text, fault or (f"it is too like a text of pair {like}" if like else None)

    def _frame(self) -> pd.DataFrame:
        rows = []
        for pair in self.record.finished(self.pairs):
            sides = {side: self.record.texts[side][pair] for side in SIDES}
            rows.append({"value": self.task.value, "pair": pair, **self.task.place(pair), **sides})
        return pd.DataFrame(rows, columns=list(COLUMNS))


def _audit(frame: pd.DataFrame, name: str) -> Audit | None:
    try:
        return audit_pairs(frame, name) if len(frame) else None
    except WorkbenchError:  # too few pairs for its folds
        return None


def _too_like(audit: Audit | None, frame: pd.DataFrame) -> list[tuple[int, str, str]]:
    """pair, side and reason of the later of every two texts that the audit finds too like each other."""
    named, most = {}, BARS["likeness of two rows, highest"].high or 1.0
    for row in audit.near.to_dict("records") if audit else ():
        (first, _), (later, side) = sorted([(row["row"], row["side"]), (row["other_row"], row["other_side"])])
        if row["likeness"] > most:
            named[int(frame["pair"][later]), side] = f"it is too like a text of pair {frame['pair'][first]}"
    return [(pair, side, reason) for (pair, side), reason in named.items()]


def _replace(out: Path, frame: pd.DataFrame, record: Record) -> None:
    """Write the table in one step; the record knows its digest first, so that a later run may replace it."""
    data = frame.to_csv(index=False, lineterminator="\n").encode()
    if (digest := hashlib.sha256(data).hexdigest()) not in record.written:
        record.add(written=digest)
    part = out.with_name(out.name + ".part")
    part.write_bytes(data)
    part.replace(out)


__all__ = ["Written", "pairs_of", "write_pairs"]
