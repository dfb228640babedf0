"""Bring the blobs of one task into the cache, from a mirror or through the broker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fleetnas.agent.transfer.blobs import BlobCache, BlobFetch, limit_partials, partial_file
from fleetnas.agent.transfer.mirror import MirrorFetch, Mirrors
from fleetnas.fleet_protocol.codec import BlobChunk
from fleetnas.fleet_protocol.errors import BundleError, MirrorError
from fleetnas.fleet_protocol.messages import BlobReference, BlobRequest
from fleetnas.fleet_protocol.orders import MeasurementTask, ModelTask


@dataclass(frozen=True, slots=True)
class BlobSources:
    """Where blobs come from and where they are kept; `request` asks the coordinator for bytes."""

    cache: BlobCache
    partial_folder: Path
    mirrors: Mirrors
    request: Callable[[BlobRequest], None]


class TaskBlobs:
    """The bundle of a task and a winner's calibration, or a model file. One blob is fetched at a time."""

    def __init__(self, task: MeasurementTask, sources: BlobSources) -> None:
        self._task = task
        extra = task.model if isinstance(task, ModelTask) else task.calibration
        self._wanted: list[BlobReference] = [task.bundle] + ([extra] if extra is not None else [])
        self._sources = sources
        self._fetch: BlobFetch | MirrorFetch | None = None

    def path(self, blob: BlobReference) -> str:
        """Return the file of a blob that is in the cache."""
        return str(self._sources.cache.find(blob.sha256))

    def fetch(self, now: float, report: Callable[[float], None]) -> bool:
        """Go on fetching the first blob that is missing; return whether every blob is in the cache.

        `report` is called with the fraction of the blob's bytes that are here. Raises `BundleError` if a blob cannot
        be fetched or kept.
        """
        for blob in self._wanted:
            if self._sources.cache.find(blob.sha256) is None:
                self._continue(blob, now, report)
                if self._sources.cache.find(blob.sha256) is None:
                    return False
        return True

    def receive(self, chunk: BlobChunk) -> None:
        """Take a chunk from the broker; `BundleError` if it cannot be written."""
        if isinstance(self._fetch, BlobFetch):
            self._fetch.receive(chunk)

    def on_reconnected(self) -> None:
        """Request again what was requested on the connection before."""
        if isinstance(self._fetch, BlobFetch):
            self._fetch.on_reconnected()

    def stop(self) -> None:
        """Leave the mirror, if one is used; the bytes that are here stay, to be resumed."""
        if isinstance(self._fetch, MirrorFetch):
            self._fetch.stop()

    def expire(self, limit_s: float, now: float) -> str:
        """Stop after the task's `limit_s` s; return how much is here, for people, or nothing if no fetch goes on."""
        self.stop()
        if self._fetch is None:
            return ""
        if isinstance(self._fetch, MirrorFetch):
            self._sources.mirrors.give_up(self._fetch.mirror, f"slower than {limit_s:g} s", now)
        return f"{self._fetch.received_bytes:,} of {self._fetch.blob.size:,} bytes"

    def discard(self) -> None:
        """Remove the task's blobs from the cache: one of them is damaged."""
        for blob in self._wanted:
            self._sources.cache.discard(blob.sha256)

    def _continue(self, blob: BlobReference, now: float, report: Callable[[float], None]) -> None:
        if self._fetch is None or self._fetch.blob != blob:
            self._make_room(blob)
            self._fetch = self._begin(blob, now)
        try:
            file = self._fetch.step(now)
        except MirrorError as error:
            assert isinstance(self._fetch, MirrorFetch)
            self._sources.mirrors.give_up(self._fetch.mirror, str(error), now)
            self._fetch = None  # the bytes that it fetched are kept; the coordinator is asked for the rest
            return
        report(self._fetch.fraction)
        if file is not None:
            try:
                self._sources.cache.add(blob.sha256, file)
            except OSError as error:
                raise BundleError(f"the cache cannot be written ({error}); check --state-dir") from error
            self._fetch = None

    def _make_room(self, blob: BlobReference) -> None:
        """Make room for a blob and for its partial file; if need be, remove the partial files of other blobs."""
        cache, partials = self._sources.cache, self._sources.partial_folder
        keep = [wanted.sha256 for wanted in self._wanted]
        limit_partials(partials, keep, cache.max_bytes)
        try:
            cache.make_room(blob.size, keep)
        except BundleError:
            limit_partials(partials, keep, 0)
            cache.make_room(blob.size, keep)

    def _begin(self, blob: BlobReference, now: float) -> BlobFetch | MirrorFetch:
        partial = partial_file(self._sources.partial_folder, blob.sha256)
        mirror = self._task.mirror if blob == self._task.bundle else None
        fetch = self._sources.mirrors.begin(mirror, blob, partial, now)
        return fetch or BlobFetch(blob, partial, self._sources.request)
