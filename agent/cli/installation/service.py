"""Install and remove the agent as a hardened systemd service with a user of its own."""

from __future__ import annotations

import grp
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from fleetnas.agent.cli.configuration import read_configuration
from fleetnas.agent.cli.installation.layout import UNIT, USER, Installation
from fleetnas.agent.cli.installation.unit import unit_text
from fleetnas.agent.cli.installation.values import (
    USERADD,
    checked_values,
    closed_folder,
    configuration_text,
    has_user,
    is_temporary,
)
from fleetnas.fleet_protocol.child_process import child_environment
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError
from fleetnas.fleet_protocol.security.credentials import read_credentials

#: Groups through which a board's sensors and accelerators are reached; those that exist are given.
GROUPS = ("video", "render", "gpio", "i2c")

RunProgram: TypeAlias = Callable[[list[str]], None]


def install(installation: Installation, values: Mapping[str, str], *, start: bool, run: RunProgram) -> list[str]:
    """Install the service with this configuration; return a line for each step.

    An existing configuration is kept if `values` are empty. Raises `UsageError`, and writes nothing, if there is none
    and no broker is given, if the agent would refuse these values, or if this process is not root's.
    """
    _check(installation, "install-service")
    unit = unit_text(installation, _existing_groups())
    done: list[str] = []
    if values:
        values = checked_values(values, staged=installation.staged)
        if "credentials" in values:
            _copy_secret(Path(values["credentials"]), installation.credentials)
            values = {**values, "credentials": str("/" / installation.credentials.relative_to(installation.root))}
            done.append(f"copied the credentials to {installation.credentials}; the original may be removed")
        _write(installation.configuration, configuration_text(values), 0o640)
        done.append(f"wrote the configuration {installation.configuration}")
    elif installation.configuration.exists():
        checked_values(read_configuration(installation.configuration, {}), staged=installation.staged)
        done.append(f"kept the configuration {installation.configuration}")
    else:
        raise UsageError(f"there is no configuration {installation.configuration} yet; give --broker HOST[:PORT]")
    if not installation.staged and not has_user(USER):
        run([*USERADD, "--shell", "/usr/sbin/nologin", USER])
        done.append(f"made the system user {USER}")
    if not installation.staged:
        for secret in (installation.configuration, installation.credentials):
            if secret.exists():
                shutil.chown(secret, group=USER)
    _write(installation.unit, unit, 0o644)
    done.append(f"wrote the unit {installation.unit}")
    if not installation.staged:
        run(["systemctl", "daemon-reload"])
        run(["systemctl", "enable", UNIT])
        done.append(f"enabled {UNIT}: it starts with the machine")
        if start:
            run(["systemctl", "restart", UNIT])
            done.append(f"started it; see what it does with: journalctl --unit {UNIT} --follow")
    return done


def uninstall(installation: Installation, *, run: RunProgram) -> list[str]:
    """Remove the service, keep configuration and state; return a line for each step."""
    _check(installation, "uninstall-service")
    if not installation.unit.exists():
        raise UsageError(f"there is no unit {installation.unit}; nothing was changed")
    done = []
    if not installation.staged:
        run(["systemctl", "disable", "--now", UNIT])
        done.append(f"stopped and disabled {UNIT}")
    installation.unit.unlink()
    done.append(f"removed {installation.unit}")
    if not installation.staged:
        run(["systemctl", "daemon-reload"])
    done.append(
        f"kept {installation.configuration} and /var/lib/fleetnas; to remove them too: "
        f"sudo rm -r {shlex.quote(str(installation.configuration.parent))} /var/lib/fleetnas && sudo userdel {USER}"
    )
    return done


def run_program(command: list[str]) -> None:
    """Run a program of the system; `FleetnasError` with its output if it fails."""
    try:
        done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    except OSError as error:
        raise FleetnasError(f"{command[0]} cannot be run ({error}); is this a system with systemd?") from error
    if done.returncode != 0:
        output = " ".join((done.stderr or done.stdout).split())[:300]
        raise FleetnasError(f"`{' '.join(command)}` failed with code {done.returncode}: {output}")


def _check(installation: Installation, command: str) -> None:
    if installation.staged:
        return
    if os.geteuid() != 0:
        program = shlex.quote(str(installation.python.with_name("fleetnas-agent")))
        raise UsageError(f"services are root's to install; run: sudo {program} {command} ...")
    if shutil.which("systemctl") is None:
        raise UsageError("this system has no systemd; start `fleetnas-agent run` from whatever starts services here")
    if command == "install-service" and is_temporary(installation.python):
        raise UsageError(
            f"the service has a /tmp of its own and would not find {installation.python}; install fleetnas in a folder "
            "that stays, such as /opt/fleetnas, and run install-service from there"
        )
    if command == "install-service" and (closed := closed_folder(installation.python)) is not None:
        raise UsageError(
            f"the service runs as the user {USER}, who cannot enter {closed}, where this Python is; install fleetnas "
            "in a folder that everybody may enter, such as /opt/fleetnas, and run install-service from there"
        )


def _write(path: Path, text: str, mode: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
    except OSError as error:
        raise FleetnasError(f"{path} cannot be written: {error}") from error


def _copy_secret(source: Path, target: Path) -> None:
    """Check credentials and copy them; other users can read the copy at no moment."""
    read_credentials(source, "agent")
    try:
        text = source.read_bytes()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o640)
    except OSError as error:
        raise FleetnasError(f"{target} cannot be written: {error}") from error


def _existing_groups() -> list[str]:
    known = {group.gr_name for group in grp.getgrall()}
    return [name for name in GROUPS if name in known]
