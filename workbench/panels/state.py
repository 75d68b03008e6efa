"""State of the steering studio: settings that are checked, and what a run found. No widgets, no threads.

Whoever sets a trait (a slider, a test, a notebook cell) is answered the same way: a wrong setting raises
WorkbenchError and leaves the state as it was.
"""

import math
import warnings
from collections.abc import Generator, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import traitlets as t
import xarray as xr

from ..activations import capture
from ..errors import WorkbenchError
from ..evaluation import ExactJudge
from ..gates import Gate, ProbeGate
from ..generate import generate
from ..models import Model
from ..probes import Probes
from ..prompts import load_questions
from ..steering.conva import ConVA
from ..steering.intervention import SCOPES
from ..values import VALUES, check_value

SETTINGS = ("value", "target", "threshold", "prompt", "scope", "seed", "temperature", "max_new_tokens")
PROMPT = "Should Mira sell the old house or start a bakery?"


class Reading(NamedTuple):
    """What the exact judge reads in an answer."""

    affirms: tuple[str, ...]
    both: tuple[str, ...]  # affirmed and denied
    fluent: bool


class SteeringState(t.HasTraits):
    """One prompt, one value, base beside ConVA.

    Settings: value; target, the probability P_V to be reached; threshold of a ProbeGate, as a probability (unused
    without one, see `has_threshold`); prompt, rendered as chat; scope, seed, temperature, max_new_tokens as in `ConVA`
    and `generate`.

    Found at once: tokens of the rendered prompt. By `look`: score (of the gate, None without) and open; before and
    after, P (value, layer) at the last prompt token, None where the prompt cannot be read; steered_layers. By `speak`:
    base and steered, the answers so far; asked, the settings they belong to; note, what generation warned of.
    """

    value = t.Unicode()
    target = t.Float(0.95)
    threshold = t.Float(0.5)
    prompt = t.Unicode(PROMPT)
    scope = t.Unicode("all")
    seed = t.Int(0)
    temperature = t.Float(0.0)
    max_new_tokens = t.Int(60)

    tokens = t.Int(0)
    score = t.Float(None, allow_none=True)
    open = t.Bool(True)
    before: Any = t.Instance(xr.DataArray, allow_none=True)
    after: Any = t.Instance(xr.DataArray, allow_none=True)
    steered_layers: Any = t.Tuple()
    base = t.Unicode("")
    steered = t.Unicode("")
    asked = t.Dict(default_value=None, allow_none=True)
    note = t.Unicode("")

    def __init__(
        self,
        model: Model,
        probes: Probes,
        gate: Gate | None = None,
        layers: Iterable[int] | None = None,
        **settings: Any,
    ):
        if unknown := [name for name in settings if name not in SETTINGS]:
            raise WorkbenchError(f"Settings {', '.join(unknown)} were asked for.", allowed=", ".join(SETTINGS))
        probes.check(model)
        self.model, self.probes, self.gate = model, probes, gate
        self._layers = None if layers is None else list(layers)
        self.judge = ExactJudge() if model.world else None
        self._read: tuple[str, xr.DataArray] | None = None  # the last prompt, and P without steering
        defaults: dict[str, Any] = {"value": "tradition" if "tradition" in probes.values else probes.values[0]}
        if model.world:
            questions = load_questions("embedded")
            defaults |= {"prompt": str(questions["question"].iloc[0]), "temperature": 1.0}
        if gate is not None:
            gate.check(model)
        if isinstance(gate, ProbeGate):
            defaults["threshold"] = min(max(gate.threshold, 1e-6), 1 - 1e-6)
        super().__init__(**{**defaults, **settings})
        self._count()

    # -- settings ------------------------------------------------------------------------------------------------------

    @t.validate("value")
    def _check_value(self, proposal: Any) -> str:
        return check_value(proposal["value"], self.probes.values)

    @t.validate("target", "threshold")
    def _check_probability(self, proposal: Any) -> float:
        name, p = proposal["trait"].name, proposal["value"]
        if name == "threshold" and not self.has_threshold:
            raise WorkbenchError(f"A gate threshold of {p} was asked for.", found="no ProbeGate, whose it could be")
        if not 0 < p < 1:
            raise WorkbenchError(f"A {name} of {p} was asked for.", allowed="a probability, above 0 and below 1")
        return p

    @t.validate("scope")
    def _check_scope(self, proposal: Any) -> str:
        if proposal["value"] not in SCOPES:
            raise WorkbenchError(f"Scope {proposal['value']!r} was asked for.", allowed=", ".join(map(repr, SCOPES)))
        return proposal["value"]

    @t.validate("temperature", "max_new_tokens", "seed")
    def _check_number(self, proposal: Any) -> float:
        name, number = proposal["trait"].name, proposal["value"]
        least = 1 if name == "max_new_tokens" else 0
        if not (math.isfinite(number) and number >= least):
            raise WorkbenchError(f"A {name.replace('_', ' ')} of {number} was asked for.", allowed=f"{least} or more")
        return number

    @t.observe("prompt")
    def _count(self, _: Any = None) -> None:
        self.tokens = len(self.model.encode([self.prompt], chat=True)[0])

    @property
    def has_threshold(self) -> bool:
        """Whether the gate is one that holds a score against a threshold."""
        return isinstance(self.gate, ProbeGate)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as they stand."""
        return {name: getattr(self, name) for name in SETTINGS}

    def steer(self) -> ConVA:
        """ConVA as it is set; WorkbenchError where no layer is good enough and none was named."""
        gate = self.gate
        if isinstance(gate, ProbeGate):
            gate = replace(gate, threshold=self.threshold)
        return ConVA(self.probes, self.value, target=self.target, layers=self._layers, gate=gate, scope=self.scope)

    # -- what is found -------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Read the prompt: the gate's decision, and P at its last token without and with steering.

        One or two forward passes. WorkbenchError for a prompt that leaves no room for an answer: nothing is cut.
        """
        with self.hold_trait_notifications():
            self.before = self.after = None  # what the last prompt gave is not what a failing one gives
            self.model.check_length(self.model.encode([self.prompt], chat=True), [self.prompt], room=1)
            steer = self.steer()
            if active := vars(self.model).get("active"):
                raise WorkbenchError("A reading without steering was asked for.", found=f"{active[0]!r} is on",
                                     do="Leave its context first.")  # fmt: skip
            if self._read is None or self._read[0] != self.prompt:
                self._read = self.prompt, self._probabilities()
            with steer.on(self.model, trace=True, questions=[self.prompt]) as run:
                after = self._probabilities()
            decided = run.trace.iloc[0]
            self.score = None if math.isnan(decided["gate"]) else float(decided["gate"])
            self.open, self.steered_layers = bool(decided["open"]), steer.layers
            self.before, self.after = self._read[1], after

    def _probabilities(self) -> xr.DataArray:
        acts = capture(self.model, [self.prompt], layers=self.probes.layers, chat=True)
        return self.probes.probability(acts).isel(text=0).transpose("value", "layer")

    def speak(self) -> Generator[None]:
        """Answer, base and steered alternately, a token of each at a step; both are in `base` and `steered`.

        The two share the seed. Whoever stops iterating stops the generation.
        """
        self.look()
        with self.hold_trait_notifications():
            self.base = self.steered = self.note = ""
            self.asked = self.settings
        decoding: dict[str, Any] = {name: getattr(self, name) for name in ("max_new_tokens", "temperature", "seed")}
        streams = {
            "base": generate(self.model, [self.prompt], stream=True, **decoding),
            "steered": generate(self.model, [self.prompt], steer=self.steer(), stream=True, **decoding),
        }
        while streams:
            for name, stream in list(streams.items()):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always", UserWarning)
                    texts = next(stream, None)
                if caught:
                    self.note = str(caught[0].message)
                if texts is None:
                    del streams[name]
                else:
                    setattr(self, name, texts[0])
                yield

    def reading(self, answer: str) -> Reading | None:
        """What the exact judge reads in an answer; None for models outside the embedded world."""
        if self.judge is None:
            return None
        found = {value: self.judge.control(answer, value) for value in VALUES}
        said = [tuple(v for v in VALUES if found[v] == score) for score in (1.0, 0.5)]
        return Reading(said[0], said[1], self.judge.fluent(answer))
