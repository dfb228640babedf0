"""Targets and bounds of single devices, tags or patterns of a run, beside those of the whole run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.device_patterns import matches
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import AgentInfo


def parsed_targets(value: object) -> object:
    """Read targets that are stored as text."""
    if not isinstance(value, str):
        return value
    try:
        return TargetRequest.parse_stored(value)
    except UsageError as error:
        raise ValueError(str(error)) from None


#: Targets, stored as the text that `TargetRequest.parse` reads, such as `20,30`, `auto:4` or `p95:33`.
StoredTargets = Annotated[TargetRequest, BeforeValidator(parsed_targets), PlainSerializer(str, return_type=str)]


class DeviceTargets(BaseModel):
    """Targets and bounds of the devices that a name, a pattern or a tag names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field(min_length=1, max_length=200, description="name, pattern such as pi4-*, or tag:NAME")
    targets: StoredTargets
    bounds: Bounds = Field(default=Bounds(), description="they hold beside those of the run")


def tags_of(info: AgentInfo) -> frozenset[str]:
    """Return the tags that an agent announces."""
    return frozenset(info.tags)


def entry_for(entries: Sequence[DeviceTargets], device: str, info: AgentInfo) -> DeviceTargets | None:
    """Return the entry that names a device: its own name before the first pattern or tag; None where there is none."""
    exact = next((entry for entry in entries if entry.device == device), None)
    if exact is not None:
        return exact
    tags = tags_of(info)
    return next((entry for entry in entries if matches(entry.device, device, tags)), None)


def unknown_entries(entries: Sequence[DeviceTargets], infos: Iterable[AgentInfo]) -> list[str]:
    """Return the entries that name none of these agents."""
    known = [(info.agent, tags_of(info)) for info in infos]
    return [entry.device for entry in entries if not any(matches(entry.device, name, tags) for name, tags in known)]
