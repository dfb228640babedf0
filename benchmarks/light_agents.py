"""Simulated agents, a thousand to a process: real MQTT connections, measurements computed instead of timed.

They send the messages of `fleetnas-agent` (state, info, `Inventory`, accepted, progress, result, blob requests;
results are kept and sent again until they are acknowledged), through an MQTT 3.1.1 client of a few dozen lines: what
they use of the machine is missing for the coordinator that is to be measured. A device's latency is linear in the
subnet's features
with noise; devices come in a few models, and every device deviates from its model.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import random
import resource
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from fleetnas.agent.runtimes.timing import MAX_KEPT_TIMES
from fleetnas.agent.service.service import READY_DELAY_S
from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.device_profiles.profile import CpuCluster, DeviceProfile
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.codec import encode
from fleetnas.fleet_protocol.messages import (
    AgentInfo,
    AgentState,
    BlobRequest,
    Heartbeat,
    Inventory,
    RuntimeSetting,
    TaskKey,
)
from fleetnas.fleet_protocol.topics import Topics
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.spaces.base import DesignSpace

#: Kinds of devices; each device's costs are its model's within 10 %.
MODELS = 20
NOISE = 0.01
KEPT_TIMES = MAX_KEPT_TIMES
RESEND_S = 30.0
_KEEPALIVE_S = 600
_HEARTBEAT_S = 30.0
_BLOB_HEADER_BYTES = 40


def field(data: bytes) -> bytes:
    """MQTT's length-prefixed bytes."""
    return len(data).to_bytes(2, "big") + data


def packet(kind: int, body: bytes) -> bytes:
    """One MQTT control packet."""
    length, head = len(body), bytearray([kind])
    while True:
        length, digit = divmod(length, 128)
        head.append(digit | 128 if length else digit)
        if not length:
            return bytes(head) + body


class Device:
    """Latencies of one simulated device."""

    def __init__(self, space: DesignSpace, features: FeatureMap, number: int) -> None:
        model = np.random.default_rng([number % MODELS, 1])
        own = np.random.default_rng([number, 2])
        typical = features.features(space.sample(300, np.random.default_rng(0))).mean(axis=0)
        weights = model.uniform(0.2, 2.0, len(features)) * own.uniform(0.9, 1.1, len(features))
        constant, tables = features.slot_tables(5.0 * weights / np.maximum(typical * len(features), 1e-9))
        self._constant, self._flat = constant, np.concatenate(tables)

    def latency_ms(self, slots: np.ndarray) -> float:
        return self._constant + float(self._flat[slots].sum())


class Subnets:
    """What all agents of a process know of a subnet, by its JSON."""

    def __init__(self, space: DesignSpace) -> None:
        self._space = space
        sizes = [len(costs) for costs in space.slot_costs]
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self._known: dict[str, tuple[np.ndarray, str]] = {}

    def of(self, fields: dict[str, Any]) -> tuple[np.ndarray, str]:
        """Places in a device's table, and the fingerprint."""
        key = str(fields)
        found = self._known.get(key)
        if found is None:
            architecture = Architecture.model_validate(fields)
            slots = self._space.slots(self._space.encode([architecture]))[0] + self._starts
            found = self._known[key] = slots, architecture.fingerprint
        return found


class Statistics:
    """What a process of agents saw."""

    def __init__(self) -> None:
        self.results = self.acknowledged = self.resent = self.connects = self.tasks = 0
        self.bytes_sent = self.bytes_received = 0
        #: Of these, what an agent costs once: joining, and the statistics of winners (blobs).
        self.bytes_once = 0
        self.first_result_s: float | None = None
        #: Seconds from an agent's latest result to the next task.
        self.waits_s: list[float] = []


class LightAgent(asyncio.Protocol):
    """One agent over one connection at a time."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self.fleet, self.name = fleet, f"sim{number:05d}"
        self.device = Device(fleet.space, fleet.features, number)
        self.random = random.Random(number)
        self.prefix = f"{fleet.topics.up(self.name, 'task').rpartition('/')[0]}/".encode()
        self.waiting: deque[dict[str, Any]] = deque()
        self.running: dict[str, Any] | None = None
        self.outbox: dict[tuple[str, int], tuple[float, bytes]] = {}
        self.blobs: set[str] = set()
        self.fetching: str | None = None
        self.busy = False
        self.result_sent_s: float | None = None
        self.transport: asyncio.Transport | None = None
        self.attempts = 0
        self._heartbeat_s = time.monotonic() + self.random.uniform(0.0, _HEARTBEAT_S)
        self._buffer = b""
        self._mid = itertools.cycle(range(1, 65_536))

    # -- connection --------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.fleet.stopped:
            try:
                await loop.create_connection(lambda: self, self.fleet.host, self.fleet.port)
                return
            except OSError:  # noqa: PERF203
                self.attempts += 1
                await asyncio.sleep(self.random.uniform(0.5, 1.5) * min(30.0, 2.0**self.attempts))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self._buffer = transport, b""
        will = encode(AgentState(state="lost", session=1, instance=self.name))
        client = f"fleetnas-{self.fleet.topics.fleet}-{self.name}".encode()
        flags = 0b0010_1110  # clean session; a will, QoS 1, retained
        body = field(b"MQTT") + bytes([4, flags]) + _KEEPALIVE_S.to_bytes(2, "big")
        self.write(packet(0x10, body + field(client) + field(self.prefix + b"state") + field(will)))

    def connection_lost(self, _: Exception | None) -> None:
        self.transport = None
        if not self.fleet.stopped:
            asyncio.get_running_loop().create_task(self.connect())

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.fleet.statistics.bytes_sent += len(data)
            self.transport.write(data)

    def publication(self, channel: bytes, payload: bytes, *, qos: int = 1, retain: bool = False) -> bytes:
        identifier = next(self._mid).to_bytes(2, "big") if qos else b""
        return packet(0x30 | qos << 1 | retain, field(self.prefix + channel) + identifier + payload)

    def data_received(self, data: bytes) -> None:
        self.fleet.statistics.bytes_received += len(data)
        buffer = self._buffer + data if self._buffer else data
        start, answer = 0, []
        while len(buffer) - start >= 2:
            length, shift, at = 0, 0, start + 1
            while at < len(buffer):
                length |= (buffer[at] & 127) << shift
                shift, at = shift + 7, at + 1
                if not buffer[at - 1] & 128:
                    break
            else:
                break
            if len(buffer) < at + length:
                break
            kind, body = buffer[start], buffer[at : at + length]
            start = at + length
            if kind & 0xF0 == 0x30:
                end = 2 + int.from_bytes(body[:2], "big")
                if kind & 0x06:
                    answer.append(b"\x40\x02" + body[end : end + 2])
                self.on_message(body[2:end], body[end + 2 * bool(kind & 0x06) :], answer)
            elif kind == 0x20:
                self.on_connected(answer)
        self._buffer = buffer[start:]
        if answer:
            self.write(b"".join(answer))

    # -- the agent ---------------------------------------------------------------------------------------------

    def on_connected(self, answer: list[bytes]) -> None:
        self.fleet.statistics.connects += 1
        self.attempts = 0
        name, topics = self.name, self.fleet.topics
        filters = [topics.down(name, "task"), topics.down(name, "ack"), topics.up(name, "state"), topics.coordinator]
        body = b"".join(field(text.encode()) + b"\x01" for text in filters)
        body += field(topics.down(name, "blob").encode()) + b"\x00"
        joining = len(answer)
        answer.append(packet(0x82, next(self._mid).to_bytes(2, "big") + body))
        answer.append(self.announcement("ready"))
        answer.append(self.publication(b"info", encode(self.fleet.info(name)), retain=True))
        self.append_inventory(answer)
        self.fleet.statistics.bytes_once += sum(map(len, answer[joining:]))

    def append_inventory(self, answer: list[bytes]) -> None:
        held = Inventory(
            session=1,
            running=_key(self.running) if self.running is not None else None,
            queued=tuple(_key(task) for task in self.waiting),
            unacknowledged=tuple(TaskKey(task_id=task_id, attempt=attempt) for task_id, attempt in self.outbox),
        )
        answer.append(self.publication(b"inventory", encode(held)))
        answer.extend(self.publication(b"task", payload) for _, payload in self.outbox.values())

    def on_message(self, topic: bytes, payload: bytes, answer: list[bytes]) -> None:
        channel = topic.rpartition(b"/")[2]
        if channel == b"ack":
            self.forget(json.loads(payload)["task"])
        elif channel == b"task":
            task = json.loads(payload)
            for stored in task.get("stored", ()):
                self.forget(stored)
            if task["op"] == "measure":
                self.on_task(task, answer)
            else:
                self.waiting = deque(other for other in self.waiting if other["task"] != task["task"])
        elif channel == b"blob":
            self.on_chunk(payload)
        elif topic == self.fleet.topics.coordinator.encode() and b'"ready"' in payload:
            self.append_inventory(answer)
            self.ask_for_blob()

    def forget(self, key: dict[str, Any]) -> None:
        if self.outbox.pop((key["task_id"], key["attempt"]), None) is not None:
            self.fleet.statistics.acknowledged += 1

    def on_task(self, task: dict[str, Any], answer: list[bytes]) -> None:
        statistics, key = self.fleet.statistics, (task["task"]["task_id"], task["task"]["attempt"])
        held = [other["task"] for other in (*self.waiting, *([self.running] if self.running else []))]
        if key in self.outbox:
            answer.append(self.publication(b"task", self.outbox[key][1]))
            return
        statistics.tasks += 1
        if self.result_sent_s is not None:
            statistics.waits_s.append(time.monotonic() - self.result_sent_s)
        answer.append(self.update("accepted", task))
        if task["task"] not in held:
            self.waiting.append(task)
            if self.running is None:
                if not self.busy:
                    self.busy = True
                    answer.append(self.announcement("busy"))
                self.begin()

    def announcement(self, state: str) -> bytes:
        announced = AgentState.model_validate({"state": state, "session": 1, "instance": self.name})
        return self.publication(b"state", encode(announced), retain=True)

    def begin(self) -> None:
        self.running = self.waiting.popleft()
        blob = self.running.get("calibration")
        if blob is not None and blob["sha256"] not in self.blobs:
            self.fetching = blob["sha256"]
            self.ask_for_blob()
            return
        self.measure()

    def ask_for_blob(self) -> None:
        """Request the blob that the task at work waits for, if it waits for one."""
        blob = self.running.get("calibration") if self.running is not None else None
        if blob is not None and blob["sha256"] == self.fetching:
            request = BlobRequest(sha256=blob["sha256"], offset=0, length=blob["size"])
            asked = self.publication(b"blob", encode(request))
            self.fleet.statistics.bytes_once += len(asked)
            self.write(asked)

    def on_chunk(self, payload: bytes) -> None:
        self.fleet.statistics.bytes_once += len(payload)
        sha256 = payload[:32].hex()
        if sha256 == self.fetching and hashlib.sha256(payload[_BLOB_HEADER_BYTES:]).hexdigest() == sha256:
            self.blobs.add(sha256)
            self.fetching = None
            self.measure()

    def measure(self) -> None:
        assert self.running is not None
        task_s = self.fleet.task_s
        pause_s = self.random.uniform(0.5, 1.5) * task_s if task_s else 0.0
        asyncio.get_running_loop().call_later(pause_s, self.finish)

    def finish(self) -> None:
        task, self.running = self.running, None
        assert task is not None
        payload = self.result(task)
        key, now = (task["task"]["task_id"], task["task"]["attempt"]), time.monotonic()
        self.outbox[key] = now, payload
        statistics = self.fleet.statistics
        statistics.results += 1
        statistics.first_result_s = statistics.first_result_s or now
        self.result_sent_s = now
        self.write(self.publication(b"task", payload))
        if self.waiting:
            self.begin()
        else:
            asyncio.get_running_loop().call_later(READY_DELAY_S, self.announce_ready, self.result_sent_s)

    def announce_ready(self, since_s: float) -> None:
        if self.running is None and self.result_sent_s == since_s and self.busy:
            self.busy = False
            self.write(self.announcement("ready"))

    def resend(self, now: float) -> None:
        """Send the heartbeat when its time has come, and unacknowledged results again."""
        if now >= self._heartbeat_s and self.transport is not None:
            self._heartbeat_s = now + _HEARTBEAT_S
            heartbeat = Heartbeat(session=1, uptime_s=1.0, outbox=len(self.outbox))
            self.write(self.publication(b"heartbeat", encode(heartbeat), qos=0))
        for key, (sent_s, payload) in list(self.outbox.items()):
            if now - sent_s > RESEND_S:
                self.fleet.statistics.resent += 1
                self.outbox[key] = now, payload
                self.write(self.publication(b"task", payload))

    def update(self, kind: str, task: dict[str, Any], more: str = "") -> bytes:
        key = json.dumps(task["task"], separators=(",", ":"))
        text = f'{{"task":{key}{more},"schema_version":1,"kind":"{kind}"}}'
        return self.publication(b"task", text.encode(), qos=0)

    def result(self, task: dict[str, Any]) -> bytes:
        slots, fingerprint = self.fleet.subnets.of(task["architecture"])
        calibration = task.get("calibration")
        model = hashlib.sha256(f"{fingerprint} {calibration['sha256'] if calibration else ''}".encode()).hexdigest()
        median = self.device.latency_ms(slots) * (1.0 + self.random.gauss(0.0, NOISE))
        start = self.random.randrange(len(self.fleet.scatter) - KEPT_TIMES)
        scatter = self.fleet.scatter[start : start + KEPT_TIMES]
        times = ",".join(["%.5g" % (1000.0 * median * s) for s in scatter])
        key = json.dumps(task["task"], separators=(",", ":"))
        return (
            f'{{"task":{key},"measurement":{{"model_sha256":"{model}","model_bytes":812345,"median_ms":{median:.6g},'
            f'"mad_ms":{0.004 * median:.6g},"p90_ms":{1.02 * median:.6g},"min_ms":{0.98 * median:.6g},"runs":612,'
            f'"inner_loops":3,"half_width_percent":0.31,"quality":"ok","undisturbed_ms":{median:.6g},'
            f'"undisturbed_half_width_percent":0.31,"reference":"0123456789ab","reference_ms":1.21034,"levels_ms":[1.21034,2.0312,3.5411,6.1238,11.2034],'
            f'"regime_unix_s":1796000000.125,"times_us":[{times}],'
            f'"block_medians_ms":[{median:.6g},{median:.6g},{median:.6g}],"provider":"CPUExecutionProvider",'
            f'"build_ms":11.27,"load_ms":6.81,"before":{{"temperature_c":51.2,"clock_mhz":1800.0,"governor":"performance",'
            f'"throttled":false,"load_1min":0.41}},"after":{{"temperature_c":52.1,"clock_mhz":1800.0,'
            f'"governor":"performance","throttled":false,"load_1min":0.44}},"finished_unix_s":{time.time():.3f}}},'
            f'"schema_version":1,"kind":"result"}}'
        ).encode()


def _key(task: dict[str, Any]) -> TaskKey:
    return TaskKey.model_validate(task["task"])


class Fleet:
    """The agents of one process."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.host, self.port = options.host, options.port
        self.topics = Topics(options.fleet)
        self.task_s: float = options.task_s
        self.space = SupernetBundle.open(options.supernet).space
        self.features = FeatureMap(self.space)
        self.subnets = Subnets(self.space)
        self.scatter = np.random.default_rng(7).lognormal(0.0, 0.006, 4096).tolist()
        self.statistics = Statistics()
        self.stopped = False
        self.agents = [LightAgent(self, options.first + number) for number in range(options.agents)]

    def info(self, name: str) -> AgentInfo:
        profile = DeviceProfile(
            model=f"simulated model {int(name[3:]) % MODELS}",
            machine="aarch64",
            operating_system="Debian GNU/Linux 12",
            cores=4,
            clusters=(CpuCluster(name="Cortex-A72", cores=4, max_clock_mhz=1800.0),),
            memory_mb=4096,
        )
        return AgentInfo(
            agent=name, session=1, profile=profile, settings=(RuntimeSetting(),), versions={"fleetnas": "0.1.0"}
        )

    async def run(self) -> None:
        """Until standard input ends."""
        for agent in self.agents:
            await agent.connect()
        ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        while not ended.done():
            await asyncio.wait([ended], timeout=5.0)
            now = time.monotonic()
            for agent in self.agents:
                agent.resend(now)
        self.stopped = True
        for agent in self.agents:
            if agent.transport is not None:
                agent.transport.close()


def main() -> int:
    """Be a fleet; the statistics are printed as JSON at the end."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--fleet", default="load")
    options.add_argument("--supernet", type=Path, required=True)
    options.add_argument("--agents", type=int, required=True)
    options.add_argument("--first", type=int, default=0)
    options.add_argument("--task-s", type=float, default=0.0, help="what a measurement takes; 0: nothing")
    fleet = Fleet(options.parse_args())
    asyncio.run(fleet.run())
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps(vars(fleet.statistics) | {"cpu_s": used.ru_utime + used.ru_stime}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
