r"""NeVA: the smallest change of a value's own neurons that reaches a target probability. The workbench's definition.

**Rule.** With S the value's selected neurons in layer l (`select_neurons`), c_i = W_out,i . w_(V,l) their effects on
the probe's logit, and P_V(e) < target at a steered token,

    D = logit(target) - (w.e + b),        a_S <- a_S + D c_S / |c_S|^2

the solution of min |delta a_S| subject to P_V = target after the block: ConVA's closed form in neuron space. Within
block l nothing else reads a, so the very same edit is made at the block's output,

    e <- e + D u,        u = sum_(i in S) c_i W_out,i / |c_S|^2,        w.u = 1

A token above the target already is left alone, bit for bit. Layers go in order, each sees all earlier edits.

**Parameters.** `target`: P0, in (0, 1). `neurons`: any `Neurons` of the model: by `select_neurons`, by
`NPTI.select`, `LAPE.select` or `DPNLE.select`, or `random_neurons` as the control. `layers`: None takes all that have
selected neurons; layers without any are skipped, and the neurons' repr says which. `gate`: None steers everyone.
`scope`: "token" meets the target at every steered token; "all" and "generated" add the shift of the last prompt token.
`window`: only these answer tokens.

**Coincides** with ConVA where S spans the residual stream evenly (W_S^T W_S a multiple of the identity); otherwise |u|
is larger than ConVA's 1 / |w|, the more so the fewer neurons there are: at a sparse set reaching the target exactly
may need a push that breaks the text. Most of all where the layer's MLP does not write the value itself but finds it in
the stream: take layers where `Neurons.share` is large. Reaching the target says nothing about what the answer does:
random neurons (`random_neurons`) reach it as well.

**Refuses** models with a norm after the MLP (Gemma 2 and 3, OLMo 2), where W_out a is not what is added.

**Source.** Neurons found with value probes and edited at inference by context-aware rules: NeVA, arXiv 2602.07356.
Its formulas are not public to us; selection and edit here are the workbench's own.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import log

import numpy as np
import torch

from ..errors import WorkbenchError
from ..gates import Gate
from ..models import Model
from ..neurons import Neurons, check_writes
from ..probes import Probes
from .intervention import SCOPES, ProbeMethod


@dataclass(frozen=True, eq=False, repr=False)
class NeVA(ProbeMethod):
    """Raise P_V to `target` by some neurons alone; see the module's page. Raises WorkbenchError for other probes."""

    probes: Probes
    value: str
    neurons: Neurons
    target: float = 0.95
    layers: Iterable[int] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    gate: Gate | None = None
    scope: str = "token"
    window: tuple[int, int | None] | None = None

    def __post_init__(self):
        if self.probes.method != "logistic":
            raise WorkbenchError(
                "NeVA was asked for.",
                found=f"probes by {self.probes.method}, whose P is not a probability",
                allowed="probes by 'logistic'",
                do="fit_probes(model, pairs, method='logistic')",
            )
        if not 0 < self.target < 1:
            raise WorkbenchError(f"A target probability of {self.target} was asked for.", allowed="above 0 and below 1")
        held = [layer for layer in self.neurons.indices if layer in self.probes.layers]
        wanted: Iterable[int] | None = self.layers
        layers = held if wanted is None else [int(layer) for layer in wanted]
        if not layers or not {*layers} <= {*held}:
            raise WorkbenchError(
                f"NeVA by {self.neurons!r} at layers {layers} was asked for.",
                allowed=f"one or more of {', '.join(map(str, held)) or '(none)'}, which have neurons and probes",
            )
        self._settle(layers, self.scope, SCOPES)
        self._set(_effects={})
        for layer in tuple(self.layers or ()):
            self.effects(layer, torch.device("cpu"))  # neurons that cannot move the probe are told now

    def check(self, model: Model) -> None:
        super().check(model)
        check_writes(model, "NeVA")

    def effects(self, layer: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """c_S (n), in the order of `neurons.indices[layer]`, and u (d_model)."""
        known: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]] = vars(self)["_effects"]
        if (layer, device) not in known:
            writes = self.neurons.writes[(self.neurons.chosen["layer"] == layer).to_numpy()].astype(np.float64)
            w = self.plane(layer, torch.device("cpu"))[0].double().numpy()
            c = writes @ w
            if not np.linalg.norm(c) > 1e-6 * np.linalg.norm(writes) * np.linalg.norm(w):
                raise WorkbenchError(
                    f"NeVA of {self.value} by {self.neurons!r} was asked for.",
                    found=f"neurons at layer {layer} that do not move the probe",
                    allowed="a set that writes along the probe",
                )
            known[layer, device] = (
                torch.from_numpy(c).float().to(device), torch.from_numpy(c @ writes / (c @ c)).float().to(device)
            )  # fmt: skip
        return known[layer, device]

    def gap(self, layer: int, e: torch.Tensor) -> torch.Tensor:
        """D (...): logits that residuals e (..., d_model) lack to the target; exact zeros above it."""
        w, b = self.plane(layer, e.device)
        return (log(self.target / (1 - self.target)) - e @ w - b).clamp(min=0)

    def neuron_shift(self, layer: int, e: torch.Tensor) -> torch.Tensor:
        """Delta a_S (..., n): what the edit adds to the neurons `neurons.indices[layer]` where the residual is e."""
        c, _ = self.effects(layer, e.device)
        return self.gap(layer, e)[..., None] * (c / (c @ c))

    def shift(self, layer: int, e: torch.Tensor) -> torch.Tensor:
        return self.gap(layer, e)[..., None] * self.effects(layer, e.device)[1]

    def probability(self, layer: int, e: torch.Tensor) -> torch.Tensor:
        w, b = self.plane(layer, e.device)
        return torch.sigmoid(e @ w + b)
