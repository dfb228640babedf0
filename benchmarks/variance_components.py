"""Take the variance of latencies apart, between processes, sessions and repeats; means with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.student_t import student_t95

#: Draws of the generalised pivotal quantities.
_DRAWS = 20_000


@dataclass(frozen=True)
class Component:
    """Standard deviation of one component, as a fraction of the latency, with its 95 % interval."""

    deviation: float
    low: float
    high: float


@dataclass(frozen=True)
class Components:
    """The three components of log-latencies; one measurement of a fresh process has all of them."""

    processes: Component
    sessions: Component
    within: Component


def components(log_ms: NDArray[np.float64], rng: np.random.Generator) -> Components:
    """Return the variance components of `log_ms`, of shape (subnets, processes, sessions, repeats).

    Session s of all processes of a subnet was measured in the same stretch of time, whose mean is removed: what the
    machine did meanwhile is no property of a session. The estimates are those of the analysis of variance, which for
    balanced designs are those of restricted maximum likelihood where they are positive; the intervals are from
    generalised pivotal quantities, so a component that is not there has an interval that begins at 0. Source:
    Weerahandi, Exact Statistical Methods for Data Analysis (1995), 9.
    """
    subnets, processes, sessions, repeats = log_ms.shape
    cells = log_ms.mean(axis=3)
    blocks = cells - cells.mean(axis=1, keepdims=True)
    of_process = blocks.mean(axis=2)
    squares = (
        sessions * repeats * float((of_process**2).sum()),
        repeats * float(((blocks - of_process[:, :, None]) ** 2).sum()),
        float(((log_ms - cells[..., None]) ** 2).sum()),
    )
    freedom = (
        subnets * (processes - 1),
        subnets * (processes - 1) * (sessions - 1),
        subnets * processes * sessions * (repeats - 1),
    )
    means = [square / degrees for square, degrees in zip(squares, freedom, strict=True)]
    drawn = [square / rng.chisquare(degrees, _DRAWS) for square, degrees in zip(squares, freedom, strict=True)]
    return Components(
        processes=_component(
            (means[0] - means[1]) / (sessions * repeats), (drawn[0] - drawn[1]) / (sessions * repeats)
        ),
        sessions=_component((means[1] - means[2]) / repeats, (drawn[1] - drawn[2]) / repeats),
        within=_component(means[2], drawn[2]),
    )


def trimmed_mean(values: Sequence[float], share: float = 0.2) -> tuple[float, float]:
    """Mean without a share of the values on either side, and its 95 % half-width.

    Source: Tukey and McLaughlin (1963), by the winsorised variance.
    """
    ordered = np.sort(np.asarray(values))
    count = len(ordered)
    cut = int(share * count)
    winsorised = np.clip(ordered, ordered[cut], ordered[count - 1 - cut])
    error = winsorised.std(ddof=1) / ((1 - 2 * cut / count) * math.sqrt(count))
    return float(ordered[cut : count - cut].mean()), float(student_t95(count - 2 * cut - 1) * error)


def _component(variance: float, drawn: NDArray[np.float64]) -> Component:
    low, high = np.sqrt(np.maximum(0.0, np.quantile(drawn, [0.025, 0.975])))
    return Component(math.sqrt(max(0.0, variance)), float(low), float(high))
