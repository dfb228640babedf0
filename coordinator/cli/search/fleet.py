"""The options of a search on a fleet, beside its connection."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.coordinator.cli.configuration import CONNECTION_KEYS, Configuration, Setting
from fleetnas.coordinator.cli.connection import ConnectionOptions
from fleetnas.coordinator.fleet.bundle_delivery import DEFAULT_AT_ONCE, DEFAULT_RATE_BYTES_PER_S

if TYPE_CHECKING:
    from fleetnas.coordinator.app.request import FleetAccess
    from fleetnas.coordinator.records.run_connection import RunConnection


@dataclass(frozen=True)
class DeliveryOptions:
    """The way in which agents receive bundles."""

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

    def access(
        self,
        options: ConnectionOptions,
        *,
        kept: RunConnection | None = None,
        fleet: str | None = None,
        given: Collection[str] = (),
    ) -> FleetAccess:
        """Parse the way to the fleet; `UsageError` names the option that cannot be used.

        `kept` is that of a resumed run, and `fleet` its fleet: they hold for all options but those `given` on the
        command line, by their names.
        """
        from fleetnas.coordinator.app.request import FleetAccess
        from fleetnas.coordinator.records.run_connection import RunConnection
        from fleetnas.fleet_protocol.mirrors import check_mirror

        kept = kept or RunConnection()
        found = options.connection(kept=kept_settings(kept, fleet))
        if fleet is not None and options.broker is not None and options.credentials is None and options.fleet is None:
            found = replace(found, fleet=fleet)  # the same run, over another broker
        rate, at_once = kept.bundle_rate_bytes_per_s, kept.bundles_at_once
        return FleetAccess(
            broker=found.broker,
            name=found.fleet,
            signing_key=found.signing_key,
            credentials=found.credentials,
            password_file=found.password_file,
            origin=found.origin,
            mirror=check_mirror(self.mirror) if self.mirror is not None else kept.mirror,
            bundle_rate_bytes_per_s=1e6 * self.bundle_rate if rate is None or "bundle_rate" in given else rate,
            bundles_at_once=self.bundles_at_once if at_once is None or "bundles_at_once" in given else at_once,
            share=self.share or kept.share,
        )


@dataclass(frozen=True)
class FleetOptions(DeliveryOptions):
    """Agents that take part, and the way in which they receive bundles."""

    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            metavar="NAME,...",
            help="Agents that take part, such as pi5,pi4-*,tag:camera (default: all; a resumed run has its own, and "
            "takes these too).",
        ),
    ] = None

    def agents(self) -> tuple[str, ...]:
        """Parse the patterns of agents that take part; empty: all, or those of a resumed run."""
        from fleetnas.coordinator.records.device_patterns import parse_patterns

        return parse_patterns(self.devices, "--devices")


def kept_settings(kept: RunConnection, fleet: str | None) -> Configuration:
    """Return what a run keeps of its connection as settings."""
    values = {**{key: getattr(kept, key, None) for key in CONNECTION_KEYS}, "fleet": fleet}
    return Configuration(
        {key: Setting(value, "the resumed run") for key, value in values.items() if isinstance(value, str)}
    )
