"""Runs are named, found by less than their whole id, renamed and deleted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rigs.command_line import fleetnas
from rigs.store_examples import ARCHITECTURE, INFO, MEASUREMENT, SETTING, run_record, task_record
from sqlalchemy import create_engine, text

from fleetnas.coordinator.records.run_names import check_run_name, find_run
from fleetnas.coordinator.records.statuses import RunStatus
from fleetnas.coordinator.records.stored import DeviceRecord, EvaluationRecord, WinnerRecord
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.store.schema import Base
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import StoreError, UsageError
from fleetnas.fleet_protocol.messages import Failed, TaskKey

OLD, NEW = "20260102-030405-aaaa", "20260102-090000-bbbb"
DAY_S = 86400.0
#: Names that begin as ids do.
DATES = ("2", "20", "2026", "202601", "20260102", "20260102-shelf", "20260102-03", OLD)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A store of two runs with something in every table; the older is named."""
    path = tmp_path / "runs.sqlite"
    store = MeasurementStore.open(path)
    store.create_run(replace(run_record(OLD, 10 * DAY_S), name="pi-shelf"))
    store.create_run(run_record(NEW, 20 * DAY_S))
    for place, run in enumerate((OLD, NEW)):
        store.put_devices([DeviceRecord(run, "pi4", SETTING, INFO)])
        store.put_tasks([task_record(f"{run}-t{number}", run) for number in (1, 2)])
        key = TaskKey(task_id=f"{run}-t1", attempt=1)
        store.add_outcome(key, MEASUREMENT.model_copy(update={"task": key}), 1.0 + place)
        failed = TaskKey(task_id=f"{run}-t2", attempt=1)
        store.add_outcome(failed, Failed(task=failed, reason="crashed", detail="signal 11"), 2.0)
        store.put_winners([WinnerRecord(run, "pi4", SETTING.label, 5.0, TargetStatus.MET, ARCHITECTURE)])
        store.evaluations.put([EvaluationRecord(run, "f" * 12, "onnxruntime", "fp32", "evaluation", 10, 1, b"\0")])
    store.set_run_status(NEW, RunStatus.COMPLETE, 21 * DAY_S)
    store.close()
    return path


@pytest.fixture
def store(file: Path) -> Iterator[MeasurementStore]:
    opened = MeasurementStore.open(file)
    yield opened
    opened.close()


def rows_of(file: Path) -> dict[str, int]:
    engine = create_engine(f"sqlite:///{file}")
    with engine.connect() as connection:
        found = {
            name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar() for name in Base.metadata.tables
        }
    engine.dispose()
    return {name: count or 0 for name, count in found.items()}


@pytest.mark.parametrize(
    ("given", "run"),
    [(OLD, OLD), ("pi-shelf", OLD), ("pi", OLD), ("latest", NEW), ("20260102-03", OLD), ("20260102-09", NEW)],
)
def test_a_run_is_found_by_id_name_latest_or_a_beginning(store: MeasurementStore, given: str, run: str) -> None:
    assert store.named_runs.find(given).run_id == run


def test_what_names_no_run_or_several_is_refused_with_those_that_there_are(store: MeasurementStore) -> None:
    with pytest.raises(UsageError, match=rf"'2026' is the beginning of 2 runs: {NEW}, {OLD} \(pi-shelf\); give more"):
        store.named_runs.find("2026")
    with pytest.raises(UsageError, match=rf"holds no run 'phone'; the latest are {NEW}, {OLD} \(pi-shelf\)"):
        store.named_runs.find("phone")
    with pytest.raises(UsageError, match="holds no run ''"):
        store.named_runs.find("")
    with pytest.raises(UsageError, match="the store s holds no run yet; give the --store"):
        find_run([], "latest", "s")


def test_latest_may_be_asked_for_of_one_kind() -> None:
    """A portfolio that measures on devices stores a run, and the next one is of the search before it."""
    runs = [run_record("20260101-000000-aaaa"), run_record("20260102-000000-bbbb")]
    assert find_run(runs, "latest", "s", lambda run: run is runs[0]) is runs[0]
    assert find_run(runs, runs[1].run_id, "s", lambda run: run is runs[0]) is runs[1]
    assert find_run(runs, "latest", "s", lambda run: False) is runs[1]


def test_a_whole_name_goes_before_a_beginning() -> None:
    runs = [
        replace(run_record("20260101-000000-aaaa"), name="pi"),
        replace(run_record("20260102-000000-bbbb"), name="pi2"),
    ]
    assert find_run(runs, "pi", "s") is runs[0]


@pytest.mark.parametrize("name", ["", "latest", "-x", "a b", "a/b", "x" * 65, "20260102-030405", "ä", *DATES])
def test_a_name_that_would_be_misread_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="choose another"):
        check_run_name(name)


@pytest.mark.parametrize("name", ["2nd-try", "2026-shelf", "42", "10.0", "pi-20260102"])
def test_a_name_with_digits_that_no_id_begins_with_is_taken(name: str) -> None:
    assert check_run_name(name) == name


@pytest.mark.parametrize("name", DATES)
def test_no_run_is_renamed_to_the_beginning_of_ids(store: MeasurementStore, name: str) -> None:
    with pytest.raises(UsageError, match="ids of runs begin"):
        store.named_runs.rename(NEW, name)
    with pytest.raises(UsageError, match="ids of runs begin"):
        store.named_runs.check_free(name)


def test_one_name_is_of_one_run(store: MeasurementStore) -> None:
    with pytest.raises(UsageError, match=f"run {OLD} has the name 'pi-shelf' already.*fleetnas runs rename {OLD}"):
        store.named_runs.rename(NEW, "pi-shelf")
    with pytest.raises(UsageError, match="has the name"):
        store.named_runs.check_free("pi-shelf")
    store.named_runs.rename(OLD, "pi-shelf")  # its own
    store.named_runs.rename(OLD, None)
    store.named_runs.rename(NEW, "pi-shelf")
    assert [run.name for run in store.runs()] == [None, "pi-shelf"]
    with pytest.raises(StoreError):  # another coordinator may take the name between check and insertion
        store.create_run(replace(run_record("third"), name="pi-shelf"))


def test_a_deleted_run_leaves_no_row_and_the_other_all_of_its(file: Path) -> None:
    before = rows_of(file)
    store = MeasurementStore.open(file)
    assert vars(store.named_runs.content(OLD)) == {"settings": 1, "measurements": 1, "winners": 1}
    store.named_runs.delete(OLD)
    assert [run.run_id for run in store.runs()] == [NEW]
    assert len(store.outcomes(NEW)) == 2
    assert store.named_runs.find("latest").run_id == NEW
    store.close()
    after = rows_of(file)
    assert {name: count for name, count in before.items() if count} == {
        name: 2 * count for name, count in after.items() if count
    }
    assert {"failures", "measurements", "evaluations", "winners", "tasks"} <= {
        name for name, count in after.items() if count
    }


def test_a_run_that_a_coordinator_works_on_is_not_deleted(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Locks of files are a process's own: the claim of another one is stood for here.
    monkeypatch.setattr("fleetnas.coordinator.store.claims.FileClaims.take", lambda claims, run: run != NEW)
    code, _, err = fleetnas(capsys, "runs", "delete", OLD, NEW, "--yes", "--store", str(file))
    assert (code, f"another coordinator works on run {NEW}" in err) == (2, True)
    assert rows_of(file)["runs"] == 2


def test_runs_are_filtered_renamed_and_deleted(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def runs(*words: str) -> list[str]:
        code, out, err = fleetnas(capsys, "runs", *words, "--json", "--store", str(file))
        assert code == 0, err
        return [json.loads(line)["run_id"] for line in out.splitlines()]

    assert runs() == [OLD, NEW]
    assert runs("--status", "complete") == [NEW]
    assert runs("--status", "complete", "--status", "running") == [OLD, NEW]
    assert runs("--name", "pi-*") == [OLD]
    assert runs("--since", "1970-01-15") == [NEW]
    assert runs("--since", "1970-01-15", "--name", "pi-*") == []
    said = fleetnas(capsys, "runs", "--since", "2000-01-01", "--store", str(file))[1]
    assert "none of the 2 runs" in said
    assert "pi-shelf" in fleetnas(capsys, "runs", "--store", str(file))[1]

    code, out, _ = fleetnas(capsys, "runs", "rename", "latest", "phones", "--store", str(file))
    assert (code, out) == (0, f"run {NEW} is now named phones\n")
    code, out, _ = fleetnas(capsys, "runs", "rename", "phones", "--store", str(file))
    assert (code, out) == (0, f"run {NEW} has no name now\n")

    code, out, err = fleetnas(capsys, "runs", "delete", "pi-shelf", "--store", str(file))
    assert (code, "give --yes" in err) == (2, True)
    assert f"run {OLD} (pi-shelf), running: 1 device settings, 1 measurements, 1 decided targets" in out
    code, out, _ = fleetnas(capsys, "runs", "delete", "pi-shelf", OLD, "--yes", "--store", str(file))
    assert (code, out.count("deleted run")) == (0, 1)
    assert runs() == [NEW]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--status", "done"), "--status 'done' is no status of a run; there are running, complete"),
        (("--since", "yesterday"), "--since 'yesterday' is no date; give one such as 2026-05-31"),
        (("delete", "phone"), "holds no run 'phone'; the latest are"),
        (("rename", "latest", "a b"), "cannot be named 'a b'"),
        (("--status", "failed", "delete", OLD), "leave out --status"),
    ],
)
def test_wrong_requests_are_refused(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.setenv("FLEETNAS_STORE", str(file))
    code, _, err = fleetnas(capsys, "runs", *words)
    assert (code, said in err) == (2, True), err


@pytest.mark.parametrize(
    "words", [("results",), ("portfolio", "--models", "1"), ("export-data", "-o", "out.csv", "--run")]
)
def test_every_command_that_takes_a_run_takes_all_these_names(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(file.parent)
    code, _, err = fleetnas(capsys, *words, "2026", "--store", str(file))
    assert (code, "is the beginning of 2 runs" in err) == (2, True), err


def test_results_without_a_run_are_those_of_the_newest(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = fleetnas(capsys, "results", NEW, "--store", file)
    without = fleetnas(capsys, "results", "--store", file)
    assert without == (newest[0], newest[1], f"the newest run: {NEW}\n{newest[2]}")


@pytest.mark.parametrize(
    "command", [("portfolio", "--models", "2"), ("export-latency", "--device", "pi9", "-o", "tables")]
)
def test_commands_that_only_read_a_run_take_the_newest(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(file.parent)
    code, _, errors = fleetnas(capsys, *command, "--store", file)
    assert (code != 0, errors.splitlines()[0]) == (True, f"the newest run: {NEW}")
