# ruff: noqa: F811
"""Traps that others fell into (`methods.md`, section 4), one test per statement: that it is one, and that we are not
caught.
"""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from planted import activations
from test_contracts import (  # noqa: F401
    CLOSE,
    METHODS,
    PROMPTS,
    SOME,
    VALUE,
    cached_decode,
    gate,
    hooks_left,
    last,
    logits,
    methods,
    pairs,
    probes,
)
from tiny import FAMILIES

from workbench.activations import capture
from workbench.errors import WorkbenchError
from workbench.generate import generate
from workbench.models import load_model, residual, self_check
from workbench.neurons import neuron_identities, select_neurons
from workbench.probes import fit_probes, probe_controls
from workbench.steering import CAA, ConVA, NeVA
from workbench.values import VALUES


def plain_hook(model, layer, edit):
    """An edit of a block's output as one writes it by hand; the handle to take it away."""
    return model.blocks[layer].register_forward_hook(lambda _m, _i, out: edit(residual(out)))


# -- tokens --------------------------------------------------------------------------------------------------


def test_steering_from_a_position_on_steers_nothing_under_a_cache(tiny_model, probes):
    model, answer = tiny_model(), [20, 31, 44]
    (prompt,) = model.encode(PROMPTS[:1], chat=True)
    caa = CAA(probes("llama", "mean_difference"), VALUE, strength=1.5, layers=[1], scope="generated")
    v, start = caa.plane(1, torch.device("cpu"))[0] * 1.5, len(prompt) - 1

    def from_there_on(e):
        e = e.clone()
        e[:, start:] += v  # a pass through the cache has one column: it begins behind it
        return e

    def uncached(n):
        return last(model, [prompt + answer[:n]])[0]

    base = cached_decode(model, prompt, answer)
    handle = plain_hook(model, 1, from_there_on)
    try:
        trapped, meant = cached_decode(model, prompt, answer), torch.stack([uncached(n) for n in range(4)])
    finally:
        handle.remove()
    assert not torch.allclose(trapped[1:], meant[1:], rtol=1e-2, atol=1e-2)
    with caa.on(model):
        torch.testing.assert_close(cached_decode(model, prompt, answer), meant, **CLOSE)
    assert not torch.allclose(meant, base, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_the_last_prompt_token_produces_the_first_answer_token(method, tiny_model, methods):
    model = tiny_model()
    ids = model.encode(PROMPTS[1:2], chat=True)
    base, n = logits(model, ids)[0], len(ids[0])
    with methods("llama", method).on(model):
        steered = logits(model, ids)[0]
    assert not torch.allclose(steered[-1], base[-1], rtol=1e-3, atol=1e-3)
    untouched = [k for k in range(n) if torch.equal(steered[k], base[k])]
    spared = method.endswith("generated") or method.endswith("token")
    assert untouched == (list(range(n - 1)) if spared else []), "scope says which prompt tokens are steered"


def test_with_right_padding_the_last_column_of_a_short_row_is_a_pad(tiny_model, methods):
    model = tiny_model()
    ids = model.encode(PROMPTS, chat=True)
    with methods("llama", "conva").on(model, trace=True) as run:
        logits(model, ids, "right")
    with methods("llama", "conva").on(model, trace=True) as alone:
        for row in ids:
            logits(model, [row])
    pd.testing.assert_frame_equal(run.trace, alone.trace, rtol=1e-4, atol=1e-4)
    assert run.trace.groupby("row")["position"].first().tolist() == [len(row) - 1 for row in ids]
    assert model.pad(ids, "right")[0][0, -1] == model.pad_id


def test_padded_tensors_without_a_mask_are_refused(tiny_model, methods):
    for family in SOME:
        model = tiny_model(family)
        with methods(family, "conva").on(model):
            for side in ("left", "right"):
                ids, mask = model.pad(model.encode(PROMPTS), side)
                with pytest.raises(WorkbenchError, match="begin or end with pads"):
                    model.twin(ids)
                model.twin(ids, attention_mask=mask)
            model.twin(torch.tensor(model.encode(PROMPTS[:1])))
            with pytest.raises(WorkbenchError, match=r"attention_mask \(3, 1, "):
                model.twin(ids, attention_mask=torch.zeros(3, 1, ids.shape[1], ids.shape[1]))
            with pytest.raises(WorkbenchError, match="row 1 with 0 real tokens"):
                model.twin(ids, attention_mask=mask * torch.tensor([[1], [0], [1]]))


# -- layers and hooks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SOME)
def test_the_layer_that_is_read_is_the_layer_that_is_edited(family, tiny_model, probes, monkeypatch):
    """hidden_states[0] is the embedding, so that hidden_states[l] is what came out of block l - 1."""
    model, seen = tiny_model(family), {}
    ids = model.encode(PROMPTS[:1], chat=True)
    steer = ConVA(probes(family), VALUE, target=1e-9, layers=[0, 1, 2])
    monkeypatch.setattr(ConVA, "shift", lambda self, layer, e: seen.setdefault(layer, e.clone()) * 0)
    with steer.on(model):
        logits(model, ids)
    acts = capture(model, PROMPTS[:1], chat=True)
    states = model.twin(torch.tensor(ids), output_hidden_states=True).hidden_states
    for layer in range(3):
        np.testing.assert_allclose(seen[layer][0].numpy(), acts.sel(layer=layer).values[0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(seen[layer][0], states[layer][0, -1], rtol=1e-2, atol=1e-2)
        if layer < 2:
            torch.testing.assert_close(seen[layer][0], states[layer + 1][0, -1], **CLOSE)


@pytest.mark.parametrize("family", SOME)
def test_the_last_of_the_hidden_states_is_after_the_final_norm(family, tiny_model):
    model = tiny_model(family)
    acts = capture(model, PROMPTS[:1], chat=True)
    ids = torch.tensor(model.encode(PROMPTS[:1], chat=True))
    normed = model.twin(ids, output_hidden_states=True).hidden_states[-1][0, -1]
    _, cache = model.bridge.run_with_cache(ids)
    ours = torch.from_numpy(acts.sel(layer=2).values[0])
    assert not torch.allclose(ours, normed, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(ours, cache["blocks.2.hook_resid_post"][0, -1], **CLOSE)


def test_half_precision_is_steered_and_no_edit_is_made_in_place(tiny_folder, probes, methods):
    model = load_model(tiny_folder("llama"), dtype="bfloat16")
    steer = ConVA(fit_probes(model, pairs(), folds=3), VALUE, target=0.9999, layers=[0, 1, 2])
    raw, forward = [], model.blocks[1].forward

    def keeping(*args, **kwargs):
        raw.append(forward(*args, **kwargs))
        raw.append(raw[0].clone())
        return raw[0]

    model.blocks[1].forward = keeping
    with steer.on(model, trace=True) as run:
        assert logits(model, model.encode(PROMPTS[:1])).dtype == torch.bfloat16
    assert torch.equal(raw[0], raw[1]) and run.trace["eps"].max() > 0
    with pytest.raises(WorkbenchError, match="Probes of llama were to be used with llama"):
        steer_float = methods("llama", "conva")
        steer_float.on(model).__enter__()


def test_the_bridge_and_the_twin_attend_alike(tiny_model, tiny_folder):
    for model in (*map(tiny_model, FAMILIES), load_model(tiny_folder(), engine="transformer-lens")):
        for part in (model.twin, model.bridge.original_model):
            assert part.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", FAMILIES)
def test_off_is_off_whatever_happened_inside(family, tiny_model, methods):
    model = tiny_model(family)
    ids = model.encode(PROMPTS, chat=True)
    left, alone = hooks_left(model), torch.tensor([ids[0]])
    bridge_before = model.bridge(alone)
    before = logits(model, ids)
    for problem in (None, RuntimeError, KeyboardInterrupt):
        with ExitStack() as expected:
            if problem:
                expected.enter_context(pytest.raises(problem))
            with methods(family, "conva").on(model):
                assert not torch.allclose(logits(model, ids), before, **CLOSE)
                assert not torch.allclose(model.bridge(alone), bridge_before, **CLOSE)
                assert len(model.active) == 1
                if problem:
                    raise problem
        assert torch.equal(logits(model, ids), before)
        assert torch.equal(model.bridge(alone), bridge_before)
        assert hooks_left(model) == left and model.active == []
        assert "generate" not in vars(model.twin) and "generate" not in vars(model.bridge)


# -- TransformerLens -----------------------------------------------------------------------------------------


def test_compatibility_mode_changes_what_is_read_and_cannot_be_undone(tmp_path):
    model = load_model(tiny.make(tmp_path, "gpt2"))
    ids = torch.tensor(model.encode(PROMPTS[:1]))
    assert not model.bridge.compatibility_mode and self_check(model)["resid_post"] < 1e-5
    probes = fit_probes(model, pairs(), folds=3)
    steer = ConVA(probes, VALUE, layers=[1])
    assert probes.provenance["weights"] == capture(model, ["a"]).attrs["weights"] == "raw"
    assert steer.pack()[1]["probes"]["provenance"]["weights"] == "raw"
    before = model.bridge.run_with_cache(ids)[1]["blocks.1.hook_resid_post"]
    model.bridge.enable_compatibility_mode()
    after = model.bridge.run_with_cache(ids)[1]["blocks.1.hook_resid_post"]
    assert not torch.allclose(before, after, rtol=1e-2, atol=1e-2)
    with pytest.raises(WorkbenchError, match="read by TransformerLens and to speak as its Hugging Face twin"):
        self_check(model)


def test_names_that_no_hook_has_are_not_dropped_in_silence(tiny_model, probes):
    model, ids = tiny_model(), torch.tensor([[5, 6, 7]])
    wanted = ["blocks.1.hook_resid_post", "blocks.1.hook_resid_pots"]
    assert wanted[1] not in model.bridge.run_with_cache(ids, names_filter=wanted)[1]
    with pytest.raises(WorkbenchError, match="resid_pots"):
        capture(model, ["a"], hook="resid_pots")
    with pytest.raises(WorkbenchError, match=r"(?i)layers \[1, 3\]"):
        capture(model, ["a"], layers=[1, 3])
    with pytest.raises(WorkbenchError, match=r"(?i)layers \[1, 3\]"):
        ConVA(probes(), VALUE, layers=[1, 3])


def test_misspelt_settings_are_not_taken_in_silence(tiny_model, probes):
    model, ids = tiny_model(), torch.tensor([[5, 6, 7]])
    assert model.bridge.generate(ids, max_new_tokens=1, typo=1, verbose=False).shape == (1, 4)
    for ours in (
        lambda: generate(model, PROMPTS, max_new_token=3),  # pyright: ignore[reportCallIssue]
        lambda: ConVA(probes(), VALUE, tagret=0.9),  # pyright: ignore[reportCallIssue]
        lambda: ConVA(probes(), VALUE, layers=[1]).on(model, traced=True),  # pyright: ignore[reportCallIssue]
    ):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            ours()


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma"])
def test_a_template_that_writes_a_bos_gets_no_second_one(family, tiny_model):
    model = tiny_model(family)
    (text,) = model.render(PROMPTS[:1])
    assert model.tokenizer(text).input_ids[:2] == [model.bos_id] * 2
    (ids,) = model.encode(PROMPTS[:1], chat=True)
    assert ids.count(model.bos_id) == 1 and ids[0] == model.bos_id


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_what_the_mlp_adds_is_not_what_its_neurons_write_where_a_norm_follows(family, tiny_model, probes):
    model = tiny_model(family)
    off = neuron_identities(model)
    assert off["additive"].max() < 1e-5 and off["linear"].max() > 0.5, "the first check alone would pass"
    assert neuron_identities(tiny_model())["linear"].max() < 1e-5
    with pytest.raises(WorkbenchError, match="mlp_out differs from W_out a"):
        select_neurons(model, pairs(), probes(family), VALUE, layers=[1])


def test_layers_without_selected_neurons_are_skipped_and_said(tiny_model, probes):
    model = tiny_model()
    neurons = select_neurons(model, pairs(), probes(), VALUE, layers=[0, 1, 2], share=0.006, min_d=0.01)
    without = [layer for layer in (0, 1, 2) if layer not in neurons.indices]
    steer = NeVA(probes(), VALUE, neurons)
    assert without and {*(steer.layers or ())} == {0, 1, 2} - {*without}
    assert f"none at {', '.join(map(str, without))}" in repr(steer)


# -- what is compared with what ------------------------------------------------------------------------------


def test_samples_do_not_change_with_the_batch(tiny_model, methods):
    model = tiny_model()
    torch.manual_seed(0)
    p = torch.softmax(torch.randn(3, 50), 1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        together = torch.multinomial(p, 1)[1:]
        torch.manual_seed(1)
        assert not torch.equal(together, torch.multinomial(p[1:], 1)), "one generator for all rows is the trap"
    for steer in (None, methods("llama", "conva gated")):
        settings = {"steer": steer, "temperature": 1.0, "seed": 5, "max_new_tokens": 6}
        assert generate(model, PROMPTS, batch_size=1, **settings) == generate(model, PROMPTS, batch_size=3, **settings)


def test_decoding_is_stated_greedy_unless_a_temperature_is_given(tiny_model):
    model, same = tiny_model(), PROMPTS[:1] * 8
    greedy, sampled = generate(model, same, max_new_tokens=6), generate(model, same, max_new_tokens=6, temperature=1.0)
    assert greedy == generate(model, same, max_new_tokens=6, temperature=0.0, seed=3)
    assert len({*greedy}) == 1 and len({*sampled}) > 4


# -- what a probe says ---------------------------------------------------------------------------------------


def test_words_alone_read_most_values_so_their_accuracy_stands_beside(tiny_model, probes):
    found = probes()
    assert float(found.tfidf.min()) > 0.9, "these pairs differ in their words"
    model = tiny_model()
    beside = probe_controls(model, pairs(), layers=[1], draws=2, twins=1)
    assert beside["control"].values.tolist() == ["random labels", "control task", "random weights"]
    means = {str(name): float(beside.sel(control=name).mean()) for name in beside["control"].values}
    assert means["random weights"] > 0.8 > 0.65 > means["random labels"], "an untrained model reads them as well"


def test_a_polarity_probe_reads_every_values_pairs():
    rng = np.random.default_rng(0)
    values = np.repeat(VALUES[:4], 12)
    own = {value: 3 * np.eye(20)[k] for k, value in enumerate(VALUES[:4])}
    for shared, low, high in ((6.0, 0.9, 1.0), (0.0, 0.25, 0.75)):
        side = np.stack([own[value] + shared * np.eye(20)[10] for value in values])
        noise = rng.normal(size=(2, len(values), 20))
        found = activations(side + noise[0], noise[1] - side, values.tolist()).fit("logistic", 1.0, 3)
        table = found.transfer(0).values
        elsewhere = table[~np.eye(4, dtype=bool)]
        assert np.diag(table).min() > 0.85 and low <= elsewhere.mean() <= high
        steps = found.transfer_by_step(0)
        assert {"step", "accuracy"} <= set(steps) and steps["step"].max() > 0


def test_a_value_can_be_decodable_and_yet_not_causal(tmp_path):
    """A direction that nothing later reads: the probe reaches its target, the answers stay what they were."""
    model = load_model(tiny.make(tmp_path, "llama"))
    with torch.no_grad():
        model.twin.model.norm.weight[7] = 0  # nothing after the last block reads coordinate 7
    fitted, found = fit_probes(model, pairs(), folds=3), {}
    for causal in (False, True):
        read = np.eye(model.d_model)[8 if causal else 7]
        probes = replace(fitted, weight=fitted.weight * 0 + read, bias=fitted.bias * 0)
        steer = ConVA(probes, VALUE, target=0.99, layers=[2], scope="token")
        found[causal] = generate(model, PROMPTS, steer=steer, max_new_tokens=5, return_trace=True, kl=True)
        assert (found[causal][1]["p_after"] > 0.9899).all() and found[causal][1]["eps"].mean() > 1
    assert found[False][0] == generate(model, PROMPTS, max_new_tokens=5) != found[True][0]
    assert found[True][1]["kl"].mean() > 2 * found[False][1]["kl"].mean(), "the trace tells them apart"
