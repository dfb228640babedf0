"""The schema of `results.json`; every field is described in `docs/results.md`."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fleetnas.coordinator.records.baselines import AccuracyBasis, SpeedBasis
from fleetnas.coordinator.records.board_share import BoardShare
from fleetnas.coordinator.records.budget import Purpose
from fleetnas.coordinator.records.data_quality import DataQuality
from fleetnas.coordinator.records.predictor_error import PredictorError
from fleetnas.coordinator.records.statuses import RunStatus, SettingStatus
from fleetnas.coordinator.records.stored import ImagePart
from fleetnas.coordinator.records.target_kinds import TargetKind
from fleetnas.coordinator.records.totals import target_totals
from fleetnas.coordinator.records.verdict import meets_kind, meets_target
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.layer_times import Layers
from fleetnas.fleet_protocol.messages import Condition, Quality, RuntimeSetting
from fleetnas.supernet_export.manifest import Preprocessing

RESULTS_SCHEMA_VERSION: Literal[1] = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PredictorResult(_Record):
    """Held-out error of a latency predictor."""

    mape_percent: float = Field(description="mean absolute percentage error, held out")
    spearman: float | None = Field(description="rank correlation, held out; null where undefined")
    held_out: int = Field(description="measurements that the error is taken over")
    transfer_weight: float | None = Field(
        default=None, description="probability that the device is like known ones; null without a learned prior"
    )

    @classmethod
    def of(cls, error: PredictorError) -> PredictorResult:
        """Convert the error that a predictor reports."""
        return cls(
            mape_percent=error.mape_percent,
            spearman=error.spearman,
            held_out=error.held_out,
            transfer_weight=error.transfer_weight,
        )


class LearningResult(PredictorResult):
    """Held-out error of a latency predictor while it learned."""

    measurements: int = Field(description="number of measurements that it had learned from")


class QualityResult(_Record):
    """Counts of a device setting's measurements by quality, verifications included."""

    ok: int = Field(description="steady, and the device at its usual speed")
    noisy: int = Field(description="the median is not certain enough")
    slowed: int = Field(description="the device was slower than it normally is in this run")
    unknown_speed: int = Field(description="of all these, those whose latency at undisturbed speed is not known")
    largest_slowdown: float | None = Field(
        description="latency as it ran over latency at undisturbed speed; null where no measurement gives one"
    )


class RegimeResult(_Record):
    """A lasting speed at which the device ran."""

    since: datetime | None = Field(
        description="ISO 8601, UTC, by the device's own clock; null where its agent did not report one"
    )
    slowdown: float | None = Field(description="median slow-down of its measurements; null where none gives one")
    measurements: int = Field(description="taken at this speed")


class FailureResult(_Record):
    """A measurement that failed on its device."""

    task_id: str
    attempt: int
    counted: bool = Field(description="false where another attempt at the same task was stored before")
    purpose: Purpose
    target_ms: float | None = Field(description="the target that the task was for, where it was for one")
    target: str = Field(default="", description="text of that target, where it is of another kind than latency")
    architecture: Architecture
    reason: str = Field(description="one word, such as timeout or crashed")
    detail: str = Field(description="the device's own text")


class BoardShareResult(_Record):
    """Boards of a class of equal ones that meet a target."""

    met: int = Field(description="boards whose own re-measurement is within it")
    asked: int = Field(description="boards that verified it")
    low: float = Field(description="lower end of the 95 % interval of the share of all such boards (Clopper-Pearson)")
    high: float = Field(description="its upper end")

    @classmethod
    def of(cls, share: BoardShare) -> BoardShareResult:
        """Convert a share."""
        low, high = share.interval
        return cls(met=share.met, asked=share.asked, low=low, high=high)


class BoardResult(_Record):
    """Place of a device in a class of equal boards, which is searched as one device."""

    class_name: str = Field(description="the tag `class:NAME`, or the model of its boards")
    boards: int = Field(description="boards in the class")
    speed: float = Field(description="its latencies over those of the middle board of its class")
    speed_error: float = Field(description="relative standard error of that")
    slow: bool = Field(description="whether it is slower than boards of its class are")


class TargetResult(_Record):
    """One target, or one given subnet. Latencies are medians in milliseconds at batch 1."""

    target_ms: float | None = Field(description="null where a given subnet had no target, and for other kinds")
    target: str = Field(default="", description="text of a target of another kind than latency, such as p95:33")
    kind: TargetKind = Field(default=TargetKind.LATENCY, description="what the target is about")
    label: str = Field(default="", description="the target with its unit, for people; empty where there is none")
    value: float | None = Field(default=None, description="re-measured, in the unit of a target of another kind")
    value_low: float | None = Field(default=None, description="of a percentile, the lower end of its 95 % interval")
    value_high: float | None = Field(default=None, description="the upper end, which decides")
    typical_value: float | None = Field(default=None, description="what decides, at the run's typical slow-down")
    met: bool = Field(
        description="verified_ms is not null and, where there is a target, at most target_ms, and so is typical_ms "
        "where it is known, and certain enough (reason says so); of other kinds the same of value (of a percentile "
        "value_high) and typical_value; never taken from a prediction"
    )
    open: bool = Field(description="not decided yet when this was written")
    reason: str = Field(description="reason why it was not met; empty when it was")
    note: str = Field(description="a remark on a target that is met, such as that it constrains nothing")
    architecture: Architecture | None = Field(description="in OFA's keys: ks, e, d, r, w")
    predicted_ms: float | None = Field(
        description="by the latency predictor, with this subnet's own measurements left out"
    )
    measured_ms: float | None = Field(description="while searching")
    verified_ms: float | None = Field(description="fresh re-measurement of the file named by sha256, as it ran")
    typical_ms: float | None = Field(
        description="the same re-measurement at the typical slow-down of this run under its condition; "
        "null where unknown"
    )
    predicted_accuracy: float | None = Field(description="top-1 in [0, 1], by the bundle's accuracy predictor")
    accuracy: float | None = Field(description="top-1 in [0, 1] on held-out images, with the exported file")
    accuracy_images: int | None = Field(description="images that accuracy was evaluated on")
    selection_accuracy: float | None = Field(
        default=None, description="top-1 in [0, 1] on the selection images, which chose among the candidates"
    )
    selection_images: int | None = Field(default=None, description="number of selection images")
    energy_mj: float | None = Field(default=None, description="per inference, verified; null where it has no meter")
    parameters: int | None = Field(description="weights and biases, batch norm folded")
    macs: int | None = Field(description="multiply-accumulates of one image")
    peak_activation_bytes: int | None = Field(description="largest sum of live activations, fp32, one image")
    model: str | None = Field(description="path of the model file, relative to results.json; null when there is none")
    model_bytes: int | None = Field(description="size of the model file")
    sha256: str | None = Field(description="hash of the file that the device measured, and of the model file")
    layers: Layers = Field(
        default=(), description="times of its layers on the device, with `--profile-winners` and onnxruntime"
    )
    subnet: str | None = Field(
        default=None, description="fingerprint of a subnet that the user gave; null where a subnet was searched"
    )
    boards: BoardShareResult | None = Field(
        default=None, description="boards of its class that meet it; null where it was searched by itself"
    )

    @model_validator(mode="after")
    def _met_follows_verification(self) -> TargetResult:
        refused = not self.met and bool(self.reason or self.open)
        if self.target:
            if self.met != (meets_kind(self.target, self) and not refused):
                raise ValueError(f"`met` is {self.met} against {self.target}; the file was altered, write it again")
        elif self.met != (meets_target(self.target_ms, self.verified_ms, self.typical_ms) and not refused):
            raise ValueError(
                f"`met` must follow from `verified_ms` and `typical_ms`: it is {self.met} for a target of "
                f"{self.target_ms} ms, verified at {self.verified_ms} ms and typically {self.typical_ms} ms; the file "
                "was altered, write it again from the run"
            )
        return self


class ComparisonResult(_Record):
    """A winner against a baseline on the same device setting."""

    target_ms: float | None = Field(description="target of the winner; null where a given subnet has none")
    target: str = Field(default="", description="text of a target of another kind than latency, such as p95:33")
    subnet: str | None = Field(description="fingerprint of a given subnet; null where a subnet was searched")
    speedup: float = Field(description="latency of the baseline over that of the winner")
    speedup_low: float | None = Field(default=None, description="lower end of its 95 % interval; null: not known")
    speedup_high: float | None = Field(default=None, description="upper end of it; null: not known, or none")
    speed_basis: SpeedBasis = Field(
        description="as-ran; undisturbed: at undisturbed speed, as the device was slowed in one of them; slowed: as "
        "they ran although it was slowed, whose undisturbed speed is not known; same-file: both are one file"
    )
    accuracy_points: float | None = Field(description="top-1 of the winner minus the baseline's, points, if known")
    accuracy_basis: AccuracyBasis | None = Field(
        description="evaluated: both on the evaluation images; predicted: both; given: the baseline's by the user"
    )


class BaselineResult(_Record):
    """A network that the user has already, measured on this device setting."""

    name: str = Field(description="as it was named, such as largest, or the file's name")
    latency_ms: float | None = Field(description="median of the middle measurement, as it ran; null: not measured")
    half_width_percent: float | None = Field(description="95 % half-width of that median, in percent")
    p90_ms: float | None
    quality: Quality | None = Field(description="slowed: the device was slower than it normally is")
    undisturbed_ms: float | None = Field(description="at the device's undisturbed speed; null where unknown")
    measurements: int = Field(description="measurements that were made")
    memory_bytes: int | None = Field(
        description="peak of the resident memory that loading and running a model file took; null where unknown"
    )
    model_bytes: int | None = Field(description="size of the file that was measured")
    sha256: str | None = Field(description="hash of the file that was measured")
    predicted_accuracy: float | None = Field(description="top-1 in [0, 1], by the bundle's accuracy predictor")
    accuracy: float | None = Field(description="top-1 in [0, 1], evaluated or given by the user")
    accuracy_images: int | None = Field(description="images that accuracy was evaluated on; null where it was given")
    reason: str = Field(description="reason why it was not measured; empty otherwise")
    comparisons: tuple[ComparisonResult, ...] = Field(description="with every target that was met here")


class DeviceResult(_Record):
    """One device setting."""

    device: str = Field(description="name of the agent")
    runtime: str = Field(description="label of the runtime setting, unique per device")
    setting: RuntimeSetting = Field(description="the runtime setting in full")
    status: SettingStatus = Field(description="running: not finished, also where the run was interrupted")
    reason: str = Field(description="reason why it was lost or failed; empty when it finished")
    condition: Condition = Field(description="condition under which it was measured")
    measurements: int = Field(description="taken to search, failed ones included: what the budget counts")
    verifications: int = Field(description="fresh re-measurements of winners")
    timed_s: float = Field(default=0.0, description="time inside timed inferences of its subnets, about, seconds")
    quality: QualityResult = Field(description="how many measurements were disturbed")
    regimes: tuple[RegimeResult, ...] = Field(description="lasting speeds at which the device ran, the earliest first")
    predictor: PredictorResult | None = Field(description="null when too little was measured to tell")
    learning: tuple[LearningResult, ...] = Field(description="error of the predictor as it learned")
    targets: tuple[TargetResult, ...] = Field(description="the targets that are known, ascending")
    targets_asked: int = Field(description="targets that were asked for, known or not")
    targets_note: str = Field(description="a remark on the targets, such as why they are fewer than were asked for")
    tags: tuple[str, ...] = Field(default=(), description="names that the owner of the device gave it")
    board: BoardResult | None = Field(default=None, description="its class of equal boards; null where it has none")
    failures: tuple[FailureResult, ...]
    baselines: tuple[BaselineResult, ...] = Field(default=(), description="networks of the user's own")
    wire_bytes: int | None = Field(description="bytes of messages for this setting, without the bundle")
    profile: DeviceProfile | None = Field(description="hardware of the device")
    versions: dict[str, str] = Field(description="of the agent and its runtimes")

    @property
    def label(self) -> str:
        """Device and setting, for people."""
        return f"{self.device}/{self.runtime}"

    @property
    def data_quality(self) -> DataQuality:
        """`quality`, with the number of lasting speeds."""
        regimes = max(sum(regime.since is not None for regime in self.regimes), min(len(self.regimes), 1))
        return DataQuality(**self.quality.model_dump(), regimes=regimes)

    @property
    def failed_measurements(self) -> int:
        """Number of tasks that ended with a failure."""
        return sum(failure.counted for failure in self.failures)


class ClassReport(_Record):
    """Answers of one model file to labelled images, class by class.

    A class is named as in the supernet's manifest, or by its number where that has no names.
    """

    part: ImagePart = Field(
        description="the images: `evaluation` images are only reported, `selection` images chose the winner"
    )
    images: int
    accuracy: float = Field(description="top-1 in [0, 1]")
    macro_f1: float = Field(description="mean over the classes of the harmonic mean of precision and recall")
    recall: dict[str, float | None] = Field(
        description="by class, the share of its images that is answered right; null for a class without images"
    )
    confusion: dict[str, dict[str, int]] = Field(
        description="by class, then by answer: the number of images; pairs without images are left out"
    )


class SupernetResult(_Record):
    """The supernet that the subnets were sliced from."""

    name: str
    sha256: str = Field(description="of the bundle")
    design_space: str
    source: str = Field(description="origin of the checkpoint")
    checkpoint_sha256: str | None
    dataset: str | None = Field(default=None, description="what accuracy is about; null in results of version 0.1")
    class_names: tuple[str, ...] | None = Field(
        default=None, description="name of each class, in the order of the logits; null where the bundle has none"
    )
    preprocessing: Preprocessing | None = Field(
        default=None, description="how images are made the network's input; null in results of version 0.1"
    )


class Results(_Record):
    """All of `results.json`."""

    schema_version: Literal[1] = RESULTS_SCHEMA_VERSION
    run_id: str
    run_name: str | None = Field(default=None, description="name that the user gave the run")
    status: RunStatus = Field(
        description="partial: a target was missed or a device lost; failed: no target was met; interrupted: stopped"
    )
    started_at: datetime = Field(description="ISO 8601, UTC")
    finished_at: datetime | None = Field(description="null while the run goes on, and if it was interrupted")
    strategy: str = Field(description="search strategy; measure: the user gave the subnets")
    budget: int = Field(description="measurements allowed per device setting before verification")
    bounds: dict[str, float] = Field(description="bounds that every winner keeps beside its latency target")
    supernet: SupernetResult
    versions: dict[str, str] = Field(description="of fleetnas and its main dependencies, on the coordinator")
    targets_met: int = Field(description="over the whole fleet")
    targets_asked: int = Field(
        description="targets that were asked for over the whole fleet, those of lost and failed devices included"
    )
    rerank: int = Field(
        default=0, description="candidates per target among which selection images chose; 0: predicted accuracy chose"
    )
    accuracy_warnings: tuple[str, ...] = Field(
        default=(), description="what is doubtful about the winners' accuracies, with advice"
    )
    class_reports: dict[str, ClassReport] = Field(
        default_factory=dict, description="by the sha256 of a winner's model file"
    )
    fleet: tuple[DeviceResult, ...]

    @model_validator(mode="after")
    def _totals_follow_the_fleet(self) -> Results:
        totals = target_totals(self.fleet)
        if (self.targets_met, self.targets_asked) != (totals.met, totals.asked):
            raise ValueError(
                f"{self.targets_met} of {self.targets_asked} targets met, but the device settings have {totals.met} of "
                f"{totals.asked}; the file was altered, write it again from the run"
            )
        return self
