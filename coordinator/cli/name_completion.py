"""Complete the names of runs and devices, which the store knows."""

from __future__ import annotations

from typing import Any

from fleetnas.coordinator.cli.configuration import store_location
from fleetnas.coordinator.store.stored_names import device_names, run_ids, run_names
from fleetnas.fleet_protocol.errors import UsageError

_RUNS = {"run", "resume"}
_DEVICES = {"devices", "device", "distrust", "trust", "prior_without"}


def stored_names(parameter: Any, context: Any, incomplete: str) -> list[str]:
    """Return the names that a run's or a device's option may be completed to; empty for any other option.

    In a list of names, the last one is completed.
    """
    if parameter.name not in _RUNS | _DEVICES:
        return []
    try:
        location = store_location(context.params.get("store"))
    except UsageError:
        return []
    if parameter.name in _RUNS:
        ids = run_ids(location)
        names = (*run_names(location), *ids, *(("latest",) if ids else ()))
        return [name for name in names if name.startswith(incomplete)]
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in device_names(location) if name.startswith(last)]
