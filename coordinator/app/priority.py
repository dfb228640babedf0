"""Priorities: measurements go before planning where an agent shares the coordinator's machine."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

#: A third of the weight of a thread of normal priority: a measurement beside it keeps three quarters of a contended
#: core, and paired measurement removes the remaining effect. At 10, a tenth of the weight, planning took minutes per
#: round where other processes kept every core busy.
_NICENESS = 5
#: With autogroups the scheduler shares a core between sessions first, so that niceness has no effect on the measuring
#: children of other sessions. Source: sched(7), "The autogroup feature".
_AUTOGROUP = Path("/proc/self/autogroup")


def yield_to_measurements() -> None:
    """Lower the calling thread's priority for good; its later threads and children inherit it.

    Only Linux has priorities per thread; elsewhere nothing changes.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


@contextlib.contextmanager
def session_yields_to_measurements() -> Iterator[None]:
    """Lower the priority of this terminal's session inside the context, below those of measuring children."""
    try:
        before = _AUTOGROUP.read_text().rpartition(" ")[2].strip()
        if before == str(_NICENESS):  # left behind by a search that was killed
            before = "0"
        _AUTOGROUP.write_text(str(_NICENESS))
    except OSError:  # another system, or a kernel without autogroups
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            _AUTOGROUP.write_text(before)
