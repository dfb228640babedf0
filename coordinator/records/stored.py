"""What the store takes and gives: plain frozen values, free of the database."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from fleetnas.coordinator.records.budget import Purpose
from fleetnas.coordinator.records.totals import DeviceStatus as DeviceStatus
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import AgentInfo, Failed, Measurement, RuntimeSetting, TaskKey

RunStatus = Literal["running", "complete", "partial", "failed", "interrupted"]

#: What came of one attempt at a task.
Outcome: TypeAlias = Measurement | Failed


@dataclass(frozen=True)
class RunRecord:
    """One campaign. `settings` is what a resumed run needs to go on as it began, as JSON."""

    run_id: str
    fleet: str
    supernet: str
    bundle_sha256: str
    settings: dict[str, Any]
    created_unix_s: float
    status: RunStatus = "running"
    finished_unix_s: float | None = None


@dataclass(frozen=True)
class DeviceRecord:
    """One device setting of a run."""

    run_id: str
    device: str
    setting: RuntimeSetting
    info: AgentInfo
    status: DeviceStatus = "running"
    reason: str = ""
    learning: tuple[tuple[int, float, float | None, int], ...] = ()
    """Held-out error as the predictor learned: measurements, MAPE in percent, rank correlation, held out."""
    wire_bytes: int = 0
    """Sent and received for its tasks, bundle excluded."""
    targets_ms: tuple[float, ...] | None = None
    """The targets that the request came down to, ascending; None before that."""
    targets_note: str = ""
    """What is to be said of them, such as why they are fewer than were asked for."""


@dataclass(frozen=True)
class TaskRecord:
    """One subnet to be measured on one device setting. Latencies are milliseconds."""

    task_id: str
    run_id: str
    device: str
    setting_label: str
    purpose: Purpose
    architecture: Architecture
    target_ms: float | None = None
    """The target that a verification is for."""
    predicted_ms: float | None = None
    predicted_std_ms: float | None = None
    predicted_accuracy: float | None = None
    model_sha256: str | None = None
    """The file that a verification must measure."""
    calibration: bytes | None = None
    """Batch-norm statistics of that file, so that it can be built again."""
    attempt: int = 0
    """Attempts handed out so far."""


@dataclass(frozen=True)
class OutcomeRecord:
    """What one attempt at a task brought, as stored."""

    task: TaskRecord
    key: TaskKey
    outcome: Outcome
    stored_unix_s: float
    number: int = 0
    """Grows in the order of arrival."""
    refused: str = ""
    """Why what is stored cannot be used; `outcome` is then a failure that says so."""


@dataclass(frozen=True)
class Arrival:
    """What one attempt at a task brought, as it is handed to the store."""

    key: TaskKey
    outcome: Outcome
    stored_unix_s: float


@dataclass(frozen=True)
class LatencyRecord:
    """One measured latency without all that was measured beside it."""

    device: str
    setting_label: str
    architecture: Architecture
    latency_ms: float
    """At the device's undisturbed speed."""


@dataclass(frozen=True)
class WinnerRecord:
    """What became of one target on one device setting; its keys are those of `TargetOutcome`."""

    run_id: str
    device: str
    setting_label: str
    target_ms: float
    met: bool
    fields: dict[str, Any] = field(default_factory=dict)
