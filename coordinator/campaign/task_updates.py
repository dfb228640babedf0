"""Route an agent's message about a task: to this campaign, to another coordinator, or to the orphaned results."""

from __future__ import annotations

from collections.abc import Callable

from fleetnas.coordinator.campaign.losses import LossMonitor
from fleetnas.coordinator.campaign.result_intake import ResultIntake
from fleetnas.coordinator.fleet.orphaned_results import OrphanedResults
from fleetnas.coordinator.fleet.registry import FleetRegistry
from fleetnas.coordinator.fleet.task_dispatcher import TaskDispatcher
from fleetnas.coordinator.store.circuit_breaker import CircuitBreaker
from fleetnas.fleet_protocol.errors import ProtocolError
from fleetnas.fleet_protocol.messages import Failed, Progress, Rejected, Result, TaskUpdate


class TaskUpdates:
    """Takes task updates of agents."""

    def __init__(
        self,
        registry: FleetRegistry,
        dispatcher: TaskDispatcher,
        intake: ResultIntake,
        losses: LossMonitor,
        orphans: OrphanedResults,
        breaker: CircuitBreaker,
        clock: Callable[[], float],
    ) -> None:
        self._registry, self._dispatcher, self._intake, self._losses = registry, dispatcher, intake, losses
        self._orphans, self._breaker, self._clock = orphans, breaker, clock

    def take(self, agent: str, update: TaskUpdate, size: int) -> None:
        """Take an update, which took `size` bytes; `ProtocolError` where the agent was not given that task."""
        if isinstance(update, Failed) and update.reason == "cancelled":
            return  # the answer to `CancelTask`: no outcome, and not in the agent's outbox
        found = self._dispatcher.find(update.task.task_id)
        if found is None:
            self._take_foreign(agent, update)
            return
        if found[0].device != agent or update.task.attempt > found[1].record.attempt:
            raise ProtocolError(f"{agent} speaks of task {update.task.task_id}, which it was not given; it is dropped")
        now = self._clock()
        entry = self._registry.on_message(agent, now)
        queue, task = found
        queue.count_bytes(size)
        self._dispatcher.renew(agent, now)
        if isinstance(update, Result | Failed):
            self._intake.receive(queue, task, update)
        elif isinstance(update, Progress):
            entry.progress(update.task, update.phase, update.fraction)
        elif isinstance(update, Rejected):
            self._losses.reject(queue, task, update, now)

    def _take_foreign(self, agent: str, update: TaskUpdate) -> None:
        """Forward an update of a task that this coordinator did not send, or keep a result whose coordinator is gone.

        Other updates are ignored: without sharing, every coordinator on a fleet receives those of all runs.
        """
        forwarded = self._orphans.forward(agent, update)
        self._registry.on_message(agent, self._clock())
        if not isinstance(update, Result | Failed):
            return
        orphaned = not forwarded or self._orphans.is_overdue(agent, update.task)
        if orphaned and self._breaker.may_try:
            with self._breaker.guard():
                self._orphans.take(agent, update)
