"""A coordinator, a mosquitto and agents as processes of their own, killed and started again by a test.

The agents' measuring child and `command` runtime are real; the program that it runs stands in for the device, so that
a subnet's latency is the same whoever measures it and how often.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from fleetnas.coordinator.records.stored import OutcomeRecord
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.codec import decode_task_update
from fleetnas.fleet_protocol.messages import Failed, Measurement, Result, TaskKey
from fleetnas.fleet_protocol.transports.base import BrokerAddress
from rigs import brokers, stand_in_device
from rigs.untrained_supernet import write_untrained
from rigs.waiting import until

T = TypeVar("T")
#: As short as a measurement can be.
QUICK = ("--warmup", "0", "--min-time", "0", "--min-runs", "5")
_PROGRAMS = {
    # Nothing is really timed here, so it need not yield to measurements of the same machine.
    "coordinator": (
        "import logging; logging.basicConfig(level='INFO'); "
        "import fleetnas.coordinator.app.priority as p; p.yield_to_measurements = lambda: None; "
        "from fleetnas.coordinator.cli import main; main()"
    ),
    "agent": "from fleetnas.agent.cli.main import main; main()",
}
_TASK_TOPICS = ("agents/+/up/task", "agents/+/down/task", "agents/+/down/ack")


class Observer:
    """A subscriber of its own on the broker: what is said about tasks, in order."""

    def __init__(self, address: BrokerAddress) -> None:
        self.messages: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._address = address
        self._client: paho.Client | None = None
        self.connect()

    def connect(self) -> None:
        """Connect, again where the broker was killed; returns once every subscription is in force."""
        self.close()
        subscribed = threading.Event()
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.on_message = lambda _, __, message: self.messages.put((message.topic, message.payload))
        client.on_subscribe = lambda *_: subscribed.set()
        client.connect(self._address.host, self._address.port)
        client.loop_start()
        client.subscribe([(f"fleetnas/v1/default/{topic}", 1) for topic in _TASK_TOPICS])
        until(subscribed.is_set, what="the broker answers no subscription")
        self._client = client

    def next(self) -> tuple[str, bytes] | None:
        """What was said next, if anything was."""
        with contextlib.suppress(queue.Empty):
            return self.messages.get_nowait()
        return None

    def close(self) -> None:
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()


@dataclass
class FaultFleet:
    """One campaign's processes in one folder."""

    folder: Path
    mosquitto: brokers.Mosquitto
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    starts: int = 0
    store_folder: Path | None = None
    """Where the store is, if not in `folder`."""

    @property
    def store(self) -> Path:
        return (self.store_folder or self.folder) / "runs.sqlite"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def start_agent(
        self,
        name: str,
        *,
        factor: float = 1.0,
        broker: str | None = None,
        keepalive_s: int | None = None,
        clock_ahead_s: float = 0.0,
    ) -> None:
        """`factor` says how slow its device is."""
        program = [sys.executable, "-S", "-E", stand_in_device.__file__, "{model}", str(factor), "{runs}"]
        environment = {
            "FLEETNAS_COMMAND": " ".join(program),
            # Each is a device of its own: they need not wait for one another.
            "FLEETNAS_HOST_LOCK": str(self.folder / f"{name}.lock"),
        }
        state = ("--state-dir", str(self.folder / f"state-{name}"), "--runtime", "command")
        address = broker or str(self.mosquitto.address)
        set_up = _clock_ahead(clock_ahead_s)
        if keepalive_s is not None:
            set_up += f"import fleetnas.fleet_protocol.transports.mqtt as mqtt; mqtt.KEEPALIVE_S = {keepalive_s}; "
        arguments = ("run", "--broker", address, "--name", name, *state)
        self._start(name, set_up + _PROGRAMS["agent"], *arguments, **environment)

    def start_search(self, *options: str, broker: str | None = None) -> None:
        """A new run on the bundle of this folder."""
        supernet = self.folder / "untrained.supernet"
        if not supernet.exists():
            write_untrained(supernet)
        self._search("--supernet", str(supernet), *QUICK, *options, broker=broker)

    def resume_search(self, *, clock_ahead_s: float = 0.0) -> None:
        """Go on with the stored run."""
        self._search("--resume", clock_ahead_s=clock_ahead_s)

    def _search(self, *options: str, broker: str | None = None, clock_ahead_s: float = 0.0) -> None:
        where = ("--broker", broker or str(self.mosquitto.address), "--store", str(self.store), "--out", str(self.out))
        program = _clock_ahead(clock_ahead_s) + _PROGRAMS["coordinator"]
        self._start("coordinator", program, "search", *where, "--json", *options)

    def _start(self, name: str, program: str, *arguments: str, **environment: str) -> None:
        self.starts += 1
        with (
            (self.folder / f"{self.starts:03}-{name}.log").open("wb") as log,
            (self.folder / f"{self.starts:03}-{name}.out").open("wb") as out,
        ):
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-c", program, *arguments],
                stdout=out,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment},
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """Without a chance to say goodbye."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def close(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    def wait_search(self) -> int:
        """The exit code of the search, once it has ended."""
        self.until(lambda: self.processes["coordinator"].poll() is not None)
        return self.processes["coordinator"].wait()

    def until(self, condition: Callable[[], T]) -> T:
        """Wait for what its processes do, as long as they do anything; returns what was waited for."""
        return until(condition, self.folder, *self.processes.values(), what=self._last_words)

    def _last_words(self) -> dict[str, str]:
        return {name: self.said(name)[-500:] for name in self.processes}

    # -- what came of it ---------------------------------------------------------------------------------------

    def events(self) -> list[dict[str, Any]]:
        """What the searches said, all of them in order; a line that a kill cut short is left out."""
        found = []
        for path in sorted(self.folder.glob("*-coordinator.out")):
            for line in path.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    found.append(json.loads(line))
        return found

    def said(self, name: str) -> str:
        """Standard output and error of every process of that name."""
        return "".join(path.read_text() for path in sorted(self.folder.glob(f"*-{name}.[lo]*")))

    def stored(self) -> list[OutcomeRecord]:
        """Every stored outcome."""
        store = MeasurementStore.open(self.store)
        try:
            (run,) = store.runs()
            return store.outcomes(run.run_id)
        finally:
            store.close()

    def results(self) -> dict[str, Any]:
        """`results.json`."""
        found: dict[str, Any] = json.loads((self.out / "results.json").read_text())
        return found

    def outbox(self, name: str) -> dict[TaskKey, tuple[Result | Failed, bool]]:
        """What an agent measured and whether that was acknowledged to it, as its disk has it."""
        path = self.folder / f"state-{name}" / "fleets" / "default" / name / "outbox.sqlite"
        if not path.exists():
            return {}
        with contextlib.closing(sqlite3.connect(path)) as database:
            made = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'results'").fetchone()
            rows = database.execute("SELECT payload, acknowledged FROM results").fetchall() if made else []
        found = {}
        for payload, acknowledged in rows:
            update = decode_task_update(payload)
            assert isinstance(update, Result | Failed)
            found[update.task] = (update, bool(acknowledged))
        return found

    def agents(self) -> list[str]:
        """Everyone who ever measured."""
        return sorted(path.name.removeprefix("state-") for path in self.folder.glob("state-*"))


def _clock_ahead(seconds: float) -> str:
    """Python that shifts a process's wall clock; its monotonic clock stays as it is."""
    return f"import time; t = time.time; time.time = lambda: t() + {seconds}; " if seconds else ""


@contextlib.contextmanager
def fault_fleet(folder: Path) -> Iterator[FaultFleet]:
    """A running mosquitto and nobody else yet; everything is gone at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with brokers.mosquitto(folder) as mosquitto:
        fleet = FaultFleet(folder, mosquitto)
        try:
            yield fleet
        finally:
            fleet.close()


def assert_nothing_lost_nothing_twice(fleet: FaultFleet) -> None:
    """Every acknowledged outcome is in the store exactly once and as it was measured; nothing else is."""
    stored = fleet.stored()
    by_key = {record.key: record.outcome for record in stored}
    assert len(by_key) == len(stored)
    measured: dict[TaskKey, Result | Failed] = {}
    acknowledged = 0
    for name in fleet.agents():
        for key, (update, was_acknowledged) in fleet.outbox(name).items():
            assert key not in measured
            measured[key] = update
            acknowledged += was_acknowledged
            if was_acknowledged:
                assert by_key.get(key) == (update.measurement if isinstance(update, Result) else update), key
    assert acknowledged
    # A failure may be the coordinator's own verdict on a lost lease; a measurement has always been made.
    invented = [key for key, outcome in by_key.items() if isinstance(outcome, Measurement) and key not in measured]
    assert not invented
    # An attempt may be repeated where its agent was killed; a task counts once.
    counted = [event["task_id"] for event in fleet.events() if event["event"] == "measurement"]
    assert len(counted) == len(set(counted))
