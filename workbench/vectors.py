"""Value vectors: directions of the residual stream, their algebra, and files of them.

`ValueVectors` holds one vector per value and layer. Cosines of raw vectors share whatever all values share (texts
about values against texts about values): take them of `centred()` vectors, as people's ratings are centred on their
own mean, and look at both. `stability` tells how far vectors hold still when the texts change.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from .checkpoints import told
from .errors import WorkbenchError
from .models import Model
from .probes import Probes
from .probes.files import check_fingerprint, load_arrays, save_arrays
from .values import VALUES, Order, angles

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from .probes.pairs import Resampled

DIMS = ("value", "layer", "d_model")
LOST = 1e-6
"""Share of a length below which what a subtraction leaves is rounding, in float32 too."""


@dataclass(frozen=True, eq=False, repr=False)
class ValueVectors:
    """One vector per value and layer of a model's residual stream. Never changed: algebra makes new ones.

    array: DataArray (value, layer, d_model), float32 or float64, in units of the raw residual stream until normalised.
        Its attributes are the provenance: what the vectors were fitted on and, as `steps`, what was done to them since.

    Raises WorkbenchError: other dims, values or layers unnamed or named twice, NaN or infinity, and a vector of
    length 0, which has no direction.
    """

    array: xr.DataArray
    __array_ufunc__ = None  # a numpy number times vectors is theirs to answer

    def __post_init__(self):
        asked, array = "Value vectors were asked for.", self.array
        if not _named(array):
            raise WorkbenchError(
                asked, found=f"{type(array).__name__} with dims {getattr(array, 'dims', None)}",
                allowed=f"a DataArray {DIMS} with names along value and whole numbers along layer, each once")
        array = array.transpose(*DIMS)
        if array.dtype.kind not in "fiu":
            raise WorkbenchError(asked, found=f"numbers of {array.dtype}", allowed="real numbers")
        array = array.astype(np.float32 if array.dtype in (np.float16, np.float32) else np.float64)
        for trouble, where in (("NaN or infinity", ~np.isfinite(array.values).all(-1)),
                               ("a vector of length 0", ~array.values.any(-1))):
            if where.any():
                raise WorkbenchError(asked, found=f"{trouble}: {_list(array, where)}", allowed="finite vectors, not 0")
        names = array["value"].values.tolist(), array["layer"].values.tolist()
        object.__setattr__(self, "array", labelled(array.values, *names, array.attrs))

    @classmethod
    def of(cls, probes: Probes) -> "ValueVectors":
        """The raw directions w of probes, at every layer they have."""
        return cls(probes.weight.assign_attrs(probes.provenance))

    @property
    def values(self) -> list[str]:
        return [str(value) for value in self.array["value"].values]

    @property
    def layers(self) -> list[int]:
        return [int(layer) for layer in self.array["layer"].values]

    @property
    def d_model(self) -> int:
        return self.array.sizes["d_model"]

    @property
    def provenance(self) -> dict[str, Any]:
        return dict(self.array.attrs)

    def __repr__(self) -> str:
        names, held = self.values, self.provenance
        shown = [", ".join(names) if len(names) < 4 else f"{len(names)} values",
                 f"{len(self.layers)} layers from {min(self.layers)} to {max(self.layers)}", f"d_model {self.d_model}",
                 f"{held.get('method', 'unknown method')} on {held.get('model', 'an unknown model')}"]
        return f"ValueVectors({'; '.join([*shown, *held.get('steps', [])])})"

    def sel(self, value: str | Iterable[str] | None = None, layer: int | Iterable[int] | None = None) -> "ValueVectors":
        """The vectors of some values at some layers, in the order asked for; None takes all."""
        chosen = {"value": _chosen("values", value, self.values), "layer": _chosen("layers", layer, self.layers)}
        return ValueVectors(self.array.sel(chosen))

    __getitem__ = sel

    def at(self, layer: int) -> xr.DataArray:
        """(value, d_model) at one layer: what `circumplex_fit` takes."""
        return self.sel(layer=layer).array.isel(layer=0)

    # -- algebra ---------------------------------------------------------------------------------------------

    def normalised(self) -> "ValueVectors":
        """Each vector at unit length."""
        return self._made(_unit(self._wide), "normalised")

    def centred(self) -> "ValueVectors":
        """Minus the mean of the values, layer by layer: what the values do not share."""
        return self._left(self._wide - self._wide.mean(0), "centred")

    def __add__(self, other: "ValueVectors") -> "ValueVectors":
        return self._joined(other, 1, "plus") if isinstance(other, ValueVectors) else NotImplemented

    def __sub__(self, other: "ValueVectors") -> "ValueVectors":
        return self._joined(other, -1, "minus") if isinstance(other, ValueVectors) else NotImplemented

    def __mul__(self, number: float) -> "ValueVectors":
        if not isinstance(number, Real):
            return NotImplemented
        return self._made(self._wide * float(number), f"times {number:g}")

    __rmul__ = __mul__

    def __neg__(self) -> "ValueVectors":
        return self * -1

    def blend(self, angle: "ArrayLike", layout: str = "equal", order: Order = None) -> "ValueVectors":
        """Unit vectors at angles of the circle (radians), at every layer, each named by its degrees: "18°".

        Each lies between the two places that enclose it, mixed by nearness; at a value's own angle it is that value's
        unit vector (where two share a wedge, the unit vector between them). layout, order: see `values.angles`.
        """
        unit, turn = _unit(self.sel(VALUES)._wide), 2 * np.pi
        places, place = np.unique(np.asarray(angles(layout, order)) % turn, return_inverse=True)
        held = _unit(np.stack([unit[place == k].sum(0) for k in range(len(places))]))
        where = np.atleast_1d(np.asarray(angle, dtype=float))
        past = (where[:, None] - places) % turn  # from each place on to the angle
        left = past.argmin(1)
        right = (left + 1) % len(places)
        share = (past.min(1) / ((places[right] - places[left]) % turn))[:, None, None]
        mixed = _unit((1 - share) * held[left] + share * held[right])
        return self._made(mixed, f"blended, {layout} layout", [f"{degrees:g}°" for degrees in np.degrees(where)])

    def project_out(self, direction: "ValueVectors | str | Iterable[str] | ArrayLike") -> "ValueVectors":
        """What is left at right angles to some directions, layer by layer.

        direction: names of values (the result holds the others), ValueVectors of the same weights and layers (all of
        their values at once), or one array (d_model) for every layer. Raises WorkbenchError where nothing is left.
        """
        kept = self
        if not isinstance(direction, ValueVectors):
            given = np.asarray(direction)
            if given.dtype.kind == "U":
                direction = self.sel(np.atleast_1d(given))
                kept = self.sel([value for value in self.values if value not in direction.values])
            elif given.ndim == 1:
                every = np.tile(given, (1, len(self.layers), 1))
                direction = ValueVectors(labelled(every, ["an array"], self.layers, self.provenance))
            else:
                raise WorkbenchError("A direction was to be projected out.", found=f"an array of shape {given.shape}",
                                     allowed="(d_model,), ValueVectors, or names of values")
        # (layer, direction, d_model), at unit length so that one bar tells parallel directions at every layer
        span = _unit(self._fitting(direction, values=False)._wide).swapaxes(0, 1)
        wide = kept._wide.swapaxes(0, 1)
        left = wide - wide @ np.linalg.pinv(span, rcond=LOST) @ span
        return kept._left(left.swapaxes(0, 1), f"without {', '.join(direction.values)}")

    def similarity(self, layer: int, centred: bool = True) -> xr.DataArray:
        """Cosine of every two values at one layer: (value, other)."""
        unit = (self.centred() if centred else self).normalised().at(layer).drop_attrs()
        cosine = xr.dot(unit, unit.rename(value="other"), dim="d_model")
        return cosine.rename(f"{'centred' if centred else 'raw'} cosine")

    def similarity_to(self, other: "ValueVectors") -> xr.DataArray:
        """Cosine with the vectors of another method or model, value by value and layer by layer: (value, layer).

        Between models it means something only where they share the axes of their residual stream: a model and what
        was trained on from it.
        """
        both = (self, self._fitting(other, weights=False))
        return xr.dot(*(vectors.normalised().array.drop_attrs() for vectors in both), dim="d_model").rename("cosine")

    # -- models, files ---------------------------------------------------------------------------------------

    def check(self, model: Model | None) -> "ValueVectors":
        """These vectors; WorkbenchError unless they fit the model (None: no question).

        Vectors from elsewhere do not name their weights: the model's width and layers alone can be checked.
        """
        if model is not None:
            if "fingerprint" in self.provenance:
                check_fingerprint("Vectors", self.provenance, model)
            if self.d_model != model.d_model:
                raise WorkbenchError(f"Vectors were to be used with {model.name}.", found=f"d_model {self.d_model}",
                                     allowed=f"d_model {model.d_model}")
            model.check_layers(self.layers)
        return self

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, provenance in its header; returns its path."""
        meta = {"values": self.values, "layers": self.layers, "provenance": self.provenance}
        return save_arrays(path, "vectors", {"vectors": self.array.values}, meta)

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "ValueVectors":
        """Read what `save` wrote; with `model`, refuse vectors of another one."""
        arrays, meta = load_arrays(path, "vectors")
        with told(f"Saved vectors were to be read from {Path(path).name!r}.", "a file written by ValueVectors.save"):
            array = labelled(arrays["vectors"], meta["values"], meta["layers"], meta["provenance"])
        return cls(array).check(model)

    # -- inside ----------------------------------------------------------------------------------------------

    @property
    def _wide(self) -> np.ndarray:
        return self.array.values.astype(np.float64)

    def _made(self, numbers: np.ndarray, step: str, values: list[str] | None = None, of: Any = None) -> "ValueVectors":
        """What one step made of these vectors, in their precision. of: provenance, where it is not theirs."""
        attrs = {**(self.provenance if of is None else of), "steps": [*self.provenance.get("steps", []), step]}
        return ValueVectors(labelled(numbers.astype(self.array.dtype), values or self.values, self.layers, attrs))

    def _left(self, numbers: np.ndarray, step: str) -> "ValueVectors":
        """`_made` by a subtraction; WorkbenchError where what it left of a vector is rounding."""
        before, after = np.linalg.norm(self._wide, axis=-1), np.linalg.norm(numbers, axis=-1)
        if (lost := after <= LOST * before.max(0)).any():
            raise WorkbenchError(f"Vectors {step} were asked for.", found=f"nothing left of {_list(self.array, lost)}",
                                 allowed="vectors that differ from what is taken away")
        return self._made(numbers, step)

    def _joined(self, other: "ValueVectors", sign: int, word: str) -> "ValueVectors":
        theirs = self._fitting(other)
        shared = {key: held for key, held in self.provenance.items() if theirs.provenance.get(key) == held}
        return self._made(self._wide + sign * theirs._wide, f"{word} {other!r}", of=shared)

    def _fitting(self, other: "ValueVectors", weights: bool = True, values: bool = True) -> "ValueVectors":
        """The other vectors in this one's order; WorkbenchError where weights, width, layers or values differ."""
        both = (self, other)
        for what, asked, sides in (
            ("weights", weights, [v.provenance.get("fingerprint") for v in both]),
            ("d_model", True, [v.d_model for v in both]),
            ("layers", True, [sorted(v.layers) for v in both]),
            ("values", values, [sorted(v.values) for v in both]),
        ):
            if asked and sides[0] != sides[1]:
                raise WorkbenchError(f"{self!r} and {other!r} were to be brought together.",
                                     found=f"{what} {sides[0]} and {sides[1]}", allowed=f"the same {what}")
        return other.sel(self.values if values else None, self.layers)


def labelled(numbers: Any, values: Iterable[str], layers: Iterable[int], provenance: Mapping[str, Any]) -> xr.DataArray:
    """Numbers (value, layer, d_model) with their names, as `ValueVectors` takes them."""
    coords = {"value": list(values), "layer": list(layers)}
    return xr.DataArray(numbers, dims=DIMS, coords=coords, attrs=dict(provenance), name="vectors")


def stability(resampled: "Resampled", centred: bool = False) -> pd.DataFrame:
    """How far the value vectors hold still when the texts change, one row per value.

    cosine, low, high: of each bootstrap vector with the fitted one, mean and 2.5 and 97.5 % quantiles. Both hold the
        same noise, so they flatter; `split_half` does not: mean cosine of vectors fitted on two halves of the pairs.
    centred: of the vectors minus the mean of their values, as the circle is tested on.
    """
    def unit(vectors: xr.DataArray) -> xr.DataArray:
        wide = vectors.astype(np.float64)
        wide = wide - wide.mean("value") if centred else wide
        return wide / np.sqrt(xr.dot(wide, wide, dim="d_model"))

    first, second = (unit(resampled.halves.isel(half=half)) for half in (0, 1))
    drawn = xr.dot(unit(resampled.bootstrap), unit(resampled.vectors), dim="d_model")
    columns = {
        "cosine": drawn.mean("resample"),
        "low": drawn.quantile(0.025, "resample"),
        "high": drawn.quantile(0.975, "resample"),
        "split_half": xr.dot(first, second, dim="d_model").mean("split"),
    }
    names = resampled.vectors["value"].values
    return pd.DataFrame({"value": names, **{name: held.sel(value=names).values for name, held in columns.items()}})


def _unit(vectors: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # what has no direction becomes NaN, which `ValueVectors` refuses by name
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _named(array: Any) -> bool:
    """Is it a DataArray with these dims, every value and layer named, none twice?"""
    if not isinstance(array, xr.DataArray) or {*array.dims} != {*DIMS} or not {*DIMS[:2]} <= {*array.coords}:
        return False
    values, layers = (array[name].values.tolist() for name in DIMS[:2])
    return (array.size > 0 and all(isinstance(value, str) and value for value in values)
            and all(type(layer) is int and layer >= 0 for layer in layers)
            and len({*values}) == len(values) and len({*layers}) == len(layers))


def _list(array: xr.DataArray, where: Any) -> str:
    """Where a mask (value, layer) holds, the first five: "power at layer 3"."""
    found = [f"{array['value'].values[v]} at layer {array['layer'].values[k]}" for v, k in np.argwhere(where)]
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


def _chosen(kind: str, wanted: Any, held: list[Any]) -> list[Any]:
    wanted = held if wanted is None else [wanted] if np.ndim(wanted) == 0 else list(wanted)
    unknown = [one for one in wanted if one not in held]
    if unknown or not wanted:
        raise WorkbenchError(f"Vectors of {kind} {', '.join(map(str, wanted)) or '(none)'} were asked for.",
                             found=f"no vector of {', '.join(map(str, unknown))}" if unknown else None,
                             allowed=", ".join(map(str, held)))
    return wanted
