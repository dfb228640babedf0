"""Who is there: wills, silence, restarts and rivals."""

from __future__ import annotations

from typing import Any

import pytest

from fleetnas.coordinator.fleet.registry import ANSWER_S, LOST_AFTER_S, FleetRegistry
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.messages import AgentInfo, AgentState, Heartbeat, RuntimeSetting


def state(what: str, session: int = 1, instance: str = "a", detail: str = "") -> AgentState:
    return AgentState.model_validate({"state": what, "session": session, "instance": instance, "detail": detail})


def info(session: int = 1) -> AgentInfo:
    profile = DeviceProfile(model="board", machine="none", cores=4)
    return AgentInfo(agent="pi", session=session, profile=profile, settings=(RuntimeSetting(),), versions={})


@pytest.fixture
def registry() -> FleetRegistry:
    registry = FleetRegistry()
    registry.on_info("pi", info(), 0.0)
    registry.on_state("pi", state("ready"), 0.0)
    return registry


def usable(registry: FleetRegistry) -> bool:
    return [entry.name for entry in registry.usable()] == ["pi"]


def test_an_agent_is_usable_once_it_said_what_it_is_and_that_it_is_ready() -> None:
    registry = FleetRegistry()
    registry.on_state("pi", state("ready"), 0.0)
    assert not usable(registry)
    assert "what it is" in registry.agents["pi"].idle_reason()
    registry.on_info("pi", info(), 0.0)
    assert usable(registry)


@pytest.mark.parametrize(
    ("will", "lost"),
    [
        (state("lost"), True),
        (state("lost", session=0), False),
        (state("lost", session=0, instance="before"), False),
        (state("lost", session=9, instance="gave-way"), False),
    ],
)
def test_only_the_will_of_the_process_at_work_counts(registry: FleetRegistry, will: AgentState, lost: bool) -> None:
    registry.on_state("pi", will, 1.0)
    assert usable(registry) is not lost


def test_silence_beyond_three_heartbeats_is_a_loss_and_a_heartbeat_ends_it(registry: FleetRegistry) -> None:
    registry.on_heartbeat("pi", Heartbeat(session=1, uptime_s=1), 30.0)
    assert registry.on_tick(30.0 + LOST_AFTER_S) == []
    (lost,) = registry.on_tick(30.1 + LOST_AFTER_S)
    assert lost.lost_since_s == 30.1 + LOST_AFTER_S
    assert not usable(registry)
    registry.on_heartbeat("pi", Heartbeat(session=1, uptime_s=1), 200.0)
    assert usable(registry)


def test_what_is_only_retained_does_not_count_as_a_sign_of_life() -> None:
    registry = FleetRegistry()
    registry.on_info("pi", info(), 0.0, retained=True)
    registry.on_state("pi", state("ready"), 0.0, retained=True)
    assert usable(registry)
    assert not registry.agents["pi"].present
    assert registry.agents["pi"].last_seen_s is None
    assert registry.on_tick(ANSWER_S) == []
    (lost,) = registry.on_tick(ANSWER_S + 0.1)
    assert "has not answered" in lost.idle_reason()


def test_one_that_answers_late_is_there() -> None:
    registry = FleetRegistry()
    registry.on_info("pi", info(), 0.0, retained=True)
    registry.on_state("pi", state("ready"), 0.0, retained=True)
    registry.on_tick(ANSWER_S + 1)
    assert registry.on_message("pi", ANSWER_S + 2).present
    assert registry.on_tick(LOST_AFTER_S) == []


def test_a_restart_is_no_rivalry(registry: FleetRegistry) -> None:
    for session in range(2, 20):
        registry.on_state("pi", state("lost", session - 1, f"p{session - 1}"), float(session))
        registry.on_state("pi", state("ready", session, f"p{session}"), float(session))
        registry.on_info("pi", info(session), float(session))
    assert usable(registry)


@pytest.mark.parametrize("announces", [("state", "info"), ("info", "state")])
@pytest.mark.parametrize("before", ["ready", "lost", "leaving"])
def test_a_device_set_up_anew_is_what_it_says_now(
    registry: FleetRegistry, announces: tuple[str, ...], before: str
) -> None:
    """Its clock may be behind, so that its sessions begin below those that it had before."""
    registry.on_info("pi", info(session=1000), 1.0)
    registry.on_state("pi", state(before, 1000), 1.0)
    anew = info(session=7).model_copy(update={"settings": (RuntimeSetting(threads=4),)})
    for what in announces:
        if what == "info":
            registry.on_info("pi", anew, 2.0)
        else:
            registry.on_state("pi", state("ready", 7, "anew"), 2.0)
    assert usable(registry)
    assert registry.agents["pi"].info == anew
    registry.on_info("pi", info(session=1000), 3.0)  # late, of the process that is gone
    assert registry.agents["pi"].info == anew


def test_a_newcomer_that_gives_way_leaves_the_name_to_the_one_before(registry: FleetRegistry) -> None:
    registry.on_state("pi", state("ready", 2, "b"), 1.0)
    registry.on_state("pi", state("ready", 1, "a"), 2.0)
    registry.on_state("pi", state("lost", 2, "b"), 3.0)
    assert usable(registry)
    assert registry.agents["pi"].instance == "a"


def test_two_that_both_stay_are_told_apart_and_neither_is_used(registry: FleetRegistry) -> None:
    for turn in range(8):
        registry.on_state("pi", state("ready", 1 + turn % 2, "ab"[turn % 2]), float(turn))
    assert not usable(registry)
    assert "--name" in registry.agents["pi"].idle_reason()


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda r: None, "no search"),
        (lambda r: r.on_state("pi", state("busy"), 1.0), "working"),
        (lambda r: r.on_state("pi", state("leaving"), 1.0), "stopped by its user; start fleetnas-agent"),
        (lambda r: r.on_state("pi", state("leaving", detail="was updated"), 1.0), "was updated"),
        (lambda r: r.on_state("pi", state("lost"), 1.0), "last will"),
        (lambda r: r.on_tick(1000.0), "no sign of life"),
        (lambda r: r.on_heartbeat("pi", Heartbeat(session=1, uptime_s=1, outbox=3), 1.0), "3 results"),
    ],
)
def test_the_reason_why_it_is_idle_is_said(registry: FleetRegistry, step: Any, words: str) -> None:
    step(registry)
    assert words in registry.agents["pi"].idle_reason()
