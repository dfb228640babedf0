"""What the store tells of earlier runs' time: seconds per measurement, and how much of a budget searches use."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from fleetnas.coordinator.records.budget import counts_against_budget
from fleetnas.coordinator.records.plan import CampaignPlan, settings_of
from fleetnas.coordinator.records.statuses import RunStatus, SettingStatus
from fleetnas.coordinator.records.stored import DeviceRecord, RunRecord
from fleetnas.coordinator.records.workload import END_S, Habits, Seconds, history_deviation, seconds_by_protocol
from fleetnas.coordinator.store.run_history import StoredMoment
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import StoreError

#: Latest runs that are looked at, and device settings of runs after which no further one is: a search waits for it.
_MOST_RUNS, _MOST_SETTINGS = 20, 2000
#: A gap between two outcomes beyond this many times their median is a break, not a measurement.
_BREAK = 6.0
#: Earlier measurements of a kind that are needed before their mean counts.
_FEWEST = 3
#: Time from the start to the first task where no run tells it, and at most, seconds: devices join, searches begin.
_START_S, _MOST_START_S = 4.0, 60.0
#: Least deviations of habits: the next search is another one.
_LEAST_EXPLORED, _LEAST_VERIFICATIONS = 0.08, 0.4


@dataclass(frozen=True)
class KnownSetting:
    """What earlier runs tell of one device setting."""

    seconds: Seconds
    measurements: int
    """Measurements behind it; 0: the protocol alone."""


@dataclass
class SearchHistory:
    """Earlier runs of a store, for a new plan."""

    plan: CampaignPlan
    gaps: dict[tuple[str, str], tuple[list[float], list[float]]] = field(default_factory=dict)
    """Seconds between outcomes by device setting: of first measurements, and of verifications."""
    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    explored: list[float] = field(default_factory=list)
    verifications: list[float] = field(default_factory=list)
    bundles: dict[str, set[str]] = field(default_factory=dict)
    """Hashes of the bundles that a device has measured."""

    @classmethod
    def of(cls, store: MeasurementStore, plan: CampaignPlan, devices: Collection[str]) -> SearchHistory:
        """Read the latest runs in which one of these devices took part; a run that cannot be read is left out."""
        found = cls(plan)
        read = 0
        for run in sorted(store.runs(), key=lambda each: -each.created_unix_s)[:_MOST_RUNS]:
            try:
                earlier = settings_of(run).plan
                every = store.devices(run.run_id)
                records = [record for record in every if record.device in devices]
                if records:
                    found.take(run, earlier, records, store.history.moments(run.run_id))
            except StoreError:
                continue
            read += len(every)
            if read >= _MOST_SETTINGS:
                break
        return found

    def take(
        self, run: RunRecord, earlier: CampaignPlan, records: Sequence[DeviceRecord], moments: Sequence[StoredMoment]
    ) -> None:
        """Learn from one run."""
        now = seconds_by_protocol(self.plan.protocol, self.plan.precision)
        then = seconds_by_protocol(earlier.protocol, earlier.precision)
        scales = (now.first / then.first, now.verification / then.verification)
        names = {record.device for record in records}
        by_device: dict[str, list[StoredMoment]] = {}
        for moment in moments:
            if moment.device in names:
                by_device.setdefault(moment.device, []).append(moment)
        for device, arrived in by_device.items():
            self.bundles.setdefault(device, set()).add(run.bundle_sha256)
            self._take_gaps(device, arrived, scales, given=earlier.kind == "measure")
            self.starts.append(max(0.0, arrived[0].stored_unix_s - run.created_unix_s - then.first))
        if run.finished_unix_s is not None and moments and run.status is not RunStatus.INTERRUPTED:
            self.ends.append(max(0.0, run.finished_unix_s - moments[-1].stored_unix_s))
        if earlier.kind == "search" and self.plan.kind == "search":
            by_setting: dict[tuple[str, str], list[StoredMoment]] = {}
            for moment in moments:
                by_setting.setdefault((moment.device, moment.setting_label), []).append(moment)
            for record in records:
                self._take_habits(record, earlier, by_setting.get((record.device, record.setting.label), []))

    def _take_gaps(
        self, device: str, arrived: Sequence[StoredMoment], scales: tuple[float, float], *, given: bool
    ) -> None:
        gaps = [after.stored_unix_s - before.stored_unix_s for before, after in itertools.pairwise(arrived)]
        if not gaps:
            return
        most = _BREAK * max(statistics.median(gaps), 0.05)
        for gap, moment in zip(gaps, arrived[1:], strict=True):
            if 0.0 <= gap <= most:
                kind = int(given or not counts_against_budget(moment.purpose, moment.target_ms, moment.target))
                kept = self.gaps.setdefault((device, moment.setting_label), ([], []))
                kept[kind].append(gap * scales[kind])

    def _take_habits(self, record: DeviceRecord, earlier: CampaignPlan, own: Sequence[StoredMoment]) -> None:
        """Learn how much of its budget a search used, and how often it verified; `own` are its outcomes."""
        targets = len(record.targets_ms or ()) + len(record.targets or ()) or earlier.targets.count
        if record.status is not SettingStatus.FINISHED or not own or not targets:
            return
        first = sum(counts_against_budget(each.purpose, each.target_ms, each.target) for each in own)
        free = earlier.budget - min(earlier.initial_design, earlier.budget)
        if free > 0:
            self.explored.append(min(max((first - earlier.initial_design) / free, 0.0), 1.0))
        self.verifications.append((len(own) - first) / targets)

    def known(self, device: str, label: str) -> KnownSetting:
        """Return what is known of a device setting: by its own measurements, else by the protocol."""
        base = seconds_by_protocol(self.plan.protocol, self.plan.precision)
        first, again = self.gaps.get((device, label), ([], []))
        if len(first) + len(again) < _FEWEST:
            return KnownSetting(base, 0)
        # A kind that was hardly measured is as much slower or faster than the protocol says as the other one.
        pooled = (sum(first) + sum(again)) / (len(first) * base.first + len(again) * base.verification)
        known = Seconds(
            statistics.fmean(first) if len(first) >= _FEWEST else pooled * base.first,
            statistics.fmean(again) if len(again) >= _FEWEST else pooled * base.verification,
            history_deviation(len(first) + len(again)),
        )
        return KnownSetting(known, len(first) + len(again))

    @property
    def habits(self) -> Habits:
        """What searches use of their budget; the defaults where none has ended."""
        usual = Habits()
        return Habits(
            *_mean(self.explored, usual.explored, usual.explored_deviation, _LEAST_EXPLORED),
            *_mean(self.verifications, usual.verifications, usual.verifications_deviation, _LEAST_VERIFICATIONS),
        )

    @property
    def start_s(self) -> float:
        """Time from the start of a search to its first task, seconds, the transfer of a bundle aside."""
        return min(min(self.starts, default=_START_S), _MOST_START_S)

    @property
    def end_s(self) -> float:
        """Time from the last measurement to the end, seconds."""
        return statistics.median(self.ends) if self.ends else END_S


def _mean(found: Iterable[float], usual: float, deviation: float, least: float) -> tuple[float, float]:
    """Return mean and deviation; a default counts as one more value."""
    values = list(found)
    if not values:
        return usual, deviation
    mean = (usual + sum(values)) / (1 + len(values))
    return mean, max(statistics.pstdev([usual, *values]), least)
