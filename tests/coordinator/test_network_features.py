"""Columns of the whole network: what a device does differently throughout is learned from a few measurements."""

from __future__ import annotations

import numpy as np
import pytest

from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.predictors.prior import INDICATOR, hierarchical_prior
from fleetnas.supernet_export.spaces.base import COST_NAMES, DesignSpace
from fleetnas.supernet_export.spaces.registry import make_space, space_names


def _column(mapping: FeatureMap, name: str) -> int:
    return mapping.names.index(f"network.{name}")


def _of_the_network(mapping: FeatureMap) -> np.ndarray:
    return np.array([name.startswith("network.") for name in mapping.names])


@pytest.mark.parametrize("name", space_names())
def test_slot_tables_of_every_space_are_exact(name: str) -> None:
    space = make_space(name)
    rng = np.random.default_rng(0)
    mapping = FeatureMap(space)
    genomes = np.concatenate([space.smallest(), space.largest(), space.sample(100, rng)])
    weights = rng.normal(size=len(mapping))
    constant, tables = mapping.slot_tables(weights)
    assert [len(table) for table in tables] == [len(costs) for costs in space.slot_costs]
    chosen = space.slots(genomes)
    total = constant + sum(table[chosen[:, s]] for s, table in enumerate(tables))
    np.testing.assert_allclose(total, mapping.features(genomes) @ weights, rtol=1e-9)
    network = _of_the_network(mapping)
    assert (mapping.groups[network] == INDICATOR).all()
    assert (hierarchical_prior(mapping.features(genomes), mapping.groups).hypotheses[0].mean[network] == 0).all()


@pytest.mark.parametrize("name", space_names())
def test_features_are_a_function_of_the_network(name: str) -> None:
    """Genes of skipped blocks change nothing."""
    space = make_space(name)
    rng = np.random.default_rng(1)
    genomes = rng.integers(0, space.cardinalities, (100, space.gene_count), dtype=np.int16)
    mapping = FeatureMap(space)
    assert (mapping.features(genomes) == mapping.features(space.canonical(genomes))).all()


def test_there_is_no_excess_below_the_ridge_point() -> None:
    space = make_space("ofa-mbv3")
    mapping = FeatureMap(space)
    genomes = np.concatenate([space.smallest(), space.largest(), space.sample(500, np.random.default_rng(2))])
    features = mapping.features(genomes)
    for cost in ("macs_depthwise", "macs_project", "bytes_moved"):
        excess = features[:, _column(mapping, f"excess_{cost}")]
        work = space.costs(genomes)[:, :, COST_NAMES.index(cost)]
        assert (excess >= 0).all()
        assert excess[1] == excess.max() > 0
        # The slots' ridge point: no network without larger slots exceeds it, every other one does.
        bound = work[excess == 0].max() if (excess == 0).any() else 0.0
        assert (work[excess > 0].max(axis=1) > bound).all()
    depthwise = features[:, _column(mapping, "excess_macs_depthwise")]
    assert depthwise[0] == 0


def test_strided_convolutions_are_those_of_the_reducing_blocks() -> None:
    space = make_space("ofa-mbv3")
    strided = [bool(costs[:, COST_NAMES.index("strided_macs")].any()) for costs in space.slot_costs]
    reducing = [b.stride > 1 for b in space.block_list]  # type: ignore[attr-defined]
    assert strided == [False, False, *reducing, False]
    depthwise, medium, large = (
        np.concatenate([costs[:, COST_NAMES.index(name)] for costs in space.slot_costs])
        for name in ("macs_depthwise", "medium_kernel_macs", "large_kernel_macs")
    )
    assert ((medium == 0) | (medium == depthwise)).all()
    assert not (medium * large).any()


def _errors(space: DesignSpace, latency_ms: np.ndarray, genomes: np.ndarray, samples: int) -> tuple[float, float]:
    """Mean relative error on further subnets: with the columns of the whole network, and without them."""
    mapping = FeatureMap(space)
    features = mapping.features(genomes)
    found = []
    for columns in (np.ones(len(mapping), dtype=bool), ~_of_the_network(mapping)):
        predictor = BayesianPredictor(hierarchical_prior(features[:, columns], mapping.groups[columns]))
        predictor.update(features[:samples, columns], latency_ms[:samples], 0.01 * latency_ms[:samples])
        predicted, _ = predictor.predict(features[samples:, columns])
        found.append(float(np.mean(np.abs(predicted / latency_ms[samples:] - 1.0))))
    return found[0], found[1]


def test_a_roofline_device_is_learned_beyond_what_linear_costs_can() -> None:
    """Every block takes the larger of a launch and its projection, as on a GPU at a small batch size."""
    space = make_space("ofa-mbv3")
    genomes = space.sample(600, np.random.default_rng(3))
    work = space.costs(genomes)[:, :, COST_NAMES.index("macs_project")] / 1e6
    present = work > 0
    latency_ms = (present * np.maximum(work, np.median(work[present]))).sum(axis=1)
    with_network, without = _errors(space, latency_ms, genomes, 300)
    assert with_network < 0.75 * without


def test_a_device_slow_on_strided_convolutions_is_learned_from_twelve_measurements() -> None:
    space = make_space("ofa-mbv3")
    genomes = space.sample(300, np.random.default_rng(4))
    mapping = FeatureMap(space)
    features = mapping.features(genomes)
    weights = hierarchical_prior(features, mapping.groups).hypotheses[0].mean.copy()
    costs = space.costs(genomes)
    strided = costs[:, :, COST_NAMES.index("strided_macs")].sum(axis=1)
    latency_ms = 20.0 * (features @ weights + 0.4 * strided / strided.mean())
    with_network, without = _errors(space, latency_ms, genomes, 12)
    assert with_network < 0.7 * without
