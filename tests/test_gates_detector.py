"""The published gate: a text classifier on the bare question, its labels, its thresholds, its place in a run."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from workbench.errors import WorkbenchError
from workbench.gates import G0, Classifier, DetectorGate, load_classifier, unpack_gate
from workbench.generate import generate
from workbench.probes import fit_probes
from workbench.steering import ConVA
from workbench.values import VALUES

LABELS = (
    "Self-direction: thought", "self direction : action", "Stimulation", "Hedonism", "Achievement", "Power: dominance",
    "POWER:resources", "Face", "Security: personal", "security:  societal", "Tradition", "Conformity: rules",
    "Benevolence: caring", "Universalism: nature",
)  # fmt: skip
PROMPTS = ["Should Mira sell the old house?", "What is two and three?", "He wants to win."]
KINDS = ["bert", "deberta-v2"]


def write(folder, kind="bert", problem="multi_label_classification", labels=LABELS, context=64, **settings):
    """A tiny random text classifier with its tokenizer, as Hugging Face writes one."""
    import transformers as hf

    tok = tiny.tokenizer("qwen2")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
             "max_position_embeddings": context, "vocab_size": len(tok), "pad_token_id": 0}  # fmt: skip
    more = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]} if kind == "deberta-v2" else {}
    config = hf.AutoConfig.for_model(kind, **sizes, **more, num_labels=len(labels), problem_type=problem,
                                     id2label=dict(enumerate(labels)), initializer_range=0.3, **settings)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("detector") / "bert")


@pytest.fixture
def classifier(folder):
    return load_classifier(folder)


def with_outputs(classifier, monkeypatch, said: dict[str, list[float]]):
    """The classifier as if it had read these prompts."""
    monkeypatch.setattr(classifier, "said", {prompt: np.array(p, np.float32) for prompt, p in said.items()})
    return classifier


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("problem", ["multi_label_classification", "single_label_classification", None])
def test_scores_are_the_means_of_hugging_faces_own_pipeline(tmp_path, kind, problem):
    from transformers import pipeline

    folder = write(tmp_path / "model", kind, problem)
    pipe = pipeline("text-classification", model=str(folder), top_k=None)
    gate = DetectorGate(folder, "self-direction")
    for prompt, score in zip(PROMPTS, gate.scores(PROMPTS), strict=True):
        told = {entry["label"]: entry["score"] for entry in pipe([prompt])[0]}
        assert score == pytest.approx(np.mean([told[LABELS[0]], told[LABELS[1]]]), abs=1e-6)
    other = load_classifier(folder, activation="softmax" if problem == "multi_label_classification" else "sigmoid")
    assert np.abs(DetectorGate(other, "self-direction").scores(PROMPTS) - gate.scores(PROMPTS)).max() > 1e-3


def test_batched_is_alone_and_each_prompt_is_read_once(classifier, folder, monkeypatch):
    gate, alone = DetectorGate(classifier, "power"), DetectorGate(folder, "power")
    calls, network = [], classifier.network

    def counted(**read):
        calls.append(len(read["input_ids"]))
        return network(**read)

    counted.config, counted.device = network.config, network.device  # type: ignore[attr-defined]
    monkeypatch.setattr(classifier, "network", counted)
    together = gate.scores([*PROMPTS, *PROMPTS[:1]])
    np.testing.assert_allclose(together, [alone.scores([prompt])[0] for prompt in [*PROMPTS, PROMPTS[0]]], atol=1e-6)
    assert calls == [3]
    DetectorGate(classifier, "security").scores(PROMPTS)  # another value, the same reading
    assert gate.scores(PROMPTS[:2], instruction="Be kind.").tolist() == together[:2].tolist() and calls == [3]
    assert gate.scores([]).shape == (0,)


@pytest.mark.parametrize(("value", "outputs"), [
    ("self-direction", [0, 1]), ("self-direction-thought", [0]), ("power", [5, 6]), ("security", [8, 9]),
    ("hedonism", [3]), ("universalism", [13]),
])  # fmt: skip
def test_labels_are_matched_whatever_their_case_spaces_and_punctuation(classifier, value, outputs):
    assert classifier.about(value) == outputs


def test_the_published_thresholds():
    assert G0 == {
        "achievement": 0.6, "stimulation": 0.02, "hedonism": 0.007, "self-direction": 0.5, "power": 0.06,
        "security": 0.2, "tradition": 0.08, "conformity": 0.013, "benevolence": 0.2, "universalism": 0.39,
    }  # fmt: skip
    assert tuple(G0) == VALUES


def test_it_opens_above_g0_and_universalism_below_its_second_bar_too(classifier, monkeypatch):
    said = {p: [0.0] * 8 + [s, s] + [0.0] * 3 + [s] for p, s in zip("abcd", (0.1, 0.25, 0.35, 0.4), strict=True)}
    classifier = with_outputs(classifier, monkeypatch, said)
    for value, opens in (("security", [0, 1, 1, 1]), ("universalism", [1, 1, 0, 1])):
        gate = DetectorGate(classifier, value)
        assert gate.threshold == G0[value] and gate.criterion == "Jin et al. 2025, g0"
        assert gate.opens("abcd").astype(int).tolist() == opens
        assert f"DetectorGate({value}, score > {G0[value]:.3g}" in repr(gate)
    assert "or < 0.3" in repr(gate)
    assert DetectorGate(classifier, "universalism", 0.3).opens("abcd").tolist() == [False, False, True, True]


def test_measured_and_calibrated_it_is_a_gate_like_the_others(classifier, monkeypatch):
    scores = {"a": 0.9, "b": 0.6, "c": 0.2, "d": 0.5, "e": 0.1, "f": 0.05}
    classifier = with_outputs(classifier, monkeypatch, {p: [s] * 14 for p, s in scores.items()})
    gate = DetectorGate(classifier, "universalism").measured("a b c".split(), "d e f".split())
    assert gate.rates["auroc"] == pytest.approx(8 / 9) and gate.rates["open"] == 1  # .2 is below .3
    tuned = gate.calibrate(0.0)
    assert tuned.also_below is None and 0.5 < tuned.threshold < 0.6
    assert tuned.rates["open"] == pytest.approx(2 / 3) and tuned.rates["false_positive"] == 0
    assert len(tuned.curve()) == 7 and tuned.opens("abcdef").tolist() == [True, True] + [False] * 4
    assert tuned.report(["a", "c"])["open"].tolist() == [0.5]
    with pytest.raises(WorkbenchError, match=r"never tried on any.*\n.*gate.measured\(related, unrelated\)"):
        DetectorGate(classifier, "power").calibrate()
    for related, unrelated, message in ((["a"], [], "0 unrelated"), (["a"], ["a"], "related and unrelated: 'a'")):
        with pytest.raises(WorkbenchError, match=message):
            gate.measured(related, unrelated)


@pytest.fixture(scope="module")
def probes(tiny_model):
    import pandas as pd

    pairs = [("security", f"I lock the {a} of the {b}.", f"I open the {a} of the {b}.")
             for a in ("door", "gate", "box") for b in ("house", "team", "farm")]  # fmt: skip
    return fit_probes(tiny_model(), pd.DataFrame(pairs, columns=["value", "positive", "negative"]), folds=3)


def test_in_generate_it_reads_the_bare_question(classifier, probes, tiny_model, monkeypatch):
    model = tiny_model()
    asked = []

    class Watched(Classifier):
        def __call__(self, prompts, batch_size=32):
            asked.extend(prompts)
            return super().__call__(prompts, batch_size)

    classifier.__class__ = Watched
    scores = DetectorGate(classifier, "security", 0.5).scores(PROMPTS)
    middle = float(np.sort(scores)[:2].mean())  # opens for two of three
    gate = DetectorGate(classifier, "security", middle)
    asked.clear()
    steer = ConVA(probes, "security", target=0.999, layers=[1], gate=gate)
    answers, trace = generate(model, PROMPTS, steer, max_new_tokens=4, return_trace=True, instruction="Be brave.",
                              batch_size=2)  # fmt: skip
    assert set(asked) == set(PROMPTS)
    per_row = trace.groupby("row")[["gate", "open"]].first()
    np.testing.assert_allclose(per_row["gate"], scores, atol=1e-6)
    assert per_row["open"].tolist() == (scores > middle).tolist()
    assert (trace.loc[~trace["open"], "eps"] == 0).all() and (trace.loc[trace["open"], "eps"] > 0).any()


def test_a_bare_forward_pass_must_be_told_the_question(classifier, probes, tiny_model):
    model = tiny_model()
    steer = ConVA(probes, "security", layers=[1], gate=DetectorGate(classifier, "security"))
    ids, mask = model.pad(model.encode(PROMPTS[:1], chat=True))
    with torch.no_grad():
        plain = model.twin(ids, attention_mask=mask).logits
        with pytest.raises(WorkbenchError, match="questions"), steer.on(model):
            model.twin(ids, attention_mask=mask)
        assert torch.equal(model.twin(ids, attention_mask=mask).logits, plain) and not model.active
    with pytest.raises(WorkbenchError, match="not the bare question that it reads"):
        steer.gate(torch.zeros(1, 32))


def test_save_load_and_attach(classifier, folder, probes, tmp_path):
    gate = DetectorGate(classifier, "security").measured(PROMPTS[:1], PROMPTS[1:]).calibrate(by="youden")
    again = DetectorGate.load(gate.save(tmp_path / "gate.safetensors"))
    assert again.threshold == gate.threshold and again.criterion == "highest J" and again.oof.equals(gate.oof)
    assert repr(again) == repr(gate) and str(folder.parent) not in json.dumps(gate.pack()[1])
    with pytest.raises(WorkbenchError, match=r"without its classifier\n.*gate.attach\('bert'\)"):
        again.scores(PROMPTS)
    assert again.attach(folder).scores(PROMPTS).tolist() == gate.scores(PROMPTS).tolist()
    other = load_classifier(write(tmp_path / "other", "deberta-v2"))
    with pytest.raises(WorkbenchError, match="another classifier, another weights"):
        again.attach(other)
    with pytest.raises(WorkbenchError, match="another activation"):
        again.attach(load_classifier(folder, activation="softmax"))
    steer = ConVA(probes, "security", gate=gate, layers=[0])
    loaded = ConVA.load(steer.save(tmp_path / "steer.safetensors"))
    assert repr(replace(loaded.gate)) == repr(gate)
    assert unpack_gate(*DetectorGate(classifier, "power").pack()).oof is None


def test_what_is_no_detector_is_refused(tmp_path, folder, tiny_folder, classifier, monkeypatch):
    bare = write(tmp_path / "bin")
    (bare / "model.safetensors").rename(bare / "pytorch_model.bin")
    coded = write(tmp_path / "coded")
    config = json.loads((coded / "config.json").read_text())
    config |= {"model_type": "deberta_arg_classifier", "auto_map": {"AutoConfig": "x.C"}}
    (coded / "config.json").write_text(json.dumps(config))
    for asked, message in (
        (bare, "pytorch_model.bin, which can run code(.|\n)*AutoModelForSequenceClassification"),
        (tiny_folder("llama"), "LlamaForSequenceClassification without trained score.weight"),
        (coded, "without code of its own"),
        (write(tmp_path / "regression", problem="regression", labels=["Security"]), "a regression"),
        (tmp_path / "nothing", "no such folder"),
        ("embedded:square", "embedded:circle"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            load_classifier(asked)
    with pytest.raises(WorkbenchError, match="Activation 'relu'"):
        load_classifier(folder, activation="relu")
    for value, message in (
        ("securty", "Did you mean 'security'"),
        ("humility", "no published threshold"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            DetectorGate(classifier, value)
    with pytest.raises(WorkbenchError, match="no such label among Self-direction: thought, "):
        DetectorGate(classifier, "humility", 0.5)
    with pytest.raises(WorkbenchError, match="no such label among LABEL_0, LABEL_1"):
        DetectorGate(write(tmp_path / "unnamed", labels=["LABEL_0", "LABEL_1"]), "power")


def test_a_prompt_too_long_and_outputs_that_are_nan_are_told(classifier, monkeypatch):
    gate = DetectorGate(classifier, "power")
    with pytest.raises(WorkbenchError, match=r"one of \d+ tokens\nAllowed: 64"):
        gate.scores(["two and three " * 40])
    with torch.no_grad():
        next(classifier.network.parameters()).fill_(float("nan"))
    with pytest.raises(WorkbenchError, match="NaN or inf in its outputs"):
        gate.scores(PROMPTS)
    assert not classifier.said, "what failed is not kept"
