"""Build and parse every MQTT topic; no other module does.

Under `fleetnas/v1/<fleet>/`: `agents/<agent>/<up|down>/<channel>`, `coordinator/state`, for watchers
`coordinator/runs/<run>/<summary|events|page-N>`, and between coordinators `forwarded/<run>/<agent>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fleetnas.fleet_protocol.errors import ProtocolError, UsageError

PREFIX = "fleetnas/v1"

UpChannel = Literal["state", "info", "heartbeat", "task", "inventory", "blob"]
DownChannel = Literal["task", "ack", "blob"]

UP_CHANNELS: tuple[UpChannel, ...] = ("state", "info", "heartbeat", "task", "inventory", "blob")
DOWN_CHANNELS: tuple[DownChannel, ...] = ("task", "ack", "blob")

#: A run has no more pages; with 16 device settings on each it is larger than any fleet.
MAX_PAGES = 10_000

_PAGE = re.compile(r"page-(0|[1-9][0-9]{0,3})\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")


def check_name(name: str, what: str) -> str:
    """Return `name` unchanged; `UsageError` unless a topic can hold it: 1 to 64 letters, digits, `_`, `.`, `-`."""
    if not _NAME.match(name):
        raise UsageError(
            f"{what} {name!r} cannot be used: a name has 1 to 64 letters, digits, '_', '.' or '-' and starts with "
            "a letter or digit; choose another"
        )
    return name


@dataclass(frozen=True, slots=True)
class AgentUp:
    """A message from an agent."""

    agent: str
    channel: UpChannel


@dataclass(frozen=True, slots=True)
class AgentDown:
    """A message to an agent."""

    agent: str
    channel: DownChannel


@dataclass(frozen=True, slots=True)
class CoordinatorAnnouncement:
    """The coordinator's retained state."""


@dataclass(frozen=True, slots=True)
class RunUpdate:
    """A coordinator's message about one run; `page` is the number if it is a page."""

    run: str
    part: Literal["summary", "events", "page"]
    page: int | None = None


@dataclass(frozen=True, slots=True)
class ForwardedUpdate:
    """An agent's update of a task of one run, forwarded by a coordinator that received it and has another run."""

    run: str
    agent: str


Address: TypeAlias = AgentUp | AgentDown | CoordinatorAnnouncement | RunUpdate | ForwardedUpdate


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one fleet."""

    fleet: str = "default"

    def __post_init__(self) -> None:
        check_name(self.fleet, "fleet name")

    def up(self, agent: str, channel: UpChannel) -> str:
        """Topic on which `agent` sends."""
        return f"{PREFIX}/{self.fleet}/agents/{agent}/up/{channel}"

    def down(self, agent: str, channel: DownChannel) -> str:
        """Topic on which `agent` receives."""
        return f"{PREFIX}/{self.fleet}/agents/{agent}/down/{channel}"

    @property
    def coordinator(self) -> str:
        """Topic of the coordinator's retained state."""
        return f"{PREFIX}/{self.fleet}/coordinator/state"

    @property
    def runs(self) -> str:
        """Subscription filter for the summaries of all runs at work."""
        return f"{PREFIX}/{self.fleet}/coordinator/runs/+/summary"

    def run_summary(self, run: str) -> str:
        """Topic of a run's retained summary."""
        return f"{PREFIX}/{self.fleet}/coordinator/runs/{run}/summary"

    def run_events(self, run: str) -> str:
        """Topic of a run's events."""
        return f"{PREFIX}/{self.fleet}/coordinator/runs/{run}/events"

    def run_page(self, run: str, page: int) -> str:
        """Topic of one retained page of a run's device settings, from 0 on."""
        return f"{PREFIX}/{self.fleet}/coordinator/runs/{run}/page-{page}"

    def run(self, run: str) -> str:
        """Subscription filter for every message about one run."""
        return f"{PREFIX}/{self.fleet}/coordinator/runs/{run}/+"

    def forwarded(self, run: str, agent: str = "+") -> str:
        """Topic on which the coordinator of `run` receives forwarded updates of `agent`; a filter without it."""
        return f"{PREFIX}/{self.fleet}/forwarded/{run}/{agent}"

    def every_agent(self, channel: UpChannel) -> str:
        """Subscription filter for one channel of all agents."""
        return f"{PREFIX}/{self.fleet}/agents/+/up/{channel}"

    def parse(self, topic: str) -> Address:
        """Return the address that a topic stands for; `ProtocolError` if it is none of this fleet's."""
        prefix = f"{PREFIX}/{self.fleet}/"
        if topic == self.coordinator:
            return CoordinatorAnnouncement()
        if topic.startswith(prefix + "agents/"):
            parts = topic[len(prefix) :].split("/")
            if len(parts) == 4 and _NAME.match(parts[1]):
                _, agent, direction, channel = parts
                for up in UP_CHANNELS:
                    if direction == "up" and channel == up:
                        return AgentUp(agent, up)
                for down in DOWN_CHANNELS:
                    if direction == "down" and channel == down:
                        return AgentDown(agent, down)
        if topic.startswith(prefix + "forwarded/"):
            parts = topic[len(prefix) :].split("/")
            if len(parts) == 3 and _NAME.match(parts[1]) and _NAME.match(parts[2]):
                return ForwardedUpdate(parts[1], parts[2])
        if topic.startswith(prefix + "coordinator/runs/"):
            update = _parse_run_update(topic[len(prefix) :].split("/"))
            if update is not None:
                return update
        raise ProtocolError(f"topic {topic[:200]!r} is not one of fleet {self.fleet!r}")


def _parse_run_update(parts: list[str]) -> RunUpdate | None:
    if len(parts) != 4 or not _NAME.match(parts[2]):
        return None
    _, _, run, part = parts
    if part == "summary":
        return RunUpdate(run, "summary")
    if part == "events":
        return RunUpdate(run, "events")
    page = _PAGE.match(part)
    return RunUpdate(run, "page", int(page[1])) if page is not None else None
