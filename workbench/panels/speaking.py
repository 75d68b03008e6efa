"""What panels share that let a model speak, as HTML: room for the answer, the next token, answers side by side."""

import html
from collections.abc import Mapping
from typing import Any

import pandas as pd

from .quoting import quoted


def counter(state: Any) -> str:
    """How much of the context the prompt of a state takes (tokens, model, max_new_tokens)."""
    context = state.model.context
    room, told = context - state.tokens, f"{state.tokens} of {context} tokens"
    if room < 1:
        told += f" — <b>too long by {1 - room}</b>: shorten it, nothing is cut"
    elif room < state.max_new_tokens:
        told += f", which leaves {room} for the answer"
    return f'<span class="wb-small" role="status">{told}</span>'


def shown(token: str) -> str:
    """A token with its blanks to be seen."""
    return token.replace(" ", "␣").replace("\n", "⏎") or "∅"


def next_words(table: pd.DataFrame | None, name: str) -> str:
    """The likeliest next tokens as bars, base and the column `name`; "" for None."""
    if table is None:
        return ""
    rows = []
    for token, base, other in zip(table["token"], table["base"], table[name], strict=True):
        bars = "".join(f'<span class="wb-bar wb-bar-{side}" style="width:{100 * p:.1f}%"></span>'
                       for side, p in (("base", base), ("steered", other)))  # fmt: skip
        rows.append(f"<tr><td><code>{quoted(shown(str(token)), 40)}</code></td><td>{base:.3f}</td><td>{other:.3f}</td>"
                    f'<td class="wb-bars">{bars}</td></tr>')  # fmt: skip
    head = f"<tr><th>next token</th><th>base</th><th>{name}</th><th></th></tr>"
    return f'<table class="wb-table wb-words" aria-label="Next token, base and {name}">{head}{"".join(rows)}</table>'


def card(title: str, answer: str, told: str, colour: str = "") -> str:
    """One answer under its title; told: HTML of what was read in it."""
    style = f' style="border-top: 3px solid {colour}"' if colour else ""
    return (f'<div class="wb-card"{style}><h4>{html.escape(title)}</h4><div class="wb-said" dir="auto">'
            f'{quoted(answer.strip())}</div><div class="wb-small">{told}</div></div>')  # fmt: skip


def beside(cards: list[str], asked: Mapping[str, Any], same: str, note: str) -> str:
    """Answers side by side, and how they were decoded (temperature, seed)."""
    how = f"T = {asked['temperature']:g}, seed {asked['seed']}" if asked["temperature"] else "greedy"
    foot = f'<div class="wb-small">{how}, the same for all.{same}{f" {quoted(note)}" if note else ""}</div>'
    return f'<div class="wb-two">{"".join(cards)}</div>{foot}'
