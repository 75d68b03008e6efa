"""Capture what the model holds in mind: residual stream and MLP neurons, as labelled arrays."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from .errors import WorkbenchError
from .models import Model, residual

HOOKS = ("resid_pre", "resid_post", "mlp.hook_post")
POSITIONS = ("last", "mean")


def capture(
    model: Model,
    texts: Iterable[str],
    layers: Iterable[int] | None = None,
    hook: str = "resid_post",
    chat: bool = False,
    position: str = "last",
    batch_tokens: int = 4096,
    progress: bool = False,
) -> xr.DataArray:
    """Activations of each text at one reading position: DataArray (layer, text, d_model), float32.

    hook: "resid_post" or "resid_pre", the residual stream after or before a block, or "mlp.hook_post", the
        MLP's neurons, the input of its down projection; the last dim is then `neuron`. They equal
        TransformerLens' `blocks.{layer}.hook_resid_post`, `.hook_resid_pre` and `.mlp.hook_post`.
    layers: block indices in the order wanted, None for all.
    position: "last" reads the last real token, found by the attention mask; "mean" averages the real tokens,
        the BOS left out, whose residual is an outlier in most models.
    chat: render the chat template first and read at its last token, the one that produces the answer.
    batch_tokens: padded tokens per forward pass. Texts are batched by length and returned in their own order.

    The forward pass ends with the last wanted layer. Attributes carry the provenance. Raises WorkbenchError
    for an empty list, unknown layers, hooks or positions, texts longer than the context (never cut), NaN and
    inf.
    """
    texts = texts if isinstance(texts, str) else list(texts)  # of one string, encode says what is wrong
    if not texts:
        raise WorkbenchError("Activations were asked for.", found="no texts", allowed="one text or more")
    wanted = model.check_layers(layers)
    for asked, name, allowed in (("Hook", hook, HOOKS), ("Reading position", position, POSITIONS)):
        if name not in allowed:
            raise WorkbenchError(f"{asked} {name!r} was asked for.", allowed=", ".join(map(repr, allowed)))
    ids = model.encode(texts, chat=chat)
    model.check_length(ids, texts)

    result: np.ndarray | None = None
    bar = tqdm(total=len(texts), desc=f"capture {hook}", unit="text", disable=not progress)
    with bar, torch.inference_mode():
        for rows in _batches([len(tokens) for tokens in ids], batch_tokens):
            input_ids, mask = model.pad([ids[row] for row in rows], side="right")
            read = _reader(input_ids, mask, position, model.bos_id)
            with _tapped(model, wanted, hook, read) as seen:
                model.twin(input_ids, attention_mask=mask, use_cache=False)
            if silent := [layer for layer in wanted if layer not in seen]:
                raise WorkbenchError(f"{hook} of layers {silent} was asked for.", found="silent hooks")
            block = torch.stack([seen[layer] for layer in wanted]).float().cpu().numpy()
            if result is None:
                result = np.empty((len(wanted), len(texts), block.shape[-1]), dtype=np.float32)
            result[:, rows] = block
            bar.update(len(rows))

    assert result is not None  # there is a text, so there was a batch
    _check_finite(result, wanted, texts, model)
    return xr.DataArray(
        result,
        dims=("layer", "text", "neuron" if hook == "mlp.hook_post" else "d_model"),
        coords={"layer": wanted, "text": np.arange(len(texts))},
        name=hook,
        attrs={**model.provenance, "hook": hook, "position": position, "chat": int(chat)},
    )


class _Stop(Exception):
    """Raised inside the forward pass once the last wanted layer was read."""


@contextmanager
def _tapped(
    model: Model, layers: Sequence[int], hook: str, read: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[dict[int, torch.Tensor]]:
    """Inside, one forward pass of the twin fills {layer: (row, d)} and ends early; after, no hook is left."""
    seen: dict[int, torch.Tensor] = {}

    def keep(layer: int, tensor: torch.Tensor) -> None:
        seen[layer] = read(tensor)
        if len(seen) == len(set(layers)):
            raise _Stop

    def after(layer: int) -> Callable[..., None]:
        return lambda _module, _inputs, output: keep(layer, residual(output))

    def before(layer: int) -> Callable[..., None]:
        return lambda _module, inputs, named: keep(layer, inputs[0] if inputs else named["hidden_states"])

    handles = []
    try:
        for layer in set(layers):
            if hook == "resid_post":
                handles.append(model.blocks[layer].register_forward_hook(after(layer)))
            else:
                module = model.blocks[layer] if hook == "resid_pre" else model.neurons(layer)
                handles.append(module.register_forward_pre_hook(before(layer), with_kwargs=True))
        try:
            yield seen
        except _Stop:
            pass
    finally:
        for handle in handles:
            handle.remove()


def _reader(
    input_ids: torch.Tensor, mask: torch.Tensor, position: str, bos: int | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What reads (row, d) from (row, position, d)."""
    if position == "last":
        rows = torch.arange(len(mask), device=mask.device)
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
        return lambda tensor: tensor[rows, last].clone()
    counted = mask.bool()
    if bos is not None:  # a text that is nothing but a BOS is read all the same
        counted &= (input_ids != bos) | (mask.sum(dim=1, keepdim=True) == 1)
    left_out, total = ~counted[..., None], counted.sum(dim=1)[:, None]
    return lambda tensor: tensor.float().masked_fill(left_out, 0).sum(dim=1) / total


def _batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Rows, longest first, so that rows x longest stays within the budget; one row always goes."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _check_finite(result: np.ndarray, layers: Sequence[int], texts: Sequence[str], model: Model) -> None:
    bad = ~np.isfinite(result).all(axis=-1)
    if not bad.any():
        return
    layer, text = np.argwhere(bad)[0]
    raise WorkbenchError(
        f"Activations of {len(texts)} texts by {model.name} were asked for.",
        found=f"NaN or inf in {bad.any(axis=0).sum()}, first at layer {layers[layer]} in text {text}: "
        f"{texts[text][:60]!r}",
        do="Load the model with dtype='float32'." if model.dtype != torch.float32 else "Check its weights.",
    )
