"""Agreement between annotators, and between annotators and a judge: Krippendorff's alpha and the plain share."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import WorkbenchError
from .records import SHOWN, judgements

LEVELS = ("nominal", "ordinal")


def agreement(
    *reviews: str | Path | pd.DataFrame,
    judge: str | Sequence[str] | pd.Series | None = None,
    column: str = "label",
    labels: Sequence[str] | None = None,
    level: str = "nominal",
) -> pd.DataFrame:
    """How far annotators agree: a row for all together (if more than two), for each two, and for each with the judge.

    Columns: first, second; alpha, 1 for full agreement and 0 for chance, NaN where it is not defined (no item in
    common, or one label throughout); agreement, the share of equal judgements, 0 to 1; n, items judged by both (all
    together: by two or more, and every two judgements of an item count).

    reviews: records, or tables with columns item, annotator and label, such as exports. judge: a column of the tables,
    or one label per item in the items' order. column: "side" compares reviews of pairs by side and not by letter.
    labels: the scale; None takes that of the records. level: "ordinal" also weighs how far labels lie apart on it.

    Raises WorkbenchError for reviews of different items, an item judged twice by one annotator, labels that are not on
    the scale. Alpha misleads when nearly all labels are the same: read it beside the share. Source: Krippendorff 2019,
    Content Analysis, chapter 12, which asks for alpha >= .8, and >= .667 for tentative conclusions.
    """
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
    compared = [(first, second) for first, second in combinations(raters, 2)]
    compared += [] if machine is None else [(rater, ("judge", machine)) for rater in raters]
    if not compared:
        raise WorkbenchError("Agreement was asked for.", found=f"{len(raters)} annotator and no judge")
    rows = [_row(a, b, [one, two], labels, level) for (a, one), (b, two) in compared]
    if len(raters) > 2:
        rows.insert(0, _row("all annotators", "", [given for _, given in raters], labels, level))
    return pd.DataFrame(rows)


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
    return {"first": first, "second": second, "alpha": alpha, "agreement": share, "n": len(counts)}


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
