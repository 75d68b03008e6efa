# ruff: noqa: F811
"""ScaleNeurons: the model whose rows of W_out are multiplied; nothing at 1; ablated like LAPE."""

import copy

import pytest
import torch
from test_neurons import a_set
from torch import nn

from workbench.errors import WorkbenchError
from workbench.gates import AlwaysOpen, Never
from workbench.generate import generate
from workbench.steering.intervention import Intervention
from workbench.steering.lape import LAPE
from workbench.steering.scale_neurons import ScaleNeurons

PROMPTS = ["What is two?", "Should Mira sell the old house or start a bakery?", "He wants to win the race."]
CHOSEN = {0: [3, 8], 2: [0, 21, 40]}
FAMILIES = ("llama", "gpt2")


def given(model) -> dict[str, torch.Tensor]:
    ids, mask = model.pad(model.encode(PROMPTS, chat=True), side="left")
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


@torch.no_grad()
def logits(model, module=None) -> torch.Tensor:
    batch = given(model)
    return (module or model.twin)(**batch, use_cache=False).logits[batch["attention_mask"].bool()]


@pytest.mark.parametrize("factor", [0.0, 4.0, -1.5])
@pytest.mark.parametrize("family", [*FAMILIES, "gemma2", "phi"])
def test_it_is_the_model_whose_rows_are_multiplied(family, factor, tiny_model):
    """At every token, prompt and answer; also where a norm follows the MLP."""
    model = tiny_model(family)
    names = {id(module): name for name, module in model.twin.named_modules()}
    other = copy.deepcopy(model.twin)
    for layer, units in CHOSEN.items():
        projection = other.get_submodule(names[id(model.neurons(layer))])
        rows = projection.weight.data.T if isinstance(projection, nn.Linear) else projection.weight.data
        rows[units] *= factor
    plain = logits(model)
    with ScaleNeurons(a_set(model, CHOSEN), factor).on(model):
        scaled = logits(model)
    torch.testing.assert_close(scaled, logits(model, other), rtol=1e-4, atol=1e-4)
    assert (scaled - plain).abs().max() > 0.01
    assert torch.equal(logits(model), plain), "the model was left changed"


@pytest.mark.parametrize("scope", ["all", "token"])
@pytest.mark.parametrize("family", FAMILIES)
def test_factor_1_and_a_closed_gate_are_the_model_bit_for_bit(family, scope, tiny_model):
    model = tiny_model(family)
    plain = logits(model)
    for idle in (ScaleNeurons(a_set(model, CHOSEN), 1.0, scope=scope),
                 ScaleNeurons(a_set(model, CHOSEN), 0.0, gate=Never(), scope=scope)):  # fmt: skip
        with idle.on(model):
            assert torch.equal(logits(model), plain)
    with ScaleNeurons(a_set(model, CHOSEN), 0.0, gate=AlwaysOpen(), scope=scope).on(model):
        assert not torch.equal(logits(model), plain)


@pytest.mark.parametrize("scope", ["all", "token"])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_is_uncached_and_batched_is_alone(family, scope, tiny_model):
    model = tiny_model(family)
    steer = ScaleNeurons(a_set(model, CHOSEN), 5.0, scope=scope)
    said = generate(model, PROMPTS, steer=steer, max_new_tokens=6)
    assert said != generate(model, PROMPTS, max_new_tokens=6)
    assert said == [generate(model, [prompt], steer=steer, max_new_tokens=6)[0] for prompt in PROMPTS]
    prompt = model.encode(PROMPTS[1:2], chat=True)[0]
    ids = torch.tensor([prompt])
    with steer.on(model), torch.no_grad():
        cached = model.twin.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False,
                                     output_logits=True, return_dict_in_generate=True)  # fmt: skip
    with steer.on(model, prompt_lengths=[len(prompt)]), torch.no_grad():
        whole = model.twin(cached.sequences, use_cache=False).logits[0]
    for k, step in enumerate(cached.logits):
        torch.testing.assert_close(step[0], whole[len(prompt) - 1 + k], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_ablation_from_the_last_prompt_token_on_is_lapes(family, tiny_model):
    model = tiny_model(family)
    off = LAPE(a_set(model, CHOSEN, side=-1))
    found = []
    for steer in (ScaleNeurons(off.neurons, 0.0, scope="token"), off):
        with steer.on(model):
            found.append(logits(model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_what_it_adds_is_what_the_neurons_write_times_the_change(tiny_model):
    model = tiny_model()
    steer = ScaleNeurons(a_set(model, CHOSEN), 3.0, layers=[2])
    a = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    expected = sum(2.0 * a[..., i, None] * model.neurons(2).weight[:, i] for i in CHOSEN[2])
    torch.testing.assert_close(steer.shift(2, a), expected, rtol=1e-5, atol=1e-5)
    assert steer.layers == (2,)


def test_save_and_load(tiny_model, tmp_path):
    model = tiny_model()
    steer = ScaleNeurons(a_set(model, CHOSEN), -2.0, scope="token", window=(1, None))
    again = Intervention.load(steer.save(tmp_path / "steer"), model)
    assert isinstance(again, ScaleNeurons) and repr(again) == repr(steer) and again.layers == (0, 2)
    assert generate(model, PROMPTS, steer=again, max_new_tokens=5) == generate(
        model, PROMPTS, steer=steer, max_new_tokens=5
    )
    with pytest.raises(WorkbenchError, match="were to be used with qwen2"):
        generate(tiny_model("qwen2"), PROMPTS, steer=steer, max_new_tokens=1)


def test_bad_settings(tiny_model):
    neurons = a_set(tiny_model(), CHOSEN)
    for make, message in (
        (lambda: ScaleNeurons(neurons, float("nan")), "A factor of nan was asked for.\nAllowed: a finite number"),
        (lambda: ScaleNeurons(neurons, layers=[1]), r"ScaleNeurons by .* at layers \[1\] was asked for.\nAllowed: one "
         "or more of 0, 2"),
        (lambda: ScaleNeurons(neurons, scope="generated"), "ScaleNeurons with scope 'generated'"),
    ):  # fmt: skip
        with pytest.raises(WorkbenchError, match=message):
            make()
