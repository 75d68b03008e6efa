r"""DPN-LE: add the mean difference at the neurons that differ most.

**Rule.** With m_i = mean a_i on positives - mean a_i on negatives at the last token, and Cohen's d_i
(`neuron_contrasts`),

    S = {i : |m_i| above the .995 quantile of its layer's |m|, and |d_i| > .8},        a_S <- a_S + gamma m_S

the same at every prompt and token: CAA in neuron space, on a sparse set. No probe takes part.

**Parameters.** `gamma`: strength; 0 is the base model bit for bit, negative values push away. `layers`: None takes
all with neurons. `gate`: None steers everyone. `scope`: "generated" and "token" add from the last prompt token on,
"all" at every token, prompt and answer. `window`: only these answer tokens.

**Coincides** with CAA's share that passes through these neurons, where all neurons of a layer are taken: W_out m is
what the layer's MLP adds to the mean difference of the residual stream.

**Source.** Zheng et al., "DPN-LE: Dual Personality Neuron Localization and Editing for Large Language Models", 2026,
arXiv 2604.27929. The released code leaves the whole prompt alone, its last token too, and so the first token of the
answer; by default it also weighs the neurons by the rank of |d|, from .75 to 1, which is not offered.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

import numpy as np
import pandas as pd
import torch
import xarray as xr

from ..errors import WorkbenchError
from ..gates import Gate
from ..models import Model
from ..neurons import Neurons, neuron_contrasts
from ..probes.files import check_fingerprint
from .intervention import SCOPES
from .neuron_method import NeuronMethod, at


@dataclass(frozen=True, eq=False, repr=False)
class DPNLE(NeuronMethod):
    """Add `gamma` times the mean difference at the chosen neurons; see the module's page."""

    neurons: Neurons
    gamma: float = 1.0
    layers: Iterable[int] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    gate: Gate | None = None
    scope: str = "generated"
    window: tuple[int, int | None] | None = None

    def __post_init__(self):
        if "difference" not in self.neurons.chosen:
            raise WorkbenchError(f"DPNLE by {self.neurons!r} was asked for.", found="no mean differences",
                                 do="Select them by DPNLE.select or select_neurons.")  # fmt: skip
        if not isfinite(self.gamma):
            raise WorkbenchError(f"A gamma of {self.gamma} was asked for.", allowed="a finite number")
        self._settle(self.neurons.chosen, self.layers, self.scope, SCOPES)

    @staticmethod
    def select(
        model: Model, pairs: pd.DataFrame | xr.Dataset, value: str, layers: Iterable[int] | None = None,
        quantile: float = 0.995, min_d: float = 0.8,
    ) -> Neurons:  # fmt: skip
        """Neurons of a value from pairs of texts, or their `neuron_contrasts`. layers: None takes all they have."""
        contrasts = pairs if isinstance(pairs, xr.Dataset) else neuron_contrasts(model, pairs, layers)
        check_fingerprint("Contrasts of neurons", contrasts.attrs, model)
        held = contrasts["layer"].values.tolist()
        chosen = held if layers is None else sorted({int(layer) for layer in layers})
        if value not in contrasts["value"].values or not chosen or not {*chosen} <= {*held} or not 0 <= quantile < 1:
            raise WorkbenchError(f"DPN-LE's neurons of {value} at layers {chosen}, quantile {quantile}, were wanted.",
                                 allowed=f"{', '.join(map(str, contrasts['value'].values))}; layers "
                                 f"{', '.join(map(str, held))}; 0 up to 1")  # fmt: skip
        own = contrasts.sel(value=value, layer=chosen)
        m, d = own["difference"].values, own["d"].values
        high = np.abs(m) > np.quantile(np.abs(m), quantile, axis=1, keepdims=True)
        layer, neuron = np.nonzero(high & (np.abs(d) > min_d))
        table = pd.DataFrame({"layer": np.array(chosen)[layer], "neuron": neuron, "difference": m[layer, neuron],
                              "d": d[layer, neuron]})  # fmt: skip
        provenance = {**contrasts.attrs, "quantile": quantile, "min_d": min_d}
        return Neurons.of(model, value, "DPN-LE", table, chosen, m.shape[1], None, provenance)

    def shift(self, layer: int, e: torch.Tensor) -> torch.Tensor:
        index, difference = self.columns(layer, e.device, "difference")
        return at(index, self.gamma * difference, e)
