"""Variety, repetition and perplexity of answers."""

import math

import numpy as np
import pytest
import tiny
import torch

from workbench.errors import WorkbenchError
from workbench.evaluation.texts import distinct_n, perplexity, repetition

QUESTIONS = ["Should Mira sell the old house?", "What is two and three?", "Win?", "Should he lead the team or help?"]
ANSWERS = ["She values her family, and the old customs.", "", "I", "They protect the forest. " * 3]


def test_distinct_by_hand():
    """a b c | a b: pairs ab, bc, ab."""
    assert distinct_n(["a b c", "A b"]) == pytest.approx(2 / 3)
    assert distinct_n(["a b c", "a b"], 1) == 3 / 5
    assert distinct_n(["Yes, yes."], 1) == 3 / 4  # yes , .
    assert math.isnan(distinct_n(["a", ""])) and math.isnan(distinct_n([]))


def test_pairs_do_not_cross_answers():
    assert distinct_n(["a b", "b a"]) == 1 and distinct_n(["a", "b"], 1) == 1


def test_repetition_by_hand():
    """abc bca cab abc: one of four was there before."""
    assert repetition("a b c a b c") == 0.25 and repetition("to be, or not to be") == 0
    assert repetition("go go go go", 1) == 0.75 and math.isnan(repetition("a b"))
    with pytest.raises(WorkbenchError, match="0 words.*\nAllowed: 1 or more"):
        repetition("a", 0)


def literal(model, question, answer):
    """One answer alone, token by token, no batch and no padding."""
    (prompt,) = model.encode([question], chat=True)
    said = model.tokenizer(answer, add_special_tokens=False).input_ids
    nats = []
    for k, token in enumerate(said):
        logits = model.twin(torch.tensor([prompt + said[:k]])).logits[0, -1].double()
        nats.append(-float(logits.log_softmax(-1)[token]))
    return math.exp(sum(nats) / len(nats)) if nats else math.nan


@pytest.mark.parametrize("family", tiny.FAMILIES + tiny.MORE)
def test_batched_is_alone_on_every_architecture(tiny_model, family):
    model = tiny_model(family)
    model.tokenizer.padding_side = "left"
    found = perplexity(model, QUESTIONS, ANSWERS)
    expected = [literal(model, q, a) for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    assert found == pytest.approx(expected, rel=1e-4, nan_ok=True) and math.isnan(found[1])
    assert perplexity(model, QUESTIONS, ANSWERS, batch_tokens=1) == pytest.approx(found, rel=1e-4, nan_ok=True)


def test_perplexity_is_given_the_question(tiny_model):
    model = tiny_model()
    chat = [{"role": "user", "content": QUESTIONS[0]}]
    one, same, other = perplexity(model, [QUESTIONS[0], chat, QUESTIONS[2]], [ANSWERS[0]] * 3)
    assert one == same != other


def test_what_cannot_be_read(tiny_model):
    model = tiny_model()
    assert np.isnan(perplexity(model, ["Win?"], ["the old house " * 60])).all()  # longer than the context
    assert perplexity(model, [], []).shape == (0,)
    with pytest.raises(WorkbenchError, match="2 answers.*\nFound: 1 questions"):
        perplexity(model, ["Win?"], ["a", "b"])
    model.active.append("ConVA")
    try:
        with pytest.raises(WorkbenchError, match="Found: 'ConVA' is on\nWhat to do: Leave"):
            perplexity(model, ["Win?"], ["a"])
    finally:
        model.active.clear()
