"""Real processes: broker, agents and coordinator, each killed where a test wants it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleetnas.coordinator.app.embedded_broker import EmbeddedBroker
from fleetnas.coordinator.records.stored import OutcomeRecord
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.messages import TaskKey
from rigs import waiting
from rigs.brokers import QUICK_RETURN
from rigs.untrained_supernet import write_untrained

#: As short as a measurement can be: what is tested is who measures, not how well.
QUICK = ("--warmup", "0", "--min-time", "0.02", "--min-runs", "5", "--deadline", "600")
#: Times that follow from the model file alone: whether a target is met must not depend on what else this machine does.
_STAND_IN = Path(__file__).resolve().parent / "stand_in_device.py"
_COMMAND = f"{sys.executable} -S -E {_STAND_IN} {{model}} 1.0 {{runs}}"
_LAUNCH = {
    # Nothing is really timed here, so it need not yield to measurements of the same machine.
    "fleetnas": (
        "import fleetnas.coordinator.app.priority as p; p.yield_to_measurements = lambda: None; "
        f"{QUICK_RETURN}from fleetnas.coordinator.cli import main; main()"
    ),
    "fleetnas-agent": f"{QUICK_RETURN}from fleetnas.agent.cli.main import main; main()",
}


@dataclass
class Fleet:
    """A broker on this machine and whatever was started on it."""

    folder: Path
    broker: EmbeddedBroker
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def supernet(self) -> Path:
        return self.folder / "untrained.supernet"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def agent(self, name: str, *options: str, code: Path | None = None) -> subprocess.Popen[str]:
        """An agent that runs the package `fleetnas` in the folder `code`, or the installed one."""
        state = str(self.folder / "agents")
        return self.start(
            "fleetnas-agent",
            "run",
            "--broker",
            str(self.broker.address),
            "--name",
            name,
            "--state-dir",
            state,
            *("--runtime", "command"),
            *options,
            code=code,
        )

    def search(self, *options: str) -> subprocess.Popen[str]:
        """A search whose events come on its standard output."""
        common = ("--broker", str(self.broker.address), "--store", str(self.folder / "runs.sqlite"), "--json")
        return self.start("fleetnas", "search", *common, "--out", str(self.out), *options, pipe=True)

    def resumed_search(self) -> subprocess.Popen[str]:
        """The run that was interrupted; it knows its broker, and where its results go."""
        store = ("--store", str(self.folder / "runs.sqlite"))
        return self.start("fleetnas", "search", *store, "--json", "--resume", pipe=True)

    def new_search(self, *options: str, targets: str = "auto:2") -> subprocess.Popen[str]:
        return self.search("--supernet", str(self.supernet), "--targets", targets, *QUICK, *options)

    def start(
        self, program: str, *arguments: str, pipe: bool = False, code: Path | None = None
    ) -> subprocess.Popen[str]:
        log = (self.folder / f"{len(self.processes)}-{program}.log").open("w")
        process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH[program], *arguments],
            stdout=subprocess.PIPE if pipe else log,
            stderr=log,
            text=True,
            # A search lowers the priority of its session, and where it is killed, nobody raises it again.
            start_new_session=True,
            cwd=code,
            env={
                **os.environ,
                **({"PYTHONPATH": str(code)} if code is not None else {}),
                "OMP_NUM_THREADS": "1",
                "FLEETNAS_COMMAND": _COMMAND,
                # The lock of this machine's agents would have them wait for other tests.
                "FLEETNAS_HOST_LOCK": str(self.folder / "lock"),
            },
        )
        log.close()
        self.processes.append(process)
        return process

    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "results.json").read_text())
        return found

    def stored(self) -> dict[TaskKey, OutcomeRecord]:
        """Every stored outcome, by task and attempt."""
        store = MeasurementStore.open(self.folder / "runs.sqlite")
        try:
            (run,) = store.runs()
            return {found.key: found for found in store.outcomes(run.run_id)}
        finally:
            store.close()

    def complaints(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*-fleetnas.log")))


@contextlib.contextmanager
def process_fleet(folder: Path) -> Iterator[Fleet]:
    """A fleet in `folder` whose processes are killed at the end."""
    write_untrained(folder / "untrained.supernet")
    with EmbeddedBroker(port=0) as broker:
        started = Fleet(folder, broker)
        try:
            yield started
        finally:
            for process in started.processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()


def events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """What a search says, until it ends."""
    assert process.stdout is not None
    with waiting.watching(process):
        for line in process.stdout:
            yield json.loads(line)


def kill(process: subprocess.Popen[str]) -> None:
    """Without a chance to say goodbye."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
