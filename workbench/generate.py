"""Let the model speak: greedy or sampled, batched, steered, token by token.

Each row is its own: positions count from its own first token, sampling draws from its own generator, seeded
by (seed, row), so that an answer does not depend on which prompts it was batched with. Answers end at the
model's end tokens, after `max_new_tokens`, or where the context is full (which is told).
"""

import hashlib
import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pandas as pd
import torch

from .errors import WorkbenchError
from .models import Model
from .steering.intervention import Intervention
from .steering.run import Run
from .steering.session import Session


def generate(
    model: Model,
    prompts: Sequence[str],
    steer: Intervention | Sequence[Intervention] | None = None,
    max_new_tokens: int = 60,
    temperature: float = 0.0,
    seed: int = 0,
    stream: bool = False,
    return_trace: bool = False,
    batch_size: int = 32,
    chat: bool = True,
    instruction: str | None = None,
) -> Any:
    """Answers to prompts: list[str], in their order.

    steer: an intervention, or several that apply in order. temperature: 0 decodes greedily. chat: render the
    chat template, with `instruction` before each prompt in the user's turn. stream=True returns an iterator
    that yields the list of all answers so far after each token; whoever stops iterating stops the generation,
    and between tokens the model is not steered. return_trace=True returns (answers, trace), a table of what
    the gate decided and what was changed, per row, layer and token (with several interventions, `method` says
    whose).

    Raises WorkbenchError for settings that make no sense and for prompts that leave no room in the context.
    """
    if isinstance(prompts, str):
        raise WorkbenchError("A list of prompts was asked for.", found="one string", do="Pass [prompt].")
    for name, number, least in (
        ("max_new_tokens", max_new_tokens, 1),
        ("batch_size", batch_size, 1),
        ("temperature", temperature, 0),
    ):
        if not number >= least:
            raise WorkbenchError(f"{name} {number} was asked for.", allowed=f"{least} or more")
    steers = [] if steer is None else [steer] if isinstance(steer, Intervention) else list(steer)
    if other := next((s for s in steers if not isinstance(s, Intervention)), None):
        raise WorkbenchError(
            f"Steering by {other!r} was asked for.", allowed="interventions: ConVA(...), CAA(...), ..."
        )

    edits = []
    for method in steers:
        prompts, edit = method.edit_prompts(list(prompts), model)
        edits.append(edit)
    prompts = list(prompts)
    ids = model.encode(prompts, chat=chat, instruction=instruction)
    model.check_length(ids, prompts, room=1)
    runs = [method.start(model, trace=return_trace) for method in steers]
    written: list[list[int]] = [[] for _ in ids]
    texts, sizes = [""] * len(ids), [0] * len(ids)

    def report() -> Any:
        for row, tokens in enumerate(written):
            if len(tokens) != sizes[row]:
                texts[row], sizes[row] = model.decode(tokens), len(tokens)
        lengths = {row: len(ids[row]) + len(tokens) for row, tokens in enumerate(written)}
        return (list(texts), _trace(runs, edits, lengths)) if return_trace else list(texts)

    steps = _speak(model, ids, written, runs, max_new_tokens, temperature, seed, batch_size)
    if stream:
        return (report() for _ in steps)
    for _ in steps:
        pass
    return report()


def _speak(
    model: Model,
    ids: list[list[int]],
    written: list[list[int]],
    runs: list[Run],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int,
) -> Iterator[None]:
    """Writes the tokens of all answers, batch by batch, and pauses after each token."""
    cut = False
    for first in range(0, len(ids), batch_size):
        rows = range(first, min(first + batch_size, len(ids)))
        draws = [torch.Generator().manual_seed(row_seed(seed, row)) for row in rows] if temperature else None
        going = set(rows)
        for tokens in _decode(model, [ids[row] for row in rows], runs, temperature, draws):
            for row in sorted(going):
                written[row].append(tokens[row - first])
                ended = _ended(model, written[row], len(ids[row]), max_new_tokens)
                if ended:
                    going.remove(row)
                if ended == "context" and not cut:
                    cut = True
                    warnings.warn(
                        f"The context of {model.name} ({model.context} tokens) is full: prompt {row} has "
                        f"{len(ids[row])} tokens and its answer was cut after {len(written[row])}.",
                        stacklevel=3,
                    )
            yield
            if not going:
                break


def _ended(model: Model, written: list[int], prompt: int, max_new_tokens: int) -> str:
    """Why an answer is complete, or nothing."""
    if written[-1] in model.eos_ids:
        return "eos"
    if len(written) >= max_new_tokens:
        return "length"
    return "context" if prompt + len(written) >= model.context else ""


@torch.no_grad()
def _decode(
    model: Model,
    ids: list[list[int]],
    runs: list[Run],
    temperature: float,
    draws: list[torch.Generator] | None,
) -> Iterator[list[int]]:
    """Next token of every row, without end: the cached loop. Interventions are on only inside its passes."""
    from transformers import DynamicCache

    session, cache = Session.of(model), DynamicCache(config=model.twin.config)
    step, mask = model.pad(ids, side="left")
    extra = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.twin.forward).parameters else {}
    while True:
        positions = (mask.cumsum(1) - 1).clamp(0, model.context - 1)[:, -step.shape[1] :]
        with ExitStack() as steered:
            for run in runs:
                steered.enter_context(session.on(run))
            given = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, **extra}
            logits = model.speaker(input_ids=step, use_cache=True, **given).logits[:, -1].float()
        if not bool(torch.isfinite(logits.amax(1)).all()):
            raise WorkbenchError(
                "The next token was asked for.",
                found="NaN or inf in the logits",
                do="Steer less, or load the model with dtype='float32'.",
            )
        chosen = logits.argmax(1) if draws is None else _sample(logits.cpu() / temperature, draws)
        yield chosen.tolist()
        step = chosen[:, None].to(mask.device)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)


def _sample(logits: torch.Tensor, draws: list[torch.Generator]) -> torch.Tensor:
    """One token per row by inverse transform: rounding moves a token only where its draw lies on a boundary."""
    heap = torch.softmax(logits, 1).double().cumsum(1)
    at = torch.stack([torch.rand(1, generator=draw, dtype=torch.float64) for draw in draws]) * heap[:, -1:]
    return torch.searchsorted(heap, at, right=True)[:, 0].clamp(max=heap.shape[1] - 1)


def row_seed(seed: int, row: int) -> int:
    """Seed of one row's generator, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=7).digest(), "big")


def _trace(runs: list[Run], edits: list[pd.DataFrame], lengths: dict[int, int]) -> pd.DataFrame:
    """What all interventions did; tokens that finished rows were fed for their batch's sake are left out."""
    tables = []
    for run, edit in zip(runs, edits, strict=True):
        table = edit
        if edit.empty:  # the last token of an answer is written, but nothing is said after it
            table = run.trace
            table = table[table["position"] < table["row"].map(lengths.get) - 1]
        tables.append(table.assign(**({"method": run.name} if len(runs) > 1 else {})))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
