"""Files of what was fitted: one safetensors file each, its provenance in the header; nothing is ever pickled."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import WorkbenchError
from ..models import Model


def save_arrays(path: str | Path, kind: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Path:
    """One safetensors file: arrays, and `meta` as JSON in its header. It appears whole or not at all."""
    from safetensors.numpy import save_file

    header = {"workbench": json.dumps({"kind": kind, **meta})}
    with written_whole(path) as partial:
        save_file({name: np.array(array, order="C") for name, array in arrays.items()}, partial, metadata=header)
    return Path(path)


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A name to write under; the file takes its place whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_arrays(path: str | Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and meta of a file of `save_arrays`; WorkbenchError when it is missing, unreadable or of another kind."""
    from safetensors import SafetensorError, safe_open

    asked = f"Saved {kind} were to be read from {Path(path).name!r}."
    if not Path(path).is_file():
        raise WorkbenchError(asked, found="no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            meta = json.loads((file.metadata() or {})["workbench"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, KeyError, ValueError) as problem:
        raise WorkbenchError(
            asked,
            found=f"not a file of the workbench ({type(problem).__name__})",
            allowed=f"a file written by the save of {kind}",
        ) from None
    if meta.get("kind") != kind:
        raise WorkbenchError(asked, found=f"it holds {meta.get('kind')}", allowed=kind)
    return arrays, meta


def check_fingerprint(what: str, provenance: Mapping[str, Any], model: Model) -> None:
    """WorkbenchError unless `provenance` is of this model's very weights."""
    if provenance.get("fingerprint") != model.fingerprint:
        raise WorkbenchError(
            f"{what} of {provenance.get('model')} were to be used with {model.name}.",
            found=f"weights {str(provenance.get('fingerprint'))[:20]}... of {provenance.get('dtype')}, here "
            f"{model.fingerprint[:20]}... of {str(model.dtype).removeprefix('torch.')}",
            allowed="the model, revision and dtype they were fitted on",
            do="Load that model, or fit them again on this one.",
        )
