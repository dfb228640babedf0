"""Write the output of `fleetnas-agent bench --sustained`: live lines, summary, JSON and CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from typing import IO

from fleetnas.agent.cli.sustained_chart import format_time
from fleetnas.agent.measuring.messages import WindowReply
from fleetnas.agent.measuring.sustained import (
    MIN_WINDOWS_FOR_STEADY,
    STEADY_WITHIN,
    Summary,
    SustainedRun,
    slowdown,
    summarise,
)
from fleetnas.fleet_protocol.messages import Conditions

LINE_HEADER = "elapsed   latency ms   slow-down   temp C   clock MHz   throttled"
_CONDITIONS = tuple(Conditions.model_fields)
_COLUMNS = ("begin_s", "end_s", "median_ms", "p90_ms", "min_ms", "samples")


def window_line(window: WindowReply, windows: Sequence[WindowReply]) -> str:
    """Return one live line; the slow-down refers to the fastest early one of `windows`, which are those so far."""
    state = window.conditions
    throttled = {None: "-", True: "yes", False: "no"}[state.throttled]
    return (
        f"{format_time(window.end_s):>7}{window.median_ms:>13.4g}{slowdown(window, windows):>11.2f}x"
        f"{_number(state.temperature_c, '.1f'):>9}{_number(state.clock_mhz, '.0f'):>12}{throttled:>12}"
    )


def summary_lines(run: SustainedRun, summary: Summary) -> list[str]:
    """Return the summary as lines for people."""
    first, last = format_time(summary.beginning_s), format_time(summary.end_s)
    slowest = f"slowest {summary.slowest_ms:.4g} ms ({summary.slowest_slowdown:.2f}x)"
    lines = [
        f"first {first}: {summary.beginning_ms:.4g} ms; last {last}: {summary.end_ms:.4g} ms, "
        + _change(summary.end_slowdown),
        f"fastest early window {summary.fastest_early_ms:.4g} ms, {slowest}",
        _steadiness(run, summary),
    ]
    states = [window.conditions for window in run.windows]
    for name, unit, values in (
        ("temperature", "C", [state.temperature_c for state in states]),
        ("clock", "MHz", [state.clock_mhz for state in states]),
    ):
        known = [value for value in values if value is not None]
        if known:
            lines.append(
                f"{name} {known[0]:.4g} {unit} at first, {known[-1]:.4g} {unit} at last, {max(known):.4g} at most"
            )
    if summary.throttled_windows is not None:
        lines.append(f"the device reported throttling in {summary.throttled_windows} of {len(run.windows)} windows")
    return lines


def json_object(run: SustainedRun, **about: object) -> dict[str, object]:
    """Return a whole run as a JSON object, each window with its slow-down; `about` describes the model and the run."""
    windows = [
        {**window.model_dump(exclude={"kind"}), "slowdown": slowdown(window, run.windows)} for window in run.windows
    ]
    return {
        **about,
        **(run.model.model_dump(exclude={"kind"}) if run.model is not None else {}),
        "interrupted": run.interrupted,
        "failure": run.failure or None,
        "summary": asdict(summarise(run.windows)),
        "windows": windows,
    }


class WindowTable:
    """Writes the CSV file of a run as windows end, so that an interrupted run leaves its windows."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._writer = csv.writer(file, lineterminator="\n")
        self._write([*_COLUMNS, *_CONDITIONS])

    def add(self, window: WindowReply) -> None:
        """Write one window; a cell without a sensor is empty. Raises `OSError` if the file cannot be written."""
        cells = [getattr(window, name) for name in _COLUMNS]
        self._write([*cells, *(getattr(window.conditions, name) for name in _CONDITIONS)])

    def _write(self, cells: Sequence[object]) -> None:
        self._writer.writerow([f"{cell:.7g}" if isinstance(cell, float) else cell for cell in cells])
        self._file.flush()


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _change(ratio: float) -> str:
    percent = 100 * abs(ratio - 1)
    if percent < 0.5:
        return "as fast"
    return f"{percent:.{0 if percent >= 10 else 1}f} % {'slower' if ratio > 1 else 'faster'}"


def _steadiness(run: SustainedRun, summary: Summary) -> str:
    if summary.steady_from_s is not None:
        first = summary.steady_from_s == run.windows[0].begin_s
        since = "the first window" if first else format_time(summary.steady_from_s)
        return f"steady from {since} on (within {100 * STEADY_WITHIN:g} % of the end)"
    if len(run.windows) < MIN_WINDOWS_FOR_STEADY:
        return f"{len(run.windows)} windows are too few to tell whether it became steady"
    return f"not steady yet (within {100 * STEADY_WITHIN:g} % of the end): a longer run would tell more"
