"""The campaign's side of the wire: events of the transport become calls, calls become messages."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fleetnas.coordinator.fleet.message_budget import Kind, MessageBudget
from fleetnas.fleet_protocol.codec import decode, decode_task_update, encode
from fleetnas.fleet_protocol.envelope import read_envelope
from fleetnas.fleet_protocol.errors import FleetnasError, ProtocolError
from fleetnas.fleet_protocol.messages import (
    AgentInfo,
    AgentState,
    BlobRequest,
    Failed,
    Heartbeat,
    Inventory,
    Message,
    TaskKey,
    TaskUpdate,
)
from fleetnas.fleet_protocol.orders import Acknowledgement, CancelTask, CoordinatorState, MeasureTask
from fleetnas.fleet_protocol.security.signing import OrderSigner
from fleetnas.fleet_protocol.topics import AgentUp, DownChannel, ForwardedUpdate, RunUpdate, Topics
from fleetnas.fleet_protocol.transports.base import Connected, Disconnected, Transport, TransportEvent, Will

_log = logging.getLogger("fleetnas.coordinator")


@dataclass(frozen=True, slots=True)
class Sharing:
    """How a coordinator shares what agents say of tasks with the fleet's other coordinators."""

    run: str
    """Its own run: what is of another's it passes on."""
    group: str = "fleetnas"
    """The name under which they share; who knows it and may connect can keep messages from them."""

    @classmethod
    def of(cls, run: str, signing_key: bytes | None) -> Sharing:
        """With a signing key, under a name that only its owners can compute: no agent joins them."""
        if signing_key is None:
            return cls(run)
        return cls(run, f"fleetnas-{hmac.new(signing_key, b'fleetnas share', 'sha256').hexdigest()[:32]}")


def run_of(key: TaskKey) -> str:
    """The run whose task it is: a task's id is its run's and a number. Empty where it is none of ours."""
    return key.task_id.rpartition(".")[0]


class RunUpdateListener(Protocol):
    """Who hears what the fleet's coordinators tell of their runs, and when the broker may have forgotten it."""

    def on_connected(self) -> None: ...
    def on_run_update(self, news: RunUpdate, payload: bytes, retained: bool) -> None: ...


class FleetListener(Protocol):
    """Receives messages of agents. A listener refuses one by raising `ProtocolError`."""

    def on_connected(self) -> None: ...
    def on_disconnected(self, reason: str, fatal: bool) -> None: ...
    def on_state(self, agent: str, state: AgentState, retained: bool) -> None: ...
    def on_info(self, agent: str, info: AgentInfo, retained: bool) -> None: ...
    def on_heartbeat(self, agent: str, health: Heartbeat) -> None: ...
    def on_update(self, agent: str, update: TaskUpdate, size: int) -> None: ...
    def on_refused_result(self, agent: str, failed: Failed, size: int) -> None: ...
    def on_inventory(self, agent: str, held: Inventory) -> None: ...
    def on_blob_request(self, agent: str, request: BlobRequest) -> None: ...


def coordinator_will(topics: Topics, session: int) -> Will:
    """What the broker says for a coordinator that vanishes."""
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
        """`refused` is called with one line for every message that is dropped; `signer` signs what agents are told.

        With `sharing`, each of the fleet's coordinators hears a part of what agents say of tasks. What exceeds an
        agent's `budget` is dropped unread, without such a line.
        """
        self._transport = transport
        self._topics = topics
        self._session = session
        self._refused = refused
        self._signer = signer
        self._sharing = sharing
        self._budget = budget
        self.news: RunUpdateListener | None = None

    def start(self) -> None:
        """Subscribe and begin to connect."""
        for channel in ("state", "info", "inventory"):
            self._transport.subscribe(self._topics.every_agent(channel))
        if self._sharing is None:
            self._transport.subscribe(self._topics.every_agent("task"))
        else:
            self._transport.subscribe(self._topics.every_agent("task"), share=self._sharing.group)
            self._transport.subscribe(self._topics.forwarded(self._sharing.run))
        for channel in ("heartbeat", "blob"):
            self._transport.subscribe(self._topics.every_agent(channel), qos=0)  # type: ignore[arg-type]
        self._transport.start()

    def hear(self, event: TransportEvent, listener: FleetListener) -> None:
        """Pass one event on; whatever breaks the contract is dropped with one line."""
        if isinstance(event, Connected):
            listener.on_connected()
            if self.news is not None:
                self.news.on_connected()
        elif isinstance(event, Disconnected):
            listener.on_disconnected(event.reason, event.fatal)
        else:
            try:
                self._dispatch(event.topic, event.payload, event.retained, listener)
            except ProtocolError as error:
                self._refused(f"{event.topic[-80:]}: {error}")
            except FleetnasError:
                raise
            except Exception as error:  # one agent's message must not end everybody's search
                if self._refused(f"{event.topic[-80:]}: cannot be handled ({type(error).__name__}: {error})"):
                    _log.error("a message on %s cannot be handled", event.topic, exc_info=error)

    def refuse(self, line: str) -> None:
        """Say that something was refused that was looked at later."""
        self._refused(line)

    def _dispatch(self, topic: str, payload: bytes, retained: bool, listener: FleetListener) -> None:
        address = self._topics.parse(topic)
        if isinstance(address, RunUpdate) and self.news is not None:
            self.news.on_run_update(address, payload, retained)
        if not payload:
            return  # a retained message that was cleared
        if isinstance(address, AgentUp | ForwardedUpdate) and self._budget is not None:
            kind: Kind = "blob" if isinstance(address, AgentUp) and address.channel == "blob" else "message"
            if not self._budget.admits(address.agent, kind, len(payload)):
                return
        own = self._sharing.run if self._sharing is not None else None
        if isinstance(address, ForwardedUpdate) and address.run == own and not retained:
            _hear_update(address.agent, payload, len(topic) + len(payload), listener)
        if not isinstance(address, AgentUp):
            return
        agent = address.agent
        if address.channel == "state":
            state = decode(AgentState, payload)
            if state.state in ("ready", "busy"):
                self._hear_session(agent, state.session)
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
            _hear_update(agent, payload, len(topic) + len(payload), listener)
        elif address.channel == "inventory":
            held = decode(Inventory, payload)
            self._hear_session(agent, held.session)
            listener.on_inventory(agent, held)
        else:
            listener.on_blob_request(agent, decode(BlobRequest, payload))

    def _hear_session(self, agent: str, session: int) -> None:
        if self._signer is not None:
            self._signer.note_session(agent, session)

    # -- sending: `TransportError` where the queue is full -----------------------------------------------------

    def say(self, state: str) -> None:
        """The coordinator's retained state: `ready` or `leaving`."""
        message = CoordinatorState.model_validate({"state": state, "session": self._session})
        self._transport.publish(self._topics.coordinator, encode(message), retain=True)

    def send_task(self, agent: str, task: MeasureTask) -> int:
        """Hand out a task; returns the bytes that it cost. Where the broker can, a late one is not delivered."""
        return self._send(agent, "task", task, expiry_s=task.deadline_s)

    def cancel(self, agent: str, key: TaskKey) -> None:
        """Have a task forgotten."""
        self._send(agent, "task", CancelTask(task=key))

    def acknowledge(self, agent: str, key: TaskKey, *, stored: bool = True) -> int:
        """The result is stored, or nobody wants it; returns the bytes that saying so cost."""
        return self._send(agent, "ack", Acknowledgement(task=key, stored=stored))

    def send_chunk(self, agent: str, chunk: bytes) -> None:
        """A piece of a blob; what is lost is asked for again."""
        self._transport.publish(self._topics.down(agent, "blob"), chunk, qos=0)

    def forward(self, agent: str, update: TaskUpdate) -> bool:
        """Give what an agent said to the coordinator whose task it is about; False where that is not another."""
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


def _hear_update(agent: str, payload: bytes, size: int, listener: FleetListener) -> None:
    """Pass on what an agent says of a task. A result that breaks the contract is passed on as a failure."""
    try:
        update = decode_task_update(payload)
    except ProtocolError as error:
        envelope = read_envelope(payload)
        if envelope is None or envelope.kind not in ("result", "failed"):
            raise
        detail = f"its result is refused: {error}"[:500]
        listener.on_refused_result(agent, Failed(task=envelope.key, reason="bad_output", detail=detail), size)
    else:
        listener.on_update(agent, update, size)
