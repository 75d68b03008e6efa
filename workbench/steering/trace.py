"""What an intervention did, per prompt, layer and token: as a table and with named axes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

TRACE = ("row", "layer", "position", "token", "gate", "open", "p_before", "p_after", "eps", "share")
_UNITS = {
    "gate": "score of the gate",
    "p_before": "P_V before the edit",
    "p_after": "P_V after the edit",
    "eps": "length of the edit, units of what is edited",
    "share": "length of the edit over the length of what is edited",
}


class Trace:
    """Collects what one run did, token by token; `table` and `dataset` tell it."""

    def __init__(self) -> None:
        self._records: list[dict[str, Any]] = []

    def add(self, rows: torch.Tensor, **columns: Any) -> None:
        """Lines of one layer in one pass: tensors as long as `rows`, one number for all, or None for NaN."""
        some = {"row": rows, **columns}
        self._records.append(
            {
                name: column.detach().cpu().numpy()
                if isinstance(column, torch.Tensor)
                else np.full(len(rows), np.nan if column is None else column)
                for name, column in some.items()
            }
        )

    def table(self, words: Mapping[int, str]) -> pd.DataFrame:
        """The columns of TRACE, sorted by row, position and layer; `words`: text of each token id."""
        parts = self._records
        table = pd.DataFrame({name: np.concatenate([p[name] for p in parts]) if parts else [] for name in TRACE})
        table["token"] = [words.get(token, "") for token in table["token"].tolist()]
        return table.sort_values(["row", "position", "layer"], kind="stable", ignore_index=True)

    def tokens(self) -> set[int]:
        """Ids of all tokens in it; -1 stands for one without id."""
        return {int(token) for part in self._records for token in np.unique(part["token"])}


def dataset(table: pd.DataFrame) -> xr.Dataset:
    """A trace with axes (row, layer, position): NaN, closed and "" where a row has no such token.

    position: number of the token in its row, pads not counted; `token` has axes (row, position).
    """
    whole = table.set_index(["row", "layer", "position"]).to_xarray()
    words = table.drop_duplicates(["row", "position"]).set_index(["row", "position"])["token"].to_xarray()
    whole["token"], whole["open"] = words.fillna("").astype(str), whole["open"].fillna(False).astype(bool)
    for name, told in _UNITS.items():
        whole[name] = whole[name].astype(float).assign_attrs(long_name=told)
    return whole.assign_coords({axis: whole[axis].astype(int) for axis in ("row", "layer", "position")})
