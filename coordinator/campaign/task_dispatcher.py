"""The tasks of a campaign: numbered, handed out under a lease, taken back, and known for as long as results may come.

A task is in the store before its agent hears of it, so that its result is stored whoever coordinates then; and with
it the rest of its round, so that whoever coordinates then ends the round that was begun.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from fleetnas.coordinator.campaign.setting_run import PlannedTask, SettingRun, SettingTask
from fleetnas.coordinator.campaign.winner_builder import CalibratedModel
from fleetnas.coordinator.fleet.agent_link import AgentLink, run_of
from fleetnas.coordinator.fleet.blob_server import BlobServer
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.stored import TaskRecord
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.fleet_protocol.errors import TransportError
from fleetnas.fleet_protocol.messages import BlobReference, Inventory, TaskKey
from fleetnas.fleet_protocol.orders import MeasureTask

#: Tasks that one agent holds: the one it runs and the next, so that it never waits for the network.
PREFETCH = 2
#: More than an agent ever holds, unless it was cut off for long.
_ACKNOWLEDGED_WITH_A_TASK = 8
#: How long a re-measurement waits for a device that is slower than it typically is in the run.
REMEASURE_WAIT_S = 30.0
#: Attempts at one task before its subnet counts as failed. Each is a message and a write, and the wire's own limit is
#: far beyond what an honest device needs.
MOST_ATTEMPTS = 100
#: A lease outlives the device's own deadline by this much, and is renewed by every word about a task.
LEASE_SLACK_S = 20.0
#: No word renews it for longer than this beyond the deadlines: a device that only ever waits ends its tasks like one
#: that is silent. Beyond what charging a battery or another agent's sustained run takes at a time.
MAX_HELD_S = 3600.0


class TaskDispatcher:
    """Hands tasks out and takes them back."""

    def __init__(
        self,
        run_id: str,
        bundle: BlobReference,
        plan: CampaignPlan,
        setting_runs: dict[tuple[str, str], SettingRun],
        *,
        mirror: str | None = None,
        link: AgentLink,
        blobs: BlobServer,
        store: MeasurementStore,
        note: Callable[[str], None],
        give_up: Callable[[SettingRun, Exception], object],
    ) -> None:
        """`give_up` ends a device setting for which no task can be made."""
        self._give_up = give_up
        self._run_id, self._bundle, self._mirror, self._plan = run_id, bundle, mirror, plan
        self._setting_runs = setting_runs
        self._by_device: dict[str, list[SettingRun]] = {}
        self._link, self._blobs, self._store, self._note = link, blobs, store, note
        self._tasks: dict[str, tuple[SettingRun, SettingTask]] = {}
        self._done: set[str] = set()
        #: Results that are stored and not acknowledged yet, by agent.
        self._stored: dict[str, list[tuple[SettingRun, TaskKey]]] = {}
        #: Tasks that the store has not heard of.
        self._unstored: dict[str, SettingTask] = {}
        #: Tasks that may not be tried again, by id.
        self.used_up: dict[str, tuple[SettingRun, SettingTask]] = {}
        self._next_number = 1

    def join(self, setting_run: SettingRun) -> None:
        """Know a device setting, which is among the campaign's setting runs."""
        self._by_device.setdefault(setting_run.device, []).append(setting_run)

    # -- what is known -----------------------------------------------------------------------------------------

    def find(self, task_id: str) -> tuple[SettingRun, SettingTask] | None:
        """A task of this run, done or not."""
        return self._tasks.get(task_id)

    def is_done(self, task_id: str) -> bool:
        """Whether an outcome of the task was counted."""
        return task_id in self._done

    def setting_runs_of(self, agent: str) -> Sequence[SettingRun]:
        """The settings of one device."""
        return self._by_device.get(agent, ())

    def out(self, agent: str | None = None) -> list[tuple[SettingRun, SettingTask]]:
        """What is handed out, to one agent or to all."""
        setting_runs = self._setting_runs.values() if agent is None else self.setting_runs_of(agent)
        return [(setting_run, task) for setting_run in setting_runs for task in setting_run.leased.values()]

    # -- making tasks ------------------------------------------------------------------------------------------

    def add(self, setting_run: SettingRun, planned: PlannedTask) -> None:
        """Make a task of a proposal."""
        proposal, model = planned.proposal, planned.model
        record = TaskRecord(
            task_id=f"{self._run_id}.{self._next_number}",
            run_id=self._run_id,
            device=setting_run.device,
            setting_label=setting_run.setting.label,
            purpose=proposal.purpose,
            architecture=proposal.architecture,
            target_ms=proposal.target_ms,
            predicted_ms=proposal.predicted_ms,
            predicted_std_ms=proposal.predicted_std_ms,
            predicted_accuracy=proposal.predicted_accuracy,
            model_sha256=model.sha256 if model is not None else None,
            calibration=model.calibration if model is not None else None,
        )
        self._next_number += 1
        task = self._unstored[record.task_id] = self._know(setting_run, record, proposal)
        setting_run.ready.append(task)

    def restore(
        self, setting_run: SettingRun, record: TaskRecord, proposal: Proposal, *, done: bool, lease_ends_s: float
    ) -> None:
        """Know a stored task; one that is not done is to be handed out.

        One that was may still be at work: its agent says so in `Inventory`, or the lease ends.
        """
        task = self._know(setting_run, record, proposal)
        self._next_number = max(self._next_number, int(record.task_id.rpartition(".")[2]) + 1)
        if done:
            self._done.add(record.task_id)
        elif record.attempt:
            task.lease_ends_s = lease_ends_s
            task.held_until_s = lease_ends_s + MAX_HELD_S
            setting_run.leased[record.task_id] = task
        else:
            setting_run.ready.append(task)

    def _know(self, setting_run: SettingRun, record: TaskRecord, proposal: Proposal) -> SettingTask:
        task = SettingTask(record, proposal)
        self._tasks[record.task_id] = setting_run, task
        if record.model_sha256 is not None:
            model = CalibratedModel(record.architecture, setting_run.setting, record.model_sha256, record.calibration)
            setting_run.models[record.architecture.fingerprint] = model
            if record.calibration is not None:
                task.calibration = self._blobs.add(record.calibration)
        return task

    # -- out and back ------------------------------------------------------------------------------------------

    def dispatch(self, agents: Iterable[str], now_s: float) -> bool:
        """Keep agents supplied: what they get is stored in one transaction, then sent. False: there was nothing."""
        chosen: list[tuple[SettingRun, SettingTask]] = []
        for agent in agents:
            chosen.extend(self._choose(agent, PREFETCH - len(self.out(agent))))
        # An attempt counts once it is sent: while nothing can be stored or sent, its number stays.
        attempts = [task.next_attempt() for _, task in chosen]
        sent = 0
        try:
            if chosen:
                first_times = {attempt.task_id for attempt in attempts}
                waiting = [task.record for number, task in self._unstored.items() if number not in first_times]
                self._store.put_tasks([*attempts, *waiting])
                self._unstored.clear()
            for (setting_run, task), attempt in zip(chosen, attempts, strict=True):
                if setting_run.status == "running":  # it may have been given up over the task before
                    self._send(setting_run, task, attempt, now_s)
                sent += 1
        except TransportError as error:
            self._note(str(error))
        finally:
            # What was not sent keeps its place: the queue to the broker is full, or the store away.
            for setting_run, task in reversed(chosen[sent:]):
                setting_run.ready.appendleft(task)
        return bool(chosen)

    def _choose(self, agent: str, count: int) -> list[tuple[SettingRun, SettingTask]]:
        """Take up to `count` tasks for an agent from what is ready."""
        chosen: list[tuple[SettingRun, SettingTask]] = []
        while len(chosen) < count:
            waiting = [
                setting_run
                for setting_run in self.setting_runs_of(agent)
                if setting_run.status == "running" and setting_run.ready
            ]
            if not waiting:
                break
            # The setting with the fewest measurements first, so that all of a device's settings end together.
            setting_run = min(waiting, key=lambda t: (_handed_out(t, chosen), t.setting.label))
            chosen.append((setting_run, setting_run.ready.popleft()))
        return chosen

    def acknowledge(self, setting_run: SettingRun, key: TaskKey) -> None:
        """A result is in the store: its agent hears it with its next task, or from `acknowledge_rest`."""
        self._stored.setdefault(setting_run.device, []).append((setting_run, key))

    def acknowledge_rest(self) -> None:
        """Tell the agents that got no task which of their results are stored."""
        stored, self._stored = self._stored, {}
        for agent, results in stored.items():
            for setting_run, key in results:
                try:
                    setting_run.wire_bytes += self._link.acknowledge(agent, key)
                except TransportError as error:  # noqa: PERF203 - the agent sends it again, and is told then
                    self._note(str(error))

    def _send(self, setting_run: SettingRun, task: SettingTask, attempt: TaskRecord, now_s: float) -> None:
        stored = self._stored.get(setting_run.device, [])[:_ACKNOWLEDGED_WITH_A_TASK]
        try:
            message = MeasureTask(
                task=TaskKey(task_id=attempt.task_id, attempt=attempt.attempt),
                run_id=self._run_id,
                bundle=self._bundle,
                mirror=self._mirror,
                architecture=task.record.architecture,
                calibration=task.calibration,
                setting=setting_run.setting,
                protocol=self._plan.protocol,
                **self._conditions(task.proposal),
                deadline_s=self._plan.deadline_s,
                stored=tuple(key for _, key in stored),
            )
        except ValidationError as error:
            self._give_up(setting_run, error)
            return
        setting_run.wire_bytes += self._link.send_task(setting_run.device, message)
        if stored:
            del self._stored[setting_run.device][: len(stored)]
        task.record = attempt
        setting_run.leased[task.record.task_id] = task
        task.lease_ends_s = now_s + self._plan.deadline_s + LEASE_SLACK_S
        task.held_until_s = now_s + PREFETCH * self._plan.deadline_s + LEASE_SLACK_S + MAX_HELD_S

    def _conditions(self, proposal: Proposal) -> dict[str, Any]:
        """Under which condition a subnet is measured, and how long its device is waited for."""
        if self._plan.conditions == "cool":
            return {"condition": "cool", "wait_s": self._plan.cool_s}
        wait_s = REMEASURE_WAIT_S if proposal.wait_above is not None else 0.0
        return {"condition": self._plan.conditions, "wait_s": wait_s, "wait_above": proposal.wait_above}

    def renew(self, agent: str, now_s: float, *, anew: bool = False) -> None:
        """A word about one task of an agent renews the leases of all: it works on them in turn.

        With `anew`, the time does not count that the tasks have been held so far.
        """
        for _, task in self.out(agent):
            task.lease_ends_s = now_s + self._plan.deadline_s + LEASE_SLACK_S
            if anew:
                task.held_until_s = task.lease_ends_s + MAX_HELD_S
            task.lease_ends_s = min(task.lease_ends_s, task.held_until_s)

    def expired(self, now_s: float) -> list[tuple[SettingRun, SettingTask]]:
        """Take back every task whose lease has ended, and return them."""
        ended = [found for found in self.out() if found[1].lease_ends_s is not None and now_s > found[1].lease_ends_s]
        for setting_run, task in ended:
            task.expired_leases += 1
            heard = "nothing" if now_s <= task.held_until_s else "no result"
            self._note(
                f"{setting_run.label}: {heard} was heard of task {task.record.task_id} in time; it is handed out again"
            )
            self.cancel(setting_run.device, task.key)
            self.requeue(setting_run, task)
        return ended

    def requeue_all(self, agent: str) -> None:
        """Everything that an agent holds is to be handed out again."""
        for setting_run, task in self.out(agent):
            self.requeue(setting_run, task)

    def requeue(self, setting_run: SettingRun, task: SettingTask) -> None:
        """A task is to be handed out again, before all others."""
        setting_run.leased.pop(task.record.task_id, None)
        task.lease_ends_s = None
        setting_run.returned += 1
        if setting_run.status != "running" or task in setting_run.ready:
            return
        if task.record.attempt >= MOST_ATTEMPTS:
            self.used_up[task.record.task_id] = setting_run, task
        else:
            setting_run.ready.appendleft(task)

    def reconcile(self, agent: str, held: Inventory) -> None:
        """After the agent or we were away: leases that it knows nothing of are void, and so is work that is done.

        What another run gave out is not ours to call off: its coordinator may be at work beside us.
        """
        working = (*held.queued, *([held.running] if held.running is not None else []))
        theirs = {*working, *held.unacknowledged}
        for setting_run, task in self.out(agent):
            if task.key not in theirs:
                self.requeue(setting_run, task)
        for key in working:
            found = self._tasks.get(key.task_id)
            ours = run_of(key) == self._run_id
            if ours and (found is None or self.is_done(key.task_id) or found[0].device != agent):
                self.cancel(agent, key)

    def complete(self, setting_run: SettingRun, task: SettingTask, attempt: int) -> None:
        """A task's first outcome has come, whichever attempt it is of; a newer attempt is called off."""
        if attempt < task.record.attempt and task.record.task_id in setting_run.leased:
            self.cancel(setting_run.device, task.key)
        self._done.add(task.record.task_id)
        self.used_up.pop(task.record.task_id, None)
        setting_run.leased.pop(task.record.task_id, None)
        if task in setting_run.ready:
            setting_run.ready.remove(task)

    def cancel(self, agent: str, key: TaskKey) -> None:
        """Have a task forgotten; where that cannot be said, its result will be stored and not counted."""
        try:
            self._link.cancel(agent, key)
        except TransportError as error:
            self._note(str(error))


def _handed_out(setting_run: SettingRun, chosen: Sequence[tuple[SettingRun, SettingTask]]) -> int:
    return setting_run.search.measurements + len(setting_run.leased) + sum(other is setting_run for other, _ in chosen)
