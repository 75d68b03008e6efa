# ruff: noqa: F811
"""NPTI, LAPE and DPN-LE: their rules said slowly, and their edits made by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from test_neurons import a_set, fitted, some_pairs  # noqa: F401

from workbench.errors import WorkbenchError
from workbench.generate import generate
from workbench.neurons import activation_shares, select_neurons
from workbench.steering.dpnle import DPNLE
from workbench.steering.intervention import Intervention
from workbench.steering.lape import LAPE, opposed_values
from workbench.steering.neva import NeVA
from workbench.steering.npti import NPTI

PROMPTS = ["What is two?", "Should Mira sell the old house or start a bakery?", "He wants to win the race."]
FAMILIES = ("llama", "gpt2", "gemma2", "phi")


def shares(model, seed: int, layers=(0, 1, 2)) -> xr.Dataset:
    """Shares and quantiles drawn at random, as `activation_shares` returns them."""
    rng = np.random.default_rng(seed)
    width = model.neurons(0).weight.numel() // model.d_model
    arrays = {"active": (("layer", "neuron"), rng.random((len(layers), width))),
              "a95": (("layer", "neuron"), rng.normal(1, 1, (len(layers), width)))}  # fmt: skip
    return xr.Dataset(arrays, {"layer": list(layers)}, {**model.provenance, "n_tokens": 50})


def npti(model, **settings) -> NPTI:
    return NPTI(NPTI.select(model, "power", shares(model, 0), shares(model, 1), at_least=9, least=0.8), **settings)


def lape(model, **settings) -> LAPE:
    of = {value: shares(model, k) for k, value in enumerate(("power", "universalism", "security", "benevolence"))}
    return LAPE(LAPE.select(model, "power", of, keep=0.2, quantile=0.9), **settings)


def dpnle(model, **settings) -> DPNLE:
    return DPNLE(DPNLE.select(model, some_pairs(), "power", quantile=0.9, min_d=0.2), **settings)


METHODS = {"NPTI": npti, "LAPE": lape, "DPNLE": dpnle}


def slowly(steer, layer: int, a: np.ndarray) -> np.ndarray:
    """What each method makes of one token's activations, neuron by neuron."""
    a = a.copy()
    for _, row in steer.neurons.chosen.query("layer == @layer").iterrows():
        i = int(row["neuron"])
        if isinstance(steer, DPNLE):
            a[i] += steer.gamma * row["difference"]
        elif isinstance(steer, LAPE):
            a[i] = a[i] if row["side"] > 0 else 0.0
        elif row["side"] > 0:
            a[i] += steer.gamma * max(row["a95"], 0) / (1 + np.exp(-10 * (row["delta"] - 0.15)))
        elif steer.suppress:
            a[i] = min(a[i], 0.0)
    return a


@pytest.mark.parametrize("name", METHODS)
def test_the_edit_is_the_rule_said_slowly(name, tiny_model):
    steer = METHODS[name](tiny_model())
    a = np.random.default_rng(5).normal(size=(20, 64)).astype(np.float32)
    for layer in steer.layers:
        given = torch.from_numpy(a)
        expected = np.stack([slowly(steer, layer, row) for row in a])
        np.testing.assert_allclose(given + steer.shift(layer, given), expected, atol=1e-6)
        np.testing.assert_array_equal(given, a)
        assert steer.shift(layer, given[None, :3]).shape == (1, 3, 64)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_in_the_model_it_is_the_edit_by_hand(name, family, tiny_model):
    """From the last prompt token on; also where a norm follows the MLP."""
    model = tiny_model(family)
    steer = METHODS[name](model)
    ids, mask = model.pad(model.encode(PROMPTS, chat=True), side="left")
    last = mask.cumsum(1) == mask.sum(1, keepdim=True)

    def edit(layer):
        def hook(_module, inputs):
            a = inputs[0].clone()
            a[last] = torch.from_numpy(np.stack([slowly(steer, layer, row) for row in a[last].numpy()]))
            return (a, *inputs[1:])

        return model.neurons(layer).register_forward_pre_hook(hook)

    plain = model.twin(ids, attention_mask=mask, use_cache=False).logits
    handles = [edit(layer) for layer in steer.layers]
    by_hand = model.twin(ids, attention_mask=mask, use_cache=False).logits
    for handle in handles:
        handle.remove()
    with steer.on(model):
        steered = model.twin(ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(steered, by_hand, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(steered[last], plain[last], atol=1e-3)
    assert torch.equal(model.twin(ids, attention_mask=mask, use_cache=False).logits, plain)


def test_strength_0_is_the_model(tiny_model):
    model = tiny_model()
    ids, mask = model.pad(model.encode(PROMPTS, chat=True), side="left")
    plain = model.twin(ids, attention_mask=mask, use_cache=False).logits
    for steer in (dpnle(model, gamma=0.0), npti(model, gamma=0.0, suppress=False)):
        with steer.on(model):
            assert torch.equal(model.twin(ids, attention_mask=mask, use_cache=False).logits, plain)


def test_lape_switches_off(tiny_model):
    model = tiny_model()
    steer, seen = lape(model), []
    layer = steer.layers[0]
    with steer.on(model):
        handle = model.neurons(layer).register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][0, -1]))
        generate(model, PROMPTS[:1], max_new_tokens=3)
        handle.remove()
    off = steer.neurons.chosen.query("layer == @layer and side < 0")["neuron"].tolist()
    a = torch.stack(seen)
    assert len(off) and (a[:, off] == 0).all() and (a == 0).sum() == a[:, off].numel()


# -- selections ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("least", "at_least", "counts"), [(0.9, 9, "filled"), (0.5, 9, "all above"), (0.9, None, "few")]
)
def test_npti_keeps_large_differences_of_shares(least, at_least, counts, tiny_model):
    model = tiny_model()
    high, low = shares(model, 0), shares(model, 1)
    chosen = NPTI.select(model, "power", high, low, least=least, at_least=at_least)
    delta = (high["active"] - low["active"]).values
    for side in (1, -1):
        ordered = sorted(((side * delta[layer, i], layer, i) for layer in range(3) for i in range(64)), reverse=True)
        above = [entry for entry in ordered if entry[0] >= least]
        floor = 1 if at_least is None else at_least  # 2,000 of 458,752 are 1 of 192
        expected = above if len(above) >= floor else ordered[:floor]
        assert (len(above) >= floor) == (counts == "all above") or counts == "few"
        own = chosen.chosen[chosen.chosen["side"] == side]
        assert set(zip(own["layer"], own["neuron"], strict=True)) == {(layer, i) for _, layer, i in expected}
        np.testing.assert_allclose(own["delta"], [delta[k, i] for k, i in own[["layer", "neuron"]].to_numpy()])
    assert chosen.provenance["at_least"] == floor and chosen.rule == "NPTI"


def test_npti_fills_up_with_its_own_side_only(tiny_model):
    model = tiny_model()
    high, low = shares(model, 0), shares(model, 0)
    high["active"][0, :3] += 0.01
    chosen = NPTI.select(model, "power", high, low, at_least=50).chosen
    assert len(chosen) == 3 and (chosen["side"] == 1).all()


def test_npti_reads_the_real_thing(tiny_model):
    """From answers to a set, as a notebook does it."""
    model = tiny_model()
    found = {}
    for level in ("high", "low"):
        told = model.instruct("power", level)
        answers = generate(model, PROMPTS, instruction=told, max_new_tokens=12)
        found[level] = activation_shares(model, PROMPTS, answers, instruction=told)
    chosen = NPTI.select(model, "power", found["high"], found["low"])
    assert ((chosen.chosen["p_high"] - chosen.chosen["p_low"]).abs() > 0).all()
    assert generate(model, PROMPTS, steer=NPTI(chosen, gamma=8.0), max_new_tokens=4) != generate(
        model, PROMPTS, max_new_tokens=4
    )


def test_shares_are_read_in_the_last_turn_of_a_chat(tiny_model):
    """Earlier turns, the assistant's too, are context and nothing more; the instruction stands in the last one."""
    model, told = tiny_model(), "You have a high level of power."
    chats = [[{"role": "user", "content": "What is two?"}, {"role": "assistant", "content": "He wins."},
              {"role": "user", "content": PROMPTS[1]}], [{"role": "user", "content": PROMPTS[2]}]]  # fmt: skip
    answers = ["Mira helped.", "I"]
    states = []
    watch = model.neurons(1).register_forward_pre_hook(lambda _module, inputs: states.append(inputs[0][0]))
    for chat, answer in zip(chats, answers, strict=True):
        turns = [*chat[:-1], {"role": "user", "content": f"{told} {chat[-1]['content']}"}]
        shown = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        first, whole = (model.encode([text])[0] for text in (shown, shown + answer))
        model.twin(torch.tensor([whole]))
        assert whole[: len(first)] == first
        states[-1] = states[-1][len(first) - 1 : -1]
    watch.remove()
    a = torch.cat(states).numpy()
    found = activation_shares(model, chats, answers, instruction=told, layers=[1])
    assert found.attrs["n_tokens"] == len(a)
    np.testing.assert_allclose(found["active"].values[0], (a > 0).mean(0), atol=1e-6)
    np.testing.assert_allclose(found["a95"].values[0], np.quantile(a, 0.95, axis=0), atol=1e-4)
    alone = activation_shares(model, [chat[-1:] for chat in chats], answers, instruction=told, layers=[1])
    assert not np.allclose(alone["active"], found["active"]), "the turns before are read"


def test_lape_keeps_the_neurons_of_few_values(tiny_model):
    model = tiny_model()
    names = ["power", "universalism", "security", "benevolence", "achievement"]
    of = {name: shares(model, k) for k, name in enumerate(names)}
    of["universalism"]["active"][0, 0] = of["power"]["active"][0, 0] = 1.0  # its own and opposed: left alone
    for name in names:
        of[name]["active"][0, 1] = 0.0  # never on
    chosen = LAPE.select(model, "power", of, keep=0.3, quantile=0.8)
    p = {name: of[name]["active"].values for name in names}
    bar = np.quantile(np.stack(list(p.values())), 0.8)
    rows = []
    for layer in range(3):
        for i in range(64):
            own = np.array([p[name][layer, i] for name in names])
            if own.max() > bar:
                q = own[own > 0] / own.sum()
                rows.append((-(q * np.log(q)).sum(), layer, i, own))
    kept = sorted(rows, key=lambda row: row[0])[: round(0.3 * 192)]
    expected = {}
    for spread, layer, i, own in kept:
        on = dict(zip(names, own > bar, strict=True))
        side = 1 if on["power"] else -1 if on["universalism"] or on["benevolence"] else 0
        if side:
            expected[layer, i] = (side, spread)
    found = {(int(r.layer), int(r.neuron)): (r.side, r.entropy) for r in chosen.chosen.itertuples()}
    assert found.keys() == expected.keys() and 0 < len(found) < len(kept)
    for at, (side, spread) in expected.items():
        assert found[at][0] == side and abs(found[at][1] - spread) < 1e-9
    assert found.get((0, 0), (1,))[0] == 1 and (0, 1) not in found
    assert chosen.provenance["opposed"] == ["benevolence", "universalism"]


def test_opposed_values():
    assert opposed_values("power") == ["benevolence", "universalism"]
    assert opposed_values("tradition") == ["self-direction", "stimulation", "hedonism"]
    assert opposed_values("benevolence") == ["hedonism", "achievement", "power"]
    assert opposed_values("hedonism") == ["security", "conformity", "tradition", "benevolence", "universalism"]


def test_dpnle_keeps_what_differs_most(tiny_model, fitted):
    _, found = fitted()
    chosen = DPNLE.select(tiny_model(), found, "power", layers=[0, 2], quantile=0.9, min_d=0.5)
    expected = set()
    for layer in (0, 2):
        at = found.sel(value="power", layer=layer)
        size = np.abs(at["difference"].values)
        bar = np.quantile(size, 0.9)  # of its own layer
        expected |= {(layer, i) for i in range(64) if size[i] > bar and abs(at["d"].values[i]) > 0.5}
    assert {(k, i) for k, own in chosen.indices.items() for i in own} == expected and 4 < len(expected) < 14
    again = DPNLE.select(tiny_model(), some_pairs(), "power", layers=[0, 2], quantile=0.9, min_d=0.5)
    pd.testing.assert_frame_equal(again.chosen, chosen.chosen, atol=1e-4)


# -- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_save_and_load(name, tiny_model, tmp_path):
    model = tiny_model()
    steer = METHODS[name](model, window=(1, None))
    again = Intervention.load(steer.save(tmp_path / "steer"), model)
    assert type(again) is type(steer) and repr(again) == repr(steer) and again.layers == steer.layers
    (text, trace), (text2, trace2) = (
        generate(model, PROMPTS, steer=s, max_new_tokens=5, return_trace=True) for s in (steer, again)
    )
    assert text == text2
    pd.testing.assert_frame_equal(trace, trace2)
    with pytest.raises(WorkbenchError, match="of llama were to be used with qwen2"):
        generate(tiny_model("qwen2"), PROMPTS, steer=steer, max_new_tokens=1)


def test_all_rules_choose_for_neva(tiny_model, fitted):
    """Neurons by any rule serve as NeVA's; DPN-LE takes select_neurons' too."""
    model, (probes, found) = tiny_model(), fitted()
    e = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    for name, make in METHODS.items():
        steer = NeVA(probes, "power", make(model).neurons, target=0.9)
        layer = steer.layers[-1]
        assert (steer.probability(layer, e + steer.shift(layer, e)) > 0.9 - 1e-4).all(), name
    chosen = select_neurons(model, found, probes, "power", layers=[1], min_d=0)
    assert DPNLE(chosen, gamma=2.0).layers == (1,)


def test_bad_settings(tiny_model, fitted):
    model, (_, found) = tiny_model(), fitted()
    bare, pushed = a_set(model, {1: [1, 2]}), a_set(model, {1: [1, 2]}, side=1, delta=0.5, a95=1.0)
    for make, message in (
        (lambda: NPTI(bare), "no a95, delta, side\nWhat to do: Select them by NPTI.select"),
        (lambda: LAPE(bare), "no opposed neurons"),
        (lambda: LAPE(pushed), r"LAPE by .* at layers \[\] was asked for"),
        (lambda: DPNLE(bare), "no mean differences"),
        (lambda: NPTI(pushed, gamma=float("nan")), "gamma of nan"),
        (lambda: DPNLE(a_set(model, {1: [1]}, difference=1.0), gamma=float("inf")), "gamma of inf"),
        (lambda: NPTI(pushed, layers=[0]), r"at layers \[0\] was asked for.\nAllowed: one or more of 1"),
        (lambda: NPTI(pushed, scope="all"), "NPTI with scope 'all'"),
        (lambda: LAPE(a_set(model, {1: [1]}, side=-1), scope="generated"), "LAPE with scope 'generated'"),
        (lambda: DPNLE.select(model, found, "hedonism"), "neurons of hedonism"),
        (lambda: DPNLE.select(model, found, "power", layers=[7]), r"layers \[7\]"),
        (lambda: DPNLE.select(model, found, "power", quantile=1.0), "quantile 1.0"),
        (lambda: DPNLE.select(tiny_model("qwen2"), found, "power"), "were to be used with qwen2"),
        (lambda: NPTI.select(tiny_model("qwen2"), "power", shares(model, 0), shares(model, 1)), "used with qwen2"),
        (lambda: NPTI.select(model, "power", shares(model, 0), shares(model, 1, (0, 1))), "read at different layers"),
        (lambda: LAPE.select(model, "power", {"power": shares(model, 0)}), "one or more of benevolence, universalism"),
        (lambda: LAPE.select(model, "power", {"security": shares(model, 0)}), "Found: shares for security"),
        (lambda: LAPE.select(model, "humour", {}), "The value 'humour'"),
        (lambda: LAPE.select(tiny_model("qwen2"), "power", {v: shares(model, 0) for v in ("power", "universalism")}),
         "used with qwen2"),
    ):  # fmt: skip
        with pytest.raises(WorkbenchError, match=f"(?s){message}"):
            make()
    steer = dpnle(model)
    assert steer.scope == "generated" and repr(steer).startswith("DPNLE(neurons=Neurons(power: ")
