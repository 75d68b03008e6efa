"""SCAV: the closed form of a concept's probe, at the last token, at every layer and every decoding step.

**Rule.** At each layer, at the last prompt token and then at each new token, when it is the last one,

    eps = (logit(target) - w.e - b) / |w| where the target is not met, otherwise 0,        e <- e + eps w / |w|

the shortest push that brings P_V to the target. Prompt tokens before the last stay as they are.

**Parameters.** Those of ConVA with scope "token"; only the layers differ when none are named: all that have a probe.
`direction="down"` is what the paper does to the concept "malicious". No gate unless one is given.

**Coincides** with `ConVA(..., scope="token")` at the same layers: the very same numbers. Against the released ConVA
(scope "all") two things differ: earlier prompt tokens are not steered, and eps is not held from the prompt on. A
token once steered keeps its keys and values, as it would through a cache, also where a generation is not cached.

**Source.** Xu et al., NeurIPS 2024, arXiv 2404.12038.
"""

from dataclasses import dataclass

from .conva import ConVA
from .intervention import check_scope


@dataclass(frozen=True, eq=False, repr=False)
class SCAV(ConVA):
    """Bring P_V to `target` at the last token of every step; see the module's page."""

    scope: str = "token"

    def __post_init__(self):
        check_scope(self.name, self.scope, ("token",))
        if self.layers is None:
            self._set(layers=tuple(self.probes.layers))
        super().__post_init__()
