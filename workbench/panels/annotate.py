"""The panel of a blind review: a view of `ReviewState`, driven by the keyboard.

The browser is sent what the annotator may see and nothing else, and sets it as text, never as HTML. Keys count only
while the panel has the focus, and only for the item that was shown when they were pressed.
"""

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import pandas as pd
import traitlets as t

from ..errors import WorkbenchError
from .review import ReviewState


def annotate(
    items: pd.DataFrame,
    annotator: str = "annotator",
    record: str | Path = "review.jsonl",
    labels: Sequence[str] | None = None,
    ask: str | None = None,
    value: str | None = None,
    seed: int = 0,
) -> "Annotate":
    """A panel in which a person judges items without seeing where they come from.

    items: a column text, or positive and negative, shown as A and B; question, what the text answers, and ask, what is
        asked of the annotator, where they are there. No other column is shown; all come back in the export.
    annotator: a name. record: file that every judgement is added to at once, and from which a review is resumed;
        several annotators may share it. Judgements are `wb.evaluation.agreement`'s to compare.
    labels: the scale, a key 1 to 9 for each; None: yes, partly, no; for pairs A, B, neither (A and B must be there).
    ask: what is asked of all items without a column of that name, further lines explain it; value: a basic value to
        ask about instead.
    seed: of the order of items and sides; annotators share it.

    Keys: 1 to 9 judge, u or Backspace takes back, left and right look at others. `panel.state` is a `ReviewState`, its
    `table()` and `export()` the result. Raises WorkbenchError, also where the record is of other items.
    """
    return Annotate(ReviewState(items, annotator, record, labels, ask, value, seed))


class Annotate(anywidget.AnyWidget):
    """The panel. `state` holds everything; `shown` is what the browser is sent."""

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")
    shown = t.Dict().tag(sync=True)

    def __init__(self, state: ReviewState):
        super().__init__()
        self.state, self._told, self._turn = state, "", 0
        self.on_msg(lambda _, message, __: self._heard(message))
        state.observe(lambda _: self._tell(), ["position", "given", "note"])
        self._tell()

    def _heard(self, message: Any) -> None:
        """Do what a key or button asks for. JupyterLab would swallow what goes wrong, so the panel shows it."""
        problem, self._told = "", ""
        with self.hold_sync():
            try:
                self._act(message["act"], message["position"], message.get("step", 0))
            except WorkbenchError as error:
                problem = str(error)
            except Exception as error:
                problem = "".join(traceback.format_exception(error, limit=-3))
            self._tell(problem)

    def _act(self, act: str, position: int, step: int) -> None:
        state = self.state
        if act == "judge":
            if position != state.position:
                self._told = "A key came before this item was shown and was not counted."
                return
            label = state.labels[step]
            state.judge(label)
            self._told = f"Item {position + 1}: {label}, saved."
        elif act == "undo":
            state.undo()
            self._told = f"The judgement of item {state.position + 1} was taken back."
        elif act == "move":
            state.move(step)
        elif act == "export":
            self._told = f"Written to {state.export()}."

    def _tell(self, problem: str = "") -> None:
        state = self.state
        self._turn += 1  # every message is answered, even where nothing changed
        self.shown = state.shown | {
            "position": state.position, "total": len(state.items), "done": len(state.given), "labels": state.labels,
            "given": state.given.get(state.order[state.position], ""), "annotator": state.annotator,
            "record": state.path.name, "note": state.note, "told": self._told, "problem": problem, "turn": self._turn,
        }  # fmt: skip
