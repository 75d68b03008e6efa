"""A judge by a Hugging Face text classifier on this machine: natural language inference, or a value classifier.

**nli.** Does the answer entail that it leans toward the value? Zero-shot classification (Yin et al. 2019):

    p = P(entailment | premise: the answer, hypothesis: "This answer speaks for {value}: {definition}.")

over all the model's labels: neutral counts against it. (Hugging Face's pipeline, asked about one label, leaves neutral
out, so that its score is never below p.)

**classifier.** As the gates' detector reads prompts (`gates.detector`): p = mean of the outputs whose label names the
value.

**Parameters.** threshold: 1 where p > threshold, else 0; a pair (low, high): 1 above high, .5 above low, else 0.
hypothesis: the sentence, with {value} and {definition}. fluency: another judge, asked whether answers are fluent; None:
NaN, which this judge cannot tell. Each text is read once; one that is too long for the model, or no valid Unicode, is
NaN and counted in `undefined`: nothing is cut in silence.

It misleads where the answer names a value only to leave it: such models read words more than decisions. Calibrate the
threshold, and hold it against people, before it is believed.

**Source.** Yin, Hay & Roth 2019, arXiv 1909.00161; the classifier's rule: Jin et al. 2025, arXiv 2507.11316.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import WorkbenchError
from ..gates.detector import Classifier, load_classifier
from ..values import DEFINITIONS, check_value
from .judges import Judge, ask

KINDS = ("nli", "classifier")
HYPOTHESIS = "This answer speaks for {value}: {definition}."


class LocalJudge:
    """Judges answers with a text classifier; see the module's page.

    model: a Hugging Face name, a local folder, or what `gates.load_classifier` returned; options are passed to it.
    Raises WorkbenchError for a model without safetensors or, for "nli", without one label that says entailment; when
    asked, for a value that no label of a value classifier names.
    """

    def __init__(self, model: str | Path | Classifier, kind: str = "nli", *,
                 threshold: float | tuple[float, float] = 0.5, hypothesis: str = HYPOTHESIS,
                 fluency: Judge | None = None, batch_size: int = 32, **options: Any):  # fmt: skip
        self.low, self.high = (threshold, threshold) if isinstance(threshold, int | float) else threshold
        if kind not in KINDS or not 0 <= self.low <= self.high < 1 or "{value}" not in hypothesis:
            raise WorkbenchError("A judge by a local model was asked for.",
                                 found=f"kind {kind!r}, threshold {threshold!r}, hypothesis {hypothesis!r}",
                                 allowed=f"{' or '.join(map(repr, KINDS))}, 0 <= low <= high < 1, a hypothesis with "
                                 "{value}")  # fmt: skip
        self.classifier = model if isinstance(model, Classifier) else load_classifier(model, **options)
        self.name, self.kind, self.hypothesis = self.classifier.name, kind, hypothesis
        self.fluency, self.batch_size = fluency, batch_size
        self._undefined: set[str] = set()
        tokenizer, config = self.classifier.tokenizer, self.classifier.network.config
        self._limit = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", 10**6))
        if kind == "nli":
            entail = [n for n, label in enumerate(self.classifier.labels) if label.lower().startswith("entail")]
            if len(entail) != 1:
                raise WorkbenchError(f"A judge by {self.name} was asked for.",
                                     found=f"the labels {', '.join(self.classifier.labels[:8])}",
                                     allowed="one label that begins with entail",
                                     do="Take a model of natural language inference whose config.json names its labels "
                                     "(id2label), or kind='classifier'.")  # fmt: skip
            self._entails = entail[0]

    @property
    def undefined(self) -> int:
        """Answers that could not be read."""
        return len(self._undefined)

    def many(self, questions: Sequence[str], answers: Sequence[str],
             values: Sequence[Sequence[str]]) -> tuple[list[dict[str, float]], list[float]]:  # fmt: skip
        """Of each answer the scores of its `values`, and its fluency by the other judge; questions are not read."""
        pairs = [(row, check_value(value)) for row, own in enumerate(values) for value in own]
        p = self.probabilities([answers[row] for row, _ in pairs], [value for _, value in pairs])
        found: list[dict[str, float]] = [{} for _ in answers]
        for (row, value), one in zip(pairs, p, strict=True):
            found[row][value] = np.nan if np.isnan(one) else 1.0 if one > self.high else 0.5 if one > self.low else 0.0
        if self.fluency is None:
            return found, [np.nan] * len(answers)
        return found, ask(self.fluency, questions, answers, [[]] * len(answers))[1]

    def control(self, answer: str, value: str) -> float:
        return self.many([""], [answer], [[value]])[0][0][value]

    def fluent(self, answer: str) -> float:
        return self.many([""], [answer], [[]])[1][0]

    def probabilities(self, answers: Sequence[str], values: Sequence[str]) -> np.ndarray:
        """p of each answer for the value beside it, float64; NaN where it cannot be read."""
        said = [{"value": check_value(value), "definition": DEFINITIONS[value]} for value in values]
        texts: list[Any] = list(answers)
        if self.kind == "nli":
            texts = [(text, self.hypothesis.format(**one)) for text, one in zip(answers, said, strict=True)]
        fits = {text: self._fits(text) for text in dict.fromkeys(texts)}
        self._undefined |= {text for text, key in zip(answers, texts, strict=True) if not fits[key]}
        rows = [row for row, key in enumerate(texts) if fits[key]]
        p = np.full(len(texts), np.nan)
        read = self.classifier([texts[row] for row in rows], self.batch_size)
        for row, outputs in zip(rows, read, strict=True):
            p[row] = outputs[self._entails if self.kind == "nli" else self.classifier.about(values[row])].mean()
        return p

    def _fits(self, text: str | tuple[str, str]) -> bool:
        parts = (text,) if isinstance(text, str) else text
        try:
            "".join(parts).encode()
        except UnicodeEncodeError:  # a lone surrogate, at which tokenizers fail
            return False
        return len(self.classifier.tokenizer(*parts)["input_ids"]) <= self._limit
