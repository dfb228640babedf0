"""Status of a run and status of a device setting; their values are stored and written to JSON."""

from __future__ import annotations

from enum import Enum
from typing import Literal, TypeAlias

from fleetnas.fleet_protocol.updates import RunStatus as RunStatus

EndStatus: TypeAlias = Literal[RunStatus.COMPLETE, RunStatus.PARTIAL, RunStatus.FAILED]
"""Status of a run that ended by itself."""


class SettingStatus(str, Enum):
    """Status of one device setting in a run."""

    RUNNING = "running"
    FINISHED = "finished"
    """Every target of it is decided."""
    LOST = "lost"
    """Its device went away and did not come back."""
    FAILED = "failed"
    """Its device, or its search, cannot go on."""

    def __str__(self) -> str:
        return self.value


def end_status(status: RunStatus) -> EndStatus | None:
    """Return the status of a run that ended by itself; None for one that is running or was interrupted."""
    if status is RunStatus.COMPLETE or status is RunStatus.PARTIAL or status is RunStatus.FAILED:
        return status
    return None
