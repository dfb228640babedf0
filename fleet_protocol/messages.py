"""The frozen messages that cross the wire, as JSON. `codec` turns them into bytes and back.

Sizes are bounded here, so that a hostile message costs one refused parse.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from device_profiles.plain_text import PlainText
from device_profiles.profile import DeviceProfile
from fleet_protocol.architecture import Architecture
from fleet_protocol.mirrors import Mirror

SCHEMA_VERSION: Literal[1] = 1

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Short = Annotated[PlainText, Field(max_length=64)]
#: `noisy`: the median is not certain enough; `slowed`: the device was slower than it normally is in this run.
Quality: TypeAlias = Literal["ok", "noisy", "slowed"]
#: Under which condition a device is measured: as it happens to be, warmed up until its speed is steady, or cooled down.
Condition: TypeAlias = Literal["as-is", "sustained", "cool"]
Signature = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{118}$")]


class Message(BaseModel):
    """Base of every message and of the values inside one."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Versioned(Message):
    """A message that stands alone on a topic."""

    schema_version: Literal[1] = SCHEMA_VERSION


# -- values ----------------------------------------------------------------------------------------------------


class RuntimeSetting(Message):
    """How a model is run. Together with the device it makes a device setting: what a predictor is for."""

    runtime: Literal["onnxruntime", "litert", "adb", "command"] = "onnxruntime"
    provider: str = Field(default="cpu", pattern=r"^[a-z0-9_-]{1,32}$", description="execution provider or delegate")
    threads: int = Field(default=1, ge=1, le=256)
    precision: Literal["fp32", "int8"] = "fp32"
    graph_optimisation: Literal["all", "extended", "basic", "disabled"] = "all"
    affinity: tuple[int, ...] = Field(default=(), max_length=256, description="cores to pin to; empty: not pinned")

    @property
    def label(self) -> str:
        """Short name, unique per setting, safe in file names."""
        parts = [self.runtime, self.provider, f"{self.threads}t", self.precision]
        if self.graph_optimisation != "all":
            parts.append(f"opt-{self.graph_optimisation}")
        if self.affinity:
            parts.append("core" + "-".join(str(core) for core in self.affinity))
        return "_".join(parts)


class BlobReference(Message):
    """Bytes named by their hash: a bundle, or a subnet's calibration."""

    sha256: Sha256
    size: int = Field(ge=1, le=2**32)


class MeasurementProtocol(Message):
    """How long and how often to run a model. The defaults are those of `docs/measuring.md`."""

    warmup_runs: int = Field(default=3, ge=0, le=10_000)
    warmup_s: NonNegative = 0.5
    min_runs: int = Field(default=50, ge=3, le=100_000)
    min_s: NonNegative = 1.0
    max_s: Positive = 20.0
    blocks: int = Field(default=3, ge=1, le=100)
    half_width_percent: Positive = 2.0


class Conditions(Message):
    """The device's state around a measurement; what has no sensor is None."""

    temperature_c: float | None = Field(default=None, allow_inf_nan=False)
    clock_mhz: float | None = Field(default=None, allow_inf_nan=False)
    governor: PlainText | None = Field(default=None, max_length=32)
    throttled: bool | None = None
    load_1min: float | None = Field(default=None, allow_inf_nan=False)
    battery_percent: float | None = Field(default=None, allow_inf_nan=False)
    battery_state: Literal["charging", "discharging", "idle"] | None = None
    battery_temperature_c: float | None = Field(default=None, allow_inf_nan=False)
    power_mw: float | None = Field(
        default=None, allow_inf_nan=False, description="at rest before a measurement, within its blocks after it"
    )


class Measurement(Message):
    """Latency of one subnet on one device setting, batch 1."""

    model_sha256: Sha256
    model_bytes: Count
    median_ms: Positive
    mad_ms: NonNegative = Field(description="median absolute deviation of the runs")
    p90_ms: Positive
    min_ms: Positive
    runs: int = Field(ge=1, le=2**31 - 1, description="timed samples")
    inner_loops: int = Field(default=1, ge=1, le=2**31 - 1, description="inferences per timed sample (fast subnets)")
    half_width_percent: NonNegative = Field(description="95 % half-width of the median, in percent of it")
    quality: Quality
    undisturbed_ms: Positive | None = Field(
        default=None,
        description="latency at the device's undisturbed speed, from the ratio to a reference subnet that was measured "
        "in turn with it; null where that ratio says nothing: then it is only known to be at most median_ms",
    )
    undisturbed_half_width_percent: NonNegative = Field(
        default=0.0, description="95 % half-width of undisturbed_ms, in percent of it"
    )
    reference: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{12}$", description="fingerprint of the reference subnet"
    )
    reference_ms: Positive | None = Field(
        default=None, description="what the reference takes at undisturbed speed: the speed undisturbed_ms is stated at"
    )
    levels_ms: tuple[Positive, ...] = Field(
        default=(), max_length=16, description="the same of every reference, in the order of their fingerprints"
    )
    condition: Condition = "as-is"
    regime_unix_s: NonNegative = Field(
        default=0.0, description="since when the device has run at its present lasting speed, by its own clock"
    )
    times_us: tuple[Positive, ...] = Field(max_length=512, description="raw samples in order, per inference")
    block_medians_ms: tuple[Positive, ...] = Field(default=(), max_length=100)
    provider: PlainText = Field(max_length=64, description="execution provider that was really active")
    build_ms: NonNegative = Field(description="time to build the model file on the device")
    load_ms: NonNegative = Field(description="time to create the runtime session")
    before: Conditions = Conditions()
    after: Conditions = Conditions()
    energy_mj: NonNegative | None = Field(default=None, description="energy per inference where the board tells it")
    finished_unix_s: NonNegative

    @property
    def slowdown(self) -> float | None:
        """Latency as it ran over latency at undisturbed speed; None where the latter is not known."""
        return None if self.undisturbed_ms is None else self.median_ms / self.undisturbed_ms


class TaskKey(Message):
    """Identity of one attempt at one task; results are deduplicated on it."""

    task_id: Identifier
    attempt: int = Field(ge=1, le=1000)


# -- agent to coordinator --------------------------------------------------------------------------------------


class AgentState(Versioned):
    """Retained on `up/state`; the last will is the same with state `lost`."""

    state: Literal["ready", "busy", "leaving", "lost"]
    session: Count = Field(description="grows with every start of the agent: a will of an older session is ignored")
    instance: Identifier = Field(description="random per process: tells two agents of one name apart")
    detail: PlainText = Field(default="", max_length=200, description="why it waits instead of measuring")


class AgentInfo(Versioned):
    """Retained on `up/info`."""

    agent: Identifier
    session: Count
    profile: DeviceProfile
    settings: tuple[RuntimeSetting, ...] = Field(min_length=1, max_length=32)
    versions: dict[_Short, _Short] = Field(max_length=32)


class Health(Versioned):
    """Heartbeat on `up/health`."""

    session: Count
    uptime_s: NonNegative
    conditions: Conditions = Conditions()
    task_id: Identifier | None = None
    outbox: Count = 0


#: What a running task is doing; `waiting`: another agent of the same host is measuring, or the battery must recover.
Phase: TypeAlias = Literal["fetching", "building", "waiting", "measuring", "cooling"]

#: Why a measurement failed on the device.
FailureReason: TypeAlias = Literal[
    "timeout",
    "crashed",
    "out_of_memory",
    "bad_output",
    "bundle",
    "architecture",
    "runtime",
    "provider_fallback",
    "cancelled",
    "internal",
]


class Accepted(Versioned):
    """The task is in the agent's queue."""

    kind: Literal["accepted"] = "accepted"
    task: TaskKey


class Rejected(Versioned):
    """The task will not be done, and not because of the subnet."""

    kind: Literal["rejected"] = "rejected"
    task: TaskKey
    reason: Literal["busy", "setting_unavailable", "expired", "leaving", "not_trusted"]
    detail: PlainText = Field(default="", max_length=500)


class Progress(Versioned):
    """What a running task is doing."""

    kind: Literal["progress"] = "progress"
    task: TaskKey
    phase: Phase
    fraction: float = Field(ge=0, le=1)


class Result(Versioned):
    """A finished measurement; sent until acknowledged."""

    kind: Literal["result"] = "result"
    task: TaskKey
    measurement: Measurement


class Failed(Versioned):
    """A measurement that failed on the device: data, not an exception; sent until acknowledged."""

    kind: Literal["failed"] = "failed"
    task: TaskKey
    reason: FailureReason
    detail: PlainText = Field(default="", max_length=500)


TaskUpdate: TypeAlias = Annotated[Accepted | Rejected | Progress | Result | Failed, Field(discriminator="kind")]


class Next(Versioned):
    """After every connect: what the agent still holds, so that the coordinator can reconcile its leases."""

    session: Count
    running: TaskKey | None = None
    queued: tuple[TaskKey, ...] = Field(default=(), max_length=64)
    holding: tuple[TaskKey, ...] = Field(default=(), max_length=4096, description="results not yet acknowledged")


class BlobRequest(Versioned):
    """Asks for bytes of a blob; the answer is a binary chunk on `down/blob`."""

    sha256: Sha256
    offset: Count
    length: int = Field(ge=1, le=65_536)


# -- coordinator to agent; `signature` is what `signing` appends and checks ------------------------------------


class MeasureTask(Versioned):
    """Build a subnet and measure it."""

    op: Literal["measure"] = "measure"
    task: TaskKey
    run_id: Identifier
    bundle: BlobReference
    architecture: Architecture
    mirror: Mirror | None = Field(
        default=None,
        description="where the bundle may also be had, under its hash; an agent may ask there, or not",
    )
    calibration: BlobReference | None = Field(default=None, description="batch-norm statistics of a winner")
    setting: RuntimeSetting
    protocol: MeasurementProtocol = MeasurementProtocol()
    condition: Condition = "as-is"
    wait_s: NonNegative = Field(default=0.0, description="how long to wait for a device that is slower than wait_above")
    wait_above: Positive | None = Field(
        default=None, description="times the undisturbed latency; a device that is slower is waited for, then measured"
    )
    deadline_s: Positive = Field(
        description="give up after this long from receipt, without waits for the host's other agents or the battery"
    )
    stored: tuple[TaskKey, ...] = Field(
        default=(), max_length=64, description="results that the agent may forget, acknowledged with the task"
    )
    signature: Signature | None = None


class CancelTask(Versioned):
    """Forget a task; one that runs is stopped."""

    op: Literal["cancel"] = "cancel"
    task: TaskKey
    signature: Signature | None = None


Task: TypeAlias = Annotated[MeasureTask | CancelTask, Field(discriminator="op")]


class Acknowledgement(Versioned):
    """The agent may forget a result."""

    task: TaskKey
    stored: bool = Field(default=True, description="false: no coordinator knows its task, and nobody will come for it")
    signature: Signature | None = None


class CoordinatorState(Versioned):
    """Retained on `coordinator/state`; the last will is the same with state `lost`."""

    state: Literal["ready", "leaving", "lost"]
    session: Count
