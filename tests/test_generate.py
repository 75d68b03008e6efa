"""Generation: greedy is greedy, rows are their own, the context is respected."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from workbench.errors import WorkbenchError
from workbench.generate import _sample, generate, row_seed

PROMPTS = ["What is two?", "Should Mira sell the old house or start a bakery?", "He wants to win the race."]


def by_hand(model, prompt, n, choose=lambda logits: int(logits.argmax())):
    """One row, no cache, no padding, no batch."""
    ids = model.encode([prompt], chat=True)[0]
    start = len(ids)
    for _ in range(n):
        with torch.no_grad():
            ids = [*ids, choose(model.twin(torch.tensor([ids])).logits[0, -1])]
        if ids[-1] in model.eos_ids:
            break
    return model.decode(ids[start:])


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma"])
def test_greedy_is_the_likeliest_token_each_time(family, tiny_model):
    model = tiny_model(family)
    assert generate(model, PROMPTS, max_new_tokens=10) == [by_hand(model, p, 10) for p in PROMPTS]


def test_sampling_follows_the_rows_own_generator(tiny_model):
    model = tiny_model()
    expected = []
    for row, prompt in enumerate(PROMPTS):
        draw = torch.Generator().manual_seed(row_seed(7, row))

        def choose(logits, draw=draw):
            heap = torch.softmax(logits / 0.8, 0).double().cumsum(0)
            return int((heap <= torch.rand(1, generator=draw, dtype=torch.float64) * heap[-1]).sum())

        expected.append(by_hand(model, prompt, 10, choose))
    settings = {"max_new_tokens": 10, "temperature": 0.8}
    assert generate(model, PROMPTS, seed=7, **settings) == expected
    assert generate(model, PROMPTS, seed=8, **settings) != expected
    twice = generate(model, PROMPTS[:1] * 2, seed=7, **settings)
    assert twice[0] == expected[0] != twice[1], "equal prompts in different rows are sampled apart"


def test_samples_have_the_softmax_distribution():
    p = torch.tensor([0.5, 0.25, 0.0, 0.15, 0.1])
    draws = [torch.Generator().manual_seed(row_seed(0, row)) for row in range(4000)]
    counts = np.bincount(_sample(p.log().expand(4000, 5), draws).numpy(), minlength=5) / 4000
    assert counts[2] == 0 and counts == pytest.approx(p.numpy(), abs=0.03)
    assert row_seed(0, 1) != row_seed(1, 0) and row_seed(1, 11) != row_seed(11, 1)


def test_answers_end_at_the_models_end(tiny_model, monkeypatch):
    model = tiny_model()
    whole = by_hand(model, PROMPTS[1], 10)
    assert len(whole) > 8
    with torch.no_grad():
        ids = model.encode(PROMPTS[1:2], chat=True)[0]
        third = [*ids]
        for _ in range(3):
            third.append(int(model.twin(torch.tensor([third])).logits[0, -1].argmax()))
    monkeypatch.setitem(vars(model), "eos_ids", {third[-1]})
    first = third.index(third[-1], len(ids)) + 1
    assert generate(model, PROMPTS[1:2], max_new_tokens=10) == [model.decode(third[len(ids) : first])]
    steps = list(generate(model, PROMPTS[1:2], max_new_tokens=10, stream=True))
    assert len(steps) == first - len(ids), "nothing is computed after the end"


def test_a_full_context_ends_the_answer_and_is_told(tiny_folder, tmp_path):
    import tiny

    from workbench.models import load_model

    model = load_model(tiny.make(tmp_path, "gpt2", context=64))
    long, short = "house " * 20, "Why?"
    n, m = (len(ids) for ids in model.encode([long, short], chat=True))
    assert 20 < n < 64 and m < 20
    model.__dict__["eos_ids"] = set()
    with pytest.warns(UserWarning, match=f"prompt 0 has {n} tokens and its answer was cut after {64 - n}") as told:
        cut, whole = generate(model, [long, short], max_new_tokens=64 - n + 3)
    assert len(told) == 1
    assert cut == by_hand(model, long, 64 - n) and whole == by_hand(model, short, 64 - n + 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(model, [long, short], max_new_tokens=64 - n)
    too_long = "house " * 70
    (ids,) = model.encode([too_long], chat=True)
    with pytest.raises(WorkbenchError, match=f"{len(ids) + 1} of 64 tokens"):
        generate(model, [short, too_long])


def test_the_instruction_stands_before_the_question(tiny_model):
    model = tiny_model()
    told = generate(model, PROMPTS, max_new_tokens=6, instruction="Be kind.")
    assert told == generate(model, [f"Be kind. {p}" for p in PROMPTS], max_new_tokens=6)
    assert told != generate(model, PROMPTS, max_new_tokens=6)
    raw = generate(model, PROMPTS[:1], max_new_tokens=6, chat=False)
    assert raw != generate(model, PROMPTS[:1], max_new_tokens=6)


def test_a_stream_grows_token_by_token_batch_by_batch(tiny_model):
    model = tiny_model()
    steps = list(generate(model, PROMPTS, max_new_tokens=5, batch_size=2, stream=True))
    assert len(steps) <= 10 and steps[-1] == generate(model, PROMPTS, max_new_tokens=5)
    assert steps[0][2] == "" and steps[0][0] and all(len(step) == 3 for step in steps)
    first = next(generate(model, PROMPTS, max_new_tokens=5, stream=True))
    assert first == [by_hand(model, p, 1) for p in PROMPTS]


def test_no_prompt_no_answer(tiny_model):
    assert generate(tiny_model(), []) == []
    answers, trace = generate(tiny_model(), [], return_trace=True)
    assert answers == [] and trace.empty


def test_bad_settings_are_refused(tiny_model):
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"steer": "ConVA"}, "Steering by 'C'|Steering by 'ConVA'"),
    ]
    for settings, message in wrong:
        with pytest.raises(WorkbenchError, match=message):
            generate(tiny_model(), PROMPTS, **settings)
    with pytest.raises(WorkbenchError, match="one string"):
        generate(tiny_model(), "Why?")  # type: ignore[arg-type]
