"""Store results and failures that arrived, acknowledge them, and count the first outcome of each task."""

from __future__ import annotations

from collections.abc import Callable

from fleetnas.coordinator.campaign.endings import SettingEndings
from fleetnas.coordinator.campaign.outcome_learner import OutcomeLearner
from fleetnas.coordinator.campaign.roster import Roster
from fleetnas.coordinator.fleet.orphaned_results import outcome_to_store
from fleetnas.coordinator.fleet.task import Task
from fleetnas.coordinator.fleet.task_dispatcher import TaskDispatcher
from fleetnas.coordinator.fleet.work_queue import WorkQueue
from fleetnas.coordinator.records.clocks import Clocks
from fleetnas.coordinator.records.stored import Arrival, Outcome
from fleetnas.coordinator.records.task_state import TaskState
from fleetnas.coordinator.store.circuit_breaker import CircuitBreaker
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.messages import MAX_ATTEMPTS, Failed, Result, TaskKey


class ResultIntake:
    """Takes the outcomes of this run's tasks; none is acknowledged before it is stored."""

    def __init__(
        self,
        store: MeasurementStore,
        breaker: CircuitBreaker,
        dispatcher: TaskDispatcher,
        roster: Roster,
        endings: SettingEndings,
        learner: OutcomeLearner,
        clocks: Clocks,
        note: Callable[[str], None],
    ) -> None:
        self._store, self._breaker, self._dispatcher, self._roster = store, breaker, dispatcher, roster
        self._endings, self._learner, self._clocks, self._note = endings, learner, clocks, note
        #: Outcomes that are not stored yet: one transaction for all that arrived together.
        self._arrived: dict[TaskKey, tuple[WorkQueue, Task, Outcome]] = {}

    def receive(self, queue: WorkQueue, task: Task, update: Result | Failed) -> None:
        """Keep an outcome until it is stored; one that is repeated before that counts once."""
        outcome = outcome_to_store(task.record, update)
        first = update.task not in self._arrived and task.state is not TaskState.DONE
        if first and isinstance(update, Result) and isinstance(outcome, Failed):
            self._note(f"{queue.label}: result of {update.task.task_id} refused: {outcome.detail}")
        self._arrived.setdefault(update.task, (queue, task, outcome))

    def store_arrived(self) -> list[str]:
        """Store all that arrived, then acknowledge it, then learn from it; a repeated one is only acknowledged.

        While the store is unavailable, nothing is acknowledged. Returns the agents whose outcomes were stored.
        """
        if not self._arrived or not self._breaker.may_try:
            return []
        now_unix_s = self._clocks.wall()
        arrived: dict[TaskKey, tuple[WorkQueue, Task, Outcome]] = {}
        with self._breaker.guard():
            self._store.add_outcomes([Arrival(key, found[2], now_unix_s) for key, found in self._arrived.items()])
            arrived, self._arrived = self._arrived, {}
            self._breaker.reset()
        for key, (queue, task, outcome) in arrived.items():
            self._dispatcher.acknowledge(queue, key)
            queue.count_outcome()
            # Another coordinator of this store may have stored it first; this search learns from it all the same.
            if task.state is not TaskState.DONE:
                self._complete(queue, task, key.attempt, outcome)
        return [queue.device for queue, _, _ in arrived.values()]

    def fail(self, queue: WorkQueue, task: Task, detail: str) -> None:
        """Count a task as failed, whatever its agent may still send; `StoreUnavailableError` leaves it as it is."""
        # For an attempt that is never sent: the result of the last one may still come, and is stored then.
        attempt = min(task.record.attempt + 1, MAX_ATTEMPTS)
        failed = Failed(task=TaskKey(task_id=task.task_id, attempt=attempt), reason="timeout", detail=detail)
        self._store.add_outcome(failed.task, failed, self._clocks.wall())
        if task.state is not TaskState.DONE:
            self._complete(queue, task, task.record.attempt, failed)

    def _complete(self, queue: WorkQueue, task: Task, attempt: int, outcome: Outcome) -> None:
        setting_run = self._roster.of_queue(queue)
        with self._endings.contained(setting_run):
            self._dispatcher.complete(queue, task, attempt)
            self._learner.learn(setting_run, task, outcome)
