"""Strength from 0 to 1 as each method means it, and steerings made from settings.

The dial has one radius for all methods: 0 is off, and 1 as strong as anybody would want. ConVA, SCAV and NeVA take it
as a target probability on a logit scale, CAA as its coefficient; ICA only asks, or not.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit, logit

from ...errors import WorkbenchError
from ...gates import Gate
from ...gates.threshold import ThresholdGate
from ...geometry import cosines, planted_axis_map
from ...models import Model
from ...neurons import Neurons, neuron_contrasts, select_neurons
from ...probes import Probes
from ...steering.caa import CAA
from ...steering.conva import ConVA, enclosing
from ...steering.ica import ICA
from ...steering.intervention import SCOPES, Intervention
from ...steering.neva import NeVA
from ...steering.random_direction import RandomDirection
from ...steering.scav import SCAV
from ...values import VALUES

LOW, HIGH = -4.0, 6.0
"""Logits of the target at strengths 0 and 1: .018 and .998."""


@dataclass(frozen=True)
class Method:
    """What the studio knows of a method: about (one line), scopes, blends (takes an angle between two values), aims (at
    a probability), layered (at layers of one's choice).
    """

    about: str
    scopes: tuple[str, ...] = SCOPES
    blends: bool = True
    aims: bool = True
    layered: bool = True

    def target(self, strength: float) -> float | None:
        """The probability that this strength aims at."""
        return float(expit(LOW + (HIGH - LOW) * strength)) if self.aims else None

    def strength_of(self, target: float) -> float:
        """The strength that aims at a probability, within 0 to 1."""
        if not self.aims:
            raise WorkbenchError(f"A target of {target} was asked for.", found="a method that aims at no probability")
        return float(np.clip((logit(target) - LOW) / (HIGH - LOW), 0, 1))

    def rings(self) -> list[tuple[float, str]]:
        """Strengths worth a ring on the dial, and what they are called."""
        if self.aims:
            return [(self.strength_of(p), f"P {p:g}".replace("0.", ".")) for p in (0.1, 0.5, 0.9, 0.99)]
        return [(s, f"{s:g}".replace("0.", ".")) for s in (0.25, 0.5, 0.75)] if self.scopes else []


METHODS: dict[str, Method] = {
    "ConVA": Method("the smallest push along the probe that reaches the target"),
    "CAA": Method("the mean difference added, times the strength", ("all", "generated"), blends=False, aims=False),
    "SCAV": Method("ConVA's push anew at each token, at every layer with a probe", ("token",), layered=False),
    "NeVA": Method("the value's own neurons alone (our definition), at every layer that has some",
                   ("token", "all", "generated"), blends=False, layered=False),
    "ICA": Method("no push: the prompt asks for a high level of the value", (), False, False, False),
    "random": Method("control: a random direction, pushed as far as ConVA would"),
}  # fmt: skip


class Steerings:
    """All that steerings of one model are made of; what is missing is made when it is first asked for.

    differences: mean-difference probes for CAA; neurons: of each value, for NeVA. Either comes from the activations
    and pairs of `probes` where it is not given.
    """

    def __init__(
        self, model: Model, probes: Probes, gate: Gate | None, differences: Probes | None,
        neurons: Mapping[str, Neurons] | None,
    ):  # fmt: skip
        for part in (probes, gate, differences, *(neurons or {}).values()):
            if part is not None:
                part.check(model)
        self.model, self.probes, self.gate, self._differences = model, probes, gate, differences
        self._neurons = None if neurons is None else dict(neurons)
        self._contrasts: Any = None
        self.reader = probes.choose_layer()

    # -- the gate ------------------------------------------------------------------------------------------------------

    @property
    def threshold(self) -> float | None:
        """The gate's own; None where it has none."""
        return self.gate.threshold if isinstance(self.gate, ThresholdGate) else None

    @property
    def scale(self) -> tuple[float, float]:
        """Least and most that a threshold can be."""
        probable = isinstance(self.gate, ThresholdGate) and self.gate.scale == "probability"
        return (1e-6, 1 - 1e-6) if probable else (-1.0, 1.0)

    # -- directions ----------------------------------------------------------------------------------------------------

    def default_layers(self) -> tuple[int, ...]:
        """ConVA's choice, or where no layer is good enough the one that reads best."""
        try:
            return tuple(self.probes.choose_layers())
        except WorkbenchError:
            return (self.reader,)

    @staticmethod
    def shares(angle: float) -> dict[str, float]:
        """The one or two values that an angle is made of."""
        return enclosing(angle)

    def name(self, angle: float) -> str:
        shares = self.shares(angle)
        return next(iter(shares)) if len(shares) == 1 else f"{math.degrees(angle):.0f}°"

    def places(self) -> list[tuple[float, float]]:
        """x and y of the value vectors in the plane, in circular order; nothing unless all ten are there."""
        if set(self.probes.values) != set(VALUES):
            return []
        table = planted_axis_map(cosines(self.probes.vectors(self.reader))).set_index("value").loc[list(VALUES)]
        return [(float(x), float(y)) for x, y in table[["x", "y"]].to_numpy()]

    # -- steerings -----------------------------------------------------------------------------------------------------

    def told(self, own: Mapping[str, Any]) -> str:
        """A steering in words."""
        method, strength = METHODS[own["method"]], own["strength"]
        shares = self.shares(own["angle"])
        aim = " + ".join(f"{value} {share:.0%}" for value, share in shares.items())
        aim = next(iter(shares)) if len(shares) == 1 else aim.replace("%", " %")
        if strength == 0:
            dose = "off"
        elif method.aims:
            dose = f"P ≥ {method.target(strength):.3g}"
        else:
            dose = f"{strength:.2f} × the mean difference" if method.scopes else "asked for"
        return f"{own['method']}, {aim}, {dose}"

    def make(self, own: Mapping[str, Any], threshold: float | None) -> Intervention | None:
        """A steering from its settings; None where it is off. WorkbenchError where it cannot be made."""
        if own["strength"] == 0:
            return None
        gate: Any = self.gate if own["gated"] else None
        if gate is not None and threshold is not None and threshold != gate.threshold:
            gate = replace(gate, threshold=threshold)
        return _MAKERS[own["method"]](self, own, gate)

    def _aim(self, own: Mapping[str, Any]) -> dict[str, Any]:
        shares = self.shares(own["angle"])
        aim: dict[str, Any] = {"value": next(iter(shares))} if len(shares) == 1 else {"angle": own["angle"]}
        return aim | {"target": METHODS[own["method"]].target(own["strength"])}

    def _conva(self, own: Mapping[str, Any], gate: Gate | None) -> Intervention:
        return ConVA(self.probes, **self._aim(own), layers=own["layers"], gate=gate, scope=own["scope"])

    def _scav(self, own: Mapping[str, Any], gate: Gate | None) -> Intervention:
        return SCAV(self.probes, **self._aim(own), gate=gate)

    def _random(self, own: Mapping[str, Any], gate: Gate | None) -> Intervention:
        return RandomDirection(self._conva(own, gate))

    def _ica(self, own: Mapping[str, Any], gate: Gate | None) -> Intervention:
        return ICA(self.name(own["angle"]), gate=gate)

    def _caa(self, own: Mapping[str, Any], gate: Gate | None) -> Intervention:
        if self._differences is None:
            if self.probes.activations is None:
                raise WorkbenchError(
                    "CAA was asked for.", found="probes read from a file, without their activations",
                    do="Pass differences=wb.fit_probes(model, pairs, method='mean_difference').")  # fmt: skip
            self._differences = self.probes.activations.fit("mean_difference", folds=2)
        value = self.name(own["angle"])
        return CAA(self._differences, value, own["strength"], layers=own["layers"], gate=gate, scope=own["scope"])

    def _neva(self, own: Mapping[str, Any], gate: Gate | None) -> Intervention:
        value = self.name(own["angle"])
        target = METHODS["NeVA"].target(own["strength"]) or 0.0
        return NeVA(self.probes, value, self._neurons_of(value), target, gate=gate, scope=own["scope"])

    def _neurons_of(self, value: str) -> Neurons:
        if self._neurons is not None and value in self._neurons:
            return self._neurons[value]
        if self.probes.activations is None:
            raise WorkbenchError(
                f"NeVA of {value} was asked for.", found="no neurons, and probes without their pairs",
                do="Pass neurons={value: wb.select_neurons(model, pairs, probes, value)}.")  # fmt: skip
        if self._contrasts is None:
            self._contrasts = neuron_contrasts(self.model, self.probes.activations.pairs, self.probes.layers)
        self._neurons = self._neurons or {}
        self._neurons[value] = select_neurons(self.model, self._contrasts, self.probes, value)
        return self._neurons[value]


_MAKERS: dict[str, Callable[[Steerings, Mapping[str, Any], Any], Intervention]] = {
    "ConVA": Steerings._conva, "CAA": Steerings._caa, "SCAV": Steerings._scav, "NeVA": Steerings._neva,
    "ICA": Steerings._ica, "random": Steerings._random,
}  # fmt: skip
