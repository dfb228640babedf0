"""What a device setting gains: a winner beside what it is compared with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fleetnas.coordinator.records.comparisons import speedup_interval
from fleetnas.coordinator.records.outcome import TakenMeasurement
from fleetnas.coordinator.report.results import BaselineResult, DeviceResult, TargetResult
from fleetnas.coordinator.report.target_names import is_about, name_of
from fleetnas.coordinator.view.speedup import speedup_words
from fleetnas.coordinator.view.wording import count_of

#: A winner within this of the comparison's accuracy, in points, is as good; of several the fastest shows the gain.
_SAME_ACCURACY_POINTS = 1.0
#: Accuracies within these points are told as equal.
_SHOWN_POINTS = 0.05
#: A subnet that was measured, whatever it is called: the comparison of a run without a baseline.
MOST_ACCURATE = "most accurate subnet measured"


@dataclass(frozen=True)
class Network:
    """A network on a device setting."""

    name: str
    latency_ms: float
    accuracy: float | None
    """Top-1, a fraction; None where it is not known."""
    half_width_percent: float = 0.0
    """95 % half-width of the latency, in percent of it; 0 where it is not known."""


@dataclass(frozen=True)
class Gain:
    """A winner, and a network that it is compared with."""

    winner: Network
    compared_with: Network
    speedup: float
    """How many times as fast the winner is."""
    points: float | None
    """Accuracy that is gained, in percentage points; None where one accuracy is not known."""
    predicted: bool
    """Whether the accuracies are predictions."""
    low: float | None = None
    """Lower end of the speed-up's 95 % interval; None: the interval is not known."""
    high: float | None = None
    """Upper end of it; None: the interval is not known, or has no end."""

    @property
    def text(self) -> str:
        """The gain in words, as `2.1x faster at −0.3 points`."""
        return gain_text(self.speedup, self.points, self.low, self.high)


def gain_text(speedup: float, points: float | None, low: float | None = None, high: float | None = None) -> str:
    """Return a gain in words, as `2.1x faster at −0.3 points`; `low` and `high` are the speed-up's interval."""
    speed = speedup_words(speedup, low, high)
    if points is None:
        return speed
    if abs(points) < _SHOWN_POINTS:
        return f"{speed} at the same accuracy"
    return f"{speed} at {'+' if points > 0 else '−'}{abs(points):.1f} points"


def device_gain(device: DeviceResult, rows: Sequence[TakenMeasurement]) -> Gain | None:
    """Return the gain on a device setting; None without a winner, or where there is nothing to compare it with.

    Winners are compared with the first baseline that was measured, else with the most accurate subnet that was measured
    undisturbed. Of the winners that are faster, the one that shows the gain is the fastest within a point of that
    accuracy, else the most accurate.
    """
    for baseline in device.baselines:
        if baseline.comparisons and baseline.latency_ms is not None:
            return _against(device, baseline)
    winners = [target for target in device.targets if target.met and target.verified_ms is not None]
    evaluated = [_network(each, each.accuracy, rows) for each in winners if each.accuracy is not None]
    predicted = [
        _network(each, each.predicted_accuracy, rows) for each in winners if each.predicted_accuracy is not None
    ]
    measured = _most_accurate(rows)
    if measured is not None and predicted:
        best = max(predicted, key=lambda each: each.accuracy or 0.0)
        if (measured.accuracy or 0.0) > (best.accuracy or 0.0):
            return _gain(predicted, measured, predicted=True)
    known = evaluated if len(evaluated) > 1 else predicted
    if len(known) < 2:
        return None
    most = max(known, key=lambda each: (each.accuracy or 0.0, -each.latency_ms))
    others = [each for each in known if each is not most]
    return _gain(others, most, predicted=known is predicted)


def summary(gains: Iterable[Gain]) -> str:
    """Return the median gain over device settings, in one line; empty without any."""
    known = list(gains)
    if not known:
        return ""
    points = [gain.points for gain in known if gain.points is not None]
    text = gain_text(
        statistics.median(gain.speedup for gain in known),
        statistics.median(points) if points else None,
        # The median of true values is between the medians of their bounds.
        statistics.median(gain.speedup if gain.low is None else gain.low for gain in known),
        _finite(statistics.median(_upper_end(gain) for gain in known)),
    )
    return text if len(known) == 1 else f"{text}, the median of {count_of(len(known), 'device setting')}"


def _against(device: DeviceResult, baseline: BaselineResult) -> Gain:
    """Return the gain over a baseline; speed-ups are those of the results, also where the device was slowed."""
    found = baseline.comparisons
    faster = [each for each in found if each.speedup > 1] or found
    as_good = [each for each in faster if (each.accuracy_points or 0.0) >= -_SAME_ACCURACY_POINTS]
    if all(each.accuracy_points is None for each in found):
        chosen = min(faster, key=lambda each: each.speedup)  # the slowest of them is the most accurate
    elif as_good:
        chosen = max(as_good, key=lambda each: each.speedup)
    else:
        chosen = max(faster, key=lambda each: each.accuracy_points or 0.0)
    target = next(each for each in device.targets if is_about(chosen, each))
    predicted = chosen.accuracy_basis == "predicted"
    accuracies = (
        (target.predicted_accuracy, baseline.predicted_accuracy) if predicted else (target.accuracy, baseline.accuracy)
    )
    assert baseline.latency_ms is not None
    return Gain(
        _network(target, accuracies[0], ()),
        Network(baseline.name, baseline.latency_ms, accuracies[1]),
        chosen.speedup,
        chosen.accuracy_points,
        predicted,
        chosen.speedup_low,
        chosen.speedup_high,
    )


def _gain(winners: Sequence[Network], compared_with: Network, *, predicted: bool) -> Gain:
    def loss(winner: Network) -> float:
        return 100 * ((compared_with.accuracy or 0.0) - (winner.accuracy or 0.0))

    faster = [each for each in winners if each.latency_ms < compared_with.latency_ms] or list(winners)
    as_good = [each for each in faster if loss(each) <= _SAME_ACCURACY_POINTS]
    chosen = min(as_good, key=lambda each: each.latency_ms) if as_good else min(faster, key=loss)
    speedup = compared_with.latency_ms / chosen.latency_ms
    low, high = speedup_interval(speedup, chosen.half_width_percent, compared_with.half_width_percent)
    return Gain(chosen, compared_with, speedup, -loss(chosen), predicted, low, high)


def _upper_end(gain: Gain) -> float:
    if gain.low is None:
        return gain.speedup
    return math.inf if gain.high is None else gain.high


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _network(target: TargetResult, accuracy: float | None, rows: Sequence[TakenMeasurement]) -> Network:
    assert target.verified_ms is not None
    name = name_of(target)
    name = name if target.subnet else f"winner for {name}"
    found = [
        row.measurement.half_width_percent
        for row in rows
        if row.purpose == "verification" and row.measurement.median_ms == target.verified_ms
    ]
    return Network(name, target.verified_ms, accuracy, found[-1] if found else 0.0)


def _most_accurate(rows: Sequence[TakenMeasurement]) -> Network | None:
    """Return the most accurate subnet by prediction that was measured while searching, at the device's own speed.

    A slowed measurement would make every winner look faster than it is.
    """
    usual = [
        (row.predicted_accuracy, row.measurement.median_ms, row.measurement.half_width_percent)
        for row in rows
        if row.counted
        and row.purpose != "verification"
        and row.predicted_accuracy is not None
        and row.measurement.quality != "slowed"
    ]
    if not usual:
        return None
    accuracy, latency_ms, half_width = max(usual, key=lambda found: (found[0], -found[1]))
    return Network(MOST_ACCURATE, latency_ms, accuracy, half_width)
