"""What may not be concluded from an evaluation: sentences that follow from its own facts, none of them boilerplate."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from ..values import VALUES
from .tables import MEASURES, main_temperature

if TYPE_CHECKING:
    from ..evaluation.leakage import Leakage
    from ..evaluation.results import Evaluation


def cautions(ev: "Evaluation", head: pd.DataFrame, leakages: Mapping[str, "Leakage"]) -> list[str]:
    """One sentence or two for every limit that the data show; `ev.missing` last."""
    told = [_world(ev), _judge(ev, head), _decoding(ev), _size(ev, head), _many(ev), _leakage(leakages), _matched(head),
            _left_out(head), _tuned(ev), *(f"Not run: {what}." for what in ev.missing)]  # fmt: skip
    return [sentence for sentence in told if sentence]


def _world(ev: "Evaluation") -> str:
    about = ev.provenance["model"]
    if about.get("world") or str(about.get("model", "")).startswith("embedded"):
        return (
            "Nothing about large models: this one is a phantom, trained on a small artificial world so that the truth "
            "is known. It tests the instrument; a method that wins here may lose elsewhere, and the other way round."
        )
    return f"Nothing about other models: one was measured, {about.get('model', 'unknown')}."


def _judge(ev: "Evaluation", head: pd.DataFrame) -> str:
    name = ev.provenance.get("judge")
    share = float(head["undefined"].max())
    undefined = f" Up to {share:.1%} of a method's answers could not be judged and count nowhere." if share > 0 else ""
    if not name:
        return "Nothing about control or fluency: no judge read the answers."
    if name == "exact":
        return ("Nothing about how people would judge: the exact judge reads this world's grammar, and an answer that "
                "it cannot parse is not fluent." + undefined)  # fmt: skip
    return (f"Nothing beyond what the judge {name!r} sees: its errors are in every number here, and no interval covers "
            "them. Hold it against people on a sample (agreement) first." + undefined)  # fmt: skip


def _decoding(ev: "Evaluation") -> str:
    main, others = main_temperature(ev), ev.provenance["temperatures"][1:]
    beside = f"; beside it T = {', '.join(f'{t:g}' for t in others)}" if others else ", and no other was run"
    if main == 0:
        return (f"Nothing about sampled answers: decoding was greedy{beside}. Greedily a model gives few distinct "
                "answers, and a method may win by one token.")  # fmt: skip
    return f"Nothing about other decoding: the headline holds at T = {main:g}{beside}. Decoding can decide who wins."


def _size(ev: "Evaluation", head: pd.DataFrame) -> str:
    own = ev.pick()
    if own.empty or not (head["n"] > 0).any():
        return ""
    counts = own.groupby(["method", "value"])["question"].nunique()
    n, total, seeds = int(counts.min()), int(head.loc[head["n"] > 0, "n"].min()), own["seed"].nunique()
    blur, fine = (1.96 * math.sqrt(0.5 / k) for k in (n, total))
    also = "One seed: how much sampling alone moves a rate was not measured." if seeds < 2 else f"{seeds} seeds."
    return (f"Nothing about small differences: {n} questions per value tell two rates near .5 apart from about "
            f"{blur:.2f} on, all {total} together from {fine:.2f} on (less where answers agree in pairs). "
            + also)  # fmt: skip


def _many(ev: "Evaluation") -> str:
    methods = ev.answers["method"].nunique() - 1
    values = ev.answers.loc[ev.answers["set"] == "own", "value"].nunique()
    if methods < 1:
        return ""
    return (f"Nothing from the smallest p alone: {methods} methods were held against {ev.base} on {values} values. "
            "Holm's correction covers the values of one method, or the methods over all values, for one measure; not "
            "the measures, prompts and decodings together, and no interval is corrected.")  # fmt: skip


def _leakage(leakages: Mapping[str, "Leakage"]) -> str:
    if not leakages:
        return ""
    tables = [leakage.table.drop_duplicates(["measure", "value"]) for leakage in leakages.values()]
    every = pd.concat(tables)
    every = every[every["measure"].isin(MEASURES) & every["value"].isin(VALUES)]
    empty = int((every["why"] != "").sum())
    shown = f" {empty} of {len(every)} cells are undefined and say why; a mean is over the others." if empty else ""
    return ("Nothing about published NLR and NGLR figures: the formulas are the workbench's own. Noise alone gives "
            "leakage, so read the excess over the floor, never the number itself." + shown)  # fmt: skip


def _matched(head: pd.DataFrame) -> str:
    if "nlr" not in head or not head["nlr"].notna().any():
        return ""
    pairs = [m for m in dict.fromkeys(head["method"]) if " at " in m]
    if pairs:
        return ("Which method leaks less at the same control is told only by methods tuned to equal CSR: "
                f"{', '.join(pairs)}.")  # fmt: skip
    return ("Nothing about which method leaks less at the same control: no method was tuned to another's CSR, and "
            "leakage grows with control.")  # fmt: skip


def _left_out(head: pd.DataFrame) -> str:
    left = int(head["left_out"].sum())
    return f"Nothing about questions whose prompts did not fit: answers left out, {left}." if left else ""


def _tuned(ev: "Evaluation") -> str:
    tuned = list(ev.tuning)
    other = [m for m in dict.fromkeys(ev.answers["method"]) if m != ev.base and m not in tuned]
    if not tuned:
        return ("Nothing about the methods at their best: no curve of strengths came with this evaluation, so each is "
                "shown at the setting it was given.")  # fmt: skip
    return (f"Nothing about other strengths. Tuned, on calibration questions: {', '.join(tuned)}"
            + (f"; without a curve of their own: {', '.join(other)}" if other else "") + ".")  # fmt: skip
