"""Which tokens are read of which text, and how rows that lie one after another become labelled dims."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..errors import WorkbenchError

POSITIONS = ("last", "mean", "all")
TAKEN = {"layer", "text", "token", "position", "token_id", "token_position", "d_model", "neuron", "text_id", "row",
         "rows", "tokens", "n_tokens", "content", "positions"}  # fmt: skip


def text_positions(
    position: Any, ids: Sequence[Sequence[int]], texts: Sequence[str]
) -> tuple[str, list[list[int]] | None]:
    """(name of the rule, the tokens to read of each text; None for the mean). WorkbenchError for an unknown rule or a
    token that a text does not have.
    """
    if isinstance(position, str):
        if position not in POSITIONS:
            raise WorkbenchError(
                f"Reading position {position!r} was asked for.",
                allowed=", ".join(map(repr, POSITIONS)) + ", ints, or an array (text, position) of ints")  # fmt: skip
        if position == "mean":
            return position, None
        return position, [list(range(len(row))) if position == "all" else [len(row) - 1] for row in ids]
    asked = np.asarray(position)
    fits = asked.ndim == 1 or (asked.ndim == 2 and len(asked) == len(ids))
    if asked.dtype.kind not in "iu" or not fits or asked.size == 0:
        raise WorkbenchError(
            "Reading positions were asked for.",
            found=f"an array of {asked.dtype}, shape {asked.shape}, for {len(ids)} texts",
            allowed="a list of ints, or an integer array (text, position) with a row for each text")  # fmt: skip
    places = []
    for text, row in enumerate(ids):
        own = [int(place) for place in (asked if asked.ndim == 1 else asked[text])]
        if bad := [place for place in own if not -len(row) <= place < len(row)]:
            raise WorkbenchError(f"Token {bad[0]} of text {text}, {texts[text][:60]!r}, was to be read.",
                                 found=f"{len(row)} tokens", allowed=f"{-len(row)} to {len(row) - 1}")  # fmt: skip
        places.append([place % len(row) for place in own])
    return (json.dumps([int(place) for place in asked]) if asked.ndim == 1 else "given"), places


def check_labels(labels: Mapping[str, Any] | pd.DataFrame | None, n_texts: int) -> dict[str, np.ndarray]:
    """{name: an entry for each text}. WorkbenchError for another length or a name that dims and texts need."""
    out = {}
    for name in labels if labels is not None else ():
        column = np.asarray(labels[name])  # type: ignore[index]
        if column.shape != (n_texts,):
            raise WorkbenchError(
                f"Label {name!r} was to travel with the activations.",
                found=f"shape {column.shape}", allowed=f"({n_texts},): one entry for each text")  # fmt: skip
        if str(name) in TAKEN:
            raise WorkbenchError(
                f"A label called {name!r} was to travel with the activations.",
                found="a name that the array needs itself", allowed=f"any but {', '.join(sorted(TAKEN))}")  # fmt: skip
        out[str(name)] = column
    return out


@dataclass(frozen=True)
class Layout:
    """How the rows of some texts, one text after another, are shaped and labelled.

    counts (text): rows of each; dims and shape: what the rows become; coords: xarray's.
    """

    counts: np.ndarray
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    coords: dict[str, Any]

    @classmethod
    def of(
        cls, rule: str, ids: Sequence[Sequence[int]], places: Sequence[Sequence[int]] | None,
        columns: Mapping[str, Any],
    ) -> "Layout":  # fmt: skip
        """places may be None where each text has one row ("last", "mean")."""
        n = len(ids)
        counts = np.array([len(p) for p in places]) if places is not None else np.ones(n, dtype=int)
        if rule == "all":
            of_row = np.repeat(np.arange(n), counts)
            within = np.concatenate([np.arange(count) for count in counts])
            tokens = np.concatenate([np.asarray(row) for row in ids])
            coords = {"text": of_row, "position": within, "token_id": tokens}
            coords |= {name: np.asarray(column)[of_row] for name, column in columns.items()}
            return cls(counts, ("token",), (int(counts.sum()),), {k: ("token", v) for k, v in coords.items()})
        coords = {"text": np.arange(n), **{name: ("text", column) for name, column in columns.items()}}
        if rule in POSITIONS:
            return cls(counts, ("text",), (n,), coords)
        if rule == "given":
            coords["token_position"] = (("text", "position"), np.asarray(places))
        else:
            coords["position"] = json.loads(rule)
        return cls(counts, ("text", "position"), (n, int(counts[0])), coords)


def width_dim(hook: str) -> str:
    """Name of the last dim of what a hook reads."""
    return "neuron" if hook == "mlp.hook_post" else "d_model"


def rows_of(texts: Sequence[int], counts: np.ndarray, starts: np.ndarray | None = None) -> np.ndarray:
    """Rows of those texts, one after another; counts (text): rows of each; starts (text): the first row of each, None:
    all texts lie one after another.
    """
    if starts is None:
        starts = np.cumsum(counts) - counts
    return np.concatenate([starts[text] + np.arange(counts[text]) for text in texts])
