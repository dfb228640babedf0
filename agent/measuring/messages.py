"""The orders and replies between the agent and its measuring child, validated on both ends of the pipe."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from fleetnas.agent.host.battery import BatteryRule
from fleetnas.agent.measuring.undisturbed import Basis
from fleetnas.agent.runtimes.input_shapes import InputShapes
from fleetnas.agent.runtimes.timing import Timing
from fleetnas.device_profiles.profile import DeviceProfile, MicroBenchmarks
from fleetnas.device_profiles.quantities import (
    Count,
    DurationMs,
    HalfWidthPercent,
    Millijoules,
    Milliseconds,
    Provider,
    Seconds,
)
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.layer_times import Layers
from fleetnas.fleet_protocol.messages import (
    MAX_PERCENTILES,
    MAX_SESSIONS,
    Conditions,
    FailureReason,
    MeasurementProtocol,
    Message,
    PercentileTime,
    Phase,
    RuntimeSetting,
)
from fleetnas.fleet_protocol.orders import ModelReference

#: Reference subnets per bundle and setting.
RUNGS = 5


class PairedTiming(Message):
    """Times of a subnet that was measured in turns with a reference subnet."""

    timing: Timing = Field(description="latency as it ran: all of the subnet's samples")
    undisturbed_ms: Milliseconds | None = Field(
        description="latency at the device's undisturbed speed; None where the turns do not tell it"
    )
    undisturbed_half_width_percent: HalfWidthPercent = Field(description="95 % half-width, in percent of it")
    basis: Basis = Field(
        description="what undisturbed_ms rests on: rounds at the reference's known speed, the fastest samples of all "
        "rounds, all rounds corrected by a second reference, readings before and after, or nothing"
    )
    reference: str = Field(pattern=r"^[0-9a-f]{12}$", description="fingerprint of the reference subnet")
    reference_ms: Milliseconds = Field(description="the reference's level: what it takes at undisturbed speed")
    slowdown: float = Field(gt=0, description="median of the reference's readings, over its level")
    fastest_slowdown: float = Field(gt=0)
    slowest_slowdown: float = Field(gt=0)
    rounds: int = Field(ge=1)
    clean_rounds: int = Field(ge=0)
    subject_inference_s: Seconds = Field(description="time inside the subnet's own inference, warm-up included")
    reference_inference_s: float = Field(ge=0)


class ReferenceOrder(Message):
    """How to measure a subnet in turns with reference subnets of its space, and what to do before."""

    levels_ms: dict[str, float] = Field(default_factory=dict, description="known levels, by fingerprint")
    normals: dict[str, float] = Field(default_factory=dict, description="slow-down expected now, by fingerprint")
    at_most: int = Field(default=RUNGS, ge=1, description="reference subnets to load")
    keep_levels: bool = Field(default=False, description="a reference that is faster than its level does not lower it")
    warm_up: bool = Field(default=False, description="run until the device's speed is steady, before anything else")
    slow_above: float | None = Field(default=None, description="measure nothing while the slow-down is larger")
    warm_above_c: float | None = Field(default=None, description="measure nothing while the device is warmer")


class MeasureOrder(Message):
    """Build one subnet and measure it."""

    op: Literal["measure"] = "measure"
    bundle_path: str
    bundle_sha256: str
    architecture: Architecture
    calibration_path: str | None = None
    calibration_sha256: str | None = None
    setting: RuntimeSetting
    protocol: MeasurementProtocol
    references: ReferenceOrder | None = None
    battery: BatteryRule | None = Field(default=None, description="when not to measure at all")
    profile: bool = Field(default=False, description="time its layers too, after the measurement")


class ModelOrder(Message):
    """Measure a model file that a coordinator sent, in turns with reference subnets of a bundle."""

    op: Literal["measure-model"] = "measure-model"
    bundle_path: str
    bundle_sha256: str
    model_path: str
    model: ModelReference
    setting: RuntimeSetting
    protocol: MeasurementProtocol
    references: ReferenceOrder | None = None
    battery: BatteryRule | None = Field(default=None, description="when not to measure at all")
    profile: Literal[False] = Field(default=False, description="layers are timed of winners alone")


class BenchOrder(Message):
    """Measure a model file as it is."""

    op: Literal["bench"] = "bench"
    model_path: str
    input_shapes: InputShapes = Field(default_factory=dict)
    setting: RuntimeSetting
    protocol: MeasurementProtocol
    profile: bool = Field(default=False, description="time its layers too, after the measurement")


class ProbeOrder(Message):
    """Load a runtime, report its providers and run the micro-benchmarks."""

    op: Literal["probe"] = "probe"
    setting: RuntimeSetting
    micro_benchmarks: bool = True


class SustainedOrder(Message):
    """Run a model file without a pause and report its latency window by window."""

    op: Literal["sustained"] = "sustained"
    model_path: str
    input_shapes: InputShapes = Field(default_factory=dict)
    setting: RuntimeSetting
    total_s: float = Field(gt=0)
    window_s: float = Field(gt=0)


Order: TypeAlias = Annotated[
    MeasureOrder | ModelOrder | BenchOrder | ProbeOrder | SustainedOrder, Field(discriminator="op")
]


class PhaseReply(Message):
    """What the child is doing now; `waiting` means that another agent of this host is measuring."""

    kind: Literal["phase"] = "phase"
    phase: Phase
    fraction: float = Field(default=0.0, ge=0, le=1)
    detail: str = Field(default="", description="what is waited for")


class MeasuredReply(Message):
    """The end of a `MeasureOrder`, `ModelOrder` or `BenchOrder`."""

    kind: Literal["measured"] = "measured"
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    model_bytes: Count
    timing: Timing
    session_medians_ms: tuple[Milliseconds, ...] = Field(
        default=(), max_length=MAX_SESSIONS, description="median of each fresh runtime session, as it ran"
    )
    provider: Provider
    build_ms: DurationMs
    load_ms: DurationMs = Field(description="the median, of several sessions")
    input_shapes: InputShapes = Field(default_factory=dict)
    cores: tuple[int, ...] = Field(default=(), description="cores that it really ran on; empty where that is not known")
    before: Conditions
    after: Conditions
    energy_mj: Millijoules | None = None
    percentiles: tuple[PercentileTime, ...] = Field(default=(), max_length=MAX_PERCENTILES)
    layers: Layers = Field(default=(), description="where a profile was asked for, and the runtime has a profiler")
    memory_bytes: Count | None = Field(default=None, description="peak memory that a sent model file took, about")
    paired: PairedTiming | None = Field(default=None, description="where references were asked for")
    levels_ms: dict[str, float] = Field(default_factory=dict, description="levels of all loaded references")
    busy_s: float = Field(ge=0, description="time from taking the order, lock held, to this reply")
    inference_s: float = Field(ge=0, description="time inside inference runs, the references' included")


class SlowReply(Message):
    """The device is slower or warmer than allowed: nothing was measured."""

    kind: Literal["slow"] = "slow"
    slowdown: float | None = Field(default=None, description="of the reference, where it is the reason")
    temperature_c: float | None = Field(default=None, description="of the device, where it is the reason")
    levels_ms: dict[str, float] = Field(default_factory=dict, description="levels of all loaded references")


class UnreadyReply(Message):
    """The battery rule forbids measuring now, or the host's lock did not become free: nothing was measured."""

    kind: Literal["unready"] = "unready"
    reason: str


class ProbedReply(Message):
    """The end of a `ProbeOrder`."""

    kind: Literal["probed"] = "probed"
    version: str
    providers: tuple[str, ...]
    active_provider: str = Field(max_length=64)
    micro_benchmarks: MicroBenchmarks
    device: DeviceProfile | None = Field(default=None, description="what runs the models, where that is not this host")
    cores: tuple[int, ...] = ()


class FailedReply(Message):
    """The end of an order that could not be executed."""

    kind: Literal["failed"] = "failed"
    reason: FailureReason
    detail: str = Field(default="", max_length=500)
    usage: bool = Field(default=False, description="it was asked for what cannot be: a `UsageError`")


class LoadedReply(Message):
    """The model of a `SustainedOrder` is ready to run; windows follow."""

    kind: Literal["loaded"] = "loaded"
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    model_bytes: int = Field(ge=0)
    provider: str = Field(max_length=64)
    load_ms: float = Field(ge=0)
    input_shapes: InputShapes = Field(default_factory=dict)
    cores: tuple[int, ...] = ()


class WindowReply(Message):
    """One window of a `SustainedOrder`: latency as it ran, and the device's state at its end."""

    kind: Literal["window"] = "window"
    begin_s: float = Field(ge=0, description="since the first window began")
    end_s: float = Field(ge=0)
    median_ms: float = Field(gt=0)
    p90_ms: float = Field(gt=0)
    min_ms: float = Field(gt=0)
    samples: int = Field(ge=1)
    conditions: Conditions


class SustainedReply(Message):
    """The end of a `SustainedOrder`."""

    kind: Literal["sustained"] = "sustained"
    windows: int = Field(ge=0)


#: Replies after which more follow.
INTERIM_REPLIES = (PhaseReply, LoadedReply, WindowReply)

Reply: TypeAlias = Annotated[
    PhaseReply
    | MeasuredReply
    | SlowReply
    | UnreadyReply
    | ProbedReply
    | FailedReply
    | LoadedReply
    | WindowReply
    | SustainedReply,
    Field(discriminator="kind"),
]

_orders: TypeAdapter[Order] = TypeAdapter(Order)
_replies: TypeAdapter[Reply] = TypeAdapter(Reply)


def decode_order(payload: bytes) -> Order:
    """Decode an order in JSON; `pydantic.ValidationError` if it is not one."""
    return _orders.validate_json(payload)


def decode_reply(payload: bytes) -> Reply:
    """Decode a reply in JSON; `pydantic.ValidationError` if it is not one."""
    return _replies.validate_json(payload)
