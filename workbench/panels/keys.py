"""Plain keys pressed in a panel stay there: without this JupyterLab takes arrows and letters from drop-down lists."""

from pathlib import Path

import anywidget
import ipywidgets as w


class Keys(anywidget.AnyWidget):
    """Shows nothing. One in a page is enough for all panels of it."""

    _esm = Path(__file__).with_suffix(".js")

    def __init__(self) -> None:
        super().__init__(layout=w.Layout(display="none"))
