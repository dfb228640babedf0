"""The schema's history: every revision keeps what was stored, and ends where the models are."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from rigs.store_examples import ARCHITECTURE, INFO, MEASUREMENT, SETTING, run_record, task_record
from rigs.store_process import StoreProcess
from sqlalchemy import Connection, MetaData, insert, text

from fleetnas.coordinator.records.predictor_error import PredictorError, PredictorPoint
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.records.stored import DeviceRecord, OutcomeRecord, WinnerRecord
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.store.database import Database
from fleetnas.coordinator.store.migration import FIRST_REVISION, alembic_config
from fleetnas.coordinator.store.schema import HEAD_REVISION, Base
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import StoreError
from fleetnas.fleet_protocol.messages import Failed, TaskKey

FAILED = Failed(task=TaskKey(task_id="t2", attempt=3), reason="crashed", detail="signal 11")
#: What a measurement had no field for then, and what became of one with a sentinel's drift and of a throttled one.
ADDED = {
    "undisturbed_ms", "undisturbed_half_width_percent", "reference", "reference_ms", "levels_ms", "condition",
    "regime_unix_s", "sessions", "session_medians_ms", "mean_ms", "percentiles",
    "layers",
}  # fmt: skip
_UNKNOWN = {"reference": None, "reference_ms": None, "levels_ms": (), "condition": "as-is", "regime_unix_s": 0.0}
_UNKNOWN |= {"sessions": 1, "session_medians_ms": (), "mean_ms": None, "percentiles": (), "layers": ()}
KEPT = MEASUREMENT.model_copy(
    update={**_UNKNOWN, "undisturbed_ms": 1.25 / 1.25, "undisturbed_half_width_percent": 0.5, "quality": "noisy"}
)
BOUND = MEASUREMENT.model_copy(
    update={**_UNKNOWN, "undisturbed_ms": None, "undisturbed_half_width_percent": 0.0, "quality": "slowed"}
)
#: The plan of a run as the first revisions held it, and as it is read today.
PLAN_BEFORE = {"targets": "2,4", "budget": 24, "spread": 12}
PLAN_NOW = {"targets": "2,4", "budget": 24, "initial_design": 12, "precision": "fixed"}
#: One store as the first revision held it, table by table; spelled out, since the code that wrote it is gone.
FIRST_ROWS: dict[str, list[dict[str, Any]]] = {
    "runs": [
        {
            "run_id": "run-1",
            "fleet": "default",
            "supernet": "digits.supernet",
            "bundle_sha256": "b" * 64,
            "settings": {"plan": PLAN_BEFORE},
            "created_unix_s": 10.0,
            "status": "complete",
            "finished_unix_s": 99.5,
        }
    ],
    "devices": [
        {
            "run_id": "run-1",
            "device": "pi4",
            "setting_label": "onnxruntime_cpu_2t_fp32",
            "setting": {"runtime": "onnxruntime", "threads": 2},
            "info": json.loads(INFO.model_dump_json()),
            "status": "lost",
            "reason": "its last will",
            "learning": [[5, 3.5, None, 5]],
            "wire_bytes": 5_000_000_000,
        }
    ],
    "tasks": [
        {
            "task_id": task_id,
            "run_id": "run-1",
            "device": "pi4",
            "setting_label": "onnxruntime_cpu_2t_fp32",
            "purpose": "spread",
            "architecture": {"ks": [3, 5, 0], "e": [3, 6, 0], "d": [2], "r": 32},
            "predicted_ms": 1.1,
            "calibration": b"\0x",
            "attempt": 0,
        }
        for task_id in ("t1", "t2")
    ],
    "outcomes": [
        {"outcome_id": 7, "task_id": "t2", "attempt": 3, "stored_unix_s": 20.25},
        {"outcome_id": 8, "task_id": "t1", "attempt": 1, "stored_unix_s": 20.0},
        {"outcome_id": 9, "task_id": "t1", "attempt": 7, "stored_unix_s": 21.0},
    ],
    "measurements": [
        {
            "outcome_id": 8,
            **{name: value for name, value in json.loads(MEASUREMENT.model_dump_json()).items() if name not in ADDED},
            "drift": 1.25,
            "quality": "noisy",
        },
        {
            "outcome_id": 9,
            **{name: value for name, value in json.loads(MEASUREMENT.model_dump_json()).items() if name not in ADDED},
            "drift": 3.0,
            "quality": "throttled",
        },
    ],
    "failures": [{"outcome_id": 7, "reason": "crashed", "detail": "signal 11"}],
    "winners": [
        {
            "run_id": "run-1",
            "device": "pi4",
            "setting_label": "onnxruntime_cpu_2t_fp32",
            "target_ms": 2.5,
            "met": True,
            "fields": {"verified_ms": 2.25},
        },
        {
            "run_id": "run-1",
            "device": "pi4",
            "setting_label": "onnxruntime_cpu_2t_fp32",
            "target_ms": 0.5,
            "met": False,
            "fields": {
                "target_ms": 0.5,
                "architecture": None,
                "reason": "infeasible: the fastest subnet takes 0.8 ms",
                "open": False,
            },
        },
        {
            "run_id": "run-1",
            "device": "pi4",
            "setting_label": "onnxruntime_cpu_2t_fp32",
            "target_ms": 1.5,
            "met": False,
            "fields": {
                "target_ms": 1.5,
                "architecture": {"ks": [3, 5, 0], "e": [3, 6, 0], "d": [2], "r": 32},
                "predicted_ms": 1.4,
                "measured_ms": 1.45,
                "verified_ms": 1.6,
                "typical_ms": 1.55,
                "predicted_accuracy": 0.9,
                "accuracy": None,
                "accuracy_images": None,
                "parameters": 450_000,
                "macs": 3_500_000_000,
                "peak_activation_bytes": 98_304,
                "sha256": "a" * 64,
                "reason": "verified at 1.60 ms",
                "note": "",
                "open": False,
            },
        },
        {
            "run_id": "run-1",
            "device": "pi4",
            "setting_label": "onnxruntime_cpu_2t_fp32",
            "target_ms": 9.0,
            "met": True,
            "fields": ["damaged", "in", "some", "way"],
        },
    ],
}
#: The same winners as they are read today.
_WINNER = WinnerRecord("run-1", "pi4", SETTING.label, 2.5, TargetStatus.MET, verified_ms=2.25)
WINNERS = [
    replace(
        _WINNER, target_ms=0.5, status=TargetStatus.INFEASIBLE, verified_ms=None,
        reason="the fastest subnet takes 0.8 ms",
    ),
    replace(
        _WINNER, target_ms=1.5, status=TargetStatus.MISSED, architecture=ARCHITECTURE, predicted_ms=1.4,
        measured_ms=1.45, verified_ms=1.6, typical_ms=1.55, predicted_accuracy=0.9, parameters=450_000,
        macs=3_500_000_000, peak_activation_bytes=98_304, sha256="a" * 64, reason="verified at 1.60 ms",
    ),
    _WINNER,
    replace(_WINNER, target_ms=9.0, verified_ms=None),
]  # fmt: skip
LEARNED = (PredictorPoint(5, PredictorError(3.5, None, 5)),)


def write_first(connection: Connection) -> None:
    """A store of the first revision with something in every table."""
    command.upgrade(alembic_config(connection), FIRST_REVISION)
    tables = MetaData()
    tables.reflect(connection)
    for name, rows in FIRST_ROWS.items():
        connection.execute(insert(tables.tables[name]), rows)
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT setval('outcomes_outcome_id_seq', 9)"))


def check_everything_is_there(store: MeasurementStore) -> None:
    (run,) = store.runs()
    assert (run.run_id, run.settings) == ("run-1", {"plan": PLAN_NOW})
    assert (run.status, run.finished_unix_s) == ("complete", 99.5)
    assert store.devices("run-1") == [
        DeviceRecord("run-1", "pi4", SETTING, INFO, SettingStatus.LOST, "its last will", LEARNED, 5_000_000_000)
    ]
    assert store.tasks("run-1") == [task_record("t1"), task_record("t2")]
    assert store.outcomes("run-1") == [
        OutcomeRecord(task_record("t2"), FAILED.task, FAILED, 20.25, number=7),
        OutcomeRecord(task_record("t1"), TaskKey(task_id="t1", attempt=1), KEPT, 20.0, number=8),
        OutcomeRecord(task_record("t1"), TaskKey(task_id="t1", attempt=7), BOUND, 21.0, number=9),
    ]
    assert store.winners("run-1") == WINNERS


def check_it_can_be_written(store: MeasurementStore) -> None:
    assert not store.add_outcome(TaskKey(task_id="t1", attempt=1), MEASUREMENT, 30.0)
    assert store.add_outcome(TaskKey(task_id="t1", attempt=2), MEASUREMENT, 30.0)
    assert store.outcomes("run-1")[-1].stored_unix_s == 30.0
    store.create_run(run_record("run-2"))


def test_a_store_of_the_first_revision_goes_through_every_later_one(store_url: str) -> None:
    database = Database(store_url)
    with database.changing_schema() as connection:
        write_first(connection)
    revisions = [
        script.revision
        for script in ScriptDirectory.from_config(alembic_config(connection)).walk_revisions()
    ][::-1]  # fmt: skip
    assert revisions[0] == FIRST_REVISION
    assert revisions[-1] == HEAD_REVISION
    for revision in revisions[1:]:
        with database.changing_schema() as connection:
            command.upgrade(alembic_config(connection), revision)
    database.close()
    store = MeasurementStore.open(store_url)
    check_everything_is_there(store)
    check_it_can_be_written(store)
    store.close()


def test_a_store_from_before_revisions_were_counted_is_adopted(store_url: str) -> None:
    database = Database(store_url)
    with database.changing_schema() as connection:
        write_first(connection)
        connection.execute(text("DROP TABLE alembic_version"))
    database.close()
    for _ in range(2):
        store = MeasurementStore.open(store_url)
        check_everything_is_there(store)
        store.close()


@pytest.mark.parametrize("adopted", [False, True])
def test_the_migrated_tables_are_those_of_the_models(store_url: str, adopted: bool) -> None:
    database = Database(store_url)
    if adopted:
        with database.changing_schema() as connection:
            write_first(connection)
    MeasurementStore.open(store_url).close()
    with database.reading() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    database.close()


def test_a_store_of_a_newer_fleetnas_is_refused_and_left_alone(store_url: str) -> None:
    MeasurementStore.open(store_url).close()
    database = Database(store_url)
    with database.changing_schema() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"newer fleetnas \(schema 9999.*upgrade fleetnas") as refused:
        MeasurementStore.open(store_url)
    assert "\n" not in str(refused.value)
    with database.reading() as session:
        assert session.scalar(text("SELECT version_num FROM alembic_version")) == "9999"
    database.close()


def test_the_hand_made_version_of_a_newer_store_is_refused_too(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "runs.sqlite") as plain:
        plain.execute("CREATE TABLE schema_version (version INTEGER PRIMARY KEY)")
        plain.execute("INSERT INTO schema_version VALUES (99)")
    with pytest.raises(StoreError, match="version 99"):
        MeasurementStore.open(tmp_path / "runs.sqlite")
    with sqlite3.connect(tmp_path / "runs.sqlite") as plain:
        assert plain.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [("schema_version",)]


def test_coordinators_that_open_a_new_store_at_once_make_it_once(store_url: str) -> None:
    with StoreProcess.several(4, store_url, "open") as processes:
        for process in processes:
            process.go()
        assert [process.answer() for process in processes] == ["opened"] * 4
    store = MeasurementStore.open(store_url)
    store.create_run(run_record())
    store.close()


def test_a_migration_that_fails_changes_nothing(store_url: str) -> None:
    database = Database(store_url)

    def fail_half_way() -> None:
        with database.changing_schema() as connection:
            write_first(connection)
            connection.execute(text("SELECT * FROM no_such_table"))

    with pytest.raises(StoreError, match="no_such_table"):
        fail_half_way()
    with database.reading() as session:
        tables = MetaData()
        tables.reflect(session.connection())
        assert not tables.tables
    database.close()
