"""What a steering method is: a frozen value with two pure functions, and the context in which it is on.

A method says *where* (`layers`, `site`), *who* (`gate`), *which tokens* (`scope`, `window`) and, as a pure
function of the state there, *what*: `shift(layer, e)`. Everything else, hooks, read positions, caches and
traces, is the same for all methods and lives in `run.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from ..errors import WorkbenchError
from ..gates import Gate, unpack_gate
from ..models import Model, Prompt
from ..neurons import Neurons
from ..probes import Probes
from ..probes.files import load_arrays, save_arrays
from .run import Run
from .session import Session
from .trace import TRACE

SCOPES = ("all", "generated", "token")


class Intervention:
    """A steering method with its settings. Subclasses are frozen dataclasses, one file each.

    layers: blocks that are changed. site: what of them, "residual", the block's output (d_model); "neurons", the
    MLP's hidden activations (d_mlp), as they enter the down projection; or "mlp_out", what that projection returns
    (d_model), where the shift is computed anew at each token that the scope names, from the token's own neurons.
    gate: who is steered, None for everyone; a gate with `per_token` decides anew at each token from the last prompt
    token on. scope:

    - "all": one shift per prompt and layer, read at the last prompt token, added at every token, prompt and
      answer;
    - "generated": the same shift, added from the last prompt token on (which produces the first answer
      token);
    - "token": the shift is computed anew at each token, from the last prompt token on.

    window: with "generated" and "token", only the answer's tokens first up to last (left out; None: to the end) are
    steered in the making; token 0 is the one that the last prompt token produces.
    """

    name: ClassVar[str]
    registry: ClassVar[dict[str, type["Intervention"]]] = {}
    kinds: ClassVar[dict[str, Callable[..., Any]]] = {
        "gate": unpack_gate, "probes": Probes.unpack, "neurons": Neurons.unpack,
    }  # fmt: skip
    """Settings that are saved as parts of their own: name -> what reads them again; others are interventions."""
    site: ClassVar[str] = "residual"
    layers: tuple[int, ...] = ()
    gate: Gate | None = None
    scope: str = "all"
    window: tuple[int, int | None] | None = None
    matched: "Intervention | None" = None
    """Another method whose shift, found in a pass of its own, sets this one's (see `RandomDirection`)."""

    def __init_subclass__(cls, abstract: bool = False):
        cls.name = cls.__name__
        if not abstract:
            Intervention.registry[cls.__name__] = cls

    def edits_before(self, layer: int) -> bool:
        """Whether the residual stream after a block is another where this method is on."""
        return any(own < layer + (self.site != "residual") for own in self.layers)

    # -- what a method defines -------------------------------------------------------------------------------

    def shift(self, layer: int, e: torch.Tensor) -> torch.Tensor:
        """What is added to residuals e (..., d_model), float32, at one layer: same shape; exact zeros for nothing.

        At sites "neurons" and "mlp_out" e is what the down projection is given, (..., d_mlp); what is added has the
        shape of what it is added to. Here nothing is added, as methods that only edit the prompt do; one with layers
        must define it (`check`).
        """
        return torch.zeros_like(e)

    def redirect(self, layer: int, shift: torch.Tensor) -> torch.Tensor:
        """For methods with `matched`: what is added where that method would add `shift`; here the same."""
        return shift

    def probability(self, layer: int, e: torch.Tensor) -> torch.Tensor | None:
        """P_V (...) of residuals (or activations), for the trace; None for methods without a probe."""
        return None

    def edit_prompt(self, question: str, model: Model | None = None) -> str:
        """The prompt that is asked instead of this question; only prompting methods change it."""
        return question

    def edit_prompts(self, prompts: Sequence[Prompt], model: Model) -> tuple[list[Prompt], pd.DataFrame]:
        """All prompts, and a trace of what the gate decided for those that were edited."""
        return list(prompts), pd.DataFrame(columns=list(TRACE))

    # -- what every method can do ----------------------------------------------------------------------------

    @contextmanager
    def on(
        self,
        model: Model,
        trace: bool = False,
        prompt_lengths: Sequence[int] | None = None,
        questions: Sequence[str] | None = None,
    ) -> Iterator[Run]:
        """Inside, whatever the model runs is steered; leaving restores its logits bit for bit, errors or not.

        prompt_lengths: prompt tokens of each row (pads not counted) where the input holds prompt and answer;
        without it the prompt ends at the last real token of a pass, and at the last input token of a
        `generate`. questions: what each row asks, for a gate that reads text. Interventions that are on together
        apply in the order in which they were switched on; `model.active` lists them. With `trace=True`,
        `run.trace` tells gate, P_V and eps per prompt, token and layer. A prompt is one pass: prefill in pieces is
        not supported.
        """
        with Session.of(model).on(self.start(model, trace, prompt_lengths, questions)) as run:
            yield run

    def start(
        self,
        model: Model,
        trace: bool = False,
        prompt_lengths: Sequence[int] | None = None,
        questions: Sequence[str] | None = None,
    ) -> Run:
        """A run that is not on yet, for callers that switch it on pass by pass with `Session.on`."""
        self.check(model)
        return Run(self, model, trace, prompt_lengths, questions)

    def check(self, model: Model) -> None:
        """WorkbenchError unless this intervention belongs to the model (weights of probes and gate, layers) and its
        window and its gate fit its scope.
        """
        if self.layers and type(self).shift is Intervention.shift:
            raise WorkbenchError(
                f"{self.name} was to steer layers {ranges(self.layers)}.",
                found="a method that does not say what it adds there",
                do="Define shift(layer, e) in its class.",
            )
        for part in self._parts().values():
            if hasattr(part, "check"):
                part.check(model)
        if self.layers:
            model.check_layers(self.layers)
        for layer in self.layers if self.site != "residual" else ():
            model.neurons(layer)
        self._check_window()
        if self.gate is not None and self.gate.per_token:
            read = self.gate.layer
            if self.scope == "all" or read is None or self.edits_before(read):
                raise WorkbenchError(
                    f"{self} was to ask its gate about each token.",
                    found=f"scope {self.scope!r}, a gate that reads layer {read}, layers {ranges(self.layers)}",
                    allowed="scopes 'generated' and 'token', and a gate that reads before the first edit",
                )

    def _check_window(self) -> None:
        if self.window is None:
            return
        first, end = self.window
        if self.scope == "all" or first < 0 or (end is not None and end <= first):
            raise WorkbenchError(
                f"{self} was asked for.",
                found=f"window {self.window} with scope {self.scope!r}",
                allowed="(first, last) answer tokens, 0 <= first < last or None, with scope 'generated' or 'token'",
            )

    def __repr__(self) -> str:
        shown = []
        for name, part in self._parts().items():
            if name == "window" and part is None:
                continue
            if name == "layers":
                shown.append(f"layers {ranges(self.layers)}")
            elif name != "probes":
                shown.append(str(part) if name in ("value", "of") else f"{name}={part}")
        return f"{self.name}({', '.join(shown)})"

    def _parts(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]

    def _set(self, **settings: Any) -> None:
        """For __post_init__ of frozen subclasses."""
        for name, setting in settings.items():
            object.__setattr__(self, name, setting)

    # -- files -----------------------------------------------------------------------------------------------

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays: dict[str, np.ndarray] = {}
        meta: dict[str, Any] = {"method": self.name}
        for name, part in self._parts().items():
            if hasattr(part, "pack"):
                inner, meta[name] = part.pack()
                arrays.update({f"{name}.{key}": array for key, array in inner.items()})
            else:
                meta[name] = part
        return arrays, meta

    @staticmethod
    def unpack(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], model: Model | None = None) -> "Intervention":
        if meta.get("method") not in Intervention.registry:
            raise WorkbenchError(
                f"An intervention {meta.get('method')!r} was to be read.",
                allowed=", ".join(Intervention.registry),
            )
        method = Intervention.registry[meta["method"]]
        settings: dict[str, Any] = {}
        for name, part in meta.items():
            if name in ("method", "kind"):
                continue
            if isinstance(part, dict):
                inner = {
                    key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")
                }
                part = method.kinds.get(name, Intervention.unpack)(inner, part, model)
            settings[name] = tuple(part) if name == "window" and part is not None else part
        return method(**settings)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file with everything the method needs, provenance included; returns its path."""
        return save_arrays(path, "intervention", *self.pack())

    @staticmethod
    def load(path: str | Path, model: Model | None = None) -> "Intervention":
        """Read what `save` wrote. With `model` it is checked against it, and gates can score prompts."""
        arrays, meta = load_arrays(path, "intervention")
        try:
            return Intervention.unpack(arrays, meta, model)
        except (KeyError, TypeError) as problem:
            raise WorkbenchError(
                f"An intervention was to be read from {Path(path).name!r}.",
                found=f"{problem!r} in its settings",
                allowed="a file written by Intervention.save",
            ) from None


class ProbeMethod(Intervention, abstract=True):
    """Shared by methods that steer one value along its probes."""

    probes: Probes
    value: str

    def _settle(self, layers: Iterable[int] | None, scope: str, scopes: Sequence[str]) -> None:
        """Check value, layers and scope; `layers=None` takes the probes' own choice."""
        self.probes.check_values([self.value])
        chosen = self.probes.choose_layers() if layers is None else sorted({int(layer) for layer in layers})
        if not chosen or any(layer not in self.probes.layers for layer in chosen):
            raise WorkbenchError(
                f"{self.name} of {self.value} at layers {chosen} was asked for.",
                allowed=f"one or more of {', '.join(map(str, self.probes.layers))}, which have probes",
            )
        check_scope(self.name, scope, scopes)
        self._set(layers=tuple(chosen), _planes={})

    def plane(self, layer: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """w (d_model) and b of the value's probe at a layer, on a device."""
        planes: dict[Any, tuple[torch.Tensor, torch.Tensor]] = vars(self)["_planes"]
        if (layer, device) not in planes:
            where = {"value": self.value, "layer": layer}
            planes[layer, device] = (
                torch.from_numpy(self.probes.weight.sel(where).values.astype(np.float32)).to(device),
                torch.tensor(float(self.probes.bias.sel(where)), dtype=torch.float32, device=device),
            )
        return planes[layer, device]


def check_scope(name: str, scope: str, scopes: Sequence[str]) -> None:
    """WorkbenchError for a scope that the method does not have."""
    if scope not in scopes:
        raise WorkbenchError(f"{name} with scope {scope!r} was asked for.", allowed=", ".join(map(repr, scopes)))


def ranges(layers: Sequence[int]) -> str:
    """3, 4, 5, 8 as "3-5, 8"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
