"""The systemd service: what is written, what is run, and what is told to the service manager."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from agent.configuration import read_configuration, settings_of
from agent.identity import Identity
from agent.installation import Installation, closed_folder, install, uninstall
from agent.outbox import Outbox
from agent.service_manager import ServiceManager
from agent.standing import host_standing, standing_lines
from fleet_protocol.errors import FleetnasError, UsageError
from fleet_protocol.messages import TaskKey

VALUES = {"broker": "pi.local:1884", "name": "pi", "settings": "onnxruntime,threads=1\nlitert,threads=4"}


def staged(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "root", Path("/opt/fleetnas/bin/python"))


def nothing(command: list[str]) -> None:
    raise AssertionError(f"a staged installation runs {command}")


def test_the_configuration_that_is_written_is_the_one_that_run_reads(tmp_path: Path) -> None:
    installation = staged(tmp_path)
    install(installation, VALUES, start=True, run=nothing)
    values = read_configuration(installation.configuration, {})
    assert (values["broker"], values["name"]) == ("pi.local:1884", "pi")
    assert settings_of(values) == ["onnxruntime,threads=1", "litert,threads=4"]


def test_a_python_in_a_home_that_is_closed_to_others_is_noticed() -> None:
    with tempfile.TemporaryDirectory() as temporary:  # pytest's own are closed further up
        base = Path(temporary).resolve()
        base.chmod(0o755)
        python = base / "home" / "fleetnas" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch()
        assert closed_folder(python) is None
        (base / "home").chmod(0o700)
        assert closed_folder(python) == base / "home"
        link = base / "python"
        link.symlink_to(python)
        assert closed_folder(link) == base / "home"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit_and_finds_it_well_confined(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    installation = Installation(tmp_path / "root", python)
    install(installation, VALUES, start=True, run=nothing)
    verified = subprocess.run(
        ["systemd-analyze", "verify", str(installation.unit)], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    # The threshold is in tenths; systemd calls what stays below 5.0 OK or better.
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=35", str(installation.unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert rated.returncode == 0, rated.stdout[-300:]


def test_the_service_reaches_accelerators_and_the_boards_firmware(tmp_path: Path) -> None:
    installation = staged(tmp_path)
    install(installation, VALUES, start=True, run=nothing)
    settings = [line.partition("=")[0] for line in installation.unit.read_text().splitlines()]
    assert not {"PrivateDevices", "DeviceAllow", "DevicePolicy", "ProtectClock"} & set(settings)
    assert "SystemCallFilter" in settings


def test_a_new_installation_keeps_an_old_configuration(tmp_path: Path) -> None:
    installation = staged(tmp_path)
    install(installation, VALUES, start=True, run=nothing)
    written = installation.configuration.read_text()
    done = install(installation, {}, start=True, run=nothing)
    assert installation.configuration.read_text() == written
    assert "kept" in done[0]


def test_without_a_broker_nothing_is_installed(tmp_path: Path) -> None:
    for values in ({}, {"name": "pi"}):
        with pytest.raises(UsageError, match="--broker"):
            install(staged(tmp_path), values, start=True, run=nothing)
    assert not (tmp_path / "root").exists()


def test_removing_leaves_configuration_and_says_how_to_remove_it(tmp_path: Path) -> None:
    installation = staged(tmp_path)
    install(installation, VALUES, start=True, run=nothing)
    done = uninstall(installation, run=nothing)
    assert not installation.unit.exists()
    assert installation.configuration.exists()
    assert "sudo rm -r" in done[-1]
    with pytest.raises(UsageError, match="nothing was changed"):
        uninstall(installation, run=nothing)


def test_only_root_may_touch_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="sudo"):
        install(Installation(), VALUES, start=True, run=nothing)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("in the way")
    with pytest.raises(FleetnasError, match="cannot be written"):
        install(staged(tmp_path), VALUES, start=True, run=nothing)


def test_the_service_manager_hears_that_the_agent_is_ready_and_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "120000000")
        manager = ServiceManager()
        assert "NOTIFY_SOCKET" not in os.environ, "a child could speak for us"
        manager.ready()
        for now in range(0, 130, 10):
            manager.alive(float(now))
        manager.stopping()
        heard = [systemd.recv(100) for _ in range(5)]
        with pytest.raises(BlockingIOError):
            systemd.recv(100)
    assert heard == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_without_a_service_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    manager = ServiceManager()
    manager.ready()
    manager.alive(0.0)


def test_status_tells_running_from_stopped_and_counts_what_is_held(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / "fleets" / "lab" / name
        identity = Identity.claim(folder, name, 1.7e9)
        outbox = Outbox(folder / "outbox.sqlite")
        for number in range(3):
            outbox.put(TaskKey(task_id=f"t{number}", attempt=1), b"x")
        outbox.acknowledge(TaskKey(task_id="t0", attempt=1))
        if name == "two":
            identity.release()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "ab").write_bytes(bytes(1000))
    standing = host_standing(tmp_path)
    assert [(a.name, a.running, a.unacknowledged, a.acknowledged) for a in standing.agents] == [
        ("one", True, 2, 1),
        ("two", False, 2, 1),
    ]
    assert standing.blob_bytes == 1000
    assert "lab/one: running, 2 results to deliver, 1 delivered" in standing_lines(standing)


def test_status_of_a_host_without_agents_says_how_to_start_one(tmp_path: Path) -> None:
    assert "fleetnas-agent run" in standing_lines(host_standing(tmp_path / "absent"))[0]
