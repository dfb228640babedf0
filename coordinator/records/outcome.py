"""The outcome of a run as plain data, from which summary, artifacts and report are made."""

from __future__ import annotations

from dataclasses import dataclass, field

from fleetnas.coordinator.records.baselines import BaselineRecord
from fleetnas.coordinator.records.board_place import BoardPlace
from fleetnas.coordinator.records.board_share import BoardShare
from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.budget import Purpose, counts_against_budget
from fleetnas.coordinator.records.data_quality import DataQuality
from fleetnas.coordinator.records.predictor_error import PredictorError, PredictorPoint
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.records.verdict import meets_kind, meets_target
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import Condition, Measurement, RuntimeSetting
from fleetnas.supernet_export.evaluation.answers import ClassAnswers
from fleetnas.supernet_export.manifest import Preprocessing


@dataclass(frozen=True)
class TakenMeasurement:
    """One stored measurement with its task: a row of `measurements.csv`."""

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
    counted: bool = True
    """False where another attempt at the same task was stored before: the search did not learn from this one."""
    target: str = ""
    """Text of that target, where it is of another kind than latency."""


@dataclass(frozen=True)
class FailedMeasurement:
    """One measurement that failed on its device."""

    task_id: str
    attempt: int
    purpose: Purpose
    architecture: Architecture
    reason: str
    detail: str = ""
    target_ms: float | None = None
    counted: bool = True
    """False where another attempt at the same task was stored before."""
    target: str = ""


@dataclass(frozen=True)
class TargetOutcome:
    """The outcome of one target. Latencies are medians in milliseconds."""

    target_ms: float | None
    """None where a given subnet is compared with no target."""
    architecture: Architecture | None = None
    """The winner, or the best candidate when the target was missed."""
    predicted_ms: float | None = None
    """By the latency predictor, with this subnet's own measurements left out."""
    measured_ms: float | None = None
    verified_ms: float | None = None
    """Fresh re-measurement of the file whose hash is `sha256`, as it ran."""
    predicted_accuracy: float | None = None
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
    """Why the target was not met."""
    typical_ms: float | None = None
    """The re-measurement at the slow-down that is typical of the run; None where that is not known."""
    note: str = ""
    """A remark on a target that is met."""
    answers: ClassAnswers | None = None
    """Of the exported file to the evaluation images, which decide nothing."""
    selection: ClassAnswers | None = None
    """Of the exported file to the selection images, where it was chosen by them."""
    open: bool = False
    """Not decided yet: the run goes on, or was interrupted."""
    subnet: str = ""
    """Fingerprint of a subnet that the user gave; empty where a subnet was searched."""
    boards: BoardShare | None = None
    """Boards of the device's class that meet it, of those that verified it; None: it is of no class."""
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
    refused: bool = False
    """The search did not take the re-measurement as proof: its typical speed was too uncertain, or it was withdrawn."""

    @property
    def met(self) -> bool:
        """Whether the re-measurement, and not the prediction, is within the target, and the search decided so."""
        if self.refused:
            return False
        if self.target:
            return meets_kind(self.target, self)
        return meets_target(self.target_ms, self.verified_ms, self.typical_ms)


@dataclass(frozen=True)
class DeviceOutcome:
    """The outcome of one device setting."""

    device: str
    setting: RuntimeSetting
    status: SettingStatus
    profile: DeviceProfile | None = None
    versions: dict[str, str] = field(default_factory=dict)
    """Of the agent and its runtime, as it announced them."""
    reason: str = ""
    """Why it was lost or failed."""
    rows: tuple[TakenMeasurement, ...] = ()
    """In the order in which they were stored."""
    failures: tuple[FailedMeasurement, ...] = ()
    predictor: PredictorError | None = None
    predictor_history: tuple[PredictorPoint, ...] = ()
    targets: tuple[TargetOutcome, ...] = ()
    """The targets that are known, ascending."""
    targets_asked: int = 0
    """Targets that were asked for, known or not."""
    targets_note: str = ""
    """A remark on the targets as a whole."""
    tags: tuple[str, ...] = ()
    """Tags that the owner of the device gave it."""
    board: BoardPlace | None = None
    """Its place in a class of equal boards; None: it was searched by itself."""
    condition_asked: Condition = "as-is"
    baselines: tuple[BaselineRecord, ...] = ()
    """Networks of the user's own, measured beside the winners."""
    wire_bytes: int | None = None
    """Sent and received for this setting's tasks, bundle excluded."""

    def is_equal_board(self, other: DeviceOutcome) -> bool:
        """Whether both were of one class of equal boards, which was searched as one device."""
        if self.board is None or other.board is None:
            return False
        return (self.board.class_name, self.setting) == (other.board.class_name, other.setting)

    @property
    def measurements(self) -> int:
        """Measurements that count against the budget, failed ones included."""
        tried: list[TakenMeasurement | FailedMeasurement] = [*self.rows, *self.failures]
        return sum(row.counted and counts_against_budget(row.purpose, row.target_ms, row.target) for row in tried)

    @property
    def timed_s(self) -> float:
        """Time inside timed inferences of its subnets, about, seconds; the budget counts measurements all the same."""
        return sum(each.runs * each.inner_loops * each.median_ms for each in self.taken) / 1000.0

    @property
    def failed_measurements(self) -> int:
        """Number of tasks that ended with a failure."""
        return sum(failure.counted for failure in self.failures)

    @property
    def taken(self) -> tuple[Measurement, ...]:
        """The measurements that the search learned from, verifications included."""
        return tuple(row.measurement for row in self.rows if row.counted)

    @property
    def quality(self) -> DataQuality:
        """Counts of them by quality."""
        return DataQuality.of(self.taken)

    @property
    def condition(self) -> Condition:
        """Condition of its latest measurement; without one, the condition that was asked for."""
        return self.taken[-1].condition if self.taken else self.condition_asked

    @property
    def label(self) -> str:
        """Device and setting, for people."""
        return f"{self.device}/{self.setting.label}"


@dataclass(frozen=True)
class SupernetProvenance:
    """The supernet that the subnets were sliced from."""

    name: str
    sha256: str
    design_space: str
    source: str
    """Origin of the checkpoint, from the bundle's manifest."""
    checkpoint_sha256: str | None = None
    dataset: str | None = None
    """What accuracy is about; None in runs of earlier versions."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes in the order of the logits; None where the bundle has none."""
    preprocessing: Preprocessing | None = None
    """Preprocessing of images; None in runs of earlier versions."""


@dataclass(frozen=True)
class CampaignOutcome:
    """The outcome of one run. Times are Unix seconds."""

    run_id: str
    supernet: SupernetProvenance
    strategy: str
    budget: int
    bounds: Bounds
    """Bounds that every subnet keeps beside its latency target."""
    started_s: float
    finished_s: float | None
    """None while it runs: artifacts can be written at any time."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of fleetnas and its main dependencies on the coordinator."""
    devices: tuple[DeviceOutcome, ...] = ()
    rerank: int = 0
    """Candidates per target among which selection images chose; 0: none."""
    selected_on_reported: bool = False
    """Whether these were the evaluation images too."""
    class_names: tuple[str, ...] | None = None
    """In the order of the logits; None where they are not known."""
    name: str | None = None
    """Name that the user gave the run."""
    interrupted: bool = False
    """Whether it was stopped before its end: nothing of it is at work, and it can be resumed."""
