"""`report.html`: one self-contained page on a run's artifacts, with the raw data linked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.data_quality import DataQuality
from fleetnas.coordinator.records.outcome import TakenMeasurement
from fleetnas.coordinator.records.predictor_error import PredictorError
from fleetnas.coordinator.records.statuses import RunStatus, SettingStatus
from fleetnas.coordinator.records.targets import target_label
from fleetnas.coordinator.records.totals import target_totals
from fleetnas.coordinator.report.artifacts import MEASUREMENTS_FILE, REPORT_FILE, RESULTS_FILE, read_results
from fleetnas.coordinator.report.class_tables import class_tables
from fleetnas.coordinator.report.drawing import Plot
from fleetnas.coordinator.report.fleet_plot import fleet_plot
from fleetnas.coordinator.report.gain import device_gain, summary
from fleetnas.coordinator.report.inference_program import INFER_FILE
from fleetnas.coordinator.report.plots import device_plots
from fleetnas.coordinator.report.portfolio_section import portfolio_section
from fleetnas.coordinator.report.results import DeviceResult, Results
from fleetnas.coordinator.report.winner_table import WinnerRow, quantity, samples_text, size, winner_rows
from fleetnas.coordinator.store.measurement_table import read_measurements
from fleetnas.coordinator.view import wording
from fleetnas.coordinator.view.baseline_table import comparison_words
from fleetnas.supernet_export.manifest import Preprocessing
from fleetnas.supernet_export.output_files import write_atomically

if TYPE_CHECKING:
    from jinja2 import Environment

#: Device settings that are plotted, at most: the plots of one weigh about 100 KB.
MAX_PLOTTED = 50
#: Failures that are listed of one device setting.
MAX_FAILURES = 20
#: Class names that stand on the page without being unfolded.
MAX_CLASSES = 30
#: Device settings whose gain is shown; a person reads no more.
MAX_GAINS = 12


_log = logging.getLogger("fleetnas.coordinator")


@dataclass(frozen=True)
class _Section:
    device: DeviceResult
    plots: list[Plot]
    winners: list[WinnerRow]

    @property
    def samples(self) -> str:
        """What the percentiles of the winners rest on."""
        return samples_text(self.winners)


def write_report(directory: Path) -> Path:
    """Write the report of the artifacts in `directory` beside its data; returns the page's path.

    `StoreError` where the artifacts are missing or were altered.
    """
    page = directory / REPORT_FILE
    write_atomically(page, render_report(directory).encode())
    return page


def render_report(directory: Path) -> str:
    """Return the page as text, from the files in `directory` alone; `StoreError` where these cannot be read."""
    results = read_results(directory)
    rows = read_measurements(directory / MEASUREMENTS_FILE)
    sections = [
        _section(device, rows.get((device.device, device.runtime), []), index)
        for index, device in enumerate(results.fleet)
    ]
    gains = [
        (device.label, gain)
        for device in results.fleet
        if (gain := device_gain(device, rows.get((device.device, device.runtime), []))) is not None
    ]
    tables = class_tables(results)
    environment = _environment()
    interrupted = results.status is RunStatus.INTERRUPTED
    return environment.get_template("report.html.j2").render(
        results=results,
        run_name=results.run_name or results.run_id,
        gains=gains,
        gain_summary=summary(gain for _, gain in gains),
        max_gains=MAX_GAINS,
        fleet_plot=_fleet_plot(results),
        quality_of_all=wording.data_quality(_quality_of_all(results)),
        program_beside=lambda model: _program_beside(directory, model),
        bounds=str(Bounds(**results.bounds)),
        sections=sections,
        elapsed=_elapsed(results),
        predictor=_predictor,
        preprocessing=_preprocessing,
        max_classes=MAX_CLASSES,
        targets_met=wording.targets_met(target_totals(results.fleet)),
        statuses=wording.status_counts((device.status for device in results.fleet), interrupted=interrupted),
        status_of=lambda device: wording.setting_status(device.status, interrupted=interrupted),
        conditions=", ".join(sorted({device.condition for device in results.fleet})),
        warning=wording.slowed_warning((device.label, device.data_quality) for device in results.fleet),
        advice=wording.SLOWED_ADVICE,
        accuracy_warnings=wording.first_warnings(results.accuracy_warnings),
        class_tables=tables,
        shown_classes={table.sha256 for table in tables},
        class_files=len(results.class_reports),
        setting_totals=lambda device: target_totals([device]),
        verified=wording.verified,
        compared=comparison_words,
        targets_remark=_targets_remark,
        value_of=lambda target: wording.target_value(target.target, target.value, target.value_high),
        max_plotted=MAX_PLOTTED,
        max_failures=MAX_FAILURES,
        portfolio=portfolio_section(directory, results.run_id),
        results_file=RESULTS_FILE,
        measurements_file=MEASUREMENTS_FILE,
    )


def _environment() -> Environment:
    """Make the environment of the template, with its own filters beside those of all pages."""
    from fleetnas.coordinator.view.page_templates import template_environment

    environment = template_environment("fleetnas.coordinator.report")
    environment.filters.update(
        target_label=target_label,
        quality=wording.data_quality,
        quantity=quantity,
        size=size,
        moment=lambda moment: moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
        clock=lambda moment: moment.astimezone().strftime("%H:%M:%S %Z"),
    )
    return environment


def _section(device: DeviceResult, rows: Sequence[TakenMeasurement], index: int) -> _Section:
    plots = _plots(device, rows, f"p{index}") if index < MAX_PLOTTED else []
    return _Section(device, plots, winner_rows(device, rows))


def _fleet_plot(results: Results) -> Plot | None:
    """Return the figure of all fronts; none where it cannot be drawn."""
    try:
        return fleet_plot(results.fleet, "fleet")
    except Exception as error:  # noqa: BLE001 - a plot must not cost the page
        _log.error("the fronts cannot be plotted", exc_info=error)
        return None


def _quality_of_all(results: Results) -> DataQuality:
    """Sum the counts of all device settings; lasting speeds are a matter of each."""
    parts = [device.data_quality for device in results.fleet]
    largest = [part.largest_slowdown for part in parts if part.largest_slowdown is not None]
    return DataQuality(
        ok=sum(part.ok for part in parts),
        noisy=sum(part.noisy for part in parts),
        slowed=sum(part.slowed for part in parts),
        unknown_speed=sum(part.unknown_speed for part in parts),
        largest_slowdown=max(largest, default=None),
    )


def _program_beside(directory: Path, model: str) -> str:
    """Return the path of the program beside a model file; empty where results of an earlier version have none."""
    path = f"{model.rpartition('/')[0]}/{INFER_FILE}"
    return path if (directory / path).is_file() else ""


def _plots(device: DeviceResult, rows: Sequence[TakenMeasurement], prefix: str) -> list[Plot]:
    """Return the plots of a device setting; none where its values cannot be drawn."""
    try:
        return device_plots(device, rows, prefix)
    except Exception as error:  # noqa: BLE001 - a plot must not cost the page
        _log.error("%s cannot be plotted", device.label, exc_info=error)
        return []


def _elapsed(results: Results) -> str:
    if results.finished_at is None:
        return str(results.status) if results.status is RunStatus.INTERRUPTED else "still running"
    return wording.elapsed((results.finished_at - results.started_at).total_seconds())


def _preprocessing(images: Preprocessing) -> str:
    """Describe how images are made the network's input."""
    colours = {1: "grey", 3: "RGB"}.get(images.channels, f"{images.channels} channels")
    cropped = f" (centre, {images.crop_fraction:.4g} of the side)" if images.fit == "crop" else ""
    mean, deviation = (", ".join(f"{value:.4g}" for value in values) for values in (images.mean, images.std))
    return f"{colours}, {images.fit}{cropped}, {images.interpolation} interpolation, mean {mean}, deviation {deviation}"


def _targets_remark(device: DeviceResult) -> str:
    return wording.targets_remark(
        len(device.targets), device.targets_asked, device.targets_note, device.status is not SettingStatus.RUNNING
    )


def _predictor(device: DeviceResult) -> str:
    record = device.predictor
    if record is None:
        return wording.predictor_error(None)
    return wording.predictor_error(
        PredictorError(record.mape_percent, record.spearman, record.held_out, record.transfer_weight)
    )
