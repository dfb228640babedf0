"""What a store tells of the time of searches, and estimates of the next one from it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest
from rigs.simulated_fleet import Simulation
from rigs.timed_fleet import add_boards, timed_fleet

from fleetnas.coordinator.app.dry_run import expected_counts
from fleetnas.coordinator.app.search_history import SearchHistory
from fleetnas.coordinator.records.workload import longest, seconds_by_protocol, time_of_device
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting

LABEL = RuntimeSetting().label
BOARDS = ("board-0", "board-1")


def duration(fleet: Simulation) -> float:
    """Drive a campaign to its end; returns its seconds."""
    fleet.begin()
    began_s = fleet.clock.now_s
    while not fleet.campaign.finished:
        fleet.step(0.25)
        assert fleet.clock.now_s - began_s < 1000.0
    fleet.campaign.finish()
    return fleet.clock.now_s - began_s


def estimate(history: SearchHistory, fleet: Simulation, devices: Collection[str] = BOARDS) -> float:
    counts = expected_counts(fleet.plan, history)
    return longest(time_of_device([(counts, history.known(device, LABEL).seconds)]) for device in devices).expected


@pytest.fixture(scope="module")
def stores() -> list[tuple[Simulation, float]]:
    """Searches of five pairs of boards, and their seconds."""
    found = []
    for seed in range(5):
        fleet = timed_fleet(seed, store=MeasurementStore.open("sqlite://"))
        found.append((fleet, duration(fleet)))
    return found


def test_seconds_come_from_the_gaps_between_outcomes(stores: list[tuple[Simulation, float]]) -> None:
    for fleet, _ in stores:
        history = SearchHistory.of(fleet.store, fleet.plan, BOARDS)
        first, second = (history.known(board, LABEL) for board in BOARDS)
        assert min(first.measurements, second.measurements) >= 10
        assert first.seconds.deviation < seconds_by_protocol(fleet.plan.protocol, "auto").deviation
        moments = [each for each in fleet.store.history.moments("run-1") if each.device == "board-0"]
        took_s = moments[-1].stored_unix_s - moments[0].stored_unix_s
        assert sum(map(sum, history.gaps["board-0", LABEL])) == pytest.approx(took_s, rel=0.15)


def test_the_next_search_of_known_boards_takes_about_as_long_as_estimated(
    stores: list[tuple[Simulation, float]],
) -> None:
    errors = []
    for seed, (fleet, _) in enumerate(stores):
        history = SearchHistory.of(fleet.store, fleet.plan, BOARDS)
        again = Simulation(fleet.plan, checked=False, at_once=True)
        add_boards(again, seed, draw=1)
        errors.append(estimate(history, again) / duration(again) - 1.0)
    assert float(np.abs(errors).max()) < 0.4, errors


def test_boards_that_are_not_known_are_estimated_by_the_protocol(stores: list[tuple[Simulation, float]]) -> None:
    fleet, _ = stores[0]
    history = SearchHistory.of(fleet.store, fleet.plan, ["board-9"])
    assert history.known("board-9", LABEL).measurements == 0
    assert history.known("board-9", LABEL).seconds == seconds_by_protocol(fleet.plan.protocol, "auto")
    assert history.habits.explored == type(history.habits)().explored


def test_another_protocol_scales_what_is_known(stores: list[tuple[Simulation, float]]) -> None:
    fleet, _ = stores[0]
    known = SearchHistory.of(fleet.store, fleet.plan, BOARDS).known("board-0", LABEL).seconds
    longer = fleet.plan.model_copy(update={"protocol": MeasurementProtocol(min_s=4.0, min_runs=200)})
    scaled = SearchHistory.of(fleet.store, longer, BOARDS).known("board-0", LABEL).seconds
    assert scaled.first > known.first
    assert scaled.verification > 1.5 * known.verification
