# ruff: noqa: F811
"""Strength: the same number, said three ways, is what the model shows; and the steering that has a given one."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from test_contracts import PROMPTS, VALUE, gate, pairs, probes, watched  # noqa: F401

from workbench.activations import capture
from workbench.errors import WorkbenchError
from workbench.gates import Never
from workbench.steering import CAA, ICA, SCAV, Base, ConVA, Intervention, RandomDirection
from workbench.steering.strength import at_kl, at_norm, at_probability, convert, norms

LAYERS = [0, 2]


@dataclass(frozen=True, eq=False, repr=False)
class Lift(Intervention, abstract=True):
    """Add a constant to every neuron."""

    site: ClassVar[str] = "neurons"
    by: float = 0.1
    layers: tuple[int, ...] = (0, 2)

    def shift(self, layer, e):
        return torch.full_like(e, self.by)


def looked_at(model, prompt, steer=None):
    """(residuals at the last prompt token by layer, log probabilities of the next token), one prompt alone."""
    ids = torch.tensor(model.encode([prompt], chat=True))
    with watched(model) as stream, steer.on(model) if steer else nullcontext(), torch.no_grad():
        logits = model.twin(ids).logits[0, -1]
    return {layer: hidden[0, -1] for layer, hidden in stream.items()}, logits.double().log_softmax(-1)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_all_three_are_what_the_model_shows(family, tiny_model, probes):
    model = tiny_model(family)
    steer = ConVA(probes(family), VALUE, target=0.999, layers=LAYERS)
    table = convert(model, steer, PROMPTS)
    assert list(table.columns) == ["prompt", "p_base", "p", "norm", "kl"] and table["prompt"].tolist() == PROMPTS
    base = [looked_at(model, prompt) for prompt in PROMPTS]
    median = {layer: np.median([float(states[layer].norm()) for states, _ in base]) for layer in LAYERS}
    for prompt, (plain, q), line in zip(PROMPTS, base, table.itertuples(), strict=True):
        steered, p = looked_at(model, prompt, steer)
        for name, states in (("p_base", plain), ("p", steered)):
            read = np.mean([float(steer.probability(layer, states[layer])) for layer in LAYERS])
            assert getattr(line, name) == pytest.approx(read, abs=1e-5)
        between, _ = looked_at(model, prompt, ConVA(probes(family), VALUE, target=0.999, layers=[0]))
        eps = {layer: float(steer.shift(layer, e[layer]).norm()) for layer, e in ((0, plain), (2, between))}
        assert line.norm == pytest.approx(np.mean([eps[layer] / median[layer] for layer in LAYERS]), rel=1e-4)
        assert line.kl == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3, abs=1e-8) and line.kl > 0
    np.testing.assert_allclose(norms(model, PROMPTS, LAYERS), list(median.values()), rtol=1e-5)


def test_kl_of_more_tokens_goes_along_the_base_models_answer(tiny_model, probes):
    model, steer = tiny_model(), ConVA(probes(), VALUE, target=0.999, layers=LAYERS, scope="generated")
    first, four = convert(model, steer, PROMPTS), convert(model, steer, PROMPTS, tokens=4)
    pd.testing.assert_frame_equal(four.drop(columns="kl"), first.drop(columns="kl"), atol=1e-5)
    for prompt, told in zip(PROMPTS, four["kl"], strict=True):
        ids = model.encode([prompt], chat=True)[0]
        with torch.no_grad():
            answer = []
            for _ in range(3):
                answer.append(int(model.twin(torch.tensor([[*ids, *answer]])).logits[0, -1].argmax()))
            whole = torch.tensor([[*ids, *answer]])
            q = model.twin(whole).logits[0, -4:].double().log_softmax(-1)
            with steer.on(model, prompt_lengths=[len(ids)]):
                p = model.twin(whole).logits[0, -4:].double().log_softmax(-1)
        each = (p.exp() * (p - q)).sum(-1)
        assert told == pytest.approx(float(each.mean()), rel=1e-3) and float(each.max() / each.min()) > 1.1
    found = at_kl(model, lambda x: ConVA(probes(), VALUE, target=float(expit(x)), layers=LAYERS), PROMPTS, 0.02,
                  (-10.0, 30.0), tokens=4)  # fmt: skip
    assert convert(model, found, PROMPTS, tokens=4)["kl"].mean() == pytest.approx(0.02, rel=0.01)
    with pytest.raises(WorkbenchError, match="tokens=0\nAllowed: 1 or more"):
        convert(model, steer, PROMPTS, tokens=0)


def test_neurons_are_measured_in_their_own_length(tiny_model):
    model = tiny_model()
    table = convert(model, Lift(), PROMPTS)
    acts = capture(model, PROMPTS, layers=LAYERS, hook="mlp.hook_post", chat=True)
    unit = np.median(np.linalg.norm(acts, axis=-1), axis=1)
    np.testing.assert_allclose(table["norm"], (0.1 * 64**0.5 / unit).mean(), rtol=1e-4)
    np.testing.assert_allclose(norms(model, PROMPTS, LAYERS, site="neurons"), unit, rtol=1e-5)
    assert table["p"].isna().all() and (table["kl"] > 0).all()


def test_no_steering_has_no_strength(tiny_model, probes):
    model = tiny_model()
    for steer in (Base(), ConVA(probes(), VALUE, target=1e-6, layers=LAYERS),
                  ConVA(probes(), VALUE, target=0.999, layers=LAYERS, gate=Never())):  # fmt: skip
        table = convert(model, steer, PROMPTS)
        assert (table["norm"] == 0).all() and (table["kl"] == 0).all()
        assert table["p"].equals(table["p_base"]) or np.allclose(table["p"], table["p_base"], atol=1e-6)
    assert not model.active


def test_other_probes_read_methods_without_a_probability(tiny_model, probes):
    model = tiny_model()
    caa = CAA(probes("llama", "mean_difference"), VALUE, strength=1.5, layers=LAYERS)
    assert convert(model, caa, PROMPTS)[["p", "p_base"]].isna().all(axis=None)
    table = convert(model, caa, PROMPTS, probes=probes())
    with caa.on(model):
        after = probes().probability(capture(model, PROMPTS, layers=LAYERS, chat=True)).sel(value=VALUE).mean("layer")
    before = probes().probability(capture(model, PROMPTS, layers=LAYERS, chat=True)).sel(value=VALUE).mean("layer")
    np.testing.assert_allclose(table["p"], after, atol=1e-5)
    np.testing.assert_allclose(table["p_base"], before, atol=1e-5)
    assert (table["p"] > table["p_base"] + 0.01).all()
    assert convert(model, RandomDirection(caa), PROMPTS, probes=probes())["p"].notna().all()
    random = convert(model, RandomDirection(ConVA(probes(), VALUE, target=0.999, layers=LAYERS)), PROMPTS)
    conva = convert(model, ConVA(probes(), VALUE, target=0.999, layers=LAYERS), PROMPTS)
    np.testing.assert_allclose(random["norm"], conva["norm"], rtol=1e-4)
    assert (random["p"] < conva["p"]).all() and (random["kl"] > 0).all()
    asked = convert(model, ICA(VALUE), PROMPTS, probes=probes())
    assert (asked["norm"] == 0).all() and (asked["kl"] > 0).all()
    best = probes().choose_layer()
    acts = capture(model, ICA(VALUE).edit_prompts(PROMPTS, model)[0], layers=[best], chat=True)
    np.testing.assert_allclose(asked["p"], probes().probability(acts).sel(value=VALUE, layer=best), atol=1e-5)
    assert (asked["p"] - asked["p_base"]).abs().min() > 1e-3
    ours = convert(model, ConVA(probes(), VALUE, target=0.999, layers=LAYERS), PROMPTS, probes=probes())
    np.testing.assert_allclose(ours[["p_base", "p"]], conva[["p_base", "p"]], atol=1e-5)


def test_the_steering_that_is_as_strong_as_asked(tiny_model, probes):
    model, raw = tiny_model(), probes("llama", "mean_difference")

    def caa(x):
        return CAA(raw, VALUE, strength=x, layers=LAYERS)

    def conva(x):
        return ConVA(probes(), VALUE, target=float(expit(x)), layers=LAYERS)

    for family, between in ((caa, (0.0, -20.0)), (caa, (20.0, 0.0)), (conva, (-10.0, 30.0))):
        found = at_norm(model, family, PROMPTS, 0.2, between)
        assert convert(model, found, PROMPTS)["norm"].mean() == pytest.approx(0.2, rel=0.01)
        found = at_kl(model, family, PROMPTS, 0.02, between, tolerance=0.001)
        assert convert(model, found, PROMPTS)["kl"].mean() == pytest.approx(0.02, rel=0.001)
    found = at_probability(model, caa, PROMPTS, 0.9, (0.0, 20.0), probes=probes())
    assert convert(model, found, PROMPTS, probes())["p"].mean() == pytest.approx(0.9, rel=0.01)
    # CAA's shift is the same everywhere, so its norm is a line through 0
    unit = convert(model, caa(1.0), PROMPTS)["norm"].mean()
    exact = at_norm(model, caa, PROMPTS, 0.3, (0.0, 20.0), tolerance=1e-4)
    assert isinstance(exact, CAA) and exact.strength == pytest.approx(0.3 / unit, rel=1e-3)


def test_out_of_reach(tiny_model, probes):
    model = tiny_model()

    def family(x):
        return CAA(probes("llama", "mean_difference"), VALUE, strength=x, layers=[1])

    with pytest.raises(WorkbenchError) as told:
        at_norm(model, family, PROMPTS, 50.0, (0.0, 1.0))
    most = convert(model, family(1.0), PROMPTS)["norm"].mean()
    assert f"Found: 0 at 0 and {most:.4g} at 1" in str(told.value) and "Widen between=" in str(told.value)
    with pytest.raises(WorkbenchError, match="mean p of 0.9 was asked for.\nFound: nan at 0"):
        at_probability(model, family, PROMPTS, 0.9)
    with pytest.raises(WorkbenchError, match="mean kl of 0 was asked for.\nAllowed: above 0"):
        at_kl(model, family, PROMPTS, 0.0)
    leaping = lambda x: family(0.1 if x < 0.3 else 2.0)  # noqa: E731
    with pytest.raises(WorkbenchError, match="a leap past it at 0.3"):
        at_norm(model, leaping, PROMPTS, convert(model, family(1.0), PROMPTS)["norm"].mean())


def test_bad_input(tiny_model, probes):
    model, steer = tiny_model(), ConVA(probes(), VALUE, layers=[1])
    for prompts in ("one string", []):
        with pytest.raises(WorkbenchError, match="a list of one prompt or more"):
            convert(model, steer, prompts)
    with steer.on(model), pytest.raises(WorkbenchError, match="Leave its context first"):
        convert(model, steer, PROMPTS)
    with pytest.raises(WorkbenchError, match="probes by mean_difference\nAllowed: logistic probes"):
        convert(model, steer, PROMPTS, probes=probes("llama", "mean_difference"))
    with pytest.raises(WorkbenchError, match="a steering of one value"):
        convert(model, ConVA(probes(), {"security": 0.9, "power": 0.1}, layers=[1]), PROMPTS, probes=probes())
    with pytest.raises(WorkbenchError, match="were to be used with qwen2"):
        convert(tiny_model("qwen2"), steer, PROMPTS)
    with pytest.raises(WorkbenchError, match="of qwen2 were to be used with llama"):
        convert(model, steer, PROMPTS, probes=probes("qwen2"))


def test_a_chat_is_read_at_its_end(tiny_model, probes):
    model, steer = tiny_model(), ConVA(probes(), VALUE, target=0.999, layers=LAYERS)
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes"},
            {"role": "user", "content": PROMPTS[0]}]  # fmt: skip
    table = convert(model, steer, [chat, PROMPTS[0]])
    assert table["prompt"].tolist() == [PROMPTS[0]] * 2 and table["kl"].nunique() == 2
    p = looked_at(model, chat, steer)[1]
    assert table["kl"][0] == pytest.approx(float((p.exp() * (p - looked_at(model, chat)[1])).sum()), rel=1e-3)


@pytest.mark.parametrize("layers", [[1], [0, 1, 2]])
def test_batches_change_nothing(layers, tiny_model, probes):
    model, steer = tiny_model(), SCAV(probes(), VALUE, target=0.99, layers=layers)
    many = [f"{prompt} {k}" for k in range(7) for prompt in PROMPTS]
    table = convert(model, steer, many, tokens=3)
    assert len(table) == 21 and table["norm"].gt(0).any()
    alone = pd.concat([convert(model, steer, [prompt], tokens=3) for prompt in many[14:18]])
    np.testing.assert_allclose(alone["kl"], table["kl"][14:18], rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(alone[["p_base", "p"]], table.loc[14:17, ["p_base", "p"]], atol=1e-5)
