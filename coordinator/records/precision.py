"""Precision that a measurement is asked for, and the protocol that reaches it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fleetnas.fleet_protocol.messages import MeasurementProtocol

#: How precise measurements are: as each one needs (`auto`), or all as the run's protocol says (`fixed`).
PrecisionChoice: TypeAlias = Literal["auto", "fixed"]
#: A coarse measurement takes at least this share of the protocol's times, these seconds and these runs: below
#: that, turns are too short to tell a disturbed moment from a slow subnet, and those of a reference are shorter than in
#: other measurements, so that its level is another one.
_LEAST_SHARE, _LEAST_S, _LEAST_RUNS = 0.15, 0.12, 8
#: The same of its warm-up and of its longest duration: caches and clocks take their time whatever the precision.
_LEAST_WARMUP_SHARE, _LEAST_CAP_SHARE = 0.4, 0.25


@dataclass(frozen=True)
class AskedPrecision:
    """Precision of one measurement."""

    half_width_percent: float
    """95 % half-width to reach, in percent of the latency."""
    sessions: int = 1
    """Fresh sessions of the runtime to average over, at least."""


def protocol_for(base: MeasurementProtocol, asked: AskedPrecision | None) -> MeasurementProtocol:
    """Return the protocol that reaches a precision, from a run's protocol; `base` itself where none is asked.

    A half-width shrinks with the square root of time. So a coarser measurement takes the square of the ratio of the
    half-widths of the times and runs of `base`. A finer one takes at least these, and goes on until it is precise
    enough or `max_s` is over.
    """
    if asked is None:
        return base
    share = min((base.half_width_percent / asked.half_width_percent) ** 2, 1.0)
    least_runs = math.ceil(base.min_runs * max(share, _LEAST_SHARE))
    return base.model_copy(
        update={
            "half_width_percent": asked.half_width_percent,
            "min_s": min(base.min_s, max(base.min_s * max(share, _LEAST_SHARE), _LEAST_S)),
            "min_runs": min(base.min_runs, max(_LEAST_RUNS, least_runs)),
            "warmup_s": base.warmup_s * max(share, _LEAST_WARMUP_SHARE),
            "max_s": max(base.max_s * max(share, _LEAST_CAP_SHARE), min(base.max_s, base.min_s)),
            "sessions": asked.sessions if share < 1.0 else max(asked.sessions, base.sessions),
        }
    )
