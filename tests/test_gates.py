"""Gates: honest scores, a threshold that means what it says."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.activations import capture
from workbench.errors import WorkbenchError
from workbench.gates import AlwaysOpen, Never, ProbeGate

WHO = ("Mira", "he", "the team", "one", "my friend", "a family")
RELATED = [
    f"Should {who} {what}?" for who in WHO for what in ("sell the house", "start a bakery", "lead", "win the race")
]
UNRELATED = [
    f"What is {a} and {b}"
    for a in ("two", "three", "red")
    for b in ("one", "two", "a box", "blue", "five", "ten", "me", "it")
]


@pytest.fixture(scope="module")
def gate(tiny_model):
    return ProbeGate.fit(tiny_model(), RELATED, UNRELATED, folds=3)


def with_scores(gate, related, unrelated) -> ProbeGate:
    table = pd.DataFrame({"related": [True] * len(related) + [False] * len(unrelated), "score": [*related, *unrelated]})
    return replace(gate, oof=table.assign(prompt="p"))


def test_it_tells_related_from_unrelated(gate, tiny_model):
    assert gate.rates["auroc"] > 0.9 and gate.rates["open"] > 0.7
    assert list(gate.oof.columns) == ["prompt", "related", "score"] and len(gate.oof) == 48
    new = ["Should one start a race?", "What is blue and three"]
    high, low = gate.scores(new)
    assert high > low and gate.opens(new).tolist() == [high > gate.threshold, low > gate.threshold]


def test_scores_are_those_of_the_residual_at_the_last_prompt_token(gate, tiny_model):
    acts = capture(tiny_model(), RELATED, layers=[gate.layer], chat=True).values[0]
    expected = 1 / (1 + np.exp(-(acts @ gate.weight + gate.bias)))
    assert gate.scores(RELATED) == pytest.approx(expected, abs=1e-6)
    assert gate(torch.from_numpy(acts)).tolist() == (expected > gate.threshold).tolist()
    told = capture(tiny_model(), ["Be kind. " + q for q in RELATED], layers=[gate.layer], chat=True).values[0]
    assert gate.scores(RELATED, "Be kind.") == pytest.approx(
        1 / (1 + np.exp(-(told @ gate.weight + gate.bias))), abs=1e-6
    )


def test_out_of_fold_is_not_the_fit(gate):
    """The fit itself knows its prompts; out of fold it does not."""
    shuffled = np.random.default_rng(0).permutation(RELATED + UNRELATED).tolist()
    lottery = ProbeGate.fit(gate.model, shuffled[:24], shuffled[24:], folds=4, layer=2)
    inside = np.mean((lottery.scores(shuffled) > 0.5) == np.repeat([True, False], 24))
    outside = np.mean((lottery.oof["score"] > 0.5) == lottery.oof["related"])
    assert inside > 0.9 > 0.75 > outside


@pytest.mark.parametrize(("rate", "opened"), [(0.0, 0), (0.04, 0), (0.05, 1), (0.1, 2), (0.5, 10)])
def test_the_threshold_keeps_the_false_positive_rate(gate, rate, opened):
    made = with_scores(gate, [0.95, 0.97, 0.99], np.linspace(0.05, 0.9, 20)).calibrate(rate)
    assert (np.linspace(0.05, 0.9, 20) > made.threshold).sum() == opened
    assert made.rates["false_positive"] == pytest.approx(opened / 20) and made.rates["open"] == 1
    assert made.max_false_positive == rate and made.layer == gate.layer
    if rate == 0:
        assert 0.9 < made.threshold < 0.95, "midway between the scores on its two sides"


def test_a_gate_that_cannot_tell_stays_shut(gate):
    made = with_scores(gate, [0.2, 0.3], [0.4, 0.99]).calibrate(0.0)
    assert made.rates == {"open": 0.0, "false_positive": 0.0, "auroc": 0.0}
    with pytest.raises(WorkbenchError, match="false positive rate of 1.5"):
        gate.calibrate(1.5)


def test_the_earliest_of_equal_layers_is_taken(tiny_model, monkeypatch):
    from workbench import gates

    monkeypatch.setattr(gates, "area_under_roc", lambda *_: 1.0)
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


def test_save_and_load(gate, tiny_model, tmp_path):
    path = gate.save(tmp_path / "gate.safetensors")
    again = ProbeGate.load(path, tiny_model())
    assert again.scores(RELATED[:3]).tolist() == gate.scores(RELATED[:3]).tolist()
    assert again.threshold == gate.threshold and again.provenance == gate.provenance
    pd.testing.assert_frame_equal(again.oof, gate.oof)
    with pytest.raises(WorkbenchError, match="without its model"):
        ProbeGate.load(path).scores(RELATED)
    with pytest.raises(WorkbenchError, match="A gate of llama were to be used|A gate of llama"):
        ProbeGate.load(path, tiny_model("qwen2"))


def test_bad_prompts_are_refused(tiny_model):
    for related, unrelated, message in (
        (RELATED[:2], UNRELATED, "2 different related prompts"),
        (RELATED, UNRELATED[:1] * 9, "1 different unrelated prompts"),
        (RELATED, [*UNRELATED, RELATED[0]], "related and unrelated"),
        ("Should one win?", UNRELATED, "one string"),
        (pd.DataFrame({"text": RELATED}), UNRELATED, "a column question or prompt"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            ProbeGate.fit(tiny_model(), related, unrelated)
