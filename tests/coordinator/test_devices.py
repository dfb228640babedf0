"""`fleetnas devices` on a real broker, with agents in every state."""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from rigs import brokers, waiting
from rigs.command_line import fleetnas

from fleetnas.coordinator.cli.devices import fleet_rows
from fleetnas.coordinator.monitoring.fleet_observer import FleetObserver
from fleetnas.coordinator.monitoring.publisher import Publisher
from fleetnas.coordinator.records.snapshot import DeviceSnapshot, Snapshot
from fleetnas.coordinator.security.authority import Authority
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.codec import encode
from fleetnas.fleet_protocol.messages import AgentInfo, AgentState, Conditions, Heartbeat, RuntimeSetting
from fleetnas.fleet_protocol.orders import CoordinatorState
from fleetnas.fleet_protocol.topics import Topics
from fleetnas.fleet_protocol.transports.base import Received
from fleetnas.fleet_protocol.transports.memory import MemoryBroker
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport
from fleetnas.fleet_protocol.updates import RunSummary

TOPICS = Topics()
VERSION = metadata.version("fleetnas")
NOW = datetime.datetime.now(datetime.timezone.utc)


class Shelf:
    """A broker with whoever is to be there; everything retained, as agents and coordinators leave it."""

    def __init__(self, broker: brokers.Mosquitto) -> None:
        self.broker = broker
        self.transport = MqttTransport(broker.address, "shelf")
        self.transport.start()
        self.transport.wait_connected(waiting.STALL_S)

    def agent(self, name: str, state: str = "ready", version: str = VERSION, waits_for: str = "") -> None:
        profile = DeviceProfile(model="Raspberry Pi 4", machine="aarch64", cores=4)
        info = AgentInfo(
            agent=name, session=1, profile=profile, settings=(RuntimeSetting(),), versions={"fleetnas": version}
        )
        said = AgentState.model_validate({"state": state, "session": 1, "instance": f"{name}-1", "detail": waits_for})
        self.transport.publish(TOPICS.up(name, "info"), encode(info), retain=True)
        self.transport.publish(TOPICS.up(name, "state"), encode(said), retain=True)

    def run(self, *devices: DeviceSnapshot) -> None:
        """A run at work in which these take part."""
        self.transport.publish(TOPICS.coordinator, encode(CoordinatorState(state="ready", session=1)), retain=True)
        snapshot = Snapshot("run-1", "digits.supernet", 0.0, 1.0, "searching", devices)
        Publisher(self.transport, TOPICS, "run-1", lambda: 0.0).update(snapshot)

    def arrived(self) -> None:
        """Everything that was published is on the broker."""
        self.transport.subscribe("done")
        self.transport.publish("done", b"", retain=False)
        waiting.first(self.transport, lambda event: isinstance(event, Received) and event.topic == "done")


@pytest.fixture
def shelf(mosquitto_broker: brokers.Mosquitto) -> Iterator[Shelf]:
    made = Shelf(mosquitto_broker)
    yield made
    made.transport.close()


def listed(shelf: Shelf, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, dict[str, Any]]:
    shelf.arrived()
    address = str(shelf.broker.address)
    code, out, err = fleetnas(capsys, "devices", "--broker", address, "--wait", "1.5", "--json", *options)
    assert code == 0, err
    return {row["device"]: row for row in map(json.loads, out.splitlines())}


def device(name: str, state: str, detail: str = "", **fields: Any) -> DeviceSnapshot:
    return DeviceSnapshot(name, "onnxruntime_cpu_1t_fp32", state, detail, **fields)  # type: ignore[arg-type]


def test_without_a_search_everyone_is_listed_with_what_to_do(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    shelf.agent("ready")
    shelf.agent("busy", "busy")
    shelf.agent("left", "leaving")
    shelf.agent("lost", "lost")
    shelf.agent("old", version="0.0.1")
    shelf.agent("empty", "busy", waits_for="battery at 9 %, below 30 %: plug the device in")
    shelf.transport.publish(TOPICS.up("unreadable", "state"), b'{"schema_version":9}', retain=True)
    found = listed(shelf, capsys)
    assert {name: row["state"] for name, row in found.items()} == {
        "ready": "ready",
        "busy": "busy",
        "left": "leaving",
        "lost": "lost",
        "old": "ready",
        "empty": "busy",
        "unreadable": "unreadable",
    }
    assert "no search is at work" in found["ready"]["why"]
    assert "fleetnas search" in found["ready"]["why"]
    assert "working" in found["busy"]["why"]
    assert "stopped by its user" in found["left"]["why"]
    assert "last will" in found["lost"]["why"]
    assert found["empty"]["why"] == "waiting: battery at 9 %, below 30 %: plug the device in"
    assert "0.0.1" in found["old"]["why"]
    assert "update" in found["old"]["why"]
    assert "version 9 of the wire contract" in found["unreadable"]["why"]
    assert found["ready"]["model"] == "Raspberry Pi 4"
    assert all(row["last_seen_s_ago"] is None for row in found.values())


def test_in_a_search_each_says_how_it_stands_there(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("at-work", "finished", "given-up", "left-out", "failing"):
        shelf.agent(name)
    shelf.run(
        device("at-work", "measuring", "candidate abc", measurements=3, budget=40),
        device("finished", "done"),
        device("given-up", "failed", "it refuses tasks (not_trusted): its key is another"),
        device("failing", "idle", measurements=1, budget=40, failures=5, quarantined=2),
    )
    found = listed(shelf, capsys)
    assert "measuring: candidate abc, 3 of 40 measured" in found["at-work"]["why"]
    assert "run-1 onnxruntime_cpu_1t_fp32 done" in found["finished"]["why"]
    assert found["given-up"]["why"].endswith("failed: it refuses tasks (not_trusted): its key is another")
    assert "2 subnets left alone after failing twice" in found["failing"]["why"]
    assert "takes no part in run-1" in found["left-out"]["why"]


def test_who_is_enrolled_and_never_came_is_listed_and_who_is_not_enrolled_is_told(
    shelf: Shelf, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    authority = Authority.create(tmp_path / "authority", fleet="default", hosts=["localhost"], now=NOW)
    long_ago = NOW - datetime.timedelta(days=20_000)
    for name, when in (("here", NOW), ("asleep", NOW), ("expired", long_ago), ("watcher", NOW)):
        authority.enroll(name, tmp_path / f"{name}.credentials", when)
    shelf.agent("here")
    shelf.agent("stranger")
    found = listed(shelf, capsys, "--authority", str(tmp_path / "authority"))
    assert set(found) == {"here", "asleep", "expired", "stranger"}
    assert found["asleep"]["state"] == "absent"
    assert "never seen" in found["asleep"]["why"]
    assert "expired" in found["expired"]["why"]
    assert "--renew" in found["expired"]["why"]
    assert "not enrolled" in found["stranger"]["why"]
    assert "enrolled" not in found["here"]["why"]


def test_the_table_is_for_people(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    shelf.agent("pi4")
    shelf.arrived()
    code, out, _ = fleetnas(capsys, "devices", "--broker", str(shelf.broker.address), "--wait", "1.5")
    assert code == 0
    assert "pi4" in out
    assert "ready" in out


def test_a_large_fleet_is_heard_to_its_last_retained_message() -> None:
    broker, fleet = MemoryBroker(), [f"pi{number}" for number in range(9)]
    sender = broker.transport("fleet")
    sender.start()
    for name in fleet:
        state = AgentState(state="ready", session=1, instance=f"{name}-1")
        sender.publish(TOPICS.up(name, "state"), encode(state), retain=True)
    times = itertools.count(0.0, 0.3)
    fleet_observer = FleetObserver(TOPICS)
    fleet_observer.listen(broker.transport("listener"), 1.0, lambda: next(times))
    assert sorted(fleet_observer.registry.agents) == fleet


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Heartbeat(session=1, uptime_s=1, outbox=3), "3 results"),
        (Heartbeat(session=1, uptime_s=1, task_id="run.7"), "working on run.7"),
    ],
)
def test_a_heartbeat_tells_what_an_agent_waits_for(message: Heartbeat, words: str) -> None:
    fleet_observer = FleetObserver(TOPICS)

    def hear(topic: str, payload: bytes) -> None:
        fleet_observer.take(Received(topic, payload), 5.0)

    profile = DeviceProfile(model="phone", machine="aarch64", cores=8)
    info = AgentInfo(agent="pi", session=1, profile=profile, settings=(RuntimeSetting(),), versions={})
    hear(TOPICS.up("pi", "info"), encode(info))
    hear(TOPICS.up("pi", "state"), encode(AgentState(state="ready", session=1, instance="a")))
    hear(
        TOPICS.up("pi", "heartbeat"), encode(message.model_copy(update={"conditions": Conditions(temperature_c=51.0)}))
    )
    entry = fleet_observer.registry.agents["pi"]
    assert words in fleet_observer.explain(entry, VERSION)
    assert entry.conditions.temperature_c == 51.0
    assert entry.last_seen_s == 5.0


@pytest.mark.parametrize(
    ("again", "until_s", "words"),
    [
        (None, 1.0, "it takes no part in run-1"),  # too early to tell
        (None, 2.5, "no word came from the coordinator of run-1"),
        ("summary", 2.5, "it takes no part in run-1"),
        ("", 2.5, "no search is at work"),
    ],
)
def test_what_a_killed_coordinator_left_is_no_search_at_work(again: str | None, until_s: float, words: str) -> None:
    fleet_observer = FleetObserver(TOPICS, until_s=until_s)
    said = AgentState.model_validate({"state": "ready", "session": 1, "instance": "pi-1"})
    profile = DeviceProfile(model="Raspberry Pi 4", machine="aarch64", cores=4)
    info = AgentInfo(agent="pi", session=1, profile=profile, settings=(RuntimeSetting(),), versions={})
    summary = encode(
        RunSummary.model_validate(
            {
                "run_id": "run-1",
                "state": "running",
                "supernet": "x",
                "phase": "searching",
                "started_unix_s": 0,
                "at_unix_s": 1,
                "settings": 0,
                "pages": 0,
            }
        )
    )
    fleet_observer.take(Received(TOPICS.up("pi", "state"), encode(said), retained=True), 0.0)
    fleet_observer.take(Received(TOPICS.up("pi", "info"), encode(info), retained=True), 0.0)
    fleet_observer.take(Received(TOPICS.run_summary("run-1"), summary, retained=True), 0.0)
    if again is not None:
        fleet_observer.take(Received(TOPICS.run_summary("run-1"), summary if again else b""), 1.0)
    assert words in fleet_observer.explain(fleet_observer.registry.agents["pi"], VERSION)


def test_an_agent_without_a_heartbeat_is_silent_whatever_the_broker_remembers() -> None:
    observer = FleetObserver(TOPICS)
    profile = DeviceProfile(model="Raspberry Pi 4", machine="aarch64", cores=4)
    for name in ("alive", "ghost"):
        info = AgentInfo(agent=name, session=1, profile=profile, settings=(RuntimeSetting(),), versions={})
        state = AgentState(state="ready", session=1, instance=f"{name}-1")
        observer.take(Received(TOPICS.up(name, "info"), encode(info), True), 0.0)
        observer.take(Received(TOPICS.up(name, "state"), encode(state), True), 0.0)
    observer.take(Received(TOPICS.up("alive", "heartbeat"), encode(Heartbeat(session=1, uptime_s=1.0)), False), 30.0)
    for listened_s, expected in ((2.5, ["ready", "ready"]), (35.0, ["ready", "silent"])):
        rows = fleet_rows(observer, None, 35.0, listened_s)
        assert [row["state"] for row in rows] == expected
    assert "start fleetnas-agent" in rows[1]["why"]


def test_tags_and_equal_boards_are_shown(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    profile = DeviceProfile(model="Raspberry Pi 4", machine="aarch64", cores=4)
    for place, name in enumerate(("pi0", "pi1", "alone")):
        info = AgentInfo(
            agent=name,
            session=1,
            profile=profile,
            settings=(RuntimeSetting(),),
            versions={"fleetnas": VERSION},
            tags=("camera", "class:none") if name == "alone" else ("camera",),
            host=f"{place:016x}",
        )
        shelf.transport.publish(TOPICS.up(name, "info"), encode(info), retain=True)
        said = AgentState(state="ready", session=1, instance=f"{name}-1")
        shelf.transport.publish(TOPICS.up(name, "state"), encode(said), retain=True)
    found = listed(shelf, capsys)
    assert found["pi0"]["tags"] == ["camera"]
    assert found["pi0"]["equal_boards"] == found["pi1"]["equal_boards"] == ["pi0", "pi1"]
    assert found["alone"]["equal_boards"] == []
    code, out, _ = fleetnas(capsys, "devices", "--broker", str(shelf.broker.address), "--wait", "1.5")
    assert code == 0
    assert "one of 2 equal boards" in out
    assert "tags: camera" in out
