"""Random direction: the control beside every method, as long a push, to nowhere in particular.

**Rule.** One random unit vector r_l per layer (isotropic, drawn once from `seed`); where the method `of`
would add a shift s, this adds |s| r_l. For a method whose shift depends on the state (ConVA, scopes "all" and
"generated") the lengths are those of the method's own run on the same prompt, found in a pass of its own:
earlier random shifts do not lengthen later ones. With scope "token", and for LoRA, they follow the rule at the
state that the random shifts produced. Where `of` edits neurons, r_l is a direction among them.

**Parameters.** `of`: the intervention to be matched; its layers, site, gate, scope and window are taken
over. `seed`: the directions.
"""

from dataclasses import dataclass

import torch

from .intervention import Intervention


@dataclass(frozen=True, eq=False, repr=False)
class RandomDirection(Intervention):
    """A norm-matched random direction in place of another method's; see the module's page."""

    of: Intervention
    seed: int = 0

    def __post_init__(self):
        taken = {name: getattr(self.of, name) for name in ("layers", "gate", "scope", "site", "window")}
        self._set(**taken, matched=self.of, _directions={})

    def direction(self, layer: int, like: torch.Tensor) -> torch.Tensor:
        """The unit vector of a layer."""
        known: dict[int, torch.Tensor] = vars(self)["_directions"]
        if layer not in known:
            draw = torch.randn(like.shape[-1], generator=torch.Generator().manual_seed(1_000_003 * self.seed + layer))
            known[layer] = draw / draw.norm()
        return known[layer].to(like.device)

    def redirect(self, layer: int, shift: torch.Tensor) -> torch.Tensor:
        """Shifts (..., d) turned into the random direction, lengths kept."""
        return shift.norm(dim=-1, keepdim=True) * self.direction(layer, shift)

    def shift(self, layer: int, e: torch.Tensor) -> torch.Tensor:
        return self.redirect(layer, self.of.shift(layer, e))

    def probability(self, layer: int, e: torch.Tensor) -> torch.Tensor | None:
        return self.of.probability(layer, e)
