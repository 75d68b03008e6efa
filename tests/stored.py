"""What the tests of stored activations share: texts, small parts, and a count of what the model computes."""

import hashlib
from contextlib import contextmanager
from pathlib import Path

from workbench.activations import capture

WORDS = "the old house, my family and a friend: they help, protect, win, lead, start or sell it.".split()
# 40 texts of 4 to 12 words. Longest first, as they are computed, those of one length stand together.
TEXTS = [f"{number} " + " ".join(WORDS[: 3 + number % 9]) for number in range(40)]
CHUNK = 4
DESCRIPTIONS = ["manifest.json", "activations.zarr/zarr.json", "activations.zarr/activations/zarr.json"]


def small_parts(monkeypatch, rows=CHUNK):
    """Let every store made from now on have so many rows to a chunk, and so to a part."""
    monkeypatch.setattr("workbench.activations.keep.chunk_rows", lambda *_: rows)


def quietly(model, texts, store=None, **settings):
    """(activations, the lines said), without progress bar."""
    said: list[str] = []
    return capture(model, texts, store=store, progress=False, say=said.append, **settings), said


@contextmanager
def forwards(model, each=lambda *_: None):
    """List of the (texts, tokens) of every forward pass meanwhile, the one-token pass that finds the width left out.

    each: called before each of them with its number, from 0.
    """
    seen: list[tuple[int, int]] = []

    def count(_module, inputs):
        if inputs[0].shape[1] > 1:
            seen.append(tuple(inputs[0].shape))
            each(len(seen) - 1)

    handle = model.twin.register_forward_pre_hook(count)
    try:
        yield seen
    finally:
        handle.remove()


def computed(passes):
    """How many texts the passes of `forwards` read."""
    return sum(texts for texts, _ in passes)


def chunk(store, layer, number) -> Path:
    """File of a chunk: layer by its place in the store, number counted over all rows."""
    return Path(store) / "activations.zarr" / "activations" / "c" / str(layer) / str(number) / "0"


def flip(path, bit):
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def snapshot(folder):
    """{name: digest} of all files below a folder but its lock."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != "lock"
    }
