"""Value vectors: directions of the residual stream, their algebra, and files of them.

A set of value vectors is a DataArray (value, d_model), or (value, layer, d_model); every function keeps
labels and attributes. Cosines of raw vectors share whatever all values share (texts about values against ...
texts about values): `centre` them first, as people's ratings are centred on their own mean, and look at both.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from .errors import WorkbenchError
from .models import Model
from .probes import Probes
from .probes.files import check_fingerprint, load_arrays, save_arrays
from .values import VALUES, angles

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def value_vectors(probes: Probes, layer: int | None = None) -> xr.DataArray:
    """Raw probe directions (value, d_model) at one layer (None: `probes.choose_layer()`), provenance as attributes."""
    layer = probes.choose_layer() if layer is None else layer
    vectors = probes.vectors(layer) * probes.norms(layer)
    return vectors.rename("vectors").assign_attrs(probes.provenance)


def normalise(vectors: xr.DataArray) -> xr.DataArray:
    """Each vector at unit length. WorkbenchError for a vector of length 0."""
    length = np.sqrt(xr.dot(vectors, vectors, dim="d_model"))
    if not bool((length > 0).all()):
        raise WorkbenchError("Unit vectors were asked for.", found="a vector of length 0")
    return (vectors / length).assign_attrs(vectors.attrs)


def centre(vectors: xr.DataArray) -> xr.DataArray:
    """Vectors minus their mean: what the values do not share. Their cosines: `geometry.cosines`."""
    return (vectors - vectors.mean("value")).assign_attrs(vectors.attrs)


def blend(vectors: xr.DataArray, angle: "ArrayLike", layout: str = "equal", order: Any = None) -> xr.DataArray:
    """Unit vector at an angle of the circle (radians): between the two places that enclose it, mixed by
    nearness.

    At a value's own angle it is that value's unit vector (where two share a wedge, the unit vector between
    them). An array of angles gives a leading `angle` dimension. layout, order: see `values.angles`.
    """
    if missing := [value for value in VALUES if value not in vectors["value"].values]:
        raise WorkbenchError(
            "A blend round the circle was asked for.",
            found=f"no vector of {', '.join(missing)}",
            allowed="vectors of all ten values",
        )
    unit, turn = normalise(vectors.sel(value=list(VALUES))).values, 2 * np.pi
    places, place = np.unique(np.asarray(angles(layout, order)) % turn, return_inverse=True)
    held = np.stack([unit[place == k].sum(0) for k in range(len(places))])
    held /= np.linalg.norm(held, axis=1, keepdims=True)
    where = np.atleast_1d(np.asarray(angle, dtype=float))
    past = (where[:, None] - places) % turn  # from each place on to the angle
    left = past.argmin(1)
    right = (left + 1) % len(places)
    share = (past.min(1) / ((places[right] - places[left]) % turn))[:, None]
    mixed = (1 - share) * held[left] + share * held[right]
    result = xr.DataArray(mixed, dims=("angle", "d_model"), coords={"angle": where}, attrs=vectors.attrs)
    return normalise(result if np.ndim(angle) else result.isel(angle=0))


def save_vectors(path: str | Path, vectors: xr.DataArray) -> Path:
    """Write vectors as one safetensors file, labels and attributes in its header."""
    meta = {
        "dims": list(map(str, vectors.dims)),
        "attrs": dict(vectors.attrs),
        "coords": {str(name): vectors[name].values.tolist() for name in vectors.coords},
    }
    return save_arrays(path, "vectors", {"vectors": vectors.values}, meta)


def load_vectors(path: str | Path, model: Model | None = None) -> xr.DataArray:
    """Read what `save_vectors` wrote; with `model`, refuse vectors of another one."""
    arrays, meta = load_arrays(path, "vectors")
    coords = {n: (n, v) if isinstance(v, list) else v for n, v in meta["coords"].items()}
    vectors = xr.DataArray(arrays["vectors"], dims=meta["dims"], coords=coords, attrs=meta["attrs"], name="vectors")
    if model is not None:
        check_fingerprint("Vectors", vectors.attrs, model)
    return vectors
