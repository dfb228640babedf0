"""Several coordinators on one store: real processes, on both databases."""

from __future__ import annotations

from collections import Counter

import pytest
from rigs.command_line import fleetnas
from rigs.store_examples import INFO, MEASUREMENT, SETTING, run_record, task_record
from rigs.store_process import StoreProcess
from rigs.waiting import until

from fleetnas.coordinator.records.stored import DeviceRecord
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.messages import TaskKey


def test_runs_of_two_coordinators_do_not_disturb_each_other(store_url: str) -> None:
    MeasurementStore.open(store_url).close()
    with StoreProcess.several(2, store_url, "write", "15") as processes:
        for process in processes:
            process.go()
        assert [process.answer() for process in processes] == [45, 45]
    store = MeasurementStore.open(store_url)
    assert [run.status for run in store.runs()] == ["complete", "complete"]
    for number in range(2):
        run_id = f"run-{number}"
        assert [found.key.task_id for found in store.outcomes(run_id)] == [
            f"{run_id}.{place}.{part}" for place in range(15) for part in range(3)
        ]
        assert [device.wire_bytes for device in store.devices(run_id)] == [14]
        assert [winner.note for winner in store.winners(run_id)] == [str(number)]
    store.close()


def test_a_result_that_several_record_at_once_counts_once(store_url: str) -> None:
    store = MeasurementStore.open(store_url)
    store.create_run(run_record())
    store.put_tasks([task_record(f"t{number}") for number in range(60)])
    with StoreProcess.several(3, store_url, "repeat", "60") as processes:
        for process in processes:
            process.go()
        answers = [process.answer() for process in processes]
    # Of every result exactly one of the three was told that it is new, and it is the one whose time is stored.
    told = {place: [number for number in range(3) if answers[number][place]] for place in range(60)}
    stored = {int(found.key.task_id[1:]): [int(found.stored_unix_s)] for found in store.outcomes("run-1")}
    assert told == stored
    assert Counter(len(numbers) for numbers in told.values()) == {1: 60}
    store.close()


def test_one_killed_in_a_transaction_leaves_no_half_record(store_url: str) -> None:
    store = MeasurementStore.open(store_url)
    store.create_run(run_record())
    store.put_tasks([task_record("t1")])
    with StoreProcess.several(1, store_url, "half", "once") as (process,):
        process.go()
        assert process.answer() == "half"
        assert store.outcomes("run-1") == []
    # Killed on leaving the block: the result is not there, holds up nobody, and can be stored.
    assert store.outcomes("run-1") == []
    assert store.add_outcome(TaskKey(task_id="t1", attempt=1), MEASUREMENT, 2.0)
    assert [found.stored_unix_s for found in store.outcomes("run-1")] == [2.0]
    store.close()


def test_a_run_is_worked_on_by_one_coordinator_until_it_is_gone(
    store_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = MeasurementStore.open(store_url)
    store.create_run(run_record())
    store.put_devices([DeviceRecord("run-1", "pi4", SETTING, INFO)])
    resume = ("search", "--store", store_url, "--broker", "localhost", "--resume")
    with StoreProcess.several(2, store_url, "claim", "once") as (first, second):
        first.go()
        assert first.answer() == [True, True]
        second.go()
        assert second.answer() == [False, False]
        assert store.claim_run("run-2")
        code, _, err = fleetnas(capsys, *resume, "run-1")
        assert code == 2
        assert "another coordinator works on run run-1" in err
        code, _, err = fleetnas(capsys, *resume)
        assert code == 2
        assert "no interrupted run of fleet 'default' that nobody works on" in err
    # Killed, they hold nothing any more, as soon as the database has noticed.
    until(lambda: store.claim_run("run-1"))
    store.close()
    with StoreProcess.several(1, store_url, "claim", "once") as (third,):
        third.go()
        assert third.answer() == [True, True]
