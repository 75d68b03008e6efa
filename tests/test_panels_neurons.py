# ruff: noqa: F811
"""The neuron explorer without a screen: what it reads step by step, chooses, shows and scales."""

import asyncio
import html
import json
import re
from dataclasses import replace
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
import torch
from panelled import HOSTILE, drawn, in_a_loop, inside, until
from test_neurons import NORMED, fitted, some_pairs  # noqa: F401

from workbench.activations import capture
from workbench.errors import WorkbenchError
from workbench.figures.neurons import neuron_map, neuron_overlaps, neuron_responses
from workbench.generate import generate
from workbench.neurons import Neurons, neuron_contrasts, overlaps, random_neurons, select_neurons, write_weights
from workbench.panels.neuron_explorer import NeuronExplorer, neuron_explorer
from workbench.panels.states.neurons import NeuronState
from workbench.panels.states.reading import MOST, Reading
from workbench.probes import fit_probes
from workbench.steering.conva import ConVA
from workbench.steering.dpnle import DPNLE
from workbench.steering.scale_neurons import ScaleNeurons

PROMPT = "Should Mira sell the old house or start a bakery?"
LOW: dict[str, Any] = {"share": 0.1, "min_d": 0.01, "selective": False}  # bars that tiny models pass


@pytest.fixture
def model(tiny_model):
    return tiny_model()


@pytest.fixture
def panel(model, fitted) -> Any:
    panel = neuron_explorer(model, fitted()[0], some_pairs(), value="power", prompt=PROMPT, max_new_tokens=6, **LOW)
    assert (panel.problem.value, panel.ending) == ("", "done")
    yield panel
    assert not model.active, "the panel left the model steered"


def said(plot) -> str:
    """All that a figure says, its JSON's own escapes undone."""
    return json.dumps(drawn(plot), ensure_ascii=False)


def marks(figure: dict[str, Any]) -> list[tuple[int, int]]:
    """(layer, neuron) of the marks of a map."""
    return [tuple(own) for own in figure["data"][0]["customdata"]]


def of(state: NeuronState) -> Neurons:
    assert state.neurons is not None
    return state.neurons


# --- reading ---


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_reading_step_by_step_is_neuron_contrasts(family, tiny_model, fitted, monkeypatch):
    model, (_, expected) = tiny_model(family), fitted(family)
    found = []
    for seconds in (1e-9, 9.0):  # a text at a time, and more and more
        monkeypatch.setattr("workbench.panels.states.reading.STEP", seconds)
        reading = Reading(model, some_pairs(), [0, 1, 2])
        shares = list(reading.steps())
        assert shares == sorted(shares) and shares[-1] == 1.0 and reading.complete
        found.append(len(shares))
        assert reading.contrasts is not None and reading.contrasts.attrs == expected.attrs
        for name, array in expected.items():
            np.testing.assert_allclose(reading.contrasts[name], array, rtol=1e-4, atol=1e-4, err_msg=str(name))
    assert found[0] > found[1]


def test_texts_of_highest_and_lowest_activation(model):
    pairs = some_pairs()
    reading = Reading(model, pairs, [1, 2], contrasts=False)
    for _ in reading.steps():
        pass
    assert reading.contrasts is None
    texts = sorted({*pairs["positive"], *pairs["negative"]})
    a = capture(model, texts, [2], "mlp.hook_post").values[0, :, 40]
    order = np.argsort(-a)
    table = reading.table(2, 40)
    assert table["text"].tolist() == [texts[k] for k in [*order[:MOST], *order[-MOST:]]]
    np.testing.assert_allclose(table["activation"], a[[*order[:MOST], *order[-MOST:]]], atol=1e-5)
    shared = "He helped the house."  # the negative of all four values
    assert {*reading._of(shared).split("; ")} == {f"{value}, negative" for value in pairs["value"]}


def test_few_texts_are_listed_once(model):
    pairs = some_pairs().query("value == 'power'").head(2)
    reading = Reading(model, pairs, [0], contrasts=False)
    assert len([*reading.steps()]) and len(reading.table(0, 3)) == 4


def test_a_repeated_text_counts_as_often(model):
    again = some_pairs().query("value == 'power'").assign(negative="Mira wants to lead the team.")
    pairs = pd.concat([some_pairs(), again])
    expected, reading = neuron_contrasts(model, pairs, [1]), Reading(model, pairs, [1])
    for _ in reading.steps():
        pass
    assert reading.contrasts is not None
    np.testing.assert_allclose(reading.contrasts["d"], expected["d"], rtol=1e-3, atol=1e-4)


# --- state ---


@pytest.mark.parametrize(
    ("setting", "wrong", "said"),
    [
        ("value", "Power", "Did you mean 'power'"),
        ("share", 0.0, "A share of 0.0 was asked for.\nAllowed: above 0 and up to 1"),
        ("min_d", -1.0, "A min d of -1.0 was asked for.\nAllowed: 0 or more"),
        ("min_d", float("nan"), "A min d of nan was asked for."),
        ("picked", (0, 9999), "The neuron (0, 9999) was asked for."),
    ],
)
def test_wrong_settings_are_refused_and_change_nothing(model, fitted, setting, wrong, said):
    state = NeuronState(model, *fitted(), **LOW).complete()
    before = state.settings
    with pytest.raises(WorkbenchError) as error:
        setattr(state, setting, wrong)
    assert said in str(error.value) and state.settings == before


@pytest.mark.parametrize(
    ("setting", "wrong", "said"),
    [
        ("target", "all", "The target 'all' was asked for.\nAllowed: 'neuron', 'set', 'random'"),
        ("scope", "generated", "The scope 'generated' was asked for.\nAllowed: 'all', 'token'"),
        ("factor", float("inf"), "A factor of inf was asked for.\nAllowed: a finite number"),
        ("seed", -1, "A seed of -1 was asked for.\nAllowed: 0 or more"),
        ("max_new_tokens", 0, "A max new tokens of 0 was asked for.\nAllowed: 1 or more"),
        ("prompt", "\ud800", "Found: half a character"),
    ],
)
def test_wrong_settings_of_the_edit_are_refused(model, fitted, setting, wrong, said):
    state = NeuronState(model, *fitted(), **LOW).complete()
    before = state.edit.settings
    with pytest.raises(WorkbenchError) as error:
        setattr(state.edit, setting, wrong)
    assert said in str(error.value) and state.edit.settings == before


def test_what_does_not_belong_together_is_refused_at_once(model, tiny_model, fitted):
    probes, contrasts = fitted()
    bare = replace(probes, activations=None)
    other = select_neurons(tiny_model("qwen2"), fitted("qwen2")[1], fitted("qwen2")[0], "power", [1], **LOW)
    for make, said in (
        (lambda: neuron_explorer(model, probes, colour=1), "Settings colour were asked for.\nAllowed: value, share"),
        (lambda: neuron_explorer(tiny_model("qwen2"), probes), "were to be used with qwen2"),
        (lambda: neuron_explorer(model, probes, fitted("qwen2")[1]), "Contrasts of neurons of qwen2"),
        (lambda: neuron_explorer(model, probes, sets={"power": other}), "Neurons of qwen2"),
        (lambda: neuron_explorer(model, bare), "neither pairs of texts nor sets of neurons"),
        (lambda: neuron_explorer(model, fit_probes(model, some_pairs(), layers=[0, 1], folds=2), layers=[0, 2]),
         r"no probes at \[2\]"),
        (lambda: neuron_explorer(model, probes, some_pairs().assign(value="hedonism")), "no value with pairs of texts"),
        (lambda: neuron_explorer(model, probes, contrasts, value="hedonism"), "The value 'hedonism'"),
    ):  # fmt: skip
        with pytest.raises(WorkbenchError, match=f"(?s){said}"):
            make()


def test_the_sets_are_those_of_select_neurons(model, fitted):
    probes, contrasts = fitted()
    state = NeuronState(model, probes, contrasts, value="security", layers=[0, 2], **LOW)
    assert state.neurons is None and state.step(ahead=False)
    expected = select_neurons(model, contrasts, probes, layers=[0, 2], **LOW)
    pd.testing.assert_frame_equal(of(state).chosen, expected["security"].chosen)
    assert list(state.selection.sets) == ["security"], "the value shown comes first"
    first = expected["security"].table().iloc[0]
    assert state.picked == (first["layer"], first["neuron"])
    shared = state.complete().overlaps
    assert shared is not None
    pd.testing.assert_frame_equal(shared, overlaps(expected))
    kept = of(state)
    state.selective = True
    assert state.neurons is None
    again = select_neurons(model, contrasts, probes, "security", [0, 2], 0.1, 0.01, True)
    pd.testing.assert_frame_equal(of(state.complete()).chosen, again.chosen)
    state.selective = False
    assert of(state) is kept, "a selection just left is chosen anew"


def test_pairs_are_read_first_and_only_once(model, fitted, monkeypatch):
    probes, contrasts = fitted()
    state = NeuronState(model, probes, value="power", **LOW)
    told = set()
    state.observe(lambda change: told.add(change["new"]), "progress")
    state.complete()
    assert state.contrasts is not None and state.progress == ""
    assert {"100% of 60 texts read"} <= told
    np.testing.assert_allclose(state.contrasts["d"], contrasts["d"], rtol=1e-3, atol=1e-4)
    monkeypatch.setattr("workbench.panels.states.reading.capture", None)
    state.value, state.min_d = "security", 0.2
    texts = state.complete().texts
    assert texts is not None and len(texts) == 2 * MOST


def test_the_neuron_under_the_glass(model, fitted):
    probes, contrasts = fitted()
    state = NeuronState(model, probes, contrasts, value="power", **LOW).complete()
    layer, neuron = map(int, of(state).table().iloc[3][["layer", "neuron"]])
    state.picked = (layer, neuron)
    row, tokens, texts, d = state.complete().row, state.tokens, state.texts, state.responses
    assert row is not None and tokens is not None and texts is not None and d is not None
    weight: Any = model.twin.get_output_embeddings().weight
    effect = (weight @ write_weights(model, layer)[neuron]).detach()
    order = effect.argsort(descending=True)
    assert tokens["token"].tolist() == [model.tokenizer.decode([int(k)]) for k in [*order[:8], *order[-8:]]]
    np.testing.assert_allclose(tokens["effect"], effect[torch.cat([order[:8], order[-8:]])], atol=1e-5)
    np.testing.assert_allclose(d, contrasts["d"].sel(layer=layer).values[:, neuron])
    best = texts["text"].iloc[0]
    a = capture(model, [best], [layer], "mlp.hook_post").values[0, 0, neuron]
    assert a == pytest.approx(texts["activation"].iloc[0], abs=1e-5)
    state.value = "security"
    first = of(state).table().iloc[0]
    assert state.picked == (first["layer"], first["neuron"])
    assert NeuronState(model, probes, contrasts, value="power", picked=(layer, neuron), **LOW).complete().picked == (
        layer, neuron
    )  # fmt: skip


def test_where_no_neuron_passes_it_is_told_and_the_bar_can_be_lowered(model, fitted):
    probes, contrasts = fitted()
    state = NeuronState(model, probes, contrasts, value="power", share=0.1, min_d=50.0).complete()
    assert state.neurons is None and state.picked == () and state.overlaps is None and state.tried
    assert "Found: none that fits the rule" in state.refusal
    d = np.abs(contrasts["d"].sel(value="power").values)
    assert state.largest is not None
    assert state.largest[0] == pytest.approx(d.max()) and d[state.largest[1:]] == d.max()
    with pytest.raises(WorkbenchError, match="Neurons were to be scaled.\nFound: none chosen"):
        state.edit.steer()
    state.edit.look()
    assert state.edit.words is None
    state.min_d = 0.0
    assert len(of(state.complete())) > 0 and state.refusal == ""


def test_sets_of_any_rule_can_be_looked_at(tiny_model, fitted):
    """Also where a norm follows the MLP, though nothing can be selected there."""
    model, (probes, contrasts) = tiny_model("gemma2"), fitted("gemma2")
    sets = {value: DPNLE.select(model, contrasts, value, quantile=0.9, min_d=0.1) for value in ("power", "security")}
    panel = neuron_explorer(model, probes, contrasts, sets, prompt=PROMPT, max_new_tokens=3)
    assert panel.problem.value == "" and panel.state.rule is None and "share" not in panel.controls
    assert {*marks(drawn(panel.map))} == {*map(tuple, sets["power"].chosen[["layer", "neuron"]].to_numpy().tolist())}
    assert "a norm follows the MLP" in panel.card.value and "mean difference" in panel.card.value
    table = overlaps(sets).iloc[0]
    number = f"{table['jaccard']:.2f}".replace("0.", ".")
    assert (f"<b>{number}</b>" if table["p"] <= 0.05 else f'"{number}"') in said(panel.shared)
    panel.run()
    assert panel.speaking == "done"


@pytest.mark.parametrize("family", NORMED)
def test_models_with_a_norm_after_the_mlp_say_so_inside(family, tiny_model, fitted):
    panel = neuron_explorer(tiny_model(family), fitted(family)[0], fitted(family)[1])
    assert panel.problem.value == "" and panel.ending == "done"
    assert "mlp_out differs from W_out a" in panel.status.value and 'role="alert"' in panel.status.value
    assert "see below" in said(panel.map) and panel.neuron.disabled
    panel.run()
    assert panel.speaking == "failed" and "none chosen" in panel.problem.value


# --- ablate or amplify ---


@pytest.mark.parametrize(("target", "scope"), [("set", "all"), ("neuron", "token"), ("random", "all")])
def test_answers_are_those_of_scale_neurons(model, fitted, target, scope):
    probes, contrasts = fitted()
    state = NeuronState(model, probes, contrasts, value="power", **LOW, target=target, scope=scope, factor=9.0,
                        prompt=PROMPT, seed=4, temperature=0.8, max_new_tokens=7).complete()  # fmt: skip
    chosen = of(state)
    wanted = {"set": chosen, "random": random_neurons(model, chosen, 4)}.get(target)
    if wanted is None:
        row = chosen.table().iloc[0]
        wanted = replace(chosen, chosen=chosen.chosen.query("layer == @row.layer and neuron == @row.neuron"), writes=
                         write_weights(model, int(row["layer"])).numpy()[[int(row["neuron"])]])  # fmt: skip
    steer = ScaleNeurons(wanted, 9.0, scope=scope)
    for _ in state.edit.speak():
        pass
    same: dict[str, Any] = dict(seed=4, temperature=0.8, max_new_tokens=7)
    assert [state.edit.base] == generate(model, [PROMPT], **same)
    assert [state.edit.edited] == generate(model, [PROMPT], steer=steer, **same)
    assert state.edit.asked == state.edit.settings and len(state.edit.settings["neurons"]) == len(wanted)


def test_the_preview_is_the_next_token(model, fitted):
    probes, contrasts = fitted()
    state = NeuronState(model, probes, contrasts, value="power", **LOW, factor=6.0, prompt=PROMPT).complete()
    edit, ids = state.edit, torch.tensor(model.encode([PROMPT], chat=True))
    edit.look()
    with torch.no_grad():
        base = model.twin(ids).logits[0, -1].log_softmax(-1)
        with edit.steer().on(model):
            edited = model.twin(ids).logits[0, -1].log_softmax(-1)
    assert edit.words is not None and len(edit.words) == 8
    for row in edit.words.itertuples():
        places = [k for k in range(len(base)) if model.tokenizer.decode([k]) == row.token]
        assert any(abs(float(base[k].exp()) - float(row.base)) < 1e-5 and  # type: ignore[arg-type]
                   abs(float(edited[k].exp()) - float(row.edited)) < 1e-5 for k in places)  # type: ignore[arg-type]
    assert edit.kl == pytest.approx(float((edited.exp() * (edited - base)).sum()), rel=1e-3) and edit.kl > 1e-4
    edit.factor = 1.0
    edit.look()
    assert edit.kl == 0.0 and (edit.words["base"] == edit.words["edited"]).all()
    told = "without steering was asked for"
    with ConVA(probes, "power", layers=[0]).on(model), pytest.raises(WorkbenchError, match=told):
        edit.look()


# --- panel ---


def test_the_map_shows_the_set_and_a_click_picks(panel, fitted):
    state = panel.state
    figure = drawn(panel.map)
    table = of(state).table()
    assert marks(figure) == [*map(tuple, table[["layer", "neuron"]].to_numpy().tolist())]
    assert f"{len(table)} neurons for power" in figure["layout"]["title"]["text"]
    shares = [text for trace in figure["data"] if trace["type"] == "bar" for text in trace["text"]]
    carried: Any = of(state).share
    assert shares == [f"{share:.1%}" for share in carried.values]
    layer, neuron = marks(figure)[5]
    panel.map.clicked = {"trace": 0, "point": 5, "data": [layer, neuron], "at": 1.0}
    assert state.picked == (layer, neuron) == panel.neuron.value
    for text in (panel.card.value, panel.listed.value):
        assert f"Layer {layer}, neuron {neuron}" in text
    row = table.iloc[5]
    assert f">{row['s']:.3g}</td>" in panel.card.value and f">{row['d']:.3g}</td>" in panel.card.value
    assert "Direct effect on tokens" in panel.card.value and "the final norm is left out" in panel.card.value
    assert f"neuron {neuron}: which values move it" in said(panel.profile)
    (bars,) = drawn(panel.profile)["data"]
    shown = dict(zip(bars["x"], bars["y"], strict=True))
    assert shown == pytest.approx(fitted()[1]["d"].sel(layer=layer)[:, neuron].to_series().to_dict(), rel=1e-3)
    panel.neuron.value = marks(figure)[0]
    assert state.picked == marks(figure)[0] and f"neuron {state.picked[1]}" in panel.card.value
    panel.shared.clicked = {"trace": 0, "point": 3, "data": "security", "at": 2.0}
    assert state.value == "security" and "neurons for security" in said(panel.map)


def test_reselection_is_live(panel, model, fitted):
    panel.controls["share"].value = 5.0
    panel.controls["min_d"].value = 0.3
    panel.controls["selective"].value = True
    rule = (panel.state.share, panel.state.min_d, panel.state.selective)
    assert rule == (0.05, 0.3, True)
    expected = select_neurons(model, fitted()[1], fitted()[0], "power", [0, 1, 2], *rule)
    assert {*marks(drawn(panel.map))} == {*map(tuple, expected.chosen[["layer", "neuron"]].to_numpy().tolist())}
    assert [own for _, own in panel.neuron.options][0] == panel.state.picked
    panel.controls["min_d"].value = 2.0
    panel.state.min_d = 40.0
    assert "none: the largest |d| is" in said(panel.map) and "the bar is at 40" in said(panel.map)
    assert "Found: none that fits the rule" in panel.status.value and "Lower <b>least |d|</b>" in panel.status.value
    assert "No neuron is looked at" in panel.card.value and panel.listed.value == "" and panel.words.value == ""
    assert "fewer than two values have neurons" in said(panel.shared)
    assert panel.controls["min_d"].value == 40.0 and panel.neuron.disabled
    panel.controls["min_d"].value = 0.3
    assert {*marks(drawn(panel.map))} == {*map(tuple, expected.chosen[["layer", "neuron"]].to_numpy().tolist())}
    assert "Lower" not in panel.status.value and panel.problem.value == ""


def test_a_run_shows_both_answers_and_what_was_scaled(panel):
    n = len(of(panel.state))
    panel.go.click()
    assert panel.speaking == "done" and panel.stop.disabled
    assert panel.said.value.count('class="wb-said"') == 2 and f"{n} neurons (the set) ablated" in panel.said.value
    assert html.escape(panel.edit.base.strip()) in panel.said.value
    assert "KL(edited || base)" in panel.words.value and ">done<" in panel.told.value
    panel.controls["factor"].value = 2.5
    assert "settings have changed since" in panel.told.value and panel.edit.factor == 2.5
    panel.controls["target"].value = "neuron"
    panel.go.click()
    layer, neuron = panel.state.picked
    assert f"layer {layer}, neuron {neuron} times 2.5" in panel.said.value
    panel.controls["target"].value, panel.controls["factor"].value = "random", 1.0
    panel.go.click()
    assert "(drawn at random) as they are" in panel.said.value and "Both answers are the same" in panel.said.value


def test_a_prompt_too_long_is_said_and_not_cut(panel):
    panel.state.edit.prompt = "house " * 150
    assert "of 128 tokens" in panel.problem.value and "too long by" in panel.counter.value
    panel.run()
    assert panel.speaking == "failed" and "of 128 tokens" in panel.problem.value
    panel.controls["prompt"].value = PROMPT
    assert panel.problem.value == "" and "next token" in panel.words.value


def test_controls_and_state_follow_each_other_in_two_views(model, fitted):
    state = NeuronState(model, *fitted(), value="power", prompt=PROMPT, max_new_tokens=4, **LOW)
    one, two = NeuronExplorer(state), NeuronExplorer(state)
    one.controls["value"].value, two.controls["factor"].value = "security", -2.0
    state.edit.prompt = "Is it red?"
    state.share = 0.04
    for name, control in one.controls.items():
        assert control.value == two.controls[name].value
    assert one.controls["share"].value == pytest.approx(4.0)
    for name in ("map", "profile", "shared"):
        assert getattr(one, name).figure == getattr(two, name).figure
    one.run()
    assert one.said.value.split("<div class=\"wb-small\">")[0] == two.said.value.split("<div class=\"wb-small\">")[0]
    for name in ("card", "listed", "words", "status"):
        assert getattr(one, name).value == getattr(two, name).value


def test_text_of_models_and_pairs_is_escaped(model):
    pairs = some_pairs().assign(positive=lambda table: table["positive"] + HOSTILE[:60])
    probes = fit_probes(model, pairs, folds=2)
    panel = neuron_explorer(model, probes, value="power", prompt=HOSTILE, max_new_tokens=3, **LOW)
    panel.run()
    panel.edit.base = panel.edit.edited = panel.edit.note = HOSTILE
    panel.edit.words = pd.DataFrame({"token": [HOSTILE], "base": [0.5], "edited": [0.5]})
    panel.state._tokens[panel.state.picked] = pd.DataFrame({"token": [HOSTILE] * 2, "effect": [1.0, -1.0]})
    panel._tell_neuron()
    for text in (panel.listed.value, panel.said.value, panel.words.value, panel.card.value):
        assert "&lt;script&gt;" in text
    panel.edit.prompt = HOSTILE * 20  # now the error quotes it
    assert "&lt;script&gt;" in panel.problem.value
    for widget in inside(panel):
        if isinstance(widget, widgets.HTML):
            assert "<script" not in widget.value and "<img" not in widget.value
    for plot in (panel.map, panel.profile, panel.shared):
        assert "<script" not in said(plot)


# --- figures ---


def test_the_map_of_every_rule(model, fitted):
    probes, contrasts = fitted()
    chosen = select_neurons(model, contrasts, probes, "power", [0, 2], **LOW)
    base = chosen.chosen[["layer", "neuron"]]
    for columns, title in (
        ({"delta": 0.2, "a95": 1.0, "side": 1}, "delta"), ({"difference": 0.5, "d": 1.0}, "mean difference"),
        ({"entropy": 1.2, "side": -1}, "entropy over values (nats)"), ({}, "|W_out|"),
    ):  # fmt: skip
        figure: Any = neuron_map(replace(chosen, chosen=base.assign(**columns), share=None, rule=HOSTILE))
        assert figure.layout.yaxis.title.text == title and len(figure.data[0].x) == len(chosen)
        assert "&lt;script&gt;" in figure.layout.title.subtitle.text and "<script" not in figure.to_json()
        assert ("opposite pole" in figure.layout.title.subtitle.text) == (columns.get("side") == -1)
    figure = neuron_map(chosen, (2, int(chosen.indices[2][0])))
    assert figure.layout.yaxis.type == "log" and len(figure.data[1].x) == 1
    assert [*figure.layout.xaxis2.ticktext] == [f"<b>{k}</b><br>{len(chosen.indices[k])}" for k in (0, 2)]
    x = np.array(figure.data[0].x)
    assert ((x[chosen.table()["layer"] == 2] - 1).__abs__() < 0.5).all(), "layers stand side by side"


def test_responses_frame_the_value_and_show_the_bar():
    figure: Any = neuron_responses({"power": 1.5, "own": -0.2, "tradition": -2.0}, 3, 17, "tradition", 0.8)
    (bars,) = figure.data
    assert [*bars.x] == ["power", "tradition", "own"] and [*bars.y] == [1.5, -2.0, -0.2]
    assert [*bars.marker.line.width] == [0.8, 3, 0.8]
    assert sorted(shape.y0 for shape in figure.layout.shapes) == [-0.8, 0, 0.8]
    assert figure.layout.title.text == "Layer 3, neuron 17: which values move it"
    assert len(neuron_responses({HOSTILE: 1.0}, 0, 0).layout.shapes) == 1  # type: ignore[arg-type]


def test_overlaps_say_what_chance_gives():
    table = pd.DataFrame({"value": ["power", "power", "security"], "other": ["security", "tradition", "tradition"],
                          "shared": [5, 0, 1], "jaccard": [0.5, 0.0, 0.04], "expected": [0.02, 0.02, 0.02],
                          "p": [1e-6, 1.0, 0.03]})  # fmt: skip
    figure: Any = neuron_overlaps(table, "security")
    (trace,) = figure.data
    assert [*trace.x] == ["power", "security", "tradition"] and np.isnan(np.diag(np.array(trace.z, float))).all()
    assert np.array(trace.z, float)[0, 1] == np.array(trace.z, float)[1, 0] == 0.5
    assert [[*row] for row in trace.text] == [["", "<b>.50</b>", "0"], ["<b>.50</b>", "", ".04"], ["0", ".04", ""]]
    assert "5 neurons in both<br>Jaccard 0.500, by chance 0.020" in trace.hovertext[0][1]
    assert (figure.layout.shapes[0].y0, figure.layout.shapes[0].y1) == (0.5, 1.5)


# --- in an event loop, as in a kernel ---


def test_answers_stream_while_neurons_are_looked_at_and_can_be_cancelled(model, fitted):
    async def steps():
        panel = neuron_explorer(model, *fitted(), value="power", prompt=PROMPT, max_new_tokens=80, **LOW)
        await until(lambda: panel.ending == "done")
        seen = []
        panel.edit.observe(lambda change: seen.append(change["new"]), "edited")
        panel.go.click()
        await until(lambda: len(seen) > 4)
        assert panel.speaking == "running" and not panel.stop.disabled
        panel.controls["value"].value = "security"
        await until(lambda: "neurons for security" in said(panel.map))
        assert panel.speaking == "running", "looking at another value stopped the answers"
        panel.stop.click()
        await until(lambda: panel.speaking == "cancelled" and panel.ending == "done")
        written, there = panel.edit.edited, len(seen)
        assert there < 75 and panel.stop.disabled and ">cancelled<" not in panel.told.value
        await asyncio.sleep(0.05)
        assert panel.edit.edited == written == seen[-1] and not model.active
        panel.edit.max_new_tokens = 3
        panel.go.click()
        panel.go.click()  # takes the place of the first
        await until(lambda: panel.speaking == "done")
        assert [panel.edit.edited] == generate(model, [PROMPT], steer=panel.edit.steer(), max_new_tokens=3)

    in_a_loop(steps())


def test_dragging_a_bar_shows_the_last_selection(model, fitted):
    async def steps():
        panel = neuron_explorer(model, *fitted(), value="power", prompt=PROMPT, **LOW)
        await until(lambda: panel.ending == "done")
        turn, looks = panel.map.turn, []
        look = panel.edit.look
        panel.edit.look = lambda: looks.append(panel.edit.factor) or look()  # type: ignore[method-assign]
        for share in range(1, 6):
            panel.controls["share"].value = float(share)
        await until(lambda: panel.ending == "done" and panel.map.turn > turn)
        assert panel.map.turn == turn + 1, "selections in between were drawn"
        expected = select_neurons(model, fitted()[1], fitted()[0], "power", [0, 1, 2], 0.05, 0.01, False)
        assert {*marks(drawn(panel.map))} == {*map(tuple, expected.chosen[["layer", "neuron"]].to_numpy().tolist())}

    in_a_loop(steps())


# --- models ---


def test_craftgpt_has_neurons_once_the_bar_is_lowered(craftgpt):
    from workbench.prompts import load_pairs, that_fit

    pairs, _ = that_fit(craftgpt, load_pairs("natural"), ["positive", "negative"])
    few = pairs.groupby("value", sort=False).head(20)
    probes = fit_probes(craftgpt, few, layers=[1, 3], folds=2)
    panel = neuron_explorer(craftgpt, probes, prompt="You craft", max_new_tokens=4)
    assert panel.problem.value == "" and panel.state.min_d == 0.8
    assert panel.state.largest is not None
    if panel.state.refusal:
        assert "Lower <b>least |d|</b>" in panel.status.value
        assert re.search(r"largest \|d\| of all: 0\.[0-7]\d", panel.status.value)
    panel.controls["min_d"].value = 0.1
    assert panel.state.neurons is not None and panel.state.refusal == "" and "Lower" not in panel.status.value
    panel.run()
    assert panel.speaking == "done" and panel.said.value.count('class="wb-said"') == 2
