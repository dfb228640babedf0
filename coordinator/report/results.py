"""The schema of `results.json`; every field is described in `docs/results.md`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from coordinator.report.outcome import CampaignOutcome, DeviceOutcome, DeviceStatus, TargetOutcome
from coordinator.view.snapshot import PredictorError
from device_profiles.profile import DeviceProfile
from fleet_protocol.architecture import Architecture
from fleet_protocol.messages import RuntimeSetting

RESULTS_SCHEMA_VERSION: Literal[1] = 1

RunStatus = Literal["running", "complete", "partial", "failed"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PredictorRecord(_Record):
    """Held-out error of a latency predictor."""

    mape_percent: float = Field(description="mean absolute percentage error, held out")
    spearman: float | None = Field(description="rank correlation, held out; null where undefined")
    held_out: int = Field(description="measurements that the error is taken over")

    @classmethod
    def of(cls, error: PredictorError) -> PredictorRecord:
        """From what the predictor reports."""
        return cls(mape_percent=error.mape_percent, spearman=error.spearman, held_out=error.held_out)


class LearningRecord(PredictorRecord):
    """The same after so many measurements."""

    measurements: int = Field(description="measurements that it had learned from")


class FailureRecord(_Record):
    """A measurement that failed on its device."""

    task_id: str
    attempt: int
    architecture: Architecture
    reason: str = Field(description="one word, such as timeout or crashed")
    detail: str = Field(description="the device's own text")


class TargetRecord(_Record):
    """One latency target. Latencies are medians in milliseconds at batch 1."""

    target_ms: float
    met: bool = Field(description="verified_ms is not null and at most target_ms; never taken from a prediction")
    reason: str = Field(description="why it was not met; empty when it was")
    architecture: Architecture | None = Field(description="in OFA's keys: ks, e, d, r, w")
    predicted_ms: float | None = Field(description="by the latency predictor")
    measured_ms: float | None = Field(description="while searching")
    verified_ms: float | None = Field(description="fresh re-measurement of the file named by sha256")
    predicted_accuracy: float | None = Field(description="top-1 in [0, 1], by the bundle's accuracy predictor")
    accuracy: float | None = Field(description="top-1 in [0, 1] on held-out images, with the exported file")
    accuracy_images: int | None = Field(description="images that accuracy was evaluated on")
    energy_mj: float | None = Field(
        default=None, description="per inference, when the file was verified; null where the board has no meter"
    )
    parameters: int | None = Field(description="weights and biases, batch norm folded")
    macs: int | None = Field(description="multiply-accumulates of one image")
    peak_activation_bytes: int | None = Field(description="largest sum of live activations, fp32, one image")
    model: str | None = Field(description="path of the model file, relative to results.json; null when there is none")
    model_bytes: int | None = Field(description="size of the model file")
    sha256: str | None = Field(description="hash of the file that the device measured, and of the model file")

    @model_validator(mode="after")
    def _met_follows_verification(self) -> TargetRecord:
        within = self.verified_ms is not None and self.verified_ms <= self.target_ms
        if self.met != within:
            raise ValueError(
                f"`met` must follow from `verified_ms`: it is {self.met} for a target of {self.target_ms} ms "
                f"verified at {self.verified_ms} ms; the file was altered, write it again from the run"
            )
        return self


class DeviceRecord(_Record):
    """One device setting."""

    device: str = Field(description="name of the agent")
    runtime: str = Field(description="label of the runtime setting, unique per device")
    setting: RuntimeSetting = Field(description="the runtime setting in full")
    status: DeviceStatus
    reason: str = Field(description="why it was lost or failed; empty when it finished")
    measurements: int = Field(description="taken to search: what the budget counts")
    verifications: int = Field(description="fresh re-measurements of winners")
    sentinels: int = Field(description="measurements of the sentinel subnet, which watches drift")
    predictor: PredictorRecord | None = Field(description="null when too little was measured to tell")
    learning: tuple[LearningRecord, ...] = Field(description="error of the predictor as it learned")
    targets: tuple[TargetRecord, ...]
    failures: tuple[FailureRecord, ...]
    wire_bytes: int | None = Field(description="bytes of messages for this setting, without the bundle")
    profile: DeviceProfile | None = Field(description="what the device is")
    versions: dict[str, str] = Field(description="of the agent and its runtimes")


class SupernetRecord(_Record):
    """The supernet that the subnets were cut from."""

    name: str
    sha256: str = Field(description="of the bundle")
    design_space: str
    source: str = Field(description="where the checkpoint came from")
    checkpoint_sha256: str | None


class Results(_Record):
    """All of `results.json`."""

    schema_version: Literal[1] = RESULTS_SCHEMA_VERSION
    run_id: str
    status: RunStatus = Field(description="partial: a target was missed or a device lost; failed: no target was met")
    started_at: datetime = Field(description="ISO 8601, UTC")
    finished_at: datetime | None = Field(description="null while the run goes on")
    strategy: str = Field(description="search strategy")
    budget: int = Field(description="measurements allowed per device setting before verification")
    bounds: dict[str, float] = Field(description="what every winner keeps beside its latency target")
    supernet: SupernetRecord
    versions: dict[str, str] = Field(description="of fleetnas and what it stands on, on the coordinator")
    fleet: tuple[DeviceRecord, ...]

    @property
    def targets_met(self) -> int:
        """Over the whole fleet."""
        return sum(target.met for device in self.fleet for target in device.targets)

    @property
    def target_count(self) -> int:
        """Over the whole fleet."""
        return sum(len(device.targets) for device in self.fleet)


#: Path, relative to results.json, and size of a target's model file, or None where there is no such file.
ModelLookup = Callable[[DeviceOutcome, TargetOutcome], tuple[str, int] | None]


def results_of(outcome: CampaignOutcome, model_of: ModelLookup) -> Results:
    """The record of an outcome."""
    return Results(
        run_id=outcome.run_id,
        status=run_status(outcome),
        started_at=_moment(outcome.started_s),
        finished_at=None if outcome.finished_s is None else _moment(outcome.finished_s),
        strategy=outcome.strategy,
        budget=outcome.budget,
        bounds=outcome.bounds.given(),
        supernet=SupernetRecord(
            name=outcome.supernet.name,
            sha256=outcome.supernet.sha256,
            design_space=outcome.supernet.design_space,
            source=outcome.supernet.source,
            checkpoint_sha256=outcome.supernet.checkpoint_sha256,
        ),
        versions=outcome.versions,
        fleet=tuple(_device_record(device, model_of) for device in outcome.devices),
    )


def run_status(outcome: CampaignOutcome) -> RunStatus:
    """How a campaign stands, in one word."""
    if outcome.finished_s is None:
        return "running"
    met = [target.met for device in outcome.devices for target in device.targets]
    if not any(met):
        return "failed"
    finished = all(device.status == "finished" for device in outcome.devices)
    return "complete" if finished and all(met) else "partial"


def _device_record(device: DeviceOutcome, model_of: ModelLookup) -> DeviceRecord:
    return DeviceRecord(
        device=device.device,
        runtime=device.setting.label,
        setting=device.setting,
        status=device.status,
        reason=device.reason,
        measurements=device.measurements,
        verifications=sum(row.purpose == "verification" for row in device.rows),
        sentinels=sum(row.purpose == "sentinel" for row in device.rows),
        predictor=None if device.predictor is None else PredictorRecord.of(device.predictor),
        learning=tuple(
            LearningRecord(
                measurements=point.measurements,
                mape_percent=point.error.mape_percent,
                spearman=point.error.spearman,
                held_out=point.error.held_out,
            )
            for point in device.predictor_history
        ),
        targets=tuple(_target_record(device, target, model_of) for target in device.targets),
        failures=tuple(
            FailureRecord(
                task_id=failure.task_id,
                attempt=failure.attempt,
                architecture=failure.architecture,
                reason=failure.reason,
                detail=failure.detail,
            )
            for failure in device.failures
        ),
        wire_bytes=device.wire_bytes,
        profile=device.profile,
        versions=device.versions,
    )


def _target_record(device: DeviceOutcome, target: TargetOutcome, model_of: ModelLookup) -> TargetRecord:
    model, size = model_of(device, target) or (None, None)
    return TargetRecord(
        target_ms=target.target_ms,
        met=target.met,
        reason=target.reason,
        architecture=target.architecture,
        predicted_ms=target.predicted_ms,
        measured_ms=target.measured_ms,
        verified_ms=target.verified_ms,
        predicted_accuracy=target.predicted_accuracy,
        accuracy=target.accuracy,
        accuracy_images=target.accuracy_images,
        parameters=target.parameters,
        macs=target.macs,
        peak_activation_bytes=target.peak_activation_bytes,
        energy_mj=_energy_mj(device, target),
        model=model,
        model_bytes=size,
        sha256=target.sha256,
    )


def _energy_mj(device: DeviceOutcome, target: TargetOutcome) -> float | None:
    """Energy of the last verification of the target's file that has one."""
    found = [
        row.measurement.energy_mj
        for row in device.rows
        if row.purpose == "verification" and row.measurement.model_sha256 == target.sha256
    ]
    return next((energy for energy in reversed(found) if energy is not None), None)


def _moment(unix_s: float) -> datetime:
    return datetime.fromtimestamp(unix_s, tz=timezone.utc)
