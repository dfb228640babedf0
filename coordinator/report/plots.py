"""The plots of one device setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fleetnas.coordinator.records.outcome import TakenMeasurement
from fleetnas.coordinator.records.predictor_error import FEWEST_HELD_OUT
from fleetnas.coordinator.report.drawing import COLOURS, SETTINGS, Plot, figure, inline_svg, scale
from fleetnas.coordinator.report.results import DeviceResult, TargetResult
from fleetnas.fleet_protocol.messages import Measurement

#: Slow-downs below this fill no axis.
_LEAST_SLOWDOWN = 0.02
#: Points of a plot that is drawn: one is read better in a table.
_FEWEST_POINTS = 2


def device_plots(device: DeviceResult, rows: Sequence[TakenMeasurement], prefix: str) -> list[Plot]:
    """Draw the plots with at least two points. `prefix` keeps the SVG identifiers of one page's plots apart."""
    import matplotlib

    searched = [row for row in rows if row.purpose in ("initial-design", "candidate")]
    with matplotlib.rc_context(SETTINGS):
        drawn = (
            _front(device, searched),
            _agreement(searched),
            _learning(device),
            _slowdown_and_temperature(rows),
        )
        return [
            Plot(title, description, inline_svg(shown, f"{prefix}-{index}", f"{title}. {description}"))
            for index, (title, description, shown) in enumerate(plot for plot in drawn if plot is not None)
        ]


_Drawn = tuple[str, str, Any]


def _front(device: DeviceResult, rows: Sequence[TakenMeasurement]) -> _Drawn | None:
    """Plot accuracy over latency: each subnet where it was predicted and where it was measured, and the winners.

    A measured subnet is drawn where it was predicted beforehand, a winner where it is predicted without its own
    measurements.
    """
    rated = [row for row in rows if row.predicted_accuracy is not None]
    winners = [target for target in device.targets if target.verified_ms is not None and target.accuracy is not None]
    if len(rated) + len(winners) < _FEWEST_POINTS:
        return None
    drawn, (axis,) = figure()
    targets_ms = sorted(
        {target.target_ms for target in device.targets if target.target_ms is not None and not target.target}
    )
    for index, target_ms in enumerate(targets_ms):
        axis.axvline(
            target_ms,
            color=COLOURS["muted"],
            linestyle=":",
            linewidth=1.2,
            label="target" if index == 0 else None,
        )
    pairs = [
        (row.predicted_ms, row.measurement.median_ms, 100 * (row.predicted_accuracy or 0.0))
        for row in rated
        if row.predicted_ms is not None
    ] + [
        (winner.predicted_ms, winner.verified_ms or 0.0, 100 * (winner.accuracy or 0.0))
        for winner in winners
        if winner.predicted_ms is not None
    ]
    _draw_front(axis, pairs, rated, winners)
    scale(axis, [ms for predicted_ms, found_ms, _ in pairs for ms in (predicted_ms, found_ms)], "x")
    axis.set_xlabel("latency (ms)")
    axis.set_ylabel("top-1 accuracy (%)")
    drawn.legend(loc="outside lower center", ncols=2)
    description = (
        f"Top-1 accuracy over latency: {len(rated)} measured subnets with their predicted accuracy, and "
        f"{len(winners)} winners with verified latency and evaluated accuracy. Predictions were made before a subnet "
        "was measured, those of winners with their own measurements left out; dotted lines are the targets."
    )
    return "Front", description, drawn


def _draw_front(
    axis: Any,
    pairs: Sequence[tuple[float, float, float]],
    rated: Sequence[TakenMeasurement],
    winners: Sequence[TargetResult],
) -> None:
    """Draw predictions, measurements and winners; a pair is predicted ms, found ms and accuracy in percent."""
    for predicted_ms, found_ms, accuracy in pairs:
        axis.plot([predicted_ms, found_ms], [accuracy, accuracy], color=COLOURS["muted"], linewidth=0.7)
    axis.plot(
        [predicted_ms for predicted_ms, _, _ in pairs],
        [accuracy for _, _, accuracy in pairs],
        "o",
        markersize=5,
        fillstyle="none",
        color=COLOURS["predicted"],
        label="latency predicted",
    )
    axis.plot(
        [row.measurement.median_ms for row in rated],
        [100 * (row.predicted_accuracy or 0.0) for row in rated],
        "o",
        markersize=4.5,
        color=COLOURS["measured"],
        label="latency measured",
    )
    axis.plot(
        [target.verified_ms for target in winners],
        [100 * (target.accuracy or 0.0) for target in winners],
        "*",
        markersize=13,
        markeredgecolor=COLOURS["ink"],
        markeredgewidth=0.8,
        color=COLOURS["winner"],
        label="winner, verified and evaluated",
    )


def _agreement(rows: Sequence[TakenMeasurement]) -> _Drawn | None:
    """Plot measured over predicted latency, the prediction made before the measurement."""
    pairs = [(row.predicted_ms, row.measurement.median_ms) for row in rows if row.predicted_ms is not None]
    if len(pairs) < _FEWEST_POINTS:
        return None
    drawn, (axis,) = figure()
    predicted, measured = zip(*pairs, strict=True)
    low, high = min(*predicted, *measured), max(*predicted, *measured)
    axis.plot([low, high], [low, high], color=COLOURS["muted"], linewidth=1, label="exact")
    axis.plot(predicted, measured, "o", markersize=4.5, color=COLOURS["measured"], label="subnet")
    scale(axis, (low, high), "x", "y")
    axis.set_xlabel("predicted before measuring (ms)")
    axis.set_ylabel("measured (ms)")
    drawn.legend(loc="outside lower center", ncols=2)
    return (
        "Prediction and measurement",
        f"Measured latency over the latency predicted beforehand, for {len(pairs)} subnets; on the line they agree.",
        drawn,
    )


def _learning(device: DeviceResult) -> _Drawn | None:
    """Plot the held-out error of the predictor over the measurements that it had learned from."""
    learning = [point for point in device.learning if point.held_out >= FEWEST_HELD_OUT]
    if len(learning) < _FEWEST_POINTS:
        return None
    drawn, (axis,) = figure()
    axis.plot(
        [point.measurements for point in learning],
        [point.mape_percent for point in learning],
        "o-",
        markersize=4,
        color=COLOURS["measured"],
    )
    axis.set_ylim(bottom=0)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("measurements learned from")
    axis.set_ylabel("held-out error (MAPE, %)")
    last = learning[-1]
    description = (
        f"Held-out mean absolute percentage error; at the end {last.mape_percent:.1f} % over "
        f"{last.held_out} held-out measurements."
    )
    return "Predictor error as it learned", description, drawn


def _slowdown_and_temperature(rows: Sequence[TakenMeasurement]) -> _Drawn | None:
    """Plot slow-down and temperature over the time of the measurements."""
    if len(rows) < _FEWEST_POINTS:
        return None
    ordered = sorted(rows, key=lambda row: row.measurement.finished_unix_s)
    start_s = ordered[0].measurement.finished_unix_s
    found = [((row.measurement.finished_unix_s - start_s) / 60, row.measurement) for row in ordered]
    warm = [(at, m.after.temperature_c) for at, m in found if m.after.temperature_c is not None]
    drawn, axes = figure(2 if warm else 1)
    description = _draw_slowdown(axes[0], found)
    if warm:
        at, values = zip(*warm, strict=True)
        axes[1].plot(at, values, "s-", markersize=3, linewidth=1, color=COLOURS["predicted"])
        axes[1].set_ylabel("temperature (°C)")
        description += f"; temperature from {min(values):.0f} to {max(values):.0f} °C"
    else:
        description += "; the device reports no temperature"
    axes[-1].set_xlabel("minutes since the first measurement")
    return "Slow-down and temperature", f"{description}, over {found[-1][0]:.1f} minutes.", drawn


def _draw_slowdown(axis: Any, found: Sequence[tuple[float, Measurement]]) -> str:
    """Draw slow-down over minutes; returns the description of the plot."""
    known = [(at, m.slowdown) for at, m in found if m.slowdown is not None]
    slowed = [(at, m.slowdown) for at, m in found if m.slowdown is not None and m.quality == "slowed"]
    unknown = [at for at, m in found if m.slowdown is None]
    axis.axhline(1, color=COLOURS["muted"], linewidth=1)
    axis.plot(*_columns(known), "o-", markersize=3, linewidth=1, color=COLOURS["measured"])
    if slowed:
        axis.plot(*_columns(slowed), "D", markersize=5, color=COLOURS["predicted"], label="slowed")
    for index, at in enumerate(unknown):
        label = "speed unknown" if index == 0 else None
        axis.axvline(at, color=COLOURS["winner"], linewidth=2, zorder=0.5, label=label)
    changes = _regime_changes(found)
    for index, at in enumerate(changes):
        label = "new lasting speed" if index == 0 else None
        axis.axvline(at, color=COLOURS["ink"], linestyle="--", linewidth=1, zorder=0.6, label=label)
    # Less is no slow-down worth a look, and must not fill the axis.
    bottom, top = axis.get_ylim()
    axis.set_ylim(min(bottom, 1 - _LEAST_SLOWDOWN), max(top, 1 + _LEAST_SLOWDOWN))
    axis.set_ylabel("slow-down (times)")
    if slowed or unknown or changes:
        axis.figure.legend(loc="outside lower center", ncols=3)
    description = "Latency over latency at undisturbed speed"
    if known:
        values = [value for _, value in known]
        description += f", from {min(values):.2f} to {max(values):.2f} times"
    description += f"; {len(slowed) + sum(m.slowdown is None and m.quality == 'slowed' for _, m in found)} slowed"
    if unknown:
        description += f", the speed unknown in {len(unknown)}"
    return description + (f", {len(changes) + 1} lasting speeds" if changes else "")


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [at for at, _ in points], [value for _, value in points]


def _regime_changes(found: Sequence[tuple[float, Measurement]]) -> list[float]:
    """Return the minutes at which a new lasting speed appeared."""
    seen: set[float] = set()
    changes = []
    for at, measurement in found:
        since = measurement.regime_unix_s
        if since and since not in seen:
            if seen:
                changes.append(at)
            seen.add(since)
    return changes
