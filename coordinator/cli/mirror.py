"""`fleetnas mirror`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("mirror")(mirror)


def mirror(
    supernet: Annotated[Path, typer.Argument(metavar="SUPERNET", help="The exported supernet, a .supernet file.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that a web server serves.")],
) -> None:
    """Put a supernet into a folder of a web server, for agents.

    They fetch it from there over HTTPS in place of the broker.
    """
    from fleetnas.coordinator.app.bundle_mirror import add_to_mirror

    target = add_to_mirror(supernet, folder)
    typer.echo(
        f"{target}\n"
        "serve that folder over HTTPS, with any web server that knows byte ranges, and name its address:\n"
        f"  fleetnas search --mirror https://HOST/PATH --supernet {shlex.quote(str(supernet))} ..."
    )
