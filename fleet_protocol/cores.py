"""Cores that this process may use."""

from __future__ import annotations

import os


def affinity() -> tuple[int, ...]:
    """Numbers of the cores that this process may run on, ascending: its affinity within its cpuset.

    Empty where the system does not tell.
    """
    try:
        return tuple(sorted(os.sched_getaffinity(0)))
    except (AttributeError, OSError):
        return ()


def core_count() -> int:
    """Number of cores that this process may run on, at least 1; those of the machine where the system does not tell."""
    return len(affinity()) or os.cpu_count() or 1
