"""The online Bayesian predictor: exact, order-free, calibrated, hard to lie to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
from fleetnas.coordinator.predictors.prior import Hypothesis, Prior
from fleetnas.fleet_protocol.errors import UsageError

FEATURES = 12


def make_prior(discrepancies: tuple[float, ...] = (0.02,), *, size: int = FEATURES, spread: float = 0.4) -> Prior:
    mean = np.full(size, 1.0 / size)
    covariance = (spread / size) ** 2 * (np.eye(size) + 0.5 * np.ones((size, size)))
    return Prior(tuple(Hypothesis(mean, covariance, discrepancy) for discrepancy in discrepancies))


def make_device(
    rng: np.random.Generator, count: int, *, speed: float = 7.0, discrepancy: float = 0.02, size: int = FEATURES
) -> tuple[np.ndarray, np.ndarray]:
    """Features and latencies of a device drawn from the prior itself."""
    hypothesis = make_prior((discrepancy,), size=size).hypotheses[0]
    features = rng.gamma(8.0, 1.0 / 8.0, (count, size))
    level = features @ hypothesis.mean
    latency = np.zeros(count)
    while not (latency > 0).all():  # the prior is a Gaussian: a few of its devices would run backwards in time
        weights = rng.multivariate_normal(hypothesis.mean, hypothesis.covariance)
        latency = speed * (features @ weights + discrepancy * level * rng.normal(size=count))
    return features, latency


@pytest.mark.parametrize("count", [3, 11, 40, 150])
def test_online_posterior_equals_the_closed_form(count: int) -> None:
    rng = np.random.default_rng(count)
    x, y = make_device(rng, count)
    noise = rng.uniform(0.0, 0.05, count) * y
    predictor = BayesianPredictor(make_prior(), robust=False)
    for row in range(count):
        predictor.update(x[row], y[row], noise[row])

    # Written out anew: y/s ~ N(X m, X C X' + N); s maximises n log(1/s) - (y/s - X m)' V^-1 (y/s - X m) / 2.
    hypothesis = make_prior().hypotheses[0]
    level = x @ hypothesis.mean
    variance = x @ hypothesis.covariance @ x.T + np.diag(level**2 * (0.02**2 + np.maximum(noise / y, 1e-6) ** 2))
    inverse = np.linalg.inv(variance)
    speeds = np.geomspace(1.0, 40.0, 20_001)
    apart = y[None] / speeds[:, None] - level
    likelihood = -count * np.log(speeds) - 0.5 * np.einsum("si,ij,sj->s", apart, inverse, apart)
    assert likelihood.argmax() not in (0, len(speeds) - 1)
    speed = speeds[likelihood.argmax()]
    gain = hypothesis.covariance @ x.T @ inverse
    weights = speed * (hypothesis.mean + gain @ (y / speed - level))
    covariance = speed**2 * (hypothesis.covariance - gain @ x @ hypothesis.covariance)

    new = rng.gamma(8.0, 1.0 / 8.0, (30, FEATURES))
    mean, deviation = predictor.predict(new)
    np.testing.assert_allclose(mean, new @ weights, rtol=2e-4)
    np.testing.assert_allclose(deviation, np.sqrt(np.einsum("ni,ij,nj->n", new, covariance, new)), rtol=1e-3)
    np.testing.assert_allclose(predictor.covariance, covariance, atol=1e-3 * np.abs(covariance).max())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 30), outliers=st.integers(0, 3), repeats=st.integers(0, 4))
def test_order_of_updates_does_not_matter(seed: int, count: int, outliers: int, repeats: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = make_device(rng, count)
    y[:outliers] *= 10.0
    again = rng.integers(0, count, repeats)
    x, y = np.concatenate([x, x[again]]), np.concatenate([y, y[again] * rng.uniform(0.97, 1.03, repeats)])
    noise = 0.01 * y
    prior = make_prior((0.005, 0.02, 0.08))
    at_once, shuffled = BayesianPredictor(prior), BayesianPredictor(prior)
    at_once.update(x, y, noise)
    for row in rng.permutation(len(y)):
        shuffled.update(x[row], y[row], noise[row])
    new = rng.gamma(8.0, 1.0 / 8.0, (50, FEATURES))
    for one, other in zip(at_once.predict(new), shuffled.predict(new), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 15), times=st.integers(1, 5))
def test_repeating_a_measurement_only_shrinks_variance(seed: int, count: int, times: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = make_device(rng, count)
    noise = 0.05 * y
    predictor = BayesianPredictor(make_prior(), robust=False)
    predictor.update(x, y, noise)
    before = np.diagonal(predictor.covariance).copy()
    seen_before = predictor.predict(x[:1])[1][0]
    for _ in range(times):
        predictor.update(x[0], y[0], noise[0])
    assert predictor.predict(x[:1])[1][0] < seen_before
    assert (np.diagonal(predictor.covariance) <= before * (1.0 + 1e-9)).all()
    assert predictor.count == count


def test_a_device_that_lies_costs_at_most_a_point() -> None:
    costs = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, y = make_device(rng, 540)
        honest, lying = BayesianPredictor(make_prior((0.01, 0.04))), BayesianPredictor(make_prior((0.01, 0.04)))
        told = y[:40].copy()
        told[rng.choice(40, 2, replace=False)] *= 10.0
        honest.update(x[:40], y[:40])
        lying.update(x[:40], told)
        errors = [100.0 * np.mean(np.abs(p.predict(x[40:])[0] / y[40:] - 1.0)) for p in (honest, lying)]
        costs.append(errors[1] - errors[0])
    assert np.median(costs) < 0.3
    assert max(costs) < 1.0


def test_without_robustness_the_same_lies_ruin_the_fit() -> None:
    rng = np.random.default_rng(0)
    x, y = make_device(rng, 540)
    told = y[:40].copy()
    told[:2] *= 10.0
    predictor = BayesianPredictor(make_prior(), robust=False)
    predictor.update(x[:40], told)
    assert 100.0 * np.mean(np.abs(predictor.predict(x[40:])[0] / y[40:] - 1.0)) > 5.0


def test_honest_measurements_keep_their_full_weight() -> None:
    x, y = make_device(np.random.default_rng(3), 30)
    predictor = BayesianPredictor(make_prior())
    predictor.update(x, y)
    np.testing.assert_allclose(predictor.measurement_weights, 1.0)


@pytest.mark.parametrize("count", [5, 15, 60])
def test_intervals_cover_what_they_say(count: int) -> None:
    covered = []
    for seed in range(60):
        x, y = make_device(np.random.default_rng([seed, count]), count + 200)
        predictor = BayesianPredictor(make_prior((0.005, 0.02, 0.08)))
        predictor.update(x[:count], y[:count])
        mean, deviation = predictor.predict(x[count:], include_noise=True)
        covered.append(np.mean(np.abs(mean - y[count:]) < 1.6449 * deviation))
    assert 0.83 < np.mean(covered) < 0.96


def test_speed_of_the_device_does_not_matter() -> None:
    x, y = make_device(np.random.default_rng(1), 30)
    slow, fast = BayesianPredictor(make_prior()), BayesianPredictor(make_prior())
    slow.update(x[:20], y[:20])
    fast.update(x[:20], y[:20] / 1000.0)
    np.testing.assert_allclose(slow.predict(x)[0], 1000.0 * fast.predict(x)[0], rtol=1e-9)


def test_noisy_measurements_count_for_less() -> None:
    x, y = make_device(np.random.default_rng(2), 12)
    sure, unsure = BayesianPredictor(make_prior()), BayesianPredictor(make_prior())
    told = y.copy()
    told[0] *= 1.3
    sure.update(x, told, 0.0)
    unsure.update(x, told, np.where(np.arange(12) == 0, 0.3 * told, 0.0))
    assert abs(unsure.predict(x[:1])[0][0] - y[0]) < abs(sure.predict(x[:1])[0][0] - y[0])


def test_leave_one_out_is_close_to_refitting_without_each() -> None:
    x, y = make_device(np.random.default_rng(5), 15)
    predictor = BayesianPredictor(make_prior((0.01, 0.04)))
    predictor.update(x, y)
    errors = []
    for left in range(15):
        kept = np.arange(15) != left
        refit = BayesianPredictor(make_prior((0.01, 0.04)))
        refit.update(x[kept], y[kept])
        errors.append(100.0 * abs(refit.predict(x[left])[0][0] / y[left] - 1.0))
    found = predictor.leave_one_out()
    assert found.held_out == 15
    assert found.mape_percent == pytest.approx(np.mean(errors), rel=0.15)


def test_no_held_out_error_is_claimed_before_there_is_one() -> None:
    predictor = BayesianPredictor(make_prior())
    assert predictor.leave_one_out().mape_percent is None
    x, y = make_device(np.random.default_rng(0), 1)
    predictor.update(x, y)
    assert predictor.leave_one_out().mape_percent is None


def test_own_choice_beats_random_choice() -> None:
    squared = {True: 0.0, False: 0.0}
    for seed in range(120):
        rng = np.random.default_rng(seed)
        x, y = make_device(rng, 800, discrepancy=0.003, size=30)
        for own in squared:
            predictor = BayesianPredictor(make_prior((0.003,), size=30))
            rows = predictor.suggest(x[:500], 10, rng) if own else rng.choice(500, 10, replace=False)
            assert len(set(rows.tolist())) == 10
            predictor.update(x[rows], y[rows])
            error = (predictor.predict(x[500:])[0] - y[500:]) / np.mean(y[500:])
            squared[own] += float(np.mean(np.square(error)))
    # Over 360 seeds it is 6 % better, and chance moves that by 3 % here; rounding differs between processors.
    assert squared[True] < squared[False]


def test_targets_draw_the_choice_towards_them() -> None:
    rng = np.random.default_rng(0)
    x, y = make_device(rng, 1000)
    predictor = BayesianPredictor(make_prior())
    predictor.update(x[:10], y[:10])
    target = float(np.quantile(y, 0.9))
    distance = {}
    for name, targets in (("free", None), ("aimed", [target])):
        rows = predictor.suggest(x, 20, np.random.default_rng(1), targets_ms=targets)
        distance[name] = np.median(np.abs(y[rows] - target))
    assert distance["aimed"] < distance["free"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latency_ms": [np.nan]}, "latencies must be finite"),
        ({"latency_ms": [np.inf]}, "latencies must be finite"),
        ({"latency_ms": [0.0]}, "above 0 ms"),
        ({"latency_ms": [1.0, 2.0]}, "one latency"),
        ({"noise_ms": np.nan}, "noise must be finite"),
        ({"noise_ms": -1.0}, "not below 0"),
        ({"features": np.full(FEATURES, np.nan)}, "row 0, column 0 is nan"),
        ({"features": np.ones(FEATURES + 1)}, "12 columns"),
    ],
)
def test_impossible_input_is_refused_and_changes_nothing(change: dict[str, object], message: str) -> None:
    x, y = make_device(np.random.default_rng(0), 5)
    predictor = BayesianPredictor(make_prior())
    predictor.update(x, y)
    before = predictor.predict(x)[0]
    arguments: dict[str, object] = {"features": np.ones(FEATURES), "latency_ms": [1.0], "noise_ms": 0.0} | change
    with pytest.raises(UsageError, match=message):
        predictor.update(**arguments)  # type: ignore[arg-type]
    np.testing.assert_array_equal(predictor.predict(x)[0], before)


def test_more_than_the_pool_cannot_be_suggested() -> None:
    with pytest.raises(UsageError, match="enlarge the pool"):
        BayesianPredictor(make_prior()).suggest(np.ones((2, FEATURES)), 3, np.random.default_rng(0))
