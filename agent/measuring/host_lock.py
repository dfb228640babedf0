"""Hold the lock that agents of one host share, so that two never measure at once; first come, first served.

Two kinds of kernel locks on one file, which need no right to write it and end with the process that holds them:

* `flock`, exclusive: held while measuring.
* A shared byte-range lock on one byte per waiting process, its ticket: one more than the highest ticket in use. A
  process asks for the `flock` only when no lower ticket is left, and gives its ticket back once it has the `flock`.

A process that has a ticket is therefore never overtaken by a later request. `flock` alone promises no order: on a busy
machine the process that releases it often takes it again before the waiting ones have woken up.

Everybody who can open the file can hold the lock, and then nobody measures: it is in a folder that only the right users
can enter, see `default_host_lock_path`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from fleetnas.fleet_protocol.errors import FleetnasError
from fleetnas.fleet_protocol.folders import home_folder

#: Variable with the path of the lock file, for every user and service of a host.
ENVIRONMENT_VARIABLE = "FLEETNAS_HOST_LOCK"
#: The folder of the agents of several users: made by the system service, or by root, for a group that they all are in.
SHARED_FOLDER = Path("/run/fleetnas")
_FILE = "host.lock"
#: How long one order waits, in seconds: longer than a sustained run of the usual half hour. After that the agent
#: reports the wait and asks for the lock again.
MAX_WAIT_S = 3600.0
#: Only the first in the queue can block in the kernel; the others check this often whether they are the first. A
#: measurement takes longer, so that the next process always blocks before the lock is free.
_QUEUE_POLL_S = 0.05
#: C's `struct flock` with 64-bit offsets: type, whence, start, length, pid.
_BYTE_RANGE = struct.Struct("hhqqi0q")
#: Errors of kernels and file systems without byte-range locks of open files (Linux before 3.15).
_NO_BYTE_RANGES = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})


class _WaitedError(Exception):
    """The waiting time is over."""


class HostLockBusyError(FleetnasError):
    """Other processes have held the lock for the whole waiting time."""


def default_host_lock_path() -> Path:
    """Return the lock file that the agents of this host share.

    `FLEETNAS_HOST_LOCK`; else in `/run/fleetnas`, if this user may write there; else in the user's own runtime
    folder (`XDG_RUNTIME_DIR`), which only that user can enter; else in a folder for this user alone, in `/tmp`.
    """
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen:
        return Path(chosen)
    if os.path.isdir(SHARED_FOLDER) and os.access(SHARED_FOLDER, os.W_OK | os.X_OK):
        return SHARED_FOLDER / _FILE
    # The variable is missing where a process is started by cron or another service than the login's.
    runtime_folder = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}")
    if runtime_folder.is_absolute() and _is_private(runtime_folder):
        return runtime_folder / f"fleetnas-{_FILE}"
    base = Path("/tmp")
    if not os.access(base, os.W_OK):  # Android's Termux has no /tmp
        base = Path(os.environ.get("TMPDIR") or home_folder() or base)
    return base / _own_folder_name() / _FILE


def present_host_lock_path(path: Path) -> Path:
    """Return `path`, or the default if its folder is gone: a user's runtime folder is deleted after the last login."""
    return path if os.path.isdir(path.parent) else default_host_lock_path()


@contextmanager
def hold_host_lock(path: Path, on_wait: Callable[[], None], limit_s: float = MAX_WAIT_S) -> Iterator[None]:
    """Hold the lock; `on_wait` is called once before blocking, if another process has it or waits for it.

    Raises `HostLockBusyError` after waiting for `limit_s` s, `FleetnasError` if the file cannot be opened or locked, is
    no regular file, or others could replace its folder. Only the main thread can wait.
    """
    has_reported = False
    give_up_s = time.monotonic() + limit_s

    def report_wait() -> None:
        nonlocal has_reported
        if not has_reported:
            has_reported = True
            on_wait()

    while True:
        handle = _open(path)
        try:
            try:
                _acquire(path, handle, report_wait, give_up_s)
            except _WaitedError:
                raise HostLockBusyError(
                    f"another process has kept the lock {path} for {limit_s:g} s, and no two may measure at once; see "
                    f"which one with `fuser -v {path}` and stop it, or set {ENVIRONMENT_VARIABLE} to another file"
                ) from None
            if _is_file_at(path, handle):
                yield
                return
            # The file was deleted meanwhile, for example by a cleaner of /tmp: other processes lock its successor.
        finally:
            os.close(handle)


def _open(path: Path) -> int:
    # Read-only is enough to lock, and works on a file that another user's agent created; asking to create such a
    # file in a sticky folder would be refused by the kernel (fs.protected_regular). Without O_NONBLOCK, opening a named
    # pipe would wait for a writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        if path.parent.name == _own_folder_name():
            _make_own_folder(path.parent)
        try:
            handle = os.open(path, flags)
        except FileNotFoundError:
            try:
                handle = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
                os.fchmod(handle, 0o644)  # whatever the umask: other users' agents must read it
            except FileExistsError:  # another agent was faster
                handle = os.open(path, flags)
    except OSError as error:
        raise _unusable(path, f"cannot be opened ({error})") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _unusable(path, "is not a regular file")
    return handle


def _own_folder_name() -> str:
    return f"fleetnas-{os.geteuid()}"


def _make_own_folder(folder: Path) -> None:
    """Make the folder; `PermissionError` if another user made one of this name first, or others can enter it."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not _is_private(folder):
            raise PermissionError(f"{folder} belongs to another user or is open to others; have it removed") from None


def _is_private(folder: Path) -> bool:
    """Whether this is a folder of this user in which nobody else can write."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _unusable(path: Path, fault: str) -> FleetnasError:
    return FleetnasError(
        f"the lock {path}, which keeps agents of one host from measuring at once, {fault}; "
        f"set {ENVIRONMENT_VARIABLE} to a file that all of them can read"
    )


def _is_file_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(handle))
    except FileNotFoundError:
        return False


def _acquire(path: Path, handle: int, on_wait: Callable[[], None], give_up_s: float) -> None:
    """Lock the file in turn; `_WaitedError` if that takes until `give_up_s`, in monotonic seconds."""
    try:
        ticket = _take_ticket(handle)
    except OSError as error:
        if error.errno not in _NO_BYTE_RANGES:
            raise _unusable(path, f"cannot be locked ({error})") from error
        ticket = 0  # measurements still exclude each other, in the kernel's order
    while ticket and _other_ticket(handle, 0, ticket) is not None:
        on_wait()
        if time.monotonic() >= give_up_s:
            raise _WaitedError
        time.sleep(_QUEUE_POLL_S)
    if not _flock(path, handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
        on_wait()
        with _interrupted_at(give_up_s):
            _flock(path, handle, fcntl.LOCK_EX)
    if ticket:
        _byte_range(handle, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, ticket, 1)


@contextmanager
def _interrupted_at(give_up_s: float) -> Iterator[None]:
    """Raise `_WaitedError` inside at that time: the kernel's `flock` waits without a limit, and a signal ends it.

    Polling instead would disturb the measurement of the other process, and leave the lock free for longer.
    """

    def give_up(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise _WaitedError

    previous = signal.signal(signal.SIGALRM, give_up)
    try:
        # Again every second: the kernel does not know of a signal that came just before the call.
        signal.setitimer(signal.ITIMER_REAL, max(0.001, give_up_s - time.monotonic()), 1.0)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _flock(path: Path, handle: int, operation: int) -> bool:
    try:
        fcntl.flock(handle, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _unusable(path, f"cannot be locked ({error})") from error
    return True


def _take_ticket(handle: int) -> int:
    """Lock the byte after the highest locked one and return it; two requests at the same time may share it."""
    ticket = 1
    while (taken := _other_ticket(handle, ticket, 0)) is not None:
        ticket = taken + 1
    _byte_range(handle, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, ticket, 1)
    return ticket


def _other_ticket(handle: int, start: int, length: int) -> int | None:
    """Return a ticket of another process within the range, if any; a length of 0 is without end."""
    kind, found, extent = _byte_range(handle, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, start, length)
    return found if kind != fcntl.F_UNLCK and extent == 1 else None  # a longer lock is no ticket of ours


def _byte_range(handle: int, command: int, kind: int, start: int, length: int) -> tuple[int, int, int]:
    """Make one `fcntl` call; return type, start and length of the kernel's answer."""
    answer = fcntl.fcntl(handle, command, _BYTE_RANGE.pack(kind, os.SEEK_SET, start, length, 0))
    kind, _, found, extent, _ = _BYTE_RANGE.unpack(answer)
    return kind, found, extent
