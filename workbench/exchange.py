"""Value vectors in the formats of others, to and fro exact to the bit in float32; nothing is ever pickled.

- GGUF control vectors (llama.cpp, repeng), one value a file: `direction.N` is added to the output of block N, counted
  from 0 as here. Block 0 has none: "there's never a tensor for layer 0" (llama.cpp, src/llama-adapter.cpp).
- `SteeringVector` of the package steering-vectors: {block: vector}, added to the outputs of decoder blocks.
- npz of plain numpy: the arrays, and the provenance as JSON.

What is read passes the checks of `ValueVectors`; with `model` also its width, its layers and, where the file names
them, its weights.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoints import told
from .errors import WorkbenchError
from .models import Model
from .probes.files import written_whole
from .vectors import ValueVectors, labelled

ARCHITECTURE = "controlvector"
INSTALL = {
    "gguf": "pip install 'value-workbench[export]'",
    # Without its pin transformers<5, which shuts the workbench out and which a SteeringVector does not need.
    "steering_vectors": "pip install --no-deps 'steering-vectors>=0.12,<0.13'",
}


def write_gguf(
    path: str | Path, vectors: ValueVectors, value: str, model_type: str, layers: Iterable[int] | None = None
) -> Path:
    """Write one value's vectors as a GGUF control vector; returns its path.

    model_type: the architecture as llama.cpp and repeng name it ("llama", "qwen2"), a hint that neither checks.
    layers: None for all; without layer 0, for which the format has no place.
    """
    gguf, chosen = _package("gguf"), vectors.sel([value], layers)
    rows = _rows(chosen)
    if 0 in rows:
        raise WorkbenchError(f"A GGUF control vector of {value} at layers {', '.join(map(str, rows))} was asked for.",
                             found="layer 0, to whose output llama.cpp never adds a vector",
                             allowed="layers from 1 on", do="Pass layers= without 0.")  # fmt: skip
    with written_whole(path) as partial:
        writer = gguf.GGUFWriter(partial, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_type)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(rows))
        writer.add_string("workbench.value", value)
        writer.add_string("workbench.provenance", json.dumps(chosen.provenance))
        for layer, row in rows.items():
            writer.add_tensor(f"direction.{layer}", row)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(path)


def read_gguf(path: str | Path, value: str | None = None, model: Model | None = None) -> ValueVectors:
    """Read a GGUF control vector. value: what to call it; None takes the name that `write_gguf` left in it."""
    gguf = _package("gguf")

    class Reader(gguf.GGUFReader):
        def _get(self, offset, dtype, count=1, **order):  # a count that a hostile file makes up would loop for ever
            found = super()._get(offset, dtype, count, **order)
            if len(found) < count:
                raise EOFError("the file ends too early")
            return found

    def text(key: str, otherwise: str = "") -> str:
        field = reader.get_field(key)
        return otherwise if field is None else str(bytes(field.parts[-1]), "utf-8")

    with _told(path, "a GGUF control vector: float32 tensors direction.1, direction.2 ..., one row each"):
        reader = Reader(path)
        if (found := text("general.architecture")) != ARCHITECTURE:
            raise ValueError(f"a GGUF file of architecture {found!r}")
        rows = {}
        for tensor in reader.tensors:
            name = re.fullmatch(r"direction\.([1-9][0-9]*)", tensor.name)
            if name is None or tensor.tensor_type != gguf.GGMLQuantizationType.F32 or tensor.data.ndim != 1:
                raise ValueError(f"a tensor {tensor.name!r}, {tensor.tensor_type.name}, shape {tensor.data.shape}")
            rows[int(name[1])] = np.array(tensor.data, dtype=np.float32)  # a copy: the file is let go
        hint = {"source": "GGUF control vector", "model_type": text(f"{ARCHITECTURE}.model_hint")}
        provenance = json.loads(text("workbench.provenance", json.dumps(hint)))
        name = value or text("workbench.value")
        if not name:
            raise ValueError("no name of a value in the file: pass value=")
        array = labelled([[rows[layer] for layer in sorted(rows)]], [name], sorted(rows), provenance)
    return ValueVectors(array).check(model)


def to_steering_vector(vectors: ValueVectors, value: str) -> Any:
    """One value's vectors as a `SteeringVector` of the package steering-vectors."""
    import torch

    rows = {layer: torch.tensor(row) for layer, row in _rows(vectors.sel([value])).items()}
    return _package("steering_vectors").SteeringVector(rows, "decoder_block")


def from_steering_vector(vector: Any, value: str, model: Model | None = None) -> ValueVectors:
    """Vectors of a `SteeringVector`, which names no model: `model` checks width and layers."""
    asked = f"A SteeringVector of {value} was to be read."
    if (kind := getattr(vector, "layer_type", None)) != "decoder_block":
        raise WorkbenchError(asked, found=f"layer_type {kind!r}", allowed="'decoder_block', the residual stream")
    with told(asked, "one vector of the residual stream for each layer"):
        rows = {layer: row.detach().cpu().float().numpy() for layer, row in sorted(vector.layer_activations.items())}
        array = labelled([list(rows.values())], [value], rows, {"source": "steering-vectors"})
    return ValueVectors(array).check(model)


def write_npz(path: str | Path, vectors: ValueVectors) -> Path:
    """Write arrays `vectors` (value, layer, d_model), `value`, `layer` and `provenance` (JSON); returns the path."""
    with written_whole(path) as partial, open(partial, "wb") as file:
        np.savez(file, vectors=vectors.array.values, value=np.array(vectors.values), layer=np.array(vectors.layers),
                 provenance=np.array(json.dumps(vectors.provenance)))  # fmt: skip
    return Path(path)


def read_npz(path: str | Path, model: Model | None = None) -> ValueVectors:
    """Read what `write_npz` wrote, or another wrote likewise."""
    with _told(path, "an npz file with vectors, value, layer, provenance"), np.load(path, allow_pickle=False) as file:
        names = file["value"].tolist(), file["layer"].tolist()
        array = labelled(file["vectors"], *names, json.loads(str(file["provenance"])))
    return ValueVectors(array).check(model)


def _rows(vectors: ValueVectors) -> dict[int, np.ndarray]:
    """Float32 rows of one value's vectors by layer."""
    return dict(zip(vectors.layers, vectors.array.values[0].astype(np.float32), strict=True))


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise WorkbenchError(f"The package {name} was needed.", "not installed", do=INSTALL[name]) from None


@contextmanager
def _told(path: str | Path, allowed: str) -> Iterator[None]:
    asked = f"Value vectors were to be read from {Path(path).name!r}."
    if not Path(path).is_file():
        raise WorkbenchError(asked, found="no such file")
    with told(asked, allowed):
        yield
