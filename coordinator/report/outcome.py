"""The outcome of a campaign as plain data: what the campaign hands to the take-home and the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from coordinator.search.bounds import Bounds
from coordinator.view.events import Purpose
from coordinator.view.snapshot import PredictorError
from device_profiles.profile import DeviceProfile
from fleet_protocol.architecture import Architecture
from fleet_protocol.messages import Measurement, RuntimeSetting

DeviceStatus = Literal["running", "finished", "lost", "failed"]


@dataclass(frozen=True)
class MeasurementRow:
    """One stored measurement: a row of `measurements.csv`."""

    task_id: str
    attempt: int
    purpose: Purpose
    architecture: Architecture
    measurement: Measurement
    predicted_ms: float | None = None
    """Prediction made before the measurement."""
    predicted_std_ms: float | None = None
    predicted_accuracy: float | None = None
    """Top-1 in [0, 1] by the bundle's accuracy predictor."""
    target_ms: float | None = None
    """The target that it was measured for, where it was for one."""


@dataclass(frozen=True)
class FailureRow:
    """One measurement that failed on its device."""

    task_id: str
    attempt: int
    architecture: Architecture
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class PredictorPoint:
    """Held-out error of the predictor after it had learned from `measurements` measurements."""

    measurements: int
    error: PredictorError


@dataclass(frozen=True)
class TargetOutcome:
    """What became of one latency target. Latencies are medians in milliseconds."""

    target_ms: float
    architecture: Architecture | None = None
    """The winner, or the best candidate when the target was missed."""
    predicted_ms: float | None = None
    measured_ms: float | None = None
    verified_ms: float | None = None
    """Fresh re-measurement of the file whose hash is `sha256`."""
    predicted_accuracy: float | None = None
    accuracy: float | None = None
    """Top-1 in [0, 1], evaluated on held-out images with the exported file."""
    accuracy_images: int | None = None
    """How many images it was evaluated on."""
    parameters: int | None = None
    """Weights and biases, batch norm folded."""
    macs: int | None = None
    """Multiply-accumulates of one image."""
    peak_activation_bytes: int | None = None
    """Largest sum of live activations, fp32, one image."""
    sha256: str | None = None
    """Hash of the model file that the device measured."""
    reason: str = ""
    """Why the target was not met."""

    @property
    def met(self) -> bool:
        """Whether the re-measurement, and not the prediction, is within the target."""
        return self.verified_ms is not None and self.verified_ms <= self.target_ms


@dataclass(frozen=True)
class DeviceOutcome:
    """What became of one device setting."""

    device: str
    setting: RuntimeSetting
    status: DeviceStatus
    profile: DeviceProfile | None = None
    versions: dict[str, str] = field(default_factory=dict)
    """Of the agent and its runtime, as it announced them."""
    reason: str = ""
    """Why it was lost or failed."""
    rows: tuple[MeasurementRow, ...] = ()
    """In the order in which they were stored."""
    failures: tuple[FailureRow, ...] = ()
    predictor: PredictorError | None = None
    predictor_history: tuple[PredictorPoint, ...] = ()
    targets: tuple[TargetOutcome, ...] = ()
    wire_bytes: int | None = None
    """Sent and received for this setting's tasks, bundle excluded."""

    @property
    def measurements(self) -> int:
        """How many measurements count against the budget: those taken to search.

        A candidate that stands in for a winner that missed its target is past the budget's end.
        """
        return sum(row.purpose in ("spread", "candidate") and row.target_ms is None for row in self.rows)


@dataclass(frozen=True)
class SupernetProvenance:
    """Which supernet the subnets were cut from."""

    name: str
    sha256: str
    design_space: str
    source: str
    """From the bundle's manifest: where the checkpoint came from."""
    checkpoint_sha256: str | None = None


@dataclass(frozen=True)
class CampaignOutcome:
    """The whole campaign. Times are Unix seconds."""

    run_id: str
    supernet: SupernetProvenance
    strategy: str
    budget: int
    bounds: Bounds
    """What every subnet keeps beside its latency target."""
    started_s: float
    finished_s: float | None
    """None while it runs: a take-home can be written at any time."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of fleetnas and what it stands on, on the coordinator."""
    devices: tuple[DeviceOutcome, ...] = ()
