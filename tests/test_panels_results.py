"""The results browser without a screen: filters and rates are those that pandas and `rates` find."""

import asyncio
import time

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
from drawn import EVIL
from evaluated import HOSTILE, evaluation
from panelled import inside
from spoken import WordJudge

from workbench.errors import WorkbenchError
from workbench.evaluation.comparison import KEYS, rates, scores
from workbench.evaluation.judges import judged
from workbench.evaluation.results import Evaluation
from workbench.panels.quoting import line, quoted
from workbench.panels.results_browser import ResultsBrowser, results_browser
from workbench.panels.review import ReviewState
from workbench.panels.states.results import AGREE, CHUNK, DISAGREE, PAGE, ResultsState
from workbench.rates import wilson
from workbench.values import VALUES


def unique() -> Evaluation:
    """The made-up evaluation with an answer of its own in every row."""
    ev = evaluation()
    answers = ev.answers.assign(answer=[f"{text} no. {n}" for n, text in enumerate(ev.answers["answer"])])
    answers.loc[5, "answer"] = ""
    answers.loc[9, "open"] = False
    return evaluation(answers=answers)


@pytest.fixture(scope="module")
def ev():
    return unique()


def turned(ev: Evaluation, rows, by: float = 1.0) -> pd.DataFrame:
    """Judgements of these rows by another: on the steered value the scores x become |by - x|."""
    table = ev.answers.loc[rows].copy()
    for row, value in table["value"].items():
        table.loc[row, value] = abs(by - table.loc[row, value])
    return table


def base_of(answers: pd.DataFrame) -> pd.DataFrame:
    """Row by row the base's text, as pandas finds it."""
    base = answers[answers["method"] == "Base"][[*KEYS, "answer"]]
    return answers[KEYS].merge(base, on=KEYS, how="left")["answer"]


# --- filters ---


def masks(ev: Evaluation) -> dict[str, dict]:
    """Filter and setting -> rows, found the slow way."""
    a, own, base = ev.answers, scores(ev.answers, "csr"), base_of(ev.answers)
    fluent = a["fluent"].where(a["note"] == "")
    columns = ("method", "value", "about", "set", "prompt", "temperature", "seed")
    return {name: {entry: a[name] == entry for entry in a[name].unique()} for name in columns} | {
        "score": {"1": own == 1, "0": own == 0, "between": own == 0.5, "missing": np.isnan(own)},
        "fluent": {"yes": fluent == 1, "no": fluent == 0, "missing": fluent.isna()},
        "gate": {"yes": a["open"], "no": ~a["open"], "missing": a["open"].isna()},
        "differs": {"yes": a["answer"] != base, "no": a["answer"] == base, "missing": base.isna()},
        "text": {text: [text.casefold() in both.casefold() for both in a["question"] + "\n" + a["answer"]]
                 for text in ("caa no. 7", "CONVA", "onerror=alert(1)", "power question 1", "nothing like it", ".*")},
    }  # fmt: skip


def test_every_filter_finds_what_pandas_finds(ev):
    state, wanted = ResultsState(ev), masks(ev)
    for name, by_setting in wanted.items():
        for setting, rows in by_setting.items():
            setattr(state, name, setting)
            assert state.filters == {name: setting}
            np.testing.assert_array_equal(state.matches, np.flatnonzero(rows), f"{name} {setting}")
        state.clear()
        assert len(state.matches) == len(ev.answers)
    for name, by_setting in wanted.items():
        assert name == "text" or state.choices[name][1:] == list(by_setting) or set(state.choices[name]) == {
            None, *by_setting}, name  # fmt: skip
    assert state.choices["value"] == [None, *VALUES] and state.choices["temperature"] == [None, 0.0, 1.0]


def test_filters_combine(ev):
    state, wanted = ResultsState(ev, method="CAA", score="1"), masks(ev)
    state.text = "power"
    state.seed = 1
    rows = wanted["method"]["CAA"] & wanted["score"]["1"] & wanted["seed"][1]
    rows &= ev.answers["question"].str.contains("power")
    assert len(state.matches) == rows.sum() > 0
    state.clear()
    assert state.filters == {}


def test_typing_on_finds_what_the_whole_word_finds(ev):
    typed = ResultsState(ev)
    for text in ("C", "Co", "Con", "ConVA", "ConVA, no", "nVA", "ÄNDERN", "", "caa", "CAA 1"):
        typed.text = text
        fresh = ResultsState(ev, text=text)
        np.testing.assert_array_equal(typed.matches, fresh.matches, text)
    answers = ev.answers.copy()
    answers.loc[3, "answer"] = "Straße"
    assert ResultsState(evaluation(answers=answers), text="STRASSE").matches.tolist() == [3]


@pytest.mark.parametrize(
    ("setting", "wrong", "said"),
    [
        ("method", "conva", "with method 'conva' were asked for.\nFound: no such choice\nAllowed: None, 'Base'"),
        ("score", 1, "Allowed: None, '1', 'between', '0', 'missing'"),
        ("judges", DISAGREE, "Answers with judges 'two disagree' were asked for"),
        ("position", 7280, "Answer 7281 was asked for.\nAllowed: 1 to 7280"),
        ("position", -1, "Answer 0 was asked for."),
    ],
)
def test_wrong_settings_are_refused_and_change_nothing(ev, setting, wrong, said):
    state = ResultsState(ev)
    with pytest.raises(WorkbenchError) as error:
        setattr(state, setting, wrong)
    assert said in str(error.value)
    assert state.filters == {} and len(state.matches) == len(ev.answers) and state.position == 0
    if setting != "position":
        with pytest.raises(WorkbenchError):
            ResultsState(ev, **{setting: wrong})
    with pytest.raises(WorkbenchError, match="Filters model were asked for.\nAllowed: method"):
        results_browser(ev, model="x")


# --- what matches ---


def test_rates_of_one_group_are_those_of_the_tables(ev):
    state = ResultsState(ev)
    table = rates(ev.answers)
    for row in table.iloc[:: len(table) // 25].to_dict("records"):
        for name in ("set", "method", "value", "prompt", "temperature"):
            setattr(state, name, row[name])
        for what, names in (("control", ("csr", "low", "high")), ("fluent", ("fr", "fr_low", "fr_high"))):
            rate = state.rate(what)
            np.testing.assert_allclose((rate.mean, rate.low, rate.high), [row[name] for name in names])
            assert rate.questions in (row["n"], 0)


def test_rates_over_several_methods_count_questions(ev):
    state = ResultsState(ev, set="own", value="power", about="power")
    rows = ev.answers.iloc[state.matches]
    means = rows.assign(x=scores(rows, "power")).groupby("question")["x"].mean()
    rate = state.rate()
    assert rate.questions == 12 and rate.answers == len(rows) == 336
    np.testing.assert_allclose((rate.mean, rate.low, rate.high), (means.mean(), *wilson(means.mean(), 12)))
    panel = ResultsBrowser(state)
    wanted = f"<b>{rate.mean:.3f}</b>, 95&nbsp;% interval {rate.low:.3f} to {rate.high:.3f} (Wilson, 12 questions, 336 "
    assert wanted in panel.summary.value
    state.score = "missing"
    assert "<b>0</b> of 7,280 answers match: clear a filter" in panel.summary.value
    assert panel.detail.value == "" and panel.pick.options == () and state.row is None


def test_the_base_answer_stands_beside_each(ev):
    state = ResultsState(ev)
    base, table = base_of(ev.answers), state.answers.table
    there = state.answers.base >= 0
    assert there.all() and table["answer"].iloc[state.answers.base].tolist() == base.tolist()
    answers = ev.answers.drop(index=10).reset_index(drop=True)
    state = ResultsState(evaluation(answers=answers), differs="missing")
    lost = ev.answers.loc[10, KEYS]
    assert len(state.matches) == 6 and (state.answers.table.loc[state.matches, KEYS] == lost).all(axis=None)
    assert "It was not asked the same." in ResultsBrowser(state).detail.value


def test_the_place_stays_with_its_answer(ev):
    state = ResultsState(ev, method="CAA")
    state.position = 30
    row = state.row
    state.value = ev.answers["value"].iat[row]
    assert state.row == row and state.position < 30
    state.clear()
    assert state.row == row == state.position
    state.method = "ICA"
    assert state.position == 0 and ev.answers["method"].iat[state.row] == "ICA"
    state.move(-5)
    assert state.position == 0
    state.seed = 1
    state.value = "power"
    state.set = "own"
    state.move(10**9)
    assert state.position == len(state.matches) - 1 == 11 and state.page.tolist() == state.matches[PAGE:].tolist()


# --- other judges ---


def test_disagreement_is_found_with_an_evaluation_and_a_table(ev):
    own = ev.answers[(ev.answers["set"] == "own") & (ev.answers["note"] == "")]
    flipped = list(own.index[100:300])
    other, half = evaluation(answers=ev.answers.copy()), turned(ev, list(own.index[250:350]), by=0.5)
    for row, value in ev.answers.loc[flipped, "value"].items():
        other.answers.loc[row, value] = 1 - ev.answers.loc[row, value]
    state = ResultsState(ev, {"other": other, "half": half})
    x = pd.Series(scores(ev.answers, "csr"))
    theirs = x.copy()
    theirs[flipped] = 1 - x[flipped]
    of_half = pd.Series(np.nan, x.index)
    of_half[half.index] = (0.5 - x[half.index]).abs()
    all_three = pd.DataFrame({"a": x, "b": theirs, "c": of_half})
    two, apart = all_three.notna().sum(axis=1) >= 2, all_three.max(axis=1) != all_three.min(axis=1)
    state.judges = DISAGREE
    assert state.matches.tolist() == np.flatnonzero(two & apart).tolist() != []
    assert state.agreement() == ((two & apart).sum(), 0)
    state.judges = AGREE
    assert state.matches.tolist() == np.flatnonzero(two & ~apart).tolist() != []
    state.judges = ("exact", "other")
    assert state.matches.tolist() == np.flatnonzero((x != theirs) & x.notna()).tolist()
    state.judges = ("other", "half")
    assert state.matches.tolist() == np.flatnonzero((theirs != of_half) & of_half.notna()).tolist()
    assert state.choices["judges"] == [None, DISAGREE, AGREE, ("exact", "other"), ("exact", "half"), ("other", "half")]
    panel = ResultsBrowser(state)
    assert panel.controls["judges"].label == "other ≠ half" and "<bdi>half</bdi></th>" in panel.page.value
    assert "Two judges or more judged" in panel.summary.value


def test_people_of_a_review_are_a_judge(ev, tmp_path):
    rows = ev.answers[(ev.answers["set"] == "own") & (ev.answers["note"] == "")].iloc[50:62]
    items = rows.rename(columns={"answer": "text"})[["question", "text", "value"]]
    review = ReviewState(items, "Ana", tmp_path / "review.jsonl", ask="Does it?")
    said = {}
    for label in ["yes", "partly", "no"] * 3:
        said[items.index[review.order[review.position]]] = {"yes": 1.0, "partly": 0.5, "no": 0.0}[label]
        review.judge(label)
    path = review.export()
    for export in (review.table(), pd.read_csv(path)):
        state = ResultsState(ev, {"Ana": export})
        theirs = state.own[:, 1]
        assert {row: theirs[row] for row in np.flatnonzero(~np.isnan(theirs))} == said and len(said) == 9
        x = scores(ev.answers, "csr")
        state.judges = DISAGREE
        assert state.matches.tolist() == [row for row in sorted(said) if x[row] != said[row]]
        state.judges = AGREE
        assert state.matches.tolist() == [row for row in sorted(said) if x[row] == said[row]]
    score = {1.0: "1", 0.5: ".5", 0.0: "0"}[said[state.row]]
    wanted = f"<bdi>Ana</bdi>: <b>{score}</b> on {ev.answers['value'].iat[state.row]}<"
    assert wanted in ResultsBrowser(state).detail.value


def test_another_judge_asked_afresh_is_held_beside(ev):
    part = ev.answers[(ev.answers["method"] == "CAA") & (ev.answers["set"] == "own")]
    state = ResultsState(ev, {"words": judged(part, WordJudge())})
    wanted = judged(part, WordJudge())
    np.testing.assert_array_equal(state.said["words"][0][part.index], wanted[list(VALUES)])
    assert np.isnan(state.said["words"][0][(ev.answers["method"] != "CAA").to_numpy()]).all()


def test_what_is_judged_several_times_counts_as_its_mean(ev):
    rows = ev.answers[ev.answers["value"] == "power"].iloc[20:22]
    told = pd.concat([rows.assign(power=1.0), rows.assign(power=0.0), rows.assign(power=0.5, note="x")])
    state = ResultsState(ev, {"twice": told})
    assert state.own[rows.index, 1].tolist() == [0.5, 0.5] and np.isfinite(state.own[:, 1]).sum() == 2


@pytest.mark.parametrize(
    ("name", "table", "said"),
    [
        ("exact", lambda a: a, "Give every judge a name of its own."),
        (" ", lambda a: a, "Give every judge a name of its own."),
        ("x", lambda a: a.assign(answer="else"), "and no judgement of these answers among them"),
        ("x", lambda a: a[["question", "answer"]], "Found: columns question, answer\nAllowed: question, answer and a"),
        ("x", lambda a: "file.csv", "Found: a str\nAllowed: an Evaluation, or a table of judgements"),
        ("x", lambda a: a.rename(columns={"answer": "text"}).assign(label="good"), "Found: the labels 'good'"),
    ],
)
def test_judgements_of_something_else_are_refused(ev, name, table, said):
    with pytest.raises(WorkbenchError) as error:
        results_browser(ev, {name: table(ev.answers)})
    assert said in str(error.value)


def test_an_evaluation_without_judge_can_be_browsed(ev):
    answers = ev.answers.drop(columns=["fluent", "open", *VALUES])
    panel = results_browser(evaluation(answers=answers, provenance={"model": "m", "judge": None}), method="CAA")
    assert "judged by <bdi>no judge</bdi>" in panel.children[2].value
    assert "Control rate (CSR): none was judged." in panel.summary.value and "not judged" in panel.detail.value
    panel.state.score = "missing"
    assert len(panel.state.matches) == (answers["method"] == "CAA").sum()
    with pytest.raises(WorkbenchError, match="The answers of an evaluation were asked for.\nFound: no answers"):
        results_browser(evaluation(answers=answers[:0]))
    with pytest.raises(WorkbenchError, match="The evaluation in 'nowhere' was to be opened"):
        results_browser("nowhere")


# --- files ---


def test_an_export_holds_what_matches_and_overwrites_nothing(ev, tmp_path):
    other = turned(ev, list(ev.answers.index[200:260]))
    panel = results_browser(ev, {"Ana": other}, folder=tmp_path, method="CAA")
    state = panel.state
    panel.save.click()
    assert panel.written.value.count(f"written: <code>{tmp_path / 'answers.csv'}</code>") == 1
    table = pd.read_csv(tmp_path / "answers.csv", keep_default_na=False, na_values={name: [""] for name in VALUES})
    rows = ev.answers.iloc[state.matches].reset_index(drop=True)
    assert len(table) == len(rows) > 2 * CHUNK and table["row"].tolist() == state.matches.tolist()
    for name in ("question", "answer", "method", "note"):
        assert table[name].tolist() == rows[name].tolist(), name
    pd.testing.assert_frame_equal(table[list(VALUES)], rows[list(VALUES)])
    assert table["base answer"].tolist() == base_of(ev.answers)[state.matches].tolist()
    of_ana = state.table()[[f"{value} (Ana)" for value in VALUES]].set_axis(VALUES, axis=1)
    wanted = other.reindex(state.matches)[list(VALUES)].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_ana, wanted, check_names=False)
    before = (tmp_path / "answers.csv").read_bytes()
    state.seed = 1
    panel.save.click()
    assert state.exported.endswith("answers-2.csv") and len(pd.read_csv(state.exported)) == len(state.matches)
    with pytest.raises(WorkbenchError, match="Found: a file of that name\nWhat to do: Give another path"):
        state.export(tmp_path / "answers.csv")
    assert (tmp_path / "answers.csv").read_bytes() == before
    with pytest.raises(WorkbenchError, match="Found: No such file or directory"):
        state.export(tmp_path / "nowhere" / "x.csv")
    state.text = "nothing like it"
    assert len(pd.read_csv(state.export())) == 0 and "answers-3.csv" in state.exported


def test_a_stopped_export_leaves_no_file(ev, tmp_path):
    state = ResultsState(ev, folder=tmp_path)
    steps = state.exporting()
    next(steps), next(steps)
    assert [path.name for path in tmp_path.iterdir()] == ["answers.csv"]
    steps.close()
    assert list(tmp_path.iterdir()) == [] and state.exported == ""


def test_hostile_answers_come_back_from_the_file(ev, tmp_path):
    answers = ev.answers.copy()
    texts = ["a,b\r\n\"c\"\x00\x1b[31m", "=cmd|' /C calc'!A0", "\u202eab\u2066", "lone \ud800 half"]
    answers["answer"] = answers["answer"].astype(object)
    for row, text in enumerate(texts):
        answers.at[row, "answer"] = text
    panel = results_browser(evaluation(answers=answers), folder=tmp_path, method="Base")
    path = panel.state.export()
    found = pd.read_csv(path, keep_default_na=False, engine="python", nrows=4)["answer"].tolist()
    assert found == [*texts[:3], "lone ? half"]
    panel.detail.value.encode(), panel.page.value.encode()
    assert "\x00" not in panel.detail.value and "␀␛[31m" in panel.detail.value
    panel.state.move(2)
    assert "<bdi>[U+202E]ab[U+2066]</bdi>" in panel.detail.value and "\u202e" not in panel.page.value


# --- panel ---


def test_controls_filter_and_buttons_walk(ev):
    panel = results_browser(ev)
    state = panel.state
    panel.controls["method"].label = "CAA"
    panel.controls["score"].label = "0: does not"
    panel.controls["temperature"].label = "0 (greedy)"
    panel.controls["text"].value = "POWER"
    assert state.filters == {"method": "CAA", "score": "0", "temperature": 0.0, "text": "POWER"}
    n = len(state.matches)
    assert f"<b>{n}</b> of 7,280 answers match<" in panel.summary.value and n > 2
    assert panel.place.value == f'<span role="status">Answer <b>1</b> of {n}</span>'
    back, previous, forth, on = panel.steps
    forth.click()
    assert state.position == 1 and panel.pick.index == 1 and panel.page.value.count("aria-selected") == 1
    on.click()
    assert state.position == min(1 + PAGE, n - 1)
    back.click()
    previous.click()
    panel.pick.index = 2
    assert state.position == 2 and f"row {state.matches[2]:,} of the table" in panel.detail.value
    panel.everything.click()
    assert state.filters == {} and panel.controls["method"].label == "any" and panel.controls["text"].value == ""
    state.position = 4321
    assert panel.pick.value == "4,322" and panel.pick.options[0] == "4,321" and panel.pick.index == 1
    panel.pick.index = 4
    assert state.position == 4324 and f"row {state.matches[4324]:,} of the table" in panel.detail.value
    assert all(isinstance(widget, widgets.DOMWidget) for widget in inside(panel))
    assert panel.controls["judges"].layout.display == "none" != panel.controls["seed"].layout.display


def test_the_detail_shows_both_answers_and_what_was_said(ev):
    state = ResultsState(ev, method="CAA", set="own", value="power", temperature=1.0, seed=1)
    told = ev.answers.iloc[state.row]
    shown = ResultsBrowser(state).detail.value
    base = base_of(ev.answers)[state.row]
    for text in (told["answer"], base, told["question"]):
        assert quoted(text) in shown
    others = [value for value in VALUES if value != "power" and told[value] == 1]
    assert others and f"1 on {', '.join(others)}" in shown
    assert "same question and seed" in shown and "T = 1, seed 1, gate open" in shown
    state.method = "Base"
    shown = ResultsBrowser(state).detail.value
    assert shown.count('class="wb-card"') == 1 and "which everything is read against" in shown
    state.clear()
    state.score, state.set = "missing", "own"
    assert "<i>no answer: <bdi>79 of 64 tokens</bdi></i>" in ResultsBrowser(state).detail.value


def test_hostile_names_and_answers_do_no_harm(ev):
    other = ev.answers.assign(power=1.0)
    panel = results_browser(ev, {HOSTILE: other}, method=EVIL)
    shown = "".join(widget.value for widget in inside(panel) if isinstance(widget, widgets.HTML))
    assert "<script" not in shown and "<img" not in shown and "<a " not in shown
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown and "&lt;a href=" in shown
    panel.controls["text"].value = "<b>bold</b>" * 1000
    assert "<b>0</b> of 7,280" in panel.summary.value and panel.problem.value == ""


def test_a_page_is_small_however_long_the_answers_are(ev):
    answers = ev.answers.assign(answer=[f"{n} " + "long " * 3000 for n in range(len(ev.answers))])
    answers.loc[5, "answer"] = ""
    answers["answer"] = answers["answer"].astype(object)
    answers.at[0, "answer"] = "x" * 200_000
    panel = results_browser(evaluation(answers=answers))
    assert panel.page.value.count("<tr") == 1 + PAGE <= 20 and len(panel.page.value) < 10_000
    assert "[cut: 200,000 characters]" in panel.detail.value and len(panel.detail.value) < 60_000
    assert "wb-box" in panel.detail.value


def test_text_for_a_page_is_whole_and_harmless():
    assert quoted("a < b\n\tc") == "<bdi>a &lt; b\n\tc</bdi>"
    assert quoted("\x07\x7f\x85\u2028") == "<bdi>␇␡�[U+2028]</bdi>"
    assert quoted("0123456789", 4) == "<bdi>0123</bdi> <i>[cut: 10 characters]</i>"
    assert line("a\n b\t c") == "a b c" and line("word " * 100, 12) == "word word w…" and len(line("ä" * 900)) == 200
    assert quoted("مرحبا") == "<bdi>مرحبا</bdi>" and quoted(None) == "<bdi>None</bdi>"


def test_two_views_of_one_state_stay_equal(ev):
    state = ResultsState(ev)
    one, two = ResultsBrowser(state), ResultsBrowser(state)
    one.controls["method"].label = "CAA"
    two.controls["text"].value = "power"
    two.pick.index = 3
    one.steps[2].click()
    for name in ("summary", "page", "detail", "place"):
        assert getattr(one, name).value == getattr(two, name).value != ""
    assert one.pick.index == two.pick.index == 4 == state.position and one.pick.options == two.pick.options
    assert {name: control.value for name, control in one.controls.items()} == {
        name: control.value for name, control in two.controls.items()}  # fmt: skip


def test_in_a_kernel_a_burst_of_changes_is_told_once(ev, tmp_path):
    async def steps():
        panel = results_browser(ev, folder=tmp_path)
        seen = []
        panel.detail.observe(lambda change: seen.append(change["new"]), "value")
        for text in ("c", "ca", "caa", "caa 1"):
            panel.controls["text"].value = text
        panel.controls["method"].label = "CAA"
        panel.state.move(3)
        assert seen == []
        await asyncio.sleep(0.05)
        assert len(seen) == 1 and f"row {panel.state.row:,} of the table" in seen[0]
        panel.save.click()
        end = time.monotonic() + 30
        while panel.ending != "done" and time.monotonic() < end:
            await asyncio.sleep(0.01)
        assert len(pd.read_csv(tmp_path / "answers.csv")) == len(panel.state.matches) > 0
        assert "answers.csv</code>" in panel.written.value

    asyncio.run(steps())
