r"""NPTI: push a value's neurons as far as they go when it is spoken for, and hold down those of its opposite pole.

**Rule.** p+ and p- are the shares of generated tokens at which a neuron is on (a > 0) under prompts that ask for a high
and a low level of the value (`activation_shares`), delta = p+ - p-, a95 its 95 % quantile under the high ones. At
every steered token

    a_i <- a_i + gamma a95_i sigmoid(10 (delta_i - .15))     where delta_i >= .1
    a_i <- min(a_i, 0)                                       where delta_i <= -.1

**Selection** (`NPTI.select`): each pole takes all neurons with |delta| >= `least`, and at least the `at_least` of
largest |delta| > 0. The paper's 2,000 are for Llama-3-8B, .44 % of its 458,752 neurons; None takes 2,000 or that
share, whichever is smaller: `Neurons.provenance["at_least"]` says how many. Neurons that are off at 95 % of the tokens
are pushed by 0.

**Parameters.** `gamma`: strength of the push. `suppress`: hold the opposite pole down too; with gamma=0 and
suppress=False it is the base model bit for bit. `gate`, `layers`: None for everyone and all layers with neurons.
`scope`: "token" only, since min(a, 0) depends on the token. `window`: only these answer tokens.

**Misleads.** In gated MLPs a = act(gate) * up: its sign, and so "on", is not that of act(gate), which the paper counts
and edits.

**Source.** Deng et al., "Neuron-based Personality Trait Induction in Large Language Models", ICLR 2025, arXiv
2410.12327. The released code leaves out one neuron in ten at random at each step, reads a95 from a histogram from 0 to
3, and edits generated tokens only, so that the first of the answer is not; here none is left out, a95 is the quantile
itself, at least 0, and the last prompt token is edited too.
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
from ..neurons import Neurons
from ..probes.files import check_fingerprint
from .neuron_method import NeuronMethod, at

PUBLISHED, OF = 2000, 458_752


@dataclass(frozen=True, eq=False, repr=False)
class NPTI(NeuronMethod):
    """Push a value's neurons, hold down its opposite pole's; see the module's page."""

    neurons: Neurons
    gamma: float = 1.0
    suppress: bool = True
    layers: Iterable[int] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    gate: Gate | None = None
    scope: str = "token"
    window: tuple[int, int | None] | None = None

    def __post_init__(self):
        chosen = self.neurons.chosen
        if missing := {"side", "delta", "a95"} - {*chosen}:
            raise WorkbenchError(f"NPTI by {self.neurons!r} was asked for.", found=f"no {', '.join(sorted(missing))}",
                                 do="Select them by NPTI.select.")  # fmt: skip
        if not isfinite(self.gamma):
            raise WorkbenchError(f"A gamma of {self.gamma} was asked for.", allowed="a finite number")
        edited = chosen if self.suppress else chosen[chosen["side"] > 0]
        self._settle(edited, self.layers, self.scope, ("token",))

    @staticmethod
    def select(
        model: Model, value: str, high: xr.Dataset, low: xr.Dataset, least: float = 0.1, at_least: int | None = None
    ) -> Neurons:
        """Neurons of a value from `activation_shares` under prompts that ask for a high and a low level of it."""
        for shares in (high, low):
            check_fingerprint("Shares of active neurons", shares.attrs, model)
        if high["layer"].values.tolist() != low["layer"].values.tolist():
            raise WorkbenchError("NPTI's neurons were asked for.", found="high and low read at different layers")
        delta = high["active"].values - low["active"].values
        if at_least is None:
            at_least = min(PUBLISHED, round(PUBLISHED / OF * delta.size))
        tables = []
        for side in (1, -1):
            order = np.argsort(-side * delta, axis=None, kind="stable")
            ordered = side * delta.ravel()[order]
            kept = order[(ordered > 0) & ((ordered >= least) | (np.arange(delta.size) < at_least))]
            layer, neuron = np.unravel_index(kept, delta.shape)
            numbers = {"delta": delta, "a95": high["a95"].values, "p_high": high["active"].values,
                       "p_low": low["active"].values}  # fmt: skip
            tables.append(pd.DataFrame({
                "layer": high["layer"].values[layer], "neuron": neuron, "side": side,
                **{name: array[layer, neuron] for name, array in numbers.items()},
            }))  # fmt: skip
        provenance = {"least": least, "at_least": at_least, "n_tokens": [high.attrs["n_tokens"], low.attrs["n_tokens"]]}
        return Neurons.of(model, value, "NPTI", pd.concat(tables), high["layer"].values.tolist(), delta.shape[1],
                          None, provenance)  # fmt: skip

    def shift(self, layer: int, e: torch.Tensor) -> torch.Tensor:
        index, side, delta, a95 = self.columns(layer, e.device, "side", "delta", "a95")
        push = self.gamma * a95.clamp(min=0) * torch.sigmoid(10 * (delta - 0.15))
        return at(index, torch.where(side > 0, push, -e[..., index].clamp(min=0)), e)
