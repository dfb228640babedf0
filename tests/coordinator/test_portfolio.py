"""Few subnets for many demands: against every possible choice, against simple rules, and on a simulated fleet."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rigs.simulated_fleet import ACCURACY, HiddenDevice, Simulation

from fleetnas.coordinator.app.portfolio import PortfolioProblem, RunPortfolio, open_portfolio, parse_weights
from fleetnas.coordinator.app.portfolio_verification import verified_portfolio
from fleetnas.coordinator.records.outcome import CampaignOutcome
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.coordinator.search.exact_portfolio import exact_portfolio
from fleetnas.coordinator.search.portfolio import (
    Demands,
    choose_portfolio,
    choose_worst_case,
    portfolio_curve,
    portfolio_of,
)
from fleetnas.coordinator.search.portfolio_bound import mean_accuracy_bound, worst_case_bound
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import MeasurementProtocol

DEVICES = ("pi4", "pi5", "phone")


def random_demands(seed: int, candidates: int = 12, demands: int = 9) -> Demands:
    """Candidates on devices of different taste: a latency per candidate and device, targets per device."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(1.0, 4.0, candidates)
    accuracy = 0.6 + 0.05 * size + rng.normal(0.0, 0.01, candidates)
    latency = size[:, None] * rng.lognormal(0.0, 0.4, (candidates, demands))
    targets = rng.uniform(np.quantile(latency, 0.1, axis=0), np.quantile(latency, 0.9, axis=0))
    return Demands(accuracy, latency <= targets, rng.uniform(0.5, 2.0, demands))


def best_by_trying_all(demands: Demands, models: int) -> float:
    rows = range(len(demands.accuracy))
    return max(demands.value(chosen) for chosen in itertools.combinations(rows, models))


# -- the choice ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("models", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(8))
def test_no_other_set_is_worth_more(seed: int, models: int) -> None:
    demands = random_demands(seed)
    chosen = choose_portfolio(demands, models)
    assert len(chosen.chosen) <= models
    assert demands.value(chosen.chosen) == pytest.approx(best_by_trying_all(demands, models), rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_exact_solver_agrees_with_trying_all(seed: int) -> None:
    demands = random_demands(seed, candidates=14)
    found = exact_portfolio(demands, 3)
    assert found.proved
    assert found.portfolio is not None
    assert demands.value(found.portfolio.chosen) == pytest.approx(best_by_trying_all(demands, 3), rel=1e-9)
    assert found.bound == pytest.approx(found.portfolio.mean_accuracy, abs=1e-6)


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_a_choice_serves_with_what_meets_and_never_loses_to_simple_rules(seed: int, models: int) -> None:
    demands = random_demands(seed, candidates=30, demands=14)
    chosen = choose_portfolio(demands, models)
    by = demands.served_by(chosen.chosen)
    assert all(demands.meets[row, demand] for demand, row in enumerate(by) if row >= 0)
    one_for_all = max(demands.value([row]) for row in range(30))
    rng = np.random.default_rng(seed)
    own = [int(np.where(meets, demands.accuracy, -1).argmax()) for meets in demands.meets.T if meets.any()]
    random_winners = max(
        demands.value(rng.choice(own, min(models, len(own)), replace=False).tolist()) for _ in range(20)
    )
    assert demands.value(chosen.chosen) >= max(one_for_all, random_winners) - 1e-9


def test_more_models_never_lose_and_the_curve_ends_where_every_demand_has_its_best() -> None:
    demands = random_demands(3, candidates=40, demands=20)
    curve = portfolio_curve(demands, 100)
    values = [demands.value(point.chosen) for point in curve]
    assert values == sorted(values)
    assert [len(point.chosen) for point in curve] == list(range(1, len(curve) + 1))
    assert curve[-1].greatest_loss == 0.0
    assert curve[-1].served == int(demands.can_be_served.sum())


def test_serving_one_more_demand_goes_before_any_accuracy() -> None:
    accuracy = np.array([0.9, 0.1])
    meets = np.array([[True] * 9 + [False], [True] * 10])
    assert choose_portfolio(Demands(accuracy, meets), 1).chosen == (1,)
    both = choose_portfolio(Demands(accuracy, meets), 2)
    assert both.mean_accuracy == pytest.approx(0.82)


def test_a_demand_that_nothing_meets_is_left_out_and_told() -> None:
    demands = Demands(np.array([0.7, 0.8]), np.array([[True, False, False], [True, True, False]]))
    chosen = choose_portfolio(demands, 2)
    assert chosen.served == 2
    assert chosen.mean_accuracy == pytest.approx(0.8)
    assert demands.served_by(chosen.chosen).tolist() == [1, 1, -1]


@pytest.mark.parametrize("seed", range(6))
def test_the_worst_case_loses_least_where_it_loses_most(seed: int) -> None:
    demands = random_demands(seed, candidates=14, demands=8)
    found = choose_worst_case(demands, 3)
    mean = choose_portfolio(demands, 3)
    least = min(
        max(demands.losses(chosen))
        for chosen in itertools.combinations(range(14), 3)
        if (demands.served_by(chosen) >= 0).sum() == mean.served
    )
    assert found.served == mean.served
    if np.isfinite(least):
        assert found.greatest_loss == pytest.approx(least)
    assert found.greatest_loss <= mean.greatest_loss


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [([1.0, 0.0], "weights must be"), ([1.0, float("nan")], "weights must be"), ([1.0], "found")],
)
def test_weights_that_cannot_be_used_are_refused(weights: list[float], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        Demands(np.array([0.5]), np.array([[True, True]]), np.array(weights))


def test_no_model_is_no_portfolio() -> None:
    with pytest.raises(UsageError, match="at least 1 model; found 0"):
        choose_portfolio(random_demands(0), 0)


# -- weights from a file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not JSON"),
        ("[1]", "no JSON object"),
        ('{"pi4": 1, "pi4": 2}', "names pi4 twice"),
        ('{"pi4": 0}', "must be a number above 0; found 0"),
        ('{"pi4": NaN}', "must be a number above 0"),
        ('{"pi4": true}', "must be a number above 0"),
        ('{"pi4": {"a": 1}}', "must be a number above 0"),
        ('{"pi4": 1e300}', "must be a number above 0"),
    ],
)
def test_a_file_of_weights_is_checked(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse_weights("--weights w.json", text)


# -- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched() -> Simulation:
    fleet = Simulation(CampaignPlan(targets=TargetRequest.parse("auto:4"), budget=24, wait_for=3))
    for seed, name in enumerate(DEVICES):
        fleet.add(name, seed=seed)
    fleet.begin()
    fleet.run()
    fleet.campaign.finish()
    return fleet


@pytest.fixture
def problem(searched: Simulation) -> PortfolioProblem:
    return open_portfolio(searched.store, searched.run_id, ACCURACY)


def measure_on(searched: Simulation, plan: CampaignPlan) -> CampaignOutcome:
    """Measure given subnets on devices of the same hidden costs."""
    fleet = Simulation(plan)
    for seed, name in enumerate(DEVICES):
        if name in plan.devices:
            fleet.add(name, seed=seed)
    fleet.begin()
    fleet.run()
    fleet.campaign.finish()
    return outcome_of(fleet.store, fleet.run_id)


def test_all_models_are_no_worse_than_one_winner_per_target(problem: PortfolioProblem) -> None:
    chosen = problem.choose(12)
    assert chosen.winners_accuracy is not None
    assert chosen.mean_accuracy is not None
    assert chosen.mean_accuracy >= chosen.winners_accuracy - 1e-9
    for service in chosen.services:
        assert service.accuracy is not None
        assert service.demand.outcome.predicted_accuracy is not None
        assert service.accuracy >= service.demand.outcome.predicted_accuracy - 1e-9


def test_a_portfolio_is_verified_on_every_device_and_chosen_again_after_a_miss(
    searched: Simulation, problem: PortfolioProblem
) -> None:
    plans: list[CampaignPlan] = []

    def measure(plan: CampaignPlan) -> CampaignOutcome:
        plans.append(plan)
        return measure_on(searched, plan)

    def choose() -> RunPortfolio:
        return problem.choose(3)

    found = verified_portfolio(problem, choose, measure, MeasurementProtocol())
    assert plans, "some of the choice was only predicted"
    assert len(found.architectures) <= 3
    assert found.is_served(verified=True)
    devices = {name: HiddenDevice(seed) for seed, name in enumerate(DEVICES)}
    for service in found.services:
        assert service.architecture is not None
        true_ms = devices[service.demand.device].latency_ms(service.architecture)
        assert true_ms <= 1.03 * service.demand.target_ms, "noise of a measurement is 1 %"


def test_a_subnet_that_misses_a_target_does_not_serve_it_any_more(problem: PortfolioProblem) -> None:
    before = problem.choose(2)
    service = before.services[0]
    assert service.architecture is not None
    problem.tell(service.architecture, service.demand, 2 * service.demand.target_ms, met=False)
    after = problem.choose(2)
    (again,) = [each for each in after.services if each.demand is service.demand]
    assert again.architecture != service.architecture


def test_weights_decide_who_is_served_best(searched: Simulation) -> None:
    def mean_of(device: str, weights: dict[str, float]) -> float:
        chosen = open_portfolio(searched.store, searched.run_id, ACCURACY, weights).choose(2)
        return float(np.mean([each.accuracy or 0.0 for each in chosen.services if each.demand.device == device]))

    for device in DEVICES:
        assert mean_of(device, {device: 100.0}) >= mean_of(device, {}) - 1e-9
    with pytest.raises(UsageError, match=r"weights name pi6; did you mean pi5\? the run has"):
        open_portfolio(searched.store, searched.run_id, ACCURACY, {"pi6": 1.0})


def test_given_subnets_have_no_portfolio(searched: Simulation) -> None:
    architectures = tuple(row.architecture for row in outcome_of(searched.store, "run-1").devices[0].rows[:2])
    fleet = Simulation(CampaignPlan(targets=TargetRequest(), architectures=architectures, budget=6))
    fleet.add("pi4", seed=0)
    fleet.begin()
    with pytest.raises(UsageError, match="a portfolio needs a search"):
        open_portfolio(fleet.store, fleet.run_id, ACCURACY)


def test_no_portfolio_exceeds_the_bound_and_the_bound_is_close() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        accuracy = np.sort(rng.uniform(0.7, 0.8, 12))
        meets = accuracy[:, None] * rng.uniform(0.95, 1.05, (12, 9)) <= rng.uniform(0.7, 0.85, 9)
        meets[0] = True
        demands = Demands(accuracy, meets, rng.uniform(0.5, 2.0, 9))
        for models in (1, 2, 3):
            every = [portfolio_of(demands, chosen) for chosen in itertools.combinations(range(12), models)]
            every = [found for found in every if found.served == 9]
            best = max(found.mean_accuracy for found in every)
            bound = mean_accuracy_bound(demands, choose_portfolio(demands, models), models)
            assert bound is not None
            assert best - 1e-9 <= bound <= best + 0.01
            least = min(found.greatest_loss for found in every)
            assert worst_case_bound(demands, choose_worst_case(demands, models), models) <= least + 1e-9


def test_means_over_different_targets_have_no_bound() -> None:
    demands = Demands(np.array([0.7, 0.8]), np.array([[True, False], [False, True]]))
    assert mean_accuracy_bound(demands, choose_portfolio(demands, 1), 1) is None
    assert mean_accuracy_bound(demands, choose_portfolio(demands, 2), 2) == pytest.approx(0.75)
