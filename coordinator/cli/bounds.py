"""The options that bound the cost of a subnet beside its latency: `--max-macs 300M`, `--max-file-size 20MB`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.fleet_protocol.errors import UsageError

if TYPE_CHECKING:
    from fleetnas.coordinator.records.bounds import Bounds

_COUNTS: Mapping[str, float] = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_SIZES: Mapping[str, float] = {
    "": 1.0,
    "B": 1.0,
    **{f"{prefix}B": 1000.0**power for power, prefix in enumerate("kMG", start=1)},
    **{f"{prefix}iB": 1024.0**power for power, prefix in enumerate("KMG", start=1)},
}
_QUANTITY = re.compile(r"(\d+\.?\d*(?:e\d+)?)\s*([a-z]*)", re.IGNORECASE)


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
            parameters=_quantity("--max-parameters", self.max_parameters, _COUNTS),
            macs=_quantity("--max-macs", self.max_macs, _COUNTS),
            peak_activation_bytes=_quantity("--max-activation-memory", self.max_activation_memory, _SIZES),
            model_bytes=_quantity("--max-file-size", self.max_file_size, _SIZES),
        )


def _quantity(option: str, text: str | None, units: Mapping[str, float]) -> float | None:
    if text is None:
        return None
    known = {unit.lower(): factor for unit, factor in units.items()}
    found = _QUANTITY.fullmatch(text.strip())
    if found is None or found[2].lower() not in known or not float(found[1]):
        raise UsageError(
            f"{option} {text!r} is no quantity above 0; give a number with one of the units "
            f"{', '.join(unit for unit in units if unit)}, or without a unit"
        )
    return float(found[1]) * known[found[2].lower()]
