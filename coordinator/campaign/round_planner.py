"""Plan the next round of a device setting and make its tasks."""

from __future__ import annotations

from fleetnas.coordinator.campaign.agenda import Agenda
from fleetnas.coordinator.campaign.event_emitter import EventEmitter
from fleetnas.coordinator.campaign.planning_pool import PlanningPool
from fleetnas.coordinator.campaign.roster import Roster
from fleetnas.coordinator.campaign.setting_run import PlannedTask, SettingRun
from fleetnas.coordinator.campaign.state_writer import StateWriter
from fleetnas.coordinator.fleet.task_dispatcher import TaskDispatcher


class RoundPlanner:
    """Has rounds planned, and turns plans into tasks."""

    def __init__(
        self,
        planning: PlanningPool,
        dispatcher: TaskDispatcher,
        roster: Roster,
        events: EventEmitter,
        writer: StateWriter,
        agenda: Agenda,
    ) -> None:
        self._planning, self._dispatcher, self._roster = planning, dispatcher, roster
        self._events, self._writer, self._agenda = events, writer, agenda

    def collect(self, setting_run: SettingRun) -> bool:
        """Make the tasks of a plan that a worker has made; False where there is none."""
        planned = setting_run.take_plan()
        if planned is None:
            return False
        self._make_tasks(setting_run, planned)
        return True

    def begin(self, setting_run: SettingRun) -> None:
        """Plan a round, at once where that is quick, else on a worker."""
        self._writer.mark_dirty(setting_run)
        planned = self._planning.plan(setting_run)
        if planned is not None:
            self._make_tasks(setting_run, planned)
            self._agenda.add(setting_run)

    def _make_tasks(self, setting_run: SettingRun, planned: list[PlannedTask]) -> None:
        self._writer.mark_dirty(setting_run)  # its targets may be known by now
        if self._roster.is_small and any(item.model is not None for item in planned):
            setting_run.search.predict_targets()
        for item in planned:
            self._announce(setting_run, item)
            model = item.model
            if model is not None:
                setting_run.add_model(model)
            self._dispatcher.add(
                setting_run.queue,
                item.proposal,
                model.sha256 if model is not None else None,
                model.calibration if model is not None else None,
            )

    def _announce(self, setting_run: SettingRun, item: PlannedTask) -> None:
        """Emit `TargetResolved` once per target and subnet."""
        if item.model is None:
            return
        for state in setting_run.search.targets:
            if not item.proposal.is_for(state):
                continue
            if not setting_run.announce(state, item.proposal.architecture.fingerprint):
                continue
            if state.architecture == item.proposal.architecture and state.measured_ms is not None:
                self._events.chosen(setting_run, state)
