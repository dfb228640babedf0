"""The report's plots as inline SVG, coloured by the page's own CSS variables."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fleetnas.coordinator.records.outcome import TakenMeasurement
from fleetnas.coordinator.records.predictor_error import FEWEST_HELD_OUT
from fleetnas.coordinator.report.results import DeviceResult, TargetResult
from fleetnas.fleet_protocol.messages import Measurement

#: Placeholders that matplotlib draws with; the page's stylesheet replaces them, in light and in dark.
_COLOURS = {
    "ink": "#010101",
    "muted": "#020202",
    "measured": "#030303",
    "predicted": "#040404",
    "winner": "#050505",
}
#: Latencies that span more than this factor are shown on a logarithmic axis.
_WIDE = 5
_LEAST_SLOWDOWN = 0.02
_WIDTH_IN, _HEIGHT_IN = 5.6, 3.5
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fleetnas",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _COLOURS["muted"],
    "axes.labelcolor": _COLOURS["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titlecolor": _COLOURS["ink"],
    "text.color": _COLOURS["ink"],
    "xtick.color": _COLOURS["muted"],
    "ytick.color": _COLOURS["muted"],
    "xtick.labelcolor": _COLOURS["ink"],
    "ytick.labelcolor": _COLOURS["ink"],
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Plot:
    """One figure of the report."""

    title: str
    description: str
    """Text alternative, for readers who cannot see it."""
    svg: str
    """An `<svg>` element, complete in itself."""


def device_plots(device: DeviceResult, rows: Sequence[TakenMeasurement], prefix: str) -> list[Plot]:
    """Draw the plots for which there is data. `prefix` keeps the SVG identifiers of one page's plots apart."""
    import matplotlib

    searched = [row for row in rows if row.purpose in ("initial-design", "candidate")]
    with matplotlib.rc_context(_SETTINGS):
        drawn = (
            _front(device, searched),
            _agreement(searched),
            _learning(device),
            _slowdown_and_temperature(rows),
        )
        return [
            Plot(title, description, _inline_svg(figure, f"{prefix}-{index}", f"{title}. {description}"))
            for index, (title, description, figure) in enumerate(plot for plot in drawn if plot is not None)
        ]


_Drawn = tuple[str, str, Any]


def _figure(rows: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    figure.patch.set_alpha(0.0)
    for axis in axes:
        axis.patch.set_alpha(0.0)
        axis.grid(True, color=_COLOURS["muted"], alpha=0.2, linewidth=0.6)
    return figure, axes


def _front(device: DeviceResult, rows: Sequence[TakenMeasurement]) -> _Drawn | None:
    """Plot accuracy over latency: each subnet where it was predicted and where it was measured, and the winners.

    A measured subnet is drawn where it was predicted beforehand, a winner where it is predicted without its own
    measurements.
    """
    rated = [row for row in rows if row.predicted_accuracy is not None]
    winners = [target for target in device.targets if target.verified_ms is not None and target.accuracy is not None]
    if not rated and not winners:
        return None
    figure, (axis,) = _figure()
    targets_ms = sorted(
        {target.target_ms for target in device.targets if target.target_ms is not None and not target.target}
    )
    for index, target_ms in enumerate(targets_ms):
        axis.axvline(
            target_ms,
            color=_COLOURS["muted"],
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
    shown = [ms for predicted_ms, found_ms, _ in pairs for ms in (predicted_ms, found_ms) if ms > 0]
    if shown and max(shown) > _WIDE * min(shown):
        _logarithmic(axis, "x")
    axis.set_xlabel("latency (ms)")
    axis.set_ylabel("top-1 accuracy (%)")
    figure.legend(loc="outside lower center", ncols=2)
    description = (
        f"Top-1 accuracy over latency: {len(rated)} measured subnets with their predicted accuracy, and "
        f"{len(winners)} winners with verified latency and evaluated accuracy. Predictions were made before a subnet "
        "was measured, those of winners with their own measurements left out; dotted lines are the targets."
    )
    return "Front", description, figure


def _draw_front(
    axis: Any,
    pairs: Sequence[tuple[float, float, float]],
    rated: Sequence[TakenMeasurement],
    winners: Sequence[TargetResult],
) -> None:
    """Draw predictions, measurements and winners; a pair is predicted ms, found ms and accuracy in percent."""
    for predicted_ms, found_ms, accuracy in pairs:
        axis.plot([predicted_ms, found_ms], [accuracy, accuracy], color=_COLOURS["muted"], linewidth=0.7)
    axis.plot(
        [predicted_ms for predicted_ms, _, _ in pairs],
        [accuracy for _, _, accuracy in pairs],
        "o",
        markersize=5,
        fillstyle="none",
        color=_COLOURS["predicted"],
        label="latency predicted",
    )
    axis.plot(
        [row.measurement.median_ms for row in rated],
        [100 * (row.predicted_accuracy or 0.0) for row in rated],
        "o",
        markersize=4.5,
        color=_COLOURS["measured"],
        label="latency measured",
    )
    axis.plot(
        [target.verified_ms for target in winners],
        [100 * (target.accuracy or 0.0) for target in winners],
        "*",
        markersize=13,
        markeredgecolor=_COLOURS["ink"],
        markeredgewidth=0.8,
        color=_COLOURS["winner"],
        label="winner, verified and evaluated",
    )


def _agreement(rows: Sequence[TakenMeasurement]) -> _Drawn | None:
    """Plot measured over predicted latency, the prediction made before the measurement."""
    pairs = [(row.predicted_ms, row.measurement.median_ms) for row in rows if row.predicted_ms is not None]
    if len(pairs) < 2:
        return None
    figure, (axis,) = _figure()
    predicted, measured = zip(*pairs, strict=True)
    low, high = min(*predicted, *measured), max(*predicted, *measured)
    axis.plot([low, high], [low, high], color=_COLOURS["muted"], linewidth=1, label="exact")
    axis.plot(predicted, measured, "o", markersize=4.5, color=_COLOURS["measured"], label="subnet")
    if high > _WIDE * low:
        _logarithmic(axis, "x", "y")
    axis.set_xlabel("predicted before measuring (ms)")
    axis.set_ylabel("measured (ms)")
    axis.legend(loc="upper left")
    return (
        "Prediction and measurement",
        f"Measured latency over the latency predicted beforehand, for {len(pairs)} subnets; on the line they agree.",
        figure,
    )


def _logarithmic(axis: Any, *sides: str) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    for side in sides:
        getattr(axis, f"set_{side}scale")("log")
        line = getattr(axis, f"{side}axis")
        line.set_major_locator(LogLocator(subs=(1, 2, 5)))
        line.set_major_formatter("{x:g}")
        line.set_minor_locator(NullLocator())


def _learning(device: DeviceResult) -> _Drawn | None:
    """Plot the held-out error of the predictor over the measurements that it had learned from."""
    learning = [point for point in device.learning if point.held_out >= FEWEST_HELD_OUT]
    if not learning:
        return None
    figure, (axis,) = _figure()
    axis.plot(
        [point.measurements for point in learning],
        [point.mape_percent for point in learning],
        "o-",
        markersize=4,
        color=_COLOURS["measured"],
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
    return "Predictor error as it learned", description, figure


def _slowdown_and_temperature(rows: Sequence[TakenMeasurement]) -> _Drawn | None:
    """Plot slow-down and temperature over the time of the measurements."""
    if not rows:
        return None
    ordered = sorted(rows, key=lambda row: row.measurement.finished_unix_s)
    start_s = ordered[0].measurement.finished_unix_s
    found = [((row.measurement.finished_unix_s - start_s) / 60, row.measurement) for row in ordered]
    warm = [(at, m.after.temperature_c) for at, m in found if m.after.temperature_c is not None]
    figure, axes = _figure(2 if warm else 1)
    description = _draw_slowdown(axes[0], found)
    if warm:
        at, values = zip(*warm, strict=True)
        axes[1].plot(at, values, "s-", markersize=3, linewidth=1, color=_COLOURS["predicted"])
        axes[1].set_ylabel("temperature (°C)")
        description += f"; temperature from {min(values):.0f} to {max(values):.0f} °C"
    else:
        description += "; the device reports no temperature"
    axes[-1].set_xlabel("minutes since the first measurement")
    return "Slow-down and temperature", f"{description}, over {found[-1][0]:.1f} minutes.", figure


def _draw_slowdown(axis: Any, found: Sequence[tuple[float, Measurement]]) -> str:
    """Draw slow-down over minutes; returns the description of the plot."""
    known = [(at, m.slowdown) for at, m in found if m.slowdown is not None]
    slowed = [(at, m.slowdown) for at, m in found if m.slowdown is not None and m.quality == "slowed"]
    unknown = [at for at, m in found if m.slowdown is None]
    axis.axhline(1, color=_COLOURS["muted"], linewidth=1)
    axis.plot(*_columns(known), "o-", markersize=3, linewidth=1, color=_COLOURS["measured"])
    if slowed:
        axis.plot(*_columns(slowed), "D", markersize=5, color=_COLOURS["predicted"], label="slowed")
    for index, at in enumerate(unknown):
        label = "speed unknown" if index == 0 else None
        axis.axvline(at, color=_COLOURS["winner"], linewidth=2, zorder=0.5, label=label)
    changes = _regime_changes(found)
    for index, at in enumerate(changes):
        label = "new lasting speed" if index == 0 else None
        axis.axvline(at, color=_COLOURS["ink"], linestyle="--", linewidth=1, zorder=0.6, label=label)
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


def _inline_svg(figure: Any, prefix: str, label: str) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    for name, stand_in in _COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    numbers = itertools.count()
    names: dict[str, str] = {}
    for identifier in re.findall(r'\bid="([^"]+)"', svg):
        names.setdefault(identifier, f"{prefix}-{next(numbers)}")
    svg = re.sub(r'\bid="([^"]+)"', lambda match: f'id="{names[match[1]]}"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", lambda match: f"url(#{names[match[1]]})", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', lambda match: f'href="#{names[match[1]]}"', svg)
    opening = re.compile(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', re.DOTALL)
    escaped = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return opening.sub(
        lambda match: (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{match[1]}" role="img" aria-label="{escaped}">'
        ),
        svg,
        count=1,
    )
