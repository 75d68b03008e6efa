"""DetectorGate: a text classifier for human values reads the bare question; the published gate of ConVA.

**Rule.** The classifier gives each of its labels a probability: sigmoid of its logit where it was trained on several
labels at once, softmax where on one (`problem_type` in its config.json). With the labels that name the value V
("Security: personal" and "security: societal" for security; case, spaces and punctuation do not count),

    score = mean of their probabilities,        open where score > threshold

**Parameters.** `classifier`: a Hugging Face name, a local folder, or what `load_classifier` returned, which ten gates
can share. `threshold`: None takes g0(V) of Jin et al., `G0`; `also_below`: it opens for scores below that too, which
the published gate has for universalism. They belong to the published detector (a DeBERTa trained on the twenty
labels of Touché23) and mean little for another: `gate.measured(related, unrelated).calibrate()` sets its own.

It reads text and not the residual: `generate` knows the questions, a bare forward pass must be told them (`.on(model,
questions=...)`). An instruction before the question is not read. Scores are kept per prompt: each is read once.

**Source.** Jin et al., ACL 2025, arXiv 2507.11316 (released code). Labels: Kiesel et al., SemEval-2023 task 4.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch

from ..checkpoints import check_folder, choose, find, told
from ..errors import WorkbenchError
from ..models import Model
from ..values import VALUES, VALUES19, check_value
from .threshold import ThresholdGate, sides

G0: dict[str, float] = {
    "self-direction": 0.5, "stimulation": 0.02, "hedonism": 0.007, "achievement": 0.6, "power": 0.06,
    "security": 0.2, "conformity": 0.013, "tradition": 0.08, "benevolence": 0.2, "universalism": 0.39,
}  # fmt: skip
"""Published thresholds of the detector's scores, per value (Jin et al. 2025, released code)."""

G0_BELOW = {"universalism": 0.3}
"""Where the published gate opens for low scores too."""

ACTIVATIONS = ("sigmoid", "softmax")


class Classifier:
    """A text classifier and what it said so far. Made by `load_classifier`.

    labels: names of its outputs. activation: "sigmoid" or "softmax". provenance: name, commit, hash of its weights.
    """

    def __init__(self, name: str, network: Any, tokenizer: Any, labels: Sequence[str], activation: str,
                 provenance: dict[str, str]):  # fmt: skip
        self.name, self.network, self.tokenizer = name, network, tokenizer
        self.labels, self.activation, self.provenance = tuple(labels), activation, provenance
        self.said: dict[str, np.ndarray] = {}

    def __repr__(self) -> str:
        return f"Classifier({self.name!r}: {len(self.labels)} labels, {self.activation})"

    def __call__(self, prompts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Probabilities (prompt, label), float32. WorkbenchError for prompts that are too long, and for NaN."""
        new = sorted({prompt for prompt in prompts if prompt not in self.said}, key=len)
        limit = min(self.tokenizer.model_max_length, getattr(self.network.config, "max_position_embeddings", 10**6))
        for first in range(0, len(new), batch_size):
            batch = new[first : first + batch_size]
            read = self.tokenizer(batch, padding=True, return_tensors="pt").to(self.network.device)
            if (tokens := int(read["attention_mask"].sum(1).max())) > limit:
                raise WorkbenchError(f"Prompts were to be read by {self.name}.", found=f"one of {tokens} tokens",
                                     allowed=f"{limit}", do="Shorten it: nothing is cut in silence.")  # fmt: skip
            with torch.inference_mode():
                logits = self.network(**read).logits.float()
            if not bool(torch.isfinite(logits).all()):
                raise WorkbenchError(f"Prompts were to be read by {self.name}.", found="NaN or inf in its outputs")
            p = logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(-1)
            self.said.update(zip(batch, p.cpu().numpy(), strict=True))
        return np.array([self.said[prompt] for prompt in prompts], np.float32).reshape(len(prompts), len(self.labels))

    def about(self, value: str) -> list[int]:
        """The outputs whose label names a value. WorkbenchError where none does."""
        named = [_letters(value) in _letters(label) for label in self.labels]
        if not any(named):
            shown = ", ".join(self.labels[:20]) + ", ..." * (len(self.labels) > 20)
            raise WorkbenchError(f"A gate for {value} by {self.name} was asked for.",
                                 found=f"no such label among {shown}",
                                 do="Take a classifier whose config.json names its labels (id2label).")  # fmt: skip
        return [number for number, is_named in enumerate(named) if is_named]


def load_classifier(
    name: str | Path, revision: str | None = None, device: str | None = None, activation: str | None = None
) -> Classifier:
    """A Hugging Face text classifier by name or local folder, float32.

    activation: None takes what config.json says, as Hugging Face's pipeline does: many outputs without `problem_type`
    mean softmax, which is wrong for a detector of several labels at once whose author left it out.

    Only safetensors weights are read, and no code of the model's own is run. Raises WorkbenchError for what is not
    there, only .bin, without a trained classification head, or of one output that is no probability.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    asked = f"The text classifier {str(name)!r} was asked for."
    if activation not in (None, *ACTIVATIONS):
        raise WorkbenchError(f"Activation {activation!r} was asked for.", allowed="None, 'sigmoid', 'softmax'")
    folder, shown, _, revision = find(name, revision)
    try:
        check_folder(folder, shown)
    except WorkbenchError as problem:  # the command it offers is for language models
        do = problem.do and problem.do.replace("ForCausalLM", "ForSequenceClassification")
        raise WorkbenchError(asked, problem.found, problem.allowed, do) from None
    place, kind, _ = choose(folder, device, "float32")
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with told(asked, "a text classifier without code of its own, and its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **safe)
        network, report = AutoModelForSequenceClassification.from_pretrained(
            str(folder), dtype=kind, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True,
            **safe)  # fmt: skip
    config = network.config
    # transformers fills what is missing with random numbers, and goes on
    if bad := sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])}):
        raise WorkbenchError(asked, found=f"{type(network).__name__} without trained {', '.join(bad[:3])}",
                             allowed="a model with a classification head")  # fmt: skip
    if config.problem_type == "regression":
        raise WorkbenchError(asked, found="a regression, whose outputs are no probabilities")
    several = config.problem_type == "multi_label_classification" or config.num_labels == 1
    weights = hashlib.sha256()
    for file in sorted(folder.glob("model*.safetensors")):
        with file.open("rb") as stream:
            weights.update(hashlib.file_digest(stream, "sha256").digest())
    return Classifier(
        shown,
        network.eval().requires_grad_(False).to(place),
        tokenizer,
        [config.id2label[number] for number in range(config.num_labels)],
        activation or ("sigmoid" if several else "softmax"),
        {"classifier": shown, "revision": revision or "", "weights": f"sha256:{weights.hexdigest()}"},
    )


@dataclass(frozen=True, eq=False, repr=False)
class DetectorGate(ThresholdGate):
    """Open where a text classifier finds the value in the bare question; see the module's page.

    A loaded gate lacks its classifier until it is attached.
    """

    reads, layer = "text", None

    classifier: Classifier | str | Path | None
    value: str
    threshold: float | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    also_below: float | None = None
    criterion: str = "as given"
    oof: pd.DataFrame | None = None
    provenance: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        check_value(self.value, (*VALUES, *VALUES19))
        settings: dict[str, Any] = {}
        if self.threshold is None:
            if self.value not in G0:
                raise WorkbenchError(f"A gate for {self.value} was asked for.", found="no published threshold",
                                     do="Pass threshold=, then measure and calibrate it.")  # fmt: skip
            settings |= {"threshold": G0[self.value], "criterion": "Jin et al. 2025, g0"}
            settings |= {"also_below": G0_BELOW.get(self.value)}
        classifier = self.classifier
        if isinstance(classifier, str | Path):
            settings["classifier"] = classifier = load_classifier(classifier)
        if classifier is not None:
            classifier.about(self.value)
            said = {**classifier.provenance, "activation": classifier.activation}
            if self.provenance and self.provenance != said:
                raise WorkbenchError(
                    f"A gate by {self.provenance['classifier']} was to be used with {classifier!r}.",
                    found=", ".join(f"another {key}" for key in said if said[key] != self.provenance.get(key)),
                    allowed="the classifier that its threshold belongs to",
                )
            settings["provenance"] = said
        for name, setting in settings.items():
            object.__setattr__(self, name, setting)

    def attach(self, classifier: Classifier | str | Path) -> "DetectorGate":
        """The gate with the classifier that a loaded one lacks; WorkbenchError for another one."""
        return replace(self, classifier=classifier)

    def measured(self, related: Any, unrelated: Any) -> "DetectorGate":
        """The gate with its scores of these prompts as `oof`, for `calibrate`, `curve`, `rates` and figures.

        related, unrelated: texts, or tables with a column `question` or `prompt`. The detector was fitted on neither.
        """
        prompts, y = sides(related, unrelated)
        scores = self.scores(prompts).astype(np.float64)
        return replace(self, oof=pd.DataFrame({"prompt": prompts, "related": y, "score": scores}))

    def calibrate(self, max_false_positive: float | None = None, by: str = "false_positive") -> "DetectorGate":
        return replace(super().calibrate(max_false_positive, by), also_below=None)

    def score(self, residual: torch.Tensor) -> NoReturn:
        raise WorkbenchError(
            f"{self!r} was to be asked in a forward pass.",
            found="residuals, not the bare question that it reads",
            do="Use generate(model, prompts, steer=...), or .on(model, questions=[one for each row]).",
        )

    def decide(self, score: torch.Tensor) -> torch.Tensor:
        opened = super().decide(score)
        return opened if self.also_below is None else opened | (score < self.also_below)

    def scores(self, prompts: Iterable[str], instruction: str | None = None) -> np.ndarray:
        """Mean probability of the value's labels (prompt), float32, of the bare prompts, whatever the instruction."""
        if not isinstance(self.classifier, Classifier):
            raise WorkbenchError(
                "Scores of prompts were asked for.",
                found="a gate that was loaded without its classifier",
                do=f"gate.attach({self.provenance.get('classifier', 'name or folder')!r})",
            )
        return self.classifier(list(prompts))[:, self.classifier.about(self.value)].mean(1)

    @classmethod
    def _attached(cls, model: Model | None) -> dict[str, Any]:
        return {"classifier": None}

    @property
    def shown(self) -> str:
        below = "" if self.also_below is None else f" or < {self.also_below:g}"
        return f"{self.value}, score > {self.threshold:.3g}{below}, by {self.provenance.get('classifier', '?')}"


def _letters(text: str) -> str:
    return re.sub("[^a-z]", "", text.lower())
