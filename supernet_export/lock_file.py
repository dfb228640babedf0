"""Keep a second process away from a result that one process is making."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def only_one_process(path: Path) -> Iterator[bool]:
    """Hold the lock file `path`, and yield whether it is held: False where another process of this machine holds it.

    The lock ends with its process, however that ends. It is held, too, where the file system has no locks.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            # A POSIX lock: unlike that of `flock`, forked processes, which may outlive this one, do not hold it too.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except OSError as error:
            held = error.errno not in (errno.EACCES, errno.EAGAIN)
        # The process that held it before may have removed the file after it was opened here.
        held = held and path.exists() and os.fstat(handle).st_ino == path.stat().st_ino
        try:
            yield held
        finally:
            if held:
                path.unlink(missing_ok=True)
    finally:
        os.close(handle)
