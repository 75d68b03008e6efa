"""What became of a prompt when neurons were scaled, as HTML. All text of models and users is escaped."""

from typing import Any

from .speaking import beside, card, next_words
from .states.scaling import ScalingState


def words(edit: ScalingState) -> str:
    """The likeliest next tokens, base and edited, as bars, and how far apart the two distributions are."""
    if edit.words is None:
        return ""
    apart = f"Of the token that follows the prompt: KL(edited || base) {edit.kl:.2g} nats."
    return f'{next_words(edit.words, "edited")}<div class="wb-small" role="status">{apart}</div>'


def answers(edit: ScalingState, complete: bool) -> str:
    """Both answers side by side, and which values the exact judge finds affirmed in complete ones."""
    asked = edit.asked
    if asked is None:
        return '<div class="wb-card wb-small">Press Run to let the model answer, as it is and edited.</div>'
    cards = []
    for title, answer in (("Base", edit.base), (named(asked), edit.edited)):
        affirmed = edit.affirmed(answer) if complete else None
        told = "" if affirmed is None else f"Judge: affirms <b>{', '.join(affirmed) or 'no value'}</b>."
        cards.append(card(title, answer, told))
    same = " Both answers are the same." if complete and edit.base == edit.edited else ""
    return beside(cards, asked, same, edit.note)


def named(asked: dict[str, Any] | None) -> str:
    """What was scaled in the answers that are shown."""
    if not asked:
        return ""
    n = len(asked["neurons"])
    what = "layer {}, neuron {}".format(*asked["neurons"][0]) if n == 1 else f"{n} neurons"
    kind = {"neuron": "", "set": " (the set)", "random": " (drawn at random)"}[asked["target"]]
    how = {0.0: "ablated", 1.0: "as they are"}.get(asked["factor"], f"times {asked['factor']:g}")
    return f"{what}{kind} {how}"
