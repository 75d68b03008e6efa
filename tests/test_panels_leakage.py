"""The leakage map without a screen: its numbers are those of `leakage`, its pairs those that pandas finds."""

import asyncio
import json

import numpy as np
import pandas as pd
import pytest
from answered import answered, drawn
from drawn import EVIL
from evaluated import HOSTILE, evaluation

from workbench.errors import WorkbenchError
from workbench.evaluation.comparison import KEYS, scores
from workbench.evaluation.leakage import leakage
from workbench.evaluation.results import Evaluation
from workbench.figures.rises import leakage_row, rise_profile
from workbench.panels.leakage_map import LeakageMap, leakage_map
from workbench.panels.states import leaking
from workbench.panels.states.leaking import PAGE, LeakageState, Part
from workbench.values import VALUES

THOUSAND = leaking.RESAMPLES


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(leaking, "RESAMPLES", 50)


@pytest.fixture(scope="module")
def ev():
    return evaluation()


@pytest.fixture
def panel(ev):
    return leakage_map(ev, "CAA", steered="power")


def small(seeds=(0, 1), **changed) -> Evaluation:
    """Base and CAA, planted: power lifts achievement and lowers universalism."""
    p = np.full((10, 1, 10), 0.3)
    p[np.arange(10), 0, np.arange(10)] = 0.9
    p[4, 0, 3], p[4, 0, 9] = 0.8, 0.02
    rng = np.random.default_rng(0)
    table = answered({"Base": drawn(np.broadcast_to(0.3, (10, 30, 10)), len(seeds), 30, rng),
                      "CAA": drawn(np.broadcast_to(p, (10, 30, 10)), len(seeds), 30, rng)}, **changed)  # fmt: skip
    return Evaluation(table, {"format": "workbench evaluation 1", "temperatures": [1.0]})


def pairs_of(ev: Evaluation, part: Part, method: str, steered: str, judged: str) -> pd.DataFrame:
    """What pandas finds: score and base score of each pair, by seed, about and question."""
    table = ev.answers.assign(x=scores(ev.answers, judged))
    table = table[(table["set"] == part.set) & (table["prompt"] == part.prompt) & (table["value"] == steered)]
    table = table[table["temperature"] == part.temperature]
    own, base = (table[table["method"] == name][[*KEYS, "x", "answer"]] for name in (method, ev.base))
    return own.merge(base, on=KEYS, suffixes=("", " base"))


# --- state ---


@pytest.mark.parametrize(("set_", "prompt", "temperature"), [("own", "none", None), ("pooled", "none", 1.0),
                                                             ("own", "negative", 1.0), ("own", "none", 0.0)])
def test_what_is_found_is_what_leakage_finds(ev, set_, prompt, temperature, monkeypatch):
    monkeypatch.setattr(leaking, "RESAMPLES", THOUSAND)
    state = LeakageState(ev, "CAA", set=set_, prompt=prompt, temperature=temperature)
    assert state.found is None and state.part == (set_, prompt, 1.0 if temperature is None else temperature)
    for _ in state.resample():
        pass
    wanted = leakage(ev.answers, "CAA", set=set_, prompt=prompt, temperature=state.part.temperature)
    pd.testing.assert_frame_equal(state.found.table, wanted.table)
    np.testing.assert_array_equal(state.found.low, wanted.low)
    assert state.asked == (state.part, "CAA")


def test_a_method_is_resampled_once_and_a_value_never(ev, monkeypatch):
    asked = []
    monkeypatch.setattr(leaking, "leakage", lambda answers, method, *rest: asked.append((method, *rest[1:2])) or
                        leakage(answers, method, *rest))  # fmt: skip
    panel = leakage_map(ev, "CAA")
    first = panel.state.found
    for value in VALUES:
        panel.state.steered = value
        panel.state.judged = value
    panel.state.method = "ICA"
    panel.state.part = panel.state.parts[-1]
    panel.state.method, panel.state.part = "CAA", panel.state.parts[0]
    assert asked == [("CAA", "own"), ("ICA", "own"), ("ICA", "pooled"), ("CAA", "pooled")]
    assert panel.state.found is first


@pytest.mark.parametrize(("steered", "judged"), [("power", "power"), ("power", "security"), ("tradition", "hedonism")])
@pytest.mark.parametrize("part", [0, 3])
def test_pairs_behind_a_cell_are_those_that_pandas_finds(ev, part, steered, judged):
    state = LeakageState(ev, "CAA")
    state.part = state.parts[part]
    state.choose(steered, judged)
    wanted = pairs_of(ev, state.part, "CAA", steered, judged)
    rise, pairs, table = wanted["x"] - wanted["x base"], state.pairs, state.answers.table
    assert (pairs.rises, pairs.falls, pairs.same) == ((rise > 0).sum(), (rise < 0).sum(), (rise == 0).sum())
    assert pairs.unjudged == rise.isna().sum() and len(pairs.rows) == len(wanted) > 0
    assert pairs.questions == len(wanted[rise.notna()].drop_duplicates(["about", "question"]))
    assert (table["method"].iloc[pairs.base] == "Base").all() and (table["method"].iloc[pairs.rows] == "CAA").all()
    for key in KEYS:
        assert table[key].iloc[pairs.rows].tolist() == table[key].iloc[pairs.base].tolist()
    found = scores(table, judged)[pairs.rows] - scores(table, judged)[pairs.base]
    assert np.array_equal(np.sort(found), np.sort(rise), equal_nan=True)
    far = np.nan_to_num(np.abs(found), nan=-1)
    assert (np.diff(far) <= 0).all() and found[0] == rise.abs().max()  # rises before falls of the same size


def test_an_answer_that_could_not_be_judged_comes_last(ev):
    state = LeakageState(ev, "ICA")  # of Base's answers the sixth has a note
    assert state.pairs.unjudged == 1
    assert state.answers.table["note"].iat[state.pairs.base[-1]] == "79 of 64 tokens"


@pytest.mark.parametrize(
    ("setting", "wrong", "said"),
    [
        ("steered", "Power", "Did you mean 'power'"),
        ("judged", "x", "The value 'x' was asked for."),
        ("method", "Base", "The method 'Base' was asked for.\nFound: no method of that name\nAllowed: ICA, CAA"),
        ("part", Part("own", "none", 0.7), "no such answers that were judged"),
        ("page", 99, "Page 100 was asked for.\nAllowed: 1 to 6"),
        ("page", -1, "Page 0 was asked for."),
    ],
)
def test_wrong_settings_are_refused_and_change_nothing(ev, setting, wrong, said):
    state = LeakageState(ev, "CAA")
    before = {name: getattr(state, name) for name in ("part", "method", "steered", "judged", "page", "pairs")}
    with pytest.raises(WorkbenchError) as error:
        setattr(state, setting, wrong)
    assert said in str(error.value)
    assert all(getattr(state, name) is held or getattr(state, name) == held for name, held in before.items())


def test_an_evaluation_without_leakage_is_refused(ev):
    own = ev.answers.copy()
    for value in VALUES:
        own.loc[own["value"] != value, value] = np.nan
    for answers in (own, ev.answers[ev.answers["method"] == "Base"], ev.answers[ev.answers["method"] != "Base"]):
        with pytest.raises(WorkbenchError, match="no method whose answers were judged for other values"):
            leakage_map(evaluation(answers=answers))
    with pytest.raises(WorkbenchError, match=r"set 'own', prompt 'none', T = 0.7 was asked for"):
        leakage_map(ev, temperature=0.7)
    with pytest.raises(WorkbenchError, match="The method 'conva' was asked for.\nFound: no method of that name"):
        leakage_map(ev, "conva")
    with pytest.raises(WorkbenchError, match="Found: a DataFrame"):
        leakage_map(ev.answers)


def test_a_folder_serves_as_an_evaluation(ev, tmp_path):
    panel = leakage_map(ev.save(tmp_path / "kept"), "CAA")
    np.testing.assert_array_equal(panel.state.found.matrix, ev.leakage("CAA", resamples=1).matrix)


def test_a_part_without_the_method_takes_its_first():
    ev = evaluation()
    answers = ev.answers[~((ev.answers["set"] == "pooled") & (ev.answers["method"] == "ICA"))]
    panel = leakage_map(evaluation(answers=answers), "ICA")
    panel.controls["part"].value = 3
    assert panel.state.method == "CAA" == panel.state.found.method and panel.problem.value == ""
    assert panel.controls["method"].label == "CAA"
    panel.controls["method"].value = 0  # ICA
    assert "The method &#x27;ICA&#x27; was asked for" in panel.problem.value
    assert panel.controls["method"].label == "CAA" == panel.state.method


# --- figures ---


def test_the_profile_draws_the_row_with_its_intervals():
    leak = small().leakage("CAA", resamples=20)
    fig = rise_profile(leak, "power", "achievement")
    sector, ring, spokes, marks, chosen = fig.data
    row, low, high = (part.sel(steered="power").values for part in (leak.matrix, leak.low, leak.high))
    np.testing.assert_allclose(marks.r, row)
    assert list(marks.customdata) == list(VALUES) and list(marks.theta) == [36 * k for k in range(10)]
    ends = np.array([r for r in spokes.r if r is not None], float).reshape(10, 2)
    np.testing.assert_allclose(ends, np.stack([low, high], 1))
    assert list(marks.marker.symbol) == ["diamond" if value == "power" else "circle" for value in VALUES]
    hollow = [colour == "white" for colour in marks.marker.color]
    assert hollow == list((low <= 0) & (high >= 0)) and 0 < sum(hollow) < 8
    assert (list(sector.theta), list(chosen.theta), list(chosen.r)) == ([144], [108], [row[3]])
    assert set(ring.r) == {0} and fig.layout.polar.radialaxis.range[0] < 0
    assert fig.layout.polar.radialaxis.range == rise_profile(leak, "security").layout.polar.radialaxis.range
    assert f"<b>achievement</b> {row[3]:+.3f}<br>95 % interval {low[3]:.3f} to {high[3]:.3f}" in marks.hovertext[3]
    assert "<b>power</b>" in fig.layout.polar.angularaxis.ticktext


def test_the_matrix_frames_row_and_cell():
    leak = small().leakage("CAA", resamples=20)
    for centred, wanted in ((False, leak.matrix), (True, leak.centred())):
        fig = leakage_row(leak, "power", "achievement", centred=centred)
        np.testing.assert_allclose(np.array(fig.data[0].z, float), wanted)
        row, cell = fig.layout.shapes[-2:]
        assert (row.x0, row.x1, row.y0, row.y1) == (-0.5, 9.5, 3.5, 4.5)
        assert cell.x0 < 3 < cell.x1 and cell.y0 < 4 < cell.y1 and cell.x1 - cell.x0 < 1
        assert len(fig.layout.shapes) == 12
    with pytest.raises(WorkbenchError, match="Did you mean 'power'"):
        leakage_row(leak, "Power")


def test_a_row_that_was_not_steered_is_told():
    ev = small()
    answers = ev.answers[(ev.answers["method"] == "Base") | (ev.answers["value"] != "power")]
    panel = leakage_map(Evaluation(answers, ev.provenance), steered="power")
    assert panel.state.pairs.rows.size == 0 and panel.place.value == '<span role="status"></span>'
    assert "no answers that were judged for <b>power</b>" in panel.behind.value
    assert "total is undefined: <bdi>not steered, or not judged for all values</bdi>" in panel.ratios.value
    title = json.loads(panel.profile.figure)["layout"]["title"]["subtitle"]["text"].replace("<br>", " ")
    assert "Nothing was judged: the method cannot steer it" in title


# --- panel ---


def test_ratios_stand_beside_their_floors_with_reasons(ev, panel):
    table = ev.leakage("CAA", resamples=50).table
    rows = table[(table["value"] == "power") & (table["measure"] == "total")].set_index("floor")
    total = rows.loc["base"]
    assert f"<b>{total['estimate']:.3f}</b>, {total['low']:.3f} to {total['high']:.3f}" in panel.ratios.value
    for floor in ("base", "random direction"):
        assert f">{rows.loc[floor, 'at']:.3f}</td>" in panel.ratios.value
    panel.state.method = "ICA"
    panel.state.steered = "self-direction"
    why = ev.leakage("ICA", resamples=50).nlr.loc["self-direction", "why"]
    assert why.startswith("own gain") and f"NLR is undefined: <bdi>{why}</bdi>." in panel.ratios.value
    panel.state.method = "random direction"  # no floor of itself
    assert "floor: base against base" in panel.ratios.value
    assert "floor: <bdi>random direction</bdi>" not in panel.ratios.value


def test_a_missing_floor_is_told():
    assert "Floor <bdi>random direction</bdi>: <bdi>no answers of &#x27;random direction&#x27;</bdi>." in leakage_map(
        small()).ratios.value  # fmt: skip
    one = leakage_map(small(seeds=(0,)))
    assert "Floor <bdi>base</bdi>: <bdi>one seed: base against base needs two or more</bdi>." in one.ratios.value


def test_controls_move_state_figures_and_words(ev, panel):
    panel.controls["steered"].value = VALUES.index("security")
    panel.controls["judged"].value = VALUES.index("tradition")
    assert (panel.state.steered, panel.state.judged) == ("security", "tradition")
    leak = ev.leakage("CAA", resamples=1)
    rise = float(leak.matrix.sel(steered="security", value="tradition"))
    assert "steering <b>security</b>" in panel.behind.value and f"by <b>{abs(rise):.3f}</b>" in panel.behind.value
    assert json.loads(panel.profile.figure)["layout"]["title"]["text"] == "Steering security by CAA"
    assert json.loads(panel.matrix.figure)["layout"]["shapes"][-2]["y0"] == 4.5
    before = panel.profile.turn
    panel.controls["centred"].label = "centred"
    assert json.loads(panel.matrix.figure)["layout"]["title"]["text"] == "All ten, by CAA, centred"
    assert panel.profile.turn == before, "the profile is raw and stays as it is"
    panel.state.method = "ConVA"
    assert panel.controls["method"].label == "ConVA" and "ConVA, each value" in panel.status.value
    assert json.loads(panel.profile.figure)["layout"]["title"]["text"] == "Steering security by ConVA"


def test_a_click_chooses_a_cell(panel):
    panel.matrix.clicked = {"trace": 0, "x": "hedonism", "y": "benevolence", "at": 1.5}
    assert (panel.state.steered, panel.state.judged) == ("benevolence", "hedonism")
    panel.profile.clicked = {"trace": 3, "data": "tradition", "at": 2.5}
    assert (panel.state.steered, panel.state.judged) == ("benevolence", "tradition")
    panel.matrix.clicked = {"trace": 0, "x": HOSTILE, "y": "power", "at": 3.5}
    assert "was asked for" in panel.problem.value and "<script>" not in panel.problem.value
    assert (panel.state.steered, panel.state.judged) == ("benevolence", "tradition")


def test_samples_show_both_answers_and_both_scores_page_by_page(ev, panel):
    panel.state.choose("power", "security")
    wanted = pairs_of(ev, panel.state.part, "CAA", "power", "security")
    assert panel.state.pages == -(-len(wanted) // PAGE) == 6
    said = {1.0: "1", 0.5: ".5", 0.0: "0"}
    seen = 0
    for number in range(panel.state.pages):
        assert panel.place.value == f'<span role="status">Page <b>{number + 1}</b> of 6</span>'
        assert panel.samples.value.count('class="wb-card wb-sample"') == PAGE
        for row in panel.state.pairs.rows[PAGE * number : PAGE * (number + 1)]:
            told = ev.answers.iloc[row]
            pair = wanted[(wanted["question"] == told["question"]) & (wanted["seed"] == told["seed"])].iloc[0]
            assert f"<bdi>CAA</bdi></b>: <b>{said[pair['x']]}</b> on security" in panel.samples.value
            assert f"<bdi>Base</bdi></b>: <b>{said[pair['x base']]}</b> on security" in panel.samples.value
            seen += 1
        panel.on.click()
    assert seen == len(wanted) and panel.state.page == 5 and panel.problem.value == ""
    panel.back.click()
    assert panel.state.page == 4
    panel.controls["judged"].value = 0
    assert panel.state.page == 0


def test_hostile_names_and_answers_do_no_harm(ev):
    panel = leakage_map(ev, EVIL)
    shown = "".join(part.value for part in (panel.status, panel.ratios, panel.behind))
    for page in range(panel.state.pages):
        panel.state.page = page
        shown += panel.samples.value
    assert "<script" not in shown and "<img" not in shown and "<a " not in shown
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown and "&lt;a href=" in shown
    for figure in (panel.profile.figure, panel.matrix.figure):
        assert "<a " not in figure and "$" not in figure.replace("&#36;", "")


def test_two_views_of_one_state_stay_equal(ev):
    state = LeakageState(ev, "CAA")
    one, two = LeakageMap(state), LeakageMap(state)
    two.controls["steered"].value = 7
    one.controls["method"].value = 2
    one.matrix.clicked = {"x": "power", "y": "tradition", "at": 1}
    two.on.click()
    for name in ("ratios", "behind", "samples", "place"):
        assert getattr(one, name).value == getattr(two, name).value != ""
    assert one.profile.figure == two.profile.figure and one.matrix.figure == two.matrix.figure
    assert {name: control.value for name, control in one.controls.items()} == {
        name: control.value for name, control in two.controls.items()}  # fmt: skip


def test_in_a_kernel_the_status_says_what_is_worked_out(ev):
    async def steps():
        panel = leakage_map(ev, "CAA", steered="power")
        figure, seen = panel.profile.figure, []
        panel.status.observe(lambda change: seen.append(change["new"]), "value")
        panel.controls["method"].value = 2
        assert panel.state.found.method == "CAA"
        while not (panel.ending == "done" and panel.state.found.method == "ConVA"):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert "ConVA" in seen[0] and "working out the leakage, 1,000 resamples" in seen[0]
        assert "done once per method" in panel.status.value and panel.profile.figure != figure
        assert "by <bdi>ConVA</bdi>" in panel.behind.value

    asyncio.run(steps())
