"""Monitor the drift of the device's speed and heat, and order reference measurements accordingly."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import dataclass, field

from fleetnas.agent.measuring.messages import RUNGS, MeasuredReply, PairedTiming, ReferenceOrder, SlowReply
from fleetnas.agent.measuring.paired import reference_turn_s
from fleetnas.agent.measuring.session_share import session_share
from fleetnas.agent.service.speed_tracker import SpeedTracker, Verdict
from fleetnas.fleet_protocol.messages import Conditions
from fleetnas.fleet_protocol.orders import MeasurementTask

#: Condition `cool`: measured below this slow-down, and at most this much above the lowest temperature so far.
COOL_SLOWDOWN, COOL_WITHIN_C = 1.05, 5.0
#: Readings within this of the lasting slow-down are the lasting speed, as a factor.
_LASTING = 1.05
#: The next wait, in seconds, after one that ended with the device still slow.
_SHORT_WAIT_S = 4.0
#: Condition `sustained`: a device that was idle for this long is warmed up again, in seconds.
COOLS_DOWN_S = 20.0

_log = logging.getLogger("fleetnas.agent")


@dataclass
class DriftMonitor:
    """Keeps the references' levels and regimes, the lowest temperature, and the runs that the device is warmed up for.

    Times `now` are monotonic seconds.
    """

    tracker: SpeedTracker = field(default_factory=SpeedTracker)
    coolest_c: float | None = None
    #: References to load per bundle and setting, where fewer than usual: a child ran out of memory.
    _rungs: dict[Hashable, int] = field(default_factory=dict)
    #: Runs, bundles and settings that the device is warmed up for, and when it last worked, monotonic seconds.
    _warmed: set[Hashable] = field(default_factory=set)
    #: Keys that were measured on a slow device after a wait: the next wait is short.
    _stayed_slow: set[Hashable] = field(default_factory=set)
    _worked_at: float = float("-inf")

    def reference_order(self, task: MeasurementTask, now: float, *, may_wait: bool) -> ReferenceOrder:
        """Return how to measure `task` with references; with `may_wait`, not while the device is slow or warm."""
        if now - self._worked_at > COOLS_DOWN_S:
            self._warmed.clear()
        key, cool, sustained = _speed_key(task), task.condition == "cool", task.condition == "sustained"
        limits = [COOL_SLOWDOWN] if cool else []
        if task.wait_above is not None:
            limits.append(self._wait_above(task, task.wait_above))
        too_warm_c = self.coolest_c + COOL_WITHIN_C if cool and self.coolest_c is not None else None
        return ReferenceOrder(
            levels_ms=self.tracker.levels(key),
            normals=self.tracker.normals(key),
            at_most=self._rungs.get(_model_key(task), RUNGS),
            keep_levels=sustained,
            warm_up=sustained and _warm_key(task) not in self._warmed,
            slow_above=min(limits) if may_wait and limits else None,
            warm_above_c=too_warm_c if may_wait else None,
        )

    def patience_s(self, task: MeasurementTask) -> float:
        """Return how long to wait for a slow or warm device, in seconds."""
        if task.condition != "cool" and _speed_key(task) in self._stayed_slow:
            return min(task.wait_s, _SHORT_WAIT_S)
        return task.wait_s

    def _wait_above(self, task: MeasurementTask, limit: float) -> float:
        """Return the slow-down above which a device is waited for; never below its lasting slow-down."""
        return max(limit, _LASTING * self.tracker.lasting_slowdown(_speed_key(task)))

    def judge(
        self, task: MeasurementTask, reply: MeasuredReply, paired: PairedTiming, now: float, ended_unix_s: float
    ) -> Verdict:
        """Judge a measurement of `task`, which ended `now` and at `ended_unix_s`."""
        self._worked_at = now
        self._warmed.add(_warm_key(task))
        for conditions in (reply.before, reply.after):
            self.note_conditions(conditions)
        key = _speed_key(task)
        others = {name: level for name, level in reply.levels_ms.items() if name != paired.reference}
        self.tracker.learn_levels(key, others)  # the tracker judges a change of the reference's own level
        if task.wait_above is not None and task.wait_s > 0:
            slow = paired.slowdown > self._wait_above(task, task.wait_above)
            (self._stayed_slow.add if slow else self._stayed_slow.discard)(key)
        verdict = self.tracker.judge(key, paired, throttled=reply.after.throttled, now=now, ended_unix_s=ended_unix_s)
        if verdict.new_regime:
            _log.warning(
                "%s now takes %.2f times its undisturbed latency, and has for several measurements: a new regime",
                task.setting.label,
                verdict.regime_slowdown,
            )
        return verdict

    def levels_ms(self, task: MeasurementTask) -> tuple[float, ...]:
        """Return the level of every reference, in ms, in the order of their fingerprints."""
        return tuple(float(f"{level:.6g}") for _, level in sorted(self.tracker.levels(_speed_key(task)).items()))

    def note_slow(self, task: MeasurementTask, reply: SlowReply, now: float, read_unix_s: float) -> None:
        """Learn from a look at a slow or warm device, on which nothing was measured."""
        self._worked_at = now
        self._warmed.add(_warm_key(task))  # the warm-up, where there was one, need not be repeated
        key = _speed_key(task)
        self.tracker.learn_levels(key, reply.levels_ms)
        if reply.slowdown is not None and self.tracker.note_waiting(key, reply.slowdown, read_unix_s):
            _log.warning(
                "%s takes %.2f times its undisturbed latency and does not get faster: a new regime",
                task.setting.label,
                self.tracker.lasting_slowdown(key),
            )

    def note_conditions(self, conditions: Conditions) -> None:
        """Remember the lowest temperature that was read."""
        now_c = conditions.temperature_c
        if now_c is not None and (self.coolest_c is None or now_c < self.coolest_c):
            self.coolest_c = now_c

    def load_fewer_references(self, task: MeasurementTask) -> None:
        """Load half as many references from now on: a child ran out of memory, perhaps because of them."""
        key = _model_key(task)
        self._rungs[key] = max(1, self._rungs.get(key, RUNGS) // 2)


def _speed_key(task: MeasurementTask) -> Hashable:
    # A reference's level depends on how long its turns last; coarse and fine tasks share it.
    return task.bundle.sha256, task.setting, task.condition, reference_turn_s(session_share(task.protocol))


def _model_key(task: MeasurementTask) -> Hashable:
    return task.bundle.sha256, task.setting


def _warm_key(task: MeasurementTask) -> Hashable:
    return task.run_id, task.bundle.sha256, task.setting
