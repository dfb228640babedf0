"""Warm up, calibrate and read the references of one measuring order, and alternate them with its subnet."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

from fleetnas.agent.measuring.bracketed import bracketed
from fleetnas.agent.measuring.messages import PairedTiming, ReferenceOrder
from fleetnas.agent.measuring.paired import TurnHooks, measure_paired
from fleetnas.agent.measuring.references import LoadedReferences, LoadedRung, reading_protocol
from fleetnas.agent.measuring.steady import WINDOW_S, warm_until_steady
from fleetnas.agent.measuring.undisturbed import low
from fleetnas.agent.runtimes.base import LoadedModel, TimedModel, random_tensors
from fleetnas.agent.runtimes.timing import Timing
from fleetnas.fleet_protocol.messages import MeasurementProtocol

#: A reading of a runtime that another program drives is still good for the next measurement for this long.
_RECENT_S = 15.0
#: How long a look at the device's speed takes.
_LOOK_S = 0.1


class Pairing:
    """Measures one subnet of `macs` MACs in turns with references."""

    def __init__(
        self, loaded: LoadedReferences, order: ReferenceOrder, protocol: MeasurementProtocol, macs: float
    ) -> None:
        self._loaded, self._order, self._protocol, self._macs = loaded, order, protocol, macs
        self._near, self._far = loaded.nearest(macs)
        #: Time inside the references' inference outside of the measurement itself, s.
        self.spent_s = 0.0

    @property
    def levels_ms(self) -> dict[str, float]:
        """Levels of all loaded references."""
        return dict(self._loaded.levels_ms)

    def warm_up(self, report: Callable[[float], None]) -> bool:
        """Run the largest reference until the device's speed is steady; return whether it became steady."""
        spent_s, steady = warm_until_steady(lambda: _window(self._loaded.rungs[-1]), time.perf_counter, report)
        self.spent_s += spent_s
        return steady

    def calibrate(self) -> None:
        """Learn the references' levels if they are not known."""
        self.spent_s += self._loaded.calibrate(self._order, self._protocol)

    def match(self, subject_ms: float) -> None:
        """Choose the references of a model whose MACs are not known: those of a subnet that takes about as long."""
        levels = self._loaded.levels_ms
        rung = min(self._loaded.rungs, key=lambda each: abs(math.log(levels[each.rung.fingerprint] / subject_ms)))
        self._macs = rung.rung.macs * subject_ms / levels[rung.rung.fingerprint]
        self._near, self._far = self._loaded.nearest(rung.rung.macs)

    def slowdown(self) -> float:
        """Return the device's slow-down now, measured with the nearest reference."""
        level_ms = self._loaded.levels_ms[self._near.rung.fingerprint]
        if self._near.run is None:
            return self._reading().median_ms / level_ms
        self._near.run()  # another model ran before
        times_ms: list[float] = []
        begin = time.perf_counter()
        while time.perf_counter() - begin < _LOOK_S or len(times_ms) < 3:
            start = time.perf_counter_ns()
            self._near.run()
            times_ms.append((time.perf_counter_ns() - start) / 1e6)
        self.spent_s += time.perf_counter() - begin
        return low(times_ms) / level_ms

    def time(self, model: TimedModel, hooks: TurnHooks) -> PairedTiming:
        """Time `model`; a reference that proves faster than its level sets it, and next time all are read again."""
        paired = self._in_turns(model, hooks) if isinstance(model, LoadedModel) else self._between(model, hooks)
        if paired.reference_ms < self._loaded.levels_ms[paired.reference]:
            self._loaded.lower_level(paired.reference, paired.reference_ms)
        return paired

    def _in_turns(self, model: LoadedModel, hooks: TurnHooks) -> PairedTiming:
        reference = self._loaded.reference
        return measure_paired(
            model.bind(random_tensors(model.inputs)),
            self._macs,
            reference(self._near, self._order.normals),
            reference(self._far, self._order.normals) if self._far is not None else None,
            self._protocol,
            hooks=hooks,
            keep_level=self._order.keep_levels,
        )

    def _between(self, model: TimedModel, hooks: TurnHooks) -> PairedTiming:
        before = self._reading(_RECENT_S)

        def on_block(fraction: float) -> None:
            hooks.after(fraction)
            hooks.before()

        subject = model.time(self._protocol, on_block)
        after = self._reading()
        name = self._near.rung.fingerprint
        level_ms = self._loaded.levels_ms[name]
        return bracketed(subject, before, after, name, level_ms, keep_level=self._order.keep_levels)

    def _reading(self, at_most_old_s: float = 0.0) -> Timing:
        """Read the nearest reference with its own program; use the last reading if it is not older than this."""
        near = self._near
        recent = near.reading_since(time.monotonic() - at_most_old_s)
        if recent is not None:
            return recent.model_copy(update={"inference_s": 0.0})
        reading = near.model.time(reading_protocol(self._protocol))
        near.note_reading(reading, time.monotonic())
        return reading


def _window(rung: LoadedRung) -> tuple[float, float]:
    """Median latency of `WINDOW_S` of continuous inference, ms, and the time inside it, s."""
    if rung.run is None:
        protocol = MeasurementProtocol(
            warmup_runs=0, warmup_s=0.0, min_runs=3, min_s=WINDOW_S, max_s=4 * WINDOW_S, blocks=1
        )
        timing = rung.model.time(protocol)
        return timing.median_ms, timing.inference_s
    times_s: list[float] = []
    begin = time.perf_counter()
    while not times_s or time.perf_counter() - begin < WINDOW_S:
        start = time.perf_counter()
        rung.run()
        times_s.append(time.perf_counter() - start)
    return 1000 * statistics.median(times_s), sum(times_s)
