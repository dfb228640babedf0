"""Results of tasks that this campaign did not dispatch: of earlier runs, or of a coordinator that is gone for good.

An agent repeats a result until it is acknowledged, so some coordinator has to acknowledge it. The campaign does not
wait for that: results of runs that the store does not hold are answered from memory, the others one by one, agent by
agent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from fleetnas.coordinator.fleet.agent_link import AgentLink, run_of
from fleetnas.coordinator.records.clocks import Clocks
from fleetnas.coordinator.records.stored import Outcome, TaskRecord
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import ProtocolError, TransportError
from fleetnas.fleet_protocol.messages import Failed, Measurement, Result, TaskKey, TaskUpdate

#: A coordinator that wants a result takes it within seconds, or after its own restart. A result that is repeated for
#: longer than this has no coordinator; should its run be resumed after all, the subnet is measured again.
FORGET_AFTER_S = 120.0
#: An agent repeats an unacknowledged result after 30 s. One that came longer ago than this was not taken.
FORWARDED_S = 25.0
#: Unknown results that are remembered, of one agent and of all: an agent that invents results must not fill the memory,
#: nor have others' forgotten. An agent keeps no more than the first.
_MOST_OF_AN_AGENT, _MOST_KEPT = 1000, 10_000
#: Results of one agent that wait to be looked up; it sends others again.
_MOST_WAITING = 256
#: Results that are looked up between two rounds of the campaign's own work, each of another agent where there are any.
_LOOKED_UP_AT_ONCE = 8
#: Interval between two queries for the runs of the store: another coordinator may have begun one.
_RUNS_S = 5.0


class OrphanedResults:
    """Stores results of other runs of the store, and has agents forget results of unknown runs."""

    def __init__(
        self,
        run_id: str,
        link: AgentLink,
        store: MeasurementStore,
        *,
        clocks: Clocks,
        note: Callable[[str], None],
    ) -> None:
        """`run_id` is the campaign's own run.

        The dispatcher knows its tasks, but those of baselines and of device settings that take no part any more.
        """
        self._run_id, self._link, self._store = run_id, link, store
        self._clock, self._wall_clock = clocks.elapsed, clocks.wall
        self._note = note
        self._first_received_s: dict[str, dict[TaskKey, float]] = {}
        self._kept = 0
        self._waiting: dict[str, dict[TaskKey, Result | Failed]] = {}
        self._runs: set[str] = set()
        self._own: frozenset[str] | None = None
        self._asked_s = float("-inf")

    def forward(self, agent: str, update: TaskUpdate) -> bool:
        """Forward an update to the coordinator of its run; False where that is no other one."""
        try:
            return self._link.forward(agent, update)
        except TransportError as error:  # A result comes again; of the rest, its lease takes care.
            self._note(str(error))
            return True

    def is_overdue(self, agent: str, key: TaskKey) -> bool:
        """Whether a result that its own coordinator received, or was forwarded to it, comes again: that one is gone."""
        return self._clock() - self._first_received(agent, key) >= FORWARDED_S

    def take(self, agent: str, update: Result | Failed) -> None:
        """Keep a result for `work`, or have it forgotten where the store holds no such run or task.

        `ProtocolError` where no coordinator has come for it yet, and where too many wait; `StoreError` where the runs
        of the store cannot be listed.
        """
        key = update.task
        if run_of(key) == self._run_id and key.task_id not in self._own_tasks():
            # A baseline's, of a killed coordinator of this run: it is measured again.
            self._acknowledge(agent, key, stored=False)
            return
        if not self._holds(run_of(key)):
            self._wait_or_forget(agent, update)
            return
        waiting = self._waiting.setdefault(agent, {})
        if len(waiting) >= _MOST_WAITING and key not in waiting:
            raise ProtocolError(
                f"{agent} has {len(waiting)} results of earlier runs waiting to be stored; that of task {key.task_id} "
                "is dropped until it is sent again"
            )
        waiting[key] = update

    @property
    def behind(self) -> bool:
        """Whether results wait to be stored."""
        return bool(self._waiting)

    def work(self) -> None:
        """Store and acknowledge a few waiting results, or have them forgotten; after `StoreError` they still wait."""
        for _ in range(_LOOKED_UP_AT_ONCE):
            agent = next(iter(self._waiting), None)
            if agent is None:
                return
            key, update = next(iter(self._waiting[agent].items()))
            try:
                self._look_up(agent, update)
            except ProtocolError as error:
                self._link.refuse(str(error))
            waiting = self._waiting.pop(agent)
            del waiting[key]
            if waiting:
                self._waiting[agent] = waiting  # behind the other agents

    def _look_up(self, agent: str, update: Result | Failed) -> None:
        key = update.task
        record = self._store.task(key.task_id)
        if record is None:
            self._wait_or_forget(agent, update)
            return
        if record.device != agent or key.attempt > record.attempt:
            raise ProtocolError(f"{agent} speaks of task {key.task_id}, which it was not given; it is dropped")
        stored = self._store.add_outcome(key, outcome_to_store(record, update), self._wall_clock())
        if stored and record.run_id not in self._link.others_at_work:
            self._note(f"{agent} still had a result of run {record.run_id}; it is stored there")
        self._acknowledge(agent, key)

    def _own_tasks(self) -> Collection[str]:
        """Tasks of this run that the store held when it was first asked: those that came later are dispatched."""
        if self._own is None:
            self._own = self._store.history.task_ids(self._run_id)
        return self._own

    def _holds(self, run_id: str) -> bool:
        """Whether the store may know a task of that run."""
        now = self._clock()
        if run_id not in self._runs and now - self._asked_s >= _RUNS_S:
            self._runs, self._asked_s = self._store.run_ids(), now
        return run_id in self._runs

    def _first_received(self, agent: str, key: TaskKey) -> float:
        """Return when a remembered result came first."""
        received = self._first_received_s.setdefault(agent, {})
        if key not in received:
            received[key] = self._clock()
            self._kept += 1
            if len(received) > _MOST_OF_AN_AGENT:
                self._forget(agent, next(iter(received)))
            elif self._kept > _MOST_KEPT:
                fullest = max(self._first_received_s, key=lambda name: len(self._first_received_s[name]))
                self._forget(fullest, next(iter(self._first_received_s[fullest])))
        return received.get(key, self._clock())

    def _forget(self, agent: str, key: TaskKey) -> None:
        received = self._first_received_s.get(agent, {})
        if received.pop(key, None) is not None:
            self._kept -= 1
        if not received:
            self._first_received_s.pop(agent, None)

    def _wait_or_forget(self, agent: str, update: Result | Failed) -> None:
        key = update.task
        if not self.is_overdue(agent, key):
            return  # a coordinator with a store of its own takes it now
        if self._clock() - self._first_received(agent, key) < FORGET_AFTER_S:
            raise ProtocolError(
                f"{agent} holds a result of task {key.task_id}, which is in no run of this store; it is dropped, and "
                f"forgotten unless a coordinator takes it within {FORGET_AFTER_S:g} s"
                + (f" ({update.detail})" if isinstance(update, Failed) and update.detail else "")
            )
        self._forget(agent, key)
        self._note(f"{agent} may forget its result of task {key.task_id}: no coordinator has come for it")
        self._acknowledge(agent, key, stored=False)

    def _acknowledge(self, agent: str, key: TaskKey, *, stored: bool = True) -> None:
        try:
            self._link.acknowledge(agent, key, stored=stored)
        except TransportError as error:  # The agent repeats it, and is told then.
            self._note(str(error))


def outcome_to_store(record: TaskRecord, update: Result | Failed) -> Outcome:
    """Return the outcome of an attempt: a verification of another file than the one that ships is a failure."""
    if isinstance(update, Failed):
        return update
    measured: Measurement = update.measurement
    if record.model_sha256 in (None, measured.model_sha256):
        return measured
    detail = (
        f"it measured a file with SHA-256 {measured.model_sha256}, and the one that ships has {record.model_sha256}"
    )
    return Failed(task=update.task, reason="bad_output", detail=detail)
