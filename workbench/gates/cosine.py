r"""CosineGate: steer where the residual points along a condition direction.

**Rule.** With e the residual at the gate's layer and the last prompt token, and c = mean of the related prompts'
residuals - mean of the unrelated ones', open where

    cos(e, c) = e.c / (|e| |c|) > threshold

**Parameters.** As `ProbeGate`, without C. Scores are cosines, -1 to 1; since the residual stream has a large mean,
those of all prompts often lie close together, far from 0, and only their order tells. No norm of e counts, so that a
prompt is not opened for being long or early.

**Against the published one.** CAST takes cos(e, proj_c e) = |cos(e, c)|, which forgets on which side of c a prompt
lies, by default of the mean over the prompt's tokens, with c the first principal component of the contrast; its
released code passes the projection through tanh first, and picks the threshold by F1 (`calibrate(by="f1")`). Here sign
and last token are kept, as everywhere in the workbench. Among prompts of equal norm it orders as `ProbeGate` does where
both classes scatter alike in all directions.

**Source.** Lee et al., ICLR 2025, arXiv 2409.05907 (conditional activation steering, CAST).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch

from ..models import Model
from .residual import ResidualGate


@dataclass(frozen=True, eq=False, repr=False)
class CosineGate(ResidualGate):
    """Open where the residual's cosine with `weight` exceeds `threshold`; see the module's page."""

    scale: ClassVar[str] = "cosine"

    @classmethod
    def fit(
        cls,
        model: Model,
        related: Any,
        unrelated: Any,
        layer: int | None = None,
        folds: int = 5,
        max_false_positive: float = 0.01,
        seed: int = 0,
        tokens: str = "last",
        per_token: bool = False,
    ) -> Self:
        """The mean difference of all prompts; scores and threshold from directions that did not see the prompt.

        related, unrelated, errors: as `ProbeGate.fit`.
        """
        return cls._fit(model, related, unrelated, layer, folds, max_false_positive, seed, tokens, per_token)

    @classmethod
    def fit_rows(
        cls, X: np.ndarray, y: np.ndarray, fold: np.ndarray, **settings: Any
    ) -> tuple[dict[str, Any], np.ndarray]:
        X, score = X.astype(np.float64), np.empty(len(y))

        def difference(seen: np.ndarray) -> np.ndarray:
            return X[seen & y].mean(0) - X[seen & ~y].mean(0)

        for own in np.unique(fold):
            score[fold == own] = _cosine(torch.from_numpy(X[fold == own]), torch.from_numpy(difference(fold != own)))
        return {"weight": difference(np.ones_like(y)).astype(np.float32)}, score

    def score(self, residual: torch.Tensor) -> torch.Tensor:
        return _cosine(residual.float(), self.direction(residual.device))

    @property
    def shown(self) -> str:
        return f"layer {self.layer}, cos > {self.threshold:.3f}"


def _cosine(e: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return e @ c / (e.norm(dim=-1) * c.norm())
