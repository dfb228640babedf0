"""Read the results of a run, and draw them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fleetnas.coordinator.report import artifacts
from fleetnas.coordinator.report.artifacts import MEASUREMENTS_FILE
from fleetnas.coordinator.report.drawing import Plot
from fleetnas.coordinator.report.plots import device_plots
from fleetnas.coordinator.report.results import Results
from fleetnas.coordinator.search.engine import SearchResult
from fleetnas.coordinator.search.offline import draw_fronts
from fleetnas.coordinator.store.measurement_table import read_measurements

__all__ = ["plot_fronts", "plot_results", "read_results"]


def read_results(folder: Path | str) -> Results:
    """Read `results.json` of the folder that a search wrote with `--out`.

    Returns:
        The run: `fleet` has one record per device setting, each with its targets. docs/results.md describes every
        field.

    Raises:
        StoreError: the folder holds no results, or the file was altered.
    """
    return artifacts.read_results(Path(folder))


def plot_results(folder: Path | str) -> dict[str, list[Plot]]:
    """Draw the plots of the report: front, predicted against measured, learning curve, slow-down and temperature.

    Args:
        folder: the folder that a search wrote with `--out`.

    Returns:
        By device setting, as `device/setting`, the plots for which there is data. `Plot.svg` is an `<svg>` element.

    Raises:
        StoreError: the folder holds no results, or a file was altered.
    """
    results = read_results(folder)
    rows = read_measurements(Path(folder) / MEASUREMENTS_FILE)
    return {
        device.label: device_plots(device, rows.get((device.device, device.runtime), []), f"p{index}")
        for index, device in enumerate(results.fleet)
    }


def plot_fronts(results: Mapping[str, SearchResult] | SearchResult, path: Path | str, *, title: str = "") -> None:
    """Draw Pareto fronts of offline searches, top-1 in percent over predicted latency in ms.

    Args:
        results: one result of `search`, or several by name.
        path: the picture to write; its suffix is the format, such as `.png` or `.svg`.
        title: the plot's title.

    Raises:
        OSError: the picture cannot be written.
    """
    named: Mapping[str, SearchResult] = {results.strategy: results} if isinstance(results, SearchResult) else results
    draw_fronts(named, Path(path), title)
