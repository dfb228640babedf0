"""The pasted line in an ordinary shell: with few tools, and with each thing that may be missing on a device."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rigs import waiting

from fleetnas.agent.cli.installation.service import GROUPS
from fleetnas.coordinator import app
from fleetnas.coordinator.app.install_line import AgentSetup, install_files, install_line, install_script
from fleetnas.coordinator.app.install_server import InstallServer, ServedFile
from fleetnas.coordinator.app.own_wheel import OwnWheel

WHEEL = OwnWheel("fleetnas-1.0-py3-none-any.whl", "1.0", b"no wheel")
#: What every POSIX system has, and this script uses.
BASICS = ("sh", "cat", "echo", "id", "mkdir", "mktemp", "mv", "printf", "rm", "sha256sum", "tail")


@dataclass
class Device:
    """A user with an empty home, and few programs."""

    home: Path
    programs: Path
    server: InstallServer
    script: bytes

    def has(self, *programs: str) -> None:
        for program in programs:
            found = shutil.which(program)
            if found is None:
                pytest.skip(f"no {program} on this machine")
            (self.programs / program).symlink_to(found)

    def has_python(self, text: str = 'exec {python} "$@"') -> None:
        path = self.programs / "python3"
        path.write_text("#!/bin/sh\n" + text.format(python=sys.executable) + "\n")
        path.chmod(0o755)

    def paste(self, *behind: str, script: bytes | None = None, token: str = "") -> subprocess.CompletedProcess[str]:
        line = install_line(self.server.url("127.0.0.1"), script or self.script, token=token)
        environment = {"HOME": str(self.home), "PATH": str(self.programs), "TMPDIR": str(self.home)}
        return waiting.run(["/bin/sh", "-c", " ".join((line, *behind))], env=environment, cwd=self.home)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    home, programs = tmp_path / "home", tmp_path / "bin"
    home.mkdir()
    programs.mkdir()
    with InstallServer(()) as server:
        script = install_script(AgentSetup(broker="10.0.0.1:1883"), WHEEL, server.url("127.0.0.1"))
        server.add(install_files(script, WHEEL))
        made = Device(home, programs, server, script)
        made.has(*BASICS)
        yield made


@pytest.mark.parametrize("tool", ["curl", "wget", "python3"])
def test_one_of_three_tools_is_enough_to_fetch_the_script(device: Device, tool: str) -> None:
    device.has_python() if tool == "python3" else device.has(tool)
    done = device.paste("--help")
    assert done.returncode == 0, done.stderr
    assert "--service" in done.stdout
    assert list(device.home.iterdir()) == []  # the script is gone


@pytest.mark.parametrize("tool", ["curl", "wget", "python3"])
def test_over_tls_too(device: Device, tool: str, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    import datetime

    from fleetnas.coordinator.app.install_server import ServerIdentity
    from fleetnas.coordinator.security.authority import Authority

    now = datetime.datetime.now(datetime.timezone.utc)
    authority = Authority.create(tmp_path / "authority", fleet="lab", hosts=("broker.example",), now=now)
    issued = authority.install_server_identity(("127.0.0.1",), now)
    device.has_python() if tool == "python3" else device.has(tool)
    with InstallServer((), identity=ServerIdentity(issued.certificate, issued.key)) as server:
        server.add([ServedFile("/install", device.script)])
        done = replace(device, server=server).paste("--help")
    assert done.returncode == 0, done.stderr


def test_another_script_than_that_of_the_line_is_not_run(device: Device) -> None:
    device.has("curl")
    device.server.add([ServedFile("/install", b"touch stolen\n")])
    done = device.paste()
    assert done.returncode == 1
    assert "is not what this line was made for; run the command of the coordinator again" in done.stderr
    assert list(device.home.iterdir()) == []


def test_a_coordinator_that_is_gone_is_told(device: Device) -> None:
    device.has("curl")
    with InstallServer(()) as gone:
        pass
    done = replace(device, server=gone).paste()
    assert (done.returncode, "cannot be fetched" in done.stderr) == (1, True)


def test_without_python_the_command_that_installs_it_is_told(device: Device) -> None:
    device.has("curl")
    done = device.paste()
    assert done.returncode == 1
    assert "error: there is no Python 3.10 or newer" in done.stderr
    assert "sudo apt-get install python3 python3-venv" in done.stderr


def test_an_old_python_is_none(device: Device) -> None:
    device.has("curl")
    device.has_python("exit 1")
    assert "there is no Python 3.10 or newer" in device.paste().stderr
    assert "python3 is no Python 3.10 or newer" in device.paste("--python", "python3").stderr


def test_another_wheel_than_that_of_the_script_is_not_installed(device: Device) -> None:
    device.has("curl")
    device.has_python()
    device.server.add([ServedFile(f"/{WHEEL.name}", b"another wheel")])
    done = device.paste()
    assert done.returncode == 1
    assert "its SHA-256 differs" in done.stderr
    assert "it prints a new line to paste" in done.stderr
    assert list(device.home.iterdir()) == []


def test_a_python_without_venv_is_told_with_the_package(device: Device) -> None:
    device.has("curl")
    device.has_python('[ "$2" != venv ] || {{ echo "ensurepip is not available" >&2; exit 1; }}\nexec {python} "$@"')
    done = device.paste()
    assert done.returncode == 1
    assert "ensurepip is not available" in done.stderr
    assert "sudo apt-get install python3-venv" in done.stderr


def test_what_pip_says_is_shown_where_it_fails(device: Device) -> None:
    device.has("curl")
    device.has_python()
    environment = device.home / ".local" / "share" / "fleetnas" / "agent" / "bin"
    environment.mkdir(parents=True)
    (environment / "python").write_text('#!/bin/sh\n[ "$3" != --version ] || exit 0\necho "no space left"\nexit 1\n')
    (environment / "python").chmod(0o755)
    done = device.paste()
    assert done.returncode == 1
    assert "no space left" in done.stderr
    assert "pip cannot install the agent" in done.stderr


@pytest.mark.parametrize(
    ("behind", "said"), [(("--dri", "x"), "there is no option --dri"), (("--dir",), "--dir needs a value")]
)
def test_wrong_options_are_refused_before_anything_is_fetched(
    device: Device, behind: tuple[str, ...], said: str
) -> None:
    device.has("curl")
    done = device.paste(*behind)
    assert (done.returncode, said in done.stderr) == (1, True)


def test_credentials_that_somebody_else_fetched_are_told(device: Device) -> None:
    device.has("curl")
    device.has_python()
    setup = AgentSetup(name="pi4", fleet="lab")
    script = install_script(setup, WHEEL, device.server.url("127.0.0.1"))
    device.server.add([ServedFile("/install", script)])
    done = device.paste(script=script, token="gone")
    assert done.returncode == 1
    assert "the credentials of pi4 cannot be fetched: they are given once" in done.stderr
    assert "fleetnas enroll pi4 --renew --serve" in done.stderr


def test_credentials_are_stored_for_their_owner_alone(device: Device) -> None:
    device.has("curl")
    device.has_python('[ "$2" != venv ] || exit 1\nexec {python} "$@"')  # nothing is installed in this test
    script = install_script(AgentSetup(name="pi4", fleet="lab"), WHEEL, device.server.url("127.0.0.1"))
    device.server.add([ServedFile("/install", script), ServedFile("/credentials/t", b"secret", once=True)])
    for _ in range(2):  # pasted again they are there
        device.paste(script=script, token="t")
        stored = device.home / ".config" / "fleetnas" / "pi4.credentials"
        assert (stored.read_bytes(), stored.stat().st_mode & 0o777) == (b"secret", 0o600)
    assert os.access(stored, os.R_OK)


def test_the_doctor_of_the_service_has_the_groups_of_the_service() -> None:
    """The script cannot ask the agent for them: it is the shell that gives them to the doctor."""
    script = Path(app.__file__).with_name("agent_install.sh").read_text()
    (words,) = re.findall(r"for each in ([a-z0-9 ]+); do # the unit has", script)
    assert tuple(words.split()) == GROUPS
