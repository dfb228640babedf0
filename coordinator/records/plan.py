"""Plan of a campaign; stored with its run, so that a resumed run continues as it began."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.stored import RunRecord
from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.device_profiles.quantities import LimitSeconds, Seconds
from fleetnas.fleet_protocol.error_text import first_fault
from fleetnas.fleet_protocol.errors import StoreError, UsageError
from fleetnas.fleet_protocol.messages import Condition, MeasurementProtocol


def _parsed_targets(value: object) -> object:
    """Read targets that are stored as text."""
    if not isinstance(value, str):
        return value
    try:
        return TargetRequest.parse(value)
    except UsageError as error:
        raise ValueError(str(error)) from None


#: Prior of a latency predictor: learned from what the store's earlier runs measured, or the same for every device.
PriorChoice: TypeAlias = Literal["learned", "default"]
#: Targets, stored as the text that `TargetRequest.parse` reads, such as `20,30` or `auto:4`.
StoredTargets = Annotated[TargetRequest, BeforeValidator(_parsed_targets), PlainSerializer(str, return_type=str)]


class CampaignPlan(BaseModel):
    """The search that the user asked for. Times are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    targets: StoredTargets = Field(description="milliseconds such as 20,30, or auto:N")
    strategy: Strategy = Strategy.BOTTOM_UP
    bounds: Bounds = Field(default=Bounds(), description="the most that a subnet may cost beside its latency")
    budget: int = Field(default=40, ge=3, le=10_000, description="measurements per device setting before verification")
    initial_design: int = Field(
        default=10, ge=3, le=1000, description="of these, the first ones, which cover the design space"
    )
    rerank: int = Field(
        default=0, ge=0, le=1000, description="candidates per target that selection images choose among; 0: none"
    )
    seed: int = Field(default=0, ge=0)
    prior: PriorChoice = Field(
        default="learned", description="learned: from what the store's earlier runs measured, where that is enough"
    )
    prior_without: tuple[str, ...] = Field(
        default=(), description="agents from whose earlier runs a learned prior is not learned"
    )
    devices: tuple[str, ...] = Field(default=(), description="agents that take part; empty: all that are there")
    wait_for: int = Field(default=1, ge=1, description="agents to wait for before the campaign begins")
    join_s: LimitSeconds = Field(default=60.0, description="how long to wait for them")
    grace_s: Seconds = Field(default=60.0, description="how long a lost device may take to come back")
    deadline_s: LimitSeconds = Field(default=180.0, description="how long one measurement may take on a device")
    protocol: MeasurementProtocol = MeasurementProtocol()
    conditions: Condition = Field(default="as-is", description="under which condition devices are measured")
    cool_s: Seconds = Field(
        default=60.0, description="how long a measurement may wait for its device to cool (conditions: cool)"
    )


class RunSettings(BaseModel):
    """Settings that the store keeps with a run beside its results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: CampaignPlan
    supernet_path: str
    design_space: str
    space_options: dict[str, Any] = Field(default_factory=dict)
    source: str = Field(description="origin of the checkpoint")
    checkpoint_sha256: str | None = None
    calibration_images: str | None = Field(default=None, description="folder; the built-in digits need none")
    evaluation_images: str | None = None
    selection_images: str | None = None
    class_names: tuple[str, ...] | None = Field(default=None, description="of the supernet, in the order of the logits")
    out: str | None = Field(default=None, description="folder of the artifacts")
    versions: dict[str, str] = Field(default_factory=dict, description="of fleetnas and its main dependencies")

    @property
    def selects_on_reported(self) -> bool:
        """Whether winners are chosen by the images that their accuracy is reported on."""
        return bool(self.plan.rerank) and same_folder(self.selection_images, self.evaluation_images)


def same_folder(one: str | Path | None, other: str | Path | None) -> bool:
    """Whether two paths, if both are given, are of one folder."""
    return one is not None and other is not None and Path(one).resolve() == Path(other).resolve()


def settings_of(run: RunRecord) -> RunSettings:
    """Read the settings of a stored run; `StoreError` where another fleetnas stored them in another form."""
    try:
        return RunSettings.model_validate(run.settings)
    except ValidationError as error:
        raise StoreError(
            f"the settings stored with run {run.run_id} cannot be read ({first_fault(error)}); use the fleetnas that "
            f"made it ({_made_by(run.settings)}), or leave this run alone"
        ) from error


def _made_by(settings: dict[str, Any]) -> str:
    versions = settings.get("versions")
    return str(versions.get("fleetnas", "not known"))[:40] if isinstance(versions, dict) else "not known"
