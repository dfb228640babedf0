"""Follow how fast the devices of a campaign measure, and estimate the time that it has left."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from fleetnas.coordinator.records.board_place import BoardPlace
from fleetnas.coordinator.records.data_quality import QualityTally
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.run_progress import ENDED, RunProgress
from fleetnas.coordinator.records.snapshot import DeviceSnapshot
from fleetnas.coordinator.records.workload import (
    END_S,
    Counts,
    Habits,
    Interval,
    SearchState,
    Seconds,
    counts_of_search,
    longest,
    seconds_by_protocol,
    time_of_device,
    widening,
)
from fleetnas.coordinator.tuning.subnet_tuner import REPEATS
from fleetnas.fleet_protocol.messages import RuntimeSetting

#: The estimate from before the run counts as much as this many measurements of the fleet, and what the fleet shows as
#: this many of one device.
_PRIOR = 1.0
#: Relative scatter of one measurement's time; what the future may bring whatever was seen; and the deviation of a time
#: that only other devices show.
_SCATTER, _ALWAYS, _OF_OTHERS = 0.35, 0.06, 0.2
#: Times beyond this many times the expected one are breaks, not measurements: a device was away.
_BREAK = 8.0
#: Share that a run which has not ended shows at most.
_MOST_SHARE = 0.99
#: A given subnet is measured again now and then.
_GIVEN_AGAIN = 1.1
#: Places of the two kinds of measurements.
_FIRST, _VERIFICATION = 0, 1


class SearchWork(Protocol):
    """What the search of a device setting has done."""

    @property
    def measured_together(self) -> int:
        """First measurements of its whole class of equal boards."""

    @property
    def phase(self) -> str:
        """Such as `search` or `verification`."""

    @property
    def board(self) -> BoardPlace | None:
        """Its place in a class of equal boards; None: it is searched by itself."""


class SettingWork(Protocol):
    """What a device setting has done: one of a campaign at work, or a stored one."""

    @property
    def device(self) -> str:
        """Name of the agent."""

    @property
    def setting(self) -> RuntimeSetting:
        """Its runtime setting."""

    @property
    def tally(self) -> QualityTally:
        """Its measurements, verifications included."""

    @property
    def failures(self) -> int:
        """Failed measurements."""

    @property
    def measurements(self) -> int:
        """Measurements and failures that counted against the budget."""

    @property
    def search(self) -> SearchWork:
        """Its search."""


@dataclass
class _Pace:
    """Seconds that measurements took, and those that were expected of them; of both kinds."""

    seen: list[float] = field(default_factory=lambda: [0.0, 0.0])
    expected: list[float] = field(default_factory=lambda: [0.0, 0.0])
    count: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, kind: int, number: int, seconds: float, expected: float) -> None:
        self.seen[kind] += seconds
        self.expected[kind] += expected
        self.count[kind] += number


@dataclass
class _DeviceClock:
    """What was seen of one device."""

    pace: _Pace = field(default_factory=_Pace)
    counted: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Measurements of both kinds at the last look, by label of the setting."""
    latest_s: float | None = None
    """Time of the latest outcome; None before the first."""
    before_s: float = 0.0
    """Seconds expected of what it had measured before the first look: of a resumed run."""

    def had_measured(self, seconds: float) -> None:
        """Note the seconds of what one of its settings had measured before the first look."""
        self.before_s += seconds

    def outcome_at(self, now_s: float) -> float | None:
        """Note an outcome; returns the time since the one before, None where it is the first."""
        since_s = None if self.latest_s is None else now_s - self.latest_s
        self.latest_s = now_s
        return since_s


class ProgressTracker:
    """Looks at the device settings now and then; the rest is arithmetic. Times are seconds of the campaign's clock."""

    def __init__(self, plan: CampaignPlan) -> None:
        self._plan, self._habits = plan, Habits()
        by_protocol = seconds_by_protocol(plan.protocol, plan.precision)
        self._expected: Callable[[str, str], Seconds] = lambda device, label: by_protocol
        self._clocks: dict[str, _DeviceClock] = {}
        self._fleet = _Pace()
        self._began_s: float | None = None
        self._shown, self._settings = 0.0, 0

    def expect(self, seconds: Callable[[str, str], Seconds], habits: Habits) -> None:
        """Take what earlier runs tell: the seconds of a setting by device and label, and the habits of searches."""
        self._expected, self._habits = seconds, habits

    def observe(self, now_s: float, setting_runs: Iterable[SettingWork]) -> None:
        """Note what was measured since the last look."""
        for setting_run in setting_runs:
            if self._began_s is None:
                self._began_s = now_s
            clock = self._clocks.setdefault(setting_run.device, _DeviceClock())
            label, now = setting_run.setting.label, self._measured(setting_run)
            before = clock.counted.get(label)
            clock.counted[label] = now
            if before is None:
                each = self._expected(setting_run.device, label)
                clock.had_measured(now[_FIRST] * each.first + now[_VERIFICATION] * each.verification)
                continue
            if now == before:
                continue
            new = [max(0, after - earlier) for after, earlier in zip(now, before, strict=True)]
            took_s = clock.outcome_at(now_s)
            if took_s is not None and any(new):
                self._learn(clock, self._expected(setting_run.device, label), new, took_s)

    def progress(
        self, now_s: float, setting_runs: Collection[SettingWork], devices: Sequence[DeviceSnapshot], *, ended: bool
    ) -> RunProgress | None:
        """Return how far the campaign is; None before any device takes part.

        `devices` are the snapshots of the setting runs, in their order.
        """
        if not setting_runs or self._began_s is None:
            return None
        if ended:
            return ENDED
        left: dict[str, list[tuple[Counts, Seconds]]] = {}
        for setting_run, snapshot in zip(setting_runs, devices, strict=True):
            if not snapshot.ended:
                left.setdefault(snapshot.device, []).append(
                    (self._counts(setting_run, snapshot), self._seconds(snapshot.device, snapshot.setting_label))
                )
        factor = widening(len(left))
        found = longest(
            self._under_way(now_s, device, time_of_device(work, factor), work) for device, work in left.items()
        )
        before_s = max(clock.before_s for clock in self._clocks.values())
        elapsed_s = now_s - self._began_s + before_s
        share = elapsed_s / max(elapsed_s + found.expected + END_S, 1e-9)
        if len(setting_runs) != self._settings:  # more devices are more work
            self._settings, self._shown = len(setting_runs), 0.0
        self._shown = min(_MOST_SHARE, max(self._shown, share))
        return RunProgress(self._shown, found.expected + END_S, found.least, found.most + 2 * END_S)

    def _measured(self, setting_run: SettingWork) -> tuple[int, int]:
        """Count the first measurements of subnets, and the verifications."""
        total = setting_run.tally.measured + setting_run.failures
        if self._plan.architectures:
            return 0, total
        first = setting_run.measurements
        return first, max(0, total - first)

    def _learn(self, clock: _DeviceClock, each: Seconds, new: Sequence[int], took_s: float) -> None:
        expected = [new[_FIRST] * each.first, new[_VERIFICATION] * each.verification]
        if took_s > _BREAK * sum(expected) * max(1.0, self._ratio(self._fleet, _FIRST, each.first)):
            return
        for kind, number in enumerate(new):
            if number:
                seconds = took_s * expected[kind] / sum(expected)
                clock.pace.add(kind, number, seconds, expected[kind])
                self._fleet.add(kind, number, seconds, expected[kind])

    @staticmethod
    def _ratio(pace: _Pace, kind: int, expected_s: float, prior: float = 1.0) -> float:
        """Return how many times as long as expected measurements take, shrunk to `prior`."""
        weight = _PRIOR * expected_s
        return (weight * prior + pace.seen[kind]) / (weight + pace.expected[kind])

    def _seconds(self, device: str, label: str) -> Seconds:
        """Return the seconds of a device setting's measurements by all that was seen."""
        each, pace, fleet = self._expected(device, label), self._clocks[device].pace, self._fleet
        first = self._ratio(fleet, _FIRST, each.first)
        again = self._ratio(fleet, _VERIFICATION, each.verification, prior=first)
        own_first = self._ratio(pace, _FIRST, each.first, first)
        # A device that is slower than the others at one kind is so at the other.
        own_again = self._ratio(pace, _VERIFICATION, each.verification, again * own_first / max(first, 1e-9))
        seen = [count for count in (pace.count[_FIRST], pace.count[_VERIFICATION]) if count]
        deviation = each.deviation if not sum(fleet.count) else min(each.deviation, _OF_OTHERS)
        if seen:
            deviation = min(deviation, math.hypot(_SCATTER / math.sqrt(sum(seen)), _ALWAYS))
        if not fleet.count[_VERIFICATION]:
            deviation = max(deviation, 0.6 * each.deviation)
        return replace(
            each, first=each.first * own_first, verification=each.verification * own_again, deviation=deviation
        )

    def _counts(self, setting_run: SettingWork, snapshot: DeviceSnapshot) -> Counts:
        open_targets = sum(target.met is None for target in snapshot.targets)
        if not snapshot.targets:
            open_targets = snapshot.targets_asked
        if self._plan.architectures:
            whole = _GIVEN_AGAIN * REPEATS * len(self._plan.architectures)
            left = max(whole - self._measured(setting_run)[_VERIFICATION], 0.5 * open_targets)
            return Counts(verification=left, verification_variance=0.3 * left)
        stands = SearchState(
            measured=setting_run.search.measured_together,
            verified=self._measured(setting_run)[_VERIFICATION],
            open_targets=open_targets,
            met_targets=sum(target.met is True for target in snapshot.targets),
            verifying=setting_run.search.phase in ("verification", "done"),
        )
        initial_design = min(self._plan.initial_design, self._plan.budget)
        counts = counts_of_search(self._plan.budget, initial_design, stands, self._habits)
        board = setting_run.search.board
        return counts if board is None else counts.shared_over(board.boards, self._plan.verify_boards)

    def _under_way(
        self, now_s: float, device: str, found: Interval, work: Sequence[tuple[Counts, Seconds]]
    ) -> Interval:
        """Take off the part of the present measurement that is over."""
        latest_s = self._clocks[device].latest_s
        if latest_s is None:
            return found
        over_s = min(now_s - latest_s, max(each.first for _, each in work), 0.9 * found.expected)
        expected = found.expected - over_s
        scale = expected / found.expected if found.expected > 0 else 1.0
        return Interval(expected, found.least * scale, max(found.most - over_s, expected))
