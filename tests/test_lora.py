"""LoRA: what peft's own model says, trained on answers alone, the model untouched; and control that is gained."""

import copy
import sys
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_equalities import an_adapter
from torch import nn

from workbench.embedded import judge
from workbench.errors import WorkbenchError
from workbench.generate import generate
from workbench.models import load_model
from workbench.neurons import neuron_contrasts
from workbench.prompts import load_questions
from workbench.steering import lora
from workbench.steering.dpnle import DPNLE
from workbench.steering.intervention import Intervention
from workbench.steering.lora import Adapter, LoRA
from workbench.steering.strength import at_norm, convert

VALUE = "security"
PROMPTS = ["What is two?", "Should Mira sell the old house or start a bakery?", "He wants to win the race."]
ANSWERS = ["It is two.", "Mira should start a bakery", "He wants"]


@pytest.fixture(scope="module")
def circle():
    return load_model("embedded:circle")


def logits(model, steer=None, module: Any = None) -> torch.Tensor:
    ids, mask = model.pad(model.encode(PROMPTS, chat=True), side="right")
    with steer.on(model) if steer else torch.no_grad(), torch.no_grad():
        out = (module or model.twin)(ids, attention_mask=mask, use_cache=False).logits
    return out[mask.bool()]


def quick(model, **settings) -> LoRA:
    given = {"answers": ANSWERS, "epochs": 2, "batch_size": 2, "progress": False, **settings}
    return LoRA.fit(model, VALUE, given.pop("questions", PROMPTS), **given)


# -- the rule ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "gemma2", "phi"])
def test_it_is_what_peft_makes_of_the_same_matrices(family, tiny_model):
    from peft import LoraConfig, get_peft_model

    model = tiny_model(family)
    names = {id(module): name for name, module in model.twin.named_modules()}
    at = {layer: names[id(model.neurons(layer))] for layer in (0, 2)}
    own = copy.deepcopy(model.twin)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=[*at.values()], lora_dropout=0.0,  # pyright: ignore
                        fan_in_fan_out=family == "gpt2", init_lora_weights=False)  # fmt: skip
    with torch.random.fork_rng():
        tuned = get_peft_model(own, config)
    tuned.eval()
    parts = {layer: own.get_submodule(name) for layer, name in at.items()}
    down, up = (
        {layer: getattr(part, which)["default"].weight.detach().numpy() for layer, part in parts.items()}
        for which in ("lora_A", "lora_B")
    )
    steer = LoRA(Adapter(VALUE, down, up, 5, model.provenance))
    ours = logits(model, steer)
    torch.testing.assert_close(ours, logits(model, module=tuned), rtol=1e-5, atol=1e-5)
    merged = tuned.merge_and_unload()
    torch.testing.assert_close(ours, logits(model, module=merged), rtol=1e-5, atol=1e-5)
    assert (ours - logits(model)).abs().max() > 0.01


def test_strength_scales_what_is_added(tiny_model):
    model = tiny_model()
    steer, a = LoRA(an_adapter(model)), torch.randn(5, 2, 64, generator=torch.Generator().manual_seed(0))
    down, up = steer.adapter.down[1], steer.adapter.up[1]
    by_hand = np.stack([[4 / 2 * up @ (down @ token) for token in row] for row in a.double().numpy()])
    np.testing.assert_allclose(steer.shift(1, a), by_hand, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(replace(steer, strength=-1.5).shift(1, a), -1.5 * by_hand, rtol=1e-5, atol=1e-6)


def test_the_trace_says_what_was_added(tiny_model):
    """eps: length of what is added to the projection's output, at the tokens' own neurons; share: of that output."""
    model = tiny_model()
    steer, seen = LoRA(an_adapter(model), strength=0.5, layers=[1]), []
    watch = model.neurons(1).register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    ids = model.encode(PROMPTS[1:2], chat=True)
    with steer.on(model, trace=True, prompt_lengths=[len(ids[0]) - 2]) as run:
        model.twin(torch.tensor(ids))
    watch.remove()
    a = seen[0][0, -3:]
    length = steer.shift(1, a).norm(dim=1)
    np.testing.assert_allclose(run.trace["eps"], length, rtol=1e-5)
    np.testing.assert_allclose(run.trace["share"], length / model.neurons(1)(a).norm(dim=1), rtol=1e-5)
    assert run.trace[["p_before", "p_after"]].isna().all(axis=None)


def test_it_reads_neurons_as_another_method_left_them(tiny_model):
    model = tiny_model()
    pairs = {"value": [VALUE] * 4, "positive": PROMPTS + ["I helped."], "negative": ["A red.", "No.", "We.", "It is."]}
    pushed = DPNLE(DPNLE.select(model, neuron_contrasts(model, pd.DataFrame(pairs)), VALUE, quantile=0.5, min_d=0),
                   layers=[1], scope="all")  # fmt: skip
    steer = LoRA(an_adapter(model), layers=[1])

    def by_hand(_module, given, out):
        a = given[0] + pushed.shift(1, given[0])
        return model_out(a) + steer.shift(1, a)

    projection = copy.deepcopy(model.neurons(1))

    def model_out(a):
        return projection(a)

    handle = model.neurons(1).register_forward_hook(by_hand)
    expected = logits(model)
    handle.remove()
    with pushed.on(model):
        torch.testing.assert_close(logits(model, steer), expected, rtol=1e-5, atol=1e-5)
    with steer.on(model):  # whichever is switched on first: the neurons come before what is made of them
        torch.testing.assert_close(logits(model, pushed), expected, rtol=1e-5, atol=1e-5)


def test_two_add_up_and_every_hook_sees_what_they_made(tiny_model):
    model = tiny_model()
    steer, seen = LoRA(an_adapter(model), layers=[1]), []
    watch = model.neurons(1).register_forward_hook(lambda _module, _given, out: seen.append(out))
    ids = torch.tensor(model.encode(PROMPTS[:1], chat=True))
    name = "blocks.1.mlp.out.hook_out"
    with replace(steer, strength=0.5).on(model), replace(steer, strength=0.25).on(model):
        model.twin(ids)
        _, cache = model.bridge.run_with_cache(ids, names_filter=name)
    with replace(steer, strength=0.75).on(model):
        model.twin(ids)
    model.twin(ids)
    watch.remove()
    both, once, plain = seen
    torch.testing.assert_close(both, once, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cache[name], both, rtol=1e-5, atol=1e-5)
    assert (both - plain).abs().max() > 0.01


def test_strength_is_told_as_for_others(tiny_model):
    model = tiny_model()
    steer, probe = LoRA(an_adapter(model), layers=[0, 2]), []
    told = convert(model, steer, PROMPTS)
    with steer.on(model, trace=True) as run:
        for ids in model.encode(PROMPTS, chat=True):
            model.twin(torch.tensor([ids]))
    hooks = [model.neurons(k).register_forward_hook(lambda _m, _i, out: probe.append(out[0, -1])) for k in (0, 2)]
    for ids in model.encode(PROMPTS, chat=True):
        model.twin(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    unit = torch.stack(probe).norm(dim=1).reshape(3, 2).numpy()
    expected = (run.trace["eps"].to_numpy().reshape(3, 2) / np.median(unit, axis=0)).mean(1)
    np.testing.assert_allclose(told["norm"], expected, rtol=1e-4)
    found = at_norm(model, lambda x: replace(steer, strength=x), PROMPTS, norm=0.5 * expected.mean())
    assert abs(convert(model, found, PROMPTS)["norm"].mean() / expected.mean() - 0.5) < 0.01


# -- training ------------------------------------------------------------------------------------------------


def test_the_loss_is_of_the_answers_tokens_alone(tiny_model):
    """At the first step B is 0: the loss is the model's own cross-entropy of answer and end token, row by row."""
    model = tiny_model()
    steer = quick(model, batch_size=3, epochs=40, learning_rate=0.02)
    said = steer.adapter.provenance["loss"]

    def by_hand():
        nats = []
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
            ids = model.encode([prompt], chat=True)[0]
            whole = model.encode([model.render([prompt])[0] + answer])[0] + [model.tokenizer.eos_token_id]
            assert whole[: len(ids)] == ids
            spoken = model.twin(torch.tensor([whole])).logits[0].log_softmax(-1)
            nats += [-float(spoken[i - 1, whole[i]]) for i in range(len(ids), len(whole))]
        return np.mean(nats)

    assert abs(said[0] - by_hand()) < 1e-4 and len(said) == 40
    with steer.on(model, prompt_lengths=[1]):
        after = by_hand()
    assert after < said[-1] < 0.5 * said[0]  # the last step's loss is before that step


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_model_and_torch_are_left_as_they_were(family, tiny_model):
    model = tiny_model(family)
    before = {name: parameter.clone() for name, parameter in model.twin.named_parameters()}
    plain, state, threads = logits(model), torch.get_rng_state(), torch.get_num_threads()
    with warnings.catch_warnings():  # peft's, of modules that it does not take as they are
        warnings.simplefilter("error")
        steer = quick(model, layers=[0, 2])
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    after = dict(model.twin.named_parameters())
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in after.values())
    assert torch.equal(logits(model), plain) and steer.layers == (0, 2)
    assert (steer.adapter.rank, steer.adapter.alpha) == (4, 8) and (logits(model, steer) - plain).abs().max() > 1e-3


def test_nothing_but_the_adapter_takes_memory(tiny_model):
    model = tiny_model()
    own = {parameter.data_ptr() for parameter in model.twin.parameters()}
    copied, _ = lora._adapted(model, [1], 4, 8.0, 0)
    new = [name for name, parameter in copied.named_parameters() if parameter.data_ptr() not in own]
    assert len(new) == 2 and all(".1." in name and "lora_" in name for name in new)


def test_a_seed_makes_an_adapter(tiny_model):
    model = tiny_model()
    with torch.random.fork_rng():
        one, _, same, other = quick(model, seed=1), torch.rand(1), quick(model, seed=1), quick(model, seed=2)
    for layer in one.adapter.down:
        assert np.array_equal(one.adapter.down[layer], same.adapter.down[layer])
        assert np.array_equal(one.adapter.up[layer], same.adapter.up[layer])
        assert not np.allclose(one.adapter.down[layer], other.adapter.down[layer])
    assert one.adapter.provenance["loss"] == same.adapter.provenance["loss"] != other.adapter.provenance["loss"]


def test_the_model_is_its_own_teacher(circle):
    """Its answers under the instruction, at temperature 1, learnt without it: the same as when they are given."""
    asked = load_questions("embedded").query("value == @VALUE and split == 'calibration'")["question"].tolist()[:6]
    own = generate(circle, asked, temperature=1.0, seed=3, instruction=circle.instruct(VALUE), max_new_tokens=64)
    settings = {"questions": asked, "seed": 3, "batch_size": 6}
    taught, given = quick(circle, answers=None, **settings), quick(circle, answers=own, **settings)
    assert taught.adapter.provenance["loss"] == given.adapter.provenance["loss"]
    assert taught.adapter.provenance["answers"] == "own, under ICA"


@pytest.mark.parametrize("limit", ["tokens", "context"])
def test_no_end_follows_an_answer_that_was_cut(limit, circle, monkeypatch):
    """Nobody is taught to stop in the middle of a sentence."""
    asked, learnt, real = ["Should Mira paint the fence?"], [], nn.functional.cross_entropy
    monkeypatch.setattr(nn.functional, "cross_entropy", lambda x, y: (learnt.append(y.tolist()), real(x, y))[1])
    quick(circle, questions=asked, answers=None, epochs=1)
    if limit == "tokens":
        monkeypatch.setattr(lora, "MOST", 3)
    else:
        prompt = circle.encode(asked, chat=True, instruction=circle.instruct(VALUE))[0]
        monkeypatch.setattr(circle, "context", len(prompt) + 3)
    with warnings.catch_warnings():  # that the context is full
        warnings.simplefilter("ignore")
        quick(circle, questions=asked, answers=None, epochs=1)
    whole, cut = learnt
    assert cut == whole[:3] and whole[-1] == circle.tokenizer.eos_token_id and len(whole) > 4


def test_it_gains_control_on_questions_it_never_saw(circle):
    """30 calibration questions, the model's own answers: CSR on the test questions rises, FR stays."""
    questions = load_questions("embedded").query("value == @VALUE")
    asked, held_out = (questions.query("split == @s")["question"].tolist() for s in ("calibration", "test"))
    assert not {*asked} & {*held_out}
    weights = circle.twin.state_dict()
    before = {name: tensor.clone() for name, tensor in weights.items()}
    steer = LoRA.fit(circle, VALUE, asked * 4, epochs=4, progress=False)
    assert all(torch.equal(weights[name], tensor) for name, tensor in before.items())

    def rates(steer=None) -> tuple[float, float]:
        said = generate(circle, held_out, steer=steer, temperature=1.0, max_new_tokens=64)
        control = [judge.control(answer, VALUE) for answer in said]
        return float(np.mean(control)), float(np.mean([judge.read(answer).grammatical for answer in said]))

    (base, _), (csr, fluent) = rates(), rates(steer)
    assert base < 0.3 and csr > base + 0.4 and fluent > 0.9
    assert rates(replace(steer, strength=0.0))[0] == base


# -- files and bad input -------------------------------------------------------------------------------------


def test_peft_is_for_training_alone(tiny_model, tmp_path, monkeypatch):
    model = tiny_model()
    steer = replace(quick(model), strength=0.7)
    expected = logits(model, steer)
    monkeypatch.setitem(sys.modules, "peft", None)
    again = Intervention.load(steer.save(tmp_path / "steer"), model)
    assert isinstance(again, LoRA) and again.value == VALUE and repr(again) == repr(steer)
    assert repr(again) == (
        "LoRA(adapter=Adapter(security: rank 4, alpha 8, 3 layers), strength=0.7, layers 0-2, gate=None, scope=all)"
    )
    assert again.adapter.provenance["loss"] == steer.adapter.provenance["loss"]
    assert torch.equal(logits(model, again), expected)
    with pytest.raises(WorkbenchError, match="(?s)peft is not installed.*pip install .value-workbench.lora"):
        quick(model)


def test_bad_input(tiny_model, tmp_path, monkeypatch):
    model = tiny_model()
    adapter = an_adapter(model)
    steer = LoRA(adapter)
    bent = {**adapter.down, 1: adapter.down[1][:1]}
    for make, message in (
        (lambda: LoRA(adapter, layers=[]), r"at layers \[\] was asked for.\nAllowed: one or more of 0, 1, 2"),
        (lambda: LoRA(adapter, layers=[1, 7]), r"at layers \[1, 7\]"),
        (lambda: LoRA(adapter, strength=float("nan")), "strength of nan"),
        (lambda: LoRA(adapter, scope="generated"), "LoRA with scope 'generated'.*'all', 'token'"),
        (lambda: replace(adapter, down=bent), "shapes of A and B"),
        (lambda: replace(adapter, down={}, up={}), "shapes of A and B"),
        (lambda: replace(adapter, up={0: adapter.up[0]}), "shapes of A and B"),
        (lambda: replace(adapter, up={**adapter.up, 0: adapter.up[0] * np.nan}), "Found: NaN or inf.Allowed: finite A"),
        (lambda: LoRA(adapter, window=(1, 2)).start(model), r"window \(1, 2\) with scope 'all'"),
        (lambda: steer.start(tiny_model("qwen2")), "of llama were to be used with qwen2"),
        (lambda: Intervention.load(steer.save(tmp_path / "s"), tiny_model("qwen2")), "used with qwen2"),
        (lambda: quick(model, layers=[]), "no layer at all"),
        (lambda: quick(model, layers=[3]), r"unknown: \[3\]"),
        (lambda: quick(model, rank=0), "rank=0"),
        (lambda: quick(model, epochs=0), "epochs=0"),
        (lambda: quick(model, learning_rate=0.0), "learning_rate=0.0"),
        (lambda: quick(model, alpha=float("nan")), "alpha=nan"),
        (lambda: quick(model, answers=ANSWERS[:2]), "3 questions and 2 answers"),
        (lambda: quick(model, answers=["", "", ""]), "3 questions, none with an answer"),
        (lambda: quick(model, answers=[], questions=[]), "0 questions, none with an answer"),
        (lambda: quick(model, answers=["a " * 200, "b", "c"]), "of 128 tokens"),
        (lambda: LoRA.fit(model, "humour", PROMPTS, ANSWERS), "The value 'humour'"),
    ):
        with pytest.raises(WorkbenchError, match=f"(?s){message}"):
            make()
    real, calls = nn.functional.cross_entropy, iter([1, float("nan")])
    monkeypatch.setattr(nn.functional, "cross_entropy", lambda x, y: real(x, y) * next(calls))
    with pytest.raises(WorkbenchError, match="(?s)a loss of nan at step 2.*Lower learning_rate="):
        quick(model)
    with steer.on(model), pytest.raises(WorkbenchError, match="(?s)LoRA.* is on.*Leave its context first"):
        quick(model)
    assert model.active == []
