"""Estimate latency at undisturbed speed from rounds in which a subject alternated with a reference subnet.

Contention and heat only ever add time, and they add it to a subject and to a reference of its size alike. So a low
quantile on both sides, over rounds in which the reference ran at its known speed (*clean* rounds), gives a ratio that
holds although the device's speed changes. Where speed changes within rounds, so that few are clean or some only look
so, the fastest tenth of all samples on both sides is compared instead, if at least a quarter of the reference's had its
known speed (*floor*). Where not even those had, the ratio is taken over all rounds and corrected by what a second
reference of another size felt at the same time. `docs/measuring.md` has the figures.

Everything here is plain arithmetic: no clock, no input, no output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fleetnas.agent.runtimes.stopping import critical_value

#: The quantile that stands for the speed of a turn.
LOW_QUANTILE = 0.25
#: The quantiles whose ratios are averaged, in the logarithm: they scatter less than any single one.
_RATIO_QUANTILES = (0.1, 0.2, 0.3, 0.4)
#: A reference turn within this factor of its level, times the regime's lasting slow-down, was undisturbed.
CLEAN_TOLERANCE = 1.10
#: Clean rounds that suffice for the ratio; with at least `_FEW_CLEAN_ROUNDS` it is taken too, with a wider interval.
CLEAN_ROUNDS = 4
_FEW_CLEAN_ROUNDS = 2
#: Below its level by more than this over more than `_LOWER_TURNS` turns, a reference was calibrated on a slowed device.
LOWER_TOLERANCE = 0.92
_LOWER_TURNS = 3
#: Two references whose slow-downs differ by less (in the logarithm) show that the device is slow as a whole.
UNIFORM_TOLERANCE = 0.05
#: Above this ratio of the slowest reading to the fastest, the median of several quantiles' ratios is taken instead: one
#: of a mixture of speeds may lie at the edge between two of them, and then not on the same side for both.
_STEADY_RANGE = 1.2
_MIXED_QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5)
#: The floor: which quantile, from how many samples on each side, and by how much it may be below the clean estimate
#: before the clean rounds count as clean by chance.
_FLOOR_QUANTILE, _FLOOR_SAMPLES, _FLOOR_DIFFERENCE = 0.1, 20, 0.06
#: Leaving out one of at most this many groups of consecutive rounds gives the interval.
_GROUPS = 16
#: A subject is slowed like an interpolation between the two references, in the logarithm of the MACs, give or take
#: this share of the difference between the two: sensitivity to contention follows the size only loosely.
_GAP_SHARE = 1.0
#: The same for a lasting difference: what else the two feel differently from moment to moment is no part of it.
_LASTING_GAP_SHARE = 0.35
#: A 95 % half-width below this is not believed: levels are not known better.
_LEAST_HALF_WIDTH = 0.005
#: The same where less than `CLEAN_ROUNDS` rounds were clean; of the floor and of what is corrected.
_LEAST_HALF_WIDTH_FEW, _LEAST_HALF_WIDTH_DISTURBED = 0.07, 0.04
#: An estimate that is more certain than this is good enough to stop at.
GOOD_HALF_WIDTH = 0.06
#: Above this half-width the observation is censored: the latency is only known to be at most as it ran.
MOST_HALF_WIDTH = 0.15

#: Foundation of an estimate; `bracketed` is that of `fleetnas.agent.measuring.bracketed`.
Basis: TypeAlias = Literal["clean", "floor", "corrected", "bracketed", "none"]


@dataclass(frozen=True, slots=True)
class Level:
    """Level of a reference, with its size and its lasting slow-down."""

    level_ms: float
    #: MACs, or any other size in which the references are ordered.
    size: float
    #: Lasting slow-down of the present regime.
    normal: float = 1.0


@dataclass(frozen=True, slots=True)
class Round:
    """A subject turn, the turns of the reference around it, and of the second reference after it; ms per inference."""

    subject_ms: tuple[float, ...]
    before_ms: tuple[float, ...]
    after_ms: tuple[float, ...]
    far_ms: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """Latency at undisturbed speed; `undisturbed_ms` is None if the rounds do not determine it."""

    undisturbed_ms: float | None
    #: 95 % half-width, as a fraction; valid at every look at rounds that are still being added.
    half_width: float
    #: The part of it that more rounds reduce: the scatter between rounds.
    scatter: float
    basis: Basis


def quantile(values: Sequence[float], fraction: float) -> float:
    """Interpolate linearly between order statistics; `values` in any order, at least one."""
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def thinned(values: Sequence[float], most: int = 32) -> tuple[float, ...]:
    """Return at most `most` values, ascending, of nearly the same distribution, which are sorted often below."""
    ordered = sorted(values)
    count = len(ordered)
    if count <= most:
        return tuple(ordered)
    return tuple(ordered[(2 * index + 1) * count // (2 * most)] for index in range(most))


def low(values: Sequence[float]) -> float:
    """Return the low quantile of `values`."""
    return quantile(values, LOW_QUANTILE)


def is_clean(before_ms: Sequence[float], after_ms: Sequence[float], near: Level) -> bool:
    """Whether the reference ran at its known speed on both sides of a subject turn."""
    limit_ms = CLEAN_TOLERANCE * near.level_ms * near.normal
    return low(before_ms) <= limit_ms and low(after_ms) <= limit_ms


def lower_level_ms(turns_ms: Sequence[Sequence[float]], level_ms: float) -> float:
    """Return the level of a reference after these turns of it: lower if it was calibrated on a slowed device."""
    # The low quantile of all turns, not of the fast ones: noise alone must never lower a level.
    reading_ms = low([value for turn in turns_ms for value in turn])
    return reading_ms if len(turns_ms) > _LOWER_TURNS and reading_ms < LOWER_TOLERANCE * level_ms else level_ms


def lasting_correction(slowdown: float, near: Level, far: Level | None, subject_size: float) -> tuple[float, float]:
    """Return the `correction` for a regime that slows the two references differently, from their normal slow-downs.

    It is scaled by the degree to which the reference's `slowdown` shows that the regime lasts.
    """
    whole = math.log(far.normal / near.normal) if far is not None else 0.0
    if far is None or abs(whole) <= math.log(CLEAN_TOLERANCE):  # normal slow-downs follow single readings within this
        return 0.0, 0.0
    share = math.log(slowdown) / math.log(near.normal) if near.normal > 1.0 else 0.0
    gap = min(1.0, max(0.0, share)) * whole
    return _reach(near, far, subject_size) * gap, _LASTING_GAP_SHARE * abs(gap)


def correction(rounds: Sequence[Round], near: Level, far: Level | None, subject_size: float) -> tuple[float, float]:
    """Return the subject's slow-down beyond the reference's, and its uncertainty, both as logarithms.

    Interpolates between the two references in the logarithm of the size. Without a reading of the second reference
    the uncertainty is infinite.
    """
    read = [each for each in rounds if each.far_ms]
    if not read or far is None:
        return 0.0, math.inf
    far_ms = pooled([each.far_ms for each in read], LOW_QUANTILE)
    near_ms = pooled([each.after_ms for each in read], LOW_QUANTILE)
    gap = math.log(far_ms / far.level_ms) - math.log(near_ms / near.level_ms)
    return _reach(near, far, subject_size) * gap, _GAP_SHARE * abs(gap)


def is_uniform(rounds: Sequence[Round], near: Level, far: Level | None) -> bool:
    """Whether at least `CLEAN_ROUNDS` rounds show that both references are slowed alike."""
    read = [each for each in rounds if each.far_ms]
    if len(read) < CLEAN_ROUNDS or far is None:
        return False
    return correction(read, near, far, near.size)[1] <= _GAP_SHARE * UNIFORM_TOLERANCE


def estimate(rounds: Sequence[Round], near: Level, far: Level | None, subject_size: float) -> Estimate:
    """Estimate latency at undisturbed speed from the rounds of one measurement, in any order."""
    clean: list[Round] = []
    disturbed: list[Round] = []
    for each in rounds:
        (clean if is_clean(each.before_ms, each.after_ms, near) else disturbed).append(each)
    found = _of_clean(clean, near, far, subject_size)
    if disturbed:
        if _is_clean_by_chance(clean, disturbed):
            found = _NOTHING
        floor = _of_floor(rounds, near, far, subject_size)
        if floor.log_ms < found.log_ms - _FLOOR_DIFFERENCE or floor.half_width < found.half_width:
            found = floor
    if found.half_width > GOOD_HALF_WIDTH and len(clean) < CLEAN_ROUNDS and len(rounds) >= _FEW_CLEAN_ROUNDS:
        log_ratio, error = _log_ratio(rounds)
        more, uncertainty = correction(rounds, near, far, subject_size)
        half_width = max(_LEAST_HALF_WIDTH_DISTURBED, math.hypot(error, uncertainty))
        if half_width < found.half_width:
            found = _Found(math.log(near.level_ms) + log_ratio - more, half_width, error, "corrected")
    if found.half_width > MOST_HALF_WIDTH:
        return Estimate(None, found.half_width, found.scatter, "none")
    return Estimate(math.exp(found.log_ms), found.half_width, found.scatter, found.basis)


@dataclass(frozen=True, slots=True)
class _Found:
    log_ms: float
    half_width: float
    scatter: float
    basis: Basis


_NOTHING = _Found(math.inf, math.inf, math.inf, "none")


def _of_clean(clean: Sequence[Round], near: Level, far: Level | None, subject_size: float) -> _Found:
    if len(clean) < _FEW_CLEAN_ROUNDS:
        return _NOTHING
    log_ratio, error = _log_ratio(clean)
    least = _LEAST_HALF_WIDTH if len(clean) >= CLEAN_ROUNDS else _LEAST_HALF_WIDTH_FEW
    slowdown = pooled(_reference(clean), LOW_QUANTILE) / near.level_ms
    return _in_regime(log_ratio, error, least, slowdown, "clean", near, far, subject_size)


def _is_clean_by_chance(clean: Sequence[Round], disturbed: Sequence[Round]) -> bool:
    """Whether the subject was faster in several disturbed rounds than in every clean one.

    If the device's speed changes within a round, a few of many rounds have a fast reference on both sides by chance.
    """
    if not clean:
        return False
    fastest_ms = LOWER_TOLERANCE * min(low(each.subject_ms) for each in clean)
    faster = sum(low(each.subject_ms) < fastest_ms for each in disturbed)
    return faster >= max(3, len(disturbed) / 10)


def _of_floor(rounds: Sequence[Round], near: Level, far: Level | None, subject_size: float) -> _Found:
    samples = min(sum(len(each.subject_ms) for each in rounds), sum(len(each.after_ms) for each in rounds))
    if samples < _FLOOR_SAMPLES or len(rounds) < _FEW_CLEAN_ROUNDS:
        return _NOTHING
    slowdown = pooled(_reference(rounds), LOW_QUANTILE) / near.level_ms
    if slowdown > CLEAN_TOLERANCE * near.normal:
        return _NOTHING
    log_ratio, error = _log_ratio(rounds, (_FLOOR_QUANTILE,))
    return _in_regime(log_ratio, error, _LEAST_HALF_WIDTH_DISTURBED, slowdown, "floor", near, far, subject_size)


def _in_regime(
    log_ratio: float,
    error: float,
    least: float,
    slowdown: float,
    basis: Basis,
    near: Level,
    far: Level | None,
    subject_size: float,
) -> _Found:
    more, uncertainty = lasting_correction(slowdown, near, far, subject_size)
    half_width = math.hypot(max(least, error), uncertainty)
    return _Found(math.log(near.level_ms) + log_ratio - more, half_width, error, basis)


def _reach(near: Level, far: Level, subject_size: float) -> float:
    """Return the subject's size on the scale of the two references: 0 at the near one, 1 at the far one."""
    whole = math.log(far.size / near.size)
    return min(1.0, max(-0.5, math.log(subject_size / near.size) / whole)) if whole else 0.0


def _log_ratio(rounds: Sequence[Round], fractions: tuple[float, ...] = ()) -> tuple[float, float]:
    """Return the logarithm of subject over reference, and its 95 % half-width by a jackknife over groups of rounds.

    At the quantiles `fractions`, else at those that suit the rounds' steadiness. Groups are consecutive rounds, so that
    a speed that wanders slowly shows as well.
    """
    readings = [low(turn) for each in rounds for turn in (each.before_ms, each.after_ms)]
    steady = max(readings) <= _STEADY_RANGE * min(readings)
    fractions = fractions or (_RATIO_QUANTILES if steady else _MIXED_QUANTILES)

    def ratio(subject_ms: Sequence[tuple[float, ...]], reference_ms: Sequence[tuple[float, ...]]) -> float:
        subject = pooled_quantiles(subject_ms, fractions)
        reference = pooled_quantiles(reference_ms, fractions)
        logs = [math.log(ours / theirs) for ours, theirs in zip(subject, reference, strict=True)]
        return sum(logs) / len(logs) if steady else median(logs)

    count = len(rounds)
    groups = min(_GROUPS, count)
    left_out: list[float] = []
    for group in range(groups):
        begin, end = group * count // groups, (group + 1) * count // groups
        others = [*rounds[:begin], *rounds[end:]]
        left_out.append(ratio([each.subject_ms for each in others], _without(rounds, begin, end)))
    mean = sum(left_out) / groups
    error = math.sqrt((groups - 1) / groups * sum((value - mean) ** 2 for value in left_out))
    # Of two rounds it is that of three: for the rest stands the least half-width of few clean rounds.
    half_width = critical_value(max(3, groups)) * error if groups > 1 else math.inf
    return ratio([each.subject_ms for each in rounds], _reference(rounds)), half_width


def _reference(rounds: Sequence[Round]) -> list[tuple[float, ...]]:
    return [each.before_ms + each.after_ms for each in rounds]


def _without(rounds: Sequence[Round], begin: int, end: int) -> list[tuple[float, ...]]:
    """Return the reference's turns of all rounds but those from `begin` to `end`.

    A turn between two rounds belongs to both. Leaving out a round leaves out the turn that opened it from both, and
    keeps the turn that closed it in both: if each turn stayed in one of them, only half of its scatter would show.
    """
    opened, closed = rounds[begin].before_ms, rounds[end - 1].after_ms
    turns: list[tuple[float, ...]] = []
    for index, each in enumerate(rounds):
        if begin <= index < end:
            continue
        if index == end and each.before_ms is closed:
            turns.append(closed)
        turns.append(each.before_ms)
        if index != begin - 1 or each.after_ms is not opened:
            turns.append(each.after_ms)
    return turns


def pooled(turns_ms: Sequence[Sequence[float]], fraction: float) -> float:
    """Return a quantile of all samples; each turn has the same weight, whatever its number of samples."""
    return pooled_quantiles(turns_ms, (fraction,))[0]


def pooled_quantiles(turns_ms: Sequence[Sequence[float]], fractions: Sequence[float]) -> list[float]:
    """Return `pooled` for several fractions, ascending."""
    weighted = sorted((value, 1.0 / len(turn)) for turn in turns_ms for value in turn)
    whole, done = float(len(turns_ms)), 0.0
    at, fast = 0.0, weighted[0][0]
    found: list[float] = []
    for value, weight in weighted:
        middle = (done + weight / 2) / whole
        while len(found) < len(fractions) and middle >= fractions[len(found)]:
            share = (fractions[len(found)] - at) / (middle - at)
            found.append(fast + (value - fast) * share)
        done, at, fast = done + weight, middle, value
    return found + [weighted[-1][0]] * (len(fractions) - len(found))


def median(values: Sequence[float]) -> float:
    """Return the median of values in any order."""
    return quantile(values, 0.5)
