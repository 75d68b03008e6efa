"""What a judge's columns hold: asked once for equal answers, undefined where it cannot say, people by majority."""

import numpy as np
import pandas as pd
import pytest
from spoken import WordJudge

from workbench.embedded import judge as grammar
from workbench.errors import WorkbenchError
from workbench.evaluation.judges import ExactJudge, HumanJudge, judged
from workbench.panels import ReviewState
from workbench.prompts import load_pairs
from workbench.values import VALUES

NAN = float("nan")


def table(**columns) -> pd.DataFrame:
    """Four answers, the second twice, the last one missing; an index with repeats, as `concat` leaves it."""
    rows = {"value": ["power", "power", "security", "security", "power"],
            "question": ["Q1?", "Q2?", "Q2?", "Q2?", "Q3?"],
            "answer": ["power!", "* security", "* security", "power and security", ""],
            "note": ["", "", "", "", "79 of 64 tokens"]}  # fmt: skip
    return pd.DataFrame(rows | columns, index=[0, 1, 0, 1, 7])


class Counting(WordJudge):
    def __init__(self):
        self.asked = []

    def control(self, answer, value):
        self.asked.append((answer, value))
        return super().control(answer, value)


class Bulk:
    """Says of each answer how long its question is, in hundredths."""

    name = "bulk"

    def __init__(self):
        self.seen = []

    def many(self, questions, answers, values):
        self.seen += [(q, a, tuple(own)) for q, a, own in zip(questions, answers, values, strict=True)]
        scores = [dict.fromkeys(own, len(q) / 100) for q, own in zip(questions, values, strict=True)]
        return scores, [NAN] * len(answers)

    control = fluent = None


def test_all_values_are_judged_and_equal_answers_once():
    judge = Counting()
    answers = table()
    found = judged(answers, judge)
    assert list(found.columns) == [*answers.columns, "fluent", *VALUES] and list(found.index) == list(answers.index)
    pd.testing.assert_frame_equal(found[answers.columns], answers)
    assert sorted(judge.asked) == sorted((text, value) for text in set(answers["answer"][:4]) for value in VALUES)
    np.testing.assert_array_equal(found["power"], [1, 0, 0, 1, NAN])
    np.testing.assert_array_equal(found["security"], [0, 1, 1, 1, NAN])
    np.testing.assert_array_equal(found["fluent"], [1, 0, 0, 1, NAN])
    assert found["hedonism"].tolist()[:4] == [0] * 4 and found.iloc[4, 4:].isna().all()
    pd.testing.assert_frame_equal(judged(found, WordJudge()), found)  # what was there is replaced


def test_own_asks_only_for_the_row_s_value():
    judge = Counting()
    found = judged(table(), judge, "own")
    assert sorted(judge.asked) == [("* security", "power"), ("* security", "security"),
                                   ("power and security", "security"), ("power!", "power")]  # fmt: skip
    np.testing.assert_array_equal(found["power"], [1, 0, NAN, NAN, NAN])
    np.testing.assert_array_equal(found["security"], [NAN, NAN, 1, 1, NAN])
    assert found[list(VALUES)].notna().sum().sum() == 4


def test_a_judge_that_works_in_bulk_gets_questions_and_distinct_pairs():
    judge = Bulk()
    found = judged(table(question=["Q1?", "Q2?", "Q2?", "longer?", "Q3?"]), judge, "own")
    assert judge.seen == [("Q1?", "power!", ("power",)), ("Q2?", "* security", ("power", "security")),
                          ("longer?", "power and security", ("security",))]  # fmt: skip
    np.testing.assert_array_equal(found["security"], [NAN, NAN, 0.03, 0.07, NAN])
    assert found["fluent"].isna().all()
    judge.seen.clear()
    judged(table(answer="the same", note=""), judge)
    assert [(q, text) for q, text, _ in judge.seen] == [(q, "the same") for q in ("Q1?", "Q2?", "Q3?")]


@pytest.mark.parametrize("rows", [0, 4])
def test_tables_without_answers_are_judged_too(rows):
    empty = table(note="no answer")[:rows]
    for judge in (WordJudge(), Bulk()):
        for values in ("all", "own"):
            found = judged(empty, judge, values)
            assert len(found) == rows and found[["fluent", *VALUES]].isna().all().all()


@pytest.mark.parametrize(("said", "told"), [(2.0, "the score 2"), (-0.1, "the score -0.1"), ([1], "inhomogeneous"),
                                            ("yes", "yes"), (float("inf"), "the score inf")])  # fmt: skip
def test_a_judge_that_says_no_number_from_0_to_1_is_an_error(said, told):
    class Odd(WordJudge):
        def control(self, answer, value):
            return said if "*" in answer else NAN

    with pytest.raises(WorkbenchError, match=f"(?s)judged by words.*{told}.*Allowed: a number from 0 to 1, or NaN"):
        judged(table(), Odd())


def test_a_bulk_judge_that_forgets_answers_is_an_error():
    class Short(Bulk):
        def many(self, questions, answers, values):
            scores, fluent = super().many(questions, answers, values)
            return scores[1:], fluent

    with pytest.raises(WorkbenchError, match="3 answers were judged by bulk"):
        judged(table(), Short())


@pytest.mark.parametrize(("answers", "values", "told"), [
    (table(), "some", "values='some'"), (table().drop(columns="note"), "all", "no column note"),
    (table().drop(columns="value"), "own", "no column value"),
    (table(answer=["a", None, "b", "c", None]), "all", "a text"), (table(value="Power"), "own", "Did you mean 'power'"),
])  # fmt: skip
def test_tables_that_cannot_be_judged_are_refused(answers, values, told):
    with pytest.raises(WorkbenchError, match=told):
        judged(answers, WordJudge(), values)
    judged(table().drop(columns=["value", "question"]), WordJudge())  # what is not needed may be missing
    with pytest.raises(WorkbenchError, match="no column question"):
        judged(table().drop(columns="question"), Bulk())


def test_the_exact_judge_says_what_the_grammar_says():
    pairs = load_pairs("embedded")
    texts = [*pairs["positive"][::40], *pairs["negative"][::40], "Not a sentence of it.", ""]
    judge = ExactJudge()
    for text in texts:
        reading = grammar.read(text)
        assert judge.fluent(text) == reading.grammatical
        for value in VALUES:
            score = 0.0 if value not in reading.affirms else 0.5 if value in reading.denies else 1.0
            assert judge.control(text, value) == score
    assert judge.control(pairs["positive"].iloc[0], pairs["value"].iloc[0]) == 1
    with pytest.raises(WorkbenchError, match="To judge 'kindness'"):
        judge.control("", "kindness")
    assert judge.right("Red.", "Red.|Blue.") and not judge.right("Green.", "Red.|Blue.")


# --- people ---


def items(**columns) -> pd.DataFrame:
    rows = {"question": ["Q1?", "Q1?", "Q2?", "Q2?"], "text": ["a, \"b\"\nc", "b", "b", "NA"], "value": "power"}
    return pd.DataFrame(rows | columns)


def review(folder, name: str, labels: str, shown: pd.DataFrame, **options) -> ReviewState:
    """Labels by letter (y, p, n, a dot for none) in the items' order."""
    state = ReviewState(shown, name, folder / f"{name}.jsonl", **options)
    for row, letter in enumerate(labels):
        if letter != ".":
            state.position = state.order.index(row)
            state.judge({"y": "yes", "p": "partly", "n": "no"}[letter])
    return state


@pytest.mark.parametrize("exported", [True, False])
def test_people_judge_by_majority_with_ties_between(tmp_path, exported):
    """By item: yyn, yn, ppn, and nobody."""
    said = {"Ana": "yyp.", "Bo": "ynp.", "Cem": "n.n."}
    reviews = [review(tmp_path, name, labels, items()) for name, labels in said.items()]
    judge = HumanJudge(*[state.export() if exported else state.table() for state in reviews])
    answers = pd.DataFrame({"value": "power", "question": ["Q1?", "Q1?", "Q2?", "Q2?", "Q2?"],
                            "answer": ["a, \"b\"\nc", "b", "b", "NA", "a, \"b\"\nc"], "note": ""})  # fmt: skip
    found = judged(answers, judge)
    np.testing.assert_array_equal(found["power"], [1, 0.5, 0.5, NAN, NAN])
    assert found.drop(columns=[*answers, "power"]).isna().all().all()  # nobody was asked, of fluency either
    assert judge.control("b", "power") == 0.5  # y, n, p, p, n pooled: a tie of p and n
    assert judge.control("a, \"b\"\nc", "power") == 1 and np.isnan(judge.control("a", "power"))
    assert np.isnan(judge.fluent("b"))


def test_people_without_questions_are_found_by_the_answer_and_fluency_has_reviews_of_its_own(tmp_path):
    control = review(tmp_path, "Ana", "yn..", items().drop(columns=["question", "value"]), value="security")
    fluency = review(tmp_path, "Bo", "..ny", items())
    judge = HumanJudge(control.table(), fluency=[fluency.export()], value="security")
    answers = pd.DataFrame({"question": ["Q2?", "any?"], "answer": ["b", "b"], "note": ""})
    found = judged(answers, judge)
    np.testing.assert_array_equal(found["security"], [0, 0])
    np.testing.assert_array_equal(found["fluent"], [0, NAN])
    assert found["power"].isna().all() and judge.fluent("NA") == 1


def test_other_labels_need_scores_and_pairs_and_records_are_no_answers(tmp_path):
    rated = items().assign(annotator="Ana", label=["good", "bad", None, "good"])
    with pytest.raises(WorkbenchError, match=r"labels 'bad', 'good'\nAllowed: 'yes', 'partly', 'no'\n.*scores="):
        HumanJudge(rated)
    assert HumanJudge(rated, scores={"good": 1, "bad": 0}).control("NA", "power") == 1
    state = review(tmp_path, "Ana", "y", items())
    for wrong in (state.path, tmp_path / "missing.csv", rated.rename(columns={"text": "positive"})):
        with pytest.raises(WorkbenchError, match="An export of a review was asked for"):
            HumanJudge(wrong)
    with pytest.raises(WorkbenchError, match="without a column value.*\n.*value='power'"):
        HumanJudge(state.table().drop(columns="value"))
    with pytest.raises(WorkbenchError, match="no review"):
        HumanJudge()
    with pytest.raises(WorkbenchError, match="Did you mean 'power'"):
        HumanJudge(state.table(), value="Power")
