"""What gates on the model's own residual share: fit, layer, folds, tokens.

**Tokens.** A gate is fitted at the last prompt token, where it decides for the whole prompt. With `per_token=True`
it decides anew at each steered token, on that token's own residual, unsteered at the gate's layer: for scopes "token"
and "generated", and with its layer no later than the first steered one. Fitted at the last prompt token, such a gate
reads answer tokens by a rule learnt elsewhere: neither P(related) nor the false-positive rate is promised there.
`fit(..., tokens="all")` learns from every token of the prompts, template included, each with its prompt's label: the
rates are then shares of tokens, and still not of tokens that the model writes.
"""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from ..activations import capture
from ..errors import WorkbenchError
from ..models import Model
from ..probes.files import check_fingerprint
from ..probes.folds import spread
from ..probes.scores import area_under_roc
from .gate import unsteered
from .threshold import ThresholdGate, sides


@dataclass(frozen=True, eq=False, repr=False)
class ResidualGate(ThresholdGate, abstract=True):
    """A gate that reads the residual after block `layer`.

    weight (d_model), float32, raw residual units: the direction. model: for `scores`; a loaded gate may lack it.
    """

    layer: int  # pyright: ignore[reportIncompatibleVariableOverride]
    weight: np.ndarray
    threshold: float
    criterion: str
    oof: pd.DataFrame
    provenance: dict[str, Any] = field(default_factory=dict)
    model: Model | None = None
    per_token: bool = False

    @classmethod
    @abstractmethod
    def fit_rows(
        cls, X: np.ndarray, y: np.ndarray, fold: np.ndarray, **settings: Any
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Fitted fields from residuals (row, d_model), labels and folds; each row's score from the reader that did not
        see its fold.
        """

    @classmethod
    def _fit(
        cls,
        model: Model,
        related: Any,
        unrelated: Any,
        layer: int | None,
        folds: int,
        max_false_positive: float,
        seed: int,
        tokens: str,
        per_token: bool,
        **settings: Any,
    ) -> Self:
        prompts, y = sides(related, unrelated)
        if tokens not in ("last", "all"):
            raise WorkbenchError(f"A gate fitted on tokens {tokens!r} was asked for.", allowed="'last', 'all'")
        fold = np.empty(len(y), int)
        for side in (True, False):
            groups = pd.factorize(pd.Series(prompts)[y == side])[0]
            if folds < 2 or len(set(groups)) < folds:
                raise WorkbenchError(
                    f"A gate with {folds} folds was to be fitted.",
                    allowed="2 folds or more",
                    found=f"{len(set(groups))} different {'related' if side else 'unrelated'} prompts",
                )
            fold[y == side] = spread(groups, folds, seed)
        with unsteered(model):
            acts = capture(model, prompts, None if layer is None else [layer], chat=True, position=tokens)
        table = pd.DataFrame({"prompt": prompts, "related": y})
        if tokens == "all":
            of = acts["text"].values
            table, y, fold = table.iloc[of].reset_index(drop=True), y[of], fold[of]
            table["position"] = acts["position"].values
        fits = [cls.fit_rows(X, y, fold, **settings) for X in acts.values]
        best = int(np.argmax([area_under_roc(score, y) for _, score in fits]))
        fitted, score = fits[best]
        gate = cls(
            layer=int(acts["layer"][best]),
            threshold=0.0,
            criterion="",
            oof=table.assign(score=score.astype(np.float64)),
            provenance={**acts.attrs, "folds": folds, "seed": seed, **settings},
            model=model,
            per_token=per_token,
            **fitted,
        )
        return gate.calibrate(max_false_positive)

    def scores(self, prompts: Iterable[str], instruction: str | None = None) -> np.ndarray:
        """Score of each prompt, rendered as chat with the instruction before it; always of the unsteered model."""
        if self.model is None:
            raise WorkbenchError(
                "Scores of prompts were asked for.",
                found="a gate that was loaded without its model",
                do=f"Load it with {type(self).__name__}.load(path, model).",
            )
        prompts = [f"{instruction} {prompt}" if instruction else prompt for prompt in prompts]
        with unsteered(self.model):
            acts = capture(self.model, prompts, layers=[self.layer], chat=True)
        return self.score(torch.from_numpy(acts.values[0])).numpy()

    def direction(self, device: torch.device) -> torch.Tensor:
        """`weight` on a device, kept there."""
        held: dict[torch.device, torch.Tensor] = vars(self).setdefault("_directions", {})
        if device not in held:
            held[device] = torch.tensor(self.weight, device=device)
        return held[device]

    def check(self, model: Model) -> None:
        check_fingerprint("A gate", self.provenance, model)

    @classmethod
    def _attached(cls, model: Model | None) -> dict[str, Any]:
        return {"model": model}
