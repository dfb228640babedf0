"""From an empty home to a verified winner: the pasted line, in a network of two machines without a way out."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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


def started(stack: contextlib.ExitStack, command: list[str], log: Path, **options: object) -> subprocess.Popen[str]:
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True, **options)  # type: ignore[call-overload]
    stack.callback(process.wait)
    stack.callback(process.kill)
    stack.callback(process.terminate)
    return process


@pytest.mark.xdist_group("measuring-child")
def test_from_a_pasted_line_to_a_verified_winner(
    machines: tuple[Machine, Machine], wheelhouse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coordinator, device = machines
    workstation = {
        **os.environ,
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "FLEETNAS_CONFIG": str(tmp_path / "conf.toml"),
    }
    (tmp_path / "conf.toml").write_text("")
    home = tmp_path / "home"
    home.mkdir()
    # The interpreter below this test's environment: it has no packages, as that of a device.
    interpreter = Path(sys.base_prefix) / "bin"
    bare = {
        "HOME": str(home), "PATH": f"{interpreter}:/usr/bin:/bin", "LANG": "C.UTF-8",
        "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheelhouse), "PIP_CONFIG_FILE": os.devnull,
    }  # fmt: skip

    def told(*words: str) -> subprocess.CompletedProcess[str]:
        return coordinator.run(FLEETNAS, *words, env=workstation, cwd=tmp_path)

    with contextlib.ExitStack() as stack:
        said = tmp_path / "broker.log"
        serve = coordinator.command(FLEETNAS, "broker", "--host", "0.0.0.0", "--port", "0", "--install-port", "0")
        broker = started(stack, serve, said, env={**workstation, "PYTHONUNBUFFERED": "1"})
        waiting.until(lambda: "--service" in said.read_text(), broker, what=said.read_text)
        text = said.read_text()
        (line,) = re.findall(r"^sh -c .*$", text, re.MULTILINE)
        assert f"u=http://{COORDINATOR}:" in line
        assert "127.0.0.1" not in line
        port = re.findall(r"listens on \S+:(\d+)", text)[0]
        (tmp_path / "conf.toml").write_text(f'broker = "{COORDINATOR}:{port}"\n')

        told("export", "digits", "-o", "digits.supernet").check_returncode()
        pasted_s, pasted_unix_s = time.monotonic(), time.time()
        agent_log = tmp_path / "agent.log"
        paste = device.command("sh", "-c", f"{line} --run --name newcomer")
        agent = started(stack, paste, agent_log, env=bare, cwd=home)
        waiting.until(
            lambda: agent.poll() is not None or "starting the agent" in agent_log.read_text(), agent,
            what=agent_log.read_text,
        )  # fmt: skip
        assert agent.poll() is None, agent_log.read_text()
        installed_s = time.monotonic() - pasted_s

        def ready() -> dict[str, object] | None:
            rows = [json.loads(row) for row in told("devices", "--json").stdout.splitlines()]
            return next((row for row in rows if row["state"] == "ready"), None)

        row = waiting.until(ready, agent, broker, what=agent_log.read_text)
        assert (row["device"], row["version"], row["out_of_date"]) == ("newcomer", own_version(), False)
        ready_s = time.monotonic() - pasted_s

        search = ("search", "--supernet", "digits.supernet", "--targets", "500,1000", "--budget", "12", "--json")
        # Any subnet meets these by far: whether a real device is quiet enough is no question of this test.
        run = told(*search, "--min-time", "0.05", "--min-runs", "5", "--warmup", "0", "--name", "first", "--out", "out")
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr + agent_log.read_text()
        events = [json.loads(each) for each in run.stdout.splitlines()]
        verified = [each for each in events if each["event"] == "winner_verified"]
        assert len(verified) == 2
        assert told("results", "first").stdout.count("newcomer") >= 1
        first_s = next(each["at_s"] for each in events if each["event"] == "measurement")
        won_s = time.time() - pasted_unix_s
        with capsys.disabled():
            sys.stdout.write(
                f"\nnewcomer: from paste to installed {installed_s:.0f} s, to ready {ready_s:.0f} s, to the first "
                f"measurement {first_s - pasted_unix_s:.0f} s, to two verified winners {won_s:.0f} s\n"
            )

        # The same line again updates what is there, and keeps the name.
        again = device.run("sh", "-c", line, env=bare, cwd=home)
        assert again.returncode == 0, again.stdout + again.stderr
        assert "kept the configuration" in again.stdout
        configured = (home / ".config" / "fleetnas" / "agent.conf").read_text()
        assert f"broker = {COORDINATOR}:{port}\n" in configured
        assert "name = newcomer\n" in configured
