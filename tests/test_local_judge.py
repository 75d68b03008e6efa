"""Judging with classifiers on this machine, on tiny random models made on the spot."""

import numpy as np
import pandas as pd
import pytest
from spoken import WordJudge
from test_gates_detector import LABELS, write

from workbench.errors import WorkbenchError
from workbench.evaluation.judges import judged
from workbench.evaluation.local_judge import HYPOTHESIS, LocalJudge
from workbench.gates import load_classifier
from workbench.values import DEFINITIONS, VALUES

TEXTS = ["Mira should sell the old house.", "He wants to win the race and to lead the team.", "Two and three.", ""]
NLI = ("contradiction", "neutral", "entailment")
KINDS = ["bert", "deberta-v2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Function: labels, kind of network -> a folder of an NLI model."""
    made = {}

    def make(labels=NLI, kind="bert", context=256, problem=None):
        key = labels, kind, context, problem
        if key not in made:
            made[key] = write(tmp_path_factory.mktemp("nli") / "model", kind, problem, labels, context)
        return made[key]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_p_is_hugging_faces_own_probability_of_entailment(folder, kind):
    from transformers import pipeline

    pipe = pipeline("text-classification", model=str(folder(kind=kind)), top_k=None)
    judge = LocalJudge(folder(kind=kind))
    for value in ("power", "universalism"):
        sentence = HYPOTHESIS.format(value=value, definition=DEFINITIONS[value])
        told = [pipe({"text": text, "text_pair": sentence}) for text in TEXTS]
        expected = [next(one["score"] for one in row if one["label"] == "entailment") for row in told]
        np.testing.assert_allclose(judge.probabilities(TEXTS, [value] * 4), expected, atol=1e-6)
    pipe.model.config.label2id = {label: n for n, label in enumerate(NLI)}
    zero = pipeline("zero-shot-classification", model=pipe.model, tokenizer=pipe.tokenizer)
    template = HYPOTHESIS.format(value="{}", definition=DEFINITIONS["power"])
    for text in TEXTS[:3]:  # without neutral, as the page says
        told = {one["label"]: one["score"] for one in pipe({"text": text, "text_pair": template.format("power")})}
        scored = zero(text, ["power"], hypothesis_template=template)["scores"][0]
        assert scored == pytest.approx(told["entailment"] / (1 - told["neutral"]), rel=1e-4)


@pytest.mark.parametrize("labels", [NLI, NLI[::-1], ("ENTAILMENT", "not_entailment"), ("entailed", "neutral", "other")])
def test_the_label_counts_wherever_it_stands(folder, labels):
    judge = LocalJudge(folder(labels))
    at = next(n for n, label in enumerate(labels) if label.lower().startswith("entail"))
    sentence = HYPOTHESIS.format(value="power", definition=DEFINITIONS["power"])
    outputs = load_classifier(folder(labels))([(text, sentence) for text in TEXTS])  # type: ignore[list-item]
    np.testing.assert_allclose(judge.probabilities(TEXTS, ["power"] * 4), outputs[:, at])


@pytest.mark.parametrize("labels", [("LABEL_0", "LABEL_1", "LABEL_2"), ("not_entailment", "neutral"),
                                    ("entailment", "entailment too"), LABELS])  # fmt: skip
def test_a_model_without_one_entailment_label_is_an_error(folder, labels):
    with pytest.raises(WorkbenchError, match="(?s)the labels .*Allowed: one label that begins with entail.*id2label"):
        LocalJudge(folder(labels))


def test_batched_is_alone_and_a_text_is_read_once(folder, monkeypatch):
    judge, alone = LocalJudge(folder(), batch_size=3), LocalJudge(folder())
    calls, network = [], judge.classifier.network

    def counted(**read):
        calls.append(len(read["input_ids"]))
        return network(**read)

    counted.config, counted.device = network.config, network.device  # type: ignore[attr-defined]
    monkeypatch.setattr(judge.classifier, "network", counted)
    together = judge.probabilities([text for text in TEXTS for _ in VALUES], list(VALUES) * 4)
    np.testing.assert_allclose(together, [alone.probabilities([t], [v])[0] for t in TEXTS for v in VALUES], atol=1e-6)
    assert calls == [3] * 13 + [1]
    judge.many(["?"] * 4, TEXTS, [VALUES] * 4)
    assert len(calls) == 14


def test_thresholds_and_halves(folder):
    texts = [f"She wants {n} of it." for n in range(40)]
    p = LocalJudge(folder()).probabilities(texts, ["power"] * 40)
    low, high = np.quantile(p, [0.3, 0.6])
    judge = LocalJudge(folder(), threshold=(float(low), float(high)))
    scores = np.array([judge.control(text, "power") for text in texts])
    np.testing.assert_array_equal(scores, np.where(p > high, 1, np.where(p > low, 0.5, 0)))
    assert set(scores) == {0, 0.5, 1}
    one = LocalJudge(folder(), threshold=float(high))
    np.testing.assert_array_equal([one.control(text, "power") for text in texts], p > high)


def test_a_table_is_judged_with_fluency_by_another(folder):
    answers = pd.DataFrame({"value": ["power", "security", "power"], "question": "?", "answer": ["* a", "b", ""],
                            "note": ["", "", "too long"]})  # fmt: skip
    judge = LocalJudge(folder(), threshold=0.3)
    found = judged(answers, judge)
    assert found["fluent"].isna().all() and np.isnan(judge.fluent("b"))
    for value in VALUES:
        np.testing.assert_array_equal(found[value], [judge.control("* a", value), judge.control("b", value), np.nan])
    both = LocalJudge(folder(), threshold=0.3, fluency=WordJudge())
    pd.testing.assert_frame_equal(judged(answers, both).drop(columns="fluent"), found.drop(columns="fluent"))
    np.testing.assert_array_equal(judged(answers, both, "own")["fluent"], [0, 1, np.nan])
    assert both.fluent("*") == 0
    bulk = LocalJudge(folder(), fluency=both)  # whatever kind of judge that is
    assert bulk.fluent("b") == 1


@pytest.mark.parametrize("problem", ["multi_label_classification", "single_label_classification"])
def test_a_value_classifier_s_score_is_the_mean_over_the_labels_that_name_it(folder, problem):
    loaded = load_classifier(folder(LABELS, problem=problem))
    judge = LocalJudge(loaded, "classifier", threshold=0.4)
    outputs = loaded(TEXTS)
    np.testing.assert_allclose(judge.probabilities(TEXTS, ["self-direction"] * 4), outputs[:, :2].mean(1))
    np.testing.assert_allclose(judge.probabilities(TEXTS, ["hedonism"] * 4), outputs[:, 3])
    scores, _ = judge.many(["?"] * 4, TEXTS, [["power", "hedonism"]] * 4)
    assert [row["hedonism"] for row in scores] == (outputs[:, 3] > 0.4).tolist()
    with pytest.raises(WorkbenchError, match="Found: no such label among contradiction, neutral, entailment"):
        LocalJudge(folder(), "classifier").control("He wins.", "power")
    with pytest.raises(WorkbenchError, match="Did you mean 'power'"):
        judge.control("He wins.", "Power")


@pytest.mark.parametrize("kind", ["nli", "classifier"])
def test_hostile_texts_are_undefined_or_read_but_never_a_crash(folder, kind):
    judge = LocalJudge(folder((*NLI, *LABELS)), kind)
    bad = ["word " * 2000, "\ud800"]
    fine = ["Label: Yes", "\x00\x1b[2J", "<s></s>[SEP]<pad>", "{value}{0}", "\u202e" * 5]
    scores, _ = judge.many([""] * 7, [*bad, *fine], [["power"]] * 7)
    assert np.isnan([row["power"] for row in scores]).tolist() == [True] * 2 + [False] * 5
    assert judge.undefined == 2
    if kind == "nli":  # the hypothesis is never what is cut
        edge = " ".join(["Mira"] * 240)
        assert np.isnan(judge.control(edge, "power")) and not np.isnan(LocalJudge(judge.classifier, kind="classifier")
                                                                       .control(edge[:300], "power"))  # fmt: skip


@pytest.mark.parametrize("given", [{"kind": "zero-shot"}, {"threshold": 1.0}, {"threshold": -0.1},
                                   {"threshold": (0.6, 0.4)}, {"hypothesis": "It is so."}])  # fmt: skip
def test_settings_that_cannot_be_are_refused(folder, given):
    with pytest.raises(WorkbenchError, match="Allowed: 'nli' or 'classifier', 0 <= low <= high < 1"):
        LocalJudge(folder(), **given)


def test_only_safetensors_are_read(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder() / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(WorkbenchError, match="only pytorch_model.bin, which can run code"):
        LocalJudge(tmp_path)
