"""Keep temporary files of the measuring child in one folder that is deleted after it, however it ends.

The child and its programs may be killed at any moment, and then delete nothing themselves. The process that makes the
folder locks it, so that a later process can tell whether the folder is still used.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "fleetnas-child-"
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class ScratchFolder:
    """A folder that only this user can enter, until `remove`."""

    path: Path
    _lock: int

    @classmethod
    def make(cls) -> ScratchFolder:
        """Make a folder in the folder for temporary files; `OSError` if that cannot be written."""
        while True:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            try:
                handle = os.open(path, _OPEN_FOLDER)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                continue
            except OSError:  # a file system without locks, on which no process finds abandoned folders either
                return cls(path, handle)
            if path.is_dir():
                return cls(path, handle)
            # Another process deleted the folder as abandoned, before it was locked.
            os.close(handle)

    def remove(self) -> None:
        """Delete the folder with its content, as far as possible."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_abandoned() -> None:
    """Delete the folders of this user's processes that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            handle = os.open(path, _OPEN_FOLDER)
        except OSError:  # no folder, another user's, or gone by now
            continue
        try:
            if os.fstat(handle).st_uid == os.geteuid():
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:  # a living process uses it
            continue
        finally:
            os.close(handle)
