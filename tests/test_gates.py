"""Gates on the model's own residual, and those that read nothing: honest scores, at the tokens they say."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save_file

from workbench.activations import capture
from workbench.errors import WorkbenchError
from workbench.gates import AlwaysOpen, CosineGate, Never, ProbeGate, unpack_gate
from workbench.probes import fit_probes
from workbench.steering import ConVA

WHO = ("Mira", "he", "the team", "one", "my friend", "a family")
RELATED = [
    f"Should {who} {what}?" for who in WHO for what in ("sell the house", "start a bakery", "lead", "win the race")
]
UNRELATED = [
    f"What is {a} and {b}"
    for a in ("two", "three", "red")
    for b in ("one", "two", "a box", "blue", "five", "ten", "me", "it")
]
BOTH = [ProbeGate, CosineGate]


@pytest.fixture(scope="module")
def gates(tiny_model):
    return {kind: kind.fit(tiny_model(), RELATED, UNRELATED, folds=3) for kind in BOTH}


@pytest.fixture(scope="module")
def gate(gates):
    return gates[ProbeGate]


def literal(gate, e: np.ndarray) -> np.ndarray:
    """Scores (row) of residuals (row, d_model) by the formulas of the two pages."""
    if isinstance(gate, CosineGate):
        return np.array([row @ gate.weight / np.sqrt(row @ row) / np.sqrt(gate.weight @ gate.weight) for row in e])
    return np.array([1 / (1 + np.exp(-(row @ gate.weight + gate.bias))) for row in e])


@pytest.mark.parametrize("kind", BOTH)
def test_it_tells_related_from_unrelated(gates, kind):
    gate = gates[kind]
    assert gate.rates["auroc"] > 0.9 and gate.rates["open"] > 0.7
    assert gate.threshold == gate.calibrate(0.01).threshold and gate.criterion == "at most 0.01 of unrelated prompts"
    assert list(gate.oof.columns) == ["prompt", "related", "score"] and len(gate.oof) == 48
    new = ["Should one start a race?", "What is blue and three"]
    high, low = gate.scores(new)
    assert high > low and gate.opens(new).tolist() == [high > gate.threshold, low > gate.threshold]


@pytest.mark.parametrize("kind", BOTH)
def test_scores_are_those_of_the_residual_at_the_last_prompt_token(gates, kind, tiny_model):
    gate = gates[kind]
    acts = capture(tiny_model(), RELATED, layers=[gate.layer], chat=True).values[0]
    assert gate.scores(RELATED) == pytest.approx(literal(gate, acts), abs=1e-6)
    assert gate(torch.from_numpy(acts)).tolist() == (literal(gate, acts) > gate.threshold).tolist()
    told = capture(tiny_model(), ["Be kind. " + q for q in RELATED], layers=[gate.layer], chat=True).values[0]
    assert gate.scores(RELATED, "Be kind.") == pytest.approx(literal(gate, told), abs=1e-6)


@pytest.mark.parametrize("kind", BOTH)
def test_a_gate_scores_each_token_as_it_would_alone(gates, kind):
    """Per token: (row, token, d_model) in, (row, token) out."""
    gate, e = replace(gates[kind], per_token=True), torch.randn(2, 5, 32, generator=torch.manual_seed(0))
    score = gate.score(e)
    assert score.shape == gate(e).shape == (2, 5) and "per token" in repr(gate)
    np.testing.assert_allclose(score[1], literal(gate, e[1].numpy()), atol=1e-6)
    assert AlwaysOpen()(e).shape == Never()(e).shape == (2, 5)


def test_the_cosine_forgets_the_length_and_keeps_the_side(gates):
    gate, e = gates[CosineGate], torch.randn(4, 32, generator=torch.manual_seed(1))
    torch.testing.assert_close(gate.score(7 * e), gate.score(e))
    torch.testing.assert_close(gate.score(-e), -gate.score(e))
    assert gate.scale == "cosine" and ", cos > " in repr(gate)


def test_the_condition_direction_is_the_mean_difference_and_each_score_of_one_that_did_not_see_the_prompt(tiny_model):
    gate = CosineGate.fit(tiny_model(), RELATED[:4], UNRELATED[:4], layer=1, folds=4)
    e = capture(tiny_model(), RELATED[:4] + UNRELATED[:4], layers=[1], chat=True).values[0].astype(float)
    np.testing.assert_allclose(gate.weight, e[:4].mean(0) - e[4:].mean(0), rtol=1e-4, atol=1e-6)
    for row, score in enumerate(gate.oof["score"]):  # one related and one unrelated prompt to a fold: which, we find
        others = [k for k in range(4) if k != row % 4]
        possible = []
        for left_out in range(4):
            far = [k for k in range(4) if k != left_out]
            related, unrelated = (others, far) if row < 4 else (far, others)
            c = e[:4][related].mean(0) - e[4:][unrelated].mean(0)
            possible.append(e[row] @ c / np.linalg.norm(e[row]) / np.linalg.norm(c))
        assert np.abs(np.array(possible) - score).min() < 1e-6


@pytest.mark.parametrize("kind", BOTH)
def test_fitted_on_all_tokens_no_prompt_is_in_two_folds(kind, tiny_model):
    """One side of two prompts in two folds: every token's score is of a reader that saw the other prompts only."""
    model, prompts = tiny_model(), [*RELATED[:2], *UNRELATED[:2]]
    gate = kind.fit(model, prompts[:2], prompts[2:], layer=0, folds=2, tokens="all", per_token=True)
    acts = capture(model, prompts, [0], chat=True, position="all")
    settings = {"C": 1.0} if kind is ProbeGate else {}
    assert gate.per_token and gate.oof["prompt"].tolist() == [prompts[k] for k in acts["text"].values]
    assert gate.oof["position"].tolist() == acts["position"].values.tolist()
    for text in range(4):
        own, found = acts["text"].values == text, []
        for other in (0, 1):  # which unrelated prompt shares the fold
            of_side = text % 2
            held = {of_side, 2 + other} if text < 2 else {other, 2 + of_side}
            seen = ~np.isin(acts["text"].values, list(held))
            y = acts["text"].values < 2
            X = acts.values[0]
            fitted, _ = kind.fit_rows(X[seen], y[seen], np.arange(seen.sum()) % 2, **settings)
            reader = replace(gate, **fitted)
            found.append(np.abs(reader.score(torch.from_numpy(X[own])).numpy() - gate.oof["score"][own]).max())
        assert min(found) < 1e-4
    with pytest.raises(WorkbenchError, match="tokens 'some'"):
        kind.fit(model, RELATED, UNRELATED, tokens="some")


def test_equal_prompts_stay_in_one_fold(tiny_model):
    prompts = [[prompt for prompt in side[:3] for _ in range(2)] for side in (RELATED, UNRELATED)]
    gate = CosineGate.fit(tiny_model(), *prompts, layer=1, folds=3)
    assert gate.oof["score"][::2].tolist() == pytest.approx(gate.oof["score"][1::2].tolist(), abs=1e-6)


@pytest.mark.parametrize("kind", BOTH)
def test_a_gate_reads_the_model_as_it_is_without_what_is_on(gates, kind, tiny_model):
    model = tiny_model()
    pairs = pd.DataFrame({"value": "power", "positive": RELATED[:6], "negative": UNRELATED[:6]})
    steer = ConVA(fit_probes(model, pairs, folds=3), "power", target=0.999, layers=[0], scope="all")
    with steer.on(model):
        assert kind.fit(model, RELATED, UNRELATED, folds=3).oof.equals(gates[kind].oof)
        steered = capture(model, RELATED, [gates[kind].layer], chat=True)
        inside = gates[kind].scores(RELATED)
    assert inside.tolist() == gates[kind].scores(RELATED).tolist()
    assert np.abs(literal(gates[kind], steered.values[0]) - inside).max() > 1e-4, "it was on"


def test_out_of_fold_is_not_the_fit(gate):
    """The fit itself knows its prompts; out of fold it does not."""
    shuffled = np.random.default_rng(0).permutation(RELATED + UNRELATED).tolist()
    lottery = ProbeGate.fit(gate.model, shuffled[:24], shuffled[24:], folds=4, layer=2)
    inside = np.mean((lottery.scores(shuffled) > 0.5) == np.repeat([True, False], 24))
    outside = np.mean((lottery.oof["score"] > 0.5) == lottery.oof["related"])
    assert inside > 0.9 > 0.75 > outside


def test_the_earliest_of_equal_layers_is_taken(tiny_model, monkeypatch):
    from workbench.gates import residual

    monkeypatch.setattr(residual, "area_under_roc", lambda *_: 1.0)
    assert ProbeGate.fit(tiny_model(), RELATED, UNRELATED, folds=3).layer == 0
    assert ProbeGate.fit(tiny_model(), RELATED, UNRELATED, folds=3, layer=2).layer == 2


def test_tables_are_read_by_column(tiny_model):
    made = ProbeGate.fit(
        tiny_model(), pd.DataFrame({"question": RELATED}), pd.DataFrame({"prompt": UNRELATED}), folds=3, layer=0
    )
    assert made.oof["prompt"].tolist() == RELATED + UNRELATED


def test_open_and_never():
    residual = torch.zeros(3, 4)
    assert AlwaysOpen()(residual).tolist() == [True] * 3 and AlwaysOpen().opens(["a", "b"]).tolist() == [True, True]
    assert Never()(residual).tolist() == [False] * 3 and Never().opens(["a", "b"]).tolist() == [False, False]
    for gate in (AlwaysOpen(), Never()):
        assert unpack_gate(*gate.pack()) == gate and gate.reads == "nothing" and gate.layer is None


@pytest.mark.parametrize("kind", BOTH)
def test_save_and_load(gates, kind, tiny_model, tmp_path):
    gate = replace(gates[kind], per_token=True).calibrate(by="f1")
    path = gate.save(tmp_path / "gate.safetensors")
    again = kind.load(path, tiny_model())
    assert again.scores(RELATED[:3]).tolist() == gate.scores(RELATED[:3]).tolist()
    for name in ("threshold", "criterion", "provenance", "layer", "per_token"):
        assert getattr(again, name) == getattr(gate, name)
    pd.testing.assert_frame_equal(again.oof, gate.oof)
    assert repr(again) == repr(gate)
    with pytest.raises(WorkbenchError, match="without its model"):
        kind.load(path).scores(RELATED)
    with pytest.raises(WorkbenchError, match="A gate of llama were to be used|A gate of llama"):
        kind.load(path, tiny_model("qwen2"))
    other = BOTH[kind is ProbeGate]
    with pytest.raises(WorkbenchError, match=f"A {other.__name__} was to be read.\nFound: a {kind.__name__}"):
        other.load(path)
    meta = {"workbench": json.dumps({"kind": "gate", "gate": "SkyGate"})}
    save_file(load_file(path), tmp_path / "sky.safetensors", metadata=meta)
    with pytest.raises(WorkbenchError, match="'SkyGate' was to be read.\nAllowed: AlwaysOpen, Never, "):
        kind.load(tmp_path / "sky.safetensors")


@pytest.mark.parametrize("kind", BOTH)
def test_bad_prompts_are_refused(kind, tiny_model):
    for related, unrelated, message in (
        (RELATED[:2], UNRELATED, "2 different related prompts"),
        (RELATED, UNRELATED[:1] * 9, "1 different unrelated prompts"),
        ([], UNRELATED, "0 related prompts"),
        (RELATED, [], "0 unrelated prompts"),
        (RELATED, [*UNRELATED, " "], "an empty prompt among the unrelated prompts"),
        (RELATED, [*UNRELATED, RELATED[0]], "related and unrelated"),
        ("Should one win?", UNRELATED, "one string"),
        (pd.DataFrame({"text": RELATED}), UNRELATED, "a column question or prompt"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            kind.fit(tiny_model(), related, unrelated)
    with pytest.raises(WorkbenchError, match="1 folds"):
        kind.fit(tiny_model(), RELATED, UNRELATED, folds=1)


@pytest.mark.parametrize("kind", BOTH)
def test_a_score_that_is_nan_is_no_decision(gates, kind):
    with pytest.raises(WorkbenchError, match="a score that is NaN"):
        gates[kind](torch.full((1, 32), float("nan")))
