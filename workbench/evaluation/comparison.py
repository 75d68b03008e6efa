"""From judged answers to rates with intervals, and to paired comparisons of methods.

One row of `answers` is one answer: set, method, value, prompt, temperature, seed, about, question, answer, note, open,
tokens, and once judged `fluent` and a column for every value. Answers of two methods form a pair where everything else
is equal. Several seeds of one question are not independent: intervals are of means per question and count questions,
which makes them a little wide, since a mean of several answers varies less than one, and never too narrow.
"""

from typing import Any

import numpy as np
import pandas as pd

from ..errors import WorkbenchError
from ..rates import bootstrap_mean, holm, mover, newcombe_paired, sign_flip, wilson
from ..values import VALUES, check_value
from .texts import distinct_n, repetition

QUESTION = ["about", "question"]
KEYS = ["set", "value", "prompt", "temperature", "seed", *QUESTION]
GROUP = ["set", "method", "value", "prompt", "temperature"]
RISES = [f"rise of {value}" for value in VALUES]
UNBOUNDED = ("perplexity", "kl")
EVERY: dict[str, Any] = dict(sort=False, dropna=False, observed=True)  # groupby: as they come, none dropped or invented


def checked(answers: pd.DataFrame) -> pd.DataFrame:
    """The answers, numbered afresh; WorkbenchError for a missing column, an unknown value, an answer that is twice."""
    asked = f"A table of {len(answers)} answers was to be read."
    needed = ["method", *KEYS, "answer", "note"]
    if missing := [column for column in needed if column not in answers]:
        raise WorkbenchError(asked, found=f"no column {', '.join(missing)}", allowed=", ".join(needed))
    for value in answers["value"].unique():
        check_value(value)
    if (twice := answers.duplicated(["method", *KEYS])).any():
        row = answers.loc[twice, ["method", *KEYS]].iloc[0]
        raise WorkbenchError(asked, found=f"{twice.sum()} of them twice, first {row.to_dict()}",
                             do="Drop duplicates, or give repetitions seeds of their own.")  # fmt: skip
    return answers.reset_index(drop=True)


def scores(answers: pd.DataFrame, metric: str) -> np.ndarray:
    """One score per answer (row): "csr" is the column of the row's own value, "fr" `fluent`, all else a column.

    NaN for answers with a note, and where the column is missing or holds NaN: not judged, or not to be judged.
    """
    out = np.full(len(answers), np.nan)
    if metric == "csr":
        for value in VALUES:
            if value in answers:
                own = (answers["value"] == value).to_numpy()
                out[own] = answers.loc[own, value].to_numpy(float)
    elif (column := {"fr": "fluent"}.get(metric, metric)) in answers:
        out = answers[column].to_numpy(float, copy=True)
    out[(answers["note"] != "").to_numpy()] = np.nan
    return out


def paired(answers: pd.DataFrame, base: str, columns: dict[str, np.ndarray]) -> pd.DataFrame:
    """Each answer, row by row, with `columns` x and the same of the answer that `base` gave: "x base", NaN without."""
    table = answers[["method", *KEYS]].assign(**columns)
    there = table["method"] == base
    if not there.any():
        raise WorkbenchError(f"A comparison with {base!r} was asked for.", found="no answers of it",
                             allowed=", ".join(map(repr, answers["method"].unique())))  # fmt: skip
    told = table[there].drop(columns="method").rename(columns={name: f"{name} base" for name in columns})
    return table.merge(told, on=KEYS, how="left")


def rates(answers: pd.DataFrame, base: str = "Base") -> pd.DataFrame:
    """Rates per set, method, value, prompt and temperature, seeds pooled, with 95 % intervals.

    csr: mean control of the row's own value over questions, those that a gate left alone too; low, high: Wilson's, of
    so many questions. fr, fr_low, fr_high: the same of fluency. leakage: mean over the other values of the rise, where
    it is one, of their csr above `base` on the same questions and seeds, without interval and floor, which `leakage`
    has; NaN without base, or unless all values were judged. n: questions; left_out: answers with a note, which count
    nowhere else; undefined: share of the others whose control or fluency could not be judged. A rate over no judgement
    is NaN. distinct2: different word pairs of all answers over all of theirs; repetition: mean share of an answer's
    word triples that came before; tokens: mean length; opened: share of answers with open gate. Where the table has
    columns perplexity or kl: these, _low and _high (bootstrap over questions), perplexity as exp of its mean nats.
    """
    answers = checked(answers)
    answered = answers["note"] == ""
    means = {"csr": scores(answers, "csr"), "fr": scores(answers, "fr"), **_rises(answers, base)}
    means |= {name: scores(answers, name) for name in UNBOUNDED if name in answers}
    if "perplexity" in means:
        means["perplexity"] = np.log(means["perplexity"])
    told = answers[GROUP + QUESTION + ["answer"]].assign(
        **means,
        left_out=~answered,
        undefined=np.isnan(means["csr"]) | np.isnan(means["fr"]),
        repetition=[repetition(text) for text in answers["answer"]],
        tokens=answers["tokens"] if "tokens" in answers else np.nan,
        opened=answers["open"].astype(float) if "open" in answers else np.nan,
    )
    left_out = told.groupby(GROUP, **EVERY)["left_out"].sum()
    groups = told[answered].groupby(GROUP, **EVERY)
    questions = told[answered].groupby([*GROUP, *QUESTION], **EVERY)[list(means)].mean().groupby(GROUP, **EVERY)
    mean, count = (found.reindex(left_out.index) for found in (questions.mean(), questions.count()))
    table = pd.DataFrame(index=left_out.index)
    for metric, low, high in (("csr", "low", "high"), ("fr", "fr_low", "fr_high")):
        table[metric] = mean[metric]
        table[low], table[high] = wilson(mean[metric], count[metric])
    others = np.maximum(mean[RISES].to_numpy(float), 0)
    others[np.arange(len(table)), [VALUES.index(value) for value in table.index.get_level_values("value")]] = 0
    table["leakage"] = others.sum(1) / (len(VALUES) - 1)
    table["n"], table["left_out"] = questions.size(), left_out
    table["n"] = table["n"].fillna(0).astype(int)
    table["undefined"] = groups["undefined"].mean()
    table["distinct2"] = groups["answer"].agg(distinct_n)
    table[["repetition", "tokens", "opened"]] = groups[["repetition", "tokens", "opened"]].mean()
    for name in UNBOUNDED:
        if name in means:
            ends = questions[name].agg(bootstrap_mean)
            bounds = {name: mean[name], f"{name}_low": ends.str[0], f"{name}_high": ends.str[1]}
            for column, bound in bounds.items():
                table[column] = np.exp(bound.astype(float)) if name == "perplexity" else bound.astype(float)
    return table.reset_index()


def _rises(answers: pd.DataFrame, base: str) -> dict[str, np.ndarray]:
    """By how much each answer acts more on every value than what `base` said to the same; NaN without base."""
    if not (answers["method"] == base).any():
        return dict.fromkeys(RISES, np.full(len(answers), np.nan))
    both = paired(answers, base, {value: scores(answers, value) for value in VALUES})
    return {rise: (both[v] - both[f"{v} base"]).to_numpy() for rise, v in zip(RISES, VALUES, strict=True)}


def compare(
    answers: pd.DataFrame, base: str = "Base", metric: str = "csr", set: str | None = None, confidence: float = 0.95
) -> pd.DataFrame:
    """Every other method against `base` on the same questions and seeds: a row per value, and "all" for all together.

    Columns: set, prompt, temperature, method, value, rate and base_rate (means over questions), difference, low, high,
    p, p_holm, n (questions), unpaired (answers without partner, or where one of the two was not judged).

    metric: "csr", "fr" or a column of scores such as "right". set: None is the only one there, else "own" for csr and
    fr, and "unrelated". base: any method, so `base="CAA"` asks for ConVA over CAA.

    Of each value: Newcombe's paired interval of the means per question; p exact by `rates.sign_flip`, the seeds of a
    question together; p_holm corrects for the values of a method. Of "all": the mean of the values' differences, their
    intervals combined by `rates.mover`, or, where values share their questions (unrelated, pooled), one paired interval
    of the means per question over seeds and values; p tests the sum over all; p_holm corrects for the methods.

    Raises WorkbenchError where `base` or the set has no answers.
    """
    answers = checked(answers)
    only = answers["set"].iloc[0] if answers["set"].nunique() == 1 else None
    set = set or only or ("own" if metric in ("csr", "fr") else "unrelated")
    chosen = answers[answers["set"] == set].reset_index(drop=True)
    if chosen.empty:
        raise WorkbenchError(f"A comparison of {metric!r} in the set {set!r} was asked for.", found="no answers of it",
                             allowed=", ".join(map(repr, answers["set"].unique())))  # fmt: skip
    both = paired(chosen, base, {"x": scores(chosen, metric)})
    both["unit"] = both.groupby(QUESTION, **EVERY).ngroup()
    both = both[both["method"] != base]
    tables = []
    for at, own in both.groupby(["prompt", "temperature", "method"], **EVERY):
        values = {value: _difference(rows, confidence) for value, rows in own.groupby("value", **EVERY)}
        table = pd.DataFrame.from_dict(values, orient="index")
        table["p_holm"] = holm(table["p"])
        table.loc["all"] = _difference(own, confidence)
        if not own.groupby("unit")["value"].nunique().gt(1).any():
            each = table.iloc[:-1]
            for column in ("rate", "base_rate", "difference"):
                table.loc["all", column] = each[column].mean()
            table.loc["all", ["low", "high"]] = mover(each["difference"], each["low"], each["high"])
        keys = dict(zip(("prompt", "temperature", "method"), at, strict=True))  # type: ignore[call-overload]
        tables.append(table.rename_axis("value").reset_index().assign(set=set, **keys))
    columns = ["set", "prompt", "temperature", "method", "value", "rate", "base_rate", "difference", "low", "high", "p",
               "p_holm", "n", "unpaired"]  # fmt: skip
    if not tables:
        return pd.DataFrame(columns=columns)
    told = pd.concat(tables, ignore_index=True)
    for _, rows in told[told["value"] == "all"].groupby(["prompt", "temperature"], **EVERY):
        told.loc[rows.index, "p_holm"] = holm(rows["p"])
    return told[columns].astype({"n": int, "unpaired": int})


def _difference(rows: pd.DataFrame, confidence: float) -> dict[str, float]:
    """What the pairs (x, x base) of some answers say, questions counted once."""
    judged = rows.dropna(subset=["x", "x base"])
    each = judged.groupby("unit")[["x", "x base"]].mean()
    low, high = newcombe_paired(each["x"], each["x base"], confidence)
    rate, base_rate = each.mean()
    return {
        "rate": rate, "base_rate": base_rate, "difference": rate - base_rate, "low": low, "high": high,
        "p": sign_flip(judged["x"], judged["x base"], judged["unit"].to_numpy()), "n": len(each),
        "unpaired": len(rows) - len(judged),
    }  # fmt: skip


def non_inferior(
    answers: pd.DataFrame, base: str = "Base", margin: float = 0.02, metric: str = "right", set: str | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:  # fmt: skip
    """Whether each method loses less than `margin` against `base`: set, prompt, temperature, method, value, loss,
    bound, inside, n.

    bound: one-sided upper bound of the loss, 95 %: the lower end, with its sign turned, of the 90 % interval that
    `compare` gives. inside: bound < margin; False where nothing was judged. Arguments else as for `compare`.
    """
    table = compare(answers, base, metric, set, confidence=2 * confidence - 1)
    table = table.assign(loss=-table["difference"], bound=-table["low"], inside=-table["low"] < margin)
    return table[["set", "prompt", "temperature", "method", "value", "loss", "bound", "inside", "n"]]
