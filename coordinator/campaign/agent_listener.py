"""Receive the messages of agents: states, settings, inventories, blob requests; task updates are handed on."""

from __future__ import annotations

from collections.abc import Callable

from fleetnas.coordinator.campaign.membership import Membership
from fleetnas.coordinator.campaign.roster import Roster
from fleetnas.coordinator.campaign.task_updates import TaskUpdates
from fleetnas.coordinator.fleet.connection import FleetConnection
from fleetnas.coordinator.fleet.registry import FleetRegistry
from fleetnas.coordinator.fleet.task_dispatcher import TaskDispatcher
from fleetnas.fleet_protocol.errors import TransportError
from fleetnas.fleet_protocol.messages import (
    AgentInfo,
    AgentState,
    AnnouncedState,
    BlobRequest,
    Heartbeat,
    Inventory,
    TaskUpdate,
)

#: Interval between two lines about one agent that comes and goes.
_NOTE_S = 10.0


class AgentListener:
    """The campaign's `FleetListener`."""

    def __init__(
        self,
        connection: FleetConnection,
        registry: FleetRegistry,
        dispatcher: TaskDispatcher,
        roster: Roster,
        membership: Membership,
        updates: TaskUpdates,
        clock: Callable[[], float],
        note: Callable[[str], None],
    ) -> None:
        self._connection, self._registry, self._dispatcher = connection, registry, dispatcher
        self._roster, self._membership, self._updates = roster, membership, updates
        self._clock, self._note = clock, note
        self._noted_s: dict[str, float] = {}

    def announce(self, state: AnnouncedState) -> None:
        """Publish the coordinator's state; a line where nothing can be sent."""
        try:
            self._connection.link.announce(state)
        except TransportError as error:
            self._note(str(error))

    def on_connected(self) -> None:
        """Announce the coordinator to the agents."""
        self._connection.opened(self._clock())
        self.announce("ready")

    def on_disconnected(self, reason: str, fatal: bool) -> None:
        """Note the disconnection; `TransportError` where the broker refuses this coordinator for good."""
        if fatal:
            raise TransportError(f"the broker refuses this coordinator: {reason}; check its login and access rules")
        if self._connection.closed():
            self._note(f"not connected to the broker: {reason}; trying again")

    def on_state(self, agent: str, state: AgentState, retained: bool) -> None:
        """Take an agent's state; the tasks of one that is gone are requeued."""
        before = self._registry.agents.get(agent)
        was_usable = before is not None and before.usable
        now = self._clock()
        entry = self._registry.on_state(agent, state, now, retained=retained)
        if was_usable and not entry.usable:
            if now - self._noted_s.get(agent, float("-inf")) >= _NOTE_S:
                self._noted_s[agent] = now
                self._note(f"{agent}: {entry.idle_reason()}")
            self._dispatcher.requeue_all(agent)
        self._membership.consider(entry)

    def on_info(self, agent: str, info: AgentInfo, retained: bool) -> None:
        """Take an agent's announcement, perhaps of new settings."""
        self._membership.consider(self._registry.on_info(agent, info, self._clock(), retained=retained))

    def on_heartbeat(self, agent: str, heartbeat: Heartbeat) -> None:
        """Take an agent's heartbeat and the conditions of its device."""
        self._membership.consider(self._registry.on_heartbeat(agent, heartbeat, self._clock()))
        for setting_run in self._roster.of_device(agent):
            setting_run.take_conditions(heartbeat.conditions)

    def on_blob_request(self, agent: str, request: BlobRequest) -> None:
        """Serve a byte range, unless it is of a blob of another coordinator."""
        now = self._clock()
        self._registry.on_message(agent, now)
        if self._connection.link.others_at_work and not self._connection.blobs.serves(request.sha256):
            return  # another coordinator serves it
        self._connection.blobs.request(agent, request)
        self._connection.blobs.pump(now)

    def on_inventory(self, agent: str, held: Inventory) -> None:
        """Compare the tasks that an agent holds with its leases."""
        self._membership.consider(self._registry.on_message(agent, self._clock()))
        guest = self._connection.guest
        self._dispatcher.reconcile(agent, held if guest is None else guest.reconcile(agent, held))
        self._roster.supply(agent)

    def on_update(self, agent: str, update: TaskUpdate, size: int) -> None:
        """Take an agent's message about a task."""
        if self._connection.guest is None or not self._connection.guest.take(agent, update):
            self._updates.take(agent, update, size)
