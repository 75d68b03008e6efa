"""Gates: who gets steered. A gate reads a prompt and says whether it is about values at all.

A gate inside a forward pass sees the residual stream at its layer and the last prompt token, before any
intervention, so that its decision is the one `scores` tells for the same prompts.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit, logit

from .activations import capture
from .errors import WorkbenchError
from .models import Model
from .probes.files import check_fingerprint, load_arrays, save_arrays
from .probes.folds import spread
from .probes.linear import cross_validated
from .probes.scores import area_under_roc


class Gate(ABC):
    """What every gate answers. `layer` is the block whose output it reads, None where it reads nothing."""

    layer: int | None

    @abstractmethod
    def score(self, residual: torch.Tensor) -> torch.Tensor:
        """Scores (row) of residuals (row, d_model) at the gate's layer and the last prompt token."""

    @abstractmethod
    def decide(self, score: torch.Tensor) -> torch.Tensor:
        """Open or closed (row, bool) from scores."""

    def __call__(self, residual: torch.Tensor) -> torch.Tensor:
        """Open or closed (row, bool) from residuals (row, d_model)."""
        return self.decide(self.score(residual))

    @abstractmethod
    def scores(self, prompts: Iterable[str], instruction: str | None = None) -> np.ndarray:
        """Scores of prompts, as the gate would find them in a forward pass of the chat."""

    def opens(self, prompts: Iterable[str], instruction: str | None = None) -> np.ndarray:
        """Open or closed (bool) for each prompt."""
        return self.decide(torch.from_numpy(self.scores(prompts, instruction))).numpy()

    def check(self, model: Model) -> None:  # noqa: B027 (a gate without weights belongs to every model)
        """WorkbenchError unless the gate belongs to this model."""

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {}, {"gate": type(self).__name__}


@dataclass(frozen=True)
class AlwaysOpen(Gate):
    """Every prompt is steered: the ablation without gate."""

    layer = None

    def score(self, residual: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(residual), device=residual.device)

    def decide(self, score: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(score), dtype=torch.bool, device=score.device)

    def scores(self, prompts: Iterable[str], instruction: str | None = None) -> np.ndarray:
        return np.ones(len(list(prompts)), np.float32)


@dataclass(frozen=True)
class Never(AlwaysOpen):
    """No prompt is steered: the control that must equal the base model."""

    def score(self, residual: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(residual), device=residual.device)

    def decide(self, score: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(score), dtype=torch.bool, device=score.device)

    def scores(self, prompts: Iterable[str], instruction: str | None = None) -> np.ndarray:
        return np.zeros(len(list(prompts)), np.float32)


@dataclass(frozen=True, eq=False, repr=False)
class ProbeGate(Gate):
    """Logistic gate on the model's own residual at the last prompt token: open where P(related) > threshold.

    weight (d_model), bias: raw residual units. threshold: set on out-of-fold scores, so that at most the
    share `max_false_positive` of the unrelated prompts opened it. oof: DataFrame prompt, related, score (out
    of fold). The published gate is a text classifier on the bare question instead (Jin et al. 2025).
    """

    layer: int
    weight: np.ndarray
    bias: float
    threshold: float
    max_false_positive: float
    oof: pd.DataFrame
    provenance: dict[str, Any] = field(default_factory=dict)
    model: Model | None = None

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
    ) -> "ProbeGate":
        """Fit on prompts that are about values and prompts that are not.

        related, unrelated: texts, or tables with a column `question` or `prompt`. layer: None takes the layer
        of best out-of-fold AUROC, the earliest of ties (a gate before the first steered layer costs no pass
        of its own). Equal prompts stay in one fold. Raises WorkbenchError for too few prompts, or a prompt in
        both lists.
        """
        lists = _texts(related), _texts(unrelated)
        if both := set(lists[0]) & set(lists[1]):
            raise WorkbenchError(
                "A gate was to be fitted.", found=f"a prompt that is related and unrelated: {min(both)!r}"
            )
        prompts, y = lists[0] + lists[1], np.repeat([True, False], [len(lists[0]), len(lists[1])])
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
            acts = capture(model, prompts, layers=None if layer is None else [layer], chat=True)
        fits = [cross_validated(X, y, fold, "logistic", C) for X in acts.values]
        best = int(np.argmax([area_under_roc(held_out, y) for _, held_out in fits]))
        (weight, bias), held_out = fits[best]
        score = torch.sigmoid(torch.from_numpy(held_out)).numpy()
        provenance = {**acts.attrs, "C": C, "folds": folds, "seed": seed}
        gate = cls(
            int(acts["layer"][best]),
            weight.astype(np.float32),
            bias,
            0.5,
            max_false_positive,
            pd.DataFrame({"prompt": prompts, "related": y, "score": score}),
            provenance,
            model,
        )
        return gate.calibrate(max_false_positive)

    def calibrate(self, max_false_positive: float = 0.01) -> "ProbeGate":
        """The same gate with the lowest threshold that at most this share of unrelated prompts exceeds, out
        of fold.

        Of all thresholds with these decisions it is the one midway (in logits) between the scores on its two
        sides.
        """
        if not 0 <= max_false_positive < 1:
            raise WorkbenchError(f"A false positive rate of {max_false_positive} was asked for.", allowed="0 up to 1")
        unrelated = np.sort(self.oof.loc[~self.oof["related"], "score"].to_numpy())[::-1]
        bar = unrelated[int(max_false_positive * len(unrelated) + 1e-9)]
        above = self.oof.loc[self.oof["score"] > bar, "score"].min()  # NaN: nothing scores higher
        threshold = float(bar if np.isnan(above) else expit(logit(np.clip([bar, above], 1e-9, 1 - 1e-9)).mean()))
        return replace(self, threshold=threshold, max_false_positive=max_false_positive)

    @property
    def rates(self) -> dict[str, float]:
        """Out of fold: share of related (`open`) and of unrelated prompts (`false_positive`) that open the
        gate, `auroc`.
        """
        y, score = self.oof["related"].to_numpy(bool), self.oof["score"].to_numpy()
        return {
            "open": float((score[y] > self.threshold).mean()),
            "false_positive": float((score[~y] > self.threshold).mean()),
            "auroc": area_under_roc(score, y),
        }

    def __repr__(self) -> str:
        rates = self.rates
        return (
            f"ProbeGate(layer {self.layer}, P > {self.threshold:.3f}: opens {rates['open']:.0%} of related and "
            f"{rates['false_positive']:.1%} of unrelated prompts, out of fold)"
        )

    def score(self, residual: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(residual.float() @ torch.as_tensor(self.weight, device=residual.device) + self.bias)

    def decide(self, score: torch.Tensor) -> torch.Tensor:
        return score > self.threshold

    def scores(self, prompts: Iterable[str], instruction: str | None = None) -> np.ndarray:
        """P(related) of each prompt, rendered as chat with the instruction before it; always of the unsteered model."""
        if self.model is None:
            raise WorkbenchError(
                "Scores of prompts were asked for.",
                found="a gate that was loaded without its model",
                do="Load it with ProbeGate.load(path, model).",
            )
        prompts = [f"{instruction} {prompt}" if instruction else prompt for prompt in prompts]
        with unsteered(self.model):
            acts = capture(self.model, prompts, layers=[self.layer], chat=True)
        return self.score(torch.from_numpy(acts.values[0])).cpu().numpy()

    def check(self, model: Model) -> None:
        check_fingerprint("A gate", self.provenance, model)

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays = {
            "weight": self.weight,
            "bias": np.array(self.bias),
            "oof": self.oof["score"].to_numpy(np.float64),
            "threshold": np.array(self.threshold),
        }
        meta = {
            "gate": "ProbeGate",
            "layer": self.layer,
            "max_false_positive": self.max_false_positive,
            "provenance": self.provenance,
            "prompts": self.oof["prompt"].tolist(),
            "related": self.oof["related"].tolist(),
        }
        return arrays, meta

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file; returns its path."""
        return save_arrays(path, "gate", *self.pack())

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "ProbeGate":
        """Read what `save` wrote. With `model` it is checked and can score prompts."""
        gate = unpack_gate(*load_arrays(path, "gate"), model)
        assert isinstance(gate, cls)
        return gate


def unpack_gate(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], model: Model | None = None) -> Gate:
    """The gate that `pack` took apart."""
    if meta["gate"] != "ProbeGate":
        return {"AlwaysOpen": AlwaysOpen, "Never": Never}[meta["gate"]]()
    oof = pd.DataFrame({"prompt": meta["prompts"], "related": meta["related"], "score": arrays["oof"]})
    gate = ProbeGate(
        meta["layer"],
        arrays["weight"],
        float(arrays["bias"]),
        float(arrays["threshold"]),
        meta["max_false_positive"],
        oof,
        dict(meta["provenance"]),
        model,
    )
    if model is not None:
        gate.check(model)
    return gate


@contextmanager
def unsteered(model: Model) -> Iterator[None]:
    """Inside, the model runs without the interventions that are on."""
    active = vars(model).setdefault("active", [])
    kept, active[:] = list(active), []
    try:
        yield
    finally:
        active[:] = kept


def _texts(prompts: Any) -> list[str]:
    if isinstance(prompts, pd.DataFrame):
        column = next((name for name in ("question", "prompt") if name in prompts.columns), None)
        if column is None:
            raise WorkbenchError(
                "Prompts of a table were asked for.",
                found=f"columns {list(prompts.columns)}",
                allowed="a column question or prompt",
            )
        prompts = prompts[column]
    if isinstance(prompts, str):
        raise WorkbenchError("A list of prompts was asked for.", found="one string", do="Pass [prompt].")
    return [str(prompt) for prompt in prompts]
