"""AlwaysOpen and Never: the gates that read nothing, the ablation without gate and the control of no steering."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from .gate import Gate


@dataclass(frozen=True)
class AlwaysOpen(Gate):
    """Every prompt is steered: the ablation without gate."""

    reads, layer = "nothing", None

    def score(self, residual: torch.Tensor) -> torch.Tensor:
        return torch.ones(residual.shape[:-1], device=residual.device)

    def decide(self, score: torch.Tensor) -> torch.Tensor:
        return score > 0

    def scores(self, prompts: Iterable[str], instruction: str | None = None) -> np.ndarray:
        prompts = list(prompts)
        return self.score(torch.empty(len(prompts), 0)).numpy()


@dataclass(frozen=True)
class Never(AlwaysOpen):
    """No prompt is steered: the control that must equal the base model."""

    def score(self, residual: torch.Tensor) -> torch.Tensor:
        return torch.zeros(residual.shape[:-1], device=residual.device)
