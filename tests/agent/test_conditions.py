"""What the agent makes of a device that is slow, warm or throttled, and of the condition a task asks for."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from rigs.agent_rig import LEVEL_MS, REFERENCE, AgentProcess, Rig, measured, task

from fleetnas.agent.measuring.messages import FailedReply, MeasureOrder, PhaseReply, ReferenceOrder, SlowReply
from fleetnas.agent.service.drift_monitor import COOLS_DOWN_S
from fleetnas.agent.service.speed_tracker import STEADY_APART_S, STEADY_COUNT
from fleetnas.agent.service.task_runner import LOOK_AGAIN_S
from fleetnas.fleet_protocol.messages import AgentState, Conditions, Failed, Measurement, Result
from fleetnas.fleet_protocol.orders import MeasureTask


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.fixture
def agent(rig: Rig) -> AgentProcess:
    agent = rig.agent()
    rig.run(agent)
    return agent


def submit(rig: Rig, agent: AgentProcess, number: int, seconds: float = 3.0, **fields: object) -> None:
    rig.coordinator.send("pi", "task", MeasureTask.model_validate(task(number, **fields)))
    rig.run(agent, seconds=seconds)


def measurements(rig: Rig) -> list[Measurement]:
    """One per task, however often its result was sent."""
    updates = [update for update in rig.coordinator.updates("result") if isinstance(update, Result)]
    return [update.measurement for update in {update.task: update for update in updates}.values()]


def asked(rig: Rig) -> list[ReferenceOrder]:
    """How each order wanted its references."""
    return [order.references for order in rig.measurer.orders if isinstance(order, MeasureOrder) and order.references]


def phases(rig: Rig) -> list[str]:
    return [update.phase for update in rig.coordinator.updates("progress")]


def test_a_slowed_measurement_is_reported_at_once_with_both_latencies(rig: Rig, agent: AgentProcess) -> None:
    rig.measurer.script.append(measured(6.0, slowdown=1.5))
    submit(rig, agent, 1)
    (found,) = measurements(rig)
    assert (found.quality, found.median_ms, found.undisturbed_ms) == ("slowed", 6.0, 4.0)
    assert found.slowdown == pytest.approx(1.5)
    assert (found.reference, found.reference_ms, found.condition) == (REFERENCE, LEVEL_MS, "as-is")
    assert rig.measurer.subnets == 1


def test_a_measurement_whose_turns_tell_nothing_is_only_an_upper_bound(rig: Rig, agent: AgentProcess) -> None:
    censored = measured(6.0, slowdown=1.5)
    assert censored.paired is not None
    nothing = censored.paired.model_copy(update={"undisturbed_ms": None, "basis": "none"})
    rig.measurer.script.append(censored.model_copy(update={"paired": nothing}))
    submit(rig, agent, 1)
    (found,) = measurements(rig)
    assert (found.quality, found.median_ms, found.undisturbed_ms, found.slowdown) == ("slowed", 6.0, None, None)


def test_a_device_that_stays_slow_goes_on_in_a_new_regime_and_says_so(
    rig: Rig, agent: AgentProcess, caplog: pytest.LogCaptureFixture
) -> None:
    rig.measurer.script.extend([measured(), *[measured(6.0, slowdown=1.5)] * (STEADY_COUNT + 1)])
    with caplog.at_level(logging.WARNING, "fleetnas.agent"):
        for number in range(STEADY_COUNT + 2):
            submit(rig, agent, number, seconds=2 * STEADY_APART_S)
    assert [found.quality for found in measurements(rig)] == ["ok", *["slowed"] * (STEADY_COUNT - 1), "ok", "ok"]
    assert [found.undisturbed_ms for found in measurements(rig)] == [4.0] * (STEADY_COUNT + 2)
    assert [order.normals.get(REFERENCE) for order in asked(rig)[-2:]] == [pytest.approx(1.0, abs=0.11), 1.5]
    assert any("a new regime" in line and "1.50 times" in line for line in caplog.messages)


def test_a_board_that_says_it_is_throttled_is_believed(rig: Rig, agent: AgentProcess) -> None:
    rig.measurer.script.append(measured(after=Conditions(throttled=True)))
    submit(rig, agent, 1)
    assert [found.quality for found in measurements(rig)] == ["slowed"]


def test_what_the_child_read_goes_into_its_next_order(rig: Rig, agent: AgentProcess) -> None:
    submit(rig, agent, 1)
    submit(rig, agent, 2)
    first, second = asked(rig)
    assert first.levels_ms == {}
    assert second.levels_ms == {REFERENCE: LEVEL_MS}
    submit(rig, agent, 3, condition="sustained")
    assert asked(rig)[-1].levels_ms == {}, "another condition has other levels"


def test_after_a_child_without_memory_the_next_loads_fewer_references(rig: Rig, agent: AgentProcess) -> None:
    rig.measurer.script.extend([FailedReply(reason="out_of_memory")] * 3)
    for number in range(4):
        submit(rig, agent, number)
    assert [order.at_most for order in asked(rig)] == [5, 2, 1, 1]
    assert len(measurements(rig)) == 1


# -- waiting -----------------------------------------------------------------------------------------------------


def test_a_slow_device_is_waited_for_while_the_deadline_stands_still(rig: Rig, agent: AgentProcess) -> None:
    rig.measurer.script.extend([SlowReply(slowdown=1.4, levels_ms={REFERENCE: 1.1})] * 5 + [measured()])
    submit(rig, agent, 1, seconds=6 * (LOOK_AGAIN_S + 1), wait_s=60, wait_above=1.2, deadline_s=5)
    assert [order.slow_above for order in asked(rig)] == [1.2] * 6
    assert asked(rig)[1].levels_ms == {REFERENCE: 1.1}
    assert [found.quality for found in measurements(rig)] == ["ok"]
    assert phases(rig).count("building") <= 1, "looking again is no work to tell"
    assert "cooling" in phases(rig)


def test_a_device_that_stays_slow_is_measured_when_the_wait_is_over(rig: Rig, agent: AgentProcess) -> None:
    rig.measurer.script.extend([SlowReply(slowdown=1.4)] * 4 + [measured(6.0, slowdown=1.5)])
    submit(rig, agent, 1, seconds=20, wait_s=4 * LOOK_AGAIN_S, wait_above=1.2)
    orders = asked(rig)
    assert orders[-1].slow_above is None
    assert {order.slow_above for order in orders[:-1]} == {1.2}
    assert [found.quality for found in measurements(rig)] == ["slowed"]


def test_nothing_is_waited_for_unless_asked(rig: Rig, agent: AgentProcess) -> None:
    submit(rig, agent, 1, wait_above=1.2)
    submit(rig, agent, 2, wait_s=60)
    assert [order.slow_above for order in asked(rig)] == [None, None]


def test_a_child_that_hangs_while_it_looks_is_found_out(rig: Rig, agent: AgentProcess) -> None:
    rig.measurer.script.extend([SlowReply(slowdown=1.4), None])
    submit(rig, agent, 1, seconds=20, wait_s=100, wait_above=1.2, deadline_s=10)
    (failed,) = rig.coordinator.updates("failed")
    assert isinstance(failed, Failed)
    assert failed.reason == "timeout"


# -- conditions --------------------------------------------------------------------------------------------------


def test_sustained_warms_up_before_the_first_measurement_and_after_a_rest(rig: Rig, agent: AgentProcess) -> None:
    for number in (1, 2):
        submit(rig, agent, number, condition="sustained")
    rig.run(agent, seconds=COOLS_DOWN_S)
    submit(rig, agent, 3, condition="sustained")
    submit(rig, agent, 4, condition="sustained", run_id="another-run")
    submit(rig, agent, 5)
    assert [order.warm_up for order in asked(rig)] == [True, False, True, True, False]
    assert [order.keep_levels for order in asked(rig)] == [True] * 4 + [False]
    assert [found.condition for found in measurements(rig)] == ["sustained"] * 4 + ["as-is"]


def test_a_warm_up_is_told_and_costs_nothing_of_the_deadline(rig: Rig, agent: AgentProcess) -> None:
    rig.measurer.script.append(None)
    submit(rig, agent, 1, condition="sustained", deadline_s=10)
    for window in range(1, 9):
        rig.measurer.say(PhaseReply(phase="waiting", fraction=window / 100))
        rig.run(agent, seconds=5)
    state = rig.coordinator.on("state")[-1]
    assert isinstance(state, AgentState)
    assert "warms up" in state.detail
    told = [update.fraction for update in rig.coordinator.updates("progress") if update.phase == "waiting"]
    assert max(told) == 0.08
    rig.measurer.say(PhaseReply(phase="building"))
    rig.measurer.say(PhaseReply(phase="measuring"))
    rig.measurer.say(measured())
    rig.run(agent)
    assert [found.condition for found in measurements(rig)] == ["sustained"]


def test_a_warm_up_that_hangs_ends_with_the_deadline(rig: Rig, agent: AgentProcess) -> None:
    rig.measurer.script.append(None)
    submit(rig, agent, 1, condition="sustained", deadline_s=10)
    rig.measurer.say(PhaseReply(phase="waiting", fraction=0.01))
    rig.run(agent, seconds=15)
    (failed,) = rig.coordinator.updates("failed")
    assert isinstance(failed, Failed)
    assert failed.reason == "timeout"


def test_cool_waits_for_a_device_near_its_coolest(rig: Rig, agent: AgentProcess) -> None:
    rig.measurer.script.append(measured(before=Conditions(temperature_c=41.0), after=Conditions(temperature_c=52.0)))
    submit(rig, agent, 1, condition="cool", wait_s=60)
    rig.measurer.script.extend([SlowReply(temperature_c=51.0), measured(before=Conditions(temperature_c=45.0))])
    submit(rig, agent, 2, seconds=8, condition="cool", wait_s=60)
    first, *later = asked(rig)
    assert (first.slow_above, first.warm_above_c) == (1.05, None)
    assert [(order.slow_above, order.warm_above_c) for order in later] == [(1.05, 46.0)] * 2
    assert [found.condition for found in measurements(rig)] == ["cool", "cool"]
