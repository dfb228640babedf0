"""Stores that a disk, a person or another program damaged: one line each, and what is whole is still shown."""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from rigs.command_line import fleetnas
from rigs.store_examples import ARCHITECTURE, INFO, MEASUREMENT, SETTING, run_record, task_record

from fleetnas.coordinator.records.predictor_error import PredictorError, PredictorPoint
from fleetnas.coordinator.records.stored import DeviceRecord, WinnerRecord
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.store.schema import Base
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import FleetnasError, StoreError
from fleetnas.fleet_protocol.messages import Failed, TaskKey

#: What may stand in a column after an accident; SQLite keeps anything anywhere.
DAMAGE = ("", "{", "[]", "text", b"\xff\xfe", None, 1e308)


def fill(store: MeasurementStore) -> None:
    """Two of everything; the second run is damaged, the first stays whole."""
    for run_id in ("whole", "damaged"):
        store.create_run(run_record(run_id))
        store.put_devices(
            [DeviceRecord(run_id, "pi4", SETTING, INFO, learning=(PredictorPoint(5, PredictorError(3.5, None, 5)),))]
        )
        store.put_tasks([task_record(f"{run_id}.{number}", run_id) for number in (1, 2)])
        store.add_outcome(TaskKey(task_id=f"{run_id}.1", attempt=1), MEASUREMENT, 1.0)
        failed = Failed(task=TaskKey(task_id=f"{run_id}.2", attempt=1), reason="crashed")
        store.add_outcome(failed.task, failed, 2.0)
        store.put_winners(
            [WinnerRecord(run_id, "pi4", SETTING.label, 2.5, TargetStatus.MET, ARCHITECTURE, verified_ms=2.25)]
        )


def readers(store: MeasurementStore, table: str) -> list[Callable[[str], object]]:
    """Every way in which a run's rows of a table are read."""
    outcomes = [
        store.outcomes,
        lambda run_id: list(store.measurements([run_id])),
        lambda run_id: store.latencies(run_id, 1e12),
        store.outcome_table.without_samples,
    ]
    found: dict[str, list[Callable[[str], object]]] = {
        "runs": [store.run, lambda run_id: [run for run in store.runs() if run.run_id == run_id]],
        "devices": [store.devices, lambda run_id: store.overview.settings([run_id])],
        "winners": [store.winners, lambda run_id: store.overview.settings([run_id])],
        "tasks": [store.tasks, lambda run_id: store.task(f"{run_id}.1"), *outcomes],
        "outcomes": outcomes,
        "measurements": outcomes,
        "failures": [outcomes[0], outcomes[-1]],
    }
    return found[table]


OF_DAMAGED = {
    "runs": "run_id = 'damaged'",
    "devices": "run_id = 'damaged'",
    "winners": "run_id = 'damaged'",
    "tasks": "run_id = 'damaged'",
    "outcomes": "task_id LIKE 'damaged.%'",
    "measurements": "outcome_id IN (SELECT outcome_id FROM outcomes WHERE task_id LIKE 'damaged.%')",
    "failures": "outcome_id IN (SELECT outcome_id FROM outcomes WHERE task_id LIKE 'damaged.%')",
}


def columns_of(table: str) -> list[str]:
    return [
        column.name
        for column in Base.metadata.tables[table].columns
        if not column.primary_key and not column.foreign_keys
    ]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "runs.sqlite"
    store = MeasurementStore.open(path)
    fill(store)
    store.close()
    return path


@pytest.mark.parametrize("table", OF_DAMAGED)
def test_a_damaged_column_costs_its_run_at_most_and_is_told_in_one_line(
    filled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, table: str
) -> None:
    path = tmp_path / "runs.sqlite"
    path.write_bytes(filled.read_bytes())
    store = MeasurementStore.open(path)
    expected = [read("whole") for read in readers(store, table)]
    tried = 0
    for column, damage in itertools.product(columns_of(table), DAMAGE):
        with closing(sqlite3.connect(path, isolation_level=None)) as plain:
            plain.execute("PRAGMA synchronous=OFF")
            before = plain.execute(f"SELECT {column}, rowid FROM {table} WHERE {OF_DAMAGED[table]}").fetchall()
            try:
                plain.execute(f"UPDATE {table} SET {column} = ? WHERE {OF_DAMAGED[table]}", (damage,))
            except sqlite3.IntegrityError:  # a column that must hold something
                continue
            assert [read("whole") for read in readers(store, table)] == expected
            for read in readers(store, table):
                assert_one_line(refusal_of(read, "damaged"))
            plain.executemany(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", before)
        tried += 1
    for record in caplog.records:
        assert_one_line(record.getMessage())
    store.close()
    assert tried >= (len(DAMAGE) - 1) * len(columns_of(table))


def refusal_of(read: Callable[[str], object], run_id: str) -> str:
    """What a reader says where it refuses; anything but an error made on purpose is a failed test."""
    try:
        read(run_id)
    except FleetnasError as error:
        return str(error)
    return ""


def assert_one_line(text: str) -> None:
    assert "\n" not in text
    assert len(text) < 700


def test_the_damaged_row_and_column_are_named(filled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "runs.sqlite"
    path.write_bytes(filled.read_bytes())
    with closing(sqlite3.connect(path)) as plain, plain:
        plain.execute("UPDATE tasks SET architecture = '{\"ks\": [3' WHERE task_id = 'damaged.1'")
        plain.execute("UPDATE runs SET settings = '{' WHERE run_id = 'damaged'")
    store = MeasurementStore.open(path)
    with caplog.at_level(logging.WARNING):
        assert [task.task_id for task in store.tasks("damaged")] == ["damaged.2"]
        assert [found.key.task_id for found in store.outcomes("damaged")] == ["damaged.2"]
        assert [run.run_id for run in store.runs()] == ["whole"]
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first == second
    assert "row damaged.1 of tasks in the store is damaged: architecture: no JSON (" in first
    assert third.startswith("row damaged of runs in the store is damaged: settings: no JSON (")
    with pytest.raises(StoreError, match="row damaged of runs in the store is damaged"):
        store.run("damaged")
    store.close()


@pytest.mark.parametrize("damage", ["{", '{"plan": {"targets": "soon"}}', '{"plan": 7}'])
def test_every_reading_command_says_it_in_lines(
    capsys: pytest.CaptureFixture[str],
    finished_run: Path,
    tmp_path: Path,
    damage: str,
) -> None:
    path = tmp_path / "runs.sqlite"
    with closing(sqlite3.connect(finished_run)) as there, closing(sqlite3.connect(path)) as here:
        there.backup(here)
        with here:
            here.execute("UPDATE runs SET settings = ?", (damage,))
    for command in (
        ("runs",),
        ("results", "run-1"),
        ("watch", "run-1"),
        ("export-data", "-o", str(tmp_path / "x.csv")),
    ):
        code, out, err = fleetnas(capsys, *command, "--store", str(path))
        assert "Traceback" not in out + err
        assert code in (0, 1)
        if code:
            assert err.count("error:") == 1


def refusal(path: Path, *, to_read: bool = False) -> str:
    with pytest.raises(StoreError) as refused:
        MeasurementStore.open(path, to_read=to_read)
    assert "\n" not in str(refused.value)
    return str(refused.value)


class TestVersions:
    """What says of which version the tables are."""

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (
                "DELETE FROM alembic_version",
                "does not say which version its tables have: alembic_version holds nothing",
            ),
            ("INSERT INTO alembic_version VALUES ('0001')", "does not say which version"),
            ("UPDATE alembic_version SET version_num = ''", "does not say which version"),
            ("ALTER TABLE alembic_version RENAME COLUMN version_num TO other", "is the database of another program"),
            ("UPDATE alembic_version SET version_num = '9999'", "written by a newer fleetnas (schema 9999"),
            ("DROP TABLE alembic_version", "does not say which version its tables have: alembic_version is missing"),
        ],
    )
    def test_odd_ones_are_told_and_nothing_is_changed(
        self, filled: Path, tmp_path: Path, change: str, said: str
    ) -> None:
        path = tmp_path / "runs.sqlite"
        path.write_bytes(filled.read_bytes())
        with closing(sqlite3.connect(path)) as plain, plain:
            plain.execute(change)
        before = dump(path)
        for to_read in (False, True):
            assert said in refusal(path, to_read=to_read)
        assert dump(path) == before

    @pytest.mark.parametrize("values", ["", "(NULL)", "(0)", "(1), (2)"])
    def test_odd_ones_of_the_first_fleetnas(self, tmp_path: Path, values: str) -> None:
        path = tmp_path / "runs.sqlite"
        with closing(sqlite3.connect(path)) as plain, plain:
            plain.execute("CREATE TABLE schema_version (version INTEGER)")
            plain.execute("CREATE TABLE runs (run_id TEXT)")
            if values:
                plain.execute(f"INSERT INTO schema_version VALUES {values}")
        assert "schema_version" in refusal(path)

    def test_a_version_table_alone_is_a_new_store(self, tmp_path: Path) -> None:
        """So a store begins whose first migration did not come to its end."""
        path = tmp_path / "runs.sqlite"
        with closing(sqlite3.connect(path)) as plain, plain:
            plain.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        store = MeasurementStore.open(path)
        fill(store)
        store.close()

    @pytest.mark.parametrize("version", [None, "8a1b2c3d4e5f"])
    def test_the_database_of_another_program_is_left_alone(self, tmp_path: Path, version: str | None) -> None:
        path = tmp_path / "places.sqlite"
        with closing(sqlite3.connect(path)) as plain, plain:
            plain.execute("CREATE TABLE bookmarks (url TEXT)")
            if version is not None:
                plain.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
                plain.execute("INSERT INTO alembic_version VALUES (?)", (version,))
        before = dump(path)
        assert "bookmarks" in refusal(path)
        assert dump(path) == before


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as plain:
        return list(plain.iterdump())


@pytest.mark.parametrize("answer", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_not_another_coordinator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    store = MeasurementStore.open(tmp_path / "runs.sqlite")
    store.create_run(run_record())

    def no_locks(*_: object) -> None:
        raise OSError(answer, "as the file system says")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with pytest.raises(StoreError, match=r"runs\.sqlite-claims \(as the file system says\).*a disk of this machine"):
        store.claim_run("run-1")
    store.close()


@pytest.mark.parametrize("answer", [errno.EACCES, errno.EAGAIN])
def test_a_lock_that_is_held_is_another_coordinator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    """POSIX allows either answer."""
    store = MeasurementStore.open(tmp_path / "runs.sqlite")

    def held(*_: object) -> None:
        raise OSError(answer, "held")

    monkeypatch.setattr(fcntl, "lockf", held)
    assert not store.claim_run("run-1")
    store.close()


def test_a_claims_file_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    store = MeasurementStore.open(tmp_path / "runs.sqlite")
    (tmp_path / "runs.sqlite-claims").mkdir()
    with pytest.raises(StoreError, match="claims"):
        store.claim_run("run-1")
    store.close()
