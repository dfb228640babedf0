"""Advance device settings that have changed: take plans and evaluations, end the setting, or plan its next round."""

from __future__ import annotations

from collections.abc import Callable

from fleetnas.coordinator.campaign.agenda import Agenda
from fleetnas.coordinator.campaign.endings import SettingEndings
from fleetnas.coordinator.campaign.losses import LossMonitor
from fleetnas.coordinator.campaign.outcome_learner import OutcomeLearner
from fleetnas.coordinator.campaign.round_planner import RoundPlanner
from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.coordinator.records.statuses import SettingStatus

#: Planning in one tick: an agent that has its tasks already must not wait until a hundred others have theirs.
_PLANNING_S = 0.05


class SettingAdvancer:
    """Takes the changed device settings of the agenda. An exception in one of them ends that one alone."""

    def __init__(
        self,
        planner: RoundPlanner,
        learner: OutcomeLearner,
        endings: SettingEndings,
        losses: LossMonitor,
        agenda: Agenda,
        clock: Callable[[], float],
        note: Callable[[str], None],
    ) -> None:
        """`clock` is that of the campaign, seconds."""
        self._planner, self._learner, self._endings, self._losses = planner, learner, endings, losses
        self._agenda, self._clock, self._note = agenda, clock, note

    def advance_changed(self, now: float) -> None:
        """Advance changed device settings, until a tick has taken long enough; the others stay in the agenda."""
        began_s = self._clock()
        for setting_run in self._agenda.take_changed():
            if setting_run.status is SettingStatus.RUNNING:
                with self._endings.contained(setting_run):
                    self._advance(setting_run, now)
                self._agenda.supply(setting_run.device)
            if self._clock() - began_s >= _PLANNING_S:
                break

    def _advance(self, setting_run: SettingRun, now: float) -> None:
        """Take finished plans and evaluations; then end the device setting, or plan its next round."""
        if self._planner.collect(setting_run):
            self._learner.tell(setting_run)
        for reason in setting_run.collect_evaluations():
            self._note(f"{setting_run.label}: {reason}")
        if setting_run.plan is None:
            self._endings.settle(setting_run)
        if self._losses.give_up_absent(setting_run, now):
            return
        if setting_run.search.finished:
            if not setting_run.busy:
                failed = setting_run.search.failure_reason
                self._endings.close(setting_run, SettingStatus.FAILED if failed else SettingStatus.FINISHED, failed)
        elif setting_run.search.needs_planning and not setting_run.busy:
            self._planner.begin(setting_run)
