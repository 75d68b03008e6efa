"""State of the probe explorer: which probe is looked at, how it was fitted, what it reads in a typed text. No widgets.

Probes of another method or C are fitted on the activations that the given ones hold, on the same folds: one when it is
looked at, all by `refit`, step by step. What was fitted is kept.
"""

import math
from collections.abc import Generator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import traitlets as t
import xarray as xr
from scipy.special import expit

from ...activations import capture
from ...errors import WorkbenchError
from ...gates.gate import unsteered
from ...models import Model
from ...probes import Probes
from ...probes.fitted import labelled
from ...probes.pairs import Fitted, check_method
from ...probes.scores import area_under_roc, auroc_interval, roc
from ...rates import wilson
from ...values import check_value

SETTINGS = ("value", "layer", "method", "C", "text")
KEPT = 24  # settings whose probes are kept


class Held(NamedTuple):
    """A probe that is there, and its out-of-fold accuracy."""

    probe: Fitted
    accuracy: float


class OneProbe(NamedTuple):
    """How one probe reads the texts that it was not fitted on.

    logits and positive (text), positives first; accuracy at 0 and auroc, with 95 % intervals of as many texts as a
    pair's two are worth; curve: false and true positive rates of all thresholds; misjudged: the texts on the wrong side
    of 0, the worst first: text, positive, p, other (the pair's other text), other_p.
    """

    logits: np.ndarray
    positive: np.ndarray
    accuracy: float
    bounds: tuple[float, float]
    auroc: float
    auroc_bounds: tuple[float, float]
    curve: tuple[np.ndarray, np.ndarray]
    misjudged: pd.DataFrame


class ProbingState(t.HasTraits):
    """A model's probes, one of them looked at.

    Settings: value, layer; method and C, fixed where the probes came without activations (`can_refit`); text, read raw,
    as the pairs are. Found: fitted, how many of the `total` probes there are with this method and C; acts, activations
    (layer, token, d_model) of the text, by `read`.
    """

    value = t.Unicode()
    layer = t.Int()
    method = t.Unicode("logistic")
    C = t.Float(1.0)
    text = t.Unicode("")

    fitted = t.Int(0)
    acts: Any = t.Instance(xr.DataArray, allow_none=True)

    def __init__(self, model: Model, probes: Probes, **settings: Any):
        if unknown := [name for name in settings if name not in SETTINGS]:
            raise WorkbenchError(f"Settings {', '.join(unknown)} were asked for.", allowed=", ".join(SETTINGS))
        probes.check(model)
        self.model, self.probes, self.values, self.layers = model, probes, probes.values, probes.layers
        examples = probes.examples
        self._texts = {str(value): own for value, own in examples.groupby("value", sort=False)}
        self._positive = {value: own["positive"].to_numpy() for value, own in self._texts.items()}
        self.n = {value: len(own) for value, own in self._texts.items()}  # texts of each value
        self._grids: dict[tuple[str, float | None], dict[tuple[str, int], Held]] = {}
        self._correlations: dict[tuple[str, float | None], float] = {}
        self._given = self._key_of(probes.method, float(probes.provenance.get("C", 1.0)))
        at = {value: examples.index.get_indexer(own.index) for value, own in self._texts.items()}
        self._grids[self._given] = {
            (value, layer): self._held(value, Fitted(probes.weight.values[i, j], float(probes.bias.values[i, j]),
                                                     probes.held_out.values[j, at[value]]))
            for i, value in enumerate(self.values) for j, layer in enumerate(self.layers)
        }  # fmt: skip
        self._read = ""  # the text that `acts` is of
        first = self._texts[self.values[0]]
        defaults = {"value": self.values[0], "layer": _default_layer(probes), "method": probes.method,
                    "C": float(probes.provenance.get("C", 1.0)), "text": str(first["text"].iloc[0])}  # fmt: skip
        super().__init__(**{**defaults, **settings})
        self._count()

    # -- settings ------------------------------------------------------------------------------------------------------

    @t.validate("value")
    def _check_value(self, proposal: Any) -> str:
        return check_value(proposal["value"], self.values)

    @t.validate("layer")
    def _check_layer(self, proposal: Any) -> int:
        if proposal["value"] not in self.layers:
            raise WorkbenchError(f"Probes at layer {proposal['value']} were asked for.", found="none was fitted there",
                                 allowed=f"layers {', '.join(map(str, self.layers))}")  # fmt: skip
        return proposal["value"]

    @t.validate("method", "C")
    def _check_fit(self, proposal: Any) -> Any:
        asked = {"method": self.method, "C": self.C, proposal["trait"].name: proposal["value"]}
        check_method(asked["method"], asked["C"] if math.isfinite(asked["C"]) else -1)
        if not self.can_refit and self._key_of(**asked) != self._given:
            raise WorkbenchError(f"Probes by {asked['method']!r} with C={asked['C']:g} were asked for.",
                                 found="probes without activations, which a refit needs",
                                 do="Fit them in this session: fit_probes(model, pairs).")  # fmt: skip
        return proposal["value"]

    @t.observe("method", "C")
    def _count(self, _: Any = None) -> None:
        self.fitted = len(self._grids.get(self._key, ()))

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as they stand."""
        return {name: getattr(self, name) for name in SETTINGS}

    @property
    def can_refit(self) -> bool:
        return self.probes.activations is not None

    @property
    def total(self) -> int:
        return len(self.values) * len(self.layers)

    @property
    def how(self) -> str:
        """How the probes were fitted, in words."""
        return self.method.replace("_", " ") + (f", C = {self.C:.3g}" if self.method == "logistic" else "")

    # -- probes --------------------------------------------------------------------------------------------------------

    @staticmethod
    def _key_of(method: str, C: float) -> tuple[str, float | None]:
        return method, C if method == "logistic" else None

    @property
    def _key(self) -> tuple[str, float | None]:
        return self._key_of(self.method, self.C)

    @property
    def _grid(self) -> dict[tuple[str, int], Held]:
        """The probes with this method and C that are there; those of the settings used last are kept."""
        grid = self._grids.pop(self._key, {})
        self._grids[self._key] = grid
        while len(self._grids) > KEPT:
            del self._grids[next(key for key in self._grids if key != self._given)]
        return grid

    def _held(self, value: str, probe: Fitted) -> Held:
        return Held(probe, float(np.mean((probe.held_out > 0) == self._positive[value])))

    def _fit(self, value: str, layer: int) -> Held:
        grid = self._grid
        if (value, layer) not in grid:
            acts: Any = self.probes.activations
            fold = self._texts[value]["fold"].to_numpy()
            grid[value, layer] = self._held(value, acts.fit_one(value, layer, fold, self.method, self.C))
            self.fitted = len(grid)
        return grid[value, layer]

    def refit(self) -> Generator[None]:
        """Fit all that is missing with this method and C, a probe at a step, those of the layer looked at first."""
        key = self._key
        for layer in sorted(self.layers, key=lambda at: (at != self.layer, at)):
            for value in self.values:
                if self._key != key:
                    return
                if (value, layer) not in self._grid:
                    self._fit(value, layer)
                    yield

    def refitted(self) -> Probes:
        """All probes with this method and C; WorkbenchError while some are missing."""
        if self._key == self._given:
            return self.probes
        grid, cells = self._grid, [[(value, layer) for layer in self.layers] for value in self.values]
        if len(grid) < self.total:
            raise WorkbenchError(f"All probes by {self.how} were asked for.", f"{len(grid)} of {self.total}",
                                 do="Let refit() come to its end.")  # fmt: skip
        held_out = np.empty(self.probes.held_out.shape, np.float32)
        for value, own in self._texts.items():
            at = self.probes.examples.index.get_indexer(own.index)
            held_out[:, at] = [grid[value, layer].probe.held_out for layer in self.layers]
        arrays = {
            "weight": np.array([[grid[cell].probe.weight for cell in row] for row in cells]),
            "bias": np.array([[grid[cell].probe.bias for cell in row] for row in cells], np.float32),
            "held_out": held_out,
        }
        return replace(
            self.probes, method=self.method, transferred=None,
            provenance={**self.probes.provenance, "method": self.method, "C": self.C},
            **{name: labelled(name, array, self.values, self.layers) for name, array in arrays.items()},
        )  # fmt: skip

    @property
    def _worth(self) -> float:
        """Texts that are worth one independent text: of these probes where all are there, else of those given."""
        key = self._key if self.fitted == self.total else self._given
        if key not in self._correlations:
            self._correlations[key] = (self.refitted() if key != self._given else self.probes).pair_correlation
        return 1 + self._correlations[key]

    @property
    def accuracy(self) -> xr.DataArray:
        """Share of held-out texts on the right side of 0 (value, layer); NaN where no probe is there yet."""
        return labelled("accuracy", self._rates, self.values, self.layers)

    @property
    def bounds(self) -> xr.DataArray:
        """95 % interval of `accuracy` (value, layer, bound)."""
        n = np.array([self.n[value] for value in self.values])[:, None]
        return labelled("intervals", np.stack(wilson(self._rates, n / self._worth), -1), self.values, self.layers)

    @property
    def _rates(self) -> np.ndarray:
        grid = self._grid
        return np.array([[grid[value, layer].accuracy if (value, layer) in grid else math.nan for layer in self.layers]
                         for value in self.values])  # fmt: skip

    def one(self) -> OneProbe:
        """The probe that is looked at; fitted now where it is not there yet."""
        (probe, accuracy), texts = self._fit(self.value, self.layer), self._texts[self.value]
        logits, y, half, worth = probe.held_out, self._positive[self.value], len(texts) // 2, self._worth
        area = area_under_roc(logits, y)
        wrong = np.flatnonzero((logits > 0) != y)
        wrong = wrong[np.argsort(-np.abs(logits[wrong]), kind="stable")]
        other, said, p = (wrong + half) % (2 * half), texts["text"].to_numpy(), expit(logits)
        misjudged = pd.DataFrame({"text": said[wrong], "positive": y[wrong], "p": p[wrong], "other": said[other],
                                  "other_p": p[other]})  # fmt: skip
        return OneProbe(logits, y, accuracy, wilson(accuracy, len(y) / worth), area,
                        auroc_interval(area, y.sum() / worth), roc(logits, y), misjudged)  # fmt: skip

    # -- a typed text --------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Read the text at every token, without steering: one forward pass; nothing for an empty one.

        WorkbenchError for a text longer than the context: nothing is cut.
        """
        if self.acts is not None and self._read == self.text:
            return  # another view of this state had it read
        self.acts = None  # what the last text gave is not what a failing one gives
        if self.text.strip():
            with unsteered(self.model):
                self.acts, self._read = capture(self.model, [self.text], self.layers, position="all"), self.text

    def tokens(self) -> list[tuple[str, float]]:
        """Each token of the text that was read, and P of the value there."""
        if self.acts is None:
            return []
        words = [str(self.model.tokenizer.decode([int(token)])) for token in self.acts["token_id"].values]
        p = self._probability(self.value, self.acts.sel(layer=self.layer).values)
        return list(zip(words, p.tolist(), strict=True))

    def profile(self) -> dict[str, float]:
        """P of every value at the text's last token, at the layer looked at; NaN where no probe is there yet."""
        if self.acts is None:
            return {}
        last, grid = self.acts.sel(layer=self.layer).values[-1:], self._grid
        return {value: float(self._probability(value, last)[0]) if (value, self.layer) in grid else math.nan
                for value in self.values}  # fmt: skip

    def _probability(self, value: str, acts: np.ndarray) -> np.ndarray:
        """(token) from activations (token, d_model) at the layer looked at."""
        one = self._fit(value, self.layer).probe
        return expit(acts.astype(np.float64) @ one.weight.astype(np.float64) + one.bias)


def _default_layer(probes: Probes) -> int:
    try:
        return probes.choose_layer()
    except WorkbenchError:  # probes of the last layers only
        return probes.layers[-1]
