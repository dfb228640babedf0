"""Feed of a run from what its coordinator publishes on the broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from pydantic import ValidationError

from fleetnas.coordinator.monitoring.feed import FeedUpdate
from fleetnas.coordinator.monitoring.publisher import SILENT_AFTER_S, device_from_json
from fleetnas.coordinator.records.events import Event, event_from_fields
from fleetnas.coordinator.records.run_names import LATEST
from fleetnas.coordinator.records.run_progress import RunProgress
from fleetnas.coordinator.records.snapshot import DeviceSnapshot, Snapshot
from fleetnas.coordinator.records.statuses import RunStatus
from fleetnas.fleet_protocol.codec import decode
from fleetnas.fleet_protocol.errors import ProtocolError, TransportError, UsageError
from fleetnas.fleet_protocol.topics import RunUpdate, Topics
from fleetnas.fleet_protocol.transports.base import Connected, Disconnected, Received, Transport
from fleetnas.fleet_protocol.updates import RunEvents, RunPage, RunSummary

#: Summaries that are kept while a run is chosen.
_MOST_RUNS = 1000


def runs_at_work(
    transport: Transport, topics: Topics, seconds: float, clock: Callable[[], float] = time.monotonic
) -> list[RunSummary]:
    """Listen for `seconds`; returns the runs that have a summary on the broker, the newest first.

    Runs whose coordinators publish meanwhile come before those that a killed coordinator may have left.
    """
    transport.subscribe(topics.runs)
    found: dict[str, RunSummary] = {}
    at_work: set[str] = set()
    end = clock() + seconds
    while (left_s := end - clock()) > 0:
        event = transport.poll(left_s)
        _check(event)
        if not isinstance(event, Received):
            continue
        try:
            address = topics.parse(event.topic)
            if isinstance(address, RunUpdate) and not event.payload:
                found.pop(address.run, None)
            elif isinstance(address, RunUpdate) and (address.run in found or len(found) < _MOST_RUNS):
                found[address.run] = decode(RunSummary, event.payload)
                if not event.retained:
                    at_work.add(address.run)
        except ProtocolError:
            continue
    return sorted(found.values(), key=lambda run: (run.run_id in at_work, run.started_unix_s), reverse=True)


def choose_run(found: list[RunSummary], wanted: str | None, fleet: str) -> str:
    """Return the id of the wanted run, or of the newest; `UsageError` lists the known ones where it is missing.

    `wanted` is an id, a beginning that only one run has, or `latest`.
    """
    if wanted in (None, LATEST) and found:
        return found[0].run_id
    meant = [summary.run_id for summary in found if wanted and summary.run_id.startswith(wanted)]
    if wanted in meant or len(meant) == 1:
        return wanted if wanted in meant else meant[0]
    there = ", ".join(f"{s.run_id} ({s.supernet}, {s.phase})" for s in found[:10]) if found else "none"
    asked = "no search is at work" if wanted is None else f"no run {wanted!r} is at work"
    known = "" if wanted is None else f"; at work: {there}"
    raise UsageError(
        f"{asked} in fleet {fleet!r}{known}. Ended runs are in the coordinator's store: see `fleetnas runs`, or watch "
        "with --store"
    )


class BrokerFeed:
    """Receives what is published about one run; a `Feed`."""

    def __init__(
        self, transport: Transport, topics: Topics, run_id: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.run_id = run_id
        self._transport, self._topics = transport, topics
        self._clock = clock
        self._summary: RunSummary | None = None
        self._pages: dict[int, tuple[DeviceSnapshot, ...]] = {}
        self._received_s = clock()
        self._expected: int | None = None
        self._connected = True
        transport.subscribe(topics.run(run_id))

    def poll(self, timeout_s: float) -> FeedUpdate:
        """Return what arrives within `timeout_s` seconds; `TransportError` where the broker refuses this login."""
        events: list[Event] = []
        missed = 0
        end: RunStatus | None = None
        until = self._clock() + timeout_s
        while (left_s := until - self._clock()) > 0 and end is None:
            event = self._transport.poll(left_s)
            _check(event)
            if isinstance(event, Disconnected):
                self._connected = False
            elif isinstance(event, Connected):
                self._connected, self._expected = True, None
            elif isinstance(event, Received) and event.payload:
                try:
                    found, lost, end = self._take(event)
                except (ProtocolError, ValidationError):
                    continue
                events += found
                missed += lost
        return FeedUpdate(tuple(events), self._snapshot(), missed, end)

    def close(self) -> None:
        """Close the connection to the broker."""
        self._transport.close()

    def _take(self, message: Received) -> tuple[list[Event], int, RunStatus | None]:
        address = self._topics.parse(message.topic)
        if not isinstance(address, RunUpdate) or address.run != self.run_id:
            return [], 0, None
        if not message.retained:
            self._received_s = self._clock()
        if address.part == "summary":
            self._summary = decode(RunSummary, message.payload)
            return [], 0, None if self._summary.state is RunStatus.RUNNING else self._summary.state
        if address.page is not None:
            page = decode(RunPage, message.payload)
            self._pages[address.page] = tuple(device_from_json(fields) for fields in page.devices)
            return [], 0, None
        published = decode(RunEvents, message.payload)
        # A coordinator that was started again numbers from the beginning.
        restarted = self._expected is None or published.first < self._expected
        lost = 0 if restarted or self._expected is None else published.first - self._expected
        self._expected = published.first + len(published.events)
        return [event_from_fields(fields) for fields in published.events], lost, None

    def _snapshot(self) -> Snapshot | None:
        summary = self._summary
        if summary is None:
            return None
        phase = summary.phase
        if summary.state is RunStatus.RUNNING and not self._connected:
            phase = "not connected to the broker; trying again"
        elif summary.state is RunStatus.RUNNING and self._clock() - self._received_s > SILENT_AFTER_S:
            phase = "no word from its coordinator; this is its last state"
        return published_snapshot(summary, self._pages, phase)


def published_snapshot(summary: RunSummary, pages: Mapping[int, Sequence[DeviceSnapshot]], phase: str) -> Snapshot:
    """Make the snapshot of a run from its published summary and pages."""
    devices = {
        (device.device, device.setting_label): device
        for page in sorted(pages)
        if page < summary.pages
        for device in pages[page]
    }
    return Snapshot(
        run_id=summary.run_id,
        supernet=summary.supernet,
        started_s=summary.started_unix_s,
        now_s=summary.at_unix_s,
        phase=phase,
        devices=tuple(devices.values()),
        log=summary.log,
        progress=_progress_of(summary),
    )


def _progress_of(summary: RunSummary) -> RunProgress | None:
    times = (summary.done, summary.left_s, summary.least_left_s, summary.most_left_s)
    known = [value for value in times if value is not None]
    return RunProgress(*known) if len(known) == len(times) else None


def _check(event: object) -> None:
    if isinstance(event, Disconnected) and event.fatal:
        raise TransportError(f"the broker refuses this login: {event.reason}; check it and its access rules")
