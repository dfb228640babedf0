"""Waits that end with what they wait for, or when nothing moves any more: no test fails because a machine is slow.

A wait spends its patience only while the processes that it watches rest: none of them computes or stands in line for
a core, and no watched file grows. Where the test itself lacks a core, its patience lasts longer too.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import psutil

from fleetnas.fleet_protocol.transports.base import Transport, TransportEvent

T = TypeVar("T")
#: A process (or its id) with its descendants, or a file or folder that is written.
Watched: TypeAlias = "subprocess.Popen[Any] | int | Path"

#: Rest after which nothing is expected any more, s. Leases, keepalives and reconnections of the product are shorter.
STALL_S = 120.0
#: The last bound, s: of a process that computes for ever.
LAST_S = 1800.0
#: Between two looks at what is waited for, and at what is watched, s.
_LOOK_S, _WATCH_S = 0.02, 1.0
#: A process that computes for a smaller share of the time only polls, as a hanging one may do.
_RESTING_SHARE = 0.05


class StalledError(AssertionError):
    """What was waited for did not happen, and nothing moves any more."""


@dataclass
class Patience:
    """Patience of one wait. `moves(elapsed_s)` says whether something moved since the last call."""

    moves: Callable[[float], bool] = lambda elapsed_s: False
    stall_s: float = STALL_S
    last_s: float = LAST_S
    clock: Callable[[], float] = time.monotonic
    _begin_s: float = field(init=False)
    _looked_s: float = field(init=False)
    _rested_s: float = 0.0

    def __post_init__(self) -> None:
        self._begin_s = self._looked_s = self.clock()

    @property
    def exhausted(self) -> bool:
        """Whether to give up; looks at what is watched at most once per second."""
        now_s = self.clock()
        elapsed_s = now_s - self._looked_s
        if elapsed_s >= _WATCH_S:
            self._looked_s = now_s
            # A look that comes late was itself kept from a core: it counts as if it had come in time.
            self._rested_s = 0.0 if self.moves(elapsed_s) else self._rested_s + min(elapsed_s, 2 * _WATCH_S)
        return self._rested_s >= self.stall_s or now_s - self._begin_s >= self.last_s


class Motion:
    """What shows that `watched` are still at work."""

    def __init__(self, watched: Sequence[Watched]) -> None:
        self._watched = watched
        self._seen = self._read()[0]

    def __call__(self, elapsed_s: float) -> bool:
        (cpu_s, size), in_line = self._read()
        (cpu_before_s, size_before), self._seen = self._seen, (cpu_s, size)
        return in_line or size != size_before or abs(cpu_s - cpu_before_s) > _RESTING_SHARE * elapsed_s

    def _read(self) -> tuple[tuple[float, int], bool]:
        """CPU seconds and bytes so far, and whether a process has a core or waits for one, or for a disk."""
        cpu_s, size, in_line = 0.0, 0, False
        for each in self._watched:
            if isinstance(each, Path):
                size += sum(_size(path) for path in (each.rglob("*") if each.is_dir() else (each,)))
                continue
            for process in tree(each if isinstance(each, int) else each.pid):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    cpu_s += sum(times[:4])  # with those of children that have ended
                    in_line |= process.status() in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)
        return (cpu_s, size), in_line


def tree(pid: int) -> list[psutil.Process]:
    """A process and its descendants, as far as they live."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def gone(pid: int) -> bool:
    """Whether a process has ended; its parent need not know yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until(condition: Callable[[], T], *watched: Watched, what: object = "") -> T:
    """Wait until `condition` gives something true, and return that; `StalledError` with `what` otherwise.

    `what` may be a function: it is called where the wait failed.
    """
    patience = Patience(Motion(watched))
    while not (found := condition()):
        if patience.exhausted:
            raise StalledError(f"what was waited for did not happen: {what() if callable(what) else what}")
        _pause()
    return found


def first(
    transport: Transport, wanted: Callable[[TransportEvent], bool], *watched: Watched, what: object = ""
) -> TransportEvent:
    """The first event that is `wanted`; those before it are dropped."""

    def take() -> TransportEvent | None:
        event = transport.poll(_LOOK_S)
        while event is not None and not wanted(event):
            event = transport.poll(0)
        return event

    event = until(take, *watched, what=what)
    assert event is not None
    return event


@contextlib.contextmanager
def watching(*processes: subprocess.Popen[Any]) -> Iterator[None]:
    """Kill `processes` where all of them rest for too long, so that a read or a wait in this block ends, and fail."""
    patience = Patience(Motion(processes))
    over, stalled = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(_WATCH_S):
            if patience.exhausted:
                stalled.set()
                for process in processes:
                    for member in tree(process.pid):
                        with contextlib.suppress(psutil.Error):
                            member.kill()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if stalled.is_set():
        raise StalledError(f"killed, since nothing moved any more: {[process.args for process in processes]}")


def ended(process: subprocess.Popen[Any], *others: subprocess.Popen[Any]) -> int:
    """The exit code of a process; `others` are those that it works with."""
    with watching(process, *others):
        return process.wait()


def outputs(process: subprocess.Popen[str], *others: subprocess.Popen[Any]) -> tuple[str, str]:
    """Standard output and error of a process that ends by itself; `others` are those that it works with."""
    with watching(process, *others):
        return process.communicate()


def line(process: subprocess.Popen[Any]) -> Any:
    """The next line of standard output; empty at its end."""
    assert process.stdout is not None
    with watching(process):
        return process.stdout.readline()


def run(
    command: Sequence[object], *, beside: Sequence[subprocess.Popen[Any]] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    """A program that ends by itself, with its exit code and output; `options` are those of `Popen`.

    It may rest while those `beside` it work.
    """
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    words = [str(word) for word in command]
    with subprocess.Popen(words, **streams) as process:
        try:
            out, err = outputs(process, *beside)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _pause() -> None:
    # Nobody sets it: what other processes do cannot wake this one.
    threading.Event().wait(_LOOK_S)
