"""Work on one task, from its place in the queue to its outcome: fetch, wait if the task asks for that, measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from fleetnas.agent.measuring.messages import (
    FailedReply,
    MeasuredReply,
    PhaseReply,
    ProbedReply,
    Reply,
    SlowReply,
    UnreadyReply,
)
from fleetnas.agent.service.progress import ProgressReporter
from fleetnas.agent.service.run_resources import RunResources
from fleetnas.agent.service.run_state import RunState, transition
from fleetnas.agent.service.task_order import order_of
from fleetnas.agent.service.task_queue import QueuedTask
from fleetnas.agent.service.task_result import make_result
from fleetnas.agent.transfer.task_blobs import BlobSources, TaskBlobs
from fleetnas.device_profiles.quantities import LATEST_UNIX_S
from fleetnas.fleet_protocol.codec import BlobChunk
from fleetnas.fleet_protocol.errors import BundleError
from fleetnas.fleet_protocol.messages import BlobRequest, Failed, FailureReason, Phase, Rejected, Result

#: How long a device that is too slow or too warm is left alone before it is looked at again, in seconds.
LOOK_AGAIN_S = 2.0
#: How long a device rests before its battery is looked at again.
RESTING_S = 30.0
#: A wait for the host's lock that lasts this long is longer than another agent's usual measurement.
LONG_WAIT_S = 60.0

Outcome: TypeAlias = Result | Failed | Rejected


class TaskRunner:
    """A task at work: call `step` until it returns an outcome."""

    def __init__(
        self,
        queued: QueuedTask,
        resources: RunResources,
        request_blob: Callable[[BlobRequest], None],
        report: Callable[[Phase, float], None],
    ) -> None:
        self.task = queued.task
        self._deadline = queued.deadline
        self._resources = resources
        self._progress = ProgressReporter(report)
        sources = BlobSources(resources.cache, resources.partial_folder, resources.mirrors, request_blob)
        self._blobs = TaskBlobs(self.task, sources)
        self._state = RunState.FETCHING
        #: When a device that cools or rests is looked at again.
        self._look_at = 0.0
        #: Until when the task waits for a faster or cooler device; None before the first look at it.
        self._wait_ends: float | None = None
        #: Whether the child's order is another look at a device that was too slow or too warm.
        self._looks_again = False
        #: The lock that the child waits for before it begins; empty once it has it.
        self._lock_wait = ""
        self._last_reply_at = 0.0
        self._waits_for = ""

    @property
    def state(self) -> RunState:
        """What the run does now."""
        return self._state

    @property
    def measuring(self) -> bool:
        """Whether the child is at work, so that its reply is the next event."""
        return self._state is RunState.MEASURING

    @property
    def waits_for(self) -> str:
        """Why the task waits instead of being measured, for people; empty while it does not."""
        return self._waits_for

    def step(self, now: float, timeout_s: float) -> Outcome | None:
        """Go on, waiting up to `timeout_s` for the child if it is at work; return the outcome once there is one."""
        outcome = self._advance(now, timeout_s)
        if outcome is not None:
            self._end()
        return outcome

    def receive(self, chunk: BlobChunk) -> Failed | None:
        """Take a chunk of a blob; return the outcome if it cannot be written."""
        try:
            self._blobs.receive(chunk)
        except BundleError as error:
            self._end()
            return self._failed("bundle", str(error))
        return None

    def on_reconnected(self) -> None:
        """Request again what was requested on the connection before."""
        self._blobs.on_reconnected()

    def stop(self) -> None:
        """End the run at once; a child at work is killed."""
        self._blobs.stop()
        if self.measuring:
            self._resources.measurer.kill()
        self._end()

    def _end(self) -> None:
        if self._state is not RunState.ENDED:
            self._go_to(RunState.ENDED)

    def _go_to(self, state: RunState) -> None:
        self._state = transition(self._state, state)

    # -- one step ----------------------------------------------------------------------------------------------

    def _advance(self, now: float, timeout_s: float) -> Outcome | None:
        if self._deadline.left_s(now) <= 0:
            return self._expire(now)
        if self.measuring:
            reply = self._resources.measurer.poll(timeout_s)
            if reply is not None:
                return self._take(reply, now)
            self._progress.repeat_waiting(now)
            if self._lock_wait and now - self._last_reply_at >= LONG_WAIT_S:
                self._waits_for = self._lock_wait
            return None
        if self._state in (RunState.COOLING, RunState.RESTING):
            self._progress.update("cooling" if self._state is RunState.COOLING else "waiting", 0.0, now)
            if now < self._look_at:
                return None
            self._go_to(RunState.FETCHING)
        try:
            if self._blobs.fetch(now, lambda fraction: self._progress.update("fetching", fraction, now)):
                self._submit(now)
        except BundleError as error:
            return self._failed("bundle", str(error))
        return None

    def _submit(self, now: float) -> None:
        references = self._resources.drift.reference_order(self.task, now, may_wait=self._may_wait(now))
        self._resources.measurer.submit(order_of(self.task, self._blobs.path, references, self._resources.battery))
        self._deadline.resume(now)
        self._last_reply_at = now
        self._go_to(RunState.MEASURING)

    def _may_wait(self, now: float) -> bool:
        """Whether a slow or warm device is waited for; the time for that begins with the first look at it."""
        if self._wait_ends is None:
            self._wait_ends = now + self._resources.drift.patience_s(self.task)
        return now < self._wait_ends

    # -- the child's replies -----------------------------------------------------------------------------------

    def _take(self, reply: Reply, now: float) -> Outcome | None:
        if isinstance(reply, PhaseReply):
            self._take_phase(reply, now)
            return None
        if isinstance(reply, SlowReply):
            self._resources.drift.note_slow(self.task, reply, now, self._unix_s())
            self._cool(now)
            return None
        self._deadline.resume(now)
        self._waits_for = ""
        if isinstance(reply, UnreadyReply):
            self._rest(reply.reason, now)
            return None
        if isinstance(reply, MeasuredReply):
            return self._judge(reply, now)
        if isinstance(reply, FailedReply):
            if reply.reason == "bundle":
                self._blobs.discard()  # the next attempt fetches them again
            if reply.reason == "out_of_memory":  # perhaps for the references: the next attempt loads fewer
                self._resources.drift.load_fewer_references(self.task)
            return self._failed(reply.reason, reply.detail)
        assert isinstance(reply, ProbedReply)
        return self._failed("bad_output", "the measuring child answered another order than this task's")

    def _take_phase(self, reply: PhaseReply, now: float) -> None:
        if reply.phase == "waiting" and reply.fraction > 0:
            # The time of a warm-up is given back piece by piece, so that the deadline still ends a child that hangs.
            self._deadline.give_back(now - self._last_reply_at)
            self._waits_for = "warms up until its speed is steady"
        elif reply.phase == "waiting":
            self._deadline.pause(now)
            self._lock_wait = reply.detail
        else:
            self._deadline.resume(now)
            if self._lock_wait and self._waits_for == self._lock_wait:
                self._waits_for = ""
            self._lock_wait = ""
        self._last_reply_at = now
        if reply.phase == "measuring":
            self._looks_again, self._waits_for = False, ""
        # Another look at the device's speed or battery is not reported as work.
        if reply.phase in ("waiting", "measuring") or not (self._looks_again or self._waits_for):
            self._progress.update(reply.phase, reply.fraction, now)

    def _judge(self, reply: MeasuredReply, now: float) -> Outcome:
        if reply.paired is None:
            return self._failed("bad_output", "the measuring child measured without the references it was given")
        ended_unix_s = self._unix_s()
        drift = self._resources.drift
        verdict = drift.judge(self.task, reply, reply.paired, now, ended_unix_s)
        return make_result(
            self.task,
            reply,
            reply.paired,
            verdict,
            levels_ms=drift.levels_ms(self.task),
            finished_unix_s=ended_unix_s,
        )

    def _unix_s(self) -> float:
        """The wall clock, within the range of dates: a wrong clock is no reason to lose a result."""
        return min(max(0.0, self._resources.wall_clock()), LATEST_UNIX_S)

    def _rest(self, reason: str, now: float) -> None:
        """Wait for the battery, for as long as it takes: the task's time stands still."""
        self._waits_for = reason
        self._look_at = now + RESTING_S
        self._deadline.pause(now)
        self._go_to(RunState.RESTING)
        self._progress.update("waiting", 0.0, now)

    def _cool(self, now: float) -> None:
        """Wait for a faster or cooler device: the task's time stands still, and the look at it does not count."""
        self._deadline.give_back(now - self._last_reply_at)
        self._looks_again = True
        self._look_at = now + LOOK_AGAIN_S
        self._deadline.pause(now)
        self._go_to(RunState.COOLING)
        self._progress.update("cooling", 0.0, now)

    # -- ends --------------------------------------------------------------------------------------------------

    def _expire(self, now: float) -> Outcome:
        limit = f"the deadline of {self.task.deadline_s:g} s passed"
        if self.measuring:
            self.stop()
            return self._failed("timeout", f"{limit} during the measurement; the measuring child was killed")
        fetched = self._blobs.expire(self.task.deadline_s, now)
        reached = f"with {fetched} fetched" if fetched else "before the measurement began"
        return Rejected(task=self.task.task, reason="expired", detail=f"{limit} {reached}")

    def _failed(self, reason: FailureReason, detail: str) -> Failed:
        return Failed(task=self.task.task, reason=reason, detail=detail[:500])
