"""Passwords and private keys: in no environment of a child or of a user's program, and in no file of others."""

from __future__ import annotations

import ast
import datetime
import os
import sys
import tempfile
from pathlib import Path

import pytest
from rigs import waiting
from rigs.brokers import free_port
from rigs.runtime_stand_ins import attach_phone

from fleetnas import agent, coordinator, fleet_protocol, supernet_export
from fleetnas.agent.measuring.messages import BenchOrder, FailedReply, ProbeOrder
from fleetnas.agent.measuring.worker import Worker, child_command, replies_of
from fleetnas.agent.runtimes.adb import Adb
from fleetnas.agent.runtimes.command_runtime import CommandRuntime
from fleetnas.coordinator.app.demo import start_agent
from fleetnas.coordinator.security.certificates import issue, new_authority
from fleetnas.fleet_protocol.child_process import PASSWORD_VARIABLES
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
from fleetnas.fleet_protocol.transports.base import BrokerAddress
from fleetnas.fleet_protocol.transports.mqtt_process import MqttProcess
from fleetnas.fleet_protocol.transports.tls import TlsContext

SECRET = "correct-horse-battery-staple"
PACKAGES = (fleet_protocol, supernet_export, agent, coordinator)
_STARTS = {"run", "Popen", "call", "check_call", "check_output"}


@pytest.fixture(autouse=True)
def exported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PASSWORD_VARIABLES:
        monkeypatch.setenv(name, SECRET)


def environment_of(process: int | None) -> bytes:
    found = Path(f"/proc/{process}/environ").read_bytes()
    assert b"PATH=" in found
    return found


def test_every_process_that_is_started_gets_an_environment_of_its_own() -> None:
    starts, careless = 0, []
    for package in PACKAGES:
        for file in Path(str(package.__file__)).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                if ast.unparse(node.func.value) != "subprocess" or node.func.attr not in _STARTS:
                    continue
                starts += 1
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if "child_environment" not in given.get("env", "") and given.get("env") != "environment":
                    careless.append(f"{file}:{node.lineno}")
    assert starts >= 7
    assert careless == []


def test_the_measuring_child_has_no_password(tmp_path: Path) -> None:
    worker = Worker(child_command(tmp_path / "lock"))
    try:
        worker.submit(ProbeOrder(setting=RuntimeSetting(runtime="command")))
        assert SECRET.encode() not in environment_of(worker.pid)
        assert isinstance(list(replies_of(worker, waiting.STALL_S))[-1], FailedReply)
    finally:
        worker.kill()


def test_the_network_process_has_no_password() -> None:
    network = MqttProcess(BrokerAddress("127.0.0.1", free_port(), username="c", password=SECRET), "coordinator")
    network.start()
    try:
        assert network.poll(waiting.STALL_S) is not None
        assert SECRET.encode() not in environment_of(network.pid)
    finally:
        network.close()


def test_the_demos_agents_have_no_password(tmp_path: Path) -> None:
    process = start_agent("demo", BrokerAddress("127.0.0.1", free_port()), tmp_path, ()).process
    try:
        assert SECRET.encode() not in environment_of(process.pid)
    finally:
        process.kill()
        process.wait()


def test_a_users_program_has_no_password_and_cannot_read_the_agents_orders(tmp_path: Path) -> None:
    said = tmp_path / "said"
    program = tmp_path / "program.py"
    program.write_text(
        "import json, os, sys\n"
        f"open({str(said)!r}, 'w').write(repr(dict(os.environ)) + repr(sys.stdin.read()))\n"
        "print(json.dumps({'times_ms': [1.0, 1.0, 1.0]}))\n"
    )
    model = CommandRuntime(f"{sys.executable} {program} {{model}}").load(b"model", RuntimeSetting(runtime="command"))
    model.time(MeasurementProtocol())
    model.close()
    assert "PATH" in said.read_text()
    assert SECRET not in said.read_text()
    assert said.read_text().endswith("''")


def test_adb_has_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attach_phone(tmp_path, monkeypatch)
    adb = tmp_path / "bin" / "adb"
    adb.write_text("#!/bin/sh\nenv\n")
    listed = Adb().run("devices")
    assert "PATH" in listed
    assert SECRET not in listed


def test_what_a_child_leaves_is_readable_by_its_user_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = tmp_path / "mask"
    program = tmp_path / "program.py"
    program.write_text(
        "import json, os\n"
        f"open({str(mask)!r}, 'w').write(oct(os.umask(0)))\n"
        "print(json.dumps({'times_ms': [1.0, 1.0, 1.0]}))\n"
    )
    model = tmp_path / "model.onnx"
    model.write_bytes(b"model")
    monkeypatch.setenv("FLEETNAS_COMMAND", f"{sys.executable} {program} {{model}}")
    worker = Worker(child_command(tmp_path / "lock"))
    try:
        worker.submit(
            BenchOrder(model_path=str(model), setting=RuntimeSetting(runtime="command"), protocol=MeasurementProtocol())
        )
        list(replies_of(worker, waiting.STALL_S))
    finally:
        worker.kill()
    assert mask.read_text() == "0o77"


def test_a_private_key_is_written_to_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    ca = new_authority("fleet", now)
    issued = issue(ca, "pi", "client", now)
    address = BrokerAddress(
        "broker", 8883, tls=True, ca_pem=ca.certificate, certificate_pem=issued.certificate, key_pem=issued.key
    )
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")  # any file for it fails
    TlsContext.of(address)


def test_without_memory_files_a_key_lies_in_a_closed_folder_and_is_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    ca = new_authority("fleet", now)
    issued = issue(ca, "pi", "client", now)
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[int] = []

    class Watched(TlsContext):
        def load_cert_chain(self, certfile, *rest, **options):  # type: ignore[no-untyped-def]
            seen.append(os.stat(certfile).st_mode & 0o777)
            seen.append(os.stat(os.path.dirname(certfile)).st_mode & 0o777)
            return super().load_cert_chain(certfile, *rest, **options)

    login = {"certificate_pem": issued.certificate, "key_pem": issued.key, "ca_pem": ca.certificate}
    Watched.of(BrokerAddress("broker", 8883, tls=True, **login))
    assert seen == [0o600, 0o700]
    assert list(tmp_path.iterdir()) == []
