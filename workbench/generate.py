"""Let the model speak: greedy or sampled, batched, steered, token by token.

Each row is its own: positions count from its own first token, sampling draws from its own generator, seeded
by (seed, row), so that an answer does not depend on which prompts it was batched with. Answers end at the
model's end tokens, after `max_new_tokens`, or where the context is full (which is told).
"""

import hashlib
import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pandas as pd
import torch

from .errors import WorkbenchError
from .models import Instruction, Model, Prompt, question
from .steering.intervention import Intervention
from .steering.run import Run
from .steering.session import Session


def generate(
    model: Model,
    prompts: Sequence[Prompt],
    steer: Intervention | Sequence[Intervention] | None = None,
    max_new_tokens: int = 60,
    temperature: float = 0.0,
    seed: int = 0,
    stream: bool = False,
    return_trace: bool = False,
    kl: bool = False,
    batch_size: int = 32,
    chat: bool = True,
    instruction: Instruction = None,
) -> Any:
    """Answers to prompts: list[str], in their order.

    A prompt is one question or a chat, [{"role": "user", "content": ...}, ...], whose last turn is the user's;
    gates and shifts are read at the end of that turn, as the template writes it. steer: an intervention, or several
    that apply in order. temperature: 0 decodes greedily. chat: render the chat template, with `instruction`, one
    for all or one for each, before the prompt in the user's (last) turn. stream=True returns an iterator that
    yields the list of all answers so far after each token; whoever stops iterating stops the generation, and
    between tokens the model is not steered. return_trace=True returns (answers, trace), a table of what the gate
    decided and what was changed, per row, layer and token (with several interventions, `method` says whose).
    kl=True adds to it `kl`: KL(steered || base), in nats, of the distribution of the token that follows `position`,
    from one steered and one unsteered pass over prompt and answer; at temperature 1, and base is given the prompts
    as they were asked. Methods that edit prompts get lines of their own for it.

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

    if kl and (stream or not return_trace or model.active):
        raise WorkbenchError(
            "The divergence from the base model was asked for.",
            found="a stream" if stream else "an intervention that is on already" if model.active else "no trace",
            allowed="return_trace=True, whole answers, and no intervention but steer=",
        )
    prompts = bare = list(prompts)
    questions = [question(prompt) for prompt in prompts]
    edits = []
    for method in steers:
        prompts, edit = method.edit_prompts(prompts, model)
        edits.append(edit)
    ids = model.encode(prompts, chat=chat, instruction=instruction)
    model.check_length(ids, questions, room=1)
    runs = [method.start(model, trace=return_trace, questions=questions) for method in steers]
    written: list[list[int]] = [[] for _ in ids]
    texts, sizes = [""] * len(ids), [0] * len(ids)

    def report() -> Any:
        for row, tokens in enumerate(written):
            if len(tokens) != sizes[row]:
                texts[row], sizes[row] = model.decode(tokens), len(tokens)
        lengths = {row: len(ids[row]) + len(tokens) for row, tokens in enumerate(written)}
        return (list(texts), _trace(runs, edits, lengths)) if return_trace else list(texts)

    speak = partial(_speak, model, ids, written, max_new_tokens, temperature, seed, batch_size)
    if stream:
        return (report() for _ in speak(runs))
    with _on(model, runs):
        for _ in speak():
            pass
    if not kl:
        return report()
    answers, trace = report()
    unedited = ids if prompts == bare else model.encode(bare, chat=chat, instruction=instruction)
    told = []
    for first in range(0, len(ids), batch_size):
        batch = slice(first, first + batch_size)
        nats = _divergence(model, steers, unedited[batch], ids[batch], written[batch], questions[batch])
        told += [(first + row, *at) for row, part in enumerate(nats) for at in part.items()]
    divergence = pd.DataFrame(told, columns=["row", "position", "kl"])
    return answers, trace.merge(divergence, how="outer", on=["row", "position"]) if steers else divergence


def _speak(
    model: Model,
    ids: list[list[int]],
    written: list[list[int]],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int,
    runs: Sequence[Run] = (),
) -> Iterator[None]:
    """Writes the tokens of all answers, batch by batch, and pauses after each token; `runs` are on between pauses."""
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
    runs: Sequence[Run],
    temperature: float,
    draws: list[torch.Generator] | None,
) -> Iterator[list[int]]:
    """Next token of every row, without end: the cached loop. `runs` are on only inside its passes."""
    from transformers import DynamicCache

    cache, (step, mask) = DynamicCache(config=model.twin.config), model.pad(ids, side="left")
    given = {"past_key_values": cache, "use_cache": True, **keep_last(model, 1)}
    while True:
        positions = (mask.cumsum(1) - 1).clamp(0, model.context - 1)[:, -step.shape[1] :]
        with _on(model, runs):
            said = model.speaker(input_ids=step, attention_mask=mask, position_ids=positions, **given)
        logits = said.logits[:, -1].float()
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


def keep_last(model: Model, last: int) -> dict[str, int]:
    """Asks for the logits of the last tokens only, of models that know how."""
    return {"logits_to_keep": last} if "logits_to_keep" in inspect.signature(model.twin.forward).parameters else {}


@contextmanager
def _on(model: Model, runs: Sequence[Run]) -> Iterator[None]:
    """Inside, all runs are on, in their order."""
    with ExitStack() as steered:
        for run in runs:
            steered.enter_context(Session.of(model).on(run))
        yield


@torch.no_grad()
def _divergence(
    model: Model,
    steers: Sequence[Intervention],
    bare: list[list[int]],
    ids: list[list[int]],
    written: list[list[int]],
    questions: list[str],
) -> list[dict[int, float]]:
    """KL(steered || base), nats, for each row: position of the token that produces an answer's token -> KL there.

    bare, ids: the prompts of the base and the steered model; both read the same answers.
    """

    def words(prompts: list[list[int]], runs: Sequence[Run]) -> torch.Tensor:
        rows = [prompt + answer[:-1] for prompt, answer in zip(prompts, written, strict=True)]
        step, mask = model.pad(rows, side="left")
        positions, keep = (mask.cumsum(1) - 1).clamp(min=0), max(map(len, written))
        given = {"attention_mask": mask, "position_ids": positions, "use_cache": False, **keep_last(model, keep)}
        with _on(model, runs):
            return model.speaker(input_ids=step, **given).logits[:, -keep:].float().log_softmax(-1)

    runs = [method.start(model, prompt_lengths=[*map(len, ids)], questions=questions) for method in steers]
    base, steered = words(bare, ()), words(ids, runs)
    p = steered.exp()
    nats = torch.where(p > 0, p * (steered - base), 0.0).sum(-1).clamp(min=0)
    return [
        dict(enumerate(row[len(row) - len(answer) :].tolist(), start=len(prompt) - 1))
        for row, answer, prompt in zip(nats, written, ids, strict=True)
    ]


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
