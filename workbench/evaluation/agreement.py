"""Agreement between annotators, with a judge, and between judges: alpha, kappa, the plain share, who says what."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..errors import WorkbenchError
from ..values import VALUES
from .judges import SCORES, Judge, judged
from .records import SHOWN, judgements

LEVELS = ("nominal", "ordinal")
Rater = tuple[str, pd.Series]  # a name, and labels by item


def agreement(
    *reviews: str | Path | pd.DataFrame,
    judge: str | Sequence[str] | pd.Series | None = None,
    column: str = "label",
    labels: Sequence[str] | None = None,
    level: str = "nominal",
) -> pd.DataFrame:
    """How far annotators agree: a row for all together (if more than two), for each two, and for each with the judge.

    Columns: first, second; alpha and kappa, 1 for full agreement and 0 for chance, NaN where they are not defined (no
    item in common, or one label throughout; kappa: more than two raters); agreement, the share of equal judgements, 0
    to 1; n, items judged by both (all together: by two or more, and every two judgements of an item count).

    reviews: records, or tables with columns item, annotator and label, such as exports. judge: a column of the tables,
    or one label per item in the items' order. column: "side" compares reviews of pairs by side and not by letter.
    labels: the scale; None takes that of the records. level: "ordinal" also weighs how far labels lie apart on it, for
    kappa by the number of steps.

    Raises WorkbenchError for reviews of different items, an item judged twice by one annotator, labels that are not on
    the scale. Both mislead when nearly all labels are the same: read them beside the share. Kappa takes chance from
    each rater's own habits, so two with opposite leanings look better than by alpha. Sources: Krippendorff 2019,
    Content Analysis, chapter 12, which asks for alpha >= .8, and >= .667 for tentative conclusions; Cohen 1960, 1968.
    """
    raters, machine, labels = _raters(reviews, judge, column, labels, level)
    compared = [*combinations(raters, 2), *((rater, ("judge", machine)) for rater in raters if machine is not None)]
    if not compared:
        raise WorkbenchError("Agreement was asked for.", found=f"{len(raters)} annotator and no judge")
    rows = [_row(a, b, [one, two], labels, level) for (a, one), (b, two) in compared]
    if len(raters) > 2:
        rows.insert(0, _row("all annotators", "", [given for _, given in raters], labels, level))
    return pd.DataFrame(rows)


def confusion(
    *reviews: str | Path | pd.DataFrame,
    judge: str | Sequence[str] | pd.Series | None = None,
    column: str = "label",
    labels: Sequence[str] | None = None,
) -> pd.DataFrame:
    """What was said by one where another said what: counts, label by label, of the items that both judged.

    With a judge: rows are the annotators' labels, each annotator's judgement counted, columns the judge's. Without:
    of two annotators, rows the first's, columns the second's. Parameters and errors as in `agreement`.
    """
    raters, machine, labels = _raters(reviews, judge, column, labels, "nominal")
    if machine is None and len(raters) != 2:
        raise WorkbenchError("A table of confusions was asked for.", found=f"{len(raters)} annotators and no judge",
                             allowed="two annotators, or a judge")  # fmt: skip
    pairs = [(given, machine) for _, given in raters] if machine is not None else [(raters[0][1], raters[1][1])]
    names = ("annotators", "judge") if machine is not None else (raters[0][0], raters[1][0])
    both = pd.concat([pd.concat([a, b], axis=1, keys=["a", "b"]).astype(object).dropna() for a, b in pairs])
    counts = np.array([[int(((both["a"] == a) & (both["b"] == b)).sum()) for b in labels] for a in labels])
    return pd.DataFrame(counts, pd.Index(labels, name=names[0]), pd.Index(labels, name=names[1]))


class Compared(NamedTuple):
    """table: about ("control", "fluent"), and the columns of `agreement`. confusions: by about, first and second."""

    table: pd.DataFrame
    confusions: dict[tuple[str, str, str], pd.DataFrame]


def judge_agreement(
    answers: pd.DataFrame, judges: Mapping[str, Judge], values: str = "own", level: str = "nominal"
) -> Compared:
    """How far judges agree about the same answers, on control and on fluency.

    answers: as in `judged`, with columns value and question. values: "own" compares the scores for the row's value,
    "all" those for all ten. An answer that is given several times counts once, one that a judge could not judge not
    for it. Scores 1, .5, 0 are the labels yes, partly, no; others are an error: put them on the scale first.
    """
    if len(judges) < 2:
        raise WorkbenchError("Agreement of judges was asked for.", found=f"{len(judges)}", allowed="two or more")
    keys = ["question", "answer", *["value"] * (values == "own")]
    if missing := [name for name in [*keys, "note"] if name not in answers]:
        raise WorkbenchError("Agreement of judges was asked for.", found=f"no column {', '.join(missing)}",
                             allowed="a table of answers")  # fmt: skip
    answers = answers[answers["note"] == ""].drop_duplicates(keys).reset_index(drop=True)
    tables = {name: judged(answers, judge, values) for name, judge in judges.items()}
    found, confusions = [], {}
    for about, columns in (("control", list(VALUES)), ("fluent", ["fluent"])):
        given = [_labelled(name, table[columns]) for name, table in tables.items()]
        given = [table for table in given if len(table)]
        if len(given) < 2:
            continue
        compared = agreement(*given, labels=list(SCORES), level=level)
        found.append(compared.replace("all annotators", "all judges").assign(about=about))
        for one, two in combinations(given, 2):
            names = one["annotator"].iloc[0], two["annotator"].iloc[0]
            confusions[about, *names] = confusion(one, two, labels=list(SCORES))
    if not found:
        raise WorkbenchError("Agreement of judges was asked for.", found="no answers that two of them judged")
    table = pd.concat(found, ignore_index=True)
    return Compared(table[["about", *table.columns.drop("about")]], confusions)


def _labelled(name: str, scores: pd.DataFrame) -> pd.DataFrame:
    """A judge's scores as if exported from a review; an item is a row and column of them."""
    flat = pd.Series(scores.to_numpy(float).ravel())
    labels = flat.map({score: label for label, score in SCORES.items()})
    if (other := flat[labels.isna() & flat.notna()]).size:
        raise WorkbenchError(f"Agreement with the judge {name} was asked for.", found=f"the score {other.iloc[0]:g}",
                             allowed=", ".join(f"{score:g}" for score in SCORES.values()))  # fmt: skip
    return pd.DataFrame({"item": flat.index, "annotator": name, "label": labels}).dropna()


def _raters(
    reviews: Sequence[str | Path | pd.DataFrame], judge: str | Sequence[str] | pd.Series | None, column: str,
    labels: Sequence[str] | None, level: str,
) -> tuple[list[Rater], pd.Series | None, Sequence[str]]:  # fmt: skip
    """Annotators, the judge's labels by item, and the scale, all checked."""
    if level not in LEVELS:
        raise WorkbenchError(f"Agreement at level {level!r} was asked for.", allowed=", ".join(map(repr, LEVELS)))
    table = _joined(reviews, column)
    if labels is None and isinstance(table[column].dtype, pd.CategoricalDtype):
        labels = list(table[column].cat.categories)
    machine = None if judge is None else _judge(table, judge)
    raters = [(str(name), rows.set_index("item")[column]) for name, rows in table.groupby("annotator", sort=False)]
    given = pd.concat([*(rows for _, rows in raters), *([] if machine is None else [machine])]).dropna().unique()
    if labels is None and level == "nominal":
        labels = sorted(given, key=str)
    if labels is None or not set(given) <= set(labels):
        raise WorkbenchError(
            "Agreement on a scale of labels was asked for.",
            found=f"the labels {', '.join(map(repr, given[:8]))}",
            allowed="labels in the scale's order" if labels is None else ", ".join(map(repr, labels)),
            do="Give labels=[...], and a judge in the same words, such as scores.map({1.0: 'yes', 0.5: 'partly'}).",
        )
    return raters, machine, labels


def _row(first: str, second: str, raters: list[pd.Series], labels: Sequence[str], level: str) -> dict:
    try:
        import krippendorff
    except ImportError as problem:
        raise WorkbenchError("Agreement was asked for.", found="the package krippendorff is not installed",
                             do="Install it: pip install 'value-workbench[eval]'") from problem  # fmt: skip
    wide = pd.concat([rater.astype(object) for rater in raters], axis=1)
    counts = np.stack([(wide == label).sum(axis=1) for label in labels], axis=1)  # items x labels
    counts = counts[counts.sum(axis=1) >= 2]
    given = counts.sum(axis=1)
    alpha = share = float("nan")
    if len(counts):
        share = float((counts * (counts - 1)).sum() / (given * (given - 1)).sum())
    if (counts.sum(axis=0) > 0).sum() > 1:
        alpha = float(krippendorff.alpha(value_counts=counts, level_of_measurement=level))  # type: ignore[arg-type]
    return {"first": first, "second": second, "alpha": alpha, "kappa": _kappa(wide, labels, level),
            "agreement": share, "n": len(counts)}  # fmt: skip


def _kappa(wide: pd.DataFrame, labels: Sequence[str], level: str) -> float:
    """Cohen's kappa of two raters, 1 - observed / expected disagreement, steps on the scale as weights if ordinal."""
    both = wide.dropna()
    if wide.shape[1] != 2 or both.empty:
        return float("nan")
    one, two = (pd.Categorical(both.iloc[:, side], list(labels)).codes for side in range(2))
    steps = np.abs(np.subtract.outer(np.arange(len(labels)), np.arange(len(labels))))
    weights = steps if level == "ordinal" else steps > 0
    shares = [np.bincount(codes, minlength=len(labels)) / len(both) for codes in (one, two)]
    expected = float(shares[0] @ weights @ shares[1])
    return 1 - float(weights[one, two].mean()) / expected if expected else float("nan")


def _joined(reviews: Sequence[str | Path | pd.DataFrame], column: str) -> pd.DataFrame:
    tables = [review for review in reviews if isinstance(review, pd.DataFrame)]
    if not reviews or tables and len(tables) < len(reviews):
        raise WorkbenchError("Agreement was asked for.", found=f"{len(tables)} tables in {len(reviews)} reviews",
                             allowed="records, or tables, at least one")  # fmt: skip
    if not tables:
        return judgements(*[review for review in reviews if not isinstance(review, pd.DataFrame)])
    for table in tables:
        if missing := [name for name in ("item", "annotator", column) if name not in table]:
            raise WorkbenchError("Agreement of tables was asked for.", found=f"no column {', '.join(missing)}",
                                 allowed="tables as a review exports them")  # fmt: skip
    joined = pd.concat(tables, ignore_index=True).dropna(subset=[column])
    shown = [name for name in SHOWN if all(name in table for table in tables)]
    other = joined.groupby("item")[shown].nunique(dropna=False).gt(1).any(axis=1) if shown else pd.Series(dtype=bool)
    twice = joined.duplicated(["item", "annotator"])
    if other.any() or twice.any():
        item = other.idxmax() if other.any() else joined.loc[twice, "item"].iloc[0]
        raise WorkbenchError(f"Agreement of {len(tables)} tables was asked for.",
                             f"item {item} " + ("is not the same in all" if other.any() else "twice by one annotator"),
                             "tables of the same items, each annotator in one")  # fmt: skip
    return joined


def _judge(table: pd.DataFrame, judge: str | Sequence[str] | pd.Series) -> pd.Series:
    """The judge's label by item."""
    if not isinstance(judge, str):
        return pd.Series(list(judge), dtype=object)
    if judge not in table or table.groupby("item")[judge].nunique().gt(1).any():
        raise WorkbenchError(f"Agreement with the judge in column {judge!r} was asked for.",
                             "no such column" if judge not in table else "several labels of it for one item",
                             "a column of the tables, or one label per item")  # fmt: skip
    return table.groupby("item")[judge].first()
