"""The application: all commands, each registered by its own module."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    name="fleetnas",
    help="Trains a once-for-all supernet on your images, or takes a published one, and searches it for the best subnet "
    "of every device, by measuring on the devices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def complain(text: str) -> None:
    """Print one error message on standard error."""
    console = Console(stderr=True, highlight=False)
    console.print("[bold red]error:[/bold red]", end=" ")
    console.print(text, markup=False, soft_wrap=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"fleetnas {metadata.version('fleetnas')}")
        raise typer.Exit


@app.callback()
def _fleetnas(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    del version


from fleetnas.coordinator.cli import (  # noqa: E402
    accuracy,
    broker,
    dashboard,
    demo,
    devices,
    evaluate,
    export,
    export_data,
    finetune,
    inspect,
    measure,
    mirror,
    portfolio,
    predictor,
    runs,
    security,
    train,
    watch,
)
from fleetnas.coordinator.cli.search import command as search  # noqa: E402

#: In the order in which they are used, as the help lists them.
_MODULES = (
    *(demo, train, export, inspect, evaluate, accuracy, search, finetune, measure),
    *(watch, dashboard, devices, runs, portfolio, export_data, mirror, predictor, broker, security),
)
for module in _MODULES:
    module.register(app)
