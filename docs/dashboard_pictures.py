"""Make the pictures of the dashboard in `docs/img`: `python docs/dashboard_pictures.py`.

They show a simulated fleet of three devices in the middle of a search, or a run of your own store (`--store`, `--run`).
Needs Debian's `chromium`, and playwright from the extra `dev`.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import numpy as np
from playwright.sync_api import Browser, sync_playwright
from rigs.dashboards import Dashboard, dashboard
from rigs.simulated_fleet import BUNDLE, HiddenDevice, SimulatedAgent, Simulation

from fleetnas.coordinator.records.plan import CampaignPlan, RunSettings
from fleetnas.coordinator.records.stored import RunRecord
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.messages import Conditions, Measurement, RuntimeSetting
from fleetnas.fleet_protocol.orders import MeasureTask

RUN = "20261130-0915-digits"
#: Name of the picture, width of the screen, dark or light, and whether the whole page is shown.
SIZES = (("", 1280, False), ("-390", 390, False), ("-dark", 1280, True))
_HEIGHTS = {1280: 1500, 390: 1500}


@dataclass
class WarmingDevice(HiddenDevice):
    """A simulated device that grows warm, and is slowed down while it is hot."""

    seed: int = 0
    taken: int = 0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))

    def __post_init__(self) -> None:
        super().__init__(self.seed)

    def measure(self, task: MeasureTask, finished_unix_s: float) -> Measurement:
        """Measure as a quiet device does, and add temperature and slow-down."""
        found = super().measure(task, finished_unix_s)
        self.taken += 1
        warm = 46.0 + 22.0 * (1 - np.exp(-self.taken / 12.0)) + float(self.rng.normal(0, 0.4))
        slowdown = 1.0 + max(0.0, (warm - 64.0) * 0.04) + abs(float(self.rng.normal(0, 0.01)))
        after = Conditions(temperature_c=round(warm, 1), throttled=bool(warm > 66.5))
        quality = "slowed" if slowdown > 1.1 else "ok"
        return found.model_copy(
            update={"median_ms": found.median_ms * slowdown, "quality": quality, "after": after, "regime_unix_s": 1.7e9}
        )


def add_device(fleet: Simulation, name: str, seed: int, *settings: RuntimeSetting) -> SimulatedAgent:
    """Add a simulated device whose settings share its warmth."""
    agent = fleet.add(name, seed=seed, settings=settings)
    agent.devices = {setting: WarmingDevice(seed + 31 * number) for number, setting in enumerate(settings)}
    return agent


def simulate(file: Path) -> None:
    """Fill a store with an ended run, and one in the middle."""
    store = MeasurementStore.open(file)
    for run_id, seed, most in (("20261129-1740-digits", 3, 10_000), (RUN, 0, 78)):
        plan = CampaignPlan(targets="auto:4", budget=32, initial_design=10, wait_for=3, grace_s=5, seed=seed)
        fleet = Simulation(plan, store=store, run_id=run_id, checked=False)
        fleet.clock.now_s += 1000.0 * (run_id == RUN)
        add_device(fleet, "pi4", 1, RuntimeSetting(threads=1), RuntimeSetting(threads=4))
        add_device(fleet, "pi5", 2, RuntimeSetting(threads=4))
        add_device(fleet, "orin", 4, RuntimeSetting(threads=2))
        settings = RunSettings(plan=plan, supernet_path="digits.supernet", design_space="digits", source="built in")
        began_s = fleet.clock.unix()
        store.create_run(
            RunRecord(run_id, "lab", "digits.supernet", BUNDLE.sha256, settings.model_dump(mode="json"), began_s)
        )
        fleet.begin(resume=True)
        fleet.run(until=lambda fleet=fleet, most=most: len(fleet.store.outcomes(fleet.run_id)) >= most)  # type: ignore[misc]
        if fleet.campaign.finished:
            fleet.campaign.finish()
    store.close()


def photograph(browser: Browser, served: Dashboard, path: str, name: str, out: Path) -> None:
    """Take the pictures of one page."""
    for suffix, width, dark in SIZES:
        context = browser.new_context(
            viewport={"width": width, "height": _HEIGHTS[width]}, color_scheme="dark" if dark else "light"
        )
        page = context.new_page()
        page.clock.set_fixed_time(datetime.datetime.fromtimestamp(1.7e9 + 2095, datetime.timezone.utc))
        page.goto(served.address.rstrip("/") + path)
        page.wait_for_load_state("load")
        page.wait_for_function(
            "!document.getElementById('state') || document.getElementById('state').textContent !== ''"
        )
        target = out / f"dashboard-{name}{suffix}.png"
        page.screenshot(path=str(target), full_page=False)
        print(target)
        context.close()


def main() -> None:
    """Write every picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="a store of yours in place of a simulated one")
    parser.add_argument("--run", default=RUN, help="the run that is shown")
    parser.add_argument("--device", default="pi4/onnxruntime_cpu_1t_fp32", help="the device setting that is shown")
    parser.add_argument("--other", default="20261129-1740-digits", help="the run that it is compared with")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "img")
    parser.add_argument("--chromium", default="chromium", help="the browser's program")
    arguments = parser.parse_args()
    program = shutil.which(arguments.chromium)
    if program is None:
        sys.exit(f"there is no program {arguments.chromium!r}; install Debian's chromium")
    arguments.out.mkdir(parents=True, exist_ok=True)
    run = f"/runs/{arguments.run}"
    pages = {
        "runs": "/",
        "run": run,
        "device": f"{run}/devices/{arguments.device}",
        "compare": f"/compare?run={arguments.other}&run={arguments.run}",
    }
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = arguments.store or Path(folder) / "runs.sqlite"
        if arguments.store is None:
            simulate(file)
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        with dashboard(file) as served:
            for name, path in pages.items():
                photograph(browser, served, path, name, arguments.out)
        browser.close()


if __name__ == "__main__":
    main()
