"""State of the gate tuner: where the threshold of a gate stands, whom it opens for, and prompts that were typed.

All prompts are scored once; whatever a threshold does to them is then a comparison. No widgets.
"""

import math
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import traitlets as t
from scipy.special import expit, logit

from ...errors import WorkbenchError
from ...figures.gating import by_kind
from ...gates import DetectorGate, Gate, ThresholdGate
from ...models import Model
from ...probes.scores import corners
from ...prompts import load_unrelated
from ...rates import wilson

RULES = {"own": "the gate's own", "false_positive": "at most a share of unrelated", "f1": "highest F1",
         "youden": "highest J = TPR − FPR", "hand": "set by hand"}  # fmt: skip
SETTINGS = ("rule", "rate", "threshold", "typed")
MOST = 40  # typed prompts
LOWEST = float(logit(1e-6))
Interval = tuple[float, float, float]
"""A rate and its 95 % interval."""


class GatingState(t.HasTraits):
    """A gate and another threshold for it.

    Settings: threshold, in units of the scores (a probability, or a cosine); rule, one of `RULES`, which sets it, with
    rate, the largest false-positive rate of "false_positive"; "hand" once the threshold was set otherwise. typed:
    prompts, one a line.

    Found by `score`: scored, the typed prompts with their scores. table: all prompts that the gate was tried on (see
    `figures.gating.by_kind`); sides: its rows of the fit, by whether they are related; own_opened: the rows for which
    the gate's own threshold opens. `tuned()`: the gate with this threshold.
    """

    threshold = t.Float()
    rule = t.Unicode("own")
    rate = t.Float(0.01)
    typed = t.Unicode("")
    scored: Any = t.Tuple()

    def __init__(self, gate: Gate, model: Model | None = None, kinds: pd.DataFrame | None = None, **settings: Any):
        if unknown := [name for name in settings if name not in SETTINGS]:
            raise WorkbenchError(f"Settings {', '.join(unknown)} were asked for.", allowed=", ".join(SETTINGS))
        if not isinstance(gate, ThresholdGate):
            raise WorkbenchError("A gate was to be tuned.", found=f"{type(gate).__name__}, which has no threshold",
                                 allowed="ProbeGate, CosineGate or DetectorGate")  # fmt: skip
        held: Any = gate
        if model is not None:
            gate.check(model)
            if "model" in vars(gate) and held.model is None:
                held = replace(held, model=model)
        self.given: ThresholdGate = held
        self.probable = held.scale == "probability"
        world = getattr(model or vars(held).get("model"), "world", None)
        if kinds is None and world and self.can_score:
            kinds = load_unrelated("embedded")
        self.table = by_kind(held._told(), None if kinds is None else self._scored(kinds))
        self._scores = torch.tensor(self.table["score"].to_numpy(np.float64))
        prompts, related = self.table["prompt"].to_numpy(), self.table["related"].to_numpy()
        groups: dict[Any, Any] = dict(self.table.groupby(["related", "place", "kind"]).indices)
        self._kinds = [(bool(key[0]), str(key[2]), at, len({*prompts[at]})) for key, at in groups.items()]
        seen = self.table["seen"].to_numpy(bool)
        self.sides = {side: np.flatnonzero(seen & (related == side)) for side in (True, False)}
        self._trials = held._trials()
        curve = held.curve()  # its turns are all that a picture needs
        turns = curve[corners(curve["false_positive"].to_numpy(), curve["open"].to_numpy())]
        self.curve = {str(name): turns[name].to_numpy() for name in turns}
        self.auroc = held.rates["auroc"], *held.intervals["auroc"]
        self._by_rule = float(held.threshold)
        self._ruled = {self._by_rule: held.criterion}  # thresholds that a rule gave, in words
        self._known: dict[str, float] = {}  # scores of typed prompts
        self._tuned: ThresholdGate | None = None
        self._opened: tuple[ThresholdGate, np.ndarray] | None = None
        self.own_opened = self._opens(self.given)
        super().__init__(threshold=self._by_rule)
        for name in ("rate", "rule", "threshold", "typed"):
            if name in settings:
                setattr(self, name, settings[name])

    def _scored(self, kinds: pd.DataFrame) -> pd.DataFrame:
        """Prompts of kinds, those that the gate was not tried on with their scores."""
        asked = "Prompts of several kinds were to be shown to a gate."
        if not isinstance(kinds, pd.DataFrame) or not {"prompt", "kind"} <= set(kinds.columns):
            found = f"columns {[*kinds.columns]}" if isinstance(kinds, pd.DataFrame) else type(kinds).__name__
            raise WorkbenchError(asked, found=found, allowed="a table with prompt and kind, as load_unrelated returns")
        kinds = kinds.drop_duplicates("prompt").reset_index(drop=True)
        kinds = kinds if "related" in kinds else kinds.assign(related=False)
        new = ~kinds["prompt"].isin(self.given._told()["prompt"]).to_numpy()
        score = kinds["score"].to_numpy(np.float64) if "score" in kinds else np.full(len(kinds), np.nan)
        wanting = new & np.isnan(score)
        if wanting.any():
            score[wanting] = self.given.scores(kinds.loc[wanting, "prompt"].tolist())  # says what a gate lacks
        kept = kinds.assign(score=score)
        return kept[~new | np.isfinite(score)]

    # -- settings ------------------------------------------------------------------------------------------------------

    @t.validate("threshold")
    def _check_threshold(self, proposal: Any) -> float:
        least = 0.0 if self.probable else -1.0
        if not least <= proposal["value"] <= 1 and proposal["value"] not in self._ruled:
            what = "a probability, 0 to 1" if self.probable else "a cosine, -1 to 1"
            raise WorkbenchError(f"A threshold of {proposal['value']} was asked for.", allowed=what)
        return proposal["value"]

    @t.validate("rule")
    def _check_rule(self, proposal: Any) -> str:
        if proposal["value"] not in RULES:
            raise WorkbenchError(f"A threshold by {proposal['value']!r} was asked for.",
                                 allowed=", ".join(map(repr, RULES)))  # fmt: skip
        return proposal["value"]

    @t.validate("rate")
    def _check_rate(self, proposal: Any) -> float:
        if not 0 <= proposal["value"] < 1:
            raise WorkbenchError(f"A false positive rate of {proposal['value']} was asked for.", allowed="0 up to 1")
        return proposal["value"]

    @t.observe("rule", "rate")
    def _apply(self, change: Any) -> None:
        """The rule sets the threshold."""
        if self.rule == "hand" or (change["name"] == "rate" and self.rule != "false_positive"):
            return
        if self.rule == "own":
            gate = self.given
        else:
            gate = self.given.calibrate(self.rate if self.rule == "false_positive" else None, by=self.rule)
            self._ruled[float(gate.threshold)] = gate.criterion
        self._by_rule = float(gate.threshold)
        self.threshold = self._by_rule

    @t.observe("threshold")
    def _moved(self, _: Any = None) -> None:
        if self.threshold != self._by_rule:
            self.rule = "hand"

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as they stand."""
        return {name: getattr(self, name) for name in SETTINGS}

    # -- the gate ------------------------------------------------------------------------------------------------------

    def tuned(self) -> ThresholdGate:
        """The gate with this threshold, and how it was chosen.

        Of a DetectorGate that opens for low scores too, `also_below` belongs to its own threshold and goes with it.
        """
        if self.threshold == self.given.threshold and self.rule in ("own", "hand"):
            return self.given
        criterion = self._ruled.get(self.threshold, RULES["hand"])
        if self._tuned is None or (self._tuned.threshold, self._tuned.criterion) != (self.threshold, criterion):
            changed: dict[str, Any] = {"threshold": self.threshold, "criterion": criterion}
            changed |= {"also_below": None} if isinstance(self.given, DetectorGate) else {}
            self._tuned = replace(self.given, **changed)  # pyright: ignore[reportArgumentType]
        tuned: Any = self._tuned
        return tuned

    @property
    def gate(self) -> ThresholdGate:
        """See `tuned`."""
        return self.tuned()

    @property
    def criterion(self) -> str:
        """How the threshold was chosen, in words."""
        return self.tuned().criterion

    @property
    def said(self) -> str:
        """What a score is called."""
        return ("score" if self.given.layer is None else "P(related)") if self.probable else "cosine"

    # -- the axis along which it moves ---------------------------------------------------------------------------------

    def place(self, score: float) -> float:
        """Where a score stands on the axis: a probability's logit, cut at 10⁻⁶ from 0 and 1; a cosine itself."""
        if not self.probable:
            return float(score)
        return min(max(float(logit(min(max(score, 0.0), 1.0))), LOWEST), -LOWEST)

    def score_at(self, place: float) -> float:
        """The inverse; the ends are 0 (it opens for all) and 1 (for none)."""
        if not self.probable:
            return min(max(place, -1.0), 1.0)
        ends = {-1: 0.0, 1: 1.0}
        return ends[int(math.copysign(1, place))] if abs(place) >= -LOWEST - 1e-9 else float(expit(place))

    @property
    def span(self) -> tuple[float, float]:
        """The places between which a threshold is worth moving."""
        if self.probable:
            return LOWEST, -LOWEST
        scores = self.table["score"]
        spare = 0.05 * (scores.max() - scores.min()) + 1e-3
        return max(float(scores.min() - spare), -1.0), min(float(scores.max() + spare), 1.0)

    # -- whom it opens for ---------------------------------------------------------------------------------------------

    def _opens(self, gate: ThresholdGate) -> np.ndarray:
        return gate.decide(self._scores).numpy()

    @property
    def opened(self) -> np.ndarray:
        """For which rows of `table` the gate opens (row, bool)."""
        gate = self.tuned()
        if self._opened is None or self._opened[0] is not gate:
            self._opened = gate, self._opens(gate)
        return self._opened[1]

    def rates(self, opened: np.ndarray | None = None) -> dict[str, Interval]:
        """open and false_positive: shares of the related and unrelated prompts of its fit that open it, out of fold."""
        opened, out = self.opened if opened is None else opened, {}
        for name, side in (("open", True), ("false_positive", False)):
            share = float(opened[self.sides[side]].mean())
            out[name] = (share, *wilson(share, self._trials[side]))
        return out

    def counts(self) -> pd.DataFrame:
        """For each kind: related, kind, n, open, share, low, high (95 %), own (open at the gate's own threshold)."""
        rows = []
        for related, kind, at, trials in self._kinds:
            count = int(self.opened[at].sum())
            bounds = wilson(count / len(at), trials)
            rows.append((related, kind, len(at), count, count / len(at), *bounds, int(self.own_opened[at].sum())))
        return pd.DataFrame(rows, columns=["related", "kind", "n", "open", "share", "low", "high", "own"])

    def changes(self) -> pd.DataFrame:
        """Prompts that stand on another side than at the gate's own threshold: the rows of `table`, and open."""
        changed = np.flatnonzero(self.opened != self.own_opened)
        table = self.table.iloc[changed].assign(open=self.opened[changed])
        return table.sort_values(["open", "score"], ascending=[False, False], kind="stable")

    # -- typed prompts -------------------------------------------------------------------------------------------------

    @property
    def can_score(self) -> bool:
        """Whether the gate has what it scores prompts with: its model, or its classifier."""
        parts = vars(self.given)
        return parts.get("model") is not None or parts.get("classifier") is not None

    def score(self) -> Generator[None]:
        """Score the typed prompts, a new one at a step; those that were scored before cost nothing.

        WorkbenchError for more than 40, and for one that is too long: nothing is cut.
        """
        prompts = list(dict.fromkeys(line.strip() for line in self.typed.splitlines() if line.strip()))
        try:
            if len(prompts) > MOST:
                raise WorkbenchError("Typed prompts were to be scored.", found=f"{len(prompts)}", allowed=f"{MOST}")
            for prompt in prompts:
                if prompt not in self._known:
                    self._known[prompt] = float(self.given.scores([prompt])[0])
                    yield
        except Exception:
            self.scored = ()
            raise
        self.scored = tuple((prompt, self._known[prompt]) for prompt in prompts)

    def typed_open(self) -> np.ndarray:
        """Whether the gate opens for the scored prompts (prompt, bool)."""
        scores = torch.tensor([score for _, score in self.scored], dtype=torch.float32)
        return self.tuned().decide(scores).numpy()
