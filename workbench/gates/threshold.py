"""What gates with a threshold share: how it is chosen, and what each choice costs.

**Rule.** Open where score > threshold. With scores of prompts that the gate was not fitted on, related (about
values) and unrelated, `calibrate` takes the lowest threshold that at most the share `max_false_positive` of the
unrelated ones exceeds, or the one of highest F1, or of highest Youden's J = TPR - FPR (Youden 1950). Of all
thresholds with these decisions it is the one midway between the scores on its two sides.

**Which one.** A false-positive rate says what a gate is for: how rarely it may touch what is not about values. F1
weighs precision, and so moves with the share of related prompts in the table; J does not, and counts both errors
alike. All three are chosen on the very scores that they are reported on: `Gate.report` on other prompts is the
honest figure.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from scipy.special import expit, logit

from ..errors import WorkbenchError
from ..models import Model
from ..probes.files import load_arrays, save_arrays
from ..probes.scores import area_under_roc, auroc_interval
from ..rates import wilson
from .gate import Gate, texts_of, unpack_gate

RULES = ("false_positive", "f1", "youden")


class ThresholdGate(Gate, abstract=True):
    """Open where the score exceeds `threshold`. Subclasses are frozen dataclasses.

    threshold; criterion: how it was chosen, in words. oof: DataFrame prompt, related, score (of a reader that was not
    fitted on the prompt), and `position` where each token of a prompt has a row; None before there is one.
    """

    scale: ClassVar[str] = "probability"  # or "cosine": what scores are
    threshold: float
    criterion: str
    oof: pd.DataFrame | None

    def __post_init__(self):
        if self.oof is None:
            return
        if len(bad := self.oof.loc[~np.isfinite(self.oof["score"]), "prompt"]) or self.oof["related"].nunique() < 2:
            raise WorkbenchError(
                f"A {type(self).__name__} was to be made with the scores of prompts.",
                found=f"no finite score of {bad.iloc[0]!r}" if len(bad) else "prompts of one side only",
                allowed="finite scores of related and of unrelated prompts",
            )

    def decide(self, score: torch.Tensor) -> torch.Tensor:
        if bool(score.isnan().any()):
            raise WorkbenchError(
                f"{self!r} was to decide.",
                found="a score that is NaN",
                do="Load the model with dtype='float32', or look at what was steered before.",
            )
        return score > self.threshold

    # -- the threshold ---------------------------------------------------------------------------------------

    def curve(self) -> pd.DataFrame:
        """What every threshold costs, highest first: ROC and precision-recall with 95 % Wilson intervals.

        Columns threshold, open (share of related prompts that open it: TPR, recall), false_positive (of unrelated
        ones), precision (of those that open it, how many are related: NaN where none does; it depends on the table's
        mix), and for each `_low` and `_high`, point by point. Equal prompts, and the tokens of one, are one trial.
        """
        at, hits, alarms = self._counts()
        trials, rows = self._trials(), hits[-1] + alarms[-1]  # the last threshold opens for all
        opened = hits + alarms
        with np.errstate(invalid="ignore"):
            shares = {"open": (hits / hits[-1], trials[True]), "false_positive": (alarms / alarms[-1], trials[False]),
                      "precision": (hits / opened, opened * sum(trials.values()) / rows)}  # fmt: skip
        columns = {"threshold": at}
        for name, (share, n) in shares.items():
            bounds = [wilson(float(rate), k) for rate, k in zip(share, np.broadcast_to(n, at.shape), strict=True)]
            columns |= {name: share, **dict(zip((f"{name}_low", f"{name}_high"), np.array(bounds).T, strict=True))}
        return pd.DataFrame(columns)

    def calibrate(self, max_false_positive: float | None = None, by: str = "false_positive") -> Self:
        """The same gate with another threshold, chosen on the scores of `oof`; see the module's page.

        by: "false_positive" (at most `max_false_positive`, None: .01), "f1" or "youden"; of equally good thresholds
        the highest for the last two, which opens for the fewest prompts.
        """
        if by not in RULES or (by != "false_positive" and max_false_positive is not None):
            raise WorkbenchError(
                f"A threshold by {by!r} with max_false_positive={max_false_positive} was asked for.",
                allowed="'false_positive' with a rate, or 'f1' or 'youden' without",
            )
        rate = 0.01 if max_false_positive is None else max_false_positive
        if not 0 <= rate < 1:
            raise WorkbenchError(f"A false positive rate of {rate} was asked for.", allowed="0 up to 1")
        at, hits, alarms = self._counts()
        if by == "false_positive":
            best = int(np.flatnonzero(alarms <= rate * alarms[-1] + 1e-9)[-1])
        else:
            f1, j = 2 * hits / (hits + alarms + hits[-1]), hits / hits[-1] - alarms / alarms[-1]
            best = int(np.round(f1 if by == "f1" else j, 12).argmax())  # rounded, so that rounding breaks no tie
        bar, above = float(at[best]), float(at[best - 1])  # the highest closed score, the lowest open one
        if not best:
            threshold = bar  # nothing opens it
        elif np.isinf(bar):
            threshold = float(np.nextafter(above, -np.inf))  # everything does
        else:
            middle = (bar + above) / 2
            if self.scale == "probability":
                middle = float(expit(logit(np.clip([bar, above], 1e-9, 1 - 1e-9)).mean()))
            threshold = middle if bar <= middle < above else bar
        words = {"false_positive": f"at most {rate:g} of unrelated prompts", "f1": "highest F1", "youden": "highest J"}
        return replace(self, threshold=threshold, criterion=words[by])  # pyright: ignore[reportArgumentType]

    # -- what it costs ---------------------------------------------------------------------------------------

    @property
    def rates(self) -> dict[str, float]:
        """Of prompts it was not fitted on: share of related (`open`) and of unrelated ones (`false_positive`) that open
        the gate, `auroc`, `average_precision` (which depends on the table's mix).
        """
        table = self._told()
        y, score = table["related"].to_numpy(bool), table["score"].to_numpy()
        opened = self.decide(torch.from_numpy(score.copy())).numpy()
        return {
            "open": float(opened[y].mean()),
            "false_positive": float(opened[~y].mean()),
            "auroc": area_under_roc(score, y),
            "average_precision": float(average_precision(score, y)),
        }

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals of `rates`: Wilson, Newcombe's for AUROC, and for average precision 1,000 bootstrap draws of
        prompts, each side by itself (which says nothing where the order is perfect).
        """
        table, rates, trials = self._told(), self.rates, self._trials()
        y, draws = table["related"].to_numpy(bool), np.random.default_rng(0)
        prompt, names = pd.factorize(table["prompt"])
        times = np.zeros((1000, len(names)))
        for side in (True, False):
            own = np.unique(prompt[y == side])
            times[:, own] = draws.multinomial(len(own), np.full(len(own), 1 / len(own)), 1000)
        score = table["score"].to_numpy()
        drawn = np.concatenate([average_precision(score, y, some[:, prompt]) for some in np.split(times, 20)])
        # Of unequal sides the harmonic mean: it gives Newcombe's error for them, but for terms in 1/n^2.
        n = 2 / (1 / trials[True] + 1 / trials[False])
        low, high = np.quantile(drawn, [0.025, 0.975])
        return {
            "open": wilson(rates["open"], trials[True]),
            "false_positive": wilson(rates["false_positive"], trials[False]),
            "auroc": auroc_interval(rates["auroc"], n),
            "average_precision": (float(low), float(high)),
        }

    def _counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each threshold that decides otherwise than its neighbours, highest first; related and unrelated rows that it
        opens for.
        """
        table = self._told()
        y, score = table["related"].to_numpy(bool), table["score"].to_numpy(np.float64)
        at = np.append(np.unique(score)[::-1], -np.inf)
        hits, alarms = (len(own) - np.searchsorted(np.sort(own), at, side="right") for own in (score[y], score[~y]))
        return at, hits, alarms

    def _trials(self) -> dict[bool, int]:
        """Different prompts on each side."""
        table = self._told()
        return {side: table.loc[table["related"] == side, "prompt"].nunique() for side in (True, False)}

    def _told(self) -> pd.DataFrame:
        if self.oof is None:
            raise WorkbenchError(
                f"What {self!r} does to related and unrelated prompts was asked for.",
                found="a gate that was never tried on any",
                do="gate = gate.measured(related, unrelated)",
            )
        return self.oof

    @property
    @abstractmethod
    def shown(self) -> str:
        """What it reads and what it asks, for its repr."""

    def __repr__(self) -> str:
        costs = ""
        if self.oof is not None:
            rates = self.rates
            costs = (f": opens {rates['open']:.0%} of related and {rates['false_positive']:.1%} of unrelated prompts, "
                     "out of fold")  # fmt: skip
        return f"{type(self).__name__}({self.shown}{', per token' * self.per_token}{costs})"

    # -- files -----------------------------------------------------------------------------------------------

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays: dict[str, np.ndarray] = {}
        meta: dict[str, Any] = {"gate": type(self).__name__}
        for name in (field.name for field in fields(self)):  # pyright: ignore[reportArgumentType]
            if name in ("model", "classifier"):  # attached, not saved
                continue
            part = getattr(self, name)
            if isinstance(part, np.ndarray):
                arrays[name] = part
            elif isinstance(part, pd.DataFrame):
                arrays["oof"] = part["score"].to_numpy(np.float64)
                meta["oof"] = {column: part[column].tolist() for column in part if column != "score"}
            else:
                meta[name] = part
        return arrays, meta

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], model: Model | None) -> Self:
        settings = {name: part for name, part in {**meta, **arrays}.items() if name not in ("gate", "kind", "oof")}
        if meta["oof"] is not None:
            settings["oof"] = pd.DataFrame({**meta["oof"], "score": arrays["oof"]})
        return cls(**{"oof": None, **settings, **cls._attached(model)})

    @classmethod
    def _attached(cls, model: Model | None) -> dict[str, Any]:
        """What `unpack` gives to a gate beside what is in its file."""
        return {}

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file; returns its path."""
        return save_arrays(path, "gate", *self.pack())

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> Self:
        """Read what `save` wrote. With `model` it is checked and can score prompts."""
        gate = unpack_gate(*load_arrays(path, "gate"), model)
        if not isinstance(gate, cls):
            raise WorkbenchError(f"A {cls.__name__} was to be read.", found=f"a {type(gate).__name__}")
        return gate


def average_precision(score: np.ndarray, y: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
    """Area under the steps of precision over recall, ties taken at once; times (draw, n): how often each counts."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    counts = np.ones_like(score, float) if times is None else times
    hits, opened = (np.cumsum(own[..., order], -1)[..., ends] for own in (counts * y, counts))
    return (np.diff(hits, prepend=0) * hits / np.maximum(opened, 1)).sum(-1) / hits[..., -1]


def sides(related: Any, unrelated: Any) -> tuple[list[str], np.ndarray]:
    """Prompts, and which are related (prompt, bool). WorkbenchError for an empty side, or a prompt on both."""
    lists = texts_of(related), texts_of(unrelated)
    for name, own in zip(("related", "unrelated"), lists, strict=True):
        if not all(prompt.strip() for prompt in own) or not own:
            raise WorkbenchError(
                "Related and unrelated prompts were asked for.",
                found=f"{'an empty prompt among the' if own else '0'} {name} prompts",
            )
    if both := set(lists[0]) & set(lists[1]):
        raise WorkbenchError(
            "Related and unrelated prompts were asked for.",
            found=f"a prompt that is related and unrelated: {min(both)!r}",
        )
    return lists[0] + lists[1], np.repeat([True, False], [len(lists[0]), len(lists[1])])
