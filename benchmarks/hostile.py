"""What one agent that floods the coordinator costs the others, and what 50,000 results leave behind.

The first part is a campaign of the real coordinator (a process of its own, its store on disk) and of simulated agents
over mosquitto, limited as `fleetnas broker init` limits it, once undisturbed and once for each kind of flood: a client
with the name of one more agent writes 50,000 messages as fast as the broker takes them. The second part runs campaign
after campaign in one process, in memory, until 50,000 results went through.

The full run takes about ten minutes on two cores; `--results 3000 --messages 10000` is a quick look.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from figures import Figures, parser
from fleet import FLEET, free_port, mosquitto_program
from light_agents import field, packet

from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.codec import encode
from fleetnas.fleet_protocol.messages import (
    AgentInfo,
    AgentState,
    BlobRequest,
    Heartbeat,
    Inventory,
    Result,
    RuntimeSetting,
    TaskKey,
)
from fleetnas.fleet_protocol.topics import Topics
from fleetnas.fleet_protocol.transports.base import BrokerAddress, Received
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport
from fleetnas.supernet_export.export import export_digits, file_sha256

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from rigs.simulated_fleet import SPACE, Simulation, measurement

#: Enough agents for planning to take no time, and what a measurement takes on each.
AGENTS, TASK_S = 20, 0.5
#: Measurements of a device of which results are counted; a campaign has 20 times as many.
PER_DEVICE = 50
KINDS = ("unknown_tasks", "large_next", "blobs", "noise", "states", "announcements", "heartbeats")
#: Results after which the flood begins: everybody is at work.
_BEGUN = 100
_SAMPLE_S = 0.02
TOPICS = Topics(FLEET)
FLOODER = "flooder"


# -- a flood between real processes ----------------------------------------------------------------------------------


@contextlib.contextmanager
def limited_mosquitto(work: Path) -> Iterator[int]:
    """Debian's mosquitto with the limits of `fleetnas broker init`, without TLS and logins."""
    from fleetnas.coordinator.security.mosquitto import configuration

    limits = ("max_packet_size", "max_inflight", "max_queued", "queue_qos0", "set_tcp_nodelay", "persistence")
    kept = [line for line in configuration(work, 0, "certificate").splitlines() if line.startswith(limits)]
    port = free_port()
    path = work / "mosquitto.conf"
    path.write_text("\n".join([f"listener {port} 127.0.0.1", "allow_anonymous true", "log_type error", *kept, ""]))
    process = subprocess.Popen([mosquitto_program(), "-c", str(path)])
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.2):
                break
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait()


def payloads(kind: str, bundle_sha256: str) -> tuple[str, list[bytes]]:
    """Channel and messages of one kind of flood, sent in turn."""
    if kind == "unknown_tasks":
        keys = [TaskKey(task_id=f"elsewhere.{number}", attempt=1) for number in range(1000)]
        return "task", [encode(Result(task=key, measurement=measurement(1.0))) for key in keys]
    if kind == "large_next":
        unacknowledged = tuple(TaskKey(task_id=f"elsewhere.{number}", attempt=1) for number in range(80))
        return "inventory", [encode(Inventory(session=1, unacknowledged=unacknowledged))]
    if kind == "blobs":
        return "blob", [encode(BlobRequest(sha256=bundle_sha256, offset=n, length=65_536)) for n in range(256)]
    if kind == "states":
        states = ("ready", "busy", "leaving", "lost")
        fields = [{"state": states[n % 4], "session": 1 + n, "instance": f"flooder-{n % 7}"} for n in range(1000)]
        return "state", [encode(AgentState.model_validate(one)) for one in fields]
    if kind == "announcements":
        profile = DeviceProfile(
            model="flooder", machine="aarch64", operating_system="Debian", cores=4, clusters=(), memory_mb=4096
        )
        announced = [
            AgentInfo(
                agent=FLOODER,
                session=1,
                profile=profile,
                settings=tuple(RuntimeSetting(threads=1 + (32 * number + n) % 256) for n in range(32)),
                versions={},
            )
            for number in range(8)
        ]
        return "info", [encode(one) for one in announced]
    if kind == "heartbeats":
        return "heartbeat", [encode(Heartbeat(session=1, uptime_s=float(n), outbox=n)) for n in range(1000)]
    return "task", [b"\x00" * 300]


def flood(port: int, kind: str, messages: int, bundle_sha256: str) -> float:
    """Write the messages at QoS 1 as fast as the broker takes them; returns the seconds that took.

    States and announcements are retained, as an agent's are.
    """
    channel, bodies = payloads(kind, bundle_sha256)
    first_byte = 0x33 if channel in ("state", "info") else 0x32
    topic = field(TOPICS.up(FLOODER, channel).encode())  # type: ignore[arg-type]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(packet(0x10, field(b"MQTT") + b"\x04\x02\x00\x3c" + field(FLOODER.encode())))
        connection.recv(4)
        taken = threading.Thread(target=_swallow, args=(connection, messages), daemon=True)
        taken.start()
        began_s = time.monotonic()
        for first in range(0, messages, 100):
            numbers = range(first, min(first + 100, messages))
            connection.sendall(
                b"".join(
                    packet(first_byte, topic + (1 + number % 65_535).to_bytes(2, "big") + bodies[number % len(bodies)])
                    for number in numbers
                )
            )
        taken.join()
    return time.monotonic() - began_s


def _swallow(connection: socket.socket, messages: int) -> None:
    """Read the broker's acknowledgements, four bytes each, to the last."""
    left = 4 * messages
    while left > 0 and (read := connection.recv(65_536)):
        left -= len(read)


def resident_mib(pid: int) -> float:
    """Of a process and its children."""
    pids = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            pids += [int(child) for child in (task / "children").read_text().split()]
    total = 0
    for one in pids:
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1])
    return total * os.sysconf("SC_PAGE_SIZE") / 2**20


class Sampler(threading.Thread):
    """Resident memory of a process and its children, again and again."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self.stopped = threading.Event()
        self.samples: list[tuple[float, float]] = []
        self.start()

    def run(self) -> None:
        while not self.stopped.wait(_SAMPLE_S):
            self.samples.append((time.monotonic(), resident_mib(self._pid)))

    def growth(self, since_s: float) -> float:
        """The most since then, over what is usual in the second before."""
        before = float(np.median([mib for at_s, mib in self.samples if since_s - 1.0 <= at_s < since_s]))
        return max((mib for at_s, mib in self.samples if at_s >= since_s), default=before) - before


def campaign(work: Path, kind: str | None, messages: int) -> dict[str, float]:
    """One campaign to its end; from its hundredth result on, what a flood of `kind` did to it."""
    work.mkdir()
    bundle = work / "digits.supernet"
    export_digits(bundle)
    here = Path(__file__).resolve().parent
    with limited_mosquitto(work) as port:
        agents = [sys.executable, str(here / "light_agents.py"), "--port", str(port), "--fleet", FLEET]
        agents += ["--agents", str(AGENTS), "--task-s", str(TASK_S), "--supernet", str(bundle)]
        fleet = subprocess.Popen(agents, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        command = [sys.executable, str(here / "fleet.py"), "--be-coordinator", "--work", str(work)]
        command += ["--port", str(port), "--agents", str(AGENTS)]
        listener = MqttTransport(BrokerAddress("127.0.0.1", port), "listener")
        listener.subscribe(TOPICS.every_agent("task"))
        listener.start()
        coordinator = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        sampler = Sampler(coordinator.pid)
        try:
            results = 0
            while results < _BEGUN:
                event = listener.poll(1.0)
                results += isinstance(event, Received) and b'"result"' in event.payload
                if coordinator.poll() is not None:
                    raise SystemExit("the coordinator ended before the flood began")
            listener.close()
            began_s = time.monotonic()
            flood_s = flood(port, kind, messages, file_sha256(bundle)) if kind is not None else 0.0
            done = json.loads(coordinator.communicate()[0])
            sampler.stopped.set()
            seen = json.loads(fleet.communicate("")[0])
        finally:
            for process in (coordinator, fleet):
                process.kill()
                process.wait()
    return {
        "complete": done["finished"] / done["setting_runs"],
        "resent": seen["resent"],
        "longest_wait_s": max(seen["waits_s"]),
        "growth_mib": sampler.growth(began_s),
        "flood_s": flood_s,
    }


def add_floods(figures: Figures, work: Path, messages: int, kinds: Sequence[str]) -> None:
    """An undisturbed campaign, then one for each kind of flood."""
    quiet = campaign(work / "quiet", None, messages)
    figures.add("quiet_longest_wait_s", quiet["longest_wait_s"])
    figures.add("quiet_growth_mib", quiet["growth_mib"])
    for kind in kinds:
        found = campaign(work / kind, kind, messages)
        figures.add(f"{kind}_flood_s", found["flood_s"])
        figures.add(f"{kind}_campaigns_complete_fraction", found["complete"], ">= 1")
        figures.add(f"{kind}_results_sent_again", found["resent"])
        figures.add(f"{kind}_delay_of_next_task_s", found["longest_wait_s"] - quiet["longest_wait_s"], "<= 2")
        figures.add(f"{kind}_growth_mib", found["growth_mib"], "<= 50")


# -- many results through one process --------------------------------------------------------------------------------


def one_campaign(number: int, design: InitialDesign) -> int:
    """A campaign of simulated devices in memory, all of whose subnets are chosen beforehand; returns its results."""
    plan = CampaignPlan(targets="2", budget=PER_DEVICE, initial_design=PER_DEVICE, wait_for=AGENTS, deadline_s=600.0)
    store = MeasurementStore.open("sqlite://")
    fleet = Simulation(plan, store=store, at_once=True, limited=True, design=design, checked=False)
    for agent in range(AGENTS):
        fleet.add(f"pi{agent}", seed=agent + AGENTS * number)
    fleet.begin()
    fleet.run(most_steps=10_000)
    fleet.campaign.finish()
    results = len(fleet.store.outcomes("run-1"))
    fleet.transport.close()
    fleet.store.close()
    return results


def add_results(figures: Figures, wanted: int) -> None:
    """Campaigns until this number of results went through."""
    design = InitialDesign(SPACE, count=PER_DEVICE, seed=0)
    results, number = one_campaign(0, design), 1
    gc.collect()
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    resident, began_s = [resident_mib(os.getpid())], time.monotonic()
    while results < wanted:
        results += one_campaign(number, design)
        number += 1
        gc.collect()
        resident.append(resident_mib(os.getpid()))
    fifth = max(1, len(resident) // 5)
    early, late = float(np.median(resident[:fifth])), float(np.median(resident[-fifth:]))
    figures.add("results", results, f">= {wanted}")
    figures.add("campaigns", number)
    figures.add("results_resident_mib", late)
    figures.add("results_growth_percent", 100.0 * (late / early - 1.0), "<= 10")
    figures.add("results_descriptors_left", len(os.listdir("/proc/self/fd")) - descriptors, "<= 0")
    figures.add("results_threads_left", threading.active_count() - threads, "<= 0")
    figures.add("results_s", time.monotonic() - began_s)


def main() -> int:
    arguments = parser(__doc__)
    arguments.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments.add_argument("--messages", type=int, default=50_000, help="of each flood")
    arguments.add_argument("--results", type=int, default=50_000, help="through one process")
    arguments.add_argument("--kind", choices=KINDS, action="append", help="of floods; all of them if none is given")
    arguments.add_argument("--only", choices=("floods", "results"))
    options = arguments.parse_args()
    figures = Figures()
    figures.add("load_average_before", os.getloadavg()[0])
    if options.only != "results":
        with tempfile.TemporaryDirectory() as temporary:
            add_floods(figures, Path(temporary), options.messages, options.kind or KINDS)
    if options.only != "floods":
        add_results(figures, options.results)
    return figures.report(as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
