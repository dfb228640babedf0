"""Makes the tuner of each device setting; settings share one search and, with equal priors, one initial design."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fleetnas.coordinator.predictors.prior import Prior
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
from fleetnas.fleet_protocol.errors import UsageError
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

        `UsageError` where targets should span the latencies of a single network.
        """
        if plan.targets.automatic and space.size == 1:
            raise UsageError(
                f"the bundle holds one network, whose latency is one number, so that auto:{plan.targets.automatic} has "
                "no range to span: give a target in milliseconds, or measure it with `fleetnas measure`"
            )
        solver = BundleTargetSolver(space, accuracy, plan.strategy, bounds=plan.bounds)
        self._space, self._plan, self._priors = space, plan, priors
        self._accuracy = CachedAccuracy(accuracy)
        self._archive = SharedArchive(solver, space, accuracy, plan.bounds)
        self._archive.expect(max(plan.wait_for, len(plan.devices)))
        #: `StoredPriors` gives settings of nearly equal hardware the same prior.
        self._designs: dict[Prior | None, InitialDesign] = {}
        self._pool = BoardPool(self._class_tuner, verify_boards=plan.verify_boards, seed=plan.seed)

    @property
    def at_once(self) -> bool:
        """Whether tuners answer too quickly to be worth another thread."""
        return self._archive.at_once

    def __call__(self, info: AgentInfo, setting: RuntimeSetting) -> SettingTuner:
        """Make the tuner of one setting of an agent, which shares the search of its equals where they are pooled."""
        pooled = self._pool.tuner(info, setting) if self._plan.pool else None
        return pooled if pooled is not None else self._tuner(DeviceTuner, info, setting)

    def _class_tuner(self, info: AgentInfo, setting: RuntimeSetting) -> ClassTuner:
        return self._tuner(ClassTuner, info, setting)

    def _tuner(self, kind: type[Made], info: AgentInfo, setting: RuntimeSetting) -> Made:
        """Make a search of its own."""
        self._archive.join()
        prior = self._priors.prior(info.profile, setting, info.agent) if self._priors is not None else None
        plan = self._plan
        if prior not in self._designs:
            self._designs[prior] = InitialDesign(
                self._space,
                count=min(plan.initial_design, plan.budget),
                seed=plan.seed,
                prior=prior,
                bounds=plan.bounds,
            )
        return kind(
            self._designs[prior],
            self._accuracy,
            plan.targets,
            self._archive,
            budget=plan.budget,
            rerank=plan.rerank,
            protocol=plan.protocol,
        )


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
