"""`fleetnas runs` and `fleetnas results`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from fleetnas.coordinator.cli import options
from fleetnas.coordinator.store.empty_store import is_empty_file
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("runs")(runs)
    app.command("results")(results)


def runs(store: options.Store = None, as_json: options.Json = False) -> None:
    """List every run in the store, oldest first."""
    location = options.existing_store(store)
    if is_empty_file(location):
        if not as_json:
            typer.echo(f"the store {location} holds no run yet")
        return
    from rich.table import Table

    from fleetnas.coordinator.records.plan import kind_of
    from fleetnas.coordinator.report.stored_outcome import stored_totals
    from fleetnas.coordinator.view.output import output_console

    opened = options.open_to_read(store)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("Run", "Begun (UTC)", "Kind", "Supernet", "Targets", "Status", "Met"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "Supernet")
    found = opened.runs()
    for run in found:
        plan = run.settings.get("plan")
        targets = str(plan.get("targets", "?")) if isinstance(plan, dict) else "?"
        met: int | None = None
        asked: int | None = None
        try:
            totals = stored_totals(opened, run.run_id, _asked(plan, targets))
            met, asked = totals.met, totals.asked
        except FleetnasError as error:  # a run that cannot be read hides no other
            typer.echo(f"run {run.run_id}: {error}", err=True)
        if as_json:
            line = {"run_id": run.run_id, "created_unix_s": run.created_unix_s, "supernet": run.supernet}
            line["kind"] = kind_of(run)
            typer.echo(json.dumps({**line, "targets": targets, "status": run.status, "met": met, "asked": asked}))
        begun = time.strftime("%Y-%m-%d %H:%M", time.gmtime(run.created_unix_s))
        counts = "?" if met is None else f"{met} of {asked}"
        table.add_row(run.run_id, begun, kind_of(run), run.supernet, targets, run.status, counts)
    opened.close()
    if not as_json:
        output_console().print(table if found else f"the store {opened.url} holds no run yet", soft_wrap=not found)


def _asked(plan: object, targets: str) -> int:
    """Count the targets that a stored plan asks for on each device setting, as far as it can be read."""
    from fleetnas.coordinator.records.targets import TargetRequest

    given = plan.get("architectures") if isinstance(plan, dict) else None
    if isinstance(given, list) and given:
        return len(given)
    return 0 if targets == "?" else TargetRequest.parse_stored(targets).count


def results(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run, as `fleetnas runs` lists them.")],
    store: options.Store = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write its results and winners' model files here.")
    ] = None,
    tracking: options.Tracking = None,
) -> None:
    """Show the results of a run, ended or not."""
    from fleetnas.coordinator.app.run_artifacts import stored_models, write_artifacts
    from fleetnas.coordinator.app.tracking import MlflowTracking, log_run
    from fleetnas.coordinator.records.plan import settings_of
    from fleetnas.coordinator.report.stored_outcome import outcome_of
    from fleetnas.coordinator.view.output import output_console
    from fleetnas.coordinator.view.summary import print_summary
    from fleetnas.supernet_export.output_files import check_folder

    uri = options.tracking_uri(tracking)
    if uri is not None and out is None:
        raise UsageError("--track logs the files of the results: give the folder to write them to with --out DIR")
    tracker = MlflowTracking(uri) if uri is not None else None
    opened = options.open_to_read(store)
    try:
        print_summary(output_console(), outcome_of(opened, run))
        if out is not None:
            check_folder("--out", out)
            models = stored_models(settings_of(opened.run(run)))
            for remark in write_artifacts(opened, run, out, models):
                typer.echo(remark, err=True)
            typer.echo(f"results and model files: {out}")
            if tracker is not None:
                typer.echo(log_run(tracker, out, run))
    finally:
        opened.close()
