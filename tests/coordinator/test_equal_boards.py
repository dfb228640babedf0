"""Equal boards are searched as one device: work shared out, speeds learned, every board verified by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pytest
from rigs.equal_boards import EqualBoard, PooledSimulation, board_of
from rigs.simulated_fleet import ACCURACY, SPACE, HiddenDevice, Simulation, measurement

from fleetnas.coordinator.app.portfolio import open_portfolio
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.records.totals import TargetTotals
from fleetnas.coordinator.report.conversion import results_of
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.coordinator.store.stored_devices import stored_devices
from fleetnas.coordinator.tuning.board import Board
from fleetnas.coordinator.tuning.board_class import BoardClass
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.fleet_protocol.messages import Failed, Measurement, RuntimeSetting, TaskKey
from fleetnas.fleet_protocol.orders import MeasureTask

PLAN = CampaignPlan(targets="0.4,0.7,1.1", budget=24, initial_design=8, grace_s=5, join_s=60, deadline_s=60, pool=True)


class RememberingExecutor(ThreadPoolExecutor):
    """Worker threads, with everything that was submitted to them."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.futures: list[Future[Any]] = []

    def submit(self, *call: Any, **named: Any) -> Future[Any]:
        self.futures.append(super().submit(*call, **named))
        return self.futures[-1]


def plan(**changes: object) -> CampaignPlan:
    return CampaignPlan.model_validate({**PLAN.model_dump(), **changes})


def boards(
    count: int,
    *,
    spread: float = 0.03,
    slow: float | None = None,
    seed: int = 0,
    seconds_per_task: float = 1.0,
    **changes: object,
) -> PooledSimulation:
    """A fleet of equal boards, the last of which may be slow."""
    fleet = PooledSimulation(plan(wait_for=count, **changes))
    factors = np.exp(np.random.default_rng(seed).normal(0.0, spread, count))
    if slow is not None:
        factors[-1] = slow
    for place, factor in enumerate(factors.tolist()):
        fleet.board(f"pi{place}", factor, seconds_per_task=seconds_per_task)
    return fleet


def measured(fleet: Simulation, *purposes: str) -> Counter[str]:
    """How often each subnet was measured, over all boards."""
    return Counter(
        found.task.architecture.fingerprint
        for found in fleet.store.outcomes(fleet.run_id)
        if found.task.purpose in purposes
    )


def without_noise(fleet: Simulation) -> None:
    """Let every board measure the latencies of one device, always alike: what is measured again is the same."""
    for agent in fleet.agents:
        agent.devices = {setting: HiddenDevice(0, noise=0.0) for setting in agent.devices}


def winners(fleet: Simulation, device: str) -> list[str]:
    found = [winner for winner in fleet.store.winners(fleet.run_id) if winner.device == device and winner.met]
    return [winner.architecture.fingerprint for winner in found if winner.architecture is not None]


def lone_class(**changes: object) -> BoardClass:
    """A class of boards without a campaign."""
    fleet = PooledSimulation(plan(**changes))
    return BoardClass("simulated", fleet.class_tuner(fleet.board("pi0").info, RuntimeSetting()))


def is_anchor(pool: BoardClass, proposal: Proposal) -> bool:
    """Whether a proposal is the subnet that all boards measure."""
    return proposal.genome == tuple(pool.tuner.anchor.tolist())


def outcome_of_board(proposal: Proposal, wrong: str = "") -> Measurement | Failed:
    """What a board answers that has latencies in proportion to the MACs."""
    if wrong == "failed":
        return Failed(task=TaskKey(task_id="any", attempt=1), reason="crashed")
    changes = {"quality": "slowed", "undisturbed_ms": None} if wrong else {}
    return measurement(float(SPACE.macs(np.array([proposal.genome]))[0]) / 1e6, **changes)


def ends_with(pool: BoardClass, board: Board) -> None:
    """Have one board do all that is left; the class has to end."""
    for _ in range(1_000):
        if pool.finished:
            break
        assert pool.needs_planning(board)
        for proposal in pool.ask(board, 4):
            pool.tell(board, proposal, outcome_of_board(proposal))
    assert pool.finished
    assert any(state.met for state in pool.tuner.targets)


class TestWorkIsSharedOut:
    def test_each_subnet_is_measured_on_one_board_and_the_anchor_on_all(self) -> None:
        fleet = boards(6)
        fleet.begin()
        fleet.run()
        assert fleet.campaign.finish() == "complete"
        found = measured(fleet, "initial-design", "candidate")
        assert found.pop(max(found, key=lambda subnet: found[subnet])) == 6
        assert set(found.values()) == {1}
        assert sum(found.values()) <= PLAN.budget
        counts = Counter(
            each.task.device for each in fleet.store.outcomes("run-1") if each.task.purpose != "verification"
        )
        assert max(counts.values()) - min(counts.values()) <= 2

    def test_six_boards_search_in_a_third_of_the_time_of_one(self) -> None:
        def searched_s(count: int) -> float:
            fleet = boards(count, seconds_per_task=10.0)
            fleet.begin()
            fleet.run(until=lambda: bool(measured(fleet, "verification")))
            return fleet.clock.now_s

        began_s = PooledSimulation(PLAN).clock.now_s
        assert searched_s(6) - began_s < (searched_s(1) - began_s) / 3

    def test_every_winner_is_verified_on_every_board(self) -> None:
        fleet = boards(5)
        fleet.begin()
        fleet.run()
        fleet.campaign.finish()
        verified = {
            (found.task.device, found.outcome.model_sha256): found.outcome.median_ms
            for found in fleet.store.outcomes("run-1")
            if found.task.purpose == "verification" and isinstance(found.outcome, Measurement)
        }
        found = fleet.store.winners("run-1")
        assert len(found) == 5 * 3
        for winner in found:
            if winner.met:
                assert winner.target_ms is not None
                assert verified[winner.device, winner.sha256 or ""] == winner.verified_ms
                assert (winner.verified_ms or 0.0) <= winner.target_ms
                assert "boards of its class meet it" in winner.note
        assert len({winner.architecture for winner in found if winner.target_ms == 0.7}) == 1

    def test_one_board_alone_is_searched_as_any_other_device(self) -> None:
        alone = boards(1, spread=0.0)
        plain = Simulation(plan(wait_for=1, pool=False))
        plain.add("pi0").devices[RuntimeSetting()].reseed(0)
        for fleet in (alone, plain):
            fleet.begin()
            fleet.run()
            fleet.campaign.finish()
        assert alone.store.winners("run-1") == plain.store.winners("run-1")
        assert [found.task for found in alone.store.outcomes("run-1")] == [
            found.task for found in plain.store.outcomes("run-1")
        ]

    def test_plans_of_worker_threads_end_as_well(self) -> None:
        with RememberingExecutor(3) as executor:
            fleet = boards(5)
            fleet.executor = executor
            fleet.checked = False  # a worker changes a search while it would be checked
            fleet.begin()
            for _ in range(2_000):
                if fleet.campaign.finished:
                    break
                for _ in range(10):
                    if not fleet.campaign.finished:
                        fleet.step()
                wait(executor.futures)  # steps cost nothing, and plans do
            assert fleet.campaign.finish() == "complete"


class TestSlowBoards:
    def test_a_slow_board_is_named_and_its_targets_are_not_met(self) -> None:
        fleet = boards(8, slow=1.3)
        fleet.begin()
        fleet.run()
        assert fleet.campaign.finish() == "partial"
        note = board_of(fleet, "pi7").targets_note
        assert "one of 8 boards of class simulated" in note
        assert "% slower than the class" in note
        assert any("pi7" in line and "slower than the class" in line for line in fleet.campaign.log)
        for winner in fleet.store.winners("run-1"):
            if winner.device == "pi7" and winner.target_ms in (0.4, 0.7):
                assert not winner.met
                assert "slower than the class" in winner.reason
                assert "of 8 boards of its class meet it" in winner.reason
        for place in range(7):
            assert "slower" not in board_of(fleet, f"pi{place}").targets_note

    def test_what_a_slow_board_measures_does_not_mislead_the_others(self) -> None:
        found = []
        for slow in (None, 1.3):
            fleet = boards(6, spread=0.0, slow=slow)
            for agent in fleet.agents:
                agent.devices[RuntimeSetting()].reseed(1)
            fleet.begin()
            fleet.run()
            fleet.campaign.finish()
            accuracies = {
                winner.target_ms: winner.predicted_accuracy
                for winner in fleet.store.winners("run-1")
                if winner.device == "pi0" and winner.met
            }
            assert len(accuracies) == 3
            found.append(sum(accuracy or 0.0 for accuracy in accuracies.values()) / 3)
        assert found[1] > found[0] - 0.004


class TestBoardsComeAndGo:
    def test_the_work_of_a_board_that_leaves_goes_to_the_others(self) -> None:
        fleet = boards(4)
        fleet.begin()
        fleet.run(until=lambda: len(fleet.agents[2].measured) > 1)
        fleet.agents.pop(2)
        fleet.broker.cut("pi2")
        fleet.run()
        assert fleet.campaign.finish() == "partial"
        status = {each.device: each.status for each in fleet.campaign.setting_runs.values()}
        assert status.pop("pi2") is SettingStatus.LOST
        assert set(status.values()) == {SettingStatus.FINISHED}
        assert all(len(winners(fleet, name)) == 3 for name in status)
        assert sum(measured(fleet, "candidate").values()) > 0

    def test_the_first_board_may_leave_before_the_first_result(self) -> None:
        fleet = boards(3)
        fleet.begin()
        fleet.run(until=lambda: bool(fleet.agents[0].queue))
        fleet.agents.pop(0)
        fleet.broker.cut("pi0")
        fleet.run()
        fleet.campaign.finish()
        assert len(winners(fleet, "pi1")) == 3

    def test_a_board_that_joins_late_verifies_the_winners(self) -> None:
        fleet = boards(3)
        fleet.begin()
        fleet.run(
            until=lambda: board_of(fleet, "pi0").phase == "verification" if fleet.campaign.setting_runs else False
        )
        fleet.board("pi9", 0.95)
        fleet.run()
        fleet.campaign.finish()
        assert len(winners(fleet, "pi9")) == 3
        purposes = {found.task.purpose for found in fleet.store.outcomes("run-1") if found.task.device == "pi9"}
        assert "candidate" not in purposes

    def test_a_board_on_which_nothing_runs_is_given_up_and_the_others_go_on(self) -> None:
        fleet = boards(4)
        fleet.agents[1].fails = lambda _: "runtime"
        fleet.begin()
        fleet.run()
        assert fleet.campaign.finish() == "partial"
        run = next(each for each in fleet.campaign.setting_runs.values() if each.device == "pi1")
        assert (run.status, "its first 6 measurements failed" in run.reason) == (SettingStatus.FAILED, True)
        assert all(len(winners(fleet, name)) == 3 for name in ("pi0", "pi2", "pi3"))

    def test_a_subnet_that_fails_on_one_board_is_measured_on_another(self) -> None:
        fleet = boards(3)
        failed: list[str] = []

        def fails_once(task: MeasureTask) -> str | None:
            if task.calibration is None and not failed:
                failed.append(task.architecture.fingerprint)
                return "crashed"
            return None

        fleet.agents[2].fails = fails_once
        fleet.begin()
        fleet.run()
        assert fleet.campaign.finish() == "complete"
        assert measured(fleet, "initial-design", "candidate")[failed[0]] >= 2

    @pytest.mark.parametrize("killed_after", [None, 10, 30])
    @pytest.mark.parametrize(
        ("wrong", "count"), [("disturbed", 1), ("disturbed", 2), ("disturbed", 4), ("failed", 1), ("failed", 2)]
    )
    def test_a_subnet_that_all_boards_measure_is_measured_once_more(
        self, wrong: str, count: int, killed_after: int | None
    ) -> None:
        """The initial design repeats what a disturbed device spoiled or what failed, the anchor as well."""
        fleet = boards(count)
        for agent in fleet.agents:
            assert isinstance(agent, EqualBoard)
            tried: list[str] = []

            def fails_at_first(task: MeasureTask, tried: list[str] = tried) -> str | None:
                tried.append(task.architecture.fingerprint)
                return "crashed" if len(tried) <= 4 and tried.count(tried[-1]) == 1 else None

            if wrong == "disturbed":
                agent.disturbed = 10
            else:
                agent.fails = fails_at_first
        fleet.begin()
        if killed_after is not None:
            for _ in range(killed_after):
                fleet.step()
            fleet.vanish()
            fleet.begin(resume=True)
        fleet.run()
        assert fleet.campaign.finish() == "complete"
        assert all(winners(fleet, agent.name) for agent in fleet.agents)

    @pytest.mark.parametrize("at_work", [False, True])
    @pytest.mark.parametrize("wrong", ["disturbed", "failed"])
    def test_a_board_that_comes_after_the_last_one_left_takes_its_repeats(self, wrong: str, at_work: bool) -> None:
        """The subnet that all boards measure is asked of the next board as its own and as a repeat, at once."""
        pool = lone_class()
        first = pool.join("pi0")
        asked = 0
        while asked < (2 if at_work else 1):
            (proposal,) = pool.ask(first, 1)
            asked += is_anchor(pool, proposal)
            if asked < 2:
                pool.tell(first, proposal, outcome_of_board(proposal, wrong if is_anchor(pool, proposal) else ""))
        pool.leave(first)
        ends_with(pool, pool.join("pi1"))

    @pytest.mark.parametrize("given_up", [False, True])
    def test_what_a_board_failed_at_is_not_waited_for_where_the_other_one_is_gone(self, given_up: bool) -> None:
        """One fails at the subnet that all measure, or at all, before the other one has begun."""
        pool = lone_class(initial_design=14)
        first, second = pool.join("pi0"), pool.join("pi1")
        while asked := pool.ask(first, 1):
            wrong = "failed" if given_up or is_anchor(pool, asked[0]) else ""
            pool.tell(first, asked[0], outcome_of_board(asked[0], wrong))
        assert first.anchor_told
        assert first.gone is given_up
        if given_up:
            ends_with(pool, second)
        else:
            pool.leave(second)
            ends_with(pool, first)

    @pytest.mark.parametrize("steps", [3, 6, 9, 12, 16])
    def test_a_resumed_run_ends_with_the_same_winners(self, steps: int) -> None:
        found = []
        for killed in (False, True):
            fleet = boards(4)
            without_noise(fleet)
            fleet.begin()
            if killed:
                for _ in range(steps):
                    fleet.step()
                fleet.vanish()
                fleet.begin(resume=True)
            fleet.run()
            assert fleet.campaign.finish() in ("complete", "partial")
            found.append({name: winners(fleet, name) for name in ("pi0", "pi1", "pi2", "pi3")})
            again = Counter(each.key.task_id for each in fleet.store.outcomes("run-1"))
            assert set(again.values()) == {1}
        assert found[0] == found[1]

    @pytest.mark.parametrize("later", [0, 1, 3, 5, 8, 12])
    def test_a_resumed_run_replaces_the_same_targets(self, later: int) -> None:
        """The boards are slowed irregularly where they verify, each subnet always alike on one board."""
        found = []
        for killed in (False, True):
            fleet = boards(2, targets="auto:4", budget=14)
            without_noise(fleet)
            for agent in fleet.agents:
                agent.slowdown = slowed_when_verified(agent.name)
            fleet.begin()
            if killed:
                fleet.run(until=lambda fleet=fleet: any("in place of" in note for note in notes(fleet)))
                for _ in range(later):
                    fleet.step()
                fleet.vanish()
                fleet.begin(resume=True)
            fleet.run()
            assert fleet.campaign.finish() in ("complete", "partial")
            found.append(({name: winners(fleet, name) for name in ("pi0", "pi1")}, sorted(notes(fleet))))
        assert any("in place of" in note for note in found[0][1])
        assert found[0] == found[1]


def notes(fleet: Simulation) -> set[str]:
    return {run.search.targets_note for run in fleet.campaign.setting_runs.values()}


def slowed_when_verified(board: str) -> Callable[[MeasureTask], tuple[float, bool]]:
    """Return the slow-down of a task, and whether it is known."""

    def slowdown(task: MeasureTask) -> tuple[float, bool]:
        if task.calibration is None:
            return 1.0, True
        rng = np.random.default_rng([len(board), ord(board[-1]), int(task.architecture.fingerprint, 16) % 2**32])
        return float(rng.uniform(1.3, 2.2)), bool(rng.random() > 0.4)

    return slowdown


class TestSomeBoardsVerify:
    def test_each_target_is_verified_by_that_many_boards(self) -> None:
        fleet = boards(8, verify_boards=3)
        fleet.begin()
        fleet.run()
        assert fleet.campaign.finish() in ("complete", "partial")
        per_target = Counter(winner.target_ms for winner in fleet.store.winners("run-1"))
        assert set(per_target) == {0.4, 0.7, 1.1}
        assert all(count >= 3 for count in per_target.values())
        assert sum(per_target.values()) < 8 * 3
        met = [winner for winner in fleet.store.winners("run-1") if winner.met]
        assert all("boards of its class meet it (95 % interval" in winner.note for winner in met)
        totals = fleet.campaign.totals
        assert totals == TargetTotals(len(met), sum(per_target.values()))
        outcome = outcome_of(fleet.store, "run-1")
        assert sum(len(device.targets) for device in outcome.devices) == totals.asked

    @pytest.mark.parametrize(
        ("hosts", "changes", "told"),
        [
            (("a" * 16, "b" * 16), {"verify_boards": 1}, False),
            (("a" * 16, "a" * 16), {"verify_boards": 1}, True),
            (("a" * 16, "a" * 16), {}, False),
            (("a" * 16, "b" * 16), {"verify_boards": 1, "targets": "fps:1000"}, True),
        ],
    )
    def test_a_number_of_boards_that_has_no_effect_is_told(
        self, hosts: tuple[str, str], changes: dict[str, object], told: bool
    ) -> None:
        fleet = PooledSimulation(plan(wait_for=2, **changes))
        for name, host in zip(("one", "two"), hosts, strict=True):
            fleet.board(name, host=host)
        fleet.begin()
        fleet.run(until=lambda: bool(fleet.campaign.setting_runs))
        assert any("--verify-boards has no effect" in line for line in fleet.campaign.log) is told

    def test_boards_of_a_resumed_run_count_before_they_are_there(self) -> None:
        fleet = boards(2, verify_boards=1)
        fleet.begin()
        fleet.run(until=lambda: bool(fleet.store.outcomes("run-1")))
        fleet.vanish()
        for name in ("pi0", "pi1"):
            fleet.agents.pop()
            fleet.broker.cut(name)
        fleet.begin(resume=True)
        fleet.run(until=lambda: fleet.campaign.membership.is_open)
        assert len(fleet.campaign.setting_runs) == 2
        assert not any("--verify-boards" in line for line in fleet.campaign.log)


class TestWhoIsEqual:
    def classes(self, fleet: PooledSimulation) -> set[str]:
        fleet.begin()
        fleet.run(until=lambda: bool(fleet.campaign.setting_runs))
        return {run.search.targets_note for run in fleet.campaign.setting_runs.values()}

    def test_agents_of_one_machine_are_not_pooled(self) -> None:
        fleet = PooledSimulation(plan(wait_for=2))
        fleet.board("one", host="a" * 16)
        fleet.board("two", host="a" * 16)
        assert self.classes(fleet) == {""}

    def test_agents_whose_machine_is_not_known_are_not_pooled(self) -> None:
        fleet = PooledSimulation(plan(wait_for=2))
        fleet.board("one", host="")
        fleet.board("two", host="")
        assert self.classes(fleet) == {""}

    def test_tags_make_classes_and_part_them(self) -> None:
        fleet = PooledSimulation(plan(wait_for=6))
        for name, tag in (
            ("a", "class:x"),
            ("b", "class:x"),
            ("c", "class:y"),
            ("d", "class:none"),
            ("e", ""),
            ("f", ""),
        ):
            fleet.board(name, tags=(tag,) if tag else ())
        assert self.classes(fleet) == {"", "one of 2 boards of class x", "one of 2 boards of class simulated"}

    def test_settings_of_one_device_are_of_different_classes(self) -> None:
        fleet = PooledSimulation(plan(wait_for=2))
        for name in ("one", "two"):
            fleet.board(name, settings=(RuntimeSetting(), RuntimeSetting(threads=2)))
        fleet.begin()
        fleet.run()
        fleet.campaign.finish()
        assert fleet.pool is not None
        notes = {run.label: run.search.targets_note for run in fleet.campaign.setting_runs.values()}
        assert len(notes) == 4
        assert all(note.startswith("one of 2 boards") for note in notes.values())


@pytest.fixture(scope="module")
def fleet() -> PooledSimulation:
    """A finished search of six boards, the last of which is slow."""
    fleet = boards(6, slow=1.2, budget=30)
    fleet.begin()
    fleet.run()
    fleet.campaign.finish()
    return fleet


class TestResults:
    def test_results_name_class_speed_and_share(self, fleet: PooledSimulation) -> None:
        results = results_of(outcome_of(fleet.store, "run-1"), lambda *_: None)
        found = {device.device: device for device in results.fleet}
        for device in found.values():
            assert device.board is not None
            assert (device.board.class_name, device.board.boards) == ("simulated", 6)
            assert device.board.slow is (device.device == "pi5")
        slow = found["pi5"].board
        assert slow is not None
        assert slow.speed == pytest.approx(1.2, abs=0.05)
        assert 0.0 < slow.speed_error < 0.03
        for device in found.values():
            for target in device.targets:
                share = target.boards
                assert share is not None
                of_target = [
                    other for each in found.values() for other in each.targets if other.target_ms == target.target_ms
                ]
                assert (share.met, share.asked) == (sum(other.met for other in of_target), 6)
                assert share.low <= share.met / share.asked <= share.high

    def test_the_store_keeps_the_place_of_each_board(self, fleet: PooledSimulation) -> None:
        kept = {record.device: record.board for record in fleet.store.devices("run-1")}
        assert all(place is not None and place.boards == 6 for place in kept.values())
        assert kept["pi5"] is not None
        assert kept["pi5"].slow

    def test_a_portfolio_knows_each_board_by_the_measurements_of_all(self, fleet: PooledSimulation) -> None:
        problem = open_portfolio(fleet.store, "run-1", ACCURACY)
        chosen = problem.choose(3)
        fast, slow = (
            {each.demand.target_ms: each for each in chosen.services if each.demand.device == name}
            for name in ("pi0", "pi5")
        )
        for target_ms in (0.4, 0.7):
            assert fast[target_ms].accuracy is not None
            assert (slow[target_ms].accuracy or 0.0) < (fast[target_ms].accuracy or 0.0)
        truth = fleet.agents[5]
        for service in slow.values():
            if service.architecture is not None:
                true_ms = truth.devices[RuntimeSetting()].latency_ms(service.architecture) * 1.2
                assert service.latency_ms == pytest.approx(true_ms, rel=0.08)

    def test_later_runs_learn_from_a_class_as_from_one_device(self, fleet: PooledSimulation) -> None:
        (found,) = stored_devices(fleet.store, SPACE, 2e9)
        assert found.measured.family == "pi0"
        assert len(found.measured.latency_ms) > 15
        assert stored_devices(fleet.store, SPACE, 2e9, without=["pi0"])[0].measured.family == "pi1"
