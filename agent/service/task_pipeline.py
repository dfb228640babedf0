"""Hold the tasks of one agent: one is at work, the others wait."""

from __future__ import annotations

import logging

from fleetnas.agent.service.connection import Connection
from fleetnas.agent.service.run_resources import RunResources
from fleetnas.agent.service.task_queue import TaskQueue
from fleetnas.agent.service.task_runner import Outcome, TaskRunner
from fleetnas.fleet_protocol.codec import BlobChunk
from fleetnas.fleet_protocol.messages import AgentInfo, BlobRequest, Phase, Progress, Rejected, TaskKey
from fleetnas.fleet_protocol.orders import MeasurementTask

#: How long one step waits for the child, and for a fetch or a cooling, in seconds.
_CHILD_S, _ACTIVE_S = 0.25, 0.2

_log = logging.getLogger("fleetnas.agent")


class TaskPipeline:
    """Works on tasks in the order of their arrival, and publishes their progress and their blob requests."""

    def __init__(self, info: AgentInfo, resources: RunResources, connection: Connection) -> None:
        self._resources = resources
        self._connection = connection
        self._queue = TaskQueue(info.settings, accepts_models=info.accepts_models)
        self._run: TaskRunner | None = None
        self._waits_for = ""

    @property
    def running(self) -> TaskKey | None:
        """The attempt at work."""
        return self._run.task.task if self._run is not None else None

    @property
    def queued(self) -> tuple[TaskKey, ...]:
        """The attempts that wait, in order."""
        return self._queue.keys

    @property
    def keys(self) -> tuple[TaskKey, ...]:
        """The attempt at work, if any, and those that wait."""
        return self.queued if self._run is None else (self._run.task.task, *self.queued)

    @property
    def waits_for(self) -> str:
        """Why the task at work waits instead of being measured; empty while it does not."""
        return self._run.waits_for if self._run is not None else ""

    def event_wait_s(self, idle_s: float) -> float:
        """Return how long events may be waited for: `idle_s` without a task, not at all while the child works."""
        if self._run is None:
            return 0.0 if self._queue else idle_s
        return 0.0 if self._run.measuring else _ACTIVE_S

    def add(self, task: MeasurementTask, now: float) -> Rejected | None:
        """Queue a task; return the reason instead if it cannot be done here."""
        return self._queue.add(task, now)

    def cancel(self, key: TaskKey) -> bool:
        """Stop or remove an attempt; return whether it was here."""
        if self._run is not None and self._run.task.task == key:
            self._run.stop()
            self._run = None
            return True
        return self._queue.remove(key)

    def receive(self, chunk: BlobChunk) -> Outcome | None:
        """Give a chunk to the task at work; return the task's outcome if the chunk ends it."""
        return self._ended(self._run.receive(chunk)) if self._run is not None else None

    def on_reconnected(self) -> None:
        """Request again what was requested on the connection before."""
        if self._run is not None:
            self._run.on_reconnected()

    def step(self, now: float) -> Outcome | None:
        """Go on with the task at work, or begin the next one; return the outcome once there is one."""
        if self._run is None:
            if not self._queue:
                return None
            self._run = self._start_next()
            self._waits_for = ""
        outcome = self._run.step(now, _CHILD_S)
        self._log_wait(self._run)
        return self._ended(outcome)

    def stop(self) -> None:
        """Stop the task at work and remove the others."""
        if self._run is not None:
            self._run.stop()
            self._run = None
        self._queue.clear()

    def _ended(self, outcome: Outcome | None) -> Outcome | None:
        if outcome is not None:
            self._run = None
        return outcome

    def _start_next(self) -> TaskRunner:
        queued = self._queue.pop()
        key = queued.task.task

        def request_blob(request: BlobRequest) -> None:
            self._connection.publish("blob", request)

        def report(phase: Phase, fraction: float) -> None:
            self._connection.publish("task", Progress(task=key, phase=phase, fraction=fraction), qos=0)

        return TaskRunner(queued, self._resources, request_blob, report)

    def _log_wait(self, run: TaskRunner) -> None:
        if run.waits_for != self._waits_for:
            self._waits_for = run.waits_for
            if self._waits_for:
                _log.warning("task %s waits: %s", run.task.task.task_id, self._waits_for)
            else:
                _log.info("task %s goes on", run.task.task.task_id)
