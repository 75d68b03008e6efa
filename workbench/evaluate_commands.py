"""The command line's part on evaluation: `workbench evaluate CONFIG.toml`. Imports lie inside, as in `cli`."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    config: Annotated[Path, typer.Argument(help="A TOML file; its keys: `workbench evaluate --keys`.")] = Path(),
    keys: Annotated[bool, typer.Option("--keys", help="Print the keys that a file may hold, and the methods.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Fit, tune, answer, judge and report what a file asks for; the same command goes on after a kill."""
    from .evaluation.config import Config, read_config, run_config
    from .evaluation.config import __doc__ as example
    from .evaluation.lineup import ENTRIES

    if keys:
        typer.echo(f"{example}\n{Config.__doc__}\nMethods:")
        for name, entry in ENTRIES.items():
            typer.echo(f"  {name}: {entry.about}")
        return
    asked = read_config(config)
    result = run_config(asked, progress=not quiet)
    means = result.table().groupby("method", sort=False)[["csr", "fr", "leakage"]].mean()
    typer.echo(means.round(3).to_string())
    if told := result.provenance["judging"]:
        typer.echo(f"Judged: {told}.")
    typer.echo(f"{result!r}\nKept in {asked.home / asked.store}: answers.parquet, report.html, table.csv, table.tex.")
