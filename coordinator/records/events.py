"""Events of a campaign, one frozen class each; `--json` prints each event as one line.

Every field is documented in `docs/results.md`. Latencies are milliseconds at batch 1, accuracies are shares in
[0, 1], times are Unix seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from fleetnas.coordinator.records.budget import Purpose
from fleetnas.coordinator.records.statuses import EndStatus
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import Quality


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    at_s: float = Field(description="time of the event, in Unix seconds")
    run_id: str = Field(description="the campaign")


class _DeviceEvent(_Event):
    device: str = Field(description="name of the agent")


class _SettingEvent(_DeviceEvent):
    setting: str = Field(description="label of the runtime setting")


class CampaignStarted(_Event):
    """The campaign begins, or is resumed after an interruption."""

    event: Literal["campaign_started"] = "campaign_started"
    supernet: str = Field(description="name or path of the bundle")
    supernet_sha256: str
    strategy: str = Field(description="search strategy, such as bottom-up; measure: the user gave the subnets")
    targets: str = Field(description="the targets as asked for, such as 2,4,8, auto:4, or none")
    devices: tuple[str, ...] = Field(description="device settings, as device/setting")
    budget: int = Field(description="measurements allowed per device setting before verification")
    resumed: bool = Field(default=False, description="stored measurements of an earlier start are used")
    subnets: tuple[str, ...] = Field(
        default=(), description="fingerprints of the subnets that the user gave; empty where subnets are searched"
    )


class DeviceJoined(_DeviceEvent):
    """An agent takes part."""

    event: Literal["device_joined"] = "device_joined"
    model: str = Field(description="model name of the board")
    settings: tuple[str, ...] = Field(description="labels of the settings that it offers")


class DeviceLost(_DeviceEvent):
    """An agent no longer answers."""

    event: Literal["device_lost"] = "device_lost"
    reason: str
    last_seen_s: float | None = Field(default=None, description="last sign of life, in Unix seconds")


class StoreUnavailable(_Event):
    """The store cannot be written: nothing is acknowledged or dispatched until it can."""

    event: Literal["store_unavailable"] = "store_unavailable"
    reason: str


class StoreAvailable(_Event):
    """The store can be written again."""

    event: Literal["store_available"] = "store_available"
    away_s: float = Field(description="for how long it could not, in seconds")


class MeasurementTaken(_SettingEvent):
    """A subnet was measured on its device and stored."""

    event: Literal["measurement"] = "measurement"
    task_id: str
    purpose: Purpose
    architecture: Architecture
    fingerprint: str = Field(description="short name of the architecture")
    predicted_ms: float | None = Field(default=None, description="prediction made before it was measured")
    measured_ms: float = Field(description="median of the timed runs")
    half_width_percent: float = Field(description="95 % half-width of the median")
    quality: Quality
    undisturbed_ms: float | None = Field(default=None, description="at undisturbed speed; null where that is unknown")
    slowdown: float | None = Field(default=None, description="measured_ms over undisturbed_ms")
    temperature_c: float | None = None
    measurements: int = Field(description="taken so far, as counted against the budget")
    budget: int


class MeasurementFailed(_SettingEvent):
    """A subnet could not be measured on its device; the campaign goes on."""

    event: Literal["failure"] = "failure"
    task_id: str
    architecture: Architecture
    fingerprint: str = Field(description="short name of the architecture")
    reason: str = Field(description="one word, such as timeout or crashed")
    detail: str = Field(default="", description="the device's own text")
    failures: int = Field(description="failures so far on this device setting")


class RegimeChanged(_SettingEvent):
    """The device runs at another lasting speed than before; measurements go on."""

    event: Literal["regime_changed"] = "regime_changed"
    since_s: float = Field(description="beginning of the new speed, in Unix seconds by the device's own clock")
    slowdown: float | None = Field(
        description="latency over that at undisturbed speed, in the first measurement that shows the new speed"
    )


class MeasurementsSlowed(_SettingEvent):
    """More than a quarter of the measurements were taken while the device was slowed down; emitted once."""

    event: Literal["measurements_slowed"] = "measurements_slowed"
    slowed: int = Field(description="slowed measurements so far")
    measured: int = Field(description="measurements so far, verifications included")
    largest_slowdown: float | None = Field(description="largest slow-down so far")


class PredictorUpdated(_SettingEvent):
    """The latency predictor learned from new measurements."""

    event: Literal["predictor_updated"] = "predictor_updated"
    mape_percent: float = Field(description="mean absolute percentage error, held out")
    spearman: float | None = Field(description="rank correlation, held out; null where undefined")
    held_out: int = Field(description="measurements that the error is taken over")
    transfer_weight: float | None = Field(
        default=None, description="probability that the device is like known ones; null without a learned prior"
    )
    measurements: int = Field(description="measurements that it has learned from")


class _TargetEvent(_SettingEvent):
    target_ms: float | None = Field(
        description="null where a given subnet is compared with no target, and where it is no latency"
    )
    target: str = Field(default="", description="text of a target of another kind than latency, such as p95:33")
    subnet: str = Field(
        default="", description="fingerprint of a subnet that the user gave; empty where a subnet was searched"
    )


class TargetResolved(_TargetEvent):
    """The search chose a subnet for a target; it was measured, and is not yet verified."""

    event: Literal["target_resolved"] = "target_resolved"
    architecture: Architecture
    fingerprint: str = Field(description="short name of the architecture")
    predicted_ms: float | None = Field(
        description="by the latency predictor, with this subnet's own measurements left out"
    )
    measured_ms: float
    accuracy: float | None = Field(description="predicted top-1 accuracy")


class WinnerVerified(_TargetEvent):
    """A fresh re-measurement of the shipped file meets the target."""

    event: Literal["winner_verified"] = "winner_verified"
    architecture: Architecture
    fingerprint: str = Field(description="short name of the architecture")
    predicted_ms: float | None = Field(
        description="by the latency predictor, with this subnet's own measurements left out"
    )
    measured_ms: float | None
    verified_ms: float
    typical_ms: float | None = Field(
        default=None, description="the same re-measurement at the typical slow-down of this run; null where unknown"
    )
    value: float | None = Field(
        default=None, description="what the re-measurement showed, in the unit of a target of another kind than latency"
    )
    value_high: float | None = Field(default=None, description="upper end of its 95 % interval, of a percentile")
    accuracy: float | None = Field(description="top-1 accuracy on held-out images, with the exported file")
    sha256: str = Field(description="hash of the file that was measured and ships")
    note: str = Field(default="", description="a remark, such as that the target constrains nothing")


class TargetMissed(_TargetEvent):
    """A re-measurement was over the target; the search may go on to another subnet."""

    event: Literal["target_missed"] = "target_missed"
    verified_ms: float | None = Field(description="null when no subnet was verified at all")
    typical_ms: float | None = Field(
        default=None, description="the same re-measurement at the typical slow-down of this run; null where unknown"
    )
    final: bool = Field(description="no further subnet will be tried")
    reason: str


class TargetInfeasible(_TargetEvent):
    """No subnet of the design space meets the target on this device setting."""

    event: Literal["target_infeasible"] = "target_infeasible"
    fastest_ms: float | None = Field(description="latency of the fastest subnet found")
    reason: str


class BaselineMeasured(_SettingEvent):
    """A network of the user's own is measured on a device setting, or cannot be."""

    event: Literal["baseline_measured"] = "baseline_measured"
    baseline: str = Field(description="name of the baseline, such as largest")
    measured_ms: float | None = Field(description="latency of the middle measurement, as it ran; null: not measured")
    half_width_percent: float | None = Field(description="95 % half-width of it, in percent")
    quality: Quality | None
    reason: str = Field(description="why it was not measured; empty otherwise")


class ProgressChanged(_Event):
    """The share of the expected work that is done, and the time left; now and then while the campaign is at work."""

    event: Literal["progress"] = "progress"
    done: float = Field(description="finished share of the expected work, in [0, 1]")
    left_s: float = Field(description="expected time to the end, in seconds")
    least_left_s: float = Field(description="lower end of the time left, in seconds: about 90 % are above")
    most_left_s: float = Field(description="upper end of it: about 90 % are below")


class CampaignFinished(_Event):
    """The campaign has ended."""

    event: Literal["campaign_finished"] = "campaign_finished"
    status: EndStatus = Field(
        description="complete: every target met; partial: some missed, or a device lost or failed; failed: no winner"
    )
    targets_met: int
    targets: int = Field(description="targets that were asked for, those of lost and failed devices included")
    devices_lost: tuple[str, ...] = Field(default=(), description="device settings, as device/setting")
    devices_failed: tuple[str, ...] = Field(default=(), description="the same, of devices that could not measure")
    devices_slowed: tuple[str, ...] = Field(
        default=(), description="device settings of whose measurements more than a quarter were slowed"
    )
    elapsed_s: float
    results: str | None = Field(default=None, description="path of results.json")
    without_target: bool = Field(
        default=False, description="given subnets were compared with no target: targets_met counts the measured ones"
    )
    timed_out: bool = Field(default=False, description="--timeout ended it before its end; it can be resumed")


Event: TypeAlias = Annotated[
    CampaignStarted
    | DeviceJoined
    | DeviceLost
    | StoreUnavailable
    | StoreAvailable
    | MeasurementTaken
    | MeasurementFailed
    | RegimeChanged
    | MeasurementsSlowed
    | PredictorUpdated
    | TargetResolved
    | WinnerVerified
    | TargetMissed
    | TargetInfeasible
    | BaselineMeasured
    | ProgressChanged
    | CampaignFinished,
    Field(discriminator="event"),
]

_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


def event_to_json(event: Event) -> str:
    """Return an event as one line of JSON, without a line break."""
    return event.model_dump_json()


def event_from_fields(fields: dict[str, Any]) -> Event:
    """Read an event from a decoded JSON object; `pydantic.ValidationError` where it is none."""
    return _ADAPTER.validate_python(fields)
