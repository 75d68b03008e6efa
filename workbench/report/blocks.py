"""What a page is made of: plain data that the template puts into HTML, every text escaped there."""

import html
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from ..errors import WorkbenchError
from ..figures.themes import dark

Block = dict[str, Any]


def text(words: str) -> Block:
    return {"kind": "text", "text": words}


def missing(words: str) -> Block:
    """What is not there, and why; it stands where it would have been."""
    return {"kind": "missing", "text": words}


def heading(words: str) -> Block:
    return {"kind": "heading", "text": words}


def entries(items: Iterable[str]) -> Block:
    return {"kind": "list", "entries": list(items)}


def fold(title: str, blocks: Sequence[Block], opened: bool = False) -> Block:
    """Blocks under a title that opens them."""
    return {"kind": "fold", "title": title, "blocks": list(blocks), "open": opened}


def figure(fig: Any) -> Block:
    """A figure for light pages, with what differs on dark ones. Its words for those who do not see: title, subtitle."""
    light, night = json.loads(fig.to_json()), json.loads(str(dark(fig).to_json()))
    words = html.unescape(re.sub(r"<[^>]*>", " ", f"{fig.layout.title.text}. {fig.layout.title.subtitle.text or ''}"))
    return {"kind": "figure", "label": " ".join(words.split()), "light": light,
            "dark": list(_changes(light, night))}  # fmt: skip


def _changes(light: Any, night: Any, path: tuple = ()) -> Iterable[tuple[list, Any]]:
    """(path, value) wherever two figures differ."""
    if isinstance(light, dict) and isinstance(night, dict) and light.keys() == night.keys():
        for key in light:
            yield from _changes(light[key], night[key], (*path, key))
    elif isinstance(light, list) and isinstance(night, list) and len(light) == len(night):
        for key, (a, b) in enumerate(zip(light, night, strict=True)):
            yield from _changes(a, b, (*path, key))
    elif light != night:
        yield list(path), night


def attempt(what: str, build: Callable[[], Block | list[Block]]) -> list[Block]:
    """The blocks, or, where the data do not hold them, a word on what is missing and why."""
    try:
        built = build()
    except WorkbenchError as error:
        return [missing(f"{what}: not shown. Found: {error.found or 'nothing to show'}.")]
    return built if isinstance(built, list) else [built]


# -- tables ------------------------------------------------------------------------------------------------------


def cell(words: Any, more: str = "", look: str = "") -> dict[str, str]:
    return {"text": str(words), "more": more, "look": look}


def number(x: float, low: float = math.nan, high: float = math.nan, best: bool = False) -> dict[str, str]:
    """A number with its interval beneath; NaN stands as "undefined"."""
    if x is None or math.isnan(x):
        return cell("undefined", look="undefined")
    ends = "" if math.isnan(low) or math.isnan(high) else f"{_shown(low)} to {_shown(high)}"
    return cell(_shown(x), ends, "best" if best else "")


def _shown(x: float) -> str:
    return f"{x:.3f}".replace("-0.000", "0.000").replace("-", "−")


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> Block:
    """Rows of `cell`s; anything else becomes one."""
    full = [[c if isinstance(c, dict) else cell(c) for c in row] for row in rows]
    looks = ["text" if full and all(row[k]["look"] == "text" for row in full) else "" for k in range(len(head))]
    heads = [cell(name, look=look) for name, look in zip(head, looks, strict=True)]
    return {"kind": "table", "head": heads, "rows": full, "caption": caption}


def frame(data: pd.DataFrame, names: dict[str, str], caption: str = "") -> Block:
    """Columns of a data frame under other names; floats as numbers."""
    rows = [[number(x) if isinstance(x, float) else cell(x) for x in row] for row in data[[*names]].itertuples(False)]
    return table([*names.values()], rows, caption)
