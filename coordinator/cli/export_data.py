"""`fleetnas export-data`."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fleetnas.coordinator.cli import options
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.output_files import check_file, write_atomically

if TYPE_CHECKING:
    from fleetnas.coordinator.store.store import MeasurementStore


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export-data")(export_data)


def export_data(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE|DIR", help="Into a folder: measurements.csv or .parquet.")
    ],
    run: Annotated[
        list[str] | None,
        typer.Option("--run", metavar="RUN", help="Only this run: an id, a name, `latest`; may be repeated."),
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option("--device", metavar="NAME", help="Only this device; repeatable.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", metavar="csv|parquet", help="Default: by the file's name, else csv.")
    ] = None,
    parameters: Annotated[
        Path | None,
        typer.Option(
            "--parameters",
            metavar="FILE",
            help="Write the settings' hardware parameters too, JSON, for `predictor evaluate --method hardware`.",
        ),
    ] = None,
    raw_times: Annotated[bool, typer.Option(help="With every timed run of every measurement.")] = True,
    store: options.Store = None,
) -> None:
    """Write the stored measurements, one row each.

    To learn from elsewhere, and for `predictor evaluate`; docs/store.md describes the fields.
    """
    from fleetnas.coordinator.store.export_files import Format, write_rows
    from fleetnas.coordinator.store.exported_fields import FIELDS, RAW_TIMES, exported_rows

    chosen = form or ("parquet" if output.suffix.lower() == ".parquet" else "csv")
    if chosen not in ("csv", "parquet"):
        raise UsageError(f"--format is csv or parquet, not {chosen!r}; give one of the two")
    if output.is_dir():
        output /= f"measurements.{chosen}"
    check_file("--output", output, f".{chosen}")
    fields = [field for field in FIELDS if raw_times or field.name != RAW_TIMES]
    if parameters is not None:
        check_file("--parameters", parameters, ".json")
    opened = options.open_to_read(store)
    try:
        runs = list(dict.fromkeys(opened.named_runs.find(text).run_id for text in run or ()))
        count = write_rows(exported_rows(opened, runs, device or ()), fields, output, cast(Format, chosen))
        if parameters is not None:
            write_atomically(parameters, _hardware(opened, runs, device or ()))
    finally:
        opened.close()
    typer.echo(f"{output}: {count:,} measurements")


def _hardware(store: MeasurementStore, runs: Collection[str], devices: Collection[str]) -> bytes:
    """Hardware parameters per device setting, as JSON; of all runs and devices where none is named."""
    from fleetnas.coordinator.predictors.hardware_transfer import profile_parameters

    found = {
        f"{record.device}/{record.setting.label}": profile_parameters(record.info.profile, record.setting)
        for run in store.runs()
        if not runs or run.run_id in runs
        for record in store.devices(run.run_id)
        if not devices or record.device in devices
    }
    return json.dumps(found, indent=2).encode() + b"\n"
