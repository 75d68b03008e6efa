"""What states share that let a model speak: a prompt that fits, the next token, answers that are written in turn."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
import xarray as xr

from ...errors import WorkbenchError
from ...generate import keep_last
from ...models import Model, residual

TOP = 8  # next tokens that are shown


def check_prompt(model: Model, prompt: str) -> None:
    """WorkbenchError for a prompt that leaves no room for an answer (nothing is cut), and while something steers."""
    model.check_length(model.encode([prompt], chat=True), [prompt], room=1)
    if active := vars(model).get("active"):
        raise WorkbenchError("A reading without steering was asked for.", found=f"{active[0]!r} is on",
                             do="Leave its context first.")  # fmt: skip


@torch.no_grad()
def next_token(model: Model, ids: list[list[int]]) -> torch.Tensor:
    """Log probabilities (vocabulary) of the token that follows one row of ids, under whatever steers."""
    step, mask = model.pad(ids)
    said = model.speaker(input_ids=step, attention_mask=mask, use_cache=False, **keep_last(model, 1))
    return said.logits[0, -1].float().log_softmax(-1).cpu()


@torch.no_grad()
def read_last(model: Model, ids: list[list[int]], layers: Sequence[int]) -> tuple[xr.DataArray, torch.Tensor]:
    """Residual (layer, d_model) after blocks at the last token of one row of ids, and what `next_token` says: one pass.

    By the twin, under whatever steers. WorkbenchError for NaN and infinity.
    """
    seen: dict[int, torch.Tensor] = {}

    def keep(layer: int, _module: Any, _given: Any, output: Any) -> None:
        seen[layer] = residual(output)[0, -1].float().cpu()

    handles = [model.blocks[layer].register_forward_hook(partial(keep, layer)) for layer in layers]
    try:
        spoken = next_token(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    acts = torch.stack([seen[layer] for layer in layers])
    if not bool(acts.isfinite().all()):
        raise WorkbenchError(f"The last token of a prompt was to be read by {model.name}.", found="NaN or infinity",
                             do="Load the model with dtype='float32', or steer less.")  # fmt: skip
    return xr.DataArray(acts.numpy(), {"layer": list(layers)}, ("layer", "d_model")), spoken


def likeliest(model: Model, base: torch.Tensor, other: torch.Tensor, name: str) -> pd.DataFrame:
    """The likeliest next tokens of two log distributions, at most `TOP`: token, base, and the other's p by its name."""
    top = torch.cat([base.topk(TOP).indices, other.topk(TOP).indices]).unique()
    table = pd.DataFrame({"token": [model.tokenizer.decode([int(i)]) for i in top], "base": base[top].exp().tolist(),
                          name: other[top].exp().tolist()})  # fmt: skip
    best = table[["base", name]].max(axis=1).sort_values(ascending=False).index[:TOP]
    return table.loc[best].reset_index(drop=True)


def in_turn(streams: Iterable[Iterator[Any]], note: Callable[[str], Any]) -> Iterator[tuple[int, Any]]:
    """(number of a stream, what it said so far), a token of each in turn, until all have ended.

    note: is told what generation warns of, such as a full context.
    """
    going = dict(enumerate(streams))
    while going:
        for k, stream in list(going.items()):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                told = next(stream, None)
            if caught:
                note(str(caught[0].message))
            if told is None:
                del going[k]
            else:
                yield k, told
