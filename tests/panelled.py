"""What tests of panels share: all widgets of one, its figures as data, and the event loop of a kernel."""

import asyncio
import json
from typing import Any

import ipywidgets as widgets

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def inside(panel) -> list[widgets.Widget]:
    """All widgets of a panel."""
    found: list[widgets.Widget] = [panel]
    for widget in found:
        found += getattr(widget, "children", ())
    return found


def drawn(plot) -> dict[str, Any]:
    """The figure that a `Plot` shows."""
    return json.loads(plot.figure)


def in_a_loop(steps):
    """Run steps as a kernel runs cells: with an event loop that goes on meanwhile."""

    async def guarded():
        await asyncio.wait_for(steps, timeout=120)

    asyncio.run(guarded())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)
