"""Pairs of texts, and folds that no text and no behaviour straddles."""

import hashlib
import json
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from ..errors import WorkbenchError
from ..values import VALUES

GROUPINGS = {
    "texts and both behaviours": ("behaviour", "behaviour_positive", "behaviour_negative"),
    "texts and behaviour": ("behaviour",),
    "texts": (),
}
"""What keeps pairs in one fold, strictest first: pairs that share any of it, directly or through others, stay
together.
"""


def check_pairs(pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs with rows numbered from 0; WorkbenchError unless value, positive and negative hold text in
    every row.
    """
    needed = ("value", "positive", "negative")
    if not isinstance(pairs, pd.DataFrame) or not set(needed) <= set(pairs.columns) or pairs.empty:
        found = (
            f"columns {list(pairs.columns)}, {len(pairs)} rows"
            if isinstance(pairs, pd.DataFrame)
            else type(pairs).__name__
        )
        raise WorkbenchError(
            "Pairs of texts were asked for.", found=found, allowed="a table with value, positive, negative"
        )
    pairs = pairs.reset_index(drop=True)
    whole = pairs[list(needed)].map(lambda entry: isinstance(entry, str) and entry.strip() != "")
    bad = np.flatnonzero(~whole.to_numpy().all(axis=1))
    same = np.flatnonzero((pairs["positive"] == pairs["negative"]).to_numpy())
    if len(bad) or len(same):
        raise WorkbenchError(
            "Pairs of two different texts were asked for.",
            found=f"empty or missing text in row {bad[0]}" if len(bad) else f"one text twice in row {same[0]}",
        )
    return pairs


def pairs_hash(pairs: pd.DataFrame) -> str:
    """Hash of what a fit reads from the pairs, whatever their other columns."""
    rows = pairs[["value", "positive", "negative"]].to_numpy().tolist()
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def in_order(column: Iterable[str]) -> list[str]:
    """Values present, the ten in the circle's order first, others as they come."""
    present = list(dict.fromkeys(column))
    return [v for v in VALUES if v in present] + [v for v in present if v not in VALUES]


def assign_folds(pairs: pd.DataFrame, values: Sequence[str], folds: int | str, seed: int) -> tuple[str, np.ndarray]:
    """Fold of each pair, and by what pairs were kept together: the strictest of GROUPINGS that all values allow.

    folds: how many, or the column that holds each pair's own.
    """
    if isinstance(folds, str):
        return f"column {folds!r}", given_folds(pairs, values, folds)
    if folds < 2:
        raise WorkbenchError(f"{folds} folds were asked for.", allowed="2 or more")
    few: tuple[str, int] = ("", 0)
    for grouping, columns in GROUPINGS.items():
        columns = [column for column in columns if column in pairs.columns]
        if GROUPINGS[grouping] and not columns:
            continue
        fold, few = np.full(len(pairs), -1), ("", 0)
        for value in values:
            own = pairs.loc[pairs["value"] == value]
            groups = linked(own, ["positive", "negative", *columns])
            sizes = np.bincount(groups)
            if len(sizes) < folds or (columns and sizes.max() > len(own) / 2):
                few = (value, len(sizes))
                break
            fold[own.index.to_numpy()] = spread(groups, folds, seed)
        if not few[0]:
            return grouping, fold
    raise WorkbenchError(
        f"{folds} folds were asked for.",
        found=f"{few[1]} independent pairs of {few[0]}",
        do="Give more pairs, or pass a smaller folds=.",
    )


def given_folds(pairs: pd.DataFrame, values: Sequence[str], column: str) -> np.ndarray:
    """Folds that a column names; WorkbenchError where a text of a value is in two, or a value in one fold only."""
    asked = f"The folds of the column {column!r} were asked for."
    if column not in pairs.columns or pairs[column].isna().any():
        raise WorkbenchError(asked, "no such column" if column not in pairs.columns else "pairs without a fold",
                             "a column with the fold of every pair")  # fmt: skip
    fold = pd.factorize(pairs[column], sort=True)[0]
    for value in values:
        own = np.flatnonzero((pairs["value"] == value).to_numpy())
        if len(set(fold[own])) < 2:
            raise WorkbenchError(asked, f"all pairs of {value} in one fold", "two folds or more for every value")
        texts = pairs.iloc[own][["positive", "negative"]].stack()
        homes = pd.Series(np.repeat(fold[own], 2)).groupby(texts.to_numpy()).nunique()
        if (homes > 1).any():
            raise WorkbenchError(asked, f"the text {homes.idxmax()!r} of {value} in two folds, so that it would be "
                                        "learnt and asked", do="Keep equal texts in one fold.")  # fmt: skip
    return fold


def linked(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Group number of each row: rows that share an entry of any of the columns, directly or through others,
    are one.

    Entries of all text columns count as one kind (a positive here may be a negative there), and so do all
    behaviours.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, items = [], []
    for column in columns:
        kind = "behaviour" if column.startswith("behaviour") else "text"
        known = np.flatnonzero(table[column].notna())
        rows.append(known)
        items += [f"{kind}:{entry}" for entry in table[column].iloc[known]]
    codes, names = pd.factorize(np.array(items, dtype=object))
    n = len(table)
    graph = coo_array((np.ones(len(codes)), (np.concatenate(rows), n + codes)), shape=(n + len(names),) * 2)
    _, labels = connected_components(graph, directed=False)
    return pd.factorize(labels[:n])[0]


def spread(groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each row: whole groups, shuffled by seed, largest first, each into the fold that is smallest so far."""
    sizes = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(sizes))
    filled, home = np.zeros(folds, int), np.zeros(len(sizes), int)
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        home[group] = filled.argmin()
        filled[home[group]] += sizes[group]
    return home[groups]
