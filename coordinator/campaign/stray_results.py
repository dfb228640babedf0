"""Results of tasks that this campaign never gave out: of runs before it, or of a coordinator that is gone for good.

An agent repeats a result until it is told that it may forget it, so somebody has to tell it.
"""

from __future__ import annotations

from collections.abc import Callable

from coordinator.campaign.wire import FleetWire
from coordinator.store.records import Outcome, TaskRecord
from coordinator.store.store import MeasurementStore
from fleet_protocol.errors import ProtocolError, TransportError
from fleet_protocol.messages import Failed, Measurement, Result, TaskKey

#: A coordinator that wants a result takes it within seconds, or after its own restart. What is repeated for longer
#: than this belongs to nobody; should its run be resumed after all, the subnet is measured again.
FORGET_AFTER_S = 120.0
#: An agent repeats what is not acknowledged after 30 s. What was passed on longer ago than this has not been taken.
PASSED_ON_S = 25.0
#: Unknown results that are remembered: who invents them must not fill the memory.
_MOST_REMEMBERED = 10_000


class StrayResults:
    """Stores what belongs to another run of the store, and has what belongs to none forgotten."""

    def __init__(
        self,
        wire: FleetWire,
        store: MeasurementStore,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        note: Callable[[str], None],
    ) -> None:
        self._wire, self._store = wire, store
        self._clock, self._wall_clock = clock, wall_clock
        self._note = note
        self._first_heard_s: dict[tuple[str, TaskKey], float] = {}

    def is_overdue(self, agent: str, key: TaskKey) -> bool:
        """Whether a result that was passed on to the coordinator that asked for it comes again: that one is gone."""
        now = self._clock()
        overdue = now - self._first_heard_s.setdefault((agent, key), now) >= PASSED_ON_S
        while len(self._first_heard_s) > _MOST_REMEMBERED:
            del self._first_heard_s[next(iter(self._first_heard_s))]
        return overdue

    def take(self, agent: str, update: Result | Failed) -> None:
        """Store and acknowledge it, or have it forgotten.

        `ProtocolError` where it is another agent's, or where its coordinator may still come for it; `StoreError` where
        it cannot be stored.
        """
        key = update.task
        record = self._store.task(key.task_id)
        if record is None:
            self._wait_or_forget(agent, key)
            return
        if record.device != agent or key.attempt > record.attempt:
            raise ProtocolError(f"{agent} speaks of task {key.task_id}, which it was not given; it is dropped")
        if self._store.add_outcome(key, outcome_to_store(record, update), self._wall_clock()):
            self._note(f"{agent} still had a result of run {record.run_id}; it is stored there")
        self._tell(lambda: self._wire.acknowledge(agent, key))

    def _wait_or_forget(self, agent: str, key: TaskKey) -> None:
        now = self._clock()
        first_s = self._first_heard_s.setdefault((agent, key), now)
        if now - first_s < FORGET_AFTER_S:
            while len(self._first_heard_s) > _MOST_REMEMBERED:
                del self._first_heard_s[next(iter(self._first_heard_s))]
            raise ProtocolError(
                f"{agent} holds a result of task {key.task_id}, which is in no run of this store; it is dropped, and "
                f"forgotten should nobody take it within {FORGET_AFTER_S:g} s"
            )
        del self._first_heard_s[agent, key]
        self._note(f"{agent} may forget its result of task {key.task_id}: no coordinator has come for it")
        self._tell(lambda: self._wire.acknowledge(agent, key, stored=False))

    def _tell(self, say: Callable[[], object]) -> None:
        try:
            say()
        except TransportError as error:  # The agent sends it again, and is told then.
            self._note(str(error))


def outcome_to_store(record: TaskRecord, update: Result | Failed) -> Outcome:
    """What counts of an attempt: a verification of another file than the one that ships is a failure."""
    if isinstance(update, Failed):
        return update
    measured: Measurement = update.measurement
    if record.model_sha256 in (None, measured.model_sha256):
        return measured
    detail = (
        f"it measured a file with SHA-256 {measured.model_sha256}, and the one that ships has {record.model_sha256}"
    )
    return Failed(task=update.task, reason="bad_output", detail=detail)
