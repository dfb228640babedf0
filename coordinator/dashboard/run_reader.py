"""Readers of runs: each reads from the store what is new since its last look, and keeps the rest."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict, deque
from dataclasses import replace
from typing import Protocol

from fleetnas.coordinator.dashboard.run_state import Failure, Point, RunState, SettingKey, failure_of, point_of
from fleetnas.coordinator.monitoring.store_feed import StoreFeed
from fleetnas.coordinator.records.events import CampaignFinished, Event
from fleetnas.coordinator.records.plan import settings_of
from fleetnas.coordinator.records.snapshot import Snapshot
from fleetnas.coordinator.records.statuses import RunStatus
from fleetnas.coordinator.records.stored import OutcomeRecord, WinnerRecord
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.view.lines import event_lines
from fleetnas.fleet_protocol.errors import StoreUnavailableError, UsageError
from fleetnas.fleet_protocol.messages import Failed

#: Events that a page shows at most.
MOST_EVENTS = 60
#: Runs that are kept in memory; others are read again.
_MOST_RUNS = 12
#: Versions of all states, so that one of a reader that was made anew is no earlier one.
_VERSIONS = itertools.count(1)


class PublishedRuns(Protocol):
    """What coordinators at work publish about their runs."""

    def snapshot(self, run_id: str) -> Snapshot | None:
        """Return the latest state of a run at work; None where none is published."""


class RunReader:
    """Reads one stored run; safe to use from several threads."""

    def __init__(self, store: MeasurementStore, run_id: str, published: PublishedRuns | None = None) -> None:
        """Raises `UsageError` where the store holds no such run, `StoreError` where its settings cannot be read."""
        self._published = published
        self._feed = StoreFeed(store, run_id, wait=lambda _: None, on_outcome=self._take)
        settings = settings_of(self._feed.run)
        self._dataset = settings.dataset
        self._lock = threading.Lock()
        self._points: dict[SettingKey, list[Point]] = {}
        self._failures: dict[SettingKey, list[Failure]] = {}
        self._known: set[str] = set()
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._ended: RunStatus | None = None
        self._state: RunState | None = None
        self._version = 0

    def read(self) -> RunState:
        """Return the run as it is now, or with a remark as it was; `StoreError` where it was never read."""
        with self._lock:
            state = self._state = self._read()
            return self._with_published(state)

    def _read(self) -> RunState:
        update = self._feed.poll(0.0)
        events = sum(self._take_event(event) for event in update.events)
        if self._feed.fault and self._state is None:
            raise StoreUnavailableError(self._feed.fault)
        if self._feed.run.status is RunStatus.RUNNING:
            self._ended = None
        assert update.snapshot is not None  # the store's feed always has one
        winners: dict[SettingKey, tuple[WinnerRecord, ...]] = {}
        for winner in self._feed.winners:
            key = (winner.device, winner.setting_label)
            winners[key] = (*winners.get(key, ()), winner)
        records = {(record.device, record.setting.label): record for record in self._feed.records}
        run, before = self._feed.run, self._state
        changed = before is None or (winners, records, run.status) != (before.winners, before.records, before.status)
        if changed or events:
            self._version = next(_VERSIONS)
        elif before is not None:
            return replace(before, snapshot=update.snapshot, note=self._feed.fault)
        return RunState(
            snapshot=update.snapshot,
            status=run.status,
            version=self._version,
            kind=self._feed.plan.kind,
            name=run.name or "",
            plan=self._feed.plan,
            dataset=self._dataset,
            bundle_sha256=run.bundle_sha256,
            finished_unix_s=run.finished_unix_s,
            records=records,
            winners=winners,
            points={key: tuple(found) for key, found in self._points.items()},
            failures={key: tuple(found) for key, found in self._failures.items()},
            events=tuple((event.at_s, line) for event in self._events for line in event_lines(event)),
        )

    def _with_published(self, state: RunState) -> RunState:
        """Show device settings as a coordinator at work publishes them: it knows more than the store."""
        live = self._published.snapshot(state.run_id) if self._published is not None and state.running else None
        return state if live is None else replace(state, snapshot=live, from_broker=True)

    def _take(self, found: OutcomeRecord) -> None:
        """Keep an outcome; of several attempts at a task the first counts."""
        task = found.task
        if task.task_id in self._known:
            return
        self._known.add(task.task_id)
        key = (task.device, task.setting_label)
        if isinstance(found.outcome, Failed):
            self._failures.setdefault(key, []).append(failure_of(found, found.outcome))
        else:
            self._points.setdefault(key, []).append(point_of(found, found.outcome))

    def _take_event(self, event: Event) -> bool:
        """Keep an event; False where it is known, as a feed repeats the end of a run with every poll."""
        if isinstance(event, CampaignFinished):
            if self._ended is event.status:
                return False
            self._ended = event.status
        self._events.append(event)
        return True


class RunReaders:
    """The readers of a store's runs, the latest used kept; safe to use from several threads."""

    def __init__(self, store: MeasurementStore, published: PublishedRuns | None = None) -> None:
        self.store = store
        self._published = published
        self._lock = threading.Lock()
        self._readers: OrderedDict[str, RunReader] = OrderedDict()

    def read(self, run_id: str) -> RunState:
        """Return a run as it is now.

        Raises:
            UsageError: neither the store nor the broker has such a run.
            StoreError: it cannot be read.
        """
        with self._lock:
            reader = self._readers.get(run_id)
            if reader is None:
                try:
                    reader = RunReader(self.store, run_id, self._published)
                except UsageError:
                    published = self._published.snapshot(run_id) if self._published is not None else None
                    if published is None:
                        raise
                    return RunState(published, RunStatus.RUNNING, version=int(published.now_s), from_broker=True)
                self._readers[run_id] = reader
            self._readers.move_to_end(run_id)
            while len(self._readers) > _MOST_RUNS:
                self._readers.popitem(last=False)
        return reader.read()
