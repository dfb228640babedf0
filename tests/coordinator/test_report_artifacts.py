"""The artifacts: what is written can be read back, and nothing unverified or altered gets in."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from rigs.outcome_examples import artifacts, campaign_outcome, device_outcome, measurement_row, model_of

from fleetnas.coordinator.records.outcome import FailedMeasurement, TargetOutcome
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.report.artifacts import (
    MEASUREMENTS_FILE,
    RESULTS_FILE,
    ArtifactFolder,
    WinnerCard,
    read_results,
)
from fleetnas.coordinator.report.conversion import run_status
from fleetnas.coordinator.report.results import Results
from fleetnas.coordinator.store.measurement_table import measurements_csv, read_measurements
from fleetnas.device_profiles.quantities import LATEST_UNIX_S
from fleetnas.fleet_protocol.errors import HashMismatchError, StoreError


def test_a_candidate_in_place_of_a_winner_that_missed_is_past_the_budget() -> None:
    device = device_outcome("board-a", measurements=12)
    rows = tuple(
        dataclasses.replace(row, target_ms=2.0 if index == 11 else None) for index, row in enumerate(device.rows)
    )
    assert dataclasses.replace(device, rows=rows).measurements == 11


def test_results_and_models_are_found_again(tmp_path: Path) -> None:
    outcome = campaign_outcome(device_outcome("board-a"), device_outcome("board-b", threads=2, seed=1))
    written = artifacts(tmp_path, outcome)
    assert read_results(tmp_path) == written
    assert (written.status, written.targets_met, written.targets_asked) == ("complete", 8, 8)
    for device in written.fleet:
        assert (device.measurements, len(device.targets)) == (30, 4)
        for target in device.targets:
            assert target.model is not None
            shipped = (tmp_path / target.model).read_bytes()
            assert hashlib.sha256(shipped).hexdigest() == target.sha256
            assert target.model_bytes == len(shipped)
    assert written.fleet[0].targets[2].model == "board-a/onnxruntime_cpu_1t_fp32/3.5ms.onnx"


def test_results_json_has_the_documented_keys(tmp_path: Path) -> None:
    artifacts(tmp_path, campaign_outcome(device_outcome("board-a")))
    device = json.loads((tmp_path / RESULTS_FILE).read_text())["fleet"][0]
    assert {"device", "runtime", "measurements", "predictor", "status", "targets"} <= device.keys()
    assert device["predictor"].keys() == {"mape_percent", "spearman", "held_out", "transfer_weight"}
    keys = {"target_ms", "architecture", "predicted_ms", "measured_ms", "verified_ms", "met", "accuracy", "model"}
    assert keys | {"sha256"} <= device["targets"][0].keys()
    assert {"ks", "e", "d", "r"} <= device["targets"][0]["architecture"].keys()


def test_a_card_stands_beside_each_model(tmp_path: Path) -> None:
    outcome = campaign_outcome(device_outcome("board-a"))
    for target in artifacts(tmp_path, outcome).fleet[0].targets:
        assert target.model is not None
        model = tmp_path / target.model
        card = WinnerCard.model_validate_json(model.with_suffix(".json").read_bytes())
        assert (card.model, card.sha256, card.architecture) == (model.name, target.sha256, target.architecture)
        assert (card.predicted_ms, card.measured_ms, card.accuracy) == (
            target.predicted_ms,
            target.measured_ms,
            target.accuracy,
        )
        assert card.supernet.sha256 == outcome.supernet.sha256
        assert card.condition == outcome.devices[0].rows[-1].measurement.condition == "as-is"


@pytest.mark.parametrize(
    ("verified_ms", "typical_ms", "met"),
    [(1.999, None, True), (2.0, 2.0, True), (2.001, 1.9, False), (1.9, 2.001, False), (None, None, False)],
)
def test_met_follows_the_re_measurement(
    tmp_path: Path, verified_ms: float | None, typical_ms: float | None, met: bool
) -> None:
    target = TargetOutcome(2.0, predicted_ms=1.5, measured_ms=1.5, verified_ms=verified_ms, typical_ms=typical_ms)
    device = dataclasses.replace(device_outcome("board-a"), targets=(target,))
    results = ArtifactFolder(tmp_path).write(campaign_outcome(device))
    assert results.fleet[0].targets[0].met is met
    assert results.status == ("complete" if met else "failed")
    altered = json.loads((tmp_path / RESULTS_FILE).read_text())
    altered["fleet"][0]["targets"][0]["met"] = not met
    with pytest.raises(ValidationError, match="must follow from `verified_ms`"):
        Results.model_validate(altered)


def test_a_re_measurement_that_the_search_did_not_take_as_proof_is_not_met(tmp_path: Path) -> None:
    """Within the target as it ran and typically, but the typical speed was not certain enough."""
    target = TargetOutcome(2.0, verified_ms=1.9, typical_ms=1.98, reason="known to within 4 % only", refused=True)
    device = dataclasses.replace(device_outcome("board-a"), targets=(target,))
    results = ArtifactFolder(tmp_path).write(campaign_outcome(device))
    assert (results.fleet[0].targets[0].met, results.targets_met, results.status) == (False, 0, "failed")
    assert Results.model_validate_json((tmp_path / RESULTS_FILE).read_text()) == results


@pytest.mark.parametrize("name", ["targets_met", "targets_asked"])
def test_totals_follow_the_device_settings(tmp_path: Path, name: str) -> None:
    failed = dataclasses.replace(device_outcome("board-b", status=SettingStatus.FAILED), targets=(), targets_asked=3)
    results = artifacts(tmp_path, campaign_outcome(device_outcome("board-a"), failed))
    assert (results.status, results.targets_met, results.targets_asked) == ("partial", 4, 7)
    altered = json.loads((tmp_path / RESULTS_FILE).read_text())
    altered[name] += 1
    with pytest.raises(ValidationError, match="4 of 7; the file was altered"):
        Results.model_validate(altered)


def test_how_far_the_data_were_disturbed_is_told(tmp_path: Path) -> None:
    device = device_outcome("board-a", measurements=12)
    rows = list(device.rows)
    for index, changes in enumerate(
        (
            {"quality": "slowed", "undisturbed_ms": None, "regime_unix_s": 1.7e9},
            {"quality": "slowed", "undisturbed_ms": rows[1].measurement.median_ms / 4, "regime_unix_s": 1.7e9},
            {"quality": "noisy", "undisturbed_ms": rows[2].measurement.median_ms / 2, "regime_unix_s": 1.7e9 + 60},
            {"quality": "ok", "undisturbed_ms": rows[3].measurement.median_ms / 3, "regime_unix_s": LATEST_UNIX_S},
        )
    ):
        measurement = rows[index].measurement.model_copy(update={**changes, "condition": "sustained"})
        rows[index] = dataclasses.replace(rows[index], measurement=measurement)
    late = dataclasses.replace(rows[1], attempt=2, counted=False)
    results = artifacts(tmp_path, campaign_outcome(dataclasses.replace(device, rows=(*rows[:4], late))))
    (record,) = results.fleet
    assert (record.quality.ok, record.quality.noisy, record.quality.slowed, record.quality.unknown_speed) == (
        1,
        1,
        2,
        1,
    )
    assert record.quality.largest_slowdown == pytest.approx(4.0)
    assert [(each.measurements, each.slowdown) for each in record.regimes] == [
        (2, pytest.approx(4.0)),
        (1, pytest.approx(2.0)),
        (1, pytest.approx(3.0)),
    ]
    # The latest clock that a message may have still has a date.
    assert [None if each.since is None else each.since.isoformat() for each in record.regimes] == [
        "2023-11-14T22:13:20+00:00",
        "2023-11-14T22:14:20+00:00",
        "9999-12-31T23:59:59+00:00",
    ]
    assert record.condition == "sustained"
    table = read_measurements(tmp_path / MEASUREMENTS_FILE)
    assert [row.counted for row in table["board-a", record.runtime]] == [True] * 4 + [False]


def test_failures_count_against_the_budget_by_the_same_rule(tmp_path: Path) -> None:
    device = device_outcome("board-a", measurements=12)
    subnet = device.rows[0].architecture
    failures = (
        FailedMeasurement("f1", 1, "initial-design", subnet, "crashed"),
        FailedMeasurement("f2", 1, "candidate", subnet, "timeout", target_ms=2.0),
        FailedMeasurement("f3", 1, "verification", subnet, "crashed", target_ms=2.0),
        FailedMeasurement("f4", 2, "candidate", subnet, "timeout", counted=False),
    )
    (record,) = artifacts(tmp_path, campaign_outcome(dataclasses.replace(device, failures=failures))).fleet
    assert (record.measurements, record.failed_measurements, len(record.failures)) == (13, 3, 4)


def test_other_bytes_than_the_measured_ones_are_refused(tmp_path: Path) -> None:
    device = device_outcome("board-a")
    model = model_of("board-a", device.targets[0].target_ms)
    altered = bytes([model[0] ^ 1]) + model[1:]
    with pytest.raises(HashMismatchError, match=hashlib.sha256(altered).hexdigest()):
        ArtifactFolder(tmp_path).add_winner(device, device.targets[0], altered)
    assert list(tmp_path.rglob("*.onnx")) == []


def test_a_target_that_was_not_met_takes_no_model_home(tmp_path: Path) -> None:
    device = device_outcome("board-a")
    slow = dataclasses.replace(device.targets[0], verified_ms=1.1 * device.targets[0].target_ms)
    with pytest.raises(ValueError, match="verify it first"):
        ArtifactFolder(tmp_path).add_winner(device, slow, model_of("board-a", slow.target_ms))


def test_a_model_altered_on_disk_is_no_longer_named(tmp_path: Path) -> None:
    outcome = campaign_outcome(device_outcome("board-a"))
    target = artifacts(tmp_path, outcome).fleet[0].targets[1]
    assert target.model is not None
    (tmp_path / target.model).write_bytes(b"something else")
    again = ArtifactFolder(tmp_path).write(outcome).fleet[0].targets
    assert again[1].model is None
    assert all(other.model is not None for other in (again[0], *again[2:]))


def test_a_lost_device_keeps_what_it_had(tmp_path: Path) -> None:
    lost = device_outcome("board-a", status=SettingStatus.LOST, measurements=12)
    outcome = campaign_outcome(lost, device_outcome("board-b", seed=1))
    results = artifacts(tmp_path, outcome)
    assert results.status == "partial"
    assert (results.fleet[0].status, results.fleet[0].measurements) == ("lost", 12)
    assert [target.met for target in results.fleet[0].targets] == [True, True, True, False]
    assert len(read_measurements(tmp_path / MEASUREMENTS_FILE)["board-a", lost.setting.label]) == 12


def test_it_can_be_written_while_the_run_goes_on(tmp_path: Path) -> None:
    first, second = device_outcome("board-a"), device_outcome("board-b", seed=1)
    early = dataclasses.replace(campaign_outcome(first), finished_s=None)
    assert artifacts(tmp_path, early).status == "running"
    modified = (tmp_path / "board-a" / first.setting.label / "1ms.onnx").stat().st_mtime_ns
    writer = ArtifactFolder(tmp_path)
    for target in second.targets:
        writer.add_winner(second, target, model_of("board-b", target.target_ms))
    results = writer.write(campaign_outcome(first, second))
    assert results.status == "complete"
    assert all(target.model is not None for device in results.fleet for target in device.targets)
    assert (tmp_path / "board-a" / first.setting.label / "1ms.onnx").stat().st_mtime_ns == modified
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_measurements_read_back_equal(tmp_path: Path) -> None:
    devices = (device_outcome("board-a"), device_outcome("board-b", threads=2, seed=3))
    (tmp_path / MEASUREMENTS_FILE).write_text(measurements_csv(devices))
    table = read_measurements(tmp_path / MEASUREMENTS_FILE)
    assert table == {(device.device, device.setting.label): list(device.rows) for device in devices}


def test_no_cell_is_a_formula() -> None:
    row = measurement_row(np.random.default_rng(0), 0)
    hostile = row.measurement.model_copy(update={"provider": "=HYPERLINK(1)"})
    device = dataclasses.replace(device_outcome("board-a"), rows=(dataclasses.replace(row, measurement=hostile),))
    (cells,) = csv.DictReader(io.StringIO(measurements_csv((device,))))
    assert cells["provider"] == "'=HYPERLINK(1)"
    assert not any(cell.startswith("=") for cell in cells.values())


@pytest.mark.parametrize("truncated", [False, True])
def test_a_damaged_table_is_refused(tmp_path: Path, truncated: bool) -> None:
    path = tmp_path / MEASUREMENTS_FILE
    text = measurements_csv((device_outcome("board-a"),))
    path.write_text(text[: text.rindex("CPUExecutionProvider")] if truncated else text.replace("median_ms", "median"))
    with pytest.raises(StoreError, match="write it again from the run"):
        read_measurements(path)


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"has no results\.json"):
        read_results(tmp_path)


def test_a_device_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    device = device_outcome("../elsewhere")
    with pytest.raises(ValueError, match="a folder is named after"):
        ArtifactFolder(tmp_path).add_winner(
            device, device.targets[0], model_of("../elsewhere", device.targets[0].target_ms)
        )


def test_status_of_a_run() -> None:
    finished, lost = device_outcome("a"), device_outcome("b", status=SettingStatus.LOST)
    assert run_status(campaign_outcome(finished)) == "complete"
    assert run_status(campaign_outcome(finished, lost)) == "partial"
    assert run_status(campaign_outcome(dataclasses.replace(lost, targets=()))) == "failed"
