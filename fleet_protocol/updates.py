"""Messages that a coordinator publishes about a run, for monitoring; nobody answers them.

On `coordinator/runs/<run>/`: a summary and pages of device settings, both retained while the run is at work, and its
events as they happen. The coordinator alone defines the fields of a device setting and of an event.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

from pydantic import Field

from fleetnas.device_profiles.quantities import Count, Seconds, Share, UnixSeconds
from fleetnas.device_profiles.text_fields import PlainText
from fleetnas.fleet_protocol.messages import Identifier, Versioned

#: Most device settings and events in one message.
MAX_PAGE, MAX_EVENTS = 64, 256
_Text = Annotated[PlainText, Field(max_length=400)]


class RunStatus(str, Enum):
    """Status of a run, as published, stored and written to JSON."""

    RUNNING = "running"
    COMPLETE = "complete"
    """Every target was met, on devices that finished."""
    PARTIAL = "partial"
    """Some targets were missed, or a device was lost or failed."""
    FAILED = "failed"
    """No target was met."""
    INTERRUPTED = "interrupted"
    """It was stopped before its end, and can be resumed."""

    def __str__(self) -> str:
        return self.value


class RunSummary(Versioned):
    """Retained on `summary`; cleared when the run has ended. Times are the coordinator's clock, in Unix seconds."""

    run_id: Identifier
    state: RunStatus
    supernet: _Text
    phase: _Text
    started_unix_s: UnixSeconds
    at_unix_s: UnixSeconds
    settings: Count = Field(description="device settings that take part")
    pages: Count = Field(description="how many pages they fill")
    log: tuple[_Text, ...] = Field(default=(), max_length=20)
    done: Share | None = Field(default=None, description="finished share of the expected work; null where unknown")
    left_s: Seconds | None = Field(default=None, description="expected time to the end")
    least_left_s: Seconds | None = Field(default=None, description="lower end of it; about 90 % of runs take longer")
    most_left_s: Seconds | None = Field(default=None, description="upper end of it")


class RunPage(Versioned):
    """Retained on `page-<n>`: some of the device settings, in the run's order."""

    devices: tuple[dict[str, Any], ...] = Field(max_length=MAX_PAGE)


class RunEvents(Versioned):
    """On `events`: the events since the message before."""

    first: Count = Field(description="number of the first event within this start of the coordinator")
    events: tuple[dict[str, Any], ...] = Field(max_length=MAX_EVENTS)
