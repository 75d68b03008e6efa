"""Value vectors in the formats of others: read back by their own libraries, exact to the bit, and what is refused."""

import io
import json
import struct
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
import xarray as xr
from test_probes import some_pairs
from test_vectors import vectors

from workbench.errors import WorkbenchError
from workbench.exchange import from_steering_vector, read_gguf, read_npz, to_steering_vector, write_gguf, write_npz
from workbench.probes import fit_probes
from workbench.steering.caa import CAA
from workbench.values import VALUES
from workbench.vectors import ValueVectors


@pytest.fixture(scope="module")
def probes(tiny_model):
    return fit_probes(tiny_model(), some_pairs(VALUES), "mean_difference", folds=3)


@pytest.fixture(scope="module")
def found(probes):
    return ValueVectors.of(probes)


@dataclass
class SteeringVector:
    """As in steering-vectors 0.12, for where that package is not installed."""

    layer_activations: dict[int, torch.Tensor]
    layer_type: str = "decoder_block"


@pytest.fixture(params=["as theirs", "theirs"])
def steering_vectors(request, monkeypatch):
    if request.param == "theirs":
        return pytest.importorskip("steering_vectors")
    module = SimpleNamespace(SteeringVector=SteeringVector)
    monkeypatch.setitem(sys.modules, "steering_vectors", module)
    return module


# --- Exact, and steering alike ---


def test_a_gguf_file_says_the_same_to_the_package_of_llama_cpp(found, tmp_path):
    path = write_gguf(tmp_path / "new" / "power.gguf", found, "power", "llama", layers=[2, 1])
    reader = gguf.GGUFReader(path)
    told = {key: field.contents() for key, field in reader.fields.items()}
    assert told["general.architecture"] == "controlvector" and told["controlvector.model_hint"] == "llama"
    assert told["controlvector.layer_count"] == 2
    assert sorted(tensor.name for tensor in reader.tensors) == ["direction.1", "direction.2"]
    for tensor in reader.tensors:
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32 and tensor.shape.tolist() == [32]
        expected = found["power"].at(int(tensor.name[-1])).values[0]
        assert tensor.data.tobytes() == expected.tobytes()
    assert list(path.parent.iterdir()) == [path]


def test_what_is_read_back_is_identical(found, tiny_model, steering_vectors, tmp_path):
    model, odd = tiny_model(), found.array.copy()
    odd[4, :, :4] = np.array([np.finfo(np.float32).smallest_subnormal, -0.0, np.finfo(np.float32).max, 1 / 3])
    odd = ValueVectors(odd).sel(layer=[1, 2])
    back = read_gguf(write_gguf(tmp_path / "v", odd, "power", "llama"), model=model)
    xr.testing.assert_identical(back.array, odd["power"].array)
    assert back.array.values.tobytes() == odd["power"].array.values.tobytes() and back.provenance == found.provenance
    assert read_gguf(tmp_path / "v", "might").values == ["might"]

    vector = to_steering_vector(found, "power")
    assert isinstance(vector, steering_vectors.SteeringVector) and sorted(vector.layer_activations) == [0, 1, 2]
    back = from_steering_vector(vector, "power", model)
    assert back.array.values.tobytes() == found["power"].array.values.tobytes()
    assert (back.values, back.layers) == (["power"], [0, 1, 2])
    half = {3: torch.ones(4, dtype=torch.bfloat16, requires_grad=True), 1: torch.ones(4)}
    assert from_steering_vector(steering_vectors.SteeringVector(half), "power").layers == [1, 3]

    for held in (odd, vectors(values=["power", "été"]), found.centred()):
        xr.testing.assert_identical(read_npz(write_npz(tmp_path / "v.z", held)).array, held.array)
    with np.load(tmp_path / "v.z", allow_pickle=False) as plain:
        kinds = {name: plain[name].dtype.kind for name in plain}
    assert kinds == {"vectors": "f", "value": "U", "layer": "i", "provenance": "U"}


def test_exported_vectors_steer_as_the_method_does(probes, found, tiny_model, steering_vectors, tmp_path):
    """llama.cpp's rule, direction.N added to block N's output, and the package's hooks: the same logits as CAA."""
    model = tiny_model()
    ids = torch.tensor(model.encode(["Mira helps a friend."]))
    with torch.inference_mode(), CAA(probes, "power", strength=1.0, layers=[1, 2]).on(model):
        expected = model.twin(ids).logits
    with torch.inference_mode():
        plain = model.twin(ids).logits
    assert float((expected - plain).abs().max()) > 1e-3

    path = write_gguf(tmp_path / "v", found, "power", "llama", layers=[1, 2])
    added = {int(t.name.split(".")[1]): torch.tensor(np.array(t.data)) for t in gguf.GGUFReader(path).tensors}
    assert torch.equal(hooked(model, added, ids), expected)
    assert not torch.allclose(hooked(model, {n - 1: row for n, row in added.items()}, ids), expected, atol=1e-4)

    vector = to_steering_vector(found.sel(layer=[1, 2]), "power")
    if hasattr(vector, "apply"):
        with torch.inference_mode(), vector.apply(model.twin):
            assert torch.equal(model.twin(ids).logits, expected)
    assert torch.equal(hooked(model, vector.layer_activations, ids), expected)


def hooked(model, rows, ids):
    """Logits with a row added to the output of each block."""
    def add(row):
        return lambda _module, _inputs, out: (out[0] + row, *out[1:]) if isinstance(out, tuple) else out + row

    handles = [model.blocks[n].register_forward_hook(add(row)) for n, row in rows.items()]
    try:
        with torch.inference_mode():
            return model.twin(ids).logits
    finally:
        for handle in handles:
            handle.remove()


# --- Refused ---


def test_layer_0_has_no_place_in_a_gguf_file(found, tmp_path):
    with pytest.raises(WorkbenchError, match="at layers 0, 1, 2 .*\nFound: layer 0, to whose output"):
        write_gguf(tmp_path / "v", found, "power", "llama")
    with pytest.raises(WorkbenchError, match="no vector of pwoer"):
        write_gguf(tmp_path / "v", found, "pwoer", "llama", layers=[1])
    with pytest.raises(WorkbenchError, match="no vector of 5"):
        write_gguf(tmp_path / "v", found, "power", "llama", layers=[5])
    assert not any(tmp_path.iterdir())


def foreign(path, tensors, architecture="controlvector", **keys):
    writer = gguf.GGUFWriter(path, architecture)
    for key, text in keys.items():
        writer.add_string(f"controlvector.{key}", text)
    for name, rows in tensors.items():
        writer.add_tensor(name, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


ROW = np.arange(1, 33, dtype=np.float32)


def test_a_file_of_others_is_read_and_held_against_the_model(tiny_model, tmp_path):
    rows = {f"direction.{n}": n * ROW for n in (2, 10, 1)}
    path = foreign(tmp_path / "v", rows, model_hint="x")
    read = read_gguf(path, "power")
    assert read.layers == [1, 2, 10] and read.provenance == {"source": "GGUF control vector", "model_type": "x"}
    assert (read.at(10).values == 10 * ROW).all() and (read.at(2).values == 2 * ROW).all()
    with pytest.raises(WorkbenchError, match=r"unknown: \[10\]\nAllowed: 0 to 2"):
        read_gguf(path, "power", tiny_model())
    assert read_gguf(foreign(path, {"direction.2": ROW}), "power", tiny_model()).layers == [2]
    with pytest.raises(WorkbenchError, match="d_model 31\nAllowed: d_model 32"):
        read_gguf(foreign(path, {"direction.1": ROW[:31]}), "power", tiny_model())
    with pytest.raises(WorkbenchError, match="pass value="):
        read_gguf(path)


@pytest.mark.parametrize(
    ("tensors", "architecture", "said"),
    [
        ({"direction.1": ROW}, "llama", "architecture 'llama'"),
        ({"direction.0": ROW}, "controlvector", "'direction.0'"),
        ({"direction.1": ROW, "other.1": ROW}, "controlvector", "'other.1'"),
        ({"direction.1": ROW.astype(np.float16)}, "controlvector", "F16"),
        ({"direction.1": ROW.reshape(2, 16)}, "controlvector", r"shape \(2, 16\)"),
        ({"direction.1": ROW, "direction.2": ROW[:16]}, "controlvector", "inhomogeneous"),
        ({}, "controlvector", "were to be read"),
        ({"direction.1": ROW * np.nan}, "controlvector", "NaN or infinity: power at layer 1"),
        ({"direction.1": ROW * 0}, "controlvector", "a vector of length 0: power at layer 1"),
    ],
)
def test_a_gguf_file_that_is_no_control_vector_is_refused(tensors, architecture, said, tmp_path):
    with pytest.raises(WorkbenchError, match=said):
        read_gguf(foreign(tmp_path / "v", tensors, architecture), "power")


def test_a_gguf_file_of_another_models_vectors_is_refused(found, tiny_model, tmp_path):
    path = write_gguf(tmp_path / "v", found, "power", "llama", layers=[1])
    with pytest.raises(WorkbenchError, match="Vectors of llama were to be used with gpt2"):
        read_gguf(path, model=tiny_model("gpt2"))
    with pytest.raises(WorkbenchError, match="Vectors of llama were to be used with gpt2"):
        read_npz(write_npz(path, found), tiny_model("gpt2"))


@pytest.mark.parametrize("read", [lambda path: read_gguf(path, "power"), read_npz])
def test_damage_is_told(read, found, tmp_path):
    """Cut short anywhere: an error. One changed byte: an error or vectors, the very same under npz's checksum."""
    path = tmp_path / "v"
    few = ValueVectors(found["power"].array.sel(layer=[1, 2]).assign_attrs(n_pairs={}))
    write_npz(path, few) if read is read_npz else write_gguf(path, few, "power", "llama")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    assert read(path).array.identical(few.array)
    cuts = [whole[:n] for n in {*range(0, 64), *range(64, len(whole), 41), len(whole) - 1}]
    changes = [whole[:at] + bytes([rng.integers(256)]) + whole[at + 1:] for at in rng.integers(len(whole), size=500)]
    for cut in cuts:
        path.write_bytes(cut)
        with pytest.raises(WorkbenchError, match="'v'"):
            read(path)
    for change in changes:
        path.write_bytes(change)
        try:
            again = read(path).array
        except WorkbenchError:
            continue
        assert again.identical(few.array) if read is read_npz else again.shape == few.array.shape
    with pytest.raises(WorkbenchError, match="no such file"):
        read(tmp_path / "none")


def test_a_made_up_count_does_not_read_for_ever(tmp_path):
    """An array of 2^60 numbers in the header of a file of 60 bytes."""
    key = b"a.b"
    header = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    (tmp_path / "v").write_bytes(header + struct.pack("<IIQ", 9, 4, 2**60))
    with pytest.raises(WorkbenchError, match="ends too early"):
        read_gguf(tmp_path / "v", "power")


def npz(path, **arrays):
    np.savez(buffer := io.BytesIO(), **arrays)
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": None}, "value"),
        ({"vectors": np.array([[[object()]]])}, "allow_pickle=False"),
        ({"vectors": np.ones((1, 2, 3))}, "(conflicting|layer)"),
        ({"vectors": np.full((1, 1, 3), np.inf)}, "NaN or infinity: power at layer 1"),
        ({"layer": np.array([1.5])}, "whole numbers along layer"),
        ({"provenance": np.array("[1]")}, "were to be read"),
        ({"provenance": np.array("{")}, "Expecting property name"),
    ],
)
def test_an_npz_file_of_another_kind_is_refused(change, said, tmp_path):
    whole = {"vectors": np.ones((1, 1, 3)), "value": np.array(["power"]), "layer": np.array([1]),
             "provenance": np.array(json.dumps({"model": "m"}))}
    assert read_npz(npz(tmp_path / "v", **whole)).provenance == {"model": "m"}
    arrays = {name: array for name, array in (whole | change).items() if array is not None}
    with pytest.raises(WorkbenchError, match=said):
        read_npz(npz(tmp_path / "v", **arrays))


def test_a_single_array_and_a_pickle_are_no_npz(tmp_path):
    np.save(buffer := io.BytesIO(), np.ones((1, 1, 3)))
    for content in (buffer.getvalue(), b"\x80\x04K\x01."):
        (tmp_path / "v").write_bytes(content)
        with pytest.raises(WorkbenchError, match="'v'"):
            read_npz(tmp_path / "v")


@dataclass
class Other:
    layer_type: str = "decoder_block"
    layer_activations: dict = field(default_factory=dict)


@pytest.mark.parametrize(
    ("vector", "said"),
    [
        (Other("self_attn", {1: torch.ones(32)}), "layer_type 'self_attn'"),
        (torch.ones(32), "layer_type None"),
        (Other(), "one vector of the residual stream for each layer"),
        (Other(layer_activations={1: torch.ones(2, 16)}), "one vector"),
        (Other(layer_activations={1: torch.ones(32), 2: torch.ones(31)}), "inhomogeneous"),
        (Other(layer_activations={1: "row"}), "one vector"),
        (Other(layer_activations={-1: torch.ones(32)}), "whole numbers along layer"),
        (Other(layer_activations={1: torch.full((32,), torch.nan)}), "NaN or infinity: power at layer 1"),
        (Other(layer_activations={1: torch.ones(31)}), "d_model 31"),
        (Other(layer_activations={7: torch.ones(32)}), r"unknown: \[7\]"),
    ],
)
def test_a_steering_vector_that_does_not_fit_is_refused(vector, said, tiny_model):
    with pytest.raises(WorkbenchError, match=said):
        from_steering_vector(vector, "power", tiny_model())


@pytest.mark.parametrize(
    ("package", "ask"),
    [
        ("gguf", lambda held: write_gguf("v", held, "power", "llama")),
        ("gguf", lambda held: read_gguf("v")),
        ("steering_vectors", lambda held: to_steering_vector(held, "power")),
    ],
)
def test_a_package_that_is_not_there_is_named(package, ask, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(WorkbenchError, match=f"The package {package} was needed.\nFound: not installed\n.*pip install"):
        ask(vectors())
