"""State of the steering studio: a prompt, up to three steerings of it, and what was found. No widgets, no threads.

Whoever sets a trait (the dial, a slider, a test, a notebook cell) is answered the same way: a wrong setting raises
WorkbenchError and leaves the state as it was.
"""

import math
from collections.abc import Generator, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import traitlets as t
import xarray as xr

from ...activations import capture
from ...errors import WorkbenchError
from ...evaluation import ExactJudge
from ...gates import Gate
from ...generate import generate
from ...models import Model
from ...neurons import Neurons
from ...probes import Probes
from ...prompts import load_questions
from ...steering.intervention import Intervention
from ...values import VALUES, angles, check_value
from .doses import METHODS, Steerings
from .speaking import check_prompt, in_turn, likeliest, read_last

SHARED = ("prompt", "threshold", "seed", "temperature", "max_new_tokens")
OWN = ("method", "angle", "strength", "scope", "layers", "gated")
"""Settings of one steering; those of the active one are traits of the state."""
SETTINGS = (*SHARED, "active", *OWN)
MOST = 3  # steerings side by side
SNAP = math.radians(2.5)  # so near a value's own angle, the value is meant
PROMPT = "Should Mira sell the old house or start a bakery?"


class Reading(NamedTuple):
    """What the exact judge reads in an answer."""

    affirms: tuple[str, ...]
    both: tuple[str, ...]  # affirmed and denied
    fluent: bool


class SteeringState(t.HasTraits):
    """One prompt, answered as the model is and under up to three steerings.

    Shared settings: prompt, rendered as chat; threshold of the gate, in the units of its scores (unused without one,
    see `has_threshold`); seed, temperature, max_new_tokens as in `generate`.
    Settings of the active steering, number `active` of `steerings`: method (`METHODS`); angle on the circle in radians,
    a value's own or between two; strength, 0 (off) to 1, which is the method's own dose on a scale (`doses`); scope,
    layers, gated (whether the gate decides).

    Found at once: tokens of the rendered prompt. By `look`, of the active steering: score (of the gate, None without)
    and open; at, the layers that are steered; aimed, P of what the method aims at (a blend has a P of its own) at its
    last layer, before and after, NaN for methods without; before and after, P (value, layer) at the last prompt token,
    None where the prompt cannot be read; words, the likeliest next tokens (token, p of the base, p steered).

    By `speak`: answers, the base's and each steering's so far; traces, of each steering; profiles, P (answer, value) of
    the answers once they are complete; asked, the settings they belong to; note, what generation warned of.
    """

    prompt = t.Unicode(PROMPT)
    threshold = t.Float(0.5)
    seed = t.Int(0)
    temperature = t.Float(0.0)
    max_new_tokens = t.Int(60)

    steerings: Any = t.Tuple()
    active = t.Int(0)
    method = t.Unicode("ConVA")
    angle = t.Float(0.0)
    strength = t.Float(0.7)
    scope = t.Unicode("all")
    layers: Any = t.Tuple()
    gated = t.Bool(True)

    tokens = t.Int(0)
    score = t.Float(None, allow_none=True)
    open = t.Bool(True)
    at: Any = t.Tuple()
    aimed: Any = t.Tuple((math.nan, math.nan))
    before: Any = t.Instance(xr.DataArray, allow_none=True)
    after: Any = t.Instance(xr.DataArray, allow_none=True)
    words: Any = t.Instance(pd.DataFrame, allow_none=True)
    answers: Any = t.List(t.Unicode())
    traces: Any = t.List()
    profiles: Any = t.Instance(xr.DataArray, allow_none=True)
    asked: Any = t.Dict(default_value=None, allow_none=True)
    note = t.Unicode("")

    def __init__(
        self, model: Model, probes: Probes, gate: Gate | None = None, layers: Iterable[int] | None = None,
        differences: Probes | None = None, neurons: Mapping[str, Neurons] | None = None, value: str | None = None,
        target: float | None = None, **settings: Any,
    ):  # fmt: skip
        allowed = ("value", "target", *(name for name in SETTINGS if name != "active"))
        if unknown := [name for name in settings if name not in allowed]:
            raise WorkbenchError(f"Settings {', '.join(unknown)} were asked for.", allowed=", ".join(allowed))
        self._means = Steerings(model, probes, gate, differences, neurons)
        self.model, self.probes, self.gate = model, probes, gate
        self.judge = ExactJudge() if model.world else None
        self._read: tuple[str, xr.DataArray, torch.Tensor] | None = None  # the last prompt, read without steering
        defaults: dict[str, Any] = {"layers": self._means.default_layers() if layers is None else tuple(layers)}
        if model.world:
            questions = load_questions("embedded")
            # At .78 the embedded models still speak well (README); at .95 mostly not.
            defaults |= {"prompt": str(questions["question"].iloc[0]), "temperature": 1.0, "strength": 0.53}
        if self.has_threshold:
            least, most = self._means.scale
            defaults["threshold"] = min(max(self._means.threshold or 0.0, least), most)
        if "angle" in settings and value is not None:
            raise WorkbenchError(f"{value} at {settings['angle']} was asked for.", allowed="a value or an angle")
        if "angle" not in settings:
            first = "tradition" if "tradition" in probes.values else probes.values[0]
            defaults["angle"] = self._angle_of(first if value is None else value)
        if target is not None:
            if not 0 < target < 1:
                raise WorkbenchError(f"A target of {target} was asked for.", allowed="above 0 and below 1")
            settings["strength"] = METHODS["ConVA"].strength_of(target)
        super().__init__()
        # One by one, so that a setting is checked against those before it.
        given = {**defaults, **settings}
        for name in ("method", *(name for name in given if name != "method")):
            if name in given:
                setattr(self, name, given[name])
        self.steerings = (self._own(),)
        self._count()

    # -- settings ------------------------------------------------------------------------------------------------------

    @t.validate("method")
    def _check_method(self, proposal: Any) -> str:
        return check_value(proposal["value"], [*METHODS], kind="method")

    @t.validate("angle")
    def _check_angle(self, proposal: Any) -> float:
        """Near a value's place it is that place; methods that steer one value take the nearest."""
        angle = proposal["value"]
        if not math.isfinite(angle):
            raise WorkbenchError(f"An angle of {angle} was asked for.", allowed="a finite number of radians")
        places = angles()
        off = np.abs((angle - places + np.pi) % (2 * np.pi) - np.pi)
        nearest = int(off.argmin())
        snapped = off[nearest] < SNAP or not METHODS[self.method].blends
        if not snapped or VALUES[nearest] not in self.probes.values:
            self.probes.check_values(self._means.shares(angle))
        return float(places[nearest]) if snapped else float(angle % (2 * np.pi))

    @t.validate("strength")
    def _check_strength(self, proposal: Any) -> float:
        if not 0 <= proposal["value"] <= 1:
            raise WorkbenchError(f"A strength of {proposal['value']} was asked for.", allowed="0, which is off, to 1")
        return proposal["value"]

    @t.validate("threshold")
    def _check_threshold(self, proposal: Any) -> float:
        p = proposal["value"]
        if not self.has_threshold:
            raise WorkbenchError(f"A gate threshold of {p} was asked for.", found="no gate that has one")
        least, most = self._means.scale
        if not least <= p <= most:
            raise WorkbenchError(f"A threshold of {p} was asked for.", allowed=f"{least:g} to {most:g}")
        return p

    @t.validate("scope")
    def _check_scope(self, proposal: Any) -> str:
        scopes = METHODS[self.method].scopes
        if scopes and proposal["value"] not in scopes:
            raise WorkbenchError(f"Scope {proposal['value']!r} of {self.method} was asked for.",
                                 allowed=", ".join(map(repr, scopes)))  # fmt: skip
        return proposal["value"]

    @t.validate("layers")
    def _check_layers(self, proposal: Any) -> tuple[int, ...]:
        chosen = sorted({int(layer) for layer in proposal["value"]})
        if not chosen or not {*chosen} <= {*self.probes.layers}:
            raise WorkbenchError(f"Layers {chosen} were asked for.",
                                 allowed=f"one or more of {', '.join(map(str, self.probes.layers))}")  # fmt: skip
        return tuple(chosen)

    @t.validate("temperature", "max_new_tokens", "seed")
    def _check_number(self, proposal: Any) -> float:
        name, number = proposal["trait"].name, proposal["value"]
        least = 1 if name == "max_new_tokens" else 0
        if not (math.isfinite(number) and number >= least):
            raise WorkbenchError(f"A {name.replace('_', ' ')} of {number} was asked for.", allowed=f"{least} or more")
        return number

    @t.validate("prompt")
    def _check_prompt(self, proposal: Any) -> str:
        text = proposal["value"]
        if text != text.encode("utf-8", "replace").decode():
            raise WorkbenchError("A prompt was asked for.", found="half a character (a lone surrogate)",
                                 allowed="valid text", do="Delete what shows as a box or question mark.")  # fmt: skip
        return text

    @t.validate("active")
    def _check_active(self, proposal: Any) -> int:
        if proposal["value"] not in range(len(self.steerings) or 1):
            raise WorkbenchError(f"Steering {proposal['value']} was asked for.",
                                 allowed=f"0 to {len(self.steerings) - 1}")  # fmt: skip
        return proposal["value"]

    @t.observe("method")
    def _fit_method(self, change: Any) -> None:
        """What the new method cannot have becomes what it can."""
        scopes = METHODS[change["new"]].scopes
        if scopes and self.scope not in scopes:
            self.scope = scopes[0]
        self.angle = self._check_angle({"value": self.angle})

    @t.observe(*OWN)
    def _keep(self, _: Any) -> None:
        if self.steerings:
            self.steerings = tuple(self._own() if k == self.active else own for k, own in enumerate(self.steerings))

    @t.observe("active")
    def _take_up(self, _: Any) -> None:
        """The settings of the steering that became active."""
        own, kept = self.steerings[self.active], self.steerings
        with self.hold_trait_notifications():
            self.steerings = ()  # so that the half way is not kept
            for name in OWN:
                setattr(self, name, own[name])
            self.steerings = kept

    @t.observe("prompt")
    def _count(self, _: Any = None) -> None:
        self.tokens = len(self.model.encode([self.prompt], chat=True)[0])

    def _own(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in OWN}

    def add(self) -> None:
        """One more steering, a copy of the active one, which becomes active. WorkbenchError for a fourth."""
        if len(self.steerings) >= MOST:
            raise WorkbenchError("One more steering was asked for.", found=f"{MOST} already", allowed=f"up to {MOST}")
        self.steerings = (*self.steerings, self._own())
        self.active = len(self.steerings) - 1

    def remove(self) -> None:
        """Take the active steering away. WorkbenchError for the last one."""
        if len(self.steerings) < 2:
            raise WorkbenchError("The only steering was to be taken away.", do="Set its strength to 0.")
        left = tuple(own for k, own in enumerate(self.steerings) if k != self.active)
        at = min(self.active, len(left) - 1)
        self.steerings = left
        self.active = at
        self._take_up(None)

    @property
    def has_threshold(self) -> bool:
        """Whether the gate is one that holds a score against a threshold."""
        return self._means.threshold is not None

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as they stand."""
        return {**{name: getattr(self, name) for name in SHARED}, "steerings": self.steerings}

    @property
    def value(self) -> str:
        """What the active steering aims at: a value, or an angle such as "54°"."""
        return self._means.name(self.angle)

    @value.setter
    def value(self, value: str) -> None:
        self.angle = self._angle_of(value)

    @property
    def target(self) -> float | None:
        """The probability that the active steering aims at; None for methods without one."""
        return METHODS[self.method].target(self.strength)

    @target.setter
    def target(self, target: float) -> None:
        self.strength = METHODS[self.method].strength_of(target)

    def _angle_of(self, value: str) -> float:
        return float(angles()[VALUES.index(check_value(value, self.probes.values))])

    def told(self, steering: Mapping[str, Any] | None = None) -> str:
        """One steering in words, the active one by default: "ConVA, power 80 % + security 20 %, P ≥ 0.95"."""
        return self._means.told(self._own() if steering is None else steering)

    def steer(self, index: int | None = None) -> Intervention | None:
        """One steering as it is set, the active one by default; None where it is off."""
        own = self._own() if index is None else self.steerings[index]
        return self._means.make(own, self.threshold if self.has_threshold else None)

    # -- what is found -------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Read the prompt: the gate's decision, P at its last token and the next one, without and with steering.

        One forward pass steered, one more for a new prompt. WorkbenchError for a prompt that leaves no room for an
        answer: nothing is cut.
        """
        with self.hold_trait_notifications():
            self.before = self.after = self.words = None  # what the last prompt gave is not what a failing one gives
            check_prompt(self.model, self.prompt)
            if self._read is None or self._read[0] != self.prompt:
                self._read = self.prompt, *self._look_at(self.prompt)
            _, self.before, base = self._read
            steer, self.score, self.open, self.aimed = self.steer(), None, True, (math.nan, math.nan)
            self.after, spoken = self.before, base
            self.at = tuple((steer and steer.layers) or self.layers)
            if steer is not None and steer.layers:
                with steer.on(self.model, trace=True, questions=[self.prompt]) as run:
                    self.after, spoken = self._look_at(self.prompt)
                last = run.trace[run.trace["position"] == self.tokens - 1].iloc[-1]
                self.score = None if math.isnan(last["gate"]) else float(last["gate"])
                self.open, self.aimed = bool(last["open"]), (float(last["p_before"]), float(last["p_after"]))
            elif steer is not None:
                edited, told = steer.edit_prompts([self.prompt], self.model)
                self.model.check_length(self.model.encode(edited, chat=True), [str(edited[0])], room=1)
                self.after, spoken = self._look_at(edited[0])
                if steer.gate is not None:
                    self.score, self.open = float(told["gate"].iloc[0]), bool(told["open"].iloc[0])
            self.words = likeliest(self.model, base, spoken, "steered")

    def _look_at(self, prompt: Any) -> tuple[xr.DataArray, torch.Tensor]:
        """P (value, layer) at the last token of a prompt, and the log probabilities of the next token."""
        acts, spoken = read_last(self.model, self.model.encode([prompt], chat=True), self.probes.layers)
        return self.probes.probability(acts).transpose("value", "layer"), spoken

    def speak(self) -> Generator[None]:
        """Answer, as the model is and under each steering, a token of each in turn; a token at a step.

        All share the seed. Whoever stops iterating stops the generation.
        """
        self.look()
        count = len(self.steerings)
        with self.hold_trait_notifications():
            self.answers, self.traces, self.profiles, self.note = [""] * (1 + count), [None] * count, None, ""
            self.asked = self.settings
        decoding: dict[str, Any] = {name: getattr(self, name) for name in ("max_new_tokens", "temperature", "seed")}
        steers = [None, *(self.steer(k) for k in range(count))]
        streams = [
            generate(self.model, [self.prompt], steer=steer, stream=True, return_trace=True, **decoding)
            for steer in steers
        ]
        for k, (texts, trace) in in_turn(streams, lambda warning: setattr(self, "note", warning)):
            self.answers = [texts[0] if k == at else answer for at, answer in enumerate(self.answers)]
            if k:
                self.traces[k - 1] = trace
            yield
        self.profiles = self._profiles()

    def _profiles(self) -> xr.DataArray | None:
        """P (answer, value) of the answers as plain texts, at the layer that reads best; NaN for empty ones."""
        said = {k: answer for k, answer in enumerate(self.answers) if answer.strip()}
        table = xr.DataArray(np.full((len(self.answers), len(self.probes.values)), np.nan), dims=("answer", "value"),
                             coords={"value": self.probes.values, "layer": self.reader})  # fmt: skip
        if said:
            acts = capture(self.model, [*said.values()], layers=[self.reader])
            p = self.probes.probability(acts).sel(layer=self.reader).transpose("text", "value")
            table.values[[*said]] = p.values
        return table

    @property
    def reader(self) -> int:
        """The layer at which answers are read: where the probes are best."""
        return self._means.reader

    def reading(self, answer: str) -> Reading | None:
        """What the exact judge reads in an answer; None for models outside the embedded world."""
        if self.judge is None:
            return None
        found = {value: self.judge.control(answer, value) for value in VALUES}
        said = [tuple(v for v in VALUES if found[v] == score) for score in (1.0, 0.5)]
        return Reading(said[0], said[1], self.judge.fluent(answer))

    def places(self) -> list[tuple[float, float]]:
        """Where the model's own value vectors lie in the plane beside the circle, at the reader's layer."""
        return self._means.places()
