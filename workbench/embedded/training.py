"""Train an embedded model from scratch: grammar -> tokenizer -> small Llama -> Hugging Face folder.

Three things differ from ordinary training, and only in training (why: see the model card):

1. *Gist mask.* In part of the batches the attention mask is causal and, in addition, what is said before a
   question reaches the answer only through sentence ends and the last prompt token, and those only from the
   middle of the model on (block MIDDLE), so that the speaker's position must stand in the middle of the residual
   stream at the tokens where probes read. The share of such batches falls towards the end; inference is plainly
   causal.
2. *Readout.* A linear readout of the speaker's value distribution, from the middle layer at sentence ends and
   the last prompt token, from a late layer in the answer. Its weight falls to zero by 90 % of the training; it is
   no part of the model.
3. *Interchange.* Two dialogues exchange, in the plane that the readout reads, what stands at their last prompt
   tokens in the middle of the model, and each is answered as the other's speaker would: interchange intervention
   training (Geiger et al. 2022), which makes the readable position the one that answers follow.

The schedule counts tokens, so a run is reproducible; a checkpoint is written about every five minutes and an
interrupted run goes on from it. A finished run goes on where `tokens` is raised: the learning rate rises to its
place in the longer schedule and falls to zero again. `training.json` tells the stages.
"""

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..errors import WorkbenchError
from ..values import VALUES
from . import WORLDS
from .grammar import Document, World, every_text

LENGTHS = (20, 32, 48, 64, 88, 128)  # batches are padded to these: few shapes, so compilation pays
BATCH_TOKENS = 2048  # small: at this size steps teach more than tokens
POOL = 4000  # documents generated at a time; a checkpoint lies between pools
SLOW = ("sum", "choice", "choice", "colour")  # kinds of unrelated questions that are learnt slowest
SLOW_FROM, SLOW_SHARE = 4.5e6, 0.33  # from so many tokens on, so many more documents are of those kinds
INTERCHANGED = 0.15  # so many pairs of interchanged dialogues for each other document
MIDDLE = 4  # after this many of the eight blocks the readout reads, and an answer may begin to look back
LATE = 7  # after this many blocks the readout reads the answer
SHAPE: dict[str, Any] = dict(
    hidden_size=160, intermediate_size=448, num_hidden_layers=8, num_attention_heads=5, num_key_value_heads=5
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}<|end|>"
    "{% elif m['role'] == 'user' %}<|user|>{{ m['content'] }}"
    "{% else %}{{ raise_exception('The embedded models know the roles user and assistant.') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


# -- tokenizer -----------------------------------------------------------------------------------------


def make_tokenizer():
    """Every word of the world is one token; anything else falls apart into byte pairs, so no text is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=True)
    texts = every_text()
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = splitter
    trainer = trainers.BpeTrainer(
        vocab_size=256 + 128,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    base.train_from_iterator(texts, trainer)
    trained = json.loads(base.to_str())["model"]
    vocabulary = dict(trained["vocab"])
    words = sorted({piece for text in texts for piece, _ in splitter.pre_tokenize_str(text)})
    for word in words:
        vocabulary.setdefault(word, len(vocabulary))
    model = models.BPE(vocab=vocabulary, merges=[tuple(m) for m in trained["merges"]], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splitter
    # Words bring their space along; the first of a text does without.
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


# -- batches -------------------------------------------------------------------------------------------


class Encoded:
    """Token ids of one document with what the masks need, all of length n_tokens.

    sentence: index of the piece; region: 0 begin and role, 1 context, 2 question, 3 prompt end, 4 answer and end;
    ends: whether the token ends a sentence or is the last prompt token.
    """

    __slots__ = ("ids", "sentence", "region", "ends", "theta", "answer_theta")
    REGION = {"role": 0, "context": 1, "question": 2, "prompt_end": 3, "answer": 4, "end": 4}

    def __init__(self, document: Document, pieces: list[list[int]], begin: int):
        ids, sentence, region, ends = [begin], [0], [0], [False]
        for i, (piece, tokens) in enumerate(zip(document.pieces, pieces, strict=True), start=1):
            ids += tokens
            sentence += [i] * len(tokens)
            region += [self.REGION[piece.tag]] * len(tokens)
            ends += [False] * (len(tokens) - 1) + [piece.tag in ("context", "prompt_end", "answer")]
        self.ids, self.theta = ids, document.theta
        self.answer_theta = document.theta if document.answer_theta is None else document.answer_theta
        self.sentence, self.region, self.ends = np.array(sentence), np.array(region), np.array(ends)


def encode(documents: list[Document], tokenizer) -> list[Encoded]:
    flat = [piece.text for d in documents for piece in d.pieces]
    tokens = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    return [Encoded(d, [next(tokens) for _ in d.pieces], tokenizer.bos_token_id) for d in documents]


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


def make_batches(
    encoded: list[Encoded],
    pairs: list[tuple[Encoded, Encoded]],
    world: World,
    gist_share: float,
    rng: random.Random,
    pad: int,
):
    """Yields (ids, masks, targets, readout, exchange) for one pool, in random order.

    masks: additive, for the two halves of the blocks, each (row, 1, query, key). readout: two lists, sentence ends and
    answer tokens, of (index into the flattened batch, value distribution). exchange: None, or the position of the last
    prompt token in each row of a batch whose rows 2i and 2i + 1 are interchanged.
    """
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
        targets = np.full_like(ids, -100)
        targets[:, :-1] = np.where(ids[:, 1:] == pad, -100, ids[:, 1:])
        additive = torch.zeros(masks.shape).masked_fill_(~torch.from_numpy(masks), -1e9)[:, :, None]
        tensors = [(torch.tensor(w, dtype=torch.long), torch.tensor(v, dtype=torch.float32)) for w, v in readout]
        exchange = torch.tensor([int(np.flatnonzero(e.region == 3)[0]) for e in members]) if exchanged else None
        yield torch.from_numpy(ids), additive, torch.from_numpy(targets), tensors, exchange


# -- optimiser -----------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz iterations, for the matrices inside the blocks (K. Jordan, 2024).

    Matrices of one shape are stacked, and the iteration runs in float32: torch's own Muon works in bfloat16, one
    matrix at a time, which is slow on CPUs.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list] = {}
            for p in group["params"]:
                shapes.setdefault(p.shape, []).append(p)
            for shape, members in shapes.items():
                updates = []
                for p in members:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(momentum, group["momentum"]))
                x = torch.stack(updates)
                tall = shape[0] > shape[1]
                x = x.mT if tall else x
                x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
                for _ in range(5):
                    gram = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
                x = (x.mT if tall else x) * max(1.0, shape[0] / shape[1]) ** 0.5
                for p, update in zip(members, x, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


def forward(model, ids: torch.Tensor, masks: torch.Tensor, exchange=None, plane: Any = None):
    """(logits, residual after MIDDLE blocks, residual after LATE blocks); masks as `make_batches` yields them.

    exchange (row): positions whose residuals rows 2i and 2i + 1 exchange after MIDDLE blocks, within `plane`
    (d_model, 2).
    """
    body = model.model
    hidden = body.embed_tokens(ids)
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    rotary = body.rotary_emb(hidden, positions)
    middle = late = hidden
    for i, block in enumerate(body.layers, start=1):
        hidden = block(hidden, attention_mask=masks[int(i > MIDDLE)], position_embeddings=rotary)
        if i == MIDDLE:
            middle = hidden
            if exchange is not None:
                rows = torch.arange(len(ids), device=ids.device)
                own = hidden[rows, exchange]
                other = own.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
                moved = own + (other - own) @ plane @ plane.mT
                hidden = hidden.index_put((rows, exchange), moved)
        late = hidden if i == LATE else late
    return model.lm_head(body.norm(hidden)), middle, late


def readout_plane(readout: torch.nn.Linear) -> torch.Tensor:
    """Orthonormal basis (d_model, 2) of the plane in which the readout tells values apart."""
    weight = readout.weight.detach()
    return torch.linalg.svd(weight - weight.mean(0), full_matrices=False).Vh[:2].mT.contiguous()


# -- the run -------------------------------------------------------------------------------------------


def schedule(done: float) -> tuple[float, float, float]:
    """(learning-rate factor, readout weight, gist share) at a share `done` of the token budget."""
    rate = min(1.0, done / 0.02) * min(1.0, (1 - done) / 0.75)
    readout = 0.5 * min(1.0, max(0.0, (0.9 - done) / 0.3))
    gist = 0.8 if done < 0.5 else 0.8 - 0.5 * (done - 0.5) / 0.5
    return rate, readout, gist


def new_model(tokenizer, seed: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SHAPE,
    )
    return LlamaForCausalLM(config).float()


def train(
    name: str,
    tokens: float = 4.5e6,
    folder: Path | str | None = None,
    threads: int = 1,
    minutes: float = math.inf,
    compiled: bool = True,
    device: str = "cpu",
    say=print,
) -> Path:
    """Train embedded model `name` to `tokens` tokens and save it as a Hugging Face folder (build/embedded/NAME).

    minutes: stop after that long with a checkpoint; the same call goes on from it. A model trained to fewer tokens goes
    on to `tokens`. Returns the folder.
    """
    if name not in WORLDS:
        raise WorkbenchError(f"An embedded world called {name!r}.", allowed=", ".join(WORLDS))
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    folder = Path(folder) if folder else Path("build", "embedded", name)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.safetensors"
    seed = 1000 + WORLDS.index(name)
    world, tokenizer = World(name), make_tokenizer()
    pad = tokenizer.get_vocab()["<|pad|>"]
    model = new_model(tokenizer, seed)
    model.to(device)  # pyright: ignore[reportArgumentType]
    readout = torch.nn.Linear(SHAPE["hidden_size"], len(VALUES)).to(device)
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or ".layers." not in n]
    muon = Muon(matrices, lr=0.02)
    adam = torch.optim.AdamW(
        [{"params": rest, "weight_decay": 0.0}, {"params": list(readout.parameters()), "weight_decay": 0.1}],
        lr=3e-3, betas=(0.9, 0.98))  # fmt: skip
    optimisers = {"muon": (muon, 0.02), "adam": (adam, 3e-3)}
    progress = {"pool": 0, "tokens": 0, "seconds": 0.0}
    if checkpoint.exists():
        progress = _load_checkpoint(checkpoint, model, readout, optimisers)
        say(f"{name}: going on from {progress['tokens'] / 1e6:.2f}M tokens")
    if tokens > progress["tokens"]:
        progress["stages"] = sorted({*progress.get("stages", []), tokens})
    run = torch.compile(forward) if compiled else forward
    if compiled:
        torch._dynamo.config.recompile_limit = 4 * len(LENGTHS)
    start = saved = time.time()
    before = progress["seconds"]
    model.train()
    while progress["tokens"] < tokens:
        rng = random.Random(seed * 100_003 + progress["pool"])
        documents = [world.document(rng) for _ in range(POOL)]
        if progress["tokens"] >= SLOW_FROM:
            more = range(int(SLOW_SHARE * POOL))
            documents += [world.unrelated_document(rng, rng.choice(SLOW), rng.uniform(0, math.tau)) for _ in more]
        pool = encode(documents, tokenizer)
        crossed = encode([d for _ in range(int(INTERCHANGED * POOL)) for d in world.interchange(rng)], tokenizer)
        pairs = list(zip(crossed[::2], crossed[1::2], strict=True))
        losses: list[float] = []
        reads: list[float] = []
        for ids, masks, targets, reading, exchange in make_batches(
            pool, pairs, world, schedule(min(1, progress["tokens"] / tokens))[2], rng, pad
        ):
            rate, weight, _ = schedule(min(1.0, progress["tokens"] / tokens))
            crossing = () if exchange is None else (exchange.to(device), readout_plane(readout))
            logits, *hidden = run(model, ids.to(device), masks.to(device), *crossing)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten().to(device))
            losses.append(loss.item())
            for stream, (where, law) in zip(hidden, reading, strict=True):
                if weight > 0 and len(where):
                    read = readout(stream.flatten(0, 1)[where.to(device)])
                    read_loss = F.cross_entropy(read, law.to(device))
                    reads.append(read_loss.item())
                    loss = loss + weight * read_loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(rest, 1.0)
            for optimiser, top in optimisers.values():
                for group in optimiser.param_groups:
                    group["lr"] = top * rate
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            progress["tokens"] += int((targets != -100).sum())
            if progress["tokens"] >= tokens:
                break
        progress["pool"] += 1
        progress["seconds"] = before + time.time() - start
        say(
            f"{name}: {progress['tokens'] / 1e6:.2f}M tokens, loss {np.mean(losses):.4f}, "
            f"readout {np.mean(reads or [np.nan]):.4f}, "
            f"{progress['seconds'] / 60:.1f} min, {progress['tokens'] / progress['seconds']:.0f} tokens/s"
        )
        out_of_time = time.time() - start > 60 * minutes
        if time.time() - saved > 300 or out_of_time or progress["tokens"] >= tokens:
            _save_checkpoint(checkpoint, model, readout, optimisers, progress)
            save(model, tokenizer, folder, name, progress)
            saved = time.time()
        if out_of_time and progress["tokens"] < tokens:
            say(f"{name}: out of time at {progress['tokens'] / 1e6:.2f}M tokens; the same call goes on from here")
            break
    return folder


def save(model, tokenizer, folder: Path, name: str, progress: dict) -> None:
    """An ordinary Hugging Face folder in float16, with what it was trained on in `training.json`."""
    import copy

    model.config.workbench_world = name  # so that a folder elsewhere is known for what it is
    copy.deepcopy(model).half().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    record = {
        "world": name,
        "stages": progress.get("stages", []),
        "tokens": progress["tokens"],
        "minutes": round(progress["seconds"] / 60, 1),
        "torch": torch.__version__,
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def _save_checkpoint(path: Path, model, readout, optimisers, progress) -> None:
    from safetensors.torch import save_file

    tensors = {f"model.{k}": v for k, v in model.state_dict().items() if k != "lm_head.weight"}  # tied
    tensors |= {f"readout.{k}": v for k, v in readout.state_dict().items()}
    for name, (optimiser, _) in optimisers.items():
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{k}": v for k, v in state.items()}
    partial = path.with_suffix(".partial")
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, partial, {"progress": json.dumps(progress)})
    partial.replace(path)


def _load_checkpoint(path: Path, model, readout, optimisers) -> dict:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        progress = json.loads(file.metadata()["progress"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
    part = lambda prefix: {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}  # noqa: E731
    model.load_state_dict(part("model."), strict=False)
    readout.load_state_dict(part("readout."))
    for name, (optimiser, _) in optimisers.items():
        states: dict[int, dict] = {}
        for key, value in part(f"{name}.").items():
            index, _, field = key.partition(".")
            states.setdefault(int(index), {})[field] = value
        optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    return progress
