"""Neurons: what they do on pairs and while the model speaks, which are chosen, and where they may be edited."""

import functools

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import xarray as xr

from workbench import neurons
from workbench.errors import WorkbenchError
from workbench.gates import unsteered
from workbench.generate import generate
from workbench.neurons import (
    Neurons,
    activation_shares,
    check_writes,
    neuron_contrasts,
    neuron_identities,
    outside,
    overlaps,
    random_neurons,
    select_neurons,
    write_weights,
)
from workbench.probes import fit_probes

NORMED = ("gemma2", "gemma3_text")  # a norm follows their MLP
PLAIN = tuple(family for family in tiny.BOS if family not in NORMED)
ACTS = {"security": "keeps", "tradition": "protect", "power": "wants to lead", "stimulation": "start"}


def some_pairs() -> pd.DataFrame:
    """Of four values: security and tradition share a group, power and stimulation stand outside it and each other's."""
    people = ("Mira", "He", "My family", "The friend", "A team", "One")
    return pd.DataFrame([
        {"value": value, "positive": f"{who} {yes} {what}{end}", "negative": f"{who} helped {what}{end}"}
        for value, yes in ACTS.items() for who in people for what, end in (("the house", "."), ("the red forest", "!"))
    ])  # fmt: skip


@pytest.fixture(scope="session")
def fitted(tiny_model):
    """Function: family -> probes and contrasts of its tiny model."""
    return functools.cache(lambda family="llama": (
        fit_probes(tiny_model(family), some_pairs(), folds=3), neuron_contrasts(tiny_model(family), some_pairs())
    ))  # fmt: skip


def hidden(model, text: str, layer: int) -> torch.Tensor:
    """a (token, d_mlp) of one text, by a hook of the test's own."""
    seen = []
    handle = model.neurons(layer).register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][0]))
    model.twin(torch.tensor(model.encode([text])), use_cache=False)
    handle.remove()
    return seen[0]


# -- what the model lets one do ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.BOS)
def test_what_neurons_write(family, tiny_model):
    """Pushing one activation moves the block's output by its row of W_out, exactly where no norm follows the MLP."""
    model, layer, unit = tiny_model(family), 1, 5
    ids = torch.tensor(model.encode(["Should Mira sell the old house?"]))
    before = model.twin(ids, output_hidden_states=True, use_cache=False).hidden_states[layer + 1]

    def push(_module, inputs):
        a = inputs[0].clone()
        a[..., unit] += 2.0
        return (a, *inputs[1:])

    handle = model.neurons(layer).register_forward_pre_hook(push)
    moved = model.twin(ids, output_hidden_states=True, use_cache=False).hidden_states[layer + 1] - before
    handle.remove()
    written = 2.0 * write_weights(model, layer)[unit].expand_as(moved)
    same = torch.allclose(moved, written, atol=1e-4)
    table = neuron_identities(model)
    assert table["layer"].tolist() == [0, 1, 2] and float(table["additive"].max()) < 1e-5
    if family in NORMED:
        assert not same and float(table["linear"].min()) > 0.1
        with pytest.raises(WorkbenchError, match=f"NeVA in {family} was asked for.\nFound: mlp_out differs from W_out"):
            check_writes(model, "NeVA")
    else:
        assert same and float(table["linear"].max()) < 1e-5
        check_writes(model, "NeVA")


def test_identities_are_measured_once_and_unsteered(tiny_model, fitted):
    from workbench.steering import ConVA

    model = tiny_model("qwen2")
    vars(model).pop("_neuron_identities", None)
    steer = ConVA(fitted("qwen2")[0], "security", target=0.999, layers=[0, 1], scope="token")
    with steer.on(model):
        first = neuron_identities(model)
    assert float(first[["linear", "additive"]].to_numpy().max()) < 1e-5 and neuron_identities(model) is first


# -- contrasts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_contrasts_are_differences_of_means(family, tiny_model, fitted):
    model, (_, found), pairs = tiny_model(family), fitted(family), some_pairs()
    assert found["difference"].dims == ("value", "layer", "neuron") and found["value"].values.tolist() == [
        "stimulation", "power", "security", "tradition"
    ]  # fmt: skip
    own = pairs[pairs["value"] == "power"]
    for layer in (0, 2):
        high, low = (torch.stack([hidden(model, text, layer)[-1] for text in own[side]]).double()
                     for side in ("positive", "negative"))  # fmt: skip
        at = found.sel(value="power", layer=layer)
        difference = high.mean(0) - low.mean(0)
        np.testing.assert_allclose(at["difference"], difference, atol=1e-5)
        pooled = ((high.var(0) * (len(own) - 1) + low.var(0) * (len(own) - 1)) / (2 * len(own) - 2)).sqrt()
        np.testing.assert_allclose(at["d"], difference / pooled, rtol=2e-3, atol=1e-3)


def test_a_layers_contrasts_sum_to_what_its_mlp_adds(tiny_model, fitted):
    model, (probes, found), layer = tiny_model(), fitted(), 1
    own = some_pairs().query("value == 'security'")
    seen = []
    handle = model.neurons(layer).register_forward_hook(lambda _module, _inputs, output: seen.append(output[0, -1]))
    for side in ("positive", "negative"):
        for text in own[side]:
            model.twin(torch.tensor(model.encode([text])), use_cache=False)
    handle.remove()
    added = torch.stack(seen[: len(own)]).mean(0) - torch.stack(seen[len(own) :]).mean(0)
    w = probes.weight.sel(value="security", layer=layer).values
    c = write_weights(model, layer).numpy() @ w
    np.testing.assert_allclose((c * found["difference"].sel(value="security", layer=layer)).sum(), added.numpy() @ w,
                               rtol=1e-3)  # fmt: skip


def test_all_values_are_captured_once_and_in_turns_where_memory_is_short(tiny_model, fitted, monkeypatch):
    calls, capture = [], neurons.capture
    monkeypatch.setattr(neurons, "capture", lambda *args, **how: calls.append(args[3]) or capture(*args, **how))
    once = neuron_contrasts(tiny_model(), some_pairs())
    assert calls == ["mlp.hook_post", "resid_post"]
    select_neurons(tiny_model(), once, fitted()[0], layers=[0, 1], min_d=0)
    assert len(calls) == 2, "ten selections from one capture"
    monkeypatch.setattr(neurons, "HELD", 1)
    xr.testing.assert_allclose(neuron_contrasts(tiny_model(), some_pairs()), once, atol=1e-5)
    assert len(calls) == 2 + 2 * 3


def test_what_never_moves_has_no_effect_size(tiny_model, monkeypatch):
    capture = neurons.capture
    monkeypatch.setattr(neurons, "capture", lambda *args, **how: capture(*args, **how) * 0 + 1.5)
    assert (neuron_contrasts(tiny_model(), some_pairs())["d"] == 0).all()


def test_contrasts_need_two_pairs(tiny_model):
    pairs = pd.concat([some_pairs(), pd.DataFrame([{"value": "hedonism", "positive": "a", "negative": "b"}])])
    with pytest.raises(WorkbenchError, match="one pair only of hedonism"):
        neuron_contrasts(tiny_model(), pairs)


# -- while speaking ------------------------------------------------------------------------------------------


def test_shares_are_those_of_the_states_that_wrote_the_answers(tiny_model):
    """Read again in one pass, they are what a hook sees in the very generation."""
    model, layer, asked = tiny_model(), 2, ["Should Mira sell the house?", "What is two?", "I helped a friend."]
    told, answers, seen = "You have a high level of power.", [], []
    handle = model.neurons(layer).register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][0, -1]))
    for prompt, n in zip(asked, (1, 2, 3), strict=True):
        answers += generate(model, [prompt], instruction=told, max_new_tokens=n)
        start, end = (len(model.encode([model.render([prompt], told)[0] + text])[0]) for text in ("", answers[-1]))
        assert end == start + n, "the text falls into its tokens"
    handle.remove()
    a = torch.stack(seen).numpy()
    found = activation_shares(model, asked, answers, instruction=told)
    assert found.attrs["n_tokens"] == len(a) == 6 and found["active"].dims == ("layer", "neuron")
    np.testing.assert_allclose(found["active"].sel(layer=layer), (a > 0).mean(0))
    np.testing.assert_allclose(found["a95"].sel(layer=layer), np.quantile(a, 0.95, axis=0), atol=1e-4)


def test_empty_answers_count_nothing(tiny_model):
    model = tiny_model()
    with_empty = activation_shares(model, ["One?", "Two?"], ["", "He wins."], layers=[1])
    xr.testing.assert_identical(with_empty, activation_shares(model, ["Two?"], ["He wins."], layers=[1]))
    bare = activation_shares(model, ["Two?"], ["He wins."], layers=[1], chat=False, instruction="You have two.")
    states = hidden(model, "You have two. Two?He wins.", 1)
    start = len(model.encode(["You have two. Two?"])[0])
    np.testing.assert_allclose(bare["active"].values[0], (states[start - 1 : -1] > 0).float().mean(0), atol=1e-6)
    for prompts, answers in ((["One?"], [""]), (["One?"], ["a", "b"])):
        with pytest.raises(WorkbenchError, match="an answer for every prompt, one of them not empty"):
            activation_shares(model, prompts, answers)


# -- choosing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("selective", [True, False])
def test_selection_is_the_rule_said_slowly(family, selective, tiny_model, fitted):
    model, (probes, found) = tiny_model(family), fitted(family)
    share, layers, bar = 0.1, [0, 1], 0.3
    rule = {"share": share, "min_d": bar, "selective": selective}
    chosen = select_neurons(model, found, probes, "security", layers=layers, **rule)
    contrast = {}
    for value in ACTS:
        for layer in layers:
            w, out = probes.weight.sel(value=value, layer=layer).values, write_weights(model, layer).numpy()
            for i in range(len(out)):
                at = found.sel(value=value, layer=layer).isel(neuron=i)
                contrast[value, layer, i] = float(out[i] @ w) * float(at["difference"]), float(at["d"])
    kept = [
        (s, layer, i) for (value, layer, i), (s, d) in contrast.items()
        if value == "security" and s > 0 and abs(d) >= bar
        and not (selective and any(contrast[other, layer, i][0] >= s for other in ("power", "stimulation")))
    ]  # fmt: skip
    best = sorted(kept, reverse=True)[: round(share * len(layers) * chosen.width)]
    assert {(layer, i) for _, layer, i in best} == {(layer, i) for layer, own in chosen.indices.items() for i in own}
    assert 2 < len(best) < len(kept)
    table = chosen.table()
    np.testing.assert_allclose(table["s"], [s for s, *_ in best], rtol=1e-4)
    np.testing.assert_allclose(table["s"], table["c"] * table["difference"], rtol=1e-6)
    for layer, own in chosen.indices.items():
        rows = (chosen.chosen["layer"] == layer).to_numpy()
        np.testing.assert_array_equal(chosen.writes[rows], write_weights(model, layer).numpy()[own])
        at = {"value": "security", "layer": layer}
        moved = float(probes.weight.sel(at).values @ found["residual"].sel(at).values)
        carried = sum(s for s, k, _ in best if k == layer)
        np.testing.assert_allclose(chosen.share.sel(layer=layer), carried / moved, rtol=1e-3)


def test_rivals_stand_outside_the_group(tiny_model, fitted):
    """A neuron that serves power as much is left out of security's; tradition shares its group and is no rival."""
    model, (probes, found) = tiny_model(), fitted()
    planted = found.copy(deep=True)
    planted["difference"][:] = 0.0
    planted["d"][:] = 2.0
    w = probes.weight.sel(layer=1).values
    c = w @ write_weights(model, 1).numpy().T  # (value, neuron)
    values = found["value"].values.tolist()

    def plant(value: str, neuron: int, s: float) -> None:
        planted["difference"].loc[{"value": value, "layer": 1, "neuron": neuron}] = s / c[values.index(value), neuron]

    planted = planted.assign_coords(neuron=range(planted.sizes["neuron"]))
    for neuron in (3, 7, 11):
        plant("security", neuron, 1.0 + neuron)
    plant("power", 7, 9.0)
    plant("power", 3, 3.9)
    plant("tradition", 11, 99.0)
    for selective, kept in ((True, [3, 11]), (False, [3, 7, 11])):
        chosen = select_neurons(model, planted, probes, "security", layers=[1], share=1.0, selective=selective)
        assert chosen.indices[1].tolist() == kept
    assert outside("security", "power") and not outside("security", "tradition")
    assert [outside("hedonism", v) for v in ("power", "stimulation", "security")] == [False, False, True]
    assert outside("humour", "power") and not outside("humour", "humour")


def test_one_call_for_all_values(tiny_model, fitted):
    model, (probes, found) = tiny_model(), fitted()
    sets = select_neurons(model, found, probes, layers=[0, 1, 2], min_d=0, selective=False)
    assert list(sets) == found["value"].values.tolist()
    assert all(len(own) == 1 for own in sets.values()), "half a percent of 192"
    alone = select_neurons(model, some_pairs(), probes, "power", layers=[0, 1, 2], min_d=0, selective=False)
    pd.testing.assert_frame_equal(alone.chosen, sets["power"].chosen, atol=1e-4)


def test_layers_are_the_probes_choice(tiny_model, fitted, monkeypatch):
    model, (probes, found) = tiny_model(), fitted()
    monkeypatch.setattr(type(probes), "choose_layers", lambda self: [0, 2])
    chosen = select_neurons(model, found, probes, "power", min_d=0)
    assert chosen.layers == (0, 2)


@pytest.mark.parametrize(("settings", "message"), [
    ({"value": "hedonism"}, "Neurons of 'hedonism' were asked for"),
    ({"layers": [0, 9]}, r"at layers \[0, 9\] were asked for"),
    ({"share": 0.0}, "The 0.00% of neurons"),
    ({"min_d": 1e9}, "Neurons of security by NeVA.*none that fits the rule"),
])  # fmt: skip
def test_bad_selections(settings, message, tiny_model, fitted):
    probes, found = fitted()
    with pytest.raises(WorkbenchError, match=f"(?s){message}"):
        select_neurons(tiny_model(), found, probes, **{"value": "security", "layers": [1], **settings})


def test_what_belongs_to_another_model_is_refused(tiny_model, fitted):
    (probes, found), (other, theirs) = fitted(), fitted("qwen2")
    for mine in ((found, other), (theirs, probes)):
        with pytest.raises(WorkbenchError, match="were to be used with llama"):
            select_neurons(tiny_model(), *mine, "security", layers=[1])
    with pytest.raises(WorkbenchError, match="Neurons that carry a probe's logit in gemma2 was asked for"):
        select_neurons(tiny_model("gemma2"), *fitted("gemma2")[::-1], "security", layers=[1])


# -- sets ----------------------------------------------------------------------------------------------------


def a_set(model, at: dict[int, list[int]], **columns) -> Neurons:
    table = pd.DataFrame([(layer, i) for layer, own in at.items() for i in own], columns=["layer", "neuron"])
    return Neurons.of(model, "security", "by hand", table.assign(**columns), range(3), 64)


def test_overlap_and_its_chance(tiny_model):
    model = tiny_model()
    one, other = a_set(model, {0: [1, 2, 3, 4], 1: [5, 6]}), a_set(model, {0: [3, 4, 9], 2: [5, 6]})
    found = one.overlap(other)
    assert found["shared"] == 2 and found["jaccard"] == 2 / 9 and found == pytest.approx(other.overlap(one))
    rng = np.random.default_rng(0)
    drawn = np.array([len({*rng.choice(64, 4, False)} & {*rng.choice(64, 3, False)}) for _ in range(20000)])
    assert abs(found["expected"] - (drawn / (11 - drawn)).mean()) < 1e-3
    assert abs(found["p"] - (drawn >= 2).mean()) < 3e-3
    own = one.overlap(one)
    assert own["jaccard"] == 1 and own["p"] < 1e-6
    table = overlaps({"a": one, "b": other, "c": one})
    assert table[["value", "other"]].values.tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert table["jaccard"].tolist() == [2 / 9, 1, 2 / 9]
    with pytest.raises(WorkbenchError, match="sets of one model"):
        one.overlap(a_set(tiny_model("qwen2"), {0: [1]}))


def test_random_neurons_are_as_many_and_seeded(tiny_model):
    model = tiny_model()
    like = a_set(model, {0: [1, 2, 3, 4], 2: [5, 6]})
    one, same, other = (random_neurons(model, like, seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one.chosen, same.chosen)
    assert {layer: len(own) for layer, own in one.indices.items()} == {0: 4, 2: 2}
    assert one.chosen["neuron"].tolist() != other.chosen["neuron"].tolist()
    np.testing.assert_array_equal(one.writes[:4], write_weights(model, 0).numpy()[one.indices[0]])
    with pytest.raises(WorkbenchError, match="were to be used with qwen2"):
        random_neurons(tiny_model("qwen2"), like)


def test_save_and_load(tiny_model, fitted, tmp_path):
    model, (probes, found) = tiny_model(), fitted()
    for chosen in (select_neurons(model, found, probes, "power", layers=[0, 2], share=0.05, min_d=0),
                   a_set(model, {1: [9, 3]})):  # fmt: skip
        again = Neurons.load(chosen.save(tmp_path / "neurons"), model)
        pd.testing.assert_frame_equal(again.chosen, chosen.chosen)
        np.testing.assert_array_equal(again.writes, chosen.writes)
        assert repr(again) == repr(chosen) and again.layers == chosen.layers and again.provenance == chosen.provenance
        assert again.share is chosen.share is None or again.share.identical(chosen.share)
    with pytest.raises(WorkbenchError, match="Neurons of llama were to be used with qwen2"):
        Neurons.load(tmp_path / "neurons", tiny_model("qwen2"))


def test_they_say_what_they_are(tiny_model):
    text = repr(a_set(tiny_model(), {2: [5, 6], 0: [1]}))
    assert text == "Neurons(security: 3 of 192, layer (count) 0 (1), 2 (2), none at 1; by hand)"
    with pytest.raises(WorkbenchError, match="none that fits the rule"):
        a_set(tiny_model(), {})


def test_nothing_is_left_on_the_model(tiny_model, fitted):
    """Selection reads the unsteered model, also while something steers it."""
    from workbench.steering import ConVA

    model, (probes, found) = tiny_model(), fitted()
    with ConVA(probes, "security", target=0.999, layers=[0, 1], scope="token").on(model):
        xr.testing.assert_allclose(neuron_contrasts(model, some_pairs()), found)
        assert len(model.active) == 1
    with unsteered(model):
        assert not any(model.neurons(layer)._forward_pre_hooks for layer in range(3))
