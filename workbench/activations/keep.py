"""Capture into a store: what is there stays, what is missing is computed, written meanwhile, and kept if it stops."""

import json
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from tqdm.auto import tqdm

from ..errors import WorkbenchError
from ..models import Model, load_model
from .files import Files
from .forward import Budget, read_rows, read_texts
from .layout import POSITIONS, Layout, rows_of, text_positions, width_dim
from .lazy import lazy_array
from .store import Part, Store, chunk_rows, parquet, text_id

AHEAD = 2  # parts that may wait for the disk
LIBRARIES = ("torch", "transformers", "transformer-lens")
OF_TEXT = {"content", "n_tokens", "row", "rows", "tokens", "positions"}  # columns that follow from the text id
NOT_ATTRS = ("layers", "width", "store_dtype")


@dataclass(frozen=True)
class Reading:
    """What is read, as `capture` was asked; see there."""

    layers: tuple[int, ...]
    hook: str
    rule: str
    chat: bool
    engine: str
    batch_tokens: int


class Text(NamedTuple):
    """places: the tokens to read, None for their mean."""

    text_id: str
    content: str
    ids: list[int]
    places: list[int] | None

    @property
    def rows(self) -> int:
        return 1 if self.places is None else len(self.places)


class Job(NamedTuple):
    """A part to compute: its first row and its texts, longest first."""

    start: int
    texts: list[Text]

    @property
    def rows(self) -> int:
        return sum(text.rows for text in self.texts)


def capture_into(
    path: Any, model: Model, reading: Reading, texts: Sequence[str], ids: list[list[int]],
    places: list[list[int]] | None, columns: Mapping[str, np.ndarray], attrs: Mapping[str, Any], store_dtype: str,
    workers: int, address: str | None, progress: bool, say: Callable[[str], None],
) -> xr.DataArray:  # fmt: skip
    """`capture` with a store: see there. Returns the asked texts in their order, read lazily."""
    given = places if reading.rule == "given" else None
    asked = [
        Text(text_id(row, given[i] if given else ()), content, row, places[i] if places else None)
        for i, (content, row) in enumerate(zip(texts, ids, strict=True))
    ]
    files = Files(path)
    store = _begun(path)
    width = _width(model, reading, asked[0]) if store is None else store.identity["width"]
    identity = {"steering": "", **attrs, "layers": list(reading.layers), "width": width, "store_dtype": store_dtype}
    if store:
        store.check_identity(identity)
    wanted = _entries(asked, reading, columns)
    if store and not _missing(store, asked) and not len(_new_entries(store, wanted)) and store.manifest:
        say(f"All {len(texts):,} texts are in {files.shown}: nothing was computed.")
        return _array(store, list(reading.layers), asked, reading.rule, columns)

    with files.lock():
        store = _begun(path)  # again, now that nobody else writes
        if store is None:
            different = {text.text_id: text.rows for text in asked}
            rows = chunk_rows(width, store_dtype, sum(different.values()), len(different))
            store = Store.create(files, identity, rows, width_dim(reading.hook))
        else:
            store.check_identity(identity)
        new = _new_entries(store, wanted)
        entries = pd.concat([store.entries, new], ignore_index=True) if store.manifest else new
        parquet(entries)  # labels that no file can hold are told before anything is computed
        jobs = _plan(store, model, reading, asked, say)
        whole = replace(reading, layers=tuple(store.layers))  # a store holds the same layers of every text
        done = _run(store, jobs, model, whole, workers, address, progress, say)
        store.finish(entries, {library: str(attrs[library]) for library in LIBRARIES})
    computed = f"computed {done:,}" if done else "nothing was computed"
    say(f"{len(texts):,} texts are in {files.shown}: {computed}.")
    return _array(store, list(reading.layers), asked, reading.rule, columns)


def open_activations(path: Any, layers: Sequence[int] | None = None, partial: bool = False) -> xr.DataArray:
    """The activations in a store, of every text in the order in which they were captured, read when asked for.

    Dims as `capture` returned them; labels, `text_id` and `content` (the text itself) are coordinates, the provenance
    attributes. `.sel(layer=12)` reads one layer's chunks only, with their checksums. partial: leave out texts that
    `workbench cache verify` found damaged. Raises WorkbenchError where there is no store, or one that was never
    finished, for damage that was found, and for other damage when it is read.
    """
    store = Store.find(path)
    if store is None:
        raise WorkbenchError(f"The store {path} was to be opened.", found="no store of activations there")
    if store.manifest is None:
        raise WorkbenchError(f"The store {path} was to be opened.",
                             found=f"a capture that did not finish: {len(store.parts)} parts are written",
                             do="Make the same capture again: it goes on from there.")  # fmt: skip
    lines, rule = store.entries, str(store.identity["position"])
    if partial:
        lines = lines[lines.text_id.isin(list(store.rows))]
    asked = [
        Text(line["text_id"], line["content"], list(line.get("tokens", ())), _places(line, rule))
        for line in lines.to_dict("records")
    ]
    shown = [name for name in lines.columns if name == "content" or name not in OF_TEXT]
    columns = {name: lines[name].to_numpy() for name in shown}
    return _array(store, store.layers if layers is None else list(layers), asked, rule, columns)


def _places(line: Mapping[Any, Any], rule: str) -> list[int] | None:
    if rule == "given":
        return list(line["positions"])
    return None if rule == "mean" else list(range(line["rows"]))


def _array(
    store: Store, layers: list[int], asked: Sequence[Text], rule: str, columns: Mapping[str, Any]
) -> xr.DataArray:
    rows = store.rows
    if lost := [text.content for text in asked if text.text_id not in rows]:
        raise WorkbenchError(f"{len(asked)} texts were to be read from {store.files.shown}.",
                             found=f"damage in {len(lost)} of them, such as {lost[0][:60]!r}",
                             do="Capture them again: only what is damaged is computed anew. To go on without them: "
                             f"open_activations({str(store.files.shown)!r}, partial=True).")  # fmt: skip
    if absent := [layer for layer in layers if layer not in store.layers]:
        raise WorkbenchError(f"Layers {layers} of the store {store.files.shown} were asked for.",
                             found=f"not captured: {absent}", allowed=", ".join(map(str, store.layers)))  # fmt: skip
    places = None if rule in ("last", "mean") else [text.places or [] for text in asked]
    layout = Layout.of(rule, [text.ids for text in asked], places, columns)
    starts = np.array([rows[text.text_id] for text in asked])
    at = rows_of(range(len(asked)), layout.counts, starts).reshape(layout.shape)
    attrs = {k: v for k, v in store.identity.items() if k not in NOT_ATTRS and (k != "steering" or v)}
    dim = str(store.array.metadata.dimension_names[2])
    return lazy_array(store, layers, at, ("layer", *layout.dims, dim), name=attrs["hook"], attrs=attrs,
                      coords={"layer": layers, **layout.coords})  # fmt: skip


# -- what is to do -------------------------------------------------------------------------------------


def _begun(path: Any) -> Store | None:
    """The store at a path; one in which nothing was written yet binds nobody to its settings and counts as none."""
    store = Store.find(path)
    return store if store and (store.manifest or store.all_parts) else None


def _width(model: Model, reading: Reading, text: Text) -> int:
    """Width of what is read, from a forward pass of one token."""
    ((_, block),) = read_texts(model, [text.ids[:1]], [[0]], reading.layers[:1], reading.hook, _engine(reading),
                               Budget(1))  # fmt: skip
    return block.shape[-1]


def _missing(store: Store, asked: Sequence[Text]) -> bool:
    """Whether a text is not there, or not wholly by the look of its files."""
    there, names = store.rows, {text.text_id for text in asked}
    if not names <= set(there):
        return True
    absent = set(store.missing_chunks().part)
    return any(part.start in absent and names & {name for name, _ in part.texts} for part in store.parts)


def _plan(
    store: Store, model: Model, reading: Reading, asked: Sequence[Text], say: Callable[[str], None]
) -> list[Job]:
    """Parts to compute: those that are damaged and hold an asked text, as they were, then what is not there at all."""
    if len(absent := store.missing_chunks()):
        store.mark_damaged(absent.part.unique())
        say(f"{len(absent)} chunks of {store.files.shown} are missing or cut short: computed again where asked for.")
    texts = {text.text_id: text for text in asked}
    jobs = []
    for part in [store.all_parts[start] for start in sorted(store.damaged)]:
        if any(name in texts for name, _ in part.texts):
            jobs.append(Job(part.start, [texts.get(name) or _stored_text(store, model, reading, name)
                                         for name, _ in part.texts]))  # fmt: skip
    there = {*store.rows, *(text.text_id for job in jobs for text in job.texts)}
    new = sorted((text for text in texts.values() if text.text_id not in there), key=lambda text: -len(text.ids))
    job, end = None, store.next_start
    for text in new:
        if job is None or job.rows + text.rows > store.chunk:
            job = Job(end, [])
            jobs.append(job)
        job.texts.append(text)
        end = job.start + store.whole_chunks(job.rows)
    need = sum(store.part_bytes(job.rows) for job in jobs)
    free = store.files.free()
    if free is not None and need > free:
        raise WorkbenchError(f"{len(new):,} texts were to be captured into {store.files.shown}.",
                             found=f"{free / 1e6:,.1f} MB free, {need / 1e6:,.1f} MB needed",
                             do="Make room, take fewer layers or texts, or store_dtype='float16'.")  # fmt: skip
    if jobs:
        store.grow(end)
    return jobs


def _stored_text(store: Store, model: Model, reading: Reading, name: str) -> Text:
    """A text that was captured before and is not asked for now, read from the store."""
    lines = store.entries[store.entries.text_id == name]
    if len(lines):
        line = lines.iloc[0]
        (ids,) = model.encode([line["content"]], chat=reading.chat)
        given = list(line["positions"]) if reading.rule == "given" else []
        rule = reading.rule if reading.rule in POSITIONS else [given] if given else json.loads(reading.rule)
        if text_id(ids, given) == name:
            _, places = text_positions(rule, [ids], [line["content"]])
            return Text(name, str(line["content"]), ids, places[0] if places else None)
    raise WorkbenchError(f"A damaged part of {store.files.shown} was to be computed again.",
                         found="a text of it that neither the call nor the store knows",
                         do="Make the capture again that wrote it, with all its texts.")  # fmt: skip


def _entries(asked: Sequence[Text], reading: Reading, columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
    for name, column in columns.items():
        if odd := [entry for entry in column if not pd.api.types.is_scalar(entry)]:
            raise WorkbenchError(f"Label {name!r} was to be stored beside activations.",
                                 found=f"an entry of type {type(odd[0]).__name__}",
                                 allowed="text, numbers, dates or true and false")  # fmt: skip
    table: dict[str, Any] = {
        "text_id": [text.text_id for text in asked],
        "content": [text.content for text in asked],
        "n_tokens": [len(text.ids) for text in asked],
        "rows": [text.rows for text in asked],
    }
    if reading.rule == "all":
        table["tokens"] = [text.ids for text in asked]
    if reading.rule == "given":
        table["positions"] = [text.places for text in asked]
    return pd.DataFrame({**table, **columns})


def _new_entries(store: Store, wanted: pd.DataFrame) -> pd.DataFrame:
    """Lines of `wanted` that the store lacks: the same text under the same labels counts as often as it is asked."""
    labels = [name for name in wanted.columns if name not in OF_TEXT]

    def keys(table: pd.DataFrame) -> list[tuple]:
        known = table.reindex(columns=labels).astype(object)
        return [tuple(line) for line in known.where(known.notna(), None).itertuples(index=False)]

    there = Counter(keys(store.entries))
    new = []
    for key in keys(wanted):
        new.append(there[key] <= 0)
        there[key] -= 1
    return wanted[new]


# -- doing it ------------------------------------------------------------------------------------------


def _run(
    store: Store, jobs: list[Job], model: Model, reading: Reading, workers: int, address: str | None, progress: bool,
    say: Callable[[str], None],
) -> int:  # fmt: skip
    """Compute, write and record every job; returns how many texts were computed."""
    kept = 0
    run = _on_ray(store, jobs, model, reading, workers, address, say) if reading.engine == "ray" else _here(
        store, jobs, model, reading, say)  # fmt: skip
    total = sum(len(text.ids) for job in jobs for text in job.texts)
    bar = tqdm(total=total, desc=f"capture {reading.hook}", unit="token", unit_scale=True,
               disable=not (progress and jobs))  # fmt: skip
    try:
        with bar:
            for job in run:
                kept += len(job.texts)
                bar.update(sum(len(text.ids) for text in job.texts))
    except KeyboardInterrupt:
        run.close()  # what waits for the disk is written first
        say(f"Interrupted: what was computed is in {store.files.shown}, and the same call goes on from there.")
        raise
    return kept


def compute(job: Job, model: Model, reading: Reading, budget: Budget) -> np.ndarray:
    """(layer, row, d) float32, rows in the order of the job's texts."""
    ids = [text.ids for text in job.texts]
    places = None if job.texts[0].places is None else [text.places or [] for text in job.texts]
    texts = [text.content for text in job.texts]
    return read_rows(model, texts, ids, places, reading.layers, reading.hook, _engine(reading), budget)


def _engine(reading: Reading) -> str:
    return "huggingface" if reading.engine == "ray" else reading.engine


def _write(store: Store, job: Job, block: np.ndarray) -> Part:
    return store.write_part(job.start, [(text.text_id, text.rows) for text in job.texts], block)


def _here(
    store: Store, jobs: list[Job], model: Model, reading: Reading, say: Callable[[str], None]
) -> Generator[Job, None, None]:
    """Jobs as they are computed, in this process; a thread writes one while the next is computed."""
    waiting: deque[tuple[Job, Future[None]]] = deque()
    budget = Budget(reading.batch_tokens, say)

    def keep(job: Job, block: np.ndarray) -> None:
        store.commit(_write(store, job, block))

    with ThreadPoolExecutor(1, "store") as disk:
        for job in jobs:
            waiting.append((job, disk.submit(keep, job, compute(job, model, reading, budget))))
            while len(waiting) > AHEAD:
                written, done = waiting.popleft()
                done.result()
                yield written
        while waiting:
            written, done = waiting.popleft()
            done.result()
            yield written


def _on_ray(
    store: Store, jobs: list[Job], model: Model, reading: Reading, workers: int, address: str | None,
    say: Callable[[str], None],
) -> Generator[Job, None, None]:  # fmt: skip
    """Jobs as Ray's workers have computed and written them; only this process records them."""
    from ..cluster import spread

    if model.active:
        raise WorkbenchError("A capture on Ray was asked for.", found="steering, which is on in this process only",
                             do="Leave the steering, or take another engine.")  # fmt: skip
    source, fingerprint = model.source, model.fingerprint
    path = str(store.files.local.absolute()) if store.files.local else store.files.shown

    def build() -> Callable[[Job], Part]:
        own, place = load_model(**source), Store.find(path)
        if own.fingerprint != fingerprint or place is None:
            raise WorkbenchError(
                f"A worker was to capture from {own.name} into {path}.",
                found="no store there" if place is None else "other weights under that name",
                do="Store and model must be the same on every machine of the cluster.")  # fmt: skip
        budget = Budget(reading.batch_tokens)
        return lambda job: _write(place, job, compute(job, own, reading, budget))

    gpus = 1.0 if model.device.type == "cuda" else 0.0
    threads = max(1, torch.get_num_threads() // max(workers, 1)) if address is None else None
    for index, part in spread(build, jobs, workers, address, threads, gpus, say):
        store.commit(part)
        yield jobs[index]
