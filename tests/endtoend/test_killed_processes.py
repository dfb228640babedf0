"""Kill any process at any time: nothing is lost, nothing counts twice."""

from __future__ import annotations

from collections import Counter

from rigs import waiting
from rigs.process_fleet import Fleet, events, kill

from fleetnas.coordinator.tuning.subnet_observations import UNSURE_NOISE, noise_within
from fleetnas.fleet_protocol.messages import Measurement


def test_an_agent_is_killed_and_the_others_finish(fleet: Fleet) -> None:
    agents = {name: fleet.agent(name) for name in ("alpha", "beta")}
    search = fleet.new_search("--budget", "10", "--wait-for", "2", "--grace", "1")
    seen: Counter[str] = Counter()
    happenings = []
    for event in events(search):
        happenings.append(event)
        if event["event"] == "measurement":
            seen[event["device"]] += 1
            if event["device"] == "beta" and seen["beta"] == 2:
                kill(agents["beta"])
    assert waiting.ended(search) == 1
    assert [event["device"] for event in happenings if event["event"] == "device_lost"] == ["beta"]
    results = fleet.results()
    fleet_of = {device["device"]: device for device in results["fleet"]}
    assert results["status"] == "partial"
    assert fleet_of["beta"]["status"] == "lost"
    assert fleet_of["alpha"]["status"] == "finished"
    assert [target["met"] for target in fleet_of["alpha"]["targets"]] == [True, True]
    for target in fleet_of["alpha"]["targets"]:
        assert target["verified_ms"] <= target["target_ms"]
        assert (fleet.out / target["model"]).is_file()


def test_the_coordinator_is_killed_and_resuming_measures_nothing_twice(fleet: Fleet) -> None:
    fleet.agent("alpha")
    first = fleet.new_search("--budget", "12")
    count = 0
    for event in events(first):
        count += event["event"] == "measurement"
        if count == 4:
            kill(first)
            break
    before = fleet.stored()
    assert len(before) >= 4
    second = fleet.resumed_search()
    happenings = list(events(second))
    assert waiting.ended(second) == 0
    assert next(event for event in happenings if event["event"] == "campaign_started")["resumed"]
    after = fleet.stored()
    assert before.items() <= after.items()
    # What was stored is not asked for again: not as a task, and not as a subnet unless its measurement said little.
    assert len({key.task_id for key in after}) == len(after)
    steady = {
        found.task.architecture
        for found in before.values()
        if isinstance(found.outcome, Measurement) and noise_within(found.outcome) <= UNSURE_NOISE
    }
    again = {
        found.task.architecture
        for key, found in after.items()
        if key not in before and found.task.purpose != "verification"
    }
    assert not steady & again
    (device,) = fleet.results()["fleet"]
    assert [target["met"] for target in device["targets"]] == [True, True]
