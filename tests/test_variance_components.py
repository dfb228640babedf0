"""Variance components of simulated latencies: the right source gets the variance, intervals cover it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from variance_components import components, trimmed_mean

#: Subnets, processes, sessions of each, repeats of each.
SHAPE = (2, 6, 4, 3)


def latencies(rng: np.random.Generator, processes: float, sessions: float, within: float) -> NDArray[np.float64]:
    """Log-latencies with these deviations; what the machine did differs between stretches by more than all of them."""
    subnets, n, m, k = SHAPE
    return np.asarray(
        rng.normal(0.0, 1.0, (subnets, 1, 1, 1))
        + rng.normal(0.0, 0.2, (subnets, 1, m, 1))
        + rng.normal(0.0, processes, (subnets, n, 1, 1))
        + rng.normal(0.0, sessions, (subnets, n, m, 1))
        + rng.normal(0.0, within, (subnets, n, m, k))
    )


@pytest.mark.parametrize(("processes", "sessions", "within"), [(0.04, 0.01, 0.01), (0.0, 0.03, 0.01)])
def test_each_component_is_found_and_its_interval_covers_it(processes: float, sessions: float, within: float) -> None:
    rng = np.random.default_rng(5)
    found = [components(latencies(rng, processes, sessions, within), rng) for _ in range(200)]
    for name, deviation in (("processes", processes), ("sessions", sessions), ("within", within)):
        parts = [getattr(each, name) for each in found]
        variances = [part.deviation**2 for part in parts]
        assert np.mean(variances) == pytest.approx(deviation**2, rel=0.15, abs=1e-4)
        if deviation:
            covered = np.mean([part.low <= deviation <= part.high for part in parts])
            assert 0.9 <= covered <= 0.99


def test_noise_alone_has_no_other_component() -> None:
    rng = np.random.default_rng(6)
    found = [components(latencies(rng, 0.0, 0.0, 0.02), rng) for _ in range(100)]
    assert np.mean([each.processes.low == 0.0 for each in found]) >= 0.95
    assert np.mean([each.sessions.low == 0.0 for each in found]) >= 0.95


def test_a_trimmed_mean_covers_the_centre_and_ignores_single_outliers() -> None:
    rng = np.random.default_rng(7)
    covered = []
    for _ in range(600):
        values = rng.normal(0.3, 0.05, 12)
        values[rng.integers(12)] += 2.0 * (rng.random() < 0.3)
        mean, half_width = trimmed_mean(values.tolist())
        covered.append(abs(mean - 0.3) <= half_width)
    assert 0.92 <= np.mean(covered) <= 0.99
