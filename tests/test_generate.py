# ruff: noqa: F811
"""Generation: greedy is greedy, rows are their own, the context is respected."""

import warnings
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from test_contracts import VALUE, probes  # noqa: F401

from workbench.errors import WorkbenchError
from workbench.generate import _sample, generate, row_seed
from workbench.steering import ICA, Base, ConVA

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


def test_a_stopped_stream_runs_no_further_token(tiny_model):
    model, passes = tiny_model(), []
    handle = model.twin.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        stream = generate(model, PROMPTS, max_new_tokens=30, stream=True)
        assert passes == [], "nothing runs before it is asked for"
        for _ in range(3):
            next(stream)
        stream.close()
        assert len(passes) == 3 and next(stream, None) is None
    finally:
        handle.remove()


CHAT = [
    {"role": "user", "content": "Should Mira sell the old house?"},
    {"role": "assistant", "content": "No, she should not."},
    {"role": "user", "content": "What is two?"},
]


def test_a_chat_is_answered_after_its_last_turn(tiny_model):
    model = tiny_model()
    text = model.tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert model.render([CHAT]) == [text]
    answers = generate(model, [CHAT, PROMPTS[0]], max_new_tokens=6)
    assert answers == [generate(model, [text], max_new_tokens=6, chat=False)[0], by_hand(model, PROMPTS[0], 6)]
    told = [*CHAT[:2], {"role": "user", "content": "Be kind. What is two?"}]
    assert model.render([CHAT], "Be kind.") == model.render([told])
    kind = generate(model, [CHAT], max_new_tokens=6, instruction="Be kind.")
    assert kind == generate(model, [told], max_new_tokens=6) != answers[:1]


def test_chats_that_no_one_can_answer_are_refused(tiny_model, monkeypatch):
    model = tiny_model()
    for chat in ([], CHAT[:2], [{"role": "user"}], [{"role": "user", "content": None}], [5], 5):
        with pytest.raises(WorkbenchError, match="An answer to a chat was asked for"):
            generate(model, [chat])  # type: ignore[list-item]
    monkeypatch.setitem(vars(model), "has_chat_template", False)
    with pytest.raises(WorkbenchError, match="a model without chat template"):
        generate(model, [CHAT])


# -- how far an answer is from the base model's --------------------------------------------------------------


def kl_by_hand(model, bare, asked, answer, steer):
    """One row, a pass for each token: KL between the steered and the base model's next token."""
    said = []
    for n in range(len(answer)):
        both = []
        for prompt, on in ((asked, True), (bare, False)):
            steered = steer.on(model, prompt_lengths=[len(prompt)]) if on and steer.layers else nullcontext()
            with steered, torch.no_grad():
                both.append(model.twin(torch.tensor([prompt + answer[:n]])).logits[0, -1].double().log_softmax(-1))
        said.append(float((both[0].exp() * (both[0] - both[1])).sum()))
    return said


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_kl_is_that_of_the_steered_next_token_to_the_base_models(family, batch_size, tiny_model, probes):
    model = tiny_model(family)
    for steer in (ConVA(probes(family), VALUE, target=0.9999, layers=[0, 1]), ICA(VALUE), Base()):
        settings = {"steer": steer, "max_new_tokens": 5, "batch_size": batch_size}
        answers, trace = generate(model, PROMPTS, return_trace=True, kl=True, temperature=1.0, **settings)
        asked, bare = model.encode(steer.edit_prompts(PROMPTS, model)[0], chat=True), model.encode(PROMPTS, chat=True)
        told = trace.dropna(subset=["position"]).groupby(["row", "position"])["kl"].first()
        assert len(told) == 15 and set(told.index.get_level_values("row")) == {0, 1, 2}
        for row in range(3):
            answer = model.tokenizer(answers[row], add_special_tokens=False).input_ids
            if len(answer) != 5:  # the text falls into other tokens than were said
                continue
            wanted = kl_by_hand(model, bare[row], asked[row], answer, steer)
            assert told[row].index.tolist() == list(range(len(asked[row]) - 1, len(asked[row]) + 4))
            assert told[row].to_numpy() == pytest.approx(wanted, rel=1e-3, abs=1e-5)
        assert (told > 0.01).all() != isinstance(steer, Base) and ((told == 0).all() == isinstance(steer, Base))
    assert generate(model, PROMPTS, max_new_tokens=3, return_trace=True, kl=True)[1]["kl"].eq(0).all()


def test_kl_is_refused_where_it_would_mean_something_else(tiny_model, probes):
    model, steer = tiny_model(), ConVA(probes(), VALUE, layers=[0])
    wrong: list[tuple[dict[str, Any], str]] = [({}, "no trace"), ({"return_trace": True, "stream": True}, "a stream")]
    for settings, found in wrong:
        with pytest.raises(WorkbenchError, match=f"Found: {found}"):
            generate(model, PROMPTS, steer=steer, kl=True, **settings)
    with pytest.raises(WorkbenchError, match="an intervention that is on already"), steer.on(model):
        generate(model, PROMPTS, kl=True, return_trace=True)


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
