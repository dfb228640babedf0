"""Plan rounds and evaluate winners: at once where that is quick, else on a worker thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor

from fleetnas.coordinator.campaign.setting_run import PlannedTask, SettingRun
from fleetnas.coordinator.campaign.winner_builder import WinnerBuilder
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.coordinator.tuning.setting_tuner import SettingTuner
from fleetnas.fleet_protocol.messages import RuntimeSetting

#: More than any round proposes.
_ROUND = 10_000


class PlanningPool:
    """Asks searches, has winners calibrated and evaluated."""

    def __init__(
        self, models: WinnerBuilder, executor: Executor, plans_at_once: Callable[[], bool] = lambda: False
    ) -> None:
        """`plans_at_once` returns whether searches answer too quickly to be worth another thread."""
        self._models, self._executor, self._plans_at_once = models, executor, plans_at_once
        #: Device settings of which a plan or an evaluation is finished; workers append to it.
        self._finished: deque[SettingRun] = deque()

    def take_finished(self) -> Iterator[SettingRun]:
        """Yield the device settings of which a worker finished a plan or an evaluation."""
        while self._finished:
            yield self._finished.popleft()

    def plan(self, setting_run: SettingRun) -> list[PlannedTask] | None:
        """Return the next tasks; None where a worker plans them: `setting_run.take_plan` returns them later."""
        search, setting = setting_run.search, setting_run.setting
        asked = search.ask(_ROUND) if self._plans_at_once() else None
        if asked is not None and all(
            proposal.purpose != "verification" or self._models.calibrates_at_once(proposal.architecture, setting)
            for proposal in asked
        ):
            return self._make_plan(search, setting, asked)
        plan = self._executor.submit(self._make_plan, search, setting, asked)
        setting_run.begin_plan(plan)
        plan.add_done_callback(lambda _: self._finished.append(setting_run))
        return None

    def _make_plan(
        self, search: SettingTuner, setting: RuntimeSetting, asked: list[Proposal] | None
    ) -> list[PlannedTask]:
        """Ask the search unless that is done, and build the files that verifications measure."""
        return [
            PlannedTask(
                proposal,
                self._models.calibrate(proposal.architecture, setting) if proposal.purpose == "verification" else None,
            )
            for proposal in (search.ask(_ROUND) if asked is None else asked)
        ]

    def evaluate(self, setting_run: SettingRun, proposal: Proposal) -> None:
        """Evaluate the accuracy of a winner, where `proposal` verified one and its accuracy is not known.

        Given subnets are decided together, by the last outcome.
        """
        state = setting_run.search.target_of(proposal)
        if proposal.purpose != "verification" or state is None:
            return
        if state.subnet:
            for decided in setting_run.search.decided:
                if decided.status is TargetStatus.MET:
                    self._evaluate(setting_run, decided.subnet)
        elif state.status is TargetStatus.MET:
            self._evaluate(setting_run, proposal.architecture.fingerprint)

    def _evaluate(self, setting_run: SettingRun, subnet: str) -> None:
        if subnet in setting_run.evaluations or subnet in setting_run.accuracies:
            return
        model = setting_run.model(subnet)
        if self._models.evaluates_at_once(model):
            setting_run.note_accuracy(subnet, self._models.accuracy(model))
            return
        evaluation = self._executor.submit(self._models.accuracy, model)
        setting_run.begin_evaluation(subnet, evaluation)
        evaluation.add_done_callback(lambda _: self._finished.append(setting_run))
