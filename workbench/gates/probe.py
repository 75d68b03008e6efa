"""ProbeGate: a logistic probe of the model's own residual says whether a prompt is about values.

**Rule.** With e the residual at the gate's layer and the last prompt token, open where

    P(related) = sigmoid(w.e + b) > threshold

w, b: one L2 logistic regression (strength `C`) of related against unrelated prompts.

**Parameters.** `layer`: None takes the one of best out-of-fold AUROC, the earliest of ties (a gate before the first
steered layer costs no pass of its own). `max_false_positive`: see `calibrate`. `per_token`, `tokens`: see
`residual.py`. It costs no second model, and knows what the steered model knows; it also learns whatever else tells
the two lists apart, such as "Should" at the start: `report` on prompts of other kinds shows it.

**Source.** Ours; the published gate is a text classifier on the bare question (Jin et al. 2025), `DetectorGate`.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from scipy.special import expit

from ..models import Model
from ..probes.linear import cross_validated
from .residual import ResidualGate


@dataclass(frozen=True, eq=False, repr=False)
class ProbeGate(ResidualGate):
    """Open where the probe's P(related) exceeds `threshold`; see the module's page."""

    bias: float = 0.0

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
        C: float = 1.0,
        tokens: str = "last",
        per_token: bool = False,
    ) -> Self:
        """Fit on prompts that are about values and prompts that are not, and set the threshold on out-of-fold scores.

        related, unrelated: texts, or tables with a column `question` or `prompt`. Equal prompts stay in one fold.
        Raises WorkbenchError for too few prompts, an empty one, or a prompt in both lists.
        """
        return cls._fit(model, related, unrelated, layer, folds, max_false_positive, seed, tokens, per_token, C=C)

    @classmethod
    def fit_rows(
        cls, X: np.ndarray, y: np.ndarray, fold: np.ndarray, **settings: Any
    ) -> tuple[dict[str, Any], np.ndarray]:
        (weight, bias), held_out = cross_validated(X, y, fold, "logistic", **settings)
        return {"weight": weight.astype(np.float32), "bias": float(bias)}, expit(held_out.astype(np.float64))

    def score(self, residual: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(residual.float() @ self.direction(residual.device) + self.bias)

    @property
    def shown(self) -> str:
        return f"layer {self.layer}, P > {self.threshold:.3f}"
