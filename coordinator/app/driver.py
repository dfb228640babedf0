"""Drives a campaign to its end: takes the transport's events, ticks, shows snapshots, writes artifacts."""

from __future__ import annotations

import contextlib
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

from fleetnas.coordinator.app.garbage import rarer_garbage_collection
from fleetnas.coordinator.app.progress_events import ProgressEvents
from fleetnas.coordinator.app.run_artifacts import RunArtifacts
from fleetnas.coordinator.campaign.baseline_measurer import BaselineMeasurer
from fleetnas.coordinator.campaign.campaign import Campaign
from fleetnas.coordinator.records.plan import RunSettings
from fleetnas.coordinator.records.snapshot import with_baselines
from fleetnas.coordinator.records.statuses import RunStatus
from fleetnas.coordinator.search.blas import single_threaded_blas
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.view import wording
from fleetnas.coordinator.view.view import View
from fleetnas.fleet_protocol.errors import ResultsError, StoreUnavailableError
from fleetnas.fleet_protocol.transports.base import Transport, take_events
from fleetnas.fleet_protocol.transports.mqtt_process import sent_together

_CONNECT_S = 10.0
#: Least time between two snapshots for the view, and longest wait for an event, seconds.
_VIEW_EVERY_S, _TICK_S = 0.25, 0.1
#: Between two snapshots at least this many times as long as the last one took: large fleets are shown less often.
_VIEW_SHARE = 50
_MOST_EVENTS_PER_TICK = 500


class CampaignTransport(Transport, Protocol):
    """A transport that can be waited for."""

    def wait_connected(self, timeout_s: float) -> None:
        """Wait until the first connection; `TransportError` after `timeout_s`, or where it is refused."""


@dataclass
class RunningSearch:
    """A campaign with its store, transport and view, all open; owns them, and closes them."""

    settings: RunSettings
    campaign: Campaign
    store: MeasurementStore
    transport: CampaignTransport
    executor: ThreadPoolExecutor
    view: View = field(repr=False)
    artifacts: RunArtifacts = field(repr=False)
    timeout_s: float | None = None
    """Time from `run` on after which the search ends with the winners verified so far; None: it has all its time."""
    baselines: BaselineMeasurer | None = field(default=None, repr=False)
    """Measures the user's own networks on device settings whose search has ended."""
    is_new: bool = False
    """Whether the run began with this process: it is deleted where it ends before a device joins."""
    timed_out: bool = field(default=False, init=False)
    """Whether that time was over before the search."""
    deleted: bool = field(default=False, init=False)
    """Whether it ended before a device joined, so that it is not in the store any more."""
    progress: ProgressEvents = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.progress = ProgressEvents(self.view.event)

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self.campaign.identity.run_id

    def run(self) -> RunStatus:
        """Drive the campaign to its end. Ctrl-C and `timeout_s` end it in order, and it can be resumed.

        Raises:
            ResultsError: the artifacts could not be written; the run can be resumed then too.
        """
        began_s = time.monotonic()
        try:
            self.transport.wait_connected(_CONNECT_S)
            # The matrices between two messages are small: more BLAS threads would wait for each other.
            with single_threaded_blas(), rarer_garbage_collection():
                self._drive(began_s + (math.inf if self.timeout_s is None else self.timeout_s))
        except KeyboardInterrupt:
            if self.baselines is not None:
                self.baselines.stop()
            self.campaign.stop()
            self._delete_or_mark_interrupted()
            if not self.deleted:
                self._write_artifacts()
            return RunStatus.INTERRUPTED
        except BaseException:
            self._delete_or_mark_interrupted()
            raise
        finally:
            self._show()
        try:
            ended = f"timed out after {wording.elapsed(time.monotonic() - began_s)}" if self.timed_out else ""
            status = self.campaign.finish(self._write_artifacts, timed_out=ended)
            if self.timed_out:
                self._delete_or_mark_interrupted()
            return status
        except ResultsError:
            self._mark_interrupted()
            raise

    def close(self) -> None:
        """Close the artifacts, the view, the transport, the executor and the store, each also after a failure."""
        with contextlib.ExitStack() as opened:
            opened.callback(self.store.close)
            opened.callback(self.executor.shutdown, wait=True, cancel_futures=True)
            opened.callback(self.transport.close)
            opened.callback(self.view.close)
            opened.callback(self.artifacts.close)

    def _drive(self, until_s: float) -> None:
        show_at_s = float("-inf")
        while not self._finished:
            if time.monotonic() >= until_s:
                self.timed_out = True
                if self.baselines is not None:
                    self.baselines.stop()
                return
            wait_s = 0.0 if self.campaign.behind else _TICK_S
            events = take_events(self.transport, wait_s, _MOST_EVENTS_PER_TICK)
            with sent_together(self.transport):
                self.campaign.on_events(events)
                self.campaign.on_tick()
                if self.baselines is not None:
                    self.baselines.on_tick()
            if not self._finished:  # at the end everything is written at once
                self.artifacts.update(self.campaign.targets_stored)
            began_s = time.monotonic()
            if began_s >= show_at_s:
                self._show()
                show_at_s = began_s + max(_VIEW_EVERY_S, _VIEW_SHARE * (time.monotonic() - began_s))

    @property
    def _finished(self) -> bool:
        return self.campaign.finished and (self.baselines is None or self.baselines.finished)

    def _show(self) -> None:
        snapshot = self.campaign.snapshot(time.time())
        if self.campaign.finished and not self._finished:
            # The campaign's progress is that of its searches, which have ended.
            snapshot = replace(snapshot, phase="measuring baselines", progress=None)
        if self.baselines is not None:
            snapshot = with_baselines(snapshot, [row.record for row in self.baselines.rows])
        self.progress.take(snapshot)
        self.view.update(snapshot)

    def _write_artifacts(self) -> str | None:
        if self.timed_out and self.is_new and not self.campaign.setting_runs:
            return None  # the run is about to be deleted
        written = self.artifacts.write()
        if written is not None:
            self._show()  # with the notes on parts that could not be made
        return written

    def _delete_or_mark_interrupted(self) -> None:
        """Delete a new run that no device joined, whose name is free again; any other one can be resumed."""
        with contextlib.suppress(StoreUnavailableError):
            if self.is_new and not self.store.devices(self.run_id):
                self.store.named_runs.delete(self.run_id)
                self.deleted = True
                return
        self._mark_interrupted()

    def _mark_interrupted(self) -> None:
        # A store that is away must not hide the cause of the end; a run marked as running can be resumed as well.
        with contextlib.suppress(StoreUnavailableError):
            self.store.set_run_status(self.run_id, RunStatus.INTERRUPTED)
