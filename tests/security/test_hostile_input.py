"""Ten thousand hostile messages on every topic: no crash, no change of state, no growth of memory, hardly a line."""

from __future__ import annotations

import gc
import logging
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rigs.agent_rig import TOPICS, Coordinator, task
from rigs.hostile_messages import NOISE, mutant
from rigs.security_rig import SecuredAgent
from rigs.simulated_fleet import TOPICS as FLEET_TOPICS
from rigs.simulated_fleet import Simulation, measurement

from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.fleet_protocol.codec import BlobChunk, decode, decode_task_update, encode, encode_chunk
from fleetnas.fleet_protocol.envelope import read_envelope
from fleetnas.fleet_protocol.errors import ProtocolError
from fleetnas.fleet_protocol.messages import (
    AgentInfo,
    AgentState,
    BlobRequest,
    Failed,
    Heartbeat,
    Inventory,
    Progress,
    Rejected,
    Result,
    TaskKey,
)
from fleetnas.fleet_protocol.orders import Acknowledgement, CancelTask, CoordinatorState
from fleetnas.fleet_protocol.rate_limited_log import MOST_LINES
from fleetnas.fleet_protocol.security.signing import OrderSigner, new_private_key, public_key_of
from fleetnas.fleet_protocol.topics import DOWN_CHANNELS, UP_CHANNELS
from fleetnas.fleet_protocol.transports.base import Received
from fleetnas.fleet_protocol.transports.memory import MemoryBroker

EXAMPLES = 20
PER_EXAMPLE = 500  # on every topic; of them 20 documents that hypothesis builds
GROWTH_BYTES = 256 * 1024

thrown_in_all = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


class AttackedAgent:
    """It measures task 1, task 2 waits, and the result of task 0 is not acknowledged."""

    def __init__(self, folder: Path) -> None:
        key = new_private_key()
        self.broker = MemoryBroker()
        self.coordinator = Coordinator(self.broker)
        self.now = 1000.0
        self.agent = SecuredAgent("pi", [public_key_of(key)], folder, self.broker.transport, lambda: self.now)
        self.signer = OrderSigner(key, "lab", 1)
        self.signer.note_session("pi", self.agent.identity.session)
        self.attacker = self.broker.transport("attacker")
        self.attacker.start()
        self.step()
        self.give(0)
        while not self.coordinator.updates("result"):
            self.step()
        self.agent.measurer.script.append(None)  # the child keeps silent: the task stays
        self.give(1)
        self.give(2)
        while self.agent.measurer.subnets < 2:
            self.step()
        # From here on only what the agent says is heard: the topics are full of what is no message.
        self.broker.cut("coordinator")
        self.ear = self.broker.transport("ear")
        for channel in ("task", "inventory"):
            self.ear.subscribe(TOPICS.up("pi", channel))  # type: ignore[arg-type]
        self.ear.start()
        session = self.agent.identity.session
        foreign = OrderSigner(key, "lab", 2)
        foreign.note_session("jetson", session)
        self.genuine: dict[str, list[bytes]] = {
            TOPICS.down("pi", "task"): [
                *(encode(task(number)) for number in (1, 2, 3)),
                encode(CancelTask(task=task(1).task)),
                encode(CancelTask(task=task(2).task)),
                foreign.sign("jetson", "task", encode(task(3))),
                foreign.sign("jetson", "task", encode(CancelTask(task=task(2).task))),
            ],
            TOPICS.down("pi", "ack"): [
                encode(Acknowledgement(task=task(0).task)),
                foreign.sign("jetson", "ack", encode(Acknowledgement(task=task(0).task))),
            ],
            TOPICS.down("pi", "blob"): [encode_chunk(BlobChunk(task().bundle.sha256, 0, b"x" * 65_536))],
            TOPICS.up("pi", "state"): [encode(AgentState(state="busy", session=session, instance="intruder"))],
            TOPICS.coordinator: [encode(CoordinatorState(state="ready", session=2))],
        }

    def give(self, number: int) -> None:
        self.attacker.publish(TOPICS.down("pi", "task"), self.signer.sign("pi", "task", encode(task(number))))
        self.step()

    def step(self) -> None:
        self.agent.service.step()
        self.coordinator.listen()
        self.now += 0.0001  # no heartbeat, no repeat, no deadline falls into the attack

    def throw(self, topic: str, payload: bytes) -> None:
        if topic == TOPICS.up("pi", "state") and _claims_a_name(payload):
            return  # who may write an agent's own state can be a rival of its name: access rules are for that
        self.attacker.publish(topic, payload)

    def state(self) -> tuple[Any, ...]:
        """What the agent holds, in its own words, and what it has done."""
        self.said()
        for session in (99, 98):
            self.attacker.publish(TOPICS.coordinator, encode(CoordinatorState(state="ready", session=session)))
        self.step()
        held = [
            decode(Inventory, message.payload)
            for message in self.said()
            if message.topic == TOPICS.up("pi", "inventory")
        ]
        measurer = self.agent.measurer
        return held[-1], len(measurer.orders), measurer.kills, self.agent.outbox.pending(), self.agent.service.finished

    def said(self) -> list[Received]:
        """What the agent has said since it was last asked."""
        heard = []
        while (event := self.ear.poll(0)) is not None:
            if isinstance(event, Received):
                heard.append(event)
        return heard


class AttackedCampaign:
    """A campaign in the middle of its measurements; its honest agents stand still while strangers speak."""

    HONEST = ("pi0", "pi1", "pi2")

    def __init__(self, *, share: bool = False) -> None:
        plan = CampaignPlan(
            targets="auto:4", budget=20, initial_design=8, wait_for=3, deadline_s=1e6, devices=self.HONEST
        )
        self.fleet = Simulation(plan, share=share, together=True)
        for seed, name in enumerate(self.HONEST):
            self.fleet.add(name, seed=seed)
        self.fleet.begin()
        setting_runs = self.fleet.campaign.setting_runs
        self.fleet.run(until=lambda: any(setting_run.search.measurements >= 4 for setting_run in setting_runs.values()))
        for _ in range(3):
            self.hear()
        self.attacker = self.fleet.broker.transport("attacker")
        self.attacker.start()
        (leased,) = list(next(iter(setting_runs.values())).leased.values())[:1]
        key, bundle = leased.key, self.fleet.campaign.identity.bundle
        info = self.fleet.agents[0].info
        self.genuine: dict[str, list[bytes]] = {
            "state": [encode(AgentState(state="ready", session=5, instance="m"))],
            "info": [encode(info), encode(info.model_copy(update={"agent": "mallory"}))],
            "heartbeat": [encode(Heartbeat(session=1, uptime_s=3.0, task_id=key.task_id))],
            "task": [
                encode(Result(task=key, measurement=measurement(0.001))),
                encode(Failed(task=key, reason="crashed", detail="no")),
                encode(Rejected(task=key, reason="busy")),
                encode(Progress(task=key, phase="measuring", fraction=0.5)),
                encode(Result(task=TaskKey(task_id="unheard-of", attempt=1), measurement=measurement(1.0))),
                encode(Result(task=TaskKey(task_id="another-run.1", attempt=1), measurement=measurement(1.0))),
            ],
            "inventory": [
                encode(Inventory(session=1, queued=(key,), unacknowledged=(TaskKey(task_id="x", attempt=9),)))
            ],
            "blob": [encode(BlobRequest(sha256=bundle.sha256, offset=0, length=65_536))],
        }

    def hear(self) -> None:
        self.fleet.take_waiting()
        self.fleet.campaign.on_tick()

    def throw(self, channel: str, payload: bytes, rng: random.Random) -> None:
        """As a stranger; as an honest agent only what is no message, since mosquitto keeps the rest from that topic."""
        honest = rng.random() < 0.5 and not _is_message(channel, payload)
        name = rng.choice(self.HONEST if honest else ("mallory", "mallory2", "../x", "a b", "\x1b[2J", "n" * 65, ""))
        self.attacker.publish(FLEET_TOPICS.up(name, channel), payload)  # type: ignore[arg-type]

    def state(self) -> tuple[Any, ...]:
        campaign, store = self.fleet.campaign, self.fleet.store
        setting_runs = [
            (
                *(
                    setting_run.label,
                    setting_run.status,
                    setting_run.search.measurements,
                    setting_run.search.phase,
                    setting_run.temperature_c,
                ),
                sorted((task_id, leased.record.attempt) for task_id, leased in setting_run.leased.items()),
                [ready.record.task_id for ready in setting_run.ready],
            )
            for setting_run in campaign.setting_runs.values()
        ]
        known = [(campaign.registry.agents[n].liveness, campaign.registry.agents[n].info) for n in self.HONEST]
        return setting_runs, known, len(store.outcomes("run-1")), len(store.tasks("run-1")), campaign.finished


def _claims_a_name(payload: bytes) -> bool:
    try:
        return decode(AgentState, payload).state in ("ready", "busy")
    except ProtocolError:
        return False


def _is_message(channel: str, payload: bytes) -> bool:
    kinds = {
        "state": AgentState,
        "info": AgentInfo,
        "heartbeat": Heartbeat,
        "inventory": Inventory,
        "blob": BlobRequest,
    }
    try:
        if channel == "task":
            decode_task_update(payload)
        else:
            decode(kinds[channel], payload)
    except ProtocolError:
        # An empty one clears what is retained; a result that breaks the contract ends its task all the same.
        envelope = read_envelope(payload) if channel == "task" else None
        return not payload or (envelope is not None and envelope.kind in ("result", "failed"))
    return True


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttackedAgent]:
    made = AttackedAgent(tmp_path_factory.mktemp("attacked"))
    yield made
    made.agent.stop()


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "sharing"])
def campaign(request: pytest.FixtureRequest) -> AttackedCampaign:
    return AttackedCampaign(share=request.param)


def attack_agent(attacked: AttackedAgent, rng: random.Random, count: int, noise: list[bytes]) -> None:
    for topic, genuine in attacked.genuine.items():
        for number in range(count):
            attacked.throw(topic, noise[number] if number < len(noise) else mutant(genuine, rng))
            if number % 100 == 99:
                attacked.step()
        attacked.step()
        # To say again what it holds, to repeat a result, and to refuse, is all that it may be brought to.
        for message in attacked.said():
            if message.topic == TOPICS.up("pi", "task"):
                update = decode_task_update(message.payload)
                assert isinstance(update, Rejected | Result), update
                assert isinstance(update, Result) or update.reason == "not_trusted"


def attack_campaign(attacked: AttackedCampaign, rng: random.Random, count: int, noise: list[bytes]) -> None:
    for channel in UP_CHANNELS:
        for number in range(count):
            payload = noise[number] if number < len(noise) else mutant(attacked.genuine[channel], rng)
            attacked.throw(channel, payload, rng)
            if number % 100 == 99:
                attacked.hear()
    attacked.hear()
    attacked.fleet.refused.clear()


@thrown_in_all
@given(seed=st.integers(0, 2**64), noise=NOISE)
def test_the_agent_goes_on_as_if_nothing_had_been_said(agent: AttackedAgent, seed: int, noise: list[bytes]) -> None:
    before = agent.state()
    attack_agent(agent, random.Random(seed), PER_EXAMPLE, noise)
    assert agent.state() == before


@thrown_in_all
@given(seed=st.integers(0, 2**64), noise=NOISE)
def test_the_campaign_goes_on_as_if_nothing_had_been_said(
    campaign: AttackedCampaign, seed: int, noise: list[bytes]
) -> None:
    before = campaign.state()
    attack_campaign(campaign, random.Random(seed), PER_EXAMPLE, noise)
    assert campaign.state() == before


def test_after_the_attack_the_agent_still_takes_genuine_orders(agent: AttackedAgent) -> None:
    attack_agent(agent, random.Random(1), 100, [])
    held = agent.state()[0]
    agent.give(50)
    assert {key.task_id for key in agent.state()[0].queued} - {key.task_id for key in held.queued} == {"task-50"}


def test_after_the_attack_the_campaign_still_completes() -> None:
    attacked = AttackedCampaign()
    attack_campaign(attacked, random.Random(2), 100, [])
    attacked.fleet.run()
    assert attacked.fleet.campaign.finish() == "complete"


def growth(attack: Callable[[random.Random], None]) -> int:
    """Bytes that the second of two equal attacks leaves behind."""
    attack(random.Random(3))
    gc.collect()
    tracemalloc.start()
    try:
        attack(random.Random(4))
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_the_agent_remembers_nothing_of_it(agent: AttackedAgent) -> None:
    assert growth(lambda rng: attack_agent(agent, rng, 1000, [])) < GROWTH_BYTES


def test_the_campaign_remembers_nothing_of_it(campaign: AttackedCampaign) -> None:
    assert growth(lambda rng: attack_campaign(campaign, rng, 1000, [])) < GROWTH_BYTES


def test_ten_thousand_hostile_messages_cost_the_agent_ten_lines_a_minute(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attacked = AttackedAgent(tmp_path)
    with caplog.at_level(logging.INFO, logger="fleetnas.agent"):
        caplog.clear()
        began = attacked.now
        attack_agent(attacked, random.Random(5), 10_000 // len(attacked.genuine), [])
        assert attacked.now - began < 60
    attacked.agent.stop()
    assert 0 < len(caplog.records) <= MOST_LINES
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_every_topic_of_the_fleet_is_attacked(agent: AttackedAgent, campaign: AttackedCampaign) -> None:
    heard = {TOPICS.down("pi", channel) for channel in DOWN_CHANNELS} | {TOPICS.up("pi", "state"), TOPICS.coordinator}
    assert set(agent.genuine) == heard
    assert set(campaign.genuine) == set(UP_CHANNELS)
