"""Stored activations in normal life: the same numbers as in memory, read lazily, computed once, never mixed up."""

import json
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import CHUNK, DESCRIPTIONS, TEXTS, chunk, computed, forwards, quietly, small_parts, snapshot
from test_contracts import pairs

from workbench.activations import Store, capture, open_activations
from workbench.activations.files import Files
from workbench.activations.store import CHUNK_BYTES, chunk_rows
from workbench.errors import WorkbenchError
from workbench.models import load_model, residual
from workbench.probes import fit_probes
from workbench.steering import CAA

FEW = TEXTS[:6]
ARRAY = np.array([[0, -1], [1, 1], [-2, 0], [2, -1], [0, 0], [-1, -1]])
RULES = {"last": "last", "mean": "mean", "all": "all", "two of each": [-1, 0], "own": ARRAY}
LABELS = {"value": list("abcabc"), "number": range(6), "share": np.linspace(0, 1, 6), "sure": [True, False] * 3}


@pytest.fixture(scope="module")
def llama(tiny_model):
    return tiny_model("llama")


@pytest.fixture
def own(tiny_folder):
    """A model that a test may change."""
    return load_model(tiny_folder("llama"))


@pytest.fixture
def small(monkeypatch):
    """Four rows to a part."""
    small_parts(monkeypatch)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


# -- the same numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["resid_post", "mlp.hook_post"])
@pytest.mark.parametrize("position", RULES.values(), ids=RULES)
def test_a_store_gives_what_memory_gives_bit_for_bit(llama, path, position, hook):
    given = {"position": position, "hook": hook, "layers": [2, 0], "labels": LABELS}
    memory = capture(llama, FEW, **given)
    stored, _ = quietly(llama, FEW, path, **given)
    assert stored.dtype == np.float32
    xr.testing.assert_identical(stored.load(), memory)  # values, dims, coordinates, provenance and name
    opened = open_activations(path)
    xr.testing.assert_identical(opened.drop_vars(["text_id", "content"]).load(), memory)


@pytest.mark.parametrize("position", RULES.values(), ids=RULES)
def test_many_small_parts_give_the_same_numbers(llama, path, small, position):
    memory = capture(llama, FEW, position=position)
    stored, _ = quietly(llama, FEW, path, position=position)
    assert len(Store.find(path).parts) > 1
    np.testing.assert_allclose(stored.values, memory.values, atol=1e-5)
    np.testing.assert_array_equal(open_activations(path).values, stored.values)


def test_bfloat16_is_held_exactly(tiny_folder, path):
    model = load_model(tiny_folder("llama"), dtype="bfloat16")
    stored, _ = quietly(model, FEW, path)
    np.testing.assert_array_equal(stored.values, capture(model, FEW).values)
    assert stored.attrs["dtype"] == "bfloat16" and stored.dtype == np.float32
    assert torch.equal(torch.from_numpy(stored.values).bfloat16().float(), torch.from_numpy(stored.values))


def test_float16_is_rounded_once(llama, path):
    stored, _ = quietly(llama, FEW, path, store_dtype="float16")
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored.values, capture(llama, FEW).values.astype(np.float16))
    assert chunk(path, 0, 0).stat().st_size == Store.find(path).chunk * 32 * 2 + 4


@pytest.mark.parametrize("where", ["memory://{name}/store", "file://{path}", "{path}/"])
def test_a_store_may_stand_behind_a_url(llama, path, small, where, request):
    url = where.format(name=request.node.name, path=path)
    stored, _ = quietly(llama, FEW, url)
    np.testing.assert_array_equal(stored.values, quietly(llama, FEW, f"{path}2")[0].values)
    with forwards(llama) as passes:
        assert "nothing was computed" in quietly(llama, FEW, url)[1][0]
        quietly(llama, TEXTS[:8], url)
    assert computed(passes) == 2
    assert open_activations(url).sizes["text"] == 8


# -- opened and read -------------------------------------------------------------------------------------------


def test_a_store_is_opened_with_its_labels_texts_and_provenance(llama, path):
    quietly(llama, FEW, path, labels=LABELS)
    acts = open_activations(path)
    assert acts.dims == ("layer", "text", "d_model") and acts.layer.values.tolist() == [0, 1, 2]
    assert acts.content.values.tolist() == FEW
    assert len(set(acts.text_id.values)) == 6 and {len(name) for name in acts.text_id.values} == {32}
    for name, column in LABELS.items():
        assert acts[name].values.tolist() == list(column)
    assert acts.attrs == {**llama.provenance, "hook": "resid_post", "position": "last", "chat": 0}
    assert open_activations(path, [2, 0]).layer.values.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("position", "dims", "names"),
    [
        ("all", ("token",), {"text": "token", "position": "token", "token_id": "token", "content": "token"}),
        ([-1, 0], ("text", "position"), {"position": "position", "content": "text"}),
        (ARRAY, ("text", "position"), {"token_position": ("text", "position"), "content": "text"}),
    ],
    ids=["all", "two of each", "own"],
)
def test_opened_rows_know_their_token(llama, path, position, dims, names):
    quietly(llama, FEW, path, position=position)
    acts = open_activations(path)
    assert acts.dims == ("layer", *dims, "d_model")
    for name, dim in names.items():
        assert acts[name].dims == (dim if isinstance(dim, tuple) else (dim,)), name
    ids = llama.encode(FEW)
    if dims == ("token",):
        assert acts.token_id.values.tolist() == [token for row in ids for token in row]
        assert acts.content.values[-1] == FEW[-1]
    elif "token_position" in names:
        assert acts.token_position.values.tolist() == [
            [place % len(row) for place in places] for places, row in zip(ARRAY.tolist(), ids, strict=True)
        ]


def test_layers_that_are_not_in_the_store_cannot_be_opened(llama, path):
    quietly(llama, FEW, path, layers=[0, 1])
    with pytest.raises(WorkbenchError, match=r"not captured: \[2\]\nAllowed: 0, 1"):
        open_activations(path, [1, 2])


def test_where_there_is_no_store_nothing_is_opened_or_made(path):
    with pytest.raises(WorkbenchError, match="no store of activations there"):
        open_activations(path)
    assert not path.exists()


@pytest.fixture
def chunks_read(monkeypatch):
    """List of the chunks (layer, number) that zarr reads."""
    seen, get = [], zarr.storage.LocalStore.get

    async def count(store, key, *given, **named):
        if "/c/" in key:
            layer, number = key.split("/c/")[1].split("/")[:2]
            seen.append((int(layer), int(number)))
        return await get(store, key, *given, **named)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", count)
    return seen


def test_reading_touches_only_the_chunks_it_needs(llama, path, small, chunks_read):
    whole = quietly(llama, TEXTS, path)[0].values
    chunks_read.clear()
    opened = open_activations(path)
    assert "d_model: 32" in repr(opened) and chunks_read == [], "it shows no value, so it need not read any"
    row = Store.find(path).rows[str(opened.text_id[17].values)]
    for where, layers, numbers in (
        ({"layer": 1}, [1], range(10)),
        ({"text": 17}, range(3), [row // CHUNK]),
        ({"layer": [2, 0], "text": [17, 17], "d_model": 3}, [0, 2], [row // CHUNK]),
        ({"text": []}, [], []),
    ):
        np.testing.assert_array_equal(opened.isel(where).values, xr.DataArray(whole, dims=opened.dims).isel(where))
        assert sorted(chunks_read) == [(layer, number) for layer in layers for number in numbers], where
        chunks_read.clear()


def test_one_layer_is_read_where_the_others_are_gone(llama, path, small):
    whole = quietly(llama, TEXTS, path)[0].values
    for number in range(10):
        chunk(path, 0, number).unlink()
    opened = open_activations(path)
    np.testing.assert_array_equal(opened.sel(layer=1).values, whole[1])
    with pytest.raises(WorkbenchError, match=r"Layer 0, rows \d+ to \d+, .*\nFound: damage there: missing chunks"):
        _ = opened.values


def indexers(sizes):
    """For some of the dims an int, a slice, a list (even empty) or a mask."""

    def one(size):
        place = st.integers(-size, size - 1)
        mask = st.lists(st.booleans(), min_size=size, max_size=size).map(np.array)
        return st.one_of(place, st.slices(size), st.lists(place, max_size=7), mask)

    return st.fixed_dictionaries({}, optional={dim: one(size) for dim, size in sizes.items()})


@pytest.fixture(scope="module")
def lazy_and_loaded(llama, tmp_path_factory):
    """Function: 0 or 1, a reading rule -> (lazy array over many parts, the same in memory)."""
    folder = tmp_path_factory.mktemp("lazy")
    with pytest.MonkeyPatch.context() as patch:
        small_parts(patch)
        lazy = [quietly(llama, TEXTS[:11], folder / name, position=rule, layers=[2, 0, 1])[0]
                for name, rule in (("last", "last"), ("three", [-1, 0, 1]))]  # fmt: skip
    return [(acts, acts.copy(data=acts.values)) for acts in lazy].__getitem__


@settings(deadline=None, max_examples=100)
@given(data=st.data(), which=st.integers(0, 1))
def test_any_selection_reads_the_same_as_from_memory(lazy_and_loaded, data, which):
    lazy, loaded = lazy_and_loaded(which)
    first = data.draw(indexers(loaded.sizes))
    lazy, loaded = lazy.isel(first), loaded.isel(first)
    xr.testing.assert_identical(lazy.copy().load(), loaded)
    if all(loaded.shape):  # a selection of a selection
        then = data.draw(indexers(loaded.sizes))
        xr.testing.assert_identical(lazy.isel(then).load(), loaded.isel(then))


@settings(deadline=None, max_examples=40)
@given(data=st.data(), points=st.integers(1, 6), width=st.integers(-32, 31) | st.lists(st.integers(-32, 31)))
def test_points_read_the_same_as_from_memory(lazy_and_loaded, data, points, width):
    lazy, loaded = lazy_and_loaded(0)
    at = {dim: xr.DataArray(data.draw(st.lists(st.integers(-size, size - 1), min_size=points, max_size=points)),
                            dims="point") for dim, size in (("layer", 3), ("text", 11))}  # fmt: skip
    xr.testing.assert_identical(lazy.isel({**at, "d_model": width}).load(), loaded.isel({**at, "d_model": width}))


def test_selection_by_label_reads_the_same_as_from_memory(lazy_and_loaded):
    for lazy, loaded in map(lazy_and_loaded, (0, 1)):
        for where in ({"layer": 0}, {"layer": [1, 2], "text": slice(3, 8)}, {"text": [9, 1]}):
            xr.testing.assert_identical(lazy.sel(where).load(), loaded.sel(where))
        xr.testing.assert_identical(lazy[::-1, 2:9:3].load(), loaded[::-1, 2:9:3])
        xr.testing.assert_allclose(lazy.mean("text"), loaded.mean("text"))


# -- computed once ---------------------------------------------------------------------------------------------


def test_the_same_call_again_computes_nothing_and_says_so(llama, path, small):
    first, said = quietly(llama, TEXTS, path)
    assert said == [f"40 texts are in {path}: computed 40."]
    before = snapshot(path)
    with forwards(llama) as passes:
        again, said = quietly(llama, TEXTS, path)
    assert passes == [] and said == [f"All 40 texts are in {path}: nothing was computed."]
    assert snapshot(path) == before
    xr.testing.assert_identical(again.load(), first.load())


def test_texts_added_are_all_that_is_computed(llama, path, small):
    old, _ = quietly(llama, TEXTS[5:30], path)
    chunks = {name: digest for name, digest in snapshot(path).items() if "/c/" in name}
    with forwards(llama) as passes:
        new, said = quietly(llama, TEXTS, path)
    assert computed(passes) == 15 and said[-1].endswith("computed 15.")
    np.testing.assert_allclose(new.values, capture(llama, TEXTS).values, atol=1e-5)
    np.testing.assert_array_equal(new.values[:, 5:30], old.values)
    assert chunks.items() <= snapshot(path).items()  # the old chunks are as they were
    assert open_activations(path).content.values.tolist() == TEXTS[5:30] + TEXTS[:5] + TEXTS[30:]


def test_a_part_of_the_texts_in_another_order_is_read_from_the_store(llama, path, small):
    whole = quietly(llama, TEXTS, path)[0].values
    with forwards(llama) as passes:
        some, _ = quietly(llama, [TEXTS[31], TEXTS[2], TEXTS[31]], path)
    assert passes == []
    np.testing.assert_array_equal(some.values, whole[:, [31, 2, 31]])


def test_a_text_asked_for_twice_is_computed_once(llama, path, small):
    twice = [*FEW, FEW[2], FEW[0]]
    with forwards(llama) as passes:
        acts, _ = quietly(llama, twice, path)
        quietly(llama, twice, path)
    assert computed(passes) == 6
    np.testing.assert_array_equal(acts.values[:, 6:], acts.values[:, [2, 0]])
    assert open_activations(path).content.values.tolist() == twice  # no third entry by the second call


def test_own_positions_of_the_same_text_are_told_apart(llama, path):
    """The same tokens read elsewhere are another text to the store."""
    texts = [FEW[0]] * 3
    acts, _ = quietly(llama, texts, path, position=np.array([[0], [2], [0]]))
    whole = capture(llama, FEW[:1], position="all").values
    np.testing.assert_allclose(acts.values[:, :, 0], whole[:, [0, 2, 0]], atol=1e-5)
    with forwards(llama) as passes:
        quietly(llama, [FEW[0]] * 2, path, position=np.array([[2], [1]]))
    assert computed(passes) == 1


def test_the_same_text_under_other_labels_is_another_entry_and_not_computed(llama, path):
    quietly(llama, FEW, path, labels={"value": ["power"] * 6})
    with forwards(llama) as passes:
        acts, said = quietly(llama, FEW[:2], path, labels={"value": ["power", "security"]})
    assert passes == [] and said == [f"2 texts are in {path}: nothing was computed."]
    assert acts.value.values.tolist() == ["power", "security"]
    opened = open_activations(path)
    assert opened.value.values.tolist() == ["power"] * 6 + ["security"]
    np.testing.assert_array_equal(opened.values[:, 6], opened.values[:, 1])


def test_labels_may_come_later_and_be_left_out(llama, path):
    quietly(llama, FEW, path)
    quietly(llama, FEW[:2], path, labels={"value": ["power", None]})
    opened = open_activations(path)
    assert opened.sizes["text"] == 7, "a missing label is no other label"
    assert opened.value.values[-1] == "power" and opened.content.values[-1] == FEW[0]
    for labels in ({"value": ["power", None]}, None):
        with forwards(llama) as passes:
            _, said = quietly(llama, FEW[:2], path, labels=labels)
        assert passes == [] and said[0].startswith("All 2")


kinds = (st.integers(-(2**40), 2**40), st.floats(), st.booleans(), st.text(max_size=3), st.dates().map(pd.Timestamp))


@settings(deadline=None, max_examples=25)
@given(column=st.one_of(*(st.lists(kind | st.none(), min_size=3, max_size=3) for kind in kinds)))
def test_whatever_the_labels_the_same_call_adds_nothing(llama, tmp_path_factory, column):
    path = tmp_path_factory.mktemp("labels") / "store"
    quietly(llama, FEW[:3], path, labels={"x": column})
    assert quietly(llama, FEW[:3], path, labels={"x": column})[1][0].startswith("All 3"), column
    opened = pd.Series(open_activations(path).x.values)
    assert [None if pd.isna(entry) else entry for entry in opened] == [
        None if pd.isna(entry) else entry for entry in column
    ]


@pytest.mark.parametrize(
    "labels",
    [{"x": np.array([1, "a"], dtype=object)}, {"x": np.array([object(), object()])}, {"x": np.array([{1}, {2}])}],
    ids=["mixed", "objects", "sets"],
)
def test_labels_that_no_file_can_hold_are_refused_before_anything_is_computed(llama, path, labels):
    with forwards(llama) as passes, pytest.raises(WorkbenchError, match="(?i)label"):
        quietly(llama, FEW[:2], path, labels=labels)
    assert passes == []
    quietly(llama, FEW[:2], path)


def test_a_label_of_another_kind_than_before_is_refused_before_anything_is_computed(llama, path, small):
    quietly(llama, FEW, path, labels={"x": range(6)})
    before = snapshot(path)
    with forwards(llama) as passes, pytest.raises(WorkbenchError, match="(?i)label"):
        quietly(llama, TEXTS[6:8], path, labels={"x": ["a", "b"]})
    assert passes == [] and snapshot(path) == before


@pytest.mark.parametrize("name", ["text_id", "content", "row", "rows", "n_tokens", "tokens", "positions", "layer"])
def test_a_label_cannot_take_a_name_that_the_store_needs(llama, path, name):
    with pytest.raises(WorkbenchError, match=f"A label called '{name}'"):
        quietly(llama, FEW, path, labels={name: range(6)})
    assert not path.exists()


def test_some_of_the_layers_are_read_from_the_store_in_any_order(llama, path):
    whole, _ = quietly(llama, FEW, path, layers=[2, 0])
    with forwards(llama) as passes:
        acts, _ = quietly(llama, FEW, path, layers=[0, 2])
        one, _ = quietly(llama, FEW, path, layers=[0])
    assert passes == []
    xr.testing.assert_identical(acts.load(), whole[::-1].load())
    xr.testing.assert_identical(one.load(), whole[[1]].load())
    with forwards(llama) as passes:  # of new texts all layers of the store are kept
        quietly(llama, TEXTS[:8], path, layers=[0])
        acts, _ = quietly(llama, TEXTS[:8], path, layers=[2])
    assert computed(passes) == 2
    np.testing.assert_allclose(acts.values, capture(llama, TEXTS[:8], [2]).values, atol=1e-5)


def test_a_reader_sees_the_old_texts_while_others_are_added(llama, path, small):
    quietly(llama, TEXTS[:20], path)
    opened, expected = open_activations(path), open_activations(path).values
    looks = []

    def look(_number):
        np.testing.assert_array_equal(opened.values, expected)
        looks.append(open_activations(path).content.values.tolist())

    with forwards(llama, look):
        quietly(llama, TEXTS, path)
    assert len(looks) > 4 and all(seen == TEXTS[:20] for seen in looks)
    np.testing.assert_array_equal(opened.values, expected)
    np.testing.assert_array_equal(open_activations(path).values[:, :20], expected)


@pytest.mark.parametrize("after", ["manifest.json", "parts", "the array"])
def test_a_reader_that_comes_while_a_capture_ends_sees_the_old_or_the_new(llama, path, small, after, monkeypatch):
    """Between two files that the reader reads, the writer finishes and clears up."""
    quietly(llama, TEXTS[:8], path)
    with forwards(llama, lambda number: number > 1 and 1 / 0), pytest.raises(ZeroDivisionError):
        quietly(llama, TEXTS[:24], path)
    assert Store.find(path).files.sizes("parts")
    finished = []

    def then_finish(step):
        def first(*given, **named):
            result = step(*given, **named)
            if not finished and (step is open_group or after in given):
                finished.append(True)
                quietly(llama, TEXTS, path)
            return result

        return first

    open_group = zarr.open_group
    if after == "the array":
        monkeypatch.setattr(zarr, "open_group", then_finish(open_group))
    else:
        monkeypatch.setattr(Files, "read", then_finish(Files.read))
        monkeypatch.setattr(Files, "sizes", then_finish(Files.sizes))
    opened = open_activations(path)
    assert finished and opened.content.values.tolist() in (TEXTS[:8], TEXTS)
    np.testing.assert_allclose(opened.values, capture(llama, opened.content.values).values, atol=1e-5)


# -- on disk ---------------------------------------------------------------------------------------------------


def test_every_array_has_a_checksum_and_every_file_is_accounted_for(llama, path, small):
    quietly(llama, TEXTS, path, labels={"x": range(40)})
    store, kinds = Store.find(path), set()
    for file in path.rglob("*"):
        name = str(file.relative_to(path))
        if file.is_dir() or name == "lock":
            continue
        content = file.read_bytes()
        if file.suffix == ".json":
            meta = json.loads(content)
            if meta.get("node_type") == "array":
                kinds.add(name)
                assert meta["codecs"][-1]["name"] == "crc32c", name
        elif file.suffix == ".parquet":
            assert content[:4] == content[-4:] == b"PAR1"
        else:  # numbers and their checksum: nothing that could be code
            assert "/c/" in name and len(content) == (store.chunk_bytes if "/activations/c/" in name else 3 * 8 + 4)
    assert kinds == {"activations.zarr/layer/zarr.json", "activations.zarr/activations/zarr.json"}


def test_parts_fill_whole_chunks_that_no_other_part_touches(llama, path, small):
    quietly(llama, TEXTS[:7], path, position="all")
    quietly(llama, TEXTS[:17], path, position="all")
    store, taken = Store.find(path), []
    for part in store.parts:
        assert part.start % CHUNK == 0 and len(part.texts) >= 1
        taken += range(part.start // CHUNK, -(-(part.start + part.rows) // CHUNK))
    assert len(taken) == len(set(taken)) == store.array.shape[1] // CHUNK
    assert sum(part.rows for part in store.parts) == sum(map(len, llama.encode(TEXTS[:17])))
    assert len(store.verify()) == 0


@given(width=st.integers(1, 50_000), dtype=st.sampled_from(["float32", "float16"]), rows=st.integers(1, 10**7))
def test_a_chunk_is_a_power_of_two_of_rows_that_fits_its_size(width, dtype, rows):
    chosen = chunk_rows(width, dtype, rows)
    assert chosen & (chosen - 1) == 0 and 16 <= chosen <= 256
    assert chosen == 16 or chosen * width * np.dtype(dtype).itemsize < 2 * CHUNK_BYTES
    assert chosen == 16 or chosen < 2 * rows
    if rows >= 1024 and 16 <= CHUNK_BYTES // (width * np.dtype(dtype).itemsize):  # no smaller than it need be
        assert chosen == 256 or 2 * chosen * width * np.dtype(dtype).itemsize > CHUNK_BYTES
    assert chunk_rows(64, "float32", 30_000, 1_000) == 8192  # 30 tokens a text: 256 texts to a part all the same


def test_the_manifest_comes_last_and_carries_the_provenance(llama, path, small, monkeypatch):
    write, order = Files.write, []
    monkeypatch.setattr(Files, "write", lambda files, name, content: order.append(name) or write(files, name, content))
    quietly(llama, TEXTS, path)
    assert order[-1] == "manifest.json" and order.count("manifest.json") == 1
    assert [name.partition("/")[0] for name in order[:10]] == ["parts"] * 10
    manifest = json.loads((path / "manifest.json").read_text())
    assert llama.provenance.items() <= manifest["identity"].items()
    assert manifest["identity"]["hook"] == "resid_post" and manifest["identity"]["position"] == "last"
    assert manifest["versions"] == {key: llama.provenance[key] for key in ("torch", "transformers", "transformer-lens")}


# -- refused ---------------------------------------------------------------------------------------------------


def retemplated(model):
    tokenizer = type(model.tokenizer)(tokenizer_object=model.tokenizer.backend_tokenizer, chat_template="other")
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        setattr(tokenizer, name, getattr(model.tokenizer, name))
    return replace(model, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hook": "resid_pre"}, "hook 'resid_post' in the store, 'resid_pre' asked for"),
        ({"position": "mean"}, "position 'last' in the store, 'mean' asked for"),
        ({"position": [-1]}, r"position 'last' in the store, '\[-1\]' asked for"),
        ({"chat": True}, "chat 0 in the store, 1 asked for"),
        ({"store_dtype": "float16"}, "store_dtype 'float32' in the store, 'float16' asked for"),
        ({"layers": [0, 2]}, r"layers \[0, 1\] in the store, \[0, 2\] asked for"),
        ({"hook": "resid_mid", "chat": True}, "hook 'resid_post' in .*'resid_mid' asked for; chat 0 in"),
    ],
)
def test_another_reading_is_refused_with_both_sides_shown(llama, path, given, message):
    refused(llama, llama, path, message, **given)


def refused(first, other, path, message, **given):
    quietly(first, FEW, path, layers=[0, 1])
    before = snapshot(path)
    with forwards(other) as passes, pytest.raises(WorkbenchError, match=message) as told:
        quietly(other, TEXTS[:9], path, **{"layers": [0, 1], **given})
    assert passes == [] and snapshot(path) == before
    assert f"workbench cache rm {path}" in told.value.do


def test_other_weights_under_the_same_name_are_refused(llama, path, tmp_path):
    other = load_model(tiny.make(tmp_path / "llama", seed=1))
    assert other.name == llama.name
    refused(llama, other, path, f"fingerprint '{llama.fingerprint}' in the store, '{other.fingerprint}' asked for")


def test_one_changed_weight_is_refused(llama, own, path):
    own.blocks[1].mlp.down_proj.weight[3, 3] += 1e-3
    refused(llama, own, path, "fingerprint 'sha256:.*' in the store, 'sha256:.*' asked for")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: replace(model, revision="abc"), "revision '' in the store, 'abc' asked for"),
        (lambda model: replace(model, name="other"), "model 'llama' in the store, 'other' asked for"),
        (retemplated, r"template '\w{16}' in the store, '\w{16}' asked for"),
    ],
    ids=["revision", "model", "template"],
)
def test_another_model_is_refused_with_both_sides_shown(llama, path, change, message):
    refused(llama, change(llama), path, message)


def test_another_dtype_is_refused(llama, tiny_folder, path):
    refused(llama, load_model(tiny_folder("llama"), dtype="bfloat16"), path, "dtype 'float32' in .* 'bfloat16' asked")


def test_a_steered_model_has_a_store_of_its_own(own, path, tmp_path):
    probes = fit_probes(own, pairs(), "mean_difference", folds=3)
    steer = CAA(probes, "security", strength=1.5, layers=[0])
    plain = quietly(own, FEW, path)[0].values
    with steer.on(own):
        with pytest.raises(WorkbenchError, match=r"steering '' in the store, 'CAA\(security.*' asked for"):
            quietly(own, FEW, path)
        steered, _ = quietly(own, FEW, tmp_path / "steered")
        assert "CAA" in steered.attrs["steering"] and np.abs(steered.values - plain).max() > 0.1
        assert quietly(own, FEW, tmp_path / "steered")[1][0].startswith("All 6")
    with pytest.raises(WorkbenchError, match=r"steering 'CAA\(security.*' in the store, '' asked for"):
        quietly(own, FEW, tmp_path / "steered")


def test_the_same_method_with_other_probes_is_other_steering(own, path):
    there = fit_probes(own, pairs(), "mean_difference", folds=3)
    back = fit_probes(own, pairs().rename(columns={"positive": "negative", "negative": "positive"}),
                      "mean_difference", folds=3)  # fmt: skip
    with CAA(there, "security", strength=1.5, layers=[0]).on(own):
        quietly(own, FEW, path)
    with CAA(back, "security", strength=1.5, layers=[0]).on(own), pytest.raises(WorkbenchError, match="steering 'CAA"):
        quietly(own, FEW, path)


def test_versions_and_device_are_told_and_not_compared(llama, path):
    quietly(llama, FEW, path)
    other = replace(llama)
    other.provenance = {**llama.provenance, "torch": "1.0", "device": "cuda"}
    assert quietly(other, FEW, path)[1][0].startswith("All 6")
    assert quietly(llama, FEW, path)[0].attrs["device"] == "cpu"


@pytest.mark.parametrize("names", [["notes.txt"], ["manifest.json"], ["texts/a.csv"], ["activations.zarr.old/x"]])
def test_a_folder_with_other_files_is_refused_and_left_alone(llama, path, names):
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("mine")
    before = snapshot(path)
    for asked in (lambda: quietly(llama, FEW, path), lambda: open_activations(path)):
        with pytest.raises(WorkbenchError, match=f"other files there, such as '{names[0]}'"):
            asked()
    assert snapshot(path) == before and not (path / "lock").exists()


def test_a_file_is_no_store(llama, path):
    path.write_text("mine")
    with pytest.raises(WorkbenchError, match="Found: a file"):
        quietly(llama, FEW, path)
    assert path.read_text() == "mine"


def test_an_unknown_protocol_is_told(llama):
    with pytest.raises(WorkbenchError, match="Found: Protocol not known: nosuch\nAllowed: .*s3://"):
        quietly(llama, FEW, "nosuch://somewhere")


# -- what goes wrong on the way ---------------------------------------------------------------------------------


def test_too_little_room_is_told_before_anything_is_computed(llama, path, small, monkeypatch):
    room = 30 * (CHUNK * 32 * 4 + 4)  # ten parts of three layers
    monkeypatch.setattr(Files, "free", lambda _files: room - 1)
    found = r"40 texts .*\nFound: 0\.0 MB free, 0\.0 MB needed"
    with forwards(llama) as passes, pytest.raises(WorkbenchError, match=found):
        quietly(llama, TEXTS, path)
    assert passes == []
    monkeypatch.setattr(Files, "free", lambda _files: room)
    quietly(llama, TEXTS, path)
    with forwards(llama) as passes, pytest.raises(WorkbenchError, match="41 texts"):
        quietly(llama, [*TEXTS, *map(str.upper, TEXTS), "one more"], path)
    assert passes == [] and open_activations(path).sizes["text"] == 40


@pytest.mark.parametrize("less", [{"layers": [1]}, {"store_dtype": "float16"}, {"texts": TEXTS[:9]}], ids=str)
def test_what_is_advised_where_room_is_short_works(llama, path, small, monkeypatch, less):
    monkeypatch.setattr(Files, "free", lambda _files: 10_000)
    with pytest.raises(WorkbenchError, match=r"What to do: Make room, take fewer layers or texts, or store_dtype"):
        quietly(llama, TEXTS, path)
    quietly(llama, **{"texts": TEXTS, "store": path, **less})


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_nan_in_the_middle_is_refused_and_what_came_before_is_kept(own, path, small, broken):
    expected = quietly(own, TEXTS, f"{path}2")[0].values

    def breaks(_module, _inputs, output):
        output = residual(output).clone()
        if len(passes) == 5:
            output[1, :, 7] = broken
        return output

    handle = own.blocks[1].register_forward_hook(breaks)
    found = "NaN or inf in 1, first at layer 1 in text 1: '\\d+ the old"
    with forwards(own) as passes, pytest.raises(WorkbenchError, match=found):
        quietly(own, TEXTS, path)
    handle.remove()
    store = Store.find(path)
    assert sum(len(part.texts) for part in store.parts) == 16 and len(store.verify()) == 0
    assert len(list(path.rglob("activations/c/*/*/0"))) == 3 * 4, "a chunk of the broken part was written"
    with pytest.raises(WorkbenchError, match="a capture that did not finish: 4 parts are written"):
        open_activations(path)
    with forwards(own) as passes:
        acts, _ = quietly(own, TEXTS, path)
    assert computed(passes) == 24
    np.testing.assert_array_equal(acts.values, expected)


def test_values_beyond_float16_are_refused_and_nothing_is_lost(own, path, small):
    def grow(_module, _inputs, output):
        return residual(output) * (1e6 if len(passes) == 5 else 1)

    expected = quietly(own, TEXTS, f"{path}2", store_dtype="float16")[0].values
    handle = own.blocks[2].register_forward_hook(grow)
    found = r"float16\.\nFound: values up to \S+, beyond its 65504\n"
    with forwards(own) as passes, pytest.raises(WorkbenchError, match=found):
        quietly(own, TEXTS, path, store_dtype="float16")
    handle.remove()
    kept = sum(len(part.texts) for part in Store.find(path).parts)
    assert kept in (16, 20, 24)  # the four before, and those that waited for the disk when it was found
    with forwards(own) as passes:
        acts, _ = quietly(own, TEXTS, path, store_dtype="float16")
    assert computed(passes) == 40 - kept
    np.testing.assert_array_equal(acts.values, expected)


def test_an_unfinished_start_does_not_bind(own, path):
    """Nothing was written yet, so the call may change as the message says."""
    handle = own.blocks[2].register_forward_hook(lambda _module, _inputs, output: residual(output) * 1e6)
    with pytest.raises(WorkbenchError, match="beyond its 65504"):
        quietly(own, FEW, path, store_dtype="float16")
    assert quietly(own, FEW, path)[0].dtype == np.float32
    handle.remove()


def test_the_budget_shrinks_when_memory_runs_out_and_says_so(own, path, small, monkeypatch):
    expected, lengths = capture(own, TEXTS).values, list(map(len, own.encode(TEXTS)))
    run, room = own.twin.forward, max(lengths)

    def limited(input_ids, **more):
        if input_ids.numel() > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run(input_ids, **more)

    monkeypatch.setattr(own.twin, "forward", limited)
    for store in (path, None):
        with forwards(own) as passes:
            acts, said = quietly(own, TEXTS, store)
        np.testing.assert_allclose(acts.values, expected, atol=1e-5)
        budget, told = 4096, []
        for texts, longest in passes:
            assert texts == 1 or texts * longest <= budget, "the budget is not kept"
            if texts * longest > room:
                budget = texts * longest // 2
                told.append(f"Out of memory at {texts * longest:,} tokens a forward pass: going on with {budget:,}.")
        assert told and [line for line in said if "memory" in line] == told
    room = min(lengths)
    with pytest.raises(WorkbenchError, match=f"of {max(lengths)} tokens .*\nFound: not enough memory for it alone"):
        quietly(own, TEXTS, f"{path}2")


def test_any_other_runtime_error_is_not_taken_for_a_lack_of_memory(own, path, monkeypatch):
    monkeypatch.setattr(own.twin, "forward", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        quietly(own, FEW, path)


def test_control_c_leaves_what_was_computed_and_the_same_call_goes_on(llama, path, small, interruptible):
    expected = quietly(llama, TEXTS, f"{path}2")[0].values
    said = []
    with forwards(llama, lambda number: number == 6 and signal.raise_signal(signal.SIGINT)) as passes:
        with pytest.raises(KeyboardInterrupt):
            capture(llama, TEXTS, store=path, progress=False, say=said.append)
    assert said == [f"Interrupted: what was computed is in {path}, and the same call goes on from there."]
    kept = [text for part in Store.find(path).parts for text, _ in part.texts]
    assert len(kept) == 6 * CHUNK
    chunks = {name: digest for name, digest in snapshot(path).items() if "/c/" in name}
    with forwards(llama) as passes:
        acts, _ = quietly(llama, TEXTS, path)
    assert computed(passes) == 40 - len(kept)
    np.testing.assert_array_equal(acts.values, expected)
    assert chunks.items() <= snapshot(path).items()


def test_other_texts_may_follow_an_interrupted_capture(llama, path, small):
    with forwards(llama, lambda number: number == 4 and 1 / 0), pytest.raises(ZeroDivisionError):
        quietly(llama, TEXTS, path)
    kept = sum(len(part.texts) for part in Store.find(path).parts)
    others = [text.upper() for text in TEXTS[:10]]
    acts, _ = quietly(llama, others, path)
    np.testing.assert_allclose(acts.values, capture(llama, others).values, atol=1e-5)
    assert open_activations(path).content.values.tolist() == others
    with forwards(llama) as passes:
        quietly(llama, TEXTS, path)
    assert computed(passes) == 40 - kept


# -- a store's own files damaged ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DESCRIPTIONS)
@pytest.mark.parametrize("content", ["", '{"form', "[]", '{"format": "workbench activations 2"}'],
                         ids=["empty", "cut short", "a list", "other"])  # fmt: skip
def test_a_damaged_description_is_told_with_what_to_do(llama, path, name, content):
    quietly(llama, FEW, path)
    (path / name).write_text(content)
    before = snapshot(path)
    for asked in (lambda: quietly(llama, FEW, path), lambda: open_activations(path)):
        with pytest.raises(WorkbenchError, match=rf"The store {path} was to be|of the store {path} w") as told:
            asked()
        assert f"workbench cache rm {path}" in told.value.do
    assert snapshot(path) == before


@pytest.mark.parametrize(("damage", "found"), [("flipped", "damaged"), ("gone", "missing")])
def test_damaged_texts_are_told_with_what_to_do(llama, path, damage, found):
    quietly(llama, FEW, path)
    (texts,) = path.glob("texts-*.parquet")
    if damage == "gone":
        texts.unlink()
    else:
        texts.write_bytes(texts.read_bytes()[:-9] + b"\0" * 9)
    for asked in (lambda: quietly(llama, FEW, path), lambda: open_activations(path)):
        with pytest.raises(WorkbenchError, match=rf"Found: texts-\w+\.parquet {found}\nWhat to do: .*cache rm {path}"):
            asked()


def test_a_manifest_cannot_point_out_of_its_folder(llama, path, tmp_path):
    quietly(llama, FEW, path)
    (texts,) = path.glob("texts-*.parquet")
    texts.rename(tmp_path / texts.name)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["texts"]["file"] = f"../{texts.name}"
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(WorkbenchError, match="texts-"):
        open_activations(path)


def test_half_written_files_are_cleared(llama, path, small):
    """A process that was killed leaves them; the next capture clears them away."""
    quietly(llama, FEW, path)
    for name in (*DESCRIPTIONS, "parts/000000000000.json", "texts-0.parquet", "activations.zarr/activations/c/0/0/0"):
        (path / f"{name}.0a.partial").write_bytes(b"half")
    quietly(llama, TEXTS[:8], path)
    assert list(path.rglob("*.partial")) == []
    assert Store.find(path).verify().empty and open_activations(path).sizes["text"] == 8
