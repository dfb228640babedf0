"""Physical features: a linear predictor over them is a block latency table."""

from __future__ import annotations

import numpy as np
import pytest

from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
from fleetnas.coordinator.predictors.evaluation.baselines import (
    BlockTable,
    MacsLine,
    RescaledTable,
    block_table_genomes,
)
from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.predictors.prior import INDICATOR, SURCHARGE, Hypothesis, Prior, hierarchical_prior
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.spaces.registry import make_space


@pytest.mark.parametrize("name", ["digits", "ofa-mbv3"])
def test_slot_tables_add_up_to_the_prediction(name: str) -> None:
    space = make_space(name)
    rng = np.random.default_rng(0)
    mapping = FeatureMap(space)
    genomes = space.sample(200, rng)
    weights = rng.normal(size=len(mapping))
    constant, tables = mapping.slot_tables(weights)
    chosen = space.slots(genomes)
    total = constant + sum(table[chosen[:, s]] for s, table in enumerate(tables))
    np.testing.assert_allclose(total, mapping.features(genomes) @ weights, atol=1e-9)


def test_columns_are_the_costs_in_their_units() -> None:
    space = make_space("digits")
    mapping = FeatureMap(space)
    genomes = space.sample(50, np.random.default_rng(0))
    features = mapping.features(genomes)
    macs = np.array([".macs_" in name for name in mapping.names])
    # Slots whose cost never varies are in the constant, so only differences show in the columns.
    np.testing.assert_allclose(np.diff(features[:, macs].sum(axis=1)) * 1e6, np.diff(space.macs(genomes)), rtol=1e-9)
    assert len(mapping) == features.shape[1] == len(mapping.groups)


def test_a_device_additive_over_blocks_is_learned_from_few_measurements() -> None:
    space = make_space("digits")
    rng = np.random.default_rng(1)
    mapping = FeatureMap(space)
    genomes = space.sample(400, rng)
    features = mapping.features(genomes)
    prior = hierarchical_prior(features, mapping.groups)
    weights = prior.hypotheses[0].mean * rng.lognormal(0.0, 0.3, len(mapping))
    latency = 4.0 * features @ weights
    predictor = BayesianPredictor(prior)
    rows = predictor.suggest(features[:200], 15, rng)
    predictor.update(features[rows], latency[rows])
    error = np.abs(predictor.predict(features[200:])[0] / latency[200:] - 1.0)
    line = MacsLine(space.macs(genomes[rows]), latency[rows]).predict(space.macs(genomes[200:]))
    assert error.mean() < 0.03
    assert error.mean() < np.abs(line / latency[200:] - 1.0).mean()


def test_hierarchical_prior_gives_one_group_similar_weights() -> None:
    groups = np.array([0, 1, 1, 1, 2, 2, INDICATOR, INDICATOR])
    reference = np.random.default_rng(0).gamma(4.0, 1.0, (500, len(groups)))
    hypothesis = hierarchical_prior(reference, groups).hypotheses[0]
    assert reference.mean(axis=0) @ hypothesis.mean == pytest.approx(1.0)
    spread = np.sqrt(np.diagonal(hypothesis.covariance))
    correlation = hypothesis.covariance / np.outer(spread, spread)
    assert correlation[1, 2] > 0.3
    assert correlation[1, 4] == correlation[6, 7] == 0.0
    assert (hypothesis.mean[6:] == 0).all()


def test_priors_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="at least one hypothesis"):
        Prior(())
    with pytest.raises(UsageError, match="finite and of one size"):
        Prior((Hypothesis(np.zeros(2), np.eye(3), 0.01),))
    with pytest.raises(UsageError, match="finite and of one size"):
        Prior((Hypothesis(np.full(2, np.nan), np.eye(2), 0.01),))


def test_block_table_is_exact_for_a_device_additive_over_blocks() -> None:
    space = make_space("digits", {"resolutions": [32]})
    rng = np.random.default_rng(0)
    tables = [rng.gamma(2.0, 1.0, len(costs)) for costs in space.slot_costs]

    def device(genomes: np.ndarray) -> np.ndarray:
        chosen = space.slots(genomes)
        return np.sum([table[chosen[:, s]] for s, table in enumerate(tables)], axis=0)

    plan = block_table_genomes(space, space.largest())
    assert len(np.unique(plan, axis=0)) == len(plan)
    # Kernel and expand ratio of a block change one slot together: every pair of them is measured.
    genomes = space.sample(2000, rng)
    measured, there = space.slots(plan), space.slots(genomes)
    for slot in range(measured.shape[1]):
        assert set(there[:, slot]) <= set(measured[:, slot])
    table = BlockTable(space, plan, device(plan))
    np.testing.assert_allclose(table.predict(genomes), device(genomes), rtol=1e-6)


def test_a_rescaled_table_keeps_the_foreign_ranking() -> None:
    foreign = np.array([1.0, 2.0, 4.0])
    rescaled = RescaledTable(foreign, np.array([3.0, 6.0, 12.0]))
    np.testing.assert_allclose(rescaled.predict(np.array([3.0])), [9.0])


def test_a_line_needs_two_points() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        MacsLine(np.ones(1), np.ones(1))


def test_a_runtime_that_is_slow_on_large_kernels_is_learned_from_ten_measurements() -> None:
    """As LiteRT is on x86, whose 7x7 depthwise convolutions take five times as long per MAC as the smaller ones."""
    space = make_space("ofa-mbv3", {})
    mapped = FeatureMap(space)
    rng = np.random.default_rng(0)
    genomes = np.concatenate([space.smallest(), space.largest(), space.sample(200, rng)])
    features = mapped.features(genomes)
    weights = hierarchical_prior(features, mapped.groups).hypotheses[0].mean.copy()
    depthwise = [i for i, name in enumerate(mapped.names) if name.endswith("macs_depthwise")]
    large = [i for i, name in enumerate(mapped.names) if name.endswith("large_kernel_macs")]
    weights[large] = 4.0 * weights[depthwise].mean()
    latency_ms = 20.0 * features @ weights

    def error(columns: np.ndarray) -> float:
        predictor = BayesianPredictor(hierarchical_prior(features[:, columns], mapped.groups[columns]))
        predictor.update(features[:10, columns], latency_ms[:10], 0.01 * latency_ms[:10])
        predicted, _ = predictor.predict(features[10:, columns])
        return float(np.mean(np.abs(predicted / latency_ms[10:] - 1.0)))

    assert mapped.groups[large].tolist() == [SURCHARGE] * len(large)
    everything = np.arange(len(mapped))
    assert error(everything) < 0.05
    assert error(everything) < 0.5 * error(np.delete(everything, large))
