"""Progress of a run and the time that it has left, as snapshots and events carry them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunProgress:
    """How far a run is. Times are seconds."""

    done: float
    """Finished share of the work that is expected, in [0, 1]; 1 only where the run has ended."""
    left_s: float
    """Expected time to the end of the run."""
    least_left_s: float
    """With about 90 % certainty the run takes at least this long yet."""
    most_left_s: float
    """With about 90 % certainty the run takes at most this long yet."""


#: Of a run that has ended.
ENDED = RunProgress(1.0, 0.0, 0.0, 0.0)
