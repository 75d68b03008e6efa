"""What every gate answers, the table of what it does to prompts, and how a saved one comes back."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from ..errors import WorkbenchError
from ..models import Model
from ..rates import wilson


class Gate(ABC):
    """A frozen value that scores prompts and decides on scores.

    reads: "residual", "text" (of the bare question) or "nothing". layer: the block whose output it reads, None where it
    reads none. per_token: it decides anew at each steered token, on that token's residual, not once per prompt.
    """

    registry: ClassVar[dict[str, type["Gate"]]] = {}
    reads: ClassVar[str] = "residual"
    layer: int | None
    per_token: bool = False

    def __init_subclass__(cls, abstract: bool = False):
        if not abstract:
            Gate.registry[cls.__name__] = cls

    @abstractmethod
    def score(self, residual: torch.Tensor) -> torch.Tensor:
        """Scores (...) of residuals (..., d_model) at the gate's layer; of a prompt, at its last token."""

    @abstractmethod
    def decide(self, score: torch.Tensor) -> torch.Tensor:
        """Open or closed (..., bool) from scores."""

    def __call__(self, residual: torch.Tensor) -> torch.Tensor:
        """Open or closed (..., bool) from residuals (..., d_model)."""
        return self.decide(self.score(residual))

    @abstractmethod
    def scores(self, prompts: Iterable[str], instruction: str | None = None) -> np.ndarray:
        """Scores of prompts (prompt), float32, as the gate would find them in a forward pass of the chat."""

    def opens(self, prompts: Iterable[str], instruction: str | None = None) -> np.ndarray:
        """Open or closed (prompt, bool)."""
        return self.decide(torch.from_numpy(self.scores(prompts, instruction))).numpy()

    def report(self, prompts: Any, instruction: str | None = None) -> pd.DataFrame:
        """For which share of prompts the gate opens: kind, related, n, open, low, high (Wilson, 95 %).

        prompts: texts, or a table with a column `question` or `prompt`; its `kind` and `related`, where it has them
        (`load_unrelated`), say what is counted apart. Honest for prompts that neither fit nor threshold has seen, such
        as the test split.
        """
        texts = texts_of(prompts)
        if not texts:
            raise WorkbenchError("What a gate does to prompts was asked for.", found="no prompts")
        table = pd.DataFrame({"kind": "all", "related": None, "open": self.opens(texts, instruction)})
        if isinstance(prompts, pd.DataFrame):
            table = table.assign(**{name: prompts[name].to_numpy() for name in ("kind", "related") if name in prompts})
        counted = table.groupby(["kind", "related"], sort=False, dropna=False)["open"].agg(n="size", open="mean")
        bounds = [wilson(share, n) for share, n in zip(counted["open"], counted["n"], strict=True)]
        return counted.assign(**dict(zip(("low", "high"), np.array(bounds).T, strict=True))).reset_index()

    def check(self, model: Model) -> None:  # noqa: B027 (a gate without weights belongs to every model)
        """WorkbenchError unless the gate belongs to this model."""

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and plain settings that `unpack_gate` makes the gate of."""
        return {}, {"gate": type(self).__name__}

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], model: Model | None) -> "Gate":
        return cls()


def unpack_gate(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], model: Model | None = None) -> Gate:
    """The gate that `pack` took apart. With `model` it is checked against it, and can score prompts."""
    if meta.get("gate") not in Gate.registry:
        raise WorkbenchError(f"A gate {meta.get('gate')!r} was to be read.", allowed=", ".join(Gate.registry))
    gate = Gate.registry[meta["gate"]].unpack(arrays, meta, model)
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


def texts_of(prompts: Any) -> list[str]:
    """Prompts as a list: texts, or the column `question` or `prompt` of a table."""
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
