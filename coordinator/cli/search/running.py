"""A search on devices, with its view on this terminal."""

from __future__ import annotations

import contextlib
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fleetnas.coordinator.app.compose import open_search
from fleetnas.coordinator.app.driver import RunningSearch
from fleetnas.coordinator.app.local_device import LocalDevice
from fleetnas.coordinator.app.priority import session_yields_to_measurements
from fleetnas.coordinator.app.request import FleetAccess, SearchRequest
from fleetnas.coordinator.app.tracking import MlflowTracking, log_run
from fleetnas.coordinator.cli.configuration import store_location
from fleetnas.coordinator.cli.progress import image_progress
from fleetnas.coordinator.records.outcome import CampaignOutcome
from fleetnas.coordinator.records.statuses import RunStatus, SettingStatus
from fleetnas.coordinator.records.totals import target_totals
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.coordinator.store.database import shown_location
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.view.output import output_console
from fleetnas.coordinator.view.summary import print_summary
from fleetnas.coordinator.view.view import View, make_view
from fleetnas.fleet_protocol.errors import ResultsError, TransportError

EXIT_CODES = {
    RunStatus.COMPLETE: 0,
    RunStatus.PARTIAL: 1,
    RunStatus.FAILED: 1,
    RunStatus.INTERRUPTED: 130,
}
#: What a new search says that was stopped before a device had joined.
_NO_DEVICE = "stopped before a device joined: nothing was measured, and no run is stored"


@dataclass(frozen=True)
class SearchEnd:
    """How a search ended."""

    run_id: str
    status: RunStatus
    timed_out: bool = False
    """Whether --timeout ended it."""
    all_met: bool = False
    """Whether every target that was asked for is met."""
    deleted: bool = False
    """Whether it ended before a device joined, so that no run is stored."""

    @property
    def exit_code(self) -> int:
        """0 where every target is met; a search whose time was over may have met all before."""
        return 0 if self.timed_out and self.all_met else EXIT_CODES[self.status]


def run_search(request: SearchRequest, *, as_json: bool, store: MeasurementStore | None = None) -> int:
    """Run a search with its view on this terminal; returns the exit code. A given `store` is closed at its end."""
    return search_once(request, as_json=as_json, store=store).exit_code


def search_once(request: SearchRequest, *, as_json: bool, store: MeasurementStore | None = None) -> SearchEnd:
    """Run a search with its view on this terminal, and print its summary. A given `store` is closed at its end."""
    console = output_console()
    # A service manager's stop and a closed terminal act as Ctrl-C: the run ends in order and can be resumed.
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.default_int_handler)
    tracking = MlflowTracking(request.tracking_uri) if request.tracking_uri is not None else None
    store = store or MeasurementStore.open(request.store)
    outcome: CampaignOutcome | None = None

    def view() -> View:
        return make_view(console, as_json, summary_follows=lambda: outcome is not None)

    with image_progress() as progress:
        running = open_search(request, view, store, image_progress=progress)
    try:
        with session_yields_to_measurements(), told_origin(request.devices_at):
            ending = running.run()
        outcome = None if running.deleted else outcome_of(store, running.run_id)
    except ResultsError as error:
        raise ResultsError(f"{error}. Go on with: {_resume_command(running.run_id, request)}") from error
    finally:
        running.close()
    if outcome is None:
        Console(stderr=True).print(_NO_DEVICE, markup=False, highlight=False, soft_wrap=True)
        return SearchEnd(running.run_id, ending, running.timed_out, False, deleted=True)
    if not as_json:
        print_summary(console, outcome, _remarks(running, request, ending, outcome))
    if tracking is not None:
        out = Path(running.settings.out) if running.settings.out is not None else None
        shown_on = Console(stderr=True) if as_json else console
        shown_on.print(log_run(tracking, out, running.run_id), markup=False, highlight=False, soft_wrap=True)
    totals = target_totals(outcome.devices)
    return SearchEnd(running.run_id, ending, running.timed_out, bool(totals.asked) and totals.met == totals.asked)


def _remarks(running: RunningSearch, request: SearchRequest, ending: RunStatus, outcome: CampaignOutcome) -> list[str]:
    """Return where the results are and how to go on, for the lines before the verdict."""
    remarks = []
    if running.settings.out is not None and ending is not RunStatus.INTERRUPTED:
        remarks.append(f"results and model files: {running.settings.out}")
    if running.artifacts.card_remark:
        remarks.append(running.artifacts.card_remark)
    unfinished = any(device.status is not SettingStatus.FINISHED for device in outcome.devices)
    if ending is RunStatus.INTERRUPTED or unfinished:
        remarks.append(_next_step(ending, running.run_id, request, timed_out=running.timed_out))
    return remarks


def run_plan(request: SearchRequest, *, as_json: bool, view: View | None = None) -> CampaignOutcome:
    """Execute a plan with its view on this terminal, or `view`; returns the outcome. `KeyboardInterrupt` on Ctrl-C."""
    console = Console(stderr=as_json)
    store = MeasurementStore.open(request.store)
    running = open_search(request, lambda: view or make_view(console, False), store)
    try:
        with session_yields_to_measurements():
            ending = running.run()
        if ending is RunStatus.INTERRUPTED:
            raise KeyboardInterrupt
        return outcome_of(store, running.run_id)
    finally:
        running.close()


def _next_step(ending: RunStatus, run_id: str, request: SearchRequest, *, timed_out: bool) -> str:
    resume = _resume_command(run_id, request)
    if timed_out:
        return f"its time (--timeout) is over; the winners verified so far stand. Go on with: {resume}"
    if ending is RunStatus.INTERRUPTED:
        return f"interrupted; everything measured is stored. Go on with: {resume}"
    return f"not every device finished. Once those that did not can measure again, go on with: {resume}"


def _resume_command(run_id: str, request: SearchRequest) -> str:
    """Return the command that goes on with a run, which keeps its broker and fleet."""
    default = request.store == store_location(None)
    where = [] if default else ["--store", shown_location(request.store)]
    return shlex.join(["fleetnas", request.kind, *where, "--resume", run_id])


@contextlib.contextmanager
def told_origin(at: FleetAccess | LocalDevice) -> Iterator[None]:
    """Say in an error of the connection where the broker's address is configured."""
    try:
        yield
    except TransportError as error:
        raise type(error)(f"{error}{at.origin if isinstance(at, FleetAccess) else ''}") from error
