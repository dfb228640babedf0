"""From an empty home to a verified winner: the pasted line, in a network of two machines without a way out."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rigs import waiting

from fleetnas.coordinator.app.own_wheel import own_version, own_wheel

COORDINATOR, DEVICE = "10.77.0.1", "10.77.0.2"
FLEETNAS = str(Path(sys.executable).with_name("fleetnas"))


@dataclass(frozen=True)
class Machine:
    """A network namespace with one address."""

    holder: subprocess.Popen[str]

    def command(self, *words: str) -> list[str]:
        return ["nsenter", "--target", str(self.holder.pid), "--net", *words]

    def run(self, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
        return waiting.run(self.command(*words), **options)


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    """Two machines with a cable between them, and no other network."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip("making a network namespace takes root's rights")
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(2):
            holder = subprocess.Popen(["unshare", "--net", "sleep", "3600"], text=True)
            stack.callback(holder.wait)
            stack.callback(holder.kill)
            made.append(Machine(holder))
        own = os.readlink("/proc/self/ns/net")
        for machine in made:
            name = f"/proc/{machine.holder.pid}/ns/net"
            waiting.until(lambda name=name: os.readlink(name) != own, machine.holder, what="a namespace of its own")
        ends = [("veth-a", made[0], COORDINATOR), ("veth-b", made[1], DEVICE)]
        cable = ["ip", "link", "add", "veth-a", "netns", str(made[0].holder.pid), "type", "veth"]
        cabled = waiting.run([*cable, "peer", "name", "veth-b", "netns", str(made[1].holder.pid)])
        if cabled.returncode:
            pytest.skip(f"no network of two namespaces can be made here: {cabled.stderr.strip()}")
        for name, machine, address in ends:
            machine.run("ip", "address", "add", f"{address}/24", "dev", name).check_returncode()
            machine.run("ip", "link", "set", name, "up").check_returncode()
            machine.run("ip", "link", "set", "lo", "up").check_returncode()
        yield made[0], made[1]


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages that the agent needs, from pip's index; or the folder that `FLEETNAS_WHEELHOUSE` names."""
    if given := os.environ.get("FLEETNAS_WHEELHOUSE"):
        return Path(given)
    folder = tmp_path_factory.mktemp("wheelhouse")
    wheel = own_wheel()
    (folder / wheel.name).write_bytes(wheel.content)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", str(folder)]
    done = waiting.run([*download, f"{folder / wheel.name}[agent]"])
    if done.returncode:
        pytest.skip(f"the agent's packages cannot be downloaded here: {done.stderr.strip()[-300:]}")
    (folder / wheel.name).unlink(missing_ok=True)  # that one comes from the coordinator
    return folder


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def started(stack: contextlib.ExitStack, command: list[str], log: Path, **options: object) -> subprocess.Popen[str]:
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True, **options
        )  # type: ignore[call-overload]
    stack.callback(process.wait)
    for number in (signal.SIGKILL, signal.SIGTERM):  # the last one first; a shell's program ends with it
        stack.callback(_signal, process, number)
    return process


@dataclass(frozen=True)
class Newcomer:
    """Two machines, of which one serves its fleetnas; both programs' output is kept."""

    coordinator: Machine
    device: Machine
    folder: Path
    wheelhouse: Path

    @property
    def workstation(self) -> dict[str, str]:
        """Environment of the coordinator's user, who has a configuration file."""
        places = {"XDG_DATA_HOME": str(self.folder / "data"), "FLEETNAS_CONFIG": str(self.folder / "conf.toml")}
        return {**os.environ, **places, "PYTHONUNBUFFERED": "1"}

    @property
    def bare(self) -> dict[str, str]:
        """Environment of the device's user: an interpreter without packages, and an empty home."""
        interpreter = Path(sys.base_prefix) / "bin"
        return {
            "HOME": str(self.home), "PATH": f"{interpreter}:/usr/bin:/bin", "LANG": "C.UTF-8",
            "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheelhouse), "PIP_CONFIG_FILE": os.devnull,
        }  # fmt: skip

    @property
    def home(self) -> Path:
        """Home of the device's user."""
        return self.folder / "home"

    def told(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the coordinator's user."""
        return self.coordinator.run(FLEETNAS, *words, env=self.workstation, cwd=self.folder)

    def serve(self, stack: contextlib.ExitStack) -> tuple[subprocess.Popen[str], str, str]:
        """Start the broker; returns it, the line that it prints, and its port."""
        said = self.folder / "broker.log"
        words = (FLEETNAS, "broker", "--host", "0.0.0.0", "--port", "0", "--install-port", "0")
        broker = started(stack, self.coordinator.command(*words), said, env=self.workstation)
        waiting.until(lambda: "--service" in said.read_text(), broker, what=said.read_text)
        text = said.read_text()
        (line,) = re.findall(r"^sh -c .*$", text, re.MULTILINE)
        return broker, line, re.findall(r"listens on \S+:(\d+)", text)[0]

    def ready(self) -> dict[str, object] | None:
        """Return the row of an agent that is ready; None before that."""
        rows = [json.loads(row) for row in self.told("devices", "--json").stdout.splitlines()]
        return next((row for row in rows if row["state"] == "ready"), None)

    def search(self) -> list[dict[str, Any]]:
        """Search two targets; returns the events."""
        # Any subnet meets these by far: whether a real device is quiet enough is no question of this test.
        words = ("search", "--supernet", "digits.supernet", "--targets", "500,1000", "--budget", "12", "--json")
        quick = ("--min-time", "0.05", "--min-runs", "5", "--warmup", "0")
        run = self.told(*words, *quick, "--name", "first", "--out", "out")
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr
        return [json.loads(each) for each in run.stdout.splitlines()]


@pytest.mark.xdist_group("measuring-child")
def test_from_a_pasted_line_to_a_verified_winner(
    machines: tuple[Machine, Machine], wheelhouse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = Newcomer(*machines, tmp_path, wheelhouse)
    world.home.mkdir()
    configuration = tmp_path / "conf.toml"
    configuration.write_text("")
    world.told("export", "digits", "-o", "digits.supernet").check_returncode()
    log = tmp_path / "agent.log"
    with contextlib.ExitStack() as stack:
        broker, line, port = world.serve(stack)
        assert f"u=http://{COORDINATOR}:" in line
        assert "127.0.0.1" not in line
        configuration.write_text(f'broker = "{COORDINATOR}:{port}"\n')

        pasted_s = time.time()
        paste = world.device.command("sh", "-c", f"{line} --run --name newcomer")
        agent = started(stack, paste, log, env=world.bare, cwd=world.home)
        waiting.until(lambda: agent.poll() is not None or "starting the agent" in log.read_text(), agent, what="agent")
        assert agent.poll() is None, log.read_text()
        installed_s = time.time() - pasted_s
        row = waiting.until(world.ready, agent, broker, what=log.read_text)
        assert (row["device"], row["version"], row["out_of_date"]) == ("newcomer", own_version(), False)
        ready_s = time.time() - pasted_s

        events = world.search()
        assert len([each for each in events if each["event"] == "winner_verified"]) == 2
        first_s = next(each["at_s"] for each in events if each["event"] == "measurement") - pasted_s
        with capsys.disabled():
            sys.stdout.write(
                f"\nnewcomer: from paste to installed {installed_s:.0f} s, to ready {ready_s:.0f} s, to the first "
                f"measurement {first_s:.0f} s, to two verified winners {time.time() - pasted_s:.0f} s\n"
            )
        assert "newcomer" in world.told("results", "first").stdout

        # The same line again updates what is there, and keeps the name.
        again = world.device.run("sh", "-c", line, env=world.bare, cwd=world.home)
        assert again.returncode == 0, again.stdout + again.stderr
        assert "kept the configuration" in again.stdout
        configured = (world.home / ".config" / "fleetnas" / "agent.conf").read_text()
        assert f"broker = {COORDINATOR}:{port}\n" in configured
        assert "name = newcomer\n" in configured
