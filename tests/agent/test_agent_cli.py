"""The command line as a user meets it: real processes, a real broker, and messages that say what to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rigs import waiting
from rigs.brokers import Mosquitto, free_port
from rigs.supernets import random_bundle

from fleetnas.agent.cli.configuration import KEYS, PREFIX, read_configuration, settings_of
from fleetnas.agent.cli.main import build_parser
from fleetnas.agent.cli.options import chosen_settings
from fleetnas.agent.runtimes.settings import parse_setting
from fleetnas.agent.service.identity import Identity
from fleetnas.fleet_protocol.codec import BlobChunk, decode, decode_task_update, encode, encode_chunk
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import (
    AgentInfo,
    BlobReference,
    BlobRequest,
    Inventory,
    MeasurementProtocol,
    Result,
    RuntimeSetting,
    TaskKey,
)
from fleetnas.fleet_protocol.orders import Acknowledgement, MeasureTask
from fleetnas.fleet_protocol.topics import AgentUp, Topics
from fleetnas.fleet_protocol.transports.base import Received
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport
from fleetnas.supernet_export.checkpoints.download import MIRRORS_VARIABLE
from fleetnas.supernet_export.model_file import build_model
from fleetnas.supernet_export.spaces.registry import make_space


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One state folder for all, so that the micro-benchmarks run once."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "FLEETNAS_HOST_LOCK": str(tmp_path / "lock"), "XDG_CONFIG_HOME": str(tmp_path / "config")}


def agent(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return waiting.run([sys.executable, "-m", "fleetnas.agent", *arguments], env=environment)


def test_version() -> None:
    done = agent("--version")
    assert (done.returncode, done.stdout.startswith("fleetnas-agent 0.")) == (0, True)


def test_the_agent_itself_loads_neither_a_runtime_nor_numpy() -> None:
    program = (
        "import fleetnas.agent.service.running, fleetnas.agent.cli.doctor.checks, fleetnas.agent.measuring.bench\n"
        "import fleetnas.agent.cli.main, sys; print(*sys.modules)"
    )
    done = waiting.run([sys.executable, "-c", program])
    loaded = {name.removeprefix("fleetnas.").partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"numpy", "onnx", "onnxruntime", "ai_edge_litert", "supernet_export", "torch", "psutil"}


# -- what was asked for cannot be ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run",), "no broker was named"),
        (("run", "--broker", "host:99999"), "not HOST:PORT"),
        (("run", "--broker", "localhost", "--name", "has space"), "another"),
        (("run", "--broker", "localhost", "--setting", "onnxruntime,speed=9"), "'speed=9'"),
        (("run", "--broker", "localhost", "--setting", "abacus"), "onnxruntime,threads=2"),
        (("run", "--broker", "localhost", "--setting", "litert", "--threads", "2"), "leave out"),
        (("run", "--broker", "localhost", "--log-level", "loud"), "debug, info"),
        (("run", "--broker", "localhost", "--min-battery", "200"), "min_percent"),
        (("run", "--broker", "localhost", "--bundle-mirrors", "http"), "off, https, any"),
        (("run", "--broker", "localhost", "--config", "/no/such.conf"), "/no/such.conf"),
        (("bench", "/no/such.onnx"), "check its path"),
        (("bench", __file__), "neither .onnx nor .tflite"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(
    arguments: tuple[str, ...], says: str, environment: dict[str, str], tmp_path: Path
) -> None:
    extra = ("--state-dir", tmp_path) if arguments[0] == "run" else ()
    done = agent(*arguments, *extra, environment=environment)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_broker_that_does_not_answer_ends_the_agent_when_a_limit_is_set(
    state: Path, environment: dict[str, str]
) -> None:
    broker = f"127.0.0.1:{free_port()}"
    done = agent("run", "--broker", broker, "--state-dir", state, "--connect-timeout", "0.1", environment=environment)
    assert done.returncode == 1
    assert f"broker {broker} was not reached" in done.stderr
    assert "doctor" in done.stderr


def test_the_journal_gets_priorities_and_everybody_else_the_time(state: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "fleetnas.agent", "run", "--broker", f"127.0.0.1:{free_port()}", "--name", "logs"]
    command += ["--state-dir", str(state), "--connect-timeout", "0.1"]

    def log(*, journal: bool) -> list[str]:
        ours, theirs = os.pipe()
        status = os.fstat(theirs)
        # A terminal started by a service inherits the variable, and is not the journal.
        stream = f"{status.st_dev}:{status.st_ino if journal else status.st_ino + 1}"
        done = subprocess.Popen(command, stderr=theirs, env={**environment, "JOURNAL_STREAM": stream})
        os.close(theirs)
        with os.fdopen(ours) as lines, waiting.watching(done):
            said = lines.read().splitlines()
        assert waiting.ended(done) == 1
        return said

    first, *between, last = log(journal=True)
    assert first.startswith("<6>agent logs of fleet default")
    assert all(line.startswith(("<6>", "<4>")) for line in between)
    assert last.startswith("<3>error: broker")
    first, *_, last = log(journal=False)
    assert " INFO agent logs of fleet default" in first
    assert first[:2] == "20"
    assert last.startswith("error: broker")


def test_a_second_agent_of_one_name_on_this_host_is_refused_at_once(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    Identity.claim(tmp_path / "fleets" / "default" / "pi", "pi", 0.0)
    done = agent("run", "--broker", "127.0.0.1", "--name", "pi", "--state-dir", tmp_path, environment=environment)
    assert done.returncode == 2
    assert "already runs on this host" in done.stderr


def test_a_runtime_that_does_not_load_is_said_before_the_fleet_is_joined(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    done = agent(
        "run", "--broker", "127.0.0.1:1", "--state-dir", tmp_path, "--provider", "no-such-chip", environment=environment
    )
    assert done.returncode == 1
    assert "provider 'no-such-chip' is not in this build" in done.stderr


def test_a_state_folder_that_cannot_be_written_is_named(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "file").write_text("in the way")
    done = agent("run", "--broker", "localhost", "--state-dir", tmp_path / "file", environment=environment)
    assert done.returncode == 1
    assert "--state-dir" in done.stderr


# -- configuration ---------------------------------------------------------------------------------------------------


def configured(tmp_path: Path, text: str, **environment: str) -> dict[str, str]:
    file = tmp_path / "agent.conf"
    file.write_text(text)
    return read_configuration(file, environment)


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    text = "[agent]\nbroker = from.file\nname = board-7\n"
    values = configured(tmp_path, text, FLEETNAS_BROKER="from.environment", FLEETNAS_PASSWORD="secret")
    assert values == {"broker": "from.environment", "name": "board-7"}


def test_the_command_line_goes_before_both(tmp_path: Path, environment: dict[str, str]) -> None:
    file = tmp_path / "agent.conf"
    file.write_text("[agent]\nbroker = from.file:99999\nlog_level = loud\n")
    done = agent("run", "--config", file, "--broker", "also:wrong:99999", environment=environment)
    assert "loud" in done.stderr
    done = agent("run", "--config", file, "--log-level", "info", environment=environment)
    assert "'from.file:99999'" in done.stderr


def test_settings_are_a_list_in_both(tmp_path: Path) -> None:
    text = "[agent]\nsettings =\n    onnxruntime,threads=1\n    litert,threads=4\n"
    assert settings_of(configured(tmp_path, text)) == ["onnxruntime,threads=1", "litert,threads=4"]
    values = configured(tmp_path, text, FLEETNAS_SETTINGS="litert; onnxruntime,threads=2")
    assert settings_of(values) == ["litert", "onnxruntime,threads=2"]


def test_a_reader_that_has_seen_enough_is_no_trouble(tmp_path: Path, environment: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "fleetnas.agent", "status", "--state-dir", str(tmp_path)]
    done = waiting.run(command, stdout=writer, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_agents_variables_are_its_own() -> None:
    assert MIRRORS_VARIABLE not in {PREFIX + key.upper() for key in KEYS}, "where `fleetnas export` downloads from"


def test_a_configured_number_that_is_none_is_named(environment: dict[str, str]) -> None:
    for key, value in (("CACHE_MB", "plenty"), ("MEMORY_LIMIT_MB", "0")):
        done = agent("run", "--broker", "localhost", environment={**environment, f"FLEETNAS_{key}": value})
        assert done.returncode == 2
        option = "--" + key.lower().replace("_", "-")
        assert f"{option}: '{value}' is not a whole number of at least 1" in done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[agent]\nbrokr = x\n", "brokr"),
        ("broker = x\n", "section"),
        ("[other]\n", r"\[agent\]"),
        ("[agent]\nx\n", "x"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        configured(tmp_path, text)
    assert "agent.conf" in str(refused.value)


def test_settings_of_the_command_line_replace_configured_ones() -> None:
    parser, _ = build_parser()
    configured_settings = ["litert,threads=4"]
    options = parser.parse_args(["run"])
    assert chosen_settings(options, configured_settings) == [RuntimeSetting(runtime="litert", threads=4)]
    options = parser.parse_args(["run", "--threads", "2", "--runtime", "onnxruntime"])
    assert chosen_settings(options, configured_settings) == [RuntimeSetting(threads=2)]
    options = parser.parse_args(["run", "--setting", "onnxruntime", "--setting", "onnxruntime,threads=1"])
    assert chosen_settings(options, configured_settings) == [RuntimeSetting()]


def test_a_setting_is_read_in_full() -> None:
    text = "onnxruntime,provider=cuda,threads=2,precision=int8,graph_optimization=basic,affinity=0+4-6"
    assert parse_setting(text) == RuntimeSetting(
        runtime="onnxruntime",
        provider="cuda",
        threads=2,
        precision="int8",
        graph_optimisation="basic",
        affinity=(0, 4, 5, 6),
    )


# -- doctor and bench ------------------------------------------------------------------------------------------------


def test_the_doctor_finds_a_healthy_device(
    mosquitto_broker: Mosquitto, tmp_path: Path, environment: dict[str, str]
) -> None:
    arguments = ("doctor", "--broker", mosquitto_broker.address, "--state-dir", tmp_path / "state")
    done = agent(*arguments, "--json", environment=environment)
    report = json.loads(done.stdout)
    status = {check["name"]: check["status"] for check in report["checks"]}
    for name in ("python", "onnxruntime", "litert", "state folder", "host lock", "broker port", "round trip"):
        assert status[name] == "ok", report
    assert done.returncode == 0
    assert "broken" not in status.values()


def test_the_doctor_names_a_fix_for_each_trouble(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "file").write_text("in the way")
    arguments = ("doctor", "--broker", f"127.0.0.1:{free_port()}", "--state-dir", tmp_path / "file")
    done = agent(*arguments, environment=environment)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    broken = [index for index, line in enumerate(lines) if line.startswith("broken")]
    assert [lines[index].split()[1] for index in broken] == ["state", "broker"]
    assert all("->" in lines[index + 1] for index in broken)
    assert "fleetnas broker" in done.stdout


@pytest.mark.parametrize(("suffix", "runtime"), [(".onnx", "onnxruntime"), (".tflite", "litert")])
def test_a_model_file_is_measured_by_hand(
    tmp_path: Path, environment: dict[str, str], suffix: str, runtime: str
) -> None:
    space = make_space("digits")
    bundle = random_bundle(tmp_path / "digits.supernet", space)
    setting = RuntimeSetting.model_validate({"runtime": runtime})
    model = tmp_path / f"model{suffix}"
    model.write_bytes(build_model(bundle, space.decode(space.smallest())[0], None, setting))
    done = agent("bench", model, "--runs", "5", "--time", "0.01", "--json", environment=environment)
    timing = json.loads(done.stdout)["timing"]
    assert timing["runs"] >= 5
    assert 0 < timing["min_ms"] <= timing["median_ms"] <= timing["p90_ms"]


# -- a whole life over MQTT ------------------------------------------------------------------------------------------


class MiniCoordinator:
    """Gives one task to whoever comes and keeps what it hears."""

    def __init__(self, broker: Mosquitto, blob: bytes, task: MeasureTask) -> None:
        self.topics = Topics()
        self.transport = MqttTransport(broker.address, "coordinator")
        self.blob, self.task = blob, task
        for channel in ("info", "inventory", "task", "blob"):
            self.transport.subscribe(self.topics.every_agent(channel))  # type: ignore[arg-type]
        self.transport.start()
        self.transport.wait_connected(waiting.STALL_S)

    def messages(self, agent: subprocess.Popen[Any]) -> Iterator[tuple[str, object]]:
        """What that agent says."""
        while True:
            event = waiting.first(self.transport, lambda event: isinstance(event, Received), agent)
            assert isinstance(event, Received)
            address = self.topics.parse(event.topic)
            assert isinstance(address, AgentUp)
            down = self.topics.down
            if address.channel == "blob":
                request = decode(BlobRequest, event.payload)
                data = self.blob[request.offset : request.offset + request.length]
                chunk = encode_chunk(BlobChunk(request.sha256, request.offset, data))
                self.transport.publish(down(address.agent, "blob"), chunk, qos=0)
            elif address.channel == "info":
                yield "info", decode(AgentInfo, event.payload)
            elif address.channel == "inventory":
                yield "inventory", decode(Inventory, event.payload)
                self.transport.publish(down(address.agent, "task"), encode(self.task))
            else:
                yield "task", decode_task_update(event.payload)


def test_an_agent_killed_after_its_measurement_delivers_it_in_its_next_life(
    mosquitto_broker: Mosquitto, state: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    space = make_space("digits")
    bundle = random_bundle(tmp_path / "digits.supernet", space)
    architecture = space.decode(space.largest())[0]
    task = MeasureTask(
        task=TaskKey(task_id="task-1", attempt=1),
        run_id="run",
        bundle=BlobReference(sha256=bundle.sha256, size=bundle.size),
        architecture=architecture,
        setting=RuntimeSetting(),
        protocol=MeasurementProtocol(warmup_s=0.01, min_runs=9, min_s=0.02, half_width_percent=50),
        deadline_s=3600.0,
    )
    coordinator = MiniCoordinator(mosquitto_broker, bundle.path.read_bytes(), task)
    command = [sys.executable, "-m", "fleetnas.agent", "run", "--name", "pi", "--state-dir", str(state), "--once"]
    command += ["--broker", str(mosquitto_broker.address)]
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    measured: Result | None = None
    for _, message in coordinator.messages(first):
        if isinstance(message, Result):
            measured = message
            break
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert measured is not None
    second = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    held: tuple[TaskKey, ...] = ()
    for _, message in coordinator.messages(second):
        if isinstance(message, Inventory):
            held = message.unacknowledged
        if isinstance(message, Result):
            assert message == measured
            break
    coordinator.transport.publish(Topics().down("pi", "ack"), encode(Acknowledgement(task=measured.task)))
    second.send_signal(signal.SIGTERM)
    assert waiting.ended(second) == 0
    coordinator.transport.close()
    assert held == (task.task,)
    expected = build_model(bundle, architecture, None, RuntimeSetting())
    assert measured.measurement.model_bytes == len(expected)
    import hashlib

    assert measured.measurement.model_sha256 == hashlib.sha256(expected).hexdigest()
