"""Schwartz's theory as data: the ten basic values, their groups, definitions and places on the circle.

Sources: Schwartz 1992 (ten values, the circle), Schwartz et al. 2012 (nineteen refined values, PVQ-RR
scoring). Values are named by plain lower-case strings; everything that lists them does so in the order of
`VALUES`.
"""

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import WorkbenchError

Order = str | Sequence[str] | Sequence[int] | None  # a circular order, see `circular_order`

DEFINITIONS: dict[str, str] = {
    "self-direction": "independent thought and action: choosing, creating, exploring",
    "stimulation": "excitement, novelty and challenge in life",
    "hedonism": "pleasure and sensuous gratification for oneself",
    "achievement": "personal success through demonstrating competence according to social standards",
    "power": "social status and prestige, control or dominance over people and resources",
    "security": "safety, harmony and stability of society, of relationships and of self",
    "conformity": "restraint of actions, inclinations and impulses likely to upset or harm others and "
    "violate social expectations or norms",
    "tradition": "respect, commitment and acceptance of the customs and ideas that one's culture or religion "
    "provides",
    "benevolence": "preserving and enhancing the welfare of the people one is in frequent contact with",
    "universalism": "understanding, appreciation, tolerance and protection for the welfare of all people and "
    "of nature",
}
"""What each value means, as prompts and judges say it; the keys stand in circular order."""

VALUES: tuple[str, ...] = tuple(DEFINITIONS)
"""The ten basic values in circular order: neighbours share a motive, the value five steps on opposes it."""

GROUPS: dict[str, tuple[str, ...]] = {
    "openness to change": ("self-direction", "stimulation", "hedonism"),
    "self-enhancement": ("hedonism", "achievement", "power"),
    "conservation": ("security", "conformity", "tradition"),
    "self-transcendence": ("benevolence", "universalism"),
}
"""The four higher-order groups; hedonism belongs to two of them."""

AXES: tuple[tuple[str, str], ...] = (
    ("openness to change", "conservation"),
    ("self-enhancement", "self-transcendence"),
)
"""The two axes of the circle, each a pair of opposed groups."""

REFINED: dict[str, tuple[str, ...]] = {
    "self-direction": ("self-direction-thought", "self-direction-action"),
    "stimulation": ("stimulation",),
    "hedonism": ("hedonism",),
    "achievement": ("achievement",),
    "power": ("power-dominance", "power-resources"),
    "security": ("security-personal", "security-societal"),
    "conformity": ("conformity-rules", "conformity-interpersonal"),
    "tradition": ("tradition", "humility"),
    "benevolence": ("benevolence-dependability", "benevolence-caring"),
    "universalism": ("universalism-concern", "universalism-nature", "universalism-tolerance"),
}
"""Ten from nineteen, as the PVQ-RR is scored: what makes up each basic value. Face is left out."""

VALUES19: tuple[str, ...] = (
    "self-direction-thought", "self-direction-action", "stimulation", "hedonism", "achievement",
    "power-dominance", "power-resources", "face", "security-personal", "security-societal", "tradition",
    "conformity-rules", "conformity-interpersonal", "humility", "benevolence-dependability",
    "benevolence-caring", "universalism-concern", "universalism-nature", "universalism-tolerance",
)
"""The nineteen refined values in circular order. Touché23 adds "universalism-objectivity" (20 labels)."""

ORDERS: dict[str, tuple[str, ...]] = {
    "schwartz": VALUES,
    "swapped": (*VALUES[:8], "universalism", "benevolence"),
}
"""The two circular orders in the literature; "swapped" exchanges benevolence and universalism."""

ORDERS19: dict[str, tuple[str, ...]] = {
    "schwartz": VALUES19,
    "swapped": (*VALUES19[:14], *VALUES19[16:], *VALUES19[14:16]),
}
"""The same two orders of the nineteen."""

LAYOUTS: dict[str, tuple[int, ...]] = {
    "equal": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
    "wedges": (0, 1, 2, 3, 4, 5, 6, 6, 7, 8),
}
"""Wedge of each of the ten places: ten equal steps of 36 degrees, or nine wedges of 40 degrees in which the
seventh and eighth place (conformity, and tradition outside it) share one."""


def check_value(name: Any, among: Sequence[str] = VALUES, kind: str = "value") -> str:
    """`name` itself when it is one of `among`, else a WorkbenchError that offers the nearest name."""
    if isinstance(name, str) and name in among:
        return name
    spelled = str(name).strip().lower().replace(" ", "-").replace("_", "-")
    close = difflib.get_close_matches(spelled, among, n=1)
    raise WorkbenchError(
        f"The {kind} {name!r} was asked for.",
        found=f"no {kind} of that name",
        allowed=", ".join(among),
        do=f"Did you mean {close[0]!r}?" if close else None,
    )


def groups_of(value: str) -> tuple[str, ...]:
    """The higher-order group of a value; two of them for hedonism."""
    check_value(value)
    return tuple(group for group, members in GROUPS.items() if value in members)


def circular_order(order: Order = None, among: Sequence[str] = VALUES) -> tuple[str, ...]:
    """The names place by place round the circle.

    order: None or "schwartz", "swapped", or a permutation that says which value each place holds, by name or
    by its index in `among`: the ten, the nineteen (`VALUES19`), or any others. Raises WorkbenchError for anything
    else.
    """
    among, known = tuple(among), {VALUES: ORDERS, VALUES19: ORDERS19}.get(tuple(among), {})
    if order is None:
        return among
    count = {10: "ten", 19: "nineteen"}.get(len(among), len(among))
    if isinstance(order, str):
        if order in known:
            return known[order]
        raise WorkbenchError(f"The circular order {order!r} was asked for.",
                             allowed=", ".join([*known, f"or the {count} values place by place"]))
    try:
        names = tuple(held if isinstance(held, str) else among[held] for held in order)
    except (TypeError, IndexError):
        names = ()
    if sorted(names) != sorted(among):
        raise WorkbenchError(
            f"The circular order {order!r} was asked for.",
            found=f"not a permutation of the {count} values",
            allowed=f"each of 0..{len(among) - 1}, or of {', '.join(among)}, once",
        )
    return names


def _wedges(layout: str, order: Order, among: Sequence[str]) -> tuple[np.ndarray, int]:
    """Wedge of each value, in the order of `among`, and the number of wedges."""
    if layout not in LAYOUTS:
        raise WorkbenchError(f"The layout {layout!r} was asked for.", allowed=", ".join(LAYOUTS))
    if layout != "equal" and tuple(among) != VALUES:
        raise WorkbenchError(f"The layout {layout!r} was asked for.", found=f"{len(among)} other values",
                             allowed="equal steps, but for the ten basic values")
    wedges = LAYOUTS[layout] if layout != "equal" else tuple(range(len(among)))
    wedge_of = dict(zip(circular_order(order, among), wedges, strict=True))
    return np.array([wedge_of[v] for v in among]), wedges[-1] + 1


def angles(layout: str = "equal", order: Order = None, among: Sequence[str] = VALUES) -> np.ndarray:
    """Ideal angle of each value in radians, shape (n,), in the order of `among`; the first place lies at 0.

    layout: "equal" or "wedges" (see `LAYOUTS`); a fit must say which. order, among: see `circular_order`.
    """
    wedges, count = _wedges(layout, order, among)
    return wedges * (2 * np.pi / count)


def circular_steps(layout: str = "equal", order: Order = None, among: Sequence[str] = VALUES) -> np.ndarray:
    """Steps between every two values, (n, n) integers; of the ten 0..5 ("equal") or 0..4 ("wedges")."""
    wedges, count = _wedges(layout, order, among)
    apart = np.abs(wedges[:, None] - wedges)
    return np.minimum(apart, count - apart)


def circular_step(
    a: str, b: str, layout: str = "equal", order: Order = None
) -> int:
    """Steps from one value to another the shorter way round: 0 for itself, 5 for its opposite.

    >>> circular_step("power", "universalism")
    5
    """
    return int(circular_steps(layout, order)[VALUES.index(check_value(a)), VALUES.index(check_value(b))])


def neighbours(value: str, order: Order = None) -> tuple[str, str]:
    """The values one place before and one place after.

    >>> neighbours("self-direction")
    ('universalism', 'stimulation')
    """
    names = circular_order(order)
    place = names.index(check_value(value))
    return names[place - 1], names[(place + 1) % 10]


def opposite(value: str, order: Order = None) -> str:
    """The value across the circle, five equal steps away.

    >>> opposite("self-direction")
    'security'
    """
    names = circular_order(order)
    return names[(names.index(check_value(value)) + 5) % 10]


def ten_from_nineteen(scores: Any) -> dict[str, Any]:
    """Scores of the ten values from those of the nineteen, by the PVQ-RR key (see `REFINED`): the mean of the
    parts.

    scores: anything that is indexed by refined value: a dict, a Series, a DataFrame with one column each
    (then the result holds columns). "face" may be there and is left out. Raises WorkbenchError naming what is
    missing.
    """
    if missing := [part for parts in REFINED.values() for part in parts if part not in scores]:
        raise WorkbenchError(
            "Ten values were to be scored from the nineteen.",
            found=f"no score for {', '.join(missing)}",
            allowed=", ".join(VALUES19),
        )
    return {value: sum(scores[part] for part in parts) / len(parts) for value, parts in REFINED.items()}
