"""Work on Ray: every task once whatever dies meanwhile, errors as they were, and nothing left behind.

What workers run is made inside functions: so it travels by value, and no worker imports this file.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import psutil
import pytest

from workbench import cluster
from workbench.cluster import spread
from workbench.errors import WorkbenchError

ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed: nothing to spread work on")

os.environ.setdefault("RAY_worker_niceness", "0")  # or workers would wait for whatever else the machine does
LONG = 120  # s after which a test gives up on something that must happen; how long it takes is not tested
RUNNING = """
import logging, os, sys, ray
ray.init("local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", logging_level=logging.ERROR)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""


def builder(work):
    return lambda: work


def echo():
    return builder(lambda task: (task, os.getpid()))


def children():
    return psutil.Process().children(recursive=True)


def workers():
    found = []
    for child in children():
        with suppress(psutil.Error):  # ended meanwhile
            found += [child] if "_Worker" in child.name() else []
    return found


def listening():
    """Addresses at which this process or one that it started waits for connections."""
    found = set()
    for process in [psutil.Process(), *children()]:
        with suppress(psutil.Error):
            found |= {c.laddr.ip.removeprefix("::ffff:") for c in process.net_connections() if c.status == "LISTEN"}
    return found


def all_end(processes):
    return not psutil.wait_procs(processes, timeout=LONG)[1]


@pytest.fixture
def alone():
    """No Ray in this process, before and after."""
    ray.shutdown()
    yield
    assert not ray.is_initialized() and all_end(children())


@pytest.fixture(scope="module")
def started():
    def start():
        if not ray.is_initialized():
            with cluster._as_asked():
                ray.init("local", num_cpus=2, include_dashboard=False, _node_ip_address=cluster.HERE,
                         log_to_driver=False, logging_level=logging.ERROR)

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    yield start
    ray.shutdown()


@pytest.fixture
def shared(started):
    """A Ray that this process has started already; it must be running and without workers of ours after each test."""
    started()
    yield
    assert ray.is_initialized()
    assert all_end(workers())


def test_every_task_is_done_once_by_whoever_is_free(alone, tmp_path):
    def build():
        (tmp_path / f"built {time.time_ns()} {os.getpid()}").touch()

        def work(task):
            # The first task waits for all others: so only another worker can do them.
            end = time.monotonic() + LONG
            while task == 0 and len(list(tmp_path.glob("done *"))) < 4 and time.monotonic() < end:
                time.sleep(0.01)
            (tmp_path / f"done {task}").touch()
            return task**2, os.getpid(), os.environ["OMP_NUM_THREADS"]

        return work

    results, addresses = [], set()
    for index, result in spread(build, range(5), workers=2, threads=3):
        results.append((index, *result))
        addresses |= listening()
    assert sorted(r[:2] for r in results) == [(i, i**2) for i in range(5)]
    assert [index for index, *_ in results[:3]] == [1, 2, 3]  # as they finish
    pids = {index: pid for index, _, pid, _ in results}
    assert len({pids[0], pids[1], os.getpid()}) == 3 and {pids[i] for i in range(1, 5)} == {pids[1]}
    assert {threads for *_, threads in results} == {"3"}
    built = sorted(path.name.split()[-1] for path in tmp_path.glob("built *"))
    assert built == sorted(map(str, {pids[0], pids[1]}))
    assert sys.platform != "linux" or addresses == {cluster.HERE}, "Ray can be reached from outside"
    assert not ray.is_initialized() and all_end(children())


@pytest.mark.parametrize("stop", [lambda run: run.close(), lambda run: run.throw(KeyboardInterrupt)],
                         ids=["closed", "interrupted"])
def test_stopping_early_ends_the_ray_that_the_call_started(alone, stop):
    run = spread(echo(), range(9), workers=1)
    _, (_, pid) = next(run)
    begun = children()
    assert ray.is_initialized() and pid in {child.pid for child in begun}
    try:
        stop(run)
    except KeyboardInterrupt:
        pass
    assert not ray.is_initialized() and all_end(begun)


def test_stopping_early_leaves_a_ray_that_was_there(shared):
    said = []
    run = spread(echo(), range(9), workers=1, address="10.0.0.1:1", say=said.append)
    _, (_, pid) = next(run)
    worker = psutil.Process(pid)
    run.close()
    assert ray.is_initialized() and all_end([worker])
    assert len(said) == 1 and "taken as it is; 10.0.0.1:1 is not asked" in said[0]


def test_a_killed_worker_loses_nothing(shared, tmp_path):
    mark = tmp_path / "killed"

    def work(task):
        if task == 2 and not mark.exists():
            mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return task * 10, os.getpid()

    said = []
    results = list(spread(builder(work), range(6), workers=2, say=said.append))
    assert sorted((index, result) for index, (result, _) in results) == [(i, i * 10) for i in range(6)]
    assert dict(results)[2][1] != int(mark.read_text())
    assert len(said) == 1 and said[0].startswith("task 2: its worker died, another takes over") and "\n" not in said[0]


@pytest.mark.parametrize("where", ["task 1", "build"])
def test_what_always_kills_its_worker_is_named(shared, tmp_path, where):
    def die():
        (tmp_path / str(os.getpid())).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def build():
        if where == "build":
            die()
        return lambda task: die() if task == "bad" else task

    said = []
    with pytest.raises(WorkbenchError) as caught:
        list(spread(build, ["good", "bad", "good"], workers=1, say=said.append))
    assert caught.value.asked.startswith(f"{where} was to be done")
    assert "3 workers that died over it" in caught.value.found and "memory" in caught.value.do
    assert len(list(tmp_path.iterdir())) == 3 and len(said) == 2


@pytest.mark.parametrize("where", ["task 1", "build"])
def test_a_workbench_error_arrives_as_it_was_and_is_not_tried_again(shared, tmp_path, where):
    def fail():
        (tmp_path / str(time.time_ns())).touch()
        raise WorkbenchError("Asked.", "found this", "allowed that", "do so")

    def build():
        if where == "build":
            fail()
        return lambda task: fail() if task else task

    with pytest.raises(WorkbenchError) as caught:
        list(spread(build, range(3), workers=1))
    error = caught.value
    assert (error.asked, error.found, error.allowed, error.do) == ("Asked.", "found this", "allowed that", "do so")
    assert str(error) == str(WorkbenchError("Asked.", "found this", "allowed that", "do so"))
    assert error.__notes__ == [f"Raised by {where} on a Ray worker."]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("error", "found"),
    [(ValueError("first\nsecond"), "ValueError: first"), (SystemExit(), "SystemExit: no message")],
)
def test_other_errors_become_ours_with_their_first_line(shared, tmp_path, error, found):
    def work(task):
        (tmp_path / str(time.time_ns())).touch()
        raise error

    with pytest.raises(WorkbenchError) as caught:
        list(spread(builder(work), ["only"], workers=1))
    assert caught.value.asked == "task 0 was to be done on a Ray worker." and caught.value.found == found
    assert "in work" in caught.value.__notes__[0]  # the traceback
    assert len(list(tmp_path.iterdir())) == 1
    assert all_end(workers())  # also while the error, and all that it refers to, is kept


def test_other_errors_of_build(shared):
    def build():
        raise ValueError("no such model")

    with pytest.raises(WorkbenchError, match=r"build was to be done(.|\n)*ValueError: no such model"):
        list(spread(build, range(3), workers=2))


@pytest.mark.parametrize("what", ["build", "task 0", "result"])
def test_what_cannot_be_pickled(shared, what):
    lock = threading.Lock()

    def result(task):
        return threading.Lock()

    build, task = builder((lambda task: lock) if what == "build" else result), lock if what == "task 0" else 1
    asked, found = ("sent", "Could not serialize") if what != "result" else ("done", "cannot pickle '_thread.lock'")
    with pytest.raises(WorkbenchError, match=rf"{what.replace('result', 'task 0')} was to be {asked}(.|\n)*{found}"):
        list(spread(build, [task], workers=1))


def test_waiting_for_a_first_worker_is_said_once(shared, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 0.001)
    said = []
    assert [index for index, _ in spread(echo(), range(2), workers=1, say=said.append)] == [0, 1]
    assert said == ["no Ray worker is ready after 0.001 s: they still build, or wait for room"]


def test_no_room_is_an_error(shared):
    with pytest.raises(WorkbenchError, match="no node with 1 CPU and 99 GPUs among 1"):
        list(spread(echo(), range(3), gpus=99))


def test_a_running_cluster_by_its_address(alone):
    # The same token mode as here: a process keeps the one of its first Ray.
    mode = os.environ.get("RAY_AUTH_MODE", "disabled")
    environment = os.environ | {"RAY_AUTH_MODE": mode, "RAY_USAGE_STATS_ENABLED": "0",
                                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # stay on 127.0.0.1
    running = subprocess.Popen([sys.executable, "-c", RUNNING], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, env=environment)
    try:
        address = running.stdout.readline().strip()
        nodes = {child.pid for child in psutil.Process(running.pid).children() if "raylet" in child.name()}
        parent = builder(lambda task: (task, os.getppid()))
        results = dict(spread(parent, range(3), workers=2, address=address))
        assert {index: task for index, (task, _) in results.items()} == {0: 0, 1: 1, 2: 2}
        assert {raylet for _, raylet in results.values()} == nodes != set()
        assert not ray.is_initialized() and running.poll() is None
    finally:
        running.communicate("", timeout=LONG)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_nobody_at_the_address(alone, scheme):
    with socket.socket() as closed:
        closed.bind((cluster.HERE, 0))
        port = closed.getsockname()[1]
    with pytest.raises(WorkbenchError, match=rf"nothing that answers at {scheme}127.0.0.1:{port}(.|\n)*ray start"):
        list(spread(echo(), range(3), address=f"{scheme}127.0.0.1:{port}"))


@pytest.mark.parametrize("address", ["nonsense", "host:many", "http://host:1", "host:1/path", ""])
def test_an_address_that_is_none(alone, address):
    with pytest.raises(WorkbenchError, match=r"the address '.*\n.*auto, host:port or ray://host:port"):
        list(spread(echo(), range(3), address=address))


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"threads": 0}, {"gpus": -1}, {"gpus": 1.5}])
def test_counts_that_cannot_be(wrong):
    with pytest.raises(WorkbenchError, match=f"{'='.join(map(str, *wrong.items()))}(.|\n)*at least 1 worker"):
        spread(echo(), range(3), **wrong)


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WorkbenchError, match=r"ray is not installed\n.*pip install 'value-workbench\[cluster\]'"):
        spread(echo(), range(3))


def test_no_tasks_start_no_ray(alone, monkeypatch):
    monkeypatch.setattr(ray, "init", None)
    assert list(spread(echo(), [])) == []
