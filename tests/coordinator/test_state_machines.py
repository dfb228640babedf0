"""States of tasks and targets: allowed transitions, and contradictions that `validate` finds."""

from __future__ import annotations

import itertools

import pytest
from rigs.simulated_fleet import SPACE, Simulation

from fleetnas.coordinator.fleet.task import Task
from fleetnas.coordinator.fleet.work_queue import MOST_ATTEMPTS, WorkQueue
from fleetnas.coordinator.records import target_status, task_state
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.stored import TaskRecord
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.records.task_state import TaskState
from fleetnas.coordinator.records.transitions import BrokenInvariantError, InvalidTransitionError
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.coordinator.tuning.target_state import ChosenSubnet, TargetState
from fleetnas.fleet_protocol.messages import RuntimeSetting

(SUBNET,) = SPACE.decode(SPACE.smallest())
TASK_TRANSITIONS = {
    (TaskState.READY, TaskState.LEASED),
    (TaskState.READY, TaskState.DONE),
    (TaskState.READY, TaskState.ABANDONED),
    (TaskState.LEASED, TaskState.READY),
    (TaskState.LEASED, TaskState.USED_UP),
    (TaskState.LEASED, TaskState.DONE),
    (TaskState.LEASED, TaskState.ABANDONED),
    (TaskState.USED_UP, TaskState.DONE),
    (TaskState.USED_UP, TaskState.ABANDONED),
    (TaskState.ABANDONED, TaskState.DONE),
}
#: Of a target that was decided once, the end may change while later measurements come in; a met one is never missed
#: without having been opened again.
FORBIDDEN_FOR_TARGETS = {
    (TargetStatus.OPEN, TargetStatus.OPEN),
    (TargetStatus.MET, TargetStatus.MISSED),
    (TargetStatus.MET, TargetStatus.INFEASIBLE),
}


@pytest.mark.parametrize(("present", "following"), list(itertools.product(TaskState, TaskState)))
def test_only_listed_transitions_of_a_task_are_allowed(present: TaskState, following: TaskState) -> None:
    if (present, following) in TASK_TRANSITIONS:
        assert task_state.transition(present, following) is following
    else:
        with pytest.raises(InvalidTransitionError, match=f"it is '{present}'"):
            task_state.transition(present, following)


@pytest.mark.parametrize(("present", "following"), list(itertools.product(TargetStatus, TargetStatus)))
def test_a_met_target_is_opened_before_it_is_missed(present: TargetStatus, following: TargetStatus) -> None:
    if (present, following) not in FORBIDDEN_FOR_TARGETS:
        assert target_status.transition(present, following) is following
    else:
        with pytest.raises(InvalidTransitionError, match=f"it is '{present}'"):
            target_status.transition(present, following)


def test_the_stored_values_of_states_are_their_texts() -> None:
    assert [f"{status}" for status in TargetStatus] == ["open", "met", "missed", "infeasible"]
    assert TargetStatus.MET == "met"


def queue() -> WorkQueue:
    return WorkQueue("pi0", RuntimeSetting())


def task(number: int = 1) -> Task:
    record = TaskRecord(f"run-1.{number}", "run-1", "pi0", RuntimeSetting().label, "candidate", SUBNET)
    return Task(record, Proposal(tuple(SPACE.smallest()[0].tolist()), SUBNET, "candidate"))


def lease(waiting: WorkQueue, one: Task) -> None:
    waiting.lease(one, one.next_attempt(), 10.0, 20.0)


class TestWorkQueue:
    def test_a_task_that_comes_back_is_the_next_one(self) -> None:
        waiting, first, second = queue(), task(1), task(2)
        for one in (first, second):
            waiting.add(one)
        lease(waiting, first)
        assert (list(waiting.ready), first.key.attempt) == ([second], 1)
        waiting.requeue(first)
        assert (list(waiting.ready), waiting.returned) == ([first, second], 1)
        waiting.validate()

    def test_a_task_is_dispatched_so_often_and_no_more(self) -> None:
        waiting, one = queue(), task()
        waiting.add(one)
        for attempt in range(1, MOST_ATTEMPTS + 1):
            assert one.state is TaskState.READY
            lease(waiting, one)
            assert one.key.attempt == attempt
            waiting.requeue(one)
            waiting.validate()
        assert one.state is TaskState.USED_UP
        assert waiting.is_empty
        assert waiting.holds(one)

    @pytest.mark.parametrize("leased", [False, True])
    def test_the_tasks_of_an_ended_setting_are_abandoned_and_a_late_result_still_counts(self, leased: bool) -> None:
        waiting, one = queue(), task()
        waiting.add(one)
        if leased:
            lease(waiting, one)
        waiting.close()
        assert (one.state, one.lease_ends_s, waiting.is_empty) == (TaskState.ABANDONED, None, True)
        waiting.validate()
        waiting.complete(one)
        assert one.state is TaskState.DONE
        with pytest.raises(InvalidTransitionError):
            waiting.complete(one)

    def test_a_closed_queue_takes_no_tasks(self) -> None:
        waiting, ready, sent = queue(), task(1), task(2)
        waiting.close()
        waiting.add(ready)
        waiting.restore(sent, 10.0, 20.0)
        assert {ready.state, sent.state} == {TaskState.ABANDONED}
        waiting.validate()

    def test_a_lease_is_renewed_up_to_the_time_that_a_task_may_be_held(self) -> None:
        waiting, one = queue(), task()
        waiting.add(one)
        lease(waiting, one)
        one.renew(15.0)
        assert one.lease_ends_s == 15.0
        one.renew(25.0)
        assert one.lease_ends_s == 20.0
        one.renew(25.0, 30.0)
        assert one.lease_ends_s == 25.0

    def test_a_task_in_two_places_is_found(self) -> None:
        waiting, one = queue(), task()
        waiting.add(one)
        lease(waiting, one)
        waiting.ready.append(one)  # type: ignore[attr-defined]
        assert not waiting.holds(one)
        with pytest.raises(BrokenInvariantError, match="is ready in pi0"):
            waiting.validate()


class TestTargets:
    def test_a_winner_is_within_its_target(self) -> None:
        state = TargetState(2.0)
        state.meet("a" * 64)
        subnet = ChosenSubnet(SPACE.smallest()[0], SUBNET, 0.9, 1.9)
        state.choose(subnet, 1.9, 1.9)
        state.validate()
        state.choose(subnet, 2.1, 2.1)
        with pytest.raises(BrokenInvariantError, match=r"verified at 2\.1"):
            state.validate()

    def test_a_withdrawn_winner_ships_no_file(self) -> None:
        state = TargetState(2.0)
        state.meet("a" * 64)
        state.withdraw("over the target", 2.1)
        assert (state.status, state.sha256, state.met) == (TargetStatus.OPEN, None, None)
        state.validate()

    def test_a_target_that_was_given_up_says_why(self) -> None:
        state = TargetState(2.0)
        state.give_up("the fastest subnet takes 3 ms", infeasible=True)
        state.validate()
        state.reopen()
        assert (state.status, state.given_up, state.reason) == (TargetStatus.OPEN, False, "")
        state.miss("")
        with pytest.raises(BrokenInvariantError, match="without a reason"):
            state.validate()


def test_every_simulated_campaign_validates_its_state() -> None:
    fleet = Simulation(CampaignPlan(targets="auto:2", budget=10, initial_design=6))
    fleet.add("pi0")
    fleet.begin()
    fleet.run(until=lambda: any(setting_run.leased for setting_run in fleet.campaign.setting_runs.values()))
    (setting_run,) = fleet.campaign.setting_runs.values()
    leased = next(iter(setting_run.leased.values()))
    leased.abandon()
    with pytest.raises(BrokenInvariantError, match=leased.task_id):
        fleet.step()
