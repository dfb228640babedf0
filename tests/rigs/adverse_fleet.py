"""The real agent service and the real campaign over an in-memory broker that is anything but a good one.

Time passes when told to, so hours of lost messages and expired leases cost a second.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fleetnas.agent.host.sensors import Sensors
from fleetnas.agent.measuring.messages import MeasureOrder, Order, Reply
from fleetnas.agent.service.announcement import last_will
from fleetnas.agent.service.connection import Connection
from fleetnas.agent.service.identity import Identity
from fleetnas.agent.service.outbox import Outbox
from fleetnas.agent.service.run_resources import RunResources
from fleetnas.agent.service.service import AgentService
from fleetnas.agent.transfer.blobs import BlobCache
from fleetnas.coordinator.records.events import MeasurementTaken
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.stored import OutcomeRecord
from fleetnas.fleet_protocol.codec import decode_task_update
from fleetnas.fleet_protocol.messages import (
    AgentInfo,
    BlobReference,
    Failed,
    Measurement,
    Result,
    RuntimeSetting,
    TaskKey,
)
from fleetnas.fleet_protocol.transports.memory import Delivery, MemoryBroker
from rigs.agent_rig import PROFILE, measured
from rigs.simulated_fleet import BUNDLE, TOPICS, FakeClock, HiddenDevice, Simulation, file_sha256

SETTING = RuntimeSetting()
_MEASURING_S = 1.0


@dataclass
class Adversary:
    """Drops, doubles and delays deliveries; what is delayed comes out of order, when its client may be another."""

    chance: random.Random
    drops: float = 0.0
    doubles: float = 0.0
    delays: float = 0.0
    held: list[Delivery] = field(default_factory=list)

    def __call__(self, delivery: Delivery) -> list[Delivery]:
        dice = self.chance.random()
        if dice < self.drops:
            return []
        if dice < self.drops + self.doubles:
            return [delivery, delivery]
        if dice < self.drops + self.doubles + self.delays:
            self.held.append(delivery)
            return []
        return [delivery]

    def release(self, broker: MemoryBroker) -> None:
        """Let some of what is held back go, in any order."""
        self.chance.shuffle(self.held)
        count = self.chance.randint(0, len(self.held))
        released, self.held = self.held[:count], self.held[count:]
        fault, broker.fault = broker.fault, None
        for delivery in released:
            broker.deliver(delivery)
        broker.fault = fault


@dataclass
class TwoClocks(FakeClock):
    """A monotonic clock, and a wall clock that may jump."""

    ahead_s: float = 0.0

    def unix(self) -> float:
        return super().unix() + self.ahead_s


class HiddenMeasurer:
    """In the place of the measuring child: a device whose latencies nobody has modelled."""

    def __init__(self, clock: FakeClock, seed: int) -> None:
        self._clock = clock
        self._device = HiddenDevice(seed, noise=0.0)
        self._reply: tuple[float, Reply] | None = None

    def submit(self, order: Order) -> None:
        assert isinstance(order, MeasureOrder)
        sha256 = order.calibration_sha256
        calibration = BlobReference(sha256=sha256, size=1) if sha256 is not None else None
        model_sha256 = file_sha256(order.architecture, calibration)
        reply = measured(self._device.latency_ms(order.architecture), model_sha256=model_sha256)
        self._reply = self._clock.now_s + _MEASURING_S, reply

    def poll(self, timeout_s: float) -> Reply | None:
        del timeout_s
        if self._reply is None or self._clock.now_s < self._reply[0]:
            return None
        reply, self._reply = self._reply[1], None
        return reply

    def kill(self) -> None:
        self._reply = None

    def close(self) -> None:
        self._reply = None


class RealAgent:
    """What `fleetnas-agent run` puts together, but for network, child and clocks; killed and started again."""

    def __init__(self, fleet: AdverseFleet, name: str, seed: int) -> None:
        self.name = name
        self.sessions: list[int] = []
        self._fleet = fleet
        self._measurer = HiddenMeasurer(fleet.clock, seed)
        self._folder = fleet.folder / name
        (self._folder / "blobs").mkdir(parents=True)
        (self._folder / "blobs" / BUNDLE.sha256).touch()
        self.start()

    def start(self) -> None:
        fleet, folder = self._fleet, self._folder
        self._identity = Identity.claim(folder, self.name, fleet.clock.unix())
        self.sessions.append(self._identity.session)
        self.outbox = Outbox(folder / "outbox.sqlite")
        client_id = f"{self.name}-{self._identity.instance}"
        self.transport = fleet.broker.transport(client_id, last_will(TOPICS, self._identity))
        self.service = AgentService(
            identity=self._identity,
            connection=Connection(self.transport, TOPICS, self.name),
            info=AgentInfo(
                agent=self.name, session=self._identity.session, profile=PROFILE, settings=(SETTING,), versions={}
            ),
            outbox=self.outbox,
            resources=RunResources(BlobCache(folder / "blobs"), folder / "partial", self._measurer, fleet.clock.unix),
            sensors=Sensors(folder / "no-sensors-here"),
            clock=fleet.clock,
        )
        self.service.start()

    def step(self) -> None:
        self.service.step()

    def restart(self) -> None:
        """As SIGKILL and a service manager do."""
        self.cut()
        self._measurer.kill()
        self.outbox.close()
        self._identity.release()
        self.start()

    def cut(self) -> None:
        self._fleet.broker.cut(self.transport.client_id)

    def restore(self) -> None:
        self._fleet.broker.attach(self.transport)

    def measured(self) -> dict[TaskKey, tuple[Result | Failed, bool]]:
        """What was measured, and whether that was acknowledged."""
        with contextlib.closing(sqlite3.connect(self._folder / "outbox.sqlite")) as database:
            rows = database.execute("SELECT payload, acknowledged FROM results").fetchall()
        found = {}
        for payload, acknowledged in rows:
            update = decode_task_update(payload)
            assert isinstance(update, Result | Failed)
            found[update.task] = (update, bool(acknowledged))
        return found


@dataclass
class AdverseFleet(Simulation):
    """A campaign over real agents, on a broker with a fault."""

    folder: Path = Path()
    clock: TwoClocks = field(default_factory=TwoClocks)
    agents: list[RealAgent] = field(default_factory=list)  # type: ignore[assignment]
    adversary: Adversary = field(default_factory=lambda: Adversary(random.Random(0)))
    newest_heard: dict[str, int] = field(default_factory=dict)

    def real(self, name: str, seed: int) -> RealAgent:
        agent = RealAgent(self, name, seed)
        self.agents.append(agent)
        return agent

    def step(self, seconds: float = 0.5) -> None:
        self.adversary.release(self.broker)
        super().step(seconds)


PLAN = CampaignPlan(targets="auto:3", budget=12, initial_design=6, wait_for=3, grace_s=600, join_s=3000, deadline_s=20)
AGENTS = 3


def fleet_of(folder: Path, chance: random.Random, **evil: float) -> AdverseFleet:
    fleet = AdverseFleet(PLAN, folder=folder, adversary=Adversary(chance, **evil))
    fleet.broker.fault = fleet.adversary
    for number in range(AGENTS):
        fleet.real(f"pi{number}", number)
    fleet.begin()
    return fleet


def drive(fleet: AdverseFleet, trouble: float = 0.0) -> None:
    """To the end; in a step, with the chance of `trouble`, somebody is killed or cut off."""
    chance = fleet.adversary.chance
    away: list = []
    for _ in range(60_000):
        if fleet.campaign.finished:
            return
        fleet.step()
        assert_no_stale_state(fleet)
        for agent in list(away):
            if chance.random() < 0.05:
                away.remove(agent)
                agent.restore()
        if chance.random() >= trouble:
            continue
        victim = chance.choice((*fleet.agents, None))
        if victim is None:
            fleet.vanish()
            fleet.begin(resume=True)
        elif victim in away:
            continue
        elif chance.random() < 0.5:
            victim.restart()
        else:
            victim.cut()
            away.append(victim)
    raise AssertionError(f"not finished: {list(fleet.campaign.log)[-5:]}")


def assert_no_stale_state(fleet: AdverseFleet) -> None:
    """A process that was replaced and has been heard of since decides nothing any more."""
    for agent in fleet.agents:
        entry = fleet.campaign.registry.agents.get(agent.name)
        if entry is None or entry.session < 0:
            continue
        seen = fleet.newest_heard.get(agent.name, -1)
        assert entry.session >= seen, f"{agent.name} went back from session {seen} to {entry.session}"
        fleet.newest_heard[agent.name] = entry.session


def assert_counted_once(fleet: AdverseFleet) -> None:
    stored: list[OutcomeRecord] = fleet.store.outcomes("run-1")
    by_key = {record.key: record.outcome for record in stored}
    assert len(by_key) == len(stored)
    measured = {}
    for agent in fleet.agents:
        for key, (update, acknowledged) in agent.measured().items():
            outcome = update.measurement if isinstance(update, Result) else update
            measured[key] = outcome
            assert not acknowledged or by_key.get(key) == outcome
    for key, outcome in by_key.items():
        assert not isinstance(outcome, Measurement) or measured[key] == outcome
    counted = Counter(event.task_id for event in fleet.events if isinstance(event, MeasurementTaken))
    assert set(counted.values()) == {1}


def targets_met(fleet: AdverseFleet) -> list[bool]:
    return [
        state.status == "met"
        for setting_run in fleet.campaign.setting_runs.values()
        for state in setting_run.search.targets
    ]
