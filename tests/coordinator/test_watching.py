"""Watching a search from elsewhere: what the coordinator tells, and what the store has, shown by the search's views."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rigs import brokers, waiting
from rigs.command_line import fleetnas
from rigs.simulated_fleet import TOPICS, Simulation

from fleetnas.coordinator.fleet.agent_link import AgentLink, FleetListener
from fleetnas.coordinator.fleet.blob_server import BlobServer
from fleetnas.coordinator.monitoring.broker_feed import SILENT_AFTER_S, BrokerFeed, choose_run, runs_at_work
from fleetnas.coordinator.monitoring.feed import FeedUpdate, follow
from fleetnas.coordinator.monitoring.metrics import Metrics
from fleetnas.coordinator.monitoring.publisher import SUMMARY_EVERY_S, Publisher, device_from_json, device_to_json
from fleetnas.coordinator.monitoring.store_feed import StoreFeed
from fleetnas.coordinator.monitoring.view_group import ViewGroup
from fleetnas.coordinator.records.data_quality import DataQuality
from fleetnas.coordinator.records.events import CampaignFinished, Event, MeasurementTaken
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.predictor_error import PredictorError
from fleetnas.coordinator.records.snapshot import DeviceSnapshot, Snapshot, TargetSnapshot
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.view.lines import JsonView
from fleetnas.fleet_protocol.codec import MAX_JSON_BYTES
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import Failed, Measurement
from fleetnas.fleet_protocol.topics import Topics
from fleetnas.fleet_protocol.transports.base import Received, take_events
from fleetnas.fleet_protocol.transports.memory import MemoryBroker
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport

PLAN = CampaignPlan(targets="auto:2", budget=10, initial_design=6, wait_for=2, grace_s=5)


class Ticks:
    """A clock that goes on by itself, so that waits in memory end."""

    def __init__(self, step_s: float = 0.05) -> None:
        self._times = itertools.count(0.0, step_s)

    def __call__(self) -> float:
        return next(self._times)


class Stage:
    """A simulated campaign that is published on its own broker, and its watchers there."""

    def __init__(self) -> None:
        self.fleet = Simulation(PLAN)
        self.fleet.add("pi0")
        self.fleet.add("pi1", seed=1)
        self.fleet.begin()
        self.publisher = Publisher(self.fleet.transport, TOPICS, "run-1", self.fleet.clock)
        self.told = 0

    def step(self) -> None:
        self.fleet.step()
        for event in self.fleet.events[self.told :]:
            self.publisher.event(event)
        self.told = len(self.fleet.events)
        self.publisher.update(self.snapshot())

    def snapshot(self) -> Snapshot:
        return self.fleet.campaign.snapshot(self.fleet.clock.unix())

    def run(self, until: int = 10_000) -> None:
        while not self.fleet.campaign.finished and len(self.fleet.events) < until:
            self.step()

    def finish(self) -> None:
        self.fleet.campaign.finish()
        self.step()
        self.publisher.close()

    def watcher(self) -> BrokerFeed:
        transport = self.fleet.broker.transport("watcher")
        transport.start()
        return BrokerFeed(transport, TOPICS, "run-1", Ticks())


def retained(broker: MemoryBroker) -> set[str]:
    """The topics that a newcomer is told something of."""
    newcomer = broker.transport("newcomer")
    newcomer.start()
    newcomer.subscribe("#")
    found = {event.topic for event in take_events(newcomer, 0, 10_000) if isinstance(event, Received)}
    newcomer.close()
    return found


def everything(feed: BrokerFeed) -> tuple[list[Event], FeedUpdate]:
    events: list[Event] = []
    while True:
        update = feed.poll(1.0)
        events += update.events
        if not update.events:
            return events, update


class TestBroker:
    def test_who_watches_from_the_start_sees_every_event_and_the_same_state(self) -> None:
        stage = Stage()
        feed = stage.watcher()
        stage.run()
        stage.finish()
        events: list[Event] = []
        update = FeedUpdate()
        while update.end is None:
            update = feed.poll(1.0)
            events += update.events
            assert not update.missed
        assert events == stage.fleet.events
        assert update.end == "complete"
        assert update.snapshot is not None
        assert update.snapshot.devices == stage.snapshot().devices

    def test_who_comes_later_is_shown_how_it_stands_at_once(self) -> None:
        stage = Stage()
        stage.run(until=12)
        for _ in range(10):  # every page has had its turn
            stage.publisher.update(stage.snapshot())
            stage.fleet.clock.now_s += 1
        events, update = everything(stage.watcher())
        assert events == []
        assert update.snapshot is not None
        assert update.snapshot.devices == stage.snapshot().devices
        assert update.snapshot.phase == stage.snapshot().phase
        assert update.snapshot.progress is not None
        assert 0.0 < update.snapshot.progress.least_left_s <= update.snapshot.progress.left_s

    def test_nothing_of_an_ended_run_is_left_on_the_broker(self) -> None:
        stage = Stage()
        stage.run()
        stage.finish()
        late = stage.fleet.broker.transport("late")
        late.start()
        assert runs_at_work(late, TOPICS, 1.0, Ticks()) == []

    def test_what_a_killed_coordinator_left_is_cleared_by_the_next_one(self) -> None:
        """Its pages too, and nothing of one that is at work."""
        broker, clock = MemoryBroker(), Ticks()
        devices = tuple(DeviceSnapshot(f"device-{n}", "s", "measuring") for n in range(40))
        others = {}
        for run_id in ("killed", "at-work"):
            transport = broker.transport(run_id)
            transport.start()
            others[run_id] = Publisher(transport, TOPICS, run_id, clock)
            for _ in range(100):
                others[run_id].update(Snapshot(run_id, "x.supernet", 0.0, 0.0, "searching", devices))
        assert {TOPICS.run_page("killed", 2), TOPICS.run_summary("killed")} <= retained(broker)
        transport = broker.transport("next")
        next_one = Publisher(transport, TOPICS, "next", clock)
        link = AgentLink(transport, TOPICS, 1, refused=pytest.fail)
        link.listen_to_runs(next_one)
        transport.start()
        listener = mock.create_autospec(FleetListener)
        began_s = clock()
        while clock() < began_s + SILENT_AFTER_S + 5:
            others["at-work"].update(Snapshot("at-work", "x.supernet", 0.0, 0.0, "searching", devices))
            for event in take_events(transport, 0, 100):
                link.receive(event, listener)
            next_one.update(Snapshot("next", "x.supernet", 0.0, 0.0, "searching"))
        left = retained(broker)
        assert not any("/killed/" in topic for topic in left)
        assert TOPICS.run_summary("next") in left
        assert {TOPICS.run_summary("at-work"), *(TOPICS.run_page("at-work", page) for page in range(3))} <= left

    def test_a_resumed_run_clears_the_pages_that_it_had_before_it_was_killed(self) -> None:
        broker, clock = MemoryBroker(), Ticks()
        devices = tuple(DeviceSnapshot(f"device-{n}", "s", "measuring") for n in range(40))
        for count in (40, 1):  # killed with three pages; the second time it ends with one
            transport = broker.transport(f"with-{count}")
            resumed = Publisher(transport, TOPICS, "run-1", clock)
            link = AgentLink(transport, TOPICS, 1, refused=pytest.fail)
            link.listen_to_runs(resumed)
            transport.start()
            for event in take_events(transport, 0, 100):
                link.receive(event, mock.create_autospec(FleetListener))
            for _ in range(100):
                resumed.update(Snapshot("run-1", "x.supernet", 0.0, 0.0, "searching", devices[:count]))
        assert TOPICS.run_page("run-1", 2) in retained(broker)
        resumed.close()
        assert not any("/run-1/" in topic for topic in retained(broker))

    def test_a_broker_that_forgot_everything_is_told_anew(self) -> None:
        broker, clock = MemoryBroker(), Ticks()
        transport = broker.transport("coordinator")
        transport.start()
        publisher = Publisher(transport, TOPICS, "run-1", clock)
        snapshot = Snapshot("run-1", "x.supernet", 0.0, 0.0, "searching", (DeviceSnapshot("a", "s", "measuring"),))
        for _ in range(100):
            publisher.update(snapshot)
        told = {TOPICS.run_page("run-1", 0), TOPICS.run_summary("run-1")}
        for topic in told:
            broker.publish(topic, b"", retain=True)
        assert not told & retained(broker)
        publisher.on_connected()
        for _ in range(100):
            publisher.update(snapshot)
        assert told <= retained(broker)

    def test_runs_at_work_come_before_what_killed_coordinators_left(self) -> None:
        broker, clock = MemoryBroker(), Ticks()
        listener = broker.transport("listener")
        for run_id, started_s in (("killed", 20.0), ("at-work", 10.0)):
            transport = broker.transport(run_id)
            transport.start()
            publisher = Publisher(transport, TOPICS, run_id, clock)
            if run_id == "at-work":
                listener.start()
                listener.subscribe(TOPICS.runs)
            publisher.update(Snapshot(run_id, "x.supernet", started_s, started_s, "searching"))
        found = runs_at_work(listener, TOPICS, 1.0, clock)
        assert [summary.run_id for summary in found] == ["at-work", "killed"]
        assert choose_run(found, None, "test") == "at-work"

    def test_a_coordinator_that_is_killed_is_told_from_one_that_has_nothing_to_say(self) -> None:
        stage = Stage()
        feed = stage.watcher()
        stage.run(until=10)
        _, update = everything(feed)
        assert update.snapshot is not None
        assert update.snapshot.phase == "searching"
        update = feed.poll(SILENT_AFTER_S + 1)
        assert update.snapshot is not None
        assert "no word from its coordinator" in update.snapshot.phase
        assert update.end is None
        stage.fleet.clock.now_s += SUMMARY_EVERY_S
        stage.step()
        _, update = everything(feed)
        assert update.snapshot is not None
        assert update.snapshot.phase == "searching"

    def test_the_newest_run_is_chosen_and_an_unknown_one_lists_those_there_are(self) -> None:
        broker = MemoryBroker()
        for run_id, started_s in (("old", 10.0), ("new", 20.0)):
            transport = broker.transport(run_id)
            transport.start()
            snapshot = Snapshot(run_id, f"{run_id}.supernet", started_s, started_s, "searching")
            Publisher(transport, TOPICS, run_id, lambda: 0.0).update(snapshot)
        listener = broker.transport("listener")
        listener.start()
        found = runs_at_work(listener, TOPICS, 1.0, Ticks())
        assert choose_run(found, None, "test") == "new"
        assert choose_run(found, "old", "test") == "old"
        with pytest.raises(UsageError, match=r"'older' is at work.*new \(new.supernet, searching\), old"):
            choose_run(found, "older", "test")
        with pytest.raises(UsageError, match="no search is at work"):
            choose_run([], None, "test")

    def test_rubbish_changes_nothing(self) -> None:
        stage = Stage()
        feed = stage.watcher()
        stage.run(until=10)
        events, before = everything(feed)
        attacker = stage.fleet.broker.transport("attacker")
        attacker.start()
        for topic in (TOPICS.run_summary("run-1"), TOPICS.run_page("run-1", 0), TOPICS.run_events("run-1")):
            for payload in (b"\xff", b"{}", b'{"schema_version":1,"devices":[{}]}', b"x" * (MAX_JSON_BYTES + 1)):
                attacker.publish(topic, payload)
        events, after = everything(feed)
        assert events == []
        assert after.snapshot == before.snapshot

    def test_a_page_holds_all_of_a_device_setting_and_cuts_long_texts(self) -> None:
        target = TargetSnapshot(1.0, 0.9, 0.95, 0.97, 0.9, 0.91, met=True, typical_ms=0.99, note="n" * 500)
        device = DeviceSnapshot(
            "a",
            "s",
            "failed",
            targets=(target,),
            targets_asked=4,
            targets_note="t" * 500,
            quality=DataQuality(1, 2, 3, 1, 4.5, 2),
        )
        back = device_from_json(json.loads(json.dumps(device_to_json(device))))
        cut = dataclasses.replace(target, note="n" * 200)
        assert back == dataclasses.replace(device, targets=(cut,), targets_note="t" * 200)

    def test_a_thousand_devices_are_told_in_small_messages_at_a_bounded_rate(self) -> None:
        broker = MemoryBroker()
        now_s = 0.0
        transport = broker.transport("coordinator")
        transport.start()
        feed_transport = broker.transport("watcher")
        feed_transport.start()
        sizes: list[list[int]] = []
        publish = broker.publish

        def counted(topic: str, payload: bytes, *, retain: bool = False) -> None:
            assert len(payload) <= MAX_JSON_BYTES
            sizes[-1].append(len(payload))
            publish(topic, payload, retain=retain)

        broker.publish = counted  # type: ignore[method-assign]
        publisher = Publisher(transport, TOPICS, "run-1", lambda: now_s)
        for round_ in range(300):
            targets = tuple(
                TargetSnapshot(float(n), 1.0, 1.0 + round_, reason="x" * 500, typical_ms=1.1 + round_, note="z" * 500)
                for n in range(1, 9)
            )
            devices = tuple(
                DeviceSnapshot(
                    f"device-{n}",
                    "onnxruntime_cpu_1t_fp32",
                    "measuring",
                    "y" * 500,
                    targets=targets,
                    targets_note="t" * 500,
                    quality=DataQuality(1000, 1000, 1000, 1000, 1.234567890123, 1000),
                )
                for n in range(1000)
            )
            sizes.append([])
            publisher.update(Snapshot("run-1", "big.supernet", 0.0, now_s, "searching", devices))
            now_s += 0.25
        assert max(len(sent) for sent in sizes) <= 2
        assert max(sum(sent) for sent in sizes) <= MAX_JSON_BYTES
        feed = BrokerFeed(feed_transport, TOPICS, "run-1", Ticks())
        snapshot = feed.poll(10.0).snapshot
        assert snapshot is not None
        assert {device.device for device in snapshot.devices} == {f"device-{n}" for n in range(1000)}


@pytest.fixture(scope="module")
def half_way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    path = tmp_path_factory.mktemp("store") / "runs.sqlite"
    simulation = Simulation(PLAN, store=MeasurementStore.open(path))
    simulation.add("pi0")
    simulation.add("pi1", seed=1)
    simulation.begin()
    simulation.run(until=lambda: len(simulation.store.outcomes("run-1")) >= 8)
    yield simulation
    simulation.store.close()


def test_the_store_is_followed_to_the_end_with_every_measurement_shown_once(half_way: Simulation) -> None:
    simulation = half_way
    clock = simulation.clock

    def wait(_: float) -> None:
        if not simulation.campaign.finished:
            simulation.run(until=lambda start=clock.now_s: clock.now_s > start + 5)
            if simulation.campaign.finished:
                simulation.campaign.finish()

    feed = StoreFeed(simulation.store, "run-1", wait=wait, wall_clock=clock.unix)
    shown = io.StringIO()
    snapshots: list[Snapshot] = []
    view = JsonView(shown)
    view.update = snapshots.append  # type: ignore[method-assign]
    assert follow(feed, view, lambda missed: pytest.fail(f"{missed} missed")) == "complete"
    lines = [json.loads(line) for line in shown.getvalue().splitlines()]
    assert lines[0]["event"] == "campaign_started"
    assert lines[-1]["event"] == "campaign_finished"
    stored = simulation.store.outcomes("run-1")
    measured = [line["task_id"] for line in lines if line["event"] == "measurement"]
    assert measured == [found.key.task_id for found in stored if isinstance(found.outcome, Measurement)]
    said = [event for event in simulation.events if isinstance(event, MeasurementTaken)]
    assert [(line["measured_ms"], line["measurements"]) for line in lines if line["event"] == "measurement"] == [
        (event.measured_ms, event.measurements) for event in said
    ]
    finished = simulation.events[-1]
    assert isinstance(finished, CampaignFinished)
    assert (lines[-1]["targets_met"], lines[-1]["targets"]) == (finished.targets_met, finished.targets)
    # What stands at the end is what the coordinator's own view showed.
    own = simulation.campaign.snapshot(clock.unix())
    for mine, theirs in zip(snapshots[-1].devices, own.devices, strict=True):
        assert (mine.device, mine.state, mine.measurements) == (theirs.device, theirs.state, theirs.measurements)
        assert mine.predictor_error == theirs.predictor_error
        for target, original in zip(mine.targets, theirs.targets, strict=True):
            assert dataclasses.replace(original, reason=target.reason) == target
    assert {device.state for snapshot in snapshots for device in snapshot.devices} >= {"measuring", "done"}


def test_watch_prints_a_stored_run_and_ends_as_the_search_did(
    capsys: pytest.CaptureFixture[str], half_way: Simulation
) -> None:
    half_way.run()
    half_way.campaign.finish()
    store = half_way.store.url
    code, out, _ = fleetnas(capsys, "watch", "run-1", "--store", store)
    assert code == 0
    assert "4 of 4 targets met" in out
    code, out, _ = fleetnas(capsys, "watch", "--store", store, "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["event"] == "campaign_finished"
    code, out, err = fleetnas(capsys, "watch", "run-9", "--store", store)
    assert (code, out) == (2, "")
    assert "run-1" in err


def test_watch_over_a_real_broker_shows_a_run_until_it_ends(
    capsys: pytest.CaptureFixture[str], mosquitto_broker: brokers.Mosquitto
) -> None:
    address, topics = mosquitto_broker.address, Topics()
    simulation = Simulation(PLAN)
    simulation.add("pi0")
    simulation.add("pi1", seed=1)
    coordinator = MqttTransport(address, "coordinator")
    coordinator.start()
    coordinator.wait_connected(waiting.STALL_S)
    publisher = Publisher(coordinator, topics, "run-1", simulation.clock)
    simulation.begin()
    simulation.run(until=lambda: len(simulation.events) > 3)
    publisher.update(simulation.campaign.snapshot(simulation.clock.unix()))

    watcher = MqttTransport(address, "watcher")
    watcher.start()
    watcher.wait_connected(waiting.STALL_S)
    # Retained, so it comes whenever the broker has it.
    found = waiting.until(lambda: runs_at_work(watcher, topics, 0.2))
    feed = BrokerFeed(watcher, topics, choose_run(found, None, "default"))
    told = len(simulation.events)
    waiting.until(lambda: feed.poll(0.2).snapshot)
    simulation.run()
    simulation.campaign.finish()
    for event in simulation.events[told:]:
        publisher.event(event)
        publisher.update(simulation.campaign.snapshot(simulation.clock.unix()))
    publisher.close()
    shown = io.StringIO()
    assert follow(feed, JsonView(shown), lambda _: None) == "complete"
    lines = [json.loads(line) for line in shown.getvalue().splitlines()]
    assert [line["event"] for line in lines] == [event.event for event in simulation.events[told:]]
    feed.close()
    coordinator.close()
    # The same by the command, where nothing is at work any more.
    code, _, err = fleetnas(capsys, "watch", "run-1", "--broker", str(address))
    assert code == 2
    assert "at work: none" in err


def key(name: str, *labels: str) -> tuple[str, ...]:
    """A sample by name and the values of its labels, whatever their order."""
    return (name, *sorted(labels))


def scraped(metrics: Metrics) -> dict[tuple[str, ...], float]:
    with urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=waiting.STALL_S) as answer:
        text = answer.read().decode()
    return {
        key(sample.name.removeprefix("fleetnas_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class TestMetrics:
    def test_what_is_scraped_is_what_the_store_has(self) -> None:
        simulation = Simulation(PLAN)
        agent = simulation.add("pi0")
        simulation.add("pi1", seed=1)
        agent.fails = lambda task: "crashed" if len(agent.measured) == 3 else None
        metrics = Metrics("127.0.0.1", 0)
        simulation.begin()
        blobs = BlobServer(lambda agent, chunk: None)
        metrics.attach(simulation.campaign, blobs, simulation.store)
        view_group = ViewGroup([metrics])
        told = 0
        while not simulation.campaign.finished:
            simulation.step()
            for event in simulation.events[told:]:
                view_group.event(event)
            told = len(simulation.events)
        simulation.broker.cut("coordinator")
        simulation.broker.attach(simulation.transport)
        simulation.step()
        view_group.update(simulation.campaign.snapshot(simulation.clock.unix()))
        samples = scraped(metrics)
        view_group.close()
        stored = simulation.store.outcomes("run-1")
        assert samples[key("results_stored_total")] == len(stored)
        for device in ("pi0", "pi1"):
            label = "onnxruntime_cpu_1t_fp32"
            taken = [f for f in stored if f.task.device == device and isinstance(f.outcome, Measurement)]
            assert samples[key("measurements_total", device, label, "ok")] == len(taken)
            assert samples[key("targets", device, label, "met")] == 2
            assert 0 < samples[key("predictor_error_ratio", device, label)] < 1
        failed = [f for f in stored if isinstance(f.outcome, Failed)]
        assert failed
        assert sum(value for name, value in samples.items() if name[0] == "failures_total") == len(failed)
        assert samples[key("store_write_seconds_count")] >= len(stored)
        assert samples[key("agents", "ready")] == 2
        assert samples[key("queue_length", "leased")] == 0
        assert samples[key("broker_reconnects_total")] == 1
        assert (samples[key("agents_ignored")], samples[key("messages_dropped_total")]) == (0, 0)

    def test_states_and_slow_downs_are_told(self) -> None:
        quality = DataQuality(ok=3, slowed=9, largest_slowdown=4.25, regimes=2)
        few, many = PredictorError(59.0, 0.2, 7), PredictorError(5.0, 0.9, 8)
        met = TargetSnapshot(1.0, met=True)
        devices = (
            DeviceSnapshot(
                "a", "s", "measuring", quality=quality, predictor_error=few, targets=(met,), targets_asked=4
            ),
            DeviceSnapshot("b", "s", "failed", predictor_error=many, targets_asked=3),
            DeviceSnapshot("c", "s", "failed"),
        )
        metrics = Metrics("127.0.0.1", 0)
        metrics.update(Snapshot("run-1", "x", 0.0, 1.0, "searching", devices))
        samples = scraped(metrics)
        metrics.close()
        assert samples[key("device_settings", "failed")] == 2
        assert samples[key("device_settings", "measuring")] == 1
        assert samples[key("device_settings", "done")] == 0
        assert samples[key("largest_slowdown_ratio", "a", "s")] == 4.25
        assert samples[key("regimes", "a", "s")] == 2
        assert key("largest_slowdown_ratio", "b", "s") not in samples
        assert key("predictor_error_ratio", "a", "s") not in samples
        assert samples[key("predictor_error_ratio", "b", "s")] == pytest.approx(0.05)
        states = ("met", "missed", "open")
        assert [samples[key("targets", "a", "s", state)] for state in states] == [1, 0, 3]
        assert [samples[key("targets", "b", "s", state)] for state in states] == [0, 3, 0]

    def test_every_metric_is_documented(self) -> None:
        metrics = Metrics("127.0.0.1", 0)
        with urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=waiting.STALL_S) as answer:
            families = [family.name for family in text_string_to_metric_families(answer.read().decode())]
        metrics.close()
        page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
        assert families
        for family in families:
            assert f"`{family}" in page or family.endswith("_created"), family

    def test_a_port_that_is_taken_is_said(self) -> None:
        metrics = Metrics("127.0.0.1", 0)
        with pytest.raises(UsageError, match="--metrics-port"):
            Metrics("127.0.0.1", metrics.port)
        metrics.close()
