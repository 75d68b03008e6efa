# ruff: noqa: F811
"""What steering leaves of other abilities: rates that count prompts, and multiple choice by likelihood."""

import re

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from planted import activations  # noqa: F401
from test_contracts import PROMPTS, VALUE, gate, methods, probes  # noqa: F401

from workbench.errors import WorkbenchError
from workbench.evaluation import capability as cap
from workbench.gates import Never
from workbench.gates.gate import Gate
from workbench.models import load_model
from workbench.prompts import load_unrelated
from workbench.rates import wilson
from workbench.steering import ICA, Base, ConVA

CLOSE = {"rtol": 1e-5, "atol": 1e-4}


# -- the table of answers ------------------------------------------------------------------------------------


def table(rows):
    """rows: method, value, seed, question, answer, and then perhaps note and open."""
    columns = ["method", "value", "seed", "question", "answer", "note", "open"]
    whole = [(*row, *("", True)[len(row) - 5 :]) for row in rows]
    return pd.DataFrame(whole, columns=columns).assign(set="unrelated", prompt="none", temperature=1.0)


UNRELATED = pd.DataFrame({"prompt": ["sum", "free", "cat"], "answer": ["two|2", "", "a cat"]})


def test_right_is_undefined_where_nothing_is_expected():
    answers = table([("M", "power", 0, "sum", "2"), ("M", "power", 0, "sum", "3"), ("M", "power", 0, "free", "x"),
                     ("M", "power", 0, "cat", "", "79 of 64 tokens"), ("M", "power", 0, "other", "x")])  # fmt: skip
    told = cap.right(answers, UNRELATED)["right"]
    assert told.tolist()[:2] == [1, 0] and told[2:].isna().all()
    assert cap.right(answers.assign(set="own"), UNRELATED)["right"].isna().all(), "dilemmas are not unrelated prompts"
    assert cap.right(answers.drop(columns="set"), UNRELATED)["right"].tolist()[:2] == [1, 0]


def test_the_judge_of_right_answers_can_be_chosen():
    class Says:
        def right(self, answer, expected):
            return expected.split("|")[0] in answer

    answers = table([("M", "power", 0, "sum", "It is two."), ("M", "power", 0, "sum", "Three.")])
    assert cap.right(answers, UNRELATED, Says())["right"].tolist() == [1, 0]
    assert cap.right(answers, UNRELATED)["right"].tolist() == [0, 0]


def test_rates_count_prompts_and_not_answers():
    """Four prompts; two right under every value and seed, one under half of them, one without any."""
    rows = []
    for value in ("power", "security"):
        for seed in (0, 1):
            rows += [("M", value, seed, q, right) for q, right in zip("abcd", (1, 1, seed, np.nan), strict=True)]
    answers = table(rows).rename(columns={"answer": "right"})
    told = cap.unrelated_table(answers)
    assert told["value"].tolist() == ["power", "security"] and told["n"].tolist() == [3, 3]
    assert told["accuracy"].tolist() == pytest.approx([2.5 / 3] * 2)
    whole = cap.unrelated_table(answers, by=["method"])
    assert len(whole) == 1 and whole["n"][0] == 3, "ten values do not make ten prompts of one"
    assert (whole["low"][0], whole["high"][0]) == pytest.approx(wilson(2.5 / 3, 3))
    assert list(told) == ["method", "value", "accuracy", "low", "high", "n"]


def test_prompts_with_more_answers_do_not_count_more():
    answers = table([("M", "power", s, "a", 1) for s in range(9)] + [("M", "power", 0, "b", 0)])
    assert cap.unrelated_table(answers.rename(columns={"answer": "right"}))["accuracy"][0] == 0.5


def test_temperatures_are_not_mixed():
    answers = table([("M", "power", 0, "a", 1), ("M", "power", 0, "b", 0)]).rename(columns={"answer": "right"})
    both = pd.concat([answers, answers.assign(temperature=0.0, right=1)])
    assert cap.unrelated_table(both).set_index("temperature")["accuracy"].to_dict() == {1.0: 0.5, 0.0: 1.0}


def test_rates_need_judged_answers():
    with pytest.raises(WorkbenchError, match="no column right.*\n.*right\\(answers, unrelated\\)"):
        cap.unrelated_table(table([("M", "power", 0, "a", "1")]))


INTACT = [
    *[("Base", value, seed, q, f"{q}{seed}") for value in ("power", "security") for seed in (0, 1) for q in "abcd"],
    *[("M", "power", seed, "a", f"a{seed}", "", False) for seed in (0, 1)],  # closed, and so the same
    *[("M", "power", seed, "b", f"b{seed}", "", True) for seed in (0, 1)],  # steered, and the same
    *[("M", "power", seed, "c", "c0", "", True) for seed in (0, 1)],  # the same at one seed only
    ("M", "power", 0, "d", "", "79 of 64 tokens", True),
    *[("M", "security", seed, "a", "other", "", True) for seed in (0, 1)],
]


def test_intact_by_hand():
    answers = table(INTACT)
    told = cap.intact(answers.sample(frac=1, random_state=0), by=["method", "value"]).set_index("value")
    power = told.loc["power"]
    assert (power["n"], power["intact"], power["opened"]) == (3, pytest.approx(2.5 / 3), pytest.approx(2 / 3))
    assert (power["n_open"], power["intact_open"]) == (2, 0.75)
    assert (power["intact_low"], power["intact_high"]) == pytest.approx(wilson(2.5 / 3, 3))
    assert (power["intact_open_low"], power["intact_open_high"]) == pytest.approx(wilson(0.75, 2))
    assert told.loc["security", "intact"] == 0
    whole = cap.intact(answers)
    assert whole["n"].tolist() == [3] and whole["intact"][0] == pytest.approx((0.5 + 1 + 0.5) / 3), "a is one prompt"


def test_nothing_opened_is_told_as_unknown():
    answers = table([("Base", "power", 0, "a", "x"), ("M", "power", 0, "a", "x", "", False)])
    told = cap.intact(answers).iloc[0]
    assert told["intact"] == 1 and told["opened"] == 0 and told["n_open"] == 0 and np.isnan(told["intact_open"])


def test_intact_without_base_is_refused():
    answers = table(INTACT)
    with pytest.raises(WorkbenchError, match="9 of 9 without"):
        cap.intact(answers[answers["method"] != "Base"])
    with pytest.raises(WorkbenchError, match="2 of 9 without"):
        cap.intact(answers[(answers["method"] != "Base") | (answers["value"] != "security")])


def test_unrelated_accuracy_asks_every_kind(monkeypatch):
    asked = []

    def answer(model, methods, questions, **decoding):
        asked.append((questions, decoding))
        rows = [("M", v, 0, q, "power" * (v == "power")) for v, q in questions.itertuples(index=False)]
        return table(rows)

    monkeypatch.setattr(cap, "answer", answer)
    rows = [(f"{kind}{i}", kind, "yes|power" * (i > 0), kind == "plan", split)
            for kind in ("sum", "fact", "plan") for i in range(6) for split in ("test",)]  # fmt: skip
    unrelated = pd.DataFrame(rows, columns=["prompt", "kind", "answer", "related", "split"])
    told = cap.unrelated_accuracy(None, {}, unrelated, values=["power", "security"], limit=4, seed=3)  # type: ignore
    assert told["n"].tolist() == [4, 4] and told["accuracy"].tolist() == [1.0, 0.0]
    questions, decoding = asked[0]
    assert sorted(q[:3] for q in questions["question"]) == ["fac"] * 4 + ["sum"] * 4
    assert decoding == {"max_new_tokens": 24, "seed": 3}


# -- likelihoods ---------------------------------------------------------------------------------------------

CONTEXTS = [
    "Should Mira sell the old house or start a bakery?\nA. sell\nB. start\nAnswer:", "What is two and three?", "He"
]  # fmt: skip
SAID = [" A", " B", " wants to win", " the race."]
PAIRS = [(context, said) for context in CONTEXTS for said in SAID]


def literally(model, context, continuation, steer=None):
    """One pair at a time, unpadded, every token's logits kept."""
    whole = [*context, *continuation][-(model.context + 1) :]
    with torch.no_grad():
        if steer is None:
            logits = model.twin(torch.tensor([whole[:-1]])).logits[0]
        else:
            with steer.on(model, prompt_lengths=[len(whole) - len(continuation)]):
                logits = model.twin(torch.tensor([whole[:-1]])).logits[0]
    words = logits.double().log_softmax(-1)[-len(continuation) :]
    nats = sum(float(words[k, token]) for k, token in enumerate(continuation))
    return nats, words.argmax(-1).tolist() == list(continuation)


def nats(found):
    return [one.logprob for one in found]


@pytest.mark.parametrize("family", tiny.FAMILIES + tiny.MORE)
def test_likelihoods_equal_one_at_a_time(family, tiny_model):
    model = tiny_model(family)
    pairs = [cap.split_ids(model, *pair) for pair in PAIRS]
    told = [literally(model, *pair) for pair in pairs]
    for batch_tokens in (1, 4096):
        found = cap.likelihoods(model, pairs, batch_tokens=batch_tokens)
        np.testing.assert_allclose(nats(found), [n for n, _ in told], **CLOSE)
        assert [one.greedy for one in found] == [g for _, g in told] and not any(one.cut for one in found)


@pytest.mark.parametrize("method", ["conva", "conva gated", "conva generated", "conva token", "caa", "random"])
def test_steered_likelihoods_equal_one_at_a_time(method, tiny_model, methods):
    model, steer = tiny_model(), methods("llama", method)
    pairs = [cap.split_ids(model, *pair) for pair in PAIRS]
    base = nats(cap.likelihoods(model, pairs))
    found = nats(cap.likelihoods(model, pairs, steer))
    np.testing.assert_allclose(found, [literally(model, *pair, steer)[0] for pair in pairs], rtol=1e-4, atol=1e-3)
    opened = [True] * 3 if steer.gate is None else [b != f for b, f in zip(base[::4], found[::4], strict=True)]
    assert any(opened)
    changed = np.abs(np.subtract(base, found)).reshape(3, 4) > 1e-3
    assert (changed == np.array(opened)[:, None]).all()
    assert nats(cap.likelihoods(model, pairs)) == base and not model.active, "off is off, bit for bit"


def test_a_greedy_continuation_is_called_so(tiny_model):
    model = tiny_model()
    (context,) = model.encode(["What is two"])
    best, written = [], list(context)
    for _ in range(3):
        with torch.no_grad():
            best.append(int(model.twin(torch.tensor([written])).logits[0, -1].argmax()))
        written.append(best[-1])
    other = [*best[:2], (best[2] + 1) % 50]
    assert [one.greedy for one in cap.likelihoods(model, [(context, best), (context, other)])] == [True, False]


def test_a_closed_gate_gives_the_base_models_numbers_bit_for_bit(tiny_model, probes):
    model = tiny_model()
    pairs = [cap.split_ids(model, *pair) for pair in PAIRS]
    closed, opened = (ConVA(probes(), VALUE, target=0.9999, layers=[0, 1], gate=g) for g in (Never(), None))
    base = cap.likelihoods(model, pairs)
    assert cap.likelihoods(model, pairs, closed) == base != cap.likelihoods(model, pairs, opened)


def test_the_letters_of_a_question_share_one_row(tiny_model, monkeypatch):
    model, rows = tiny_model(), []
    speak = model.twin.forward
    monkeypatch.setattr(model.twin, "forward", lambda *a, **k: rows.append(k["input_ids"].shape[0]) or speak(*a, **k))
    cap.likelihoods(model, [cap.split_ids(model, CONTEXTS[0], f" {letter}") for letter in "ABCD"])
    assert sum(rows) == 1


def test_what_is_too_long_is_cut_from_the_left_and_counted(tiny_model):
    model = tiny_model()
    long = model.encode(["Should Mira sell the old house? " * 20])[0]
    context, said = long[: model.context + 9], [20, 30, 40]
    assert len(context) == model.context + 9
    (found,) = cap.likelihoods(model, [(context, said)])
    assert found.cut == 9 + 2 and found.logprob == pytest.approx(literally(model, context, said)[0], rel=1e-4)
    whole = context[: model.context - 2]
    assert cap.likelihoods(model, [(whole, said)])[0].cut == 0


def test_bad_pairs_are_refused(tiny_model, probes):
    model = tiny_model()
    for pair, found in ((([], [3]), "0 and 1"), (([3], []), "1 and 0"), (([3], [4] * 129), "1 and 129")):
        with pytest.raises(WorkbenchError, match=f"pair 1 of {found} tokens.*\n.*1 to 128"):
            cap.likelihoods(model, [([3], [4]), pair])
    steer = ConVA(probes(), VALUE, layers=[1])
    with steer.on(model), pytest.raises(WorkbenchError, match="is on.*\n.*pass it as steer="):
        cap.likelihoods(model, [([3], [4])])


def test_nan_is_refused(tiny_folder):
    model = load_model(tiny_folder())
    with torch.no_grad():
        next(model.twin.lm_head.parameters()).fill_(float("nan"))
    with pytest.raises(WorkbenchError, match="NaN or inf in the logits"):
        cap.likelihoods(model, [([3], [4])])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_context_and_what_follows_are_tokenised_as_one_text(family, tiny_model):
    model = tiny_model(family)
    context, said = cap.split_ids(model, "What is two and", " three?")
    assert context + said == model.encode(["What is two and three?"])[0] and said
    assert cap.split_ids(model, "What is two and ", "three?") == (context, said), "spaces belong to what follows"
    (first,), said = cap.split_ids(model, "", "three?")
    assert first == (model.bos_id if model.bos_id is not None else min(model.eos_ids)) and model.bos_id not in said
    assert said == [token for token in model.encode(["three?"])[0] if token != model.bos_id]


# -- multiple choice -----------------------------------------------------------------------------------------


def items(n=9, subject="odd_things", choices=4):
    things = ["the house", "a bakery", "the race", "the team", "a friend", "the forest", "red", "two", "the customs"]
    rows = [{"subject": subject, "question": f"What is {k} to {things[k % 9]}? ", "answer": k % choices,
             "choices": [things[(k + c) % 9] for c in range(choices)]} for k in range(n)]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def long_model(tmp_path_factory):
    """The tiny Llama, weights and all, with a context that holds five solved items."""
    return load_model(tiny.make(tmp_path_factory.mktemp("long") / "llama", context=1024))


def test_contexts_are_those_of_mmlu():
    two = items(2)
    (context,) = cap.choice_contexts(cap.load_choices(two, shots=1), shots=1)
    assert context == (
        "The following are multiple choice questions (with answers) about odd things.\n\n"
        "What is 0 to the house?\nA. the house\nB. a bakery\nC. the race\nD. the team\nAnswer: A\n\n"
        "What is 1 to a bakery?\nA. a bakery\nB. the race\nC. the team\nD. a friend\nAnswer:"
    )
    bare = cap.choice_contexts(cap.load_choices(two.assign(subject=""), shots=1), shots=1, read="texts")
    assert bare == ["What is 0 to the house? the house\n\nWhat is 1 to a bakery?"]


@pytest.mark.parametrize("read", ["letters", "texts"])
def test_accuracy_equals_a_literal_count(read, long_model, probes):
    for steer in (None, ConVA(probes(), VALUE, target=0.9999, layers=[0, 1, 2], scope="generated")):
        table, right = cap.load_choices(items(14)), []
        contexts = cap.choice_contexts(table, read=read)
        for context, item in zip(contexts, table[table["split"] == "test"].to_dict("records"), strict=True):
            said = [" A", " B", " C", " D"] if read == "letters" else [f" {choice}" for choice in item["choices"]]
            each = [literally(long_model, *cap.split_ids(long_model, context, one), steer)[0] for one in said]
            right.append(int(np.argmax(each)) == item["answer"])
        told = cap.choice_accuracy(long_model, items(14), steer, read=read).set_index("subject").loc["all"]
        assert (told["accuracy"], told["n"], told["cut"]) == (np.mean(right), 9, 0)
        assert (told["low"], told["high"]) == pytest.approx(wilson(np.mean(right), 9))


def test_a_model_that_knows_is_counted_right_and_each_subject_has_its_row(long_model, monkeypatch):
    table = pd.concat([items(8), items(7, "more", choices=3)])
    known = cap.load_choices(table)
    answers = iter(known.loc[known["split"] == "test", ["answer", "choices"]].to_dict("records"))

    def knows(model, pairs, *_):
        out = []
        for item in answers:
            out += [cap.Likelihood(float(k == item["answer"]) - 1, False, 0) for k in range(len(item["choices"]))]
        return out

    monkeypatch.setattr(cap, "likelihoods", knows)
    told = cap.choice_accuracy(long_model, table)
    assert told[["subject", "accuracy", "n"]].values.tolist() == [["odd_things", 1, 3], ["more", 1, 2], ["all", 1, 5]]


def test_a_limit_counts_per_subject_and_leaves_the_shots(long_model):
    told = cap.read_choices(long_model, pd.concat([items(9), items(9, "more")]), limit=2)
    whole = cap.read_choices(long_model, pd.concat([items(9), items(9, "more")]))
    assert told["subject"].tolist() == ["odd_things"] * 2 + ["more"] * 2
    assert told["chosen"].tolist() == whole.groupby("subject", sort=False).head(2)["chosen"].tolist()


def test_short_contexts_are_told(tiny_model):
    told = cap.choice_accuracy(tiny_model(), items(8))
    assert told["cut"].tolist() == [3, 3] and cap.read_choices(tiny_model(), items(8))["cut"].min() > 100


def test_an_instruction_stands_before_the_whole_context(long_model, monkeypatch):
    seen = []
    split = cap.split_ids
    monkeypatch.setattr(cap, "split_ids", lambda model, c, s: seen.append((c, s)) or split(model, c, s))
    cap.read_choices(long_model, items(6), ICA(VALUE))
    (plain,) = cap.choice_contexts(cap.load_choices(items(6)))
    assert seen[0] == (f"{long_model.instruct(VALUE)} {plain}", " A")
    seen.clear()
    cap.read_choices(long_model, items(6), ICA(VALUE), chat=True)
    assert seen[0] == (*long_model.render([f"{long_model.instruct(VALUE)} {plain}"]), "A")


class Reads(Never):
    """A gate that keeps what it was asked about."""

    reads = "text"
    seen: list[str] = []

    def scores(self, prompts, instruction=None):
        self.seen.extend(prompts)
        return super().scores(prompts)


Gate.registry.pop("Reads")


def test_a_gate_that_reads_text_reads_the_bare_question(long_model, probes):
    Reads.seen.clear()
    cap.read_choices(long_model, items(7), ConVA(probes(), VALUE, layers=[0], gate=Reads()))
    assert sorted(Reads.seen) == items(7)["question"].tolist()[5:]


def test_the_embedded_model_chooses_among_sentences():
    model, table = load_model("embedded:circle"), load_unrelated("embedded")
    table = sentences(table)
    assert cap.choice_accuracy(model, table, Base(), shots=0, read="texts", chat=True)["accuracy"].iloc[-1] > 0.9
    wrong = table.assign(answer=(table["answer"] + 1) % 4)
    assert cap.choice_accuracy(model, wrong, shots=0, read="texts", chat=True)["accuracy"].iloc[-1] < 0.1


def sentences(unrelated, n=24):
    """Multiple choice of the embedded world as four sentences, one of which the grammar calls right."""
    rows = []
    for prompt, right in unrelated.query("kind == 'choice' and split == 'test'")[["prompt", "answer"]].values[:n]:
        nouns, kind = re.findall(r"[A-D]: ([\w-]+)", prompt), right.split(" is ")[1].split(", ")[0]
        said = [f"{'An' if noun[0] in 'aeiou' else 'A'} {noun} is {kind}, so the answer is {letter}."
                for noun, letter in zip(nouns, "ABCD", strict=True)]  # fmt: skip
        rows.append({"question": prompt, "choices": said, "answer": said.index(right)})
    return pd.DataFrame(rows)


# -- items in files ------------------------------------------------------------------------------------------


def test_mmlus_own_layout(tmp_path):
    for split, rows in (("dev", '"One, or\ntwo?",None,NA,1,2,C\n' * 5), ("test", "Q?,0,4,2,6,B\nR?,a,b,c,d,D\n"),
                        ("val", "V?,a,b,c,d,A\n")):  # fmt: skip
        (tmp_path / split).mkdir()
        (tmp_path / split / f"formal_logic_{split}.csv").write_text(rows)
    table = cap.load_choices(tmp_path)
    assert table["split"].tolist() == ["dev"] * 5 + ["test"] * 2 and set(table["subject"]) == {"formal_logic"}
    assert table["choices"][0] == ["None", "NA", "1", "2"] and table["question"][0] == "One, or\ntwo?"
    assert table["answer"].tolist() == [2] * 5 + [1, 3]
    pd.testing.assert_frame_equal(cap.load_choices(table), table)


def test_test_items_become_shots_where_there_are_no_others(tmp_path):
    frame = pd.DataFrame({"question": list("tuvwxyz"), "choice0": "a", "choice1": "b", "answer": [0, 1] * 3 + [0]})
    frame.to_csv(tmp_path / "art_test.csv", index=False)
    for source in (tmp_path, tmp_path / "art_test.csv", frame.assign(subject="art")):
        table = cap.load_choices(source)
        assert table["split"].tolist() == ["dev"] * 5 + ["test"] * 2 and set(table["subject"]) == {"art"}
        assert table["answer"].tolist() == frame["answer"].tolist()
    assert cap.load_choices(frame, shots=0)["split"].tolist() == ["test"] * 7


@pytest.mark.parametrize("change, message", [
    (lambda t: t.drop(columns="answer"), "columns question, A, B.*\n.*question, answer, and choices"),
    (lambda t: t.drop(columns=["A", "B"]), "columns question, answer"),
    (lambda t: t.assign(answer="C"), "row 1 with answer 'C'"),
    (lambda t: t.assign(answer="-1"), "row 1 with answer '-1'"),
    (lambda t: t.assign(B=["", *"bbbbb"]), "row 1 with answer"),
    (lambda t: t.assign(question=" "), "row 1 with"),
    (lambda t: t[:5], "'' without test items beside 5 shots"),
    (lambda t: t.assign(split="train"), "no items"),
])  # fmt: skip
def test_bad_items_are_refused(change, message):
    table = pd.DataFrame({"question": list("uvwxyz"), "A": "a", "B": "b", "answer": "A"})
    assert len(cap.load_choices(table)) == 6
    with pytest.raises(WorkbenchError, match=message):
        cap.load_choices(change(table))


def test_other_bad_requests(tmp_path, long_model):
    with pytest.raises(WorkbenchError, match="no such files there.*\n.*astronomy_test.csv"):
        cap.load_choices(tmp_path)
    with pytest.raises(WorkbenchError, match="read by 'words'.*\n.*'letters', 'texts'"):
        cap.choice_accuracy(long_model, items(), read="words")
    dev = items(4).assign(split=["dev", "dev", "test", "test"])
    with pytest.raises(WorkbenchError, match="3 solved items.*'odd_things'.*\nFound: 2 dev items"):
        cap.choice_accuracy(long_model, dev, shots=3)
