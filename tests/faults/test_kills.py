"""One campaign, whose coordinator, broker and agents are killed again and again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from rigs.fault_fleet import FaultFleet, Observer, assert_nothing_lost_nothing_twice, fault_fleet

AGENTS = tuple(f"pi{number}" for number in range(5))
KILLS = 50


def begin(fleet: FaultFleet) -> None:
    for number, name in enumerate(AGENTS):
        start_agent(fleet, name, number)
    fleet.start_search("--targets", "auto:3", "--budget", "20", "--wait-for", str(len(AGENTS)), "--deadline", "60")


def start_agent(fleet: FaultFleet, name: str, number: int) -> None:
    fleet.start_agent(name, factor=1.0 + 0.5 * number)


def winners(fleet: FaultFleet) -> dict[tuple[str, float], tuple[float, object]]:
    """Verified latency and subnet by device and target; a subnet's latency is the same in every run."""
    return {
        (device["device"], target["target_ms"]): (target["verified_ms"], target["architecture"])
        for device in fleet.results()["fleet"]
        for target in device["targets"]
        if target["met"]
    }


def disturb(fleet: FaultFleet, kills: int, chance: random.Random) -> list[str]:
    """Kill somebody after every few messages about tasks and start it again at once; returns who was killed."""
    observer = Observer(fleet.mosquitto.address)
    killed: list[str] = []
    wait = chance.randint(10, 15)

    def hears() -> object:
        assert fleet.processes["coordinator"].poll() is None, f"it ended after {len(killed)} kills: {killed}"
        return observer.next()

    while len(killed) < kills:
        fleet.until(hears)
        wait -= 1
        while wait > 0 and observer.next():  # never behind the campaign, which would end meanwhile
            wait -= 1
        if wait:
            continue
        kind = chance.choice(("coordinator", "broker", "agent"))
        if kind == "broker":
            fleet.mosquitto.kill()
            fleet.mosquitto.start()
            observer.connect()
        elif kind == "coordinator":
            fleet.kill("coordinator")
            fleet.resume_search()
        else:
            number = chance.randrange(len(AGENTS))
            kind = AGENTS[number]
            fleet.kill(kind)
            start_agent(fleet, kind, number)
        killed.append(kind)
        wait = chance.randint(1, 8)
    observer.close()
    return killed


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 6))])
def test_whoever_is_killed_the_campaign_completes_with_the_same_result(tmp_path: Path, seed: int) -> None:
    with fault_fleet(tmp_path / "undisturbed") as calm:
        begin(calm)
        assert calm.wait_search() == 0
        expected = winners(calm)
    with fault_fleet(tmp_path / "disturbed") as fleet:
        begin(fleet)
        killed = disturb(fleet, KILLS, random.Random(seed))
        assert fleet.wait_search() == 0
        assert fleet.results()["status"] == "complete"
        assert_nothing_lost_nothing_twice(fleet)
        found = winners(fleet)
    assert {"coordinator", "broker"} < set(killed)
    assert len(found) == 3 * len(AGENTS)
    assert found == expected
