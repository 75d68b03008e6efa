"""The command line: what it says, what it refuses, and the page it writes of a notebook."""

import base64
import importlib
import inspect
import re
import struct
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from typer.testing import CliRunner

from workbench import cli, notebooks
from workbench.errors import WorkbenchError

runner = CliRunner()


def notebook(*sources: str) -> nbformat.NotebookNode:
    return new_notebook(cells=[new_code_cell(source) for source in sources])


@pytest.fixture
def tour_notebook(tmp_path, monkeypatch):
    """Function: sources -> path of a notebook that stands in for the tour; the working folder is empty."""

    def write(*sources: str):
        path = tmp_path / "00_tour.ipynb"
        nbformat.write(notebook(*sources), path)
        return path

    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(cli, "notebook_path", lambda name="00_tour.ipynb": tmp_path / name)
    return write


def drawn(html: str) -> str:
    """The part of the page below plotly.js itself."""
    return html[html.index("<main") :]


def test_python_m_workbench_lists_the_commands_without_torch():
    code = (
        "import sys, runpy\nsys.argv = ['workbench', '--help']\n"
        "try: runpy.run_module('workbench', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules and 'nbconvert' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for command in ("lab", "tour", "test", "app", "bench", "doctor", "pictures", "data", "embedded", "clean"):
        assert re.search(rf"\b{command}\b", result.stdout), f"{command} is missing from --help"


@pytest.mark.parametrize(
    ("sources", "count"),
    [(("x = 1",), 0), (('MODEL = "a"', 'MODEL = "b"'), 2), (('print("MODEL")',), 0), (('  MODEL = "a"',), 0)],
)
def test_substitute_refuses_anything_but_one_line(sources, count):
    with pytest.raises(WorkbenchError, match=f"(?s)Found: {count} lines that match.*Allowed: exactly one"):
        cli.substitute(notebook(*sources), r'MODEL = "[^"\n]*"', 'MODEL = "c"')


def test_substitute_changes_that_line_only():
    book = notebook('import os\nMODEL = "embedded:circle"  # or a folder', "print(MODEL)")
    cli.substitute(book, r'MODEL = "[^"\n]*"', r'MODEL = "a\\b"')
    assert [cell.source for cell in book.cells] == [
        'import os\nMODEL = "a\\\\b"  # or a folder',
        "print(MODEL)",
    ]


def test_tour_runs_the_notebook_on_another_model_and_leaves_it_as_it_was(tour_notebook):
    path = tour_notebook(
        'MODEL = "embedded:circle"',
        "import plotly.graph_objects as go\ngo.Figure(go.Bar(x=['</script>', 'b'], y=[1, 2]))",
        "import os\nprint('ran', MODEL, os.path.basename(os.getcwd()), '<i>')",
    )
    before = path.read_bytes()
    result = runner.invoke(cli.app, ["tour", "--model", 'my "folder"', "--output", "out/tour.html"])
    assert result.exit_code == 0, result.output
    assert [line.split("]")[0] for line in result.output.splitlines()[:3]] == ["[ 1/3", "[ 2/3", "[ 3/3"]
    assert "Wrote out/tour.html" in result.output.replace("\\", "/")
    assert path.read_bytes() == before
    html = (path.parent / "here/out/tour.html").read_text(encoding="utf-8")
    assert "ran my &quot;folder&quot; here &lt;i&gt;" in html or 'ran my "folder" here &lt;i&gt;' in html
    assert html.count("* plotly.js v") == 1, "plotly.js is to be embedded exactly once"
    assert drawn(html).count("Plotly.newPlot") == 1
    assert not re.search(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)\s*=\s*[\"']?(?:https?:)?//", html)


def test_tour_shows_the_cell_that_failed_and_writes_nothing(tour_notebook):
    path = tour_notebook('MODEL = "embedded:circle"', "print('so far')\n1 / 0", "print('never')")
    result = runner.invoke(cli.app, ["tour"])
    assert result.exit_code == 1
    assert "Cell 2 of 3 failed." in result.output
    assert "ZeroDivisionError" in result.output and "1 / 0" in re.sub(r"\x1b\[[\d;]*m", "", result.output)
    assert not (path.parent / "here/build").exists()


def test_page_shows_widgets_as_they_stood_with_their_figures_and_nothing_hidden():
    values = base64.b64encode(struct.pack("<3d", 1, 2, 3)).decode()

    def model(name, **state):
        return {"model_name": name, "state": state}

    figure = model(
        "AnyModel",
        _widget_data=[{"type": "scatter", "y": {"dtype": "float64", "shape": [3]}}],
        _widget_layout={"title": {"text": "live"}},
    )
    figure["buffers"] = [{"path": ["_widget_data", 0, "y", "buffer"], "data": values, "encoding": "base64"}]
    models = {
        "box": model("VBoxModel", children=["IPY_MODEL_a", "IPY_MODEL_b", "IPY_MODEL_c", "IPY_MODEL_d"]),
        "a": model("HTMLModel", value="<b>steered</b>"),
        "b": model("DropdownModel", description="<Value>", _options_labels=["power", "security"], index=1),
        "c": figure,
        "d": model("LabelModel", value="out of sight", layout="IPY_MODEL_e"),
        "e": model("LayoutModel", display="none"),
    }
    output = new_output("display_data", {cli.WIDGET: {"model_id": "box"}, "text/plain": "VBox()"})
    book = new_notebook(cells=[new_code_cell("panel", outputs=[output])])
    book.metadata["widgets"] = {cli.WIDGET_STATE: {"state": models}}
    html = drawn(cli.page(book, "title"))
    assert "<b>steered</b>" in html and "&lt;Value&gt; security" in html
    assert "out of sight" not in html and "VBox()" not in html
    assert f'"bdata":"{values}"' in html and '"shape"' not in html
    assert "widgets" in book.metadata and cli.WIDGET in book.cells[0].outputs[0].data, (
        "the notebook is not changed"
    )


def test_an_unknown_benchmark_is_refused():
    result = runner.invoke(cli.app, ["bench", "nonesuch"])
    assert result.exit_code == 1
    assert "The benchmark 'nonesuch' was asked for." in result.output and "Allowed:" in result.output


def test_bench_reports_the_one_that_failed(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "benchmarks/fine.py").write_text("open('ran', 'w')", encoding="utf-8")
    (tmp_path / "benchmarks/broken.py").write_text("raise SystemExit(3)", encoding="utf-8")
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    result = runner.invoke(cli.app, ["bench"])
    assert result.exit_code == 1 and "failed: broken" in result.output
    assert (tmp_path / "ran").exists()


def test_clean_removes_what_was_built_and_nothing_else(tmp_path, monkeypatch):
    kept = ["pyproject.toml", "workbench/values.py", ".venv/bin/python", "data/build/kept.csv"]
    gone = [
        "build/tour.html",
        ".ruff_cache/x",
        "workbench/__pycache__/values.pyc",
        "tests/a/__pycache__/b.pyc",
    ]
    for name in kept + gone:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    assert runner.invoke(cli.app, ["clean"]).exit_code == 0
    assert [name for name in kept + gone if (tmp_path / name).exists()] == kept


@pytest.mark.parametrize("command", ["test", "bench", "clean"])
def test_commands_on_the_repository_say_so_where_there_is_none(command, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    result = runner.invoke(cli.app, [command])
    assert result.exit_code == 1 and "without its repository" in result.output


def test_a_missing_notebook_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "PACKAGE", tmp_path)
    with pytest.raises(WorkbenchError, match="The notebook '00_tour.ipynb' was asked for"):
        notebooks.notebook_path()


@pytest.mark.parametrize(("codes", "failed"), [
    ({"pyright": 1}, "pyright"), ({"quick": 1}, "pytest"), ({"browser": 1}, "pytest, in a browser"), ({}, ""),
    ({"quick": 5}, ""), ({"browser": 5}, ""), ({"quick": 5, "browser": 5}, "pytest, which found no test"),
    ({"ruff": 5}, "ruff"),
])  # fmt: skip
def test_a_check_that_fails_is_named_and_the_others_still_run(codes, failed, monkeypatch):
    called = []

    def run(arguments, **_):
        part = next((option[7:] for option in arguments if option.startswith("--part=")), arguments[2])
        called.append(part)
        assert ("-k" in arguments) == (arguments[2] == "pytest")
        return types.SimpleNamespace(returncode=codes.get(part, 0))

    monkeypatch.setattr(cli.subprocess, "run", run)
    result = runner.invoke(cli.app, ["test", "-k", "values"])
    assert called == ["ruff", "pyright", "nbstripout", "quick", "browser"]
    assert result.exit_code == bool(failed)
    assert ("Failed" in result.output) == bool(failed)
    assert result.output.strip().endswith(failed)


def test_jupyterlab_listens_on_localhost(monkeypatch):
    called = []
    monkeypatch.setattr(cli, "notebook_path", lambda name=cli.TOUR: cli.ROOT / "notebooks" / name)

    class Popen:
        def __init__(self, arguments):
            called.append(arguments)

        def wait(self):
            return 0

    monkeypatch.setattr(cli.subprocess, "Popen", Popen)
    assert runner.invoke(cli.app, ["lab", "--no-browser"]).exit_code == 0
    ((_, _, lab, *options),) = called
    assert lab == "jupyterlab"
    assert "--ServerApp.ip=127.0.0.1" in options and "--no-browser" in options
    assert "--LabApp.default_url=/lab/tree/notebooks/00_tour.ipynb" in options


@pytest.mark.parametrize(
    ("command", "home", "function", "call", "answer", "code"),
    [
        (
            "train circle --minutes 2 --tokens 1e6 --folder out --threads 3",
            "training",
            "train",
            (("circle", 1e6, Path("out"), 3, 2.0), {"device": "cpu"}),
            None,
            0,
        ),
        ("pilot", "pilot", "run", (("embedded:circle",), {}), pd.DataFrame({"passed": [None, True]}), 0),
        ("pilot out", "pilot", "run", (("out",), {}), pd.DataFrame({"passed": [None, False]}), 1),
        ("card circle", "card", "write", (("circle",), {}), "the card", 0),
    ],
)
def test_embedded_commands_hand_on_to_their_modules(command, home, function, call, answer, code, monkeypatch):
    module = importlib.import_module(f"workbench.embedded.{home}")
    inspect.signature(getattr(module, function)).bind(*call[0], **call[1])  # the real one takes these
    calls = []
    monkeypatch.setattr(module, function, lambda *a, **k: calls.append((a, k)) or answer)
    result = runner.invoke(cli.app, ["embedded", *command.split()])
    assert (result.exit_code, calls) == (code, [call]), result.output
    shown = answer.to_string(index=False) if isinstance(answer, pd.DataFrame) else answer or ""
    assert shown in result.output
    assert ("a bar was missed" in result.output) == bool(code)


def test_a_panels_figure_is_drawn_on_the_page(tmp_path):
    source = (
        "import plotly.graph_objects as go\nfrom workbench.panels.plot import Plot\n"
        "Plot(lambda: go.Figure(go.Scatter(y=[1, 2]), layout_title_text='live one'))"
    )
    executed = notebook(source)
    cli.execute(executed, tmp_path)
    html = drawn(cli.page(executed, "a page"))
    assert "live one" in html and "Plotly.newPlot" in html and "unreadable" not in html
