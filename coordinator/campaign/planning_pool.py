"""What a device setting does next, and what its winners are worth: at once where that is quick, else on a worker."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor

from fleetnas.coordinator.campaign.setting_run import PlannedTask, SettingRun
from fleetnas.coordinator.campaign.winner_builder import WinnerBuilder
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.fleet_protocol.messages import RuntimeSetting

#: More than any round proposes.
_ROUND = 10_000


class PlanningPool:
    """Asks searches, has winners calibrated and evaluated."""

    def __init__(
        self,
        models: WinnerBuilder,
        executor: Executor,
        asks_at_once: Callable[[], bool],
        is_ready: Callable[[SettingRun], object],
    ) -> None:
        """`asks_at_once` says that searches answer too quickly to be worth another thread.

        `is_ready` is called, from a worker, when something about a device setting is ready to be collected.
        """
        self._models, self._executor, self._asks_at_once, self._is_ready = models, executor, asks_at_once, is_ready

    def plan(self, setting_run: SettingRun) -> list[PlannedTask] | None:
        """The next tasks; None where they will be the result of `setting_run.plan`."""
        asked = setting_run.search.ask(_ROUND) if self._asks_at_once() else None
        if asked is not None and all(
            proposal.purpose != "verification"
            or self._models.calibrates_at_once(proposal.architecture, setting_run.setting)
            for proposal in asked
        ):
            return self._make_plan(setting_run.search, setting_run.setting, asked)
        setting_run.plan = self._executor.submit(self._make_plan, setting_run.search, setting_run.setting, asked)
        setting_run.plan.add_done_callback(lambda _: self._is_ready(setting_run))
        return None

    def _make_plan(
        self, search: DeviceTuner, setting: RuntimeSetting, asked: list[Proposal] | None
    ) -> list[PlannedTask]:
        """Think unless that is done, and build the files that verifications are about."""
        return [
            PlannedTask(
                proposal,
                self._models.calibrate(proposal.architecture, setting) if proposal.purpose == "verification" else None,
            )
            for proposal in (search.ask(_ROUND) if asked is None else asked)
        ]

    def evaluate(self, setting_run: SettingRun, proposal: Proposal) -> None:
        """Find out the accuracy of a winner that has just been verified, where that is what `proposal` was for."""
        state = setting_run.search.target(proposal.target_ms)
        if proposal.purpose != "verification" or state is None or state.status != "met":
            return
        subnet = proposal.architecture.fingerprint
        if subnet in setting_run.evaluations or subnet in setting_run.accuracies:
            return
        model = setting_run.models[subnet]
        if self._models.evaluates_at_once(model):
            found = self._models.accuracy(model)
            if found is not None:
                setting_run.accuracies[subnet] = found
            return
        evaluation = self._executor.submit(self._models.accuracy, model)
        setting_run.evaluations[subnet] = evaluation
        evaluation.add_done_callback(lambda _: self._is_ready(setting_run))
