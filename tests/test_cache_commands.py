"""`workbench cache ls | verify | rm`: what is there, is it whole, remove it and nothing else."""

import json
import re
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from stored import CHUNK, DESCRIPTIONS, TEXTS, chunk, computed, flip, forwards, quietly, small_parts, snapshot
from typer.testing import CliRunner

from workbench.activations import Store, open_activations
from workbench.activations.files import Files
from workbench.cli import app
from workbench.errors import WorkbenchError

FEW = TEXTS[:12]


@pytest.fixture(scope="module")
def llama(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="module")
def whole(llama, tmp_path_factory):
    """A store of three parts; copy it before changing it."""
    path = tmp_path_factory.mktemp("whole") / "store"
    with pytest.MonkeyPatch.context() as patch:
        small_parts(patch)
        quietly(llama, FEW, path, layers=[0, 2])
    return path


@pytest.fixture
def store(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "here" / "store")


@pytest.fixture
def unfinished(llama, tmp_path, monkeypatch):
    """A capture that failed after two of its three parts."""
    small_parts(monkeypatch)
    path = tmp_path / "here" / "half"
    with forwards(llama, lambda number: number == 2 and 1 / 0), pytest.raises(ZeroDivisionError):
        quietly(llama, FEW, path)
    return path


def run(*words, answer=None):
    """(exit status, what was printed)."""
    result = CliRunner().invoke(app, ["cache", *map(str, words)], input=answer)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def listed(folder):
    """{name of the store: its line, as words}, without the header."""
    code, output = run("ls", folder)
    assert code == 0
    return {line.split()[0].rpartition("/")[2]: line.split()[1:] for line in output.splitlines()[1:]}


# -- ls --------------------------------------------------------------------------------------------------------


def test_ls_shows_size_model_reading_age_and_damage(store, unfinished):
    shutil.copytree(store, store.parent / "deeper" / "old")
    manifest = store.parent / "deeper" / "old" / "manifest.json"
    written = (datetime.now(UTC) - timedelta(days=3, minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "written": written}))
    chunk(store, 0, 0).unlink()
    lines = listed(store.parent)
    assert sorted(lines) == ["half", "old", "store"]
    assert lines["old"] == ["0.0", "llama", "resid_post", "2", "12", "3", "d", "none", "seen"]
    assert lines["store"][:5] == ["0.0", "llama", "resid_post", "2", "12"]
    assert lines["store"][-3:] == ["1", "chunks", "gone"]
    assert lines["half"] == ["0.0", "llama", "resid_post", "3", "not", "finished", "none", "seen"]
    header = run("ls", store.parent)[1].splitlines()[0].split()
    assert header == ["store", "MB", "model", "hook", "layers", "texts", "age", "damage"]


def test_ls_counts_every_byte(store):
    (store / "more").write_bytes(bytes(2_000_000))
    assert listed(store)["store"][0] == f"{sum(f.stat().st_size for f in store.rglob('*') if f.is_file()) / 1e6:.1f}"


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_ls_shows_a_store_that_cannot_be_opened_beside_the_others(store, name):
    shutil.copytree(store, store.parent / "good")
    (store / name).write_text('{"cut')
    lines = listed(store.parent)
    assert lines["good"][-2:] == ["none", "seen"]
    assert "JSON" in " ".join(lines["store"])


def test_ls_takes_what_is_no_store_for_none(tmp_path):
    (tmp_path / "a" / "activations.zarr").mkdir(parents=True)  # the start of a store that was killed at once
    (tmp_path / "b.txt").write_text("mine")
    assert run("ls", tmp_path) == (0, f"No store of activations in {tmp_path}.\n")


def test_ls_looks_here_by_default(store, monkeypatch):
    monkeypatch.chdir(store.parent)
    assert "llama" in run("ls")[1]


@pytest.mark.parametrize("place", ["{}/nowhere", "memory://nowhere/at-all"])
def test_ls_of_nothing_is_told(tmp_path, place):
    code, output = run("ls", place.format(tmp_path))
    assert code == 1 and re.search("Found: no (such folder|store of activations there)", output)


def test_a_url_is_listed_verified_and_removed(llama):
    url = "memory://commands/store"
    quietly(llama, FEW, url)
    assert listed(url)["store"][1:5] == ["llama", "resid_post", "3", "12"]
    assert run("verify", url)[0] == 0
    assert run("rm", "--yes", url)[0] == 0
    assert Files(url).sizes() == {} and run("ls", url)[0] == 1


# -- verify ----------------------------------------------------------------------------------------------------


def test_verify_of_a_whole_store_changes_nothing(store):
    before = snapshot(store)
    assert run("verify", store) == (0, f"{store}: 12 texts in 3 parts read.\nNo damage.\n")
    assert snapshot(store) == before


def test_verify_tells_and_marks_damage_and_the_next_capture_mends_it(llama, store):
    values = open_activations(store).values
    flip(chunk(store, 1, 2), 1000)
    code, output = run("verify", store)
    assert code == 1
    told = output.splitlines()
    assert told[0] == f"{store}: 12 texts in 3 parts read."
    assert told[1].split() == ["layer", "part", "texts", "row", "problem"]
    assert told[2].split() == ["2", "8", "4", "8", "other", "bytes", "than", "were", "written"]
    assert told[3] == "Capture the same texts again: only these parts are computed anew." and len(told) == 4
    assert Store.find(store).damaged == {8}
    assert listed(store.parent)["store"][-2:] == ["1", "parts"]
    code, output = run("verify", store)  # marked, so it is not read again
    assert code == 1 and output == (f"{store}: 8 texts in 2 parts read.\n"
                                    "1 parts were found damaged before and not yet captured again.\n")  # fmt: skip
    with forwards(llama) as passes:
        acts, _ = quietly(llama, FEW, store, layers=[0, 2])
    assert computed(passes) == CHUNK and (acts.values == values).all()
    assert run("verify", store)[0] == 0


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_verify_finds_missing_and_short_chunks(store, damage):
    for number in (0, 1):
        file = chunk(store, 0, number)
        file.unlink() if damage == "gone" else file.write_bytes(file.read_bytes()[:100])
    code, output = run("verify", store)
    assert code == 1 and len(re.findall(r" (missing|100 of 516 bytes)\n", output)) == 2
    assert Store.find(store).damaged == {0, 4}


def test_verify_of_an_unfinished_store(llama, unfinished):
    assert run("verify", unfinished) == (
        0, f"{unfinished}: 8 texts in 2 parts read.\nNo damage, but the capture is not finished: make it again.\n")
    flip(chunk(unfinished, 0, 1), 3)
    code, output = run("verify", unfinished)
    assert code == 1 and "other bytes than were written" in output
    with forwards(llama) as passes:
        quietly(llama, FEW, unfinished)
    assert computed(passes) == 4 + CHUNK and run("verify", unfinished)[0] == 0


def test_verify_where_nothing_may_be_written_tells_all_the_same(store, monkeypatch):
    flip(chunk(store, 1, 2), 1000)
    before = snapshot(store)
    with Files(store).lock():  # as by a capture that is running
        code, output = run("verify", store)
    assert code == 1 and "other bytes" in output
    assert re.search("They could not be marked:\n.*\nFound: another process that writes it now", output)
    assert snapshot(store) == before


def test_verify_forgets_nothing_that_was_captured_meanwhile(llama, store, monkeypatch):
    flip(chunk(store, 1, 2), 1000)
    verify = Store.verify

    def slowly(found):
        damage = verify(found)
        if len(found.entries) == 12:
            quietly(llama, TEXTS[:20], store, layers=[0, 2])
        return damage

    monkeypatch.setattr(Store, "verify", slowly)
    assert run("verify", store)[0] == 1
    assert open_error(store) == "damage in 4 of them" and len(Store.find(store).entries) == 20


def open_error(path):
    with pytest.raises(WorkbenchError) as told:
        open_activations(path)
    return told.value.found.partition(",")[0]


# -- rm --------------------------------------------------------------------------------------------------------


def test_rm_asks_first(store):
    before = snapshot(store)
    code, output = run("rm", store, answer="n\n")
    assert code == 1 and f"Remove {store}, 0.0 MB of llama? [y/N]" in output and snapshot(store) == before
    assert run("rm", store, answer="")[0] == 1 and snapshot(store) == before
    code, output = run("rm", store, answer="y\n")
    assert code == 0 and output.endswith(f"Removed {store}.\n") and not store.exists() and store.parent.exists()


@pytest.mark.parametrize("which", ["store", "unfinished"])
def test_rm_yes_does_not_ask(which, request):
    path = request.getfixturevalue(which)
    assert run("rm", "--yes", path) == (0, f"Removed {path}.\n") and not path.exists()


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_rm_removes_a_store_that_cannot_be_opened(llama, store, name):
    """As its error says to do."""
    (store / name).write_text('{"cut')
    with pytest.raises(WorkbenchError) as told:
        open_activations(store)
    assert f"workbench cache rm {store}" in told.value.do
    code, output = run("rm", store, answer="y\n")
    assert code == 0 and "of a damaged store?" in output and not store.exists()
    quietly(llama, FEW, store)


@pytest.mark.parametrize(
    "content",
    [{}, {"notes.txt": "mine"}, {"activations.zarr/zarr.json": "{}"}, {"manifest.json": "{}", "parts/0.json": "{}"}],
    ids=["empty", "notes", "zarr", "alike"],
)
def test_rm_refuses_what_is_no_store_and_leaves_it_alone(tmp_path, content):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    code, output = run("rm", "--yes", folder)
    assert code == 1 and re.search("no store of activations there|other files there", output)
    assert {name: (folder / name).read_text() for name in content} == content
    assert run("rm", "--yes", tmp_path / "nowhere")[0] == 1


def test_rm_leaves_other_files_in_the_folder(store):
    for name in ("notes.txt", "figures/texts-of-mine.png"):
        (store / name).parent.mkdir(exist_ok=True)
        (store / name).write_text("mine")
    assert run("rm", "--yes", store)[0] == 0
    assert sorted(snapshot(store)) == ["figures/texts-of-mine.png", "notes.txt"]


def test_rm_waits_for_no_one(store):
    before = snapshot(store)
    with Files(store).lock():
        code, output = run("rm", "--yes", store)
    assert code == 1 and "Found: another process that writes it now" in output and snapshot(store) == before
