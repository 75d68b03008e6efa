"""What became of a prompt when neurons were scaled, as HTML. All text of models and users is escaped."""

import html
from typing import Any

from .quoting import quoted
from .states.scaling import ScalingState


def shown(token: str) -> str:
    """A token with its blanks to be seen."""
    return token.replace(" ", "␣").replace("\n", "⏎") or "∅"


def counter(edit: ScalingState) -> str:
    """How much of the context the prompt takes."""
    room = edit.model.context - edit.tokens
    told = f"{edit.tokens} of {edit.model.context} tokens"
    if room < 1:
        told += f" — <b>too long by {1 - room}</b>: shorten it, nothing is cut"
    elif room < edit.max_new_tokens:
        told += f", which leaves {room} for the answer"
    return f'<span class="wb-small" role="status">{told}</span>'


def words(edit: ScalingState) -> str:
    """The likeliest next tokens, base and edited, as bars."""
    if edit.words is None:
        return ""
    rows = []
    for row in edit.words.itertuples():
        bars = "".join(f'<span class="wb-bar wb-bar-{side}" style="width:{100 * p:.1f}%"></span>'
                       for side, p in (("base", row.base), ("steered", row.edited)))  # fmt: skip
        rows.append(f"<tr><td><code>{quoted(shown(str(row.token)), 40)}</code></td><td>{row.base:.3f}</td>"
                    f'<td>{row.edited:.3f}</td><td class="wb-bars">{bars}</td></tr>')
    head = "<tr><th>next token</th><th>base</th><th>edited</th><th></th></tr>"
    table = f'<table class="wb-table wb-words" aria-label="Next token, base and edited">{head}{"".join(rows)}</table>'
    return (f'{table}<div class="wb-small" role="status">Of the token that follows the prompt: KL(edited || base) '
            f"{edit.kl:.2g} nats.</div>")  # fmt: skip


def answers(edit: ScalingState, complete: bool) -> str:
    """Both answers side by side, and which values the exact judge finds affirmed in complete ones."""
    asked = edit.asked
    if asked is None:
        return '<div class="wb-card wb-small">Press Run to let the model answer, as it is and edited.</div>'
    how = f"T = {asked['temperature']:g}, seed {asked['seed']}" if asked["temperature"] else "greedy"
    cards = []
    for title, answer in (("Base", edit.base), (named(asked), edit.edited)):
        affirmed = edit.affirmed(answer) if complete else None
        told = "" if affirmed is None else f"Judge: affirms <b>{', '.join(affirmed) or 'no value'}</b>."
        cards.append(f'<div class="wb-card"><h4>{html.escape(title)}</h4><div class="wb-said">{quoted(answer.strip())}'
                     f'</div><div class="wb-small">{told}</div></div>')  # fmt: skip
    same = " Both answers are the same." if complete and edit.base == edit.edited else ""
    note = f" {quoted(edit.note)}" if edit.note else ""
    foot = f'<div class="wb-small">{how}, the same for both.{same}{note}</div>'
    return f'<div class="wb-two">{"".join(cards)}</div>{foot}'


def named(asked: dict[str, Any] | None) -> str:
    """What was scaled in the answers that are shown."""
    if not asked:
        return ""
    n = len(asked["neurons"])
    what = "layer {}, neuron {}".format(*asked["neurons"][0]) if n == 1 else f"{n} neurons"
    kind = {"neuron": "", "set": " (the set)", "random": " (drawn at random)"}[asked["target"]]
    how = {0.0: "ablated", 1.0: "as they are"}.get(asked["factor"], f"times {asked['factor']:g}")
    return f"{what}{kind} {how}"
