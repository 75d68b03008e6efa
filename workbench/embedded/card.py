"""The quality report of an embedded model: what it reached, measured, written into its model card."""

import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pandas as pd

from ..rates import wilson
from ..values import VALUES
from . import data, judge, language
from .grammar import HIGH_SPREAD, LOW_REACH, Document, World, instruction

TARGETS = {
    "unsteered answers grammatical": ">= .98",
    "rate of V when told 'high level of V' (mean over values)": ">= .70",
    "rate of V when told 'low level of V' (mean over values)": "<= .05",
    "rate of each value unsteered (lowest)": ">= .05",
    "rate of each value unsteered (highest)": "<= .25",
    "unrelated questions right": ">= .95",
    "multiple choice right": ">= .90",
}


# -- the grammar's own entropy -------------------------------------------------------------------------


class _Scored(random.Random):
    """Sums -log p of its choices in nats; draws of values are left to the marginal over theta."""

    surprisal = 0.0

    def choice(self, seq):
        self.surprisal += math.log(len(seq))
        return super().choice(seq)

    def sample(self, population, k, **kwargs):
        self.surprisal += sum(math.log(len(population) - i) for i in range(k))
        return super().sample(population, k, **kwargs)

    def choices(self, population, weights=None, **kwargs):
        drawn = super().choices(population, weights, **kwargs)
        if weights is None:
            self.surprisal += math.log(len(population))
        else:
            self.surprisal -= math.log(weights[list(population).index(drawn[0])] / sum(weights))
        return drawn


class _ScoredWorld(World):
    """A world that remembers which values were drawn for a document."""

    drawn: list[tuple[int, str]]

    def _behaviour(self, rng: _Scored, theta, polarity):  # pyright: ignore[reportIncompatibleMethodOverride]
        before = rng.surprisal
        behaviour = super()._behaviour(rng, theta, polarity)
        rng.surprisal = before + math.log(len(self.by_value[behaviour.value]))
        self.drawn.append((VALUES.index(behaviour.value), polarity))
        return behaviour


def surprisals(name: str, count: int, seed: int) -> list[tuple[Document, float]]:
    """Documents with -log p in nats: exact for the choices made, theta integrated out on a grid.

    Two series of choices seldom give the same text, so this is the text's own surprisal up to a hair (from above).
    """
    world, rng = _ScoredWorld(name), _Scored(seed)
    grid = np.arange(720) * 2 * math.pi / 720
    law = np.array([world.value_probabilities(t) for t in grid])  # (theta, value)
    out = []
    for _ in range(count):
        rng.surprisal, world.drawn = 0.0, []
        document = world.document(rng)
        prior = np.full(720, 1 / 720)
        if document.kind == "instructed":
            said = document.pieces[1].text
            value = next(v for v in VALUES if said in (instruction(v, "high"), instruction(v, "low")))
            if said == instruction(value, "high"):
                away = np.angle(np.exp(1j * (grid - world.angle[value])))
                prior = np.exp(-0.5 * (away / HIGH_SPREAD) ** 2)
            else:
                prior = (np.abs(np.angle(np.exp(1j * (grid - world.angle[value] - math.pi)))) <= LOW_REACH).astype(
                    float
                )
            prior /= prior.sum()
        likelihood = prior
        for value, polarity in world.drawn:
            likelihood = likelihood * (law[:, value] if polarity == "affirm" else np.roll(law[:, value], 360))
        out.append((document, rng.surprisal - math.log(likelihood.sum()) - _unseen(document, world)))
    return out


def _unseen(document: Document, world: World) -> float:
    """-log p of choices that leave no trace in the text, or that one text can come from twice."""
    text = " ".join(piece.text for piece in document.pieces)
    if document.kind == "monologue":  # a name is drawn for first persons too
        named = any(word.strip(".?") in language.names() for word in text.split())
        return 0.0 if named else math.log(len(world.names))
    if "plan" in text.split():  # a second option is drawn for plans too
        return math.log(len(world.options) - 1)
    digits = re.search(r"What is (\d) minus (\d)", text)  # made from either order of its numbers
    return math.log(2) if digits and digits[1] != digits[2] else 0.0


# -- measuring -----------------------------------------------------------------------------------------


def held_out_loss(model, count: int = 400) -> tuple[float, float]:
    """(model's loss, grammar's entropy) in nats per token, begin token excluded, over the same unseen documents."""
    import torch

    from .batches import encode

    scored = surprisals(model.world, count, seed=77)
    encoded = encode([d for d, _ in scored], model.tokenizer)
    total, tokens = 0.0, 0
    for e in encoded:
        ids = torch.tensor([e.ids])
        with torch.inference_mode():
            logits = model.twin(ids).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        tokens += len(e.ids) - 1
    return total / tokens, sum(s for _, s in scored) / tokens


def measure(name: str, per_value: int = 40) -> tuple[pd.DataFrame, dict[str, float]]:
    """(table of measure, value, low, high, n, target; extra figures), sampling at T = 1, over calibration questions."""
    from ..generate import generate
    from ..models import load_model

    model = load_model(f"embedded:{name}")
    asked = data.questions().query("split == 'calibration'")["question"].tolist()
    say = lambda prompts, **more: generate(model, prompts, temperature=1.0, seed=1, max_new_tokens=64, **more)  # noqa: E731
    rows = []

    def add(measure: str, rate: float, n: int) -> None:
        low, high = wilson(rate, n)
        rows.append(dict(measure=measure, rate=rate, low=low, high=high, n=n, target=TARGETS.get(measure, "")))

    readings = [judge.read(a) for a in say(asked)]
    add("unsteered answers grammatical", float(np.mean([r.grammatical for r in readings])), len(readings))
    base = {v: float(np.mean([v in r.affirms for r in readings])) for v in VALUES}
    add("rate of each value unsteered (lowest)", min(base.values()), len(readings))
    add("rate of each value unsteered (highest)", max(base.values()), len(readings))
    for level in ("high", "low"):
        rates = []
        for i, value in enumerate(VALUES):
            own = asked[i * 30 : i * 30 + per_value] or asked[:per_value]
            rates.append(np.mean([judge.control(a, value) for a in say(own, instruction=instruction(value, level))]))
        add(
            f"rate of V when told '{level} level of V' (mean over values)",
            float(np.mean(rates)),
            per_value * len(VALUES),
        )
    unrelated = data.unrelated().query("split == 'calibration' and not related")
    right = np.array(
        [judge.right(a, b) for a, b in zip(say(unrelated["prompt"].tolist()), unrelated["answer"], strict=True)]
    )
    add("unrelated questions right", float(right.mean()), len(right))
    choice = right[(unrelated["kind"] == "choice").to_numpy()]
    add("multiple choice right", float(choice.mean()), len(choice))
    loss, entropy = held_out_loss(model)
    return pd.DataFrame(rows), {"held-out loss": loss, "grammar's entropy": entropy}


def write(name: str, folder: Path | str | None = None) -> str:
    """Measure embedded model `name` and write its card, README.md in its folder. Returns the card's text."""
    from ..prompts import data_path

    folder = Path(folder) if folder else data_path("embedded", name)
    table, extra = measure(name)
    trained = json.loads((folder / "training.json").read_text())
    lines = [
        f"| {r.measure} | {r.rate:.3f} | {r.low:.3f} - {r.high:.3f} | {r.n} | {r.target} |"
        for r in table.itertuples(index=False)
    ]
    text = CARD.format(
        name=name, about=ABOUT[name], tokens=trained["tokens"] / 1e6, minutes=trained["minutes"],
        behaviours=len(language.behaviours()), options=len(language.options()), frames=len(language.frames()),
        note=f" {trained['note']}" if "note" in trained else "",
        loss=extra["held-out loss"], entropy=extra["grammar's entropy"], rows="\n".join(lines),
    )  # fmt: skip
    (folder / "README.md").write_text(text)
    return text


ABOUT = {
    "circle": "Values lie in Schwartz's order, ten equal steps.",
    "scrambled": "The control: the same construction with the values in another order (position p holds value "
    "0 4 8 1 3 2 9 7 6 5), unrelated to Schwartz's. A sound test finds *its* circle here and not Schwartz's.",
    "confirm": "Schwartz's order again, another seed, other wordings of answers; kept for confirmation, never looked "
    "at while anything is tuned.",
}

CARD = """# embedded:{name}

A phantom, as in medical imaging: a small Llama (8 layers, d_model 160, about 2.9 million parameters, context 128)
trained from scratch on text of its own grammar, so that the truth about its values is known. {about} It tests the
instrument and teaches; it proves nothing about large models.

**World.** A speaker has a latent position on a circle of ten values; what he affirms, denies, chooses and gives as
reasons follows it. {behaviours} behaviours, {options} neutral options, {frames} sentence frames, hand-written;
unrelated questions of seven kinds. A fifth of the behaviours occurs in training text but in no probe pair.

**Training** ({tokens:.1f} million tokens, {minutes:.0f} minutes on one core, `workbench embedded train {name}`).{note}
Four things differ from ordinary training, and only in training. In part of the batches (80 %, falling to 30 %) what is
said before a question reaches the answer only through sentence ends and the last prompt token, and those only from the
middle of the model on; in a trial without this, a small model copied the value late, by attention from the words of
the prefix, and no edit of the residual stream moved its answers. A linear readout of the value distribution (weight
.5, annealed to zero by 90 % of the training, dropped) makes the position readable where probes read. Pairs of
dialogues exchange what stands in the readout's plane at their last prompt tokens, each to be answered as the other's
speaker would (interchange intervention training, Geiger et al. 2022). And where the grammar chooses among words, the
target is its own distribution instead of the word that was drawn: the same optimum, reached from fewer tokens. The
first three favour steering: how easily these models are steered says nothing about other models.

**Quality**, sampling at T = 1, calibration questions, 95 % Wilson intervals:

| measure | rate | interval | n | aim |
|---|---|---|---|---|
{rows}

Held-out loss {loss:.4f} nats per token, the grammar's own entropy {entropy:.4f} on the same text.

Weights and language are released under the project's MIT licence.
"""
