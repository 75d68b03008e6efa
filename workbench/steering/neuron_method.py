"""What the methods share that edit MLP neurons where they are: which layers, which tokens, which neurons."""

from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
import pandas as pd
import torch

from ..errors import WorkbenchError
from ..neurons import Neurons
from .intervention import Intervention, check_scope


class NeuronMethod(Intervention, abstract=True):
    """Edits activations a (..., d_mlp) at the input of the down projection. Exact in every architecture with one dense
    MLP per layer, also where a norm follows it; what the residual stream makes of it is another matter.
    """

    site: ClassVar[str] = "neurons"
    neurons: Neurons

    def _settle(self, edited: pd.DataFrame, layers: Iterable[int] | None, scope: str, scopes: Sequence[str]) -> None:
        """Check layers and scope. edited: the rows of `neurons.chosen` that this method changes."""
        held = sorted({int(layer) for layer in edited["layer"]})
        chosen = held if layers is None else sorted({int(layer) for layer in layers})
        if not chosen or not {*chosen} <= {*held}:
            raise WorkbenchError(f"{self.name} by {self.neurons!r} at layers {chosen} was asked for.",
                                 allowed=f"one or more of {', '.join(map(str, held)) or '(none)'}, which have neurons "
                                 "to edit")  # fmt: skip
        check_scope(self.name, scope, scopes)
        self._set(layers=tuple(chosen), _edited=edited[edited["layer"].isin(chosen)], _columns={})

    def columns(self, layer: int, device: torch.device, *names: str) -> tuple[torch.Tensor, ...]:
        """Indices of the layer's edited neurons, and columns of `neurons.chosen` beside them, on a device."""
        known = vars(self)["_columns"]
        if (layer, device) not in known:
            own = vars(self)["_edited"].query("layer == @layer")
            known[layer, device] = tuple(
                torch.tensor(own[name].to_numpy(dtype=np.int64 if name == "neuron" else np.float32), device=device)
                for name in ("neuron", *names)
            )
        return known[layer, device]


def at(index: torch.Tensor, change: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """`change` (..., n) at the coordinates `index` (n) of zeros like a (..., d_mlp)."""
    return torch.zeros_like(a).index_copy_(-1, index, change.expand(*a.shape[:-1], len(index)))
