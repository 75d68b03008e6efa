"""The command line: `workbench lab | tour | test | app | bench | doctor | pictures | evaluate | data | cache |
embedded | clean`.

Thin: each command finds its files, calls what does the work, and says what it did. Imports lie inside the
commands, so that `workbench --help` answers at once. A WorkbenchError ends a command with its message.
"""

import html
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from .app_commands import app_
from .cache_commands import cache
from .data_commands import data
from .errors import WorkbenchError
from .evaluate_commands import evaluate
from .notebooks import MODEL_LINE, ROOT, TOUR, notebook_path, substitute

if TYPE_CHECKING:
    from nbformat import NotebookNode

NO_TESTS = 5  # what pytest answers where none was selected
PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"


class _Commands(TyperGroup):
    """Shows a WorkbenchError as its message, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except WorkbenchError as error:
            typer.secho(str(error), fg="red", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # a key must not be shown by a traceback
    help="Probe, map and steer values inside models.",
)
embedded = typer.Typer(
    no_args_is_help=True, help="The embedded models: train them, test the recipe, read their card."
)
app.add_typer(embedded, name="embedded")
app.add_typer(data, name="data")
app.add_typer(cache, name="cache")
app.command()(evaluate)

PASS_ON = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
}  # further options go to the program called
app.command("app", context_settings=PASS_ON)(app_)


def checkout() -> Path:
    """Root of the repository; WorkbenchError where the workbench was installed without it."""
    if not (ROOT / "pyproject.toml").is_file():
        raise WorkbenchError(
            "This command works on the project's own files.",
            found="the workbench installed without its repository",
            do="clone the repository and run it there, for example by `make test`",
        )
    return ROOT


def execute(notebook: "NotebookNode", folder: Path, timeout: int = 3600, progress: bool = False) -> None:
    """Run all cells of `notebook` in place, working in `folder`; WorkbenchError shows the cell that failed.

    timeout: seconds per cell. Nothing is written to disk.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, DeadKernelError

    total = sum(cell.cell_type == "code" for cell in notebook.cells)
    done = 0

    def started(cell: Any, cell_index: int) -> None:
        nonlocal done
        done += 1
        first = next((line for line in cell.source.splitlines() if line.strip()), "")
        if progress:
            typer.echo(f"[{done:2d}/{total}] {first[:90]}")

    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        on_cell_execute=started,
    )
    try:
        client.execute()
    except (CellControlSignal, DeadKernelError) as error:
        raise WorkbenchError(f"Cell {done} of {total} failed.", found=str(error).strip()) from None


# --- the executed notebook as one HTML page -----------------------------------------------------------------

# nbconvert's own page asks the network for require.js, MathJax, Mermaid and the widget manager. This one asks
# for nothing: plotly.js is embedded once, figures are drawn from their JSON, widgets are shown as they stood.
PAGE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}<script>{{ resources.plotly_js }}</script>{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
"""


def _figure(figure: dict) -> str:
    """The div and script of one plotly figure, given as its JSON."""
    from plotly.io import to_html

    figure = {part: figure.get(part) or default for part, default in (("data", []), ("layout", {}))}
    return to_html(figure, include_plotlyjs=False, full_html=False, validate=False, include_mathjax=False)


def _widget(models: dict, identifier: str) -> str:
    """A widget as it stood at the end of the run: its figures, texts and settings, without a kernel."""
    model = models.get(identifier.removeprefix("IPY_MODEL_"), {"model_name": "", "state": {}})
    kind, state = model["model_name"], model["state"]
    if _hidden(models, state.get("layout")):
        return ""
    if "_library" in state:  # a panel's `Plot`
        return _figure(json.loads(state["figure"]))
    if "_widget_data" in state:  # a plotly FigureWidget; its arrays travel beside the state, base64 encoded
        for buffer in model.get("buffers", []):
            array: Any = state
            for step in buffer["path"][:-1]:
                array = array[step]
            array["bdata"] = buffer["data"]
            array.pop("shape", None)  # plotly.js refuses the list; the arrays have one dimension
        return _figure({"data": state["_widget_data"], "layout": state["_widget_layout"]})
    if "outputs" in state:
        return "".join(_output(models, output) for output in state["outputs"])
    if "children" in state:
        inner = "".join(_widget(models, child) for child in state["children"])
        row = "display: flex; flex-wrap: wrap; gap: 0.6em; align-items: center" if "HBox" in kind else ""
        return f'<div style="{row}">{inner}</div>'
    value = state.get("value")
    if kind in ("HTMLModel", "HTMLMathModel"):
        return f"<div>{value}</div>"
    if isinstance(state.get("index"), int):
        value = state["_options_labels"][state["index"]]
    if value is None or "Progress" in kind:
        return ""
    label = f"{state.get('description', '')} {value}".strip()
    return f"<div>{html.escape(label)}</div>"


def _hidden(models: dict, layout: str | None) -> bool:
    state = models.get((layout or "").removeprefix("IPY_MODEL_"), {}).get("state", {})
    return state.get("display") == "none" or state.get("visibility") == "hidden"


def _output(models: dict, output: dict) -> str:
    """HTML of one output inside an Output widget."""
    data = output.get("data", {})
    if PLOTLY in data:
        return _figure(data[PLOTLY])
    if WIDGET in data:
        return _widget(models, data[WIDGET]["model_id"])
    plain = output.get("text") or data.get("text/plain", "")
    return data.get("text/html") or f"<pre>{html.escape(plain)}</pre>"


def page(notebook: "NotebookNode", title: str) -> str:
    """The executed notebook as one HTML page that holds all it needs: each figure draws without network.

    Widgets are shown as they stood at the end of the run. Formulas between dollar signs stay as written.
    """
    from copy import deepcopy

    from jinja2 import DictLoader
    from nbconvert import HTMLExporter
    from plotly.offline import get_plotlyjs

    notebook = deepcopy(notebook)
    models = notebook.metadata.pop("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        data = output.get("data", {})
        if PLOTLY in data:
            output["data"] = {"text/html": _figure(data[PLOTLY])}
        elif WIDGET in data:
            output["data"] = {"text/html": _widget(models, data[WIDGET]["model_id"])}
    exporter = HTMLExporter(template_file="page.html.j2", extra_loaders=[DictLoader({"page.html.j2": PAGE})])
    resources = {"plotly_js": get_plotlyjs(), "metadata": {"name": title}}
    return exporter.from_notebook_node(notebook, resources)[0]


# --- commands -----------------------------------------------------------------------------------------------


def _serve(program: str, *options: str) -> None:
    """Run a Jupyter program in the foreground until it ends."""
    process = subprocess.Popen([sys.executable, "-m", program, *options])
    while True:
        try:
            raise typer.Exit(process.wait())
        except KeyboardInterrupt:  # the program heard it too, and asks or stops by itself
            continue


@app.command(context_settings=PASS_ON)
def lab(context: typer.Context) -> None:
    """Open JupyterLab at the tour, on localhost and the first free port. Further options go to JupyterLab."""
    source = notebook_path()
    root = ROOT if source.is_relative_to(ROOT / "notebooks") else Path.cwd()
    if root != ROOT and not (root / TOUR).exists():  # installed without the repository: work on a copy
        shutil.copy(source, root / TOUR)
    opened = source.relative_to(root).as_posix() if root == ROOT else TOUR
    options = ["--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={root}"]
    if getattr(os, "geteuid", lambda: 1)() == 0:  # in a container; Jupyter wants to be told
        options.append("--ServerApp.allow_root=True")
    _serve("jupyterlab", *options, f"--LabApp.default_url=/lab/tree/{opened}", *context.args)


@app.command()
def tour(
    model: Annotated[
        str | None, typer.Option(help="Hugging Face name or folder in place of the embedded model.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Where the page is written.")] = Path("build/tour.html"),
) -> None:
    """Execute the tour without a screen and write it as one HTML page that draws without network."""
    import nbformat

    path = notebook_path()
    notebook = nbformat.read(path, as_version=4)
    if model is not None:
        substitute(notebook, MODEL_LINE, f"MODEL = {json.dumps(model)}")
    execute(notebook, Path.cwd(), progress=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(notebook, title=f"Value workbench: {path.stem}"), encoding="utf-8")
    typer.echo(f"Wrote {output} ({output.stat().st_size / 1e6:.1f} MB).")


@app.command(context_settings=PASS_ON)
def test(context: typer.Context) -> None:
    """Run ruff, pyright, nbstripout, then pytest: on all cores what needs no browser, alone what needs one.

    Options go to pytest.
    """
    root = checkout()
    notebooks = [
        str(path)
        for path in sorted(root.glob("notebooks/**/*.ipynb"))
        if ".ipynb_checkpoints" not in path.parts
    ]
    cores = min(os.cpu_count() or 1, 4)  # a worker holds models, some 2 GB
    checks = {
        "ruff": ["ruff", "check", "."],
        "pyright": ["pyright", "--pythonpath", sys.executable],
        "nbstripout": ["nbstripout", "--verify", *notebooks] if notebooks else ["nbstripout", "--version"],
        "pytest": ["pytest", f"-n{cores}", "--dist=load", "--part=quick", *context.args],
        "pytest, in a browser": ["pytest", "--part=browser", *context.args],  # last, as are its closing lines
    }
    failed, empty = [], []
    with tempfile.TemporaryDirectory() as shared:  # by both parts: executed notebooks, what the studio's page needs
        places = {"WORKBENCH_EXECUTED": shared, "WORKBENCH_CACHE": str(Path(shared) / "cache")}
        for name, arguments in checks.items():
            typer.secho(f"== {name}", bold=True)
            command = [sys.executable, "-m", *arguments]
            code = subprocess.run(command, cwd=root, env=places | os.environ).returncode
            if code == NO_TESTS and "pytest" in name:
                empty.append(name)
            elif code:
                failed.append(name)
            if "pytest" not in name:
                typer.secho(f"{name}: {'failed' if code else 'passed'}", fg="red" if code else "green")
    if len(empty) == 2:
        failed += ["pytest, which found no test"]
    if failed:
        typer.secho(f"Failed: {', '.join(failed)}", fg="red", bold=True)
        raise typer.Exit(1)


@app.command()
def bench(
    names: Annotated[list[str] | None, typer.Argument(help="Benchmarks to run; all without any.")] = None,
) -> None:
    """Run the benchmarks, each of which prints what it measured."""
    folder = checkout() / "benchmarks"
    present = {path.stem: path for path in sorted(folder.glob("*.py"))}
    for name in names or present:
        if name not in present:
            raise WorkbenchError(
                f"The benchmark {name!r} was asked for.", allowed=", ".join(present) or "none yet"
            )
    codes = {}
    for name in names or present:
        typer.secho(f"== {name}", bold=True)
        codes[name] = subprocess.run([sys.executable, str(present[name])], cwd=ROOT).returncode
    if failed := [name for name, code in codes.items() if code]:
        raise WorkbenchError("Benchmarks were run.", found=f"failed: {', '.join(failed)}")


@app.command()
def doctor(
    network: Annotated[bool, typer.Option(help="Ask whether the model hub answers.")] = True,
) -> None:
    """Say what is installed and what works here, each finding with its remedy; paste it into a report."""
    from .doctor import examine

    marks = {"good": ("ok  ", "green"), "note": ("note", "yellow"), "bad": ("BAD ", "red")}
    bad = 0
    for finding in examine(network):
        mark, colour = marks[finding.state]
        bad += finding.state == "bad"
        typer.echo(f"{typer.style(mark, fg=colour)}  {finding.about}: {finding.found}")
        if finding.do:
            typer.echo(f"      {finding.do}")
    told = f"{bad} of it keeps" if bad else "Nothing keeps"
    typer.secho(f"{told} the workbench from working.", fg="red" if bad else "green", bold=True)
    if bad:
        raise typer.Exit(1)


@app.command()
def pictures() -> None:
    """Photograph every panel in a real browser, light and dark, for the README: notebooks/pictures."""
    script = checkout() / "tests" / "browser" / "pictures.py"
    raise typer.Exit(subprocess.run([sys.executable, str(script)], cwd=ROOT).returncode)


@app.command()
def clean() -> None:
    """Remove what was built and cached in the checkout; .venv stays."""
    root = checkout()
    caches = (".pytest_cache", ".ruff_cache", ".hypothesis", "build", "dist")
    inside = [
        path
        for part in ("workbench", "tests", "benchmarks", "notebooks")
        for name in ("__pycache__", ".ipynb_checkpoints")
        for path in (root / part).rglob(name)
    ]
    for path in [root / name for name in caches if (root / name).exists()] + inside:
        shutil.rmtree(path)
        typer.echo(f"Removed {path.relative_to(root)}")


# --- the embedded models ------------------------------------------------------------------------------------


@embedded.command()
def train(
    name: Annotated[str, typer.Argument(help="circle, scrambled or confirm")],
    minutes: Annotated[
        float, typer.Option(help="Stop after so long; the next call goes on from there.")
    ] = math.inf,
    tokens: Annotated[float, typer.Option(help="Length of the training; more goes on where less ended.")] = 16e6,
    folder: Annotated[
        Path | None, typer.Option(help="Where checkpoints and the model go: build/embedded/NAME.")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, or cuda where there is a GPU.")] = "cpu",
) -> None:
    """Train an embedded model from scratch, or go on where a run was interrupted."""
    from .embedded import training

    training.train(name, tokens, folder, threads, minutes, device=device)


@embedded.command()
def pilot(
    model: Annotated[str, typer.Argument(help="An embedded model or the folder of one.")] = "embedded:circle",
) -> None:
    """Print the short test before long training: is the value readable, does steering move answers?"""
    from .embedded import pilot

    table = pilot.run(model)
    typer.echo(table.to_string(index=False))
    if False in table["passed"].tolist():  # None where there is no bar
        raise WorkbenchError(
            "The pilot was run.", found="a bar was missed", do="change the training, not the methods"
        )


@embedded.command()
def card(name: Annotated[str, typer.Argument(help="circle, scrambled or confirm")]) -> None:
    """Measure an embedded model's quality, print it and write it into its model card."""
    from .embedded import card

    typer.echo(card.write(name))
