"""Files named like modules in the folder where something is started: none is ever executed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rigs import waiting
from rigs.brokers import free_port
from rigs.supernets import random_bundle

from fleetnas.fleet_protocol.child_process import child_environment, python_command
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.model_file import build_model
from fleetnas.supernet_export.spaces.registry import make_space

#: Of the standard library, of dependencies, of this project: what a child imports first and last.
PLANTED = (
    "fleetnas",
    "agent",
    "coordinator",
    "device_profiles",
    "fleet_protocol",
    "supernet_export",
    "onnxruntime",
    "ai_edge_litert",
    "onnx",
    "numpy",
    "safetensors",
    "pydantic",
    "paho",
    "psutil",
    "argparse",
    "json",
    "logging",
    "struct",
    "sitecustomize",
)
_PLANT = """\
import os
with open(os.environ["PLANTED_LOG"], "a") as log:
    log.write(__file__ + "\\n")
"""

#: What console scripts do: they lie elsewhere, and the folder that they are started in is on no path.
_AGENT = "from fleetnas.agent.cli.main import main; main()"
_DEMO_AGENT = """\
import sys
from pathlib import Path
from fleetnas.coordinator.app.demo import start_agent
from fleetnas.fleet_protocol.transports.base import BrokerAddress
port, work = int(sys.argv[1]), Path(sys.argv[2])
# A setting that its child cannot use: it says so at once.
process = start_agent("demo", BrokerAddress("127.0.0.1", port), work, ("--runtime", "command")).process
sys.exit(process.wait())
"""
_COORDINATOR = """\
import sys
from fleetnas.fleet_protocol.transports.mqtt_process import MqttProcess
from fleetnas.fleet_protocol.transports.base import BrokerAddress, Disconnected
network = MqttProcess(BrokerAddress("127.0.0.1", int(sys.argv[1])), "coordinator")
network.start()
event = network.poll(120)
network.close()
sys.exit(0 if isinstance(event, Disconnected) else f"{event}")
"""


class Planted:
    """A folder with planted files, and programs that are started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "planted"
        self.folder.mkdir()
        for name in PLANTED:
            (self.folder / f"{name}.py").write_text(_PLANT)
        self.scripts = folder / "scripts"
        self.scripts.mkdir()
        self.log = folder / "executed"
        self.log.touch()
        self.environment = {
            **os.environ,
            "PLANTED_LOG": str(self.log),
            "FLEETNAS_HOST_LOCK": str(folder / "lock"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_STATE_HOME": str(folder / "state"),
        }

    def run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        script = self.scripts / "program.py"
        script.write_text(program)
        return waiting.run([sys.executable, script, *arguments], cwd=self.folder, env=self.environment)

    @property
    def executed(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


@pytest.mark.parametrize("module", ["fleetnas.agent", "fleetnas.agent.measuring.child"])
def test_the_plants_would_be_executed_by_python_m(planted: Planted, module: str) -> None:
    command = [sys.executable, "-m", module, "--help"]
    subprocess.run(command, cwd=planted.folder, env=planted.environment, capture_output=True, check=False)
    assert planted.executed


@pytest.mark.parametrize("command", [("--version",), ("status",), ("doctor", "--json"), ("bench", "--help")])
def test_the_console_script_executes_none(planted: Planted, command: tuple[str, ...]) -> None:
    script = Path(sys.executable).with_name("fleetnas-agent")
    done = waiting.run([script, *command], cwd=planted.folder, env=planted.environment)
    assert done.stdout, done.stderr
    assert planted.executed == []


def test_an_agent_that_joins_a_fleet_executes_none(planted: Planted, tmp_path: Path) -> None:
    done = planted.run(
        _AGENT, "run", "--broker", f"127.0.0.1:{free_port()}", "--state-dir", tmp_path / "own", "--connect-timeout", 0.1
    )
    assert "was not reached" in done.stderr, done.stderr  # so its runtime was loaded, in the child
    assert planted.executed == []


def test_a_model_that_is_measured_by_hand_executes_none(planted: Planted, tmp_path: Path) -> None:
    space = make_space("digits")
    bundle = random_bundle(tmp_path / "digits.supernet", space)
    (planted.folder / "model.onnx").write_bytes(
        build_model(bundle, space.decode(space.smallest())[0], None, RuntimeSetting())
    )
    done = planted.run(_AGENT, "bench", "model.onnx", "--runs", 5, "--time", 0.01, "--json")
    assert done.returncode == 0, done.stderr
    assert planted.executed == []


def test_the_demos_agents_execute_none(planted: Planted, tmp_path: Path) -> None:
    planted.run(_DEMO_AGENT, free_port(), tmp_path)
    assert "needs the program's command line" in (tmp_path / "demo.log").read_text()
    assert planted.executed == []


def test_the_coordinators_network_process_executes_none(planted: Planted) -> None:
    done = planted.run(_COORDINATOR, free_port())
    assert done.returncode == 0, done.stderr
    assert planted.executed == []


@pytest.mark.parametrize("entry", ["", ".", "planted"])
def test_paths_that_lead_to_the_current_folder_do_not_reach_a_child(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    folder = planted.folder.parent if entry == "planted" else planted.folder
    monkeypatch.setenv("PYTHONPATH", f"{entry}{os.pathsep}/nowhere")
    monkeypatch.setenv("LD_LIBRARY_PATH", entry)
    monkeypatch.setenv("PLANTED_LOG", str(planted.log))
    environment = child_environment()
    assert environment["PYTHONPATH"] == "/nowhere"
    assert "LD_LIBRARY_PATH" not in environment
    command = python_command("fleetnas.agent.measuring.child", "main", "--help")
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert planted.executed == []
