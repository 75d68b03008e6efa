"""Files of a store, in a local folder or behind any fsspec URL: atomic writes, one writer at a time, clear errors."""

import contextlib
import errno
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints import first_line
from ..errors import WorkbenchError

STALE = 600.0  # seconds after which a remote lock that nobody refreshes counts as left behind


class Files:
    """A folder of files, named by paths relative to it.

    local: its path, None behind a URL. Local files are written beside their place and moved there; object stores
    put a file whole or not at all.
    """

    def __init__(self, path: str | os.PathLike[str]):
        import fsspec

        self.shown = os.fspath(path)
        try:
            fs, root = fsspec.url_to_fs(self.shown)
        except (ValueError, ImportError) as problem:
            raise WorkbenchError(f"A store at {self.shown!r} was asked for.", found=str(problem).splitlines()[0],
                                 allowed="a folder or an fsspec URL such as s3://bucket/name",
                                 do="For s3:// install s3fs.") from None  # fmt: skip
        self.fs: Any = fs
        self.root: str = root.rstrip("/")
        self.local = Path(root) if "file" in np.atleast_1d(fs.protocol) else None

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def zarr_store(self, name: str) -> Any:
        """What zarr reads from and writes to."""
        from zarr.storage import FsspecStore, LocalStore

        if self.local:
            return LocalStore(self.local / name)
        return FsspecStore.from_url(f"{self.shown.rstrip('/')}/{name}")

    def read(self, name: str) -> bytes | None:
        """A file's bytes, None where there is no such file."""
        with self.told("read"):
            try:
                return self.fs.cat_file(self.path(name))
            except FileNotFoundError:
                return None

    def read_json(self, name: str) -> Any:
        content = self.read(name)
        if content is None:
            return None
        try:
            return json.loads(content)
        except ValueError:
            raise WorkbenchError(
                f"{name} of the store {self.shown} was to be read.", found="no whole JSON in it",
                do=f"Remove the store (workbench cache rm {self.shown}) and capture anew.") from None  # fmt: skip

    def write(self, name: str, content: bytes) -> None:
        with self.told("write"):
            if self.local is None:
                self.fs.pipe_file(self.path(name), content)
                return
            place = self.local / name
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = place.with_name(f"{place.name}.{uuid.uuid4().hex}.partial")
            try:
                partial.write_bytes(content)
                partial.replace(place)
            finally:
                partial.unlink(missing_ok=True)

    def write_json(self, name: str, content: Any) -> None:
        self.write(name, (json.dumps(content) + "\n").encode())

    def remove(self, name: str) -> None:
        with self.told("write"), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def remove_folder(self, name: str) -> None:
        with self.told("remove"), contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.path(name), recursive=True)

    def remove_emptied(self) -> None:
        """Remove the folder itself, with its lock, unless there is something else in it."""
        if self.local and {place.name for place in self.local.iterdir()} <= {"lock"}:
            with self.told("remove"):
                shutil.rmtree(self.local)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """{name: bytes} of every file below a folder, in one listing."""
        self.fs.invalidate_cache()
        with self.told("read"):
            try:
                found = self.fs.find(self.path(folder) if folder else self.root, detail=True)
            except FileNotFoundError:
                return {}
        start = len(self.fs._strip_protocol(self.root)) + 1  # a public name for this is missing in fsspec
        return {name[start:]: entry["size"] for name, entry in found.items()}

    def free(self) -> int | None:
        """Bytes that may still be written, None where nobody knows."""
        if self.local is None:
            return None
        place = next(folder for folder in (self.local, *self.local.absolute().parents) if folder.exists())
        return shutil.disk_usage(place).free

    @contextlib.contextmanager
    def told(self, verb: str) -> Iterator[None]:
        """The system's refusals as one clear sentence."""
        try:
            yield
        except Exception as problem:
            # behind a URL the client has errors of its own: no connection, no credentials
            client = self.local is None and not isinstance(problem, (ValueError, TypeError, LookupError, RuntimeError))
            absent = isinstance(problem, FileNotFoundError) and verb == "read"
            if absent or not (client or isinstance(problem, OSError)):
                raise
            full = getattr(problem, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise WorkbenchError(
                f"The store {self.shown} was to be {dict(read='read', write='written').get(verb, verb + 'd')}.",
                found="no room left on its disk" if full else getattr(problem, "strerror", None) or first_line(problem),
                do=("Make room and call again: " if full else "Mend that and call again: ")
                + "what was written stays and is not computed again." if verb == "write" else None,
            ) from problem  # fmt: skip

    # -- one writer ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Inside, no other process writes here. WorkbenchError where one does.

        Locally the system's own file lock, which ends with its process; behind a URL a file that only one can create,
        refreshed while it is held and taken over when nobody did for ten minutes.
        """
        taken = WorkbenchError(
            f"The store {self.shown} was to be written.", found="another process that writes it now",
            do="Wait for that one, or take a store of your own.")  # fmt: skip
        with self._local_lock(taken) if self.local else self._remote_lock(taken):
            yield

    @contextlib.contextmanager
    def _local_lock(self, taken: WorkbenchError) -> Iterator[None]:
        from filelock import FileLock, Timeout

        assert self.local
        with self.told("write"):
            self.local.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.local / "lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise taken from None
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _remote_lock(self, taken: WorkbenchError) -> Iterator[None]:
        own, over = uuid.uuid4().hex, threading.Event()

        def note() -> bytes:
            return json.dumps({"owner": own, "time": time.time()}).encode()

        def refresh() -> None:
            while not over.wait(STALE / 10):
                with contextlib.suppress(Exception):  # the next one may reach it again
                    self.fs.pipe_file(self.path("lock"), note())

        with self.told("write"):
            try:
                self.fs.pipe_file(self.path("lock"), note(), mode="create")
            except FileExistsError:
                held = self.read_json("lock") or {"time": 0}
                if time.time() - held["time"] < STALE:
                    raise taken from None
                self.fs.pipe_file(self.path("lock"), note())
                if (self.read_json("lock") or {}).get("owner") != own:  # another took it over at the same moment
                    raise taken from None
        keeper = threading.Thread(target=refresh, daemon=True)
        keeper.start()
        try:
            yield
        finally:
            over.set()
            keeper.join()
            if (self.read_json("lock") or {}).get("owner") == own:  # not what another took over
                self.remove("lock")
