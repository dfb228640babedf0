"""A run that is watched from its store shows what it shows from the broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from rigs.simulated_fleet import TOPICS, HiddenDevice, Simulation, file_sha256, measurement

from fleetnas.coordinator.monitoring.broker_feed import BrokerFeed
from fleetnas.coordinator.monitoring.publisher import Publisher
from fleetnas.coordinator.monitoring.store_feed import StoreFeed
from fleetnas.coordinator.records.events import Event
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.snapshot import DeviceSnapshot, Snapshot
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.records.totals import target_totals
from fleetnas.coordinator.report.stored_outcome import outcome_of, stored_totals
from fleetnas.coordinator.view.live import frame_strips
from fleetnas.fleet_protocol.messages import Measurement, TaskKey
from fleetnas.fleet_protocol.orders import MeasureTask

PLAN = CampaignPlan(targets="auto:2", budget=14, initial_design=6, wait_for=3, grace_s=5)
#: Events that the store does not keep: joining before the first look, a search's choice, the estimate of the time. Nor
#: does it keep a miss that is not final.
NOT_STORED = {"campaign_started", "device_joined", "target_resolved", "progress", "regime_changed", "campaign_finished"}


class Watched:
    """A simulated campaign of three boards, with a watcher of its broker and one of its store."""

    def __init__(self) -> None:
        self.fleet = Simulation(PLAN)
        for number, name in enumerate(("pi0", "pi1", "nano")):
            self.fleet.add(name, seed=number)
        self.fleet.begin()
        self.publisher = Publisher(self.fleet.transport, TOPICS, "run-1", self.fleet.clock)
        transport = self.fleet.broker.transport("watcher")
        transport.start()
        self.broker = BrokerFeed(transport, TOPICS, "run-1", Ticks())
        self.store = StoreFeed(
            self.fleet.store, self.fleet.run_id, wait=lambda _: None, wall_clock=self.fleet.clock.unix
        )
        self.told = 0
        self.events: dict[str, list[Event]] = {"broker": [], "store": []}

    def publish(self) -> None:
        for event in self.fleet.events[self.told :]:
            self.publisher.event(event)
        self.told = len(self.fleet.events)
        self.publisher.update(self.fleet.campaign.snapshot(self.fleet.clock.unix()))

    def run(self, outcomes: int) -> None:
        while not self.fleet.campaign.finished and len(self.fleet.store.outcomes("run-1")) < outcomes:
            self.fleet.step()
            self.publish()
        for _ in range(12):  # every page and the summary have their turn
            self.fleet.clock.now_s += 0.5
            self.publish()

    def look(self) -> tuple[Snapshot, Snapshot]:
        """Return the snapshots of the broker and of the store, with everything that was published taken."""
        update = self.broker.poll(1.0)
        self.events["broker"] += update.events
        while update.end is None and (more := self.broker.poll(1.0)).events:
            update = more
            self.events["broker"] += more.events
        stored = self.store.poll(1.0)
        self.events["store"] += stored.events
        assert update.snapshot is not None
        assert stored.snapshot is not None
        return update.snapshot, stored.snapshot


class Ticks:
    """A clock that goes on by itself, so that waits in memory end."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def __call__(self) -> float:
        self._now_s += 0.01
        return self._now_s


@pytest.fixture
def watched() -> Iterator[Watched]:
    stage = Watched()
    yield stage
    stage.fleet.store.close()


def comparable(device: DeviceSnapshot) -> DeviceSnapshot:
    """Leave out what the store learns later: the task at this moment, and a winner that is not verified yet.

    The predictor's error is stored with the next outcomes.
    """
    targets = tuple(target for target in device.targets if target.met is not None)
    return replace(
        device,
        state="idle",
        state_detail="",
        progress=None,
        quarantined=0,
        targets=targets,
        predictor_error=device.predictor_error if device.ended else None,
    )


@pytest.mark.parametrize("outcomes", [6, 15, 30])
def test_every_figure_is_the_same_while_it_runs(watched: Watched, outcomes: int) -> None:
    watched.run(outcomes)
    broker, store = watched.look()
    assert [comparable(device) for device in store.devices] == [comparable(device) for device in broker.devices]
    assert (store.run_id, store.supernet, store.phase) == (broker.run_id, broker.supernet, broker.phase)
    assert all(device.state_detail for device in store.devices if not device.ended)


def test_targets_that_were_replaced_are_no_targets_any_more(watched: Watched) -> None:
    """The devices are slowed irregularly from the first re-measurement on, without a new lasting speed."""
    rng = np.random.default_rng(1)
    for agent in watched.fleet.agents:
        for device in agent.devices.values():
            device.measure = slowed_when_verified(device, rng)  # type: ignore[method-assign]
    outcomes, notes = 0, ""
    while "in place of" not in notes:
        outcomes += 1
        watched.run(outcomes)
        assert not watched.fleet.campaign.finished
        live = watched.fleet.campaign.snapshot(watched.fleet.clock.unix())
        notes = " ".join(device.targets_note for device in live.devices)
    watched.run(outcomes + 3)  # with the next outcomes it is stored
    broker, store = watched.look()
    replaced = [device for device in broker.devices if "in place of" in device.targets_note]
    assert replaced
    for device in replaced:
        stored = next(each for each in store.devices if each.device == device.device)
        assert [target.target_ms for target in stored.targets] == [target.target_ms for target in device.targets]
        assert stored.targets_note == device.targets_note


def test_what_an_interrupted_run_stored_of_a_target_that_is_none_any_more_does_not_count(watched: Watched) -> None:
    """The run's time was over when a target had been given up; it was resumed, and another took its place."""
    watched.run(10_000)
    watched.fleet.campaign.finish()
    store = watched.fleet.store
    before, totals = outcome_of(store, "run-1"), stored_totals(store, "run-1", 2)
    one = store.winners("run-1")[0]
    store.put_winners([replace(one, target_ms=0.9 * (one.target_ms or 0.0), status=TargetStatus.MISSED, reason="slow")])
    assert outcome_of(store, "run-1").devices == before.devices
    assert stored_totals(store, "run-1", 2) == totals
    stored = watched.store.poll(1.0).snapshot
    assert stored is not None
    assert target_totals(stored.devices) == totals


def slowed_when_verified(device: HiddenDevice, rng: np.random.Generator) -> Callable[..., Measurement]:
    def measure(task: MeasureTask, finished_unix_s: float) -> Measurement:
        slowdown = float(rng.uniform(1.3, 3.5)) if task.calibration is not None else 1.0
        undisturbed_ms = device.latency_ms(task.architecture)
        return measurement(
            slowdown * undisturbed_ms,
            file_sha256(task.architecture, task.calibration),
            finished_unix_s,
            quality="slowed" if slowdown > 1.1 else "ok",
            undisturbed_ms=undisturbed_ms,
        )

    return measure


@pytest.mark.parametrize("outcomes", [9, 20])
def test_progress_and_time_left_are_known_from_both(watched: Watched, outcomes: int) -> None:
    for number in range(1, outcomes + 1):
        watched.run(number)
    broker, store = watched.look()
    assert broker.progress is not None
    assert store.progress is not None
    assert store.progress.done == pytest.approx(broker.progress.done, abs=0.15)
    assert store.progress.left_s == pytest.approx(broker.progress.left_s, rel=0.5)
    assert store.progress.least_left_s <= store.progress.left_s <= store.progress.most_left_s


def test_both_end_with_the_same_screen_and_the_same_events(watched: Watched) -> None:
    watched.run(10)
    watched.look()
    watched.run(10_000)
    watched.fleet.campaign.finish()
    watched.publish()
    watched.publisher.close()
    broker, store = watched.look()
    assert [comparable(device) for device in store.devices] == [comparable(device) for device in broker.devices]
    assert [device.state for device in store.devices] == [device.state for device in broker.devices] == ["done"] * 3
    of = {name: {_named(event) for event in events} - {()} for name, events in watched.events.items()}
    assert of["store"] == of["broker"]
    same = {"phase": "complete", "started_s": broker.started_s, "now_s": broker.now_s, "log": ()}
    frames = [
        ["".join(segment.text for segment in strip) for strip in frame_strips(replace(each, **same), 120, 40)]
        for each in (broker, store)
    ]
    assert frames[0] == frames[1]


def _named(event: Event) -> tuple[object, ...]:
    """Return what identifies an event, without its time; empty for one that is not stored."""
    if event.event in NOT_STORED or getattr(event, "final", True) is False:
        return ()
    fields = event.model_dump(mode="json", exclude={"at_s", "architecture"})
    return tuple(sorted((key, str(value)) for key, value in fields.items()))


def test_a_target_that_was_chosen_anew_is_no_target_any_more() -> None:
    watched = Watched()
    watched.run(outcomes=10_000)
    before = watched.look()[1]
    store = watched.fleet.store
    found = next(each for each in store.outcomes("run-1") if each.task.purpose == "verification")
    assert found.task.target_ms is not None
    earlier = replace(found.task, task_id="run-1.900", target_ms=0.5 * found.task.target_ms)
    store.put_tasks([earlier])
    store.add_outcome(TaskKey(task_id=earlier.task_id, attempt=1), found.outcome, found.stored_unix_s)
    after = StoreFeed(store, "run-1", wait=lambda _: None, wall_clock=watched.fleet.clock.unix).poll(1.0).snapshot
    assert after is not None
    assert [each.targets for each in after.devices] == [each.targets for each in before.devices]
    assert target_totals(after.devices) == target_totals(before.devices)
