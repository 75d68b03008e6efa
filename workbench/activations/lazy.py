"""A store as a labelled array that reads from disk only what is asked of it."""

from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from .store import Store


class StoredRows(BackendArray):
    """What xarray indexes: (layer, *shape of `rows`, d_model), each entry of `rows` a row of the store."""

    def __init__(self, store: Store, layers: list[int], rows: np.ndarray):
        self.store, self.rows = store, rows
        self.layers = [store.layers.index(layer) for layer in layers]
        self.shape = (len(layers), *rows.shape, store.array.shape[2])
        self.dtype = store.array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        # xarray itself fails on an empty slice that runs backwards
        parts = [slice(0) if isinstance(part, slice) and not len(range(size)[part]) else part
                 for part, size in zip(key.tuple, self.shape, strict=True)]  # fmt: skip
        key = type(key)(tuple(parts))
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        layer, *within, last = key
        layers = np.arange(len(self.layers))[layer]
        rows = self.rows
        for axis in reversed(range(len(within))):  # from behind: an integer drops its axis
            rows = rows[(slice(None),) * axis + (within[axis],)]
        flat = np.atleast_1d(rows).ravel()
        read = [self.store.read(self.layers[at], flat).reshape(*np.shape(rows), self.shape[-1])[..., last]
                for at in np.atleast_1d(layers)]  # fmt: skip
        return read[0] if np.ndim(layers) == 0 else np.stack(read) if read else self._empty(rows, last)

    def _empty(self, rows: np.ndarray, last: Any) -> np.ndarray:
        return np.empty((0, *np.shape(rows), self.shape[-1]), self.dtype)[..., last]


def lazy_array(store: Store, layers: list[int], rows: np.ndarray, dims: tuple[str, ...], **named: Any) -> xr.DataArray:
    """DataArray over rows of a store; named: `coords`, `attrs`, `name`."""
    variable = xr.Variable(dims, indexing.LazilyIndexedArray(StoredRows(store, layers, rows)))
    return xr.DataArray(variable, **named)
