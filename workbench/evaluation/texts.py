"""What can be said of answers without a judge: their variety, their repetitions, how a model takes them."""

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from ..activations.forward import batches
from ..errors import WorkbenchError
from ..models import Model, Prompt

WORD = re.compile(r"\w+|[^\w\s]")
BATCH_TOKENS = 4096


def distinct_n(texts: Iterable[str], n: int = 2) -> float:
    """Different n-grams of words over all n-grams, all texts together; NaN where no text has n words.

    1 where no n-gram comes twice. It falls as texts grow in number and length: compare equally many answers. A word is
    a run of letters and digits, or one other sign; case does not count. Source: Li et al. 2016, distinct-1 and -2.
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def repetition(text: str, n: int = 3) -> float:
    """Share of a text's n-grams of words that it has said before, 0 to 1; NaN where it has fewer than n words.

    1 - different n-grams / n-grams: seq-rep-n of Welleck et al. 2020 (there n = 4, for longer texts). Words as in
    `distinct_n`.
    """
    grams = list(_grams(text, n))
    return 1 - len(set(grams)) / len(grams) if grams else float("nan")


def _grams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    if n < 1:
        raise WorkbenchError(f"N-grams of {n} words were asked for.", allowed="1 or more")
    words = WORD.findall(text.lower())
    return zip(*(words[start:] for start in range(n)), strict=False)


@torch.inference_mode()
def perplexity(
    model: Model, questions: Sequence[Prompt], answers: Sequence[str], batch_tokens: int = BATCH_TOKENS
) -> np.ndarray:
    """Perplexity of each answer under the unsteered model, given its question: exp(mean nats per token), (answer,).

    The question stands in the chat template as it was asked, without what a method adds to it; the answer's own tokens
    follow, not its end token. NaN for an empty answer, and where both do not fit the context. Low is not good: an
    answer that repeats itself is easily foreseen, and an uncontrolled model finds controlled answers strange.
    batch_tokens: padded tokens per forward pass.

    Raises WorkbenchError while an intervention is on, and for unequally many questions and answers.
    """
    asked = f"The perplexity of {len(answers)} answers under {model.name} was asked for."
    if model.active:
        raise WorkbenchError(asked, found=f"{model.active[0]!r} is on", do="Leave its context first.")
    if len(questions) != len(answers):
        raise WorkbenchError(asked, found=f"{len(questions)} questions")
    prompts = model.encode(questions, chat=True)
    said = [list(model.tokenizer(text, add_special_tokens=False).input_ids) for text in answers]
    out = np.full(len(answers), np.nan)
    rows = [r for r, own in enumerate(said) if own and prompts[r] and len(prompts[r]) + len(own) <= model.context]
    for batch in batches([len(prompts[r]) + len(said[r]) for r in rows], batch_tokens):
        own = [rows[at] for at in batch]
        ids, mask = model.pad([prompts[r] + said[r] for r in own], side="right")  # no real token sees a pad
        words = model.speaker(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        nats = -words.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0].double().cpu().numpy()
        for r, row in zip(own, nats, strict=True):
            first = len(prompts[r]) - 1
            out[r] = np.exp(row[first : first + len(said[r])].mean())
    return out
