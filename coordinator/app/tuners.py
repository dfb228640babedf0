"""Makes the tuner of each device setting; settings share one search and, with equal priors, one initial design."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fleetnas.coordinator.app.target_checks import check_targets, checked_on
from fleetnas.coordinator.predictors.prior import Prior
from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.search.blas import single_threaded_blas
from fleetnas.coordinator.search.problem import CachedAccuracy, PredictedAccuracy
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.store.stored_devices import StoredPriors
from fleetnas.coordinator.tuning.class_tuner import ClassTuner
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.tuning.no_search import NoSearch
from fleetnas.coordinator.tuning.pooling import BoardPool
from fleetnas.coordinator.tuning.setting_tuner import SettingTuner
from fleetnas.coordinator.tuning.shared_archive import SharedArchive
from fleetnas.coordinator.tuning.subnet_tuner import SubnetTuner
from fleetnas.coordinator.tuning.target_solver import BundleTargetSolver
from fleetnas.coordinator.tuning.target_state import rule_out
from fleetnas.fleet_protocol.messages import AgentInfo, RuntimeSetting
from fleetnas.supernet_export.spaces.base import DesignSpace

Made = TypeVar("Made", bound=DeviceTuner)


class NoSearchFactory:
    """Makes tuners of device settings on which baselines alone are measured."""

    at_once = True

    def __init__(self, space: DesignSpace) -> None:
        self._space = space

    def __call__(self, info: AgentInfo, setting: RuntimeSetting) -> NoSearch:
        """Return a tuner that asks for nothing."""
        del info, setting
        return NoSearch(self._space)


class TunerFactory:
    """Makes `DeviceTuner`s for one campaign."""

    def __init__(
        self, space: DesignSpace, accuracy: PredictedAccuracy, plan: CampaignPlan, priors: StoredPriors | None
    ) -> None:
        """`priors` None: every tuner starts from the default prior.

        `UsageError` where targets should span the latencies of a single network, or no subnet keeps an accuracy.
        """
        check_targets(space, accuracy, plan)
        self._space, self._plan, self._priors = space, plan, priors
        self._predicted, self._accuracy = accuracy, CachedAccuracy(accuracy)
        self._archives: dict[Bounds, SharedArchive] = {}
        if plan.targets.count:
            self._archive(plan.bounds).expect(max(plan.wait_for, len(plan.devices)))
        #: `StoredPriors` gives settings of nearly equal hardware the same prior.
        self._designs: dict[tuple[Prior | None, Bounds], InitialDesign] = {}
        self._pool = BoardPool(self._class_tuner, verify_boards=plan.verify_boards, seed=plan.seed)

    def _archive(self, bounds: Bounds) -> SharedArchive:
        """Return the search that the device settings with these bounds share."""
        if bounds not in self._archives:
            solver = BundleTargetSolver(self._space, self._predicted, self._plan.strategy, bounds=bounds)
            self._archives[bounds] = SharedArchive(solver, self._space, self._predicted, bounds)
        return self._archives[bounds]

    @property
    def at_once(self) -> bool:
        """Whether tuners answer too quickly to be worth another thread."""
        return bool(self._archives) and all(archive.at_once for archive in self._archives.values())

    def __call__(self, info: AgentInfo, setting: RuntimeSetting) -> SettingTuner:
        """Make the tuner of one setting of an agent, which shares the search of its equals where they are pooled.

        `UsageError` where none of its targets can be measured there.
        """
        pooled = self._pool.tuner(info, setting) if self._plan.pools else None
        return pooled if pooled is not None else self._tuner(DeviceTuner, info, setting)

    def _class_tuner(self, info: AgentInfo, setting: RuntimeSetting) -> ClassTuner:
        return self._tuner(ClassTuner, info, setting)

    def _tuner(self, kind: type[Made], info: AgentInfo, setting: RuntimeSetting) -> Made:
        """Make a search of its own."""
        request, bounds = self._plan.request_for(info.agent, info), self._plan.bounds_for(info.agent, info)
        unsupported = checked_on(request, info, setting)
        archive = self._archive(bounds)
        archive.join()
        prior = self._priors.prior(info.profile, setting, info.agent) if self._priors is not None else None
        plan = self._plan
        if (prior, bounds) not in self._designs:
            self._designs[prior, bounds] = InitialDesign(
                self._space,
                count=min(plan.initial_design, plan.budget),
                seed=plan.seed,
                prior=prior,
                bounds=bounds,
            )
        made = kind(
            self._designs[prior, bounds],
            self._accuracy,
            request,
            archive,
            budget=plan.budget,
            rerank=plan.rerank,
            protocol=plan.protocol,
        )
        rule_out(made.targets, unsupported)
        return made


class SubnetTunerFactory:
    """Makes the `SubnetTuner`s of a plan with given subnets."""

    #: They answer too quickly to be worth another thread.
    at_once = True

    def __init__(self, space: DesignSpace, accuracy: PredictedAccuracy | None, plan: CampaignPlan) -> None:
        self._space, self._plan = space, plan
        self._accuracy = CachedAccuracy(accuracy) if accuracy is not None else None

    def __call__(self, info: AgentInfo, setting: RuntimeSetting) -> SubnetTuner:
        """Make the tuner of one setting of an agent."""
        del info, setting
        plan = self._plan
        return SubnetTuner(self._space, plan.architectures, target_ms=plan.target_ms, accuracy=self._accuracy)


def stored_priors(
    store: MeasurementStore,
    space: DesignSpace,
    plan: CampaignPlan,
    created_unix_s: float,
    note: Callable[[str], object],
) -> StoredPriors | None:
    """Learn the priors of a run that was created at `created_unix_s`; None where its plan asks for the default one."""
    if plan.prior != "learned":
        return None
    with single_threaded_blas():  # with matrices this small, more threads take longer
        return StoredPriors(store, space, created_unix_s, without=plan.prior_without, note=note)
