"""The notebooks that come with the workbench: where they are, and how one of their lines is replaced."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import WorkbenchError

if TYPE_CHECKING:
    from nbformat import NotebookNode

PACKAGE = Path(__file__).parent
ROOT = PACKAGE.parent
TOUR = "00_tour.ipynb"
MODEL_LINE = r'MODEL = "[^"\n]*"'
"""How the one line begins that says which model a notebook is about."""


def notebook_path(name: str = TOUR) -> Path:
    """A notebook of the checkout, or its copy in a wheel; WorkbenchError when there is neither."""
    for folder in (ROOT / "notebooks", PACKAGE / "_notebooks"):
        if (folder / name).is_file():
            return folder / name
    raise WorkbenchError(
        f"The notebook {name!r} was asked for.",
        found="neither a checkout nor an installed copy that holds it",
        do="run the command in a clone of the repository",
    )


def substitute(notebook: "NotebookNode", pattern: str, line: str) -> None:
    """Replace the one code line that matches `pattern`; WorkbenchError unless there is exactly one."""
    found = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source, count = re.subn(f"^{pattern}", lambda _: line, cell.source, flags=re.MULTILINE)
            found += count
    if found != 1:
        raise WorkbenchError(
            f"A line of the notebook was to become {line!r}.",
            found=f"{found} lines that match {pattern!r}",
            allowed="exactly one",
            do="give the notebook exactly one line that begins so",
        )
