# ruff: noqa: F811
"""lm-eval on the steered model: its numbers are our own count's, and nothing is left behind."""

import json
import logging
import os
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from planted import activations  # noqa: F401
from test_capability import CLOSE, Reads, items, literally, long_model, sentences  # noqa: F401
from test_contracts import VALUE, gate, methods, probes  # noqa: F401

from workbench.errors import WorkbenchError
from workbench.evaluation.capability import choice_accuracy, choice_contexts, load_choices, split_ids
from workbench.gates import Never
from workbench.generate import generate
from workbench.models import load_model
from workbench.prompts import load_unrelated
from workbench.steering import ICA, ConVA

harness = pytest.importorskip("workbench.evaluation.harness")
LONG = "Should Mira sell the old house or start a bakery? She values her family and the old customs."


def requests(*args):
    return [SimpleNamespace(args=each) for each in args]


def steers(probes, **settings):
    return ConVA(probes(), VALUE, target=0.9999, layers=[0, 1, 2], **settings)


def write(folder, name="sums", rows=12, **config):
    """A task of generated rows: doc_to_text, doc_to_target and what else is given."""
    lines = [{"question": f"What is {k} and two?", "answer": f"{k} three"} for k in range(rows)]
    (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    whole = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
             "test_split": "test", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}", **config}  # fmt: skip
    (folder / f"{name}.yaml").write_text(json.dumps(whole))
    return name


# -- the same numbers as our own count -----------------------------------------------------------------------


def test_accuracy_equals_our_own_count(tmp_path, long_model, probes):
    table = pd.concat([items(12), items(9, "more", choices=3)])
    steered = {"Base": None, "ConVA": steers(probes, scope="generated"), "ICA": ICA(VALUE),
               "gated": steers(probes, gate=Never())}  # fmt: skip
    group = harness.write_mmlu(tmp_path, table)
    told = harness.run_tasks(long_model, steered, [group], tmp_path)
    assert list(told) == ["task", "method", "metric", "value", "stderr", "n"] and len(told) == 12
    for name, steer in steered.items():
        own = choice_accuracy(long_model, table, steer).set_index("subject")[["accuracy", "n"]]
        found = told[told["method"] == name].set_index("task")[["value", "n"]]
        for subject, row in own.iterrows():
            assert found.loc["_".join([group, subject][: 1 + (subject != "all")])].tolist() == row.tolist()
    assert told.attrs["cut"] == dict.fromkeys(steered, 0)


def test_mmlu_of_craftgpt_equals_our_own_count(tmp_path, craftgpt, reference):
    group = harness.write_mmlu(tmp_path, reference / "data" / "mmlu")
    with pytest.warns(UserWarning, match="64 tokens.*cut from the left: Base 96 requests"):
        told = harness.run_tasks(craftgpt, {"Base": None}, [group], tmp_path, limit=3)
    own = choice_accuracy(craftgpt, reference / "data" / "mmlu", limit=3)
    assert told["value"].tolist() == own["accuracy"].tolist() and told["n"].tolist() == own["n"].tolist()
    assert own["n"].tolist() == [3] * 8 + [24] and own["cut"].tolist() == own["n"].tolist()


def test_the_embedded_model_in_its_chat_template(tmp_path):
    model, table = load_model("embedded:circle"), sentences(load_unrelated("embedded"))
    (tmp_path / "rows.jsonl").write_text(table.to_json(orient="records", lines=True))
    (tmp_path / "choose.yaml").write_text(json.dumps({
        "task": "choose", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "answer"}))  # fmt: skip
    methods = {"Base": None, "ICA": ICA(VALUE)}
    told = harness.run_tasks(model, methods, ["choose"], tmp_path, shots=0, chat=True).query("metric == 'acc'")
    own = [choice_accuracy(model, table, s, shots=0, read="texts", chat=True)["accuracy"][0] for s in methods.values()]
    assert told["value"].tolist() == own and own[0] > 0.9


def test_moved_tasks_are_still_whole(tmp_path, long_model):
    group = harness.write_mmlu(tmp_path / "here", items(8).assign(subject=""), name="mine")
    (tmp_path / "here").rename(tmp_path / "there")
    assert harness.run_tasks(long_model, {"Base": None}, [group], tmp_path / "there")["n"].tolist() == [3]


def test_shots_are_drawn_alike_for_every_method(tmp_path, long_model, monkeypatch):
    """A sampler that draws: with one generator for all methods the second would see others."""
    write(tmp_path, rows=20, fewshot_split="test", output_type="multiple_choice", doc_to_choice=["a", "b"],
          doc_to_target="{{0}}")  # fmt: skip
    seen = []
    score = harness.SteeredLM.loglikelihood
    monkeypatch.setattr(
        harness.SteeredLM, "loglikelihood", lambda lm, asked: seen.append([r.args for r in asked]) or score(lm, asked)
    )
    for shots in (2, 0):
        harness.run_tasks(long_model, {"one": None, "two": None}, ["sums"], tmp_path, shots=shots)
    assert seen[0] == seen[1] and seen[2] == seen[3] and "a\n\n" in seen[0][0][0] and "\n" not in seen[2][0][0]


# -- steering inside -----------------------------------------------------------------------------------------

ASKED = [(LONG, " She"), ("What is two and", " three?"), (LONG, " He wins"), ("", "two and three")]


@pytest.mark.parametrize("method", ["conva", "conva gated", "conva generated", "conva token", "caa", "random"])
def test_steering_is_active_inside_and_off_afterwards(method, tiny_model, methods):
    model, steer = tiny_model(), methods("llama", method)
    before = harness.SteeredLM(model).loglikelihood(requests(*ASKED))
    inside = harness.SteeredLM(model, steer).loglikelihood(requests(*ASKED))
    by_hand = [literally(model, *split_ids(model, *pair), steer) for pair in ASKED]
    np.testing.assert_allclose([nats for nats, _ in inside], [nats for nats, _ in by_hand], rtol=1e-4, atol=1e-3)
    assert [greedy for _, greedy in inside] == [greedy for _, greedy in by_hand]
    assert max(abs(b[0] - i[0]) for b, i in zip(before, inside, strict=True)) > 0.01
    assert harness.SteeredLM(model).loglikelihood(requests(*ASKED)) == before and not model.active


def test_a_closed_gate_gives_the_base_models_numbers_bit_for_bit(tiny_model, probes):
    base, closed = (harness.SteeredLM(tiny_model(), s) for s in (None, steers(probes, gate=Never())))
    assert closed.loglikelihood(requests(*ASKED)) == base.loglikelihood(requests(*ASKED))
    assert closed.loglikelihood_rolling(requests((LONG,))) == base.loglikelihood_rolling(requests((LONG,)))
    asked = requests((LONG, {"until": ["\n"], "max_gen_toks": 8}))
    assert closed.generate_until(asked) == base.generate_until(asked)


def test_a_gate_that_reads_text_reads_the_whole_context(tiny_model, probes):
    lm = harness.SteeredLM(tiny_model(), steers(probes, gate=Reads()))
    Reads.seen.clear()
    lm.loglikelihood(requests(*ASKED[:2]))
    assert sorted(Reads.seen) == sorted(context for context, _ in ASKED[:2])


def test_an_instruction_stands_before_the_whole_context(long_model):
    lm, plain = harness.SteeredLM(long_model, ICA(VALUE)), harness.SteeredLM(long_model)
    asked, edited = "What is two?", f"{long_model.instruct(VALUE)} What is two?"
    assert lm.loglikelihood(requests((asked, " A"))) == plain.loglikelihood(requests((edited, " A")))
    how = {"until": [], "max_gen_toks": 5}
    assert lm.generate_until(requests((asked, how))) == plain.generate_until(requests((edited, how)))
    assert plain.generate_until(requests((asked, how))) != plain.generate_until(requests((edited, how)))


def test_whole_texts_are_predicted_once_token_by_token(tiny_model, probes):
    model = tiny_model()
    short, long = "What is two?", " ".join([LONG] * 8)
    found = harness.SteeredLM(model).loglikelihood_rolling(requests((short,), (long,), ("",)))
    (first,), ids = split_ids(model, "", short)
    assert found[0] == pytest.approx(literally(model, [first], ids)[0], rel=1e-4) and found[2] == 0.0
    (first,), ids = split_ids(model, "", long)
    n, total = model.context, 0.0
    assert n < len(ids) < 2 * n
    total += literally(model, [first], ids[:n])[0]
    rest = len(ids) - n
    total += literally(model, ids[len(ids) - n - 1 : -rest], ids[-rest:])[0]
    assert found[1] == pytest.approx(total, rel=1e-4)
    steered = harness.SteeredLM(model, steers(probes)).loglikelihood_rolling(requests((short,)))
    assert abs(steered[0] - found[0]) > 0.01


# -- text ----------------------------------------------------------------------------------------------------


def test_text_ends_before_its_first_stop_string(tiny_model, probes):
    model, contexts = tiny_model(), [LONG, "What is two?", "He wants"]
    for steer in (None, steers(probes, scope="generated")):
        whole = generate(model, contexts, steer=steer, chat=False, max_new_tokens=20)
        stop = whole[0][5]
        lm = harness.SteeredLM(model, steer)
        found = lm.generate_until(requests(*((c, {"until": ["@@", stop], "max_gen_toks": 20}) for c in contexts)))
        assert found == [text.split(stop)[0] for text in whole] and len(found[0]) < len(whole[0])
        lengths = zip(contexts, (3, 20, 3), strict=True)
        free = lm.generate_until(requests(*((c, {"until": "@@", "max_gen_toks": n}) for c, n in lengths)))
        assert free[1] == whole[1] and whole[2].startswith(free[2]) and len(free[2]) < len(whole[2])
    sampled = [{"until": [], "max_gen_toks": 9, "do_sample": True, "temperature": t} for t in (1.0, 1e-4)]
    hot, cold = ([lm.generate_until(requests((LONG, how), (LONG, how))) for how in sampled])
    assert cold[0] == cold[1] == generate(model, [LONG], steer=lm.steer, chat=False, max_new_tokens=9)[0]
    assert hot[0] != hot[1] and hot == lm.generate_until(requests((LONG, sampled[0]), (LONG, sampled[0])))


def test_long_contexts_of_texts_are_cut_and_counted(tiny_model):
    model, long = tiny_model(), " ".join([LONG] * 8)
    lm = harness.SteeredLM(model)
    (found,) = lm.generate_until(requests((long, {"until": [], "max_gen_toks": 10})))
    ids = model.encode([long])[0][-(model.context - 10 - 1) :]
    assert lm.cut == 1 and found == generate(model, [model.tokenizer.decode(ids)], chat=False, max_new_tokens=10)[0]
    with pytest.raises(WorkbenchError, match="200 tokens.*\nFound: a context of 128\n.*max_gen_toks"):
        lm.generate_until(requests((LONG, {"until": [], "max_gen_toks": 200})))
    with pytest.raises(WorkbenchError, match="sampled with top_p"):
        lm.generate_until(requests((LONG, {"until": [], "do_sample": True, "temperature": 1.0, "top_p": 0.9})))


def test_tasks_of_text_run_whole(tmp_path, long_model, probes):
    name = write(tmp_path, output_type="generate_until", generation_kwargs={"until": ["\n"], "max_gen_toks": 6})
    rolling = write(tmp_path, "rolling", output_type="loglikelihood_rolling", doc_to_text="", metric_list=[
        {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}])  # fmt: skip
    one = write(tmp_path, "one", output_type="loglikelihood", doc_to_target=" {{answer}}")
    told = harness.run_tasks(
        long_model, {"Base": None, "ConVA": steers(probes)}, [name, rolling, one], tmp_path, shots=None, limit=4
    )
    assert set(told["metric"]) == {"exact_match", "word_perplexity", "acc", "perplexity"} and set(told["n"]) == {4}
    told = told.set_index(["metric", "method"])["value"]
    assert told["word_perplexity", "Base"] != told["word_perplexity", "ConVA"]
    nats = [literally(long_model, *split_ids(long_model, f"What is {k} and two?", f" {k} three"))[0] for k in range(4)]
    assert told["perplexity", "Base"] == pytest.approx(np.exp(-np.mean(nats)), rel=1e-4)


# -- chat ----------------------------------------------------------------------------------------------------


def test_an_instruction_stands_in_the_last_users_turn(tiny_model):
    model = tiny_model()
    chat = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "And two?"}]  # fmt: skip
    lm = harness.SteeredLM(model, ICA(VALUE), chat=True)
    told = f"{model.instruct(VALUE)} And two?"
    assert lm.apply_chat_template(chat) == model.render([[*chat[:2], {"role": "user", "content": told}]])[0]
    begun = lm.apply_chat_template([*chat, {"role": "assistant", "content": "It"}], add_generation_prompt=False)
    assert told in begun and begun.rstrip().endswith("It") and chat[2]["content"] == "And two?"
    plain, written = harness.SteeredLM(model, chat=True), ("What is two?", " A")
    assert lm.loglikelihood(requests(written)) == plain.loglikelihood(requests(written)), "a chat is not edited twice"
    with pytest.raises(WorkbenchError, match=r"SteeredLM\(chat=False\)"):
        harness.SteeredLM(model).apply_chat_template(chat)


def test_a_template_without_system_turns_is_told(tmp_path):
    model = load_model(tiny.make(tmp_path / "llama"))
    model.tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + (
        tiny.TURNS
    )
    chat = [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi."}]
    with pytest.warns(UserWarning, match="takes no system turn"):
        told = harness.SteeredLM(model, chat=True).apply_chat_template(chat)
    assert told == model.render(["Hi."])[0]
    model.tokenizer.chat_template = model.has_chat_template = None
    with pytest.raises(WorkbenchError, match="no template"):
        harness.SteeredLM(model, chat=True)


# -- what can go wrong ---------------------------------------------------------------------------------------


def test_nothing_is_downloaded(long_model):
    with pytest.raises(WorkbenchError, match="cais/mmlu.*\n.*\n.*Nothing is downloaded here"):
        harness.run_tasks(long_model, {"Base": None}, ["mmlu_astronomy"])


@pytest.mark.parametrize("kwargs, message", [
    ({"data_files": {"test": "../out.jsonl"}}, "'../out.jsonl'.*\n.*\n.*inside 'tasks'"),
    ({"data_files": ["sums.jsonl", "missing.jsonl"]}, "'missing.jsonl'"),
    ({"data_files": {"test": "https://example.org/x.jsonl"}}, "https"),
])  # fmt: skip
def test_data_lies_inside_the_folder(kwargs, message, tmp_path, long_model):
    (tmp_path / "out.jsonl").write_text("{}")
    (tmp_path / "tasks").mkdir()
    name = write(tmp_path / "tasks", dataset_kwargs=kwargs)
    with pytest.raises(WorkbenchError, match=message):
        harness.run_tasks(long_model, {"Base": None}, [name], tmp_path / "tasks")


def test_bad_requests_are_refused(tmp_path, long_model, tiny_model, probes):
    name, none = write(tmp_path), {"Base": None}
    with pytest.raises(WorkbenchError, match="no task smus.*\nAllowed: sums"):
        harness.run_tasks(long_model, none, ["smus"], tmp_path)
    with pytest.raises(WorkbenchError, match="one string"):
        harness.run_tasks(long_model, none, name, tmp_path)
    with pytest.raises(WorkbenchError, match="no folder 'nowhere'"):
        harness.run_tasks(long_model, none, [name], tmp_path / "nowhere")
    write(tmp_path, dataset_path="pandas")
    with pytest.raises(WorkbenchError, match="kind 'pandas'.*\n.*json, csv"):
        harness.run_tasks(long_model, none, [name], tmp_path)
    with pytest.raises(WorkbenchError, match="'odd_things' were to be written.*\nFound: 3 and 4 choices"):
        harness.write_mmlu(tmp_path, pd.concat([items(), items(9, choices=3)]))
    with pytest.raises(WorkbenchError, match="Probes of llama were to be used with qwen2"):
        harness.SteeredLM(tiny_model("qwen2"), steers(probes))


def test_everything_is_left_as_it_was_and_nothing_is_printed(tmp_path, long_model, capfd, caplog, monkeypatch):
    import datasets
    import huggingface_hub

    write(tmp_path, output_type="generate_until", generation_kwargs={"until": ["\n"], "max_gen_toks": 2})

    def state():
        return (dict(os.environ), logging.getLogger().handlers[:], logging.getLogger("lm_eval").level,
                random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist(),
                datasets.are_progress_bars_disabled(), datasets.config.HF_HUB_OFFLINE,
                huggingface_hub.constants.HF_HUB_OFFLINE, os.getcwd(), sorted(os.listdir(tmp_path)))  # fmt: skip

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    before = state()
    harness.run_tasks(long_model, {"Base": None}, ["sums"], tmp_path, shots=0)
    assert state() == before
    with pytest.raises(WorkbenchError):
        harness.run_tasks(long_model, {"Base": None}, ["nothing"], tmp_path)
    assert state() == before and capfd.readouterr() == ("", "") and not caplog.records


def test_the_call_is_offline_whatever_was_imported_before(monkeypatch):
    import datasets.config
    import huggingface_hub

    places = (datasets.config, huggingface_hub.constants)
    for place in places:
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with harness._quiet():
        assert all(place.HF_HUB_OFFLINE for place in places) and os.environ["HF_HUB_OFFLINE"] == "1"
    assert not any(place.HF_HUB_OFFLINE for place in places) and "HF_HUB_OFFLINE" not in os.environ


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_lm_eval_is_imported_on_use_only():
    seen = python("import sys, workbench.evaluation; print([n for n in ('lm_eval', 'datasets') if n in sys.modules])")
    assert seen.stdout.strip() == "[]", seen.stderr
    code = "import os; os.environ.pop('HF_XET_HIGH_PERFORMANCE', 0); before = dict(os.environ)"
    code += "; import workbench.evaluation.harness; print(before == dict(os.environ))"
    assert python(code).stdout.strip() == "True"


def test_without_lm_eval_the_extra_is_named():
    seen = python("import sys; sys.modules['lm_eval'] = None; import workbench.evaluation.harness")
    assert "WorkbenchError" in seen.stderr and 'pip install "value-workbench[eval]"' in seen.stderr


def test_what_is_written_is_mmlus_own_format(tmp_path, long_model):
    """The contexts that lm-eval makes of the files are those of our own count, word for word."""
    table, seen = items(7), []
    lm = harness.SteeredLM(long_model)
    lm.loglikelihood = lambda asked: seen.extend(r.args for r in asked) or [(0.0, False)] * len(asked)  # type: ignore
    group = harness.write_mmlu(tmp_path, table)
    with harness._quiet():
        harness.run(lm, _loaded(tmp_path, group), bootstrap_iters=0)
    assert seen == [(c, f" {letter}") for c in choice_contexts(load_choices(table)) for letter in "ABCD"]


def _loaded(folder, name):
    loaded = harness._load([name], folder, str(folder / "cache"), "")
    for task in loaded["tasks"].values():
        task.set_config("num_fewshot", 5)
    return loaded
