"""Draw the fronts of all device settings in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fleetnas.coordinator.report.drawing import COLOURS, HEIGHT_IN, SERIES, SETTINGS, Plot, figure, inline_svg, scale
from fleetnas.coordinator.report.results import DeviceResult
from fleetnas.coordinator.view.wording import count_of

#: Device settings that are named in the legend; more are drawn as one kind of line.
_MOST_NAMED = 16
_MARKERS = "os^Dv<>P"
#: Height of one row of the legend, inches, and characters of a label that leave no room for a second column.
_ROW_IN, _WIDE_LABEL = 0.19, 28


def fleet_plot(devices: Sequence[DeviceResult], prefix: str) -> Plot | None:
    """Draw the verified winners of every device setting, accuracy over latency; None below two points."""
    import matplotlib

    fronts = [(device.label, points) for device in devices if (points := _points(device))]
    if sum(len(points) for _, points in fronts) < 2:
        return None
    with matplotlib.rc_context(SETTINGS):
        drawn = _draw(fronts)
        title = "All fronts" if len(fronts) > 1 else "The front"
        description = (
            f"Top-1 accuracy over verified latency of the winners, {count_of(len(fronts), 'device setting')}; "
            "left and up is better."
        )
        return Plot(title, description, inline_svg(drawn, prefix, f"{title}. {description}"))


def _points(device: DeviceResult) -> list[tuple[float, float]]:
    """Return latency in ms and accuracy in percent of the winners, the fastest first."""
    return sorted(
        (target.verified_ms, 100 * accuracy)
        for target in device.targets
        if target.met
        and target.verified_ms is not None
        and (accuracy := target.accuracy if target.accuracy is not None else target.predicted_accuracy) is not None
    )


def _draw(fronts: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> Any:
    named = len(fronts) <= _MOST_NAMED
    columns = 1 if max(len(label) for label, _ in fronts) > _WIDE_LABEL else 2
    rows = -(-len(fronts) // columns) if named else 1
    drawn, (axis,) = figure(height_in=HEIGHT_IN + _ROW_IN * rows)
    for index, (label, points) in enumerate(fronts):
        colour = COLOURS[SERIES[index % len(SERIES)]] if named else COLOURS["measured"]
        axis.plot(
            [latency_ms for latency_ms, _ in points],
            [accuracy for _, accuracy in points],
            f"{_MARKERS[index % len(_MARKERS)]}{'-' if index < len(SERIES) else '--'}" if named else "o-",
            color=colour,
            alpha=1.0 if named else 0.4,
            markersize=6 if named else 3,
            linewidth=1.2 if named else 0.6,
            label=label if named else ("one line per device setting" if index == 0 else None),
        )
    scale(axis, [latency_ms for _, points in fronts for latency_ms, _ in points], "x")
    axis.set_xlabel("verified latency (ms)")
    axis.set_ylabel("top-1 accuracy (%)")
    drawn.legend(loc="outside lower center", ncols=columns)
    return drawn
