"""The search on a device that something slows down: what it says never contradicts what was measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rigs.simulated_fleet import ACCURACY, SPACE, HiddenDevice, measurement
from rigs.tuners import make, run, slower_than_when_explored

from fleetnas.coordinator.records.target_kinds import Target
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.coordinator.tuning.target_state import TargetState, with_latencies
from fleetnas.fleet_protocol.messages import Failed, Measurement, TaskKey

SMALLEST, LARGEST = (SPACE.decode(genomes)[0] for genomes in (SPACE.smallest(), SPACE.largest()))


def disturbed(seed: int, *, share: float, unknown: float, factor: float) -> Callable[[Proposal], Measurement]:
    """A device that is slowed down by up to `factor` for a share of its measurements, some of unknown speed."""
    hidden, rng = HiddenDevice(seed), np.random.default_rng(seed)

    def answer(proposal: Proposal) -> Measurement:
        undisturbed = hidden.latency_ms(proposal.architecture) * float(np.exp(rng.normal(0, 0.01)))
        slowdown = float(rng.uniform(1.0, factor)) if rng.random() < share else 1.0
        known = slowdown == 1.0 or rng.random() >= unknown
        return measurement(
            undisturbed * slowdown,
            quality="slowed" if slowdown > 1.1 else "ok",
            undisturbed_ms=undisturbed if known else None,
        )

    return answer


@given(
    seed=st.integers(0, 1000),
    share=st.floats(0.0, 1.0),
    unknown=st.floats(0.0, 1.0),
    factor=st.floats(1.0, 4.0),
    targets=st.sampled_from(["auto:4", "0.001,0.3,1,3,1000"]),
    budget=st.integers(8, 20),
)
@settings(max_examples=40, deadline=None)
def test_no_statement_contradicts_the_measurements(
    seed: int, share: float, unknown: float, factor: float, targets: str, budget: int
) -> None:
    search = make(targets, budget=budget)
    told = run(search, disturbed(seed, share=share, unknown=unknown, factor=factor), at_once=3)
    measured = [(proposal, outcome) for proposal, outcome in told if isinstance(outcome, Measurement)]
    fastest_ms = min(outcome.median_ms for _, outcome in measured)
    assert search.fastest_ms == fastest_ms
    for state in search.targets:
        if state.status == "infeasible":
            assert fastest_ms > state.target_ms
            assert all((o.undisturbed_ms or np.inf) > state.target_ms for _, o in measured)
            assert any(p.architecture == SMALLEST and o.undisturbed_ms is not None for p, o in measured)
        if state.status == "met":
            assert state.verified_ms is not None
            assert state.verified_ms <= state.target_ms
            assert state.typical_ms is None or state.typical_ms <= state.target_ms
            of_it = [o for p, o in measured if p.architecture == state.architecture and p.purpose == "verification"]
            assert any(o.median_ms == state.verified_ms and o.model_sha256 == state.sha256 for o in of_it)
        else:
            assert state.reason
        if "the fastest subnet found" in state.reason:
            assert f"{fastest_ms:.3g} ms" in state.reason, "what was measured after the target was given up counts"
    met = [state for state in search.targets if state.status == "met"]
    assert all((a.accuracy or 0.0) <= (b.accuracy or 0.0) for a, b in pairwise(met)), "winners are monotone"
    if met:
        looser = [state for state in search.targets if state.target_ms > met[0].target_ms]
        assert all(state.status == "met" for state in looser), "what meets a tighter target meets a looser one"


def test_a_subnet_that_was_within_its_target_on_a_slowed_device_can_win() -> None:
    hidden = HiddenDevice(2, noise=0.0)
    target_ms = 1.05 * 2.0 * hidden.latency_ms(LARGEST)

    def answer(proposal: Proposal) -> Measurement:
        median_ms = 2.0 * hidden.latency_ms(proposal.architecture)
        return measurement(median_ms, quality="slowed", undisturbed_ms=None)

    search = make(f"{target_ms}", budget=8)
    run(search, answer)
    (state,) = search.targets
    assert (state.status, state.architecture) == ("met", LARGEST)


def test_a_slowed_fastest_subnet_does_not_make_a_target_infeasible() -> None:
    hidden = HiddenDevice(1, noise=0.0)
    target_ms = 1.2 * hidden.latency_ms(SMALLEST)
    seen = 0

    def answer(proposal: Proposal) -> Measurement:
        nonlocal seen
        seen += proposal.architecture == SMALLEST
        undisturbed = hidden.latency_ms(proposal.architecture)
        if proposal.architecture == SMALLEST and seen == 1:
            return measurement(6 * undisturbed, quality="slowed", undisturbed_ms=None)
        return measurement(undisturbed)

    search = make(f"{target_ms}")
    run(search, answer)
    (state,) = search.targets
    assert state.status == "met"


def test_a_device_that_is_always_disturbed_is_not_said_to_be_too_slow() -> None:
    hidden = HiddenDevice(1, noise=0.0)
    target_ms = 1.2 * hidden.latency_ms(SMALLEST)
    search = make(f"{target_ms}", budget=10)
    run(
        search,
        lambda p: measurement(3 * hidden.latency_ms(p.architecture), quality="slowed", undisturbed_ms=None),
    )
    (state,) = search.targets
    assert state.status == "missed"
    assert "disturbed all the time" in state.reason


def after_initial_design(targets: str, verify: Callable[[Proposal, Measurement], Measurement | Failed]) -> DeviceTuner:
    """A quiet device whose re-measurements are what `verify` makes of them."""
    hidden = HiddenDevice(3, noise=0.0)

    def answer(proposal: Proposal) -> Measurement | Failed:
        honest = measurement(hidden.latency_ms(proposal.architecture))
        return verify(proposal, honest) if proposal.purpose == "verification" else honest

    search = make(targets)
    run(search, answer)
    return search


def test_a_lucky_moment_does_not_meet_a_target() -> None:
    """Each re-measurement is within its target, because the device ran twice as fast as it typically does."""

    def lucky(proposal: Proposal, honest: Measurement) -> Measurement:
        assert proposal.target_ms is not None
        undisturbed = 1.02 * proposal.target_ms  # what it typically takes: a little too much
        return measurement(0.5 * undisturbed, undisturbed_ms=undisturbed)

    (state,) = after_initial_design("2", lucky).targets
    assert state.status == "missed"
    assert "faster than it typically is" in state.reason
    assert (state.typical_ms or 0.0) > state.target_ms >= (state.verified_ms or 0.0)


def test_a_slow_moment_is_measured_again_and_not_held_against_a_subnet() -> None:
    slowed: list[Proposal] = []

    def slow_at_first(proposal: Proposal, honest: Measurement) -> Measurement:
        if len(slowed) < 4:
            slowed.append(proposal)
            return measurement(2 * honest.median_ms, quality="slowed", undisturbed_ms=honest.median_ms)
        return honest

    search = after_initial_design("auto:4", slow_at_first)
    assert [state.status for state in search.targets] == ["met"] * 4
    assert all(state.disturbed == 1 for state in search.targets)
    for state, proposal in zip(search.targets, slowed, strict=True):
        # The subnet itself, or a better one that challenged it later.
        assert proposal.predicted_accuracy is not None
        assert state.architecture == proposal.architecture or (state.accuracy or 0.0) > proposal.predicted_accuracy


def test_a_device_that_became_slower_for_good_keeps_no_winner_from_before() -> None:
    """Automatic targets follow the device's lasting speed."""
    hidden, clock = HiddenDevice(5, noise=0.0), iter(range(1000, 2000))

    def answer(slow_from: int) -> Callable[[Proposal], Measurement]:
        began = 1000.0

        def measure(proposal: Proposal) -> Measurement:
            nonlocal began
            now = float(next(clock))
            undisturbed = hidden.latency_ms(proposal.architecture)
            since = now - 1000 - slow_from
            if since == 6:
                began = now - 6
            slowdown = 1.5 if since >= 0 else 1.0
            return measurement(
                slowdown * undisturbed, undisturbed_ms=undisturbed, finished_unix_s=now, regime_unix_s=began
            )

        return measure

    quiet, slowing = make("auto:4"), make("auto:4")
    run(quiet, answer(10_000), at_once=1)
    clock = iter(range(1000, 2000))
    run(slowing, answer(9), at_once=1)
    for still, state in zip(quiet.targets, slowing.targets, strict=True):
        assert state.status == "met"
        # By then more is measured, and the range's slow end, which targets are spread up to, is predicted better.
        assert state.target_ms == pytest.approx(1.5 * still.target_ms, rel=0.15)
        assert state.architecture is not None
        assert state.accuracy == pytest.approx(still.accuracy, abs=0.01)
        assert 1.5 * hidden.latency_ms(state.architecture) <= state.target_ms


def test_a_target_beyond_the_largest_subnet_is_said_to_constrain_nothing() -> None:
    hidden = HiddenDevice(4, noise=0.0)
    largest_ms = hidden.latency_ms(LARGEST)
    search = make(f"{0.5 * largest_ms},{3 * largest_ms}")
    run(search, lambda proposal: measurement(hidden.latency_ms(proposal.architecture)))
    assert [state.status for state in search.targets] == ["met", "met"]
    assert search.targets[0].note == ""
    assert search.targets[1].note == f"constrains nothing: the largest subnet takes {largest_ms:.3g} ms"


def test_a_range_that_nothing_is_known_of_is_said_to_be_unknown() -> None:
    search = make("auto:4", budget=10)
    run(search, lambda _: measurement(5.0, quality="slowed", undisturbed_ms=None))
    assert search.failure_reason.startswith("range unknown")


def test_a_narrow_range_gets_fewer_targets_and_says_why() -> None:
    hidden = HiddenDevice(4, noise=0.0)
    search = make("auto:4")
    run(search, lambda proposal: measurement(10.0 + 0.2 * hidden.latency_ms(proposal.architecture)))
    found = [state.target_ms for state in search.targets]
    assert 1 <= len(found) < 4
    assert all(b >= 1.0499 * a for a, b in pairwise(found))
    assert "room for" in search.targets_note


def test_explicit_targets_are_there_from_the_beginning() -> None:
    search = make("1,2,5")
    assert [(state.target_ms, state.status) for state in search.targets] == [(1, "open"), (2, "open"), (5, "open")]
    assert search.phase == "initial-design"


def test_the_prediction_of_a_winner_leaves_its_own_measurements_out() -> None:
    hidden = HiddenDevice(4, noise=0.0)
    honest = make("auto:4")
    run(honest, lambda proposal: measurement(hidden.latency_ms(proposal.architecture)))
    predicted = [state.predicted_ms for state in honest.targets]
    measured = [state.measured_ms for state in honest.targets]
    assert None not in predicted
    assert predicted != measured
    errors = [abs(p / m - 1) for p, m in zip(predicted, measured, strict=True) if p and m]
    assert max(errors) < 0.2, "with all others learned it is no guess"


@given(st.integers(0, 500), st.integers(0, 7))
@settings(max_examples=15, deadline=None)
def test_slowed_data_never_makes_a_winner_worse(seed: int, extra: int) -> None:
    """A subnet of the initial design was also measured on a device of unknown speed: nobody is worse off."""
    hidden = HiddenDevice(seed, noise=0.0)
    winners = []
    for with_it in (False, True):
        search = make("auto:4", budget=8)
        design = search.ask(100)
        for proposal in design:
            search.tell(proposal, measurement(hidden.latency_ms(proposal.architecture)))
        if with_it:
            slowed = measurement(1.7 * hidden.latency_ms(design[extra].architecture), undisturbed_ms=None)
            search.tell(design[extra], slowed)
        winners.append([(state.target_ms, state.accuracy) for state in search.targets] if search.ask(100) else [])
    for (target_ms, before), (again_ms, after) in zip(*winners, strict=True):
        assert target_ms == again_ms
        assert (after or 0.0) >= (before or 0.0)


def test_the_accuracy_model_is_the_one_of_the_simulated_fleet() -> None:
    """The properties above compare predicted accuracies; larger must be better for them to mean anything."""
    assert ACCURACY.predict(SPACE.largest())[0] > ACCURACY.predict(SPACE.smallest())[0]


def test_a_re_measurement_waits_only_after_a_disturbance_has_spoiled_one() -> None:
    hidden, clock = HiddenDevice(4, noise=0.0), iter(range(1000, 2000))
    spoiled: list[tuple[int, ...]] = []

    def answer(proposal: Proposal) -> Measurement:
        undisturbed_ms, now = hidden.latency_ms(proposal.architecture), float(next(clock))
        slow = proposal.purpose == "verification" and not spoiled
        if slow:
            spoiled.append(proposal.genome)
        return measurement((3.0 if slow else 1.0) * undisturbed_ms, undisturbed_ms=undisturbed_ms, finished_unix_s=now)

    search = make("auto:4")
    told = run(search, answer, at_once=1)
    verified = [proposal for proposal, _ in told if proposal.purpose == "verification"]
    again = next(p for p in verified[1:] if p.target_ms == verified[0].target_ms)
    assert again.genome == spoiled[0]
    assert again.wait_above is not None
    assert [p for p in verified if p.wait_above is not None] == [again]
    assert [state.status for state in search.targets] == ["met"] * 4


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.3), (1.2, 1.8), (1.3, 2.2)])
def test_an_automatic_target_that_came_out_of_reach_is_replaced(low: float, high: float) -> None:
    replaced = 0
    for seed in range(12):
        search = make("auto:4,accuracy:60")
        told = run(search, slower_than_when_explored(seed, low, high))
        latencies = [state for state in search.targets if state.target is None]
        assert [state.status for state in latencies] == ["met"] * 4, seed
        assert all(b.target_ms >= 1.05 * a.target_ms for a, b in pairwise(latencies))
        if search.targets_note:
            replaced += 1
            first_ms = min(p.target_ms for p, _ in told if p.target_ms is not None and not p.target)
            assert search.targets_note.startswith(f"{latencies[0].target_ms:.3g} ms in place of {first_ms:.3g}")
            assert latencies[0].target_ms > first_ms
    assert replaced or high == 1.3


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_targets_that_were_replaced_are_so_again_in_a_resumed_run(seed: int) -> None:
    whole, answer = make("auto:4"), slower_than_when_explored(seed, 1.3, 2.2)
    rounds: list[list[tuple[Proposal, Measurement]]] = []
    while asked := whole.ask(100):
        rounds.append([(proposal, answer(proposal)) for proposal in asked])
        for proposal, outcome in rounds[-1]:
            whole.tell(proposal, outcome)
    assert "in place of" in whole.targets_note
    for upto in range(len(rounds) + 1):
        resumed = make("auto:4")
        for proposal, outcome in itertools.chain(*rounds[:upto]):
            resumed.tell(proposal, outcome)
        assert resumed.ask(100) == [proposal for proposal, _ in (rounds[upto] if upto < len(rounds) else [])]
        for proposal, outcome in itertools.chain(*rounds[upto:]):
            resumed.tell(proposal, outcome)
        assert not resumed.ask(100)
        assert [state.key for state in resumed.targets] == [state.key for state in whole.targets]
        assert [state.verified_ms for state in resumed.targets] == [state.verified_ms for state in whole.targets]
        assert resumed.targets_note == whole.targets_note


@pytest.mark.parametrize("targets", ["auto:4", "0.5,0.9,3"])
def test_late_outcomes_change_nothing_of_a_search_that_has_ended(targets: str) -> None:
    """Also not those of a target that was replaced, or that was given up and is within reach by them."""
    for seed in range(4):
        search = make(targets)
        told = run(search, slower_than_when_explored(seed, 1.3, 2.2))
        before = [replace(state) for state in search.targets]
        for proposal in [proposal for proposal, _ in told if proposal.purpose == "verification"]:
            for target_ms in {proposal.target_ms, 0.77, before[0].target_ms}:
                undisturbed_ms = HiddenDevice(seed).latency_ms(proposal.architecture)
                search.tell(replace(proposal, target_ms=target_ms), measurement(0.1, undisturbed_ms=undisturbed_ms))
                search.validate()
        assert search.targets == before


def test_targets_that_are_chosen_anew_keep_those_that_are_met() -> None:
    met, missed, other = TargetState(1.0), TargetState(2.0), TargetState.of(Target.parse("accuracy:60"))
    met.meet("a" * 64)
    missed.miss("slow")
    found = with_latencies([met, missed, other], (1.0, 2.0, 4.0))
    assert found[0] is met
    assert [(state.target_ms, state.status) for state in found[1:3]] == [(2.0, "open"), (4.0, "open")]
    assert found[3] is other


def test_a_single_automatic_target_is_replaced_too() -> None:
    """No other one bounds it from above."""
    hidden = HiddenDevice(0, noise=0.0)

    def answer(proposal: Proposal) -> Measurement:
        undisturbed_ms, slowdown = hidden.latency_ms(proposal.architecture), 12.0 if proposal.has_target else 1.0
        return measurement(
            slowdown * undisturbed_ms, quality="slowed" if proposal.has_target else "ok", undisturbed_ms=undisturbed_ms
        )

    search = make("auto:1", budget=12)
    told = run(search, answer)
    first_ms = next(proposal.target_ms for proposal, _ in told if proposal.target_ms is not None)
    (state,) = search.targets
    assert (state.status, state.target_ms > first_ms) == ("met", True)
    assert search.targets_note.startswith(f"{state.target_ms:.3g} ms in place of {first_ms:.3g}")


def test_a_target_whose_measurements_fail_keeps_its_reason() -> None:
    slower = slower_than_when_explored(0, 1.3, 2.2)
    lowest: list[float] = []

    def answer(proposal: Proposal) -> Measurement | Failed:
        if proposal.purpose == "verification":
            lowest.append(proposal.target_ms or 0.0)
            if proposal.target_ms == min(lowest):
                return Failed.model_validate({"task": TaskKey(task_id="t", attempt=1), "reason": "crashed"})
        return slower(proposal)

    search = make("auto:4")
    run(search, answer)
    assert "failed" in search.targets[0].reason
    assert search.targets[0].target_ms == min(lowest)
    assert not search.targets_note


def test_explicit_targets_are_never_replaced() -> None:
    hidden = HiddenDevice(0, noise=0.0)
    target_ms = 1.05 * hidden.latency_ms(SMALLEST)
    search = make(f"{target_ms},{10 * target_ms}")
    run(search, slower_than_when_explored(0, 1.3, 2.2))
    assert [state.target_ms for state in search.targets] == [target_ms, 10 * target_ms]
    assert search.targets[0].status == "missed"
    assert not search.targets_note
