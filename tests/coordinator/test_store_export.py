"""`fleetnas export-data`: what comes out is what was stored, field by field."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rigs.command_line import fleetnas
from rigs.simulated_fleet import SPACE, Simulation

from fleetnas.coordinator.predictors.evaluation.dataset import read_hardware, read_latency_data
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.store.exported_fields import FIELDS, exported_rows
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import Conditions, Measurement

PAGE = (Path(__file__).parents[2] / "docs" / "store.md").read_text()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of two devices, everything measured."""
    path = tmp_path_factory.mktemp("store") / "runs.sqlite"
    for number in range(2):
        plan = CampaignPlan(targets="auto:2", budget=12, initial_design=10, wait_for=2, prior="default")
        simulation = Simulation(plan, store=MeasurementStore.open(path), run_id=f"run-{number}")
        for seed in range(2):
            simulation.add(f"pi{seed}", seed=seed)
        simulation.begin()
        simulation.run()
        simulation.campaign.finish()
        simulation.store.close()
    return path


def export(capsys: pytest.CaptureFixture[str], stored: Path, *arguments: str) -> tuple[int, str, str]:
    return fleetnas(capsys, "export-data", "--store", str(stored), *arguments)


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Rows with every cell as the value that its field's kind says."""
    kinds = {field.name: field.kind for field in FIELDS}
    reads: dict[str, Any] = {
        "text": str,
        "integer": int,
        "number": float,
        "boolean": {"true": True, "false": False}.get,
        "numbers": lambda cell: tuple(float(number) for number in cell.split()),
    }
    with path.open(newline="") as file:
        return [
            {
                name: None if cell == "" and kinds[name] != "numbers" else reads[kinds[name]](cell)
                for name, cell in row.items()
            }
            for row in csv.DictReader(file)
        ]


def write_csv(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


class TestFields:
    def test_every_field_of_a_measurement_and_its_conditions_is_exported(self) -> None:
        names = {field.name for field in FIELDS}
        assert set(Measurement.model_fields) - {"before", "after"} <= names
        assert {f"{name}_{side}" for name in Conditions.model_fields for side in ("before", "after")} <= names
        assert len(names) == len(FIELDS)

    def test_every_field_is_documented_with_its_type(self) -> None:
        section = re.search(r"^## Fields\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
        assert section is not None
        documented = {}
        for line in section[1].splitlines():
            if line.startswith("| `"):
                _, names, kind, *_ = line.split("|")
                documented |= dict.fromkeys(re.findall(r"`([^`]+)`", names), kind.strip())
        assert documented == {field.name: field.kind for field in FIELDS}


class TestCsv:
    def test_what_is_read_back_is_what_was_stored(
        self, capsys: pytest.CaptureFixture[str], stored: Path, tmp_path: Path
    ) -> None:
        code, out, _ = export(capsys, stored, "-o", str(tmp_path))
        rows = read_csv(tmp_path / "measurements.csv")
        assert code == 0
        assert f"{len(rows):,} measurements" in out
        store = MeasurementStore.open(stored)
        assert rows == list(exported_rows(store))
        outcomes = [found for run in ("run-0", "run-1") for found in store.outcomes(run)]
        assert len(rows) == len(outcomes) > 40
        for row, found in zip(rows, outcomes, strict=True):
            assert isinstance(found.outcome, Measurement)
            assert (row["task_id"], row["attempt"]) == (found.key.task_id, found.key.attempt)
            assert (row["median_ms"], row["times_us"]) == (found.outcome.median_ms, found.outcome.times_us)
        assert {row["space"] for row in rows} == {"digits"}
        store.close()

    def test_run_device_and_raw_times_choose_what_is_written(
        self, capsys: pytest.CaptureFixture[str], stored: Path, tmp_path: Path
    ) -> None:
        target = tmp_path / "sub" / "some.csv"
        assert export(capsys, stored, "--run", "run-1", "--device", "pi0", "--no-raw-times", "-o", str(target))[0] == 0
        rows = read_csv(target)
        assert {(row["run_id"], row["device"]) for row in rows} == {("run-1", "pi0")}
        assert "times_us" not in rows[0]
        assert "block_medians_ms" in rows[0]

    @pytest.mark.parametrize(
        ("arguments", "answer"),
        [
            (("--run", "run-9"), "run-1"),
            (("--device", "pi9"), "there are pi0, pi1"),
            (("--format", "xlsx"), "csv or parquet"),
        ],
    )
    def test_what_is_not_there_is_answered_with_what_is(
        self,
        capsys: pytest.CaptureFixture[str],
        stored: Path,
        tmp_path: Path,
        arguments: tuple[str, ...],
        answer: str,
    ) -> None:
        code, _, err = export(capsys, stored, *arguments, "-o", str(tmp_path / "data.csv"))
        assert code == 2
        assert answer in err
        assert not list(tmp_path.iterdir())

    def test_a_place_that_cannot_be_written_is_named(
        self, capsys: pytest.CaptureFixture[str], stored: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        code, _, err = export(capsys, stored, "-o", str(tmp_path / "file" / "data.csv"))
        assert code == 2
        assert "cannot be written" in err
        assert err.count("\n") == 1


class TestParquet:
    def test_it_holds_the_same_values_as_the_store(
        self, capsys: pytest.CaptureFixture[str], stored: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "data.parquet"
        assert export(capsys, stored, "-o", str(path))[0] == 0
        store = MeasurementStore.open(stored)
        expected = [
            {name: list(value) if isinstance(value, tuple) else value for name, value in row.items()}
            for row in exported_rows(store)
        ]
        store.close()
        table = pq.read_table(path)
        assert table.column_names == [field.name for field in FIELDS]
        assert table.to_pylist() == expected

    def test_without_pyarrow_the_extra_is_named_and_nothing_is_written(
        self, capsys: pytest.CaptureFixture[str], stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        code, _, err = export(capsys, stored, "--format", "parquet", "-o", str(tmp_path))
        assert code == 1
        assert "-m pip install 'pyarrow>=" in err
        assert not list(tmp_path.iterdir())


class TestPredictorEvaluation:
    def test_the_csv_is_data_to_evaluate_predictors_on(
        self, capsys: pytest.CaptureFixture[str], stored: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "data.csv"
        export(capsys, stored, "-o", str(path))
        data = read_latency_data(path)
        settings = ["pi0/onnxruntime_cpu_1t_fp32", "pi1/onnxruntime_cpu_1t_fp32"]
        assert dict(data.families) == dict(zip(settings, ("pi0", "pi1"), strict=True))
        # By another way: each subnet's median over both runs, for the subnets that both devices have measured.
        store = MeasurementStore.open(stored)
        measured: dict[str, dict[Any, list[float]]] = {"pi0": {}, "pi1": {}}
        for run in store.runs():
            for row in store.latencies(run.run_id, 1e12):
                measured[row.device].setdefault(row.architecture, []).append(row.latency_ms)
        store.close()
        common = [one for one in measured["pi0"] if one in measured["pi1"]]
        assert data.genomes is not None
        assert data.space is not None
        assert data.space.decode(data.genomes) == common
        assert len(common) >= 10
        for setting, device in zip(settings, measured, strict=True):
            np.testing.assert_allclose(
                data.latency_ms[setting], [np.median(measured[device][one]) for one in common], rtol=1e-12
            )
        code, out, _ = fleetnas(capsys, "predictor", "evaluate", str(path), "--samples", "4", "--draws", "1")
        assert code == 0
        assert out.count("pi0/") == out.count("pi1/") == 2

    def test_hardware_parameters_stand_beside_the_csv(
        self, capsys: pytest.CaptureFixture[str], stored: Path, tmp_path: Path
    ) -> None:
        hardware = tmp_path / "hardware.json"
        export(capsys, stored, "-o", str(tmp_path / "data.csv"), "--parameters", str(hardware), "--device", "pi1")
        (name,) = read_hardware(hardware)
        assert name == "pi1/onnxruntime_cpu_1t_fp32"
        assert read_hardware(hardware)[name]["threads"] == 0.0  # the logarithm of one

    def test_a_file_of_another_kind_or_of_strangers_is_refused(self, stored: Path, tmp_path: Path) -> None:
        path = tmp_path / "data.csv"
        path.write_text("device,median_ms\npi0,1.0\n")
        with pytest.raises(UsageError, match="no column architecture"):
            read_latency_data(path)
        header = ["space", "space_options", "device", "runtime", "architecture", "undisturbed_ms"]
        subnets = [a.model_dump_json() for a in SPACE.decode(SPACE.sample(2, np.random.default_rng(0)))]
        rows = [["digits", "{}", f"pi{i}", "cpu", subnet, "1.5"] for i, subnet in enumerate(subnets)]
        write_csv(path, [header, *rows])
        with pytest.raises(UsageError, match="0 measured subnets in common"):
            read_latency_data(path)
        write_csv(path, [header, [*rows[0][:-1], "fast"]])
        with pytest.raises(UsageError, match="line 2"):
            read_latency_data(path)
        write_csv(path, [header, ["", "", "pi0", "cpu", "", "1.5"]])  # a model file
        with pytest.raises(UsageError, match="no measurement of a subnet; export a run that measured some"):
            read_latency_data(path)
        write_csv(path, [header, [*rows[0][:-1], ""]])
        with pytest.raises(UsageError, match="no subnet whose latency at undisturbed speed is known"):
            read_latency_data(path)
        write_csv(path, [header, rows[0], ["ofa-mbv3", *rows[1][1:]]])
        with pytest.raises(UsageError, match="one design space; found digits, ofa-mbv3"):
            read_latency_data(path)
