"""The way of a newcomer onto an emulated board: the line that `fleetnas broker` prints here, pasted inside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from boards import Board
from debian_root import DebianRoot, EmulationError, pip_environment, say
from entering import stop
from rigs import waiting

from fleetnas.coordinator.app.own_wheel import own_version
from fleetnas.fleet_protocol.transports.base import BrokerAddress

#: Folder that the line installs into, as the guide of a service does.
VENV = "/root/fleetnas"
FLEETNAS = str(Path(sys.executable).with_name("fleetnas"))
_STOP_S = 60.0


@dataclass(frozen=True)
class PastedAgent:
    """The coordinator's broker here, and an agent inside that the line has installed and started."""

    broker: BrokerAddress
    pasted_s: float
    """Moment at which the line was pasted, by the monotonic clock."""


@contextlib.contextmanager
def pasted_agent(root: DebianRoot, bindings: Mapping[Path, str], work: Path, inside: str) -> Iterator[PastedAgent]:
    """Paste the line on a board without an agent; `work` is a new folder here, and `inside` its path on the board.

    The agent is ready for tasks when the block begins. `EmulationError` where it does not get so far.
    """
    board, said, log = root.board, work / "broker.log", work / "agent.log"
    places = {"XDG_DATA_HOME": str(work / "data"), "FLEETNAS_CONFIG": str(work / "conf.toml")}
    workstation = {**os.environ, **places, "PYTHONUNBUFFERED": "1"}
    (work / "conf.toml").write_text("")
    words = [FLEETNAS, "broker", "--host", "0.0.0.0", "--port", "0", "--install-port", "0"]
    with contextlib.ExitStack() as stack, said.open("w") as output:
        broker = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=workstation)
        stack.callback(broker.wait)
        stack.callback(broker.terminate)
        waiting.until(lambda: "--service" in said.read_text() or broker.poll() is not None, broker, what=said.read_text)
        lines = re.findall(r"^sh -c .*$", said.read_text(), re.MULTILINE)
        if not lines:
            raise EmulationError(f"the broker prints no line to paste; see {said}")
        address = BrokerAddress.parse(_address(lines[0], said.read_text()))

        pasted_s = time.monotonic()
        command = f"{lines[0]} --run --name {board.architecture} --dir {VENV} --extras {board.extras}"
        homes = [f"XDG_CONFIG_HOME={inside}/config", f"XDG_STATE_HOME={inside}/state"]
        with log.open("wb") as agent_output:
            # A shell that is the first process of its namespace ignores signals that it has no trap for.
            shell = f"{command} & pasted=$!; trap 'kill $pasted' TERM; wait $pasted"
            agent = root.entrance(bindings).start(["sh", "-c", shell], agent_output, [*pip_environment(), *homes])
        stack.callback(stop, agent, _STOP_S)
        waiting.until(
            lambda: "starting the agent" in log.read_text() or agent.poll() is not None, agent, what=log.read_text
        )
        say(f"pasted line: installed after {time.monotonic() - pasted_s:.0f} s")
        ready = waiting.until(
            lambda: agent.poll() is not None or _row(address, workstation), agent, broker, what=log.read_text
        )
        if not isinstance(ready, dict):
            raise EmulationError(f"the pasted line ended with code {agent.returncode}; see {log}")
        _check(ready, board)
        say(f"pasted line: installed and ready after {time.monotonic() - pasted_s:.0f} s")
        yield PastedAgent(address, pasted_s)


def _address(line: str, said: str) -> str:
    """Return the broker's address as a device reaches it: on the host of the line."""
    (host,) = re.findall(r"u=https?://([^:/]+):", line)
    return f"{host}:{re.findall(r'listens on [^ ]+:([0-9]+)', said)[0]}"


def _row(broker: BrokerAddress, environment: Mapping[str, str]) -> dict[str, object] | None:
    """Return the row of an agent that is ready; None before that."""
    told = waiting.run([FLEETNAS, "devices", "--broker", str(broker), "--json"], env=dict(environment))
    rows = [json.loads(row) for row in told.stdout.splitlines()]
    return next((row for row in rows if row["state"] == "ready"), None)


def _check(row: Mapping[str, object], board: Board) -> None:
    found = (row["device"], row["version"], row["out_of_date"])
    if found != (board.architecture, own_version(), False):
        raise EmulationError(f"{board.architecture} at version {own_version()} should be ready, and {found} is")
