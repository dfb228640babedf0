"""Every printed claim of a search agrees with the measurements it left; and the checker finds the ones that do not."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rigs.claims import contradictions
from rigs.simulated_fleet import HiddenDevice, Simulation, file_sha256, measurement

from fleetnas.coordinator.app.compose import open_search
from fleetnas.coordinator.app.demo import PROTOCOL, agents
from fleetnas.coordinator.app.embedded_broker import EmbeddedBroker
from fleetnas.coordinator.app.request import FleetAccess, NewRun, SearchRequest
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.report.artifacts import ArtifactFolder
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.view.lines import LinesView
from fleetnas.coordinator.view.summary import summary
from fleetnas.fleet_protocol.messages import Measurement, RuntimeSetting
from fleetnas.fleet_protocol.orders import MeasureTask
from fleetnas.supernet_export.export import export_digits

pytestmark = pytest.mark.xdist_group("endtoend")

#: Busy on one core for half of each second, until it is killed: the search's own planning needs some time as well.
_NEIGHBOUR = """
import os, time
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {{{core}}})
while True:
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        pass
    time.sleep(0.5)
"""


# -- a real search beside busy neighbours ----------------------------------------------------------------------------


@contextmanager
def busy_cores() -> Iterator[None]:
    """One process per core that is busy every other half second."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    command = [[sys.executable, "-c", _NEIGHBOUR.format(core=core)] for core in cores]
    # Sessions of their own, as other users' programs have.
    neighbours = [subprocess.Popen(each, start_new_session=True) for each in command]
    try:
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


def test_no_claim_of_a_search_beside_busy_neighbours_is_false(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Agents of other tests must not wait for this one, nor it for them.
    monkeypatch.setenv("FLEETNAS_HOST_LOCK", str(tmp_path / "lock"))
    supernet = tmp_path / "digits.supernet"
    export_digits(supernet)
    protocol = PROTOCOL.model_copy(update={"warmup_s": 0.05, "min_s": 0.1})
    store = MeasurementStore.open(tmp_path / "runs.sqlite")
    with EmbeddedBroker(port=0) as broker, agents(broker.address, tmp_path, [("pi", ("--threads", "1"))]), busy_cores():
        for targets in ("auto:3", "0.0001,1000"):
            plan = CampaignPlan(
                targets=targets, budget=12, initial_design=8, devices=("pi",), wait_for=1, protocol=protocol
            )
            out, output = tmp_path / f"out-{targets[0]}", io.StringIO()
            request = SearchRequest(store.url, FleetAccess(broker.address), NewRun(supernet, plan), out=out)
            running = open_search(request, functools.partial(LinesView, output), store)
            try:
                running.run()
            finally:
                running.close()
            Console(file=output, width=400).print(summary(outcome_of(store, running.run_id)))
            assert contradictions(output.getvalue(), out) == []
    store.close()


# -- the checker itself ----------------------------------------------------------------------------------------------


class SlowedDevice(HiddenDevice):
    """Every second measurement is slowed, each third of these at unknown speed; a lasting speed begins after nine."""

    taken = 0

    def measure(self, task: MeasureTask, finished_unix_s: float) -> Measurement:
        self.taken += 1
        undisturbed_ms = self.latency_ms(task.architecture) * float(np.exp(self._rng.normal(0, 0.01)))
        slowdown = 1.5 + 0.01 * self.taken if self.taken % 2 else 1.0
        return measurement(
            undisturbed_ms * slowdown,
            file_sha256(task.architecture, task.calibration),
            finished_unix_s,
            quality="slowed" if slowdown > 1 else "ok",
            undisturbed_ms=None if self.taken % 6 == 5 else undisturbed_ms,
            regime_unix_s=1.0 if self.taken < 10 else 2.0,
        )


class RandomDevice(HiddenDevice):
    """Slowed at random, at times at unknown speed, and now and then for good."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._draw = np.random.default_rng([seed, 3])
        self._share, self._unknown, self._factor = self._draw.uniform((0, 0, 1), (1, 1, 4))
        self._since = 1.0

    def measure(self, task: MeasureTask, finished_unix_s: float) -> Measurement:
        undisturbed_ms = self.latency_ms(task.architecture) * float(np.exp(self._draw.normal(0, 0.01)))
        slowdown = float(self._draw.uniform(1, self._factor)) if self._draw.random() < self._share else 1.0
        known = slowdown == 1.0 or self._draw.random() >= self._unknown
        if self._draw.random() < 0.03:
            self._since = finished_unix_s
        return measurement(
            undisturbed_ms * slowdown,
            file_sha256(task.architecture, task.calibration),
            finished_unix_s,
            quality="slowed" if slowdown > 1.1 else "ok",
            undisturbed_ms=undisturbed_ms if known else None,
            regime_unix_s=self._since,
        )


class SteadyDevice(HiddenDevice):
    """Nothing disturbs it."""

    def measure(self, task: MeasureTask, finished_unix_s: float) -> Measurement:
        return super().measure(task, finished_unix_s).model_copy(update={"regime_unix_s": 1.0})


def searched(folder: Path, targets: str, **devices: HiddenDevice) -> str:
    """Search simulated devices into `folder`; returns what was printed. The first device's third measurement fails."""
    fleet = Simulation(CampaignPlan(targets=targets, budget=12, initial_design=8, devices=tuple(devices)))
    for name, device in devices.items():
        agent = fleet.add(name)
        agent.devices = dict.fromkeys(agent.devices, device)
    failing = iter((None, None, "timeout"))
    fleet.agents[0].fails = lambda task: next(failing, None)
    fleet.begin()
    fleet.run()
    artifacts = ArtifactFolder(folder)

    def write() -> str:
        found = outcome_of(fleet.store, fleet.run_id)
        for device in found.devices:
            for target in device.targets:
                if target.met:
                    artifacts.add_winner(device, target, model_file(target.architecture, fleet))
        artifacts.write(found)
        return str(folder)

    fleet.campaign.finish(write)
    write()
    output = io.StringIO()
    view = LinesView(output)
    for event in fleet.events:
        view.event(event)
    view.close()
    Console(file=output, width=400).print(summary(outcome_of(fleet.store, fleet.run_id)))
    fleet.store.close()
    return output.getvalue()


def model_file(architecture: Any, fleet: Simulation) -> bytes:
    """Bytes with the hash that a simulated device measured."""
    statistics = fleet.models.calibrate(architecture, RuntimeSetting()).calibration
    return f"{architecture.fingerprint} {hashlib.sha256(statistics).hexdigest()}".encode()


@dataclass(frozen=True)
class Left:
    """A search that is over: what it printed and its folder, to be altered."""

    printed: str
    folder: Path

    def problems(self) -> list[str]:
        return contradictions(self.printed, self.folder)

    def printing(self, old: str, new: str) -> list[str]:
        """Contradictions once the first match of the pattern `old` in the output is replaced."""
        altered, count = re.subn(old, new, self.printed, count=1, flags=re.MULTILINE)
        assert count == 1, f"{old} was not printed"
        assert altered != self.printed
        return contradictions(altered, self.folder)

    def alter_rows(self, alter: Callable[[dict[str, str]], dict[str, str] | None]) -> None:
        """Alter or drop rows of the table of measurements."""
        path = self.folder / "measurements.csv"
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(row for row in map(alter, rows) if row is not None)

    def alter_results(self, alter: Callable[[dict[str, Any]], object]) -> None:
        path = self.folder / "results.json"
        results = json.loads(path.read_text())
        alter(results)
        path.write_text(json.dumps(results))


@pytest.fixture(scope="module")
def explicit(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """Targets that no subnet, some and every subnet meets, on a device that is slowed often and on a steady one."""
    folder = tmp_path_factory.mktemp("explicit")
    printed = searched(folder, "0.001,1,1.5,100", slowed=SlowedDevice(1), steady=SteadyDevice(2))
    return Left(printed, folder)


@pytest.fixture(scope="module")
def automatic(tmp_path_factory: pytest.TempPathFactory) -> Left:
    folder = tmp_path_factory.mktemp("automatic")
    return Left(searched(folder, "auto:4", steady=SteadyDevice(3)), folder)


@pytest.fixture
def copy(explicit: Left, tmp_path: Path) -> Left:
    """The explicit search with files of its own."""
    return Left(explicit.printed, shutil.copytree(explicit.folder, tmp_path / "copy"))


def test_true_output_has_no_contradiction(explicit: Left, automatic: Left) -> None:
    assert explicit.problems() == []
    assert automatic.problems() == []


@settings(max_examples=6)
@given(seed=st.integers(0, 10_000), targets=st.sampled_from(["auto:4", "0.001,0.3,0.6,1,3,1000"]))
def test_no_claim_of_a_search_on_disturbed_devices_is_false(seed: int, targets: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        printed = searched(Path(folder), targets, first=RandomDevice(seed), second=RandomDevice(seed + 1))
        assert contradictions(printed, Path(folder)) == []


_ANY = r"\d+(?:\.\d+)?"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # The view.
        (r"at most 12 measurements", "at most 13 measurements"),
        (r"targets 0\.001,1,", "targets 0.001,2,"),
        (rf"(measured) {_ANY}( ms ±)", r"\1 0.777\2"),
        (r"±0\.8 %", "±0.1 %"),
        (r"±0\.8 %", "±100 % or more"),
        (rf"predicted {_ANY} beforehand", "predicted 9.99 beforehand"),
        (r" beforehand, slowed", " beforehand"),
        (r"exploring a0479db7d2ac, 1 of 12", "exploring e1681faa2976, 1 of 12"),
        (r", 5 of 12$", ", 6 of 12"),
        (r"(verification \w+)$", r"\1, 12 of 12"),
        (r"^.* measured .*\n", ""),
        (r": timeout$", ": crashed"),
        (r"^.* could not measure .*\n", ""),
        (r"^.* runs at another lasting speed.*\n", ""),
        (rf"lasting speed: {_ANY} times", "lasting speed: 1.70 times"),
        (r"WARNING: 4 of 8", "WARNING: 3 of 8"),
        (r"up to 1\.57x", "up to 1.07x"),
        (rf"candidate (\w+): measured {_ANY} ms", r"candidate \1: measured 0.111 ms"),
        (rf"predicted accuracy {_ANY} %", "predicted accuracy 99.9 %"),
        (rf"(met: \w+ verified at) {_ANY} ms", r"\1 0.123 ms"),
        (r"met: \w+ verified", "met: e1681faa2976 verified"),
        (rf"(verified at {_ANY} ms, accuracy) {_ANY} %", r"\1 99.9 %"),
        (rf"; typical {_ANY} ms(?=;|$)", ""),
        (rf"largest subnet takes {_ANY} ms$", "largest subnet takes 99 ms"),
        (rf"infeasible: (.* \(\w+\) takes) {_ANY} ms", r"infeasible: \1 0.444 ms"),
        (r"infeasible: the fastest subnet found \(\w+\)", "infeasible: the fastest subnet found (e1681faa2976)"),
        (rf"infeasible: (.*) at least {_ANY} ms", r"infeasible: \1 at least 0.002 ms"),
        (r" infeasible: the fastest", " missed: the fastest"),
        (r"^.* target 1\.5 ms met: .*\n", ""),
        (r"(0:\d\d): 6 of 8 targets", r"\1: 7 of 8 targets"),
        (r" partial after", " complete after"),
        (r"^.* WARNING: more than a quarter .*\n", ""),
        # The summary.
        (r": finished, 12 measurements", ": finished, 11 measurements"),
        (r", 1 failed measurement,", ","),
        (rf"predictor error {_ANY} %", "predictor error 1.0 %"),
        (rf"predictor error {_ANY} % on \d+ held out", "predictor error too few to tell (7 held out)"),
        (r"quality: \d+ ok", "quality: 99 ok"),
        (rf"largest slow-down {_ANY}x", "largest slow-down 1.01x"),
        (r"; 2 lasting speeds", ""),
        (r"; speed unknown in \d+", ""),
        (rf"^( +1 +{_ANY} +{_ANY}) +{_ANY}( +.* ✓ met)", r"\1 0.999\2"),
        (rf"^( +1\.5 +{_ANY}) +{_ANY}( +.* ✓ met)", r"\1 0.999\2"),
        (r"✓ met", "✗ over the target when re-measured, at 1.60 ms"),
        (r"✗ infeasible: .*", "✓ met"),
        (r"^ +1\.5 .*\n", ""),
        (r"^WARNING: .*\n", ""),
        (r"^WARNING: \d+ of \d+", "WARNING: 1 of 99"),
        (r"^6 of 8 targets", "6 of 6 targets"),
        # What nobody taught the checker.
        (r"^(\d\d:\d\d:\d\d) .* measured ", r"\1 all is within 3 ms\n\g<0>"),
        (r"^6 of 8 targets", "the fastest subnets are the best\n6 of 8 targets"),
    ],
)
def test_an_altered_claim_is_found(explicit: Left, old: str, new: str) -> None:
    assert explicit.printing(old, new)


class TestAlteredFiles:
    def test_a_faster_measurement_contradicts_infeasible(self, copy: Left) -> None:
        def faster(row: dict[str, str]) -> dict[str, str]:
            return row | (
                {"median_ms": "0.0005"} if row["device"] == "steady" and row["purpose"] == "initial-design" else {}
            )

        copy.alter_rows(faster)
        assert any("0.0005" in problem and "infeasible" in problem for problem in copy.problems())

    def test_so_does_a_fast_one_at_undisturbed_speed(self, copy: Left) -> None:
        def faster(row: dict[str, str]) -> dict[str, str]:
            return row | ({"undisturbed_ms": "0.0005"} if row["purpose"] == "initial-design" else {})

        copy.alter_rows(faster)
        assert any("at undisturbed speed" in problem for problem in copy.problems())

    def test_a_winner_needs_a_re_measurement_of_its_file(self, copy: Left) -> None:
        copy.alter_rows(lambda row: row | ({"model_sha256": "0" * 64} if row["purpose"] == "verification" else {}))
        assert any("no re-measurement of file" in problem for problem in copy.problems())

    def test_a_slower_re_measurement_contradicts_met(self, copy: Left) -> None:
        def slower(results: dict[str, Any]) -> None:
            results["fleet"][0]["targets"][1]["verified_ms"] = 1.2

        copy.alter_results(slower)
        assert any("met is True at 1.2 ms" in problem for problem in copy.problems())

    def test_a_typical_latency_beyond_the_target_contradicts_met(self, copy: Left) -> None:
        def slower(results: dict[str, Any]) -> None:
            results["fleet"][0]["targets"][1]["typical_ms"] = 1.2

        copy.alter_results(slower)
        assert any("typically 1.2" in problem for problem in copy.problems())

    def test_a_typical_latency_at_no_slow_down_that_was_measured_is_found(self, copy: Left) -> None:
        def faster(results: dict[str, Any]) -> None:
            results["fleet"][0]["targets"][1]["typical_ms"] = 0.01

        copy.alter_results(faster)
        assert any("at no slow-down" in problem for problem in copy.problems())

    def test_other_model_bytes_are_found(self, copy: Left) -> None:
        next(copy.folder.rglob("*.onnx")).write_bytes(b"another model")
        assert any("another file" in problem for problem in copy.problems())

    def test_an_altered_card_is_found(self, copy: Left) -> None:
        card = next(copy.folder.rglob("*.onnx")).with_suffix(".json")
        card.write_text(json.dumps(json.loads(card.read_text()) | {"verified_ms": 0.1}))
        assert any("card and results differ in verified_ms" in problem for problem in copy.problems())

    def test_a_looser_target_with_a_worse_winner_is_found(self, copy: Left) -> None:
        def worse(results: dict[str, Any]) -> None:
            results["fleet"][0]["targets"][3]["predicted_accuracy"] = 0.1

        copy.alter_results(worse)
        assert any("is worse than that of" in problem for problem in copy.problems())

    def test_totals_that_do_not_add_up_are_found(self, copy: Left) -> None:
        copy.alter_results(lambda results: results.update(targets_met=8))
        assert any("counts 8 of 8" in problem for problem in copy.problems())

    def test_a_missing_measurement_is_found(self, copy: Left) -> None:
        copy.alter_rows(lambda row: None if row["purpose"] == "initial-design" else row)
        assert any("more measurements than there are" in problem for problem in copy.problems())

    def test_an_error_over_too_few_measurements_is_found(self, copy: Left) -> None:
        copy.alter_results(lambda results: results["fleet"][0]["predictor"].update(held_out=7))
        assert any("too few to tell" in problem for problem in copy.problems())

    def test_automatic_targets_too_close_to_each_other_are_found(self, automatic: Left, tmp_path: Path) -> None:
        copy = Left(automatic.printed, shutil.copytree(automatic.folder, tmp_path / "copy"))
        second = json.loads((copy.folder / "results.json").read_text())["fleet"][0]["targets"][1]["target_ms"]
        copy.alter_results(lambda results: results["fleet"][0]["targets"][0].update(target_ms=second / 1.04))
        assert any("less than 5 % apart" in problem for problem in copy.problems())
