"""What `neuron_contrasts` finds, and each neuron's texts, read in small steps so that a kernel can do other things.

Texts are read a few at a time and only sums are kept, so memory does not grow with them.
"""

from collections.abc import Generator, Iterable, Sequence
from time import perf_counter

import numpy as np
import pandas as pd
import xarray as xr

from ...activations import capture
from ...gates import unsteered
from ...models import Model
from ...probes.folds import check_pairs, in_order, pairs_hash
from ...probes.pairs import distinct_texts

SIDES = ("positive", "negative")
STEP = 0.04  # seconds that a step should take
MOST = 6  # texts kept for each neuron, highest and lowest


class Reading:
    """How every neuron answers to pairs of texts. `steps` does it; each step yields the share of the texts read.

    contrasts: as `neuron_contrasts` returns them, None until all is read. highest, lowest (layer, neuron, MOST): the
    texts of highest and lowest activation at their last token, by their place in `texts`, the most extreme first; at:
    their activations, of the same shape each.
    """

    def __init__(self, model: Model, pairs: pd.DataFrame, layers: Iterable[int], contrasts: bool = True):
        """contrasts=False: the texts only, in half the time."""
        self.model, self.pairs, self.layers = model, check_pairs(pairs), model.check_layers(layers)
        self.texts, self.values = distinct_texts(self.pairs), in_order(self.pairs["value"])
        self.contrasts: xr.Dataset | None = None
        self.read = 0
        self.highest = self.lowest = np.zeros((len(self.layers), 0, 0), int)
        self.at: dict[str, np.ndarray] = {}
        self._hooks = ("mlp.hook_post", "resid_post") if contrasts else ("mlp.hook_post",)

    @property
    def complete(self) -> bool:
        return self.read == len(self.texts)

    def table(self, layer: int, neuron: int) -> pd.DataFrame:
        """Texts of a neuron, of those read so far: activation, text, of ("power, positive"), the highest first."""
        k = self.layers.index(layer)
        places = [*self.highest[k, neuron], *self.lowest[k, neuron][::-1]]
        sizes = [*self.at["highest"][k, neuron], *self.at["lowest"][k, neuron][::-1]]
        chosen = dict(zip(places, sizes, strict=True))  # of few texts some are among both
        return pd.DataFrame({"activation": [float(size) for size in chosen.values()],
                             "text": [self.texts[place] for place in chosen],
                             "of": [self._of(self.texts[place]) for place in chosen]})  # fmt: skip

    def _of(self, text: str) -> str:
        return "; ".join(f"{value}, {side}" for side in SIDES
                         for value in in_order(self.pairs.loc[self.pairs[side] == text, "value"]))  # fmt: skip

    def steps(self) -> Generator[float, None, None]:
        ids = self.model.encode(self.texts)
        self.model.check_length(ids, self.texts)
        order = sorted(range(len(ids)), key=lambda place: -len(ids[place]))  # little padding
        weights = self._weights()
        sums: dict[str, tuple[np.ndarray, ...]] = {}
        few = 16
        while self.read < len(order):
            places = order[self.read : self.read + few]
            begun = perf_counter()
            for hook in self._hooks:
                with unsteered(self.model):
                    acts = capture(self.model, [self.texts[place] for place in places], self.layers, hook).values
                if len(self._hooks) == 2:
                    sums[hook] = _added(sums.get(hook), weights[:, places], acts)
                if hook == "mlp.hook_post":
                    self._keep(acts, places)
                    self.read += len(places)
                yield self.read / len(order)
            took = (perf_counter() - begun) / len(self._hooks)
            few = 2 * few if took < STEP else max(few // 2, 1) if took > 3 * STEP else few
        if sums:
            self.contrasts = self._contrasts(sums, weights.sum(1))

    def _weights(self) -> np.ndarray:
        """How often each text stands on each side of each value: (value x side, text)."""
        at, weights = pd.Index(self.texts), np.zeros((2 * len(self.values), len(self.texts)))
        for k, value in enumerate(self.values):
            own = self.pairs[self.pairs["value"] == value]
            for j, side in enumerate(SIDES):
                np.add.at(weights[2 * k + j], at.get_indexer(pd.Index(own[side])), 1)
        return weights

    def _keep(self, acts: np.ndarray, places: Sequence[int]) -> None:
        """Merge activations (layer, text, neuron) of some texts into the highest and lowest of each neuron."""
        fresh = np.moveaxis(acts, 1, -1)
        own = np.broadcast_to(np.array(places), fresh.shape)
        for name, sign in (("highest", -1), ("lowest", 1)):
            held = getattr(self, name) if name in self.at else own[..., :0]
            sizes = np.concatenate([self.at.get(name, fresh[..., :0]), fresh], axis=-1)
            index = np.concatenate([held, own], axis=-1)
            best = np.argsort(sign * sizes, axis=-1, kind="stable")[..., :MOST]
            self.at[name] = np.take_along_axis(sizes, best, -1)
            setattr(self, name, np.take_along_axis(index, best, -1))

    def _contrasts(self, sums: dict[str, tuple[np.ndarray, ...]], counts: np.ndarray) -> xr.Dataset:
        found: dict[str, np.ndarray] = {}
        for hook, (_, first, second) in sums.items():
            means = first / counts[:, None, None]
            difference = means[::2] - means[1::2]
            if hook == "resid_post":
                found["residual"] = difference
                continue
            spread = np.maximum(second - counts[:, None, None] * means**2, 0) / (counts[:, None, None] - 1)
            found["difference"] = difference
            with np.errstate(divide="ignore", invalid="ignore"):  # no spread: what never moves has no effect
                pooled = np.sqrt((spread[::2] + spread[1::2]) / 2)
                found["d"] = np.where(difference == 0, 0, difference / pooled)
        dims = {"difference": "neuron", "d": "neuron", "residual": "d_model"}
        arrays = {name: (("value", "layer", dim), found[name].astype(np.float32)) for name, dim in dims.items()}
        attrs = {**self.model.provenance, "pairs": pairs_hash(self.pairs),
                 "n_pairs": self.pairs["value"].value_counts().to_dict()}  # fmt: skip
        return xr.Dataset(arrays, {"value": self.values, "layer": self.layers}, attrs)


def _added(sums: tuple[np.ndarray, ...] | None, weights: np.ndarray, acts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sums and sums of squares (value x side, layer, unit) of activations (layer, text, unit), about the first ones."""
    base = acts[:, :1] if sums is None else sums[0]
    off = (acts - base).astype(np.float64)
    first, second = (np.einsum("wt,ltu->wlu", weights, part) for part in (off, off**2))
    return (base, first, second) if sums is None else (base, sums[1] + first, sums[2] + second)
