"""The systemd service: what is written, what is run, and what is told to the service manager."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from fleetnas.agent.cli.configuration import read_configuration, settings_of
from fleetnas.agent.cli.installation.layout import Installation
from fleetnas.agent.cli.installation.service import install, uninstall
from fleetnas.agent.cli.installation.unit import quoted_word
from fleetnas.agent.cli.installation.values import checked_values, closed_folder
from fleetnas.agent.cli.status import status_lines
from fleetnas.agent.service.host_status import read_host_status
from fleetnas.agent.service.identity import Identity
from fleetnas.agent.service.outbox import Outbox
from fleetnas.agent.service.service_manager import ServiceManager
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError
from fleetnas.fleet_protocol.messages import TaskKey
from fleetnas.fleet_protocol.security.credentials import Credentials, write_credentials

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


def test_the_unit_starts_a_module_that_exists(tmp_path: Path) -> None:
    installation = staged(tmp_path)
    install(installation, VALUES, start=True, run=nothing)
    (start,) = [line for line in installation.unit.read_text().splitlines() if line.startswith("ExecStart=")]
    module = start.split(" -m ")[1].split()[0]
    assert importlib.util.find_spec(f"{module}.__main__") is not None
    assert " run --config /etc/fleetnas/agent.conf" in start


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


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def verify(unit: Path) -> tuple[int, str]:
    """What systemd says about a unit: among others whether it finds the program of its command."""
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    return verified.returncode, verified.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize(
    "folder",
    [
        "My Programs",
        "100%",
        "%h %n",
        "; rm",
        "#1",
        "größe",
        " leading",
        "a=b,c:d+e@f",
        "(x)&|<>*?[a]!~`^",
    ],
)
def test_systemd_finds_a_program_whatever_its_path_is(tmp_path: Path, folder: str) -> None:
    installation = Installation(tmp_path / "root", program(tmp_path / folder / "bin" / "python"))
    install(installation, VALUES, start=True, run=nothing)
    assert verify(installation.unit) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_would_notice_a_program_that_is_not_there(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "root", tmp_path / "100%" / "python")
    install(installation, VALUES, start=True, run=nothing)
    code, said = verify(installation.unit)
    assert code != 0
    assert "100%/python" in said


@pytest.mark.parametrize("folder", ["new\nline", "bell\a", "$HOME", "tab\t", "zero\u200bwidth", "it's", '"', "a\\x41"])
def test_a_program_whose_path_no_unit_can_hold_is_refused_and_nothing_is_written(tmp_path: Path, folder: str) -> None:
    installation = Installation(tmp_path / "root", tmp_path / folder / "python")
    with pytest.raises(UsageError, match="without"):
        install(installation, VALUES, start=True, run=nothing)
    assert not installation.root.exists()


def test_arguments_are_quoted_as_systemd_unquotes_them() -> None:
    assert quoted_word("/etc/fleetnas/agent.conf") == "/etc/fleetnas/agent.conf"
    assert quoted_word("/a b") == '"/a b"'
    assert quoted_word('50% of $HOME "x" \\') == '"50%% of $$HOME \\"x\\" \\\\"'
    assert quoted_word("") == '""'


# -- what is written down is what run takes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"name": "has space"}, "agent name 'has space'"),
        ({"name": "../../etc"}, "agent name"),
        ({"name": "a" * 65}, "agent name"),
        ({"name": "pi\nfleet = other"}, "name"),
        ({"fleet": "my/fleet"}, "fleet"),
        ({"fleet": "#"}, "fleet"),
        ({"broker": "host:99999"}, "not HOST:PORT"),
        ({"settings": "onnxruntime,speed=9"}, "'speed=9'"),
        ({"settings": "onnxruntime\n# litert"}, "# litert"),
        ({"username": "pi\n[other]"}, "username"),
        ({"username": " pi"}, "username"),
        ({"ca_file": "ca\x1b[2J.pem"}, "ca_file"),
    ],
)
def test_what_the_service_could_never_start_with_is_refused_and_nothing_is_written(
    tmp_path: Path, values: dict[str, str], says: str
) -> None:
    installation = staged(tmp_path)
    with pytest.raises(UsageError) as refused:
        install(installation, {**VALUES, **values}, start=True, run=nothing)
    assert says in str(refused.value)
    assert not installation.root.exists()


def test_file_names_are_written_down_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/pi")
    installation = staged(tmp_path)
    files = {"password_file": "pass word%", "ca_file": "../ca.pem", "certificate_file": "~/pi.pem", "key_file": "/k"}
    install(installation, {**VALUES, "username": "pi", **files}, start=True, run=nothing)
    values = read_configuration(installation.configuration, {})
    assert {key: values[key] for key in files} == {
        "password_file": str(tmp_path / "pass word%"),
        "ca_file": str(tmp_path / "../ca.pem"),
        "certificate_file": "/home/pi/pi.pem",
        "key_file": "/k",
    }


@pytest.mark.parametrize("extra", [{"name": "other"}, {"fleet": "other"}, {"username": "pi"}, {"ca_file": "/ca.pem"}])
def test_options_against_the_credentials_are_refused_before_any_file_is_written(
    tmp_path: Path, extra: dict[str, str]
) -> None:
    file = tmp_path / "pi.credentials"
    write_credentials(file, Credentials(role="agent", fleet="lab", name="pi", host="broker", port=8883, password="x"))
    installation = staged(tmp_path)
    with pytest.raises(UsageError, match=r"contradicts|leave out"):
        install(installation, {"credentials": str(file), **extra}, start=True, run=nothing)
    assert not installation.root.exists()
    install(installation, {"credentials": str(file), "name": "pi"}, start=True, run=nothing)
    assert installation.credentials.stat().st_mode & 0o777 == 0o640
    assert read_configuration(installation.configuration, {})["credentials"] == "/etc/fleetnas/agent.credentials"


def test_a_kept_configuration_that_the_service_could_not_start_with_is_refused(tmp_path: Path) -> None:
    installation = staged(tmp_path)
    install(installation, VALUES, start=True, run=nothing)
    installation.configuration.write_text("[agent]\nbroker = pi.local\nname = has space\n")
    with pytest.raises(UsageError, match="'has space'"):
        install(installation, {}, start=True, run=nothing)


@pytest.mark.skipif(os.geteuid() != 0, reason="the modes of files do not stop anybody else from being asked")
def test_files_that_the_services_user_cannot_read_are_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetnas.agent.cli.installation.values.is_temporary", lambda path: False)
    with tempfile.TemporaryDirectory() as temporary:  # pytest's own are closed further up
        base = Path(temporary).resolve()
        base.chmod(0o755)
        password = base / "pass word"
        values = {**VALUES, "username": "pi", "password_file": str(password)}
        with pytest.raises(UsageError, match="check --password-file"):
            checked_values(values, staged=False)
        password.write_text("secret")
        password.chmod(0o600)
        with pytest.raises(UsageError, match=r"chgrp fleetnas '.*pass word' && sudo chmod 640"):
            checked_values(values, staged=False)
        password.chmod(0o644)
        assert checked_values(values, staged=False)["password_file"] == str(password)
        (base / "closed").mkdir(mode=0o700)
        (base / "closed" / "ca.pem").touch()
        with pytest.raises(UsageError, match=f"cannot enter {base / 'closed'}"):
            checked_values({**VALUES, "ca_file": str(base / "closed" / "ca.pem")}, staged=False)


def test_a_file_in_tmp_is_refused_because_the_service_has_its_own(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        file = Path(temporary, "ca.pem")
        file.touch()
        with pytest.raises(UsageError, match="that stays"):
            checked_values({**VALUES, "ca_file": str(file)}, staged=False)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit_and_finds_it_well_confined(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "root", program(tmp_path / "python"))
    install(installation, VALUES, start=True, run=nothing)
    assert verify(installation.unit) == (0, "")
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
    standing = read_host_status(tmp_path)
    assert [(a.name, a.running, a.unacknowledged, a.acknowledged) for a in standing.agents] == [
        ("one", True, 2, 1),
        ("two", False, 2, 1),
    ]
    assert standing.blob_bytes == 1000
    assert "lab/one: running, 2 results to deliver, 1 delivered" in status_lines(standing)


def test_status_of_a_host_without_agents_says_how_to_start_one(tmp_path: Path) -> None:
    assert "fleetnas-agent run" in status_lines(read_host_status(tmp_path / "absent"))[0]
