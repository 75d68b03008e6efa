"""A judged answer in a panel: its text in a box of bounded height, its scores in words."""

import math
from pathlib import Path

import numpy as np

from ..values import VALUES
from .quoting import quoted, quoted_line
from .states.answers import Answers

STYLE = f"<style>{Path(__file__).with_suffix('.css').read_text(encoding='utf-8')}</style>"
SCORE = {1.0: "1", 0.5: ".5", 0.0: "0"}
MEANING = "1: the answer acts on the value, .5: in between, 0: it does not"


def score(said: float) -> str:
    """ "1", ".5", "0", another number, or "–" where nothing was judged."""
    return "–" if math.isnan(said) else SCORE.get(float(said), f"{said:.2g}".replace("0.", "."))


def boxed(answers: Answers, row: int) -> str:
    """An answer's text, or why there is none; it scrolls within its box, also by keyboard."""
    note = str(answers.table["note"].iat[row])
    text = f"<i>no answer: {quoted(note, 400)}</i>" if note else quoted(answers.texts[row])
    return f'<div class="wb-said wb-box" tabindex="0" role="group" aria-label="answer">{text}</div>'


def verdict(judge: str, said: np.ndarray, fluent: float, steered: str) -> str:
    """What a judge said of an answer: of the steered value, of others that it acts on, and whether it is fluent."""
    name = f"{quoted_line(judge, 40)}: "
    if np.isnan(said).all() and math.isnan(fluent):
        return name + "not judged"
    told = [f"<b>{score(said[VALUES.index(steered)])}</b> on {steered}"]
    for level in sorted({float(x) for x in said if x > 0}, reverse=True):
        others = [v for v, x in zip(VALUES, said, strict=True) if x == level and v != steered]
        told += [f"{score(level)} on {', '.join(others)}"] if others else []
    if not math.isnan(fluent):
        told.append("fluent" if fluent >= 0.5 else "<b>not fluent</b>")
    return name + "; ".join(told)
