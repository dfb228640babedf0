"""The known devices: one JSON file each in this folder, without code in them.

`docs/adding-a-device.md` describes the fields.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from fleetnas.device_profiles.text_files import read_text

_FOLDER = Path(__file__).parent
#: Names of Arm core designs, by implementer and part; not a device.
_ARM_CORES = "arm_cores.json"


class KnownDevice(BaseModel):
    """One data file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(max_length=128)
    model_pattern: str | None = Field(
        default=None, description="regular expression found in what the board calls itself"
    )
    machine_pattern: str | None = Field(default=None, description="regular expression that the machine name matches")
    operating_system_pattern: str | None = Field(default=None, description="regular expression found in its name")
    priority: int = Field(default=0, description="the highest match wins; a generic file has a negative one")
    accelerator: str | None = Field(default=None, max_length=128)
    memory_bandwidth_gb_per_s: float | None = Field(default=None, gt=0, description="theoretical")
    runtimes: tuple[str, ...] = Field(default=(), description="settings worth offering here, best first, as --setting")
    notes: tuple[str, ...] = Field(default=(), description="what a user of this board should know")
    install: tuple[str, ...] = Field(default=(), description="commands that install a runtime here")


@dataclass(frozen=True, slots=True)
class Match:
    """A known device and the name of its file."""

    name: str
    device: KnownDevice

    @property
    def accelerator(self) -> str | None:
        """The device's accelerator, beside its processor; None if it has none."""
        return self.device.accelerator


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All data files."""

    devices: dict[str, KnownDevice]

    def match(self, *, model: str, machine: str, operating_system: str = "") -> Match | None:
        """Return the known device with these names; of several the one of highest priority, then first by name."""
        found = [
            Match(name, device)
            for name, device in sorted(self.devices.items())
            if _fits(device.model_pattern, model)
            and _fits(device.machine_pattern, machine)
            and _fits(device.operating_system_pattern, operating_system)
        ]
        return max(found, key=lambda match: match.device.priority, default=None)


@cache
def load_catalogue(folder: Path = _FOLDER) -> Catalogue:
    """Read every data file of `folder`; `pydantic.ValidationError` names the field of one that is wrong."""
    files = [path for path in sorted(folder.glob("*.json")) if path.name != _ARM_CORES]
    return Catalogue({path.stem: KnownDevice.model_validate_json(read_text(path)) for path in files})


@cache
def load_arm_cores() -> dict[str, str]:
    """Return core designs by `implementer/part`, both as `/proc/cpuinfo` writes them, in lower case."""
    names: dict[str, str] = json.loads(read_text(_FOLDER / _ARM_CORES))
    return names


def _fits(pattern: str | None, text: str) -> bool:
    return pattern is None or re.search(pattern, text, re.IGNORECASE) is not None
