"""The same capture on Ray: workers write their own parts of one store, and a killed one loses nothing."""

import os
import signal
import threading
import time

import numpy as np
import psutil
import pytest
from tiny import SENTENCES

from workbench.activations import capture
from workbench.errors import WorkbenchError
from workbench.models import load_model
from workbench.steering import Base

pytest.importorskip("ray", reason="the extra `cluster` is not installed: no capture on Ray to test")
os.environ.setdefault("RAY_worker_niceness", "0")  # or workers would wait for whatever else the machine does

TEXTS = [f"{' '.join(SENTENCES.split()[i % 20 : i % 20 + 3 + i % 17])} {i}" for i in range(400)]
CHUNK = 8


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("workbench.activations.keep.chunk_rows", lambda *_: CHUNK)


def workers() -> list[int]:
    """Process ids of this process's Ray workers."""
    return [child.pid for child in psutil.Process().children(recursive=True) if "_Worker" in child.name()]


def test_two_workers_one_killed_in_the_middle_give_the_same_bits(tiny_folder, tmp_path, small_parts):
    model, said, seen = load_model(tiny_folder("llama")), [], set()
    alone = capture(model, TEXTS, store=tmp_path / "alone", say=said.append)
    stop = threading.Event()

    def kill_one():
        while not stop.is_set() and not list((tmp_path / "ray" / "parts").glob("*.json")):
            time.sleep(0.002)
        seen.update(workers())
        if len(seen) > 1:
            os.kill(min(seen), signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        spread = capture(model, TEXTS, store=tmp_path / "ray", engine="ray", workers=2, say=said.append)
    finally:
        stop.set()
        killer.join()
    assert len(seen) == 2 and any("worker died" in line for line in said), said
    assert spread.attrs == alone.attrs
    np.testing.assert_array_equal(spread.values, alone.values)
    capture(model, TEXTS, store=tmp_path / "ray", engine="ray", say=said.append)
    assert said[-1].endswith("nothing was computed.")


def test_what_ray_cannot_capture(tiny_folder, tmp_path, small_parts):
    model = load_model(tiny_folder("llama"))
    model.blocks[0].mlp.up_proj.weight.data[0] += 1  # other weights than a worker will load
    with pytest.raises(WorkbenchError, match="other weights under that name"):
        capture(model, TEXTS[:9], store=tmp_path / "other", engine="ray", workers=1)
    model.active.append(Base().start(model))
    with pytest.raises(WorkbenchError, match="Found: steering, which is on in this process only"):
        capture(model, TEXTS[:9], store=tmp_path / "steered", engine="ray")
    with pytest.raises(WorkbenchError, match="Found: workers=0"):
        capture(load_model(tiny_folder("llama")), TEXTS[:9], store=tmp_path / "none", engine="ray", workers=0)
