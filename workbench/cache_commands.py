"""The command line's part on stored activations: `workbench cache ls | verify | rm`. Imports lie inside."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import WorkbenchError

if TYPE_CHECKING:
    from .activations import Store
    from .activations.files import Files

cache = typer.Typer(no_args_is_help=True, help="Stores of activations: what is there, is it whole, remove it.")
Path_ = Annotated[str, typer.Argument(help="A store: its folder or URL.")]


@cache.command()
def ls(
    folder: Annotated[str, typer.Argument(help="Where to look: stores in it and below, or one store's URL.")] = ".",
) -> None:
    """List the stores in a folder: size, model, hook, texts, age, damage."""
    import pandas as pd

    lines = [_line(path) for path in _stores(folder)]
    table = pd.DataFrame(lines).to_string(index=False, na_rep="")
    typer.echo(table if lines else f"No store of activations in {folder}.")


@cache.command()
def verify(path: Path_) -> None:
    """Read every chunk of a store, compare it with its digest, and let the damaged count as missing.

    The next capture of the same texts computes those parts again, and nothing else. Ends with 1 where there is damage.
    """
    store = _store(path)
    damage = store.verify()
    typer.echo(f"{path}: {sum(len(part.texts) for part in store.parts):,} texts in {len(store.parts)} parts read.")
    if store.damaged:
        typer.echo(f"{len(store.damaged)} parts were found damaged before and not yet captured again.")
    if len(damage):
        typer.echo(damage.to_string(index=False))
        try:
            with store.files.lock():
                store.mark_damaged(damage.part.unique().tolist())
            typer.echo("Capture the same texts again: only these parts are computed anew.")
        except WorkbenchError as problem:
            typer.echo(f"They could not be marked:\n{problem}")
    if len(damage) or store.damaged:
        raise typer.Exit(1)
    typer.echo("No damage." if store.manifest else "No damage, but the capture is not finished: make it again.")


@cache.command()
def rm(
    path: Path_, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:  # fmt: skip
    """Remove a store, and nothing that is not one."""
    from .activations import Store
    from .activations.files import Files

    store, files = _found(path), Files(path)
    if not yes:
        model = "a damaged store" if isinstance(store, WorkbenchError) else store.identity["model"]
        typer.confirm(f"Remove {path}, {_size(files) / 1e6:,.1f} MB of {model}?", abort=True)
    with files.lock():
        Store.remove(files)
    typer.echo(f"Removed {path}.")


def _store(path: str) -> "Store":
    from .activations import Store

    store = Store.find(path)
    if store is None:
        raise WorkbenchError(f"The store {path} was asked for.", found="no store of activations there",
                             do="workbench cache ls FOLDER lists the stores in a folder.")  # fmt: skip
    return store


def _found(path: str) -> "Store | WorkbenchError":
    """The store, or why one that is there cannot be opened."""
    from .activations import Store
    from .activations.files import Files

    try:
        return _store(path)
    except WorkbenchError as problem:
        if not Store.stands(Files(path)):
            raise
        return problem


def _stores(folder: str) -> list[str]:
    from .activations.store import ARRAY

    if "://" in folder:
        return [folder]
    if not Path(folder).is_dir():
        raise WorkbenchError(f"The stores in {folder} were asked for.", found="no such folder")
    return sorted(str(array.parents[2]) for array in Path(folder).rglob(ARRAY))


def _line(path: str) -> dict[str, str]:
    store = _found(path)
    if isinstance(store, WorkbenchError):
        return {"store": path, "damage": store.found or ""}
    absent = len(store.missing_chunks())
    damage = [f"{absent} chunks gone"] * bool(absent) + [f"{len(store.damaged)} parts"] * bool(store.damaged)
    return {
        "store": path,
        "MB": f"{_size(store.files) / 1e6:,.1f}",
        "model": store.identity["model"],
        "hook": store.identity["hook"],
        "layers": str(len(store.layers)),
        "texts": f"{store.manifest['texts']['entries']:,}" if store.manifest else "not finished",
        "age": _age(store),
        "damage": ", ".join(damage) or "none seen",
    }


def _size(files: "Files") -> int:
    return sum(files.sizes().values())


def _age(store: "Store") -> str:
    from datetime import UTC, datetime

    if store.manifest is None:
        return ""
    written = datetime.fromisoformat(store.manifest["written"])
    seconds = (datetime.now(UTC) - written).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
