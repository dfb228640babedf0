"""A network between an agent and its broker that goes silent for longer than the keepalive, or loses messages."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from rigs.fault_fleet import assert_nothing_lost_nothing_twice, fault_fleet
from rigs.proxy import proxy

SEARCH = ("--targets", "auto:2", "--budget", "10", "--wait-for", "2", "--deadline", "60")
#: The broker gives a silent client one and a half times this.
KEEPALIVE_S = 2


def test_an_agent_behind_a_cut_measures_on_and_is_taken_back(tmp_path: Path) -> None:
    with fault_fleet(tmp_path) as fleet, proxy(fleet.mosquitto.port) as network:
        fleet.start_agent("near")
        fleet.start_agent("far", broker=network.address, keepalive_s=KEEPALIVE_S, factor=2.0)
        fleet.start_search(*SEARCH)
        fleet.until(lambda: len(fleet.outbox("far")) >= 3)
        network.cut()
        cut_off = {key for key, (_, acknowledged) in fleet.outbox("far").items() if acknowledged}
        fleet.until(lambda: "far: its connection broke" in fleet.said("coordinator"))
        fleet.until(lambda: "not connected to the broker" in fleet.said("far"))
        # Whatever it had in hand, it has measured; nobody has told it that anything was stored.
        waiting = fleet.until(lambda: {key for key, (_, known) in fleet.outbox("far").items() if not known})
        network.restore()
        assert fleet.wait_search() == 0
        assert_nothing_lost_nothing_twice(fleet)
        stored = [record.key for record in fleet.stored()]
        assert waiting <= set(stored)
        assert len(stored) > len(cut_off | waiting)
        assert [device["status"] for device in fleet.results()["fleet"]] == ["finished", "finished"]


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2))
def test_a_broker_that_loses_messages_and_says_that_they_arrived(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with fault_fleet(tmp_path) as fleet, proxy(fleet.mosquitto.port, lambda _: chance.random() < 0.04) as network:
        for name in ("near", "far"):
            fleet.start_agent(name, broker=network.address)
        fleet.start_search(*SEARCH[:-1], "2", "--join", "600", broker=network.address)
        assert fleet.wait_search() == 0
        assert_nothing_lost_nothing_twice(fleet)
        assert any(topic.endswith(("down/task", "up/task")) for topic in network.lost)
