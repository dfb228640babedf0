"""Settings of `fleetnas train`, validated and stored with a training so that it resumes with the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fleetnas.fleet_protocol.error_text import fault_words
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.manifest import Fit
from fleetnas.supernet_export.training.choices import ClassWeights, OptimizerName, Precision, Schedule

Share = Annotated[float, Field(ge=0, lt=1)]


class TrainSettings(BaseModel):
    """What decides the weights that a training ends with. Names of fields are those of the options."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    train: Path
    val: Path
    source: str | None = Field(default=None, description="--from")
    space: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    resolutions: tuple[int, ...] | None = None
    kernels: tuple[int, ...] | None = None
    expands: tuple[float, ...] | None = None
    depths: tuple[int, ...] | None = None
    width: float | None = None
    channels: Literal[1, 3] | None = None
    fit: Fit | None = None
    schedule: Schedule = "sandwich"
    subnets: int = Field(default=2, ge=1, le=16)
    epochs: int = Field(default=30, ge=1, le=100_000)
    batch_size: int = Field(default=64, ge=2, le=1_000_000)
    optimizer: OptimizerName = "adamw"
    learning_rate: float | None = Field(default=None, gt=0, le=10)
    weight_decay: float | None = Field(default=None, ge=0, le=10)
    warm_up: Share = 0.05
    label_smoothing: Share = 0.1
    class_weights: ClassWeights = "none"
    clip_norm: float = Field(default=5.0, gt=0)
    ema: Share = 0.999
    teacher: str = Field(default="in-place", min_length=1)
    precision: Precision = "fp32"
    seed: int = Field(default=0, ge=0, lt=2**63)
    threads: int | None = Field(default=None, ge=1, le=1024)

    @model_validator(mode="after")
    def _lists_are_not_empty(self) -> TrainSettings:
        for name in ("resolutions", "kernels", "expands", "depths"):
            if getattr(self, name) == ():
                raise ValueError(f"{name} must hold at least one number")
        return self

    @property
    def peak_learning_rate(self) -> float:
        """The highest learning rate: as given, or the optimiser's usual one."""
        return self.learning_rate or (3e-3 if self.optimizer == "adamw" else 0.1)

    @property
    def decay(self) -> float:
        """The weight decay: as given, or the optimiser's usual one."""
        if self.weight_decay is not None:
            return self.weight_decay
        return 0.01 if self.optimizer == "adamw" else 3e-5

    def differing(self, other: TrainSettings, given: set[str]) -> list[str]:
        """Return the options among the fields `given` in which another training's settings differ."""
        return [
            option_of(name)
            for name in type(self).model_fields
            if name in given and getattr(self, name) != getattr(other, name)
        ]


def option_of(field: str) -> str:
    """Return the command line's name of a field, such as `--batch-size`."""
    return {"train": "the folder of images", "source": "--from"}.get(field, f"--{field.replace('_', '-')}")


def checked_settings(**fields: Any) -> TrainSettings:
    """Return settings from fields of which None means the default; `UsageError` names the option that is wrong."""
    try:
        return TrainSettings(**{name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        message = fault_words(first)
        raise UsageError(
            f"{option_of(field) if field else 'the options'}: {message}, found {str(first['input'])[:80]}; correct it"
        ) from None
