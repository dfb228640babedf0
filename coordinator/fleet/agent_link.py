"""Link between the coordinator and its agents: transport events become calls, and calls become messages."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from fleetnas.coordinator.fleet.agent_subscriptions import AgentSubscriptions
from fleetnas.coordinator.fleet.message_budget import MessageBudget
from fleetnas.fleet_protocol.codec import decode, decode_task_update, encode
from fleetnas.fleet_protocol.envelope import read_envelope
from fleetnas.fleet_protocol.errors import FleetnasError, ProtocolError
from fleetnas.fleet_protocol.messages import (
    SCHEMA_VERSION,
    AgentInfo,
    AgentState,
    AnnouncedState,
    BlobRequest,
    Failed,
    Heartbeat,
    Inventory,
    Message,
    TaskKey,
    TaskUpdate,
)
from fleetnas.fleet_protocol.orders import Acknowledgement, CancelTask, CoordinatorState, MeasurementTask
from fleetnas.fleet_protocol.security.signing import OrderSigner
from fleetnas.fleet_protocol.topics import Address, AgentUp, DownChannel, ForwardedUpdate, RunUpdate, Topics
from fleetnas.fleet_protocol.transports.base import Connected, Disconnected, Transport, TransportEvent, Will

_log = logging.getLogger("fleetnas.coordinator")


@dataclass(frozen=True, slots=True)
class Sharing:
    """Shared subscription of the fleet's coordinators to the task messages of agents."""

    run: str
    """The coordinator's own run; messages of other runs are forwarded."""
    group: str = "fleetnas"
    """Name of the subscription; a client that knows it and may connect can keep messages from the coordinators."""

    @classmethod
    def of(cls, run: str, signing_key: bytes | None) -> Sharing:
        """Return the subscription for a run; a signing key makes its name one that no agent can compute."""
        if signing_key is None:
            return cls(run)
        return cls(run, f"fleetnas-{hmac.new(signing_key, b'fleetnas share', 'sha256').hexdigest()[:32]}")


def run_of(key: TaskKey) -> str:
    """Return the run of a task, whose id is the run's and a number; empty where the id has another form."""
    return key.task_id.rpartition(".")[0]


class RunUpdateListener(Protocol):
    """Receives the run updates that the fleet's coordinators publish."""

    def on_connected(self) -> None:
        """The broker is connected; it may have lost the retained updates."""

    def on_run_update(self, update: RunUpdate, payload: bytes, retained: bool, /) -> None:
        """A run update arrived; an empty payload clears a retained one."""

    @property
    def others_at_work(self) -> Collection[str]:
        """Other runs that publish now."""


class FleetListener(Protocol):
    """Receives messages of agents. A listener refuses one by raising `ProtocolError`."""

    def on_connected(self) -> None:
        """The broker is connected."""

    def on_disconnected(self, reason: str, fatal: bool) -> None:
        """The connection to the broker is gone; `fatal`: it will not come back."""

    def on_state(self, agent: str, state: AgentState, retained: bool) -> None:
        """An agent's state, or its last will."""

    def on_info(self, agent: str, info: AgentInfo, retained: bool) -> None:
        """An agent's announcement of its device and settings."""

    def on_heartbeat(self, agent: str, heartbeat: Heartbeat) -> None:
        """An agent's heartbeat."""

    def on_update(self, agent: str, update: TaskUpdate, size: int) -> None:
        """An agent's message about a task, which took `size` bytes."""

    def on_inventory(self, agent: str, held: Inventory) -> None:
        """The tasks and results that an agent holds."""

    def on_blob_request(self, agent: str, request: BlobRequest) -> None:
        """An agent's request for a byte range of a blob."""


def coordinator_will(topics: Topics, session: int) -> Will:
    """Return the last will that the broker publishes when the coordinator is gone."""
    return Will(topics.coordinator, encode(CoordinatorState(state="lost", session=session)))


class AgentLink:
    """One fleet's topics over one transport."""

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        session: int,
        refused: Callable[[str], object],
        signer: OrderSigner | None = None,
        sharing: Sharing | None = None,
        budget: MessageBudget | None = None,
    ) -> None:
        """`refused` is called with one line for every message that is dropped; `signer` signs messages to agents.

        With `sharing`, each of the fleet's coordinators receives a part of the agents' task messages. Messages beyond
        an agent's `budget` are dropped unread, without a line; an agent that sends far too many is ignored for a while.
        """
        self._transport = transport
        self._topics = topics
        self._session = session
        self._refused = refused
        self._signer = signer
        self._sharing = sharing
        self._budget = budget
        self._subscriptions = AgentSubscriptions(transport, topics, sharing.group if sharing else None, budget)
        self._run_listener: RunUpdateListener | None = None

    def listen_to_runs(self, listener: RunUpdateListener) -> None:
        """Have run updates given to `listener`, in place of an earlier one."""
        self._run_listener = listener

    @property
    def others_at_work(self) -> Collection[str]:
        """Other runs whose coordinators publish on this fleet now."""
        return () if self._run_listener is None else self._run_listener.others_at_work

    def start(self) -> None:
        """Subscribe and begin to connect."""
        self._subscriptions.start()
        if self._sharing is not None:
            self._transport.subscribe(self._topics.forwarded(self._sharing.run))
        self._transport.start()

    def on_tick(self) -> None:
        """Listen again to agents that were ignored for long enough."""
        self._subscriptions.on_tick()

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of the agents that send far too much and are ignored now, sorted."""
        return self._subscriptions.ignored

    @property
    def dropped(self) -> int:
        """Number of messages beyond a budget that were dropped unread so far."""
        return self._budget.dropped if self._budget is not None else 0

    def receive(self, event: TransportEvent, listener: FleetListener) -> None:
        """Hand one event to the listener; a message that breaks the contract is dropped with one line."""
        if isinstance(event, Connected):
            self._subscriptions.on_connected()
            listener.on_connected()
            if self._run_listener is not None:
                self._run_listener.on_connected()
        elif isinstance(event, Disconnected):
            listener.on_disconnected(event.reason, event.fatal)
        else:
            try:
                self._dispatch(event.topic, event.payload, event.retained, listener)
            except ProtocolError as error:
                self._refused(f"{event.topic[-80:]}: {error}")
            except FleetnasError:
                raise
            except Exception as error:  # noqa: BLE001 - one agent's message must not end the search of all
                if self._refused(f"{event.topic[-80:]}: cannot be handled ({type(error).__name__}: {error})"):
                    _log.error("a message on %s cannot be handled", event.topic, exc_info=error)

    def refuse(self, line: str) -> None:
        """Write the line of a message that was refused later, outside of `receive`."""
        self._refused(line)

    def _dispatch(self, topic: str, payload: bytes, retained: bool, listener: FleetListener) -> None:
        if self._subscriptions.is_ignored(topic):
            return
        address = self._topics.parse(topic)
        if isinstance(address, RunUpdate) and self._run_listener is not None:
            self._run_listener.on_run_update(address, payload, retained)
        if not self._admits(address, len(payload)) or not payload:
            return  # an empty one is a retained message that was cleared
        own = self._sharing.run if self._sharing is not None else None
        if isinstance(address, ForwardedUpdate) and address.run == own and not retained:
            _receive_update(address.agent, payload, len(topic) + len(payload), listener)
        if not isinstance(address, AgentUp):
            return
        agent = address.agent
        if address.channel == "state":
            state = decode(AgentState, payload)
            if state.state in ("ready", "busy"):
                self._note_session(agent, state.session)
            listener.on_state(agent, state, retained)
        elif address.channel == "info":
            info = decode(AgentInfo, payload)
            if info.agent != agent:
                raise ProtocolError(f"{agent!r} says that it is {info.agent!r}; it is dropped")
            listener.on_info(agent, info, retained)
        elif retained:
            raise ProtocolError("only state and info may be retained; it is dropped")
        elif address.channel == "heartbeat":
            listener.on_heartbeat(agent, decode(Heartbeat, payload))
        elif address.channel == "task":
            _receive_update(agent, payload, len(topic) + len(payload), listener)
        elif address.channel == "inventory":
            held = decode(Inventory, payload)
            self._note_session(agent, held.session)
            listener.on_inventory(agent, held)
        else:
            listener.on_blob_request(agent, decode(BlobRequest, payload))

    def _admits(self, address: Address, size: int) -> bool:
        if isinstance(address, AgentUp):
            return self._subscriptions.admits(address.agent, address.channel, size)
        if isinstance(address, ForwardedUpdate) and self._budget is not None:
            return self._budget.admits(address.agent, "message", size)
        return True

    def _note_session(self, agent: str, session: int) -> None:
        if self._signer is not None:
            self._signer.note_session(agent, session)

    # -- sending: `TransportError` where the queue is full -----------------------------------------------------

    def announce(self, state: AnnouncedState) -> None:
        """Publish the coordinator's retained state."""
        message = CoordinatorState(state=state, session=self._session)
        self._transport.publish(self._topics.coordinator, encode(message), retain=True)

    def send_task(self, agent: str, task: MeasurementTask) -> int:
        """Send a task; returns its size in bytes. A broker that can does not deliver it after its deadline."""
        return self._send(agent, "task", task, expiry_s=task.deadline_s)

    def cancel(self, agent: str, key: TaskKey) -> None:
        """Have an agent forget a task."""
        self._send(agent, "task", CancelTask(task=key))

    def acknowledge(self, agent: str, key: TaskKey, *, stored: bool = True) -> int:
        """Have an agent forget a result, which is stored or has no taker; returns the size of the message in bytes."""
        return self._send(agent, "ack", Acknowledgement(task=key, stored=stored))

    def send_chunk(self, agent: str, chunk: bytes) -> None:
        """Send a piece of a blob; an agent asks again for a lost one."""
        self._transport.publish(self._topics.down(agent, "blob"), chunk, qos=0)

    def forward(self, agent: str, update: TaskUpdate) -> bool:
        """Forward an update to the coordinator of its run; False where that is this one, or none."""
        run = run_of(update.task)
        if self._sharing is None or run in ("", self._sharing.run) or not self._transport.can_share:
            return False
        self._transport.publish(self._topics.forwarded(run, agent), encode(update))
        return True

    def _send(self, agent: str, channel: DownChannel, message: Message, *, expiry_s: float | None = None) -> int:
        topic, payload = self._topics.down(agent, channel), encode(message)
        if self._signer is not None:
            payload = self._signer.sign(agent, channel, payload)
        self._transport.publish(topic, payload, expiry_s=expiry_s)
        return len(topic) + len(payload)


def _receive_update(agent: str, payload: bytes, size: int, listener: FleetListener) -> None:
    """Hand a task update to the listener; a result that breaks the contract becomes a failure."""
    try:
        update = decode_task_update(payload)
    except ProtocolError as error:
        envelope = read_envelope(payload)
        if envelope is None or envelope.kind not in ("result", "failed") or envelope.schema_version > SCHEMA_VERSION:
            raise  # one of a later version is for its own coordinator to read
        detail = f"its result is refused: {error}"[:500]
        update = Failed(task=envelope.key, reason="bad_output", detail=detail)
    listener.on_update(agent, update, size)
