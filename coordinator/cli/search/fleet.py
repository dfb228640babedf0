"""The options of a search on a fleet, beside its connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.coordinator.cli.connection import ConnectionOptions
from fleetnas.coordinator.fleet.bundle_delivery import DEFAULT_AT_ONCE, DEFAULT_RATE_BYTES_PER_S

if TYPE_CHECKING:
    from fleetnas.coordinator.app.request import FleetAccess


@dataclass(frozen=True)
class FleetOptions:
    """Agents that take part, and the way they receive bundles."""

    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            metavar="NAME,...",
            help="Agents that take part, such as pi5,pi4-*,tag:camera (default: all; resumed: those of the run, and "
            "these).",
        ),
    ] = None
    mirror: Annotated[
        str | None,
        typer.Option("--mirror", metavar="URL", help="Where agents may fetch the supernet, see `fleetnas mirror`."),
    ] = None
    bundle_rate: Annotated[
        float,
        typer.Option("--bundle-rate", min=0.01, metavar="MB/S", help="Of supernets through the broker, in all."),
    ] = DEFAULT_RATE_BYTES_PER_S / 1e6
    bundles_at_once: Annotated[
        int,
        typer.Option(
            "--bundles-at-once", metavar="N", min=1, help="Agents that are sent the supernet at the same time."
        ),
    ] = DEFAULT_AT_ONCE
    share: Annotated[
        bool,
        typer.Option("--share", help="Share the fleet's results with other coordinators (MQTT 5; see docs/scale.md)."),
    ] = False

    def agents(self) -> tuple[str, ...]:
        """Parse the patterns of agents that take part; empty: all, or those of a resumed run."""
        from fleetnas.coordinator.records.device_patterns import parse_patterns

        return parse_patterns(self.devices, "--devices")

    def access(self, options: ConnectionOptions) -> FleetAccess:
        """Parse the way to the fleet; `UsageError` names the option that cannot be used."""
        from fleetnas.coordinator.app.request import FleetAccess
        from fleetnas.fleet_protocol.mirrors import check_mirror

        found = options.connection()
        return FleetAccess(
            broker=found.broker,
            name=found.fleet,
            signing_key=found.signing_key,
            credentials=options.credentials,
            mirror=check_mirror(self.mirror) if self.mirror is not None else None,
            bundle_rate_bytes_per_s=1e6 * self.bundle_rate,
            bundles_at_once=self.bundles_at_once,
            share=self.share,
        )
