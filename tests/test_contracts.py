"""Steering means one thing: cached == uncached, batched == alone, streamed == whole, off == never on."""

import functools
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import FAMILIES, MORE

from workbench.errors import WorkbenchError
from workbench.gates import Never, ProbeGate
from workbench.generate import generate
from workbench.models import load_model, residual
from workbench.probes import fit_probes
from workbench.steering import CAA, ConVA, RandomDirection
from workbench.steering.intervention import Intervention

PROMPTS = ["What is two?", "Should Mira sell the old house or start a bakery?", "He wants to win the race."]
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
SOME = ("llama", "qwen2", "gpt2")
VALUE = "security"


def pairs() -> pd.DataFrame:
    people = ("Mira", "He", "My family", "The friend", "A team", "One", "Two of them", "I")
    return pd.DataFrame(
        [
            {"value": value, "positive": f"{who} {yes} {what}.", "negative": f"{who} {no} {what}."}
            for value, yes, no in (("security", "keeps", "sell"), ("power", "wants to lead", "helped"))
            for who in people
            for what in ("the house", "the forest")
        ]
    )


@pytest.fixture(scope="session")
def probes(tiny_model):
    return functools.cache(
        lambda family="llama", method="logistic": fit_probes(tiny_model(family), pairs(), method, folds=3)
    )


@pytest.fixture(scope="session")
def gate(tiny_model):
    related = [
        f"Should {who} sell the {what}?" for who in ("Mira", "he", "one") for what in ("house", "race", "team", "red")
    ]
    unrelated = [f"What is {a} and {b}" for a in ("two", "three", "red") for b in ("two", "house", "a friend", "me")]

    def fit(family="llama", layer=1):
        found = ProbeGate.fit(tiny_model(family), related, unrelated, layer=layer, folds=3)
        return replace(found, threshold=float(np.sort(found.scores(PROMPTS))[:2].mean()))  # opens for two of the three

    return functools.cache(fit)


@pytest.fixture
def methods(probes, gate):
    """Function: (family, name) -> an intervention that does something at all three layers."""

    def make(family, name):
        logistic = probes(family)
        return {
            "conva": lambda: ConVA(logistic, VALUE, target=0.9999, layers=[0, 1, 2]),
            "conva gated": lambda: ConVA(logistic, VALUE, target=0.9999, layers=[0, 1, 2], gate=gate(family)),
            "conva generated": lambda: ConVA(logistic, VALUE, target=0.9999, layers=[0, 1, 2], scope="generated"),
            "conva token": lambda: ConVA(logistic, VALUE, target=0.9999, layers=[0, 1, 2], scope="token"),
            "caa": lambda: CAA(probes(family, "mean_difference"), VALUE, strength=1.5, layers=[0, 1, 2]),
            "caa generated": lambda: CAA(
                probes(family, "mean_difference"), VALUE, strength=1.5, layers=[1], scope="generated"
            ),
            "random": lambda: RandomDirection(ConVA(logistic, VALUE, target=0.9999, layers=[0, 1, 2])),
        }[name]()

    return make


METHODS = ("conva", "conva gated", "conva generated", "conva token", "caa", "caa generated", "random")


def logits(model, ids, side="left", **kwargs):
    """All logits of a padded batch, positions counted from each row's first token, as `generate` does."""
    input_ids, mask = model.pad(ids, side)
    with torch.no_grad():
        return model.twin(
            input_ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), **kwargs
        ).logits


def last(model, ids, side="left"):
    out = logits(model, ids, side)
    return torch.stack([row[-1 if side == "left" else len(tokens) - 1] for row, tokens in zip(out, ids, strict=True)])


def cached_decode(model, prompt, answer):
    """Logits before each token of a given answer, one token at a time through the cache."""
    step, cache, out = torch.tensor([prompt]), None, []
    with torch.no_grad():
        for token in [*answer, None]:
            result = model.twin(step, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            out.append(result.logits[0, -1])
            step = torch.tensor([[token or 0]])
    return torch.stack(out)


@contextmanager
def watched(model):
    """Output of each block as every later hook and layer sees it."""
    stream = {}
    handles = [
        block.register_forward_hook(lambda _m, _i, out, layer=layer: stream.__setitem__(layer, residual(out)))
        for layer, block in enumerate(model.blocks)
    ]
    try:
        yield stream
    finally:
        for handle in handles:
            handle.remove()


def hooks_left(model):
    modules = [*model.twin.modules(), *model.bridge.modules()]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


# -- off -----------------------------------------------------------------------------------------------------


def test_an_error_inside_the_pass_leaves_no_hook(tiny_model, methods, monkeypatch):
    model, steer = tiny_model(), methods("llama", "conva")
    ids = model.encode(PROMPTS[:1])
    before, left = logits(model, ids), hooks_left(model)
    monkeypatch.setattr(type(steer), "shift", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), steer.on(model):
        logits(model, ids)
    assert hooks_left(model) == left and torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("family", SOME)
def test_nothing_to_do_is_the_base_model_bit_for_bit(family, tiny_model, probes):
    model = tiny_model(family)
    ids = model.encode(PROMPTS, chat=True)
    before = logits(model, ids)
    for idle in (
        CAA(probes(family, "mean_difference"), VALUE, strength=0, layers=[0, 1, 2]),
        ConVA(probes(family), VALUE, target=1e-9, layers=[0, 1, 2]),
        ConVA(probes(family), VALUE, target=0.999, layers=[0, 1, 2], gate=Never()),
    ):
        with idle.on(model, trace=True) as run:
            assert torch.equal(logits(model, ids), before)
        assert run.trace["eps"].tolist() == [0.0] * 9


# -- cached == uncached --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_equals_uncached(family, method, tiny_model, methods):
    model, steer = tiny_model(family), methods(family, method)
    which = 1 if steer.gate is None else int(steer.gate.scores(PROMPTS).argmax())
    (prompt,), answer = model.encode([PROMPTS[which]], chat=True), [20, 31, 44, 52]
    base = cached_decode(model, prompt, answer)
    with steer.on(model):
        cached = cached_decode(model, prompt, answer)
    for n in range(len(answer) + 1):
        with steer.on(model, prompt_lengths=[len(prompt)]):
            uncached = last(model, [prompt + answer[:n]])[0]
        torch.testing.assert_close(cached[n], uncached, **CLOSE)
        assert not torch.allclose(cached[n], base[n], rtol=1e-3, atol=1e-3), f"token {n} was not steered"


@pytest.mark.parametrize("method", ["conva", "conva token", "caa generated"])
def test_generate_of_the_model_itself_is_one_prompt_cached_or_not(method, tiny_model, methods):
    model, steer = tiny_model(), methods("llama", method)
    ids, mask = model.pad(model.encode(PROMPTS, chat=True))
    settings = {
        "attention_mask": mask,
        "max_new_tokens": 8,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
        "eos_token_id": None,
        "pad_token_id": model.pad_id,
    }
    with steer.on(model, trace=True) as run:
        cached = model.twin.generate(ids, use_cache=True, **settings)
    with steer.on(model, trace=True) as again:
        uncached = model.twin.generate(ids, use_cache=False, **settings)
    assert torch.equal(cached.sequences, uncached.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(uncached.logits), **CLOSE)
    pd.testing.assert_frame_equal(run.trace, again.trace, rtol=1e-4, atol=1e-4)
    answers = [row[ids.shape[1] :].tolist() for row in cached.sequences]
    ends = [next((n for n, token in enumerate(a) if token in model.eos_ids), 8) for a in answers]
    theirs = [model.decode(answer[:end]) for answer, end in zip(answers, ends, strict=True)]
    assert generate(model, PROMPTS, steer=steer, max_new_tokens=8) == theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bridge_is_steered_alike(family, tiny_model, methods):
    model, steer = tiny_model(family), methods(family, "conva gated")
    (prompt,) = model.encode(PROMPTS[1:2], chat=True)
    with steer.on(model, trace=True) as run:
        bridge, cache = model.bridge.run_with_cache(torch.tensor([prompt]))
        twin = logits(model, [prompt])
    torch.testing.assert_close(bridge, twin, rtol=1e-4, atol=1e-4)
    at_end = run.trace[(run.trace["row"] == 0) & (run.trace["layer"] == 2)].iloc[-1]
    seen = steer.probability(2, cache["blocks.2.hook_resid_post"][0, -1])
    assert float(seen) == pytest.approx(at_end["p_after"], abs=1e-6), (
        "TransformerLens' hook points see the steered stream"
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_both_engines_say_the_same(family, tiny_folder, tiny_model, methods):
    steer = methods(family, "conva gated")
    lens = load_model(tiny_folder(family), engine="transformer-lens")
    assert generate(lens, PROMPTS, steer=steer, max_new_tokens=8) == generate(
        tiny_model(family), PROMPTS, steer=steer, max_new_tokens=8
    )


# -- batched == alone ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", SOME)
def test_batched_equals_alone(family, side, method, tiny_model, methods):
    model, steer = tiny_model(family), methods(family, method)
    ids = model.encode(PROMPTS, chat=True)
    with steer.on(model, trace=True) as run:
        together = last(model, ids, side)
    with steer.on(model, trace=True) as each:
        alone = torch.cat([last(model, [row]) for row in ids])
    torch.testing.assert_close(together, alone, **CLOSE)
    pd.testing.assert_frame_equal(run.trace, each.trace, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone, last(model, ids), **CLOSE)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("method", ["conva gated", "conva token", "caa"])
@pytest.mark.parametrize("family", SOME)
def test_answers_do_not_depend_on_their_batch(family, method, temperature, tiny_model, methods):
    model, steer = tiny_model(family), methods(family, method)
    settings = {
        "steer": steer,
        "max_new_tokens": 8,
        "temperature": temperature,
        "seed": 3,
        "return_trace": True,
    }
    together, trace = generate(model, PROMPTS, batch_size=3, **settings)
    alone, traced = generate(model, PROMPTS, batch_size=1, **settings)
    assert together == alone
    pd.testing.assert_frame_equal(trace, traced, rtol=1e-4, atol=1e-4)


# -- streamed == whole ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SOME)
def test_streamed_equals_whole(family, tiny_model, methods):
    model, steer = tiny_model(family), methods(family, "conva gated")
    whole, trace = generate(
        model, PROMPTS, steer=steer, max_new_tokens=8, temperature=1.0, batch_size=2, return_trace=True
    )
    steps = list(
        generate(
            model,
            PROMPTS,
            steer=steer,
            max_new_tokens=8,
            temperature=1.0,
            batch_size=2,
            return_trace=True,
            stream=True,
        )
    )
    assert steps[-1][0] == whole
    pd.testing.assert_frame_equal(steps[-1][1], trace)
    assert all(len(a) == 3 for a, _ in steps) and [len(t) for _, t in steps] == sorted(len(t) for _, t in steps)


def test_interleaved_streams_do_not_mix(tiny_model, methods):
    model, steer = tiny_model(), methods("llama", "conva")
    settings = {"max_new_tokens": 8, "stream": True}
    alone = [list(generate(model, PROMPTS, steer=s, **settings))[-1] for s in (None, steer)]
    streams = [generate(model, PROMPTS, steer=s, **settings) for s in (None, steer)]
    mixed = [[], []]
    for pair in zip(*streams, strict=False):
        for k in (0, 1):
            mixed[k].append(pair[k])
    assert alone[0] != alone[1]
    for k in (0, 1):
        for texts in mixed[k]:
            assert all(whole.startswith(text) for whole, text in zip(alone[k], texts, strict=True))
    with steer.on(model):  # two prompts inside one context, each with its own cache, turn by turn
        inside = [generate(model, [prompt], **settings) for prompt in PROMPTS[:2]]
        turns = [pair for pair in zip(*inside, strict=False)][-1]
    for k in (0, 1):
        assert alone[1][k].startswith(turns[k][0]) and len(turns[k][0]) > 1


def test_stopping_a_stream_leaves_the_model_as_it_was(tiny_model, methods):
    model = tiny_model()
    before, left = logits(model, model.encode(PROMPTS)), hooks_left(model)
    stream = generate(model, PROMPTS, steer=methods("llama", "conva"), stream=True)
    next(stream)
    assert hooks_left(model) == left and torch.equal(logits(model, model.encode(PROMPTS)), before)
    stream.close()
    assert hooks_left(model) == left and model.active == []


# -- what is steered -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("target", [0.6, 0.95, 0.999])
def test_the_target_is_met_exactly(family, target, tiny_model, probes):
    model = tiny_model(family)
    ids = model.encode(PROMPTS, chat=True)
    for scope in ("all", "generated", "token"):
        steer = ConVA(probes(family), VALUE, target=target, layers=[0, 1, 2], scope=scope)
        answers, trace = generate(model, PROMPTS, steer=steer, max_new_tokens=5, return_trace=True)
        met = trace if scope == "token" else trace[trace["position"] == trace["row"].map(lambda r: len(ids[r]) - 1)]
        np.testing.assert_allclose(met["p_after"], np.maximum(met["p_before"], target), atol=1e-5)
        assert (met["eps"] > 0).any() and ((met["eps"] > 0) == (met["p_before"] < target)).all()
        if scope == "all":  # one eps per prompt and layer
            assert (trace.groupby(["row", "layer"])["eps"].nunique() == 1).all()
        with watched(model) as stream, steer.on(model, trace=True) as run:
            logits(model, ids)
        for _, line in run.trace.iterrows():  # what the trace says is what the next layer reads
            seen = steer.probability(line["layer"], stream[line["layer"]][line["row"], -1])
            assert float(seen) == pytest.approx(line["p_after"], abs=1e-5)


def test_eps_is_the_smallest_push(tiny_model, probes):
    model, steer = tiny_model(), ConVA(probes(), VALUE, target=0.999, layers=[1])
    with steer.on(model, trace=True) as run:
        logits(model, model.encode(PROMPTS))
    w, b = steer.plane(1, torch.device("cpu"))
    before = torch.tensor(run.trace["p_before"].to_numpy(np.float64)).logit()
    eps = (np.log(0.999 / 0.001) - before.numpy()) / float(w.norm())
    np.testing.assert_allclose(run.trace["eps"], np.maximum(eps, 0), rtol=1e-3)


def test_prompt_lengths_end_the_prompt(tiny_model, methods):
    model, steer = tiny_model(), methods("llama", "conva generated")
    ids = model.encode(PROMPTS, chat=True)
    base = logits(model, ids, "right")
    with steer.on(model, trace=True, prompt_lengths=[3, 4, 5]) as run:
        steered = logits(model, ids, "right")
    for row, length in enumerate((3, 4, 5)):
        same = [k for k in range(len(ids[row])) if torch.equal(base[row, k], steered[row, k])]
        assert same == list(range(length - 1))
        assert run.trace.loc[run.trace["row"] == row, "position"].min() == length - 1
        assert run.trace.loc[run.trace["row"] == row, "position"].max() == len(ids[row]) - 1


def test_several_apply_in_order(tiny_model, probes, methods):
    model = tiny_model()
    ids = model.encode(PROMPTS[:1], chat=True)
    conva = ConVA(probes(), VALUE, target=0.9, layers=[1], scope="token")
    caa = CAA(probes("llama", "mean_difference"), VALUE, strength=-2.0, layers=[1])
    with caa.on(model, trace=True), conva.on(model, trace=True) as second:
        assert [run.steer for run in model.active] == [caa, conva]
        last_word = logits(model, ids)
    assert second.trace["p_after"].to_numpy() == pytest.approx([0.9], abs=1e-5), "ConVA corrects what CAA did before it"
    with conva.on(model, trace=True) as first, caa.on(model):
        other = logits(model, ids)
    assert not torch.allclose(last_word, other, **CLOSE)

    def by_hand(order):
        def hook(_module, _inputs, hidden):
            for steer in order:
                shift = torch.zeros_like(hidden)
                where = slice(None) if steer.scope == "all" else slice(-1, None)
                shift[:, where] = steer.shift(1, hidden[:, where])
                hidden = hidden + shift
            return hidden

        handle = model.blocks[1].register_forward_hook(hook)
        try:
            return logits(model, ids)
        finally:
            handle.remove()

    torch.testing.assert_close(last_word, by_hand([caa, conva]), **CLOSE)
    torch.testing.assert_close(other, by_hand([conva, caa]), **CLOSE)
    assert first.trace["p_after"].to_numpy() == pytest.approx([0.9], abs=1e-5)
    assert generate(model, PROMPTS, steer=[caa, conva], max_new_tokens=4) != generate(model, PROMPTS, max_new_tokens=4)


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_gate_sees_the_unsteered_model(family, layer, tiny_model, methods, probes, gate):
    model, judge = tiny_model(family), gate(family, layer)
    scores = judge.scores(PROMPTS)
    assert judge.opens(PROMPTS).sum() == 2, "a gate that opens for all or none tests nothing"
    steer = ConVA(probes(family), VALUE, target=0.9999, layers=[0, 1, 2], gate=judge)
    _, trace = generate(model, PROMPTS, steer=steer, max_new_tokens=3, return_trace=True)
    for row, rows in trace.groupby("row"):
        np.testing.assert_allclose(rows["gate"], scores[row], atol=1e-5)
        assert (rows["open"] == (scores[row] > judge.threshold)).all()
        assert rows["open"].all() or (rows["eps"] == 0).all()
    with (
        methods(family, "caa").on(model),
        steer.on(model, trace=True) as run,
    ):  # nor does it see another method's push
        np.testing.assert_allclose(judge.scores(PROMPTS), scores, atol=1e-5)
        last(model, model.encode(PROMPTS, chat=True))
    np.testing.assert_allclose(run.trace.groupby("row")["gate"].first(), scores, atol=1e-5)
    closed = int(np.flatnonzero(~judge.opens(PROMPTS))[0])
    assert (
        generate(model, PROMPTS, steer=steer, max_new_tokens=6)[closed]
        == generate(model, PROMPTS, max_new_tokens=6)[closed]
    )


@pytest.mark.parametrize(("layer", "passes"), [(0, 1), (1, 1), (2, 2)])
def test_everything_happens_inside_one_prefill(layer, passes, tiny_model, probes, gate):
    """Only a gate behind the first steered layer needs a pass of its own, and that ends at the gate."""
    model, seen = tiny_model(), [0, 0, 0]
    steer = ConVA(probes(), VALUE, target=0.9999, layers=[1, 2], gate=gate("llama", layer))
    handles = [
        block.register_forward_pre_hook(lambda *_, k=k: seen.__setitem__(k, seen[k] + 1))
        for k, block in enumerate(model.blocks)
    ]
    try:
        with steer.on(model):
            logits(model, model.encode(PROMPTS, chat=True))
    finally:
        for handle in handles:
            handle.remove()
    assert seen == [passes] * 3


def test_the_random_direction_is_as_long_as_what_it_controls(tiny_model, methods, probes):
    model, random = tiny_model(), methods("llama", "random")
    pushes = []
    for steer in (random.of, random):
        _, trace = generate(model, PROMPTS, steer=steer, max_new_tokens=3, return_trace=True)
        pushes.append(trace.groupby(["row", "layer"])["eps"].first())
    pd.testing.assert_series_equal(*pushes, rtol=1e-4)
    w = probes().vectors(1).sel(value=VALUE).values
    assert abs(w @ random.direction(1, torch.zeros(len(w))).numpy()) < 0.6


# -- sites, windows, gates per token or of text ---------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Louder(Intervention, abstract=True):
    """Adds a share of how large each number is (a multiple would be undone by a norm after the MLP)."""

    layers: tuple[int, ...] = (1,)
    share: float = 0.5
    gate: Any = None
    scope: str = "token"
    window: Any = None
    site: ClassVar[str] = "residual"

    def shift(self, layer, e):
        return self.share * e.abs()


class LouderNeurons(Louder, abstract=True):
    site = "neurons"


def by_hand(model, ids, module, edit):
    """Logits with a module's output, or the down projection's input, edited by a plain hook."""
    if isinstance(module, int):
        hook = model.neurons(module).register_forward_pre_hook(lambda _m, given: (edit(given[0]),))
    else:
        hook = module.register_forward_hook(lambda _m, _i, out: edit(out))
    try:
        return logits(model, ids)
    finally:
        hook.remove()


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_neurons_are_edited_where_they_enter_the_down_projection(family, tiny_model):
    model, steer = tiny_model(family), LouderNeurons()
    ids = model.encode(PROMPTS[:1], chat=True)

    def edit(a):
        return torch.cat([a[:, :-1], a[:, -1:] + 0.5 * a[:, -1:].abs()], 1)

    with steer.on(model, trace=True) as run:
        steered = logits(model, ids)
        bridge, cache = model.bridge.run_with_cache(torch.tensor(ids))
    torch.testing.assert_close(steered, by_hand(model, ids, 1, edit), **CLOSE)
    torch.testing.assert_close(bridge, steered, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(steered, logits(model, ids), rtol=1e-3, atol=1e-3)
    a = cache["blocks.1.mlp.hook_post"][0, -1]  # TransformerLens sees what was made of it
    before = torch.where(a > 0, a / 1.5, a / 0.5)
    assert run.trace["eps"].to_numpy() == pytest.approx([float(before.norm()) / 2] * 2, rel=1e-4)
    assert run.fired == {1: 2}


def test_a_model_without_single_neurons_is_refused(tiny_model, monkeypatch):
    model = tiny_model()
    monkeypatch.delitem(model.bridge.adapter.component_mapping["blocks"].submodules["mlp"].submodules, "out")
    with pytest.raises(WorkbenchError, match="has no single down projection"), LouderNeurons().on(model):
        pass


def test_the_share_is_the_edits_length_over_what_was_there(tiny_model):
    model = tiny_model()
    for steer in (Louder((0, 2), 0.25), LouderNeurons((0, 2), 0.25)):
        with steer.on(model, trace=True) as run:
            logits(model, model.encode(PROMPTS, chat=True))
        assert len(run.trace) == 6 and run.trace["share"].to_numpy() == pytest.approx([0.25] * 6, rel=1e-5)


def test_a_trace_has_named_axes(tiny_model, methods):
    model, ids = tiny_model(), tiny_model().encode(PROMPTS, chat=True)
    with methods("llama", "conva gated").on(model, trace=True) as run:
        model.twin.generate(torch.tensor(ids[:1]), max_new_tokens=3, do_sample=False)
        model.twin.generate(torch.tensor(ids[1:2]), max_new_tokens=2, do_sample=False)
    whole, table = run.dataset(), run.trace
    assert dict(whole.sizes) == {"row": 2, "layer": 3, "position": len({*table["position"]})}
    assert whole["token"].dims == ("row", "position") and whole["open"].dtype == bool
    for line in table.to_dict("records"):
        at = {axis: line[axis] for axis in ("row", "layer", "position")}
        for name in ("gate", "p_before", "p_after", "eps", "share", "open"):
            assert whole[name].sel(at).item() == pytest.approx(line[name])
        assert whole["token"].sel(row=line["row"], position=line["position"]) == line["token"]
    assert int(whole["eps"].count()) == len(table) and "ConVA(security" in whole.attrs["steer"]
    with Louder().on(model, trace=True) as idle:
        pass
    assert idle.dataset().sizes["row"] == 0


@pytest.mark.parametrize(
    ("window", "steered"), [((0, 1), [0]), ((1, 3), [1, 2]), ((2, None), [2, 3]), (None, [0, 1, 2, 3])]
)
@pytest.mark.parametrize("scope", ["generated", "token"])
def test_a_window_counts_the_answers_tokens(scope, window, steered, tiny_model, probes):
    model = tiny_model()
    steer = ConVA(probes(), VALUE, target=0.9999, layers=[0, 1, 2], scope=scope, window=window)
    (prompt,), answer = model.encode(PROMPTS[1:2], chat=True), [20, 31, 44]
    base = cached_decode(model, prompt, answer)
    with steer.on(model, trace=True) as run:
        cached = cached_decode(model, prompt, answer)
    assert sorted({*run.trace.loc[run.trace["eps"] > 0, "position"]}) == [len(prompt) - 1 + k for k in steered]
    first = steered[0]
    assert torch.equal(cached[:first], base[:first]) and not torch.allclose(cached[first], base[first], **CLOSE)
    if scope == "generated" and first:  # the shift is still the one of the last prompt token
        with replace(steer, window=None).on(model, trace=True) as all_of_it:
            cached_decode(model, prompt, answer)
        both = [t[t["layer"] == 0].set_index("position")["eps"] for t in (run.trace, all_of_it.trace)]
        assert both[0][len(prompt) - 1 + first] == both[1][len(prompt) - 1]


@pytest.mark.parametrize("window", [(-1, 2), (2, 2), (3, 1)])
def test_windows_that_make_no_sense_are_refused(window, tiny_model, probes):
    settings = {"layers": [1], "scope": "token"}
    for steer in (
        ConVA(probes(), VALUE, window=window, **settings),
        ConVA(probes(), VALUE, window=(0, 2), **{**settings, "scope": "all"}),
    ):
        with pytest.raises(WorkbenchError, match="window .* with scope '(token|all)'"):
            steer.start(tiny_model())


@pytest.mark.parametrize("family", SOME)
def test_a_gate_per_token_reads_each_token_unsteered(family, tiny_model, probes, gate):
    model = tiny_model(family)
    ids = [prompt + [20, 31, 44, 52] for prompt in model.encode(PROMPTS, chat=True)]
    lengths = [len(row) - 4 for row in ids]
    with watched(model) as stream:
        logits(model, ids)
    judge = gate(family, 1)
    scores = judge.score(stream[1][:, -5:]).detach()
    judge = replace(judge, per_token=True, threshold=float(scores.flatten().sort().values[6:8].mean()))
    steer = ConVA(probes(family), VALUE, target=0.9999, layers=[1, 2], gate=judge, scope="token")
    with steer.on(model, trace=True, prompt_lengths=lengths) as run:
        logits(model, ids)
    for (row, _), lines in run.trace.groupby(["row", "layer"]):
        np.testing.assert_allclose(lines["gate"], scores[row], atol=1e-5)
        assert lines["open"].tolist() == (scores[row] > judge.threshold).tolist()
        assert ((lines["eps"] > 0) <= lines["open"]).all()
    opened = run.trace[run.trace["layer"] == 1].groupby("row")["open"].sum()
    assert opened.sum() == 8 and ((0 < opened) & (opened < 5)).any(), "within a row too"


def test_gates_per_token_that_would_read_steered_tokens_are_refused(tiny_model, probes, gate):
    model, judge = tiny_model(), replace(gate("llama", 1), per_token=True)
    settings = {"target": 0.999, "gate": judge}
    for steer in (
        ConVA(probes(), VALUE, layers=[0, 2], scope="token", **settings),
        ConVA(probes(), VALUE, layers=[1, 2], scope="all", **settings),
        LouderNeurons(gate=judge),
    ):
        with pytest.raises(WorkbenchError, match="was to ask its gate about each token"):
            steer.start(model)
    steer = ConVA(probes(), VALUE, layers=[1, 2], scope="token", **settings)
    with pytest.raises(WorkbenchError, match="layers below the gate's, 1"), Louder((0,)).on(model), steer.on(model):
        logits(model, model.encode(PROMPTS))
    assert model.active == []


class Asks(Never, abstract=True):
    """Opens for prompts with a question mark; keeps what it was asked."""

    reads: ClassVar[str] = "text"

    def scores(self, prompts, instruction=None):
        vars(self).setdefault("seen", []).extend(prompts)
        return np.array([float("?" in prompt) for prompt in prompts], np.float32)

    def decide(self, score):
        return score > 0.5


def test_a_gate_that_reads_text_is_given_the_bare_question(tiny_model, probes):
    model, judge = tiny_model(), Asks()
    steer = ConVA(probes(), VALUE, target=0.9999, layers=[0, 1], gate=judge)
    said = (("user", "Why?"), ("assistant", "So."), ("user", "No."))
    chat = [{"role": role, "content": content} for role, content in said]
    asked = [*PROMPTS, chat]
    settings = {"max_new_tokens": 2, "batch_size": 3, "instruction": "Hm?", "return_trace": True}
    _, trace = generate(model, asked, steer=steer, **settings)
    assert vars(judge)["seen"] == [*PROMPTS, "No."]
    assert trace.groupby("row")["open"].first().tolist() == [True, True, False, False]
    assert ((trace["eps"] > 0) == trace["open"]).all()
    ids = model.encode(PROMPTS, chat=True)
    with pytest.raises(WorkbenchError, match="0 questions, where it reads the text"), steer.on(model):
        logits(model, ids)
    with steer.on(model, trace=True, questions=PROMPTS) as run:
        logits(model, ids)
    assert run.trace.groupby("row")["open"].first().tolist() == [True, True, False]


# -- nothing is silent ---------------------------------------------------------------------------------------


def test_hooks_are_counted(tiny_model, methods):
    model, steer = tiny_model(), methods("llama", "conva")
    with steer.on(model) as run:
        logits(model, model.encode(PROMPTS))
        logits(model, model.encode(PROMPTS[:1]))
    assert run.fired == {0: 2, 1: 2, 2: 2}
    with steer.on(model) as run:
        pass
    assert run.fired == {0: 0, 1: 0, 2: 0}


def test_a_hook_that_never_fired_is_an_error(tiny_model, methods, monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(model.twin.config, "num_hidden_layers", 2)  # transformers then skips the last block
    with (
        pytest.raises(WorkbenchError, match=r"layers \[2\] never fired"),
        methods("llama", "conva").on(model),
    ):
        logits(model, model.encode(PROMPTS))


def test_wrong_prompt_lengths_are_refused(tiny_model, methods):
    model = tiny_model()
    ids = model.encode(PROMPTS)
    for lengths, message in (
        ([1, 2], "found: 2 prompt lengths"),
        ([1, 2, 99], "row 2 with .* 99 of them prompt"),
        ([0, 1, 1], "row 0 .* 0 of them prompt"),
    ):
        with (
            pytest.raises(WorkbenchError, match=f"(?i){message}"),
            methods("llama", "conva").on(model, prompt_lengths=lengths),
        ):
            logits(model, ids)


def test_caches_of_elsewhere_and_beam_search_are_refused(tiny_model, methods):
    model, steer = tiny_model(), methods("llama", "conva")
    ids, mask = model.pad(model.encode(PROMPTS))
    step, longer = ids[:, -1:], torch.cat([mask, mask[:, :1] * 0 + 1], 1)
    outside = model.twin(ids, attention_mask=mask, use_cache=True).past_key_values
    with steer.on(model):
        with pytest.raises(WorkbenchError, match="filled before this intervention was on"):
            model.twin(step, attention_mask=longer, past_key_values=outside)
        inside = model.twin(ids, attention_mask=mask, use_cache=True).past_key_values
        with pytest.raises(WorkbenchError, match="no attention_mask, though the prompts were padded"):
            model.twin(step, past_key_values=inside)
        with pytest.raises(WorkbenchError, match="beam search"):
            inside.reorder_cache(torch.tensor([1, 0, 2]))
        with pytest.raises(WorkbenchError, match="beam search"):
            model.twin.generate(ids, attention_mask=mask, num_beams=2, max_new_tokens=4, do_sample=False)
        with pytest.raises(WorkbenchError, match="2 rows, and 3 in the cache's prompt"):
            inside.batch_select_indices(torch.tensor([0, 1]))
            model.twin(step[:2], attention_mask=longer[:2], past_key_values=inside)
    outside.reorder_cache(torch.tensor([1, 0, 2]))
    inside.reorder_cache(torch.tensor([1, 0]))


@pytest.mark.parametrize("method", ["conva", "conva generated", "conva token"])
def test_nan_is_an_error(method, tiny_model, methods):
    model, steer = tiny_model(), methods("llama", method)
    handle = model.blocks[0].register_forward_pre_hook(lambda _m, inputs: (inputs[0] * float("nan"), *inputs[1:]))
    try:
        with pytest.raises(WorkbenchError, match="NaN or inf in the residual stream"), steer.on(model):
            model.twin(torch.tensor([[5, 6, 7]]))
        with pytest.raises(WorkbenchError, match="NaN or inf in the logits"):
            generate(model, PROMPTS)
    finally:
        handle.remove()


@pytest.mark.parametrize("stream", [False, True])
def test_bad_input_is_told_and_leaves_the_model_unsteered(stream, tiny_model, probes):
    model, other, left = tiny_model(), fit_probes(tiny_model("qwen2"), pairs(), folds=3), hooks_left(tiny_model())
    before = logits(model, model.encode(PROMPTS))
    settings = {"target": 0.99, "layers": [0, 2]}

    def nan(self, layer, e):
        return e * float("nan") if layer == 2 else torch.zeros_like(e)

    broken = ConVA(probes(), VALUE, **settings)
    broken.__dict__["shift"] = nan.__get__(broken)
    for make, prompts, message in (
        (lambda: ConVA(probes(), "virtue", **settings), PROMPTS, "'virtue'"),
        (lambda: ConVA(probes(), VALUE, layers=[3]), PROMPTS, r"layers \[3\]"),
        (lambda: Louder((0, 3)), PROMPTS, r"(?i)layers \[0, 3\] of llama were asked for"),
        (lambda: ConVA(other, VALUE, **settings), PROMPTS, "of qwen2 were to be used with llama"),
        (lambda: ConVA(probes(), VALUE, target=0), PROMPTS, "target probability of 0"),
        (lambda: ConVA(probes(), VALUE, target=1), PROMPTS, "target probability of 1"),
        (lambda: ConVA(probes(), VALUE, **settings), ["Why?", "house " * 200], "of 128 tokens"),
        (lambda: broken, PROMPTS, "was to steer layer 2.\nFound: NaN or inf"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            next(iter(generate(model, prompts, steer=make(), max_new_tokens=2, stream=stream)))
        assert hooks_left(model) == left and model.active == [] and "generate" not in vars(model.twin)
        assert torch.equal(logits(model, model.encode(PROMPTS)), before)
    qwen = tiny_model("qwen2")  # no BOS: an empty text has no token to read
    with pytest.raises(WorkbenchError, match="no tokens in it"):
        generate(qwen, ["Why?", ""], steer=ConVA(other, VALUE, **settings), chat=False)
    assert qwen.active == []


def test_unknown_layers_values_scopes(probes, tiny_model):
    known: dict[str, type[Intervention]] = Intervention.registry
    assert {"ConVA", "CAA", "ICA", "Base", "RandomDirection"} <= set(known)
    for settings, message in (
        ({"layers": [7]}, "layers \\[7\\]"),
        ({"layers": []}, "layers \\[\\]"),
        ({"scope": "prompt"}, "scope 'prompt'"),
        ({"target": 1.0}, "target probability of 1.0"),
        ({"value": "virtue"}, "'virtue'"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            ConVA(probes(), **{"value": VALUE, "layers": [1], **settings})
