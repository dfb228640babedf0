"""Queue the tasks that wait for the measuring child, and keep the time that each may still take."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from fleetnas.fleet_protocol.messages import Rejected, RuntimeSetting, TaskKey
from fleetnas.fleet_protocol.orders import MeasurementTask, ModelTask

#: Tasks that may wait; the coordinator sends one or two ahead.
QUEUE_LIMIT = 8


class PausableDeadline:
    """Time left to a task; it stands still while the task waits for another agent of this host, or for the device."""

    def __init__(self, limit_s: float, now: float) -> None:
        self._ends_at = now + limit_s
        self._paused_at: float | None = None

    def pause(self, now: float) -> None:
        """Stop the time; without effect while it stands still."""
        if self._paused_at is None:
            self._paused_at = now

    def resume(self, now: float) -> None:
        """Let the time run again; without effect while it runs."""
        if self._paused_at is not None:
            self._ends_at += now - self._paused_at
            self._paused_at = None

    def give_back(self, spent_s: float) -> None:
        """Add time that was spent and does not count, in seconds."""
        self._ends_at += max(0.0, spent_s)

    def left_s(self, now: float) -> float:
        """Return the seconds left; negative once the deadline has passed."""
        return self._ends_at - (now if self._paused_at is None else self._paused_at)


@dataclass(frozen=True, slots=True)
class QueuedTask:
    """A task and how long it may still take."""

    task: MeasurementTask
    deadline: PausableDeadline


class TaskQueue:
    """Tasks in the order of their arrival, at most `QUEUE_LIMIT`, all of settings that this agent offers."""

    def __init__(self, settings: Sequence[RuntimeSetting], *, accepts_models: bool = False) -> None:
        """`accepts_models`: model files of the coordinator's are taken, not subnets alone."""
        self._settings = tuple(settings)
        self._accepts_models = accepts_models
        self._tasks: deque[QueuedTask] = deque()

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def keys(self) -> tuple[TaskKey, ...]:
        """The attempts that wait, in order."""
        return tuple(queued.task.task for queued in self._tasks)

    def add(self, task: MeasurementTask, now: float) -> Rejected | None:
        """Append a task; return the reason instead if it cannot be done here.

        A newer attempt replaces a waiting one of the same task, which the coordinator has given up.
        """
        self._tasks = deque(queued for queued in self._tasks if queued.task.task.task_id != task.task.task_id)
        objection = self._objection(task)
        if objection is None:
            self._tasks.append(QueuedTask(task, PausableDeadline(task.deadline_s, now)))
        return objection

    def remove(self, key: TaskKey) -> bool:
        """Remove an attempt; return whether it was waiting."""
        before = len(self._tasks)
        self._tasks = deque(queued for queued in self._tasks if queued.task.task != key)
        return len(self._tasks) < before

    def pop(self) -> QueuedTask:
        """Remove and return the first task; `IndexError` if there is none."""
        return self._tasks.popleft()

    def clear(self) -> None:
        """Remove every task."""
        self._tasks.clear()

    def _objection(self, task: MeasurementTask) -> Rejected | None:
        if task.setting not in self._settings:
            offered = ", ".join(setting.label for setting in self._settings)
            detail = f"this agent offers {offered}, not {task.setting.label}"
            return Rejected(task=task.task, reason="setting_unavailable", detail=detail[:500])
        if isinstance(task, ModelTask) and not self._accepts_models:
            detail = "this agent measures no model files that it is sent; start it with --accept-models"
            return Rejected(task=task.task, reason="setting_unavailable", detail=detail)
        if len(self._tasks) >= QUEUE_LIMIT:
            return Rejected(task=task.task, reason="busy", detail=f"{QUEUE_LIMIT} tasks wait already")
        return None
