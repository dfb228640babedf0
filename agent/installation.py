"""`install-service` and `uninstall-service`: the agent as a hardened systemd service with a user of its own."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fleet_protocol.credentials import read_credentials
from fleet_protocol.errors import FleetnasError, UsageError

UNIT = "fleetnas-agent.service"
USER = "fleetnas"
#: Where systemd keeps the state of the service.
SERVICE_STATE = Path("/var/lib/fleetnas")
#: Groups through which a board's sensors and accelerators are reached; those that exist are given.
_GROUPS = ("video", "render", "gpio", "i2c")
_USERADD = ("useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/var/lib/fleetnas")

_UNIT_TEXT = """\
[Unit]
Description=fleetnas agent: measures subnets on this device for a fleet
Wants=network-online.target
After=network-online.target time-sync.target

[Service]
Type=notify
ExecStart={python} -m agent.cli run --config {configuration}
User={user}
{groups}StateDirectory=fleetnas
Restart=always
RestartSec=5
# Bad configuration, or another agent of this name: starting again does not cure it.
RestartPreventExitStatus=2
WatchdogSec=120
# The first start takes micro-benchmarks, and may wait for another agent that is measuring.
TimeoutStartSec=900
TimeoutStopSec=20
KillMode=mixed
# The measuring child is the first to go when memory runs out; the agent itself is the last.
OOMScoreAdjust=-100
OOMPolicy=continue

NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
# The lock that agents of one host share lies there, so it cannot be private.
ReadWritePaths=/tmp
ProtectHome=read-only
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
# Not PrivateDevices: it hides GPUs, a Pi's firmware and the like. Not ProtectClock: before systemd 253 it hides them
# too (systemd issue 18142), and without capabilities and clock system calls nothing is left to protect.
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
UMask=0077

[Install]
WantedBy=multi-user.target
"""

RunProgram = Callable[[list[str]], None]


@dataclass(frozen=True, slots=True)
class Installation:
    """Where things go; another `root` than `/` stages them there and touches no system."""

    root: Path = Path("/")
    python: Path = Path(sys.executable)

    @property
    def unit(self) -> Path:
        """The unit file."""
        return self.root / "etc/systemd/system" / UNIT

    @property
    def configuration(self) -> Path:
        """The agent's configuration."""
        return self.root / "etc/fleetnas/agent.conf"

    @property
    def credentials(self) -> Path:
        """The service's own copy of its credentials."""
        return self.root / "etc/fleetnas/agent.credentials"

    @property
    def staged(self) -> bool:
        """Nothing is started, no user made."""
        return self.root != Path("/")


def unit_text(installation: Installation, groups: list[str]) -> str:
    """The unit file."""
    return _UNIT_TEXT.format(
        python=installation.python,
        configuration="/" / installation.configuration.relative_to(installation.root),
        user=USER,
        groups=f"SupplementaryGroups={' '.join(groups)}\n" if groups else "",
    )


def install(installation: Installation, values: Mapping[str, str], *, start: bool, run: RunProgram) -> list[str]:
    """Install the service with this configuration; returns what was done, a line each.

    An existing configuration is kept where `values` are empty. `UsageError` where there is none and no broker is
    given, or where this is not root's to do.
    """
    _check(installation, "install-service")
    done: list[str] = []
    if values:
        if "broker" not in values and "credentials" not in values:
            raise UsageError("no broker was named; give --broker HOST[:PORT] or --credentials FILE")
        if "credentials" in values:
            _copy_secret(Path(values["credentials"]), installation.credentials)
            values = {**values, "credentials": str("/" / installation.credentials.relative_to(installation.root))}
            done.append(f"copied the credentials to {installation.credentials}; the original may be removed")
        _write(installation.configuration, _configuration_text(values), 0o640)
        done.append(f"wrote the configuration {installation.configuration}")
    elif installation.configuration.exists():
        done.append(f"kept the configuration {installation.configuration}")
    else:
        raise UsageError(f"there is no configuration {installation.configuration} yet; give --broker HOST[:PORT]")
    if not installation.staged and not _has_user(USER):
        run([*_USERADD, "--shell", "/usr/sbin/nologin", USER])
        done.append(f"made the system user {USER}")
    if not installation.staged:
        for secret in (installation.configuration, installation.credentials):
            if secret.exists():
                shutil.chown(secret, group=USER)
    _write(installation.unit, unit_text(installation, _existing_groups()), 0o644)
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
    """Remove the service; configuration and state stay. Returns what was done, a line each."""
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
        f"sudo rm -r {installation.configuration.parent} /var/lib/fleetnas && sudo userdel {USER}"
    )
    return done


def run_program(command: list[str]) -> None:
    """Run a program of the system; `FleetnasError` with what it said where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise FleetnasError(f"{command[0]} cannot be run ({error}); is this a system with systemd?") from error
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())[:300]
        raise FleetnasError(f"`{' '.join(command)}` failed with code {done.returncode}: {said}")


def _check(installation: Installation, command: str) -> None:
    if installation.staged:
        return
    if os.geteuid() != 0:
        raise UsageError(f"services are root's to install; run: sudo {installation.python} -m agent.cli {command} ...")
    if shutil.which("systemctl") is None:
        raise UsageError("this system has no systemd; start `fleetnas-agent run` from whatever starts services here")
    if command == "install-service" and (closed := closed_folder(installation.python)) is not None:
        raise UsageError(
            f"the service runs as the user {USER}, who cannot enter {closed}, where this Python is; install fleetnas "
            "in a folder that everybody may enter, such as /opt/fleetnas, and run install-service from there"
        )


def closed_folder(program: Path) -> Path | None:
    """The outermost folder on the way to a program, and to what it links to, that other users may not enter."""
    for path in (program.absolute(), program.resolve()):
        for folder in reversed(path.parents):
            if not folder.stat().st_mode & stat.S_IXOTH:
                return folder
    return None


def _configuration_text(values: Mapping[str, str]) -> str:
    lines = []
    for key, value in values.items():
        # A value of several lines is indented, as INI continues lines.
        lines.append(
            f"{key} = {value}" if "\n" not in value else f"{key} =" + "".join(f"\n    {v}" for v in value.split("\n"))
        )
    return "[agent]\n" + "\n".join(lines) + "\n"


def _write(path: Path, text: str, mode: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
    except OSError as error:
        raise FleetnasError(f"{path} cannot be written: {error}") from error


def _copy_secret(source: Path, target: Path) -> None:
    """Copy credentials that can be used; at no moment may others read them."""
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


def _has_user(name: str) -> bool:
    import pwd

    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _existing_groups() -> list[str]:
    import grp

    known = {group.gr_name for group in grp.getgrall()}
    return [name for name in _GROUPS if name in known]
