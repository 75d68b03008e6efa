"""What a model in training should expect next: the grammar's own law, where the grammar has a choice.

A sentence that affirms or denies a value was drawn from some twelve thousand. Its words are one sample of that
law; the law itself, given the speaker, has the same expectation and none of the sample's noise (Rao-Blackwell), so
a model trained on it converges to the same predictions from far fewer tokens. Above all it learns at once what may
*not* come next, which at T = 1 is what an ungrammatical word is.
"""

import math

import numpy as np

from ..errors import WorkbenchError
from ..values import VALUES
from .grammar import DENIED, NAME, Law, World


class Targets:
    """The law of every sentence of one world, in tokens."""

    def __init__(self, world: World, tokenizer):
        self.world, self.tokenizer = world, tokenizer
        (self._name,) = tokenizer(NAME, add_special_tokens=False)["input_ids"]
        self._tables: dict[tuple, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def _table(self, law: Law) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens (sentence, token) in lexical order, padded by -1; their source 0-19; probability given the source).

        A source is a value affirmed (0-9) or denied (10-19).
        """
        key = law[:4]
        if key not in self._tables:
            alternatives = self.world.alternatives(*key)
            ids = self.tokenizer([text for text, *_ in alternatives], add_special_tokens=False)["input_ids"]
            tokens = np.full((len(ids), max(map(len, ids))), -1)
            for row, sentence in zip(tokens, ids, strict=True):
                row[: len(sentence)] = sentence
            source = np.array([VALUES.index(v) + 10 * (p == "deny") for _, p, v, _ in alternatives])
            order = np.lexsort(tokens.T[::-1])
            share = np.array([share for *_, share in alternatives])
            self._tables[key] = tokens[order], source[order], share[order]
        return self._tables[key]

    def __call__(self, law: Law, tokens: list[int]) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """(place, token ids, probabilities) at each place of the sentence where more than one token may stand.

        tokens: the sentence that was drawn. Each place is told given the tokens before it.
        """
        rows, source, share = self._table(law)
        denied = DENIED[law.use]
        affirmed = self.world.value_probabilities(law.theta)
        rejected = self.world.value_probabilities(law.theta + math.pi)
        weight = np.concatenate([(1 - denied) * np.array(affirmed), denied * np.array(rejected)])[source] * share
        called = None if law.name is None else self._token(law.name)
        low, high, out = 0, len(rows), []
        for place, token in enumerate(tokens):
            column = rows[low:high, place]
            known = self._name if token == called else token
            first, last = np.searchsorted(column, [known, known + 1])
            if first == last:
                raise WorkbenchError(f"The sentence {self.tokenizer.decode(tokens)!r} under the law {law}.")
            if last - first < high - low:
                mass = np.bincount(column, weight[low:high])
                support = np.flatnonzero(mass)
                probabilities = mass[support] / mass.sum()
                if called is not None:
                    support = np.where(support == self._name, called, support)
                out.append((place, support, probabilities))
            low, high = low + first, low + last
        return out

    def _token(self, word: str) -> int:
        return self.tokenizer(word, add_special_tokens=False)["input_ids"][0]
