"""Rates and paired comparisons, counted by hand; what several seeds are worth; what is undefined."""

import numpy as np
import pandas as pd
import pytest
from answered import answered, drawn
from scipy.stats import binomtest

from workbench.errors import WorkbenchError
from workbench.evaluation.comparison import compare, non_inferior, rates
from workbench.rates import holm, mover, newcombe_paired, sign_flip, wilson
from workbench.values import VALUES

POWER, SECURITY = VALUES.index("power"), VALUES.index("security")
TWO = ("power", "security")


def scores(questions, methods=("Base", "M"), seeds=1, values=2):
    return {method: np.zeros((seeds, values, questions, 10)) for method in methods}


# -- rates ---------------------------------------------------------------------------------------------


def test_rates_by_hand():
    judged = scores(10)
    judged["M"][0, 0, :8, POWER] = 1
    judged["M"][0, 0, :5, SECURITY] = 1
    judged["M"][0, 0, :3, 0] = 0.5
    judged["Base"][0, 0, :2, [POWER, 0]] = 1  # another value that falls does not count against the rise
    judged["M"][0, 1, :, SECURITY] = [1, 0.5] * 5
    table = answered(judged, values=TWO)
    table.loc[(table["method"] == "M") & (table["value"] == "power"), "fluent"] = [0.0] + [1.0] * 9
    found = rates(table).set_index(["method", "value"])
    power = found.loc[("M", "power")]
    assert (power["csr"], power["fr"], power["n"], power["left_out"], power["undefined"]) == (0.8, 0.9, 10, 0, 0)
    assert (power["low"], power["high"]) == wilson(0.8, 10)
    assert (power["fr_low"], power["fr_high"]) == wilson(0.9, 10)
    assert power["leakage"] == pytest.approx(0.5 / 9)  # security .5; the first value .15 - .2 does not count
    assert found.loc[("M", "security"), "csr"] == pytest.approx(0.75)
    assert (found.loc["Base", "leakage"] == 0).all()
    columns = ["method", "value", "csr", "low", "high", "fr", "fr_low", "fr_high", "leakage", "n", "left_out"]
    assert [name for name in rates(table) if name in columns] == columns
    assert rates(table)[["set", "prompt", "temperature"]].drop_duplicates().values.tolist() == [["own", "none", 1.0]]


def test_seeds_are_pooled_and_questions_counted():
    judged = scores(6, seeds=3)
    judged["M"][:, 0, :, POWER] = [[1] * 6, [1, 1, 1, 0, 0, 0], [0] * 6]
    table = rates(answered(judged, values=TWO)).set_index(["method", "value"]).loc[("M", "power")]
    assert (table["csr"], table["n"]) == (pytest.approx(0.5), 6)
    assert (table["low"], table["high"]) == pytest.approx(wilson(0.5, 6))


@pytest.mark.parametrize("p, questions, seeds, alike", [(0.9, 30, 4, 5), (0.5, 70, 3, 0.2), (0.97, 70, 5, 0.05)])
def test_intervals_cover_though_answers_to_one_question_are_alike(p, questions, seeds, alike):
    """Beta-binomial: every question has its own probability; counting answers instead of questions does not cover."""
    draw, covered, narrow = np.random.default_rng(0), 0, 0
    for _ in range(600):
        own = draw.binomial(seeds, draw.beta(p * alike, (1 - p) * alike, questions)) / seeds
        low, high = wilson(own.mean(), questions)
        covered += low <= p <= high
        low, high = wilson(own.mean(), questions * seeds)
        narrow += low <= p <= high
    assert covered / 600 >= 0.92
    assert narrow / 600 < 0.92 or alike > 1


def test_what_was_not_judged_or_did_not_fit():
    judged = scores(4)
    judged["M"][0, 0, :, POWER] = [1, 1, np.nan, 0]
    judged["M"][0, 1, :, SECURITY] = np.nan
    judged["M"][0, 0, :, 0] = np.nan
    table = answered(judged, values=TWO)
    table.loc[(table["method"] == "M") & (table["question"] == "power 3?"), "note"] = "long"
    found = rates(table).set_index(["method", "value"])
    power, security = found.loc[("M", "power")], found.loc[("M", "security")]
    assert (power["csr"], power["n"], power["left_out"]) == (1.0, 3, 1)
    assert (power["low"], power["high"]) == wilson(1, 2) and power["undefined"] == pytest.approx(1 / 3)
    assert security[["csr", "low", "high"]].isna().all() and security["fr"] == 1
    assert np.isnan(power["leakage"]) and security["leakage"] == 0  # one of the other values was not judged; all were
    every = rates(table.assign(note="long")).set_index(["method", "value"]).loc[("M", "power")]
    assert every[["csr", "fr", "low", "undefined", "distinct2"]].isna().all()
    assert (every["n"], every["left_out"]) == (0, 4)
    unjudged = rates(table.drop(columns=[*VALUES, "fluent"]))
    assert unjudged[["csr", "fr", "leakage"]].isna().all(axis=None) and (unjudged["undefined"] == 1).all()
    assert rates(table[table["method"] == "M"])["leakage"].isna().all()  # without base


def test_texts_gates_and_unbounded_means():
    judged = scores(4, methods=("M",))
    table = answered(judged, values=TWO, answer=["a b c a b c", "a b"] * 4, open=[True, False, False, False] * 2,
                     tokens=[6, 2] * 4, perplexity=[1.0, 100.0] * 4, kl=[0.5, np.nan] * 4)  # fmt: skip
    row = rates(table).iloc[0]
    assert row["distinct2"] == 3 / 12 and row["repetition"] == 0.25 and row["tokens"] == 4 and row["opened"] == 0.25
    assert row["perplexity"] == pytest.approx(10) and row["perplexity_low"] < 10 < row["perplexity_high"]
    assert (row["kl"], row["kl_low"], row["kl_high"]) == (0.5, 0.5, 0.5)


def test_the_order_of_rows_does_not_matter():
    draw = np.random.default_rng(0)
    table = answered({m: drawn(p, 2, 12, draw) for m, p in (("Base", 0.2), ("M", 0.4))})
    mixed = table.sample(frac=1, random_state=1)
    for tell, keys in ((rates, ["method", "value"]), (compare, ["method", "value"])):
        one, other = (tell(t).set_index(keys).sort_index() for t in (table, mixed))
        pd.testing.assert_frame_equal(one, other)


# -- comparisons ---------------------------------------------------------------------------------------


def test_compare_by_hand():
    draw = np.random.default_rng(0)
    judged = {m: draw.choice([0, 0.5, 1], (1, 2, 20, 10), p=p) for m, p in
              (("Base", [0.6, 0.1, 0.3]), ("M", [0.3, 0.1, 0.6]))}  # fmt: skip
    found = compare(answered(judged, values=TWO)).set_index("value")
    x, base = (judged[m][0, [0, 1], :, [POWER, SECURITY]] for m in ("M", "Base"))
    for k, value in enumerate(TWO):
        row = found.loc[value]
        assert (row["rate"], row["base_rate"]) == pytest.approx((x[k].mean(), base[k].mean()))
        assert row["difference"] == pytest.approx(x[k].mean() - base[k].mean())
        assert (row["low"], row["high"]) == pytest.approx(newcombe_paired(x[k], base[k]))
        assert row["p"] == pytest.approx(sign_flip(x[k], base[k])) and (row["n"], row["unpaired"]) == (20, 0)
    own = found.loc[list(TWO)]
    assert own["p_holm"].tolist() == pytest.approx(holm(own["p"]))
    every = found.loc["all"]
    assert every["difference"] == pytest.approx((x - base).mean())
    assert (every["low"], every["high"]) == pytest.approx(mover(own["difference"], own["low"], own["high"]))
    assert every["p"] == pytest.approx(sign_flip(x.ravel(), base.ravel())) and every["p_holm"] == every["p"]


def test_any_method_against_any_other():
    judged = scores(30, ("Base", "CAA", "ConVA"))
    judged["CAA"][0, 0, :9, POWER], judged["ConVA"][0, 0, :24, POWER] = 1, 1
    table = answered(judged, values=TWO)
    found = compare(table, base="CAA").set_index(["method", "value"])
    assert found.loc[("ConVA", "power"), "difference"] == pytest.approx(0.5)
    assert found.loc[("ConVA", "power"), "p"] == pytest.approx(binomtest(15, 15).pvalue)
    assert found.loc[("Base", "power"), "difference"] == pytest.approx(-0.3)
    every = found.xs("all", level="value")
    assert every["p_holm"].tolist() == pytest.approx(holm(every["p"]))
    assert (found.loc[("ConVA", "security"), ["difference", "p"]] == [0, 1]).all()
    assert (compare(table, metric="fr")["difference"] == 0).all()
    assert set(compare(table.assign(set="pooled"))["set"]) == {"pooled"}  # the only one there


def test_seeds_of_a_question_change_sign_together():
    judged = scores(5, seeds=8)
    judged["M"][:, 0, :2, POWER] = 1  # two questions, eight times each: no sixteen independent successes
    row = compare(answered(judged, values=TWO)).set_index("value").loc["power"]
    assert row["p"] == 0.5 and row["n"] == 5 and row["difference"] == pytest.approx(0.4)
    assert (row["low"], row["high"]) == pytest.approx(newcombe_paired([1, 1, 0, 0, 0], [0] * 5))


def test_questions_that_values_share_count_once():
    """Unrelated prompts stand once per steered value: ten times the same question is one question."""
    judged = scores(20, values=10)
    table = answered(judged, subset="unrelated", right=1.0)
    wrong = (table["method"] == "M") & table["question"].isin([f"{VALUES[q % 10]} {q}?" for q in range(5)])
    table.loc[wrong, "right"] = 0.0
    row = compare(table, metric="right").set_index("value").loc["all"]
    assert (row["difference"], row["n"], row["p"]) == (pytest.approx(-0.25), 20, pytest.approx(0.0625))
    assert (row["low"], row["high"]) == pytest.approx(newcombe_paired([0] * 5 + [1] * 15, [1] * 20))


def test_pairs_are_made_of_the_same_seed_prompt_and_temperature():
    judged = scores(6, seeds=2)
    judged["Base"][1, 0, :, POWER] = judged["M"][1, 0, :, POWER] = 1
    table = answered(judged, values=TWO)
    low = answered(judged, values=TWO, prompt="negative")
    low.loc[low["method"] == "M", "power"] = 1
    found = compare(pd.concat([table, low])).set_index(["prompt", "value"])
    assert found.loc[("none", "power"), ["difference", "p"]].tolist() == [0, 1]
    assert found.loc[("negative", "power"), "difference"] == pytest.approx(0.5)
    assert found.loc[("negative", "power"), "p"] == pytest.approx(2 * 0.5**6)
    fewer = table[(table["method"] == "M") | (table["seed"] == 0)]
    row = compare(fewer).set_index("value").loc["power"]
    assert (row["unpaired"], row["n"], row["difference"]) == (6, 6, 0)
    noted = table.assign(note=np.where(table["seed"] == 1, "79 of 64 tokens", ""))  # judged in vain
    assert compare(noted).set_index("value").loc["power", ["unpaired", "n", "rate"]].tolist() == [6, 6, 0]
    alone = compare(fewer.drop(columns=list(VALUES))).set_index("value").loc["all"]
    assert alone[["difference", "low", "p", "p_holm"]].isna().all() and alone["n"] == 0


def test_noise_alone_is_seldom_called_a_difference():
    draw, found = np.random.default_rng(5), []
    for _ in range(25):
        p = draw.beta(1, 2, (10, 25, 10))
        found.append(compare(answered({"Base": drawn(p, 2, 25, draw), "M": drawn(p, 2, 25, draw)})))
    own, every = (pd.concat([t[(t["value"] == "all") == together] for t in found]) for together in (False, True))
    assert (own["p"] <= 0.05).mean() <= 0.07 and (every["p"] <= 0.05).mean() <= 0.2
    inside = (own["low"] <= 0) & (own["high"] >= 0)
    assert inside.mean() >= 0.92
    assert sum((t["p_holm"][t["value"] != "all"] <= 0.05).any() for t in found) <= 4


def test_non_inferior():
    judged = scores(1000, values=10)
    table = answered(judged, subset="unrelated", right=1.0)
    lost = (table["method"] == "M") & table["question"].isin([f"{VALUES[q % 10]} {q}?" for q in range(12)])
    table.loc[lost, "right"] = 0.0
    row = non_inferior(table).set_index("value").loc["all"]
    right = np.arange(1000) >= 12
    assert row["loss"] == pytest.approx(0.012) and row["bound"] == pytest.approx(
        -newcombe_paired(right, np.ones(1000), 0.9)[0]
    )
    assert bool(row["inside"]) and not non_inferior(table, margin=0.015).set_index("value").loc["all", "inside"]
    assert not non_inferior(table.assign(right=np.nan))["inside"].any()


def test_requests_that_cannot_be_met():
    table = answered(scores(3), values=TWO)
    with pytest.raises(WorkbenchError, match="'CAA' was asked for.\nFound: no answers of it\nAllowed: 'Base', 'M'"):
        compare(table, base="CAA")
    with pytest.raises(WorkbenchError, match="set 'pooled' was asked for.\nFound: no answers of it\nAllowed: 'own'"):
        compare(table, set="pooled")
    with pytest.raises(WorkbenchError, match="Found: no column seed, note"):
        rates(table.drop(columns=["seed", "note"]))
    with pytest.raises(WorkbenchError, match="1 of them twice, first .*'power 0\\?'"):
        rates(pd.concat([table, table.iloc[:1]]))
    with pytest.raises(WorkbenchError, match="Did you mean 'power'"):
        rates(table.replace({"value": {"power": "powr"}}))
