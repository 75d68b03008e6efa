"""The command line's part on the studio's page: `workbench app`. Imports lie inside, as in `cli`."""

import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from .errors import WorkbenchError
from .notebooks import MODEL_LINE, notebook_path, substitute


def app_(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Embedded model, folder or Hugging Face name.")] = "embedded:circle",
    visitors: Annotated[int, typer.Option(min=0, help="Most at a time; 0: what half of the free memory holds.")] = 0,
    idle: Annotated[float, typer.Option(min=0.01, help="Minutes without a touch after which a visit ends.")] = 20,
    ahead: Annotated[int, typer.Option(min=0, help="Kernels kept ready for the next visitors.")] = 1,
    ip: Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1: this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; the next free one where it is taken.")] = 8866,
    prepare: Annotated[bool, typer.Option("--prepare", help="Only fit and keep what the studio needs.")] = False,
) -> None:
    """Serve the steering studio as a page, on localhost, a kernel for each visitor. Further options go to voila."""
    if Path(model).expanduser().is_dir():
        model = str(Path(model).expanduser().resolve())  # kernels work elsewhere
    if prepare:
        from .app.prepared import prepare as fit

        found = fit(model, say=typer.echo)
        typer.echo("\n".join([repr(found), *found.notes]))
        return
    if find_spec("voila") is None:
        raise WorkbenchError(
            "`workbench app` was called.",
            found="voila is not installed",
            do='pip install "value-workbench[app]"',
        )
    # Jupyter's schemas check no address; the grammar that could takes seconds to build.
    sys.modules.setdefault("rfc3987_syntax", None)  # pyright: ignore[reportArgumentType]
    import nbformat

    from .app.prepared import is_prepared

    notebook = nbformat.read(notebook_path("app.ipynb"), as_version=4)
    substitute(notebook, MODEL_LINE, f"MODEL = {json.dumps(model)}")
    if not is_prepared(model):
        typer.echo(f"Preparing {Path(model).name}: what is fitted once takes a minute or more, the next time seconds.")
        command = [sys.executable, "-m", "workbench", "app", "--prepare", "--model", model]  # its memory goes back
        if subprocess.run(command).returncode:
            raise typer.Exit(1)
    from .app.server import is_local, serve

    if not is_local(ip):
        typer.secho(
            f"Anybody who reaches {ip or 'this machine'} at port {port} can use the studio: move its controls and "
            "let the model answer, on this machine's time. Nobody can run code or read files.",
            fg="yellow",
        )
    with tempfile.TemporaryDirectory(prefix="workbench-app-") as folder:  # nothing else to be found in it
        path = Path(folder) / "app.ipynb"
        nbformat.write(notebook, path)
        named = {"visitors": visitors, "idle": idle, "ahead": ahead}
        options = [f"--StudioServer.{name}={setting}" for name, setting in named.items()]
        code = serve(path, [*options, f"--Voila.ip={ip}", f"--Voila.port={port}", *context.args])
    raise typer.Exit(code)
