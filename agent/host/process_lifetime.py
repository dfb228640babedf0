"""Processes that must not outlive the one that started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def is_alive(process: int) -> bool:
    """Whether a process of this number runs on this host, whoever's it is."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no number of a process
        return True
    return True


def tied_to_this_process() -> Callable[[], None] | None:
    """What a program that this process starts calls before it begins, so that it does not outlive this process.

    Else a program would go on beside the measurements of others when this process is killed. None where the system
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
