"""Train an embedded model from scratch: grammar -> tokenizer -> small Llama -> Hugging Face folder.

Four things differ from ordinary training, and only in training (why: see the model card):

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
4. *Known law.* Where the grammar chooses, the target is its own distribution and not the sample (`targets.py`).

After each pool of documents the losses of unrelated answers are measured, and the next pool gets the more documents of
a kind the less it is known. The schedule counts tokens, so a run is reproducible; a checkpoint is written about
every five minutes and an interrupted run goes on from it. A finished run goes on where `tokens` is raised: the
learning rate rises to its place in the longer schedule and falls to zero again. `training.json` tells the stages.
"""

import json
import math
import random
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..errors import WorkbenchError
from ..values import VALUES
from . import WORLDS
from .batches import LENGTHS, encode, make_batches
from .grammar import UNRELATED_KINDS, World
from .muon import Muon
from .targets import Targets
from .tokenizer import load_tokenizer, make_tokenizer

POOL = 4000  # documents generated at a time; a checkpoint lies between pools
EXTRA = 1.5  # at most so many more documents are unrelated questions, most of them of the kinds that are known least
INTERCHANGED = 0.15  # so many pairs of interchanged dialogues for each other document
MIDDLE = 4  # after this many of the eight blocks the readout reads, and an answer may begin to look back
LATE = 7  # after this many blocks the readout reads the answer
SHAPE: dict[str, Any] = dict(
    hidden_size=160, intermediate_size=448, num_hidden_layers=8, num_attention_heads=5, num_key_value_heads=5
)


# -- the model ------------------------------------------------------------------------------------------


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


@contextmanager
def _denormals_as_zero():
    """Far faster where weights decay to almost nothing; set back, since it holds for the whole process."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@_denormals_as_zero()
def train(
    name: str,
    tokens: float = 16e6,
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
    folder = Path(folder) if folder else Path("build", "embedded", name)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.safetensors"
    seed = 1000 + WORLDS.index(name)
    world = World(name)
    tokenizer = load_tokenizer(folder) if checkpoint.exists() else make_tokenizer()
    law = Targets(world, tokenizer)
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
    progress = {"pool": 0, "tokens": 0, "seconds": 0.0, "losses": [1.0] * len(UNRELATED_KINDS)}
    if checkpoint.exists():
        progress |= _load_checkpoint(checkpoint, model, readout, optimisers)
        say(f"{name}: going on from {progress['tokens'] / 1e6:.2f}M tokens")
    if tokens > progress["tokens"] and progress.get("stages", [])[-1:] != [tokens]:
        progress["stages"] = [*progress.get("stages", []), tokens]
    run = torch.compile(forward) if compiled else forward
    if compiled:
        torch._dynamo.config.recompile_limit = 4 * len(LENGTHS)
    start = saved = time.time()
    before = progress["seconds"]
    model.train()
    while progress["tokens"] < tokens:
        rng = random.Random(seed * 100_003 + progress["pool"])
        documents = [world.document(rng) for _ in range(POOL)]
        extra = min(EXTRA, sum(progress["losses"]))  # nothing is spent on what is known
        kinds = rng.choices(UNRELATED_KINDS, progress["losses"], k=int(extra * POOL))
        documents += [world.unrelated_document(rng, kind, rng.uniform(0, math.tau)) for kind in kinds]
        pool = encode(documents, tokenizer, law)
        crossed = encode([d for _ in range(int(INTERCHANGED * POOL)) for d in world.interchange(rng)], tokenizer, law)
        pairs = list(zip(crossed[::2], crossed[1::2], strict=True))
        losses: list[float] = []
        reads: list[float] = []
        share_done = min(1.0, progress["tokens"] / tokens)
        for batch in make_batches(pool, pairs, world, schedule(share_done)[2], rng, pad):
            rate, weight, _ = schedule(min(1.0, progress["tokens"] / tokens))
            crossing = () if batch.exchange is None else (batch.exchange.to(device), readout_plane(readout))
            logits, *hidden = run(model, batch.ids.to(device), batch.masks.to(device), *crossing)
            told = logits.flatten(0, 1).log_softmax(-1)[batch.at.to(device), batch.token.to(device)]
            loss = -(told @ batch.share.to(device))
            losses.append(loss.item() - batch.entropy)
            for stream, (where, law_of_values) in zip(hidden, batch.readout, strict=True):
                if weight > 0 and len(where):
                    read = readout(stream.flatten(0, 1)[where.to(device)])
                    read_loss = F.cross_entropy(read, law_of_values.to(device))
                    reads.append(read_loss.item())
                    loss = loss + weight * read_loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(rest, 1.0)
            for optimiser, top in optimisers.values():
                for group in optimiser.param_groups:
                    group["lr"] = top * rate
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            progress["tokens"] += batch.n_tokens
            if progress["tokens"] >= tokens:
                break
        progress["pool"] += 1
        progress["seconds"] = before + time.time() - start
        progress["losses"] = unrelated_losses(model, world, tokenizer, rng)
        known = ", ".join(f"{k} {x:.2f}" for k, x in zip(UNRELATED_KINDS, progress["losses"], strict=True))
        say(
            f"{name}: {progress['tokens'] / 1e6:.2f}M tokens, loss above the law's entropy {np.mean(losses):.4f}, "
            f"readout {np.mean(reads or [np.nan]):.4f}, unknown of unrelated answers ({known}), "
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


@torch.no_grad()
def unrelated_losses(model, world: World, tokenizer, rng: random.Random, count: int = 32) -> list[float]:
    """Nats per answer to unrelated questions that could be known, for each of UNRELATED_KINDS."""
    out = []
    for kind in UNRELATED_KINDS:
        encoded = encode([world.unrelated_document(rng, kind, 0.0) for _ in range(count)], tokenizer)
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(e.ids) for e in encoded], batch_first=True)
        answer = torch.nn.utils.rnn.pad_sequence([torch.tensor(e.region == 4) for e in encoded], batch_first=True)
        logits = model(ids.to(model.device)).logits[:, :-1].flatten(0, 1)
        loss = F.cross_entropy(logits, ids[:, 1:].flatten().to(model.device), reduction="none").cpu()
        coin = math.log(2) if kind == "colour" else 0.0  # which of two colours nobody can know
        out.append(max(0.02, float(loss[answer[:, 1:].flatten()].sum()) / count - coin))
    return out


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
