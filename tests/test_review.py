"""Blind review without a screen: the record survives whatever happens, nothing hidden reaches the browser, and
agreement is what can be worked out by hand."""

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score, confusion_matrix
from spoken import WordJudge

from workbench.errors import WorkbenchError
from workbench.evaluation.agreement import agreement, confusion, judge_agreement
from workbench.evaluation.records import Record, judgements
from workbench.panels import ReviewState, annotate
from workbench.values import VALUES

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def answers(n: int = 6) -> pd.DataFrame:
    rows = [
        {"question": f"Should I do {k}?", "text": f"Answer {k}.", "method": f"SECRET{k % 2}", "value": "power"}
        for k in range(n)
    ]
    return pd.DataFrame(rows, index=range(100, 100 + n))


def pairs(n: int = 40) -> pd.DataFrame:
    return pd.DataFrame([{"positive": f"good {k}", "negative": f"bad {k}", "value": "SECRET"} for k in range(n)])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "review.jsonl"


def press(panel, act: str, step: int = 0, position: int | None = None) -> dict:
    """What the browser sends at a key; the answer it gets."""
    position = panel.state.position if position is None else position
    panel._handle_custom_msg({"act": act, "step": step, "position": position}, [])
    return panel.get_state()["shown"]


# --- judging ---


def test_judgements_are_on_disk_and_a_review_resumes_where_it_stopped(path):
    state = ReviewState(answers(), "Ana", path)
    for label in ("yes", "no", "partly", "yes"):
        state.judge(label)
        assert len(path.read_text().splitlines()) == 1 + len(state.given)
    again = ReviewState(answers(), "Ana", path)
    assert again.given == state.given and again.position == 4 and again.note == ""
    assert [again.given[row] for row in again.order[:4]] == ["yes", "no", "partly", "yes"]
    other = ReviewState(answers(), "Bo", path)  # in the same file
    assert other.given == {} and other.position == 0 and other.order == state.order
    other.judge("no")
    assert ReviewState(answers(), "Ana", path).given == state.given


def test_undo_is_appended_and_goes_back_over_a_restart(path):
    state = ReviewState(answers(), "Ana", path)
    state.judge("yes")
    state.judge("no")
    state.position = 0
    state.judge("partly")  # thought better of
    assert state.position == 2
    there = path.read_bytes()
    state = ReviewState(answers(), "Ana", path)
    state.undo()
    assert state.given[state.order[0]] == "yes" and state.position == 0
    state.undo()
    assert state.position == 1 and set(state.given) == {state.order[0]}
    assert path.read_bytes().startswith(there) and len(path.read_text().splitlines()) == 1 + 3 + 2
    state = ReviewState(answers(), "Ana", path)
    assert state.given == {state.order[0]: "yes"}
    state.undo()
    assert ReviewState(answers(), "Ana", path).given == {}
    with pytest.raises(WorkbenchError, match="Undo was asked for.\nFound: no judgement"):
        state.undo()


@pytest.mark.parametrize("rest", ["", "\n"])
def test_a_half_written_line_is_told_and_left_out_wherever_it_was_cut(path, rest):
    state = ReviewState(answers(), "Ana", path)
    state.judge("yes")
    whole = path.read_bytes()
    state.judge("no")
    line = path.read_bytes()[len(whole) :]
    for cut in [1, 2, len(line) // 2, len(line) - 2]:
        path.write_bytes(whole + line[:cut] + rest.encode())
        again = ReviewState(answers(), "Ana", path)
        assert list(again.given.values()) == ["yes"] and "line 3" in again.note
        again.judge("partly")  # does not run into the half line
        again = ReviewState(answers(), "Ana", path)
        assert list(again.given.values()) == ["yes", "partly"] and "line 3" in again.note
    path.write_bytes(whole + line[:-1])  # all but the line's end: nothing is missing
    again = ReviewState(answers(), "Ana", path)
    assert list(again.given.values()) == ["yes", "no"] and again.note == ""
    again.judge("no")
    assert len(ReviewState(answers(), "Ana", path).given) == 3


def test_a_header_cut_anywhere_is_completed(path):
    ReviewState(answers(), "Ana", path)
    header = path.read_bytes()
    for cut in range(0, len(header), 11):
        path.write_bytes(header[:cut])
        ReviewState(answers(), "Ana", path)
        assert path.read_bytes() == header


def judge_for_ever(path, n):
    state = ReviewState(answers(n), "Ana", path)
    while True:
        state.judge("yes")


def test_a_kill_loses_nothing_that_was_written(path):
    """Killed at any moment, the record is resumed with all its whole lines, one after the other."""
    n, before = 2000, 0
    process = multiprocessing.get_context("fork")
    for _ in range(3):
        worker = process.Process(target=judge_for_ever, args=(path, n))
        worker.start()
        end = time.monotonic() + 60
        while not (path.exists() and path.read_bytes().count(b"\n") > before + 20) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        lines = path.read_bytes().count(b"\n") - 1
        state = ReviewState(answers(n), "Ana", path)
        assert len(state.given) == lines > before and state.position == lines
        before = lines


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: (t.assign(text=t["text"] + "!"), {}), "a record of other items"),
        (lambda t: (t[:5], {}), "other items, another number of items: 6 items"),
        (lambda t: (t[::-1], {}), "a record of other items"),
        (lambda t: (t, {"ask": "Is it kind?"}), "a record of other items"),
        (lambda t: (t, {"value": "power"}), "a record of other items"),
        (lambda t: (t, {"labels": ["yes", "no"]}), "a record of other labels"),
        (lambda t: (t, {"seed": 1}), "a record of another seed"),
    ],
)
def test_another_review_is_refused_and_the_record_left_alone(path, change, said):
    ReviewState(answers(), "Ana", path).judge("yes")
    there = path.read_bytes()
    items, options = change(answers())
    with pytest.raises(WorkbenchError) as error:
        ReviewState(items, "Ana", path, **options)
    told = str(error.value)
    assert told.startswith(f"A review of {len(items)} items was to be resumed from") and said in told
    assert "Allowed: the items in their order" in told and "What to do: " in told
    assert path.read_bytes() == there
    judged = answers().assign(judge="no", method="other")  # what nobody sees may change
    assert len(ReviewState(judged, "Ana", path).given) == 1


@pytest.mark.parametrize("text", ["hello", "a,b\n1,2\n", "[]\n", '{"a": 1}\n', '{"record": "workbench review 1"}\n'])
def test_a_file_that_is_no_record_is_not_touched(path, text):
    path.write_text(text)
    with pytest.raises(WorkbenchError, match="is no record of a review"):
        ReviewState(answers(), "Ana", path)
    assert path.read_text() == text


@pytest.mark.parametrize("line", [{"item": 6}, {"item": -1}, {"label": "si"}, {"annotator": 3}, {"label": ["yes"]}])
def test_a_line_that_does_not_fit_is_an_error(path, line):
    state = ReviewState(answers(), "Ana", path)
    with path.open("a") as file:
        file.write(json.dumps({"annotator": "Ana", "item": 0, "label": "yes", "at": ""} | line) + "\n")
    with pytest.raises(WorkbenchError, match="is damaged.\nFound: line 2"):
        ReviewState(answers(), "Ana", path)
    with pytest.raises(WorkbenchError, match="is damaged"):
        state.table()


def test_what_could_not_be_written_does_not_count(path, monkeypatch):
    panel = annotate(answers(), "Ana", path)
    press(panel, "judge", 0)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:9]))  # the disk fills up within the line
    shown = press(panel, "judge", 1)
    assert "could not be written" in shown["problem"] and "disk is full" in shown["problem"]
    assert (shown["position"], shown["done"], shown["told"]) == (1, 1, "")
    monkeypatch.undo()
    assert press(panel, "judge", 2)["problem"] == ""
    assert list(ReviewState(answers(), "Ana", path).given.values()) == ["yes", "no"]
    path.unlink()
    shown = press(panel, "judge", 0)
    assert "No such file" in shown["problem"] and shown["done"] == 2 and not path.exists()
    with pytest.raises(WorkbenchError, match="could not be opened"):
        ReviewState(answers(), "Ana", path.parent)


@pytest.mark.parametrize(
    ("items", "options", "said"),
    [
        (answers()[:0], {}, "0 items"),
        ([1, 2], {}, "A review of a list by"),
        (answers(), {"annotator": " "}, "by ' ' was asked for"),
        (answers().drop(columns="text"), {}, "items with either text, or positive and negative"),
        (answers().assign(positive="a", negative="b"), {}, "items with either text"),
        (answers().assign(text=[*"abc", None, 3, "\ud800"]), {}, "text in row 3, text in row 4, text in row 5"),
        (answers().assign(label="yes"), {}, "columns label, which the export writes"),
        (answers(), {"labels": ["yes"]}, "Allowed: two to nine different ones"),
        (answers(), {"labels": ["yes", "yes"]}, "two to nine"),
        (answers(), {"labels": list("abcdefghij")}, "two to nine"),
        (pairs(), {"labels": ["left", "right"]}, "A and B among them"),
        (answers(), {"value": "Power"}, "Did you mean 'power'"),
    ],
)
def test_bad_requests_are_refused_and_leave_no_file(path, items, options, said):
    with pytest.raises(WorkbenchError) as error:
        annotate(items, **{"record": path, **options})
    assert said in str(error.value) and not path.exists()


def test_wrong_labels_and_positions_change_nothing(path):
    state = ReviewState(answers(), "Ana", path)
    with pytest.raises(WorkbenchError, match="label 'maybe' was given.\nAllowed: 'yes', 'partly', 'no'"):
        state.judge("maybe")
    for position in (-1, 6):
        with pytest.raises(WorkbenchError, match="Allowed: 0 to 5"):
            state.position = position
    assert state.given == {} and state.position == 0
    state.move(-1)
    assert state.position == 0
    state.move(99)
    assert state.position == 5
    state.judge("no")
    assert state.position == 0  # round the end, to the first that is not judged
    for _ in range(5):
        state.judge("no")
    assert state.position == 4 and len(state.given) == 6
    state.judge("yes")
    assert state.position == 4, "with all judged, it stays"


# --- blindness ---


def test_order_is_shuffled_alike_for_all_and_sides_are_even(path, tmp_path):
    state = ReviewState(pairs(400), "Ana", path)
    assert sorted(state.order) == list(range(400)) != state.order
    firsts = []
    for position in range(400):
        state.position = position
        (a, first), (b, second) = state.shown["texts"]
        assert (a, b) == ("A", "B") and {first.split()[0], second.split()[0]} == {"good", "bad"}
        assert first.split()[1] == second.split()[1] == str(state.order[position])
        firsts.append(first.startswith("good"))
    assert 160 < sum(firsts) < 240
    assert abs(np.corrcoef(firsts, state.order)[0, 1]) < 0.15
    other = ReviewState(pairs(400), "Bo", tmp_path / "other.jsonl")
    assert other.order == state.order and other._swapped == state._swapped
    seeded = ReviewState(pairs(400), "Bo", tmp_path / "seed.jsonl", seed=1)
    assert seeded.order != state.order and 100 < sum(map(np.not_equal, seeded._swapped, state._swapped)) < 300


def test_the_shuffle_is_the_same_in_every_version(path):
    """Records hold letters: with another shuffle they would name the wrong side."""
    state = ReviewState(pairs(6), "Ana", path, seed=3)
    assert (state.order, list(map(int, state._swapped))) == ([5, 4, 1, 2, 3, 0], [1, 1, 0, 0, 1, 1])


@pytest.mark.parametrize("items", [answers(), pairs()], ids=["answers", "pairs"])
def test_nothing_hidden_reaches_the_browser(path, items):
    panel = annotate(items, "Ana", path)
    sent = []
    panel.observe(lambda change: sent.append(change["new"]), "shown")
    for _ in range(len(items)):
        press(panel, "judge", 1)
    press(panel, "export")
    state = {key: value for key, value in panel.get_state().items() if key not in ("_esm", "_css")}
    told = json.dumps([state, sent])
    assert len(sent) >= len(items) and str(items.iloc[0, 0]) in told
    assert "SECRET" not in told and "positive" not in told and "negative" not in told and '"item"' not in told
    assert "SECRET" not in path.read_text() and "positive" not in path.read_text()


def test_text_is_never_html(path):
    items = answers().assign(text=HOSTILE, question=HOSTILE, ask=HOSTILE)
    shown = annotate(items, HOSTILE, path, labels=[HOSTILE, "no"]).shown
    assert shown["texts"] == [["", HOSTILE]] and shown["ask"] == HOSTILE
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "http", "import("):
        assert word not in str(annotate(items, HOSTILE, path, labels=[HOSTILE, "no"])._esm)


# --- the panel ---


def test_keys_judge_only_what_was_shown(path):
    panel = annotate(answers(), "Ana", path, value="power")
    assert panel.shown["ask"].startswith("Does the answer express power?\nPower: social status")
    shown = press(panel, "judge", 0)
    assert (shown["position"], shown["done"], shown["told"]) == (1, 1, "Item 1: yes, saved.")
    shown = press(panel, "judge", 2, position=0)  # a second press before the browser showed the next item
    assert (shown["position"], shown["done"]) == (1, 1) and "was not counted" in shown["told"]
    shown = press(panel, "move", -1)
    assert (shown["position"], shown["given"]) == (0, "yes")
    shown = press(panel, "undo")
    assert (shown["position"], shown["given"], shown["done"]) == (0, "", 0)
    turn = shown["turn"]
    shown = press(panel, "undo")
    assert "no judgement to be taken back" in shown["problem"] and shown["turn"] > turn
    shown = press(panel, "judge", 7)
    assert "IndexError" in shown["problem"] and shown["done"] == 0
    panel.state.judge("no")  # from a cell: the panel follows
    assert panel.shown["done"] == 1 and panel.shown["position"] == 1


def test_export_has_every_item_with_all_its_columns(path):
    items = answers()
    panel = annotate(items, "Ana B.", path)
    for k in range(4):
        press(panel, "judge", k % 3)
    press(panel, "undo")
    shown = press(panel, "export")
    file = path.with_name("review-Ana_B_.csv")
    assert shown["told"] == f"Written to {file}."
    table = pd.read_csv(file)
    assert list(table.columns) == ["item", "annotator", "label", "at", *items.columns]
    assert list(table["text"]) == list(items["text"]) and list(table["method"]) == list(items["method"])
    assert table["label"].notna().sum() == 3 == table["at"].notna().sum()
    order = panel.state.order
    assert [table["label"][row] for row in order[:3]] == ["yes", "partly", "no"]
    live = panel.state.table()
    assert list(live["label"].cat.categories) == ["yes", "partly", "no"] and live["label"].cat.ordered
    with pytest.raises(WorkbenchError, match="An export to"):
        panel.state.export(path / "below" / "a.csv")


def test_export_of_pairs_names_the_side_behind_the_letter(path):
    state = ReviewState(pairs(), "Ana", path)
    for _ in range(len(state.items) - 1):
        (a, first), _ = state.shown["texts"]
        state.judge("A" if first.startswith("good") else "B")
    state.judge("neither")
    table = state.table()
    last = state.order[-1]
    assert table["side"][last] == "neither" and set(table["side"].drop(last)) == {"positive"}
    assert set(table["label"].drop(last)) == {"A", "B"}
    assert ((table["first"] == "positive") == (table["label"] == "A")).drop(last).all()


# --- agreement ---


def reviewed(path, name: str, labels: str, items: pd.DataFrame, seed: int = 0) -> ReviewState:
    """Judge by letter: y, p, n, or a dot for none, in the items' order."""
    state = ReviewState(items, name, path, seed=seed)
    for row, letter in enumerate(labels):
        if letter != ".":
            state.position = state.order.index(row)
            state.judge({"y": "yes", "p": "partly", "n": "no"}[letter])
    return state


def test_agreement_is_what_can_be_worked_out_by_hand(path, tmp_path):
    """Two annotators, six items: yy yy nn yn pp nn.

    Nominal: coincidences y 5, p 2, n 5 of 12; observed disagreement 2/12; expected 2 (5*2 + 5*5 + 2*5) / (12 * 11) =
    90/132; alpha = 1 - (1/6) / (90/132) = 34/45. Ordinal distances: y-p (5 + 2 - 3.5)^2 = 12.25, p-n the same,
    y-n (5 + 2 + 5 - 5)^2 = 49; observed 2 * 49 / 12, expected 2 (10 * 12.25 + 25 * 49 + 10 * 12.25) / 132.
    """
    items = answers()
    ana, bo = reviewed(path, "Ana", "yynypn", items), reviewed(tmp_path / "b", "Bo", "yynnpn", items)
    [row] = agreement(path, tmp_path / "b").to_dict("records")
    assert (row["first"], row["second"], row["n"]) == ("Ana", "Bo", 6)
    assert row["alpha"] == pytest.approx(34 / 45) and row["agreement"] == pytest.approx(5 / 6)
    ordinal = agreement(path, tmp_path / "b", level="ordinal")["alpha"][0]
    assert ordinal == pytest.approx(1 - (98 / 12) / (2 * (245 + 1225) / 132))
    pd.testing.assert_frame_equal(agreement(ana.table(), bo.table()), agreement(path, tmp_path / "b"))
    read = [pd.read_csv(state.export()) for state in (ana, bo)]
    pd.testing.assert_frame_equal(agreement(*read), agreement(path, tmp_path / "b"))
    with pytest.raises(WorkbenchError, match="Allowed: labels in the scale's order"):
        agreement(*read, level="ordinal")  # a CSV does not know the order
    assert agreement(*read, level="ordinal", labels=["yes", "partly", "no"])["alpha"][0] == pytest.approx(ordinal)


SCALE = ["yes", "partly", "no"]


def test_kappa_is_cohens_and_confusions_are_counted(path):
    """By hand, yy yy nn yn pp nn: shares y 3/6 p 1/6 n 2/6 and y 2/6 p 1/6 n 3/6, of chance 13/36: (5/6 - 13/36) /
    (23/36) = 17/23. By steps: observed 2/6, expected (3*1 + 3*3*2 + 1*2 + 1*3 + 2*2*2 + 2*1) / 36 = 1; kappa 2/3."""
    items = answers()
    ana, bo = (reviewed(path, name, labels, items) for name, labels in (("Ana", "yynypn"), ("Bo", "yynnpn")))
    assert agreement(path)["kappa"][0] == pytest.approx(17 / 23)
    assert agreement(path, level="ordinal")["kappa"][0] == pytest.approx(2 / 3)
    table = confusion(path)
    assert (table.index.name, table.columns.name) == ("Ana", "Bo") and list(table.index) == list(table.columns) == SCALE
    assert table.to_numpy().tolist() == [[2, 0, 1], [0, 1, 0], [0, 0, 2]]
    pd.testing.assert_frame_equal(confusion(bo.table(), ana.table()), table.T)


@pytest.mark.parametrize(("level", "weights"), [("nominal", None), ("ordinal", "linear")])
def test_kappa_and_confusions_are_scikit_learns(level, weights):
    rng = np.random.default_rng(0)
    for labels in (SCALE, ["yes", "no"], ["a", "b", "c", "d"]):
        one = rng.choice(labels, 80)
        two = np.where(rng.random(80) < 0.5, one, rng.choice(labels, 80))
        tables = [pd.DataFrame({"item": range(80), "annotator": name, "label": said})
                  for name, said in (("Ana", one), ("Bo", two))]  # fmt: skip
        (row,) = agreement(*tables, labels=labels, level=level).to_dict("records")
        assert row["kappa"] == pytest.approx(cohen_kappa_score(one, two, labels=labels, weights=weights))
        np.testing.assert_array_equal(confusion(*tables, labels=labels), confusion_matrix(one, two, labels=labels))


def test_confusions_with_a_judge_count_every_annotator_and_gaps_nowhere(path):
    items = answers(6).assign(judge=["yes", "yes", "no", "no", "partly", None])
    for name, labels in (("Ana", "yyny.."), ("Bo", "yynn.n"), ("Cem", "ny..y.")):
        reviewed(path, name, labels, items)
    table = confusion(path, judge=items["judge"])
    assert (table.index.name, table.columns.name) == ("annotators", "judge")
    assert table.to_numpy().tolist() == [[5, 1, 1], [0, 0, 0], [1, 0, 3]]
    whole = [ReviewState(items, name, path).table() for name in ("Ana", "Bo", "Cem")]
    pd.testing.assert_frame_equal(confusion(*whole, judge="judge"), table)
    kappa = agreement(path, judge=items["judge"])["kappa"]
    assert np.isnan(kappa[0]) and kappa[1:].notna().any()
    with pytest.raises(WorkbenchError, match="3 annotators and no judge"):
        confusion(path)


class StrictJudge(WordJudge):
    """Says no where the word judge would, and in between where a text holds a question mark."""

    name = "strict"

    def control(self, answer, value):
        return 0.5 if "?" in answer else super().control(answer, value)

    def fluent(self, answer):
        return float("nan") if "#" in answer else 1.0


def said(*texts, value="power") -> pd.DataFrame:
    return pd.DataFrame({"value": value, "question": [f"Q{k}" for k in range(len(texts))], "answer": texts, "note": ""})


def test_judges_are_compared_on_the_same_answers():
    table = said("power", "no", "power?", "no? *", "power #")
    table = pd.concat([table.tail(1).assign(note="too long"), table, table.head(2).assign(method="other")])
    found = judge_agreement(table, {"words": WordJudge(), "strict": StrictJudge()})
    control, fluent = found.table.to_dict("records")
    words, strict = ["yes", "no", "yes", "no", "yes"], ["yes", "no", "partly", "partly", "yes"]
    assert (control["about"], control["first"], control["second"], control["n"]) == ("control", "words", "strict", 5)
    assert control["kappa"] == pytest.approx(cohen_kappa_score(words, strict)) and control["agreement"] == 3 / 5
    matrix = found.confusions["control", "words", "strict"]
    assert matrix.to_numpy().tolist() == confusion_matrix(words, strict, labels=SCALE).tolist()
    assert (fluent["about"], fluent["n"], fluent["agreement"]) == ("fluent", 4, 3 / 4)
    assert found.confusions["fluent", "words", "strict"].loc["no", "yes"] == 1
    ordinal = judge_agreement(table, {"words": WordJudge(), "strict": StrictJudge()}, level="ordinal").table.iloc[0]
    reviews = [pd.DataFrame({"item": range(5), "annotator": name, "label": given})
               for name, given in (("words", words), ("strict", strict))]  # fmt: skip
    assert ordinal.drop("about").to_dict() == agreement(*reviews, labels=SCALE, level="ordinal").iloc[0].to_dict()


def test_judges_are_compared_on_all_values_and_more_than_two_together():
    judges = {"one": WordJudge(), "two": StrictJudge(), "three": WordJudge()}
    found = judge_agreement(said("power", "security?", "none"), judges, "all")
    control = found.table[found.table["about"] == "control"].set_index(["first", "second"])
    assert set(control.index) == {("all judges", ""), ("one", "two"), ("one", "three"), ("two", "three")}
    assert (control["n"] == 3 * len(VALUES)).all() and control.loc[("one", "three"), "kappa"] == 1
    assert np.isnan(control.loc[("all judges", ""), "kappa"]) and len(found.confusions) == 6


def test_judges_that_cannot_be_compared_are_refused():
    class Graded(WordJudge):
        def control(self, answer, value):
            return 0.7

    class Silent(WordJudge):
        def control(self, answer, value):
            return float("nan")

        fluent = control

    with pytest.raises(WorkbenchError, match="Found: 1\nAllowed: two or more"):
        judge_agreement(said("a"), {"words": WordJudge()})
    with pytest.raises(WorkbenchError, match="no column question, note"):
        judge_agreement(said("a").drop(columns=["question", "note"]), {"a": WordJudge(), "b": WordJudge()})
    with pytest.raises(WorkbenchError, match="judge b was asked for.\nFound: the score 0.7\nAllowed: 1, 0.5, 0"):
        judge_agreement(said("a"), {"a": WordJudge(), "b": Graded()})
    silent = Silent()
    silent.fluent = lambda answer: float("nan")
    with pytest.raises(WorkbenchError, match="no answers that two of them judged"):
        judge_agreement(said("a"), {"a": WordJudge(), "b": silent})


def test_agreement_with_others_gaps_and_a_judge(path):
    items = answers(6).assign(judge=["yes", "yes", "no", "no", "partly", "yes"])
    for name, labels in (("Ana", "yyny.."), ("Bo", "yynn.n"), ("Cem", "ny...n")):
        state = reviewed(path, name, labels, items)
    table = agreement(path, judge=items["judge"])
    assert [tuple(row) for row in table[["first", "second", "n"]].to_numpy()] == [
        ("all annotators", "", 5), ("Ana", "Bo", 4), ("Ana", "Cem", 2), ("Bo", "Cem", 3),
        ("Ana", "judge", 4), ("Bo", "judge", 5), ("Cem", "judge", 3),
    ]  # fmt: skip
    # pairs of judgements by item: yyn 1 of 3, yyy 3 of 3, nn 1 of 1, yn 0 of 1, nn 1 of 1
    assert list(table["agreement"]) == pytest.approx([6 / 9, 3 / 4, 1 / 2, 2 / 3, 3 / 4, 4 / 5, 1 / 3])
    assert table["alpha"][1] == pytest.approx(1 - (2 / 8) / (2 * 5 * 3 / (8 * 7)))
    whole = [ReviewState(items, name, path).table() for name in ("Ana", "Bo", "Cem")]
    pd.testing.assert_frame_equal(agreement(*whole, judge="judge"), table)
    assert list(judgements(path).groupby("annotator").size()) == [4, 5, 3] and state.note == ""
    with pytest.raises(WorkbenchError, match="judge in column 'gold'.*\nFound: no such column"):
        agreement(*whole, judge="gold")
    with pytest.raises(WorkbenchError, match="several labels of it for one item"):
        agreement(whole[0], whole[1].assign(judge="no"), judge="judge")
    with pytest.raises(WorkbenchError, match=r"Found: the labels .*1\.0.*\nAllowed: 'yes', 'partly', 'no'\n.*map"):
        agreement(path, judge=[1.0, 0.5, 0, 0, 0, 0])


def test_alpha_is_not_defined_without_variation_or_items_in_common(path):
    reviewed(path, "Ana", "yyy...", answers())
    reviewed(path, "Bo", "yyy...", answers())
    reviewed(path, "Cem", "...nnn", answers())
    table = agreement(path).set_index(["first", "second"])
    same, apart = table.loc[("Ana", "Bo")], table.loc[("Ana", "Cem")]
    assert np.isnan(same["alpha"]) and same["agreement"] == 1 and same["n"] == 3
    assert np.isnan(apart["alpha"]) and np.isnan(apart["agreement"]) and apart["n"] == 0


def test_agreement_of_pairs_by_side_does_not_depend_on_the_seed(path, tmp_path):
    tables = []
    for seed, name in enumerate(("Ana", "Bo")):
        state = ReviewState(pairs(), name, tmp_path / name, seed=seed)
        for _ in range(len(state.items)):
            good = state.shown["texts"][0][1].startswith("good")
            state.judge("A" if good == (state.order[state.position] % 4 > 0) else "B")
        tables.append(state.table())
    assert agreement(*tables, column="side").loc[0, ["alpha", "agreement"]].tolist() == [1, 1]
    assert agreement(*tables)["agreement"][0] < 0.8  # letters mean different sides
    with pytest.raises(WorkbenchError, match="record of another seed"):
        agreement(tmp_path / "Ana", tmp_path / "Bo")


def test_reviews_that_cannot_be_compared_are_refused(path, tmp_path):
    one = reviewed(path, "Ana", "yyyyyy", answers())
    reviewed(tmp_path / "same", "Ana", "nnnnnn", answers())
    other = reviewed(tmp_path / "other", "Bo", "nnnnnn", answers().assign(text="x"))
    with pytest.raises(WorkbenchError, match="annotator 'Ana' in both"):
        agreement(path, tmp_path / "same")
    with pytest.raises(WorkbenchError, match="a record of other items"):
        agreement(path, tmp_path / "other")
    with pytest.raises(WorkbenchError, match="Found: item 0 is not the same in all"):
        agreement(one.table(), other.table())
    with pytest.raises(WorkbenchError, match="Found: item 0 twice by one annotator"):
        agreement(one.table(), one.table())
    with pytest.raises(WorkbenchError, match="1 annotator and no judge"):
        agreement(path)
    with pytest.raises(WorkbenchError, match="Allowed: records, or tables"):
        agreement(path, one.table())
    with pytest.raises(WorkbenchError, match="no column annotator"):
        agreement(one.table().drop(columns="annotator"))
    with pytest.raises(WorkbenchError, match="level 'ratio'"):
        agreement(path, level="ratio")
    missing = tmp_path / "missing"
    with pytest.raises(WorkbenchError, match="could not be opened.\nFound: No such file"):
        agreement(missing)
    assert not missing.exists()


def test_a_record_can_be_read_without_its_items(path):
    reviewed(path, "Ana", "y.n...", answers())
    record = Record(path)
    assert record.header["labels"] == ["yes", "partly", "no"] and record.header["n"] == 6
    assert list(judgements(path)["item"]) == [0, 2]
