"""Baselines: networks that a user has already, measured on every device setting beside the winners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import Measurement
from fleetnas.fleet_protocol.orders import ModelReference

#: Baselines of one run.
MAX_BASELINES = 16
#: Characters of a baseline's name.
MAX_NAME_LENGTH = 64


class BaselineFile(BaseModel):
    """A model file of the user's own, which travels to the devices as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    reference: ModelReference


class Baseline(BaseModel):
    """One baseline: a subnet of the supernet, or a model file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=MAX_NAME_LENGTH, description="such as largest, or a file's name")
    architecture: Architecture | None = None
    file: BaselineFile | None = None
    accuracy: float | None = Field(default=None, ge=0, le=1, description="top-1 that the user gave, a fraction")

    @model_validator(mode="after")
    def _is_one_network(self) -> Baseline:
        if (self.architecture is None) == (self.file is None):
            raise ValueError(f"baseline {self.name} is either a subnet or a model file")
        return self


@dataclass(frozen=True)
class BaselineRecord:
    """What is known of a baseline on one device setting, as the store keeps it."""

    run_id: str
    device: str
    setting_label: str
    baseline: str
    """Name of the baseline."""
    measurements: tuple[Measurement, ...] = ()
    """In the order of their arrival; the middle one counts."""
    memory_bytes: int | None = None
    """Resident memory that loading and running a model file took at its peak; None for subnets, and where unknown."""
    predicted_accuracy: float | None = None
    """Top-1 in [0, 1] by the bundle's accuracy predictor."""
    accuracy: float | None = None
    """Top-1 in [0, 1], evaluated with the file that was measured, or given by the user."""
    accuracy_images: int | None = None
    """Number of images that it was evaluated on; None where the user gave it."""
    reason: str = ""
    """Why it was not measured."""
    done: bool = False
    """Whether nothing is left to measure."""

    @property
    def measurement(self) -> Measurement | None:
        """The measurement that counts, once nothing is left to measure: the middle one by latency.

        Those in which the device was slowed count only where it always was.
        """
        if not self.done or self.reason or not self.measurements:
            return None
        calm = [each for each in self.measurements if each.quality != "slowed"] or list(self.measurements)
        return sorted(calm, key=lambda each: each.median_ms)[len(calm) // 2]


#: What a speed-up rests on: latencies as they ran; those at undisturbed speed, where the device was slowed in one of
#: the measurements; as they ran although it was slowed, because its undisturbed speed is not known; or nothing, because
#: winner and baseline are one file.
SpeedBasis: TypeAlias = Literal["as-ran", "undisturbed", "slowed", "same-file"]
#: What two accuracies that are compared rest on.
AccuracyBasis: TypeAlias = Literal["evaluated", "predicted", "given"]


@dataclass(frozen=True)
class Comparison:
    """A winner against a baseline on the same device setting."""

    target_ms: float | None
    subnet: str
    """Fingerprint of a given subnet; empty where a subnet was searched."""
    speedup: float
    """Latency of the baseline over that of the winner."""
    speed_basis: SpeedBasis
    accuracy_points: float | None
    """Top-1 of the winner minus that of the baseline, percentage points; None where one is not known."""
    accuracy_basis: AccuracyBasis | None
    speedup_low: float | None = None
    """Lower end of its 95 % interval; None: the interval is not known."""
    speedup_high: float | None = None
    """Upper end of it; None: the interval is not known, or has no end."""
    target: str = ""
    """Text of a target of another kind than latency; else empty."""
