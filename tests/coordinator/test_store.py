"""The store: one conformance class that every database passes, and what SQLite alone has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rigs.store_examples import ARCHITECTURE, INFO, MEASUREMENT, SETTING, run_record, task_record

from fleetnas.coordinator.records.predictor_error import PredictorError, PredictorPoint
from fleetnas.coordinator.records.statuses import RunStatus, SettingStatus
from fleetnas.coordinator.records.stored import Arrival, DeviceRecord, WinnerRecord
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.store.database import Database
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import StoreError, UsageError
from fleetnas.fleet_protocol.messages import Failed, TaskKey

LEARNED = PredictorPoint(5, PredictorError(3.5, None, 5))


@pytest.fixture
def store(store_url: str) -> Iterator[MeasurementStore]:
    store = MeasurementStore.open(store_url)
    store.create_run(run_record())
    store.put_tasks([task_record("t1")])
    yield store
    store.close()


class TestConformance:
    """What the store does on every database."""

    def test_an_outcome_comes_back_unchanged_after_reopening(self, store: MeasurementStore, store_url: str) -> None:
        assert store.add_outcome(TaskKey(task_id="t1", attempt=1), MEASUREMENT, 20.0)
        store.close()
        (found,) = MeasurementStore.open(store_url).outcomes("run-1")
        assert found.outcome == MEASUREMENT
        assert found.task == task_record("t1")
        assert found.stored_unix_s == 20.0

    def test_an_attempt_is_stored_once_and_attempts_are_told_apart(self, store: MeasurementStore) -> None:
        failed = Failed(task=TaskKey(task_id="t1", attempt=2), reason="crashed", detail="signal 11")
        assert store.add_outcome(TaskKey(task_id="t1", attempt=1), MEASUREMENT, 1.0)
        assert not store.add_outcome(TaskKey(task_id="t1", attempt=1), MEASUREMENT, 2.0)
        assert store.add_outcome(failed.task, failed, 3.0)
        assert [found.outcome for found in store.outcomes("run-1")] == [MEASUREMENT, failed]

    def test_outcomes_come_in_order_of_arrival_even_if_the_clock_goes_back(self, store: MeasurementStore) -> None:
        for number, stored in ((2, 50.0), (3, 40.0), (4, 45.0)):
            store.put_tasks([task_record(f"t{number}")])
            store.add_outcome(TaskKey(task_id=f"t{number}", attempt=1), MEASUREMENT, stored)
        assert [found.key.task_id for found in store.outcomes("run-1")] == ["t2", "t3", "t4"]

    def test_the_result_of_an_unknown_task_is_refused(self, store: MeasurementStore) -> None:
        with pytest.raises(StoreError, match="t9"):
            store.add_outcome(TaskKey(task_id="t9", attempt=1), MEASUREMENT, 1.0)

    def test_a_batch_tells_which_attempts_were_new(self, store: MeasurementStore) -> None:
        store.put_tasks([task_record(f"t{number}") for number in range(2, 6)])
        failed = Failed(task=TaskKey(task_id="t4", attempt=1), reason="crashed")
        assert store.add_outcome(TaskKey(task_id="t2", attempt=1), MEASUREMENT, 1.0)
        batch = [
            Arrival(TaskKey(task_id="t5", attempt=1), MEASUREMENT, 2.0),
            Arrival(TaskKey(task_id="t2", attempt=1), MEASUREMENT, 3.0),
            Arrival(failed.task, failed, 4.0),
            Arrival(TaskKey(task_id="t5", attempt=1), failed, 5.0),
            Arrival(TaskKey(task_id="t5", attempt=2), MEASUREMENT, 6.0),
        ]
        assert store.add_outcomes(batch) == [True, False, True, False, True]
        found = [(one.key.task_id, one.key.attempt, one.outcome, one.stored_unix_s) for one in store.outcomes("run-1")]
        assert found == [
            ("t2", 1, MEASUREMENT, 1.0),
            ("t5", 1, MEASUREMENT, 2.0),
            ("t4", 1, failed, 4.0),
            ("t5", 2, MEASUREMENT, 6.0),
        ]

    def test_a_batch_with_an_unknown_task_is_refused_whole(self, store: MeasurementStore) -> None:
        batch = [Arrival(TaskKey(task_id=task_id, attempt=1), MEASUREMENT, 1.0) for task_id in ("t1", "t9")]
        with pytest.raises(StoreError, match="t9"):
            store.add_outcomes(batch)
        assert store.outcomes("run-1") == []
        assert store.add_outcomes([]) == []

    def test_measurements_of_several_runs_come_in_order_whatever_the_page(self, store: MeasurementStore) -> None:
        store.create_run(run_record("run-2"))
        names = [f"t{number}" for number in range(2, 1202)]
        store.put_tasks([task_record(name, f"run-{1 + place % 2}") for place, name in enumerate(names)])
        failed = Failed(task=TaskKey(task_id="t1", attempt=1), reason="crashed")
        arrivals = [Arrival(TaskKey(task_id=name, attempt=1), MEASUREMENT, 1.0) for name in names]
        store.add_outcomes([*arrivals[:700], Arrival(failed.task, failed, 1.0), *arrivals[700:]])
        assert [one.key.task_id for one in store.measurements(["run-1", "run-2"])] == names
        assert [one.key.task_id for one in store.measurements(["run-2"], ["pi4"])] == names[1::2]
        assert list(store.measurements(["run-1"], ["pi5"])) == list(store.measurements([])) == []

    def test_a_task_is_renewed_in_place(self, store: MeasurementStore) -> None:
        store.put_tasks([replace(task_record("t1"), attempt=2)])
        assert [task.attempt for task in store.tasks("run-1")] == [2]

    def test_runs_are_kept_apart(self, store: MeasurementStore) -> None:
        store.create_run(run_record("run-2", 5.0))
        store.put_tasks([task_record("u1", "run-2")])
        store.add_outcome(TaskKey(task_id="u1", attempt=1), MEASUREMENT, 1.0)
        assert store.outcomes("run-1") == []
        assert [run.run_id for run in store.runs()] == ["run-2", "run-1"]
        store.set_run_status("run-2", RunStatus.COMPLETE, 9.0)
        assert (store.run("run-2").status, store.run("run-2").finished_unix_s) == (RunStatus.COMPLETE, 9.0)
        assert store.run("run-1").status == "running"

    def test_an_unknown_run_names_the_known_ones(self, store: MeasurementStore) -> None:
        with pytest.raises(UsageError, match="run-1"):
            store.run("run-7")

    def test_one_run_id_is_used_once(self, store: MeasurementStore) -> None:
        with pytest.raises(StoreError):
            store.create_run(run_record())

    def test_devices_and_winners_are_renewed(self, store: MeasurementStore) -> None:
        device = DeviceRecord("run-1", "pi4", SETTING, INFO, learning=(LEARNED,), wire_bytes=123)
        store.put_devices([device])
        store.put_devices([replace(device, status=SettingStatus.LOST, reason="its last will")])
        assert store.devices("run-1") == [replace(device, status=SettingStatus.LOST, reason="its last will")]
        known = replace(device, targets_ms=(2.5, 5.0), targets_note="2 targets instead of 4: a narrow range")
        store.put_devices([known])
        assert store.devices("run-1") == [known]
        missed = WinnerRecord("run-1", "pi4", SETTING.label, 2.5, TargetStatus.MISSED, reason="verified at 2.6 ms")
        store.put_winners([missed])
        assert store.winners("run-1") == [missed]
        met = WinnerRecord(
            *("run-1", "pi4", SETTING.label, 2.5, TargetStatus.MET, ARCHITECTURE),
            predicted_ms=2.2,
            measured_ms=2.3,
            verified_ms=2.25,
            typical_ms=2.4,
            predicted_accuracy=0.9,
            accuracy=0.875,
            accuracy_images=600,
            parameters=450_000,
            macs=3_500_000_000,
            peak_activation_bytes=98_304,
            sha256="a" * 64,
            note="constrains nothing",
        )
        store.put_winners([met])
        assert store.winners("run-1") == [met]

    def test_targets_of_other_kinds_stand_beside_latencies(self, store: MeasurementStore) -> None:
        device = DeviceRecord("run-1", "pi4", SETTING, INFO, targets_ms=(33.0,), targets=("p95:33", "energy:5mJ"))
        store.put_devices([device])
        assert store.devices("run-1") == [device]
        asked = replace(task_record("t2"), target_ms=33.0, target="p95:33", asked_percentiles=(95.0, 97.2))
        store.put_tasks([asked])
        assert store.task("t2") == asked
        latency = WinnerRecord("run-1", "pi4", SETTING.label, 33.0, TargetStatus.MISSED, reason="slow")
        percentile = replace(latency, target="p95:33", value=30.5, value_low=30.1, value_high=31.75, typical_value=31.9)
        energy = replace(latency, target_ms=None, target="energy:5mJ", value=4.5)
        store.put_winners([latency, percentile, energy])
        assert store.winners("run-1") == [energy, latency, percentile]


def test_sqlite_commits_survive_a_power_cut_by_configuration(tmp_path: Path) -> None:
    MeasurementStore.open(tmp_path / "runs.sqlite").close()
    with contextlib.closing(Database(str(tmp_path / "runs.sqlite"))) as database, database.reading() as session:
        assert session.connection().exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert session.connection().exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


@pytest.mark.parametrize("location", [":memory:", "sqlite://", "sqlite:///:memory:"])
def test_a_store_in_memory_leaves_no_file(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(MeasurementStore.open(location)) as store:
        assert store.in_memory
        store.create_run(run_record())
        assert store.claim_run("run-1")
    assert not list(tmp_path.iterdir())
