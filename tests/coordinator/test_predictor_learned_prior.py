"""Learning a prior fast: the same fits, moments and votes as by their definitions, whatever the devices share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rigs.plain_prior import plain_fit, plain_learned, plain_log_likelihoods

from fleetnas.coordinator.predictors.active_learning import CANDIDATES_PER_CHOICE, i_optimal
from fleetnas.coordinator.predictors.device_fit import MeasuredDevice, fit_devices
from fleetnas.coordinator.predictors.evaluation.dataset import operation_features
from fleetnas.coordinator.predictors.learned_prior import learn_prior, prior_of_fits
from fleetnas.coordinator.predictors.marginal_likelihood import log_likelihoods
from fleetnas.coordinator.predictors.prior import Hypothesis, hierarchical_prior
from fleetnas.coordinator.predictors.similarity import distances

BLOCKS, OPERATIONS = 5, 3


def devices(rng: np.random.Generator, subnets: int, *, shared: bool) -> tuple[list[MeasuredDevice], np.ndarray]:
    """Three devices with two settings each, `shared`: on the same subnets; every ninth measurement is an outlier."""
    every = np.stack(np.meshgrid(*[range(OPERATIONS)] * BLOCKS), axis=-1).reshape(-1, BLOCKS)
    table, groups = operation_features(every)
    common, found = rng.gamma(4.0, 1.0, table.shape[1]), []
    rows = rng.choice(len(table), subnets, replace=False)
    features = table[rows]
    for family in range(3):
        own = common * rng.uniform(0.6, 1.4, len(common))
        for setting in range(2):
            if not shared:
                features = table[rng.choice(len(table), subnets, replace=False)]
            latency = (1.0 + family) * (features @ own) * rng.normal(1.0, 0.01, subnets)
            latency[::9] *= rng.uniform(1.5, 4.0)
            found.append(MeasuredDevice(f"{family}/{setting}", str(family), features, latency))
    return found, groups


@pytest.mark.parametrize(("subnets", "shared"), [(12, True), (12, False), (60, True), (60, False)])
def test_a_prior_is_the_same_as_by_its_definition(subnets: int, shared: bool) -> None:
    known, groups = devices(np.random.default_rng(subnets + shared), subnets, shared=shared)
    assert shared == (len({id(device.features) for device in known}) == 1)
    expected, probabilities = plain_learned(known, groups)
    found = learn_prior(known, groups)
    for one, other in zip(found.hypotheses, expected, strict=True):
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(one.covariance, other.covariance, atol=1e-7 * np.abs(other.covariance).max())
    np.testing.assert_allclose([h.probability for h in found.hypotheses], probabilities, rtol=1e-4)


def test_a_fit_does_not_depend_on_the_other_devices() -> None:
    known, groups = devices(np.random.default_rng(0), 12, shared=False)
    reference = np.concatenate([device.features for device in known])
    together = fit_devices(known, groups, reference)
    for place, device in enumerate(known):
        alone = fit_devices([device], groups, reference)
        np.testing.assert_array_equal(alone.weights[0], together.weights[place])
        np.testing.assert_array_equal(alone.covariance([0]), together.covariance([place]))


@pytest.mark.parametrize("subnets", [10, 60])
def test_covariances_are_summed_over_any_devices(subnets: int) -> None:
    known, groups = devices(np.random.default_rng(1), subnets, shared=subnets == 10)
    fits = fit_devices(known, groups)
    base = hierarchical_prior(fits.reference, groups, own=0.25).hypotheses[0]
    for chosen in ([], [2], [0, 3, 5]):
        expected = sum(
            (plain_fit(known[place], base, fits.typical).covariance for place in chosen),
            start=np.zeros((len(groups), len(groups))),
        )
        np.testing.assert_allclose(fits.covariance(chosen), expected, atol=1e-9)


def test_the_order_of_the_devices_does_not_matter() -> None:
    known, groups = devices(np.random.default_rng(2), 15, shared=False)
    one, other = learn_prior(known, groups), learn_prior(known[::-1], groups)
    for first, second in zip(one.hypotheses, other.hypotheses, strict=True):
        np.testing.assert_allclose(first.mean, second.mean, rtol=1e-9)
        assert first.probability == pytest.approx(second.probability, rel=1e-6)


def test_a_subset_of_the_fits_teaches_as_those_devices_alone() -> None:
    known, groups = devices(np.random.default_rng(3), 15, shared=False)
    reference = np.concatenate([device.features for device in known])
    some = prior_of_fits(fit_devices(known, groups, reference).subset([0, 1, 4]))
    alone = prior_of_fits(fit_devices([known[place] for place in (0, 1, 4)], groups, reference))
    for first, second in zip(some.hypotheses, alone.hypotheses, strict=True):
        np.testing.assert_array_equal(first.covariance, second.covariance)
        assert first.probability == second.probability


def test_likelihoods_are_those_of_leaving_each_measurement_out() -> None:
    rng = np.random.default_rng(4)
    known, groups = devices(rng, 20, shared=True)
    base = hierarchical_prior(known[0].features, groups).hypotheses[0]
    hypotheses = [
        Hypothesis(mean, covariance, discrepancy)
        for mean in (base.mean, base.mean * rng.uniform(0.5, 2.0, len(base.mean)))
        for covariance in (base.covariance, 0.01 * base.covariance)
        for discrepancy in (0.005, 0.08)
    ]
    for device in known[::2]:
        found = log_likelihoods(hypotheses, device.features, device.latency_ms)
        expected = plain_log_likelihoods(hypotheses, device.features, device.latency_ms)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_equal_subnets_count_as_one_measurement_their_mean() -> None:
    known, groups = devices(np.random.default_rng(9), 12, shared=True)
    base = hierarchical_prior(known[0].features, groups).hypotheses[0]
    x, y = known[0].features, known[0].latency_ms
    twice = log_likelihoods([base], np.concatenate([x, x[:4]]), np.concatenate([0.9 * y[:4], y[4:], 1.1 * y[:4]]))
    np.testing.assert_allclose(twice, log_likelihoods([base], x, y))


def test_a_wild_measurement_does_not_decide_between_hypotheses() -> None:
    rng = np.random.default_rng(5)
    known, groups = devices(rng, 24, shared=True)
    base = hierarchical_prior(known[0].features, groups).hypotheses[0]
    truth = base.mean * rng.uniform(0.9, 1.1, len(base.mean))
    hypotheses = [Hypothesis(truth, 0.01 * base.covariance, 0.01), base]
    latency = known[0].features @ truth * rng.normal(1.0, 0.01, 24)
    clean = log_likelihoods(hypotheses, known[0].features, latency)
    latency[3] *= 10.0
    wild = log_likelihoods(hypotheses, known[0].features, latency)
    assert clean[0] > clean[1] + 3
    assert wild[0] > wild[1] + 3


def test_a_device_without_a_fit_is_far_from_all_and_changes_no_other() -> None:
    known, groups = devices(np.random.default_rng(7), 12, shared=False)
    reference = np.concatenate([device.features for device in known])
    broken = replace(known[0], name="broken", family="broken", latency_ms=np.full(12, np.nan))
    fits = fit_devices([*known, broken], groups, reference)
    assert np.isnan(fits.weights[-1]).all()
    found = distances(fits)
    assert found[-1] == np.inf
    np.testing.assert_allclose(found[:-1], distances(fits.subset(range(len(known)))))
    with pytest.raises(np.linalg.LinAlgError, match="cannot be computed"):
        prior_of_fits(fits)


def test_own_choices_are_those_of_the_whole_covariance() -> None:
    rng = np.random.default_rng(8)
    root = rng.normal(size=(80, 9))
    joint, mean = root @ root.T, rng.uniform(1.0, 3.0, 80)
    noise, importance = np.full(80, 0.3), mean**-2.0
    found = i_optimal(mean, np.diagonal(joint) + noise, joint, 20, np.random.default_rng(1))
    drawn, free, expected = np.random.default_rng(1), np.arange(80), []
    for _ in range(20):
        offered = drawn.choice(
            free, min(CANDIDATES_PER_CHOICE, len(free)), replace=False, p=np.full(len(free), 1 / len(free))
        )
        left = [joint - np.outer(joint[place], joint[place]) / (joint[place, place] + 0.3) for place in offered]
        best = int(np.argmin([importance @ np.diagonal(covariance) for covariance in left]))
        expected.append(int(offered[best]))
        joint, free = left[best], free[free != offered[best]]
    assert found.tolist() == expected
