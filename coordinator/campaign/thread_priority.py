"""Planning must not slow what is being measured: where an agent shares the coordinator's machine, it goes first."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

#: A tenth of the weight of a thread of normal priority: a device that measures with every core is 10 % off at most
#: while both want one, and planning still gets on.
_NICENESS = 10


def yield_to_measurements() -> None:
    """Lower the calling thread's priority, for good; its future threads and children inherit it.

    Only Linux has priorities per thread; elsewhere nothing changes.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
