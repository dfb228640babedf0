"""Read a CSV of `fleetnas export-data`, to evaluate latency predictors on."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from fleetnas.coordinator.predictors.prior import Floats
from fleetnas.device_profiles.text_files import open_text
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.error_text import reason_of
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.registry import make_space

#: Device settings that measured fewer subnets in common with the others cannot be compared.
LEAST_SUBNETS = 4
_NEEDED = (
    "space", "space_options", "device", "runtime", "architecture", "undisturbed_ms",
)  # fmt: skip


@dataclass(frozen=True)
class ExportedData:
    """`n` architectures that every device setting has measured."""

    space: DesignSpace
    architectures: list[Architecture]
    latency_ms: Mapping[str, Floats]  #: per setting, (n,)
    families: Mapping[str, str]  #: per setting, its device


def read_exported(path: Path) -> ExportedData:
    """Read a CSV: per device setting each subnet's median over its measurements, at undisturbed speed.

    Raises:
        UsageError: it is no such file, holds no subnet at undisturbed speed, several design spaces, or settings with
            too few subnets in common.
    """
    latency: dict[str, dict[Architecture, list[float]]] = {}
    families: dict[str, str] = {}
    spaces: set[tuple[str, str]] = set()
    subnets = 0
    with _opened(path) as file:
        reader = csv.DictReader(file)
        missing = set(_NEEDED) - set(reader.fieldnames or ())
        if missing:
            raise UsageError(
                f"{path} has no column {', '.join(sorted(missing))}; give one that `fleetnas export-data` wrote"
            )
        try:
            for cells in reader:
                if not cells["architecture"]:  # a model file is no subnet
                    continue
                subnets += 1
                if not cells["undisturbed_ms"]:
                    continue
                spaces.add((cells["space"], _without_resolutions(cells["space_options"])))
                setting = f"{cells['device']}/{cells['runtime']}"
                families[setting] = cells["device"]
                measured = latency.setdefault(setting, {})
                architecture = Architecture.model_validate_json(cells["architecture"])
                measured.setdefault(architecture, []).append(float(cells["undisturbed_ms"]))
        except (ValueError, TypeError, AttributeError, csv.Error) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"line {reader.line_num} of {path} is no measurement: {reason}; export it again") from None
    if not subnets:
        raise UsageError(f"{path} holds no measurement of a subnet; export a run that measured some")
    if not spaces:
        raise UsageError(
            f"{path} holds no subnet whose latency at undisturbed speed is known; let a search measure longer "
            "(--min-time, --min-runs), and export again"
        )
    if len(spaces) > 1:
        found = ", ".join(sorted(name for name, _ in spaces))
        raise UsageError(f"{path} must hold one design space; found {found}; export with --run")
    common = _common(path, latency)
    name, options = spaces.pop()
    space = make_space(name, {**json.loads(options), "resolutions": sorted({one.r for one in common})})
    values = {
        setting: np.array([float(np.median(measured[one])) for one in common]) for setting, measured in latency.items()
    }
    return ExportedData(space, common, values, families)


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        with open_text(path) as file:
            yield file
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read: {reason_of(error)}; give a file that `fleetnas export-data` wrote"
        ) from error


def _without_resolutions(options: str) -> str:
    """Drop the resolutions: runs that searched other resolutions of one space are pooled."""
    found = json.loads(options)
    return json.dumps({name: value for name, value in found.items() if name != "resolutions"}, sort_keys=True)


def _common(path: Path, latency: Mapping[str, Mapping[Architecture, list[float]]]) -> list[Architecture]:
    """Find the subnets measured on every setting, in the order of the first one."""
    first, *others = latency.values()
    common = [one for one in first if all(one in measured for measured in others)]
    if len(common) < LEAST_SUBNETS:
        counts = ", ".join(f"{setting} {len(measured)}" for setting, measured in latency.items())
        raise UsageError(
            f"{path}: the device settings have {len(common)} measured subnets in common, and {LEAST_SUBNETS} are "
            f"needed ({counts}); name the devices that have more by --device, or measure more with one --seed"
        )
    return common
