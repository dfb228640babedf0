"""One measurement task of a device setting: its record, its state and its lease."""

from __future__ import annotations

from dataclasses import replace

from fleetnas.coordinator.records.stored import TaskRecord
from fleetnas.coordinator.records.task_state import TaskState, transition
from fleetnas.coordinator.records.transitions import require
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.fleet_protocol.messages import BlobReference, TaskKey


class Task:
    """A task from its proposal to its outcome. Times are seconds of the campaign's clock."""

    def __init__(self, record: TaskRecord, proposal: Proposal, calibration: BlobReference | None = None) -> None:
        """`calibration` refers to the statistics of the file that a verification measures."""
        self.proposal = proposal
        self.calibration = calibration
        self._record = record
        self._state = TaskState.READY
        self._lease_ends_s: float | None = None
        self._held_until_s = float("inf")
        self._expired_leases = 0

    @property
    def record(self) -> TaskRecord:
        """The stored record, with the number of attempts that were sent."""
        return self._record

    @property
    def task_id(self) -> str:
        """Identifier of the task, the same for all of its attempts."""
        return self._record.task_id

    @property
    def state(self) -> TaskState:
        """Present state."""
        return self._state

    @property
    def key(self) -> TaskKey:
        """The attempt that was sent last."""
        return TaskKey(task_id=self._record.task_id, attempt=self._record.attempt)

    @property
    def expired_leases(self) -> int:
        """Number of leases that ended without a result."""
        return self._expired_leases

    @property
    def lease_ends_s(self) -> float | None:
        """End of the lease; None where no agent holds the task."""
        return self._lease_ends_s

    @property
    def held_until_s(self) -> float:
        """Time beyond which no message renews the lease."""
        return self._held_until_s

    def next_attempt(self) -> TaskRecord:
        """Return the record of the attempt after this one."""
        return replace(self._record, attempt=self._record.attempt + 1)

    # -- transitions: called by the task's `WorkQueue` ---------------------------------------------------------

    def lease(self, attempt: TaskRecord, ends_s: float, held_until_s: float) -> None:
        """Note that an agent holds `attempt` until `ends_s`, renewable until `held_until_s`."""
        self._enter(TaskState.LEASED)
        self._record = attempt
        self._lease_ends_s, self._held_until_s = ends_s, held_until_s

    def renew(self, ends_s: float, held_until_s: float | None = None) -> None:
        """Prolong the lease to `ends_s`, at most to the end of the holding time, which may be moved too."""
        if held_until_s is not None:
            self._held_until_s = held_until_s
        self._lease_ends_s = min(ends_s, self._held_until_s)

    def expire(self) -> None:
        """Count a lease that ended without a result."""
        self._expired_leases += 1

    def requeue(self, most_attempts: int) -> None:
        """End the lease without an outcome; after `most_attempts` attempts the task is used up."""
        used_up = self._record.attempt >= most_attempts
        self._enter(TaskState.USED_UP if used_up else TaskState.READY)

    def complete(self) -> None:
        """Note that an outcome was counted."""
        self._enter(TaskState.DONE)

    def abandon(self) -> None:
        """Note that the device setting ended before an outcome came."""
        self._enter(TaskState.ABANDONED)

    def _enter(self, state: TaskState) -> None:
        self._state = transition(self._state, state)
        if state is not TaskState.LEASED:
            self._lease_ends_s = None

    def validate(self) -> None:
        """Check the task against its state; `BrokenInvariantError` names the task and the contradiction."""
        ends_s = self._lease_ends_s
        leased = self._state is TaskState.LEASED
        require(
            leased == (ends_s is not None), "task {} is {}; its lease ends at {}", self.task_id, self._state, ends_s
        )
        if ends_s is not None:
            require(ends_s <= self._held_until_s, "task {} is leased for longer than it may be held", self.task_id)
            require(self._record.attempt > 0, "task {} is leased and no attempt was sent", self.task_id)
