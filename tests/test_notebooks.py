"""Every notebook runs from its first cell to its last on the embedded model."""

import functools
import os
import re
import tempfile
from pathlib import Path

import nbformat
import pytest

from workbench import cli

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
PATHS = [path for path in sorted(NOTEBOOKS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in path.parts]


def prepared(path: Path) -> nbformat.NotebookNode:
    """The notebook as tests run it: `FAST = False`, where it has that line, becomes `FAST = True`."""
    notebook = nbformat.read(path, as_version=4)
    if any(
        re.search(r"^FAST\b", cell.source, re.MULTILINE)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ):
        cli.substitute(notebook, r"FAST = False\b", "FAST = True")
    return notebook


@functools.cache
def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; run once for all tests, in an empty folder. Do not change it.

    WORKBENCH_EXECUTED: where `workbench test` keeps them between its parts.
    """
    folder = os.environ.get("WORKBENCH_EXECUTED")
    kept = folder and Path(folder) / path.relative_to(NOTEBOOKS).as_posix().replace("/", "-")
    if kept and kept.is_file():
        return nbformat.read(kept, as_version=4)
    notebook = prepared(path)
    with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
        if "WORKBENCH_CACHE" not in os.environ:  # the user's own is left alone
            patch.setenv("WORKBENCH_CACHE", str(Path(home) / "cache"))
        cli.execute(notebook, Path(home))
    if kept:
        nbformat.write(notebook, kept)
    return notebook


@pytest.mark.notebook
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.relative_to(NOTEBOOKS).as_posix())
def test_notebook_runs(path):
    notebook = executed(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert code, f"{path.name} has no code"
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    warnings = [
        output.text
        for cell in code
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stderr" and "Warning" in output.text
    ]
    assert warnings == [], "a reader of the notebook would meet these warnings"
