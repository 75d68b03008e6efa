"""Stored activations when something breaks: killed processes, two writers, damaged chunks, full and read-only disks,
and an object store over the network. Nothing that was written is ever lost, wrong or computed again.
"""

import errno
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stored import CHUNK, TEXTS, chunk, computed, flip, forwards, quietly, small_parts, snapshot

from workbench.activations import Store, open_activations
from workbench.activations.files import Files
from workbench.activations.store import text_id
from workbench.errors import WorkbenchError

LAYERS = 3
SIZE = CHUNK * 32 * 4 + 4  # bytes of a chunk's file

forking = pytest.mark.skipif(sys.platform != "linux", reason="forks a process that holds a model")


@pytest.fixture(scope="module")
def llama(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        small_parts(patch)
        yield


@pytest.fixture(scope="module")
def whole(llama, tmp_path_factory):
    """(path of a store of all texts, its values); copy it before changing it."""
    path = tmp_path_factory.mktemp("whole") / "store"
    return path, quietly(llama, TEXTS, path)[0].values


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(whole, path):
    """A store of all texts, of this test's own."""
    shutil.copytree(whole[0], path)
    return path


def written(path):
    """Ids of the texts that a store has recorded as written, the damaged left out."""
    store = Store.find(path)
    if store is None:
        return set()
    bad = set(store.verify().part)
    return {text for part in store.parts if part.start not in bad for text, _ in part.texts}


# -- killed ------------------------------------------------------------------------------------------------------


def fork(work):
    """A copy of this process, model and all, that does the work and nothing else; returns its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        torch.set_num_threads(1)  # OpenMP's other threads are not copied: waiting for them never ends
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(process):
    """How it ended: its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


KINDS = {"chunk": r"/c(/|$)", "part": r"/parts(/|$)", "description": r"zarr.json|zarr\.\w+|manifest|texts", "any": ""}


def changes(folder, call):
    """From now on `call` is called with the path before each change of a file or folder below `folder`."""

    def watch(event, args):
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        place = os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else ""
        if place.startswith(str(folder)) and (event != "open" or args[2] & (os.O_WRONLY | os.O_RDWR)):
            call(place)
            if event == "open":
                opened.place = place

    opened = threading.local()
    sys.addaudithook(watch)
    return opened


def die_at(folder, kind, point, torn):
    """Let this process be killed just before its point-th change of a file or folder of a kind below `folder`.

    torn: the file that the same thread opened last for writing, if it stands under that name still, loses half of what
    it holds: it was being written.
    """
    number = count()

    def die(place):
        if re.search(KINDS[kind], place.removeprefix(str(folder))) and next(number) == point:
            last = getattr(opened, "place", None)
            if torn and last and os.path.exists(last):
                os.truncate(last, os.path.getsize(last) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    opened = changes(folder, die)


@pytest.fixture(scope="module")
def begun(whole, llama, tmp_path_factory):
    """Function: name -> (store before the capture or None, values after it, paths that it changes, in their order)."""
    folder = tmp_path_factory.mktemp("begun")
    added, damaged = folder / "added", folder / "damaged"
    quietly(llama, TEXTS[5:25], added)
    shutil.copytree(whole[0], damaged)
    chunk(damaged, 1, 6).unlink()
    found = {}
    for name, start in (("new", None), ("added", added), ("damaged", damaged)):
        place, told = folder / f"{name} done", folder / f"{name} changes"
        if start:
            shutil.copytree(start, place)

        def work(place=place, told=told):
            paths = []
            changes(place, paths.append)
            quietly(llama, TEXTS, place)
            told.write_text("\n".join(path.removeprefix(str(place)) for path in paths))

        assert ended(fork(work)) == 0
        found[name] = start, open_activations(place).values, told.read_text().splitlines()
    return found.__getitem__


def goes_on(model, path, values):
    """The same call after a kill: only what was not recorded is computed, and the numbers are as without the kill."""
    kept = written(path)
    files = {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in recorded_chunks(path)}
    with forwards(model) as passes:
        acts, _ = quietly(model, TEXTS, path)
    assert computed(passes) == len(TEXTS) - len(kept), "computed again, or not at all"
    assert {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in files} == files, "written again"
    order = {content: place for place, content in enumerate(open_activations(path).content.values)}
    np.testing.assert_array_equal(acts.values, values[:, [order[text] for text in TEXTS]])
    np.testing.assert_array_equal(open_activations(path).values, values)
    assert Store.find(path).verify().empty
    with forwards(model) as passes:
        assert quietly(model, TEXTS, path)[1][0].startswith("All 40") and passes == []


def recorded_chunks(path):
    store = Store.find(path)
    parts = [part for part in store.parts if part.start not in set(store.verify().part)] if store else []
    return [chunk(path, layer, part.start // CHUNK) for part in parts for layer in range(LAYERS)]


@forking
@settings(deadline=None, max_examples=22)
@given(
    name=st.sampled_from(["new", "added", "damaged"]),
    kills=st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.floats(0, 1), st.booleans()), min_size=1, max_size=2),
)
def test_a_capture_killed_anywhere_goes_on(llama, begun, tmp_path_factory, name, kills):
    """Just before any change of a file, with what was being written whole or half there, once or twice."""
    start, values, paths = begun(name)
    path = tmp_path_factory.mktemp("killed") / "store"
    if start:
        shutil.copytree(start, path)
    for kind, share, torn in kills:
        point = int(share * sum(bool(re.search(KINDS[kind], place)) for place in paths))

        def work(kill=(kind, point, torn)):
            die_at(path, *kill)
            quietly(llama, TEXTS, path)

        before = written(path)
        assert ended(fork(work)) in (-signal.SIGKILL, 0)
        assert before <= written(path), "recorded and lost"
        if store := Store.find(path):
            assert set(store.verify().problem) <= ({"missing"} if name == "damaged" else set())
        if name == "added":  # a reader still has the old texts, or already the new ones
            seen = open_activations(path)
            np.testing.assert_array_equal(seen.values, values[:, : seen.sizes["text"]])
    goes_on(llama, path, values)
    shutil.rmtree(path)


@forking
def test_a_capture_killed_again_and_again_ends(llama, whole, path):
    """At random times, each time in the capture that goes on from the kill before."""
    started = time.monotonic()
    quietly(llama, TEXTS, f"{path}2")
    takes, draw, kills, kept = time.monotonic() - started, random.Random(0), 0, set()
    for _ in range(20):
        process = fork(lambda: quietly(llama, TEXTS, path))
        time.sleep(draw.uniform(0, takes))
        os.kill(process, signal.SIGKILL)
        kills += ended(process) == -signal.SIGKILL
        assert kept <= written(path), "recorded and lost"
        kept = written(path)
    assert kills > 0
    goes_on(llama, path, whole[1])


# -- two writers ---------------------------------------------------------------------------------------------------


@contextmanager
def holder(model, path):
    """A process that is in the middle of a capture into `path`, and a function that lets it go on."""
    (ready, tell), (wait, go) = os.pipe(), os.pipe()

    def work():
        def pause(number):
            if number == 5:
                os.write(tell, b".")
                os.read(wait, 1)

        with forwards(model, pause):
            quietly(model, TEXTS, path)

    process = fork(work)
    os.close(tell)
    assert os.read(ready, 1) == b".", "it ended too early"
    try:
        yield process, lambda: os.write(go, b".")
    finally:
        for end in (ready, wait, go):
            os.close(end)
        with suppress(ChildProcessError):  # it ended as it should
            if not os.waitpid(process, os.WNOHANG)[0]:
                os.kill(process, signal.SIGKILL)
                ended(process)


@forking
def test_a_second_writer_is_refused_at_once_and_the_first_is_unharmed(llama, whole, path):
    with holder(llama, path) as (process, release):
        with forwards(llama) as passes, pytest.raises(WorkbenchError) as told:
            quietly(llama, TEXTS[:7], path)
        assert passes == []
        assert str(told.value) == (f"The store {path} was to be written.\nFound: another process that writes it now\n"
                                   "What to do: Wait for that one, or take a store of your own.")  # fmt: skip
        release()
        assert ended(process) == 0
    np.testing.assert_array_equal(open_activations(path).values, whole[1])
    with forwards(llama) as passes:
        quietly(llama, TEXTS, path)
    assert passes == [] and Store.find(path).verify().empty


@forking
def test_the_lock_of_a_killed_writer_is_free(llama, whole, path):
    with holder(llama, path) as (process, _):
        os.kill(process, signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL
        goes_on(llama, path, whole[1])


def test_a_second_writer_in_another_thread_is_refused_too(llama, whole, path):
    told = []

    def second():
        try:
            quietly(llama, TEXTS[:3], path)
        except WorkbenchError as problem:
            told.append(problem.found)

    def start(number):
        if number == 3:  # the first part is written by now, so that no width is found in the middle of this pass
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    with forwards(llama, start):
        acts, _ = quietly(llama, TEXTS, path)
    assert told == ["another process that writes it now"]
    np.testing.assert_array_equal(acts.values, whole[1])


def test_whole_stores_need_no_lock(llama, store, whole):
    with Files(store).lock():
        acts, said = quietly(llama, TEXTS, store)
        assert said[0].startswith("All 40")
        np.testing.assert_array_equal(acts.values, whole[1])
        np.testing.assert_array_equal(open_activations(store).values, whole[1])


# -- damaged chunks ------------------------------------------------------------------------------------------------


def heals(model, path, values, layer, number, problem, **asked):
    """verify finds exactly that chunk, and the next capture computes exactly its part."""
    store = Store.find(path)
    damage = store.verify()
    part = next(part for part in store.parts if part.start <= number * CHUNK < part.start + part.rows)
    assert damage.to_dict("records") == [
        {"layer": layer, "part": part.start, "texts": len(part.texts), "row": number * CHUNK, "problem": problem}
    ]
    with store.files.lock():
        store.mark_damaged(damage.part)
    with pytest.raises(WorkbenchError, match=f"damage in {len(part.texts)} of them, such as '.*\n.*Capture them"):
        open_activations(path)
    others = {name: digest for name, digest in snapshot(path).items() if "/c/" in name and f"/{number}/0" not in name}
    with forwards(model) as passes:
        acts, said = quietly(model, TEXTS, path, **asked)
    assert computed(passes) == len(part.texts) and said[-1].endswith(f"computed {len(part.texts)}.")
    np.testing.assert_array_equal(acts.values, values)
    assert others.items() <= snapshot(path).items()
    assert Store.find(path).verify().empty and not Store.find(path).damaged


@settings(deadline=None, max_examples=15)
@given(layer=st.integers(0, LAYERS - 1), number=st.integers(0, 9), bit=st.integers(0, 8 * SIZE - 1))
@example(layer=2, number=9, bit=8 * SIZE - 1)  # in the checksum itself
def test_a_flipped_bit_is_never_read_and_computed_again_where_it_is(llama, whole, tmp_path_factory, layer, number, bit):
    path = tmp_path_factory.mktemp("flipped") / "store"
    shutil.copytree(whole[0], path)
    flip(chunk(path, layer, number), bit)
    acts = open_activations(path)
    with pytest.raises(WorkbenchError) as told:
        _ = acts.sel(layer=layer).values
    assert told.value.asked.startswith(f"Layer {layer}, rows ") and str(path) in told.value.asked
    assert told.value.found.startswith("damage there") and f"workbench cache verify {path}" in told.value.do
    other = (layer + 1) % LAYERS
    np.testing.assert_array_equal(acts.sel(layer=other).values, whole[1][other])
    heals(llama, path, whole[1], layer, number, "other bytes than were written")
    shutil.rmtree(path)


def test_another_layers_chunk_in_its_place_is_found(llama, store, whole):
    """Its checksum is right, so reading cannot tell; the manifest's digest can."""
    shutil.copy(chunk(store, 0, 3), chunk(store, 2, 3))
    heals(llama, store, whole[1], 2, 3, "other bytes than were written")


@pytest.mark.parametrize("size", [None, 0, 1, 4, SIZE // 2, SIZE - 4, SIZE - 1, SIZE + 4], ids=str)
def test_a_chunk_that_is_gone_or_of_another_size_is_never_read_and_found_by_the_capture_itself(
    llama, store, whole, size
):
    file = chunk(store, 1, 6)
    if size is None:
        file.unlink()
    else:
        file.write_bytes((file.read_bytes() * 2)[:size])
    acts = open_activations(store)
    with pytest.raises(WorkbenchError, match=r"Layer 1, rows 2\d to 27, .*\nFound: damage there") as told:
        _ = acts.isel(text=list(TEXTS.index(text) for text in texts_of(store, 6))).values
    assert f"workbench cache verify {store}" in told.value.do
    with pytest.raises(WorkbenchError, match="Layer 1, rows .*\nFound: damage there"):
        _ = acts.values
    assert Store.find(store).verify().problem.tolist() == ["missing" if size is None else f"{size} of {SIZE} bytes"]
    with forwards(llama) as passes:
        acts, said = quietly(llama, TEXTS, store)
    assert said[0] == f"1 chunks of {store} are missing or cut short: computed again where asked for."
    assert computed(passes) == CHUNK
    np.testing.assert_array_equal(acts.values, whole[1])
    assert Store.find(store).verify().empty


def texts_of(path, number):
    entries = Store.find(path).entries
    return entries.content[entries.row // CHUNK == number].tolist()


@pytest.mark.parametrize("position", ["all", [-1, 0], "own"], ids=str)
def test_a_part_of_many_chunks_is_computed_again_as_a_whole(llama, path, position):
    position = np.array([[number % 3, -1] for number in range(40)]) if position == "own" else position
    acts, _ = quietly(llama, TEXTS, path, position=position)
    values, store = acts.values, Store.find(path)
    number = store.parts[3].start // CHUNK
    flip(chunk(path, 2, number), 77)
    heals(llama, path, values, 2, number, "other bytes than were written", position=position)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("position", ["last", "mean", "all", [-1, 0], "own"], ids=str)
def test_a_damaged_part_is_computed_again_though_one_of_its_texts_is_asked_for(llama, path, position, chat):
    """The store knows the others, and how they were read."""
    whole = np.array([[number % 3, -1] for number in range(12)]) if position == "own" else position
    acts, _ = quietly(llama, TEXTS[:12], path, position=whole, chat=chat)
    values = acts.values
    chunk(path, 0, 1).unlink()
    store = Store.find(path)
    part = next(part for part in reversed(store.parts) if part.start <= CHUNK)
    content = store.entries.set_index("text_id").content
    place = TEXTS.index(content[part.texts[-1][0]])
    with forwards(llama) as passes:
        quietly(llama, TEXTS[place : place + 1], path, chat=chat,
                position=whole[place : place + 1] if position == "own" else whole)  # fmt: skip
    assert computed(passes) == len(part.texts)
    np.testing.assert_array_equal(open_activations(path).values, values)


def test_damage_elsewhere_does_not_hold_up_a_capture(llama, store, whole):
    lost, asked = texts_of(store, 6), texts_of(store, 2)
    chunk(store, 1, 6).unlink()
    with forwards(llama) as passes:
        acts, said = quietly(llama, asked, store)
    assert passes == [] and said == [f"All 4 texts are in {store}: nothing was computed."]
    np.testing.assert_array_equal(acts.values, whole[1][:, [TEXTS.index(text) for text in asked]])
    with forwards(llama) as passes:
        quietly(llama, [*asked, "one more"], store)
    assert computed(passes) == 1
    with pytest.raises(WorkbenchError, match="damage in 4 of them"):
        open_activations(store)
    with forwards(llama) as passes:
        quietly(llama, lost[:1], store)
    assert computed(passes) == 4
    np.testing.assert_array_equal(open_activations(store).values[:, :40], whole[1])


def test_damage_that_only_another_call_can_mend_says_so(llama, path):
    with forwards(llama, lambda number: number == 4 and 1 / 0), pytest.raises(ZeroDivisionError):
        quietly(llama, TEXTS, path)  # never finished: the store has its numbers, and no list of its texts
    rows = Store.find(path).rows
    asked = [text for text in TEXTS if rows.get(text_id(llama.encode([text])[0])) == 0]
    quietly(llama, asked, path)
    chunk(path, 0, 0).unlink()
    with pytest.raises(WorkbenchError, match="neither the call nor the store knows\nWhat to do: Make the capture"):
        quietly(llama, asked, path)
    quietly(llama, TEXTS, path)
    assert Store.find(path).verify().empty and open_activations(path).sizes["text"] == 40


def test_damage_in_an_unfinished_store_is_mended_by_the_same_call(llama, whole, path):
    with forwards(llama, lambda number: number == 6 and 1 / 0), pytest.raises(ZeroDivisionError):
        quietly(llama, TEXTS, path)
    kept = len(written(path))
    chunk(path, 2, 1).unlink()
    flip(chunk(path, 0, 2), 5)
    found = Store.find(path)
    assert sorted(found.verify().row) == [CHUNK, 2 * CHUNK]
    with found.files.lock():
        found.mark_damaged(found.verify().part)
    with forwards(llama) as passes:
        acts, _ = quietly(llama, TEXTS, path)
    assert computed(passes) == 40 - kept + 2 * CHUNK
    np.testing.assert_array_equal(acts.values, whole[1])
    assert Store.find(path).verify().empty


def test_the_whole_rest_of_a_damaged_store_can_be_read(llama, path):
    values = quietly(llama, TEXTS, path)[0].values
    store = Store.find(path)
    flip(chunk(path, 1, 2), 77)
    lost = {text for text, _ in store.parts[2].texts}
    with store.files.lock():
        store.mark_damaged(store.verify().part)
    with pytest.raises(WorkbenchError, match=r"damage in 4 of them(.|\n)*partial=True"):
        open_activations(path)
    rest = open_activations(path, partial=True)
    kept = [row for row, text in enumerate(store.entries.text_id) if text not in lost]
    assert rest.content.values.tolist() == [TEXTS[row] for row in kept] and len(kept) == len(TEXTS) - 4
    np.testing.assert_array_equal(rest.values, values[:, kept])


def test_marking_damage_forgets_nothing_that_was_captured_meanwhile(llama, path):
    quietly(llama, TEXTS[:20], path)
    flip(chunk(path, 1, 2), 9)
    early = Store.find(path)
    damage = early.verify()  # takes long in a large store
    quietly(llama, TEXTS, path)
    with early.files.lock():
        early.mark_damaged(damage.part)
    assert len(written(path)) == 40 - CHUNK
    with forwards(llama) as passes:
        quietly(llama, TEXTS, path)
    assert computed(passes) == CHUNK and open_activations(path).sizes["text"] == 40


# -- no room, no right ---------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """Function: options -> folder of a small disk of its own, mounted again with other options when called again."""
    folder, mounted = tmp_path / "disk", []
    folder.mkdir()

    def mount(options):
        how = ["-o", f"{'remount,' if mounted else ''}{options}"]
        try:
            subprocess.run(["mount", "-t", "tmpfs", *how, "tmpfs", folder], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as problem:
            pytest.skip(f"no tmpfs may be mounted here: {problem}")
        mounted.append(folder)
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("pages", [3, 8, 12, 20, 33, 45])
def test_a_full_disk_is_one_clear_sentence_and_after_making_room_it_goes_on(llama, whole, disk, monkeypatch, pages):
    monkeypatch.setattr(Files, "free", lambda _files: None)  # so that the writing itself fails
    path = disk(f"size={pages * os.sysconf('SC_PAGE_SIZE')}") / "store"
    with pytest.raises(WorkbenchError) as told:
        quietly(llama, TEXTS, path)
    assert str(told.value) == (
        f"The store {path} was to be written.\nFound: no room left on its disk\n"
        "What to do: Make room and call again: what was written stays and is not computed again."
    )
    if found := Store.find(path):
        assert found.verify().empty
    disk("size=8m")
    goes_on(llama, path, whole[1])


def test_too_small_a_disk_is_told_beforehand(llama, disk):
    path = disk("size=200k") / "store"
    with forwards(llama) as passes, pytest.raises(WorkbenchError, match=r"Found: 0\.[12] MB free, 0\.6 MB needed"):
        quietly(llama, [f"{number} more" for number in range(1600)], path)
    assert passes == []


@pytest.mark.parametrize("name", ["activations/c/", "parts/", "texts-", "manifest"])
@pytest.mark.parametrize(
    ("number", "found"),
    [(errno.ENOSPC, "no room left on its disk"), (errno.EDQUOT, "no room left on its disk"),
     (errno.EROFS, "Read-only file system"), (errno.EACCES, "Permission denied"), (errno.EIO, "Input/output error")],
    ids=lambda part: errno.errorcode.get(part, "") if isinstance(part, int) else "",
)  # fmt: skip
def test_a_write_that_fails_is_told_and_the_same_call_goes_on(llama, whole, path, monkeypatch, name, number, found):
    from zarr.storage import LocalStore

    writes, real, put = count(), Path.write_bytes, LocalStore.set

    def fails(place):
        if name in place and next(writes) == (13 if "/c/" in name else 4 if name == "parts/" else 0):
            raise OSError(number, os.strerror(number), place)

    def write(file, content):
        fails(str(file))
        return real(file, content)

    async def put_chunk(store, key, value):
        fails(f"{store.root}/{key}")
        return await put(store, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write)
        patch.setattr(LocalStore, "set", put_chunk)
        with pytest.raises(WorkbenchError) as told:
            quietly(llama, TEXTS, path)
    assert told.value.asked == f"The store {path} was to be written." and told.value.found == found
    assert "what was written stays" in told.value.do
    assert len(written(path)) >= 4 * CHUNK and Store.find(path).verify().empty
    assert list(path.rglob("*.partial")) == []
    goes_on(llama, path, whole[1])


def test_a_store_in_a_read_only_place_answers_and_takes_nothing_new(llama, whole, disk):
    path = disk("size=8m") / "store"
    shutil.copytree(whole[0], path)
    disk("ro,size=8m")
    before = snapshot(path)
    with forwards(llama) as passes:
        acts, said = quietly(llama, TEXTS, path)
        assert said[0].startswith("All 40")
        np.testing.assert_array_equal(acts.values, whole[1])
        np.testing.assert_array_equal(open_activations(path).values, whole[1])
        for where, texts in ((path, ["another"]), (path.with_name("new"), TEXTS)):
            with pytest.raises(WorkbenchError, match=f"store {where} was to be written.\nFound: Read-only file system"):
                quietly(llama, texts, where)
    assert passes == [] and snapshot(path) == before


def test_a_folder_that_may_not_be_written_is_told(llama, store, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "lock")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert quietly(llama, TEXTS, store)[1][0].startswith("All 40")
    with forwards(llama) as passes, pytest.raises(WorkbenchError, match="was to be written.\nFound: Permission denied"):
        quietly(llama, ["another"], store)
    assert passes == []


def test_a_disk_that_cannot_be_read_is_told(store, monkeypatch):
    from zarr.storage import LocalStore

    async def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    acts = open_activations(store)
    monkeypatch.setattr(LocalStore, "get", fail)
    with pytest.raises(WorkbenchError, match=f"The store {store} was to be read.\nFound: Input/output error"):
        _ = acts.values


# -- over the network: an S3-compatible server on this machine ------------------------------------------------------


KEYS = {"AWS_ACCESS_KEY_ID": "AKIA-NOT-TO-BE-SEEN", "AWS_SECRET_ACCESS_KEY": "secret-not-to-be-seen"}


@pytest.fixture(scope="module")
def server():
    """URL of a server that speaks S3; the environment leads s3fs there."""
    moto = pytest.importorskip("moto.server", reason="moto[server], a stand-in for S3, is not installed")
    s3fs = pytest.importorskip("s3fs")
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    running = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    url = "http://{}:{}".format(*running.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        for name, setting in {**KEYS, "AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1",
                              "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1",
                              "NO_PROXY": "127.0.0.1"}.items():  # fmt: skip
            patch.setenv(name, setting)
        patch.setattr(s3fs.S3FileSystem, "retries", 1)
        s3fs.S3FileSystem.clear_instance_cache()
        yield url
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


@pytest.fixture
def bucket(server):
    """URL of an empty bucket."""
    name = f"bucket-{random.randrange(10**9)}"
    Files(f"s3://{name}").fs.mkdir(name)
    return f"s3://{name}"


FEW = TEXTS[:10]


def test_s3_holds_what_the_disk_holds(llama, bucket, path):
    url = f"{bucket}/store"
    acts, said = quietly(llama, FEW, url, labels={"number": range(10)})
    assert said == [f"10 texts are in {url}: computed 10."]
    local, _ = quietly(llama, FEW, path, labels={"number": range(10)})
    np.testing.assert_array_equal(acts.values, local.values)
    opened = open_activations(url)
    np.testing.assert_array_equal(opened.sel(layer=1, text=[7, 0]).values, local.values[1, [7, 0]])
    assert opened.number.values.tolist() == list(range(10))
    remote, here = Files(url), Files(path)
    texts = {name for name in here.sizes() if name.startswith("texts-")}
    assert remote.sizes().keys() == here.sizes().keys() - {"lock"} and len(texts) == 1
    with forwards(llama) as passes:
        assert quietly(llama, FEW, url)[1][0].startswith("All 10") and passes == []
        more, _ = quietly(llama, TEXTS[:13], url)
    assert computed(passes) == 3
    np.testing.assert_array_equal(more.values[:, :10], local.values)
    for name in remote.sizes():  # no key is written anywhere
        assert not any(key.encode() in remote.read(name) for key in KEYS.values()), name


def test_damage_on_s3_is_found_and_computed_again(llama, bucket):
    url = f"{bucket}/store"
    values = quietly(llama, FEW, url)[0].values
    files, name = Files(url), "activations.zarr/activations/c/2/1/0"
    content = bytearray(files.read(name))
    content[40] ^= 4
    files.write(name, bytes(content))
    with pytest.raises(WorkbenchError, match="Layer 2, rows .*\nFound: damage there"):
        _ = open_activations(url).values
    store = Store.find(url)
    assert store.verify()[["layer", "row"]].values.tolist() == [[2, CHUNK]]
    with store.files.lock():
        store.mark_damaged(store.verify().part)
    files.remove("activations.zarr/activations/c/0/0/0")
    with forwards(llama) as passes:
        acts, _ = quietly(llama, FEW, url)
    assert computed(passes) == 2 * CHUNK
    np.testing.assert_array_equal(acts.values, values)
    assert Store.find(url).verify().empty


def test_an_interrupted_capture_on_s3_goes_on(llama, bucket, path, interruptible):
    url = f"{bucket}/store"
    with forwards(llama, lambda number: number == 2 and signal.raise_signal(signal.SIGINT)):
        with pytest.raises(KeyboardInterrupt):
            quietly(llama, FEW, url)
    with forwards(llama) as passes:
        acts, _ = quietly(llama, FEW, url)
    assert computed(passes) == 2
    np.testing.assert_array_equal(acts.values, quietly(llama, FEW, path)[0].values)


def test_one_writer_on_s3(llama, bucket):
    url, told, owners = f"{bucket}/store", [], []

    def second(number):
        if number == 3:  # the first part is written by now, so that no width is found in the middle of this pass
            owners.append(json.loads(Files(url).read("lock"))["owner"])
            with pytest.raises(WorkbenchError, match=f"{url} was to be written.\nFound: another process") as refused:
                quietly(llama, TEXTS, url)
            told.append(refused.value)
            owners.append(json.loads(Files(url).read("lock"))["owner"])

    with forwards(llama, second) as passes:
        quietly(llama, TEXTS[:16], url)
    assert told and computed(passes) == 16 and owners[0] == owners[1]
    assert Files(url).read("lock") is None and open_activations(url).sizes["text"] == 16


def test_a_lock_on_s3_is_refreshed_and_taken_over_when_nobody_does(llama, bucket, monkeypatch):
    url = f"{bucket}/store"
    files = Files(url)
    files.write("lock", json.dumps({"owner": "gone", "time": time.time() - 590}).encode())
    with pytest.raises(WorkbenchError, match="another process that writes it now"):
        quietly(llama, FEW, url)
    assert json.loads(files.read("lock"))["owner"] == "gone"
    files.write("lock", json.dumps({"owner": "gone", "time": time.time() - 601}).encode())
    seen, put, puts = set(), files.fs.pipe_file, count()

    def once_out_of_reach(place, content, **more):
        if place.endswith("/lock") and not more and next(puts) == 1:  # the first refresh after it was taken over
            raise OSError("no route to host")
        put(place, content, **more)

    def look(_number):
        until = time.monotonic() + 30
        while len(seen) < 3 and time.monotonic() < until:
            seen.add(json.loads(files.read("lock"))["time"])

    with monkeypatch.context() as patch:
        patch.setattr(files.fs, "pipe_file", once_out_of_reach)
        patch.setattr("threading.Event.wait", lambda event, timeout=None, wait=threading.Event.wait: wait(
            event, 0.05 if timeout == 60 else timeout))  # fmt: skip
        with forwards(llama, look):
            quietly(llama, FEW, url)
    assert len(seen) >= 3, "the lock was not refreshed"
    assert files.read("lock") is None and open_activations(url).sizes["text"] == 10


def test_a_lock_that_another_took_over_is_left_to_it(bucket):
    files = Files(f"{bucket}/store")
    with files.lock():
        files.write("lock", json.dumps({"owner": "another", "time": time.time()}).encode())
    assert json.loads(files.read("lock"))["owner"] == "another"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"url": "s3://no-such-bucket/store"}, "The specified bucket does not exist"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Could not connect to the endpoint URL"),
        (dict.fromkeys(KEYS), "Unable to locate credentials"),
    ],
    ids=["no bucket", "no server", "no keys"],
)
def test_what_fails_on_the_way_to_s3_is_one_clear_sentence(llama, bucket, monkeypatch, change, found):
    import s3fs

    url = change.get("url", f"{bucket}/store")
    for name, setting in change.items():
        if name.startswith("AWS"):
            monkeypatch.setenv(name, setting) if setting else monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    message = f"The store {url} was to be .*\nFound: {found}"
    with forwards(llama) as passes, pytest.raises(WorkbenchError, match=message) as told:
        quietly(llama, FEW, url)
    assert passes == [] and not any(key in str(told.value) for key in KEYS.values())
    s3fs.S3FileSystem.clear_instance_cache()
