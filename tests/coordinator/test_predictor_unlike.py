"""Devices like and unlike those that a prior was learned from: transfer helps, or steps aside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
from fleetnas.coordinator.predictors.device_fit import MeasuredDevice
from fleetnas.coordinator.predictors.evaluation.dataset import operation_features
from fleetnas.coordinator.predictors.learned_prior import learn_prior
from fleetnas.coordinator.predictors.metrics import spearman
from fleetnas.coordinator.predictors.prior import Floats, Prior, hierarchical_prior
from fleetnas.coordinator.predictors.transfer_hypotheses import Moments, transfer_hypotheses, untransferred
from fleetnas.coordinator.records.predictor_error import PredictorError
from fleetnas.coordinator.view import wording

_RNG = np.random.default_rng(0)
FEATURES, GROUPS = operation_features(_RNG.integers(0, 4, (600, 8)))
COMPUTE: Floats
MEMORY: Floats
COMPUTE, MEMORY = np.asarray(_RNG.gamma(4.0, 1.0, (2, FEATURES.shape[1])), dtype=np.float64)


def latency_ms(weights: Floats, seed: int) -> Floats:
    """Latencies of all architectures on a device of these weights, measured to 1 %."""
    return FEATURES @ weights * np.random.default_rng(seed).normal(1.0, 0.01, len(FEATURES))


@pytest.fixture(scope="module")
def learned() -> Prior:
    """A prior of five devices between the compute-bound and the memory-bound one."""
    known = [
        MeasuredDevice(
            str(share), str(share), FEATURES[:200], latency_ms((1 - share) * COMPUTE + share * MEMORY, i)[:200]
        )
        for i, share in enumerate((0.1, 0.3, 0.5, 0.7, 0.9))
    ]
    return learn_prior(known, GROUPS)


def like(seed: int) -> Floats:
    share = np.random.default_rng(seed).uniform(0.2, 0.8)
    weights: Floats = (1 - share) * COMPUTE + share * MEMORY
    return latency_ms(weights, seed)


def unlike(seed: int) -> Floats:
    weights = np.random.default_rng([seed, 1]).gamma(4.0, 1.0, (1, FEATURES.shape[1]))
    return latency_ms(weights[0], seed)


def after(prior: Prior, latency: Floats, seed: int, count: int = 20) -> BayesianPredictor:
    rows = np.random.default_rng([seed, 2]).choice(200, count, replace=False)
    predictor = BayesianPredictor(prior)
    predictor.update(FEATURES[rows], latency[rows])
    return predictor


def rank(prior: Prior, latency: Floats, seed: int) -> float:
    return spearman(after(prior, latency, seed).predict(FEATURES[200:])[0], latency[200:]) or 0.0


def test_the_weight_of_transfer_rises_for_a_like_device_and_falls_for_an_unlike_one(learned: Prior) -> None:
    start = BayesianPredictor(learned).transfer_weight
    assert start is not None
    for seed in range(5):
        near, far = (after(learned, make(seed), seed, 40).transfer_weight for make in (like, unlike))
        assert near is not None
        assert far is not None
        assert near > max(start, 0.95)
        assert far < min(start, 0.5)


def test_without_known_devices_there_is_no_weight_of_transfer() -> None:
    predictor = after(hierarchical_prior(FEATURES, GROUPS), like(0), 0)
    assert predictor.transfer_weight is None
    assert predictor.leave_one_out().transfer_weight is None


def test_transfer_hardly_harms_on_unlike_devices_and_helps_on_like_ones(learned: Prior) -> None:
    ignorant = hierarchical_prior(FEATURES[:200], GROUPS)
    # As priors were learned before: devices are like the known ones, without an amplitude of their contrast.
    believing = Prior(tuple(h for h in learned.hypotheses if h.transferred)[:10])
    harm, before, gain = (
        [rank(prior, make(seed), seed) - rank(ignorant, make(seed), seed) for seed in range(12)]
        for prior, make in ((learned, unlike), (believing, unlike), (learned, like))
    )
    assert np.mean(harm) > max(0.5 * float(np.mean(before)), -0.08)
    assert np.mean(gain) > 0.05


@pytest.mark.parametrize("make", [like, unlike])
def test_intervals_keep_their_word(learned: Prior, make: object) -> None:
    covered = []
    for seed in range(12):
        latency = make(seed)  # type: ignore[operator]
        mean, deviation = after(learned, latency, seed).predict(FEATURES[200:], include_noise=True)
        covered.append(np.mean(np.abs(mean - latency[200:]) <= 1.6449 * deviation))
    assert 0.8 <= np.median(covered) <= 0.99


def test_the_mixture_of_all_hypotheses_is_the_dense_one(learned: Prior) -> None:
    rows = np.random.default_rng(3).choice(200, 15, replace=False)
    latency = unlike(3)
    predictor = BayesianPredictor(learned, robust=False)
    for row in rows:
        predictor.update(FEATURES[row], latency[row])
    x, y, new = FEATURES[rows], latency[rows], FEATURES[300:330]
    logs, means, variances = [], [], []
    for hypothesis in learned.hypotheses:
        level = x @ hypothesis.mean
        noise = np.maximum(level, 0.05) ** 2 * (hypothesis.discrepancy**2 + 1e-12)
        joint = x @ hypothesis.covariance @ x.T + np.diag(noise)
        a, b, c = (
            y @ np.linalg.solve(joint, y),
            y @ np.linalg.solve(joint, level),
            level @ np.linalg.solve(joint, level),
        )
        t = (b + np.sqrt(b * b + 4 * a * len(y))) / (2 * a)
        exponent = t * t * a - 2 * t * b + c + np.linalg.slogdet(joint)[1] + np.log(t * t * a + len(y))
        logs.append(len(y) * np.log(t) - 0.5 * exponent + np.log(hypothesis.probability))
        gain = np.linalg.solve(joint, x @ hypothesis.covariance @ new.T).T
        means.append(new @ hypothesis.mean / t + gain @ (y - level / t))
        variances.append(np.diag(new @ hypothesis.covariance @ new.T - gain @ x @ hypothesis.covariance @ new.T) / t**2)
    chances = np.exp(np.array(logs) - max(logs))
    chances /= chances.sum()
    mean = chances @ np.array(means)
    variance = chances @ (np.array(variances) + (np.array(means) - mean) ** 2)
    found, deviation = predictor.predict(new)
    np.testing.assert_allclose(found, mean, rtol=1e-6)
    np.testing.assert_allclose(deviation, np.sqrt(variance), rtol=1e-4)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(3, 25), outliers=st.integers(0, 2))
def test_the_order_of_measurements_does_not_matter_under_a_learned_prior(
    learned: Prior, seed: int, count: int, outliers: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.choice(200, count, replace=False)
    latency = unlike(seed)[rows]
    latency[:outliers] *= 8.0
    at_once, shuffled = BayesianPredictor(learned), BayesianPredictor(learned)
    at_once.update(FEATURES[rows], latency)
    for place in rng.permutation(count):
        shuffled.update(FEATURES[rows[place]], latency[place])
    np.testing.assert_allclose(shuffled.weights, at_once.weights, rtol=1e-4, atol=1e-6 * np.abs(at_once.weights).max())


@pytest.mark.parametrize("families", [1, 2, 9])
def test_hypotheses_share_their_covariances_which_are_no_less_than_nothing(families: int) -> None:
    size = FEATURES.shape[1]
    zero = np.zeros((size, size))
    moments = Moments(COMPUTE / (FEATURES.mean(axis=0) @ COMPUTE), zero, zero, families)
    found = transfer_hypotheses(moments, untransferred(FEATURES, GROUPS), GROUPS)
    distinct = {id(hypothesis.covariance): hypothesis.covariance for hypothesis in found}
    assert len(distinct) <= 10 < len(found)
    assert {hypothesis.transferred for hypothesis in found} == {True, False}
    for covariance in distinct.values():
        values = np.linalg.eigvalsh(covariance)
        assert values[0] > -1e-9 * values[-1]


def test_fewer_families_leave_a_new_device_more_room() -> None:
    size = FEATURES.shape[1]
    between, zero = np.eye(size), np.zeros((size, size))
    unknown = untransferred(FEATURES, GROUPS)
    traces = [
        np.trace(transfer_hypotheses(Moments(unknown.mean, between, zero, families), unknown, GROUPS)[0].covariance)
        for families in (2, 3, 30)
    ]
    assert traces[0] > traces[1] > traces[2] > size


def test_the_view_tells_that_transfer_is_off() -> None:
    assert "transfer off" in wording.predictor_error(PredictorError(4.0, 0.9, 12, 0.01))
    assert "transfer" not in wording.predictor_error(PredictorError(4.0, 0.9, 12, 0.6))
    assert "transfer" not in wording.predictor_error(PredictorError(4.0, 0.9, 12))
