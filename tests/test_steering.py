# ruff: noqa: F811
"""Steering methods one by one: their rule, their settings, their files. What holds for all is in
test_contracts.py, ConVA's own in test_conva.py.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from test_contracts import PROMPTS, VALUE, gate, pairs, probes  # noqa: F401

from workbench.errors import WorkbenchError
from workbench.gates import AlwaysOpen, Never
from workbench.generate import generate
from workbench.probes import fit_probes
from workbench.steering import CAA, ICA, Base, ConVA, Intervention, RandomDirection


def test_caa_adds_the_raw_mean_difference(probes):
    raw = probes("llama", "mean_difference")
    steer = CAA(raw, VALUE, strength=-0.3, layers=[2])
    shift = steer.shift(2, torch.zeros(4, raw.weight.sizes["d_model"]))
    assert shift.shape == (4, raw.weight.sizes["d_model"])
    np.testing.assert_allclose(shift[3], -0.3 * raw.weight.sel(value=VALUE, layer=2).values, rtol=1e-6)


def test_random_directions_are_isotropic_and_seeded(probes):
    caa = CAA(probes("llama", "mean_difference"), VALUE, strength=2.0, layers=[0, 1])
    e = torch.zeros(3, 32)
    one, same, other = (RandomDirection(caa, seed=s).shift(1, e) for s in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    torch.testing.assert_close(one.norm(dim=-1), caa.shift(1, e).norm(dim=-1))
    here, there = (RandomDirection(caa, seed=0).direction(layer, e) for layer in (0, 1))
    assert abs(float(here @ there)) < 0.9, "each layer has its own"
    drawn = torch.stack([RandomDirection(caa, seed=s).direction(1, e) for s in range(400)])
    assert float(drawn.mean(0).norm()) < 0.1 and float((drawn.T @ drawn / 400 - torch.eye(32) / 32).abs().max()) < 0.02


def test_methods_ask_for_the_probes_they_mean(probes):
    with pytest.raises(WorkbenchError, match="CAA was asked for.*\n.*probes by 'logistic'"):
        CAA(probes(), VALUE, layers=[1])
    with pytest.raises(WorkbenchError, match="ConVA was asked for.*\n.*mean_difference"):
        ConVA(probes("llama", "mean_difference"), VALUE, layers=[1])
    with pytest.raises(WorkbenchError, match="scope 'token'"):
        CAA(probes("llama", "mean_difference"), VALUE, layers=[1], scope="token")
    with pytest.raises(WorkbenchError, match="strength of nan"):
        CAA(probes("llama", "mean_difference"), VALUE, layers=[1], strength=float("nan"))
    with pytest.raises(WorkbenchError, match="level 'some'"):
        ICA(VALUE, level="some")
    with pytest.raises(WorkbenchError, match="'secure'"):
        ICA("secure")


def test_layers_default_to_the_probes_choice(probes):
    assert ConVA(probes(), VALUE).layers == tuple(probes().choose_layers())
    assert CAA(probes("llama", "mean_difference"), VALUE, layers=[2, 0, 2]).layers == (0, 2)


def test_they_say_what_they_do(probes, gate):
    text = repr(ConVA(probes(), VALUE, target=0.9, layers=[0, 1, 2], gate=gate()))
    assert (
        text.startswith("ConVA(security, target=0.9, layers 0-2, gate=ProbeGate(layer 1, P > ") and "scope=all" in text
    )
    assert repr(Base()) == "Base()" and repr(ICA(VALUE, "low")) == "ICA(security, level=low, gate=None)"
    caa = CAA(probes("llama", "mean_difference"), VALUE, layers=[0, 2])
    assert repr(RandomDirection(caa)) == f"RandomDirection({caa!r}, seed=0)" and "layers 0, 2" in repr(caa)


# -- prompting -----------------------------------------------------------------------------------------------


def test_ica_edits_the_prompts_its_gate_opens_for(tiny_model, gate):
    model, judge = tiny_model(), gate()
    asked = model.instruct(VALUE, "high")
    assert asked.startswith("You have high level of security. Security means ")
    assert ICA(VALUE).edit_prompt("Why?", model) == f"{asked} Why?"
    assert ICA(VALUE, "low").edit_prompt("Why?", model) == f"{model.instruct(VALUE, 'low')} Why?"
    gated = ICA(VALUE, gate=judge)
    opened = judge.opens(PROMPTS)
    assert 0 < opened.sum() < 3
    for prompt, opens in zip(PROMPTS, opened, strict=True):
        assert gated.edit_prompt(prompt) == (f"{asked} {prompt}" if opens else prompt)
    answers, trace = generate(model, PROMPTS, steer=gated, max_new_tokens=4, return_trace=True)
    assert answers == generate(model, [gated.edit_prompt(p) for p in PROMPTS], max_new_tokens=4)
    assert trace["row"].tolist() == [0, 1, 2] and trace["open"].tolist() == opened.tolist()
    np.testing.assert_allclose(trace["gate"].astype(float), judge.scores(PROMPTS), atol=1e-6)
    with pytest.raises(WorkbenchError, match="no model, whose wording is needed"):
        ICA(VALUE).edit_prompt("Why?")


def test_ica_is_not_switched_on(tiny_model):
    with pytest.raises(WorkbenchError, match="edits prompts, not activations"):
        ICA(VALUE).on(tiny_model())


def test_base_is_the_model(tiny_model):
    model = tiny_model()
    assert generate(model, PROMPTS, steer=Base(), max_new_tokens=4) == generate(model, PROMPTS, max_new_tokens=4)
    with Base().on(model, trace=True) as run:
        assert model.active == []
        generate(model, PROMPTS, max_new_tokens=2)
    assert run.trace.empty and list(run.trace.columns)[:3] == ["row", "layer", "position"]


# -- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["conva", "caa", "ica", "base", "random", "never"])
def test_save_and_load(kind, probes, gate, tiny_model, tmp_path):
    model = tiny_model()
    steer = {
        "conva": lambda: ConVA(probes(), VALUE, target=0.999, layers=[0, 2], gate=gate(), scope="token"),
        "caa": lambda: CAA(probes("llama", "mean_difference"), VALUE, strength=1.5, layers=[1], gate=AlwaysOpen()),
        "ica": lambda: ICA(VALUE, "low", gate=gate()),
        "base": Base,
        "random": lambda: RandomDirection(ConVA(probes(), VALUE, target=0.999, layers=[0, 2], gate=gate()), seed=3),
        "never": lambda: ConVA(probes(), VALUE, layers=[0], gate=Never()),
    }[kind]()
    again = Intervention.load(steer.save(tmp_path / "steer.safetensors"), model)
    assert type(again) is type(steer) and repr(again) == repr(steer) and again.layers == steer.layers
    settings = {"max_new_tokens": 6, "return_trace": True}
    (text, trace), (text2, trace2) = (generate(model, PROMPTS, steer=s, **settings) for s in (steer, again))
    assert text == text2
    pd.testing.assert_frame_equal(trace, trace2)
    if kind not in ("base",):
        other = tiny_model("qwen2")
        with pytest.raises(WorkbenchError, match="of llama were to be used with qwen2"):
            Intervention.load(tmp_path / "steer.safetensors", other)
        with pytest.raises(WorkbenchError, match="of llama were to be used with qwen2"):
            generate(other, PROMPTS, steer=steer)


def test_files_are_not_trusted(tmp_path, probes):
    from workbench.probes.files import save_arrays

    path = tmp_path / "x"
    for meta, message in (
        ({"method": "os.system"}, "An intervention 'os.system'"),
        ({"method": "ConVA", "target": 0.9}, "in its settings"),
        ({"method": "Base", "surprise": 1}, "in its settings"),
    ):
        save_arrays(path, "intervention", {}, meta)
        with pytest.raises(WorkbenchError, match=message):
            Intervention.load(path)
    probes().save(path)
    with pytest.raises(WorkbenchError, match="it holds probes"):
        Intervention.load(path)


def test_a_method_of_another_size_is_refused(tiny_model, probes, tmp_path):
    import tiny

    from workbench.models import load_model

    deeper = load_model(tiny.make(tmp_path, "llama", layers=4))
    steer = ConVA(fit_probes(deeper, pairs(), folds=3), VALUE, layers=[3])
    with pytest.raises(WorkbenchError, match="were to be used with llama"), steer.on(tiny_model()):
        pass


def test_a_method_with_layers_must_say_what_it_adds(tiny_model):
    """Forgotten, it would steer nothing in silence; without layers there is nothing to say."""

    @dataclass(frozen=True, eq=False, repr=False)
    class Forgetful(Intervention, abstract=True):
        layers: tuple[int, ...] = (0, 1)

    model = tiny_model("llama")
    with pytest.raises(WorkbenchError, match="Forgetful was to steer layers 0-1.\nFound: a method that does not say"):
        Forgetful().check(model)
    Forgetful(layers=()).check(model)
    Base().check(model)
