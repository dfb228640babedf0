"""The agent's main loop against everything a network, a coordinator and a child can do to it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from rigs.agent_rig import BLOB, TOPICS, AgentProcess, Rig, measured, task
from rigs.device_trees import write_files

from fleetnas.agent.measuring.messages import FailedReply, PhaseReply, UnreadyReply
from fleetnas.agent.service.announcement import HEARTBEAT_EVERY_S
from fleetnas.agent.service.connection import RESEND_EVERY_S
from fleetnas.agent.service.service import KEEP_CHILD_S
from fleetnas.agent.service.task_queue import QUEUE_LIMIT
from fleetnas.agent.service.task_runner import LONG_WAIT_S, RESTING_S
from fleetnas.fleet_protocol.codec import encode
from fleetnas.fleet_protocol.errors import DuplicateAgentError, StoreError
from fleetnas.fleet_protocol.messages import (
    AgentState,
    BlobReference,
    BlobRequest,
    Failed,
    Heartbeat,
    Inventory,
    Result,
    RuntimeSetting,
    TaskKey,
)
from fleetnas.fleet_protocol.orders import Acknowledgement, CancelTask, CoordinatorState
from fleetnas.fleet_protocol.transports.memory import Delivery


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def key(number: int = 1, attempt: int = 1) -> TaskKey:
    return TaskKey(task_id=f"task-{number}", attempt=attempt)


def states(rig: Rig) -> list[str]:
    """What the coordinator hears on `up/state`, without the questions that count for nothing."""
    return [s.state for s in rig.coordinator.on("state") if isinstance(s, AgentState) and s.session > 0]


def unacknowledged(rig: Rig) -> tuple[TaskKey, ...]:
    last = rig.coordinator.on("inventory")[-1]
    assert isinstance(last, Inventory)
    return last.unacknowledged


def results(rig: Rig) -> list[Result]:
    return [update for update in rig.coordinator.updates("result") if isinstance(update, Result)]


# -- the way of one task ------------------------------------------------------------------------------------------


def test_a_task_is_accepted_fetched_measured_reported_acknowledged_and_forgotten(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.coordinator.send("pi", "task", task())
    rig.run(agent)
    (result,) = results(rig)
    assert result.task == key()
    assert result.measurement.median_ms == 4.0
    assert len(rig.coordinator.updates("accepted")) == 1
    phases = [update.phase for update in rig.coordinator.updates("progress")]
    assert phases == ["fetching", "building"]
    assert states(rig)[-2:] == ["ready", "busy"]
    rig.run(agent)
    assert states(rig)[-3:] == ["ready", "busy", "ready"], "with nothing to do for a while, it says so"
    order = rig.measurer.orders[0]
    assert Path(order.bundle_path).read_bytes() == BLOB
    assert not agent.service.idle
    rig.coordinator.acknowledge("pi", key())
    rig.run(agent)
    assert agent.service.idle
    assert agent.outbox.pending() == []
    rig.run(agent, seconds=3 * RESEND_EVERY_S)
    assert len(results(rig)) == 1


def test_the_bundle_is_fetched_once_for_all_tasks(rig: Rig) -> None:
    agent = rig.agent()
    for number in (1, 2, 3):
        rig.run(agent)
        rig.coordinator.send("pi", "task", task(number))
    rig.run(agent)
    assert len(results(rig)) == 3
    assert len(rig.coordinator.on("blob")) == 3  # 150 kB in chunks of 64 KiB


def test_nothing_is_fetched_for_the_next_task_while_a_subnet_is_timed(tmp_path: Path) -> None:
    other = np.random.default_rng(2).bytes(150_000)
    bundle = BlobReference(sha256=hashlib.sha256(other).hexdigest(), size=len(other))
    rig = Rig(tmp_path, blobs=(BLOB, other))
    agent = rig.agent()
    rig.run(agent)
    rig.measurer.script.append(None)
    rig.coordinator.send("pi", "task", task(1))
    rig.run(agent)
    assert rig.measurer.subnets == 1, "the child is at work and keeps silent"
    rig.coordinator.send("pi", "task", task(2, bundle=bundle))
    rig.run(agent, seconds=20)

    def fetched() -> set[str]:
        return {request.sha256 for request in rig.coordinator.on("blob") if isinstance(request, BlobRequest)}

    assert len(rig.coordinator.updates("accepted")) == 2
    assert fetched() == {task(1).bundle.sha256}
    assert not any(bundle.sha256 in str(path) for path in tmp_path.rglob("*"))
    rig.measurer.say(measured())
    rig.run(agent)
    assert fetched() == {task(1).bundle.sha256, bundle.sha256}
    assert len(results(rig)) == 2


def test_a_result_is_sent_again_until_it_is_acknowledged(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.coordinator.send("pi", "task", task())
    rig.run(agent, seconds=3 * RESEND_EVERY_S + 5)
    assert len(results(rig)) == 3  # at once, after 30 s and after 60 s more
    assert len({result.model_dump_json() for result in results(rig)}) == 1
    assert rig.measurer.subnets == 1


def test_a_repeated_task_is_measured_once_and_answered_every_time(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    for _ in range(3):
        rig.coordinator.send("pi", "task", task())
    rig.run(agent)
    rig.coordinator.send("pi", "task", task())
    rig.run(agent)
    rig.coordinator.acknowledge("pi", key())
    rig.run(agent)
    before = len(results(rig))
    rig.coordinator.send("pi", "task", task())
    rig.run(agent)
    assert rig.measurer.subnets == 1
    assert len(results(rig)) == before + 1


def test_another_attempt_is_measured_anew_and_replaces_one_that_still_waits(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.measurer.script.append(None)  # the first keeps the child busy
    rig.coordinator.send("pi", "task", task(1))
    rig.coordinator.send("pi", "task", task(2))
    rig.run(agent)
    rig.coordinator.send("pi", "task", task(2, attempt=2))
    rig.run(agent)
    rig.measurer.say(measured())
    rig.run(agent)
    assert [result.task for result in results(rig)] == [key(1), key(2, attempt=2)]


# -- connections ----------------------------------------------------------------------------------------------------


def test_a_result_made_while_the_broker_is_gone_arrives_after_the_reconnect(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.measurer.script.append(None)
    rig.coordinator.send("pi", "task", task())
    rig.run(agent)
    agent.cut()
    rig.run(agent)
    assert states(rig)[-1] == "lost"
    rig.measurer.say(measured(7.0))
    rig.run(agent)
    assert results(rig) == []
    agent.restore()
    rig.run(agent)
    assert [result.measurement.median_ms for result in results(rig)] == [7.0]
    assert unacknowledged(rig) == (key(),)
    assert states(rig)[-1] == "ready"


def test_an_agent_killed_with_unsent_results_sends_them_in_its_next_life(rig: Rig) -> None:
    first = rig.agent()
    rig.run(first)
    rig.coordinator.send("pi", "task", task())
    rig.run(first)
    first.kill()
    rig.run()
    rig.coordinator.heard.clear()
    second = rig.agent()
    assert second.identity.session > first.identity.session
    rig.run(second, seconds=5)
    assert unacknowledged(rig) == (key(),)
    assert [result.task for result in results(rig)] == [key()]
    rig.coordinator.acknowledge("pi", key())
    rig.run(second)
    second.kill()
    third = rig.agent()
    rig.run(third, seconds=5)
    assert unacknowledged(rig) == ()


def test_a_task_may_acknowledge_results(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.coordinator.send("pi", "task", task(1))
    rig.run(agent)
    assert [kept for kept, _ in agent.outbox.pending()] == [key(1)]
    rig.coordinator.send("pi", "task", task(2, stored=(key(1),)))
    rig.run(agent)
    assert [kept for kept, _ in agent.outbox.pending()] == [key(2)]


def test_a_new_coordinator_hears_what_the_agent_holds(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.coordinator.send("pi", "task", task())
    rig.run(agent)
    rig.coordinator.heard.clear()
    ready = CoordinatorState(state="ready", session=7)
    rig.coordinator.transport.publish(TOPICS.coordinator, encode(ready), retain=True)
    rig.run(agent)
    assert unacknowledged(rig) == (key(),)
    assert [result.task for result in results(rig)] == [key()]


def test_a_coordinator_that_is_back_after_the_agent_hears_what_it_holds(rig: Rig) -> None:
    agent = rig.agent()
    ready = encode(CoordinatorState(state="ready", session=7))
    rig.coordinator.transport.publish(TOPICS.coordinator, ready, retain=True)
    rig.run(agent)
    # Their broker was restarted: the agent came back first, and the coordinator was not there to hear it.
    agent.cut()
    agent.restore()
    rig.run(agent)
    rig.coordinator.heard.clear()
    rig.coordinator.transport.publish(TOPICS.coordinator, ready, retain=True)
    rig.run(agent)
    assert unacknowledged(rig) == ()


@pytest.mark.parametrize("seed", range(8))
def test_whatever_the_wire_does_every_task_is_reported_and_measured_once(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def mangle(delivery: Delivery) -> Iterable[Delivery]:
        fate = rng.random()
        return () if fate < 0.2 else (delivery, delivery) if fate < 0.4 else (delivery,)

    rig = Rig(tmp_path, mangle)
    agent = rig.agent()
    numbers = range(1, 6)
    for _ in range(40):
        rig.run(agent, seconds=10)
        done = {result.task.task_id for result in results(rig)}
        for result in results(rig):
            rig.coordinator.acknowledge("pi", result.task)
        for number in numbers:
            if f"task-{number}" not in done:
                rig.coordinator.send("pi", "task", task(number, deadline_s=1000))
        if rng.random() < 0.2:
            agent.cut()
            agent.restore()
    assert {result.task.task_id for result in results(rig)} == {f"task-{number}" for number in numbers}
    assert rig.measurer.subnets == len(numbers)
    assert agent.outbox.pending() == []


def test_unreadable_messages_are_dropped_and_the_agent_goes_on(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    agent = rig.agent()
    rig.run(agent)
    for channel in ("task", "ack", "blob"):
        rig.coordinator.transport.publish(TOPICS.down("pi", channel), b"\xff{no message")  # type: ignore[arg-type]
    rig.coordinator.send("pi", "task", task())
    rig.run(agent)
    assert len(results(rig)) == 1
    assert "refused" in caplog.text


# -- names ----------------------------------------------------------------------------------------------------------


def test_a_second_agent_of_one_name_stops_and_leaves_no_trace(rig: Rig) -> None:
    incumbent = rig.agent()
    rig.run(incumbent)
    rig.measurer.script.append(None)
    rig.coordinator.send("pi", "task", task())
    rig.run(incumbent, seconds=60)
    rig.coordinator.heard.clear()
    newcomer = rig.agent(folder="another-host", unix_s=1.8e9)
    with pytest.raises(DuplicateAgentError, match="another --name"):
        rig.run(incumbent, newcomer)
    newcomer.service.stop()
    rig.run(incumbent)
    sessions = {s.session for s in rig.coordinator.on("state") if isinstance(s, AgentState)} - {0}
    assert sessions == {incumbent.identity.session}
    assert rig.coordinator.on("inventory") == []
    assert rig.coordinator.updates("rejected") == []


def test_a_newcomer_with_a_clock_in_the_past_stops_too(rig: Rig) -> None:
    incumbent = rig.agent()
    rig.run(incumbent, seconds=60)
    newcomer = rig.agent(folder="board-without-a-clock", unix_s=100.0)
    with pytest.raises(DuplicateAgentError):
        rig.run(incumbent, newcomer)
    rig.run(incumbent, seconds=60)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_agents_that_start_together_exactly_one_stays(rig: Rig, order: tuple[int, int]) -> None:
    both = [rig.agent(folder="one", unix_s=1.7e9), rig.agent(folder="two", unix_s=1.8e9)]
    stopped: list[AgentProcess] = []
    for _ in range(100):
        for index in order:
            if both[index] not in stopped:
                try:
                    both[index].service.step()
                except DuplicateAgentError:
                    stopped.append(both[index])
        rig.now += 0.25
    assert len(stopped) == 1


def test_a_restart_after_a_crash_is_no_duplicate_and_its_late_will_does_no_harm(rig: Rig) -> None:
    first = rig.agent()
    rig.run(first)
    first.outbox.close()
    first.identity.release()  # dead, but the broker has not noticed
    second = rig.agent()
    rig.run(second, seconds=10)
    assert states(rig)[-1] == "ready"
    first.cut()  # now it has: the old will overwrites the retained state
    rig.run(second)
    last = rig.coordinator.on("state")[-1]
    assert isinstance(last, AgentState)
    assert (last.state, last.session) == ("ready", second.identity.session)


def test_two_agents_of_one_name_on_one_host_are_told_at_once(rig: Rig) -> None:
    rig.agent()
    with pytest.raises(DuplicateAgentError, match="already runs on this host"):
        rig.agent()


# -- refusals, cancellation, time -----------------------------------------------------------------------------------


def test_a_setting_that_is_not_offered_is_rejected_by_name(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.coordinator.send("pi", "task", task(setting=RuntimeSetting(threads=64)))
    rig.run(agent)
    (rejected,) = rig.coordinator.updates("rejected")
    assert rejected.reason == "setting_unavailable"
    assert "64t" in rejected.detail
    assert "_1t_" in rejected.detail


def test_a_full_queue_is_said(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.measurer.script.append(None)
    for number in range(QUEUE_LIMIT + 3):
        rig.coordinator.send("pi", "task", task(number))
        rig.run(agent, seconds=1)
    assert [update.reason for update in rig.coordinator.updates("rejected")] == ["busy", "busy"]


def test_cancelling_stops_what_runs_and_forgets_what_waits(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.measurer.script.append(None)
    for number in (1, 2, 3):
        rig.coordinator.send("pi", "task", task(number))
    rig.run(agent)
    rig.coordinator.send("pi", "task", CancelTask(task=key(1)))
    rig.coordinator.send("pi", "task", CancelTask(task=key(3)))
    rig.coordinator.send("pi", "task", CancelTask(task=key(99)))
    rig.run(agent)
    assert rig.measurer.kills == 1
    assert [failed.task for failed in rig.coordinator.updates("failed")] == [key(1), key(3)]
    assert [result.task for result in results(rig)] == [key(2)]


def test_a_measurement_past_its_deadline_is_killed_and_the_next_task_works(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.measurer.script.append(None)
    rig.coordinator.send("pi", "task", task(1, deadline_s=20))
    rig.coordinator.send("pi", "task", task(2, deadline_s=100))
    rig.run(agent, seconds=30)
    (failed,) = rig.coordinator.updates("failed")
    assert isinstance(failed, Failed)
    assert (failed.task, failed.reason) == (key(1), "timeout")
    assert "20 s" in failed.detail
    assert rig.measurer.kills == 1
    assert [result.task for result in results(rig)] == [key(2)]


def test_a_task_that_waited_too_long_is_rejected_and_blames_no_subnet(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.measurer.script.append(None)
    rig.coordinator.send("pi", "task", task(1, deadline_s=50))
    rig.coordinator.send("pi", "task", task(2, deadline_s=10))
    rig.run(agent, seconds=60)
    (rejected,) = rig.coordinator.updates("rejected")
    assert (rejected.task, rejected.reason) == (key(2), "expired")


def test_a_bundle_that_does_not_come_is_said_with_how_much_of_it_came(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    missing = {"sha256": "0" * 64, "size": 500_000}
    rig.coordinator.send("pi", "task", task(bundle=missing, deadline_s=30))
    rig.run(agent, seconds=40)
    (rejected,) = rig.coordinator.updates("rejected")
    assert rejected.reason == "expired"
    assert "0 of 500,000 bytes" in rejected.detail


def test_a_lock_that_is_waited_for_long_is_named_to_the_fleet_and_the_task_goes_on(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.coordinator.heard.clear()
    rig.measurer.script.extend([None, None])
    rig.coordinator.send("pi", "task", task(deadline_s=20))
    rig.run(agent)
    waits = "for the lock /run/host.lock, which another process holds"
    rig.measurer.say(PhaseReply(phase="waiting", detail=waits))
    rig.run(agent, seconds=LONG_WAIT_S - 5)
    details = [s.detail for s in rig.coordinator.on("state") if isinstance(s, AgentState)]
    assert set(details) == {""}, "a neighbour's measurement"
    rig.run(agent, seconds=10)
    gave_up = "another process has kept the lock /run/host.lock for 3600 s"
    rig.measurer.say(UnreadyReply(reason=gave_up))
    rig.run(agent, seconds=RESTING_S + 5)  # and asks for the lock again
    rig.measurer.say(PhaseReply(phase="waiting", detail=waits))
    rig.measurer.say(PhaseReply(phase="building"))
    rig.measurer.say(PhaseReply(phase="measuring"))
    rig.measurer.say(measured())
    rig.run(agent)
    details = [s.detail for s in rig.coordinator.on("state") if isinstance(s, AgentState)]
    assert [text for text, _ in groupby(details)][:4] == ["", waits, gave_up, ""]
    assert len(rig.measurer.orders) == 2
    assert len(results(rig)) == 1
    assert rig.coordinator.updates("failed") == []
    assert "/run/host.lock" in caplog.text


def test_waiting_for_another_agent_of_the_host_does_not_use_up_the_deadline(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.measurer.script.append(None)
    rig.coordinator.send("pi", "task", task(deadline_s=20))
    rig.run(agent)
    rig.measurer.say(PhaseReply(phase="waiting"))
    rig.run(agent, seconds=100)
    assert rig.coordinator.updates("failed") == []
    waits = [update for update in rig.coordinator.updates("progress") if update.phase == "waiting"]
    assert len(waits) >= 10  # so that the coordinator does not take the lease back
    rig.measurer.say(PhaseReply(phase="building"))
    rig.run(agent, seconds=10)
    rig.measurer.say(measured())
    rig.run(agent)
    assert len(results(rig)) == 1


def test_a_failure_on_the_device_is_a_stored_result(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.measurer.script.append(FailedReply(reason="out_of_memory", detail="MemoryError: "))
    rig.coordinator.send("pi", "task", task())
    rig.run(agent, seconds=RESEND_EVERY_S + 5)
    assert [failed.reason for failed in rig.coordinator.updates("failed")] == ["out_of_memory"] * 2
    rig.coordinator.acknowledge("pi", key())
    rig.run(agent)
    assert agent.service.idle


def test_a_bundle_that_rotted_on_disk_is_fetched_afresh_for_the_next_attempt(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.measurer.script.append(FailedReply(reason="bundle", detail="it has another hash"))
    rig.coordinator.send("pi", "task", task())
    rig.run(agent)
    rig.coordinator.send("pi", "task", task(attempt=2))
    rig.run(agent)
    assert len(rig.coordinator.on("blob")) == 6
    assert len(results(rig)) == 1


def test_an_idle_agent_lets_its_child_go_and_the_next_task_gets_another(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.coordinator.send("pi", "task", task(1))
    rig.run(agent, seconds=KEEP_CHILD_S - 2)
    assert not rig.measurer.closed, "the search may ask again"
    rig.coordinator.send("pi", "task", task(2))
    rig.run(agent, seconds=KEEP_CHILD_S - 2)
    assert not rig.measurer.closed, "it was needed meanwhile"
    rig.run(agent, seconds=4)
    assert rig.measurer.closed
    rig.coordinator.send("pi", "task", task(3))
    rig.run(agent)
    assert not rig.measurer.closed
    assert rig.measurer.subnets == 3


def test_a_graceful_stop_hands_back_what_is_not_done(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.measurer.script.append(None)
    rig.coordinator.send("pi", "task", task(1))
    rig.coordinator.send("pi", "task", task(2))
    rig.run(agent)
    agent.service.stop()
    rig.run()
    rejected = rig.coordinator.updates("rejected")
    assert [(update.task, update.reason) for update in rejected] == [(key(1), "leaving"), (key(2), "leaving")]
    assert states(rig)[-1] == "leaving"


@pytest.mark.parametrize("announced", [True, False])
def test_the_first_search_ends_when_its_coordinator_leaves_or_never_came(rig: Rig, announced: bool) -> None:
    def announce(state: str) -> None:
        message = CoordinatorState.model_validate({"state": state, "session": 1})
        rig.coordinator.transport.publish(TOPICS.coordinator, encode(message), retain=True)

    agent = rig.agent()
    if announced:
        announce("ready")
    rig.run(agent)
    assert not agent.service.done, "nothing was measured yet"
    rig.coordinator.send("pi", "task", task())
    rig.run(agent)
    assert not agent.service.done, "a result waits to be stored"
    rig.coordinator.acknowledge("pi", key(1))
    rig.run(agent)
    assert agent.service.done is not announced, "the next task may come"
    for state in ("lost", "leaving") if announced else ():
        announce(state)
        rig.run(agent)
        assert agent.service.done is (state == "leaving")


def test_a_disk_that_is_full_loses_no_result_of_a_living_agent(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    agent = rig.agent()
    rig.run(agent)

    def full(*_: object) -> bool:
        raise StoreError("the outbox cannot be used: database or disk is full; free some space")

    monkeypatch.setattr(agent.outbox, "put", full)
    rig.coordinator.send("pi", "task", task())
    rig.run(agent, seconds=RESEND_EVERY_S + 5)
    assert len(results(rig)) == 2
    assert "kept in memory" in caplog.text
    rig.coordinator.acknowledge("pi", key())
    rig.run(agent)
    assert agent.service.idle


def test_heartbeats_tell_what_runs(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.measurer.script.append(None)
    rig.coordinator.send("pi", "task", task())
    rig.run(agent, seconds=2 * HEARTBEAT_EVERY_S - 10)
    (health,) = rig.coordinator.on("heartbeat")
    assert isinstance(health, Heartbeat)
    assert health.task_id == "task-1"
    assert health.session == agent.identity.session


@pytest.mark.parametrize(("runtime", "load"), [("onnxruntime", 0.5), ("adb", None)])
def test_heartbeats_tell_the_state_of_the_device_that_measures(rig: Rig, runtime: str, load: float | None) -> None:
    write_files(rig.folder / "state" / "no-sensors-here", {"proc/loadavg": "0.50 0.40 0.30 1/100 1\n"})
    agent = rig.agent(settings=(RuntimeSetting.model_validate({"runtime": runtime}),))
    rig.run(agent, seconds=HEARTBEAT_EVERY_S + 5)
    health = rig.coordinator.on("heartbeat")[-1]
    assert isinstance(health, Heartbeat)
    assert health.conditions.load_1min == load, "this host's load says nothing about a phone on its cable"


def test_a_result_that_no_coordinator_wants_is_forgotten_and_said(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.coordinator.send("pi", "task", task(1))
    rig.run(agent)
    assert not agent.service.idle
    with caplog.at_level(logging.WARNING, "fleetnas.agent"):
        rig.coordinator.send("pi", "ack", Acknowledgement(task=key(1), stored=False))
        rig.run(agent)
    assert agent.service.idle
    assert any("no coordinator knows its task" in line for line in caplog.messages)
