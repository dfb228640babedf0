"""Python's own cost of a result, without any search: the floor under `fleet.py`.

A result of usual size and the `accepted` before it are read from mosquitto through paho-mqtt in one thread, and parsed
as the coordinator parses them. The result is written to SQLite as one row (a hundred per transaction, with a sync), and
the next task is encoded and published. Processor time of that one process per result.
"""

from __future__ import annotations

import argparse
import json
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import paho.mqtt.client as paho
from light_agents import Fleet, field, packet
from paho.mqtt.enums import CallbackAPIVersion

from fleetnas.fleet_protocol.codec import decode_task_update, encode
from fleetnas.fleet_protocol.messages import Result, RuntimeSetting, TaskKey
from fleetnas.fleet_protocol.orders import MeasureTask
from fleetnas.supernet_export.bundle import SupernetBundle

RESULTS = 3000
_PER_TRANSACTION = 100
_TOPIC = "fleetnas/v1/floor/agents/sim00000/up/task"
_ROW = "insert into results values (?, ?, ?, ?, ?, ?)"


def floor_ms_per_result(work: Path, supernet: Path, port: int, results: int = RESULTS) -> float:
    """Processor time per result, ms; `work` is a folder for the table, `port` that of a broker on this machine."""
    task = _task(supernet)
    database = sqlite3.connect(work / "floor.sqlite", isolation_level=None)
    database.executescript(
        "pragma journal_mode=wal; pragma synchronous=full;"
        "create table results (id text primary key, attempt int, median real, noise real, conditions text, times text)"
    )
    rows: list[tuple[object, ...]] = []
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="floor", protocol=paho.MQTTv311)
    client.max_inflight_messages_set(1000)

    def store() -> None:
        database.execute("begin immediate")
        database.executemany(_ROW, rows)
        database.execute("commit")
        rows.clear()

    seen = 0

    def on_message(_: object, __: object, message: paho.MQTTMessage) -> None:
        nonlocal seen
        update = decode_task_update(message.payload)
        if isinstance(update, Result):
            seen += 1
            found = update.measurement
            times, after = json.dumps(found.times_us), found.after.model_dump_json()
            key = f"{update.task.task_id}.{seen}"
            rows.append((key, update.task.attempt, found.median_ms, found.half_width_percent, after, times))
            if len(rows) == _PER_TRANSACTION:
                store()
            client.publish("fleetnas/v1/floor/agents/sim00000/down/task", encode(task), qos=1)

    client.on_message = on_message
    client.connect("127.0.0.1", port)
    subscribed: list[object] = []
    client.on_connect = lambda *_: client.subscribe(_TOPIC, 1)
    client.on_subscribe = lambda *_: subscribed.append(True)
    _loop_until(client, lambda: bool(subscribed))
    command = [sys.executable, str(Path(__file__).resolve()), "--supernet", str(supernet), "--port", str(port)]
    with subprocess.Popen([*command, "--results", str(results)]) as sender:
        _loop_until(client, lambda: seen > 0)
        began_s, before = time.process_time(), seen
        _loop_until(client, lambda: seen >= results)
        used_s = time.process_time() - began_s
        sender.wait()
    client.disconnect()
    database.close()
    return 1000.0 * used_s / (seen - before)


def _loop_until(client: paho.Client, done: Callable[[], bool]) -> None:
    while not done():
        client.loop(0.1)


def _task(supernet: Path) -> MeasureTask:
    space = SupernetBundle.open(supernet).space
    return MeasureTask.model_validate(
        {
            "task": {"task_id": "floor.1", "attempt": 1},
            "run_id": "floor",
            "bundle": {"sha256": "0" * 64, "size": 1},
            "architecture": space.decode(space.smallest())[0].model_dump(),
            "setting": RuntimeSetting().model_dump(),
            "deadline_s": 60.0,
            "stored": [TaskKey(task_id="floor.0", attempt=1).model_dump()],
        }
    )


def be_sender(options: argparse.Namespace) -> int:
    """Send results as one simulated agent."""
    fleet = Fleet(argparse.Namespace(**vars(options), host="", fleet="floor", task_s=0.0, first=0, agents=1))
    agent, task = fleet.agents[0], json.loads(encode(_task(options.supernet)))
    topic, result = field(_TOPIC.encode()), agent.result(task)
    accepted = b'{"task":{"task_id":"floor.1","attempt":1},"schema_version":1,"kind":"accepted"}'
    with socket.create_connection(("127.0.0.1", options.port)) as broker:
        broker.sendall(packet(0x10, field(b"MQTT") + bytes([4, 2]) + (600).to_bytes(2, "big") + field(b"sender")))
        broker.recv(4)
        for number in range(options.results):
            identifier = (1 + number % 60_000).to_bytes(2, "big")
            broker.sendall(packet(0x30, topic + accepted) + packet(0x32, topic + identifier + result))
        left = 4 * options.results  # of acknowledgements
        while left > 0:
            left -= len(broker.recv(65_536)) or left
    return 0


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--supernet", type=Path, required=True)
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--results", type=int, required=True)
    sys.exit(be_sender(arguments.parse_args()))
