"""The search on one device setting: what it asks, what it calls met, and what it does when measurements go wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rigs.simulated_fleet import ACCURACY, SPACE, HiddenDevice, measurement
from rigs.tuners import Answer, make, run

from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.coordinator.tuning.target_solver import BundleTargetSolver
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import Failed, Measurement, TaskKey
from fleetnas.supernet_export.spaces.base import Genomes


def device(seed: int = 0, noise: float = 0.01) -> Answer:
    hidden, rng = HiddenDevice(seed), np.random.default_rng(seed)

    def answer(proposal: Proposal) -> Measurement:
        return measurement(hidden.latency_ms(proposal.architecture) * float(np.exp(rng.normal(0, noise))))

    return answer


def failed(reason: str = "crashed") -> Failed:
    return Failed.model_validate({"task": TaskKey(task_id="t", attempt=1), "reason": reason})


@given(
    seed=st.integers(0, 10_000),
    noise=st.sampled_from([0.0, 0.01, 0.05]),
    budget=st.integers(3, 24),
    at_once=st.integers(1, 4),
)
@settings(max_examples=10, deadline=None)
def test_what_it_promises_on_any_device(seed: int, noise: float, budget: int, at_once: int) -> None:
    search = make(budget=budget)
    told = run(search, device(seed, noise), at_once)
    searching = [proposal for proposal, _ in told if proposal.purpose != "verification" and proposal.target_ms is None]
    assert len(searching) <= budget
    assert len({proposal.genome for proposal in searching}) == len(searching)
    for state in search.targets:
        fresh = [o.median_ms for p, o in told if p.target_ms == state.target_ms and p.purpose == "verification"]  # type: ignore[union-attr]
        if state.status == "met":
            assert state.verified_ms is not None
            assert state.verified_ms <= state.target_ms
            # Of its own, or of another target's winner that is within this target too.
            verified = [
                outcome.median_ms
                for proposal, outcome in told
                if proposal.purpose == "verification"
                and proposal.architecture == state.architecture
                and isinstance(outcome, Measurement)
            ]
            assert state.verified_ms in verified
            assert state.note or state.verified_ms == fresh[-1]
        else:
            assert state.reason
            assert all(median > state.target_ms for median in fresh)


def test_a_spread_that_has_to_be_measured_again_stays_within_the_budget() -> None:
    honest = device(noise=0.0)

    def answer(proposal: Proposal) -> Measurement:
        found = honest(proposal)
        assert isinstance(found, Measurement)
        return measurement(found.median_ms, quality="slowed", undisturbed_ms=None)

    search = make(budget=10, initial=8)
    told = run(search, answer)
    assert [proposal.purpose for proposal, _ in told[:10]] == ["initial-design"] * 10
    assert all(proposal.target_ms is not None for proposal, _ in told[10:])
    assert search.measurements == 10
    assert [state.status for state in search.targets] == ["met"] * 4


@pytest.mark.parametrize("seed", range(5))
def test_automatic_targets_are_met_by_good_use_of_the_time_they_give(seed: int) -> None:
    search = make(budget=24)
    told = run(search, device(seed))
    assert [state.status for state in search.targets] == ["met"] * 4
    latency = {proposal.genome: outcome.median_ms for proposal, outcome in told if isinstance(outcome, Measurement)}
    for state in search.targets:
        assert state.accuracy is not None
        # No subnet that was seen to fit comfortably is predicted noticeably better than the winner.
        fitting = np.array([g for g, ms in latency.items() if ms < 0.85 * state.target_ms], dtype=np.int16)
        if len(fitting):
            assert ACCURACY.predict(fitting).max() <= state.accuracy + 0.001


def test_it_spends_its_first_measurements_on_the_ends_and_the_spread_between() -> None:
    asked = make().ask(100)
    assert [proposal.purpose for proposal in asked] == ["initial-design"] * 8
    genomes = np.array([proposal.genome for proposal in asked], dtype=np.int16)
    assert (genomes[0] == SPACE.smallest()[0]).all()
    assert (genomes[1] == SPACE.largest()[0]).all()
    assert len(np.unique(genomes, axis=0)) == 8
    assert make(seed=1).ask(100)[2:] != asked[2:]


def test_it_waits_for_a_round_before_it_plans_the_next() -> None:
    search, answer = make(), device()
    first = search.ask(100)
    for proposal in first[:-1]:
        search.tell(proposal, answer(proposal))
        assert search.ask(1) == []
    search.tell(first[-1], answer(first[-1]))
    assert {proposal.purpose for proposal in search.ask(100)} == {"candidate"}


@pytest.mark.parametrize("seed", range(4))
def test_whoever_is_faster_in_a_round_it_ends_the_same(seed: int) -> None:
    ended = []
    for order in ("as asked", "turned round", "shuffled"):
        search, answer, rng = make(), device(seed, noise=0.0), np.random.default_rng(seed)
        while not search.finished:
            asked = search.ask(100)
            shuffled = [asked[i] for i in rng.permutation(len(asked))]
            for proposal in {"as asked": asked, "turned round": asked[::-1], "shuffled": shuffled}[order]:
                search.tell(proposal, answer(proposal))
                search.held_out_error()  # looked at in between
        assert [state.status for state in search.targets] == ["met"] * 4
        ended.append([(state.architecture, state.verified_ms) for state in search.targets])
    assert ended[0] == ended[1] == ended[2]


@pytest.mark.parametrize("upto", [3, 8, 11, 16, 100])
def test_told_again_what_it_was_told_it_asks_the_same(upto: int) -> None:
    told = run(make(), device(3), at_once=1)[:upto]
    first, again = make(), make()
    for search in (first, again):
        for proposal, outcome in told:
            search.tell(proposal, outcome)
    asked = first.ask(100)
    assert asked == again.ask(100)
    measured = {proposal.genome for proposal, _ in told}
    assert not measured & {proposal.genome for proposal in asked if proposal.purpose != "verification"}


@pytest.mark.parametrize("passes", [True, False])
def test_a_much_better_subnet_just_within_its_target_is_given_a_chance_to_pass(passes: bool) -> None:
    honest = device(3, noise=0.0)
    largest = SPACE.decode(SPACE.largest())[0]
    ends = honest(Proposal((), largest, "initial-design"))
    assert isinstance(ends, Measurement)
    target_ms = 1.01 * ends.median_ms  # within it, but not by its margin

    def answer(proposal: Proposal) -> Measurement | Failed:
        late = proposal.purpose == "verification" and proposal.architecture == largest and not passes
        return measurement(1.01 * target_ms) if late else honest(proposal)

    # The budget ends with the spread, which is unlikely to hold anything near as good.
    search = make(f"{target_ms}", budget=8)
    told = run(search, answer)
    verified = [proposal.architecture for proposal, _ in told if proposal.purpose == "verification"]
    (state,) = search.targets
    assert verified[0] == largest
    assert state.status == "met"
    assert (state.architecture == largest) == passes
    assert len(verified) == 1 + (not passes)


def test_a_miss_counts_and_the_target_is_met_by_another_subnet() -> None:
    honest = device(2, noise=0.0)
    slowed: list[tuple[int, ...]] = []

    def answer(proposal: Proposal) -> Measurement:
        found = honest(proposal)
        assert isinstance(found, Measurement)
        if proposal.purpose == "verification" and (not slowed or proposal.genome in slowed):
            slowed.append(proposal.genome)
            return measurement(found.median_ms * 1.3)
        return found

    search = make()
    told = run(search, answer)
    assert [state.status for state in search.targets] == ["met"] * 4
    assert slowed
    assert all(state.genome is not None and tuple(state.genome.tolist()) != slowed[0] for state in search.targets[:1])
    assert sum(proposal.purpose == "verification" for proposal, _ in told) > 4


def test_a_disturbed_verification_is_made_again_on_the_same_subnet() -> None:
    honest = device(2, noise=0.0)
    disturbed: list[Proposal] = []

    def answer(proposal: Proposal) -> Measurement:
        found = honest(proposal)
        assert isinstance(found, Measurement)
        if proposal.purpose == "verification" and not disturbed:
            disturbed.append(proposal)
            slowed_ms, undisturbed_ms = found.median_ms * 3, found.median_ms
            return measurement(slowed_ms, undisturbed_ms=undisturbed_ms, quality="noisy", half_width_percent=60.0)
        return found

    search = make()
    told = run(search, answer)
    assert [state.status for state in search.targets] == ["met"] * 4
    again = [p.genome for p, _ in told if p.purpose == "verification" and p.target_ms == disturbed[0].target_ms]
    assert again[:2] == [disturbed[0].genome] * 2


def test_a_device_that_always_slows_down_for_verification_ends_unmet() -> None:
    honest = device(2)

    def answer(proposal: Proposal) -> Measurement:
        found = honest(proposal)
        assert isinstance(found, Measurement)
        return measurement(found.median_ms * (50 if proposal.purpose == "verification" else 1))

    search = make()
    run(search, answer)
    assert {state.status for state in search.targets} == {"missed"}
    assert all(state.reason for state in search.targets)


def answering_slowed_down(factor: float) -> Callable[[Proposal], Measurement]:
    """A device on which every verification is throttled, and takes so many times as long."""
    honest = device(2, noise=0.0)

    def answer(proposal: Proposal) -> Measurement:
        found = honest(proposal)
        assert isinstance(found, Measurement)
        if proposal.purpose != "verification":
            return found
        return measurement(found.median_ms * factor, quality="slowed", undisturbed_ms=None)

    return answer


def test_what_is_over_its_target_on_a_device_that_is_slowed_down_is_said_to_be_so() -> None:
    search = make()
    run(search, answering_slowed_down(50.0))
    for state in search.targets:
        assert (state.status, state.sha256) == ("missed", None)
        assert state.verified_ms is not None
        assert state.verified_ms > state.target_ms
        assert "slowed down in all re-measurements" in state.reason


def test_what_is_within_its_target_though_the_device_is_slowed_down_is_met() -> None:
    search = make()
    told = run(search, answering_slowed_down(1.0))
    for state in search.targets:
        assert state.status == "met"
        assert state.verified_ms is not None
        assert state.verified_ms <= state.target_ms
    assert sum(proposal.purpose == "verification" for proposal, _ in told) == 4


@pytest.mark.parametrize("latency", [1.0, 100.0])
def test_a_late_outcome_changes_no_target_of_a_search_that_has_ended(latency: float) -> None:
    """Also where a target ended with the winner of another, which no measurement of its own verified."""
    search, answer = make("1.6,2.4"), device()

    def slow_when_verified(proposal: Proposal) -> Measurement | Failed:
        looser = proposal.purpose == "verification" and proposal.target_ms == 2.4
        return measurement(9.0) if looser else answer(proposal)

    told = run(search, slow_when_verified)
    assert any("the winner of" in state.note for state in search.targets)
    before = [replace(state) for state in search.targets]
    verified = next(proposal for proposal, _ in told if proposal.purpose == "verification")
    for state in before:
        search.tell(replace(verified, target_ms=state.target_ms), measurement(latency))
        search.validate()
    assert search.targets == before


def test_infeasible_targets_name_the_fastest_subnet_and_leave_the_others() -> None:
    search = make("0.001,0.002,3")
    run(search, device())
    assert [state.status for state in search.targets] == ["infeasible", "infeasible", "met"]
    smallest = SPACE.decode(SPACE.smallest())[0]
    assert smallest.fingerprint in search.targets[0].reason


def test_everything_failing_ends_early_with_the_reason() -> None:
    search = make()
    told = run(search, lambda _: failed("out_of_memory"))
    assert len(told) <= 8
    assert "out_of_memory" in search.failure_reason


def test_targets_whose_subnets_fail_at_verification_are_not_called_infeasible() -> None:
    honest = device(1)
    search = make()
    run(search, lambda proposal: failed("bundle") if proposal.purpose == "verification" else honest(proposal))
    assert {state.status for state in search.targets} == {"missed"}
    assert all("bundle" in state.reason for state in search.targets)


def test_a_failing_subnet_is_tried_twice_and_then_ruled_out() -> None:
    honest = device(1)
    largest = tuple(int(gene) for gene in SPACE.largest()[0])
    search = make()
    told = run(search, lambda proposal: failed() if proposal.genome == largest else honest(proposal))
    assert sum(proposal.genome == largest for proposal, _ in told) == 2
    assert [state.status for state in search.targets] == ["met"] * 4


def test_a_measurement_that_says_little_is_taken_once_more() -> None:
    honest = device(2, noise=0.0)
    seen: set[tuple[int, ...]] = set()

    def answer(proposal: Proposal) -> Measurement:
        found = honest(proposal)
        assert isinstance(found, Measurement)
        first = proposal.genome not in seen
        seen.add(proposal.genome)
        return measurement(found.median_ms * 4, quality="noisy", half_width_percent=80.0) if first else found

    search = make(budget=40)
    told = run(search, answer)
    assert [state.status for state in search.targets] == ["met"] * 4
    spread = [proposal.genome for proposal, _ in told if proposal.purpose == "initial-design"]
    assert {spread.count(genome) for genome in spread} == {2}
    # The targets are those of the quiet device, not of the disturbed one.
    slowest = SPACE.decode(SPACE.largest())[0]
    assert search.targets[-1].target_ms < 1.2 * HiddenDevice(2).latency_ms(slowest)


def test_a_stored_run_whose_initial_design_is_not_complete_any_more_goes_on_with_its_targets() -> None:
    """What one board failed at twice before the others came, is another board's when the run is told again."""
    told = run(make("auto:3"), device())
    again = make("auto:3")
    left_out = next(proposal for proposal, _ in told if proposal.purpose == "initial-design")
    for proposal, outcome in told:
        if proposal is not left_out:
            again.tell(proposal, outcome)
    assert again.failure_reason == ""
    assert len(again.targets) == 3


def test_one_disturbed_measurement_does_not_stretch_automatic_targets() -> None:
    honest, largest = device(2, noise=0.0), tuple(int(gene) for gene in SPACE.largest()[0])

    def answer(proposal: Proposal) -> Measurement:
        found = honest(proposal)
        assert isinstance(found, Measurement)
        return measurement(found.median_ms * 8) if proposal.genome == largest else found

    search = make()
    run(search, answer)
    assert search.targets[-1].target_ms < 2 * HiddenDevice(2).latency_ms(SPACE.decode(SPACE.largest())[0])
    assert [state.status for state in search.targets] == ["met"] * 4


def test_automatic_targets_end_where_accuracy_does() -> None:
    """Where the smallest networks are as good as any, no target lies among the slow ones."""

    class Saturated:
        def predict(self, genomes: Genomes) -> NDArray[np.floating]:
            return np.minimum(ACCURACY.predict(genomes), float(ACCURACY.predict(SPACE.smallest())[0]))

        def gradient(self, genomes: Genomes) -> NDArray[np.floating]:
            return np.zeros_like(SPACE.one_hot(genomes))

    solver = BundleTargetSolver(SPACE, Saturated(), Strategy.BOTTOM_UP, rounds=3)
    design = InitialDesign(SPACE, count=10, seed=0)
    saturated = DeviceTuner(design, Saturated(), TargetRequest.parse("auto:4"), solver)
    rising = make()
    for search in (saturated, rising):
        run(search, device(noise=0.0))
    assert saturated.targets[-1].target_ms < 0.5 * rising.targets[-1].target_ms
    assert all(state.status == "met" for state in saturated.targets)


def test_results_of_unknown_speed_do_not_move_the_predictor() -> None:
    search, answer = make(), device()
    asked = search.ask(100)
    for proposal in asked[:-1]:
        search.tell(proposal, answer(proposal))
    genomes = SPACE.sample(20, np.random.default_rng(0))
    before = search.predict(genomes)[0]
    search.tell(asked[-1], measurement(1000.0, quality="slowed", undisturbed_ms=None))
    assert np.array_equal(search.predict(genomes)[0], before)


def test_a_slow_down_is_taken_out_of_what_the_predictor_learns() -> None:
    results = []
    for slowdown in (1.0, 1.08, 2.0):
        search, answer = make(), device(0, noise=0.0)
        for proposal in search.ask(100):
            found = answer(proposal)
            assert isinstance(found, Measurement)
            search.tell(proposal, measurement(found.median_ms * slowdown, undisturbed_ms=found.median_ms))
        results.append(search.predict(SPACE.sample(20, np.random.default_rng(0)))[0])
    assert np.allclose(results[0], results[1])
    assert np.allclose(results[0], results[2])


class TestTargetRequest:
    @pytest.mark.parametrize(
        "text", ["", "fast", "20,,30", "-5", "0", "nan", "inf", "auto", "auto:", "auto:0", "auto:x"]
    )
    def test_what_cannot_be_read_says_what_can(self, text: str) -> None:
        with pytest.raises(UsageError, match=r"20,30,40 or auto:4"):
            TargetRequest.parse(text)

    def test_fixed_targets_are_sorted_and_counted_once(self) -> None:
        assert TargetRequest.parse("30, 20ms,30").fixed_ms == (20.0, 30.0)

    @given(fastest=st.floats(0.01, 100), ratio=st.floats(1.0, 100), count=st.integers(1, 12))
    @settings(deadline=None)
    def test_automatic_targets_ascend_inside_the_range(self, fastest: float, ratio: float, count: int) -> None:
        slowest = fastest * ratio
        resolved = TargetRequest.parse(f"auto:{count}").resolve(fastest, slowest)
        targets = resolved.targets_ms
        assert 1 <= len(targets) <= count
        assert (len(targets) < count) == bool(resolved.note)
        assert all(b >= 1.0499 * a for a, b in itertools.pairwise(targets))
        assert targets[0] >= 1.03 * fastest or count == 1
        if len(targets) > 1:
            assert targets[-1] < slowest
        if count > 1 and ratio > 4:
            assert np.log(targets[-1] / targets[0]) >= 0.9 * np.log(ratio)

    def test_automatic_targets_are_round_numbers(self) -> None:
        assert TargetRequest.parse("auto:4").resolve(0.4123, 7.0321).targets_ms == (0.454, 1.12, 2.78, 6.89)
