"""Capture what the model holds in mind: residual stream and MLP neurons, as labelled arrays that outlive the kernel."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from ..errors import WorkbenchError
from ..models import Model
from .forward import ENGINES, HOOKS, Budget, batches, read_rows
from .keep import Reading, capture_into, open_activations
from .layout import Layout, check_labels, text_positions, width_dim
from .store import DTYPES, Store

__all__ = ["ENGINES", "HOOKS", "Store", "batches", "capture", "open_activations"]


def capture(
    model: Model,
    texts: Iterable[str],
    layers: Iterable[int] | None = None,
    hook: str = "resid_post",
    store: Any = None,
    chat: bool = False,
    position: Any = "last",
    labels: Mapping[str, Any] | pd.DataFrame | None = None,
    engine: str | None = None,
    batch_tokens: int = 4096,
    store_dtype: str = "float32",
    workers: int = 2,
    address: str | None = None,
    progress: bool | None = None,
    say: Callable[[str], None] = print,
) -> xr.DataArray:
    """Activations of each text: DataArray (layer, text, d_model), float32 (float16 from a store of that kind).

    layers: block indices in the order wanted, None for all. The forward pass ends with the last of them.
    hook: "resid_pre", "resid_mid" or "resid_post", the residual stream before, within and after a block, or
        "mlp.hook_post", the MLP's neurons, the input of its down projection; the last dim is then `neuron`. They
        equal TransformerLens' `blocks.{layer}.hook_resid_post` and so on, and `.mlp.hook_post`.
    store: a folder or an fsspec URL (s3://bucket/name): what is captured stays there, and only what is not there yet
        is computed. The array returned then reads from it what is asked of it. None: in memory.
    chat: render the chat template first and read at its last token, the one that produces the answer.
    position: "last" reads the last real token, found by the attention mask; "mean" averages the real tokens,
        the BOS left out; "all" reads every token: dims (layer, token, d_model). A list of ints reads those
        tokens of every text, negative ones counted from its end, an integer array (text, position) those of
        each: dims (layer, text, position, d_model).
    labels: columns with an entry for each text; they become coordinates.
    engine: "huggingface" (the twin with forward hooks), "transformer-lens" (the bridge) or "ray" (`workers` processes
        with a model each, on this machine or on the cluster at `address`; needs a store that all of them can
        write); None: the model's own.
    batch_tokens: padded tokens per forward pass, halved when memory runs out. Texts are batched by length and
        returned in their own order.
    store_dtype: "float32", or "float16", which refuses values beyond its range.
    progress: a bar with tokens/s and the time left; None: where there is a store.

    Attributes carry the provenance. Raises WorkbenchError for an empty list, unknown layers, hooks or positions,
    texts longer than the context (never cut), NaN and inf, and a store that holds something else.
    """
    texts = texts if isinstance(texts, str) else list(texts)  # of one string, encode says what is wrong
    if not texts:
        raise WorkbenchError("Activations were asked for.", found="no texts", allowed="one text or more")
    engine = engine or model.engine
    for asked, name, allowed in (
        ("Hook", hook, HOOKS), ("Engine", engine, (*ENGINES, "ray")), ("A store of", store_dtype, DTYPES)
    ):  # fmt: skip
        if name not in allowed:
            raise WorkbenchError(f"{asked} {name!r} was asked for.", allowed=", ".join(map(repr, allowed)))
    if engine == "ray" and store is None:
        raise WorkbenchError("engine='ray' was asked for.", found="no store for its workers to write",
                             do="Name a store that every worker can reach.")  # fmt: skip
    wanted = model.check_layers(layers)
    columns = check_labels(labels, len(texts))
    ids = model.encode(texts, chat=chat)
    model.check_length(ids, texts)
    rule, places = text_positions(position, ids, texts)
    reading = Reading(tuple(wanted), hook, rule, chat, engine, batch_tokens)
    attrs = {**model.provenance, "hook": hook, "position": rule, "chat": int(chat)}
    if model.active:
        attrs["steering"] = "; ".join(map(repr if store is None else _told_apart, model.active))
    if store is not None:
        return capture_into(store, model, reading, texts, ids, places, columns, attrs, store_dtype, workers, address,
                            progress is not False, say)  # fmt: skip

    layout = Layout.of(rule, ids, places, columns)
    bar = tqdm(total=sum(map(len, ids)), desc=f"capture {hook}", unit="token", unit_scale=True, disable=not progress)
    with bar:
        result = read_rows(model, texts, ids, places, wanted, hook, engine, Budget(batch_tokens, say),
                           lambda batch: bar.update(sum(len(ids[text]) for text in batch)))  # fmt: skip
    return xr.DataArray(
        result.reshape(len(wanted), *layout.shape, -1),
        dims=("layer", *layout.dims, width_dim(hook)),
        coords={"layer": wanted, **layout.coords},
        name=hook,
        attrs=attrs,
    )


def _told_apart(run: Any) -> str:
    """An intervention that is on, with a digest of its vectors and gate, which its name does not tell."""
    digest = hashlib.blake2b(digest_size=8)
    for name, array in sorted(run.steer.pack()[0].items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return f"{run!r} {digest.hexdigest()}"
