"""An agent over an in-memory broker, a coordinator that is only a transport, and a clock that tests set."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fleetnas.agent.host.battery import BatteryRule
from fleetnas.agent.host.sensors import Sensors
from fleetnas.agent.measuring.messages import MeasuredReply, MeasureOrder, Order, PairedTiming, PhaseReply, Reply
from fleetnas.agent.measuring.worker import Measurer, Worker
from fleetnas.agent.runtimes.timing import Timing
from fleetnas.agent.service.announcement import last_will
from fleetnas.agent.service.connection import Connection
from fleetnas.agent.service.identity import Identity
from fleetnas.agent.service.outbox import Outbox
from fleetnas.agent.service.run_resources import RunResources
from fleetnas.agent.service.service import AgentService
from fleetnas.agent.transfer.blobs import BlobCache
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.codec import BlobChunk, decode, decode_task_update, encode, encode_chunk
from fleetnas.fleet_protocol.messages import (
    AgentInfo,
    AgentState,
    BlobReference,
    BlobRequest,
    Conditions,
    Heartbeat,
    Inventory,
    Message,
    RuntimeSetting,
    TaskKey,
)
from fleetnas.fleet_protocol.orders import Acknowledgement, MeasureTask
from fleetnas.fleet_protocol.topics import UP_CHANNELS, AgentUp, Topics
from fleetnas.fleet_protocol.transports.base import Received
from fleetnas.fleet_protocol.transports.memory import Delivery, MemoryBroker, MemoryTransport
from rigs import waiting

TOPICS = Topics("lab")
BLOB = np.random.default_rng(1).bytes(150_000)
BUNDLE = BlobReference(sha256=hashlib.sha256(BLOB).hexdigest(), size=len(BLOB))
ARCHITECTURE = Architecture(ks=(3,), e=(3,), d=(1,), r=16)
REFERENCE, LEVEL_MS = "c0ffee" * 2, 1.0
PROFILE = DeviceProfile(model="Bench", machine="x86_64", cores=1)


def measured(median_ms: float = 4.0, slowdown: float = 1.0, **fields: object) -> MeasuredReply:
    """What a child answers; the reference was `slowdown` times slower than its level, and the subnet too."""
    timing = Timing(
        median_ms=median_ms,
        mad_ms=0.1,
        p90_ms=median_ms,
        min_ms=median_ms,
        runs=50,
        inner_loops=1,
        half_width_percent=1.0,
        noisy=False,
        times_us=(1000 * median_ms,) * 5,
        block_medians_ms=(median_ms,) * 3,
        inference_s=1.0,
    )
    paired = PairedTiming(
        timing=timing,
        undisturbed_ms=median_ms / slowdown,
        undisturbed_half_width_percent=2.0,
        basis="clean",
        reference=REFERENCE,
        reference_ms=LEVEL_MS,
        slowdown=slowdown,
        fastest_slowdown=slowdown,
        slowest_slowdown=slowdown,
        rounds=8,
        clean_rounds=8,
        subject_inference_s=0.9,
        reference_inference_s=0.1,
    )
    reply = MeasuredReply(
        model_sha256="a" * 64,
        model_bytes=1000,
        timing=timing,
        provider="CPUExecutionProvider",
        build_ms=1,
        load_ms=1,
        before=Conditions(),
        after=Conditions(),
        paired=paired,
        levels_ms={REFERENCE: LEVEL_MS},
        busy_s=1.1,
        inference_s=1.05,
    )
    return reply.model_copy(update=fields)


def next_reply(worker: Worker) -> Reply:
    """What a real child says next."""
    watched = [worker.pid] if worker.pid is not None else []
    reply = waiting.until(lambda: worker.poll(0.05), *watched, what="the child says nothing")
    assert reply is not None
    return reply


def final_reply(worker: Worker) -> Reply:
    """What a real child says once it has carried out its order."""
    while isinstance(reply := next_reply(worker), PhaseReply):
        continue
    return reply


@dataclass
class ScriptedMeasurer:
    """In the place of the child: answers each order with what the script says, or keeps silent."""

    script: deque[Reply | None] = field(default_factory=deque)
    orders: list[Order] = field(default_factory=list)
    kills: int = 0
    closed: bool = False
    _answers: deque[Reply] = field(default_factory=deque)

    def submit(self, order: Order) -> None:
        self.orders.append(order)
        self.closed = False
        reply = self.script.popleft() if self.script else measured()
        self._answers = deque([PhaseReply(phase="building"), reply] if reply is not None else [])

    def poll(self, timeout_s: float) -> Reply | None:
        del timeout_s
        return self._answers.popleft() if self._answers else None

    def say(self, reply: Reply) -> None:
        self._answers.append(reply)

    def kill(self) -> None:
        self.kills += 1
        self._answers.clear()

    def close(self) -> None:
        self._answers.clear()
        self.closed = True

    @property
    def subnets(self) -> int:
        return sum(isinstance(order, MeasureOrder) for order in self.orders)


class Coordinator:
    """Keeps what agents said and answers blob requests; acknowledges only when told to."""

    def __init__(self, broker: MemoryBroker, blobs: Iterable[bytes] = (BLOB,)) -> None:
        self.transport = broker.transport("coordinator")
        self.heard: list[tuple[str, str, Message]] = []
        self._blobs = {hashlib.sha256(blob).hexdigest(): blob for blob in blobs}
        for channel in UP_CHANNELS:
            self.transport.subscribe(TOPICS.every_agent(channel))
        self.transport.start()

    def listen(self) -> None:
        kinds = {
            "state": AgentState,
            "info": AgentInfo,
            "heartbeat": Heartbeat,
            "inventory": Inventory,
            "blob": BlobRequest,
        }
        while event := self.transport.poll(0):
            if not isinstance(event, Received):
                continue
            address = TOPICS.parse(event.topic)
            assert isinstance(address, AgentUp)
            if address.channel == "task":
                message: Message = decode_task_update(event.payload)
            else:
                message = decode(kinds[address.channel], event.payload)
            self.heard.append((address.agent, address.channel, message))
            if isinstance(message, BlobRequest) and message.sha256 in self._blobs:
                data = self._blobs[message.sha256][message.offset : message.offset + message.length]
                chunk = encode_chunk(BlobChunk(message.sha256, message.offset, data))
                self.transport.publish(TOPICS.down(address.agent, "blob"), chunk, qos=0)

    def send(self, agent: str, channel: str, message: Message) -> None:
        self.transport.publish(TOPICS.down(agent, channel), encode(message))  # type: ignore[arg-type]

    def acknowledge(self, agent: str, key: TaskKey) -> None:
        self.send(agent, "ack", Acknowledgement(task=key))

    def updates(self, kind: str) -> list[Message]:
        return [message for _, _, message in self.heard if getattr(message, "kind", None) == kind]

    def on(self, channel: str) -> list[Message]:
        return [message for _, heard, message in self.heard if heard == channel]


class Rig:
    """One agent process after the other under one name and state folder."""

    def __init__(
        self,
        folder: Path,
        fault: Callable[[Delivery], Iterable[Delivery]] | None = None,
        blobs: Iterable[bytes] = (BLOB,),
    ) -> None:
        self.folder = folder
        self.broker = MemoryBroker(fault)
        self.coordinator = Coordinator(self.broker, blobs)
        self.now = 1000.0
        self.measurer = ScriptedMeasurer()

    def agent(self, name: str = "pi", folder: str = "state", **fields: object) -> AgentProcess:
        return AgentProcess(self, name, self.folder / folder, self.measurer, **fields)

    def run(self, *agents: AgentProcess, seconds: float = 3.0, tick_s: float = 0.25) -> None:
        """Let everybody act while the clock goes on."""
        until = self.now + seconds
        while self.now < until:
            for agent in agents:
                agent.service.step()
                agent.service.validate()
            self.coordinator.listen()
            self.now += tick_s


class AgentProcess:
    """What `fleetnas-agent run` puts together, with stand-ins for the child, the network and time."""

    def __init__(
        self,
        rig: Rig,
        name: str,
        folder: Path,
        measurer: Measurer,
        settings: tuple[RuntimeSetting, ...] = (RuntimeSetting(),),
        unix_s: float = 1.7e9,
        wall_clock: Callable[[], float] = lambda: 1.7e9,
        battery: BatteryRule = BatteryRule(),  # noqa: B008 - frozen
        *,
        accepts_models: bool = False,
    ) -> None:
        self.identity = Identity.claim(folder, name, unix_s)
        self.outbox = Outbox(folder / "outbox.sqlite")
        self.measurer = measurer
        client_id = f"{name}-{self.identity.instance}"
        self.transport: MemoryTransport = rig.broker.transport(client_id, last_will(TOPICS, self.identity))
        self._rig = rig
        self.service = AgentService(
            identity=self.identity,
            connection=Connection(self.transport, TOPICS, name),
            info=AgentInfo(
                agent=name,
                session=self.identity.session,
                profile=PROFILE,
                settings=settings,
                versions={},
                accepts_models=accepts_models,
            ),
            outbox=self.outbox,
            resources=RunResources(
                BlobCache(folder / "blobs"), folder / "partial", measurer, wall_clock, battery=battery
            ),
            sensors=Sensors(folder / "no-sensors-here"),
            clock=lambda: rig.now,
        )
        self.service.start()

    def kill(self) -> None:
        """As SIGKILL does: the connection breaks, the locks fall, nothing is said."""
        self._rig.broker.cut(self.transport.client_id)
        self.outbox.close()
        self.identity.release()

    def cut(self) -> None:
        self._rig.broker.cut(self.transport.client_id)

    def restore(self) -> None:
        self._rig.broker.attach(self.transport)


def task(number: int = 1, attempt: int = 1, **fields: object) -> MeasureTask:
    """An order to measure."""
    values: dict[str, object] = {
        "task": TaskKey(task_id=f"task-{number}", attempt=attempt),
        "run_id": "run",
        "bundle": BUNDLE,
        "architecture": ARCHITECTURE,
        "setting": RuntimeSetting(),
        "deadline_s": 60.0,
    }
    return MeasureTask.model_validate({**values, **fields})
