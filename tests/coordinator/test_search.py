"""The search: every answer is in the space and within its bounds, reproducible, and the best where that is known."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rigs.search_problems import public_problem, random_accuracy, random_latency
from rigs.supernets import random_bundle

from fleetnas.coordinator.records.bounds import Bounds, largest_within, model_bytes, sample_within, subnet_costs
from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.search.candidate_table import CandidateTable
from fleetnas.coordinator.search.engine import EngineSettings, search
from fleetnas.coordinator.search.evolution import EvolutionSettings
from fleetnas.coordinator.search.guided import GuidedSettings
from fleetnas.coordinator.search.latency import MeasuredLatency, PredictorLatency, SlotTableLatency
from fleetnas.coordinator.search.problem import CachedAccuracy, PredictedAccuracy, Problem, TabularAccuracy
from fleetnas.fleet_protocol.errors import InfeasibleTargetError, UsageError
from fleetnas.supernet_export.emitters.onnx import emit_onnx
from fleetnas.supernet_export.emitters.tflite import emit_tflite
from fleetnas.supernet_export.slicing.subnet import slice_subnet
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes
from fleetnas.supernet_export.spaces.registry import make_space, space_names

SPACES = ("digits", "ofa-mbv3", "ofa-proxyless", "compofa-elastic", "ofa-resnet50")
QUICK = EvolutionSettings(population=20, generations=10, further_generations=5)


def _ways(rounds: int, islands: int = 1) -> list[tuple[Strategy, EngineSettings]]:
    """Every strategy that searches, with either engine."""
    guided = GuidedSettings(rounds=rounds, islands=islands)
    searching = [strategy for strategy in Strategy if strategy is not Strategy.EXHAUSTIVE]
    evolving = (Strategy.BOTTOM_UP, Strategy.TOP_DOWN, Strategy.INDEPENDENT)
    return [*((strategy, guided) for strategy in searching), *((strategy, QUICK) for strategy in evolving)]


def _targets(space: DesignSpace, latency: SlotTableLatency, count: int = 3) -> list[float]:
    fastest = Problem(space, random_accuracy(space), latency).fastest()[1]
    slowest = float(latency.predict(space.largest())[0])
    return [float(ms) for ms in np.linspace(1.02 * fastest, 0.8 * slowest, count)]


@pytest.mark.parametrize(("strategy", "engine"), _ways(rounds=4))
@settings(deadline=None, max_examples=8)
@given(name=st.sampled_from(SPACES), seed=st.integers(0, 1000))
def test_winners_are_in_the_space_within_their_targets_and_no_worse_for_larger_ones(
    strategy: Strategy, engine: EngineSettings, name: str, seed: int
) -> None:
    space = make_space(name)
    accuracy, latency = random_accuracy(space, seed), random_latency(space, seed)
    targets = _targets(space, latency, 4)
    result = search(
        Problem(space, accuracy, latency), targets, rng=np.random.default_rng(seed), strategy=strategy, engine=engine
    )
    assert [winner.target_ms for winner in result.winners] == targets
    for winner in result.winners:
        (genome,) = space.encode([winner.architecture])
        assert np.array_equal(genome, winner.genome)
        assert float(latency.predict(genome[None])[0]) == winner.latency_ms <= winner.target_ms
        assert winner.accuracy == pytest.approx(float(accuracy.predict(space.one_hot(genome[None]))[0]), abs=1e-6)
    accuracies = [winner.accuracy for winner in result.winners]
    assert accuracies == sorted(accuracies)
    # The front is one: faster is never more accurate.
    assert (np.diff(result.front_latency_ms) > 0).all()
    assert (np.diff(result.front_top1) > 0).all()


@pytest.mark.parametrize(("strategy", "engine"), _ways(rounds=4, islands=2))
def test_the_same_seed_gives_the_same_result(strategy: Strategy, engine: EngineSettings) -> None:
    space = make_space("ofa-mbv3")
    accuracy, latency = random_accuracy(space), random_latency(space)

    def run() -> tuple[int, bytes, list[bytes]]:
        result = search(
            Problem(space, accuracy, latency),
            _targets(space, latency),
            rng=np.random.default_rng(1),
            strategy=strategy,
            engine=engine,
        )
        winners = [winner.genome.tobytes() for winner in result.winners]
        return result.evaluations, result.front_genomes.tobytes(), winners

    assert run() == run()


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_exhaustive_finds_what_brute_force_finds(seed: int) -> None:
    space = make_space("compofa", {"resolutions": [160, 224]})
    accuracy, latency = random_accuracy(space, seed), random_latency(space, seed)
    everything = space.enumerate()
    top1, ms = accuracy.predict(space.one_hot(everything)), latency.predict(everything)
    targets = _targets(space, latency, 5)
    result = search(
        Problem(space, accuracy, latency), targets, rng=np.random.default_rng(0), strategy=Strategy.EXHAUSTIVE
    )
    for winner in result.winners:
        # Single precision: parts of another size round otherwise.
        assert winner.accuracy == pytest.approx(float(top1[ms <= winner.target_ms].max()), abs=1e-6)
    by_guided = search(
        Problem(space, accuracy, latency), targets, rng=np.random.default_rng(0), engine=GuidedSettings(islands=4)
    )
    assert by_guided.mean_accuracy >= result.mean_accuracy - 0.002
    assert all(g.accuracy <= e.accuracy + 1e-6 for g, e in zip(by_guided.winners, result.winners, strict=True))


@pytest.mark.parametrize("strategy", Strategy)
def test_an_infeasible_target_names_the_fastest_subnet_and_a_target_that_works(strategy: Strategy) -> None:
    space = make_space("compofa")
    accuracy, latency = random_accuracy(space), random_latency(space)
    fastest_ms = float(latency.predict(space.enumerate()).min())
    with pytest.raises(InfeasibleTargetError, match="the fastest one found takes") as caught:
        search(
            Problem(space, accuracy, latency), [0.9 * fastest_ms, 50], rng=np.random.default_rng(0), strategy=strategy
        )
    (advised,) = re.findall(r"raise the target to at least ([\d.]+) ms", str(caught.value))
    assert float(advised) == pytest.approx(fastest_ms, abs=0.011)
    result = search(
        Problem(space, accuracy, latency), [float(advised)], rng=np.random.default_rng(0), strategy=strategy
    )
    assert result.winners[0].latency_ms <= float(advised)


@pytest.mark.parametrize("engine", [GuidedSettings(rounds=5), QUICK], ids=lambda engine: engine.name)
@pytest.mark.parametrize("name", ["ofa-mbv3", "ofa-resnet50"])
@pytest.mark.parametrize("bound", ["parameters", "macs", "peak_activation_bytes", "model_bytes"])
def test_further_bounds_are_kept_and_cost_accuracy(name: str, bound: str, engine: EngineSettings) -> None:
    space = make_space(name)
    accuracy, latency = random_accuracy(space), random_latency(space)

    def cost(genomes: Genomes) -> float:
        return float(subnet_costs(space, genomes)[bound].max())

    least, most = cost(space.smallest()), cost(space.largest())
    limit = least + 0.15 * (most - least)
    targets = _targets(space, latency)
    args = {
        "rng": np.random.default_rng(0),
        "engine": engine,
        "strategy": Strategy.BOTTOM_UP,
    }
    free = search(Problem(space, accuracy, latency), targets, **args)  # type: ignore[arg-type]
    bounded = search(Problem(space, accuracy, latency, Bounds(**{bound: limit})), targets, **args)  # type: ignore[arg-type]
    assert cost(np.stack([winner.genome for winner in free.winners])) > limit
    assert cost(np.stack([winner.genome for winner in bounded.winners])) <= limit
    with pytest.raises(InfeasibleTargetError, match=f"the smallest subnet has {least:,.0f}; raise the bounds"):
        search(Problem(space, accuracy, latency, Bounds(**{bound: 0.9 * least})), targets, **args)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=20)
@given(name=st.sampled_from(space_names()), seed=st.integers(0, 1000), share=st.floats(0.0, 1.0))
def test_random_subnets_within_bounds_and_the_least_that_there_is(name: str, seed: int, share: float) -> None:
    space, rng = make_space(name), np.random.default_rng(seed)
    least, most = (subnet_costs(space, genomes) for genomes in (space.smallest(), space.largest()))
    for cost in ("parameters", "macs", "peak_activation_bytes", "model_bytes"):
        bounds = Bounds(**{cost: float(least[cost][0] + share * (most[cost][0] - least[cost][0]))})
        bounds.check(space)
        found = sample_within(space, bounds, 50, rng)
        assert np.array_equal(space.canonical(found), found)
        largest = largest_within(space, bounds, rng)
        for genomes in (found, largest):
            assert (subnet_costs(space, genomes)[cost] <= bounds.given()[cost]).all()
        free = subnet_costs(space, space.sample(50, rng))
        assert all((free[name] >= least[name]).all() for name in free)
        if share > 0.9:
            assert space.macs(largest)[0] >= np.median(space.macs(found))
    # Where nothing is forbidden, nothing is changed.
    unbounded = sample_within(space, Bounds(), 50, np.random.default_rng(seed))
    assert np.array_equal(unbounded, space.sample(50, np.random.default_rng(seed)))
    assert np.array_equal(largest_within(space, Bounds(), rng), space.largest())


def test_bounds_that_cannot_be_kept_are_all_named_with_the_least_that_there_is() -> None:
    space = make_space("ofa-mbv3")
    with pytest.raises(InfeasibleTargetError) as caught:
        Bounds(parameters=1e6, macs=1e7, model_bytes=1e9).check(space)
    for words in ("1,000,000 parameters", "3,404,824", "10,000,000 multiply", "41,476,224"):
        assert words in str(caught.value)
    assert "file" not in str(caught.value)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="above 0"):
            Bounds(macs=wrong)


def test_measured_subnets_count_as_measured_and_ruled_out_ones_never_win() -> None:
    space = make_space("ofa-mbv3")
    accuracy, table = random_accuracy(space), random_latency(space)
    target = _targets(space, table)[1]
    free = search(Problem(space, accuracy, table), [target], rng=np.random.default_rng(0)).winners[0]
    slower = MeasuredLatency(table, free.genome[None], np.array([target + 1.0]))
    ruled_out = MeasuredLatency(table, free.genome[None], np.array([np.inf]))
    for latency in (slower, ruled_out):
        other = search(Problem(space, accuracy, latency), [target], rng=np.random.default_rng(0)).winners[0]
        assert not np.array_equal(other.genome, free.genome)
        assert other.latency_ms <= target
    # A subnet that the table calls too slow wins once it was measured within the target.
    rng = np.random.default_rng(1)
    pool = space.sample(4000, rng)
    too_slow = pool[table.predict(pool) > target]
    best = too_slow[accuracy.predict(space.one_hot(too_slow)).argmax()]
    measured = MeasuredLatency(table, best[None], np.array([0.99 * target]))
    found = search(
        Problem(space, accuracy, measured),
        [target],
        rng=np.random.default_rng(0),
        warm_start=best[None],
        engine=GuidedSettings(rounds=1),
    ).winners[0]
    assert found.accuracy >= float(accuracy.predict(space.one_hot(best[None]))[0]) - 1e-6
    assert found.latency_ms <= target


class _Cautious:
    """A latency model that is not additive: a table and a margin that grows with the square root of the MACs."""

    def __init__(self, space: DesignSpace, table: SlotTableLatency) -> None:
        self.space, self.table = space, table

    def predict(self, genomes: Genomes) -> np.ndarray:
        return self.table.predict(genomes) + 2e-4 * np.sqrt(self.space.macs(genomes))

    def slot_tables(self) -> tuple[float, tuple[np.ndarray, ...]]:
        return self.table.slot_tables()


@pytest.mark.parametrize("strategy", [Strategy.JOINT, Strategy.BOTTOM_UP, Strategy.TOP_DOWN, Strategy.INDEPENDENT])
def test_a_model_that_is_not_additive_decides_and_its_targets_are_used_up(strategy: Strategy) -> None:
    space = make_space("ofa-mbv3")
    accuracy, table = random_accuracy(space), random_latency(space)
    latency = _Cautious(space, table)
    targets = [ms + 4.0 for ms in _targets(space, table)]
    result = search(Problem(space, accuracy, latency), targets, rng=np.random.default_rng(0), strategy=strategy)
    genomes = np.stack([winner.genome for winner in result.winners])
    assert (latency.predict(genomes) <= targets).all()
    # The margin is several milliseconds; proposals must follow it, not stop short of it.
    assert result.winners[1].latency_ms > 0.97 * targets[1]


def test_the_online_predictor_serves_as_a_latency_model() -> None:
    from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
    from fleetnas.coordinator.predictors.features import FeatureMap
    from fleetnas.coordinator.predictors.prior import hierarchical_prior

    space = make_space("digits")
    truth, features = random_latency(space), FeatureMap(space)
    sample = space.sample(40, np.random.default_rng(0))
    pool = features.features(space.sample(300, np.random.default_rng(2)))
    predictor = BayesianPredictor(hierarchical_prior(pool, features.groups, scale_ms=10.0))
    predictor.update(features.features(sample), truth.predict(sample))
    predict_additive, cautious = (PredictorLatency(features, predictor, sigmas=sigmas) for sigmas in (0.0, 2.0))
    constant, tables = predict_additive.slot_tables()
    genomes = space.sample(50, np.random.default_rng(3))
    assert np.allclose(SlotTableLatency(space, constant, tables).predict(genomes), predict_additive.predict(genomes))
    target = float(np.median(truth.predict(genomes)))
    winners = [
        search(Problem(space, random_accuracy(space), latency), [target], rng=np.random.default_rng(0)).winners[0]
        for latency in (predict_additive, cautious)
    ]
    assert winners[1].accuracy <= winners[0].accuracy
    mean = float(predict_additive.predict(winners[1].genome[None])[0])
    assert mean < winners[1].latency_ms <= target


def test_a_candidate_table_is_predicted_as_its_subnets_are() -> None:
    from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
    from fleetnas.coordinator.predictors.features import FeatureMap
    from fleetnas.coordinator.predictors.prior import hierarchical_prior

    space = make_space("digits")
    truth, features = random_latency(space), FeatureMap(space)
    sample = space.sample(30, np.random.default_rng(0))
    predictor = BayesianPredictor(hierarchical_prior(features.features(sample), features.groups, scale_ms=10.0))
    predictor.update(features.features(sample), truth.predict(sample), 0.01)
    table = CandidateTable(space, np.unique(space.sample(500, np.random.default_rng(1)), axis=0))
    predicted = PredictorLatency(features, predictor, include_noise=True)
    rng = np.random.default_rng(2)
    for sigmas in (0.5, 0.0, -0.5):
        margin = predicted.at_margin(sigmas)
        measured = MeasuredLatency(margin, table.genomes[:40], np.linspace(1.0, 2.0, 40))
        for model in (truth, margin, measured):
            rows = np.sort(rng.choice(len(table), 60, replace=False))
            np.testing.assert_allclose(model.predict_rows(table, rows), model.predict(table.genomes[rows]))
            constant, tables = model.slot_tables()
            additive = SlotTableLatency(space, constant, tables).predict(table.genomes)
            np.testing.assert_allclose(model.predict_additive(table), additive, rtol=1e-5)


def test_an_accuracy_is_foretold_once_and_depends_on_no_other_subnet() -> None:
    space = make_space("digits")
    asked: list[int] = []

    class Counting(PredictedAccuracy):
        def predict(self, genomes: Genomes) -> np.ndarray:
            asked.append(len(genomes))
            return super().predict(genomes)

    plain = random_accuracy(space)
    cached = CachedAccuracy(Counting(space, plain))
    genomes = np.unique(space.sample(20, np.random.default_rng(0)), axis=0)
    backwards, forwards = cached.predict(genomes[::-1])[::-1], cached.predict(genomes)
    assert np.array_equal(backwards, forwards)
    assert asked == [1] * len(genomes)
    np.testing.assert_allclose(forwards, plain.predict(space.one_hot(genomes)), atol=1e-6)


def test_only_known_subnets_win_where_accuracies_are_exact() -> None:
    space = make_space("ofa-mbv3")
    latency = random_latency(space)
    known = space.sample(300, np.random.default_rng(0))
    top1 = np.random.default_rng(1).uniform(0.6, 0.8, 300)
    target = float(np.median(latency.predict(known)))
    result = search(Problem(space, TabularAccuracy(known, top1), latency), [target], rng=np.random.default_rng(0))
    within = latency.predict(known) <= target
    assert result.winners[0].accuracy == top1[within].max()
    fastest_ms = float(latency.predict(known).min())
    with pytest.raises(InfeasibleTargetError, match=f"300 subnets.*whose accuracy is known.*{fastest_ms:.4g} ms"):
        search(Problem(space, TabularAccuracy(known, top1), latency), [0.99 * fastest_ms], rng=np.random.default_rng(0))
    # With a model behind them, a known value replaces the model's.
    model = PredictedAccuracy(space, random_accuracy(space))
    both = TabularAccuracy(known[:1], np.array([0.99]), model)
    assert both.predict(known[:1])[0] == 0.99
    assert both.predict(known[1:5]) == pytest.approx(model.predict(known[1:5]))
    fast_enough = float(latency.predict(known[:1])[0])
    found = search(Problem(space, both, latency), [fast_enough], rng=np.random.default_rng(0), warm_start=known[:1])
    assert found.winners[0].accuracy == 0.99


def test_a_warm_start_is_never_lost() -> None:
    space = make_space("ofa-mbv3")
    accuracy, latency = random_accuracy(space), random_latency(space)
    targets = _targets(space, latency)
    good = search(
        Problem(space, accuracy, latency), targets, rng=np.random.default_rng(0), engine=GuidedSettings(islands=2)
    )
    start = np.stack([winner.genome for winner in good.winners])
    for strategy, engine in _ways(rounds=1):
        again = search(
            Problem(space, accuracy, latency),
            targets,
            rng=np.random.default_rng(5),
            strategy=strategy,
            warm_start=start,
            engine=engine,
        )
        for before, after in zip(good.winners, again.winners, strict=True):
            assert after.accuracy >= before.accuracy


@pytest.mark.parametrize("targets", [[], [0.0], [-3.0], [float("nan")], [20.0, float("inf")]])
def test_targets_that_are_no_latencies_are_refused(targets: list[float]) -> None:
    space = make_space("compofa")
    with pytest.raises(UsageError, match="latency targets must be"):
        search(Problem(space, random_accuracy(space), random_latency(space)), targets, rng=np.random.default_rng(0))


def test_a_predictor_of_another_space_and_a_table_of_another_are_refused() -> None:
    small, large = make_space("digits"), make_space("ofa-mbv3")
    with pytest.raises(UsageError, match="fitted for another design space"):
        search(Problem(small, random_accuracy(large), random_latency(small)), [20.0], rng=np.random.default_rng(0))
    with pytest.raises(UsageError, match="make it for the same space"):
        SlotTableLatency(small, *random_latency(large).slot_tables())


def test_a_space_too_large_to_enumerate_says_so() -> None:
    space = make_space("ofa-mbv3")
    with pytest.raises(UsageError, match="more than the 1,000,000"):
        search(
            Problem(space, random_accuracy(space), random_latency(space)),
            [30.0],
            rng=np.random.default_rng(0),
            strategy=Strategy.EXHAUSTIVE,
        )


def test_the_guided_engine_beats_evolution_with_a_twentieth_of_its_evaluations(public_data: Path) -> None:
    space, accuracy, latency = public_problem(public_data)
    targets = [float(ms) for ms in range(15, 61, 5)]
    guided = search(Problem(space, accuracy, latency), targets, rng=np.random.default_rng(0))
    evolved = search(
        Problem(space, accuracy, latency),
        targets,
        rng=np.random.default_rng(0),
        strategy=Strategy.INDEPENDENT,
        engine=EvolutionSettings(generations=100),
    )
    assert guided.evaluations < evolved.evaluations / 20
    assert guided.mean_accuracy > evolved.mean_accuracy


@pytest.mark.parametrize("name", ["digits", "ofa-mbv3"])
def test_the_model_file_estimate_is_from_above(tmp_path: Path, name: str) -> None:
    space = make_space(name)
    bundle = random_bundle(tmp_path / "any.supernet", space)
    genomes = np.concatenate([space.smallest(), space.largest(), space.sample(3, np.random.default_rng(0))])
    for architecture, estimate in zip(space.decode(genomes), model_bytes(space, genomes), strict=True):
        graph = slice_subnet(bundle, architecture)
        for size in (len(emit_onnx(graph)), len(emit_tflite(graph))):
            assert 0.8 * estimate <= size <= estimate
