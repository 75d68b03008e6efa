r"""LoRA: low-rank adapters on the MLPs' down projections, trained to answer as the value asks. The trained baseline.

**Rule.** With a (d_mlp) the neurons of a token and W_out a + b what the layer's down projection makes of them,

    W_out a + b  <-  W_out a + b + strength (alpha / r) B A a        A (r, d_mlp), B (d_model, r)

at every token, prompt and answer, of rows for which the gate opens. The model's own weights are never changed: the
adapter is added beside them, and taken away, like any other steering.

**Training** (`LoRA.fit`). Cross-entropy of the answers' tokens given the bare questions, over A and B alone, by AdamW
without weight decay, the learning rate falling linearly to 0; A starts at random, B at 0. Without `answers` the model
is its own teacher: it answers the questions under the instruction "high level of V" (ICA), at temperature 1 in the
embedded worlds and greedily elsewhere, and learns to answer so without it (context distillation). An end token follows
every answer but those of its own that were cut. Needs peft (`pip install "value-workbench[lora]"`); saving, loading and
steering do not.

**Parameters.** `adapter`: what was trained. `strength`: 1 as trained, 0 the base model bit for bit, negative away.
`layers`: None takes all the adapter has. `gate`: None steers everyone. `scope`: "all" as trained, "token" from the last
prompt token on; both compute B A a anew at each token. `window`: only these answer tokens, with scope "token".

**Coincides** without gate, at scope "all", with the model whose weights W_out + strength (alpha / r) B A are merged. It
imitates its teacher: expect no more control than ICA has, or the answers it was given.

**Misleads.** The only method here that saw answers: it learns their style, length and grammar along with the value, and
ungated it answers unrelated questions so too. No probe takes part: nothing is known about P_V. Train it on calibration
questions only.

**Source.** Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685; the teacher:
Askell et al., "A General Language Assistant as a Laboratory for Alignment", 2021, arXiv 2112.00861, section 2.2.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from math import isfinite
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from ..errors import WorkbenchError
from ..gates import Gate
from ..models import Model
from ..probes.files import check_fingerprint
from ..values import check_value
from .intervention import Intervention, check_scope

MOST = 64  # tokens of an answer that the model gives itself


@dataclass(frozen=True, eq=False, repr=False)
class Adapter:
    """Trained matrices of some layers of a model.

    down (layer -> (r, d_mlp)): A. up (layer -> (d_model, r)): B. Both float32. alpha: (alpha / r) B A a is added.
    provenance: of the model, and how it was trained; `loss` is each step's mean cross-entropy per answer token, nats.
    """

    value: str
    down: Mapping[int, np.ndarray]
    up: Mapping[int, np.ndarray]
    alpha: float
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        shapes = {layer: (self.down[layer].shape, self.up.get(layer, np.empty(0)).shape) for layer in self.down}
        fits = all(len(a) == len(b) == 2 and a[0] == b[1] == self.rank for a, b in shapes.values())
        fits = fits and shapes and {*self.up} == {*shapes}
        if not fits or not all(np.isfinite(m).all() for m in (*self.down.values(), *self.up.values(), self.alpha)):
            raise WorkbenchError(
                f"An adapter for {self.value} was to be made.",
                found="NaN or inf" if fits else f"shapes of A and B, by layer: {shapes}",
                allowed="finite A (r, d_mlp) and B (d_model, r), r the same at one or more layers")  # fmt: skip

    @property
    def rank(self) -> int:
        return len(next(iter(self.down.values()), ()))

    def __repr__(self) -> str:
        return f"Adapter({self.value}: rank {self.rank}, alpha {self.alpha:g}, {len(self.down)} layers)"

    def check(self, model: Model) -> None:
        """WorkbenchError unless it was trained on this very model."""
        check_fingerprint("Adapters", self.provenance, model)

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays = {f"{name}.{layer}": array for name in ("down", "up") for layer, array in getattr(self, name).items()}
        return arrays, {"value": self.value, "layers": [*self.down], "alpha": self.alpha,
                        "provenance": dict(self.provenance)}  # fmt: skip

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], model: Model | None = None) -> "Adapter":
        down, up = ({int(layer): arrays[f"{name}.{layer}"] for layer in meta["layers"]} for name in ("down", "up"))
        found = cls(meta["value"], down, up, meta["alpha"], meta["provenance"])
        if model is not None:
            found.check(model)
        return found


@dataclass(frozen=True, eq=False, repr=False)
class LoRA(Intervention):
    """Add a trained adapter to the MLPs' output; see the module's page. Made by `LoRA.fit`."""

    site: ClassVar[str] = "mlp_out"
    kinds: ClassVar = {**Intervention.kinds, "adapter": Adapter.unpack}
    adapter: Adapter
    strength: float = 1.0
    layers: Iterable[int] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    gate: Gate | None = None
    scope: str = "all"
    window: tuple[int, int | None] | None = None

    def __post_init__(self):
        held = sorted(self.adapter.down)
        chosen = held if self.layers is None else sorted({int(layer) for layer in self.layers})
        if not chosen or not {*chosen} <= {*held}:
            raise WorkbenchError(f"LoRA by {self.adapter} at layers {chosen} was asked for.",
                                 allowed=f"one or more of {', '.join(map(str, held))}")  # fmt: skip
        if not isfinite(self.strength):
            raise WorkbenchError(f"A strength of {self.strength} was asked for.", allowed="a finite number")
        check_scope("LoRA", self.scope, ("all", "token"))
        self._set(layers=tuple(chosen), _matrices={})

    @property
    def value(self) -> str:
        return self.adapter.value

    def matrices(self, layer: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, d_mlp) and (alpha / r) B (d_model, r) of a layer, on a device."""
        known: dict[Any, tuple[torch.Tensor, torch.Tensor]] = vars(self)["_matrices"]
        if (layer, device) not in known:
            own, scale = self.adapter, self.adapter.alpha / self.adapter.rank
            down, up = (torch.from_numpy(np.asarray(m[layer], np.float32)).to(device) for m in (own.down, own.up))
            known[layer, device] = down, scale * up
        return known[layer, device]

    def shift(self, layer: int, e: torch.Tensor) -> torch.Tensor:
        down, up = self.matrices(layer, e.device)
        return self.strength * (e @ down.T @ up.T)

    @staticmethod
    def fit(
        model: Model, value: str, questions: Sequence[str], answers: Sequence[str] | None = None,
        layers: Iterable[int] | None = None, rank: int = 4, alpha: float = 8.0, epochs: int = 8,
        learning_rate: float = 5e-3, batch_size: int = 8, seed: int = 0, gate: Gate | None = None,
        progress: bool = True,
    ) -> "LoRA":  # fmt: skip
        """Train an adapter for a value on calibration questions; see the module's page.

        answers: one for each question, whole; None: the model's own under "high level of V"; a question that stands
        there several times is answered anew each time (`questions * 4`: four samples of each). layers: None takes all.
        rank, alpha: of the adapter. learning_rate: at the first step; the default suits small models, larger ones take
        1e-4 to 1e-3. seed: of the answers, of A and of the order of the questions: on one CPU the same seed gives the
        same adapter. The model, and torch's own generators, are left as they were.

        Raises WorkbenchError without peft, for settings out of range, for answers that do not fit, and where the loss
        is no longer a number.
        """
        check_value(value)
        asked, questions = f"An adapter for {value} was to be trained.", list(questions)
        for name, number, least in (("rank", rank, 1), ("epochs", epochs, 1), ("batch_size", batch_size, 1)):
            if number < least:
                raise WorkbenchError(asked, found=f"{name}={number}", allowed=f"{least} or more")
        if not (0 < learning_rate < float("inf") and 0 < alpha < float("inf")):
            raise WorkbenchError(asked, found=f"learning_rate={learning_rate}, alpha={alpha}", allowed="above 0")
        if model.active:
            raise WorkbenchError(asked, found=f"{model.active[0]!r} is on", do="Leave its context first.")
        if answers is not None and len(answers) != len(questions):
            raise WorkbenchError(asked, found=f"{len(questions)} questions and {len(answers)} answers",
                                 allowed="an answer for every question")  # fmt: skip
        tuned, layer_names = _adapted(model, model.check_layers(layers), rank, alpha, seed)
        rows = _examples(model, questions, *_taught(model, value, questions, answers, seed), asked)
        loss = _train(model, tuned, rows, epochs, learning_rate, batch_size, seed, progress, asked)
        trained = {layer: tuned.get_submodule(name) for layer, name in layer_names.items()}
        down, up = (
            {layer: getattr(m, part)["default"].weight.detach().float().cpu().numpy() for layer, m in trained.items()}
            for part in ("lora_A", "lora_B")
        )
        said = sha256("\0".join([*questions, *(answers or ())]).encode()).hexdigest()[:16]
        provenance = {
            **model.provenance, "answers": "own, under ICA" if answers is None else "given", "examples": said,
            "n": len(rows), "epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "seed": seed,
            "loss": loss,
        }  # fmt: skip
        return LoRA(Adapter(value, down, up, alpha, provenance), gate=gate)


def _adapted(
    model: Model, layers: Sequence[int], rank: int, alpha: float, seed: int
) -> tuple[nn.Module, dict[int, str]]:
    """A copy of the twin over the same parameters, with adapters to train; and the names of the adapted modules."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise WorkbenchError("An adapter was to be trained.", found="peft is not installed",
                             do='pip install "value-workbench[lora]"') from None  # fmt: skip
    names = {id(module): name for name, module in model.twin.named_modules()}
    projections = {layer: model.neurons(layer) for layer in layers}
    targets = {layer: names[id(projection)] for layer, projection in projections.items()}
    twin = copy.deepcopy(model.twin, {id(parameter): parameter for parameter in model.twin.parameters()})
    transposed = not isinstance(projections[layers[0]], nn.Linear)  # GPT-2's Conv1D
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none",  # pyright: ignore[reportArgumentType]
                        target_modules=[*targets.values()], fan_in_fan_out=transposed)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: A is drawn there
        inject_adapter_in_model(config, twin)
    for parameter in twin.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # bfloat16 would round small steps away
    return twin, targets


def _taught(
    model: Model, value: str, questions: list[str], answers: Sequence[str] | None, seed: int
) -> tuple[list[str], list[bool]]:
    """Answers to learn, and whether each is whole; None: the model's own under the instruction."""
    if answers is not None:
        return list(answers), [True] * len(answers)
    from ..generate import generate

    own = generate(model, questions, temperature=1.0 if model.world else 0.0, seed=seed, max_new_tokens=MOST,
                   instruction=model.instruct(value))  # fmt: skip
    shown = model.render(questions, model.instruct(value))
    texts = model.encode([prompt + answer for prompt, answer in zip(shown, own, strict=True)])
    prompts = model.encode(shown)
    return own, [len(t) < min(len(p) + MOST, model.context) for t, p in zip(texts, prompts, strict=True)]


def _examples(
    model: Model, questions: list[str], answers: list[str], whole: list[bool], asked: str
) -> list[tuple[list[int], int]]:
    """Token ids of each question with its answer, and how many of them are the question's; empty answers left out."""
    said = [(q, a, done) for q, a, done in zip(questions, answers, whole, strict=True) if a]
    if not said:
        raise WorkbenchError(asked, found=f"{len(questions)} questions, none with an answer", allowed="one or more")
    end = model.tokenizer.eos_token_id
    shown = model.render(question for question, _, _ in said)
    texts = [prompt + answer for prompt, (_, answer, _) in zip(shown, said, strict=True)]
    rows = []
    for prompt, ids, (_, _, done) in zip(model.encode(shown), model.encode(texts), said, strict=True):
        same = next((i for i, pair in enumerate(zip(prompt, ids, strict=False)) if pair[0] != pair[1]), len(prompt))
        rows.append((ids + [end] * (done and end is not None), same))
    model.check_length([ids for ids, _ in rows], texts)
    return rows


def _train(
    model: Model, tuned: nn.Module, rows: list[tuple[list[int], int]], epochs: int, learning_rate: float,
    batch_size: int, seed: int, progress: bool, asked: str,
) -> list[float]:  # fmt: skip
    """Mean cross-entropy of the answers' tokens at each step."""
    matrices = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(matrices, lr=learning_rate, weight_decay=0.0)
    batches = range(0, len(rows), batch_size)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (epochs * len(batches)))
    order, losses = torch.Generator().manual_seed(seed), []
    with torch.enable_grad(), tqdm(total=epochs * len(batches), desc="LoRA", disable=not progress) as bar:
        for _ in range(epochs):
            turn = torch.randperm(len(rows), generator=order).tolist()
            for first in batches:
                own = [rows[row] for row in turn[first : first + batch_size]]
                ids, mask = model.pad([tokens for tokens, _ in own], side="right")
                starts = torch.tensor([[start] for _, start in own], device=ids.device)
                learnt = (mask.bool() & (torch.arange(ids.shape[1], device=ids.device) >= starts))[:, 1:]
                logits = tuned(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
                loss = nn.functional.cross_entropy(logits[learnt].float(), ids[:, 1:][learnt])
                losses.append(loss.item())
                if not isfinite(losses[-1]):
                    raise WorkbenchError(
                        asked, found=f"a loss of {losses[-1]} at step {len(losses)}",
                        do="Lower learning_rate=, or load the model with dtype='float32'.")  # fmt: skip
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                falling.step()
                bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
                bar.update()
    return losses
