"""Slow-downs of a simulated device over time, known at every moment.

A subnet's slow-down at a moment is `uniform * (1 + contention * sensitivity)`. `uniform` slows all subnets alike, as a
clock, heat or time slices do. `contention` slows subnets in proportion to the bytes they move: `sensitivity` is 0 for
the smallest subnet of the space, 1 for the largest, and linear in the bytes in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fleetnas.supernet_export.spaces.base import COST_NAMES, DesignSpace, Genomes

Floats = NDArray[np.float64]

#: Duration of one level, and of a whole course, seconds.
STEP_S = 0.05
HORIZON_S = 7200.0
#: From here on every profile is as in the long run, seconds.
_SETTLED_S = 300.0
_BYTES = COST_NAMES.index("bytes_moved")


@dataclass(frozen=True)
class Disturbance:
    """One course of a profile: levels of `STEP_S` each, from second 0 on."""

    uniform: Floats
    contention: Floats

    def typical(self, sensitivity: Floats, start_s: float, end_s: float) -> Floats:
        """Median slow-down from one moment to another of subnets of these sensitivities, (n,)."""
        steps = slice(int(start_s / STEP_S), max(int(end_s / STEP_S), int(start_s / STEP_S) + 1))
        return _median_slowdown(self.uniform[steps], self.contention[steps], sensitivity)


def disturbance(profile: str, seed: int) -> Disturbance:
    """A course of the profile of that name; the same seed gives the same one."""
    rng = np.random.default_rng([seed, *profile.encode()])
    times: Floats = np.arange(round(HORIZON_S / STEP_S), dtype=np.float64) * STEP_S
    return Disturbance(*_PROFILES[profile](times, rng))


def long_run_slowdown(profile: str, sensitivity: Floats) -> Floats:
    """Median slow-down of subnets of these sensitivities once the profile has settled, (n,)."""
    return _median_slowdown(*_long_run(profile), sensitivity)


def sensitivity(space: DesignSpace, genomes: Genomes) -> Floats:
    """Share of a contention's slow-down that applies to each subnet, from 0 to 1, (n,)."""
    least, most = _bytes_moved(space, np.concatenate([space.smallest(), space.largest()]))
    found: Floats = (_bytes_moved(space, genomes) - least) / (most - least)
    return np.clip(found, 0.0, 1.0)


def _bytes_moved(space: DesignSpace, genomes: Genomes) -> Floats:
    found: Floats = space.costs(genomes)[:, :, _BYTES].sum(axis=1)
    return found


@cache
def _long_run(profile: str) -> tuple[Floats, Floats]:
    """Levels of several courses, one a second."""
    found = [disturbance(profile, seed) for seed in range(1000, 1004)]
    rows = slice(round(_SETTLED_S / STEP_S), None, round(1 / STEP_S))
    return (
        np.concatenate([course.uniform[rows] for course in found]),
        np.concatenate([course.contention[rows] for course in found]),
    )


def _median_slowdown(uniform: Floats, contention: Floats, sensitivity: Floats) -> Floats:
    if not contention.any():
        return np.full(len(sensitivity), float(np.median(uniform)))
    return np.array([float(np.median(uniform * (1.0 + contention * share))) for share in sensitivity])


# -- the profiles ----------------------------------------------------------------------------------------------

Levels = tuple[Floats, Floats]


def _quiet(times: Floats, rng: np.random.Generator) -> Levels:
    return np.ones(len(times)), np.zeros(len(times))


def _step(times: Floats, rng: np.random.Generator) -> Levels:
    """1.5x from second 60 on."""
    return np.where(times < 60.0, 1.0, 1.5), np.zeros(len(times))


def _sawtooth(times: Floats, rng: np.random.Generator) -> Levels:
    """From 1x to 2x every 40 s, with a random phase."""
    return 1.0 + (times / 40.0 + rng.random()) % 1.0, np.zeros(len(times))


def _bursts(times: Floats, rng: np.random.Generator) -> Levels:
    """3x for 30 % of the time, 4 s at a time on average."""
    return np.where(_bursts_at(times, rng, share=0.3, mean_s=4.0), 3.0, 1.0), np.zeros(len(times))


def _ramp(times: Floats, rng: np.random.Generator) -> Levels:
    """From 1x to 1.6x within the first minute, then 1.6x."""
    return 1.0 + 0.6 * np.minimum(times / 60.0, 1.0), np.zeros(len(times))


def _slow(times: Floats, rng: np.random.Generator) -> Levels:
    """1.8x all the time."""
    return np.full(len(times), 1.8), np.zeros(len(times))


def _contention(times: Floats, rng: np.random.Generator) -> Levels:
    """Between 0 and 40 %: a new level every 8 s on average, or (half of the courses) a slow walk over that range."""
    if rng.random() < 0.5:
        ends = np.cumsum(rng.exponential(8.0, _count(times, 8.0)))
        levels = rng.uniform(0.0, 0.4, len(ends) + 1)[np.searchsorted(ends, times)]
    else:
        steps = rng.normal(0.0, 0.05 * np.sqrt(STEP_S), len(times))
        walk = (rng.uniform(0.0, 0.4) + np.cumsum(steps)) % 0.8
        levels = np.minimum(walk, 0.8 - walk)
    return np.ones(len(times)), levels


def _mixture(times: Floats, rng: np.random.Generator) -> Levels:
    """A ramp to 1.3x, bursts of 2x for 15 % of the time, and contention, all at once."""
    ramp = 1.0 + 0.3 * np.minimum(times / 60.0, 1.0)
    bursts = np.where(_bursts_at(times, rng, share=0.15, mean_s=3.0), 2.0, 1.0)
    return ramp * bursts, _contention(times, rng)[1]


_PROFILES: dict[str, Callable[[Floats, np.random.Generator], Levels]] = {
    "quiet": _quiet,
    "step": _step,
    "sawtooth": _sawtooth,
    "bursts": _bursts,
    "ramp": _ramp,
    "slow": _slow,
    "contention": _contention,
    "mixture": _mixture,
}
#: Names of all profiles, the undisturbed one first.
PROFILES = tuple(_PROFILES)


def _bursts_at(times: Floats, rng: np.random.Generator, *, share: float, mean_s: float) -> NDArray[np.bool_]:
    """Moments inside bursts of random length, `mean_s` on average, which take `share` of the time.

    A pause is about as long as its burst asks for, so that this share holds for every minute or two and not in the
    long run alone: otherwise bursts took most of some campaigns, and their median slow-down was that of a burst.
    """
    count = _count(times, mean_s / share) + 50
    on = rng.gamma(2.0, mean_s / 2.0, count)
    off = on * (1.0 - share) / share * rng.uniform(0.5, 1.5, count)
    ends = np.cumsum(np.column_stack([on, off]).ravel())
    begin_s = rng.uniform(0.0, 10.0 * mean_s / share)
    found: NDArray[np.bool_] = np.searchsorted(ends, begin_s + times) % 2 == 0
    return found


def _count(times: Floats, mean_s: float) -> int:
    """Number of exponential durations of this mean that covers all the time for certain."""
    return int(1.5 * times[-1] / mean_s) + 50
