"""Let a device setting's search learn from stored outcomes, and emit the events that follow from them."""

from __future__ import annotations

from fleetnas.coordinator.campaign.agenda import Agenda
from fleetnas.coordinator.campaign.event_emitter import EventEmitter
from fleetnas.coordinator.campaign.planning_pool import PlanningPool
from fleetnas.coordinator.campaign.roster import Roster
from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.coordinator.fleet.registry import FleetRegistry
from fleetnas.coordinator.fleet.task import Task
from fleetnas.coordinator.records.stored import Outcome
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.fleet_protocol.messages import Measurement


class OutcomeLearner:
    """Counts the first outcome of each task and tells the search."""

    def __init__(
        self,
        roster: Roster,
        registry: FleetRegistry,
        events: EventEmitter,
        planning: PlanningPool,
        agenda: Agenda,
        budget: int,
    ) -> None:
        """`budget` is the number of measurements that a device setting may make, for events."""
        self._roster, self._registry, self._events = roster, registry, events
        self._planning, self._agenda, self._budget = planning, agenda, budget

    def learn(self, setting_run: SettingRun, task: Task, outcome: Outcome) -> None:
        """Take the first outcome of a task."""
        self._agenda.add(setting_run)
        self._registry.end_task(setting_run.device, task.task_id)
        if isinstance(outcome, Measurement):
            setting_run.take_conditions(outcome.after)
        setting_run.receive(task.proposal, outcome)
        findings = setting_run.count_outcome(outcome)
        self._events.outcome(setting_run, task, outcome, setting_run.measurements, self._budget)
        self._events.found(setting_run, outcome, findings)
        self.tell(setting_run)

    def tell(self, setting_run: SettingRun) -> None:
        """Tell the search the outcomes that came, unless a plan is being made from earlier ones."""
        for proposal, outcome in setting_run.take_inbox():
            setting_run.search.tell(proposal, outcome)
            often = self._roster.is_small or setting_run.search.finished or setting_run.learned_much
            if often and setting_run.note_learning():
                self._events.learned(setting_run)
                setting_run.search.predict_targets()
            if proposal.purpose != "verification":
                continue
            self._planning.evaluate(setting_run, proposal)
            state = setting_run.search.target_of(proposal)
            if state is not None and state.status is TargetStatus.OPEN and state.verifications:
                self._events.missed(setting_run, state)
