"""One agent that says too much: it is cut short, and nobody else notices."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from rigs.simulated_fleet import BUNDLE, SPACE, TOPICS, SimulatedAgent, Simulation, measurement

from fleetnas.agent.service.result_delivery import OUTBOX_LIMIT
from fleetnas.coordinator.campaign import membership
from fleetnas.coordinator.campaign.membership import MAX_AGENT_SETTINGS
from fleetnas.coordinator.fleet.agent_subscriptions import EXCESS, EXCESS_AGAIN, PAUSE_S
from fleetnas.coordinator.fleet.message_budget import (
    BURST_REQUESTS,
    BURST_UNITS,
    REQUESTS_PER_S,
    UNITS_PER_S,
    MessageBudget,
)
from fleetnas.coordinator.fleet.orphaned_results import FORGET_AFTER_S
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.stored import TaskRecord
from fleetnas.coordinator.security.mosquitto import configuration
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.fleet_protocol.codec import encode
from fleetnas.fleet_protocol.messages import (
    AgentInfo,
    AgentState,
    BlobRequest,
    Inventory,
    Result,
    RuntimeSetting,
    TaskKey,
)
from fleetnas.fleet_protocol.topics import UP_CHANNELS, UpChannel
from fleetnas.fleet_protocol.transports.base import MOST_BYTES_AT_ONCE, Received, take_events
from fleetnas.fleet_protocol.transports.memory import MemoryTransport

FLOOD = 50_000
PLAN = CampaignPlan(targets="auto:1", budget=6, initial_design=4, wait_for=2, grace_s=30, join_s=60, deadline_s=30)
HONEST = ("pi0", "pi1")


DESIGN = InitialDesign(SPACE, count=PLAN.initial_design, seed=PLAN.seed)


def fleet_of(*honest: str, seconds_per_task: float = 1.0, checked: bool = True) -> Simulation:
    """Honest agents, and a flooder that has joined like them and is about to show what it is."""
    plan = PLAN.model_copy(update={"wait_for": len(honest) + 1, "deadline_s": 30 * seconds_per_task})
    fleet = Simulation(plan, limited=True, design=DESIGN, checked=checked)
    for seed, name in enumerate((*honest, "flooder")):
        fleet.add(name, seed=seed, seconds_per_task=seconds_per_task)
    return fleet


def honest_progress(fleet: Simulation) -> list[int]:
    return [
        setting_run.measurements for setting_run in fleet.campaign.setting_runs.values() if setting_run.device in HONEST
    ]


def flooder(fleet: Simulation) -> MemoryTransport:
    return fleet.agents[-1].transport


def take_waiting(fleet: Simulation) -> int:
    """Have the coordinator alone take what waits; returns the number of messages."""
    taken = 0
    while (event := fleet.transport.poll(0)) is not None:
        taken += isinstance(event, Received)
        fleet.campaign.on_event(event)
    fleet.campaign.on_tick()
    return taken


def unknown(number: int, run: str = "elsewhere") -> bytes:
    return encode(Result(task=TaskKey(task_id=f"{run}.{number}", attempt=1), measurement=measurement(1.0)))


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> Callable[[Simulation], list[str]]:
    """The tasks that the store is asked for, as they are asked for."""

    def watch(fleet: Simulation) -> list[str]:
        asked: list[str] = []
        task = fleet.store.task

        def counted(task_id: str) -> TaskRecord | None:
            asked.append(task_id)
            return task(task_id)

        monkeypatch.setattr(fleet.store, "task", counted)
        return asked

    return watch


class TestBudget:
    def test_a_burst_is_admitted_and_then_so_much_a_second(self) -> None:
        now, lines = [0.0], list[str]()
        budget = MessageBudget(lambda: now[0], lines.append)
        cost = 1 + 512 / 512
        assert sum(budget.admits("pi", "message", 512) for _ in range(FLOOD)) == BURST_UNITS / cost
        now[0] += 1.0
        assert sum(budget.admits("pi", "message", 512) for _ in range(FLOOD)) == UNITS_PER_S / cost
        assert len(lines) == 1
        assert "pi floods" in lines[0]

    def test_a_large_message_costs_as_much_as_reading_it(self) -> None:
        budget = MessageBudget(lambda: 0.0, lambda _: None)
        assert sum(budget.admits("pi", "message", 64 * 1024) for _ in range(1000)) == BURST_UNITS // 129
        assert not MessageBudget(lambda: 0.0, lambda _: None).admits("pi", "message", 256 * 1024 * 1024)

    def test_requests_for_bundles_are_counted_apart(self) -> None:
        now = [0.0]
        budget = MessageBudget(lambda: now[0], lambda _: None)
        assert sum(budget.admits("pi", "blob", 100) for _ in range(FLOOD)) == BURST_REQUESTS
        assert budget.admits("pi", "message", 100)
        now[0] += 0.5
        assert sum(budget.admits("pi", "blob", 100) for _ in range(FLOOD)) == REQUESTS_PER_S / 2

    def test_one_agents_flood_is_not_anothers(self) -> None:
        budget = MessageBudget(lambda: 0.0, lambda _: None)
        for _ in range(FLOOD):
            budget.admits("flooder", "message", 100)
        assert budget.admits("pi", "message", 100)

    def test_one_that_calms_down_is_heard_again_and_that_is_said(self) -> None:
        now, lines = [0.0], list[str]()
        budget = MessageBudget(lambda: now[0], lines.append)
        for _ in range(FLOOD):
            budget.admits("pi", "message", 100)
        now[0] += 60
        assert budget.admits("pi", "message", 100)
        assert len(lines) == 2
        assert "were dropped unread" in lines[1]

    def test_invented_names_fill_no_memory_and_silence_nobody(self) -> None:
        now = [0.0]
        budget = MessageBudget(lambda: now[0], lambda _: None)
        assert budget.admits("pi", "message", 100)
        admitted = sum(budget.admits(f"stranger-{number}", "message", 100) for number in range(FLOOD))
        assert admitted < FLOOD
        assert budget.admits("pi", "message", 100)
        now[0] += 60
        assert budget.admits("newcomer", "message", 100)


class TestIgnoring:
    """An agent far beyond its budget is not delivered any more, for a while."""

    @pytest.fixture
    def fleet(self) -> Simulation:
        fleet = fleet_of(*HONEST, checked=False)
        fleet.begin()
        fleet.run(until=lambda: min(honest_progress(fleet), default=0) >= 1)
        return fleet

    def flood(self, fleet: Simulation, channel: UpChannel = "task", messages: int = FLOOD // 2) -> int:
        """Publish noise; returns the number of messages that were delivered."""
        delivered = len(fleet.transport.events)
        for _ in range(messages):
            flooder(fleet).publish(TOPICS.up("flooder", channel), b"\x00" * 300)
        return len(fleet.transport.events) - delivered

    @pytest.mark.parametrize("channel", UP_CHANNELS)
    def test_on_each_channel_others_are_heard_and_a_pause_ends(self, fleet: Simulation, channel: UpChannel) -> None:
        assert self.flood(fleet, channel) == FLOOD // 2
        take_waiting(fleet)
        assert fleet.campaign.connection.link.ignored == ("flooder",)
        fleet.step(0.0)
        assert self.flood(fleet, channel, 100) == 0
        for name in HONEST:
            flooder(fleet).publish(TOPICS.up(name, channel), b"heard")
        assert [e.topic for e in fleet.transport.events if isinstance(e, Received) and e.payload == b"heard"] == [
            TOPICS.up(name, channel) for name in HONEST
        ]
        take_waiting(fleet)
        fleet.clock.now_s += PAUSE_S
        take_waiting(fleet)
        assert fleet.campaign.connection.link.ignored == ()
        assert self.flood(fleet, channel, 100) == 100
        for name in HONEST:  # by one filter, not by two
            flooder(fleet).publish(TOPICS.up(name, channel), b"again")
        assert sum(isinstance(e, Received) and e.payload == b"again" for e in fleet.transport.events) == len(HONEST)

    @pytest.mark.parametrize("channel", UP_CHANNELS)
    def test_a_new_agent_joins_meanwhile(self, fleet: Simulation, channel: UpChannel) -> None:
        self.flood(fleet, channel)
        take_waiting(fleet)
        new = fleet.add("late", seed=7)
        fleet.run(until=lambda: len(new.measured) > 2)
        assert "flooder" in fleet.campaign.connection.link.ignored

    def test_where_all_channels_are_flooded_a_new_agent_joins_after_the_pause(self, fleet: Simulation) -> None:
        for channel in UP_CHANNELS:
            self.flood(fleet, channel)
            take_waiting(fleet)
            fleet.clock.now_s += 2.0
        new, began_s = fleet.add("late", seed=7), fleet.clock.now_s
        fleet.campaign.on_tick()
        fleet.step()
        assert "late" not in fleet.campaign.registry.agents
        fleet.run(until=lambda: "late" in fleet.campaign.registry.agents)
        assert fleet.clock.now_s - began_s <= PAUSE_S + 2
        fleet.run(until=lambda: bool(new.measured))

    def test_one_that_goes_on_is_ignored_sooner_and_longer(self, fleet: Simulation) -> None:
        link = fleet.campaign.connection.link
        ignored_s, dropped = [], []
        for _ in range(6):
            before = link.dropped
            self.flood(fleet)
            take_waiting(fleet)
            began_s = fleet.clock.now_s
            dropped.append(link.dropped - before)
            while link.ignored:
                fleet.clock.now_s += 1.0
                link.on_tick()
            ignored_s.append(fleet.clock.now_s - began_s)
        assert ignored_s == [60.0, 120.0, 240.0, 480.0, 960.0, 960.0]
        assert dropped == [EXCESS, *5 * [EXCESS_AGAIN]]

    def test_two_at_once(self, fleet: Simulation) -> None:
        fleet.add("second", seed=8)
        fleet.run(until=lambda: "second" in fleet.campaign.registry.agents)
        second = fleet.agents[-1].transport
        flooder_transport = fleet.agents[2].transport
        for name, transport in (("flooder", flooder_transport), ("second", second)):
            for _ in range(FLOOD // 2):
                transport.publish(TOPICS.up(name, "task"), b"\x00" * 300)
            take_waiting(fleet)
        assert fleet.campaign.connection.link.ignored == ("flooder", "second")
        fleet.clock.now_s += PAUSE_S
        take_waiting(fleet)
        assert fleet.campaign.connection.link.ignored == ()
        for name in ("flooder", "second", "pi0"):
            second.publish(TOPICS.up(name, "task"), b"heard")
        assert sum(isinstance(e, Received) and e.payload == b"heard" for e in fleet.transport.events) == 3

    def test_a_whole_outbox_after_an_outage_is_no_flood(self, fleet: Simulation) -> None:
        agent = fleet.agents[0]
        typical = max((payload for payload in agent.answered.values()), key=len)
        padded = typical + b" " * max(0, 6_000 - len(typical))  # a result with all its times
        for number in range(OUTBOX_LIMIT):
            key = TaskKey(task_id=f"run-1.{100_000 + number}", attempt=1)
            agent.outbox[key] = padded
        for _ in range(3):  # the broker comes and goes, and everything is sent again each time
            fleet.broker.cut(fleet.client_id)
            agent.step()
            fleet.broker.attach(fleet.transport)
            take_waiting(fleet)
            agent.step()
            take_waiting(fleet)
        link = fleet.campaign.connection.link
        assert (link.dropped, link.ignored) == (0, ())

    def test_a_thousand_agents_that_join_at_once_are_no_flood(self) -> None:
        fleet = Simulation(PLAN.model_copy(update={"wait_for": 1000}), limited=True, design=DESIGN, checked=False)
        sender = fleet.broker.transport("sender")
        sender.start()
        info = SimulatedAgent(fleet.broker, "typical", fleet.clock, seed=0).info
        fleet.begin()
        for number in range(1000):
            name = f"pi{number}"
            sender.publish(TOPICS.up(name, "state"), encode(AgentState(state="ready", session=1, instance=name)))
            sender.publish(TOPICS.up(name, "info"), encode(info.model_copy(update={"agent": name})))
            sender.publish(TOPICS.up(name, "inventory"), encode(Inventory(session=1)))
        assert take_waiting(fleet) == 3000
        link = fleet.campaign.connection.link
        assert (link.dropped, link.ignored) == (0, ())
        assert len(fleet.campaign.registry.agents) == 1000


class TestFlood:
    @pytest.mark.parametrize("kind", ["unknown tasks", "own run", "inventory", "blobs", "noise"])
    def test_every_honest_result_of_that_moment_is_taken_in_the_next(self, kind: str) -> None:
        fleet = fleet_of(*HONEST, checked=False)
        fleet.begin()
        fleet.run(until=lambda: min(honest_progress(fleet), default=0) >= 2)
        keys = tuple(TaskKey(task_id=f"elsewhere.{number}", attempt=1) for number in range(1000))
        payload = {
            "unknown tasks": unknown(1),
            "own run": unknown(999_999, "run-1"),
            "inventory": encode(Inventory(session=1, unacknowledged=keys)),
            "blobs": encode(BlobRequest(sha256=BUNDLE.sha256, offset=0, length=1)),
            "noise": b"\x00" * 300,
        }[kind]
        channel = {"inventory": "inventory", "blobs": "blob"}.get(kind, "task")
        before = len(fleet.refused)
        for _ in range(FLOOD // 2):
            flooder(fleet).publish(TOPICS.up("flooder", channel), payload)  # type: ignore[arg-type]
        for agent in fleet.agents[:2]:
            agent.step()
        measured, told = honest_progress(fleet), [len(agent.outbox) for agent in fleet.agents[:2]]
        assert told == [1, 1]
        # They waited behind the flood and were lost with it: their agents are asked for them at once.
        take_waiting(fleet)
        fleet.step(0.0)
        assert [after - then for after, then in zip(honest_progress(fleet), measured, strict=True)] == told
        # Most of it was never read: what was read and refused is a line each.
        assert len(fleet.refused) - before < BURST_UNITS
        assert sum("flooder floods" in line for line in fleet.refused) == 1
        assert sum("flooder sends far too much" in line for line in fleet.refused) == 1

    def test_a_flood_that_goes_on_does_not_keep_the_campaign_from_its_end(self) -> None:
        fleet, invented = fleet_of(*HONEST), [unknown(number) for number in range(400)]
        fleet.begin()
        while not fleet.campaign.finished:
            for payload in invented:
                flooder(fleet).publish(TOPICS.up("flooder", "task"), payload)
            fleet.step()
            assert fleet.clock.now_s < 5000, list(fleet.campaign.log)
        fleet.campaign.finish()
        statuses = {setting_run.device: setting_run.status for setting_run in fleet.campaign.setting_runs.values()}
        assert [statuses[name] for name in HONEST] == ["finished", "finished"]
        assert all(winner.met for winner in fleet.store.winners("run-1") if winner.device in HONEST)

    def test_an_agent_that_comes_and_goes_without_end_fills_no_log(self) -> None:
        fleet = fleet_of("pi0")
        fleet.begin()
        fleet.run(until=lambda: bool(fleet.campaign.setting_runs))
        before = len(fleet.campaign.log)
        gone = AgentState(state="leaving", session=1, instance="flooder-1")
        back = gone.model_copy(update={"state": "ready"})
        for state in 50 * [gone, back]:
            flooder(fleet).publish(TOPICS.up("flooder", "state"), encode(state))
        fleet.step()
        assert len(fleet.campaign.log) - before <= 2


class TestStrayResults:
    def test_unknown_runs_are_answered_from_memory(self, looked_up: Callable[[Simulation], list[str]]) -> None:
        fleet = fleet_of("pi0")
        fleet.begin()
        fleet.run(until=lambda: bool(fleet.campaign.setting_runs))
        asked = looked_up(fleet)
        for number in range(500):
            flooder(fleet).publish(TOPICS.up("flooder", "task"), unknown(number))
            flooder(fleet).publish(TOPICS.up("flooder", "task"), unknown(10_000 + number, "run-1"))
        fleet.step()
        assert asked == []

    def test_a_run_that_another_coordinator_begins_is_known_soon(self) -> None:
        fleet = fleet_of("pi0")
        fleet.begin()
        fleet.run(until=lambda: bool(fleet.campaign.setting_runs))
        flooder(fleet).publish(TOPICS.up("flooder", "task"), unknown(1))  # so that the runs have just been asked for
        fleet.step()
        other = Simulation(PLAN.model_copy(update={"wait_for": 1}), store=fleet.store, run_id="run-2")
        agent = other.add("pi0", seed=5)
        other.begin()
        other.run(until=lambda: bool(agent.outbox))
        (key, payload), *_ = agent.outbox.items()
        mine = fleet.agents[0]
        mine.outbox[key] = payload
        for _ in range(40):
            fleet.step()
        assert key in [found.key for found in fleet.store.outcomes("run-2")]
        assert key not in mine.outbox

    @pytest.fixture
    def second_run(self) -> Simulation:
        """An earlier run whose last result pi0 still holds, and a flooder that invents others of it."""
        fleet = fleet_of("pi0")
        fleet.begin()
        fleet.run(until=lambda: len(fleet.store.outcomes("run-1")) >= 3)
        fleet.vanish()
        honest = fleet.agents[0]
        honest.step()
        while not honest.outbox:
            fleet.clock.now_s += 1
            honest.step()
        fleet.run_id = "run-2"
        fleet.begin()
        return fleet

    def test_those_who_hold_real_ones_do_not_wait_for_one_that_invents_them(
        self, second_run: Simulation, looked_up: Callable[[Simulation], list[str]]
    ) -> None:
        fleet, asked = second_run, looked_up(second_run)
        held = set(fleet.agents[0].outbox)
        for _ in range(2):
            fleet.step()
        for number in range(1000):
            flooder(fleet).publish(TOPICS.up("flooder", "task"), unknown(10_000 + number, "run-1"))
        asked.clear()
        fleet.agents[0].send_outbox()
        fleet.step(0.0)
        assert 0 < len(asked) <= 16  # a few at a time, however many wait
        assert held <= {found.key for found in fleet.store.outcomes("run-1")}
        fleet.run()
        assert fleet.campaign.finish() == "complete"

    def test_who_invents_results_has_none_of_others_remembered_less(self) -> None:
        fleet = fleet_of("pi0", seconds_per_task=2 * FORGET_AFTER_S / PLAN.budget)
        honest = fleet.agents[0]
        foreign = TaskKey(task_id="elsewhere.7", attempt=1)
        honest.outbox[foreign] = unknown(7)
        fleet.begin()
        began_s, numbers = fleet.clock.now_s, itertools.count(1000)
        while foreign in honest.outbox and fleet.clock.now_s < began_s + 3 * FORGET_AFTER_S:
            for number in itertools.islice(numbers, 20):
                flooder(fleet).publish(TOPICS.up("flooder", "task"), unknown(number))
            fleet.step()
        assert foreign not in honest.outbox


def many_settings(first: int) -> tuple[RuntimeSetting, ...]:
    """32 settings that were never announced before."""
    return tuple(RuntimeSetting(threads=1 + n % 256, affinity=(n // 256,)) for n in range(first, first + 32))


class EventEmitter(SimulatedAgent):
    """Says at every step that it has 32 settings that it has never had; it measures none of them."""

    def __init__(self, fleet: Simulation) -> None:
        super().__init__(fleet.broker, "flooder", fleet.clock, seed=9)
        self.mute = True
        self._number = 0

    def step(self) -> None:
        super().step()
        self._number += 32
        self.info = AgentInfo(
            agent=self.name, session=1, profile=self.info.profile, settings=many_settings(self._number), versions={}
        )
        self._say("info", self.info, retain=True)


class TestSettings:
    def test_one_that_announces_new_ones_without_end_costs_itself(self) -> None:
        fleet = Simulation(PLAN.model_copy(update={"deadline_s": 5.0, "wait_for": 2}), limited=True, design=DESIGN)
        fleet.add("pi0")
        fleet.take_in(EventEmitter(fleet))
        fleet.begin()
        fleet.run()
        assert fleet.campaign.finish() == "partial"
        of_flooder = [
            setting_run for setting_run in fleet.campaign.setting_runs.values() if setting_run.device == "flooder"
        ]
        assert 0 < len(of_flooder) <= MAX_AGENT_SETTINGS
        assert next(t for t in fleet.campaign.setting_runs.values() if t.device == "pi0").status == "finished"

    def test_there_is_a_most_of_one_agent_and_a_line_says_so(self) -> None:
        fleet = Simulation(PLAN.model_copy(update={"wait_for": 1}), limited=True, design=DESIGN)
        fleet.add("pi0")
        announcer = fleet.take_in(EventEmitter(fleet))
        fleet.begin()
        for _ in range(60):
            fleet.step()
        setting_runs = [
            setting_run for setting_run in fleet.campaign.setting_runs.values() if setting_run.device == announcer.name
        ]
        assert len(setting_runs) == MAX_AGENT_SETTINGS
        assert sum("more settings than one run takes" in line for line in fleet.campaign.log) == 1

    def test_there_is_a_most_of_all_agents(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(membership, "MAX_SETTINGS", 3)
        fleet = Simulation(PLAN.model_copy(update={"wait_for": 2}), design=DESIGN)
        for seed in range(2):
            fleet.add(f"pi{seed}", seed=seed, settings=(RuntimeSetting(), RuntimeSetting(threads=2)))
        fleet.begin()
        fleet.run()
        assert len(fleet.campaign.setting_runs) == 3
        assert fleet.campaign.finish() == "complete"

    def test_between_two_of_them_others_get_their_tasks(self) -> None:
        begun: list[str] = []

        class Counting(Simulation):
            def make_search(self, info: AgentInfo, setting: RuntimeSetting) -> DeviceTuner:
                begun.append(info.agent)
                return super().make_search(info, setting)

        fleet = Counting(PLAN.model_copy(update={"wait_for": 1}), design=DESIGN)
        fleet.add("pi0")
        fleet.begin()
        fleet.run(until=lambda: bool(fleet.campaign.setting_runs))
        late = [fleet.add(name, seed=3, settings=many_settings(0)[:4]) for name in ("late0", "late1")]
        begun.clear()
        for most in range(1, 9):
            fleet.step()
            assert len(begun) <= most
        assert sorted(begun) == sorted(4 * [agent.name for agent in late])
        assert begun[:2] == ["late0", "late1"]  # in turn


def test_the_brokers_queue_for_the_coordinator_has_room_for_a_flood(tmp_path: Path) -> None:
    lines = configuration(tmp_path, 8883, "certificate").splitlines()
    limits = {line.split()[0]: int(line.split()[1]) for line in lines if line.startswith("max_queued")}
    assert limits["max_queued_messages"] >= 2 * FLOOD
    assert limits["max_queued_bytes"] >= 2 * FLOOD * len(unknown(FLOOD))


class TestMemory:
    def test_what_is_taken_together_is_bounded_in_bytes_too(self) -> None:
        fleet = Simulation(PLAN)
        receiver = fleet.broker.transport("receiver")
        receiver.subscribe("t")
        receiver.start()
        take_events(receiver, 0, 1)
        for _ in range(100):
            fleet.broker.publish("t", b"x" * 64 * 1024)
        taken = take_events(receiver, 0, 500)
        assert sum(len(event.payload) for event in taken if isinstance(event, Received)) == MOST_BYTES_AT_ONCE
        rest = sum(len(take_events(receiver, 0, 500)) for _ in range(10))
        assert len(taken) + rest == 100  # nothing is lost
