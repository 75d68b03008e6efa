# ruff: noqa: F811
"""What must be equal is equal, on every architecture, for every method that has layers and every scope it knows.

On teacher-forced logits (1e-4, float32): cached == uncached, batched == alone, twin == bridge, streamed == whole, saved
and loaded == made; strength 0 and off == the base model, bit for bit. And a trace claims exactly what was changed.
"""

import functools
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_contracts import PROMPTS, VALUE, hooks_left, logits, pairs
from tiny import FAMILIES, MORE

from workbench.errors import WorkbenchError
from workbench.gates import Never, ProbeGate
from workbench.generate import generate
from workbench.models import residual
from workbench.neurons import activation_shares, neuron_contrasts, select_neurons
from workbench.probes import fit_probes
from workbench.steering import CAA, DPNLE, LAPE, NPTI, SCAV, ConVA, NeVA, RandomDirection
from workbench.steering.intervention import SCOPES, Intervention
from workbench.steering.lora import Adapter, LoRA
from workbench.steering.scale_neurons import ScaleNeurons

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
NORMED = ("gemma2", "gemma3_text")  # a norm follows the MLP
OTHER = "stimulation"  # opposed to VALUE

# name: (its scopes, how it is made, the same with strength 0 where it has one)
Make = Callable[..., Intervention]
METHODS: dict[str, tuple[tuple[str, ...], Make, Make | None]] = {
    "ConVA": (
        SCOPES,
        lambda p, **s: ConVA(p.probes, VALUE, target=0.9999, **s),
        lambda p, **s: ConVA(p.probes, VALUE, target=1e-12, **s),
    ),
    "ConVA down": (SCOPES[2:], lambda p, **s: ConVA(p.probes, VALUE, target=1e-4, direction="down", **s), None),
    "ConVA of two": (SCOPES, lambda p, **s: ConVA(p.probes, {VALUE: 0.999, "power": 0.01}, **s), None),
    "SCAV": (("token",), lambda p, **s: SCAV(p.probes, VALUE, target=0.9999, **s), None),
    "CAA": (
        SCOPES[:2],
        lambda p, **s: CAA(p.differences, VALUE, strength=1.5, **s),
        lambda p, **s: CAA(p.differences, VALUE, strength=0, **s),
    ),
    "NeVA": (SCOPES, lambda p, **s: NeVA(p.probes, VALUE, p.neva, target=0.99, **s), None),
    "NPTI": (
        ("token",),
        lambda p, **s: NPTI(p.npti, gamma=2, **s),
        lambda p, **s: NPTI(p.npti, gamma=0, suppress=False, **s),
    ),
    "LAPE": (("token",), lambda p, **s: LAPE(p.lape, **s), None),
    "DPNLE": (SCOPES, lambda p, **s: DPNLE(p.dpnle, gamma=5, **s), lambda p, **s: DPNLE(p.dpnle, gamma=0, **s)),
    "ScaleNeurons": (
        ("all", "token"),
        lambda p, **s: ScaleNeurons(p.dpnle, factor=4, **s),
        lambda p, **s: ScaleNeurons(p.dpnle, factor=1, **s),
    ),
    "RandomDirection": (
        SCOPES,
        lambda p, **s: RandomDirection(ConVA(p.probes, VALUE, target=0.9999, **s)),
        lambda p, **s: RandomDirection(ConVA(p.probes, VALUE, target=1e-12, **s)),
    ),
    "RandomDirection of neurons": (SCOPES, lambda p, **s: RandomDirection(DPNLE(p.dpnle, gamma=5, **s)), None),
    "LoRA": (
        ("all", "token"),
        lambda p, **s: LoRA(p.adapter, **s),
        lambda p, **s: LoRA(p.adapter, strength=0, **s),
    ),
    "RandomDirection of LoRA": (("all", "token"), lambda p, **s: RandomDirection(LoRA(p.adapter, **s)), None),
}
COMBINATIONS = [(name, scope) for name, (scopes, *_) in METHODS.items() for scope in scopes]


def test_no_method_is_left_out():
    known: list[tuple[str, Any]] = list(Intervention.registry.items())
    steering = {name for name, kind in known if {"layers", "of"} & {field.name for field in fields(kind)}}
    assert steering == {name.split()[0] for name in METHODS}


@pytest.fixture(scope="session")
def parts(tiny_model, request):
    """Function: family -> model, probes, gate and neurons of it."""

    @functools.cache
    def of(family: str) -> SimpleNamespace:
        model = request.getfixturevalue("craftgpt") if family == "craftgpt" else tiny_model(family)
        table = pairs()
        asked = [f"Should {who} sell the {what}?" for who in ("Mira", "he", "one") for what in ("house", "race", "red")]
        plain = [f"What is {a} and {b}?" for a in ("two", "three", "red") for b in ("two", "house", "me")]
        gate = ProbeGate.fit(model, asked, plain, layer=0, folds=3)
        contrasts = neuron_contrasts(model, table)
        said = (table["positive"][0], table["negative"][3])
        high, low = (activation_shares(model, PROMPTS, [text] * 3) for text in said)
        made = SimpleNamespace(
            model=model,
            probes=fit_probes(model, table, folds=3),
            differences=fit_probes(model, table, "mean_difference", folds=3),
            gate=replace(gate, threshold=float(gate.oof["score"].median())),
            npti=NPTI.select(model, VALUE, high, low, at_least=9),
            lape=LAPE.select(model, VALUE, {VALUE: high, OTHER: low}, keep=0.3, quantile=0.3),
            dpnle=DPNLE.select(model, contrasts, VALUE, quantile=0.8, min_d=0.0),
            adapter=an_adapter(model),
        )
        made.neva = made.dpnle
        if family not in NORMED:
            made.neva = select_neurons(model, contrasts, made.probes, VALUE, layers=[0, 1, 2], share=0.1, min_d=0.01)
        return made

    return of


def an_adapter(model) -> Adapter:
    """Of rank 2 at the first three layers, drawn at random."""
    rng = np.random.default_rng(0)
    width = model.neurons(0).weight.numel() // model.d_model
    down, up = ({k: rng.normal(0, 0.2, shape) for k in range(3)} for shape in ((2, width), (model.d_model, 2)))
    return Adapter(VALUE, down, up, 4.0, model.provenance)


def layers_of(part: SimpleNamespace, name: str) -> list[int]:
    """The layers that a method can steer, of the first three."""
    held = {"NeVA": part.neva, "NPTI": part.npti, "DPNLE": part.dpnle, "ScaleNeurons": part.dpnle,
            "RandomDirection of neurons": part.dpnle}  # fmt: skip
    if name == "LAPE":
        return sorted({int(layer) for layer in part.lape.chosen.query("side < 0")["layer"]})[:3]
    return sorted(held[name].indices)[:3] if name in held else [0, 1, 2]


class Case:
    """Prompts and answers as token ids, and how they are steered."""

    def __init__(self, part: SimpleNamespace, name: str, scope: str, data: st.DataObject):
        draw, model = data.draw, part.model
        words = st.integers(6, len(model.tokenizer) - 1)
        self.answers = draw(st.lists(st.lists(words, min_size=2, max_size=2), min_size=2, max_size=3), "answers")
        self.prompts = [
            model.encode([""])[0] + draw(st.lists(words, min_size=1, max_size=7), "prompt") for _ in self.answers
        ]
        self.side = draw(st.sampled_from(("left", "right")), "padding")
        held = layers_of(part, name)
        layers = draw(st.sets(st.sampled_from(held), min_size=1), "layers")
        gates = [None, part.gate, replace(part.gate, per_token=True)]
        gate = draw(st.sampled_from(gates if scope != "all" else gates[:2]), "gate")
        late = [layer for layer in held if layer > 0]
        if gate is not None and gate.per_token and METHODS[name][1](part, layers=held, scope=scope).edits_before(0):
            layers, gate = (set(late), gate) if late else (layers, part.gate)
        windows = [None, (0, 1), (1, 2), (1, None)] if scope != "all" else [None]
        chosen = {"layers": sorted(layers), "gate": gate, "window": draw(st.sampled_from(windows), "window")}
        self.steer = METHODS[name][1](part, scope=scope, **chosen)
        self.whole = [prompt + answer for prompt, answer in zip(self.prompts, self.answers, strict=True)]
        self.lengths = [len(prompt) for prompt in self.prompts]
        self.model = model

    def read(self, on: bool = True, **settings: Any) -> tuple[torch.Tensor, pd.DataFrame]:
        """Logits (row, 3, vocabulary) at the last prompt token and the answer's, in one uncached pass; the trace."""
        if not on:
            return self.pick(logits(self.model, self.whole, self.side)), pd.DataFrame()
        with self.steer.on(self.model, prompt_lengths=self.lengths, trace=True, **settings) as run:
            out = logits(self.model, self.whole, self.side)
        return self.pick(out), run.trace

    def pick(self, out: torch.Tensor) -> torch.Tensor:
        last = [out.shape[1] if self.side == "left" else len(row) for row in self.whole]
        return torch.stack([row[end - 3 : end] for row, end in zip(out, last, strict=True)])

    def cached(self) -> tuple[torch.Tensor, pd.DataFrame]:
        """The same, prompt first and then token by token, through the cache."""
        step, mask = self.model.pad(self.prompts)
        said, cache = [], None
        with self.steer.on(self.model, trace=True) as run, torch.no_grad():
            for k in range(3):
                places = (mask.cumsum(1) - 1).clamp(min=0)[:, -step.shape[1] :]
                given = {"attention_mask": mask, "position_ids": places, "past_key_values": cache, "use_cache": True}
                result = self.model.twin(step, **given)
                cache = result.past_key_values
                said.append(result.logits[:, -1])
                if k < 2:
                    step = torch.tensor([[answer[k]] for answer in self.answers])
                    mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        return torch.stack(said, 1), run.trace


@contextmanager
def edits(model, steer):
    """Layer -> tokens (row, column) whose state at the method's site is other after all edits than before."""
    seen: dict[tuple[str, int], torch.Tensor] = {}
    changed: dict[int, torch.Tensor] = {}

    def keep(when, layer, held):
        seen[when, layer] = held.clone()
        if when == "after":
            changed[layer] = (seen["before", layer] != held).any(-1)

    handles = []
    for layer in steer.layers:
        for when in ("before", "after"):  # those of the run stand between
            first = {"prepend": when == "before"}
            if steer.site == "neurons":
                hook = partial(lambda when, layer, _m, given: keep(when, layer, given[0]), when, layer)
                handles.append(model.neurons(layer).register_forward_pre_hook(hook, **first))
            else:
                hook = partial(lambda when, layer, _m, _i, out: keep(when, layer, residual(out)), when, layer)
                place = model.blocks[layer] if steer.site == "residual" else model.neurons(layer)
                handles.append(place.register_forward_hook(hook, **first))
    try:
        yield changed
    finally:
        for handle in handles:
            handle.remove()


def check_claims(case: Case) -> None:
    """Tokens whose eps is above 0 are those whose state differs from its own before the edit; earlier ones by scope."""
    model, steer = case.model, case.steer
    with steer.on(model, prompt_lengths=case.lengths, trace=True) as run, edits(model, steer) as changed:
        logits(model, case.whole, case.side)
    width = max(map(len, case.whole))
    trace = run.trace
    assert ((trace["eps"] > 0) <= trace["open"]).all() and ((trace["share"] > 0) == (trace["eps"] > 0)).all()
    claimed = {(line.row, line.layer, line.position) for line in trace[trace["eps"] > 0].itertuples()}
    for layer in steer.layers:
        for row, tokens in enumerate(case.whole):
            offset = width - len(tokens) if case.side == "left" else 0
            for position in range(len(tokens)):
                was_changed = bool(changed[layer][row, offset + position])
                if position >= case.lengths[row] - 1:
                    assert was_changed == ((row, layer, position) in claimed)
                elif steer.scope != "all":
                    assert not was_changed


@pytest.mark.parametrize(("name", "scope"), COMBINATIONS)
@pytest.mark.parametrize("family", [*FAMILIES, *MORE, "craftgpt"])
@settings(max_examples=3, deadline=None, derandomize=True, database=None,
          phases=[Phase.generate],  # a failure is small already, and making it smaller takes minutes
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_one_meaning(family, name, scope, parts, data):
    part = parts(family)
    if name == "NeVA" and family in NORMED:
        with pytest.raises(WorkbenchError, match="mlp_out differs from W_out a"):
            METHODS[name][1](part, scope=scope).start(part.model)
        return
    case = Case(part, name, scope, data)
    base, left = case.read(on=False)[0], hooks_left(case.model)
    steered, trace = case.read()
    assert not torch.equal(steered, base) or not (trace["eps"] > 0).any()

    cached, told = case.cached()
    torch.testing.assert_close(cached, steered, **CLOSE)
    pd.testing.assert_frame_equal(told, trace, rtol=1e-3, atol=1e-4)

    row = data.draw(st.integers(0, len(case.prompts) - 1), "row")
    with case.steer.on(case.model, prompt_lengths=case.lengths[row : row + 1]):
        alone = logits(case.model, case.whole[row : row + 1])[0, -3:]
        bridged = case.model.bridge(torch.tensor(case.whole[row : row + 1]))[0, -3:]
    torch.testing.assert_close(alone, steered[row], **CLOSE)
    torch.testing.assert_close(bridged, alone, **CLOSE)

    check_claims(case)

    problem = data.draw(st.sampled_from((RuntimeError, KeyboardInterrupt)), "problem")
    with suppress(problem), case.steer.on(case.model):
        raise problem
    assert torch.equal(case.read(on=False)[0], base)
    assert hooks_left(case.model) == left and case.model.active == []


@pytest.mark.parametrize(("name", "scope"), COMBINATIONS)
@pytest.mark.parametrize("family", [*FAMILIES, *MORE, "craftgpt"])
def test_nothing_loaded_streamed(family, name, scope, parts, tmp_path):
    part = parts(family)
    if name == "NeVA" and family in NORMED:
        return
    model, (_, make, nothing) = part.model, METHODS[name]
    chosen = {"layers": layers_of(part, name), "scope": scope}
    ids = model.encode(PROMPTS, chat=True)
    base = logits(model, ids)
    for idle in [make(part, gate=Never(), **chosen), *([nothing(part, **chosen)] if nothing else [])]:
        with idle.on(model):
            assert torch.equal(logits(model, ids), base)

    steer = make(part, gate=part.gate, window=None if scope == "all" else (1, None), **chosen)
    loaded = Intervention.load(steer.save(tmp_path / "steer"), model)
    assert repr(loaded) == repr(steer) and loaded.layers == steer.layers
    said = []
    for method in (steer, loaded):
        with method.on(model):
            said.append(logits(model, ids))
    assert torch.equal(*said)

    whole, trace = generate(model, PROMPTS, steer=steer, max_new_tokens=3, return_trace=True)
    *_, (streamed, told) = generate(model, PROMPTS, steer=steer, max_new_tokens=3, return_trace=True, stream=True)
    assert streamed == whole
    pd.testing.assert_frame_equal(told, trace)
