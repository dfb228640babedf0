"""Frozen messages of a coordinator to its agents: tasks, cancellations, acknowledgements, its own state.

`signature` is appended and checked by `fleetnas.fleet_protocol.security.signing`.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from fleetnas.device_profiles.quantities import Count, Factor, LimitSeconds, Seconds
from fleetnas.device_profiles.text_fields import PlainText
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import (
    BlobReference,
    Condition,
    Identifier,
    MeasurementProtocol,
    ParticipantState,
    RuntimeSetting,
    TaskKey,
    Versioned,
)
from fleetnas.fleet_protocol.mirrors import Mirror

#: Formats of model files that an agent may be sent, which are their suffixes.
ModelFormat: TypeAlias = Literal["onnx", "tflite"]
#: Largest model file that an agent is sent, bytes.
MAX_MODEL_BYTES = 512 * 1024**2

_InputName = Annotated[PlainText, Field(max_length=200)]
_Shape = Annotated[tuple[Annotated[int, Field(ge=1, le=10**9)], ...], Field(max_length=16)]

Signature = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{118}$", max_length=118)]


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
    wait_s: Seconds = Field(default=0.0, description="how long to wait for a device that is slower than wait_above")
    wait_above: Factor | None = Field(
        default=None, description="times the undisturbed latency; a device that is slower is waited for, then measured"
    )
    profile: bool = Field(default=False, description="time the model's layers too, after the measurement")
    deadline_s: LimitSeconds = Field(
        description="give up after this long from receipt, without waits for the host's other agents or the battery"
    )
    stored: tuple[TaskKey, ...] = Field(
        default=(), max_length=64, description="results that the agent may forget, acknowledged with the task"
    )
    signature: Signature | None = None


class ModelReference(BlobReference):
    """A model file, by its hash."""

    size: int = Field(ge=1, le=MAX_MODEL_BYTES)
    format: ModelFormat
    input_shapes: dict[_InputName, _Shape] = Field(
        default_factory=dict, max_length=64, description="chosen shapes by input; the empty name: of the one open input"
    )


class ModelTask(Versioned):
    """Measure a model file as it is, in turns with reference subnets of a bundle.

    Only an agent whose announcement has `accepts_models` is sent one: no other need know this order.
    """

    op: Literal["measure_model"] = "measure_model"
    task: TaskKey
    run_id: Identifier
    bundle: BlobReference
    mirror: Mirror | None = Field(default=None, description="where the bundle may also be had")
    model: ModelReference
    setting: RuntimeSetting
    protocol: MeasurementProtocol = MeasurementProtocol()
    condition: Condition = "as-is"
    wait_s: Seconds = 0.0
    wait_above: Factor | None = None
    deadline_s: LimitSeconds
    stored: tuple[TaskKey, ...] = Field(default=(), max_length=64)
    signature: Signature | None = None


class CancelTask(Versioned):
    """Forget a task; one that runs is stopped."""

    op: Literal["cancel"] = "cancel"
    task: TaskKey
    signature: Signature | None = None


#: Orders that end with a measurement.
MeasurementTask: TypeAlias = MeasureTask | ModelTask
Task: TypeAlias = Annotated[MeasurementTask | CancelTask, Field(discriminator="op")]


class Acknowledgement(Versioned):
    """The agent may forget a result."""

    task: TaskKey
    stored: bool = Field(default=True, description="false: no coordinator knows its task, and nobody will come for it")
    signature: Signature | None = None


class CoordinatorState(Versioned):
    """Retained on `coordinator/state`; the last will is the same with state `lost`."""

    state: ParticipantState
    session: Count
