"""Frozen messages of an agent to its coordinator, and the values inside messages.

`codec` turns messages into JSON and back. Sizes are bounded here, so that a hostile message costs one refused parse.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.device_profiles.quantities import (
    CoreNumber,
    Count,
    DurationMs,
    HalfWidthPercent,
    HostMark,
    LimitSeconds,
    Microseconds,
    Millijoules,
    Milliseconds,
    Percentile,
    Provider,
    Seconds,
    Share,
    ShortText,
    Tags,
    UnixSeconds,
)
from fleetnas.device_profiles.text_fields import PlainText
from fleetnas.fleet_protocol.choices import Condition as Condition
from fleetnas.fleet_protocol.choices import InterpreterName as InterpreterName
from fleetnas.fleet_protocol.choices import Precision as Precision
from fleetnas.fleet_protocol.choices import RuntimeName as RuntimeName
from fleetnas.fleet_protocol.layer_times import Layers
from fleetnas.fleet_protocol.message_parts import MAX_PERCENTILES as MAX_PERCENTILES
from fleetnas.fleet_protocol.message_parts import BatteryState as BatteryState
from fleetnas.fleet_protocol.message_parts import Conditions as Conditions
from fleetnas.fleet_protocol.message_parts import Message as Message
from fleetnas.fleet_protocol.message_parts import PercentileTime as PercentileTime

#: The wire contract's version; `docs/architecture.md` has the rule for each of the two numbers.
SCHEMA_VERSION: Literal[1] = 1
SCHEMA_MINOR = 2
#: First minor version whose agents report mean and percentiles of run times, and whether they can tell energy.
PERCENTILES_MINOR = 2
#: First minor versions whose agents may take model files, and time the layers of a model.
MODEL_FILES_MINOR = LAYERS_MINOR = 2
#: Runtime sessions that one measurement is averaged over.
MAX_SESSIONS = 16
#: Attempts at one task.
MAX_ATTEMPTS = 1000
#: Characters of a setting's label; it names a folder.
MAX_LABEL_LENGTH = 200
#: Latency as it ran over that at undisturbed speed: a device may be slowed down a lot, and hardly be faster than ever.
MIN_SLOWDOWN, MAX_SLOWDOWN = 0.01, 10_000.0

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", max_length=64)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)]
_Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$", max_length=12)]
#: States that every participant announces, and with its last will; agents may be `busy` too.
AnnouncedState: TypeAlias = Literal["ready", "leaving"]
ParticipantState: TypeAlias = Literal[AnnouncedState, "lost"]
#: `noisy`: the median is not certain enough; `slowed`: the device was slower than it normally is in this run.
Quality: TypeAlias = Literal["ok", "noisy", "slowed"]


class Versioned(Message):
    """A message that stands alone on a topic."""

    schema_version: Literal[1] = SCHEMA_VERSION
    schema_minor: int = Field(default=0, ge=0, le=10_000, description="of the program that sent it")


class RuntimeSetting(Message):
    """How a model is run. Together with the device it makes a device setting: what a predictor is for."""

    runtime: RuntimeName = "onnxruntime"
    provider: str = Field(
        default="cpu",
        pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$",
        max_length=32,
        description="execution provider or delegate",
    )
    threads: int = Field(default=1, ge=1, le=256)
    precision: Precision = "fp32"
    graph_optimisation: Literal["all", "extended", "basic", "disabled"] = "all"
    affinity: tuple[CoreNumber, ...] = Field(
        default=(), max_length=256, description="cores to pin to; empty: not pinned"
    )

    @property
    def label(self) -> str:
        """Short name, unique per setting, safe in file names, at most `MAX_LABEL_LENGTH` characters."""
        parts = [self.runtime, self.provider, f"{self.threads}t", self.precision]
        if self.graph_optimisation != "all":
            parts.append(f"opt-{self.graph_optimisation}")
        if self.affinity:
            cores = "-".join(str(core) for core in self.affinity)
            whole = "_".join([*parts, f"core{cores}"])
            if len(whole) <= MAX_LABEL_LENGTH:
                return whole
            digest = hashlib.sha256(cores.encode()).hexdigest()[:12]
            parts.append(f"{len(self.affinity)}cores-{digest}")
        return "_".join(parts)


class BlobReference(Message):
    """Bytes named by their hash: a bundle, or a subnet's calibration."""

    sha256: Sha256
    size: int = Field(ge=1, le=2**32)


class MeasurementProtocol(Message):
    """How long and how often to run a model. The defaults are those of `docs/measuring.md`.

    Measuring stops as soon as the latency is known precisely enough and `min_s` and `min_runs` are reached. An agent of
    an older version ignores `sessions` and uses one, and ignores `percentiles`.
    """

    warmup_runs: int = Field(default=3, ge=0, le=10_000)
    warmup_s: Seconds = Field(default=0.5, description="the warm-up ends when it is steady, or after this long")
    min_runs: int = Field(default=50, ge=3, le=100_000)
    min_s: Seconds = 1.0
    max_s: LimitSeconds = 20.0
    blocks: int = Field(default=3, ge=1, le=100)
    half_width_percent: HalfWidthPercent = Field(
        default=2.0,
        gt=0,
        description="95 % half-width to reach, however often it is looked at: of undisturbed_ms, else of the median",
    )
    sessions: int = Field(default=1, ge=1, le=MAX_SESSIONS, description="fresh runtime sessions to average over")
    percentiles: tuple[Percentile, ...] = Field(
        default=(),
        max_length=MAX_PERCENTILES,
        description="percentiles of run times to report; each timed sample is then a single inference",
    )


class Measurement(Message):
    """Latency of one subnet on one device setting, batch 1."""

    model_sha256: Sha256
    model_bytes: Count
    median_ms: Milliseconds
    mad_ms: DurationMs = Field(description="median absolute deviation of the runs")
    p90_ms: Milliseconds
    min_ms: Milliseconds
    runs: int = Field(ge=1, le=2**31 - 1, description="timed samples")
    inner_loops: int = Field(default=1, ge=1, le=2**31 - 1, description="inferences per timed sample (fast subnets)")
    half_width_percent: HalfWidthPercent = Field(
        description="95 % half-width of the median, in percent of it; includes the scatter between several sessions"
    )
    quality: Quality
    undisturbed_ms: Milliseconds | None = Field(
        default=None,
        description="latency at the device's undisturbed speed, from the ratio to a reference subnet that was measured "
        "in turn with it; null where that ratio says nothing: then it is only known to be at most median_ms",
    )
    undisturbed_half_width_percent: HalfWidthPercent = Field(
        default=0.0, description="95 % half-width of undisturbed_ms, in percent of it; includes that scatter as well"
    )
    reference: _Fingerprint | None = Field(default=None, description="fingerprint of the reference subnet")
    reference_ms: Milliseconds | None = Field(default=None, description="of the reference, at undisturbed speed")
    levels_ms: tuple[Milliseconds, ...] = Field(
        default=(), max_length=16, description="the same of every reference, in the order of their fingerprints"
    )
    condition: Condition = "as-is"
    regime_unix_s: UnixSeconds = Field(
        default=0.0, description="since when the device has run at its present lasting speed, by its own clock"
    )
    times_us: tuple[Microseconds, ...] = Field(max_length=512, description="raw samples in order, per inference")
    block_medians_ms: tuple[Milliseconds, ...] = Field(default=(), max_length=100)
    mean_ms: Milliseconds | None = Field(
        default=None, description="mean of all timed inferences, which ran back to back; null of older agents"
    )
    percentiles: tuple[PercentileTime, ...] = Field(
        default=(), max_length=MAX_PERCENTILES, description="those that the task asked for"
    )
    sessions: int = Field(default=1, ge=1, le=MAX_SESSIONS, description="runtime sessions that it is averaged over")
    session_medians_ms: tuple[Milliseconds, ...] = Field(
        default=(),
        max_length=MAX_SESSIONS,
        description="latency in each session, as it ran; may be empty for one session",
    )
    provider: Provider = Field(description="execution provider that was really active")
    build_ms: DurationMs = Field(description="time to build the model file on the device")
    load_ms: DurationMs = Field(description="time to create the runtime session")
    before: Conditions = Conditions()
    after: Conditions = Conditions()
    energy_mj: Millijoules | None = Field(default=None, description="energy per inference where the board tells it")
    layers: Layers = Field(default=(), description="where a profile was asked for, and the runtime has a profiler")
    finished_unix_s: UnixSeconds

    @model_validator(mode="after")
    def _slowdown_is_possible(self) -> Measurement:
        if self.slowdown is not None and not MIN_SLOWDOWN <= self.slowdown <= MAX_SLOWDOWN:
            raise ValueError(
                f"median_ms is {MIN_SLOWDOWN:g} to {MAX_SLOWDOWN:g} times undisturbed_ms on any device; it is "
                f"{self.median_ms:g} and {self.undisturbed_ms:g}"
            )
        return self

    @model_validator(mode="after")
    def _sessions_agree(self) -> Measurement:
        medians = self.session_medians_ms
        if len(medians) != self.sessions and (medians or self.sessions > 1):
            raise ValueError(f"session_medians_ms has {len(medians)} latencies of {self.sessions} sessions")
        if medians and not min(medians) * 0.99 <= self.median_ms <= max(medians) * 1.01:
            raise ValueError(f"median_ms is {self.median_ms:g}; its sessions took {min(medians):g} to {max(medians):g}")
        return self

    @property
    def slowdown(self) -> float | None:
        """Latency as it ran over latency at undisturbed speed; None where the latter is not known."""
        return None if self.undisturbed_ms is None else self.median_ms / self.undisturbed_ms


class TaskKey(Message):
    """Identity of one attempt at one task; results are deduplicated on it."""

    task_id: Identifier
    attempt: int = Field(ge=1, le=MAX_ATTEMPTS)


class AgentState(Versioned):
    """Retained on `up/state`; the last will is the same with state `lost`."""

    state: Literal[ParticipantState, "busy"]
    session: Count = Field(description="grows with every start of the agent: a will of an older session is ignored")
    instance: Identifier = Field(description="random per process: tells two agents of one name apart")
    detail: PlainText = Field(default="", max_length=200, description="why it waits instead of measuring, or leaves")


class AgentInfo(Versioned):
    """Retained on `up/info`."""

    agent: Identifier
    session: Count
    profile: DeviceProfile
    settings: tuple[RuntimeSetting, ...] = Field(min_length=1, max_length=32)
    versions: dict[ShortText, ShortText] = Field(max_length=32)
    tells_energy: bool | None = Field(
        default=None, description="whether the device has a power meter that can be read; null of older agents"
    )
    tags: Tags = ()
    host: HostMark = ""
    accepts_models: bool = Field(default=False, description="takes model files: only then is it sent a `ModelTask`")


class Heartbeat(Versioned):
    """Heartbeat on `up/heartbeat`."""

    session: Count
    uptime_s: Seconds
    conditions: Conditions = Conditions()
    task_id: Identifier | None = None
    outbox: Count = 0


#: What a running task is doing; `waiting`: another agent of the same host is measuring, or the battery must recover.
ShownPhase: TypeAlias = Literal["fetching", "waiting", "measuring"]
Phase: TypeAlias = Literal[ShownPhase, "building", "cooling"]

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
    reason: Literal["busy", "setting_unavailable", "expired", "leaving", "not_trusted", "not_understood"]
    detail: PlainText = Field(default="", max_length=500)


class Progress(Versioned):
    """What a running task is doing."""

    kind: Literal["progress"] = "progress"
    task: TaskKey
    phase: Phase
    fraction: Share


class Result(Versioned):
    """A finished measurement; sent until acknowledged."""

    kind: Literal["result"] = "result"
    task: TaskKey
    measurement: Measurement
    memory_bytes: Count | None = Field(default=None, description="that loading and running a sent model file took")


class Failed(Versioned):
    """A measurement that failed on the device: data, not an exception; sent until acknowledged."""

    kind: Literal["failed"] = "failed"
    task: TaskKey
    reason: FailureReason
    detail: PlainText = Field(default="", max_length=500)


TaskUpdate: TypeAlias = Annotated[Accepted | Rejected | Progress | Result | Failed, Field(discriminator="kind")]


class Inventory(Versioned):
    """After every connect: what the agent still holds, so that the coordinator can reconcile its leases."""

    session: Count
    running: TaskKey | None = None
    queued: tuple[TaskKey, ...] = Field(default=(), max_length=64)
    unacknowledged: tuple[TaskKey, ...] = Field(default=(), max_length=4096, description="results not yet acknowledged")


class BlobRequest(Versioned):
    """Asks for bytes of a blob; the answer is a binary chunk on `down/blob`."""

    sha256: Sha256
    offset: Count
    length: int = Field(ge=1, le=65_536)
