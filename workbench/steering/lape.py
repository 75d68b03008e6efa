r"""LAPE: switch off the neurons that are on for the opposed values only.

**Rule.** With p_(i,k) = P(a_i > 0 | class k) over the classes k, here values, read while the model speaks for each
(`activation_shares`), and q_i its normalisation over k,

    LAPE_i = -sum_k q_(i,k) log q_(i,k)

Neurons whose largest p is not above the 95th percentile of all p are dropped; of the others the 1 % of all neurons
with lowest entropy are kept, fewer where fewer are left; each belongs to every class for which its p is above that
percentile. To steer V, at every steered token

    a_i <- 0        for the neurons of the values in the groups opposed to V's, those that are V's own too left out

**Parameters.** `neurons`: by `LAPE.select`, whose column `side` is 1 for V's own neurons (left alone) and -1 for the
opposed ones. There is no strength. `gate`, `layers`: None for everyone and all layers with neurons. `scope`: "token"
only: what is switched off depends on the token. `window`: only these answer tokens.

**Misleads.** Found for languages, which share few words; values share nearly all, so entropies lie close together.
Switching off V's rivals need not raise V. In gated MLPs a > 0 is not act(gate) > 0, which the paper counts.

**Source.** Tang et al., "Language-Specific Neurons: The Key to Multilingual Capabilities in Large Language Models", ACL
2024, arXiv 2402.16438. Opposed groups in place of other languages: the workbench's reading.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.stats import entropy

from ..errors import WorkbenchError
from ..gates import Gate
from ..models import Model
from ..neurons import Neurons
from ..probes.files import check_fingerprint
from ..values import AXES, VALUES, check_value, groups_of
from .neuron_method import NeuronMethod, at


@dataclass(frozen=True, eq=False, repr=False)
class LAPE(NeuronMethod):
    """Zero the opposed group's neurons; see the module's page."""

    neurons: Neurons
    layers: Iterable[int] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    gate: Gate | None = None
    scope: str = "token"
    window: tuple[int, int | None] | None = None

    def __post_init__(self):
        if "side" not in self.neurons.chosen:
            raise WorkbenchError(f"LAPE by {self.neurons!r} was asked for.", found="no opposed neurons",
                                 do="Select them by LAPE.select.")  # fmt: skip
        opposed = self.neurons.chosen.query("side < 0")
        self._settle(opposed, self.layers, self.scope, ("token",))

    @staticmethod
    def select(
        model: Model, value: str, shares: Mapping[str, xr.Dataset], keep: float = 0.01, quantile: float = 0.95
    ) -> Neurons:
        """Neurons of a value and of its opposed values, from the `activation_shares` of answers that speak for each."""
        rivals = [name for name in opposed_values(value) if name in shares]
        if value not in shares or not rivals:
            raise WorkbenchError(f"LAPE's neurons of {value} were asked for.",
                                 found=f"shares for {', '.join(shares) or 'nothing'}",
                                 allowed=f"{value}, and one or more of {', '.join(opposed_values(value))}")  # fmt: skip
        for own in shares.values():
            check_fingerprint("Shares of active neurons", own.attrs, model)
        names, layers = list(shares), shares[value]["layer"].values
        p = np.stack([shares[name]["active"].sel(layer=layers).values for name in names])  # (class, layer, neuron)
        bar = np.quantile(p, quantile)
        with np.errstate(invalid="ignore"):  # of neurons that are never on, which the bar drops
            spread = np.asarray(np.where(p.max(0) > bar, entropy(p, axis=0), np.inf))
        order = np.argsort(spread, axis=None, kind="stable")[: max(1, round(keep * spread.size))]
        layer, neuron = np.unravel_index(order[np.isfinite(spread.ravel()[order])], spread.shape)
        on = p[:, layer, neuron] > bar  # (class, kept)
        own = on[names.index(value)]
        side = np.where(own, 1, np.where(on[[names.index(name) for name in rivals]].any(0), -1, 0))
        table = pd.DataFrame({
            "layer": layers[layer], "neuron": neuron, "side": side, "entropy": spread[layer, neuron],
            **{f"p_{name}": p[k, layer, neuron] for k, name in enumerate(names)},
        })  # fmt: skip
        provenance = {"keep": keep, "quantile": quantile, "bar": float(bar), "opposed": rivals,
                      "n_tokens": {name: held.attrs["n_tokens"] for name, held in shares.items()}}  # fmt: skip
        return Neurons.of(model, value, "LAPE", table[side != 0], layers.tolist(), spread.shape[1], None, provenance)

    def shift(self, layer: int, e: torch.Tensor) -> torch.Tensor:
        (index,) = self.columns(layer, e.device)
        return at(index, -e[..., index], e)


def opposed_values(value: str) -> list[str]:
    """The values of the groups that stand across the circle from a value's own; of both for hedonism."""
    own = groups_of(check_value(value))
    across = {b for a, b in (*AXES, *(axis[::-1] for axis in AXES)) if a in own}
    return [name for name in VALUES if {*groups_of(name)} & across]
