# ruff: noqa: F811
"""ConVA: its closed form, the released code in its own slow words, ceilings, several values at once, angles, caps."""

import re
from contextlib import ExitStack
from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import activations
from scipy.optimize import minimize, nnls
from test_contracts import PROMPTS, VALUE, gate, pairs, probes  # noqa: F401

from workbench.errors import WorkbenchError
from workbench.gates import Never
from workbench.generate import generate
from workbench.models import residual
from workbench.probes import Probes, fit_probes
from workbench.steering import ConVA, Intervention
from workbench.steering.conva import Faces, enclosing
from workbench.values import VALUES, angles
from workbench.vectors import ValueVectors

CPU = torch.device("cpu")
BOTH = {"security": 0.99, "power": 0.05}


def states(d: int, rows: int = 60, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(scale * np.random.default_rng(seed).normal(size=(rows, d))).float()


def planted(cosine: float, values=("power", "security"), d: int = 12, n: int = 30) -> Probes:
    """Probes of values at three layers: the first two differ along directions of this cosine, a third by itself."""
    rng = np.random.default_rng(3)
    one, other, third = np.linalg.qr(rng.normal(size=(d, 3)))[0].T
    way = np.stack([one, cosine * one + (1 - cosine**2) ** 0.5 * other, third])[: len(values)]
    noise = rng.normal(size=(2, 3, len(values), n, d))
    sides = [(noise[side] + (2, -2)[side] * way[:, None]).reshape(3, -1, d) for side in range(2)]
    return activations(*sides, values=np.repeat(values, n)).fit(folds=3)


# -- one value -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("target", [0.9, 0.2])
def test_conva_is_the_closed_form(direction, target, probes):
    steer = ConVA(probes(), VALUE, target=target, layers=[1], direction=direction)
    w, b = probes().weight.sel(value=VALUE, layer=1).values, float(probes().bias.sel(value=VALUE, layer=1))
    e = np.random.default_rng(0).normal(size=(50, len(w)))
    shift = steer.shift(1, torch.tensor(e, dtype=torch.float32)).numpy()
    logit, unit = e @ w + b, w / np.linalg.norm(w)
    eps = (log(target / (1 - target)) - logit) / np.linalg.norm(w)
    eps = np.maximum(0, eps) if direction == "up" else np.minimum(0, eps)
    np.testing.assert_allclose(shift, eps[:, None] * unit, atol=1e-4)
    assert (eps == 0).any() and (eps != 0).any() and (shift[eps == 0] == 0).all()


def test_no_shorter_push_reaches_the_target(probes):
    steer = ConVA(probes(), VALUE, target=0.99, layers=[1])
    w, b = (part.double().numpy() for part in steer.plane(1, CPU))
    for e in states(len(w), rows=5).double().numpy():
        short = {"type": "ineq", "fun": lambda d, e=e: w @ (e + d) + b - log(99), "jac": lambda d: w}
        best = minimize(lambda d: d @ d, np.zeros(len(w)), jac=lambda d: 2 * d, method="SLSQP", constraints=[short])
        shift = steer.shift(1, torch.from_numpy(e).float()[None])[0].numpy()
        assert best.success and np.linalg.norm(shift) > 0
        np.testing.assert_allclose(shift, best.x, atol=1e-4)


@pytest.mark.parametrize("scope", ["all", "token"])
def test_a_ceiling_is_met_where_it_was_exceeded(scope, tiny_model, probes):
    model = tiny_model()
    steer = ConVA(probes(), VALUE, target=0.05, layers=[0, 1, 2], direction="down", scope=scope)
    _, trace = generate(model, PROMPTS, steer=steer, max_new_tokens=5, return_trace=True)
    met = trace if scope == "token" else trace.groupby(["row", "layer"]).head(1)
    np.testing.assert_allclose(met["p_after"], np.minimum(met["p_before"], 0.05), atol=1e-5)
    assert ((met["eps"] > 0) == (met["p_before"] > 0.05)).all() and (met["eps"] > 0).any()


# -- the released code, one forward pass per layer -----------------------------------------------------------


def released(model, prompt: str, probes: Probes, value: str, target: float, layers: list[int], new_tokens: int):
    """Literally: eps of a layer from a forward pass of its own, in which all earlier layers' shifts stand already, at
    the last token of the templated prompt; then greedy answers with every shift at every token. (tokens, eps, logits)
    """
    ids = model.encode([prompt], chat=True)[0]
    shifts: dict[int, torch.Tensor] = {}
    seen: dict[int, torch.Tensor] = {}

    def run(tokens):
        def hook(layer):
            def edit(_module, _inputs, output):
                hidden = residual(output)
                seen[layer] = hidden[0, -1].double()
                if layer not in shifts:
                    return None
                hidden = hidden + shifts[layer]
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            return edit

        with ExitStack() as hooks, torch.no_grad():
            for layer, block in enumerate(model.blocks):
                hooks.callback(block.register_forward_hook(hook(layer)).remove)
            return model.twin(torch.tensor([tokens]), use_cache=False).logits[0, -1]

    lengths = {}
    for layer in layers:
        run(ids)
        w = torch.from_numpy(probes.weight.sel(value=value, layer=layer).values).double()
        b = float(probes.bias.sel(value=value, layer=layer))
        lengths[layer] = max(0.0, (log(target / (1 - target)) - float(w @ seen[layer]) - b) / float(w.norm()))
        shifts[layer] = (lengths[layer] * w / w.norm()).float()
    answer, logits = [], []
    for _ in range(new_tokens):
        logits.append(run([*ids, *answer]))
        answer.append(int(logits[-1].argmax()))
    return answer, lengths, torch.stack(logits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "craftgpt"])
def test_it_is_the_released_code_in_one_pass(family, request, tiny_model, probes):
    model = request.getfixturevalue("craftgpt") if family == "craftgpt" else tiny_model(family)
    fitted = fit_probes(model, pairs(), folds=3) if family == "craftgpt" else probes(family)
    layers = list(range(model.n_layers))
    steer = ConVA(fitted, VALUE, target=0.9999, layers=layers)
    for prompt in PROMPTS:
        answer, lengths, logits = released(model, prompt, fitted, VALUE, 0.9999, layers, new_tokens=4)
        assert sum(eps > 0 for eps in lengths.values()) > 1, "else nothing is compared"
        ids = model.encode([prompt], chat=True)[0]
        with steer.on(model, trace=True, prompt_lengths=[len(ids)]) as run, torch.no_grad():
            ours = model.twin(torch.tensor([[*ids, *answer[:-1]]])).logits[0, len(ids) - 1 :]
        scale = float(logits.abs().max())
        torch.testing.assert_close(ours, logits, atol=1e-5 * scale, rtol=0)
        for layer, eps in lengths.items():
            np.testing.assert_allclose(run.trace.loc[run.trace["layer"] == layer, "eps"], eps, rtol=1e-4, atol=1e-5)
        until = next((k + 1 for k, token in enumerate(answer) if token in model.eos_ids), 4)
        assert generate(model, [prompt], steer=steer, max_new_tokens=4) == [model.decode(answer[:until])]


# -- several values ------------------------------------------------------------------------------------------


def least(A: np.ndarray, g: np.ndarray) -> np.ndarray:
    """argmin |d| subject to A d >= g (Lawson and Hanson 1974, chapter 23: least distance by NNLS)."""
    u, _ = nnls(np.vstack([A.T, g]), np.r_[np.zeros(A.shape[1]), 1.0], maxiter=1000)
    r = np.vstack([A.T, g]) @ u - np.r_[np.zeros(A.shape[1]), 1.0]
    return -r[:-1] / r[-1]


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 10), st.integers(0, 10**6), st.floats(0, 0.95))
def test_the_shortest_way_satisfies_its_kkt_conditions(k, seed, shared):
    rng = np.random.default_rng(seed)
    push = rng.normal(size=(k, k + rng.integers(0, 8)))
    push = (1 - shared) * push + shared * rng.normal(size=push.shape[1]) * rng.choice([1, -1], (k, 1))
    push /= np.linalg.norm(push, axis=1, keepdims=True)
    gap = 10 ** rng.uniform(-2, 2) * rng.normal(size=(7, k)) + rng.choice([-1, 0, 1])
    faces = Faces(torch.from_numpy(push), torch.zeros(k).double(), CPU)
    far = faces.shortest(torch.from_numpy(gap)).numpy()
    shift = far @ push
    slack = shift @ push.T - gap
    tight = 1e-7 * (1 + np.abs(far).max())
    assert (far >= 0).all(), "dual feasible: nothing is pushed backwards"
    assert (slack >= -tight).all(), "primal feasible: all targets are met"
    assert (np.abs(far * slack) <= tight * (1 + np.abs(far))).all(), "complementary: no push where none is needed"
    for own, g in zip(shift, gap, strict=True):
        if (g <= 0).all():
            assert not own.any(), "inside all: bit-exact zeros"
        elif np.linalg.norm(own) < 1e3:  # the reference loses digits as the square of the length
            np.testing.assert_allclose(own, least(push, g), atol=1e-6 * (1 + np.abs(own).max()))


def test_meeting_all_exactly_is_longer():
    """The trap: the inverse with all constraints active."""
    push, gap = np.array([[1.0, 0.0], [0.8, 0.6]]), np.array([[1.75, 0.1]])
    exact = np.linalg.norm(np.linalg.solve(push @ push.T, gap[0]) @ push)
    shift = Faces(torch.from_numpy(push), torch.zeros(2).double(), CPU).shortest(torch.from_numpy(gap)).numpy() @ push
    assert np.linalg.norm(shift) == pytest.approx(1.75) and exact > 2.5


def test_several_targets_are_met_by_the_shortest_shift(probes):
    steer = ConVA(probes(), BOTH, layers=[1])
    assert steer.direction == ("up", "down")
    w, b = (part.double().numpy() for part in steer.planes(1, CPU))
    e = states(w.shape[1], scale=2.0)
    shift = steer.shift(1, e)
    before, after = (steer.probabilities(1, x).numpy() for x in (e, e + shift))
    assert (after[:, 0] >= 0.99 - 1e-5).all() and (after[:, 1] <= 0.05 + 1e-5).all()
    met = (before[:, 0] >= 0.99) & (before[:, 1] <= 0.05)
    assert met.any() and not met.all() and (shift[met] == 0).all() and (shift[~met] != 0).any(-1).all()
    sign, bound = np.array([1, -1]), np.array([log(99), log(0.05 / 0.95)])
    for x, own in list(zip(e.double().numpy(), shift.numpy(), strict=True))[:12]:
        short = {"type": "ineq", "fun": lambda d, x=x: sign * (w @ (x + d) + b - bound),
                 "jac": lambda d: sign[:, None] * w}  # fmt: skip
        best = minimize(lambda d: d @ d, np.zeros(len(x)), jac=lambda d: 2 * d, method="SLSQP", constraints=[short])
        np.testing.assert_allclose(own, best.x, atol=1e-4)
    one, other = (ConVA(probes(), value, target=target, layers=[1], direction=way).shift(1, e)
                  for (value, target), way in zip(BOTH.items(), ("up", "down"), strict=True))  # fmt: skip
    longest = torch.maximum(one.norm(dim=1), other.norm(dim=1))
    assert (shift.norm(dim=1) >= longest - 1e-4).all() and (shift.norm(dim=1) > longest + 1e-3).any()
    alone = torch.stack([steer.shift(1, x) for x in e])
    torch.testing.assert_close(alone, shift)
    torch.testing.assert_close(steer.shift(1, e.reshape(3, 20, -1)), shift.reshape(3, 20, -1))


@pytest.mark.parametrize("scope", ["all", "token"])
def test_several_targets_are_met_inside_the_model(scope, tiny_model, probes):
    model, layers = tiny_model(), [0, 1, 2]
    steer = ConVA(probes(), BOTH, layers=layers, scope=scope)
    seen: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    with steer.on(model), ExitStack() as hooks:
        for layer in layers:
            keep = model.blocks[layer].register_forward_hook(
                lambda _m, _i, output, layer=layer: seen[layer].append(residual(output)[0, -1]))
            hooks.callback(keep.remove)
        generate_with_cache(model, PROMPTS[1], 5)
    for layer, steps in seen.items():
        p = steer.probabilities(layer, torch.stack(steps)).numpy()
        read = p if scope == "token" else p[:1]
        assert (read[:, 0] >= 0.99 - 1e-4).all() and (read[:, 1] <= 0.05 + 1e-4).all(), layer


def generate_with_cache(model, prompt: str, new_tokens: int) -> None:
    step, cache = torch.tensor(model.encode([prompt], chat=True)), None
    with torch.no_grad():
        for _ in range(new_tokens):
            out = model.twin(step, past_key_values=cache, use_cache=True)
            cache, step = out.past_key_values, out.logits[:, -1:].argmax(-1)


def test_directions_of_several(probes):
    at = {"layers": [1]}
    assert ConVA(probes(), {"security": 0.4, "power": 0.6}, **at).direction == ("down", "up")
    assert ConVA(probes(), {"security": 0.4, "power": 0.6}, direction="up", **at).direction == ("up", "up")
    mixed = ConVA(probes(), ["security", "power"], target=0.7, direction=["up", "down"], **at)
    assert mixed.target == (0.7, 0.7) and mixed.direction == ("up", "down")
    assert ConVA(probes(), VALUE, target=0.1, **at).direction == "up", "of one value the target is a floor"
    one = ConVA(probes(), {VALUE: 0.9}, **at)
    assert (one.value, one.target, one.direction) == (VALUE, 0.9, "up")
    e = states(32)
    assert torch.equal(one.shift(1, e), ConVA(probes(), VALUE, target=0.9, **at).shift(1, e))


def test_nan_is_not_taken_for_met(probes):
    e = torch.full((2, 32), float("nan"))
    for steer in (ConVA(probes(), VALUE, layers=[1]), ConVA(probes(), BOTH, layers=[1])):
        assert steer.shift(1, e).isnan().all()


# -- caps ----------------------------------------------------------------------------------------------------


def test_values_that_pull_apart_are_named():
    fitted = planted(cosine=0.98)
    norms = tuple(float(np.median(np.linalg.norm(fitted.activations.acts.sel(layer=layer).values, axis=-1)))
                  for layer in (0, 2))  # fmt: skip
    e = states(12)
    free = ConVA(fitted, {"power": 0.99, "security": 0.01}, layers=[0, 2])
    longest = float(free.shift(2, e).norm(dim=1).max()) / norms[1]
    assert longest > 2, "up and down along nearly one line is far"
    capped = replace(free, max_norm=1.5)
    assert capped.norms == pytest.approx(norms)
    with pytest.raises(WorkbenchError) as told:
        capped.shift(2, e)
    message = str(told.value)
    assert f"a shift of {longest:.3g} median residual norms" in message and "max_norm=1.5" in message
    assert re.search(r"power up and security down pull against each other \(cosine of their pushes -0\.[789]", message)
    assert torch.equal(replace(free, max_norm=longest * 1.01).shift(2, e), free.shift(2, e))
    near = replace(free, max_norm=longest * 0.99)
    with pytest.raises(WorkbenchError, match="max_norm"):
        near.shift(2, e)
    single = ConVA(fitted, "power", target=0.9999, layers=[2], max_norm=0.01)
    with pytest.raises(WorkbenchError, match="Found: a shift of [0-9.]+ median residual norms\nAllowed: max_norm=0.01"):
        single.shift(2, e)


def test_a_cap_says_nothing_of_rows_whose_gate_is_shut(tiny_model, probes):
    model = tiny_model()
    capped = ConVA(probes(), VALUE, target=0.9999, layers=[1], max_norm=1e-6, norms=[1.0])
    with pytest.raises(WorkbenchError, match="max_norm"):
        generate(model, ["Should Mira sell?"], steer=capped, max_new_tokens=2)
    shut = replace(capped, gate=Never())
    assert generate(model, ["Should Mira sell?"], steer=shut, max_new_tokens=2) == generate(
        model, ["Should Mira sell?"], max_new_tokens=2)  # fmt: skip


def test_of_several_values_the_two_at_work_are_named():
    fitted = planted(cosine=0.98, values=("power", "security", "conformity"))
    steer = ConVA(fitted, {"power": 0.99, "security": 0.01, "conformity": 0.99}, layers=[1], max_norm=1.0)
    with pytest.raises(WorkbenchError, match="power up and security down pull"):
        steer.shift(1, states(12))
    pushing = torch.tensor([[False, True, True], [True, True, False], [True, False, True], [False, True, False]])
    ways = torch.tensor([[1.0, 0.0], [-0.6, 0.8], [0.6, -0.8]]).double()  # the last two are opposite
    faces = Faces(ways, torch.zeros(3).double(), CPU)
    told = ["security down and conformity up pull.* -1.000", "power up and security down pull.* -0.600",
            "power up and conformity up alone", "security down alone"]  # fmt: skip
    for worst, names in enumerate(told):
        assert re.match(names, steer._opposed(faces, pushing, torch.eye(4)[worst]))


def test_a_cap_needs_norms(tmp_path, probes):
    read = Probes.load(probes().save(tmp_path / "probes"))
    with pytest.raises(WorkbenchError, match="without the activations.*\n.*norms="):
        ConVA(read, VALUE, layers=[1], max_norm=2.0)
    assert ConVA(read, VALUE, layers=[0, 1], max_norm=2.0, norms=[3.0, 4.0]).norms == (3.0, 4.0)
    with pytest.raises(WorkbenchError, match="3 norms was asked for.\nAllowed: one, or 2"):
        ConVA(read, VALUE, layers=[0, 1], max_norm=2.0, norms=[3.0, 4.0, 5.0])
    with pytest.raises(WorkbenchError, match="at most -1.0 median.*\nAllowed: above 0"):
        ConVA(probes(), VALUE, layers=[1], max_norm=-1.0, norms=[1.0])


def test_targets_that_contradict_each_other_are_refused():
    """Two values with one and the same probe: above .9 and below .1 is nowhere."""
    fitted = planted(cosine=0.5)
    same = replace(fitted, weight=fitted.weight.copy(data=fitted.weight.values[[0, 0]]),
                   bias=fitted.bias.copy(data=fitted.bias.values[[0, 0]]))  # fmt: skip
    with pytest.raises(WorkbenchError, match="no shift meets together: power up and security down .*-1.000"):
        ConVA(same, {"power": 0.9, "security": 0.1}, layers=[1]).shift(1, states(12))
    together = ConVA(same, {"power": 0.9, "security": 0.6}, layers=[1]).shift(1, states(12))
    torch.testing.assert_close(together, ConVA(same, "power", target=0.9, layers=[1]).shift(1, states(12)))


# -- an angle ------------------------------------------------------------------------------------------------


def spread(fitted: Probes, value: str, layer: int) -> float:
    table = fitted.examples.assign(logit=fitted.held_out.sel(layer=layer).values)
    own = table[table["value"] == value]
    inside = [group["logit"].to_numpy() for _, group in own.groupby("positive")]
    return float(np.sqrt(sum(((x - x.mean()) ** 2).sum() for x in inside) / (sum(map(len, inside)) - 2)))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_blend_has_a_probe_of_its_own(share, probes):
    i, j = VALUES.index("power"), VALUES.index("security")
    assert abs(i - j) == 1, "neighbours"
    angle = (1 - share) * angles()[i] + share * angles()[j]
    steer = ConVA(probes(), angle=angle, target=0.9, layers=[0, 1])
    w, b = (np.zeros(32), 0.0)
    for value, a in (("power", 1 - share), ("security", share)):
        s = spread(probes(), value, 1)
        w = w + a * probes().weight.sel(value=value, layer=1).values / s
        b += a * float(probes().bias.sel(value=value, layer=1)) / s
    ours = steer.plane(1, CPU)
    np.testing.assert_allclose(ours[0], w, rtol=1e-5, atol=1e-6)
    assert float(ours[1]) == pytest.approx(b, rel=1e-5)
    e = states(32)
    after = steer.probability(1, e + steer.shift(1, e)).numpy()
    np.testing.assert_allclose(after, np.maximum(steer.probability(1, e).numpy(), 0.9), atol=1e-5)
    direction = ValueVectors(probes().weight).array.sel(layer=1)
    if share in (0.0, 1.0):  # the value's own direction, another P
        own = direction.sel(value=("power", "security")[int(share)]).values
        assert float(ours[0] @ torch.from_numpy(own).float() / ours[0].norm() / np.linalg.norm(own)) == pytest.approx(1)


def test_two_values_enclose_an_angle():
    for turn in (0.0, 2 * np.pi, -2 * np.pi):
        for k, value in enumerate(VALUES):
            here, there = angles()[k], angles()[k] + 2 * np.pi / 10
            assert enclosing(here + turn) == pytest.approx({value: 1.0}, abs=1e-6)
            shares = enclosing(0.7 * here + 0.3 * there + turn)
            assert shares == pytest.approx({value: 0.7, VALUES[(k + 1) % 10]: 0.3}, abs=1e-6)


# -- files, bad input ----------------------------------------------------------------------------------------


def test_files_of_several_and_of_angles(tmp_path, tiny_model, probes, gate):
    model = tiny_model()
    middle = float(angles()[[VALUES.index("power"), VALUES.index("security")]].mean())
    for steer in (
        ConVA(probes(), BOTH, layers=[0, 2], max_norm=50.0, gate=gate()),
        ConVA(probes(), angle=middle, direction="down", target=0.2, layers=[1]),
        ConVA(probes(), VALUE, target=0.999, layers=[1], scope="generated", window=(0, 2)),
    ):
        again = Intervention.load(steer.save(tmp_path / "steer.safetensors"), model)
        assert isinstance(again, ConVA) and repr(again) == repr(steer)
        assert (again.window, again.norms) == (steer.window, steer.norms)
        one, other = (generate(model, PROMPTS, steer=each, max_new_tokens=4) for each in (steer, again))
        assert one == other
        e = states(32)
        assert torch.equal(again.shift(steer.layers[0], e), steer.shift(steer.layers[0], e))
    assert "angle" not in repr(ConVA(probes(), VALUE, layers=[1])), "what is left open is not told"


def test_bad_input(probes):
    for settings_, message in (
        ({"value": None}, "ConVA of no value was asked for"),
        ({"value": []}, "ConVA of no value"),
        ({"value": [VALUE, VALUE]}, "one to ten different values"),
        ({"value": {VALUE: 0.9, "virtue": 0.9}}, "'virtue'"),
        ({"value": {VALUE: 0.9, "power": 1.0}}, "target probability of 1.0"),
        ({"value": [VALUE, "power"], "target": [0.9, 0.8, 0.7]}, "3 targets.*\nAllowed: one, or 2"),
        ({"value": {VALUE: 0.9, "power": 0.8}, "target": 0.7}, "with target 0.7.*\nAllowed: a target with each value"),
        ({"value": None, "angle": float("nan")}, "at nan°.*\nAllowed: a value, or an angle in radians"),
        ({"direction": "sideways"}, "direction 'sideways'"),
        ({"value": [VALUE, "power"], "direction": ["up"]}, "1 directions"),
        ({"angle": 0.1}, "security at .*\nAllowed: a value, or an angle"),
        ({"target": 0.0}, "target probability of 0.0"),
        ({"layers": [7]}, "layers \\[7\\]"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            ConVA(probes(), **{"value": VALUE, "layers": [1], **settings_})
    with pytest.raises(WorkbenchError, match="Probes of 'self-direction', 'universalism' were"):
        ConVA(probes(), angle=float(angles()[VALUES.index("universalism")]) + 0.1, layers=[1])
