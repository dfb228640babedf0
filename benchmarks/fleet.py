"""A thousand simulated agents on one coordinator.

The coordinator is the real one in a process of its own, with its store on disk; mosquitto is Debian's; the agents
(`light_agents.py`) are real MQTT clients whose measurements are computed. What winners cost to calibrate and to build
is left out (`docs/scale.md` has it); everything else of a campaign is there. Agents that answer at once show what the
coordinator sustains, agents that take their time how long they wait for it.

`floor_ms_per_result` is what Python needs for a result without any search: its messages through paho-mqtt, parsed, and
written to SQLite (`message_floor.py`). The full run takes about four minutes on two cores, and with `--repeats 5` five
times that; `--agents 50 --only mosquitto` is a quick look.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figures, parser
from message_floor import floor_ms_per_result

from fleetnas.coordinator.app.compose import open_search
from fleetnas.coordinator.app.embedded_broker import EmbeddedBroker
from fleetnas.coordinator.app.request import FleetAccess, NewRun, SearchRequest
from fleetnas.coordinator.campaign.winner_builder import CalibratedModel
from fleetnas.coordinator.records.events import Event, MeasurementTaken
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.snapshot import Snapshot
from fleetnas.coordinator.records.stored import EvaluationRecord, ImagePart
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.fleet_protocol.transports.base import BrokerAddress
from fleetnas.supernet_export.evaluation.answers import ClassAnswers
from fleetnas.supernet_export.export import export_digits

FLEET = "load"
#: Per device: what covers the space, what the search may spend, and its targets.
INITIAL_DESIGN, BUDGET, TARGETS = 10, 24, 4
#: The load that the coordinator is to sustain, and the one at which waits are measured.
RESULTS_PER_S = 1500.0
PACED_RESULTS_PER_S = RESULTS_PER_S / 2
#: The first and the last of the results are left out of the rate: agents that join, devices that finish.
_EDGE = 0.05


class StandInModels:
    """Winners' files by hash alone, with statistics of a usual size: 20 KiB. Each is kept, as the real ones are."""

    def __init__(self) -> None:
        self._calibrated: dict[str, CalibratedModel] = {}

    def calibrate(self, architecture: Architecture, setting: RuntimeSetting) -> CalibratedModel:
        found = self._calibrated.get(architecture.fingerprint)
        if found is None:
            blob = f"statistics of {architecture.fingerprint} ".encode().ljust(20 * 1024, b".")
            name = f"{architecture.fingerprint} {hashlib.sha256(blob).hexdigest()}"
            found = CalibratedModel(architecture, setting, hashlib.sha256(name.encode()).hexdigest(), blob)
            self._calibrated[architecture.fingerprint] = found
        return found

    def calibrates_at_once(self, architecture: Architecture, setting: RuntimeSetting) -> bool:
        return architecture.fingerprint in self._calibrated

    def evaluates_at_once(self, model: CalibratedModel) -> bool:
        return True

    def file(self, model: CalibratedModel) -> bytes:
        raise NotImplementedError("a benchmark writes no artifacts")

    def accuracy(self, model: CalibratedModel) -> tuple[float, int] | None:
        return None

    def answers(self, model: CalibratedModel, part: ImagePart) -> ClassAnswers | None:
        return None

    def known_answers(
        self, architecture: Architecture, setting: RuntimeSetting, part: ImagePart
    ) -> ClassAnswers | None:
        return None

    def adopt(self, evaluations: Iterable[EvaluationRecord]) -> None:
        pass


class CountingView:
    """Notes when results were stored."""

    def __init__(self) -> None:
        self.stored_s: list[float] = []

    def update(self, snapshot: Snapshot) -> None:
        del snapshot

    def event(self, event: Event) -> None:
        if isinstance(event, MeasurementTaken):
            self.stored_s.append(time.monotonic())

    def close(self) -> None:
        pass


def be_coordinator(options: argparse.Namespace) -> int:
    """Run one campaign and print what came of it."""
    view = CountingView()
    store = MeasurementStore.open(options.work / "runs.sqlite")
    request = SearchRequest(
        store=store.url,
        devices_at=FleetAccess(BrokerAddress("127.0.0.1", options.port), FLEET),
        run=NewRun(
            options.work / "digits.supernet",
            CampaignPlan(
                targets=f"auto:{TARGETS}",
                budget=BUDGET,
                initial_design=INITIAL_DESIGN,
                wait_for=options.agents,
                join_s=120.0,
            ),
        ),
    )
    running = open_search(request, lambda: view, store, StandInModels())
    began_s = time.monotonic()
    try:
        ending = running.run()
    finally:
        running.close()
    # With the process that speaks to the broker.
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    stored = view.stored_s
    edge = int(_EDGE * len(stored))
    middle_s = stored[-1 - edge] - stored[edge]
    slices = np.histogram(stored, bins=np.arange(stored[0], stored[-1] + 1.0, 1.0))[0]
    print(
        json.dumps(
            {
                "ending": ending,
                "finished": sum(
                    setting_run.status == "finished" for setting_run in running.campaign.setting_runs.values()
                ),
                "setting_runs": len(running.campaign.setting_runs),
                "results": len(stored),
                "results_per_s": (len(stored) - 2 * edge) / middle_s,
                "per_second": slices.tolist(),
                "wall_s": time.monotonic() - began_s,
                "cpu_s": sum(one.ru_utime + one.ru_stime for one in used),
                "network_cpu_s": used[1].ru_utime + used[1].ru_stime,
                "peak_mib": sum(one.ru_maxrss for one in used) / 1024,
                "log": list(running.campaign.log)[-3:],
            }
        )
    )
    return 0


# -- one campaign ----------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mosquitto_program() -> str:
    """Where mosquitto is installed."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        raise SystemExit("mosquitto is not installed; run: apt-get install mosquitto")
    return program


@contextlib.contextmanager
def mosquitto(work: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Debian's mosquitto with room for a fleet, and as prompt as `fleetnas broker init` makes it."""
    port, config = free_port(), work / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type error\n"
        "set_tcp_nodelay true\nmax_queued_messages 100000\nmax_inflight_messages 2000\n"
    )
    process = subprocess.Popen([mosquitto_program(), "-c", str(config)])
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.2):
                break
            time.sleep(0.02)
        yield port, process
    finally:
        process.terminate()
        process.wait()


def _cpu_s(process: int) -> float:
    """Processor time that a running process has used, seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def campaign(
    work: Path, port: int, agents: int, task_s: float, processes: int, broker: int | None = None
) -> dict[str, Any]:
    """Agents and coordinator until every campaign is complete; what both saw, and what a broker's process used."""
    here = Path(__file__).resolve()
    broker_s = _cpu_s(broker) if broker is not None else 0.0
    common = [*("--port", str(port)), *("--agents", str(agents))]
    share, fleets, first = -(-agents // processes), [], 0
    while first < agents:
        count = min(share, agents - first)
        command = [sys.executable, str(here.parent / "light_agents.py"), "--port", str(port), "--fleet", FLEET]
        command += ["--agents", str(count), "--first", str(first), "--task-s", str(task_s)]
        command += ["--supernet", str(work / "digits.supernet")]
        fleets.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        first += count
    try:
        command = [sys.executable, str(here), "--be-coordinator", "--work", str(work), *common]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seen = [json.loads(fleet.communicate("")[0]) for fleet in fleets]
    finally:
        for fleet in fleets:
            fleet.kill()
            fleet.wait()
    found: dict[str, Any] = json.loads(done.stdout)
    if broker is not None:
        found["broker_cpu_s"] = _cpu_s(broker) - broker_s
    found["waits_s"] = [wait for one in seen for wait in one["waits_s"]]
    for name in ("acknowledged", "resent", "bytes_sent", "bytes_received", "bytes_once", "cpu_s"):
        found[f"agents_{name}"] = sum(one[name] for one in seen)
    return found


def raise_limits() -> None:
    """A connection is an open file, on both sides."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def values_of(found: dict[str, Any]) -> dict[str, float]:
    """One campaign's figures by name."""
    waits_ms, results = 1000.0 * np.array(found["waits_s"]), found["results"]
    # Of TCP's streams, both directions; without what an agent costs once (joining, statistics of winners).
    link = found["agents_bytes_sent"] + found["agents_bytes_received"] - found["agents_bytes_once"]
    values = {
        "campaigns_complete_fraction": found["finished"] / found["setting_runs"],
        "results": results,
        "results_per_s": found["results_per_s"],
        "wait_for_next_task_ms_median": float(np.median(waits_ms)),
        "wait_for_next_task_ms_p99": float(np.percentile(waits_ms, 99)),
        "coordinator_peak_mib": found["peak_mib"],
        "coordinator_cpu_ms_per_result": 1000.0 * found["cpu_s"] / results,
        "of_that_network_cpu_ms_per_result": 1000.0 * found["network_cpu_s"] / results,
        "agents_cpu_ms_per_result": 1000.0 * found["agents_cpu_s"] / results,
        "wall_s": found["wall_s"],
        "wire_bytes_per_measurement": link / results,
    }
    if "broker_cpu_s" in found:
        values["broker_cpu_ms_per_result"] = 1000.0 * found["broker_cpu_s"] / results
    return values


#: Figures of which the worst repeat counts, not the median.
_WORST = {"campaigns_complete_fraction": min, "coordinator_peak_mib": max, "wire_bytes_per_measurement": max}


def add_figures(figures: Figures, name: str, runs: Sequence[dict[str, Any]], bars: dict[str, str]) -> None:
    """Figures of the campaigns of one kind under `name`: medians, or the worst where a limit holds for each."""
    every = [values_of(found) for found in runs]
    for key in every[0]:
        values = [values[key] for values in every]
        figures.add(f"{name}_{key}", float(_WORST.get(key, statistics.median)(values)), bars.get(key, ""))
    if len(every) > 1:
        rates = [values["results_per_s"] for values in every]
        figures.add(f"{name}_results_per_s_least", min(rates))
        figures.add(f"{name}_results_per_s_most", max(rates))


def one_run(work: Path, name: str, agents: int, options: argparse.Namespace) -> dict[str, Any]:
    """One campaign of a kind, in a folder of its own."""
    work.mkdir()
    export_digits(work / "digits.supernet")
    if name == "embedded":
        with EmbeddedBroker(port=0) as broker:
            return campaign(work, broker.address.port, agents, 0.0, options.processes)
    task_s = agents / PACED_RESULTS_PER_S if name == "paced" else 0.0
    with mosquitto(work) as (port, process):
        return campaign(work, port, agents, task_s, options.processes, process.pid)


def add_floor(figures: Figures, work: Path) -> None:
    """Python's own cost of a result, and the rate that one core could take at that."""
    work.mkdir()
    export_digits(work / "digits.supernet")
    with mosquitto(work) as (port, _):
        floor_ms = floor_ms_per_result(work, work / "digits.supernet", port)
    figures.add("floor_ms_per_result", floor_ms)


BARS = {
    "mosquitto": {"results_per_s": f">= {RESULTS_PER_S:g}"},
    "paced": {"wait_for_next_task_ms_p99": "<= 300"},
    "embedded": {},
}


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--agents", type=int, default=1000)
    arguments.add_argument("--processes", type=int, default=1, help="of simulated agents")
    arguments.add_argument("--only", choices=tuple(BARS))
    arguments.add_argument("--repeats", type=int, default=1, help="campaigns of each kind; their medians are reported")
    arguments.add_argument("--verbose", action="store_true")
    arguments.add_argument("--be-coordinator", action="store_true", help=argparse.SUPPRESS)
    arguments.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.be_coordinator:
        return be_coordinator(options)
    raise_limits()
    figures = Figures()
    figures.add("load_average_before", os.getloadavg()[0])
    with tempfile.TemporaryDirectory() as temporary:
        add_floor(figures, Path(temporary) / "floor")
        for name, bars in BARS.items():
            if options.only not in (None, name):
                continue
            agents = min(options.agents, 100) if name == "embedded" else options.agents
            runs = []
            for repeat in range(options.repeats):
                runs.append(one_run(Path(temporary) / f"{name}-{repeat}", name, agents, options))
                if options.verbose:
                    print({k: v for k, v in runs[-1].items() if k != "waits_s"}, file=sys.stderr)
            common = {"campaigns_complete_fraction": ">= 1"}
            if name != "embedded":
                common |= {"coordinator_peak_mib": "< 600", "wire_bytes_per_measurement": "<= 2048"}
            add_figures(figures, name, runs, common | bars)
    return figures.report(as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
