"""One task from its place in the queue to its outcome: fetch, wait where the task asks for that, measure, judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from pydantic import ValidationError

from fleetnas.agent.host.battery import BatteryRule
from fleetnas.agent.measuring.device_speed import DeviceSpeed
from fleetnas.agent.measuring.messages import (
    FailedReply,
    MeasuredReply,
    MeasureOrder,
    PairedTiming,
    PhaseReply,
    ProbedReply,
    Reply,
    SlowReply,
    UnreadyReply,
)
from fleetnas.agent.measuring.speed import Verdict
from fleetnas.agent.measuring.worker import Measurer
from fleetnas.agent.transfer.blobs import BlobCache, BlobFetch, limit_partials, partial_file
from fleetnas.agent.transfer.mirror import MirrorFetch, Mirrors
from fleetnas.device_profiles.quantities import LATEST_UNIX_S
from fleetnas.fleet_protocol.codec import BlobChunk
from fleetnas.fleet_protocol.errors import BundleError, MirrorError
from fleetnas.fleet_protocol.messages import (
    BlobReference,
    BlobRequest,
    Failed,
    FailureReason,
    Measurement,
    MeasureTask,
    Phase,
    Rejected,
    Result,
)

#: How often a device that is too slow or too warm is looked at again.
LOOK_AGAIN_S = 2.0
#: How long a device rests before its battery is looked at again.
RESTING_S = 30.0
#: A wait for the host's lock that lasts so long is no longer a neighbour's usual measurement.
LONG_WAIT_S = 60.0
#: A phase that goes on is told again this often.
_TELL_EVERY_S = 5.0

Outcome: TypeAlias = Result | Failed | Rejected


class PausableDeadline:
    """Time left to a task; it stands still while the task waits for another agent of this host, or for the device."""

    def __init__(self, limit_s: float, now: float) -> None:
        self._ends_at = now + limit_s
        self._paused_at: float | None = None

    def pause(self, now: float) -> None:
        """The wait begins."""
        if self._paused_at is None:
            self._paused_at = now

    def resume(self, now: float) -> None:
        """The wait is over."""
        if self._paused_at is not None:
            self._ends_at += now - self._paused_at
            self._paused_at = None

    def give_back(self, spent_s: float) -> None:
        """Time that was spent, and does not count."""
        self._ends_at += max(0.0, spent_s)

    def left_s(self, now: float) -> float:
        """Seconds left; negative once it is over."""
        return self._ends_at - (now if self._paused_at is None else self._paused_at)


@dataclass(slots=True)
class QueuedTask:
    """A task and how long it may still take."""

    task: MeasureTask
    deadline: PausableDeadline


@dataclass
class RunResources:
    """What the runs of an agent share: its cache, its child, its memory of the device's speed."""

    cache: BlobCache
    partial_folder: Path
    measurer: Measurer
    wall_clock: Callable[[], float]
    speed: DeviceSpeed = field(default_factory=DeviceSpeed)
    battery: BatteryRule = field(default_factory=BatteryRule)
    mirrors: Mirrors = field(default_factory=Mirrors)


class TaskRunner:
    """A task being worked on. `step` until it returns an outcome."""

    def __init__(
        self,
        queued: QueuedTask,
        resources: RunResources,
        send_request: Callable[[BlobRequest], None],
        say: Callable[[Phase, float], None],
    ) -> None:
        self.task = queued.task
        self._deadline = queued.deadline
        self._resources = resources
        self._send_request = send_request
        self._say = say
        self._wanted = [self.task.bundle] + ([self.task.calibration] if self.task.calibration else [])
        self._fetch: BlobFetch | MirrorFetch | None = None
        self._measuring = False
        self._idle_until: float | None = None
        #: Why the device rests instead of measuring; empty while it works.
        self.resting = ""
        #: Until when the task waits for a faster or cooler device; None before the first look at it.
        self._wait_ends: float | None = None
        self._waiting = False
        #: What the child waits for before it begins; empty once it has.
        self._waits_for = ""
        self._heard_at = 0.0
        self._phase: Phase | None = None
        self._fraction = 0.0
        self._said_at = float("-inf")
        self._told = False

    @property
    def measuring(self) -> bool:
        """Whether the child is at work, so that its reply is what to wait for."""
        return self._measuring

    def step(self, now: float, timeout_s: float) -> Outcome | None:
        """Go on, waiting up to `timeout_s` for the child where it is at work; the outcome once there is one."""
        if self._deadline.left_s(now) <= 0:
            return self._expire(now)
        if self._measuring:
            reply = self._resources.measurer.poll(timeout_s)
            if reply is None:
                if self._phase == "waiting":
                    self._tell("waiting", self._fraction, now)
                if self._waits_for and now - self._heard_at >= LONG_WAIT_S:
                    self.resting = self._waits_for
                return None
            return self._take(reply, now)
        if self._idle_until is not None:
            if self.resting or self._waiting:
                self._tell("cooling" if self._waiting else "waiting", 0.0, now)
            if now < self._idle_until:
                return None
            self._idle_until = None
        try:
            if not self._fetch_next(now):
                return None
        except BundleError as error:
            return self._failed("bundle", str(error))
        self._submit(now)
        return None

    def receive(self, chunk: BlobChunk) -> Failed | None:
        """A chunk arrived; the outcome where it cannot be kept."""
        if isinstance(self._fetch, BlobFetch):
            try:
                self._fetch.receive(chunk)
            except BundleError as error:
                return self._failed("bundle", str(error))
        return None

    def reconnected(self) -> None:
        """Requests of the old connection are void."""
        if isinstance(self._fetch, BlobFetch):
            self._fetch.reconnected()

    def stop(self) -> None:
        """Give up at once."""
        if isinstance(self._fetch, MirrorFetch):
            self._fetch.stop()
        if self._measuring:
            self._resources.measurer.kill()
            self._measuring = False

    # -- fetching ----------------------------------------------------------------------------------------------

    def _fetch_next(self, now: float) -> bool:
        """Whether every blob is here; goes on fetching the first that is not."""
        cache = self._resources.cache
        for blob in self._wanted:
            if cache.find(blob.sha256) is None:
                self._go_on_fetching(blob, now)
                if cache.find(blob.sha256) is None:
                    return False
        return True

    def _go_on_fetching(self, blob: BlobReference, now: float) -> None:
        if self._fetch is None or self._fetch.blob != blob:
            self._make_room(blob)
            self._fetch = self._begin_fetching(blob, now)
        try:
            file = self._fetch.step(now)
        except MirrorError as error:
            assert isinstance(self._fetch, MirrorFetch)
            self._resources.mirrors.give_up(self._fetch.mirror, str(error), now)
            self._fetch = None  # what came of it is kept, and the rest asked of the coordinator
            return
        self._tell("fetching", self._fetch.fraction, now)
        if file is not None:
            try:
                self._resources.cache.add(blob.sha256, file)
            except OSError as error:
                raise BundleError(f"the cache cannot be written ({error}); check --state-dir") from error
            self._fetch = None

    def _make_room(self, blob: BlobReference) -> None:
        """Room for a blob, and for what is here of it; other blobs on their way in are given up for it."""
        cache, partials = self._resources.cache, self._resources.partial_folder
        keep = [wanted.sha256 for wanted in self._wanted]
        limit_partials(partials, keep, cache.max_bytes)
        try:
            cache.make_room(blob.size, keep)
        except BundleError:
            limit_partials(partials, keep, 0)
            cache.make_room(blob.size, keep)

    def _begin_fetching(self, blob: BlobReference, now: float) -> BlobFetch | MirrorFetch:
        partial = partial_file(self._resources.partial_folder, blob.sha256)
        mirror = self.task.mirror if blob == self.task.bundle else None
        fetch = self._resources.mirrors.begin(mirror, blob, partial, now)
        return fetch or BlobFetch(blob, partial, self._send_request)

    # -- measuring ---------------------------------------------------------------------------------------------

    def _submit(self, now: float) -> None:
        task, cache = self.task, self._resources.cache
        bundle = cache.find(task.bundle.sha256)
        calibration = cache.find(task.calibration.sha256) if task.calibration else None
        self._resources.measurer.submit(
            MeasureOrder(
                bundle_path=str(bundle),
                bundle_sha256=task.bundle.sha256,
                architecture=task.architecture,
                calibration_path=str(calibration) if calibration else None,
                calibration_sha256=task.calibration.sha256 if task.calibration else None,
                setting=task.setting,
                protocol=task.protocol,
                references=self._resources.speed.order(task, now, may_wait=self._may_wait(now)),
                battery=self._resources.battery,
            )
        )
        self._deadline.resume(now)
        self._heard_at = now
        self._measuring = True

    def _may_wait(self, now: float) -> bool:
        """Whether a slow or warm device is waited for; the time for that begins with the first look at it."""
        if self._wait_ends is None:
            self._wait_ends = now + self._resources.speed.patience_s(self.task)
        return now < self._wait_ends

    def _take(self, reply: Reply, now: float) -> Outcome | None:
        if isinstance(reply, PhaseReply):
            self._take_phase(reply, now)
            return None
        self._measuring = False
        if isinstance(reply, SlowReply):
            self._resources.speed.saw_slow(self.task, reply, now, self._unix_s())
            self._wait(now)
            return None
        self._deadline.resume(now)
        self.resting = ""
        if isinstance(reply, MeasuredReply):
            return self._judge(reply, now)
        if isinstance(reply, UnreadyReply):
            self._rest(reply.reason, now)
            return None
        if isinstance(reply, FailedReply):
            if reply.reason == "bundle":
                for blob in self._wanted:  # the next attempt fetches afresh
                    self._resources.cache.discard(blob.sha256)
            if reply.reason == "out_of_memory":  # perhaps for the references: the next attempt loads fewer
                self._resources.speed.ran_out_of_memory(self.task)
            return self._failed(reply.reason, reply.detail)
        assert isinstance(reply, ProbedReply)
        return self._failed("bad_output", "the measuring child answered another order than this task's")

    def _take_phase(self, reply: PhaseReply, now: float) -> None:
        if reply.phase == "waiting" and reply.fraction > 0:
            # The time of a warm-up is given back piece by piece, so that a child that hangs in it is found out.
            self._deadline.give_back(now - self._heard_at)
            self.resting = "warms up until its speed is steady"
        elif reply.phase == "waiting":
            self._deadline.pause(now)
            self._waits_for = reply.detail
        else:
            self._deadline.resume(now)
            if self._waits_for and self.resting == self._waits_for:
                self.resting = ""
            self._waits_for = ""
        self._heard_at = now
        if reply.phase == "measuring":
            self._waiting, self.resting = False, ""
        if reply.phase in ("waiting", "measuring") or not (self._waiting or self.resting):
            self._tell(reply.phase, reply.fraction, now)  # a look at the device's speed or battery is no work to tell

    def _judge(self, reply: MeasuredReply, now: float) -> Outcome | None:
        if reply.paired is None:
            return self._failed("bad_output", "the measuring child measured without the references it was given")
        ended_unix_s = self._unix_s()
        verdict = self._resources.speed.judge(self.task, reply, reply.paired, now, ended_unix_s)
        return self._result(reply, reply.paired, verdict, ended_unix_s)

    def _unix_s(self) -> float:
        """The wall clock; a clock that is beyond every calendar is no reason to lose a result."""
        return min(max(0.0, self._resources.wall_clock()), LATEST_UNIX_S)

    def _rest(self, reason: str, now: float) -> None:
        """Wait for the battery, for as long as it takes: the task's time stands still."""
        self.resting = reason
        self._idle_until = now + RESTING_S
        self._deadline.pause(now)
        self._tell("waiting", 0.0, now)

    def _wait(self, now: float) -> None:
        """Wait for a faster or cooler device, and then look at it again: the task's time stands still."""
        self._deadline.give_back(now - self._heard_at)
        self._waiting = True
        self._idle_until = now + LOOK_AGAIN_S
        self._deadline.pause(now)
        self._tell("cooling", 0.0, now)

    def _result(
        self, reply: MeasuredReply, paired: PairedTiming, verdict: Verdict, finished_unix_s: float
    ) -> Result | Failed:
        timing = reply.timing
        try:
            measurement = Measurement(
                model_sha256=reply.model_sha256,
                model_bytes=reply.model_bytes,
                median_ms=timing.median_ms,
                mad_ms=timing.mad_ms,
                p90_ms=timing.p90_ms,
                min_ms=timing.min_ms,
                runs=timing.runs,
                inner_loops=timing.inner_loops,
                half_width_percent=timing.half_width_percent,
                quality=verdict.quality,
                undisturbed_ms=paired.undisturbed_ms,
                undisturbed_half_width_percent=paired.undisturbed_half_width_percent,
                reference=paired.reference,
                reference_ms=paired.reference_ms,
                levels_ms=self._resources.speed.levels_ms(self.task),
                condition=self.task.condition,
                regime_unix_s=verdict.regime_unix_s,
                times_us=timing.times_us,
                block_medians_ms=timing.block_medians_ms,
                provider=reply.provider,
                build_ms=reply.build_ms,
                load_ms=reply.load_ms,
                before=reply.before,
                after=reply.after,
                energy_mj=reply.energy_mj,
                finished_unix_s=finished_unix_s,
            )
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            return self._failed("bad_output", f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}")
        return Result(task=self.task.task, measurement=measurement)

    # -- ends --------------------------------------------------------------------------------------------------

    def _expire(self, now: float) -> Outcome:
        limit = f"the deadline of {self.task.deadline_s:g} s passed"
        measuring = self._measuring
        self.stop()
        if measuring:
            return self._failed("timeout", f"{limit} during the measurement; the measuring child was killed")
        if self._fetch is not None:
            if isinstance(self._fetch, MirrorFetch):
                self._resources.mirrors.give_up(self._fetch.mirror, f"slower than {self.task.deadline_s:g} s", now)
            here = f"{self._fetch.received_bytes:,} of {self._fetch.blob.size:,} bytes"
            return Rejected(task=self.task.task, reason="expired", detail=f"{limit} with {here} fetched")
        return Rejected(task=self.task.task, reason="expired", detail=f"{limit} before the measurement began")

    def _failed(self, reason: FailureReason, detail: str) -> Failed:
        return Failed(task=self.task.task, reason=reason, detail=detail[:500])

    def _tell(self, phase: Phase, fraction: float, now: float) -> None:
        """Progress, when the phase changes and otherwise rarely: nothing is sent while a block is timed.

        That a task is being built and measured goes without saying, unless something else came before.
        """
        if phase != self._phase or now - self._said_at >= _TELL_EVERY_S:
            expected = self._phase in (None, "building") and phase in ("building", "measuring") and not self._told
            self._phase, self._fraction, self._said_at = phase, fraction, now
            if not expected:
                self._told = True
                self._say(phase, fraction)
