"""Cosines of value vectors, the human reference, and the checks that both pass."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..errors import WorkbenchError
from ..values import VALUES, VALUES19, Order, check_value
from .labellings import roundness

HUMAN_REFERENCES = ("pvq40", "pvq40-ipsatised", "svs")
ASKED = "The geometry of value vectors was asked for."


def cosines(vectors: Any, centred: bool = True, order: Order = None) -> xr.DataArray:
    """Cosine similarity of every two value vectors, dims (value, other), in the order of `VALUES` or `VALUES19`.

    vectors: (10, d_model) array in the order of `VALUES`, (19, d_model) in that of `VALUES19`, or a DataArray whose
        `value` names them.
    centred: subtract the mean of the vectors first. Where the centred norms are equal, this forces the mean
        off-diagonal cosine to -1/(n - 1): negative centred cosines alone prove nothing.
    order: names of any other set of four values or more; they stand in its order.

    Raises WorkbenchError: other shape, unknown or missing value, NaN or infinity, a vector without direction.
    """
    names = names_of(vectors, order)
    title = f"{'centred' if centred else 'raw'} cosine"
    return labelled(cosine_matrices(checked(vectors, names), centred, names), names, title)


def human_reference(name: str = "pvq40-ipsatised") -> xr.DataArray:
    """Correlations of the ten values among people, dims (value, other), to show a model's geometry beside.

    name: "pvq40" (151 US adults, raw), "pvq40-ipsatised" (each person centred), "svs" (327 UK respondents,
    each centred). Computed from data of the R package smacof (Borg, Bardi and Schwartz 2017).
    """
    from ..prompts import data_path

    check_value(name, HUMAN_REFERENCES, kind="human reference")
    table = pd.read_csv(data_path("human", f"{name}.csv"), index_col="value")
    return labelled(table.loc[list(VALUES), list(VALUES)].to_numpy(), VALUES, f"correlation among people ({name})")


def labelled(matrix: np.ndarray, names: Sequence[str], title: str) -> xr.DataArray:
    return xr.DataArray(matrix, {"value": list(names), "other": list(names)}, ("value", "other"), title)


def cosine_matrices(vectors: np.ndarray, centred: bool, names: Sequence[str]) -> np.ndarray:
    """Cosines of (…, n, d) vectors over the last two axes."""
    lengths = np.linalg.norm(vectors, axis=-1)
    if centred:
        vectors = vectors - vectors.mean(-2, keepdims=True)
    norms = np.linalg.norm(vectors, axis=-1)
    # Below this share of the longest vector what centring leaves is rounding error, in float32 too.
    lost = norms <= (1e-6 * lengths.max(-1, keepdims=True) if centred else 0)
    if lost.any():
        what = "equal to the mean of all, so that centring leaves nothing" if centred else "of length 0"
        raise WorkbenchError("Cosines of value vectors were asked for.", found=f"{_list(lost, names)}: {what}",
                             allowed="vectors that differ from zero and from their mean")
    unit = vectors / norms[..., None]
    return np.clip(unit @ unit.swapaxes(-1, -2), -1, 1)


def resampled_matrices(vectors: Any, fitted: np.ndarray, centred: bool, names: Sequence[str]) -> np.ndarray:
    """Cosines of resampled vectors (resample, value, d_model) about those fitted (value, d_model), and the same of
    their mirrored inner products, 2 G - G_b: (2, resample, n, n).

    Noise adds to inner products as often as vectors are drawn again, but divides cosines: mirrored where it adds, the
    bias goes, while the reflected interval of a cosine misses the truth in half of the cases at split-half .3.
    """
    observed, parts = _products(fitted, centred), []
    for at in range(0, max(len(vectors), 1), 50):  # a few at a time, to save memory
        drawn = checked(vectors[at : at + 50], names, "resample")
        mirrored = 2 * observed - _products(drawn, centred)
        lengths = np.sqrt(np.maximum(np.einsum("rii->ri", mirrored), 1e-6 * np.diag(observed)))  # noise alone: below 0
        cosine = np.clip(mirrored / (lengths[:, :, None] * lengths[:, None, :]), -1, 1)
        parts.append(np.stack([cosine_matrices(drawn, centred, names), cosine]))
    return np.concatenate(parts, axis=1)


def _products(vectors: np.ndarray, centred: bool) -> np.ndarray:
    if centred:
        vectors = vectors - vectors.mean(-2, keepdims=True)
    return vectors @ vectors.swapaxes(-1, -2)


def names_of(vectors: Any, order: Order = None) -> tuple[str, ...]:
    """Which values the rows are: `VALUES`, `VALUES19`, or those that `order` names."""
    if not isinstance(vectors, xr.DataArray) or "value" not in vectors.coords:
        shape = np.shape(vectors)
        return VALUES19 if len(shape) > 1 and shape[-2] == len(VALUES19) else VALUES
    found = {str(name) for name in vectors["value"].values}
    if order is not None and not isinstance(order, str) and found not in (set(VALUES), set(VALUES19)):
        names = tuple(map(str, order))
        if len(set(names)) != len(names) or len(names) < 4:
            raise WorkbenchError(ASKED, found=f"order={list(names)}", allowed="four different values or more")
        return names
    return VALUES19 if len(found & set(VALUES19)) > len(found & set(VALUES)) else VALUES


def checked(vectors: Any, names: Sequence[str], *leading: str, last: str = "d_model") -> np.ndarray:
    """Finite float64 (*leading, n, d), reordered by name to `names`; WorkbenchError otherwise."""
    others = "Of other values, name all in order=, place by place round the circle."
    if isinstance(vectors, pd.DataFrame):  # its names would be lost, and a correlation table read as vectors
        raise WorkbenchError(ASKED, found="a DataFrame", allowed="a DataArray, or a plain array")
    if isinstance(vectors, xr.DataArray):
        dims = (*leading, "value", last)
        if sorted(map(str, vectors.dims)) != sorted(dims) or "value" not in vectors.coords:
            raise WorkbenchError(ASKED, found=f"dims {vectors.dims}, coordinates {(*vectors.coords,)}",
                                 allowed=f"dims {dims}, with the names of the values along `value`")
        found = [str(name) for name in vectors["value"].values]
        for name in found:
            try:
                check_value(name, names)
            except WorkbenchError as wrong:
                raise WorkbenchError(wrong.asked, wrong.found, wrong.allowed,
                                     " ".join(filter(None, [wrong.do, others]))) from None
        if sorted(found) != sorted(names):
            missing = ", ".join(value for value in names if value not in found)
            raise WorkbenchError(ASKED, allowed=f"each of the {len(names)} values once",
                                 found=f"no vector of {missing}" if missing else "a value named twice")
        vectors = vectors.sel(value=list(names)).transpose(*dims)
    array = np.asarray(vectors, dtype=np.float64)
    if array.ndim != len(leading) + 2 or array.shape[-2] != len(names) or not array.size:
        raise WorkbenchError(ASKED, found=f"an array of shape {array.shape}", do=others,
                             allowed=f"({', '.join((*leading, str(len(names)), last))}), in the order of "
                                     f"{ {VALUES: 'VALUES', VALUES19: 'VALUES19'}.get(tuple(names), 'order=')}")
    if (bad := np.asarray(np.any(~np.isfinite(array), axis=-1))).any():
        raise WorkbenchError(ASKED, found=f"NaN or infinity in {_list(bad, names)}", allowed="finite numbers")
    return array


def checked_matrix(matrix: xr.DataArray, names: Sequence[str]) -> xr.DataArray:
    """A (value, other) similarity matrix in the order of `names`."""
    array = checked(matrix, names, last="other")
    others = [str(name) for name in matrix["other"].values] if "other" in matrix.coords else []
    if sorted(others) == sorted(names):
        array = array[:, [others.index(value) for value in names]]
        if np.allclose(array, array.T, atol=1e-6):
            return labelled(array, names, str(matrix.name or "similarity"))
    raise WorkbenchError("The geometry of a similarity matrix was asked for.",
                         found="no symmetry" if len(others) == len(names) else f"along `other`: {others}",
                         allowed=f"a symmetric matrix with the {len(names)} values along `value` and `other`")


def _list(which: np.ndarray, names: Sequence[str]) -> str:
    """Names of the values marked along the last axis of (…, n)."""
    return ", ".join(np.array(names)[which.reshape(-1, len(names)).any(0)])


def random_cosines(draws: int, n: int, d_model: int, centred: bool, seed: int = 0) -> np.ndarray:
    """Cosines of `draws` sets of n isotropic Gaussian vectors, (draws, n, n)."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(draws, n, min(d_model, n)))
    if d_model > n:  # Bartlett: but for a turn, n such vectors are the rows of this triangle
        vectors = np.tril(vectors, -1)
        vectors[:, range(n), range(n)] = np.sqrt(rng.chisquare(d_model - np.arange(n), size=(draws, n)))
    return cosine_matrices(vectors, centred, range(n))  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def random_shape(d_model: int, centred: bool, n: int = 10) -> dict[str, np.ndarray]:
    """`roundness` of 2,000 draws of n isotropic Gaussian vectors."""
    return roundness(random_cosines(2000, n, d_model, centred))
