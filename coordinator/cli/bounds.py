"""The options that bound the cost of a subnet beside its latency: `--max-macs 300M`, `--max-file-size 20MB`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.coordinator.cli.quantities import quantity
from fleetnas.fleet_protocol.units import COUNTS, SIZES

if TYPE_CHECKING:
    from fleetnas.coordinator.records.bounds import Bounds


@dataclass(frozen=True)
class BoundOptions:
    """Bounds as text with units."""

    max_parameters: Annotated[
        str | None,
        typer.Option("--max-parameters", metavar="N", help="Bound on every winner's parameters, such as 4M."),
    ] = None
    max_macs: Annotated[
        str | None,
        typer.Option("--max-macs", metavar="N", help="Bound on its multiply-accumulates per image, such as 300M."),
    ] = None
    max_activation_memory: Annotated[
        str | None,
        typer.Option(
            "--max-activation-memory",
            metavar="SIZE",
            help="Bound on its activations at their peak (fp32), such as 8MiB.",
        ),
    ] = None
    max_file_size: Annotated[
        str | None,
        typer.Option("--max-file-size", metavar="SIZE", help="Bound on its model file (fp32), such as 20MB."),
    ] = None

    def bounds(self) -> Bounds:
        """Parse the bounds; `UsageError` names the option that cannot be read."""
        from fleetnas.coordinator.records.bounds import Bounds

        return Bounds(
            parameters=quantity("--max-parameters", self.max_parameters, COUNTS),
            macs=quantity("--max-macs", self.max_macs, COUNTS),
            peak_activation_bytes=quantity("--max-activation-memory", self.max_activation_memory, SIZES),
            model_bytes=quantity("--max-file-size", self.max_file_size, SIZES),
        )
