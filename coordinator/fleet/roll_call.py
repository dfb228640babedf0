"""Listening to a fleet without working with it."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.fleet.registry import FleetRegistry
from fleet_protocol.codec import decode
from fleet_protocol.errors import ProtocolError, TransportError
from fleet_protocol.messages import AgentInfo, AgentState, Health
from fleet_protocol.topics import AgentUp, Topics
from fleet_protocol.transport import Disconnected, Received, Transport

_POLL_S = 0.1


def listen(
    transport: Transport,
    topics: Topics,
    registry: FleetRegistry,
    seconds: float,
    clock: Callable[[], float],
    *,
    on_start: Callable[[], None] = lambda: None,
) -> None:
    """Fill `registry` from what agents say within `seconds`; what breaks the contract is passed over."""
    for channel in ("state", "info", "health"):
        transport.subscribe(topics.every_agent(channel))
    transport.start()
    on_start()
    end = clock() + seconds
    while clock() < end:
        event = transport.poll(_POLL_S)
        if isinstance(event, Disconnected) and event.fatal:
            raise TransportError(f"the broker refuses this login: {event.reason}; check it and its access rules")
        if isinstance(event, Received) and event.payload:
            try:
                _take(event, topics, registry, clock())
            except ProtocolError:
                continue


def _take(message: Received, topics: Topics, registry: FleetRegistry, now_s: float) -> None:
    address = topics.parse(message.topic)
    if not isinstance(address, AgentUp):
        return
    if address.channel == "state":
        registry.on_state(address.agent, decode(AgentState, message.payload), now_s, retained=message.retained)
    elif address.channel == "info":
        registry.on_info(address.agent, decode(AgentInfo, message.payload), now_s, retained=message.retained)
    elif address.channel == "health":
        registry.on_health(address.agent, decode(Health, message.payload), now_s)
