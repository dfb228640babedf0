"""Tasks of a campaign: numbered, dispatched under a lease, requeued, and known for as long as results may come.

A task is stored before it is sent, so that any coordinator of the store can take its result. The rest of its round is
stored with it, so that a restarted coordinator ends the round that was begun.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from pydantic import ValidationError

from fleetnas.coordinator.fleet.agent_link import run_of
from fleetnas.coordinator.fleet.connection import FleetConnection
from fleetnas.coordinator.fleet.task import Task
from fleetnas.coordinator.fleet.work_queue import WorkQueue
from fleetnas.coordinator.records.campaign_identity import CampaignIdentity
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.stored import TaskRecord
from fleetnas.coordinator.records.task_protocol import task_protocol
from fleetnas.coordinator.records.task_state import TaskState
from fleetnas.coordinator.records.transitions import require
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.fleet_protocol.errors import TransportError
from fleetnas.fleet_protocol.messages import Inventory, TaskKey
from fleetnas.fleet_protocol.orders import MeasureTask

#: Tasks that one agent holds: the one it runs and the next, so that it never waits for the network.
PREFETCH = 2
#: More than an agent ever holds, unless it was cut off for long.
_ACKNOWLEDGED_WITH_A_TASK = 8
#: How long a re-measurement waits for a device that is slower than it typically is in the run.
REMEASURE_WAIT_S = 30.0
#: A lease outlives the device's own deadline by this much, and every message about a task renews it.
LEASE_SLACK_S = 20.0
#: No message renews a lease for longer than this beyond the deadlines: a device that only ever waits ends its tasks
#: like one that is silent. Longer than charging a battery or another agent's sustained run takes at a time.
MAX_HELD_S = 3600.0


class TaskDispatcher:
    """Dispatches the tasks of all device settings, and requeues them."""

    def __init__(
        self,
        identity: CampaignIdentity,
        plan: CampaignPlan,
        connection: FleetConnection,
        store: MeasurementStore,
        *,
        note: Callable[[str], None],
        give_up: Callable[[WorkQueue, Exception], object],
    ) -> None:
        """`give_up` ends a device setting for which no message can be made; it closes the queue."""
        self._identity, self._plan = identity, plan
        self._link, self._blobs, self._store = connection.link, connection.blobs, store
        self._note, self._give_up = note, give_up
        self._queues: list[WorkQueue] = []
        self._by_device: dict[str, list[WorkQueue]] = {}
        self._tasks: dict[str, tuple[WorkQueue, Task]] = {}
        #: Results that are stored and not acknowledged yet, by agent.
        self._unacknowledged: dict[str, list[tuple[WorkQueue, TaskKey]]] = {}
        #: Tasks that are not stored yet.
        self._unstored: dict[str, Task] = {}
        #: Tasks in the order in which they were used up; some are done by now.
        self._used_up: list[tuple[WorkQueue, Task]] = []
        self._next_number = 1

    def add_queue(self, queue: WorkQueue) -> None:
        """Take in the queue of one more device setting."""
        self._queues.append(queue)
        self._by_device.setdefault(queue.device, []).append(queue)

    # -- known tasks -------------------------------------------------------------------------------------------

    def find(self, task_id: str) -> tuple[WorkQueue, Task] | None:
        """Return a task of this run, done or not, with its queue; None where the run has no such task."""
        return self._tasks.get(task_id)

    def leased(self, agent: str | None = None) -> list[tuple[WorkQueue, Task]]:
        """List the tasks that one agent holds, or all agents."""
        queues = self._queues if agent is None else self._by_device.get(agent, ())
        return [(queue, task) for queue in queues for task in queue.leased.values()]

    def used_up(self) -> list[tuple[WorkQueue, Task]]:
        """List the tasks that may not be dispatched again and have no outcome, in the order in which they came back."""
        self._used_up = [found for found in self._used_up if found[1].state is TaskState.USED_UP]
        return list(self._used_up)

    # -- making tasks ------------------------------------------------------------------------------------------

    def add(self, queue: WorkQueue, proposal: Proposal, model_sha256: str | None, calibration: bytes | None) -> None:
        """Make a task of a proposal; a verification has the hash and the statistics of the file that ships."""
        asked = proposal.precision if self._plan.precision == "auto" else None
        record = TaskRecord(
            task_id=f"{self._identity.run_id}.{self._next_number}",
            run_id=self._identity.run_id,
            device=queue.device,
            setting_label=queue.setting.label,
            purpose=proposal.purpose,
            architecture=proposal.architecture,
            target_ms=proposal.target_ms,
            target=proposal.target,
            asked_percentiles=proposal.percentiles or None,
            predicted_ms=proposal.predicted_ms,
            predicted_std_ms=proposal.predicted_std_ms,
            predicted_accuracy=proposal.predicted_accuracy,
            model_sha256=model_sha256,
            calibration=calibration,
            asked_half_width_percent=asked.half_width_percent if asked is not None else None,
            asked_sessions=asked.sessions if asked is not None else None,
        )
        self._next_number += 1
        task = self._unstored[record.task_id] = self._know(queue, record, proposal)
        queue.add(task)

    def restore(self, queue: WorkQueue, record: TaskRecord, proposal: Proposal, *, done: bool, now_s: float) -> None:
        """Take in a stored task; one that was sent and is not done may still be at work on its device.

        Its agent lists it in its `Inventory` then, or the lease ends.
        """
        task = self._know(queue, record, proposal)
        self._next_number = max(self._next_number, int(record.task_id.rpartition(".")[2]) + 1)
        if done:
            task.complete()
        elif record.attempt:
            ends_s = self._lease_end_s(now_s)
            queue.restore(task, ends_s, ends_s + MAX_HELD_S)
        else:
            queue.add(task)

    def _know(self, queue: WorkQueue, record: TaskRecord, proposal: Proposal) -> Task:
        statistics = record.calibration if record.model_sha256 is not None else None
        task = Task(record, proposal, self._blobs.add(statistics) if statistics is not None else None)
        self._tasks[record.task_id] = queue, task
        return task

    # -- dispatching -------------------------------------------------------------------------------------------

    def dispatch(self, agents: Iterable[str], now_s: float) -> bool:
        """Keep agents supplied: store their tasks in one transaction, then send them. False: there was nothing."""
        chosen: list[tuple[WorkQueue, Task]] = []
        for agent in agents:
            chosen.extend(self._choose(agent, PREFETCH - len(self.leased(agent))))
        if not chosen:
            return False
        # An attempt counts once it is sent: while nothing can be stored or sent, its number stays.
        attempts = [task.next_attempt() for _, task in chosen]
        first_times = {attempt.task_id for attempt in attempts}
        waiting = [task.record for number, task in self._unstored.items() if number not in first_times]
        self._store.put_tasks([*attempts, *waiting])
        self._unstored.clear()
        try:
            for (queue, task), attempt in zip(chosen, attempts, strict=True):
                if not queue.is_closed:  # it may have been given up over the task before
                    self._send(queue, task, attempt, now_s)
        except TransportError as error:  # The queue to the broker is full: the rest keeps its place.
            self._note(str(error))
        return True

    def _choose(self, agent: str, count: int) -> list[tuple[WorkQueue, Task]]:
        """Choose up to `count` ready tasks for an agent, which stay in their queues until they are sent."""
        taken: dict[WorkQueue, int] = {}
        chosen: list[tuple[WorkQueue, Task]] = []
        while len(chosen) < count:
            waiting = [queue for queue in self._by_device.get(agent, ()) if len(queue.ready) > taken.get(queue, 0)]
            if not waiting:
                break
            # The setting with the fewest measurements first, so that all of a device's settings end together.
            queue = min(waiting, key=lambda queue: (queue.progress + taken.get(queue, 0), queue.setting.label))
            position = taken.get(queue, 0)
            taken[queue] = position + 1
            chosen.append((queue, next(islice(queue.ready, position, None))))
        return chosen

    def _send(self, queue: WorkQueue, task: Task, attempt: TaskRecord, now_s: float) -> None:
        stored = self._unacknowledged.get(queue.device, [])[:_ACKNOWLEDGED_WITH_A_TASK]
        try:
            message = MeasureTask(
                task=TaskKey(task_id=attempt.task_id, attempt=attempt.attempt),
                run_id=self._identity.run_id,
                bundle=self._identity.bundle,
                mirror=self._identity.mirror,
                architecture=task.record.architecture,
                calibration=task.calibration,
                setting=queue.setting,
                protocol=task_protocol(self._plan.protocol, attempt, self._plan.deadline_s),
                **self._conditions(task.proposal),
                profile=self._plan.profile_winners and attempt.purpose == "verification",
                deadline_s=self._plan.deadline_s,
                stored=tuple(key for _, key in stored),
            )
        except ValidationError as error:
            self._give_up(queue, error)
            return
        queue.count_bytes(self._link.send_task(queue.device, message))
        if stored:
            del self._unacknowledged[queue.device][: len(stored)]
        held_until_s = now_s + PREFETCH * self._plan.deadline_s + LEASE_SLACK_S + MAX_HELD_S
        queue.lease(task, attempt, self._lease_end_s(now_s), held_until_s)

    def _lease_end_s(self, now_s: float) -> float:
        return now_s + self._plan.deadline_s + LEASE_SLACK_S

    def _conditions(self, proposal: Proposal) -> dict[str, Any]:
        """Return the condition under which a subnet is measured, and how long its device is waited for."""
        if self._plan.conditions == "cool":
            return {"condition": "cool", "wait_s": self._plan.cool_s}
        wait_s = REMEASURE_WAIT_S if proposal.wait_above is not None else 0.0
        return {"condition": self._plan.conditions, "wait_s": wait_s, "wait_above": proposal.wait_above}

    # -- acknowledging -----------------------------------------------------------------------------------------

    def acknowledge(self, queue: WorkQueue, key: TaskKey) -> None:
        """Have a stored result acknowledged, with its agent's next task or by `acknowledge_rest`."""
        self._unacknowledged.setdefault(queue.device, []).append((queue, key))

    def acknowledge_rest(self) -> None:
        """Acknowledge the stored results of agents that got no task."""
        stored, self._unacknowledged = self._unacknowledged, {}
        for agent, results in stored.items():
            for queue, key in results:
                try:
                    queue.count_bytes(self._link.acknowledge(agent, key))
                except TransportError as error:  # noqa: PERF203 - the agent sends it again, and is told then
                    self._note(str(error))

    # -- leases ------------------------------------------------------------------------------------------------

    def renew(self, agent: str, now_s: float, *, anew: bool = False) -> None:
        """Renew all leases of an agent, which works on its tasks in turn.

        With `anew`, the time does not count that the tasks have been held so far.
        """
        ends_s = self._lease_end_s(now_s)
        for _, task in self.leased(agent):
            task.renew(ends_s, ends_s + MAX_HELD_S if anew else None)

    def expire(self, now_s: float) -> list[tuple[WorkQueue, Task]]:
        """Requeue and return the tasks whose leases have ended."""
        ended = [
            found for found in self.leased() if found[1].lease_ends_s is not None and now_s > found[1].lease_ends_s
        ]
        for queue, task in ended:
            task.expire()
            missing = "message" if now_s <= task.held_until_s else "result"
            self._note(f"{queue.label}: no {missing} came for task {task.task_id} in time; it is dispatched again")
            self.cancel(queue.device, task.key)
            self.requeue(queue, task)
        return ended

    def requeue_all(self, agent: str) -> None:
        """Requeue all tasks that an agent holds."""
        for queue, task in self.leased(agent):
            self.requeue(queue, task)

    def requeue(self, queue: WorkQueue, task: Task) -> None:
        """Have a leased task dispatched again, before all others, unless it is used up."""
        queue.requeue(task)
        if task.state is TaskState.USED_UP:
            self._used_up.append((queue, task))

    def reconcile(self, agent: str, held: Inventory) -> None:
        """Compare an agent's inventory with its leases after a disconnection on either side.

        Tasks that it does not hold are requeued, and tasks of this run that are done are cancelled. Tasks of another
        run are left alone: another coordinator may be at work.
        """
        working = (*held.queued, *([held.running] if held.running is not None else []))
        theirs = {*working, *held.unacknowledged}
        for queue, task in self.leased(agent):
            if task.key not in theirs:
                self.requeue(queue, task)
        for key in working:
            found = self._tasks.get(key.task_id)
            ours = run_of(key) == self._identity.run_id
            if ours and (found is None or found[1].state is TaskState.DONE or found[0].device != agent):
                self.cancel(agent, key)

    def complete(self, queue: WorkQueue, task: Task, attempt: int) -> None:
        """Count a task as done with its first outcome, whichever attempt brought it; cancel a newer attempt."""
        if attempt < task.record.attempt and task.state is TaskState.LEASED:
            self.cancel(queue.device, task.key)
        queue.complete(task)

    def cancel(self, agent: str, key: TaskKey) -> None:
        """Have an agent forget a task; where that cannot be sent, its result will be stored and not counted."""
        try:
            self._link.cancel(agent, key)
        except TransportError as error:
            self._note(str(error))

    def validate(self) -> None:
        """Check every task and queue; `BrokenInvariantError` names the first contradiction. For tests: O(tasks)."""
        for queue in self._queues:
            queue.validate()
        used_up = [task.task_id for _, task in self._used_up if task.state is TaskState.USED_UP]
        require(len(set(used_up)) == len(used_up), "a task is used up twice: {}", used_up)
        ended = (TaskState.DONE, TaskState.ABANDONED)  # in no place, as the queues have checked
        for task_id, (queue, task) in self._tasks.items():
            if task.state in ended:
                continue
            task.validate()
            require(task.task_id == task_id, "task {} is known as {}", task.task_id, task_id)
            require(queue.holds(task), "task {} is {} and in another place of {}", task_id, task.state, queue.key)
            require((task.state is TaskState.USED_UP) == (task_id in used_up), "task {} is {}", task_id, task.state)
            number = int(task_id.rpartition(".")[2])
            require(number < self._next_number, "task {} has a number that is used again", task_id)
        for task_id, task in self._unstored.items():
            require(task.record.attempt == 0, "task {} was sent before it was stored", task_id)
            require(self._tasks[task_id][1] is task, "task {} is to be stored and not known", task_id)
