"""What is sent goes to the broker, and nothing is kept that nobody asked for: real processes, watched from outside."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest
from rigs import waiting
from rigs.brokers import Mosquitto
from rigs.supernets import random_bundle

from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.export import export_digits
from fleetnas.supernet_export.model_file import build_model
from fleetnas.supernet_export.spaces.registry import make_space

# Of one group with the whole searches of others: each keeps a core busy.
pytestmark = pytest.mark.xdist_group("endtoend")

AGENT = (sys.executable, "-m", "fleetnas.agent")
COORDINATOR = (sys.executable, "-c", "from fleetnas.coordinator.cli import main; main()")
_ADDRESS = re.compile(
    r"sa_family=AF_INET6?, sin6?_port=htons\((\d+)\).*?(?:inet_addr\(|inet_pton\(AF_INET6, )\"([^\"]+)\""
)
#: Every way to name an address to the kernel; what is sent on a connection goes where that was opened to.
_TRACED = "trace=connect,sendto,sendmsg,sendmmsg"


@dataclass(frozen=True)
class Observer:
    """Runs programs with a home of their own, and writes down which addresses they speak to."""

    folder: Path
    strace: str

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def command(self, *program: object) -> list[str]:
        # Detached, so that signals and the exit code are the program's own.
        watch = (self.strace, "-D", "-f", "-q", "-e", _TRACED, "-o", self.folder / "trace", "-A")
        return [str(word) for word in (*watch, *program)]

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
        # onnxruntime keeps quiet by itself where it takes a machine for a build server.
        for name in ("CI", "TF_BUILD", "GITHUB_ACTIONS", "BUILD_ID"):
            kept.pop(name, None)
        return {
            **kept,
            "HOME": str(self.home),
            "FLEETNAS_HOST_LOCK": str(self.folder / "lock"),
            "MPLCONFIGDIR": str(self.folder / "matplotlib"),
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        }

    def run(self, *program: object, codes: tuple[int, ...] = (0,)) -> None:
        """Wait for its end, which must be with one of these exit codes."""
        # In a session of its own, since a search lowers the priority of its session.
        done = waiting.run(
            self.command(*program), env=self.environment(), cwd=self.folder / "here", start_new_session=True
        )
        assert done.returncode in codes, done.stdout + done.stderr

    @contextlib.contextmanager
    def running(self, *program: object) -> Iterator[None]:
        """Run it meanwhile; it ends by itself, and well."""
        process = subprocess.Popen(
            self.command(*program), env=self.environment(), cwd=self.folder / "here", stderr=subprocess.DEVNULL
        )
        try:
            yield
            assert waiting.ended(process) == 0
        finally:
            process.kill()
            process.wait()

    def spoken_to(self, *servers: int) -> set[tuple[str, int]]:
        """Addresses and ports; on this machine only the ports of `servers`, since paho-mqtt wakes itself over TCP."""
        trace = (self.folder / "trace").read_text()
        assert "+++ exited with" in trace, "nothing was watched"
        found = {(address, int(port)) for port, address in _ADDRESS.findall(trace)}
        return {(address, port) for address, port in found if port in servers or not ip_address(address).is_loopback}

    def left_behind(self) -> list[str]:
        """Files that nobody asked for, in the home folder and the current one."""
        return sorted(path.name for folder in (self.home, self.folder / "here") for path in folder.rglob("*"))


@pytest.fixture
def observer(tmp_path: Path) -> Observer:
    strace = shutil.which("strace")
    tried = strace and subprocess.run([strace, "-o", os.devnull, "true"], capture_output=True, check=False)
    if not strace or not tried or tried.returncode != 0:
        pytest.skip("strace is not installed, or not allowed to watch (apt-get install strace)")
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    return Observer(tmp_path, strace)


def test_the_observer_sees_whom_a_program_speaks_to_and_what_it_leaves(observer: Observer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = (
            f"import socket; socket.create_connection(('127.0.0.1', {port})); open('left', 'w')\n"
            "afar = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); afar.setblocking(False)\n"
            "try: afar.sendto(b'', ('192.0.2.1', 9))\n"  # an address that is nobody's; a sandbox may refuse it
            "except OSError: pass\n"
        )
        observer.run(sys.executable, "-c", program)
    assert observer.spoken_to(port) == {("127.0.0.1", port), ("192.0.2.1", 9)}
    assert observer.left_behind() == ["left"]


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_measuring_a_file_by_hand_speaks_to_nobody(observer: Observer, suffix: str) -> None:
    space = make_space("digits")
    bundle = random_bundle(observer.folder / "digits.supernet", space)
    setting = RuntimeSetting(runtime="onnxruntime" if suffix == ".onnx" else "litert")
    model = observer.folder / f"model{suffix}"
    model.write_bytes(build_model(bundle, space.decode(space.smallest())[0], None, setting))
    observer.run(*AGENT, "bench", model, "--runs", "5", "--time", "0.01")
    assert observer.spoken_to() == set()
    assert observer.left_behind() == []


def test_the_doctor_speaks_to_the_broker_alone(observer: Observer, mosquitto_broker: Mosquitto) -> None:
    observer.run(
        *(*AGENT, "doctor", "--broker", mosquitto_broker.address, "--state-dir", observer.folder / "state"),
    )
    assert observer.spoken_to(mosquitto_broker.port) == {("127.0.0.1", mosquitto_broker.port)}
    assert observer.left_behind() == []


def test_a_whole_search_speaks_to_the_broker_alone(observer: Observer, mosquitto_broker: Mosquitto) -> None:
    """Coordinator, agent and measuring child; a winner is calibrated and evaluated with onnxruntime.

    The agent, run once, stays to the search's end and ends with it.
    """
    broker, folder = ("--broker", mosquitto_broker.address), observer.folder
    export_digits(folder / "digits.supernet")
    quick = ("--warmup", "0", "--min-time", "0.02", "--min-runs", "5", "--budget", "3")
    with observer.running(*AGENT, "run", *broker, "--name", "pi", "--state-dir", folder / "state", "--once"):
        observer.run(
            *(*COORDINATOR, "search", *broker, "--supernet", folder / "digits.supernet", "--targets", "1000"),
            *(*quick, "--store", folder / "runs.sqlite", "--out", folder / "out", "--json"),
            codes=(0, 1),  # a busy machine's measurements do not count, and its target may be missed
        )
    assert (folder / "out" / "results.json").exists()
    assert observer.spoken_to(mosquitto_broker.port) == {("127.0.0.1", mosquitto_broker.port)}
    assert observer.left_behind() == []


def test_evaluating_a_subnet_speaks_to_nobody(observer: Observer) -> None:
    export_digits(observer.folder / "digits.supernet")
    observer.run(*COORDINATOR, "evaluate", observer.folder / "digits.supernet", "smallest", "--json")
    assert observer.spoken_to() == set()
    assert observer.left_behind() == []
