"""Activations on disk: a zarr array, the texts beside it, and a manifest that is written last.

    STORE/activations.zarr   zarr 3: `activations` (layer, row, d_model), one layer x `chunk` rows to a chunk, crc32c
    STORE/texts-*.parquet    one line per text: text_id, row, rows, tokens, content, labels
    STORE/manifest.json      what the store holds: where it comes from, every part with the digests of its chunks
    STORE/parts/*.json       parts written since the manifest: an interrupted capture goes on after them
    STORE/lock               held by the one process that writes

The rows of a *part* were computed together and fill whole chunks, so that writers never share one; what is over at a
part's end stays NaN. A chunk is written first, then its part's record, at the end the manifest: a reader sees what
the last finished capture left, whatever happens meanwhile.
"""

import hashlib
import io
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from ..checkpoints import first_line
from ..errors import WorkbenchError
from .files import Files

FORMAT = "workbench activations 1"
ARRAY = "activations.zarr/activations/zarr.json"  # where it is, a store is
CHUNK_BYTES = 1 << 22  # a chunk's size if it is full: one layer of it is read in a few milliseconds
PART_TEXTS = 256  # computed together: what a kill can lose, and what a worker takes at a time
DTYPES = ("float32", "float16")
# Two captures may stand in one store if they agree in these; versions and device are told, not compared.
SAME = ("model", "fingerprint", "revision", "template", "dtype", "weights", "hook", "position", "chat", "steering",
        "store_dtype", "width")  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Texts computed together. start: first row, a multiple of the chunk; texts: (text id, rows of that text) in
    their order on disk; digests (layer, chunk): crc32c of each chunk's bytes, before the codec adds its own.
    """

    start: int
    texts: list[tuple[str, int]]
    digests: list[list[str]]

    @property
    def rows(self) -> int:
        return sum(rows for _, rows in self.texts)

    @property
    def places(self) -> list[tuple[str, int]]:
        """(text id, its first row)."""
        starts = self.start + np.concatenate([[0], np.cumsum([rows for _, rows in self.texts])[:-1]]).astype(int)
        return [(text, int(start)) for (text, _), start in zip(self.texts, starts, strict=True)]


class Store:
    """A store that exists; made by `Store.create` or found by `Store.find`.

    identity: where the activations come from (model, fingerprint, hook, position ...), with `layers`, `width` and
    `store_dtype`. all_parts {first row: part}; damaged: the first rows of parts that count as not written.
    """

    def __init__(self, files: Files):
        self.files = files
        self.reload()

    def reload(self) -> None:
        """Read again what is written."""
        try:
            self._load()
        except WorkbenchError:
            raise
        except Exception as problem:  # whatever a description can be damaged into
            raise WorkbenchError(
                f"The store {self.files.shown} was to be read.",
                found=f"damage in its description ({type(problem).__name__}: {first_line(problem)})",
                do=f"Remove it (workbench cache rm {self.files.shown}) and capture anew.") from problem  # fmt: skip

    def _load(self) -> None:
        import zarr

        manifest = self.files.read_json("manifest.json")
        if manifest is not None and manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r} instead of {FORMAT!r}")
        names = [name for name in sorted(self.files.sizes("parts")) if name.endswith(".json")]
        # one that is gone by now was taken into a newer manifest: what is seen here is the old store
        pending = [_part(record) for name in names if (record := self.files.read_json(name)) is not None]
        listed = [_part(record) for record in manifest["parts"]] if manifest else []
        self.manifest: dict[str, Any] | None = manifest
        self.all_parts = {part.start: part for part in [*listed, *pending]}
        self.damaged = set(manifest["damaged"] if manifest else ()) - {part.start for part in pending}
        self.__dict__.pop("entries", None)
        with self.files.told("read"):  # last, so that it is no shorter than its parts
            group: Any = zarr.open_group(self.files.zarr_store("activations.zarr"), mode="r")
            self.array: Any = group["activations"]
        self.identity: dict[str, Any] = dict(group.attrs)
        self.chunk = int(self.array.chunks[1])
        self.layers: list[int] = list(self.identity["layers"])

    # -- finding and making ----------------------------------------------------------------------------

    @classmethod
    def find(cls, path: Any) -> "Store | None":
        """The store at a path or URL, None where there is nothing; WorkbenchError where something else is."""
        files = Files(path)
        names = set(files.sizes()) - {"lock"}
        if ARRAY in names:
            return cls(files)
        if not all(name.startswith("activations.zarr/") for name in names):  # an empty start of a store is nothing
            raise WorkbenchError(
                f"A store of activations at {files.shown} was asked for.",
                found=f"other files there, such as {min(names)!r}" if min(names) else "a file",
                allowed="a store or an empty folder")  # fmt: skip
        return None

    @staticmethod
    def stands(files: Files) -> bool:
        """Whether a store is there, be it damaged so that it cannot be opened."""
        return ARRAY in files.sizes()

    @classmethod
    def create(cls, files: Files, identity: Mapping[str, Any], chunk: int, dim: str) -> "Store":
        """A new, empty store. Call it inside `files.lock()`."""
        import zarr
        from zarr.codecs import Crc32cCodec

        with files.told("write"):
            group = zarr.create_group(files.zarr_store("activations.zarr"), attributes=dict(identity), overwrite=True)
            layers = np.array(identity["layers"])
            group.create_array("layer", data=layers, dimension_names=["layer"], compressors=[Crc32cCodec()])
            group.create_array(
                "activations", shape=(len(layers), 0, identity["width"]), chunks=(1, chunk, identity["width"]),
                dtype=identity["store_dtype"], fill_value=np.nan, compressors=[Crc32cCodec()],
                dimension_names=["layer", "row", dim])  # fmt: skip
        return cls(files)

    def check_identity(self, asked: Mapping[str, Any]) -> None:
        """WorkbenchError unless a capture as `asked` may stand in this store; both sides are told."""
        differ = [(key, self.identity.get(key), asked.get(key)) for key in SAME
                  if self.identity.get(key) != asked.get(key)]  # fmt: skip
        absent = [layer for layer in asked["layers"] if layer not in self.layers]
        if absent:
            differ.append(("layers", self.layers, asked["layers"]))
        if differ:
            raise WorkbenchError(
                f"Activations were to be captured into {self.files.shown}.",
                found="; ".join(f"{key} {there!r} in the store, {here!r} asked for" for key, there, here in differ),
                do=f"Take another store, or remove this one: workbench cache rm {self.files.shown}")  # fmt: skip

    # -- what is there -----------------------------------------------------------------------------------

    @property
    def parts(self) -> list[Part]:
        """What is written, in the order of the rows, the damaged left out."""
        return [part for start, part in sorted(self.all_parts.items()) if start not in self.damaged]

    @property
    def rows(self) -> dict[str, int]:
        """{text id: its first row} of every text that is written."""
        return {text: row for part in self.parts for text, row in part.places}

    @cached_property
    def entries(self) -> pd.DataFrame:
        """One line per text and labels, in the order in which they were asked for."""
        if self.manifest is None:
            return pd.DataFrame({"text_id": pd.Series(dtype=str)})
        name = PurePosixPath(self.manifest["texts"]["file"]).name  # never out of the store's folder
        content = self.files.read(name)
        if content is None and self.files.read_json("manifest.json") != self.manifest:  # a writer finished meanwhile
            self.reload()
            return self.entries
        if content is None or hashlib.sha256(content).hexdigest() != self.manifest["texts"]["sha256"]:
            raise WorkbenchError(
                f"The texts of the store {self.files.shown} were to be read.",
                found=f"{name} {'missing' if content is None else 'damaged'}",
                do=f"Remove the store (workbench cache rm {self.files.shown}) and capture anew.")  # fmt: skip
        return pd.read_parquet(io.BytesIO(content))

    @property
    def next_start(self) -> int:
        """First row after every part, damaged ones too."""
        return max((part.start + self.whole_chunks(part.rows) for part in self.all_parts.values()), default=0)

    def whole_chunks(self, rows: int) -> int:
        """Rows of the chunks that so many rows take."""
        return -(-rows // self.chunk) * self.chunk

    def part_bytes(self, rows: int) -> int:
        """Bytes on disk of a part of so many rows, in all layers."""
        return self.whole_chunks(rows) // self.chunk * len(self.layers) * self.chunk_bytes

    @property
    def chunk_bytes(self) -> int:
        """Size of one chunk's file: the values and their checksum."""
        return self.chunk * int(self.identity["width"]) * np.dtype(self.identity["store_dtype"]).itemsize + 4

    # -- writing -----------------------------------------------------------------------------------------

    def grow(self, rows: int) -> None:
        """Make the array long enough for parts up to `rows`; only the shape in its metadata changes."""
        if self.array.shape[1] < rows:
            with self.files.told("write"):
                self._writable.resize((len(self.layers), rows, self.array.shape[2]))
            self.array = self._open("r")

    def _open(self, mode: Any) -> Any:
        import zarr

        return zarr.open_array(self.files.zarr_store("activations.zarr/activations"), mode=mode)

    @cached_property
    def _writable(self) -> Any:
        return self._open("r+")

    def write_part(self, start: int, texts: Sequence[tuple[str, int]], block: np.ndarray) -> Part:
        """Write a part's chunks, block (layer, row, d), and return its record, which `commit` keeps."""
        import google_crc32c

        shape = (block.shape[0], self.whole_chunks(block.shape[1]), block.shape[2])
        whole = np.full(shape, np.nan, self.identity["store_dtype"])
        with np.errstate(over="ignore"):
            whole[:, : block.shape[1]] = block
        if whole.dtype != block.dtype and np.isinf(whole).any():
            raise WorkbenchError(
                f"Activations were to be stored as {whole.dtype}.",
                found=f"values up to {np.abs(block).max():.3g}, beyond its {np.finfo(whole.dtype).max:.0f}",
                do="Capture into a new store with store_dtype='float32'.")  # fmt: skip
        chunks = whole.reshape(len(whole), -1, self.chunk * shape[2])
        digests = [[f"{google_crc32c.value(chunk):08x}" for chunk in layer] for layer in chunks]
        with self.files.told("write"):
            self._writable[:, start : start + whole.shape[1]] = whole
        return Part(start, list(texts), digests)

    def commit(self, part: Part) -> None:
        """Record that a part is written."""
        self.files.write_json(f"parts/{part.start:012d}.json", asdict(part))
        self.all_parts[part.start] = part
        self.damaged.discard(part.start)

    def finish(self, entries: pd.DataFrame, versions: Mapping[str, str]) -> None:
        """Write the texts, then the manifest, then drop the parts' records, which it now holds."""
        content = parquet(entries.assign(row=entries.text_id.map(self.rows).astype("Int64")))
        digest = hashlib.sha256(content).hexdigest()
        texts = f"texts-{digest[:16]}.parquet"
        self.files.write(texts, content)
        self.files.write_json(
            "manifest.json",
            {
                "format": FORMAT,
                "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "identity": self.identity,
                "versions": dict(versions),
                "texts": {"file": texts, "sha256": digest, "entries": len(entries)},
                "damaged": sorted(self.damaged),
                "parts": [asdict(part) for _, part in sorted(self.all_parts.items())],
            },
        )
        for name in self.files.sizes():
            old_texts = name.startswith("texts-") and name != texts
            if old_texts or name.startswith("parts/") or name.endswith(".partial"):  # left by a process that was killed
                self.files.remove(name)
        self.reload()

    @staticmethod
    def remove(files: Files) -> None:
        """Delete a store, damaged or not, and no other file. Call it inside `files.lock()`."""
        files.remove("manifest.json")  # first, so that half a store is never taken for a whole one
        for name in files.sizes():
            if name.startswith(("manifest.json.", "texts-")):
                files.remove(name)
        files.remove_folder("parts")
        files.remove_folder("activations.zarr")
        files.remove_emptied()

    # -- damage ------------------------------------------------------------------------------------------

    def missing_chunks(self) -> pd.DataFrame:
        """What a listing alone shows: chunks that are absent or of the wrong size, as `verify` tells them."""
        sizes = self.files.sizes("activations.zarr/activations/c")
        return self._table(
            (layer, part, chunk, "missing" if size is None else f"{size} of {self.chunk_bytes} bytes")
            for layer, part, chunk, name, _ in self._chunks()
            if (size := sizes.get(f"activations.zarr/activations/{name}")) != self.chunk_bytes
        )

    def verify(self) -> pd.DataFrame:
        """Every chunk read and compared with its digest: a line (layer, part, texts, row, problem) for each damage.

        part: the part's first row; texts: how many it holds; row: the chunk's first row.
        """
        import google_crc32c

        problems = []
        for layer, part, chunk, name, digest in self._chunks():
            content = self.files.read(f"activations.zarr/activations/{name}")
            if content is None:
                problems.append((layer, part, chunk, "missing"))
            elif len(content) != self.chunk_bytes:
                problems.append((layer, part, chunk, f"{len(content)} of {self.chunk_bytes} bytes"))
            elif f"{google_crc32c.value(content[:-4]):08x}" != digest or content[-4:] != bytes.fromhex(digest)[::-1]:
                problems.append((layer, part, chunk, "other bytes than were written"))
        return self._table(problems)

    def mark_damaged(self, starts: Iterable[int]) -> None:
        """Let those parts count as not written: the next capture that needs their texts computes them again.

        Call it inside `files.lock()`.
        """
        self.reload()  # another may have written since this was read
        damaged = self.damaged | {int(start) for start in starts}
        for start in damaged:
            self.files.remove(f"parts/{start:012d}.json")
        if self.manifest:
            listed = {part["start"] for part in self.manifest["parts"]}
            self.files.write_json("manifest.json", {**self.manifest, "damaged": sorted(damaged & listed)})
        self.reload()

    def _chunks(self) -> Iterable[tuple[int, Part, int, str, str]]:
        """(layer, part, number of the chunk in it, zarr's name of the chunk, digest) of all that is written."""
        for part in self.parts:
            for at, (layer, digests) in enumerate(zip(self.layers, part.digests, strict=True)):
                for chunk, digest in enumerate(digests):
                    yield layer, part, chunk, f"c/{at}/{part.start // self.chunk + chunk}/0", digest

    def _table(self, problems: Iterable[tuple[int, Part, int, str]]) -> pd.DataFrame:
        lines = [(layer, part.start, len(part.texts), part.start + chunk * self.chunk, problem)
                 for layer, part, chunk, problem in problems]  # fmt: skip
        return pd.DataFrame(lines, columns=["layer", "part", "texts", "row", "problem"])

    # -- reading -----------------------------------------------------------------------------------------

    def read(self, layer: int, rows: np.ndarray) -> np.ndarray:
        """(row, d) of one layer (an index into `layers`) at any rows: whole runs of chunks, then taken in order."""
        out = np.empty((len(rows), self.array.shape[2]), self.array.dtype)
        needed = np.unique(rows // self.chunk)
        for _, run in groupby(enumerate(needed), key=lambda pair: pair[1] - pair[0]):
            chunks = [chunk for _, chunk in run]
            first, last = int(chunks[0]) * self.chunk, (int(chunks[-1]) + 1) * self.chunk
            with self.files.told("read"):
                try:
                    block = self.array[layer, first:last]
                except (ValueError, RuntimeError) as problem:
                    raise self._damage(layer, first, last, str(problem)) from None
            inside = (rows >= first) & (rows < last)
            if inside.all():
                out = block[rows - first] if len(rows) != len(block) or (np.diff(rows) != 1).any() else block
            else:
                out[inside] = block[rows[inside] - first]
        if np.isnan(out[:, 0]).any():  # no NaN is ever written: what reads as NaN is no longer there
            lost = rows[np.isnan(out[:, 0])]
            raise self._damage(layer, int(lost.min()), int(lost.max()) + 1, "missing chunks")
        return out

    def _damage(self, layer: int, first: int, last: int, problem: str) -> WorkbenchError:
        return WorkbenchError(
            f"Layer {self.layers[layer]}, rows {first} to {last - 1}, of the store {self.files.shown} was to be read.",
            found=f"damage there: {problem.splitlines()[0] if problem else 'unreadable'}",
            do=f"Call `workbench cache verify {self.files.shown}`, then capture the same texts again: "
            "only what is damaged is computed anew.")  # fmt: skip


def chunk_rows(width: int, dtype: str, rows: int, texts: int | None = None) -> int:
    """Rows to a chunk, a power of two: about CHUNK_BYTES, those of PART_TEXTS texts, no more than `rows` need.

    rows, texts: of the first capture; texts None: one row each.
    """
    full = CHUNK_BYTES // (width * np.dtype(dtype).itemsize)
    wanted = min(max(full, 16), max(rows, 16), PART_TEXTS * max(1, round(rows / (texts or rows))))
    return 1 << (int(wanted).bit_length() - 1 if wanted == full else int(wanted - 1).bit_length())


def parquet(entries: pd.DataFrame) -> bytes:
    """A table as a parquet file. WorkbenchError for labels that it cannot hold."""
    from pyarrow import ArrowException

    buffer = io.BytesIO()
    try:
        entries.to_parquet(buffer, index=False)
    except (ArrowException, TypeError, ValueError) as problem:
        raise WorkbenchError("Labels were to be stored beside activations.", found=str(problem).splitlines()[0],
                             allowed="columns of one kind each: text, numbers or true and false, the same in each call",
                             ) from None  # fmt: skip
    return buffer.getvalue()


def text_id(ids: Sequence[int], positions: Sequence[int] = ()) -> str:
    """32 hex digits that name a text as it is read: its token ids and, where each text has its own, the positions."""
    content = np.asarray([*ids, -1, *positions], dtype="<i8").tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _part(record: Mapping[str, Any]) -> Part:
    return Part(record["start"], [(text, rows) for text, rows in record["texts"]], record["digests"])
