"""How fast the dashboard answers: 100 runs, of which one at work has 10,000 measurements, against an empty store.

`fleetnas dashboard` runs as a process, and its pages are read over HTTP as a browser reads them. The first page of a
run is read from a process that has just been started. An update is what an open page asks for once a second, after ten
new measurements and without any. The same questions go to a dashboard over an empty store (of a run: one without
measurements), so that each figure has a ratio that a slow machine does not change. The exit status is 1 if a bar is
missed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from figures import Figures, parser

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from rigs.dashboards import Dashboard, dashboard
from rigs.simulated_fleet import ACCURACY, SPACE, HiddenDevice, measurement

from fleetnas.coordinator.records.plan import CampaignPlan, RunSettings
from fleetnas.coordinator.records.statuses import RunStatus, SettingStatus
from fleetnas.coordinator.records.stored import Arrival, DeviceRecord, RunRecord, TaskRecord, WinnerRecord
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.messages import AgentInfo, Conditions, RuntimeSetting, TaskKey

RUNS, DEVICES, MEASUREMENTS, TIMED_SAMPLES = 100, 10, 10_000, 50
NEW, UPDATES, STARTS = 10, 10, 3
TARGETS_MS = (1.0, 2.0, 4.0)
SETTING = RuntimeSetting()
PLAN = CampaignPlan(targets="1,2,4", budget=MEASUREMENTS // DEVICES)


@dataclass
class FilledStore:
    """A store that is filled with invented measurements."""

    store: MeasurementStore
    added: int = 0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def add_run(self, run_id: str, created_unix_s: float, status: RunStatus) -> None:
        """Add a run with its device settings and decided targets."""
        settings = RunSettings(plan=PLAN, supernet_path="x.supernet", design_space=SPACE.name, source="invented")
        fields = settings.model_dump(mode="json")
        self.store.create_run(RunRecord(run_id, "bench", "x.supernet", "b" * 64, fields, created_unix_s))
        self.store.put_devices([self._device(run_id, number) for number in range(DEVICES)])
        architecture = SPACE.decode(SPACE.smallest())[0]
        self.store.put_winners(
            [
                WinnerRecord(
                    run_id, f"device-{number}", SETTING.label, target_ms, TargetStatus.MET, architecture,
                    measured_ms=0.9 * target_ms, verified_ms=0.95 * target_ms, predicted_accuracy=0.8, sha256="c" * 64,
                )
                for number in range(DEVICES)
                for target_ms in TARGETS_MS
            ]
        )  # fmt: skip
        if status is not RunStatus.RUNNING:
            self.store.set_run_status(run_id, status, created_unix_s + 60.0)

    def _device(self, run_id: str, number: int) -> DeviceRecord:
        name = f"device-{number}"
        profile = DeviceProfile(model="invented", machine="aarch64", cores=4)
        info = AgentInfo(agent=name, session=1, profile=profile, settings=(SETTING,), versions={"fleetnas": "0.1.0"})
        return DeviceRecord(run_id, name, SETTING, info, SettingStatus.RUNNING, targets_ms=TARGETS_MS)

    def measure(self, run_id: str, count: int) -> None:
        """Add measurements to a run, in turns on its devices."""
        architectures = SPACE.decode(SPACE.sample(count, self.rng))
        accuracies = ACCURACY.predict(SPACE.encode(architectures))
        model = HiddenDevice(3)
        tasks, arrivals = [], []
        for architecture, accuracy in zip(architectures, accuracies, strict=True):
            number = self.added
            self.added += 1
            latency_ms = model.latency_ms(architecture) * float(np.exp(self.rng.normal(0, 0.02)))
            task = TaskRecord(
                f"{run_id}-{number}", run_id, f"device-{number % DEVICES}", SETTING.label, "candidate", architecture,
                predicted_ms=latency_ms * 1.03, predicted_accuracy=float(accuracy),
            )  # fmt: skip
            outcome = measurement(
                latency_ms,
                finished_unix_s=1e9 + number,
                times_us=(1000.0 * latency_ms,) * TIMED_SAMPLES,
                after=Conditions(temperature_c=45.0 + number % 20),
                regime_unix_s=9e8,
            )
            tasks.append(task)
            arrivals.append(Arrival(TaskKey(task_id=task.task_id, attempt=1), outcome, 1e9 + number))
        self.store.put_tasks(tasks)
        self.store.add_outcomes(arrivals)


def seconds(served: Dashboard, path: str, etag: str = "", *, status: int = 200) -> tuple[float, str, int]:
    """Time of one answer, its tag and its size."""
    headers = {"Accept": "application/json", "If-None-Match": etag} if etag else {}
    begin = time.perf_counter()
    answer = served.get(path, headers)
    took = time.perf_counter() - begin
    if answer.status != status:
        raise SystemExit(f"{path} answered {answer.status}: {answer.body[:300]}")
    return took, answer.headers["etag"], len(answer.body)


def first_pages(file: Path, paths: Sequence[str]) -> list[tuple[float, float]]:
    """Time and processor time of the first answers of fresh processes, medians; the list of runs is read first."""
    times: list[list[float]] = [[] for _ in paths]
    busy: list[list[float]] = [[] for _ in paths]
    for _ in range(STARTS):
        with dashboard(file) as served:
            process = psutil.Process(served.process.pid)
            for number, path in enumerate(paths):
                before = sum(process.cpu_times()[:2])
                times[number].append(seconds(served, path)[0])
                busy[number].append(sum(process.cpu_times()[:2]) - before)
    return [(statistics.median(t), statistics.median(b)) for t, b in zip(times, busy, strict=True)]


def updates(file: Path, path: str, filled: FilledStore, run_id: str, new: int) -> tuple[float, float]:
    """Times of updates of an open page after `new` measurements, and after none; medians."""
    changed, unchanged = [], []
    with dashboard(file) as served:
        _, etag, _ = seconds(served, path)
        for _ in range(UPDATES):
            if new:
                filled.measure(run_id, new)
                took, etag, _ = seconds(served, path, etag)
                changed.append(took)
            unchanged.append(seconds(served, path, etag, status=304)[0])
    return statistics.median(changed or [0.0]), statistics.median(unchanged)


def main() -> int:
    """Fill the stores and print the figures."""
    arguments = parser(__doc__).parse_args()
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder:
        full_file, empty_file = Path(folder) / "full.sqlite", Path(folder) / "empty.sqlite"
        full, empty = FilledStore(MeasurementStore.open(full_file)), FilledStore(MeasurementStore.open(empty_file))
        for number in range(RUNS - 1):
            full.add_run(f"run-{number}", 1e9 + number, RunStatus.COMPLETE)
        for filled in (full, empty):
            filled.add_run("busy", 2e9, RunStatus.RUNNING)
        for _ in range(MEASUREMENTS // 1000):
            full.measure("busy", 1000)
        paths = ("/", "/runs/busy", f"/runs/busy/devices/device-0/{SETTING.label}")
        names = ("list", "run", "device")
        times, least = first_pages(full_file, paths), first_pages(empty_file, paths)
        for name, (took, busy), (empty_took, _) in zip(names, times, least, strict=True):
            figures.add(f"first_{name}_page_seconds", took, "< 1")
            figures.add(f"first_{name}_page_processor_seconds", busy)
            figures.add(f"first_{name}_page_ratio_to_empty", took / empty_took)
        changed, unchanged = updates(full_file, "/runs/busy", full, "busy", NEW)
        _, empty_unchanged = updates(empty_file, "/runs/busy", empty, "busy", 0)
        figures.add("update_after_10_measurements_seconds", changed, "< 0.2")
        figures.add("update_without_changes_seconds", unchanged, "< 0.2")
        figures.add("update_ratio_to_empty", changed / empty_unchanged)
        figures.add("update_without_changes_ratio_to_empty", unchanged / empty_unchanged)
        full.store.close()
        empty.store.close()
    return figures.report(as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
