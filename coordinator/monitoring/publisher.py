"""Publishes snapshots and events of a run on the broker, for `fleetnas watch` on other machines.

The rate of messages does not grow with the fleet: one page of device settings at a time, and a bounded number of events
a second.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from pydantic import TypeAdapter

from fleetnas.coordinator.records.events import CampaignFinished, Event
from fleetnas.coordinator.records.snapshot import DeviceSnapshot, Snapshot
from fleetnas.coordinator.records.statuses import RunStatus
from fleetnas.fleet_protocol.codec import MAX_JSON_BYTES, decode, encode
from fleetnas.fleet_protocol.errors import TransportError
from fleetnas.fleet_protocol.topics import MAX_PAGES, RunUpdate, Topics
from fleetnas.fleet_protocol.transports.base import Transport
from fleetnas.fleet_protocol.updates import MAX_EVENTS, RunEvents, RunPage, RunSummary

#: Seconds between two summaries; a feed that misses several takes the coordinator for gone.
SUMMARY_EVERY_S = 2.0
#: Seconds of silence after which a coordinator counts as gone; its broker keeps its last messages.
SILENT_AFTER_S = 6 * SUMMARY_EVERY_S
#: Seconds after which another run is at work no longer; one of a large fleet publishes less often.
_AT_WORK_S = 2 * SILENT_AFTER_S
#: Runs of other coordinators that are remembered, so that invented ones cannot fill the memory.
_MOST_RUNS = 1000
#: Seconds between two pages, and for one round of all pages, at least.
_PAGE_EVERY_S, _ROUND_S = 0.25, 1.0
#: Device settings on a page; fewer where they have many targets. A page stays far below the largest message.
_MOST_ON_PAGE, _PAGE_BYTES, _DEVICE_BYTES, _TARGET_BYTES, _BASELINE_BYTES = 16, 40_000, 1_200, 550, 320
_EVENTS_BYTES = 32_000
_TEXT = 200

_DEVICE: TypeAdapter[DeviceSnapshot] = TypeAdapter(DeviceSnapshot)


def device_to_json(device: DeviceSnapshot) -> dict[str, Any]:
    """Return a device setting as a page holds it; long texts are cut."""
    fields: dict[str, Any] = _DEVICE.dump_python(device, mode="json", exclude_defaults=True)
    fields["state"] = device.state
    _cut(fields, "state_detail", "targets_note")
    for target in fields.get("targets", ()):
        _cut(target, "reason", "note")
    for baseline in fields.get("baselines", ()):
        _cut(baseline, "reason")
    return fields


def _cut(fields: dict[str, Any], *names: str) -> None:
    for name in names:
        if name in fields:
            fields[name] = fields[name][:_TEXT]


def device_from_json(fields: dict[str, Any]) -> DeviceSnapshot:
    """Read a device setting that `device_to_json` wrote; `pydantic.ValidationError` where it is none."""
    return _DEVICE.validate_python(fields)


class Publisher:
    """Publishes snapshots and events of one run; a `View`.

    It also clears what coordinators left on the broker that were killed, since nobody else does.
    """

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        run_id: str,
        clock: Callable[[], float],
        on_other: Callable[[RunSummary], object] = lambda summary: None,
    ) -> None:
        """`on_other` is called once for every other run whose coordinator is at work."""
        self._transport, self._topics, self._run_id = transport, topics, run_id
        self._on_other = on_other
        #: Other runs at work: when each published last. Those that were told of, ended ones included.
        self._others: dict[str, float] = {}
        self._told: set[str] = set()
        self._clock = clock
        self._latest: Snapshot | None = None
        self._state = RunStatus.INTERRUPTED
        self._summary: RunSummary | None = None
        self._summary_at_s = self._page_at_s = float("-inf")
        self._pages: dict[int, bytes] = {}
        #: Pages that this run may have on the broker, those of an earlier start included.
        self._page_count = 0
        #: Summaries of other runs that are retained and were not renewed since: time of arrival, and number of pages.
        self._left: dict[str, tuple[float, int]] = {}
        self._turn = 0
        self._events: deque[Event] = deque()
        self._number = 0
        self._closed = False
        transport.subscribe(topics.runs)

    def on_connected(self) -> None:
        """Publish everything again: a restarted broker has lost what it retained."""
        self._summary = None
        self._pages.clear()

    def on_run_update(self, address: RunUpdate, payload: bytes, retained: bool) -> None:
        """Take the summary of a run; one that is retained and never renewed was left by a killed coordinator.

        `ProtocolError` where it is no summary.
        """
        if address.part != "summary":
            return
        if not payload or not retained:
            self._left.pop(address.run, None)
            if address.run != self._run_id:
                self._notice(address.run, decode(RunSummary, payload) if payload else None)
            return
        pages = min(decode(RunSummary, payload).pages, MAX_PAGES)
        if address.run == self._run_id:
            self._page_count = max(self._page_count, pages)
        elif len(self._left) < _MOST_RUNS:
            self._left[address.run] = (self._clock(), pages)

    @property
    def others_at_work(self) -> Collection[str]:
        """Other runs that publish now."""
        silent_s = self._clock() - _AT_WORK_S
        return [run for run, published_s in self._others.items() if published_s > silent_s]

    def _notice(self, run: str, summary: RunSummary | None) -> None:
        """Tell of another run; its coordinator is at work, since what it publishes arrives anew. None: it ended."""
        if summary is None or summary.state is not RunStatus.RUNNING:
            self._others.pop(run, None)
            return
        if run not in self._told and len(self._told) < _MOST_RUNS:
            self._told.add(run)
            self._on_other(summary)
        if run in self._told:
            self._others[run] = self._clock()

    def update(self, snapshot: Snapshot) -> None:
        """Publish waiting events, a summary where one is due, and one page where it has changed."""
        self._latest = snapshot
        now = self._clock()
        self._clear_left(now)
        self._send_events()
        count = _on_page(snapshot)
        pages = min(-(-len(snapshot.devices) // count), MAX_PAGES)
        changed = self._summary is None or (snapshot.phase, pages) != (self._summary.phase, self._summary.pages)
        if changed or now - self._summary_at_s >= SUMMARY_EVERY_S:
            self._summary_at_s = now
            self._publish_summary(snapshot, RunStatus.RUNNING, pages)
        if pages and now - self._page_at_s >= max(_PAGE_EVERY_S, _ROUND_S / pages):
            self._page_at_s = now
            self._turn = (self._turn + 1) % pages
            self._send_page(snapshot, self._turn, count)

    def event(self, event: Event) -> None:
        """Keep an event for the next message; where one message cannot hold all, the oldest are dropped."""
        if isinstance(event, CampaignFinished):
            self._state = event.status
        self._events.append(event)
        if len(self._events) > MAX_EVENTS:
            self._events.popleft()
            self._number += 1

    def close(self) -> None:
        """Publish the end of the run, then clear what the broker retains of it."""
        if self._closed:
            return
        self._closed = True
        if self._latest is not None:
            count = _on_page(self._latest)
            for page in self._pages:
                if page * count < len(self._latest.devices):
                    self._send_page(self._latest, page, count)
        self._send_events()
        if self._latest is not None:
            self._publish_summary(self._latest, self._state, len(self._pages))
        self._clear(self._run_id, self._page_count)

    def _clear_left(self, now: float) -> None:
        for run, (received_s, pages) in list(self._left.items()):
            if now - received_s >= SILENT_AFTER_S:
                del self._left[run]
                self._clear(run, pages)

    def _clear(self, run: str, pages: int) -> None:
        for page in range(pages):
            self._publish(self._topics.run_page(run, page), b"", retain=True, qos=1)
        self._publish(self._topics.run_summary(run), b"", retain=True, qos=1)

    def _publish_summary(self, snapshot: Snapshot, state: RunStatus, pages: int) -> None:
        progress = {} if snapshot.progress is None else vars(snapshot.progress)
        self._summary = RunSummary(
            run_id=self._run_id,
            state=state,
            supernet=snapshot.supernet[:_TEXT],
            phase=snapshot.phase[:_TEXT],
            started_unix_s=snapshot.started_s,
            at_unix_s=snapshot.now_s,
            settings=len(snapshot.devices),
            pages=pages,
            log=tuple(line[:_TEXT] for line in snapshot.log[-20:]),
            **progress,
        )
        qos = 0 if state is RunStatus.RUNNING else 1
        self._publish(self._topics.run_summary(self._run_id), encode(self._summary), retain=True, qos=qos)

    def _send_page(self, snapshot: Snapshot, page: int, count: int) -> None:
        devices = snapshot.devices[page * count : (page + 1) * count]
        payload = encode(RunPage(devices=tuple(device_to_json(device) for device in devices)))
        if payload != self._pages.get(page) and len(payload) <= MAX_JSON_BYTES:
            self._pages[page] = payload
            self._page_count = max(self._page_count, page + 1)
            self._publish(self._topics.run_page(self._run_id, page), payload, retain=True, qos=0)

    def _send_events(self) -> None:
        fields: list[dict[str, Any]] = []
        first, size = self._number, 0
        while self._events and size < _EVENTS_BYTES:
            event = self._events[0]
            found = event.model_dump(mode="json")
            cost = len(event.model_dump_json())
            if fields and size + cost > _EVENTS_BYTES:
                break
            self._events.popleft()
            self._number += 1
            size += cost
            fields.append(found)
        if fields and size <= MAX_JSON_BYTES - 1000:
            self._publish(
                self._topics.run_events(self._run_id),
                encode(RunEvents(first=first, events=tuple(fields))),
                retain=False,
                qos=0,
            )

    def _publish(self, topic: str, payload: bytes, *, retain: bool, qos: int) -> None:
        with contextlib.suppress(TransportError):  # The campaign comes first; a feed sees the next message.
            self._transport.publish(topic, payload, qos=qos, retain=retain)


def _on_page(snapshot: Snapshot) -> int:
    targets = max((len(device.targets) for device in snapshot.devices), default=0)
    baselines = max((len(device.baselines) for device in snapshot.devices), default=0)
    device_bytes = _DEVICE_BYTES + _TARGET_BYTES * targets + _BASELINE_BYTES * baselines
    return max(1, min(_MOST_ON_PAGE, _PAGE_BYTES // device_bytes))
