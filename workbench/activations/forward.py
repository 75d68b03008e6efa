"""One forward pass, read at the wanted layers and tokens, and nothing computed beyond them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from ..errors import WorkbenchError
from ..models import Model, residual
from .layout import rows_of

HOOKS = ("resid_pre", "resid_mid", "resid_post", "mlp.hook_post")
ENGINES = ("huggingface", "transformer-lens")
WORTH = 512  # padded tokens from which a batch is worth a forward pass of its own
Read = Callable[[torch.Tensor], torch.Tensor]


class Budget:
    """Padded tokens per forward pass. It shrinks for good when memory runs out, and says so."""

    def __init__(self, tokens: int, say: Callable[[str], None] = print):
        self.tokens, self.say = tokens, say

    def halve(self, used: int) -> None:
        self.tokens = max(1, min(self.tokens, used) // 2)
        self.say(f"Out of memory at {used:,} tokens a forward pass: going on with {self.tokens:,}.")


def read_texts(
    model: Model,
    ids: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]] | None,
    layers: Sequence[int],
    hook: str,
    engine: str,
    budget: Budget,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """(texts of a batch, their activations (layer, row, d) on the model's device), batch by batch, longest first.

    positions: of each text the tokens to read, one row for each; None: the mean of its tokens, one row.
    """
    todo = sorted(range(len(ids)), key=lambda text: -len(ids[text]))
    while todo:
        texts = todo[: _first_batch([len(ids[text]) for text in todo[: budget.tokens]], budget.tokens)]
        try:
            read = _read_batch(model, [ids[t] for t in texts], positions and [positions[t] for t in texts], layers,
                               hook, engine)  # fmt: skip
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as problem:
            if not _out_of_memory(problem):
                raise
            if len(texts) == 1:
                raise WorkbenchError(
                    f"A text of {len(ids[texts[0]])} tokens was to be read by {model.name}.",
                    found="not enough memory for it alone",
                    do="Free memory, take a smaller model or fewer layers, or shorten it.") from None  # fmt: skip
        else:
            yield texts, read
            todo = todo[len(texts) :]
            continue
        # outside the handler, whose traceback would keep the batch's tensors alive
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        budget.halve(len(texts) * len(ids[texts[0]]))


def read_rows(
    model: Model,
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]] | None,
    layers: Sequence[int],
    hook: str,
    engine: str,
    budget: Budget,
    each: Callable[[list[int]], object] = lambda batch: None,
) -> np.ndarray:
    """(layer, row, d) float32, the rows of one text after those of the other; see `read_texts`.

    each: called with the texts of every batch once it is read. WorkbenchError for NaN and inf.
    """
    counts = np.array([len(places) for places in positions] if positions else [1] * len(ids))
    out: np.ndarray | None = None
    for batch, block in read_texts(model, ids, positions, layers, hook, engine, budget):
        if out is None:
            out = np.empty((len(layers), counts.sum(), block.shape[-1]), np.float32)
        out[:, rows_of(batch, counts)] = block.float().cpu().numpy()
        each(batch)
    assert out is not None  # there is a text, so there was a batch
    _check_finite(out, layers, texts, counts, model)
    return out


def batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Texts, longest first, in batches as `read_texts` makes them; one text always goes."""
    order, out = sorted(range(len(lengths)), key=lambda text: -lengths[text]), []
    while order:
        size = _first_batch([lengths[text] for text in order[:batch_tokens]], batch_tokens)
        out.append(order[:size])
        order = order[size:]
    return out


def _first_batch(lengths: Sequence[int], batch_tokens: int) -> int:
    """How many of the texts, longest first, go together: texts x longest stays within the budget, and once the batch is
    worth a forward pass of its own, no text joins that would be padding by more than half.
    """
    longest = max(lengths[0], 1)
    full = min(len(lengths), max(1, batch_tokens // longest))
    worth = -(-WORTH // longest)
    return next((size for size in range(worth, full) if 2 * lengths[size] < longest), full)


def _check_finite(
    block: np.ndarray, layers: Sequence[int], texts: Sequence[str], counts: np.ndarray, model: Model
) -> None:
    """WorkbenchError where block (layer, row, d) holds NaN or inf; counts (text): how many rows each text has."""
    if np.isfinite(block.sum(dtype=np.float64)):  # one pass; what is finite in sum is finite, short of overflow
        return
    bad = ~np.isfinite(block).all(axis=-1)
    if not bad.any():
        return
    layer, row = np.argwhere(bad)[0]
    of_row = np.repeat(np.arange(len(texts)), counts)
    text = int(of_row[row])
    raise WorkbenchError(
        f"Activations of {len(texts)} texts by {model.name} were asked for.",
        found=f"NaN or inf in {len(set(of_row[bad.any(axis=0)]))}, first at layer {layers[layer]} in text {text}: "
        f"{texts[text][:60]!r}",
        do="Load the model with dtype='float32'." if model.dtype != torch.float32 else "Check its weights.",
    )


# -- one batch -----------------------------------------------------------------------------------------


def _read_batch(
    model: Model, ids: Sequence[Sequence[int]], positions: Sequence[Sequence[int]] | None, layers: Sequence[int],
    hook: str, engine: str,
) -> torch.Tensor:  # fmt: skip
    with torch.inference_mode():
        input_ids, mask = model.pad(ids, side="right")
        read = _mean(model, input_ids, mask) if positions is None else _gather(positions)
        run = _bridge if engine == "transformer-lens" else _twin
        seen = run(model, input_ids, mask, set(layers), hook, read)
        if silent := [layer for layer in layers if layer not in seen]:
            raise WorkbenchError(f"{hook} of layers {silent} was asked for.", found="silent hooks")
        return torch.stack([seen[layer].to(model.device) for layer in layers])


def _gather(positions: Sequence[Sequence[int]]) -> Read:
    rows = torch.tensor([row for row, places in enumerate(positions) for _ in places])
    places = torch.tensor([place for places in positions for place in places])
    return lambda tensor: tensor[rows.to(tensor.device), places.to(tensor.device)]


def _mean(model: Model, input_ids: torch.Tensor, mask: torch.Tensor) -> Read:
    """Mean over the real tokens but the BOS, whose residual is an outlier in most models."""
    counted = mask.bool()
    if model.bos_id is not None:  # a text that is nothing but a BOS is read all the same
        counted &= (input_ids != model.bos_id) | (mask.sum(dim=1, keepdim=True) == 1)
    left_out, total = ~counted[..., None], counted.sum(dim=1)[:, None]
    return lambda tensor: (
        tensor.float().masked_fill(left_out.to(tensor.device), 0).sum(dim=1) / total.to(tensor.device)
    )


class _Stop(Exception):
    """Raised inside the forward pass once the last wanted layer was read."""


def _twin(
    model: Model, input_ids: torch.Tensor, mask: torch.Tensor, layers: set[int], hook: str, read: Read
) -> dict[int, torch.Tensor]:
    """{layer: (row, d)} by forward hooks on the twin, which ends early; no hook is left."""
    seen: dict[int, torch.Tensor] = {}

    def keep(layer: int, tensor: torch.Tensor) -> None:
        seen[layer] = read(tensor)
        if len(seen) == len(layers):
            raise _Stop

    with _handles() as handles:
        for layer in layers:
            if hook == "resid_post":
                after = partial(lambda layer, _module, _inputs, output: keep(layer, residual(output)), layer)
                handles.append(model.blocks[layer].register_forward_hook(after))
            else:
                before = partial(lambda layer, _module, inputs, named: keep(
                    layer, inputs[0] if inputs else named["hidden_states"]), layer)  # fmt: skip
                module = {"resid_pre": model.blocks.__getitem__, "resid_mid": model.second_norm,
                          "mlp.hook_post": model.neurons}[hook](layer)  # fmt: skip
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        try:
            model.twin(input_ids, attention_mask=mask, use_cache=False)
        except _Stop:
            pass
    return seen


@contextmanager
def _handles() -> Iterator[list]:
    handles: list = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def _bridge(
    model: Model, input_ids: torch.Tensor, mask: torch.Tensor, layers: set[int], hook: str, read: Read
) -> dict[int, torch.Tensor]:
    """{layer: (row, d)} by TransformerLens' own hooks; the forward pass ends after the last wanted one."""
    seen: dict[int, torch.Tensor] = {}

    def keep(layer: int, tensor: torch.Tensor, hook: object) -> None:
        seen[layer] = read(tensor)
        if len(seen) == len(layers):  # stop_at_layer would compute the unembedding where the last block is wanted
            raise _Stop

    name = hook if "." in hook else f"hook_{hook}"
    hooks = [(f"blocks.{layer}.{name}", partial(keep, layer)) for layer in layers]
    with model.bridge.hooks(fwd_hooks=hooks):
        try:
            model.bridge(input_ids, attention_mask=mask, return_type=None, use_cache=False)
        except _Stop:
            pass
    return seen


def _out_of_memory(problem: BaseException) -> bool:
    return isinstance(problem, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(problem)
