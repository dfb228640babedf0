"""One immutable snapshot of a campaign: everything that a view shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from fleetnas.coordinator.records.baselines import BaselineRecord
from fleetnas.coordinator.records.board_place import BoardPlace
from fleetnas.coordinator.records.data_quality import FEWEST_TO_WARN, DataQuality
from fleetnas.coordinator.records.predictor_error import PredictorError
from fleetnas.coordinator.records.run_progress import RunProgress
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.fleet_protocol.messages import ShownPhase

DeviceState = Literal["offline", ShownPhase, "verifying", "done", "lost", "failed", "idle"]
#: States of a device setting that measures no more.
_ENDED: dict[SettingStatus, DeviceState] = {
    SettingStatus.FINISHED: "done",
    SettingStatus.LOST: "lost",
    SettingStatus.FAILED: "failed",
}


def ended_state(status: SettingStatus) -> DeviceState | None:
    """Return the state of a device setting that measures no more; None while it runs."""
    return _ENDED.get(status)


@dataclass(frozen=True)
class TargetSnapshot:
    """One target of one device setting with its best subnet so far, or a subnet that the user gave."""

    target_ms: float | None
    """None where a given subnet is compared with no target."""
    predicted_ms: float | None = None
    """By the latency predictor, with this subnet's own measurements left out."""
    measured_ms: float | None = None
    """Median measured while searching."""
    verified_ms: float | None = None
    """Median of the fresh re-measurement."""
    accuracy: float | None = None
    """Predicted top-1 accuracy in [0, 1]."""
    evaluated_accuracy: float | None = None
    """Top-1 accuracy in [0, 1] on held-out images, with the exported file."""
    met: bool | None = None
    """Taken from the re-measurement; None before verification, False also where the device was lost or failed."""
    reason: str = ""
    """Reason why it is not met, such as `infeasible: the fastest subnet takes 3.1 ms`."""
    typical_ms: float | None = None
    """The re-measurement at the slow-down that is typical of the run; None where that is not known."""
    note: str = ""
    """A remark on a target that is met, such as `constrains nothing: the largest subnet takes 1.2 ms`."""
    subnet: str = ""
    """Fingerprint of a subnet that the user gave; empty where a subnet is searched."""
    target: str = ""
    """Text of a target of another kind than latency, such as `p95:33`; else empty."""
    value: float | None = None
    """What the re-measurement showed, in the unit of such a target; None where it did not tell."""
    value_low: float | None = None
    """Lower end of its 95 % interval, of a percentile."""
    value_high: float | None = None
    """Upper end of that interval, which decides a target for a percentile."""
    typical_value: float | None = None
    """The deciding value at the typical slow-down of the run."""


@dataclass(frozen=True)
class BaselineSnapshot:
    """One network of the user's own on one device setting."""

    name: str
    measured_ms: float | None = None
    """Latency as it ran; None until it is measured, and where it cannot be."""
    reason: str = ""
    """Why it was not measured."""


def baseline_snapshots(records: Iterable[BaselineRecord]) -> tuple[BaselineSnapshot, ...]:
    """Return baselines as views show them."""
    return tuple(
        BaselineSnapshot(
            record.baseline,
            record.measurement.median_ms if record.measurement is not None else None,
            record.reason,
        )
        for record in records
    )


@dataclass(frozen=True)
class DeviceSnapshot:
    """One device setting."""

    device: str
    setting_label: str
    state: DeviceState
    state_detail: str = ""
    """What it does, behind the state: `subnet 1a2b3c for 2 ms`; or why it is idle, offline or lost."""
    temperature_c: float | None = None
    throttled: bool | None = None
    """None where the device has no such sensor."""
    measurements: int = 0
    """Counted against the budget, failed ones included."""
    budget: int = 0
    failures: int = 0
    quarantined: int = 0
    """Subnets that failed twice and are left alone."""
    progress: float | None = None
    """Finished share of the running task, or of the bundle's transfer, in [0, 1]; None where it is not known."""
    predictor_error: PredictorError | None = None
    targets: tuple[TargetSnapshot, ...] = ()
    """The targets that are known: explicit ones from the beginning, automatic ones once they are chosen."""
    targets_asked: int = 0
    """Targets that were asked for, known or not."""
    targets_note: str = ""
    """A remark on the targets as a whole, such as why they are fewer than were asked for."""
    tags: tuple[str, ...] = ()
    """Tags that the owner of the device gave it."""
    quality: DataQuality = field(default_factory=DataQuality)
    board: BoardPlace | None = None
    """Its place in a class of equal boards; None: it is searched by itself."""
    baselines: tuple[BaselineSnapshot, ...] = ()
    """The user's own networks, from the time on at which their measurement begins."""

    @property
    def label(self) -> str:
        """Device and setting, for people."""
        return f"{self.device}/{self.setting_label}"

    @property
    def ended(self) -> bool:
        """Whether it measures no more."""
        return self.state in _ENDED.values()

    @property
    def often_slowed(self) -> bool:
        """Whether views warn that more than a quarter was slowed; at the beginning, one of one would be."""
        return self.quality.often_slowed and (self.ended or self.quality.measured >= FEWEST_TO_WARN)


@dataclass(frozen=True)
class Snapshot:
    """The whole campaign at one moment. Times are Unix seconds."""

    run_id: str
    supernet: str
    """Name or path of the bundle, as the user gave it."""
    started_s: float
    now_s: float
    phase: str
    """Such as `calibrating`, `searching`, `verifying`, `finished`."""
    devices: tuple[DeviceSnapshot, ...] = ()
    log: tuple[str, ...] = ()
    """The coordinator's latest notes, oldest first, such as a broker that cannot be reached."""
    progress: RunProgress | None = None
    """Progress and time left; None before a device takes part, and where it is not known."""

    @property
    def slowed(self) -> list[tuple[str, DataQuality]]:
        """Label and quality of the device settings that views warn about: more than a quarter was slowed."""
        return [(device.label, device.quality) for device in self.devices if device.often_slowed]


def with_baselines(snapshot: Snapshot, records: Iterable[BaselineRecord]) -> Snapshot:
    """Return a snapshot with these baselines on their device settings."""
    known: dict[tuple[str, str], list[BaselineRecord]] = {}
    for record in records:
        known.setdefault((record.device, record.setting_label), []).append(record)
    if not known:
        return snapshot
    devices = (
        replace(device, baselines=baseline_snapshots(known.get((device.device, device.setting_label), ())))
        for device in snapshot.devices
    )
    return replace(snapshot, devices=tuple(devices))
