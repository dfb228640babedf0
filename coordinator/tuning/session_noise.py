"""Scatter of a subnet's latency between runtime sessions, which no single session shows.

Memory layout, placement of threads and prepacked weights differ from session to session, so a latency that is steady
within one session is not that of the model. The scatter is pooled from a default and from what a device setting shows:
subnets that were measured repeatedly, and measurements that are averaged over several sessions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from fleetnas.coordinator.tuning.subnet_observations import Run, SubnetObservations

#: Standard deviation between two sessions of one file before anything is known of the device, relative, and the degrees
#: of freedom that it counts for.
DEFAULT_SCATTER, _DEFAULT_DEGREES = 0.015, 6.0
#: Bounds of the scatter, relative.
_LEAST, _MOST = 0.005, 0.04
#: A deviation beyond this many default scatters counts as this many: disturbances are no scatter between sessions.
_MOST_DEVIATIONS = 3.0


def between_sessions(subnets: Iterable[SubnetObservations], undisturbed_ms: Callable[[Run], float | None]) -> float:
    """Return the standard deviation between sessions, relative: a function of the set of runs, not of their order.

    `undisturbed_ms` returns a run's latency at undisturbed speed.
    """
    squares, degrees = [_DEFAULT_DEGREES * DEFAULT_SCATTER**2], [_DEFAULT_DEGREES]
    most = (_MOST_DEVIATIONS * DEFAULT_SCATTER) ** 2
    for subnet in subnets:
        runs = sorted(
            (math.log(ms), run.within, run.sessions) for run in subnet.runs if (ms := undisturbed_ms(run)) is not None
        )
        if len(runs) > 1:
            # Of measurements over several sessions the scatter is part of their own noise.
            logs, within, sessions = (np.array(column, dtype=np.float64) for column in zip(*runs, strict=True))
            excess = float(np.var(logs, ddof=1) - np.mean(within**2))
            weight = (len(runs) - 1) * float(np.mean(sessions == 1))
            squares.append((len(runs) - 1) * min(excess, most) if weight else 0.0)
            degrees.append(weight)
        for run in subnet.runs:
            if run.session_variance is not None:
                # As it ran it holds the device's wandering, at undisturbed speed an uncertainty of few sessions.
                found = min(run.session_variance, run.sessions * run.within**2, most)
                squares.append((run.sessions - 1) * found)
                degrees.append(run.sessions - 1.0)
    # Exact sums do not depend on the order of arrival.
    pooled = math.fsum(squares) / math.fsum(degrees)
    return min(max(math.sqrt(max(pooled, 0.0)), _LEAST), _MOST)


def noise_of(run: Run, scatter: float) -> float:
    """Return the relative standard deviation of a run's latency at undisturbed speed, given that between sessions."""
    # Few sessions may agree by chance.
    alone = math.hypot(run.within, scatter) if run.sessions == 1 else max(run.within, scatter / math.sqrt(run.sessions))
    return alone if run.speeds is None else math.hypot(alone, run.speeds.error(run.board))
