"""CAA: contrastive activation addition, the mean difference added.

**Rule.** With v = mean of positives - mean of negatives at the last token of a layer, raw norm kept,

    e <- e + strength * v

the same at every prompt: nothing depends on the state, so nothing is exact either.

**Parameters.** `strength`: the coefficient; 0 is the base model bit for bit, negative values push away.
Released ConVA baselines take .05 to .6 over layers 10-25 of 32; at 1 the text usually breaks. `layers`: None
takes `Probes.choose_layers`. `gate`: None steers everyone. `scope`: "all" adds at every token, prompt and
answer (the baseline of Jin et al.), "generated" from the last prompt token on (Rimsky et al. add after the
prompt's end). `window`: only these answer tokens.

**Source.** Rimsky et al., ACL 2024, arXiv 2312.06681.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

import torch

from ..errors import WorkbenchError
from ..gates import Gate
from ..probes import Probes
from .intervention import ProbeMethod


@dataclass(frozen=True, eq=False, repr=False)
class CAA(ProbeMethod):
    """Add `strength` times the mean difference; see the module's page. Raises WorkbenchError for other probes."""

    probes: Probes
    value: str
    strength: float = 0.4
    layers: Iterable[int] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    gate: Gate | None = None
    scope: str = "all"
    window: tuple[int, int | None] | None = None

    def __post_init__(self):
        if self.probes.method != "mean_difference":
            raise WorkbenchError(
                "CAA was asked for.",
                found=f"probes by {self.probes.method!r}, whose norm means something else",
                allowed="probes by 'mean_difference'",
                do="fit_probes(model, pairs, method='mean_difference')",
            )
        if not isfinite(self.strength):
            raise WorkbenchError(f"A strength of {self.strength} was asked for.", allowed="a finite number")
        self._settle(self.layers, self.scope, ("all", "generated"))

    def shift(self, layer: int, e: torch.Tensor) -> torch.Tensor:
        return (self.strength * self.plane(layer, e.device)[0]).expand(e.shape)
