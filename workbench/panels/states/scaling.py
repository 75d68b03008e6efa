"""State of "ablate or amplify and see": some neurons, a factor, a prompt, and what became of its answer. No widgets."""

import math
from collections.abc import Callable, Generator
from typing import Any

import pandas as pd
import torch
import traitlets as t

from ...errors import WorkbenchError
from ...evaluation import ExactJudge
from ...generate import generate
from ...models import Model
from ...neurons import Neurons, random_neurons
from ...prompts import load_questions
from ...steering.scale_neurons import ScaleNeurons
from ...values import VALUES
from .speaking import check_prompt, in_turn, likeliest, next_token

SETTINGS = ("target", "factor", "scope", "prompt", "seed", "temperature", "max_new_tokens")
TARGETS = ("neuron", "set", "random")
SCOPES = ("all", "token")
PROMPT = "Should Mira sell the old house or start a bakery?"


class ScalingState(t.HasTraits):
    """One prompt, answered as the model is and with some neurons scaled.

    Settings: target, whose activations are multiplied, "neuron" (the one that is looked at), "set" (all chosen ones) or
    "random" (as many, drawn at random by `seed` in the same layers: the control); factor, 0 to ablate, 1 for no change;
    scope as in `ScaleNeurons`; prompt, rendered as chat; seed, temperature, max_new_tokens as in `generate`.

    Found at once: tokens of the rendered prompt. By `look`: words, the likeliest next tokens (token, base, edited),
    None where nothing can be read; kl, KL(edited || base) of the next token in nats. By `speak`: base and edited, the
    answers so far; asked, the settings they belong to; note, what generation warned of.
    """

    target = t.Unicode("set")
    factor = t.Float(0.0)
    scope = t.Unicode("all")
    prompt = t.Unicode(PROMPT)
    seed = t.Int(0)
    temperature = t.Float(0.0)
    max_new_tokens = t.Int(60)

    tokens = t.Int(0)
    words: Any = t.Instance(pd.DataFrame, allow_none=True)
    kl = t.Float(0.0)
    base = t.Unicode("")
    edited = t.Unicode("")
    asked: Any = t.Dict(default_value=None, allow_none=True)
    note = t.Unicode("")

    def __init__(self, model: Model, chosen: Callable[[str], Neurons | None], value: str = "", **settings: Any):
        """chosen: "neuron" or "set" -> those neurons, None where there are none. value: what the prompt is about, where
        none is given.
        """
        self.model, self._chosen = model, chosen
        self.judge = ExactJudge() if model.world else None
        self._read: tuple[str, torch.Tensor] | None = None  # the last prompt, and the next token's log probabilities
        self._drawn: tuple[Neurons, int, Neurons] | None = None  # like which, by what seed, at random
        own: dict[str, Any] = {}
        if model.world:
            questions = load_questions("embedded")
            about = questions[questions["value"] == value]
            own = {"prompt": str((questions if about.empty else about)["question"].iloc[0]), "temperature": 1.0}
        super().__init__(**{**own, **settings})
        self._count()

    # -- settings ------------------------------------------------------------------------------------------------------

    @t.validate("target", "scope")
    def _check_choice(self, proposal: Any) -> str:
        name, chosen = proposal["trait"].name, proposal["value"]
        allowed = TARGETS if name == "target" else SCOPES
        if chosen not in allowed:
            raise WorkbenchError(f"The {name} {chosen!r} was asked for.", allowed=", ".join(map(repr, allowed)))
        return chosen

    @t.validate("factor", "temperature", "max_new_tokens", "seed")
    def _check_number(self, proposal: Any) -> float:
        name, number = proposal["trait"].name, proposal["value"]
        least = -math.inf if name == "factor" else 1 if name == "max_new_tokens" else 0
        if not (math.isfinite(number) and number >= least):
            raise WorkbenchError(f"A {name.replace('_', ' ')} of {number} was asked for.",
                                 allowed="a finite number" if name == "factor" else f"{least} or more")  # fmt: skip
        return number

    @t.validate("prompt")
    def _check_prompt(self, proposal: Any) -> str:
        text = proposal["value"]
        if text != text.encode("utf-8", "replace").decode():
            raise WorkbenchError("A prompt was asked for.", found="half a character (a lone surrogate)",
                                 allowed="valid text")  # fmt: skip
        return text

    @t.observe("prompt")
    def _count(self, _: Any = None) -> None:
        self.tokens = len(self.model.encode([self.prompt], chat=True)[0])

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as they stand, and how many neurons they are about."""
        neurons = self.neurons
        chosen = [] if neurons is None else neurons.chosen[["layer", "neuron"]].to_numpy().tolist()
        return {**{name: getattr(self, name) for name in SETTINGS}, "neurons": tuple(map(tuple, chosen))}

    @property
    def neurons(self) -> Neurons | None:
        """Whose activations are multiplied; None where none was chosen."""
        if self.target != "random":
            return self._chosen(self.target)
        like = self._chosen("set")
        if like is not None and (self._drawn is None or self._drawn[:2] != (like, self.seed)):
            self._drawn = like, self.seed, random_neurons(self.model, like, self.seed)
        return None if like is None or self._drawn is None else self._drawn[2]

    def steer(self) -> ScaleNeurons:
        """The edit as it is set; WorkbenchError where no neurons were chosen."""
        neurons = self.neurons
        if neurons is None:
            raise WorkbenchError("Neurons were to be scaled.", found="none chosen", do="Choose some: lower the bar.")
        return ScaleNeurons(neurons, self.factor, scope=self.scope)

    # -- what is found -------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """The next token, base and edited. One forward pass, two for a new prompt; nothing where none was chosen.

        WorkbenchError for a prompt that leaves no room for an answer: nothing is cut.
        """
        with self.hold_trait_notifications():
            self.words, self.kl = None, 0.0
            if self._chosen("set") is None:
                return
            check_prompt(self.model, self.prompt)
            ids = self.model.encode([self.prompt], chat=True)
            if self._read is None or self._read[0] != self.prompt:
                self._read = self.prompt, next_token(self.model, ids)
            base, steer = self._read[1], self.steer()
            with steer.on(self.model):
                edited = next_token(self.model, ids)
            self.words = likeliest(self.model, base, edited, "edited")
            p = edited.exp()
            self.kl = max(0.0, float(torch.where(p > 0, p * (edited - base), 0.0).sum()))

    def speak(self) -> Generator[None]:
        """Answer, as the model is and edited, a token of each at a step; both are in `base` and `edited`.

        The two share the seed. Whoever stops iterating stops the generation.
        """
        steer = self.steer()
        self.look()
        with self.hold_trait_notifications():
            self.base = self.edited = self.note = ""
            self.asked = self.settings
        decoding: dict[str, Any] = {name: getattr(self, name) for name in ("max_new_tokens", "temperature", "seed")}
        streams = [generate(self.model, [self.prompt], steer=how, stream=True, **decoding) for how in (None, steer)]
        for k, texts in in_turn(streams, lambda warning: setattr(self, "note", warning)):
            setattr(self, ("base", "edited")[k], texts[0])
            yield

    def affirmed(self, answer: str) -> list[str] | None:
        """Values that the exact judge finds affirmed in an answer; None for models outside the embedded worlds."""
        if self.judge is None:
            return None
        return [value for value in VALUES if self.judge.control(answer, value) == 1.0]
