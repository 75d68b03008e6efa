"""The command line's part on data: `workbench data write | audit`. Imports lie inside, as in `cli`."""

from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(no_args_is_help=True, help="Value pairs: have new ones written, audit any.")


@data.command()
def write(
    value: Annotated[str, typer.Argument(help="One of the ten values, or a new one with --definition.")],
    endpoint: Annotated[str, typer.Option(help="OpenAI-compatible address, such as http://localhost:8000/v1.")],
    model: Annotated[str, typer.Option(help="Name of the model there.")],
    out: Annotated[Path, typer.Option(help="CSV; the record of all replies lies beside it: go on by calling again.")],
    definition: Annotated[str | None, typer.Option(help="What the value means.")] = None,
    language: Annotated[str, typer.Option(help="Language of the texts.")] = "English",
    pairs: Annotated[int, typer.Option(help="How many, a quarter for each block; may be raised later.")] = 100,
    avoid: Annotated[str, typer.Option(help="Beginnings of words that no text may hold, with commas.")] = "",
    tries: Annotated[int, typer.Option(help="How often one text is asked for before it is given up.")] = 2,
    again: Annotated[bool, typer.Option("--again", help="Ask again for what earlier runs gave up.")] = False,
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 4,
    per_minute: Annotated[float | None, typer.Option(help="Most requests per minute.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for one reply.")] = 120,
    temperature: Annotated[float | None, typer.Option(help="Sent only where given, as is --max-tokens.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of one reply.")] = None,
    price_in: Annotated[float, typer.Option(help="Price of a million prompt tokens.")] = 0,
    price_out: Annotated[float, typer.Option(help="Price of a million completion tokens.")] = 0,
) -> None:
    """Have pairs for a value written by a model behind an endpoint, check them and audit them.

    The key is read from WORKBENCH_API_KEY, else OPENAI_API_KEY. What is written are drafts: read them before use.
    """
    from .drafts import the_task
    from .endpoint import Endpoint
    from .values import VALUES
    from .writing import write_pairs

    task = the_task(value, definition, language, avoid.split(","))
    chat = Endpoint(endpoint, model, per_minute=per_minute, timeout=timeout, temperature=temperature,
                    max_tokens=max_tokens)  # fmt: skip
    try:
        written = write_pairs(chat, task, out, pairs, tries, concurrency, again, typer.echo)
    finally:
        typer.echo(f"This run: {chat.told((price_in, price_out))}.")
    if written.audit is not None:
        typer.echo(written.audit.criteria.round(3).to_string(index=False))
        if task.language.lower() != "english":
            typer.echo("The audit's mood and names are read by English rules.")
    typer.echo(f"All runs: {written.usage.told((price_in, price_out))}.")
    reader = "load_pairs(FILE)" if task.value in VALUES else (
        "pandas.read_csv(FILE), for fit_probes and audit_pairs; load_pairs knows the ten values only")  # fmt: skip
    typer.echo(f"Wrote {len(written.pairs)} of {pairs} pairs to {out}. What reads it: {reader}.")


@data.command()
def audit(name: Annotated[str, typer.Argument(help="natural, embedded, a CSV of pairs or a folder.")]) -> None:
    """Print what the audit finds in a set of pairs, each figure with the bar it is held to."""
    from .audit import audit_pairs
    from .writing import pairs_of

    typer.echo(audit_pairs(pairs_of(name), Path(name).stem).criteria.round(3).to_string(index=False))
