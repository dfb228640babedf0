"""`fleetnas runs` with its commands, and `fleetnas results`."""

from __future__ import annotations

import datetime
import fnmatch
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.command_classes import CommandApp
from fleetnas.coordinator.cli.option_groups import command, names
from fleetnas.coordinator.records.run_names import LATEST, no_run_in
from fleetnas.coordinator.store.empty_store import is_empty_file
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError
from fleetnas.fleet_protocol.suggestions import did_you_mean

if TYPE_CHECKING:
    from fleetnas.coordinator.records.stored import RunRecord
    from fleetnas.coordinator.store.store import MeasurementStore

_Run = Annotated[str, typer.Argument(metavar="RUN", help=options.RUN_HELP)]
_STATUSES = ("running", "complete", "partial", "failed", "interrupted")


@dataclass(frozen=True)
class FilterOptions:
    """Which runs are listed."""

    status: Annotated[
        list[str] | None,
        typer.Option("--status", metavar="STATUS", help=f"Only runs that are {', '.join(_STATUSES)}; may be repeated."),
    ] = None
    name: Annotated[
        str | None, typer.Option("--name", metavar="PATTERN", help="Only runs of this name, such as 'pi-*'.")
    ] = None
    since: Annotated[
        str | None, typer.Option("--since", metavar="DATE", help="Only runs begun since then, UTC, such as 2026-05-31.")
    ] = None
    store: options.Store = None
    as_json: options.Json = False

    def wanted(self, runs: list[RunRecord]) -> list[RunRecord]:
        """Return the runs that these options leave; `UsageError` where one cannot be used."""
        unknown = sorted(set(self.status or ()) - set(_STATUSES))
        if unknown:
            near = did_you_mean(unknown[0], _STATUSES)
            raise UsageError(f"--status {unknown[0]!r} is no status of a run{near} there are {', '.join(_STATUSES)}")
        since = _unix_s(self.since) if self.since is not None else float("-inf")
        return [
            run
            for run in runs
            if (not self.status or str(run.status) in self.status)
            and (self.name is None or fnmatch.fnmatchcase(run.name or "", self.name))
            and run.created_unix_s >= since
        ]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = CommandApp(invoke_without_command=True)
    group.callback()(command(runs))
    group.command("rename")(rename)
    group.command("delete")(delete)
    app.add_typer(group, name="runs")
    app.command("results")(results)


def runs(context: typer.Context, chosen: FilterOptions) -> None:
    """List every run in the store, oldest first."""
    if context.invoked_subcommand is not None:
        place = f"they stand behind `{context.invoked_subcommand}`, where it takes them"
        options.refuse(context, names(FilterOptions), place)
        return
    location = options.existing_store(chosen.store)
    if is_empty_file(location):
        if not chosen.as_json:
            typer.echo(no_run_in(location))
        return
    from fleetnas.coordinator.records.plan import kind_of
    from fleetnas.coordinator.report.stored_outcome import stored_totals
    from fleetnas.coordinator.view.output import output_console
    from fleetnas.coordinator.view.tables import word_table

    opened = options.open_to_read(chosen.store)
    try:
        stored = opened.runs()
        found = chosen.wanted(stored)
        named = any(run.name is not None for run in found)
        rows: list[tuple[str, ...]] = []
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
            if chosen.as_json:
                line = {"run_id": run.run_id, "created_unix_s": run.created_unix_s, "supernet": run.supernet}
                line |= {"kind": kind_of(run), "name": run.name}
                typer.echo(json.dumps({**line, "targets": targets, "status": run.status, "met": met, "asked": asked}))
            begun = time.strftime("%Y-%m-%d %H:%M", time.gmtime(run.created_unix_s))
            counts = "?" if met is None else f"{met} of {asked}"
            cells = (begun, kind_of(run), run.supernet, targets, run.status, counts)
            rows.append((run.run_id, *((run.name or "",) if named else ()), *cells))
        nothing = (
            f"none of the {len(stored)} runs in the store {opened.url} is meant; see them all with `fleetnas runs`"
        )
        if not stored:
            nothing = no_run_in(opened.url)
    finally:
        opened.close()
    if not chosen.as_json:
        console = output_console()
        headings = ("Run", *(("Name",) if named else ()), "Begun (UTC)", "Kind", "Supernet", "Targets", "Status", "Met")
        console.print(word_table(headings, rows, console.width) if found else nothing, soft_wrap=not found)


def rename(
    run: _Run,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Its new name; without one, the run has none any more.")
    ] = None,
    store: options.Store = None,
) -> None:
    """Give a run another name."""
    opened = _opened_to_change(store)
    try:
        found = opened.named_runs.find(run)
        opened.named_runs.rename(found.run_id, name)
    finally:
        opened.close()
    typer.echo(f"run {found.run_id} is now named {name}" if name is not None else f"run {found.run_id} has no name now")


def delete(
    run: Annotated[list[str], typer.Argument(metavar="RUN", help=options.RUN_HELP)],
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    store: options.Store = None,
) -> None:
    """Delete runs with all that was measured in them.

    Files that they wrote stay. A run that a coordinator works on is not deleted.
    """
    opened = _opened_to_change(store)
    try:
        # All are found before the first is deleted: `latest` means the latest of now.
        found = {each.run_id: each for each in map(opened.named_runs.find, run)}
        for run_id, each in found.items():
            opened.named_runs.claim_to_delete(run_id)
            content = opened.named_runs.content(run_id)
            named = f" ({each.name})" if each.name is not None else ""
            typer.echo(
                f"run {run_id}{named}, {each.status}: {content.settings} device settings, {content.measurements:,} "
                f"measurements, {content.winners} decided targets"
            )
        if not yes and not _confirmed(len(found)):
            typer.echo("nothing was deleted")
            raise typer.Exit(1)
        for run_id in found:
            opened.named_runs.delete(run_id)
            typer.echo(f"deleted run {run_id}")
    finally:
        opened.close()


def _confirmed(count: int) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("deleting a run cannot be undone, and nobody can be asked here; give --yes")
    text = "this run" if count == 1 else f"these {count} runs"
    return typer.confirm(f"delete {text}? Later searches learn nothing from what was measured there")


def _opened_to_change(store: str | None) -> MeasurementStore:
    from fleetnas.coordinator.store.store import MeasurementStore

    return MeasurementStore.open(options.existing_store(store))


def _unix_s(text: str) -> float:
    try:
        found = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"--since {text[:40]!r} is no date; give one such as 2026-05-31 or 2026-05-31T18:00") from None
    return (found if found.tzinfo is not None else found.replace(tzinfo=datetime.timezone.utc)).timestamp()


def _asked(plan: object, targets: str) -> int:
    """Count the targets that a stored plan asks for on each device setting, as far as it can be read."""
    from fleetnas.coordinator.records.targets import TargetRequest

    given = plan.get("architectures") if isinstance(plan, dict) else None
    if isinstance(given, list) and given:
        return len(given)
    return 0 if targets == "?" else TargetRequest.parse_stored(targets).count


def results(
    run: options.ReadRun = LATEST,
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
        found = options.run_to_read(opened, run)
        print_summary(output_console(), outcome_of(opened, found.run_id))
        if out is not None:
            check_folder("--out", out)
            models = stored_models(settings_of(found))
            for remark in write_artifacts(opened, found.run_id, out, models):
                typer.echo(remark, err=True)
            typer.echo(f"results and model files: {out}")
            if tracker is not None:
                typer.echo(log_run(tracker, out, found.run_id))
    finally:
        opened.close()
