r"""ConVA: the smallest push along a value's probe that reaches a target probability.

**Rule.** With P_V(e) = sigmoid(w.e + b) the probe at a layer and e the residual stream at the last prompt
token,

    eps = max(0, (logit(target) - w.e - b) / |w|),        e <- e + eps w / |w|

which is the solution of min |eps| subject to P_V(e + eps w/|w|) >= target. Layers go in order, each sees all
earlier shifts, and all of it happens inside the prefill: one forward pass.

**Parameters.** `target`: P0, in (0, 1); a prompt whose P_V is above it already is left alone, bit for bit.
`layers`: None takes every layer with mean probe accuracy above .9 without the last 15 %
(`Probes.choose_layers`). `gate`: None steers everyone (the ablation). `scope`: "all" is the released code,
one eps per prompt and layer, the same vector added at every token, prompt and answer: the target is met
exactly at the last prompt token only. "generated" adds it from there on. "token" is the paper's wording, eps
anew at each token: the target is met at every steered token.

**Source.** Jin et al., ACL 2025, arXiv 2507.11316. With "token" at one layer it is SCAV's closed form (Xu et
al. 2024).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import log

import torch

from ..errors import WorkbenchError
from ..gates import Gate
from ..probes import Probes
from .intervention import SCOPES, ProbeMethod


@dataclass(frozen=True, eq=False, repr=False)
class ConVA(ProbeMethod):
    """Raise P_V to `target`; see the module's page. Raises WorkbenchError for probes that are not logistic."""

    probes: Probes
    value: str
    target: float = 0.95
    layers: Iterable[int] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    gate: Gate | None = None
    scope: str = "all"

    def __post_init__(self):
        if self.probes.method != "logistic":
            raise WorkbenchError(
                "ConVA was asked for.",
                found=f"probes by {self.probes.method}, whose P is not a probability",
                allowed="probes by 'logistic'",
                do="fit_probes(model, pairs, method='logistic')",
            )
        if not 0 < self.target < 1:
            raise WorkbenchError(f"A target probability of {self.target} was asked for.", allowed="above 0 and below 1")
        self._settle(self.layers, self.scope, SCOPES)

    def shift(self, layer: int, e: torch.Tensor) -> torch.Tensor:
        w, b = self.plane(layer, e.device)
        norm = w.norm()
        eps = ((log(self.target / (1 - self.target)) - e @ w - b) / norm).clamp(min=0)
        return eps[..., None] * (w / norm)

    def probability(self, layer: int, e: torch.Tensor) -> torch.Tensor:
        w, b = self.plane(layer, e.device)
        return torch.sigmoid(e @ w + b)
