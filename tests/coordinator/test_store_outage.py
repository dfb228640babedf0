"""A campaign whose store cannot be written for a while: nothing is acknowledged, nothing is lost, and it goes on."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rigs.postgresql import PostgreSQL, on_postgresql
from rigs.simulated_fleet import TOPICS, Simulation, acknowledged_in
from rigs.store_examples import MEASUREMENT, run_record, task_record

from fleetnas.coordinator.records.events import CampaignFinished, StoreAvailable, StoreUnavailable
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.stored import Arrival
from fleetnas.coordinator.store.database import Database
from fleetnas.coordinator.store.migration import bring_up_to_date
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.view.lines import event_line
from fleetnas.fleet_protocol.codec import decode_task_update
from fleetnas.fleet_protocol.errors import StoreUnavailableError
from fleetnas.fleet_protocol.messages import Measurement, Result, TaskKey
from fleetnas.fleet_protocol.topics import AgentUp

PLAN = CampaignPlan(targets="auto:2", budget=12, initial_design=8, wait_for=2, grace_s=60, join_s=60, deadline_s=60)


class Disk:
    """SQLite's own limit on the size of its file stands for the disk's: it answers just as a full disk does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def _pragma(self, statement: str) -> int:
        with self._database.reading() as session:
            return int(session.connection().exec_driver_sql(f"PRAGMA {statement}").scalar_one())

    def fill(self) -> None:
        """No page more than there are."""
        self._pragma(f"max_page_count={self._pragma('page_count')}")

    def make_room(self) -> None:
        self._pragma("max_page_count=1000000")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(str(tmp_path / "runs.sqlite"))
    bring_up_to_date(database)
    yield database
    database.close()


@pytest.fixture
def store(database: Database) -> MeasurementStore:
    return MeasurementStore(database)


def until_full(store: MeasurementStore) -> int:
    """Store results until there is no room; returns how many went in."""
    stored = 0

    def fill() -> None:
        nonlocal stored
        for number in range(10_000):
            store.put_tasks([task_record(f"t{number}")])
            store.add_outcome(TaskKey(task_id=f"t{number}", attempt=1), MEASUREMENT, 1.0)
            stored += 1

    with pytest.raises(StoreUnavailableError, match="disk is full; free some space") as refused:
        fill()
    assert "\n" not in str(refused.value)
    return stored


def test_a_full_disk_refuses_what_does_not_fit_and_keeps_what_did(store: MeasurementStore, database: Database) -> None:
    store.create_run(run_record())
    disk = Disk(database)
    disk.fill()
    fitted = until_full(store)
    batch = [task_record(f"u{number}") for number in range(200)]
    with pytest.raises(StoreUnavailableError):
        store.put_tasks(batch)
    assert not [task for task in store.tasks("run-1") if task.task_id.startswith("u")]
    assert len(store.outcomes("run-1")) == fitted
    disk.make_room()
    store.put_tasks(batch)
    arrivals = [Arrival(TaskKey(task_id=task.task_id, attempt=1), MEASUREMENT, 2.0) for task in batch]
    assert store.add_outcomes(arrivals) == [True] * 200
    assert len(store.outcomes("run-1")) == fitted + 200


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; skipped where none may be mounted."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_file_system_that_is_really_full(tiny_disk: Path) -> None:
    store = MeasurementStore.open(tiny_disk / "runs.sqlite")
    store.create_run(run_record())
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(b"x" * 300_000)
    fitted = until_full(store)
    assert len(store.outcomes("run-1")) == fitted > 0
    ballast.unlink()
    assert store.add_outcome(TaskKey(task_id=f"t{fitted - 1}", attempt=2), MEASUREMENT, 2.0)
    assert len(store.outcomes("run-1")) == fitted + 1
    store.close()


class Witness:
    """What was acknowledged, and whether it was in the store by then."""

    def __init__(self, simulation: Simulation) -> None:
        self.acknowledged: Counter[TaskKey] = Counter()
        self.unstored: list[TaskKey] = []
        self.sent: Counter[TaskKey] = Counter()
        publish = simulation.broker.publish

        def listen(topic: str, payload: bytes, **options: bool) -> None:
            for key in acknowledged_in(topic, payload):
                self.acknowledged[key] += 1
                if key not in {found.key for found in simulation.store.outcomes(simulation.run_id)}:
                    self.unstored.append(key)
            address = TOPICS.parse(topic)
            if isinstance(address, AgentUp) and address.channel == "task":
                update = decode_task_update(payload)
                if isinstance(update, Result):
                    self.sent[update.task] += 1
            publish(topic, payload, **options)

        simulation.broker.publish = listen  # type: ignore[method-assign]


def check_campaign_survives(store: MeasurementStore, break_store: Callable[[], None], mend: Callable[[], None]) -> None:
    """A campaign of two devices, its store away for 100 s in the middle."""
    fleet = Simulation(PLAN, store=store)
    for seed in range(2):
        fleet.add(f"pi{seed}", seed=seed)
    witness = Witness(fleet)
    fleet.begin()
    fleet.run(until=lambda: sum(witness.acknowledged.values()) >= 6)
    break_store()
    told, acknowledged = set(witness.sent), set(witness.acknowledged)
    for _ in range(100):
        fleet.step()
        if any(isinstance(event, StoreUnavailable) for event in fleet.events):
            break
    before = set(witness.acknowledged)
    for _ in range(100):
        fleet.step()
    # Agents finish what they have and get nothing new; nothing is acknowledged, and no device is given up.
    assert set(witness.acknowledged) == before
    assert set(witness.sent) - told
    assert len(set(witness.sent) - before) <= 4
    assert acknowledged <= before
    assert not fleet.campaign.finished
    (away,) = [event for event in fleet.events if isinstance(event, StoreUnavailable)]
    line = event_line(away)
    assert line is not None
    assert "\n" not in line
    assert "agents keep their results" in line
    mend()
    fleet.run()
    assert fleet.campaign.finish() == "complete"
    (back,) = [event for event in fleet.events if isinstance(event, StoreAvailable)]
    assert 90 <= back.away_s <= 120
    assert isinstance(fleet.events[-1], CampaignFinished)
    # Every result that an agent ever sent is stored once and acknowledged, and each only after it was stored.
    outcomes = store.outcomes("run-1")
    stored = Counter(found.key for found in outcomes if isinstance(found.outcome, Measurement))
    assert stored == Counter(dict.fromkeys(witness.sent, 1))
    assert set(witness.acknowledged) == set(witness.sent)
    assert not witness.unstored
    assert not any(agent.outbox for agent in fleet.agents)
    assert len(outcomes) == len(stored)
    # No subnet was measured twice for it.
    assert {found.key.attempt for found in outcomes} == {1}


def test_a_campaign_waits_for_room_on_a_full_disk(store: MeasurementStore, database: Database) -> None:
    disk = Disk(database)
    check_campaign_survives(store, disk.fill, disk.make_room)


@on_postgresql
def test_a_campaign_waits_for_its_server(postgresql_server: PostgreSQL, postgresql_url: str) -> None:
    store = MeasurementStore.open(postgresql_url)
    try:
        check_campaign_survives(store, postgresql_server.stop, postgresql_server.start)
    finally:
        if postgresql_server.process is None:
            postgresql_server.start()
        store.close()
