"""The study: what is asked, what is kept, what survives a kill, and the same on Ray."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from spoken import WordJudge
from voiced import Foreign, Voice, give_voice

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.evaluation.answers import ask, select
from workbench.values import VALUES

QUESTIONS = pd.DataFrame(
    [(v, f"{v} {split} {i}", split) for v in VALUES for split in ("calibration", "test") for i in range(10)],
    columns=["value", "question", "split"],
)
UNRELATED = pd.DataFrame(
    [(f"{kind}{i}", kind, "yes", kind == "plan", "test") for kind in ("sum", "plan") for i in range(3)],
    columns=["prompt", "kind", "answer", "related", "split"],
)


@pytest.fixture()
def asked(monkeypatch):
    """(value, strength, prompts, decoding) of what was asked; half of a value's questions are won by strength 1."""
    calls = []

    def speak(model, prompts, steer=None, **decoding):
        strength, value = getattr(steer, "strength", 0.0), getattr(steer, "value", "")
        calls.append((value, strength, list(prompts), decoding))
        return [value if i < 5 * strength else "" for i, _ in enumerate(prompts)]

    give_voice(monkeypatch, speak)
    return calls


def methods():
    return {"Base": lambda v: wb.Base(), "M": lambda v: Voice(v, 1)}


# -- the plan ------------------------------------------------------------------------------------------


def test_evaluate_asks_test_questions_only_and_decodes_greedily_without_world(asked):
    table = wb.evaluate(Foreign(), methods(), QUESTIONS, WordJudge())
    assert all(" test " in prompt for _, _, prompts, _ in asked for prompt in prompts)
    assert all(decoding["temperature"] == 0 for *_, decoding in asked)
    csr = table.set_index(["method", "value"])["csr"]
    assert (csr["M"] == 0.5).all() and (csr["Base"] == 0).all()
    assert {"method", "value", "csr", "fr", "leakage", "n", "low", "high"} <= {*table.columns}


def test_without_a_judge_the_table_stays_empty_and_says_why(asked):
    table = wb.evaluate(Foreign(), methods(), QUESTIONS)
    assert table[["csr", "fr", "low", "high"]].isna().all(axis=None) and "no judge" in table.attrs["reason"]


def test_base_is_always_there_and_asked_once(asked):
    result = wb.study(Foreign(), {"M": lambda v: Voice(v, 1)}, QUESTIONS, WordJudge(), pooled=2, unrelated=UNRELATED)
    base = [call for call in asked if not call[0]]
    assert len(base) == len(VALUES) + 2, "own questions of each value, the pooled ones, the unrelated ones"
    rows = result.answers.groupby(["set", "method"]).size()
    assert rows["pooled", "Base"] == rows["pooled", "M"] == 10 * 20 and rows["unrelated", "Base"] == 10 * 3
    assert not any(prompt.startswith("plan") for _, _, prompts, _ in asked for prompt in prompts), "plans are related"
    assert result.answers["set"].unique().tolist() == ["own", "pooled", "unrelated"]


def test_seeds_and_temperatures_multiply_and_greedily_one_seed_is_enough(asked):
    wb.study(Foreign(), methods(), QUESTIONS, WordJudge(), temperature=[1.0, 0.0], seeds=[3, 4], pooled=1)
    told = {(len(prompts), d["temperature"], d["seed"]) for _, _, prompts, d in asked}
    assert told == {(10, 1.0, 3), (10, 1.0, 4), (10, 0.0, 3)}  # 10 own questions, 10 pooled ones


def test_negative_prompts_stand_before_the_questions_in_turn(asked):
    result = wb.study(Foreign(), methods(), QUESTIONS, WordJudge(), negative=True)
    behind = [d["instruction"] for value, _, _, d in asked if value == "power" and d["instruction"][0]]
    assert behind == [["low power"] * 10]
    assert set(result.answers["prompt"]) == {"none", "negative"}
    asked.clear()
    table = pd.DataFrame({"value": [*VALUES, *VALUES], "prompt": ["first"] * 10 + ["second"] * 10})
    wb.study(Foreign(), methods(), QUESTIONS, WordJudge(), negative=table)
    assert ["first", "second"] * 5 in [d["instruction"] for *_, d in asked]
    with pytest.raises(WorkbenchError, match="none for .*power"):
        wb.study(Foreign(), methods(), QUESTIONS, WordJudge(), negative=table[table["value"] != "power"])


def test_what_was_not_run_is_said(asked):
    missing = wb.study(Foreign(), methods(), QUESTIONS, WordJudge()).missing
    assert [line.split(":")[0] for line in missing] == [
        "no negative prompts", "no pooled questions", "no unrelated prompts", "no hard unrelated prompts",
        "greedy decoding only"]  # fmt: skip


def test_bad_requests_are_refused_before_anything_is_asked(asked):
    for wrong, told in (({"engine": "slurm"}, "Allowed: local, ray"), ({"split": "dev"}, "Allowed: 'calibration'")):
        with pytest.raises(WorkbenchError, match=told):
            wb.study(Foreign(), methods(), QUESTIONS, WordJudge(), **wrong)

    def refuses(self, model):
        raise WorkbenchError("not this model")

    bad = type("Bad", (Voice,), {"check": refuses})
    with pytest.raises(WorkbenchError, match="not this model"):
        wb.study(Foreign(), {**methods(), "B": lambda v: bad(v)}, QUESTIONS, WordJudge())
    assert not asked


def test_select_keeps_splits_apart():
    questions = pd.DataFrame({"value": ["power"] * 4, "question": list("abcd"), "split": ["calibration", "test"] * 2})
    assert list(select(questions, "test")["question"]) == ["b", "d"]
    assert list(select(questions, "test", limit=1)["question"]) == ["b"]


# -- what is kept --------------------------------------------------------------------------------------


def test_a_kept_study_is_read_back_and_grows_for_what_is_new(asked, tmp_path):
    first = wb.study(Foreign(), methods(), QUESTIONS, WordJudge(), store=tmp_path)
    again = wb.open_evaluation(tmp_path)
    pd.testing.assert_frame_equal(again.answers, first.answers)
    assert again.provenance == first.provenance and again.missing == first.missing and "M" in repr(again)
    asked.clear()
    wb.study(Foreign(), {**methods(), "N": lambda v: Voice(v, 2)}, QUESTIONS, WordJudge(), store=tmp_path)
    assert {strength for _, strength, *_ in asked} == {2}, "only the new method is asked"
    assert set(wb.open_evaluation(tmp_path).answers["method"]) == {"Base", "M", "N"}


def test_a_part_that_is_torn_is_computed_again(asked, tmp_path):
    first = wb.study(Foreign(), methods(), QUESTIONS, WordJudge(), store=tmp_path)
    parts = sorted((tmp_path / "parts").glob("*.parquet"))
    parts[0].write_bytes(parts[0].read_bytes()[:50])
    parts[1].write_bytes(parts[2].read_bytes())  # another part's answers under this name
    asked.clear()
    again = wb.study(Foreign(), methods(), QUESTIONS, WordJudge(), store=tmp_path)
    assert len(asked) >= 1
    pd.testing.assert_frame_equal(again.answers, first.answers)


def test_a_folder_without_a_whole_study_is_refused(asked, tmp_path):
    with pytest.raises(WorkbenchError, match="none"):
        wb.open_evaluation(tmp_path)
    wb.study(Foreign(), methods(), QUESTIONS, WordJudge(), store=tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(WorkbenchError, match="20 parts of one that was not ended"):
        wb.open_evaluation(tmp_path)


# -- with models ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def circle():
    return wb.load_model("embedded:circle")


@pytest.fixture(scope="module")
def probes(circle):
    return wb.fit_probes(circle, wb.load_pairs(), layers=[3], C=1e-5)


def test_answers_say_who_was_steered_and_how_hard(circle, probes):
    table = wb.load_unrelated().query("split == 'calibration'")
    questions = wb.load_questions()
    gate = wb.ProbeGate.fit(circle, questions.query("split == 'calibration'")["question"].tolist()[:60],
                            table.query("not related")["prompt"].tolist()[:60])  # fmt: skip
    asked = [questions["question"].iloc[-1], "What is two plus two?"]
    steer = wb.ConVA(probes, "power", target=0.8, layers=[3], gate=gate)
    rows = ask(circle, steer, asked, kl=True, max_new_tokens=8)
    assert rows["open"].tolist() == [True, False]
    assert rows["share"][0] > 0 and rows["share"][1] == 0 and rows["kl"][0] > rows["kl"][1] == 0
    base = ask(circle, wb.Base(), asked, max_new_tokens=8)
    assert base["open"].all() and base["answer"][1] == rows["answer"][1]
    assert rows["tokens"].tolist() == [len(ids) for ids in circle.encode(rows["answer"].tolist())]
    each = ask(circle, wb.Base(), asked, [circle.instruct("power"), None], max_new_tokens=8)
    alone = wb.generate(circle, asked[:1], instruction=circle.instruct("power"), max_new_tokens=8)
    assert each["answer"].tolist() == [*alone, base["answer"][1]]


def test_a_prompt_that_leaves_no_room_is_noted_and_not_cut(circle, monkeypatch):
    monkeypatch.setattr(circle, "context", 19)
    short, long = "What is two plus two?", "Should Tala rent a garage or go to Lisbon? " * 3
    rows = ask(circle, wb.ICA("power"), [short, long], max_new_tokens=3)
    assert rows["answer"].tolist() == ["", ""] and rows["note"][1].endswith("of 19 tokens"), "ICA's prefix is too long"
    base = ask(circle, wb.Base(), [short, long], max_new_tokens=3)
    assert base["note"][0] == "" and base["answer"][0] and base["tokens"].tolist()[1] == 0


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
import workbench as wb
model = wb.load_model("embedded:circle")
probes = wb.Probes.load(sys.argv[2], model)
methods = {"Base": lambda v: wb.Base(), "ConVA": lambda v: wb.ConVA(probes, v, target=.75, layers=[3])}
wb.study(model, methods, wb.load_questions(), limit=2, negative=True, store=sys.argv[1])
"""


def test_a_study_killed_three_times_gives_the_table_of_an_undisturbed_one(circle, probes, tmp_path):
    parts, seen, fitted = tmp_path / "parts", 0, probes.save(tmp_path / "probes.safetensors")
    for kill in (True, True, True, False):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path), str(fitted)],
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
        if kill:
            until = time.monotonic() + 120
            while len(list(parts.glob("*.parquet"))) < seen + 5 and time.monotonic() < until and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            seen = len(list(parts.glob("*.parquet")))
            assert process.returncode == -signal.SIGKILL and 5 <= seen < 40
            assert not (tmp_path / "manifest.json").exists()
        else:
            assert process.wait(timeout=300) == 0
    killed = wb.open_evaluation(tmp_path)
    methods = {"Base": lambda v: wb.Base(), "ConVA": lambda v: wb.ConVA(probes, v, target=0.75, layers=[3])}
    whole = wb.study(circle, methods, wb.load_questions(), limit=2, negative=True)
    pd.testing.assert_frame_equal(killed.answers, whole.answers)
    pd.testing.assert_frame_equal(killed.table(), whole.table())


def test_two_ray_workers_give_the_same_table(circle, probes):
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    questions = wb.load_questions()
    methods = {"Base": lambda v: wb.Base(), "ConVA": lambda v: wb.ConVA(probes, v, target=0.75, layers=[3])}
    here = wb.study(circle, methods, questions, limit=3)
    spread = wb.study(circle, methods, questions, limit=3, engine="ray", workers=2)
    pd.testing.assert_frame_equal(here.answers, spread.answers)
    pd.testing.assert_frame_equal(here.table(), spread.table())


def test_other_probes_are_other_parts(circle, probes, tmp_path):
    """The name and settings are the same, the numbers are not: nothing old may be taken for new."""
    other = wb.fit_probes(circle, wb.load_pairs(), layers=[3], C=1e-4)
    questions = wb.load_questions().query("value == 'power'")
    for own in (probes, other, other):
        wb.study(circle, {"ConVA": lambda v, own=own: wb.ConVA(own, v, target=0.9, layers=[3])}, questions, limit=2,
                 store=tmp_path)  # fmt: skip
    assert len(list((tmp_path / "parts").glob("*.parquet"))) == 3


def test_the_context_is_said_to_have_cut_answers_once(circle, monkeypatch):
    monkeypatch.setattr(circle, "context", 30)
    with pytest.warns(UserWarning, match="was full: Base") as told:
        wb.study(circle, {"Base": lambda v: wb.Base()}, wb.load_questions(), limit=2)
    assert len([one for one in told if "was full" in str(one.message)]) == 1


def test_a_reader_reads_the_answers(circle, probes):
    reader = wb.fit_probes(circle, wb.load_pairs(split="held-out"), layers=[4])
    table = wb.evaluate(circle, {"Base": lambda v: wb.Base(), "ICA": lambda v: wb.ICA(v)}, wb.load_questions(), limit=6,
                        reader=reader)  # fmt: skip
    means = table.groupby("method")["p_reader"].mean()
    assert means["ICA"] > means["Base"] + 0.1
    assert np.isfinite(table["p_reader"]).all()
