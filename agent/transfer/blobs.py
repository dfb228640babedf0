"""Fetch bundles and calibrations in chunks over MQTT, verify them, and keep them by hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from fleetnas.fleet_protocol.codec import MAX_CHUNK_BYTES, BlobChunk
from fleetnas.fleet_protocol.errors import BundleError, HashMismatchError
from fleetnas.fleet_protocol.messages import BlobReference, BlobRequest

#: Chunks requested and not yet received. Half a megabyte in flight fills any link a board has.
WINDOW = 8
#: A chunk that has not arrived after this long is requested again, then after twice as long, up to the maximum.
CHUNK_TIMEOUT_S = 5.0
MAX_CHUNK_TIMEOUT_S = 60.0
#: Complete fetches with a wrong hash before the blob is given up.
MAX_WRONG_HASHES = 2
DEFAULT_CACHE_BYTES = 2 * 1024**3
#: Partial files that are kept to be resumed.
MAX_PARTIALS = 8
#: Left free on the disk for the outbox and everybody else.
_DISK_RESERVE_BYTES = 32 * 1024**2


class BlobCache:
    """Verified blobs, one file each, named by their hash; shared by the agents of a state folder."""

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    @property
    def max_bytes(self) -> int:
        """Bytes that all blobs together may take."""
        return self._max_bytes

    def find(self, sha256: str) -> Path | None:
        """Return the file of a blob; None if it is not in the cache."""
        path = self._folder / sha256
        try:
            os.utime(path)  # least recently used goes first
        except FileNotFoundError:
            return None
        except OSError:
            return path if path.exists() else None
        return path

    def add(self, sha256: str, file: Path) -> Path:
        """Move a verified file into the cache and return its new path; `OSError` if that fails."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / sha256
        os.replace(file, path)
        return path

    def discard(self, sha256: str) -> None:
        """Delete a blob that is damaged."""
        with contextlib.suppress(OSError):
            (self._folder / sha256).unlink()

    def make_room(self, needed_bytes: int, keep: Collection[str] = ()) -> None:
        """Remove the least recently used blobs until `needed_bytes` more fit; never those in `keep`.

        Raises `BundleError` if they cannot fit.
        """
        if needed_bytes > self._max_bytes:
            raise BundleError(
                f"a blob of {_megabytes(needed_bytes)} exceeds the cache's cap of {_megabytes(self._max_bytes)}; "
                "raise it with --cache-mb"
            )
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        entries = []
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):
                status = path.stat()
                entries.append((status.st_mtime_ns, status.st_size, path))
        used = sum(size for _, size, _ in entries)
        free = shutil.disk_usage(self._folder).free - _DISK_RESERVE_BYTES
        for _, size, path in sorted(entries):
            if used + needed_bytes <= self._max_bytes and needed_bytes <= free:
                return
            if path.name not in keep:
                with contextlib.suppress(OSError):
                    path.unlink()
                    used -= size
                    free += size
        if needed_bytes > free:
            raise BundleError(
                f"{_megabytes(needed_bytes)} more are needed in {self._folder} and the disk has "
                f"{_megabytes(max(0, free))} to spare; free some space"
            )


def partial_file(folder: Path, sha256: str) -> Path:
    """Return the file in which a blob is kept until all of it is here."""
    return folder / f"{sha256}.partial"


def limit_partials(folder: Path, wanted: Collection[str], max_bytes: int) -> None:
    """Delete partial files, the least recently written first, until few are left and they take `max_bytes` at most.

    Those of the `wanted` hashes stay. The folder belongs to one agent alone.
    """
    kept = {partial_file(folder, sha256) for sha256 in wanted}
    entries = []
    for path in folder.glob("*.partial"):
        with contextlib.suppress(OSError):
            status = path.stat()
            entries.append((status.st_mtime_ns, status.st_size, path))
    left, used = len(entries), sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if left <= MAX_PARTIALS and used <= max_bytes:
            return
        if path not in kept:
            with contextlib.suppress(OSError):
                path.unlink()
                left, used = left - 1, used - size


class BlobFetch:
    """Fetches one blob through the broker; chunks may be lost, repeated, reordered or damaged.

    The partial file outlives a restart. It grows in order, so its size tells where to resume; chunks that arrive ahead
    of it wait in memory, at most a window of them.
    """

    def __init__(self, blob: BlobReference, partial: Path, send: Callable[[BlobRequest], None]) -> None:
        self.blob = blob
        self._partial = partial
        self._send = send
        self._asked: dict[int, tuple[float, int]] = {}
        self._ahead: dict[int, bytes] = {}
        self._wrong_hashes = 0
        self._digest = hashlib.sha256()
        self._size = 0
        self._resume()

    @property
    def fraction(self) -> float:
        """Share of the bytes that are here, 0 to 1."""
        return self._size / self.blob.size

    @property
    def received_bytes(self) -> int:
        """Number of bytes that are here, from the beginning of the blob."""
        return self._size

    def step(self, now: float) -> Path | None:
        """Request missing chunks; return the verified file once the whole blob is here, else None.

        Raises `HashMismatchError` if the bytes do not have the announced hash, `BundleError` if they cannot be
        written.
        """
        if self._size == self.blob.size:
            if self._digest.hexdigest() == self.blob.sha256:
                return self._partial
            self._restart()
        frontier = range(self._size, min(self.blob.size, self._size + WINDOW * MAX_CHUNK_BYTES), MAX_CHUNK_BYTES)
        for offset in frontier:
            if offset in self._ahead:
                continue
            asked_at, times = self._asked.get(offset, (now, 0))
            if times and now - asked_at < min(CHUNK_TIMEOUT_S * 2 ** (times - 1), MAX_CHUNK_TIMEOUT_S):
                continue
            self._asked[offset] = (now, times + 1)
            self._send(BlobRequest(sha256=self.blob.sha256, offset=offset, length=self._length(offset)))
        return None

    def receive(self, chunk: BlobChunk) -> None:
        """Take a chunk; ignore one that was not requested or is too short. `BundleError` if it cannot be written."""
        if chunk.sha256 != self.blob.sha256 or chunk.offset not in self._asked:
            return
        if len(chunk.data) != self._length(chunk.offset):
            return
        del self._asked[chunk.offset]
        self._ahead[chunk.offset] = chunk.data
        self._write_ready()

    def on_reconnected(self) -> None:
        """Forget the requests of the connection before, which nobody answers; the next step repeats them."""
        self._asked.clear()

    def _length(self, offset: int) -> int:
        return min(MAX_CHUNK_BYTES, self.blob.size - offset)

    def _resume(self) -> None:
        """Resume the file of an earlier process; only whole chunks count."""
        try:
            self._partial.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._partial.open("ab+") as file:
                kept = min(file.tell(), self.blob.size)
                if kept < self.blob.size:
                    kept -= kept % MAX_CHUNK_BYTES
                file.truncate(kept)
                file.seek(0)
                while data := file.read(MAX_CHUNK_BYTES):
                    self._digest.update(data)
                    self._size += len(data)
        except OSError as error:
            raise self._unwritable(error) from error

    def _write_ready(self) -> None:
        try:
            with self._partial.open("ab") as file:
                while (data := self._ahead.pop(self._size, None)) is not None:
                    file.write(data)
                    self._digest.update(data)
                    self._size += len(data)
        except OSError as error:
            raise self._unwritable(error) from error

    def _restart(self) -> None:
        found = self._digest.hexdigest()
        self._wrong_hashes += 1
        self._digest, self._size = hashlib.sha256(), 0
        self._asked.clear()
        with contextlib.suppress(OSError):
            self._partial.unlink()
        if self._wrong_hashes >= MAX_WRONG_HASHES:
            raise HashMismatchError(
                f"the blob was announced with SHA-256 {self.blob.sha256} and arrived {self._wrong_hashes} times with "
                f"another, last {found}; check the file that the coordinator serves"
            )

    def _unwritable(self, error: OSError) -> BundleError:
        return BundleError(
            f"{self._partial} cannot be written ({error}); free {_megabytes(self.blob.size)} in its folder, or choose "
            "another with --state-dir"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
