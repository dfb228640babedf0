"""`fleetnas export-latency`: what a run learned about one device setting, as files for searches without the device."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.coordinator.cli import options
from fleetnas.coordinator.records.run_names import LATEST
from fleetnas.fleet_protocol.errors import UsageError

if TYPE_CHECKING:
    from fleetnas.coordinator.app.latency_export import ExportedLatency


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export-latency")(export_latency)


def export_latency(
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="A device of the run.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder that the files go into.")],
    run: options.ReadRun = LATEST,
    setting: Annotated[
        str | None,
        typer.Option(
            "--setting",
            metavar="SETTING",
            help="Of a device with several, such as onnxruntime,threads=4, or its label.",
        ),
    ] = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Write the latencies of a device as files.

    `fleetnas search --offline --latency-table DIR` searches with the predictor file, at any time and without the
    device. The block tables in DIR/ofa are in OFA's format, for its own code too.
    """
    from fleetnas.coordinator.app.latency_export import export_latency as export
    from fleetnas.coordinator.records.plan import is_search
    from fleetnas.supernet_export.output_files import check_folder

    opened = options.open_to_read(store)
    try:
        run = options.run_to_read(opened, run, is_search).run_id
        is_new = not output.exists()
        check_folder("--output", output)
        try:
            found = export(opened, run, device, setting, output)
        except UsageError:
            if is_new:
                # An empty folder would be taken for latencies.
                with contextlib.suppress(OSError):
                    output.rmdir()
            raise
    finally:
        opened.close()
    if as_json:
        typer.echo(json.dumps(_fields(found)))
        return
    error = f", held-out error {found.held_out_percent:.1f} %" if found.held_out_percent is not None else ""
    typer.echo(f"{found.predictor}: {found.device}/{found.setting}, {found.subnets} measured subnets{error}")
    if found.tables is not None and found.table_error is not None:
        off = found.table_error
        typer.echo(
            f"{found.tables}: block tables; they differ from the predictor by {off.rms_percent:.2f} % (root mean "
            f"square; at most {off.most_percent:.2f} %) on {off.subnets:,} random subnets, since blocks of one shape "
            "share an entry"
        )
    else:
        typer.echo(found.note)
    typer.echo(f"search with it: fleetnas search --offline --latency-table {output} --accuracy BUNDLE --targets MS,...")


def _fields(found: ExportedLatency) -> dict[str, object]:
    error = found.table_error
    return {
        "device": found.device,
        "setting": found.setting,
        "predictor": str(found.predictor),
        "subnets": found.subnets,
        "held_out_percent": found.held_out_percent,
        "tables": str(found.tables) if found.tables is not None else None,
        "table_rms_percent": error.rms_percent if error is not None else None,
        "table_most_percent": error.most_percent if error is not None else None,
        "note": found.note,
    }
