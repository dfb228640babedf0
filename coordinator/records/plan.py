"""Plan of a campaign; stored with its run, so that a resumed run continues as it began."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from fleetnas.coordinator.records.baselines import MAX_BASELINES, Baseline
from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.device_targets import DeviceTargets, StoredTargets, entry_for
from fleetnas.coordinator.records.precision import PrecisionChoice
from fleetnas.coordinator.records.prior_choice import PriorChoice as PriorChoice
from fleetnas.coordinator.records.run_connection import RunConnection
from fleetnas.coordinator.records.setting_filter import SettingFilter
from fleetnas.coordinator.records.stored import RunRecord
from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.records.targets import MAX_TARGETS, TargetRequest
from fleetnas.device_profiles.quantities import LimitSeconds, Seconds
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.error_text import first_fault, one_line
from fleetnas.fleet_protocol.errors import StoreError, UsageError
from fleetnas.fleet_protocol.messages import AgentInfo, Condition, MeasurementProtocol
from fleetnas.supernet_export.manifest import Preprocessing

#: Kind of a run: subnets are searched, or given ones are measured.
RunKind: TypeAlias = Literal["search", "measure"]


class CampaignPlan(BaseModel):
    """The search, or the measurement of given subnets, that the user asked for. Times are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    targets: StoredTargets = Field(
        description="milliseconds such as 20,30, auto:N, or other kinds such as p95:33, fps:30; none"
    )
    device_targets: tuple[DeviceTargets, ...] = Field(
        default=(), max_length=10_000, description="targets and bounds of single devices, in place of those of the run"
    )
    architectures: tuple[Architecture, ...] = Field(
        default=(), max_length=MAX_TARGETS, description="subnets to measure and verify in place of a search"
    )
    baselines: tuple[Baseline, ...] = Field(
        default=(), max_length=MAX_BASELINES, description="networks to measure beside the winners; alone: only these"
    )
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
    devices: tuple[str, ...] = Field(
        default=(), description="patterns of agents that take part; empty: all that are there"
    )
    pool: bool = Field(default=False, description="equal boards are searched as one device")
    verify_boards: int | None = Field(
        default=None, ge=1, le=10_000, description="boards of a class that verify each target; null: all"
    )
    settings: SettingFilter = Field(default=SettingFilter(), description="runtime settings that take part")
    wait_for: int = Field(default=1, ge=1, description="agents to wait for before the campaign begins")
    join_s: LimitSeconds = Field(default=60.0, description="how long to wait for them")
    grace_s: Seconds = Field(default=60.0, description="how long a lost device may take to come back")
    deadline_s: LimitSeconds = Field(default=180.0, description="how long one measurement may take on a device")
    protocol: MeasurementProtocol = MeasurementProtocol()
    precision: PrecisionChoice = Field(
        default="auto", description="auto: each measurement as precise as it needs; fixed: all by the protocol"
    )
    conditions: Condition = Field(default="as-is", description="under which condition devices are measured")
    cool_s: Seconds = Field(
        default=60.0, description="how long a measurement may wait for its device to cool (conditions: cool)"
    )

    profile_winners: bool = Field(default=False, description="time the layers of each verified file on its device")

    if not TYPE_CHECKING:  # type checkers know the fields from the class

        def __init__(self, **fields: Any) -> None:
            """Make a plan; `UsageError` names the first field that cannot be used, and its value."""
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise UsageError(_refusal(error)) from error

    @model_validator(mode="after")
    def _one_purpose(self) -> CampaignPlan:
        asks = self.targets.count or self.device_targets or self.baselines
        if not self.architectures and not asks:
            raise ValueError("a search needs targets, such as 20,30 or auto:4")
        if self.architectures and (self.targets.automatic or self.targets.others or self.targets.count > 1):
            raise ValueError(f"given subnets are compared with one target in milliseconds or none, not {self.targets}")
        return self

    def with_baselines(self, baselines: tuple[Baseline, ...]) -> CampaignPlan:
        """Return the plan with these baselines; `UsageError` where there are too many."""
        if len(baselines) > MAX_BASELINES:
            raise UsageError(f"a run measures at most {MAX_BASELINES} baselines, and these are {len(baselines)}")
        return self.model_copy(update={"baselines": baselines})

    @property
    def only_baselines(self) -> bool:
        """Whether nothing is searched or verified."""
        return not self.architectures and not self.targets.count and not self.device_targets

    @property
    def only_files(self) -> bool:
        """Whether nothing but model files is measured, and no subnet."""
        return self.only_baselines and all(baseline.file is not None for baseline in self.baselines)

    @property
    def pools(self) -> bool:
        """Whether equal boards are searched as one device: a class has one list of targets, which are latencies."""
        return self.pool and not self.device_targets and not self.targets.others

    @property
    def targets_text(self) -> str:
        """The targets as views show them, with the number of entries for single devices."""
        if not self.device_targets:
            return str(self.targets)
        own = f"of their own for {len(self.device_targets)} devices or patterns"
        return f"{self.targets}; {own}" if self.targets.count else own

    @property
    def kind(self) -> RunKind:
        """Whether subnets are searched, or given ones measured."""
        return "measure" if self.architectures else "search"

    @property
    def method(self) -> str:
        """The search strategy by its name; of given subnets `measure`."""
        return "measure" if self.architectures else self.strategy.value

    @property
    def targets_asked(self) -> int:
        """Number of targets that each device setting gets: of given subnets, one each."""
        return len(self.architectures) or self.targets.count

    def request_for(self, device: str, info: AgentInfo) -> TargetRequest:
        """Return the targets that are asked for on a device."""
        entry = entry_for(self.device_targets, device, info)
        return self.targets if entry is None else entry.targets

    def bounds_for(self, device: str, info: AgentInfo) -> Bounds:
        """Return the bounds that hold for a device: those of the run, and its own where they are tighter."""
        entry = entry_for(self.device_targets, device, info)
        return self.bounds if entry is None else self.bounds.with_tighter(entry.bounds)

    def asked_of(self, device: str, info: AgentInfo) -> int:
        """Return the number of targets that are asked for on each setting of a device."""
        return len(self.architectures) or self.request_for(device, info).count

    @property
    def target_ms(self) -> float | None:
        """The latency that given subnets are compared with, ms; None where they are only measured."""
        return self.targets.fixed_ms[0] if self.architectures and self.targets.fixed_ms else None


def _refusal(error: ValidationError) -> str:
    """Describe the first field of a plan that cannot be used; a rule of this module has its own words."""
    fault = error.errors(include_url=False, include_context=False)[0]
    if fault["type"] == "value_error":
        return str(fault["msg"]).removeprefix("Value error, ")
    return f"no run can be planned with {first_fault(error, with_value=True)}; give another value"


class RunSettings(BaseModel):
    """Settings that the store keeps with a run beside its results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: CampaignPlan
    supernet_path: str
    design_space: str
    space_options: dict[str, Any] = Field(default_factory=dict)
    source: str = Field(description="origin of the checkpoint")
    checkpoint_sha256: str | None = None
    dataset: str | None = Field(default=None, description="what accuracy is about; null in runs of earlier versions")
    class_names: tuple[str, ...] | None = Field(default=None, description="null where the bundle has none")
    preprocessing: Preprocessing | None = Field(default=None, description="null in runs of earlier versions")
    calibration_images: str | None = Field(default=None, description="folder; the built-in digits need none")
    evaluation_images: str | None = None
    selection_images: str | None = None
    some_classes: bool = Field(default=False, description="these folders may lack classes")
    out: str | None = Field(default=None, description="folder of the artifacts")
    card: str | None = Field(default=None, description="model card to rewrite once its target is met")
    versions: dict[str, str] = Field(default_factory=dict, description="of fleetnas and its main dependencies")
    connection: RunConnection | None = Field(default=None, description="null in runs of earlier versions")

    @property
    def selects_on_reported(self) -> bool:
        """Whether winners are chosen by the images that their accuracy is reported on."""
        return bool(self.plan.rerank) and same_folder(self.selection_images, self.evaluation_images)


def same_folder(one: str | Path | None, other: str | Path | None) -> bool:
    """Whether two paths, if both are given, are of one folder."""
    return one is not None and other is not None and Path(one).resolve() == Path(other).resolve()


def kind_of(run: RunRecord) -> RunKind:
    """Return the kind of a stored run, also of one whose settings cannot be read."""
    plan = run.settings.get("plan")
    return "measure" if isinstance(plan, dict) and plan.get("architectures") else "search"


def settings_of(run: RunRecord) -> RunSettings:
    """Read the settings of a stored run; `StoreError` where another fleetnas stored them in another form."""
    try:
        return RunSettings.model_validate(run.settings)
    except (ValidationError, UsageError) as error:
        # A plan raises its own error, whose cause has the path.
        cause = error.__cause__
        nested = f"plan.{first_fault(cause)}" if isinstance(cause, ValidationError) else one_line(error)
        reason = first_fault(error) if isinstance(error, ValidationError) else nested
        raise StoreError(
            f"the settings stored with run {run.run_id} cannot be read ({reason}); use the fleetnas that made it "
            f"({_made_by(run.settings)}), or leave this run alone"
        ) from error


def is_search(run: RunRecord) -> bool:
    """Return whether a stored run searched, and did not measure given subnets; false where that cannot be read."""
    try:
        return settings_of(run).plan.kind == "search"
    except StoreError:
        return False


def _made_by(settings: dict[str, Any]) -> str:
    versions = settings.get("versions")
    return str(versions.get("fleetnas", "not known"))[:40] if isinstance(versions, dict) else "not known"
