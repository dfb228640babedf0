"""Run one fleet-wide search and yield its events."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Mapping
from dataclasses import fields
from pathlib import Path

from fleetnas.coordinator.app.compose import open_search
from fleetnas.coordinator.app.request import FleetAccess, ImageFolders, NewRun, SearchRequest
from fleetnas.coordinator.cli.configuration import store_location
from fleetnas.coordinator.records.events import Event
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.snapshot import Snapshot
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.transports.base import BrokerAddress

__all__ = ["CampaignPlan", "search_fleet"]


def search_fleet(
    supernet: Path | str,
    broker: str,
    plan: CampaignPlan,
    *,
    fleet: str = "default",
    store: str | None = None,
    out: Path | str | None = None,
    images: Mapping[str, Path | str] | None = None,
) -> Generator[Event, None, None]:
    """Search on all agents of a fleet, and yield each event as it happens.

    Events are frozen values: `MeasurementTaken`, `WinnerVerified`, `TargetMissed` and others, told apart by their class
    or by `event.event`. The last one is `CampaignFinished`. Closing the iterator, or Ctrl-C, ends the search in order;
    everything measured is stored, and `fleetnas search --resume` (with the same `--store`) continues the run.

    Args:
        supernet: a `.supernet` file with an accuracy predictor.
        broker: `HOST`, `HOST:PORT`, or `mqtts://HOST:PORT` for TLS.
        plan: targets, budget, devices and conditions.
        fleet: name of the fleet, a part of every topic.
        store: path of the SQLite store, or a PostgreSQL URL; None: the one of the command line, which is
            configured or in your data folder.
        out: folder for `results.json`, `report.html` and the winners' model files; None writes none.
        images: folders with a folder of images per class. `calibration`: to calibrate winners; `selection`: to choose
            each winner among the `plan.rerank` best candidates; `evaluation`: only reported. The built-in digits have
            their own.

    Raises:
        UsageError: the plan, an address or a folder of images cannot be used.
        BundleError: the supernet cannot be used.
        StoreError: the store cannot be used.
        TransportError: the broker does not answer within 10 s.
        ResultsError: the results could not be written; the run can be resumed.
    """
    request = SearchRequest(
        store=store_location(store),
        devices_at=FleetAccess(BrokerAddress.parse(broker), fleet),
        run=NewRun(Path(supernet), plan),
        out=Path(out) if out is not None else None,
        images=_image_folders(images or {}),
    )
    feed = _EventFeed()
    worker = threading.Thread(target=feed.run, args=(request,), name="fleet-search", daemon=True)
    worker.start()
    try:
        yield from feed.events()
    finally:
        feed.stop()
        worker.join()


def _image_folders(images: Mapping[str, Path | str]) -> ImageFolders:
    known = [field.name for field in fields(ImageFolders) if field.name != "some_classes"]
    unknown = sorted(set(images) - set(known))
    if unknown:
        raise UsageError(f"images are for {', '.join(known)}, not for {', '.join(unknown)}; rename them")
    found = {part: Path(folder) for part, folder in images.items()}
    return ImageFolders(found.get("calibration"), found.get("evaluation"), found.get("selection"))


class _EventFeed:
    """A view that hands the events of a search in one thread to an iterator in another."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._interrupted = False

    def run(self, request: SearchRequest) -> None:
        """Run the search to its end. Its exception, or None, is the last item of the queue."""
        try:
            store = MeasurementStore.open(request.store)
            with contextlib.closing(store):  # also where the search cannot be opened
                running = open_search(request, lambda: self, store)
                with contextlib.closing(running):
                    running.run()
        except BaseException as error:  # noqa: BLE001 - the iterator raises it in the caller's thread
            self._queue.put(error)
        else:
            self._queue.put(None)

    def events(self) -> Generator[Event, None, None]:
        """Yield events until the search has ended; raise its exception."""
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def stop(self) -> None:
        """End the search at its next update."""
        self._stop.set()

    def update(self, snapshot: Snapshot) -> None:
        """Interrupt the search, once, where the iterator was closed: a search takes it as Ctrl-C.

        One that has finished by then is completed instead.
        """
        if self._stop.is_set() and not self._interrupted and snapshot.phase != "finished":
            self._interrupted = True
            raise KeyboardInterrupt

    def event(self, event: Event) -> None:
        """Pass one event to the iterator."""
        self._queue.put(event)

    def close(self) -> None:
        """Do nothing: the end of `run` ends the iterator."""
