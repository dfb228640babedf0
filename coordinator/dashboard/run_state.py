"""State of one run as the pages show it, from its store or from what its coordinator publishes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fleetnas.coordinator.records.budget import Purpose
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.snapshot import DeviceSnapshot, Snapshot
from fleetnas.coordinator.records.statuses import RunStatus
from fleetnas.coordinator.records.stored import DeviceRecord, OutcomeRecord, WinnerRecord
from fleetnas.coordinator.records.totals import TargetTotals, target_totals
from fleetnas.coordinator.view import wording
from fleetnas.fleet_protocol.messages import Failed, Measurement

#: Device and label of the runtime setting.
SettingKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Point:
    """One stored measurement, as the figures and tables show it. Latencies are milliseconds."""

    task_id: str
    purpose: Purpose
    fingerprint: str
    """Of the architecture."""
    at_unix_s: float
    """When its device finished it, by the device's clock."""
    measured_ms: float
    half_width_percent: float
    quality: str
    predicted_ms: float | None
    """Prediction made before the measurement."""
    slowdown: float | None
    """Latency over that at undisturbed speed; None where the latter is not known."""
    temperature_c: float | None
    accuracy: float | None
    """Predicted top-1 in [0, 1]."""
    target: str
    """Name of the target that it was measured for; empty where it was for none."""
    lasting_since_unix_s: float
    """Beginning of the lasting speed at which it was taken; 0 where its agent reported none."""

    @property
    def searched(self) -> bool:
        """Whether it was measured to search, and not to verify a winner."""
        return self.purpose != "verification"


@dataclass(frozen=True, slots=True)
class Failure:
    """One measurement that failed on its device."""

    task_id: str
    fingerprint: str
    at_unix_s: float
    reason: str
    detail: str


@dataclass(frozen=True)
class RunState:
    """Everything that the pages of one run show. Times are Unix seconds."""

    snapshot: Snapshot
    status: RunStatus
    version: int
    """Another one after every change of measurements, winners or device settings; never that of another state."""
    kind: str = "search"
    name: str = ""
    """As the user gave it; may be empty."""
    plan: CampaignPlan | None = None
    """None where the run is known from the broker alone."""
    dataset: str | None = None
    """What accuracy is about."""
    bundle_sha256: str = ""
    finished_unix_s: float | None = None
    records: Mapping[SettingKey, DeviceRecord] = field(default_factory=dict)
    winners: Mapping[SettingKey, tuple[WinnerRecord, ...]] = field(default_factory=dict)
    points: Mapping[SettingKey, tuple[Point, ...]] = field(default_factory=dict)
    """In the order in which they were stored."""
    failures: Mapping[SettingKey, tuple[Failure, ...]] = field(default_factory=dict)
    events: tuple[tuple[float, str], ...] = ()
    """The latest, oldest first: time and text."""
    from_broker: bool = False
    """Whether the device settings are those that the coordinator publishes now."""
    note: str = ""
    """A remark such as a store that cannot be read now."""

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self.snapshot.run_id

    @property
    def running(self) -> bool:
        """Whether the run has not ended."""
        return self.status is RunStatus.RUNNING

    @property
    def stored(self) -> bool:
        """Whether it is in this dashboard's store."""
        return self.plan is not None

    @property
    def totals(self) -> TargetTotals:
        """Targets met, of all that were asked for."""
        return target_totals(self.snapshot.devices)

    @property
    def measurements(self) -> int:
        """Measurements that count against the budgets."""
        return sum(device.measurements for device in self.snapshot.devices)

    @property
    def budget(self) -> int:
        """The most that may count, over all device settings."""
        return sum(device.budget for device in self.snapshot.devices)

    def device(self, key: SettingKey) -> DeviceSnapshot | None:
        """Return one device setting; None where the run has none of that name."""
        return next((each for each in self.snapshot.devices if (each.device, each.setting_label) == key), None)


def point_of(found: OutcomeRecord, outcome: Measurement) -> Point:
    """Make the point of a stored measurement."""
    task = found.task
    return Point(
        task.task_id,
        task.purpose,
        task.architecture.fingerprint,
        outcome.finished_unix_s,
        outcome.median_ms,
        outcome.half_width_percent,
        outcome.quality,
        task.predicted_ms,
        outcome.slowdown,
        outcome.after.temperature_c,
        task.predicted_accuracy,
        wording.target_with_unit(task.target_ms, task.target),
        outcome.regime_unix_s,
    )


def failure_of(found: OutcomeRecord, outcome: Failed) -> Failure:
    """Make the failure of a stored outcome."""
    task = found.task
    return Failure(task.task_id, task.architecture.fingerprint, found.stored_unix_s, outcome.reason, outcome.detail)
