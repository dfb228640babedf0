"""`fleetnas demo`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fleetnas.coordinator.cli import options


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where everything goes.")] = Path("fleetnas-out"),
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Fixes what is measured first.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Search three settings of this machine: 2 to 4 minutes.

    With the built-in supernet, a broker of its own, and an agent process for each setting.
    """
    from fleetnas.coordinator.app.demo import run_demo
    from fleetnas.coordinator.cli.search.running import run_search

    code = run_demo(out, lambda request: run_search(request, as_json=as_json), seed)
    if not as_json and (out / "report.html").is_file():
        typer.echo(next_steps(out))
    raise typer.Exit(code)


def next_steps(out: Path) -> str:
    """Return what to do after a demonstration that wrote to `out`."""
    from fleetnas.coordinator.app.demo import store_of

    store = shlex.quote(str(store_of(out)))
    return (
        f"next: open {out / 'report.html'}, or see the run in a browser with: fleetnas dashboard --store {store}\n"
        "for a board: `fleetnas broker --host 0.0.0.0` prints the line that installs the agent there"
    )
