"""Make the pictures in `docs/img` from a finished run: `python docs/pictures.py ARTIFACTS`.

ARTIFACTS is the folder that `fleetnas search --out` filled. The live view is rebuilt as it stood in the middle of
that run, from its stored measurements; the report is opened in a headless Chromium. `--scenes DIR` draws instead the
view of invented fleets of 1, 6 and 12 device settings at three sizes, to be looked at.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.terminal_theme import MONOKAI

from fleetnas.coordinator.monitoring.stored_progress import StoredProgress
from fleetnas.coordinator.monitoring.stored_setting import StoredWork
from fleetnas.coordinator.records.budget import counts_against_budget
from fleetnas.coordinator.records.data_quality import DataQuality, QualityTally
from fleetnas.coordinator.records.events import MeasurementTaken
from fleetnas.coordinator.records.outcome import TakenMeasurement
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.predictor_error import PredictorError
from fleetnas.coordinator.records.run_progress import RunProgress
from fleetnas.coordinator.records.snapshot import DeviceSnapshot, Snapshot, TargetSnapshot, ended_state
from fleetnas.coordinator.report.artifacts import MEASUREMENTS_FILE, read_results
from fleetnas.coordinator.report.html import write_report
from fleetnas.coordinator.report.results import DeviceResult, Results, TargetResult
from fleetnas.coordinator.store.measurement_table import read_measurements
from fleetnas.coordinator.view.event_briefs import brief_line
from fleetnas.coordinator.view.lines import timed_line
from fleetnas.coordinator.view.live import render
from fleetnas.fleet_protocol.messages import RuntimeSetting

SIZES = ((80, 24), (120, 40), (160, 50))
_SVG_FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: {char_height}px;
  line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-family: "DejaVu Sans", Arial, sans-serif; font-size: 18px; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


def snapshot_at(results: Results, rows: dict[tuple[str, str], list[TakenMeasurement]], share: float) -> Snapshot:
    """The run after `share` of its time, as far as its measurements tell."""
    started_s = results.started_at.timestamp()
    last_s = max(row.measurement.finished_unix_s for table in rows.values() for row in table)
    now_s = started_s + share * (last_s - started_s)
    devices = [
        _device_at(device, rows.get((device.device, device.runtime), []), results, now_s) for device in results.fleet
    ]
    lines = sorted(line for _, log in devices for line in log)
    snapshots = tuple(device for device, _ in devices)
    return Snapshot(
        run_id=results.run_id,
        supernet=results.supernet.name,
        started_s=started_s,
        now_s=now_s,
        phase="searching",
        devices=snapshots,
        log=tuple(timed_line(at_s, line) for at_s, line in lines[-50:]),
        progress=_progress_at(results, rows, snapshots, now_s),
    )


class _Replayed:
    """What a device setting had done by then; a `SettingWork`."""

    def __init__(self, device: str) -> None:
        self.device, self.setting = device, RuntimeSetting()
        self.tally, self.search = QualityTally(), StoredWork(0, "search", None)
        self.failures = self.measurements = 0


def _progress_at(
    results: Results,
    rows: dict[tuple[str, str], list[TakenMeasurement]],
    snapshots: Sequence[DeviceSnapshot],
    now_s: float,
) -> RunProgress | None:
    """Estimate the time left from the measurements until then, by the rules of `fleetnas watch`."""
    replayed = {(each.device, each.setting_label): _Replayed(each.device) for each in snapshots}
    started_s = results.started_at.timestamp()
    # The targets that the run was given do not matter here: the snapshots have them.
    progress = StoredProgress(CampaignPlan(targets="auto:4", budget=results.budget), started_s)
    # Two settings of one device would need their labels; the demonstration has one of each.
    for setting in replayed.values():
        progress.observe(started_s, [setting])
    taken = ((row.measurement.finished_unix_s, key, row) for key, table in rows.items() for row in table)
    for at_s, key, row in sorted(taken, key=lambda each: each[0]):
        if at_s > now_s or key not in replayed:
            continue
        setting = replayed[key]
        setting.tally.add(row.measurement)
        setting.measurements += counts_against_budget(row.purpose, row.target_ms)
        phase = "verification" if row.purpose == "verification" else "search"
        setting.search = StoredWork(setting.measurements, phase, None)
        progress.observe(at_s, [setting])
    return progress.progress(now_s, list(replayed.values()), snapshots, ended=False)


def _device_at(
    device: DeviceResult, rows: Sequence[TakenMeasurement], results: Results, now_s: float
) -> tuple[DeviceSnapshot, list[tuple[float, str]]]:
    taken = [row for row in rows if row.measurement.finished_unix_s <= now_s]
    to_come = [row for row in rows if row.measurement.finished_unix_s > now_s]
    searched = [row for row in taken if row.counted and counts_against_budget(row.purpose, row.target_ms)]
    learned = [point for point in device.learning if point.measurements <= len(searched)]
    verifying = bool(to_come) and to_come[0].purpose == "verification"
    snapshot = DeviceSnapshot(
        device=device.device,
        setting_label=device.runtime,
        state=(ended_state(device.status) or "idle") if not to_come else "verifying" if verifying else "measuring",
        state_detail=_detail(to_come[0]) if to_come else device.reason,
        temperature_c=taken[-1].measurement.after.temperature_c if taken else None,
        throttled=taken[-1].measurement.after.throttled if taken else None,
        measurements=len(searched),
        budget=results.budget,
        predictor_error=None
        if not learned
        else PredictorError(learned[-1].mape_percent, learned[-1].spearman, learned[-1].held_out),
        targets=tuple(_target_at(target, taken) for target in device.targets),
        targets_asked=device.targets_asked,
        targets_note=device.targets_note,
        quality=DataQuality.of(row.measurement for row in taken if row.counted),
    )
    events = [
        (
            row.measurement.finished_unix_s,
            brief_line(
                MeasurementTaken(
                    at_s=row.measurement.finished_unix_s,
                    run_id=results.run_id,
                    device=device.device,
                    setting=device.runtime,
                    task_id=row.task_id,
                    purpose=row.purpose,
                    architecture=row.architecture,
                    fingerprint=row.architecture.fingerprint,
                    predicted_ms=row.predicted_ms,
                    measured_ms=row.measurement.median_ms,
                    half_width_percent=row.measurement.half_width_percent,
                    quality=row.measurement.quality,
                    measurements=index + 1,
                    budget=results.budget,
                )
            ),
        )
        for index, row in enumerate(searched)
    ]
    return snapshot, [(at_s, line) for at_s, line in events if line is not None]


def _detail(row: TakenMeasurement) -> str:
    subnet = f"subnet {row.architecture.fingerprint}"
    return f"{subnet} for {row.target_ms:g} ms" if row.target_ms is not None else f"{subnet} as a candidate"


def _target_at(target: TargetResult, taken: Sequence[TakenMeasurement]) -> TargetSnapshot:
    """The winner once it was verified; before that, the most accurate subnet measured within the target by then."""
    runs = [row for row in taken if row.architecture == target.architecture]
    if any(row.purpose == "verification" for row in runs):
        return TargetSnapshot(
            target_ms=target.target_ms,
            predicted_ms=target.predicted_ms,
            measured_ms=target.measured_ms,
            verified_ms=target.verified_ms,
            accuracy=target.predicted_accuracy,
            evaluated_accuracy=target.accuracy,
            met=target.met,
            reason=target.reason,
            typical_ms=target.typical_ms,
            note=target.note,
        )
    within = [row for row in taken if row.measurement.median_ms <= target.target_ms]
    best = max(within, key=lambda row: row.predicted_accuracy or 0.0, default=None)
    if best is None:
        return TargetSnapshot(target.target_ms)
    return TargetSnapshot(
        target_ms=target.target_ms,
        measured_ms=best.measurement.median_ms,
        accuracy=best.predicted_accuracy,
    )


def draw_live_view(snapshot: Snapshot, width: int, height: int, path: Path) -> None:
    """The live view on a terminal of `width` x `height` characters, as SVG."""
    console = Console(
        record=True, file=io.StringIO(), width=width, height=height, force_terminal=True, color_system="truecolor"
    )
    console.print(render(snapshot))
    console.save_svg(str(path), title="fleetnas search", theme=MONOKAI, code_format=_SVG_FORMAT, unique_id=path.stem)


def photograph(page: Path, path: Path, width: int, height: int, dark: bool, chromium: str) -> None:
    """A PNG of a page as a browser shows it."""
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                chromium,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
                f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                f"--window-size={width},{height}",
                f"--screenshot={path}",
                page.resolve().as_uri(),
            ],
            check=True,
            timeout=300,
            capture_output=True,
        )


def draw_scenes(folder: Path, chromium: str) -> None:
    """Draw the live view of invented fleets at every size, as SVG and, where there is a browser, as PNG."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from rigs.view_scenes import SETTINGS, scene
    from rigs.view_scenes import SIZES as SCENE_SIZES

    folder.mkdir(parents=True, exist_ok=True)
    for settings in SETTINGS:
        for width, height in SCENE_SIZES:
            path = folder / f"scene-{settings}-{width}x{height}.svg"
            draw_live_view(scene(settings), width, height, path)
            if shutil.which(chromium) is not None:
                photograph(path, path.with_suffix(".png"), 12 * width + 40, 25 * height + 70, False, chromium)
            print(path)


def main() -> None:
    """Write every picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", type=Path, nargs="?", help="folder that `fleetnas search --out` filled")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "img")
    parser.add_argument("--at", type=float, default=0.7, help="share of the run's time that the live view shows")
    parser.add_argument("--scenes", type=Path, metavar="DIR", help="draw invented fleets there instead")
    parser.add_argument("--chromium", default="chromium", help="the browser's program")
    arguments = parser.parse_args()
    if arguments.scenes is not None:
        draw_scenes(arguments.scenes, arguments.chromium)
        return
    if arguments.artifacts is None:
        parser.error("give ARTIFACTS, the folder that `fleetnas search --out` filled, or --scenes DIR")
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = read_measurements(arguments.artifacts / MEASUREMENTS_FILE)
    snapshot = snapshot_at(read_results(arguments.artifacts), rows, arguments.at)
    for width, height in SIZES:
        path = arguments.out / f"live-{width}x{height}.svg"
        draw_live_view(snapshot, width, height, path)
        print(path)
    if shutil.which(arguments.chromium) is None:
        sys.exit(f"the report was not photographed: no program {arguments.chromium!r}; install Debian's chromium")
    page = write_report(arguments.artifacts)
    for name, dark in (("report", False), ("report-dark", True)):
        path = arguments.out / f"{name}.png"
        photograph(page, path, 1280, 1800, dark, arguments.chromium)
        print(path)


if __name__ == "__main__":
    main()
