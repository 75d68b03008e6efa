r"""ScaleNeurons: switch neurons off, damp or amplify them, and see. The plainest edit of a set; no probe takes part.

**Rule.** With S the chosen neurons of a layer and a_i the activation of each at a token,

    a_i <- f a_i        for i in S, which adds (f - 1) a_S W_out,S to what the MLP writes

f = 0 ablates them (zero ablation), f = 1 leaves the base model bit for bit, above 1 amplifies, below 0 turns them
round.

**Parameters.** `factor`: f. `neurons`: any `Neurons` of the model, `random_neurons` as the control. `layers`: None
takes all that have chosen neurons. `gate`: None steers everyone. `scope`: "all" scales at every token, prompt and
answer; "token" from the last prompt token on; both scale each token's own activation. `window`: only these answer
tokens, with scope "token".

**Coincides** without gate, at scope "all", with the model whose rows W_out,S are multiplied by f; with LAPE's edit at
scope "token" and f = 0, up to rounding.

**Misleads.** What follows an ablation need not be what the neuron does: later layers make up for what is missing, and 0
is not what a neuron that is never off is used to. A change of the answer says that the set matters to it, and not that
it carries the value: hold random sets of the same size beside it.

**Source.** Zero ablation of single units: Meyes et al., "Ablation Studies in Artificial Neural Networks", 2019, arXiv
1901.08644. Of neurons chosen for a task in a language model, which they perturb: Wang et al., "Finding Skill Neurons in
Pre-trained Transformer-based Language Models", EMNLP 2022, arXiv 2211.07349.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch

from ..errors import WorkbenchError
from ..gates import Gate
from ..neurons import Neurons
from .neuron_method import NeuronMethod


@dataclass(frozen=True, eq=False, repr=False)
class ScaleNeurons(NeuronMethod):
    """Multiply the activations of some neurons by `factor`; see the module's page."""

    site: ClassVar[str] = "mlp_out"  # where each token's own neurons are read, the prompt's too
    neurons: Neurons
    factor: float = 0.0
    layers: Iterable[int] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    gate: Gate | None = None
    scope: str = "all"
    window: tuple[int, int | None] | None = None

    def __post_init__(self):
        if not isfinite(self.factor):
            raise WorkbenchError(f"A factor of {self.factor} was asked for.", allowed="a finite number")
        self._settle(self.neurons.chosen, self.layers, self.scope, ("all", "token"))
        self._set(_writes={})

    def writes(self, layer: int, device: torch.device) -> torch.Tensor:
        """W_out,S (n, d_model) of a layer, in the order of its chosen neurons, on a device."""
        known: dict[tuple[int, torch.device], torch.Tensor] = vars(self)["_writes"]
        if (layer, device) not in known:
            own = (self.neurons.chosen["layer"] == layer).to_numpy()
            known[layer, device] = torch.from_numpy(self.neurons.writes[own]).float().to(device)
        return known[layer, device]

    def shift(self, layer: int, e: torch.Tensor) -> torch.Tensor:
        (index,) = self.columns(layer, e.device)
        return (self.factor - 1) * (e[..., index] @ self.writes(layer, e.device))
