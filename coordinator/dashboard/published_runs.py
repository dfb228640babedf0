"""Runs at work, from what their coordinators publish on the broker; received by a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fleetnas.coordinator.monitoring.broker_feed import published_snapshot
from fleetnas.coordinator.monitoring.fleet_observer import FleetObserver
from fleetnas.coordinator.monitoring.publisher import SILENT_AFTER_S
from fleetnas.coordinator.records.snapshot import Snapshot
from fleetnas.coordinator.records.statuses import RunStatus
from fleetnas.fleet_protocol.error_text import one_line
from fleetnas.fleet_protocol.errors import FleetnasError, ProtocolError
from fleetnas.fleet_protocol.topics import RunUpdate, Topics
from fleetnas.fleet_protocol.transports.base import Connected, Disconnected, Received, Transport, TransportEvent
from fleetnas.fleet_protocol.updates import RunSummary

_POLL_S = 0.2
#: Runs that are remembered, so that invented ones cannot fill the memory.
_MOST_RUNS = 1000


class LiveRuns:
    """Receives summaries and pages of all runs of a fleet."""

    def __init__(self, transport: Transport, topics: Topics, clock: Callable[[], float] = time.monotonic) -> None:
        """Subscribe; the transport is started by its owner and closed by `close`."""
        self._transport, self._topics, self._clock = transport, topics, clock
        self._observer = FleetObserver(topics)
        self._received_s: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._problem = ""
        self._thread = threading.Thread(target=self._receive, name="published-runs", daemon=True)
        transport.subscribe(topics.run("+"))

    def start(self) -> None:
        """Receive from now on, until `close`."""
        self._thread.start()

    def close(self) -> None:
        """End the thread and the connection."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        self._transport.close()

    @property
    def problem(self) -> str:
        """Why nothing is received now; empty where all is well."""
        with self._lock:
            return self._problem

    def snapshot(self, run_id: str) -> Snapshot | None:
        """Return the state of a run whose coordinator is at work; None where none is."""
        with self._lock:
            summary = self._observer.runs.get(run_id)
            if summary is None or summary.state is not RunStatus.RUNNING or self._is_silent(run_id):
                return None
            pages = {page: self._observer.pages.get((run_id, page), ()) for page in range(summary.pages)}
            return published_snapshot(summary, pages, summary.phase)

    def summaries(self) -> list[RunSummary]:
        """Return the runs whose coordinators are at work, the newest first."""
        with self._lock:
            found = [
                summary
                for run_id, summary in self._observer.runs.items()
                if summary.state is RunStatus.RUNNING and not self._is_silent(run_id)
            ]
        return sorted(found, key=lambda summary: summary.started_unix_s, reverse=True)

    def take(self, event: TransportEvent) -> None:
        """Take one event of the transport."""
        with self._lock:
            if isinstance(event, Disconnected):
                action = "check the login and its access rules" if event.fatal else "trying again"
                self._problem = f"no connection to the broker ({event.reason}): {action}"
                return
            if isinstance(event, Connected):
                self._problem = ""
                return
            run_id = self._run_of(event)
            if run_id is None:
                return
            if not event.retained or run_id not in self._received_s:
                self._received_s[run_id] = self._clock()
            self._observer.take(event, self._clock())

    def _run_of(self, message: Received) -> str | None:
        """Return the run that a message is about; None for other messages, and for too many runs."""
        try:
            address = self._topics.parse(message.topic)
        except ProtocolError:
            return None
        if not isinstance(address, RunUpdate) or address.part == "events":
            return None
        known = address.run in self._received_s or len(self._received_s) < _MOST_RUNS
        return address.run if known else None

    def _is_silent(self, run_id: str) -> bool:
        return self._clock() - self._received_s.get(run_id, float("-inf")) > SILENT_AFTER_S

    def _receive(self) -> None:
        while not self._stopped.is_set():
            try:
                event = self._transport.poll(_POLL_S)
            except FleetnasError as error:
                with self._lock:
                    self._problem = one_line(error)
                self._stopped.wait(_POLL_S)
                continue
            if event is not None:
                self.take(event)
