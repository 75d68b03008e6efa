"""Foreign text in a panel's HTML: answers of models and files are hostile until they were escaped.

No markup of theirs is read; control characters are shown as signs, those that turn the direction of writing by their
number; and whatever direction is left ends with the text, which stands in a `<bdi>` of its own.
"""

import html
from typing import Any

CUT = 50_000
"""Characters of a text that a page is sent; a longer one says that it was cut."""

_SIGNS: dict[int, int | str] = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_SIGNS |= {0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD)}
_SIGNS |= {code: f"[U+{code:04X}]" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029)}


def plain(text: Any, limit: int = CUT) -> str:
    """Text for a label or a box that takes no HTML: valid, at most `limit` characters, control characters as signs."""
    return str(text)[:limit].encode("utf-8", "replace").decode().translate(_SIGNS)


def line(text: Any, limit: int = 200) -> str:
    """The same in one line: white space is one blank, what is left out is "…"."""
    words = " ".join(str(text)[: 4 * limit].split())
    return plain(words if len(words) <= limit and len(str(text)) <= 4 * limit else f"{words[: limit - 1]}…", limit)


def quoted(text: Any, limit: int = CUT) -> str:
    """Text as HTML, whole up to `limit` characters."""
    cut = f" <i>[cut: {len(text):,} characters]</i>" if len(text := str(text)) > limit else ""
    return f"<bdi>{html.escape(plain(text, limit))}</bdi>{cut}"


def quoted_line(text: Any, limit: int = 200) -> str:
    """Text as HTML in one line."""
    return f"<bdi>{html.escape(line(text, limit))}</bdi>"
