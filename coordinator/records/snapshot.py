"""One immutable picture of a campaign: all that a view may know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fleetnas.coordinator.records.data_quality import DataQuality

DeviceState = Literal["offline", "fetching", "measuring", "waiting", "verifying", "done", "lost", "failed", "idle"]
#: States of a device setting that measures no more.
ENDED: tuple[DeviceState, ...] = ("done", "lost", "failed")
#: Held-out measurements from which on a predictor's error is worth showing.
FEWEST_HELD_OUT = 8


@dataclass(frozen=True)
class PredictorError:
    """Error of a latency predictor on measurements that it had not seen when it predicted them."""

    mape_percent: float
    """Mean absolute percentage error."""
    spearman: float | None
    """Rank correlation; None where it is undefined (fewer than two samples, or all equal)."""
    held_out: int
    """How many measurements the two figures are taken over."""

    @property
    def tells(self) -> bool:
        """Whether the error is taken over enough measurements to be shown."""
        return self.held_out >= FEWEST_HELD_OUT


@dataclass(frozen=True)
class ProgressSnapshot:
    """Something that takes time."""

    label: str
    """What is going on, such as `bundle to pi4-kitchen`."""
    done: float
    total: float | None = None
    """In the same unit as `done`; None when it is not known."""
    unit: str = ""
    """`bytes` is shown as KB or MB; any other word is shown as it is; empty shows a percentage only."""

    @property
    def fraction(self) -> float | None:
        """Share done in [0, 1], or None when the total is not known."""
        if self.total is None:
            return None
        return 1.0 if self.total <= 0 else min(1.0, max(0.0, self.done / self.total))


@dataclass(frozen=True)
class TargetSnapshot:
    """One latency target of one device setting, with its best subnet so far."""

    target_ms: float
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
    """Why it is not met, such as `infeasible: the fastest subnet takes 3.1 ms`."""
    typical_ms: float | None = None
    """The re-measurement at the slow-down that is typical of the run; None where that is not known."""
    note: str = ""
    """A remark on a target that is met, such as `constrains nothing: the largest subnet takes 1.2 ms`."""


@dataclass(frozen=True)
class DeviceSnapshot:
    """One device setting."""

    device: str
    setting_label: str
    state: DeviceState
    state_detail: str = ""
    """Why it is idle, offline or lost, or what it is doing."""
    temperature_c: float | None = None
    throttled: bool | None = None
    """None where the device has no such sensor."""
    measurements: int = 0
    """Counted against the budget, failed ones included."""
    budget: int = 0
    failures: int = 0
    quarantined: int = 0
    """Subnets that failed twice and are left alone."""
    current_progress: ProgressSnapshot | None = None
    """The running task, or the bundle's transfer."""
    predictor_error: PredictorError | None = None
    targets: tuple[TargetSnapshot, ...] = ()
    """The targets that are known: explicit ones from the beginning, automatic ones once they are chosen."""
    targets_asked: int = 0
    """Targets that were asked for, known or not."""
    targets_note: str = ""
    """A remark on the targets as a whole, such as why they are fewer than were asked for."""
    quality: DataQuality = field(default_factory=DataQuality)

    @property
    def label(self) -> str:
        """Device and setting, for people."""
        return f"{self.device}/{self.setting_label}"

    @property
    def ended(self) -> bool:
        """Whether it measures no more."""
        return self.state in ENDED


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
    progress: tuple[ProgressSnapshot, ...] = ()
    """Work of the coordinator: export, calibration, bundle transfers."""
    log: tuple[str, ...] = ()
    """The coordinator's latest notes, oldest first: what is no event of the search, such as a broker out of reach."""
