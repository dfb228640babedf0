"""Observes a fleet without working with it: its agents, and what coordinators publish about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import ValidationError

from fleetnas.coordinator.fleet.registry import AgentEntry, FleetRegistry
from fleetnas.coordinator.monitoring.publisher import SUMMARY_EVERY_S, device_from_json
from fleetnas.coordinator.monitoring.versions import is_out_of_date
from fleetnas.coordinator.records.snapshot import DeviceSnapshot
from fleetnas.device_profiles.plain_text import plain
from fleetnas.fleet_protocol.codec import decode
from fleetnas.fleet_protocol.error_text import first_fault, one_line
from fleetnas.fleet_protocol.errors import ProtocolError, TransportError
from fleetnas.fleet_protocol.messages import AgentInfo, AgentState, Heartbeat
from fleetnas.fleet_protocol.orders import CoordinatorState
from fleetnas.fleet_protocol.topics import AgentUp, CoordinatorAnnouncement, RunUpdate, Topics
from fleetnas.fleet_protocol.transports.base import Disconnected, Received, Transport
from fleetnas.fleet_protocol.updates import RunPage, RunSummary

_POLL_S = 0.1
#: Agents whose refused messages are remembered, so that invented names cannot fill the memory.
_MOST_REFUSED = 10_000


@dataclass
class FleetObserver:
    """Agents, coordinator and runs of one fleet, from their messages."""

    topics: Topics
    registry: FleetRegistry = field(default_factory=FleetRegistry)
    coordinator: CoordinatorState | None = None
    runs: dict[str, RunSummary] = field(default_factory=dict)
    #: Time of arrival of the retained summary of each run; infinity once its coordinator published a new one.
    silent_since_s: dict[str, float] = field(default_factory=dict)
    #: Time at which listening ended.
    until_s: float = float("-inf")
    #: Device settings by run and page.
    pages: dict[tuple[str, int], tuple[DeviceSnapshot, ...]] = field(default_factory=dict)
    #: Reason why messages of an agent were refused, by its name.
    refused: dict[str, str] = field(default_factory=dict)

    def listen(
        self,
        transport: Transport,
        seconds: float,
        clock: Callable[[], float],
        *,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the messages of a fleet for `seconds`, which begin anew with every retained message.

        The retained messages of a large fleet, or of a busy broker, take long to arrive. `on_start` is called once the
        transport is started.

        `TransportError` where the broker refuses this login.
        """
        for channel in ("state", "info", "heartbeat"):
            transport.subscribe(self.topics.every_agent(channel))
        transport.subscribe(self.topics.coordinator)
        transport.subscribe(self.topics.run("+"))
        transport.start()
        on_start()
        end = self.until_s = clock() + seconds
        while clock() < end:
            event = transport.poll(_POLL_S)
            if isinstance(event, Disconnected) and event.fatal:
                raise TransportError(f"the broker refuses this login: {event.reason}; check it and its access rules")
            if isinstance(event, Received) and event.payload:
                self.take(event, clock())
                if event.retained:
                    end = clock() + seconds

    def take(self, message: Received, now_s: float) -> None:
        """Take one message; one that breaks the contract is remembered with its agent and changes nothing else."""
        agent = None
        try:
            address = self.topics.parse(message.topic)
            agent = address.agent if isinstance(address, AgentUp) else None
            if isinstance(address, AgentUp):
                self._take_agent(address, message, now_s)
            elif isinstance(address, CoordinatorAnnouncement):
                self.coordinator = decode(CoordinatorState, message.payload)
            elif isinstance(address, RunUpdate):
                self._take_run_update(address, message, now_s)
        except (ProtocolError, ValidationError) as error:
            if agent is not None and len(self.refused) < _MOST_REFUSED:
                self.refused.setdefault(
                    agent, first_fault(error) if isinstance(error, ValidationError) else one_line(error)
                )

    def settings_of(self, agent: str) -> list[tuple[RunSummary, DeviceSnapshot]]:
        """Return the settings of an agent in the runs at work, the newest run first."""
        runs = sorted(self.runs.values(), key=lambda summary: summary.started_unix_s, reverse=True)
        return [
            (summary, device)
            for summary in runs
            for page in range(summary.pages)
            for device in self.pages.get((summary.run_id, page), ())
            if device.device == agent
        ]

    def explain(self, entry: AgentEntry, our_version: str) -> str:
        """Explain why an agent is idle, or describe its work, with the action that helps."""
        reasons = [self._work(entry)]
        if entry.info is not None and is_out_of_date(entry.info, our_version):
            reasons.append(
                f"out of date: it runs fleetnas {plain(entry.info.versions['fleetnas'])} and this is {our_version}; "
                "paste the line of `fleetnas installer` on it, or update this one if that is older"
            )
        if entry.name in self.refused:
            refused = self.refused[entry.name]
            reasons.append(
                f"some of its messages are refused ({refused}): update the older of fleetnas-agent and this fleetnas"
            )
        return "; ".join(reasons)

    def _work(self, entry: AgentEntry) -> str:
        if not entry.usable or entry.resting:
            return entry.idle_reason()
        settings = self.settings_of(entry.name)
        if settings:
            return "; ".join(self._described(summary, device) for summary, device in settings)
        if entry.running is not None or entry.liveness == "busy" or entry.outbox:
            return entry.idle_reason()
        at_work = sorted(run for run in self.runs if not self._is_left(run))
        if at_work:
            names = ", ".join(at_work)
            return f"ready; it takes no part in {names}: left out by --devices, or no task fits what it offers"
        if self.runs:
            names = ", ".join(sorted(self.runs))
            return f"ready; no word came from the coordinator of {names}: `fleetnas search --resume` goes on with it"
        if self.coordinator is None or self.coordinator.state != "ready":
            return "ready; no search is at work in this fleet: start one with `fleetnas search`"
        return entry.idle_reason()

    def _take_agent(self, address: AgentUp, message: Received, now_s: float) -> None:
        if address.channel == "state":
            state = decode(AgentState, message.payload)
            self.registry.on_state(address.agent, state, now_s, retained=message.retained)
        elif address.channel == "info":
            info = decode(AgentInfo, message.payload)
            self.registry.on_info(address.agent, info, now_s, retained=message.retained)
        elif address.channel == "heartbeat":
            self.registry.on_heartbeat(address.agent, decode(Heartbeat, message.payload), now_s)

    def _take_run_update(self, address: RunUpdate, message: Received, now_s: float) -> None:
        if address.part == "summary" and not message.payload:  # it has ended
            self.runs.pop(address.run, None)
        elif address.part == "summary":
            self.runs[address.run] = decode(RunSummary, message.payload)
            if message.retained:
                self.silent_since_s.setdefault(address.run, now_s)
            else:
                self.silent_since_s[address.run] = float("inf")
        elif address.page is not None and message.payload:
            page = decode(RunPage, message.payload)
            self.pages[address.run, address.page] = tuple(device_from_json(fields) for fields in page.devices)

    def _is_left(self, run: str) -> bool:
        """Tell whether a coordinator at work would have published a new summary by now."""
        return self.until_s - self.silent_since_s.get(run, float("inf")) > SUMMARY_EVERY_S

    def _described(self, summary: RunSummary, device: DeviceSnapshot) -> str:
        left = ", as its coordinator said before it fell silent" if self._is_left(summary.run_id) else ""
        return _described(summary, device) + left


def _described(summary: RunSummary, device: DeviceSnapshot) -> str:
    """Describe one device setting in a run, in a few words."""
    detail = f": {device.state_detail}" if device.state_detail else ""
    done = "" if device.ended else f", {device.measurements} of {device.budget} measured"
    left_alone = f", {device.quarantined} subnets left alone after failing twice" if device.quarantined else ""
    failures = f", {device.failures} failures" if device.failures else ""
    return f"{summary.run_id} {device.setting_label} {device.state}{detail}{done}{failures}{left_alone}"
