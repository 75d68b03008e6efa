"""Panels whose state finds things piece by piece: what is there is drawn, the rest follows, the last setting wins."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .panel import Panel, Steps


@dataclass(eq=False)
class Part:
    """Something shown. now: what it shows once drawn, None while that is not found. show: draws it."""

    now: Callable[[], Any]
    show: Callable[[], Any]
    shown: Any = None

    @property
    def due(self) -> bool:
        return self.now() not in (None, self.shown)

    def update(self) -> None:
        self.shown = self.now()
        self.show()


class PiecePanel(Panel):
    """`state.step(ahead)` finds the most urgent piece, False where none is missing; `parts` are drawn in their order.

    ahead: whether to find what nothing shows yet. Between two pieces the kernel sees to other things.
    """

    ahead = True
    parts: list[Part]

    def work(self) -> None:
        """Find and draw what is missing; a run that is going on sees to it already."""
        if self.ending != "running":
            self.start(self._work())

    def beside(self) -> bool:
        """One step of whatever else goes on, False for nothing."""
        return False

    def spare(self) -> bool:
        """One step of what may be asked for next, where nothing else is to be done; False for nothing."""
        return False

    def _work(self) -> Steps:
        while True:
            going = self.beside()
            due = next((part for part in self.parts if part.due), None)
            if due is not None:
                due.update()
            elif not self.state.step(ahead=self.ahead and not going) and not going:
                if not (self.ahead and self.spare()):
                    return
            yield
