"""An authority with a real mosquitto on its configuration, and clients that log in with its credentials."""

from __future__ import annotations

import contextlib
import datetime
import getpass
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fleetnas.agent.host.sensors import Sensors
from fleetnas.agent.service.announcement import last_will
from fleetnas.agent.service.connection import Connection
from fleetnas.agent.service.identity import Identity
from fleetnas.agent.service.outbox import Outbox
from fleetnas.agent.service.run_resources import RunResources
from fleetnas.agent.service.service import AgentService
from fleetnas.agent.transfer.blobs import BlobCache
from fleetnas.coordinator.fleet.agent_link import AgentLink
from fleetnas.coordinator.security.authority import Authority
from fleetnas.coordinator.security.mosquitto import Login
from fleetnas.fleet_protocol.codec import BlobChunk, encode_chunk
from fleetnas.fleet_protocol.messages import (
    AgentInfo,
    AgentState,
    BlobRequest,
    Heartbeat,
    Inventory,
    RuntimeSetting,
    TaskUpdate,
)
from fleetnas.fleet_protocol.security.credentials import Credentials, read_credentials
from fleetnas.fleet_protocol.security.signing import OrderSigner, OrderVerifier
from fleetnas.fleet_protocol.topics import Topics
from fleetnas.fleet_protocol.transports.base import (
    BrokerAddress,
    Connected,
    Disconnected,
    Received,
    Transport,
    TransportEvent,
    Will,
)
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport
from rigs import waiting
from rigs.agent_rig import BLOB, PROFILE, ScriptedMeasurer
from rigs.brokers import free_port, mosquitto_program, until_listening

NOW = datetime.datetime.now(datetime.timezone.utc)
FLEET = "lab"
TOPICS = Topics(FLEET)


@dataclass
class SecuredBroker:
    """A running mosquitto, configured by `fleetnas broker init`'s own code and by nothing else."""

    folder: Path
    login: Login = "certificate"
    port: int = field(default_factory=free_port)
    enrolled: dict[str, Credentials] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.authority = Authority.create(
            self.folder, fleet=FLEET, hosts=["localhost", "127.0.0.1"], now=NOW, port=self.port, login=self.login
        )

    def start(self) -> None:
        configuration = self.folder / "test.conf"
        # A mosquitto started by root would become a user who may not read this folder.
        text = (self.authority.broker_files / "mosquitto.conf").read_text() + f"\nuser {getpass.getuser()}\n"
        configuration.write_text(text)
        with (self.folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen([mosquitto_program(), "-c", str(configuration)], stderr=log)
        until_listening(self.port, self._process)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def coordinator(self) -> Credentials:
        return read_credentials(self.folder / "coordinator.credentials", "coordinator")

    def enroll(self, name: str, *, renew: bool = False) -> Credentials:
        path = self.folder / f"{name}-{time.monotonic_ns()}.credentials"
        self.authority.enroll(name, path, NOW, renew=renew)
        self.enrolled[name] = read_credentials(path, "agent", "watcher")
        return self.enrolled[name]


@contextlib.contextmanager
def secured_broker(folder: Path, login: Login = "certificate") -> Iterator[SecuredBroker]:
    broker = SecuredBroker(folder, login)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


class Client:
    """A connection that remembers what came, for questions with an answer within seconds."""

    def __init__(self, address: BrokerAddress, client_id: str, *filters: str) -> None:
        self.transport = MqttTransport(address, client_id)
        self.received: list[Received] = []
        self.refusals: list[str] = []
        for topic_filter in filters:
            self.transport.subscribe(topic_filter)
        self._subscribed = threading.Event()
        self._expects_answer = bool(filters)
        client = self.transport._client  # noqa: SLF001 - the product never waits for a broker's SUBACK, tests must
        client.on_subscribe = lambda *_: self._subscribed.set()
        self.transport.start()

    def until(self, wanted: Callable[[TransportEvent], bool]) -> TransportEvent:
        def cached(event: TransportEvent) -> bool:
            if isinstance(event, Received):
                self.received.append(event)
            elif isinstance(event, Disconnected):
                self.refusals.append(event.reason)
            return wanted(event)

        return waiting.first(self.transport, cached, what=lambda: f"received {self.received}, refused {self.refusals}")

    def connected(self) -> Client:
        """Connected, and what it subscribed to is in force: the broker has answered."""
        self.until(lambda event: isinstance(event, Connected))
        if self._expects_answer:
            waiting.until(self._subscribed.is_set, what="the broker answers no subscription")
        return self

    def refused(self) -> str:
        event = self.until(lambda event: isinstance(event, Disconnected | Connected))
        assert isinstance(event, Disconnected), "it was let in"
        return event.reason

    def until_topic(self, topic: str) -> Received:
        event = self.until(lambda event: isinstance(event, Received) and event.topic == topic)
        assert isinstance(event, Received)
        return event

    def close(self) -> None:
        """Without waiting: paho sleeps out its reconnect delay first."""
        threading.Thread(target=self.transport.close, daemon=True).start()

    def topics(self) -> set[str]:
        return {message.topic for message in self.received}


class SecuredAgent:
    """An agent as `fleetnas-agent run --credentials` puts it together, with a stand-in for the measuring child."""

    def __init__(
        self,
        name: str,
        trusted_keys: Sequence[bytes],
        folder: Path,
        connect: Callable[[str, Will], Transport],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = Identity.claim(folder, name, time.time())
        self.measurer = ScriptedMeasurer()
        self.stopped = False
        self.outbox = Outbox(folder / "outbox.sqlite")
        session = self.identity.session
        transport = connect(f"{name}-{self.identity.instance}", last_will(TOPICS, self.identity))
        self.service = AgentService(
            identity=self.identity,
            connection=Connection(transport, TOPICS, name),
            info=AgentInfo(agent=name, session=session, profile=PROFILE, settings=(RuntimeSetting(),), versions={}),
            outbox=self.outbox,
            resources=RunResources(BlobCache(folder / "blobs"), folder / "partial", self.measurer, time.time),
            sensors=Sensors(folder / "no-sensors-here"),
            clock=clock,
            verifier=OrderVerifier(trusted_keys, FLEET, name, session),
        )
        self.service.start()

    @classmethod
    def enrolled(cls, credentials: Credentials, folder: Path) -> SecuredAgent:
        """Over a real connection to its broker."""

        def connect(client_id: str, will: Will) -> MqttTransport:
            return MqttTransport(credentials.broker, client_id, will)

        return cls(credentials.name, credentials.trusted_keys, folder, connect)

    def stop(self) -> None:
        if self.stopped:
            return
        self.stopped = True
        self.service.stop()
        self.outbox.close()
        self.identity.release()


class SigningCoordinator:
    """The coordinator's login and key, over its real wire; what agents say is kept as it comes."""

    def __init__(self, credentials: Credentials, *, blob: bytes = BLOB, signed: bool = True) -> None:
        assert credentials.private_key is not None
        stream = time.time_ns() // 1000
        self.transport = MqttTransport(credentials.broker, f"coordinator-{stream}")
        self.signer = OrderSigner(credentials.private_key, FLEET, stream) if signed else None
        self.refused: list[str] = []
        self.link = AgentLink(self.transport, TOPICS, stream, self.refused.append, self.signer)
        self.updates: list[tuple[str, TaskUpdate]] = []
        self.sessions: dict[str, int] = {}
        self.connected = False
        self._blob = blob
        self.link.start()

    def listen(self) -> None:
        while (event := self.transport.poll(0.01)) is not None:
            self.link.receive(event, self)

    def until(self, agent: SecuredAgent | None, wanted: Callable[[], bool]) -> None:
        def happened() -> bool:
            if agent is not None:
                agent.service.step()
            self.listen()
            return wanted()

        waiting.until(happened, what=lambda: f"heard {self.updates}")

    def said(self, kind: str, task_id: str) -> list[TaskUpdate]:
        return [update for _, update in self.updates if update.kind == kind and update.task.task_id == task_id]

    # -- `FleetListener`

    def on_connected(self) -> None:
        self.connected = True

    def on_disconnected(self, reason: str, fatal: bool) -> None:
        self.connected = False

    def on_state(self, agent: str, state: AgentState, retained: bool) -> None:
        if state.state in ("ready", "busy"):
            self.sessions[agent] = state.session

    def on_info(self, agent: str, info: AgentInfo, retained: bool) -> None: ...

    def on_heartbeat(self, agent: str, health: Heartbeat) -> None: ...

    def on_inventory(self, agent: str, held: Inventory) -> None: ...

    def on_update(self, agent: str, update: TaskUpdate, size: int) -> None:
        self.updates.append((agent, update))

    def on_blob_request(self, agent: str, request: BlobRequest) -> None:
        data = self._blob[request.offset : request.offset + request.length]
        self.link.send_chunk(agent, encode_chunk(BlobChunk(request.sha256, request.offset, data)))
