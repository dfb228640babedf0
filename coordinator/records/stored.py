"""Records that the store takes and returns: plain frozen values, free of the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from fleetnas.coordinator.records.board_place import BoardPlace
from fleetnas.coordinator.records.budget import Purpose
from fleetnas.coordinator.records.precision import AskedPrecision
from fleetnas.coordinator.records.predictor_error import PredictorPoint
from fleetnas.coordinator.records.statuses import RunStatus, SettingStatus
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import AgentInfo, Failed, Measurement, RuntimeSetting, TaskKey
from fleetnas.supernet_export.evaluation.answers import ClassAnswers

#: Outcome of one attempt at a task.
Outcome: TypeAlias = Measurement | Failed
#: Images of an evaluation: those that choose winners, or those that are only reported.
ImagePart: TypeAlias = Literal["selection", "evaluation"]


@dataclass(frozen=True)
class RunRecord:
    """One campaign. `settings` is the JSON of `RunSettings`, with which a resumed run continues as it began."""

    run_id: str
    fleet: str
    supernet: str
    bundle_sha256: str
    settings: dict[str, Any]
    created_unix_s: float
    status: RunStatus = RunStatus.RUNNING
    finished_unix_s: float | None = None
    name: str | None = None
    """Chosen by its user; of one run alone."""


@dataclass(frozen=True)
class DeviceRecord:
    """One device setting of a run."""

    run_id: str
    device: str
    setting: RuntimeSetting
    info: AgentInfo
    status: SettingStatus = SettingStatus.RUNNING
    reason: str = ""
    learning: tuple[PredictorPoint, ...] = ()
    """Held-out error as the predictor learned, in that order."""
    wire_bytes: int = 0
    """Sent and received for its tasks, bundle excluded."""
    targets_ms: tuple[float, ...] | None = None
    """The resolved targets, ascending; None before they are resolved, and where given subnets are measured."""
    targets_note: str = ""
    """A remark on them, such as why they are fewer than were asked for."""
    board: BoardPlace | None = None
    """Its place in a class of equal boards; None: it is searched by itself."""
    targets: tuple[str, ...] | None = None
    """Its targets of other kinds than latency, such as `p95:33`; None before they are known, and of earlier runs."""


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
    """Number of attempts dispatched so far."""
    asked_half_width_percent: float | None = None
    """95 % half-width that the measurement was asked to reach; None: that of the run's protocol."""
    asked_sessions: int | None = None
    """Runtime sessions to average over; None: those of the run's protocol."""
    target: str = ""
    """Text of the target that it is for, where that is of another kind than latency, such as `p95:33`."""
    asked_percentiles: tuple[float, ...] | None = None
    """Percentiles of run times that the measurement was asked for."""

    @property
    def asked_precision(self) -> AskedPrecision | None:
        """The precision that the measurement was asked for; None: that of the run's protocol."""
        if self.asked_half_width_percent is None or self.asked_sessions is None:
            return None
        return AskedPrecision(self.asked_half_width_percent, self.asked_sessions)


@dataclass(frozen=True)
class OutcomeRecord:
    """The stored outcome of one attempt at a task."""

    task: TaskRecord
    key: TaskKey
    outcome: Outcome
    stored_unix_s: float
    number: int = 0
    """Grows in the order of arrival."""
    refused: str = ""
    """Reason why the stored measurement cannot be used; `outcome` is then a failure with that reason."""


@dataclass(frozen=True)
class Arrival:
    """The outcome of one attempt at a task, before it is stored."""

    key: TaskKey
    outcome: Outcome
    stored_unix_s: float


@dataclass(frozen=True)
class LatencyRecord:
    """One measured latency without the other values of its measurement."""

    device: str
    setting_label: str
    architecture: Architecture
    latency_ms: float
    """At the device's undisturbed speed."""


@dataclass(frozen=True)
class WinnerRecord:
    """A decided target of one device setting: its winner, its best candidate, or a subnet that the user gave.

    Latencies are milliseconds.
    """

    run_id: str
    device: str
    setting_label: str
    target_ms: float | None
    """None where a given subnet is compared with no target."""
    status: TargetStatus
    architecture: Architecture | None = None
    """The winner, or the best candidate when the target was missed."""
    predicted_ms: float | None = None
    """By the latency predictor, with this subnet's own measurements left out."""
    measured_ms: float | None = None
    verified_ms: float | None = None
    """Fresh re-measurement of the file whose hash is `sha256`, as it ran."""
    typical_ms: float | None = None
    """The re-measurement at the typical slow-down of the run; None where that is not known."""
    predicted_accuracy: float | None = None
    """Top-1 in [0, 1] by the bundle's accuracy predictor."""
    accuracy: float | None = None
    """Top-1 in [0, 1], evaluated on held-out images with the exported file."""
    accuracy_images: int | None = None
    """Number of images that it was evaluated on."""
    parameters: int | None = None
    """Weights and biases, batch norm folded."""
    macs: int | None = None
    """Multiply-accumulates of one image."""
    peak_activation_bytes: int | None = None
    """Largest sum of live activations, fp32, one image."""
    sha256: str | None = None
    """Hash of the model file that the device measured."""
    reason: str = ""
    """Reason why the target was not met."""
    note: str = ""
    """A remark on a target that was met."""
    subnet: str = ""
    """Fingerprint of a subnet that the user gave; empty where a subnet was searched."""
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

    @property
    def met(self) -> bool:
        """Whether a re-measurement met the target."""
        return self.status is TargetStatus.MET


@dataclass(frozen=True)
class EvaluationRecord:
    """The answers of one model file to selection or evaluation images."""

    run_id: str
    fingerprint: str
    """Of the architecture."""
    runtime: str
    precision: str
    part: ImagePart
    classes: int
    images: int
    answers: bytes
    """`ClassAnswers.packed`."""

    @property
    def file_key(self) -> tuple[str, str, str]:
        """Key of the model file within the run: threads and the like change its run, not its content."""
        return self.fingerprint, self.runtime, self.precision

    @property
    def class_answers(self) -> ClassAnswers:
        """The answers, unpacked on demand."""
        return ClassAnswers(self.classes, self.images, self.answers)
