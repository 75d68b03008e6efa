"""Leakage on answers whose truth is known: counted by hand, noise alone, a uniform lift, a cosine; the undefined."""

import numpy as np
import pandas as pd
import pytest
from answered import answered, drawn

from workbench.errors import WorkbenchError
from workbench.evaluation.leakage import at_matched, leakage
from workbench.rates import newcombe_paired
from workbench.values import VALUES, circular_steps

AT = {value: k for k, value in enumerate(VALUES)}
STEPS = circular_steps()
ITSELF = np.eye(10)


def by_hand():
    """Power and hedonism steered, 20 questions each, one greedy answer."""
    base, steered = np.zeros((2, 1, 2, 20, 10))
    base[0, 0, :6, AT["universalism"]] = 1
    for k, rises in enumerate((
        {"power": 16, "achievement": 8, "hedonism": 4, "security": 4},
        {"hedonism": 20, "self-direction": 4, "power": 4, "security": 8},
    )):  # fmt: skip
        for value, count in rises.items():
            steered[0, k, :count, AT[value]] = 1
    return answered({"Base": base, "M": steered}, values=("power", "hedonism"), temperature=0.0)


def world(delta, base=0.15, questions=40, seeds=2, seed=0, methods=("M",), **columns):
    """Ten values steered; CSR rises by delta (steered, judged) above base, question by question a little different."""
    draw = np.random.default_rng(seed)
    p = draw.beta(10 * base, 10 * (1 - base), (10, questions, 10))
    judged = {"Base": drawn(p, seeds, questions, draw)}
    judged |= {method: drawn(p + np.asarray(delta)[:, None], seeds, questions, draw) for method in methods}
    return answered(judged, **columns)


# -- the definitions -----------------------------------------------------------------------------------


def test_by_hand():
    """Power: .4 + .2 + .2 leak, .2 of it outside its group. Hedonism: .2 + .2 + .4, .4 outside its two."""
    found = leakage(by_hand(), "M")
    row = found.matrix.sel(steered="power")
    rises = {"power": 0.8, "achievement": 0.4, "hedonism": 0.2, "security": 0.2, "universalism": -0.3}
    assert row.to_pandas().to_dict() == pytest.approx({**dict.fromkeys(VALUES, 0.0), **rises})
    assert found.nlr.loc["power", "estimate"] == pytest.approx(0.8 / 9 / 0.8)
    assert found.nlr.loc["hedonism", "estimate"] == pytest.approx(0.8 / 9 / 1.0)
    assert found.nglr.loc["power", "estimate"] == pytest.approx(0.2 / 0.8)
    assert found.nglr.loc["hedonism", "estimate"] == pytest.approx(0.4 / 0.8)
    assert found.nlr.loc["mean", "estimate"] == pytest.approx((1 / 9 + 0.8 / 9) / 2)
    summary = found.summary().set_index("value")
    assert summary.loc["mean", ["gain", "total", "nglr"]].tolist() == pytest.approx([0.9, 0.8, 0.375])
    assert summary.loc["power", ["gain", "total", "nlr"]].tolist() == pytest.approx([0.8, 0.8, 1 / 9])
    assert "own definition" in repr(found) and "own definition" in summary.attrs["definition"]


def test_the_matrix_has_paired_intervals():
    table = by_hand()
    found = leakage(table, "M")
    for value in ("power", "security", "universalism", "benevolence"):
        own = [table[(table["method"] == m) & (table["value"] == "power")][value] for m in ("M", "Base")]
        ends = [float(end.sel(steered="power", value=value)) for end in (found.low, found.high)]
        assert ends == pytest.approx(newcombe_paired(*own))


def test_greedy_answers_have_no_noise_of_their_own():
    found = leakage(by_hand(), "M", floors=("base",))
    assert found.floors == {"base": "greedy decoding: base does not differ from itself"}
    nlr = found.table[(found.table["measure"] == "nlr") & (found.table["value"] == "power")].iloc[0]
    assert nlr["at"] == 0 and nlr["excess"] == nlr["estimate"]


def test_pooled_questions_are_the_same_for_every_value():
    judged = {m: np.zeros((2, 10, 20, 10)) for m in ("Base", "M")}
    judged["M"][:, :, :10] += ITSELF[:, None]
    judged["M"][:, AT["power"], 10:15, AT["tradition"]] = 1
    found = leakage(answered(judged, "pooled"), "M", set="pooled")
    assert np.allclose(np.diag(found.matrix), 0.5)
    assert float(found.matrix.sel(steered="power", value="tradition")) == 0.25
    assert found.nlr.loc["power", "estimate"] == pytest.approx(0.25 / 9 / 0.5)


def test_only_pairs_of_one_seed_count():
    judged = {m: np.zeros((2, 10, 8, 10)) for m in ("Base", "M")}
    judged["M"] += ITSELF[:, None]
    judged["Base"][0, :, :, 0] = judged["M"][0, :, :, 0] = 1
    table = answered(judged)
    fewer = table[(table["method"] == "Base") | (table["seed"] == 0)]
    assert np.allclose(leakage(fewer, "M").matrix, ITSELF - np.eye(10)[[0]].T * ITSELF[0])
    hidden = table.copy()
    hidden.loc[(table["method"] == "Base") & (table["seed"] == 1), "note"] = "79 of 64 tokens"
    assert np.allclose(leakage(hidden, "M").matrix, leakage(fewer, "M").matrix)


def test_the_order_of_rows_does_not_matter():
    table = world(0.3 * ITSELF + 0.05, questions=12)
    one, other = (leakage(t, "M", resamples=50) for t in (table, table.sample(frac=1, random_state=1)))
    pd.testing.assert_frame_equal(one.table, other.table)
    assert not leakage(table, "M", resamples=50, seed=1).table.equals(one.table)


# -- floors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain, base, questions, seeds", [(0.5, 0.15, 70, 2), (0.3, 0.3, 70, 1), (0.5, 0.3, 30, 3)])
def test_noise_alone_leaks(gain, base, questions, seeds):
    """Nothing leaks, and NLR is .03 to .12; base against base shows it, and nothing is left beyond."""
    told = []
    for seed in range(6):
        table = world(gain * ITSELF, base, questions, max(seeds, 2), seed)
        if seeds == 1:  # the method has one seed, the floor needs two
            table = table[(table["method"] == "Base") | (table["seed"] == 0)]
        told.append(leakage(table, "M", floors=("base",), resamples=100).table)
    told = pd.concat(told)
    mean = told[(told["measure"] == "nlr") & (told["value"] == "mean")]
    assert 0.03 < mean["estimate"].mean() < 0.12
    if seeds > 1:
        assert abs(mean["excess"].mean()) < 0.006 and (mean["excess_low"] < 0).sum() >= 5
    spread = told[(told["measure"] == "nglr") & (told["value"] != "mean")]
    assert (spread["why"] != "").mean() > 0.8 and spread.loc[spread["why"] != "", "estimate"].isna().all()


@pytest.mark.parametrize("seeds", [2, 5])
def test_base_against_base_is_as_noisy_as_the_method(seeds):
    """A method that is Base once more: what is seen in it is the floor, however many seeds."""
    worlds = [world(0 * ITSELF, seed=s, seeds=seeds) for s in range(8)]
    told = [leakage(table, "M", floors=("base",), resamples=20).table for table in worlds]
    total = pd.concat(told).query("measure == 'total' and value != 'mean'")
    assert total["at"].mean() == pytest.approx(total["estimate"].mean(), rel=0.08)


def test_a_lift_of_all_values_spreads_as_noise_does():
    """.78 of the other values lie outside the group; the floor says so, and NGLR does not exceed it."""
    told = [leakage(world(0.4 * ITSELF + 0.12, seed=s, questions=70), "M", resamples=100) for s in range(4)]
    mean = pd.concat([one.table for one in told]).query("measure == 'nglr' and value == 'mean' and floor == 'base'")
    assert mean["estimate"].mean() == pytest.approx(0.78, abs=0.03) == mean["at"].mean()
    assert abs(mean["excess"].mean()) < 0.04


def test_a_floor_that_answers_alike_leaves_no_excess():
    table = world(0.4 * ITSELF + 0.1)
    table = pd.concat([table, table[table["method"] == "M"].assign(method="random direction")])
    found = leakage(table, "M", resamples=50)
    own = found.table[(found.table["floor"] == "random direction") & (found.table["why"] == "")]
    assert set(own["measure"]) == {"total", "nlr", "nglr"}
    assert np.allclose(own[["excess", "excess_low", "excess_high"]], 0) and np.allclose(own["at"], own["estimate"])
    assert found.floors == {"base": "", "random direction": ""}


@pytest.mark.parametrize("height, questions, measures", [(0.08, 25, ("total", "nlr")), (0.3, 70, ("nglr",))])
def test_intervals_cover_what_leaks(height, questions, measures):
    """The measures' expectation. In the smaller world the resamples' own lift is larger than the interval."""
    delta = 0.5 * ITSELF + (1 - ITSELF) * height * np.cos(STEPS * np.pi / 5)
    worlds = [world(delta, questions=questions, seed=s) for s in range(50)]
    told = pd.concat([leakage(table, "M", floors=("base",), resamples=150).table for table in worlds])
    for measure in measures:
        for value in ("mean", "power") if measure != "nglr" else ("power", "tradition"):
            own = told[(told["measure"] == measure) & (told["value"] == value)]
            inside = (own["low"] <= own["estimate"].mean()) & (own["estimate"].mean() <= own["high"])
            assert own["estimate"].notna().mean() > 0.9 and inside.mean() >= 0.85, (measure, value)
            beyond = own["excess"].mean()
            assert ((own["excess_low"] <= beyond) & (beyond <= own["excess_high"])).mean() >= 0.85, (measure, value)


# -- what is not defined -------------------------------------------------------------------------------


def test_undefined_is_said_and_never_0():
    judged = {m: np.zeros((2, 10, 20, 10)) for m in ("Base", "M")}
    judged["M"] += ITSELF[:, None]
    judged["M"][:, AT["power"]] = 0
    judged["M"][:, AT["power"], :1, AT["power"]] = 1  # one question in 20
    judged["M"][:, AT["power"], :10, AT["security"]] = 1
    found = leakage(answered(judged), "M", floors=("base",))
    assert np.isnan(found.nlr.loc["power", "estimate"])
    assert found.nlr.loc["power", "why"].startswith("own gain +0.050 is not above its noise: its interval begins at -")
    assert found.nglr.loc["power", "estimate"] == 1 and found.nglr.loc["power", "why"] == ""
    assert found.nlr.loc["security", "estimate"] == 0 and np.isnan(found.nglr.loc["security", "estimate"])
    assert "does not exceed the floor (base)" in found.nglr.loc["security", "why"]
    assert found.nlr.loc["mean", "estimate"] == 0  # of the nine
    told = found.summary().set_index("value")["why"]
    assert told["power"].startswith("nlr: own gain") and told["mean"] == ""


def test_nothing_gained_leaves_nlr_undefined_everywhere():
    found = leakage(world(0 * ITSELF), "M", resamples=20)
    assert found.floors["random direction"] == "no answers of 'random direction'"
    at = found.nlr["why"] != ""
    assert at.sum() >= 9 and found.nlr.loc[at, ["estimate", "low", "high"]].isna().all(axis=None)
    none = leakage(world(-0.1 * ITSELF), "M", resamples=20)
    assert none.nlr.loc["mean", "why"] == "defined for no value" and "defined for no value" in repr(none)


def test_one_seed_has_no_floor():
    table = world(0.5 * ITSELF + 0.1)
    found = leakage(table[table["seed"] == 0], "M", resamples=20)
    assert found.floors["base"] == "one seed: base against base needs two or more"
    assert found.nlr["estimate"].notna().all() and found.nglr["estimate"].isna().all()
    assert "two seeds or more" in found.nglr.loc["power", "why"]
    rows = found.table[found.table["measure"] == "nlr"]
    assert rows[["at", "excess", "excess_low"]].isna().all(axis=None)


def test_values_that_were_not_steered():
    table = world(0.5 * ITSELF + 0.1)
    found = leakage(table[table["value"].isin(["power", "security"])], "M", resamples=20)
    assert found.matrix.isnull().all("value").sum() == 8
    assert found.nlr["why"].drop(["power", "security", "mean"]).unique().tolist() == [
        "not steered, or not judged for all values"
    ]
    assert found.inside()["share"].notna().sum() == 3
    assert leakage(table[table["value"] == "power"], "M", resamples=20).centred().isnull().all()


def test_requests_that_cannot_be_met():
    table = world(0.5 * ITSELF, questions=5)
    with pytest.raises(WorkbenchError, match="with 'Base' was asked for.\nFound: no answers of it\nAllowed: 'M'"):
        leakage(table[table["method"] != "Base"], "M")
    with pytest.raises(WorkbenchError, match="of 'CAA' was asked for.\nFound: no answers of it\nAllowed: 'Base', 'M'"):
        leakage(table, "CAA")
    with pytest.raises(WorkbenchError, match="Found: no such answers\nAllowed: sets \\['own'\\]"):
        leakage(table, "M", set="pooled")
    with pytest.raises(WorkbenchError, match="temperatures .*0.0.*\nWhat to do: Say which"):
        leakage(pd.concat([table, table.assign(temperature=0.0)]), "M")
    assert leakage(pd.concat([table, table.assign(temperature=0.0)]), "M", temperature=1.0, resamples=9).resampled.shape
    own = table.copy()
    for value in VALUES:
        own.loc[own["value"] != value, value] = np.nan  # judged for the steered value only
    with pytest.raises(WorkbenchError, match="no judgements of the other values\nWhat to do: Judge the answers"):
        leakage(own, "M")


# -- on the circle -------------------------------------------------------------------------------------


def test_a_uniform_lift_vanishes_when_centred():
    judged = {m: np.zeros((2, 10, 20, 10)) for m in ("Base", "M")}
    rows, columns = np.arange(10) % 3, np.arange(10) % 2
    for i in range(10):
        for j in range(10):
            judged["M"][:, i, : 20 if i == j else 2 + rows[i] + 3 * columns[j], j] = 1
    found = leakage(answered(judged), "M", resamples=20)
    centred = found.centred()
    assert np.allclose(centred.values[~np.eye(10, dtype=bool)], 0)
    assert np.allclose(np.diag(centred), 1 - (2 + rows + 3 * columns) / 20)
    assert found.profile().fit.loc["centred", "amplitude"] == pytest.approx(0, abs=1e-9)
    assert found.inside()["share"].isna().all()  # nothing is left to have a place


def test_leakage_shaped_like_a_cosine_is_recovered():
    wave = 0.15 * np.cos(STEPS * np.pi / 5)
    found = leakage(world(0.5 * ITSELF + (1 - ITSELF) * (wave + 0.05), base=0.3, questions=150), "M", resamples=200)
    steps, fit = found.profile()
    assert steps["n"].tolist() == [10, 20, 20, 20, 20, 10] and steps["raw"][0] == pytest.approx(0.5, abs=0.03)
    assert np.allclose(steps["raw"][1:], 0.05 + 0.15 * np.cos(np.arange(1, 6) * np.pi / 5), atol=0.03)
    for name in ("raw", "centred"):
        assert fit.loc[name, "amplitude"] == pytest.approx(0.15, abs=0.015) and fit.loc[name, "r2"] > 0.85
        assert fit.loc[name, "low"] < 0.15 < fit.loc[name, "high"] and fit.loc[name, "low"] > 0.12
    assert fit.loc["raw", "offset"] == pytest.approx(0.05, abs=0.015)
    assert fit.loc["centred", "offset"] == pytest.approx(0.15 / 9, abs=1e-3)  # a cosine's mean off the diagonal is -1/9
    swapped = found.profile(order="swapped").fit
    assert swapped.loc["raw", "r2"] < fit.loc["raw", "r2"]
    inside = found.inside().set_index("value")
    assert inside.loc["mean", "low"] > inside.loc["mean", "chance"] == pytest.approx(1 - 0.78, abs=0.003)
    assert inside.loc["hedonism", "chance"] == pytest.approx(4 / 9)


def test_noise_has_no_shape_and_stays_inside_by_chance():
    told = [leakage(world(0.5 * ITSELF, seed=s), "M", resamples=20) for s in range(6)]
    assert abs(np.mean([one.profile().fit.loc["centred", "amplitude"] for one in told])) < 0.01
    assert np.mean([one.profile().fit.loc["raw", "r2"] for one in told]) < 0.05
    shares = pd.concat([one.inside() for one in told]).query("value == 'mean'")
    assert shares["share"].mean() == pytest.approx(0.22, abs=0.05)


# -- at matched control --------------------------------------------------------------------------------


def test_methods_side_by_side():
    more = answered({"N": drawn(0.15 + (0.5 * ITSELF + 0.12)[:, None], 2, 70, np.random.default_rng(9))})
    table = pd.concat([world(0.5 * ITSELF, questions=70, methods=("M", "Same")), more], ignore_index=True)
    table = pd.concat([table, table[table["method"] == "M"].assign(method="Twin")], ignore_index=True)
    found = at_matched(table, ["M", "N", "Twin"], resamples=300).set_index(["method", "against"])
    assert found.loc[("M", ""), "nlr"] == pytest.approx(leakage(table, "M").nlr.loc["mean", "estimate"])
    between = found.loc[("M", "N")]
    assert between["total"] == pytest.approx(found.loc[("M", ""), "total"] - found.loc[("N", ""), "total"])
    assert between["total_high"] < -0.5 and between["nlr_high"] < 0 and between["nlr_values"] == 10
    assert (found.loc[("M", "Twin"), ["gain", "total_low", "total_high", "nlr_low", "nlr_high"]] == 0).all()
    assert between["gain_low"] < between["gain"] < between["gain_high"]
    assert found.index.tolist() == [("M", ""), ("N", ""), ("Twin", ""), ("M", "N"), ("M", "Twin"), ("N", "Twin")]


def test_nlr_is_compared_where_both_have_one():
    delta = np.where(np.arange(10) < 7, 0.6, 0) * ITSELF
    table = pd.concat([world(0.6 * ITSELF + 0.05), world(delta, methods=("N",), seed=0).query("method == 'N'")])
    found = at_matched(table, ["M", "N"], resamples=50).set_index(["method", "against"])
    assert found["nlr_values"].tolist() == [10, 7, 7] and found["gain_values"].tolist() == [10, 10, 10]
