"""Findings of the doctor: one line of the report each, and the report itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from fleetnas.agent.host.battery import BatteryRule
from fleetnas.fleet_protocol.errors import FleetnasError
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.fleet_protocol.transports.base import BrokerAddress

Status = Literal["ok", "warning", "broken"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    status: Status
    text: str
    #: The command or the action that fixes it; empty if nothing is wrong.
    fix: str = ""


@dataclass(frozen=True, slots=True)
class DoctorContext:
    """Options under which the device is checked; settings and limits are those that `run` would use."""

    state_folder: Path
    fleet: str
    name: str
    broker: BrokerAddress | None
    settings: tuple[RuntimeSetting, ...] = ()
    memory_limit_bytes: int = 0
    battery: BatteryRule = field(default_factory=BatteryRule)


def report_line(finding: Finding) -> str:
    """Return a finding for people; the fix is on a line of its own, to be copied."""
    line = f"{finding.status:<8} {finding.name:<16} {finding.text}"
    return f"{line}\n{'':<26}-> {finding.fix}" if finding.fix else line


def report_object(findings: list[Finding]) -> dict[str, object]:
    """Return the findings for programs, as a JSON object."""
    return {"status": worst(findings), "checks": [asdict(finding) for finding in findings]}


def worst(findings: list[Finding]) -> Status:
    """Return the worst status of the findings; `ok` if there is none."""
    order: tuple[Status, ...] = ("ok", "warning", "broken")
    return max((finding.status for finding in findings), key=order.index, default="ok")


def finding_of(name: str, error: FleetnasError) -> Finding:
    """Return the finding of an error, whose text gives the fix after the first semicolon."""
    text, _, fix = str(error).partition("; ")
    return Finding(name, "broken", text, fix)
