"""Which subnets a device setting's search measures next, and how far it fills its targets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rigs.simulated_fleet import ACCURACY, SPACE, HiddenDevice, measurement
from rigs.tuners import run

from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.search.latency import PredictorLatency
from fleetnas.coordinator.tuning.candidates import RoundGains, measuring_s
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.coordinator.tuning.target_solver import ListTargetSolver
from fleetnas.fleet_protocol.messages import Measurement, MeasurementProtocol

GENOMES = np.unique(SPACE.sample(1500, np.random.default_rng(4)), axis=0)
TOP1 = np.asarray(ACCURACY.predict(GENOMES), dtype=np.float64)


def listed(targets: str, *, budget: int, seed: int = 0) -> DeviceTuner:
    """A search among `GENOMES` alone."""
    design = InitialDesign(SPACE, count=8, seed=seed, candidates=GENOMES)
    solver = ListTargetSolver(SPACE, ACCURACY, GENOMES)
    return DeviceTuner(design, ACCURACY, TargetRequest.parse(targets), solver, budget=budget)


def quiet(seed: int = 0, noise: float = 0.0) -> Callable[[Proposal], Measurement]:
    hidden, rng = HiddenDevice(seed), np.random.default_rng(seed)

    def answer(proposal: Proposal) -> Measurement:
        return measurement(hidden.latency_ms(proposal.architecture) * float(np.exp(rng.normal(0.0, noise))))

    return answer


@given(seed=st.integers(0, 1000), subnets=st.integers(1, 8), targets=st.integers(1, 4), taken=st.integers(0, 3))
def test_gain_of_a_round_is_that_of_the_best_subnet_that_passes(
    seed: int, subnets: int, targets: int, taken: int
) -> None:
    """Against sums over draws of the error that all subnets of a target share."""
    rng = np.random.default_rng(seed)
    within, top1, held = rng.random((subnets, targets)), rng.random(subnets), rng.random(targets)
    gains = RoundGains(within, top1, held)
    rows = rng.permutation(subnets)[:taken]
    for row in rows:
        gains.take(row)
    draws = (np.arange(2000) + 0.5) / 2000.0
    passes = within[None] >= draws[:, None, None]
    best = np.where(passes[:, rows], top1[rows][:, None], -np.inf).max(axis=1, initial=-np.inf)
    better = np.maximum(top1[:, None] - np.maximum(best, held)[:, None], 0.0)
    expected = (better * passes).mean(axis=0).sum(axis=1)
    expected[rows] = 0.0
    assert np.allclose(gains.expected(), expected, atol=2e-3 * targets)


def test_slow_subnets_take_longer_to_measure() -> None:
    protocol = MeasurementProtocol(warmup_s=0.5, min_s=1.0, min_runs=50, max_s=20.0)
    seconds = measuring_s(protocol, np.array([1.0, 20.0, 100.0, 1e6]))
    assert seconds[0] == seconds[1]
    assert seconds[2] - seconds[1] == pytest.approx(4.0)
    assert seconds[3] - seconds[1] == pytest.approx(19.0)


def test_a_design_and_a_solver_of_a_list_know_no_other_subnets() -> None:
    design = InitialDesign(SPACE, count=8, seed=0, candidates=GENOMES)
    known = {genome.tobytes() for genome in GENOMES}
    assert {genome.tobytes() for genome in design.subnets} <= known
    macs = SPACE.macs(GENOMES)
    assert [float(SPACE.macs(end[None])[0]) for end in design.ends] == [macs.min(), macs.max()]
    predictor = BayesianPredictor(design.prior)
    hidden = HiddenDevice(1)
    subnets = np.stack(design.subnets)
    predictor.update(
        design.features.features(subnets), [hidden.latency_ms(SPACE.decode(genome[None])[0]) for genome in subnets]
    )
    latency = PredictorLatency(design.features, predictor, sigmas=0.5, include_noise=True)
    predicted = latency.predict(GENOMES)
    targets = [0.5 * float(predicted.min()), *np.quantile(predicted, [0.1, 0.5, 0.9]).tolist()]
    found = ListTargetSolver(SPACE, ACCURACY, GENOMES)(latency, targets, GENOMES[:0], np.random.default_rng(0))
    assert found[0] is None
    for target_ms, genome in zip(targets[1:], found[1:], strict=True):
        assert genome is not None
        assert ACCURACY.predict(genome[None])[0] == TOP1[predicted <= target_ms].max()


@pytest.mark.parametrize("seed", range(4))
def test_with_budget_left_nothing_likely_and_better_is_untried(seed: int) -> None:
    search = listed("0.7,1,1.5,2.2", budget=60, seed=seed)
    told = run(search, quiet(seed, noise=0.003))
    assert search.measurements < search.budget
    measured = {proposal.genome for proposal, _ in told}
    mean_ms, _ = search.predict(GENOMES)
    untried = np.array([tuple(genome.tolist()) not in measured for genome in GENOMES])
    for state in search.targets:
        assert state.status == "met"
        assert state.accuracy is not None
        likely = untried & (mean_ms <= 0.98 * state.target_ms)
        assert TOP1[likely].max() <= state.accuracy + 0.001


def just_below(seed: int) -> tuple[float, tuple[int, ...]]:
    """A target 1.1 % above the latency of the best subnet within it, and that subnet."""
    hidden = HiddenDevice(seed)
    latency = np.array([hidden.latency_ms(architecture) for architecture in SPACE.decode(GENOMES)])
    for row in np.argsort(-TOP1):
        target_ms = 1.011 * latency[row]
        others = TOP1[(latency <= target_ms) & (np.arange(len(TOP1)) != row)].max(initial=0.0)
        if 0.001 < TOP1[row] - others < 0.004:
            return float(target_ms), tuple(GENOMES[row].tolist())
    raise AssertionError("no subnet stands out")


@pytest.mark.parametrize("passes", [True, False])
def test_a_winner_gives_way_to_a_better_subnet_that_is_re_measured_within_its_target(passes: bool) -> None:
    target_ms, better = just_below(0)
    honest = quiet(0)

    def answer(proposal: Proposal) -> Measurement:
        late = proposal.genome == better and proposal.purpose == "verification" and not passes
        return measurement(1.02 * target_ms) if late else honest(proposal)

    search = listed(f"{target_ms!r}", budget=60)
    told = run(search, answer)
    verified = [proposal.genome for proposal, _ in told if proposal.purpose == "verification"]
    assert better in verified[1:]
    (state,) = search.targets
    assert state.status == "met"
    assert state.genome is not None
    assert (tuple(state.genome.tolist()) == better) == passes
    assert passes or verified.count(better) == 1, "a subnet that is beyond its target is not tried again"


def test_told_again_what_it_was_told_it_challenges_the_same_winners() -> None:
    target_ms, _ = just_below(0)
    live, resumed = (listed(f"{target_ms!r}", budget=30) for _ in range(2))
    answer = quiet(0)
    challenges = 0
    while not live.finished:
        asked = live.ask(100)
        if live.phase == "verification":
            assert asked == resumed.ask(100)
            assert [state.status for state in live.targets] == [state.status for state in resumed.targets]
        challenges += bool(asked) and [state.status for state in live.targets] == ["met"]
        for proposal in asked:
            outcome = answer(proposal)
            live.tell(proposal, outcome)
            resumed.tell(proposal, outcome)
    assert challenges
    assert live.targets[0].sha256 == resumed.targets[0].sha256
    assert live.targets[0].architecture == resumed.targets[0].architecture
