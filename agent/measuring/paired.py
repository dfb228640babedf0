"""Measure a subject in turns with a reference subnet, so that their ratio holds although the device's speed changes.

One measurement is a row of *rounds*: a turn of the reference, a turn of the subject, and a closing turn of the
reference, which opens the next round. `agent/measuring/undisturbed.py` turns the rounds into latency at undisturbed
speed; the latency as it ran comes from all of the subject's samples. The measurement ends when the former is known as
precisely as was asked. While rounds are disturbed it goes on, within limits, until enough were not, or until a second
reference shows that the device is slow as a whole.

After another model has run, caches hold that model: the first inferences take up to 1.6 times as long. So each turn
begins with a sample that does not count, and the turns of a reference last equally long always, since a longer turn
reads faster. Runtime and clock are passed in, so that simulated devices run the same code.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from fleetnas.agent.measuring.messages import PairedTiming
from fleetnas.agent.measuring.undisturbed import (
    CLEAN_ROUNDS,
    GOOD_HALF_WIDTH,
    LOW_QUANTILE,
    MOST_HALF_WIDTH,
    Estimate,
    Level,
    Round,
    estimate,
    is_clean,
    is_uniform,
    low,
    lower_level_ms,
    median,
    pooled,
    thinned,
)
from fleetnas.agent.runtimes.stopping import End, end_at_look, next_look
from fleetnas.agent.runtimes.timing import inner_loops, no_garbage_collection, summarise, with_samples
from fleetnas.agent.runtimes.warm_up import WarmUp, warm_up
from fleetnas.fleet_protocol.messages import MeasurementProtocol

#: Rounds of the least time of a measurement; fewer where the references would take too much of it.
ROUNDS = 8
#: A turn of a reference lasts this long, s, or two samples where those take longer; shorter where the least time of a
#: measurement is below the second number, s.
_REFERENCE_TURN_S, _SHORT_S = 0.015, 0.1
#: Share of the subject's time that all turns of references may take before rounds become fewer.
_MOST_REFERENCE_SHARE = 0.16
#: Models slower than this read the same after another model as after themselves: every sample counts.
_NO_SETTLING_MS = 40.0
#: While rounds are disturbed, the subject's turns last this share of their usual length.
_DISTURBED_TURN = 0.5
#: A disturbed measurement may last this many times its usual time, or this many seconds more, whichever is longer.
_MOST_TIMES_LONGER = 3.0
_MOST_LONGER_S = 8.0
_MOST_TIMES_LONGER_SHORT = 9.0  #: where its usual time is short
_MOST_ROUNDS = 80  #: bound; their medians go with the result
#: Turns per reference when levels are read, and how far its two halves may differ before more are taken; fewer where
#: slow models make it take longer than `_LEVELS_S`.
_LEVEL_TURNS, _MOST_LEVEL_TURNS, _LEAST_LEVEL_TURNS = 12, 36, 4
_LEVEL_TOLERANCE = 0.03
_LEVELS_S = 5.0
_CHECK_EVERY = 4  #: rounds after which the end is checked, while few of them are clean
#: A turn of the subject lasts at least this share of the time so far, so that long measurements have few rounds.
_TURN_SHARE = 1 / 16


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference subnet that is ready to run; one call of `run` is one inference."""

    fingerprint: str
    #: MACs.
    size: float
    run: Callable[[], object]
    #: Time per inference at undisturbed speed, ms: the low quantile of its turns.
    level_ms: float
    #: Lasting slow-down of the device's present regime.
    normal: float = 1.0


@dataclass(frozen=True, slots=True)
class TurnHooks:
    """Callables before and after each turn of the subject, the latter with the fraction done."""

    before: Callable[[], None] = lambda: None
    after: Callable[[float], None] = lambda fraction: None


NO_HOOKS = TurnHooks()


@dataclass
class Turns:
    """Times turns of one model."""

    run: Callable[[], object]
    clock_ns: Callable[[], int]
    #: Estimated time per inference, ns.
    inference_ns: float
    single: bool = False  #: whether every sample is one inference
    #: Time inside inference so far, ns.
    spent_ns: int = 0
    inner: int = field(init=False)
    _settles: bool = field(init=False)

    def __post_init__(self) -> None:
        self.inner = inner_loops(self.inference_ns, single=self.single)
        self._settles = self.inference_ns < 1e6 * _NO_SETTLING_MS

    @property
    def least_ns(self) -> float:
        """Duration of a turn of one sample, ns."""
        return (1 + self._settles) * self.inner * self.inference_ns

    def take(self, least: int, turn_ns: float, most_ns: float = math.inf) -> list[int]:
        """Take one turn: at least `least` samples and `turn_ns`, but at most `most_ns`; return the samples, ns each."""
        samples: list[int] = []
        loops, clock_ns = range(self.inner), self.clock_ns
        begin = start = clock_ns()
        if self._settles:
            for _ in loops:
                self.run()
        while True:
            start = clock_ns()
            for _ in loops:
                self.run()
            end = clock_ns()
            samples.append(max(1, end - start))
            if end - begin >= most_ns or (len(samples) >= least and end - begin >= turn_ns):
                self.spent_ns += end - begin
                return samples

    def per_inference_ms(self, samples: Sequence[int]) -> tuple[float, ...]:
        """Convert samples of a turn to ms per inference."""
        return tuple(sample / self.inner / 1e6 for sample in samples)


def measure_paired(
    subject: Callable[[], object],
    subject_size: float,
    near: Reference,
    far: Reference | None,
    protocol: MeasurementProtocol,
    *,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    hooks: TurnHooks = NO_HOOKS,
    keep_level: bool = False,
) -> PairedTiming:
    """Time `subject`, of `subject_size` MACs, in turns with `near`, the reference nearest in size.

    `far` is a reference of another size, which is read only while rounds are disturbed. A reference that proves faster
    than its level sets it, unless `keep_level`.
    """
    with no_garbage_collection():
        warm = warm_up(subject, protocol, clock_ns)
        turns = Turns(subject, clock_ns, warm.inference_ns, bool(protocol.percentiles))
        paired = _Paired(turns, subject_size, near, far, protocol, keep_level)
        end: End | None = None
        while end is None:
            hooks.before()
            samples = paired.subject_turn()
            hooks.after(paired.fraction)
            paired.close_round(samples)
            end = paired.end()
        hooks.after(1.0)
        return paired.result(warm, end)


def reference_turn_s(protocol: MeasurementProtocol) -> float:
    """Return the shortest turn of a reference, in s: the same for coarse and fine tasks, as its level depends on it."""
    return _REFERENCE_TURN_S * min(1.0, protocol.min_s / _SHORT_S)


def read_levels(
    references: Sequence[tuple[Callable[[], object], float]],
    turn_s: float,
    *,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> tuple[list[float], float]:
    """Return the level of each reference, in ms per inference, and the time inside inference, in s.

    A reference is a callable and the estimated time of an inference, in ms. The references take turns of `turn_s` s, so
    that a change of the device's speed reaches all of them; more turns are taken while the two halves of the turns of
    one of them disagree.
    """
    with no_garbage_collection():
        timed = [Turns(run, clock_ns, 1e6 * about_ms) for run, about_ms in references]
        taken: list[list[tuple[float, ...]]] = [[] for _ in timed]
        begin_ns = clock_ns()
        for number in range(1, _MOST_LEVEL_TURNS + 1):
            for turns, mine in zip(timed, taken, strict=True):
                mine.append(turns.per_inference_ms(turns.take(1, 1e9 * turn_s)))
            if number >= _LEVEL_TURNS and all(map(_agrees, taken)):
                break
            if number >= _LEAST_LEVEL_TURNS and clock_ns() - begin_ns > 1e9 * _LEVELS_S:
                break
        levels = [pooled(mine, LOW_QUANTILE) for mine in taken]
        return levels, sum(turns.spent_ns for turns in timed) / 1e9


def _agrees(turns_ms: Sequence[Sequence[float]]) -> bool:
    middle = len(turns_ms) // 2
    halves = [pooled(half, LOW_QUANTILE) for half in (turns_ms[:middle], turns_ms[middle:])]
    return max(halves) <= (1 + _LEVEL_TOLERANCE) * min(halves)


class _Paired:
    """One measurement that goes on: how long turns last, which rounds were clean, when it ends."""

    def __init__(
        self,
        subject: Turns,
        subject_size: float,
        near: Reference,
        far: Reference | None,
        protocol: MeasurementProtocol,
        keep_level: bool,
    ) -> None:
        clock_ns = subject.clock_ns
        self._subject, self._size, self._reference, self._protocol = subject, subject_size, near, protocol
        self._near = Turns(near.run, clock_ns, 1e6 * near.level_ms)
        self._far = Turns(far.run, clock_ns, 1e6 * far.level_ms) if far is not None else None
        self._near_level = Level(near.level_ms, near.size, near.normal)
        self._far_level = Level(far.level_ms, far.size, far.normal) if far is not None else None
        self._clock_ns, self._keep_level, self._look = clock_ns, keep_level, CLEAN_ROUNDS
        self._most_ns = 1e9 * protocol.max_s
        sample_ns = subject.inner * subject.inference_ns
        self._nominal_ns = min(self._most_ns, max(1e9 * protocol.min_s, protocol.min_runs * sample_ns))
        self._reference_ns = 1e9 * reference_turn_s(protocol)
        reference_ns = max(self._near.least_ns, self._reference_ns)
        affordable = int(_MOST_REFERENCE_SHARE * self._nominal_ns / reference_ns) - 1
        self._nominal_rounds = min(ROUNDS, max(CLEAN_ROUNDS, affordable))
        self._turn_ns = self._nominal_ns / self._nominal_rounds
        longer_ns = max(
            _MOST_TIMES_LONGER * self._nominal_ns,
            min(self._nominal_ns + 1e9 * _MOST_LONGER_S, _MOST_TIMES_LONGER_SHORT * self._nominal_ns),
        )
        self._limit_ns = min(self._most_ns, longer_ns)
        self._rounds: list[Round] = []
        self._estimated: tuple[int, Estimate] | None = None
        self._lengths: list[float] = []  #: of the subject's turns, as shares of an undisturbed one
        self._blocks_ns: list[list[int]] = []
        self._begin_ns = clock_ns()
        self._near_turns = [self._near_turn()]

    @property
    def fraction(self) -> float:
        """Fraction done of a measurement that needs no more than the least time, below 1."""
        return min(0.99, len(self._blocks_ns) / self._nominal_rounds)

    def subject_turn(self) -> list[int]:
        """Take the subject's next turn; return its samples, ns each."""
        disturbed = bool(self._rounds) and not self._clean(self._rounds[-1])
        length = _DISTURBED_TURN if disturbed else 1.0
        elapsed_ns = self._clock_ns() - self._begin_ns
        long_ns = self._limit_ns / _MOST_ROUNDS if disturbed else _TURN_SHARE * elapsed_ns
        turn_ns = max(length * self._turn_ns, long_ns)
        least = math.ceil(length * self._protocol.min_runs / self._nominal_rounds)
        samples = self._subject.take(least, turn_ns, self._most_ns / self._nominal_rounds)
        self._lengths.append(length)
        self._blocks_ns.append(samples)
        return samples

    def close_round(self, samples: Sequence[int]) -> None:
        """Read the reference again, and the second one if this round was disturbed."""
        before, after = self._near_turns[-1], self._near_turn()
        self._near_turns.append(after)
        if not self._keep_level:
            level_ms = lower_level_ms(self._near_turns, self._reference.level_ms)
            self._near_level = replace(self._near_level, level_ms=level_ms)
        far: tuple[float, ...] = ()
        if self._far is not None and not is_clean(before, after, self._near_level):
            far = self._far.per_inference_ms(self._far.take(1, self._reference_ns, self._most_ns))
        self._rounds.append(Round(thinned(self._subject.per_inference_ms(samples)), before, after, far))

    def end(self) -> End | None:
        """Return why the measurement ends now; None if it goes on."""
        elapsed_ns, rounds = self._clock_ns() - self._begin_ns, len(self._rounds)
        runs = sum(map(len, self._blocks_ns))
        if elapsed_ns >= self._most_ns or rounds >= _MOST_ROUNDS:
            return "time over" if rounds > 1 else None
        clean = sum(length for length, each in zip(self._lengths, self._rounds, strict=True) if self._clean(each))
        if clean < CLEAN_ROUNDS and elapsed_ns >= max(self._limit_ns, self._nominal_ns):
            # The limit follows from the speed at the beginning; a device that became slow since measures all the same.
            return "out of reach" if rounds > 1 and runs >= self._protocol.min_runs else None
        if rounds < self._nominal_rounds or runs < self._protocol.min_runs:
            return None
        if self._subject.spent_ns < min(1e9 * self._protocol.min_s, self._nominal_ns):
            return None
        inner, asked = self._subject.inner, self._protocol.half_width_percent
        if elapsed_ns < 2 * self._nominal_ns and summarise(self._blocks_ns, inner, asked, 0).noisy:
            return None
        return self._end_of_clean(elapsed_ns) if clean >= CLEAN_ROUNDS else self._end_of_disturbed()

    def _end_of_clean(self, elapsed_ns: float) -> End | None:
        """Decide by the scatter between rounds of which enough were clean."""
        rounds, asked = len(self._rounds), self._protocol.half_width_percent / 100
        if rounds < self._look:
            return None
        self._look = next_look(rounds)
        return end_at_look(self._estimate().scatter, asked, elapsed_ns, self._nominal_ns, self._most_ns)

    def _end_of_disturbed(self) -> End | None:
        """Decide while few rounds were clean: what was asked may be out of reach, a useful precision need not be."""
        uniform = is_uniform(self._rounds, self._near_level, self._far_level)
        if not uniform and len(self._rounds) % _CHECK_EVERY:
            return None
        asked, half_width = self._protocol.half_width_percent / 100, self._estimate().half_width
        if half_width <= asked:
            return "precise"
        return "out of reach" if half_width <= (MOST_HALF_WIDTH if uniform else GOOD_HALF_WIDTH) else None

    def result(self, warm: WarmUp, end: End) -> PairedTiming:
        """Return the timing of the whole measurement, which followed the warm-up `warm`."""
        found = self._estimate()
        level_ms = self._near_level.level_ms
        readings = [low(turn) / level_ms for turn in self._near_turns]
        reference_ns = self._near.spent_ns + (self._far.spent_ns if self._far is not None else 0)
        asked, inside_ns = self._protocol.half_width_percent, self._subject.spent_ns + reference_ns
        timing = summarise(self._blocks_ns, self._subject.inner, asked, inside_ns, warm)
        return PairedTiming(
            timing=with_samples(timing, self._blocks_ns, self._protocol).model_copy(update={"end": end}),
            undisturbed_ms=found.undisturbed_ms,
            undisturbed_half_width_percent=100 * min(found.half_width, 10.0),
            basis=found.basis,
            reference=self._reference.fingerprint,
            reference_ms=level_ms,
            slowdown=median(readings),
            fastest_slowdown=min(readings),
            slowest_slowdown=max(readings),
            rounds=len(self._rounds),
            clean_rounds=sum(map(self._clean, self._rounds)),
            subject_inference_s=(warm.spent_ns + self._subject.spent_ns) / 1e9,
            reference_inference_s=reference_ns / 1e9,
        )

    def _estimate(self) -> Estimate:
        if self._estimated is None or self._estimated[0] != len(self._rounds):
            found = estimate(self._rounds, self._near_level, self._far_level, self._size)
            self._estimated = len(self._rounds), found
        return self._estimated[1]

    def _near_turn(self) -> tuple[float, ...]:
        return self._near.per_inference_ms(self._near.take(1, self._reference_ns, self._most_ns))

    def _clean(self, each: Round) -> bool:
        return is_clean(each.before_ms, each.after_ms, self._near_level)
