"""The lock that agents of one host share, so that two never measure at once.

An advisory `flock`: the kernel releases it when its holder dies, whatever the reason.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet_protocol.errors import FleetnasError

#: Where every user and every service of a host looks, unless told otherwise.
ENVIRONMENT_VARIABLE = "FLEETNAS_HOST_LOCK"


def default_host_lock_path() -> Path:
    """The lock file all agents of this host agree on: `FLEETNAS_HOST_LOCK`, else one file under `/tmp`."""
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen:
        return Path(chosen)
    folder = Path("/tmp")
    if not os.access(folder, os.W_OK):  # Android's Termux has no /tmp
        folder = Path(os.environ.get("TMPDIR", Path.home()))
    return folder / "fleetnas-host.lock"


@contextmanager
def hold_host_lock(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock; `on_wait` is called once before blocking, where another process has it."""
    handle = _open(path)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    # Read-only is enough to lock, and works on a file that another user's agent created; asking to create such a
    # file in a sticky folder would be refused by the kernel (fs.protected_regular).
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            handle = os.open(path, flags | os.O_CREAT, 0o644)
            os.fchmod(handle, 0o644)  # whatever the umask: other users' agents must read it
            return handle
    except OSError as error:
        raise FleetnasError(
            f"the lock {path}, which keeps agents of one host from measuring at once, cannot be opened ({error}); "
            f"set {ENVIRONMENT_VARIABLE} to a file that all of them can read"
        ) from error
