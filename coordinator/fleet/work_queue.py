"""Tasks of one device setting: the ready ones in order, the leased ones, and their cost on the wire."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from fleetnas.coordinator.fleet.task import Task
from fleetnas.coordinator.records.stored import TaskRecord
from fleetnas.coordinator.records.task_state import TaskState
from fleetnas.coordinator.records.transitions import require
from fleetnas.fleet_protocol.messages import RuntimeSetting

#: Attempts at one task before its subnet counts as failed. Each is a message and a write, and the wire's own limit is
#: far beyond what an honest device needs.
MOST_ATTEMPTS = 100


class WorkQueue:
    """Tasks of one device setting, each in at most one place."""

    def __init__(self, device: str, setting: RuntimeSetting, measured: Callable[[], int] = lambda: 0) -> None:
        """`measured` counts the measurements of the device setting, so that all settings of a device end together."""
        self.device = device
        self.setting = setting
        self.label = f"{device}/{setting.label}"
        """Device and setting, for people."""
        self._measured = measured
        self._ready: deque[Task] = deque()
        self._leased: dict[str, Task] = {}
        self._used_up: dict[str, Task] = {}
        self._returned = 0
        self._wire_bytes = 0
        self._closed = False

    @property
    def key(self) -> tuple[str, str]:
        """Device and label of the setting."""
        return self.device, self.setting.label

    @property
    def ready(self) -> Sequence[Task]:
        """Tasks to dispatch, the next one first."""
        return self._ready

    @property
    def leased(self) -> Mapping[str, Task]:
        """Tasks that the device holds, by task id."""
        return self._leased

    @property
    def is_empty(self) -> bool:
        """Whether no task is ready or leased."""
        return not self._ready and not self._leased

    @property
    def is_closed(self) -> bool:
        """Whether the device setting has ended: nothing is dispatched any more."""
        return self._closed

    @property
    def returned(self) -> int:
        """Number of tasks that came back undone since the last outcome."""
        return self._returned

    @property
    def wire_bytes(self) -> int:
        """Bytes sent and received for its tasks, without the bundle."""
        return self._wire_bytes

    @property
    def progress(self) -> int:
        """Number of measurements made and under way."""
        return self._measured() + len(self._leased)

    # -- tasks -------------------------------------------------------------------------------------------------

    def add(self, task: Task) -> None:
        """Append a task to the ready ones."""
        if self._closed:
            task.abandon()
        else:
            self._ready.append(task)

    def restore(self, task: Task, ends_s: float, held_until_s: float) -> None:
        """Take in a stored task that was sent before the coordinator was restarted: its device may still hold it."""
        if self._closed:
            task.abandon()
        else:
            task.lease(task.record, ends_s, held_until_s)
            self._leased[task.task_id] = task

    def lease(self, task: Task, attempt: TaskRecord, ends_s: float, held_until_s: float) -> None:
        """Move a ready task to the leased ones."""
        task.lease(attempt, ends_s, held_until_s)
        self._ready.remove(task)  # the first one, as a rule
        self._leased[task.task_id] = task

    def requeue(self, task: Task) -> None:
        """Move a leased task back before all ready ones; one that is used up is not dispatched again."""
        task.requeue(MOST_ATTEMPTS)
        del self._leased[task.task_id]
        self._returned += 1
        if task.state is TaskState.READY:
            self._ready.appendleft(task)
        else:
            self._used_up[task.task_id] = task

    def complete(self, task: Task) -> None:
        """Remove a task of which an outcome was counted."""
        before = task.state
        task.complete()
        if before is TaskState.LEASED:
            del self._leased[task.task_id]
        elif before is TaskState.READY:
            self._ready.remove(task)
        elif before is TaskState.USED_UP:
            del self._used_up[task.task_id]

    def close(self) -> None:
        """Abandon all tasks: the device setting has ended."""
        self._closed = True
        for task in (*self._ready, *self._leased.values(), *self._used_up.values()):
            task.abandon()
        self._ready.clear()
        self._leased.clear()
        self._used_up.clear()

    # -- counts ------------------------------------------------------------------------------------------------

    def count_bytes(self, size: int) -> None:
        """Count bytes that were sent or received for one of its tasks."""
        self._wire_bytes += size

    def restore_bytes(self, size: int) -> None:
        """Take over the count of an earlier coordinator."""
        self._wire_bytes = size

    def count_outcome(self) -> None:
        """Note that an outcome was stored: the tasks that came back undone before it do not count any more."""
        self._returned = 0

    def validate(self) -> None:
        """Check that each task is in the place that belongs to its state; `BrokenInvariantError` names another."""
        ended_empty = self.is_empty and not self._used_up
        require(not self._closed or ended_empty, "{} has ended and still has tasks", self.label)
        require(self._returned >= 0, "{} had {} tasks returned", self.label, self._returned)
        require(len({task.task_id for task in self._ready}) == len(self._ready), "{} has a task twice", self.label)
        for task in self._ready:
            require(
                task.state is TaskState.READY, "task {} is ready in {} and {}", task.task_id, self.label, task.state
            )
        for task_id, task in self._leased.items():
            require(task.state is TaskState.LEASED, "task {} is leased in {} and {}", task_id, self.label, task.state)
            require(task.task_id == task_id, "task {} is leased as {}", task.task_id, task_id)
        for task_id, task in self._used_up.items():
            require(task.state is TaskState.USED_UP, "task {} is used up in {} and {}", task_id, self.label, task.state)

    def holds(self, task: Task) -> bool:
        """Whether the task is in the one place that belongs to its state; one that is done or abandoned is in none."""
        return (
            (task in self._ready) == (task.state is TaskState.READY)
            and (task.task_id in self._leased) == (task.state is TaskState.LEASED)
            and (task.task_id in self._used_up) == (task.state is TaskState.USED_UP)
        )
