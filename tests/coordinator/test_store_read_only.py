"""A store that can only be read, such as one on a mounted backup, is read by every command that reads."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from rigs.command_line import fleetnas
from rigs.store_examples import MEASUREMENT, run_record, task_record

from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import StoreError
from fleetnas.fleet_protocol.messages import TaskKey


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing in `folder` can be written: for root a mount, for others their rights."""
    if os.geteuid() == 0:
        for options in (("--bind",), ("-o", "remount,bind,ro")):
            mounted = subprocess.run(
                ["mount", *options, str(folder), str(folder)], capture_output=True, text=True, check=False
            )
            if mounted.returncode:
                pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        return
    paths = [folder, *folder.iterdir()]
    for path in paths:
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        yield
    finally:
        for path in paths:
            path.chmod(0o700)


@pytest.fixture
def store(tmp_path: Path, finished_run: Path) -> Path:
    """A finished store, closed in order."""
    path = tmp_path / "disk" / "runs.sqlite"
    path.parent.mkdir()
    with closing(sqlite3.connect(finished_run)) as there, closing(sqlite3.connect(path)) as here:
        there.backup(here)
        here.execute("PRAGMA journal_mode=WAL")
    return path


def test_every_reading_command_reads_it_and_says_what_cannot_be_done(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = (("runs",), ("results", "run-1"), ("watch", "run-1"), ("export-data", "-o", str(tmp_path / "x.csv")))
    expected = [fleetnas(capsys, *command, "--store", str(store)) for command in commands]
    with read_only(store.parent):
        for command, (code, out, err) in zip(commands, expected, strict=True):
            found = fleetnas(capsys, *command, "--store", str(store))
            assert found[:2] == (code, out)
            note = f"the store {store} can only be read here: its runs can be shown and exported, not resumed"
            assert found[2] == f"{note}\n{err}"
        assert sorted(path.name for path in store.parent.iterdir()) == ["runs.sqlite"]


def test_a_command_that_writes_says_so_at_once(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with read_only(store.parent):
        with pytest.raises(StoreError, match="make the file and its folder writable"):
            MeasurementStore.open(store)
        code, _, err = fleetnas(capsys, "search", "--broker", "localhost:1", "--store", str(store), "--resume", "run-1")
    assert code == 1
    assert "make the file and its folder writable" in err
    assert "Traceback" not in err


def killed_store(folder: Path) -> Path:
    """A store whose coordinator was killed: its newest results are still in the log beside it."""
    folder.mkdir()
    path = folder / "runs.sqlite"
    there = MeasurementStore.open(folder / "open.sqlite")
    there.create_run(run_record())
    there.put_tasks([task_record("t1")])
    there.add_outcome(TaskKey(task_id="t1", attempt=1), MEASUREMENT, 1.0)
    for suffix in ("", "-wal", "-shm"):  # as a kill leaves them
        shutil.copy(folder / f"open.sqlite{suffix}", f"{path}{suffix}")
    there.close()
    assert Path(f"{path}-wal").stat().st_size
    return path


def test_results_that_only_the_log_holds_are_read(tmp_path: Path) -> None:
    path = killed_store(tmp_path / "disk")
    with read_only(path.parent):
        store = MeasurementStore.open(path, to_read=True)
        assert [found.outcome for found in store.outcomes("run-1")] == [MEASUREMENT]
        store.close()


def test_a_log_without_its_index_is_not_passed_over(tmp_path: Path) -> None:
    path = killed_store(tmp_path / "disk")
    Path(f"{path}-shm").unlink()
    with read_only(path.parent), pytest.raises(StoreError, match=r"runs\.sqlite-wal.*copy both files"):
        MeasurementStore.open(path, to_read=True)


def test_what_a_coordinator_writes_meanwhile_is_seen(tmp_path: Path) -> None:
    """Another user may write what this one can only read."""
    writer_folder, folder = tmp_path / "writer", tmp_path / "reader"
    writer_folder.mkdir()
    writer = MeasurementStore.open(writer_folder / "runs.sqlite")
    writer.create_run(run_record())
    writer.put_tasks([task_record("t1")])
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can give one folder two faces")
    mounted = subprocess.run(["mount", "--bind", str(writer_folder), str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        reader = MeasurementStore.open(folder / "runs.sqlite", to_read=True)
        assert reader.read_only
        assert reader.outcomes("run-1") == []
        writer.add_outcome(TaskKey(task_id="t1", attempt=1), MEASUREMENT, 1.0)
        assert [found.outcome for found in reader.outcomes("run-1")] == [MEASUREMENT]
        reader.close()
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        writer.close()


def test_a_store_of_an_older_fleetnas_says_that_it_must_be_copied(tmp_path: Path) -> None:
    path = tmp_path / "disk" / "runs.sqlite"
    path.parent.mkdir()
    MeasurementStore.open(path).close()
    with closing(sqlite3.connect(path)) as plain, plain:
        plain.execute("UPDATE alembic_version SET version_num = '0001'")
    with read_only(path.parent), pytest.raises(StoreError, match="copy it to a folder of yours"):
        MeasurementStore.open(path, to_read=True)


def test_an_empty_file_holds_no_run(tmp_path: Path) -> None:
    path = tmp_path / "disk" / "runs.sqlite"
    path.parent.mkdir()
    path.touch()
    with read_only(path.parent), pytest.raises(StoreError, match="holds no run"):
        MeasurementStore.open(path, to_read=True)
