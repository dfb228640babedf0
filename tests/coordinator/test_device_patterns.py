"""Patterns that name agents, and the answer to one that names nobody."""

from __future__ import annotations

import pytest
from rigs.equal_boards import PooledSimulation
from rigs.simulated_fleet import Simulation

from fleetnas.coordinator.records.device_patterns import (
    absence,
    is_mistyped,
    matches,
    matches_any,
    nearest,
    parse_patterns,
)
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.fleet_protocol.errors import UsageError

AGENTS = {"pi4-kitchen": ("camera", "pi4"), "pi4-hall": ("pi4",), "jetson": ("class:orin",)}
PLAN = CampaignPlan(targets="auto:2", budget=6, initial_design=4, deadline_s=60, pool=True)


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("jetson", {"jetson"}),
        ("pi4-*", {"pi4-kitchen", "pi4-hall"}),
        ("pi?-hall", {"pi4-hall"}),
        ("*", set(AGENTS)),
        ("tag:camera", {"pi4-kitchen"}),
        ("tag:pi*", {"pi4-kitchen", "pi4-hall"}),
        ("tag:class:orin", {"jetson"}),
        ("camera", set()),
        ("JETSON", set()),
    ],
)
def test_a_pattern_names_agents(pattern: str, named: set[str]) -> None:
    assert {name for name, tags in AGENTS.items() if matches(pattern, name, tags)} == named


def test_several_patterns_name_all_that_one_of_them_names() -> None:
    patterns = parse_patterns(" pi4-hall, tag:camera,pi4-hall ", "--devices")
    assert patterns == ("pi4-hall", "tag:camera")
    assert [name for name, tags in AGENTS.items() if matches_any(patterns, name, tags)] == ["pi4-kitchen", "pi4-hall"]


@pytest.mark.parametrize(
    ("text", "says"), [(",", "names nobody"), ("pi 4", "'pi 4'"), ("pi4,[x]", r"\[x\]"), ("tag:", "tag:")]
)
def test_what_can_name_no_agent_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_patterns(text, "--devices")


@pytest.mark.parametrize(
    ("pattern", "near", "mistyped"),
    [
        ("pi4-kitchn", "pi4-kitchen", True),
        ("jetsno", "jetson", True),
        ("camera", "tag:camera", True),
        ("tag:camra", "tag:camera", True),
        ("nano-*", None, True),
        ("pi5-hall", "pi4-hall", False),
        ("quite-another", None, False),
    ],
)
def test_the_nearest_name_is_found(pattern: str, near: str | None, mistyped: bool) -> None:
    assert nearest(pattern, AGENTS) == near
    assert is_mistyped(pattern, AGENTS) is mistyped


def test_the_answer_names_what_is_there() -> None:
    said = absence(["jetsno"], AGENTS)
    assert "jetsno names no agent of this fleet (did you mean jetson?)" in said
    assert "there are jetson, pi4-hall, pi4-kitchen with the tags camera, class:orin, pi4" in said
    many = {f"pi{place:02}": () for place in range(12)}
    assert "pi07 and 4 more" in absence(["x*"], many)


def fleet_of(*devices: str, **changes: object) -> Simulation:
    fleet = PooledSimulation(CampaignPlan.model_validate({**PLAN.model_dump(), "devices": devices, **changes}))
    fleet.board("pi4-kitchen", tags=("camera",))
    fleet.board("pi4-hall")
    fleet.board("jetson", tags=("camera", "class:none"))
    return fleet


@pytest.mark.parametrize(
    ("devices", "part"),
    [
        (("pi4-*",), {"pi4-kitchen", "pi4-hall"}),
        (("tag:camera",), {"pi4-kitchen", "jetson"}),
        (("jetson", "*-hall"), {"jetson", "pi4-hall"}),
    ],
)
def test_agents_that_patterns_name_take_part(devices: tuple[str, ...], part: set[str]) -> None:
    fleet = fleet_of(*devices)
    fleet.begin()
    fleet.run()
    assert {run.device for run in fleet.campaign.setting_runs.values()} == part


@pytest.mark.parametrize("devices", [("pi4-kitchn",), ("tag:camra",), ("jetson", "nano-*")])
def test_a_mistyped_pattern_is_answered_at_once(devices: tuple[str, ...]) -> None:
    fleet = fleet_of(*devices)
    fleet.begin()
    began_s = fleet.clock.now_s
    with pytest.raises(UsageError, match=r"names no agent of this fleet.*there are jetson, pi4-hall, pi4-kitchen"):
        fleet.run()
    assert fleet.clock.now_s - began_s < 5


def test_a_board_that_is_not_started_yet_is_waited_for() -> None:
    fleet = fleet_of("pi5-hall")
    fleet.begin()
    for _ in range(10):
        fleet.step()
    assert any("pi5-hall names no agent of this fleet" in line for line in fleet.campaign.log)
    fleet.add("pi5-hall")
    fleet.run()
    assert {run.device for run in fleet.campaign.setting_runs.values()} == {"pi5-hall"}


def test_with_agents_to_wait_for_a_pattern_may_name_nobody_yet() -> None:
    fleet = fleet_of("nano-*", wait_for=4)
    fleet.begin()
    for _ in range(10):
        fleet.step()
    for place in range(4):
        fleet.add(f"nano-{place}")
    fleet.run()
    assert {run.device for run in fleet.campaign.setting_runs.values()} == {f"nano-{place}" for place in range(4)}
