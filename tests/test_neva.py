# ruff: noqa: F811
"""NeVA: the target is reached, by the chosen neurons alone, by the smallest change of them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize
from test_neurons import NORMED, PLAIN, a_set, fitted  # noqa: F401

from workbench.errors import WorkbenchError
from workbench.gates import AlwaysOpen, Never
from workbench.generate import generate
from workbench.neurons import Neurons, random_neurons, select_neurons
from workbench.probes import fit_probes
from workbench.steering.conva import ConVA
from workbench.steering.intervention import Intervention
from workbench.steering.neva import NeVA

VALUE, PROMPTS = "security", ["What is two?", "Should Mira sell the old house or start a bakery?", "He wants to win."]


@pytest.fixture
def neva(tiny_model, fitted):
    def make(family="llama", layers=(1,), share=0.1, **settings) -> NeVA:
        probes, found = fitted(family)
        chosen = select_neurons(tiny_model(family), found, probes, VALUE, layers=layers, share=share, min_d=0)
        return NeVA(probes, VALUE, chosen, **settings)

    return make


def states(n: int, d: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(0).normal(size=(n, d)) * 2, dtype=torch.float32)


def runs(model, ids, mask):
    """Residual streams after every block (row, token, d_model), and logits."""
    out = model.twin(ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    return out.hidden_states[1:], out.logits


# -- the closed form -----------------------------------------------------------------------------------------


def test_the_target_is_met_exactly_and_only_upwards(neva):
    steer = neva(target=0.9)
    e = states(200, 32)
    before, after = (steer.probability(1, x) for x in (e, e + steer.shift(1, e)))
    low = before < 0.9
    assert 20 < int(low.sum()) < 180
    torch.testing.assert_close(after[low], torch.full_like(after[low], 0.9), atol=1e-4, rtol=0)
    assert (steer.shift(1, e)[~low] == 0).all() and (steer.neuron_shift(1, e)[~low] == 0).all()


def test_the_shift_is_what_the_neurons_write(neva):
    steer = neva(target=0.97)
    e = states(50, 32)
    writes = torch.from_numpy(steer.neurons.writes)
    torch.testing.assert_close(steer.shift(1, e), steer.neuron_shift(1, e) @ writes, atol=1e-4, rtol=1e-4)


def test_no_smaller_change_of_these_neurons_reaches_the_target(neva):
    steer = neva(target=0.95)
    w, b = (part.double().numpy() for part in steer.plane(1, torch.device("cpu")))
    writes, goal = steer.neurons.writes.astype(float), np.log(0.95 / 0.05)
    for e in states(12, 32):
        ours = steer.neuron_shift(1, e).double().numpy()
        meets = {"type": "ineq", "fun": lambda a, e=e: (e.double().numpy() + a @ writes) @ w + b - goal,
                 "jac": lambda a: writes @ w}  # fmt: skip
        best = minimize(lambda a: a @ a, np.zeros(len(writes)), jac=lambda a: 2 * a, constraints=[meets], tol=1e-9)
        assert best.success
        np.testing.assert_allclose(ours, best.x, atol=1e-3 * max(1.0, np.abs(ours).max()))


def test_with_neurons_that_span_the_stream_evenly_it_is_conva(tiny_model, fitted):
    probes, _ = fitted()
    whole = replace(a_set(tiny_model(), {1: list(range(32))}), writes=3.0 * np.eye(32, dtype=np.float32))
    e = states(50, 32)
    neva, conva = NeVA(probes, VALUE, whole, target=0.9), ConVA(probes, VALUE, target=0.9, layers=[1])
    torch.testing.assert_close(neva.shift(1, e), conva.shift(1, e), atol=1e-4, rtol=1e-4)
    few = a_set(tiny_model(), {1: list(range(5))})
    longer = NeVA(probes, VALUE, few, target=0.9).shift(1, e).norm(dim=-1)
    low = longer > 0
    assert (longer[low] > 1.1 * conva.shift(1, e).norm(dim=-1)[low]).all(), "a sparse set needs a longer push"


# -- in the model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", PLAIN)
def test_it_is_the_edit_at_the_neurons(family, tiny_model, neva):
    """The context does what a hook does that adds neuron_shift to the down projection's input, and meets the target."""
    model, steer = tiny_model(family), neva(family, target=0.97)
    ids, mask = model.pad(model.encode(PROMPTS, chat=True), side="left")
    start = mask.cumsum(1) == mask.sum(1, keepdim=True)  # the last prompt token: all that "token" steers in a prefill
    plain, _ = runs(model, ids, mask)
    added = torch.where(start[..., None], steer.neuron_shift(1, plain[1]), torch.zeros(()))

    def edit(_module, inputs):
        a = inputs[0].clone()
        a[..., torch.tensor(steer.neurons.indices[1])] += added
        return (a, *inputs[1:])

    handle = model.neurons(1).register_forward_pre_hook(edit)
    by_hand = runs(model, ids, mask)
    handle.remove()
    with steer.on(model, trace=True) as run:
        steered = runs(model, ids, mask)
    torch.testing.assert_close(steered[1], by_hand[1], atol=1e-4, rtol=1e-4)
    assert (added != 0).any() and not torch.allclose(steered[1], runs(model, ids, mask)[1], atol=1e-3)
    at = start & (steer.probability(1, plain[1]) < 0.97)
    reached = steer.probability(1, steered[0][1][at])
    torch.testing.assert_close(reached, torch.full_like(reached, 0.97), atol=1e-4, rtol=0)
    np.testing.assert_allclose(run.trace.query("eps > 0")["p_after"], 0.97, atol=1e-4)


def test_every_token_of_the_answer_meets_the_target(tiny_model, neva):
    model, steer = tiny_model(), neva(layers=(0, 1), target=0.9)
    _, trace = generate(model, PROMPTS, steer=steer, max_new_tokens=6, return_trace=True)
    assert (trace["p_after"] > 0.9 - 1e-4).all() and (trace["eps"] > 0).any()
    np.testing.assert_allclose(trace.query("eps > 0")["p_after"], 0.9, atol=1e-4)
    assert sorted(trace["layer"].unique()) == [0, 1]


@pytest.mark.parametrize("family", NORMED)
def test_a_norm_after_the_mlp_is_refused(family, tiny_model, fitted):
    model = tiny_model(family)
    steer = NeVA(fitted(family)[0], VALUE, a_set(model, {1: [1, 2, 3]}))
    with pytest.raises(WorkbenchError, match=f"NeVA in {family} was asked for"):
        generate(model, PROMPTS, steer=steer, max_new_tokens=2)
    assert model.active == []


def test_a_closed_gate_leaves_the_model(tiny_model, neva):
    model = tiny_model()
    base, shut, open_ = (generate(model, PROMPTS, steer=steer, max_new_tokens=5) for steer in (
        None, neva(gate=Never(), target=0.999), neva(gate=AlwaysOpen(), target=0.999)
    ))  # fmt: skip
    assert base == shut != open_


def test_any_neurons_will_do(tiny_model, neva):
    """Random ones reach the target as exactly: reaching it is no evidence for a selection."""
    steer = neva(target=0.9, layers=(0, 1))
    control = replace(steer, neurons=random_neurons(tiny_model(), steer.neurons), layers=None)
    e = states(60, 32)
    p = control.probability(1, e + control.shift(1, e))
    assert (p > 0.9 - 1e-4).all() and not torch.allclose(control.shift(1, e), steer.shift(1, e))


# -- settings ------------------------------------------------------------------------------------------------


def test_layers_without_neurons_are_skipped_and_said(tiny_model, fitted):
    chosen = a_set(tiny_model(), {0: [1, 2], 2: [5]})
    steer = NeVA(fitted()[0], VALUE, chosen)
    assert steer.layers == (0, 2) and "layers 0, 2" in repr(steer)
    assert "neurons=Neurons(security: 3 of 192, layer (count) 0 (2), 2 (1), none at 1; by hand)" in repr(steer)
    assert NeVA(fitted()[0], VALUE, chosen, layers=[2]).layers == (2,)


def test_bad_settings(tiny_model, fitted):
    model, (probes, _) = tiny_model(), fitted()
    chosen = a_set(model, {1: [1, 2]})
    still = replace(chosen, writes=np.zeros_like(chosen.writes))
    for settings, message in (
        ({"target": 1.0}, "target probability of 1.0"),
        ({"target": 0.0}, "target probability of 0.0"),
        ({"layers": [0]}, r"at layers \[0\] was asked for.\nAllowed: one or more of 1"),
        ({"layers": []}, r"at layers \[\]"),
        ({"scope": "some"}, "NeVA with scope 'some'"),
        ({"value": "secure"}, "Probes of 'secure'"),
        ({"neurons": still}, "neurons at layer 1 that do not move the probe"),
        ({"probes": replace(probes, method="mean_difference")}, "probes by mean_difference"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            NeVA(**{"probes": probes, "value": VALUE, "neurons": chosen, **settings})


def test_neurons_of_another_model_are_refused(tiny_model, fitted):
    model = tiny_model()
    steer = NeVA(fitted()[0], VALUE, a_set(tiny_model("qwen2"), {1: [1, 2]}))
    with pytest.raises(WorkbenchError, match="Neurons of qwen2 were to be used with llama"), steer.on(model):
        pass
    assert model.active == []


def test_save_and_load(tiny_model, neva, tmp_path):
    model, steer = tiny_model(), neva(layers=(0, 1), target=0.99, window=(1, 4))
    again = Intervention.load(steer.save(tmp_path / "neva"), model)
    assert isinstance(again, NeVA) and isinstance(again.neurons, Neurons)
    assert repr(again) == repr(steer) and again.layers == steer.layers == (0, 1) and again.window == (1, 4)
    (text, trace), (text2, trace2) = (
        generate(model, PROMPTS, steer=s, max_new_tokens=5, return_trace=True) for s in (steer, again)
    )
    assert text == text2
    pd.testing.assert_frame_equal(trace, trace2)


def test_in_bfloat16(tmp_path, fitted):
    import tiny
    from test_neurons import some_pairs

    from workbench.models import load_model

    model = load_model(tiny.make(tmp_path, "llama"), dtype="bfloat16")
    probes = fit_probes(model, some_pairs(), folds=3)
    chosen = select_neurons(model, some_pairs(), probes, VALUE, layers=[1], share=0.1, min_d=0)
    steer = NeVA(probes, VALUE, chosen, target=0.9)
    _, trace = generate(model, PROMPTS, steer=steer, max_new_tokens=3, return_trace=True)
    np.testing.assert_allclose(trace.query("eps > 0")["p_after"], 0.9, atol=0.05)
