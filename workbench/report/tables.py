"""The tables of a report: one row per method, everything by value, and both as LaTeX."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import WorkbenchError
from ..evaluation.capability import intact, unrelated_table
from ..evaluation.comparison import QUESTION, compare, rates, scores
from ..rates import wilson
from ..values import VALUES

if TYPE_CHECKING:
    from ..evaluation.leakage import Leakage
    from ..evaluation.results import Evaluation

SETTING = ["method", "prompt", "temperature"]
MEASURES = ("nlr", "nglr")
METRICS = {"csr": "csr", "fr": "fr", "unrelated": "right"}  # column of a table -> metric of `compare`


def main_temperature(ev: "Evaluation") -> float:
    """The temperature of the headline."""
    return float(ev.provenance["temperatures"][0])


def headline(ev: "Evaluation", leakages: Mapping[str, "Leakage"] | None = None) -> pd.DataFrame:
    """One row per method, prompt and temperature, the ten values together.

    csr, low, high; fr, fr_low, fr_high: means over own questions with Wilson's intervals over n questions. n, left_out,
    undefined, opened: as in `comparison.rates`. At the main temperature without a prompt also: unrelated, the share of
    right answers, and intact, the share of hard unrelated prompts answered word for word as Base answers them, each
    with _low and _high over prompts; nlr and nglr, means over the values where they are defined, with _low, _high,
    _floor, _excess, _excess_low, _excess_high and _defined, the number of such values. NaN: undefined, or not measured.
    """
    own = ev.answers[ev.answers["set"] == "own"].reset_index(drop=True)
    own = own.assign(csr=scores(own, "csr"), fr=scores(own, "fr"))
    rows = []
    for key, part in own.groupby(SETTING, sort=False):
        said = part[part["note"] == ""]
        each = said.groupby(QUESTION)[["csr", "fr"]].mean()
        row = dict(zip(SETTING, key, strict=True))  # type: ignore[call-overload]
        for name, low, high in (("csr", "low", "high"), ("fr", "fr_low", "fr_high")):
            row[name] = each[name].mean()
            row[low], row[high] = wilson(row[name], each[name].count())
        rows.append(row | {
            "n": len(each), "left_out": len(part) - len(said), "opened": said["open"].mean(),
            "undefined": said[["csr", "fr"]].isna().any(axis=1).mean(),
        })  # fmt: skip
    table = pd.DataFrame(rows)
    more = _abilities(ev, []).join(_leaking(leakages or {}), how="outer")
    plain = (table["prompt"] == "none") & (table["temperature"] == main_temperature(ev))
    for name in more:
        table[name] = table["method"].map(more[name]).where(plain)
    return table


def by_value(ev: "Evaluation", leakages: Mapping[str, "Leakage"] | None = None) -> pd.DataFrame:
    """The table of `comparison.rates` on own questions, and the further columns of `headline` value by value."""
    own = ev.answers[ev.answers["set"] == "own"]
    table = rates(own, ev.base).drop(columns="set")
    more = _abilities(ev, ["value"]).join(_leaking(leakages or {}, each=True), how="outer")
    plain = (table["prompt"] == "none") & (table["temperature"] == main_temperature(ev))
    joined = table[["method", "value"]].join(more, on=["method", "value"]).drop(columns=["method", "value"])
    return table.join(joined.where(plain))


def whole(head: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """Everything in one table: the rows of `headline`, with value "all", above those of `by_value`."""
    first = ["method", "value", "prompt", "temperature"]
    table = pd.concat([head.assign(value="all"), values], ignore_index=True)
    return table[[*first, *(column for column in table if column not in first)]]


def winners(answers: pd.DataFrame, metric: str) -> dict[str, str]:
    """Value, or "all" -> the method that is better there than *every* other one; values without such a method are left
    out.

    Better: the exact paired test of `comparison.compare` says so at .05, after Holm's correction, against each other
    method. So the highest number of a column is often nobody's.
    """
    subset = answers[answers["set"] == ("own" if metric in ("csr", "fr") else "unrelated")].reset_index(drop=True)
    told: dict[str, str] = {}
    if subset.empty or subset["method"].nunique() < 2:
        return told
    means = subset.assign(score=scores(subset, metric)).groupby(["method", "value"])["score"].mean().unstack()
    means["all"] = means.mean(axis=1)
    leaders = {str(value): str(means[value].idxmax()) for value in means if means[value].notna().any()}
    for leader in {*leaders.values()}:
        against = compare(subset, leader, metric)
        beaten = ((against["difference"] < 0) & (against["p_holm"] < 0.05)).groupby(against["value"]).all()
        told |= {value: leader for value, best in leaders.items() if best == leader and beaten.get(value, False)}
    return told


def _abilities(ev: "Evaluation", by: list[str]) -> pd.DataFrame:
    """Columns unrelated and intact with their ends, indexed by method (and `by`); empty where there are none."""
    keys, parts = ["method", *by], []
    unrelated, hard = (ev.pick(name) for name in ("unrelated", "hard"))
    if len(unrelated) and "right" in unrelated and unrelated["right"].notna().any():
        names = {"accuracy": "unrelated", "low": "unrelated_low", "high": "unrelated_high"}
        parts.append(unrelated_table(unrelated, by=keys).rename(columns=names).set_index(keys)[[*names.values()]])
    if len(hard) and ev.base in set(hard["method"]):
        columns = ["intact", "intact_low", "intact_high"]
        parts.append(intact(hard, by=keys, base=ev.base).set_index(keys)[columns])
    return pd.concat(parts, axis=1) if parts else pd.DataFrame(index=_nothing(len(keys)))


def floor_of(leakage: "Leakage") -> str:
    """The first floor that was measured; "" where there is none."""
    known = leakage.table[leakage.table["at"].notna()]["floor"]
    return str(known.iloc[0]) if len(known) else ""


def measured(leakage: "Leakage") -> pd.DataFrame:
    """The rows of `leakage.table` against `floor_of` it (against any, where there is none)."""
    floor = floor_of(leakage) or leakage.table["floor"].iloc[0]
    return leakage.table[leakage.table["floor"] == floor]


def _leaking(leakages: Mapping[str, "Leakage"], each: bool = False) -> pd.DataFrame:
    """Columns nlr... and nglr..., indexed by method (and, with `each`, value)."""
    rows: dict[Any, dict[str, float]] = {}
    names = {"": "estimate", "_low": "low", "_high": "high", "_floor": "at", "_excess": "excess",
             "_excess_low": "excess_low", "_excess_high": "excess_high"}  # fmt: skip
    for method, leakage in leakages.items():
        table = measured(leakage)
        for row in table[table["measure"].isin(MEASURES)].to_dict("records"):
            if each != (row["value"] == "mean"):
                own = rows.setdefault((method, row["value"]) if each else method, {})
                own |= {row["measure"] + end: row[column] for end, column in names.items()}
        for name in () if each else MEASURES:
            own = table[(table["measure"] == name) & (table["value"] != "mean")]
            rows[method][f"{name}_defined"] = int((own["why"] == "").sum())
    if each:
        index: pd.Index = pd.MultiIndex.from_tuples(list(rows), names=["method", "value"]) if rows else _nothing(2)
    else:
        index = pd.Index(list(rows), name="method")
    return pd.DataFrame(list(rows.values()), index=index)


def _nothing(keys: int) -> pd.Index:
    names = ["method", "value"][:keys]
    return pd.MultiIndex.from_arrays([[]] * keys, names=names) if keys > 1 else pd.Index([], name="method")


# -- LaTeX ---------------------------------------------------------------------------------------------------------

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}",
}  # fmt: skip


def tex(text: Any, limit: int = 60) -> str:
    """Text for LaTeX: on one line, cut to `limit` characters, with nothing in it that LaTeX would act on."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return "".join(_TEX.get(c, c) for c in (line if len(line) <= limit else line[: limit - 1] + "…"))


def latex(ev: "Evaluation", head: pd.DataFrame, values: pd.DataFrame, best: Mapping[str, Mapping[str, str]]) -> str:
    """Two tables for a paper (package booktabs): one row per method, and the CSR of every value.

    best: metric -> value or "all" -> the method whose number stands bold (`winners`).
    """
    plain = [(t["prompt"] == "none") & (t["temperature"] == main_temperature(ev)) for t in (head, values)]
    head, values = head[plain[0]], values[plain[1]]
    model = tex(ev.provenance["model"].get("model", "unknown"))
    how = f"{model}, $T = {main_temperature(ev):g}$, judge: {tex(ev.provenance.get('judge') or 'none')}"
    rule = "Bold: better than every other method (exact paired test, Holm-corrected, $p < .05$)"
    columns = {"csr": "CSR", "fr": "FR", "unrelated": "Unrelated", "intact": "Intact", "nlr": "NLR", "nglr": "NGLR"}
    ends = {"csr": ("low", "high"), **{c: (f"{c}_low", f"{c}_high") for c in columns if c != "csr"}}
    shown = {c: name for c, name in columns.items() if c in head and head[c].notna().any()}
    rows = [
        [tex(row["method"]),
         *("--" if row["method"] == ev.base and c in ("intact", *MEASURES) else  # held against itself
           _cell(row[c], best.get(c, {}).get("all") == row["method"], row[ends[c][0]], row[ends[c][1]])
           for c in shown), str(row["n"])]
        for row in head.to_dict("records")
    ]  # fmt: skip
    first = _tabular(["Method", *shown.values(), "$n$"], rows,
                     f"Control and what it costs: means over the values with 95\\,\\% intervals ({how}). {rule}. "
                     "NLR and NGLR are the workbench's own definitions.", "control")  # fmt: skip
    names = [v for v in VALUES if v in {*values["value"]}]
    wide = values.set_index(["method", "value"])["csr"].to_dict()
    rows = [[tex(method), *(_cell(wide.get((method, v), np.nan), best.get("csr", {}).get(v) == method) for v in names)]
            for method in dict.fromkeys(values["method"])]  # fmt: skip
    second = _tabular(["Method", *(rf"\rotatebox{{70}}{{{tex(v)}}}" for v in names)], rows,
                      f"CSR of every value while it is steered ({how}). {rule}; one correction for each method's "
                      "values.", "values")  # fmt: skip
    return f"% \\usepackage{{booktabs,graphicx,textcomp}} \\usepackage[T1]{{fontenc}}\n{first}\n{second}"


def _cell(x: float, bold: bool, low: float = np.nan, high: float = np.nan) -> str:
    if np.isnan(x):
        return "undefined"
    number = rf"\textbf{{{x:.3f}}}" if bold else f"{x:.3f}"
    return number if np.isnan(low) else rf"{number} {{\scriptsize [{low:.3f}, {high:.3f}]}}"


def _tabular(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, label: str) -> str:
    if not rows:
        raise WorkbenchError("A LaTeX table was to be written.", found="no rows")
    lines = [" & ".join(row) + r" \\" for row in rows]
    return "\n".join([
        r"\begin{table*}", r"\centering\small", rf"\caption{{{caption}}}", rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", " & ".join(head) + r" \\", r"\midrule", *lines,
        r"\bottomrule", r"\end{tabular}", r"\end{table*}", "",
    ])  # fmt: skip
