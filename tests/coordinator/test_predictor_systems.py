"""Systems of the measurements' equations that grow, and are reweighted, equal those built anew."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetnas.coordinator.predictors.marginal_likelihood import Learned, Systems
from fleetnas.coordinator.predictors.prior import Floats

HYPOTHESES = 5


def problem(seed: int, count: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Joint prior covariances (H, n, n), prior latencies (H, n), noise (H, n) and latencies (n,) of one device."""
    rng = np.random.default_rng(seed)
    x = rng.gamma(4.0, 0.25, (count, 12))
    roots = rng.normal(size=(HYPOTHESES, 12, 12)) * rng.uniform(0.01, 0.3, (HYPOTHESES, 1, 1))
    joint = x @ (roots @ roots.transpose(0, 2, 1)) @ x.T
    mean = rng.uniform(0.5, 1.5, (HYPOTHESES, 12)) @ x.T
    noise = (mean * rng.uniform(0.005, 0.1, (HYPOTHESES, 1))) ** 2
    return joint, mean, noise, 7.0 * mean[0] * rng.normal(1.0, 0.05, count)


def built_anew(joint: Floats, mean: Floats, noise: Floats, y: Floats) -> Learned:
    systems = Systems(len(joint))
    systems.add(np.zeros((len(joint), 0, len(y))), joint, noise)
    return systems.learned(mean, y)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 45), steps=st.lists(st.integers(1, 12), max_size=6))
def test_what_grows_in_steps_and_is_reweighted_equals_what_is_built_anew(
    seed: int, count: int, steps: list[int]
) -> None:
    joint, mean, noise, y = problem(seed, count)
    grown = Systems(HYPOTHESES)
    start = 0
    for end in [*np.minimum(np.cumsum(steps), count).tolist(), count]:
        if end > start:
            grown.add(joint[:, :start, start:end], joint[:, start:end, start:end], noise[:, start:end])
            start = end
    rng = np.random.default_rng([seed, 1])
    weights = np.where(rng.random(noise.shape) < 0.3, 10.0 ** rng.uniform(-4, 0, noise.shape), 1.0)
    active = np.flatnonzero(rng.random(HYPOTHESES) < 0.7)
    for kept in (np.ones_like(weights), weights):
        found = grown.reweighted(grown.learned(mean, y), active, kept[active])
        expected = built_anew(joint[active], mean[active], noise[active] / kept[active], y)
        np.testing.assert_allclose(found.log_likelihoods(), expected.log_likelihoods(), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found.speeds, expected.speeds, rtol=1e-7)
        for one, other in zip(
            found.left_out(noise[active], kept[active]),
            expected.left_out(noise[active], kept[active]),
            strict=True,
        ):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7 * y.max())


def test_a_measurement_left_out_is_predicted_as_if_it_had_not_been_made() -> None:
    joint, mean, noise, y = problem(3, 20)
    weights = np.ones_like(noise)
    everything = built_anew(joint, mean, noise, y)
    error, variance, _ = everything.left_out(noise, weights)
    for left in (0, 7, 19):
        kept = np.arange(20) != left
        inverse = np.linalg.inv(joint[0][np.ix_(kept, kept)] + np.diag(noise[0, kept]))
        gain = joint[0, left, kept] @ inverse
        speed = float(everything.speeds[0])
        predicted = speed * mean[0, left] + gain @ (y[kept] - speed * mean[0, kept])
        assert y[left] - predicted == pytest.approx(error[0, left], rel=1e-6)
        expected = joint[0, left, left] - gain @ joint[0, kept, left]
        assert variance[0, left] == pytest.approx(speed**2 * expected, rel=1e-5)
