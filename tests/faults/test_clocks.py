"""Wall clocks that jump: nothing is decided by them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from rigs.adverse_fleet import AdverseFleet, assert_counted_once, drive, fleet_of, targets_met
from rigs.fault_fleet import assert_nothing_lost_nothing_twice, fault_fleet

HOUR_S = 3600.0


def history(fleet: AdverseFleet) -> list[object]:
    """What was stored, in its order, without when."""
    return [
        (record.task.task_id, record.key.attempt, record.task.architecture, record.outcome.median_ms)  # type: ignore[union-attr]
        for record in fleet.store.outcomes("run-1")
    ]


def run(folder: Path, jumps_s: list[float], *, kills: bool) -> AdverseFleet:
    """A campaign in which the clock jumps; with `kills` while coordinator and an agent are not there."""
    fleet = fleet_of(folder, random.Random(0))
    for number, jump_s in enumerate(jumps_s):
        before = len(fleet.store.outcomes("run-1"))
        while len(fleet.store.outcomes("run-1")) < before + 6:
            fleet.step()
        fleet.clock.ahead_s += jump_s
        if kills:
            fleet.vanish()
            fleet.agents[number].restart()
            fleet.begin(resume=True)
    drive(fleet)
    assert fleet.campaign.finish() == "complete"
    return fleet


@pytest.mark.parametrize("kills", [False, True])
@pytest.mark.parametrize("jumps_s", [[-HOUR_S, HOUR_S, -HOUR_S], [HOUR_S, -2 * HOUR_S, HOUR_S]])
def test_a_campaign_does_the_same_whatever_the_wall_clock_says(
    tmp_path: Path, jumps_s: list[float], kills: bool
) -> None:
    steady = run(tmp_path / "steady", [0.0, 0.0, 0.0], kills=kills)
    jumping = run(tmp_path / "jumping", jumps_s, kills=kills)
    assert history(jumping) == history(steady)
    assert jumping.clock.now_s == steady.clock.now_s
    assert all(targets_met(jumping))
    assert_counted_once(jumping)
    for agent in jumping.agents:
        assert agent.sessions == sorted(set(agent.sessions))  # also where the clock went back


def test_processes_that_come_back_an_hour_earlier(tmp_path: Path) -> None:
    with fault_fleet(tmp_path) as fleet:
        fleet.start_agent("alpha")
        fleet.start_search("--targets", "auto:2", "--budget", "10", "--deadline", "60")
        fleet.until(lambda: len(fleet.outbox("alpha")) >= 3)
        fleet.kill("coordinator")
        fleet.kill("alpha")
        fleet.start_agent("alpha", clock_ahead_s=-HOUR_S)
        fleet.resume_search(clock_ahead_s=-HOUR_S)
        assert fleet.wait_search() == 0
        assert_nothing_lost_nothing_twice(fleet)
        # Stored an hour "earlier", and still after what was there.
        times = [record.stored_unix_s for record in fleet.stored()]
        assert times != sorted(times)
        assert fleet.results()["status"] == "complete"
