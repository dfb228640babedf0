"""A coordinator's store in a process of its own, told by a test when to begin and where to be killed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent.parent


class StoreProcess:
    """One process; it says when it is ready, and waits for `go`."""

    def __init__(self, url: str, action: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, url, action, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.arguments = arguments

    @classmethod
    @contextlib.contextmanager
    def several(cls, count: int, url: str, action: str, *arguments: str) -> Iterator[list[StoreProcess]]:
        """Processes that are all ready; what is left of them is killed at the end."""
        processes = [cls(url, action, *arguments, *([str(number)] if arguments else [])) for number in range(count)]
        try:
            for process in processes:
                assert process.answer() == "ready"
            yield processes
        finally:
            for process in processes:
                process.kill()

    def go(self) -> None:
        """Let it begin."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def answer(self) -> object:
        """What it says next."""
        from rigs import waiting  # the process itself, which runs this file too, does without

        line = waiting.line(self.process)
        assert line, f"process {self.arguments} ended without a word"
        return json.loads(line)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _wait() -> None:
    sys.stdin.readline()


def _open(url: str) -> None:
    _say("ready")
    _wait()
    MeasurementStore.open(url)
    _say("opened")
    _wait()


def _write(url: str, count: str, number: str) -> None:
    """A run of its own: tasks, batches and single results."""
    store = MeasurementStore.open(url)
    _say("ready")
    _wait()
    run_id = f"run-{number}"
    store.create_run(run_record(run_id, float(number)))
    new = 0
    for place in range(int(count)):
        keys = [TaskKey(task_id=f"{run_id}.{place}.{part}", attempt=1) for part in range(3)]
        store.put_tasks([task_record(key.task_id, run_id) for key in keys])
        store.put_devices([DeviceRecord(run_id, "pi4", SETTING, INFO, wire_bytes=place)])
        new += sum(store.add_outcomes([Arrival(key, MEASUREMENT, float(place)) for key in keys[:2]]))
        new += store.add_outcome(keys[2], MEASUREMENT, float(place))
    store.put_winners([WinnerRecord(run_id, "pi4", SETTING.label, 2.5, TargetStatus.MET, note=str(number))])
    store.set_run_status(run_id, RunStatus.COMPLETE, 9.0)
    _say(new)
    _wait()


def _repeat(url: str, count: str, number: str) -> None:
    """The same results as everybody else, half of them one by one."""
    store = MeasurementStore.open(url)
    _say("ready")
    _wait()
    keys = [TaskKey(task_id=f"t{place}", attempt=1) for place in range(int(count))]
    half = len(keys) // 2
    fresh = [store.add_outcome(key, MEASUREMENT, float(number)) for key in keys[:half]]
    _say([*fresh, *store.add_outcomes([Arrival(key, MEASUREMENT, float(number)) for key in keys[half:]])])
    _wait()


def _claim(url: str, *_: str) -> None:
    """Works on a run, or finds that somebody else does."""
    store = MeasurementStore.open(url)
    _say("ready")
    _wait()
    _say([store.claim_run("run-1"), store.claim_run("run-1")])
    _wait()
    del store


def _stop_half_way(url: str, *_: str) -> None:
    """Stores a result, and stops between the outcome's row and its measurement's."""
    store = MeasurementStore.open(url)

    def stop(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO measurements"):
            _say("half")
            _wait()

    event.listen(Engine, "before_cursor_execute", stop)
    _say("ready")
    _wait()
    store.add_outcome(TaskKey(task_id="t1", attempt=1), MEASUREMENT, 1.0)
    _say("whole")


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER))
    from sqlalchemy import Engine, event

    from fleetnas.coordinator.records.statuses import RunStatus
    from fleetnas.coordinator.records.stored import Arrival, DeviceRecord, WinnerRecord
    from fleetnas.coordinator.records.target_status import TargetStatus
    from fleetnas.coordinator.store.store import MeasurementStore
    from fleetnas.fleet_protocol.messages import TaskKey
    from rigs.store_examples import INFO, MEASUREMENT, SETTING, run_record, task_record

    actions = {"open": _open, "write": _write, "repeat": _repeat, "half": _stop_half_way, "claim": _claim}
    actions[sys.argv[2]](sys.argv[1], *sys.argv[3:])
