"""Figures of runs and devices: fronts, prediction and measurement, drift and temperature, the portfolio's curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fleetnas.coordinator.dashboard.axes import Axis
from fleetnas.coordinator.dashboard.drawing import Figure, Line, Pair, Series, draw
from fleetnas.coordinator.dashboard.run_state import Point, RunState, SettingKey
from fleetnas.coordinator.records.predictor_error import FEWEST_HELD_OUT
from fleetnas.coordinator.records.stored import DeviceRecord, WinnerRecord
from fleetnas.coordinator.records.targets import target_label
from fleetnas.coordinator.view import wording

#: Device settings that have a colour of their own where several are drawn together.
MOST_TOGETHER = 8
#: A slow-down of less than this fills no axis.
_LEAST_SLOWDOWN = 0.04
_LATENCY, _ACCURACY = "latency (ms)", "top-1 accuracy (%)"


@dataclass(frozen=True)
class CurvePoint:
    """One portfolio of the curve."""

    models: int
    mean_accuracy: float
    """Weighted mean predicted top-1 in [0, 1] of the served targets."""
    served: int
    """Targets that it serves."""


class Front(Protocol):
    """A source of the best pairs of latency and accuracy."""

    @property
    def measured_ms(self) -> float:
        """Latency, ms."""

    @property
    def accuracy(self) -> float | None:
        """Predicted top-1 in [0, 1]."""


def pareto_front(points: Sequence[Front]) -> list[Pair]:
    """Return the pairs (ms, percent) that no other beats in both, by latency."""
    best = -math.inf
    found = []
    rated = [(point.measured_ms, 100 * point.accuracy) for point in points if point.accuracy is not None]
    for latency_ms, accuracy in sorted(rated, key=lambda pair: (pair[0], -pair[1])):
        if accuracy > best:
            best = accuracy
            found.append((latency_ms, accuracy))
    return found


def winner_pairs(winners: Sequence[WinnerRecord]) -> tuple[list[Pair], list[str]]:
    """Return latency (ms) and accuracy (%) of the verified winners, with their texts."""
    pairs, titles = [], []
    for winner in winners:
        accuracy = winner.accuracy if winner.accuracy is not None else winner.predicted_accuracy
        if winner.met and winner.verified_ms is not None and accuracy is not None:
            pairs.append((winner.verified_ms, 100 * accuracy))
            target = "" if winner.target_ms is None else f"target {wording.target(winner.target_ms)} ms: "
            target = f"target {target_label(None, winner.target)}: " if winner.target else target
            titles.append(f"{target}{wording.latency(winner.verified_ms)} ms, {wording.accuracy(accuracy)}")
    return pairs, titles


def fronts_together(state: RunState) -> Figure | None:
    """Draw the fronts of all device settings in one figure; None before there is one."""
    fronts = {key: pareto_front(points) for key, points in state.points.items()}
    fronts = {key: front for key, front in sorted(fronts.items()) if front}
    if not fronts:
        return None
    series = []
    for index, (key, front) in enumerate(fronts.items()):
        hue = f"hue-{index}" if index < MOST_TOGETHER else "others"
        label = "/".join(key) if index < MOST_TOGETHER else f"{len(fronts) - MOST_TOGETHER} more"
        series.append(Series(label, hue, front, "steps"))
    for index, key in enumerate(fronts):
        pairs, titles = winner_pairs(state.winners.get(key, ()))
        named = [f"{'/'.join(key)}, {title}" for title in titles]
        hue = f"hue-{index}" if index < MOST_TOGETHER else "others"
        series.append(Series("verified winner" if index == 0 else "", hue, pairs, "diamonds", named))
    description = (
        f"Best predicted accuracy at each measured latency on {wording.count_of(len(fronts), 'device setting')}"
        + ("; diamonds are winners, verified and evaluated." if any(map(len, state.winners.values())) else ".")
    )
    return draw("together", "All devices together", description, _axes(series), series)


def front(name: str, key: SettingKey, points: Sequence[Point], winners: Sequence[WinnerRecord]) -> Figure | None:
    """Draw accuracy over latency of one device setting: its measurements, their front and its winners."""
    searched = [point for point in points if point.searched and point.accuracy is not None]
    best = pareto_front(searched)
    pairs, titles = winner_pairs(winners)
    if not best and not pairs:
        return None
    latencies = (winner for winner in winners if not winner.target)
    targets = sorted({winner.target_ms for winner in latencies if winner.target_ms is not None})
    series = [
        Series("measured subnet", "measured", [(p.measured_ms, 100 * (p.accuracy or 0.0)) for p in searched]),
        Series("front", "front", best, "steps" if len(best) > 1 else "dots"),
        Series("verified winner", "winner", pairs, "diamonds", titles),
    ]
    x, y = _axes(series, targets)
    lines = [Line("target", "target", (target, y.low), (target, y.high)) for target in targets]
    found = f", {wording.count_of(len(pairs), 'winner')} verified and evaluated" if pairs else ""
    description = f"{wording.count_of(len(searched), 'measured subnet')} with predicted accuracy{found}."
    return draw(name, "/".join(key), description, (x, y), series, lines)


def _axes(series: Sequence[Series], targets: Sequence[float] = ()) -> tuple[Axis, Axis]:
    pairs = [pair for each in series for pair in each.pairs]
    return (
        Axis.around(_LATENCY, [*(x for x, _ in pairs), *targets], wide=True),
        Axis.around(_ACCURACY, (y for _, y in pairs), least=0.5),
    )


def agreement(points: Sequence[Point]) -> Figure | None:
    """Draw measured over predicted latency, each predicted before it was measured."""
    pairs = [
        (point.predicted_ms, point.measured_ms) for point in points if point.searched and point.predicted_ms is not None
    ]
    if len(pairs) < 2:
        return None
    both = [value for pair in pairs for value in pair]
    x, y = Axis.around("predicted beforehand (ms)", both, wide=True), Axis.around("measured (ms)", both, wide=True)
    errors = sorted(abs(predicted / measured - 1) for predicted, measured in pairs)
    description = (
        f"{wording.count_of(len(pairs), 'subnet')}; half of the predictions were within "
        f"{100 * errors[len(errors) // 2]:.1f} % of the measurement. On the line they agree."
    )
    exact = Line("exact", "reference", (x.low, y.low), (x.high, y.high))
    return draw(
        "agreement", "Predicted and measured", description, (x, y), [Series("subnet", "measured", pairs)], [exact]
    )


def learning(record: DeviceRecord) -> Figure | None:
    """Draw the held-out error of the predictor as it learned; None below two reliable values."""
    pairs = [
        (float(point.measurements), point.error.mape_percent)
        for point in record.learning
        if point.error.held_out >= FEWEST_HELD_OUT
    ]
    if len(pairs) < 2:
        return None
    axes = (
        Axis.around("measurements learned from", (x for x, _ in pairs)),
        Axis.around("held-out error (%)", (y for _, y in pairs), floor=0.0),
    )
    last = record.learning[-1].error
    description = f"At the end {last.mape_percent:.1f} % over {last.held_out} held-out measurements."
    series = [Series("mean absolute error", "measured", pairs, "line")]
    return draw("learning", "Error of the predictor as it learned", description, axes, series)


def drift(points: Sequence[Point]) -> Figure | None:
    """Draw slow-down over time; None where the undisturbed speed was never known."""
    known = _over_time(points, lambda point: point.slowdown)
    if not known:
        return None
    slowed = _over_time(points, lambda point: point.slowdown if point.quality == "slowed" else None)
    values = [value for _, value in known]
    x = Axis.around("minutes since the first measurement", (at for at, _ in known), least=0.1)
    y = Axis.around("slow-down (times)", [*values, 1.0], least=_LEAST_SLOWDOWN)
    lines = [Line("undisturbed speed", "reference", (x.low, 1.0), (x.high, 1.0))]
    lines += [Line("new lasting speed", "change", (at, y.low), (at, y.high)) for at in _speed_changes(points)]
    unknown = sum(point.slowdown is None for point in points)
    description = (
        f"Latency over latency at undisturbed speed, from {min(values):.2f} to {max(values):.2f} times; "
        f"{len(slowed)} of {len(points)} measurements were slowed"
        + (f", the speed was unknown in {unknown}." if unknown else ".")
    )
    series = [Series("measurement", "measured", known), Series("slowed", "slowed", slowed)]
    return draw("drift", "Drift", description, (x, y), series, lines)


def temperature(points: Sequence[Point]) -> Figure | None:
    """Draw temperature over time; None where the device reports none."""
    pairs = _over_time(points, lambda point: point.temperature_c)
    if not pairs:
        return None
    values = [value for _, value in pairs]
    axes = (
        Axis.around("minutes since the first measurement", (at for at, _ in pairs), least=0.1),
        Axis.around("temperature (°C)", values, least=4.0),
    )
    description = f"After each measurement, from {min(values):.0f} to {max(values):.0f} °C."
    return draw(
        "temperature",
        "Temperature",
        description,
        axes,
        [Series("", "warm", pairs, "line" if len(pairs) > 1 else "dots")],
    )


def _over_time(points: Sequence[Point], value_of: Callable[[Point], float | None]) -> list[Pair]:
    if not points:
        return []
    start_s = min(point.at_unix_s for point in points)
    found = [((point.at_unix_s - start_s) / 60, value_of(point)) for point in points]
    return sorted((at, value) for at, value in found if value is not None)


def _speed_changes(points: Sequence[Point]) -> list[float]:
    """Return the minutes at which a new lasting speed appeared."""
    start_s = min(point.at_unix_s for point in points)
    seen: set[float] = set()
    changes = []
    for point in sorted(points, key=lambda each: each.at_unix_s):
        since = point.lasting_since_unix_s
        if since and since not in seen:
            if seen:
                changes.append((point.at_unix_s - start_s) / 60)
            seen.add(since)
    return changes


def portfolio_curve(curve: Sequence[CurvePoint], targets: int) -> Figure | None:
    """Draw the mean accuracy of a run's targets over the number of models that serve them."""
    pairs = [(float(point.models), 100 * point.mean_accuracy) for point in curve]
    if len(pairs) < 2:
        return None
    served = [(float(point.models), 100 * point.served / targets) for point in curve if point.served < targets]
    axes = (
        Axis.around("models", (x for x, _ in pairs), least=1.0),
        Axis.around("mean predicted top-1 (%)", (y for _, y in pairs), least=0.5),
    )
    last = curve[-1]
    description = (
        f"From {pairs[0][1]:.2f} % with one model to {pairs[-1][1]:.2f} % with {last.models}, over "
        f"{wording.count_of(targets, 'target')}"
        + (f"; fewer than {int(served[-1][0]) + 1} models do not serve every target." if served else ".")
    )
    return draw(
        "curve", "Accuracy by the number of models", description, axes, [Series("", "measured", pairs, "steps")]
    )


def compared_fronts(
    labels: tuple[str, str], runs: tuple[Mapping[SettingKey, Sequence[Point]], ...], most: int
) -> list[Figure]:
    """Draw the fronts that two runs found on each device setting, `most` settings at most."""
    drawn = []
    for index, key in enumerate(sorted({key for points in runs for key in points})[:most]):
        fronts = [pareto_front(points.get(key, ())) for points in runs]
        if not any(fronts):
            continue
        series = [
            Series(label, f"hue-{number}", pairs, "steps")
            for number, (label, pairs) in enumerate(zip(labels, fronts, strict=True))
        ]
        text = "Best predicted accuracy at each measured latency."
        drawn.append(draw(f"front-{index}", "/".join(key), text, _axes(series), series))
    return drawn


def setting_figures(
    points: Sequence[Point], winners: Sequence[WinnerRecord], record: DeviceRecord | None, key: SettingKey
) -> list[Figure]:
    """Return the figures of one device setting for which there is data."""
    drawn = (
        front("front", key, points, winners),
        agreement(points),
        learning(record) if record is not None else None,
        drift(points),
        temperature(points),
    )
    return [figure for figure in drawn if figure is not None]


def fronts_apart(state: RunState, most: int) -> list[tuple[SettingKey, Figure]]:
    """Return the fronts of the device settings by name, `most` of them at most."""
    found = []
    for index, (key, points) in enumerate(sorted(state.points.items())[:most]):
        figure = front(f"front-{index}", key, points, state.winners.get(key, ()))
        if figure is not None:
            found.append((key, figure))
    return found
