"""Time one model window after window, without a pause, in the measuring child."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from fleetnas.agent.host.power import BlockPower, with_power
from fleetnas.agent.host.sensors import Sensors
from fleetnas.agent.measuring.messages import WindowReply
from fleetnas.agent.runtimes.base import Runtime, TimedModel
from fleetnas.fleet_protocol.messages import MeasurementProtocol

#: A window shorter than this share of the others is not begun.
_SHORTEST_WINDOW = 0.5


def measure_windows(
    model: TimedModel,
    runtime: Runtime,
    sensors: Sensors,
    total_s: float,
    window_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[WindowReply]:
    """Yield windows of `window_s` s until `total_s` s are over, each as soon as it has ended.

    There is at least one, however slow the host is. The only warm-up are the few inferences that tell the length of a
    sample: the first window shows the device as it is. A device that this host only drives rests while its tool starts
    again.
    """
    driven = runtime.conditions() is not None  # asks a phone, which takes a while
    begin_s, from_s = clock(), 0.0
    length_s = min(window_s, total_s)
    while True:
        power = BlockPower(None if driven else sensors.power_meter)

        def on_block(fraction: float, power: BlockPower = power) -> None:
            power.end_block(fraction)
            power.begin_block()

        timing = model.time(_window_protocol(length_s), on_block)
        to_s = clock() - begin_s
        conditions = runtime.conditions() or with_power(sensors.read(), power.mean_mw)
        yield WindowReply(
            begin_s=round(from_s, 3),
            end_s=round(to_s, 3),
            median_ms=timing.median_ms,
            p90_ms=timing.p90_ms,
            min_ms=timing.min_ms,
            samples=timing.runs,
            conditions=conditions,
        )
        from_s = clock() - begin_s
        length_s = min(window_s, total_s - from_s)
        if length_s < _SHORTEST_WINDOW * window_s:
            return


def _window_protocol(length_s: float) -> MeasurementProtocol:
    return MeasurementProtocol(
        warmup_runs=1,
        warmup_s=min(0.01, length_s / 10),
        min_runs=3,
        min_s=length_s,
        max_s=length_s,
        blocks=1,
        half_width_percent=1e6,  # a window is never repeated
    )
