"""State of the geometry panel: which value vectors are held against which circle, and what was found. No widgets.

All is found piece by piece (`step`), none longer than some 50 ms, the most urgent first, and kept: whoever sets a trait
(a slider, a test, a cell) changes what is most urgent, and nothing has to be undone.
"""

from collections import OrderedDict
from collections.abc import Generator
from dataclasses import replace
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import traitlets as t
import xarray as xr

from ...errors import WorkbenchError
from ...geometry import HUMAN_REFERENCES, CircumplexFit, circumplex_fit
from ...geometry.labellings import STATISTICS
from ...geometry.resampling import contributions
from ...geometry.similarity import checked, names_of
from ...probes import PairActivations, Probes
from ...probes.linear import METHODS
from ...values import VALUES
from ...vectors import ValueVectors
from .kept import KeptFit, Resamples, resampled_in_steps

SETTINGS = ("layer", "method", "centred", "layout", "order", "statistic", "people")
RESAMPLED = ("logistic", "mean_difference")
"""Methods whose pairs are resampled here; a thousand fits of the others take too long."""
SLICE = 0.03  # seconds of resampling in one piece
HELD = 2**27  # bytes of nulls that are kept, the latest ones


class Key(NamedTuple):
    """What makes two fits differ; centred and raw are one. layer: None for words alone, -1 where it is not known."""

    layer: int | None
    method: str
    layout: str
    order: str


class GeometryState(t.HasTraits):
    """Value vectors, held against Schwartz's circle.

    Settings: layer; method, "logistic", "mean_difference", "lda" or "pca" (others than the probes' own are fitted
    again, where probes hold their activations); centred, or raw; layout, "equal" or "wedges"; order, "schwartz" or
    "swapped"; statistic, whose null is shown; people, a human reference to be shown beside, or "none".

    Found by `step`: `fit` of the settings as they stand, its nulls, its resamples where they were asked for
    (`resample`); `words_fit`, of words alone. progress: of resamples that are being fitted, "" for none. found: grows
    with each that is complete.
    """

    layer = t.Int()
    method = t.Unicode()
    centred = t.Bool(True)
    layout = t.Unicode("equal")
    order = t.Unicode("schwartz")
    statistic = t.Unicode("ci")
    people = t.Unicode("none")

    progress = t.Unicode("")
    found = t.Int(0)

    def __init__(self, vectors: Any, words: Any = None, human: Any = None, **settings: Any):
        """As `geometry` takes them."""
        if unknown := [name for name in settings if name not in SETTINGS]:
            raise WorkbenchError(f"Settings {', '.join(unknown)} were asked for.", allowed=", ".join(SETTINGS))
        self.given, self.layers, own = _given(vectors)
        self.pairs: PairActivations | None = getattr(vectors, "activations", None)
        self.methods = [own] if self.pairs is None else [own, *(name for name in METHODS if name != own)]
        self.C = float(vectors.provenance.get("C", 1.0)) if isinstance(vectors, Probes) else 1.0
        self.names = names_of(self.given)
        checked(self.given, self.names, "layer")
        self.references: dict[str, Any] = {"none": None}
        if self.names == VALUES:
            self.references |= {name: name for name in HUMAN_REFERENCES}
        chosen = human if human is None or isinstance(human, str) else str(human.name or "given")
        if chosen is not None and chosen not in self.references and not isinstance(human, str):
            self.references[chosen] = human
        self._words = self._read_words(words)
        self._vectors: dict[tuple[int | None, str], dict[str, np.ndarray]] = {}
        self._fits: dict[Key, KeptFit] = {}  # of words alone the layer is None
        self._held: OrderedDict[KeptFit, None] = OrderedDict()  # those with nulls, the latest last
        self._resamples: dict[tuple[int | None, str], Resamples] = {}
        self._refused: set[Key] = set()
        self._running: Generator[str, None, None] | None = None
        best = vectors.choose_layer() if isinstance(vectors, Probes) and _choosable(vectors) else self.layers[-1]
        super().__init__(**{"layer": best, "method": own, "people": chosen or "none", **settings})

    def _read_words(self, words: Any) -> Any:
        if words is True:
            if self.pairs is None:
                raise WorkbenchError("The geometry of words alone was asked for.", found="vectors without their pairs",
                                     do="Pass probes with activations (wb.fit_probes), or a fit of words.")  # fmt: skip
            return PairActivations.of_words(self.pairs.pairs)
        if not words:
            return None
        if not isinstance(words, CircumplexFit) or words.circle.names != self.names:
            fitted = isinstance(words, CircumplexFit)
            raise WorkbenchError("The geometry of words alone was asked for.",
                                 found=f"a fit of {len(words.circle.names)} values" if fitted else type(words).__name__,
                                 allowed="True, or a fit of the same values")  # fmt: skip
        return KeptFit.of(words)

    # -- settings ------------------------------------------------------------------------------------------------------

    @t.validate("layer")
    def _check_layer(self, proposal: Any) -> int:
        if proposal["value"] not in self.layers:
            raise WorkbenchError(f"The geometry at layer {proposal['value']} was asked for.",
                                 allowed=", ".join(map(str, self.layers)))  # fmt: skip
        return proposal["value"]

    @t.validate("method", "layout", "order", "statistic", "people")
    def _check_choice(self, proposal: Any) -> str:
        name, chosen = proposal["trait"].name, proposal["value"]
        allowed = self.choices[name]
        if chosen not in allowed:
            alone = name == "method" and self.pairs is None
            found = "vectors as they are, no activations to fit others on" if alone else None
            raise WorkbenchError(f"The {name} {chosen!r} was asked for.", found=found,
                                 allowed=", ".join(map(repr, allowed)))  # fmt: skip
        return chosen

    @property
    def choices(self) -> dict[str, list[str]]:
        """What each setting with names can be."""
        return {"method": self.methods, "layout": ["equal", "wedges"] if self.names == VALUES else ["equal"],
                "order": ["schwartz", "swapped"], "statistic": [*STATISTICS], "people": [*self.references]}  # fmt: skip

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as they stand."""
        return {name: getattr(self, name) for name in SETTINGS}

    # -- what is there -------------------------------------------------------------------------------------------------

    @property
    def key(self) -> Key:
        return Key(self.layer, self.method, self.layout, self.order)

    @property
    def fit(self) -> KeptFit | None:
        """Of the settings as they stand, raw or centred; None as long as it is not found."""
        return self._side(self.key)

    def found_ahead(self) -> list[tuple[Key, KeptFit]]:
        """Fits of other layers that are found, with the settings' nulls, the nearest layer first."""
        keys = [self.key._replace(layer=n) for n in sorted(self.layers, key=lambda n: abs(n - self.layer))]
        fits = [(key, self._side(key)) for key in keys]
        return [(key, fit) for key, fit in fits if fit is not None and self._complete(fit)]

    @property
    def ready(self) -> bool:
        """Is the fit there, with the nulls that its claim and its histogram need?"""
        return self.fit is not None and self._complete(self.fit)

    @property
    def words_fit(self) -> CircumplexFit | None:
        """Of words alone, on the same circle, raw or centred; None as long as it is not found, and without words."""
        if self._words is None or isinstance(self._words, CircumplexFit):
            fit = self._words
        else:
            fit = self._fits.get(self.key._replace(layer=None))
        return fit if fit is None or self.centred else fit.raw

    @property
    def resampled(self) -> bool:
        """Were the pairs of texts of this layer and method resampled?"""
        return (self.layer, self.method) in self._resamples

    @property
    def resamplable(self) -> str:
        """Why the pairs cannot be resampled, "" where they can."""
        if self.pairs is None:
            return "The vectors came without their pairs of texts, so they have no intervals."
        if self.method not in RESAMPLED:
            return f"Pairs are resampled for {' and '.join(RESAMPLED)} only."
        return ""

    def vectors(self, key: Key | None = None) -> xr.DataArray:
        """(value, d_model) of the settings as they stand, or another key's; fits those that are missing."""
        key = key or self.key
        for value in self.names:
            self._find_vector(key, value)
        return self._vectors_of(key)

    def conflicts(self) -> pd.DataFrame:
        """Opposed values encoded alike, see `CircumplexFit.conflicts`, without their texts."""
        assert self.fit is not None
        return replace(self.fit, resampled=None).conflicts()

    def texts_of(self, value: str, other: str, most: int = 2) -> pd.DataFrame:
        """Pairs of texts of the two values that add most to their centred cosine; empty without resamples."""
        if self.fit is None or self.fit.resampled is None:
            return pd.DataFrame(columns=["value", "positive", "negative", "share"])
        sides = [contributions(self.fit.resampled, *pair, self.names) for pair in ((value, other), (other, value))]
        return pd.concat([side.nlargest(most, "share") for side in sides], ignore_index=True)

    # -- finding -------------------------------------------------------------------------------------------------------

    def step(self, ahead: bool = False) -> bool:
        """Find the most urgent piece that is missing; False where none is.

        In turn: the fit of the settings, its nulls, words alone, resamples; `ahead`: other layers, the nearest first.
        """
        return self._find(self.key) or self._find_words() or self._resample() or (ahead and self._find_ahead())

    def complete(self) -> "GeometryState":
        """Find all that the settings ask for."""
        while self.step():
            pass
        return self

    def resample(self, n: int = 1000, seed: int = 0) -> None:
        """Resample the pairs of texts of this layer and method, and of words alone; `step` does it, piece by piece."""
        if why := self.resamplable:
            raise WorkbenchError(f"{n:,} resamples of the pairs of texts were asked for.", found=why)
        self.stop_resampling()
        if not self.resampled:
            self.progress = "begun"
            self._running = self._resampling(self.layer, self.method, n, seed)

    def stop_resampling(self) -> None:
        """Fit no more resamples; those of incomplete runs are dropped."""
        if self._running is not None:
            self._running.close()
        self._running, self.progress = None, ""

    def _complete(self, fit: KeptFit) -> bool:
        return all(fit.has(statistic) for statistic in ("ci", self.statistic))

    def _side(self, key: Key) -> KeptFit | None:
        fit: Any = self._fits.get(key)
        return fit if fit is None or self.centred else fit.raw

    def _rows(self, key: Key) -> dict[str, np.ndarray]:
        return self._vectors.setdefault((key.layer, key.method), {})

    def _vectors_of(self, key: Key) -> xr.DataArray:
        rows = self._rows(key)
        told = {"method": None if key.method == "as given" else key.method, "layer": key.layer}
        told = {"model": "words alone (TF-IDF)", "method": key.method} if key.layer is None else told
        attrs = {**self.given.attrs, **told} if key.layer != -1 else {**self.given.attrs}
        return xr.DataArray(np.stack([rows[name] for name in self.names]), {"value": list(self.names)},
                            ("value", "d_model"), "vectors", attrs)  # fmt: skip

    def _find_vector(self, key: Key, value: str) -> bool:
        """The vector of a value, if it is missing."""
        rows = self._rows(key)
        if value in rows:
            return False
        if key.layer is None:
            rows[value] = self._words.vectors(0, key.method, self.C, [value]).values[0]
        elif key.method == self.methods[0]:
            rows |= zip(self.names, self.given.sel(layer=key.layer, value=list(self.names)).values, strict=True)
        else:
            assert self.pairs is not None
            rows[value] = self.pairs.vectors(key.layer, key.method, self.C, [value]).values[0]
        return True

    def _find_fit(self, key: Key) -> bool:
        if key in self._fits:
            return False
        if not any(self._find_vector(key, value) for value in self.names):
            fit = KeptFit.of(circumplex_fit(self._vectors_of(key), order=key.order, layout=key.layout))
            found = self._resamples.get((key.layer, key.method))
            self._fits[key] = fit if found is None else fit.resampled_by(found)
        return True

    def _find(self, key: Key) -> bool:
        if self._find_fit(key):
            return True
        fit = self._side(key)
        assert fit is not None
        for statistic in ("ci", self.statistic):
            if not fit.has(statistic):
                fit.find(statistic)
                self._hold(fit)
                return True
        return False

    def _find_words(self) -> bool:
        return isinstance(self._words, PairActivations) and self._find_fit(self.key._replace(layer=None))

    def _hold(self, fit: KeptFit) -> None:
        """Keep this one's nulls, and forget the oldest where they are too many."""
        self._held[fit] = None
        self._held.move_to_end(fit)
        while len(self._held) > 1 and sum(held.nbytes for held in self._held) > HELD:
            self._held.popitem(last=False)[0].forget()

    def _find_ahead(self) -> bool:
        fit = self.fit
        assert fit is not None
        nearest = sorted(self.layers, key=lambda layer: abs(layer - self.layer))
        for layer in nearest[: HELD // max(2 * fit.nbytes, 1)]:
            key = self.key._replace(layer=layer)
            try:
                if key not in self._refused and self._find(key):
                    return True
            except WorkbenchError:  # it will be told when that layer is asked for
                self._refused.add(key)
        return False

    # -- resamples -----------------------------------------------------------------------------------------------------

    def _resample(self) -> bool:
        """A slice of the resamples that were asked for."""
        if self._running is None:
            return False
        end = perf_counter() + SLICE
        try:
            told = next(self._running)
            while perf_counter() < end:
                told = next(self._running)
        except StopIteration:
            self._running, told = None, ""
        except Exception:
            self.stop_resampling()
            raise
        self.progress = told
        return True

    def _resampling(self, layer: int, method: str, n: int, seed: int) -> Generator[str, None, None]:
        assert self.pairs is not None
        fresh: dict[tuple[int | None, str], Resamples] = {(layer, method): (yield from resampled_in_steps(
            self.pairs, self.names, layer, n, method, self.C, seed))}  # fmt: skip
        if isinstance(self._words, PairActivations) and (None, method) not in self._resamples:
            fresh[None, method] = yield from resampled_in_steps(
                self._words, self.names, 0, n, method, self.C, seed, "words alone: ")
        self._resamples |= fresh
        for key, fit in self._fits.items():
            if found := fresh.get((key.layer, key.method)):
                self._fits[key] = fit.resampled_by(found)
        self.found += 1


def _given(vectors: Any) -> tuple[xr.DataArray, list[int], str]:
    """Vectors (layer, value, d_model), their layers, -1 where it is not known, and by what method they were made."""
    if isinstance(vectors, Probes):
        return vectors.weight.assign_attrs(vectors.provenance), vectors.layers, vectors.method
    if isinstance(vectors, ValueVectors):
        return vectors.array, vectors.layers, str(vectors.provenance.get("method", "as given"))
    attrs = dict(getattr(vectors, "attrs", {}))
    own = str(attrs.get("method", "as given"))
    if not isinstance(vectors, xr.DataArray):
        names = names_of(vectors)
        array = checked(vectors, names)
        vectors = xr.DataArray(array, {"value": list(names)}, ("value", "d_model"))
    if "layer" not in vectors.dims:
        at = int(vectors.coords["layer"]) if "layer" in vectors.coords else int(attrs.get("layer", -1))
        vectors = vectors.drop_vars("layer", errors="ignore").expand_dims(layer=[at])
    return vectors.assign_attrs(attrs), [int(layer) for layer in vectors["layer"].values], own


def _choosable(probes: Probes) -> bool:
    """Whether one of the layers may be chosen: the last ones never are."""
    try:
        probes.choose_layer()
    except WorkbenchError:
        return False
    return True
