"""End processes together with the process that started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def is_alive(process: int) -> bool:
    """Whether a process of this number runs on this host, of any user."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no number of a process
        return True
    return True


def tied_to_this_process() -> Callable[[], None] | None:
    """Return a `preexec_fn` for programs that this process starts, so that they do not outlive it.

    A program that went on after this process was killed would disturb the measurements of others. None if the system
    cannot do it.
    """
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):  # Linux alone has it
        return None
    parent = os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return tie


def die_with(parent: int, sent: signal.Signals) -> None:
    """Have the kernel send this process `sent` when the process `parent`, which started it, is gone."""
    with contextlib.suppress(OSError, AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, sent)
    if os.getppid() != parent:
        sys.exit(f"process {parent}, which started this one, is gone")
