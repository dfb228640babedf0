"""The demonstration: a fleet of three device settings on this machine, each a real agent process."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleetnas.coordinator.app.embedded_broker import EmbeddedBroker
from fleetnas.coordinator.app.request import FleetAccess, NewRun, SearchRequest
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.fleet_protocol.child_process import child_environment, python_command
from fleetnas.fleet_protocol.messages import MeasurementProtocol
from fleetnas.fleet_protocol.transports.base import BrokerAddress
from fleetnas.supernet_export.export import export_digits
from fleetnas.supernet_export.output_files import check_folder

#: Three settings that differ as devices do; they share this machine, and are measured in turn.
AGENTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("one-thread", ("--threads", "1")),
    ("two-threads", ("--threads", "2")),
    ("no-graph-optimisation", ("--threads", "1", "--graph-optimisation", "disabled")),
)
BUDGET, INITIAL_DESIGN = 20, 8
#: Shorter than the default of docs/measuring.md: three settings are measured one after the other on one machine.
PROTOCOL = MeasurementProtocol(warmup_s=0.15, min_s=0.4, min_runs=30, max_s=4.0)
_STOP_S = 5.0


@dataclass(frozen=True)
class AgentProcess:
    """A running agent: its name, process and log file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


def run_demo(directory: Path, run_search: Callable[[SearchRequest], int], seed: int = 0) -> int:
    """Export the built-in supernet, start broker and agents, search; returns the search's exit code.

    Everything it writes is under `directory`: the artifacts in it, the rest in `demo/`.
    """
    check_folder("--out", directory)
    work = directory / "demo"
    work.mkdir(parents=True, exist_ok=True)
    supernet = work / "digits.supernet"
    export_digits(supernet)
    with EmbeddedBroker(port=0) as broker, agents(broker.address, work):
        return run_search(
            SearchRequest(
                store=str(store_of(directory)),
                devices_at=FleetAccess(broker.address),
                run=NewRun(supernet, demo_plan(seed)),
                out=directory,
            )
        )


def store_of(directory: Path) -> Path:
    """Return the store of a demonstration that writes to `directory`."""
    return directory / "demo" / "runs.sqlite"


def demo_plan(seed: int) -> CampaignPlan:
    """Plan a short search of the demonstration's agents."""
    return CampaignPlan(
        targets=TargetRequest(automatic=4),
        budget=BUDGET,
        initial_design=INITIAL_DESIGN,
        seed=seed,
        devices=tuple(name for name, _ in AGENTS),
        wait_for=len(AGENTS),
        grace_s=10.0,
        deadline_s=60.0,
        protocol=PROTOCOL,
    )


@contextlib.contextmanager
def agents(
    address: BrokerAddress, work: Path, fleet: Sequence[tuple[str, tuple[str, ...]]] = AGENTS
) -> Iterator[list[AgentProcess]]:
    """Start agents by name and options, with state and log under `work`; stop them at the end of the context."""
    running = [start_agent(name, address, work, settings) for name, settings in fleet]
    try:
        yield running
    finally:
        for agent in running:
            agent.process.terminate()
        for agent in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                agent.process.wait(_STOP_S)
            if agent.process.poll() is None:
                agent.process.kill()
                agent.process.wait()


def start_agent(name: str, address: BrokerAddress, work: Path, settings: tuple[str, ...]) -> AgentProcess:
    """Start one agent in a process of its own."""
    log = work / f"{name}.log"
    command = [
        *python_command("fleetnas.agent.cli.main", "main", "run"),
        *("--broker", str(address), "--name", name, "--state-dir", str(work / "agents")),
        *("--parent", str(os.getpid())),
        *settings,
    ]
    # The setting decides the threads of the measuring child, not this shell's environment.
    environment = {key: value for key, value in child_environment().items() if not key.startswith("OMP_")}
    with log.open("ab") as output:
        # A session of its own: Ctrl-C reaches the search alone, which requeues its tasks in order.
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    return AgentProcess(name, process, log)
