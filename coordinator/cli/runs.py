"""`fleetnas runs` and `fleetnas results`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from coordinator.cli import options


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("runs")(runs)
    app.command("results")(results)


def runs(store: options.Store = None, as_json: options.Json = False) -> None:
    """Every run in the store, oldest first."""
    from coordinator.campaign.standing import stored_totals
    from coordinator.campaign.targets import TargetRequest
    from coordinator.store.store import MeasurementStore

    opened = MeasurementStore.open(options.existing_store(store))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("Run", "Begun (UTC)", "Supernet", "Targets", "Status", "Met"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "Supernet")
    found = opened.runs()
    for run in found:
        targets = str(run.settings.get("plan", {}).get("targets", "?"))
        request = TargetRequest() if targets == "?" else TargetRequest.parse(targets)
        totals = stored_totals(opened, run.run_id, request)
        if as_json:
            line = {"run_id": run.run_id, "created_unix_s": run.created_unix_s, "supernet": run.supernet}
            counts = {"met": totals.met, "asked": totals.asked}
            typer.echo(json.dumps({**line, "targets": targets, "status": run.status, **counts}))
        begun = time.strftime("%Y-%m-%d %H:%M", time.gmtime(run.created_unix_s))
        table.add_row(run.run_id, begun, run.supernet, targets, run.status, f"{totals.met} of {totals.asked}")
    opened.close()
    if not as_json:
        Console().print(table if found else f"the store {opened.url} holds no run yet", soft_wrap=not found)


def results(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run, as `fleetnas runs` lists them.")],
    store: options.Store = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write its results and winners' model files here.")
    ] = None,
) -> None:
    """What a run brought, ended or not."""
    from coordinator.campaign.assembly import stored_models, write_take_home
    from coordinator.campaign.plan import RunSettings
    from coordinator.campaign.standing import outcome_of
    from coordinator.store.store import MeasurementStore
    from coordinator.view.summary import summary

    opened = MeasurementStore.open(options.existing_store(store))
    try:
        Console().print(summary(outcome_of(opened, run)))
        if out is not None:
            models = stored_models(RunSettings.model_validate(opened.run(run).settings))
            for line in write_take_home(opened, run, out, models):
                typer.echo(line, err=True)
            typer.echo(f"results and model files: {out}")
    finally:
        opened.close()
