"""A stored run to go on with: claimed, and with the way to its devices that it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fleetnas.coordinator.app.local_device import LOCAL_FLEET, LocalDevice
from fleetnas.coordinator.app.request import FleetAccess
from fleetnas.coordinator.app.run_choice import claimed_run
from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.connection import ConnectionOptions, is_configured
from fleetnas.coordinator.cli.search.fleet import FleetOptions
from fleetnas.coordinator.records.plan import RunKind, settings_of
from fleetnas.coordinator.records.run_connection import RunConnection
from fleetnas.coordinator.store.store import MeasurementStore

if TYPE_CHECKING:
    from fleetnas.coordinator.records.stored import RunRecord


@dataclass(frozen=True)
class ResumedAt:
    """A claimed run, and the way to its devices. The claim ends with the store."""

    store: MeasurementStore
    run_id: str
    devices_at: FleetAccess | LocalDevice


def claim_resumed(
    context: typer.Context,
    store: str,
    which: str,
    *,
    kind: RunKind,
    connection: ConnectionOptions,
    fleet: FleetOptions,
    local: LocalDevice | None,
) -> ResumedAt:
    """Claim the run to resume; its broker and fleet hold where the command line names no others.

    Args:
        context: of the command.
        store: file or URL of the store.
        which: id, name or beginning of one of these, or `latest`.
        kind: of the latest run.
        connection: options of the command line.
        fleet: options of the command line.
        local: this device, where `--local` was given.

    Raises:
        UsageError: there is no such run, another coordinator works on it, or it does not say where its fleet is.
    """
    asked = LOCAL_FLEET if local is not None else connection.fleet
    if local is None and asked is None and connection.names_a_broker:
        asked = connection.connection().fleet
    opened = MeasurementStore.open(store)
    try:
        run = claimed_run(opened, which, asked, kind)
        at = local if local is not None else _devices_at(run, options.given(context), connection, fleet)
        return ResumedAt(opened, run.run_id, at)
    except BaseException:
        opened.close()
        raise


def _devices_at(
    run: RunRecord, given: dict[str, str], connection: ConnectionOptions, fleet: FleetOptions
) -> FleetAccess | LocalDevice:
    kept = settings_of(run).connection
    if not connection.names_a_broker:
        if kept is not None and kept.local:
            folder = kept.state_folder
            return LocalDevice((), Path(folder) if folder is not None else None)
        if kept is None and run.fleet == LOCAL_FLEET and not is_configured():
            return LocalDevice()
    return fleet.access(connection, kept=kept or RunConnection(), fleet=run.fleet, given=given)
