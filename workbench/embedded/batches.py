"""Documents as batches for training: token ids, gist masks, targets."""

import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from .grammar import Document, World
from .targets import Targets

LENGTHS = (16, 20, 24, 28, 32, 40, 48, 56, 64, 76, 88, 108, 128)  # batches are padded to these: few, for compilation
BATCH_TOKENS = 2048  # small: at this size steps teach more than tokens
QUESTION_WEIGHT = 0.25  # of the loss at the words of a question, which are mostly free choices
COPY_WEIGHT = 5.0  # at the words of an answer that only the question tells: the choice, unrelated answers


class Encoded:
    """Token ids of one document with what masks and loss need, all of length n_tokens.

    sentence: index of the piece; region: 0 begin and role, 1 context, 2 question, 3 prompt end, 4 answer and end;
    ends: whether the token ends a sentence or is the last prompt token; weight: of the loss at predicting the token;
    laws: (token, what may stand there, probabilities) where the grammar had a choice.
    """

    __slots__ = ("ids", "sentence", "region", "ends", "weight", "laws", "theta", "answer_theta")
    REGION = {"role": 0, "context": 1, "question": 2, "prompt_end": 3, "answer": 4, "end": 4}

    def __init__(self, document: Document, pieces: list[list[int]], begin: int, law: Targets | None = None):
        ids, sentence, region, ends = [begin], [0], [0], [False]
        laws: list[tuple[int, np.ndarray, np.ndarray]] = []
        for i, (piece, tokens) in enumerate(zip(document.pieces, pieces, strict=True), start=1):
            if law and piece.law:
                laws += [(len(ids) + place, support, p) for place, support, p in law(piece.law, tokens)]
            ids += tokens
            sentence += [i] * len(tokens)
            region += [self.REGION[piece.tag]] * len(tokens)
            ends += [False] * (len(tokens) - 1) + [piece.tag in ("context", "prompt_end", "answer")]
        self.ids, self.laws, self.theta = ids, laws, document.theta
        self.answer_theta = document.theta if document.answer_theta is None else document.answer_theta
        self.sentence, self.region, self.ends = np.array(sentence), np.array(region), np.array(ends)
        self.weight = np.ones(len(ids))
        lawless = [False] + [p.law is None for p, tokens in zip(document.pieces, pieces, strict=True) for _ in tokens]
        self.weight[self.region == 2] = QUESTION_WEIGHT
        self.weight[(self.region == 4) & np.array(lawless)] = COPY_WEIGHT
        if any(p.law and p.tag == "answer" for p in document.pieces):
            self.weight[-1] = 1.0  # as that of another reason, which might stand here instead of the end


def encode(documents: list[Document], tokenizer, law: Targets | None = None) -> list[Encoded]:
    flat = [piece.text for d in documents for piece in d.pieces]
    tokens = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    return [Encoded(d, [next(tokens) for _ in d.pieces], tokenizer.bos_token_id, law) for d in documents]


def gist_masks(e: Encoded) -> np.ndarray:
    """(2, n, n) bool, [first or second half of the blocks, query, key]: causal, the past only through sentence ends.

    In the first half an answer sees the question and its own sentence only; see the module's docstring.
    """
    n = len(e.ids)
    causal = np.tril(np.ones((n, n), bool))
    own = e.sentence[:, None] == e.sentence[None, :]
    query, key = e.region[:, None], e.region[None, :]
    ends = e.ends[None, :]
    seen = own | (key == 0)
    seen |= (query == 1) & (key == 1) & ends
    seen |= (query == 2) & (key == 2)
    seen |= (query == 3) & ((key == 2) | ends)
    seen |= (query == 4) & (key == 2)
    return np.stack([causal & seen, causal & (seen | ((query == 4) & (key >= 3) & ends))])


class Batch(NamedTuple):
    """masks: additive, for the two halves of the blocks, each (row, 1, query, key).

    at, token, share (n): the target as a sparse matrix, the weighted probability `share` of `token` being next at
    place `at` of the flattened batch; their entropy (nats per unit of weight) is what no model can go below.
    readout: two lists, sentence ends and answer tokens, of (place, value distribution). exchange: None, or the
    position of the last prompt token in each row of a batch whose rows 2i and 2i + 1 are interchanged.
    """

    ids: torch.Tensor
    masks: torch.Tensor
    at: torch.Tensor
    token: torch.Tensor
    share: torch.Tensor
    entropy: float
    n_tokens: int
    readout: list[tuple[torch.Tensor, torch.Tensor]]
    exchange: torch.Tensor | None


def make_batches(
    encoded: list[Encoded],
    pairs: list[tuple[Encoded, Encoded]],
    world: World,
    gist_share: float,
    rng: random.Random,
    pad: int,
) -> Iterator[Batch]:
    """The batches of one pool, in random order."""
    groups = []
    for exchanged, units in ((False, [(e,) for e in encoded]), (True, pairs)):
        buckets: dict[int, list] = {length: [] for length in LENGTHS}
        for unit in units:
            length = next((k for k in LENGTHS if max(len(e.ids) for e in unit) <= k), None)
            if length is not None:  # the few documents beyond the context are left out
                buckets[length].append(unit)
        for length, members in buckets.items():
            size = BATCH_TOKENS // length // (2 if exchanged else 1)
            whole = range(0, len(members) - size + 1, size)
            groups += [(length, exchanged, [e for unit in members[i : i + size] for e in unit]) for i in whole]
    rng.shuffle(groups)
    for length, exchanged, members in groups:
        ids = np.full((len(members), length), pad)
        masks = np.zeros((2, len(members), length, length), bool)
        plain = np.tril(np.ones((length, length), bool))
        gist = exchanged or rng.random() < gist_share
        readout: list[tuple[list[int], list[list[float]]]] = [([], []), ([], [])]
        for row, e in enumerate(members):
            n = len(e.ids)
            ids[row, :n] = e.ids
            masks[:, row] = plain
            if gist:
                masks[:, row, :n, :n] = gist_masks(e)
            if e.theta is not None:
                parts = (e.theta, e.ends & (e.region < 4)), (e.answer_theta, e.region == 4)
                for (where, laws), (theta, at) in zip(readout, parts, strict=True):
                    where += list(row * length + np.flatnonzero(at))
                    laws += [world.value_probabilities(theta, kappa=5.0)] * int(at.sum())
        additive = torch.zeros(masks.shape).masked_fill_(~torch.from_numpy(masks), -1e9)[:, :, None]
        tensors = [(torch.tensor(w, dtype=torch.long), torch.tensor(v, dtype=torch.float32)) for w, v in readout]
        exchange = torch.tensor([int(np.flatnonzero(e.region == 3)[0]) for e in members]) if exchanged else None
        yield Batch(torch.from_numpy(ids), additive, *_targets(members, length), tensors, exchange)


def _targets(members: list[Encoded], length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float, int]:
    at, token, share = [], [], []
    for row, e in enumerate(members):
        start = row * length - 1  # what stands before a token predicts it
        chosen = {place for place, *_ in e.laws}
        sure = [i for i in range(1, len(e.ids)) if i not in chosen]
        at.append(start + np.array(sure))
        token.append(np.array(e.ids)[sure])
        share.append(e.weight[sure])
        for place, support, probabilities in e.laws:
            at.append(np.full(len(support), start + place))
            token.append(support)
            share.append(e.weight[place] * probabilities)
    weight = sum(float(e.weight[1:].sum()) for e in members)
    entropy = sum(
        -e.weight[place] * float(probabilities @ np.log(probabilities))
        for e in members for place, _, probabilities in e.laws
    )  # fmt: skip
    places, tokens, shares = (torch.from_numpy(np.concatenate(x)) for x in (at, token, share))
    return places, tokens, (shares / weight).float(), entropy / weight, sum(len(e.ids) - 1 for e in members)
