"""Work spread over Ray workers: each builds its model once and takes tasks one at a time.

Proven, all on one machine: a local Ray, a running one by its address and by ray://, a worker killed in the middle, a
node killed under its worker. Reasoned only: several machines, GPUs. A cluster needs the same workbench, Python and Ray
on every node, and should ask for a token (RAY_AUTH_MODE=token): whoever reaches its ports runs code as you.
"""

import logging
import os
import socket
import sys
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from .errors import WorkbenchError

DEATHS = 3  # of workers over one task: then it is the task
PATIENCE = 60.0  # s without any worker: then that is said
HERE = "127.0.0.1"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Work = Callable[[Any], Any]


def spread(build: Callable[[], Work], tasks: Sequence[Any], workers: int = 2, address: str | None = None,
           threads: int | None = None, gpus: float = 0,
           say: Callable[[str], None] = print) -> Generator[tuple[int, Any], None, None]:
    """(index of the task, its result) for all `tasks`, each once, as they finish.

    build: run once on each worker; loads what is needed and returns the function from task to result. It, the tasks
    and the results travel pickled, in memory only; arrays come back read-only, since Ray shares their memory.
    address: None for a Ray of this call's own, on 127.0.0.1 without dashboard, with as many CPUs as workers;
    "auto", "host:port" or "ray://host:port" for a running cluster. A Ray that this process uses already is taken as
    it is and left running; otherwise Ray, or the connection, ends with the iteration, also when you stop early.
    threads: of torch and OpenMP per worker; None shares out the cores. gpus: per worker, a share such as 0.5 or a
    whole number. say: takes a line for each killed worker.

    The task of a killed worker is done again by another, so a task should change nothing but its result; one over
    which three workers died ends the whole. So does what a task or `build` raises, which is not tried again: a
    WorkbenchError as it is, anything else as a WorkbenchError with its first line (the traceback is its note).
    """
    asked = f"{len(tasks)} tasks were to be spread over {workers} Ray workers."
    if workers < 1 or (threads is not None and threads < 1) or gpus < 0 or (gpus > 1 and gpus % 1):
        raise WorkbenchError(asked, f"workers={workers}, threads={threads}, gpus={gpus}",
                             "at least 1 worker and 1 thread; 0 GPUs, a share of one, or a whole number")
    try:
        import ray
    except ImportError:
        raise WorkbenchError(asked, "the package ray is not installed",
                             do="pip install 'value-workbench[cluster]'") from None
    return _spread(ray, asked, build, tasks, min(workers, len(tasks)), address, threads, gpus, say)


def _spread(ray: Any, asked: str, build: Callable[[], Work], tasks: Sequence[Any], workers: int, address: str | None,
            threads: int | None, gpus: float, say: Callable[[str], None]) -> Generator[tuple[int, Any], None, None]:
    if not tasks:
        return
    gone = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError,
            ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError)
    with _connection(ray, asked, address, workers, say) as own:
        threads = threads or _share(ray, asked, workers, gpus, own)
        blueprint = ray.remote(_Worker).options(
            num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD",
            runtime_env={"env_vars": dict.fromkeys(THREADS, str(threads))})
        plan = _sent(None, ray.put, build)
        waiting, left, deaths, patience = deque(range(len(tasks))), len(tasks), Counter(), PATIENCE
        hired: list[Any] = []
        busy: dict[Any, tuple[Any, int | None]] = {}  # reply to come -> worker, its task or None while it builds

        def start() -> None:
            hired.append(worker := blueprint.remote())
            busy[worker.start.remote(plan, threads)] = worker, None

        def give(worker: Any) -> None:
            if waiting:
                index = waiting.popleft()
                busy[_sent(index, worker.do.remote, index, tasks[index])] = worker, index
            else:
                ray.kill(worker)  # its room may serve others

        try:
            for _ in range(workers):
                start()
            while left:
                ready, _ = ray.wait(list(busy), timeout=patience)
                if not ready:
                    say(f"no Ray worker is ready after {patience:g} s: they still build, or wait for room")
                    patience = None
                    continue
                worker, index = busy.pop(ready[0])
                try:
                    result, error = ray.get(ready[0])
                except gone as death:
                    with suppress(Exception):  # it may only have been out of reach
                        ray.kill(worker)
                    deaths[index] += 1
                    if deaths[index] == DEATHS:
                        raise _hopeless(index, death) from None
                    if index is not None:
                        waiting.appendleft(index)
                    if waiting:
                        say(f"{_name(index)}: its worker died, another takes over ({_line(death, -1).split('. ')[0]})")
                        start()
                    continue
                except ray.exceptions.RayError as failure:  # mostly what does not pickle
                    result, error = None, _told(index, getattr(failure, "cause", None) or failure)
                if error is not None:
                    raise error
                give(worker)
                if index is None:
                    patience, deaths[None] = None, 0
                else:
                    left -= 1
                    yield index, result
        finally:
            for worker in hired:
                with suppress(Exception):
                    ray.kill(worker)


class _Worker:
    """What runs on a worker. Errors are returned, not raised: so they arrive as they were, with all their parts."""

    def start(self, build: Callable[[], Work], threads: int) -> tuple[None, WorkbenchError | None]:
        if "torch" in sys.modules:  # it came with `build`; an import after this reads the environment
            sys.modules["torch"].set_num_threads(threads)
        self.work, error = _tried(None, build)
        return None, error

    def do(self, index: int, task: Any) -> tuple[Any, WorkbenchError | None]:
        return _tried(index, self.work, task)


def _tried(index: int | None, work: Callable[..., Any], *given: Any) -> tuple[Any, WorkbenchError | None]:
    try:
        return work(*given), None
    except WorkbenchError as error:
        error.add_note(f"Raised by {_name(index)} on a Ray worker.")
        return None, error
    except (Exception, SystemExit) as error:
        told = _told(index, error)
        told.add_note(traceback.format_exc())
        return None, told


@contextmanager
def _connection(ray: Any, asked: str, address: str | None, workers: int, say: Callable[[str], None]) -> Iterator[bool]:
    """Ray ready for use; yields whether it is of this call's own, on this machine."""
    if ray.is_initialized():
        if address is not None:
            say(f"Ray is already in use in this process and taken as it is; {address} is not asked")
        yield False
        return
    try:
        try:
            with _as_asked():
                if address is None:
                    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
                    ray.init("local", num_cpus=workers, include_dashboard=False, _node_ip_address=HERE,
                             log_to_driver=False, logging_level=logging.ERROR)
                else:
                    _knock(asked, address)
                    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            nodes = {node["NodeManagerAddress"] for node in ray.nodes()}
        except WorkbenchError:
            raise
        except Exception as error:
            raise WorkbenchError(asked, f"no Ray{f' at {address}' if address else ''}: {_line(error)}",
                                 do="See whether it runs, with the same versions of Ray and Python as here, and "
                                 "whether it asks for a token (then set RAY_AUTH_MODE=token).") from None
        if address is None and nodes != {HERE}:
            raise WorkbenchError(asked, f"Ray {ray.__version__}, which listens on {', '.join(nodes)}", f"only {HERE}",
                                 "Install another version of Ray: constraints.txt names a tested one.")
        yield address is None
    finally:
        ray.shutdown()


@contextmanager
def _as_asked() -> Iterator[None]:
    """Ray takes an address as given, and tries it once.

    By itself it puts the machine's outer address in place of 127.0.0.1, so that a Ray started there listens on every
    interface, and goes on for a quarter of an hour where something else answers.
    """
    from ray._private import ray_constants as settings

    before = settings.ENABLE_RAY_CLUSTER, settings.NUM_REDIS_GET_RETRIES
    settings.ENABLE_RAY_CLUSTER, settings.NUM_REDIS_GET_RETRIES = False, 1
    try:
        yield
    finally:
        settings.ENABLE_RAY_CLUSTER, settings.NUM_REDIS_GET_RETRIES = before


def _knock(asked: str, address: str) -> None:
    """Raise where nothing listens: Ray would take long to."""
    if address == "auto":
        return
    try:
        parts = urlsplit("//" + address.removeprefix("ray://"))
        host, port = parts.hostname, parts.port
    except ValueError:
        parts = host = port = None
    if not parts or not host or not port or parts.path:
        raise WorkbenchError(asked, f"the address {address!r}", "auto, host:port or ray://host:port")
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError as error:
        raise WorkbenchError(asked, f"nothing that answers at {address} ({error})", do="Start it with "
                             "`ray start --head`, or leave the address out for a Ray of this call's own.") from None


def _share(ray: Any, asked: str, workers: int, gpus: float, own: bool) -> int:
    """Threads for each worker; raises where no node has room for even one."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= gpus for node in nodes):
        raise WorkbenchError(asked, f"no node with 1 CPU and {gpus:g} GPUs among {len(nodes)}")
    cores = [int(node.get("CPU", 0)) for node in nodes]
    if own:  # Ray was told of no more than it needs
        cores = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    return max(1, min(sum(cores) // workers, max(cores)))


def _sent(index: int | None, send: Callable[..., Any], *given: Any) -> Any:
    try:
        return send(*given)
    except TypeError as error:
        raise WorkbenchError(f"{_name(index)} was to be sent to a Ray worker.", _line(error),
                             "what cloudpickle can pickle") from None


def _name(index: int | None) -> str:
    return "build" if index is None else f"task {index}"


def _line(error: BaseException, which: int = 0) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[which][:300] if lines else "no message"


def _told(index: int | None, error: BaseException) -> WorkbenchError:
    return WorkbenchError(f"{_name(index)} was to be done on a Ray worker.", f"{type(error).__name__}: {_line(error)}")


def _hopeless(index: int | None, death: BaseException) -> WorkbenchError:
    do = "It probably takes too much memory: try smaller tasks or fewer workers."
    if index is None:
        do += " On a cluster, see that RAY_AUTH_MODE is the same here and there; here it is " \
              f"{os.environ.get('RAY_AUTH_MODE', 'not set')} (a Ray of your own sets it to token: then restart Python)."
    return WorkbenchError(f"{_name(index)} was to be done on a Ray worker.",
                          f"{DEATHS} workers that died over it: {_line(death, -1)}", do=do)


__all__ = ["spread"]
