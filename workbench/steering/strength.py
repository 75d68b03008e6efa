"""How strong a steering is, said three ways, and the steering of a family that is as strong as asked.

All three are read at the last prompt token, which produces the first answer token; KL, if asked, at later ones too:

- *target probability*: P_V at the steered layers once they are steered, mean over layers;
- *norm*: length of the shift, in multiples of the median length of the unsteered state at that layer over the prompts
  (the residual stream; the activations for methods that steer neurons), mean over layers, 0 for methods without;
- *KL*: sum of p log(p / q) over the vocabulary in nats, p the steered model's next token, q the base model's; mean over
  the first `tokens` tokens of the base model's own greedy answer, which both are given.

They answer different questions: the first what a probe reads, the second how far the state is moved, the third what
the model makes of it. Where answers always begin with the same word, KL at the first token says little: take more
`tokens`. A window that starts after the first answer token has norm 0 here.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isfinite

import numpy as np
import pandas as pd
import torch

from ..activations import capture
from ..errors import WorkbenchError
from ..models import Model, Prompt, question
from ..probes import Probes
from .intervention import Intervention
from .run import Run
from .session import Session

Family = Callable[[float], Intervention]
"""A number -> a steering, such as `lambda x: CAA(probes, "power", strength=x)`."""

STEPS, BATCH = 60, 16


def norms(model: Model, prompts: Iterable[Prompt], layers: Iterable[int], site: str = "residual") -> tuple[float, ...]:
    """Median length of the unsteered state at the last prompt token, layer by layer. site: see `Intervention`."""
    return tuple(_median_lengths(_states(model, prompts, layers, site)))


def convert(
    model: Model, steer: Intervention, prompts: Sequence[Prompt], probes: Probes | None = None, tokens: int = 1
) -> pd.DataFrame:
    """The strength of a steering on each prompt: a table of prompt, p_base, p, norm, kl; see the module's page.

    p_base: P_V there without steering. probes: logistic ones that read P_V of the steered value, for methods without a
    probability of their own (CAA, ICA); without any, p_base and p are NaN. Prompts for which the gate stays closed
    count with norm 0 and KL 0.
    """
    return _Base(model, prompts, probes, tokens).convert(steer)


def at_norm(
    model: Model, family: Family, prompts: Sequence[Prompt], norm: float, between: tuple[float, float] = (0.0, 1.0),
    tolerance: float = 0.01,
) -> Intervention:  # fmt: skip
    """The steering of a family whose norm, mean over prompts, is `norm`, to a share `tolerance` of it.

    between: the family's numbers to search by halving; the norm must rise or fall between them without a leap. For
    targets search their logits: `lambda x: ConVA(probes, "power", target=expit(x))`, between=(-5, 15).
    Raises WorkbenchError where `norm` lies outside what the two ends give.
    """
    return _search(_Base(model, prompts), family, "norm", norm, between, tolerance)


def at_kl(
    model: Model, family: Family, prompts: Sequence[Prompt], kl: float, between: tuple[float, float] = (0.0, 1.0),
    tolerance: float = 0.01, tokens: int = 1,
) -> Intervention:  # fmt: skip
    """The steering of a family whose KL from the base model, mean over prompts, is `kl` nats; else as `at_norm`."""
    return _search(_Base(model, prompts, tokens=tokens), family, "kl", kl, between, tolerance)


def at_probability(
    model: Model, family: Family, prompts: Sequence[Prompt], p: float, between: tuple[float, float] = (0.0, 1.0),
    tolerance: float = 0.01, probes: Probes | None = None,
) -> Intervention:  # fmt: skip
    """The steering of a family whose P_V, mean over prompts, is `p`; else as `at_norm`, `probes` as in `convert`."""
    return _search(_Base(model, prompts, probes), family, "p", p, between, tolerance)


class _Base:
    """What strength is measured against: the model unsteered, on some prompts."""

    def __init__(self, model: Model, prompts: Sequence[Prompt], probes: Probes | None = None, tokens: int = 1):
        asked = "The strength of a steering was asked for."
        if isinstance(prompts, str) or not len(prompts):
            raise WorkbenchError(asked, found=f"prompts {prompts!r}", allowed="a list of one prompt or more")
        if tokens < 1:
            raise WorkbenchError(asked, found=f"tokens={tokens}", allowed="1 or more")
        if model.active:
            raise WorkbenchError(asked, found=f"{model.active[0]!r} is on", do="Leave its context first.")
        self.model, self.prompts, self.probes = model, list(prompts), probes
        self._answers: list[list[int]] = [[] for _ in self.prompts]
        for _ in range(tokens - 1):
            for answer, spoken in zip(self._answers, self._spoken(self.prompts)[0], strict=True):
                answer.append(int(spoken[-1].argmax()))
        self._plain = self._spoken(self.prompts)[0]
        self._known: dict[tuple[tuple[int, ...], str], torch.Tensor] = {}

    def convert(self, steer: Intervention) -> pd.DataFrame:
        layers = tuple(steer.layers)
        edited, _ = steer.edit_prompts(self.prompts, self.model)
        steered, trace = self._spoken(edited, steer)
        asked = [question(prompt) for prompt in self.prompts]
        kl = (steered.exp() * (steered - self._plain)).sum(-1).mean(-1).clamp(min=0).tolist()
        table = pd.DataFrame({"prompt": asked, "p_base": float("nan"), "p": float("nan"), "norm": 0.0, "kl": kl})
        if layers:
            states = self._unsteered(layers, steer.site)
            unit = dict(zip(layers, _median_lengths(states), strict=True))
            table["norm"] = (trace["eps"] / trace["layer"].map(unit)).groupby(trace["row"]).mean()
            table["p"] = trace["p_after"].groupby(trace["row"]).mean()
            read = [steer.probability(layer, state) for layer, state in zip(layers, states, strict=True)]
            if known := [p for p in read if p is not None]:
                table["p_base"] = torch.stack(known).mean(0).numpy()
        if self.probes is not None:
            table["p_base"], table["p"] = self._read(self.probes, steer, edited)
        return table

    def _read(self, probes: Probes, steer: Intervention, edited: list[Prompt]) -> tuple[np.ndarray, np.ndarray]:
        """P_V of each prompt by other probes, without and with the steering, mean over its layers."""
        probes.check(self.model)
        value = getattr(steer.matched or steer, "value", None)
        if probes.method != "logistic" or not isinstance(value, str):
            raise WorkbenchError(f"P under {steer!r} was asked for.", found=f"probes by {probes.method}",
                                 allowed="logistic probes, and a steering of one value")  # fmt: skip
        probes.check_values([value])
        layers = list(steer.layers) or [probes.choose_layer()]

        def read(prompts: list[Prompt]) -> np.ndarray:
            acts = capture(self.model, self.model.render(prompts), layers=layers)
            return probes.probability(acts).sel(value=value).mean("layer").values

        plain = read(self.prompts)
        with self._on(steer):
            return plain, read(edited)

    def _on(self, steer: Intervention | None, lengths: list[int] | None = None) -> AbstractContextManager[Run | None]:
        """Inside, the model is steered and traced; methods that edit prompts only change nothing more."""
        return Session.of(self.model).on(steer.start(self.model, True, lengths)) if steer else nullcontext()

    def _unsteered(self, layers: tuple[int, ...], site: str) -> torch.Tensor:
        if (layers, site) not in self._known:
            self._known[layers, site] = _states(self.model, self.prompts, layers, site)
        return self._known[layers, site]

    @torch.no_grad()
    def _spoken(self, prompts: list[Prompt], steer: Intervention | None = None) -> tuple[torch.Tensor, pd.DataFrame]:
        """Log probabilities (prompt, answer token, vocabulary), float64, given prompts and the base model's answers;
        and the trace at the last prompt token.
        """
        model, count = self.model, len(self._answers[0]) + 1
        ids = model.encode(prompts, chat=True)
        model.check_length(ids, model.render(prompts), room=count - 1)
        spoken, traces = [], [pd.DataFrame()]
        for first in range(0, len(ids), BATCH):
            own = ids[first : first + BATCH]
            step, mask = model.pad([[*i, *a] for i, a in zip(own, self._answers[first:], strict=False)], side="left")
            given = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0), "use_cache": False}
            with self._on(steer, [*map(len, own)]) as run:
                logits = model.speaker(input_ids=step, **given).logits[:, -count:]
            spoken.append(logits.double().log_softmax(-1).cpu())
            if run is not None:
                traces.append(run.trace.assign(row=run.trace["row"] + first).drop_duplicates(["row", "layer"]))
        return torch.cat(spoken), pd.concat(traces, ignore_index=True)


def _states(model: Model, prompts: Iterable[Prompt], layers: Iterable[int], site: str) -> torch.Tensor:
    """State (layer, prompt, d) at the last prompt token, in memory, float32."""
    layers = list(layers)
    hook = "resid_post" if site == "residual" else "mlp.hook_post"
    states = torch.from_numpy(capture(model, model.render(prompts), layers=layers, hook=hook).values)
    if site != "mlp_out":
        return states
    into = [model.neurons(layer) for layer in layers]
    return torch.stack([p(a.to(next(p.parameters()))).float().cpu() for p, a in zip(into, states, strict=True)])


def _median_lengths(states: torch.Tensor) -> list[float]:
    return np.median(states.norm(dim=-1).numpy(), axis=1).tolist()


def _search(
    base: _Base, family: Family, name: str, wanted: float, between: tuple[float, float], tolerance: float
) -> Intervention:
    """Halve `between` until the mean of a column of `convert` is `wanted`."""
    asked = f"A steering with a mean {name} of {wanted:g} was asked for."
    if not (isfinite(wanted) and wanted > 0):
        raise WorkbenchError(asked, allowed="above 0")

    def measure(x: float) -> tuple[Intervention, float]:
        steer = family(x)
        return steer, float(base.convert(steer)[name].mean())

    low, high = between
    ends = [measure(low), measure(high)]
    for steer, found in ends:
        if abs(found - wanted) <= tolerance * wanted:
            return steer
    (_, least), (_, most) = ends
    if not min(least, most) <= wanted <= max(least, most):  # so written, NaN is out of reach too
        raise WorkbenchError(asked, found=f"{least:.4g} at {low:g} and {most:.4g} at {high:g}",
                             do="Widen between=, or change layers, scope or gate.")  # fmt: skip
    for _ in range(STEPS):
        middle = (low + high) / 2
        steer, found = measure(middle)
        if abs(found - wanted) <= tolerance * wanted:
            return steer
        if (found < wanted) == (least < most):
            low = middle
        else:
            high = middle
    raise WorkbenchError(asked, found=f"a leap past it at {middle:.6g}",  # pyright: ignore[reportPossiblyUnboundVariable]
                         do="Ask for another strength, or a wider tolerance=.")  # fmt: skip
