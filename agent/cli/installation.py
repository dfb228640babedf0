"""`install-service` and `uninstall-service`: the agent as a hardened systemd service with a user of its own."""

from __future__ import annotations

import argparse
import configparser
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fleetnas.agent.cli.configuration import KEYS, SECTION, read_configuration, settings_of
from fleetnas.agent.cli.options import DEFAULT_FLEET, broker_address, take_credentials
from fleetnas.agent.runtimes.settings import parse_setting
from fleetnas.fleet_protocol.child_process import child_environment
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError
from fleetnas.fleet_protocol.security.credentials import read_credentials
from fleetnas.fleet_protocol.topics import Topics, check_name
from fleetnas.fleet_protocol.transports.tls import TlsContext

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
StateDirectoryMode=0700
# For the lock that the agents of one host share: users in the group {user} may measure beside this service.
RuntimeDirectory=fleetnas
RuntimeDirectoryMode=0770
RuntimeDirectoryPreserve=yes
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
PrivateTmp=yes
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

#: Options that name a file; the first is copied.
FILE_KEYS = ("credentials", "password_file", "ca_file", "certificate_file", "key_file")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_/.,:=+@-]+", re.ASCII)

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
    """The unit file; `UsageError` where this Python's path cannot stand in one."""
    return _UNIT_TEXT.format(
        python=_program_word(installation.python),
        configuration=quoted_word(str("/" / installation.configuration.relative_to(installation.root))),
        user=USER,
        groups=f"SupplementaryGroups={' '.join(groups)}\n" if groups else "",
    )


def quoted_word(text: str) -> str:
    """`text` as one argument of a unit's command line, whatever is in it (systemd.service(5), systemd.syntax(7)).

    `UsageError` where it has control characters.
    """
    if not text.isprintable():
        raise UsageError(f"{text!r} has characters that no unit file can hold; choose a path without them")
    for special, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        text = text.replace(special, escaped)
    return f'"{text}"' if _PLAIN_WORD.fullmatch(text) is None else text


def _program_word(program: Path) -> str:
    # systemd takes no quotes and backslashes in a program's path, and replaces $$ only in what it hands over.
    if found := sorted(set(str(program)) & set("$'\"\\")):
        raise UsageError(
            f"no service can start {program}, whose path has {' '.join(found)} in it; install fleetnas in a folder "
            "without"
        )
    return quoted_word(str(program))


def install(installation: Installation, values: Mapping[str, str], *, start: bool, run: RunProgram) -> list[str]:
    """Install the service with this configuration; returns what was done, a line each.

    An existing configuration is kept where `values` are empty. `UsageError`, and nothing is written, where there is
    none and no broker is given, where the agent would refuse these values, or where this is not root's to do.
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
        _write(installation.configuration, _configuration_text(values), 0o640)
        done.append(f"wrote the configuration {installation.configuration}")
    elif installation.configuration.exists():
        checked_values(read_configuration(installation.configuration, {}), staged=installation.staged)
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
        f"sudo rm -r {shlex.quote(str(installation.configuration.parent))} /var/lib/fleetnas && sudo userdel {USER}"
    )
    return done


def run_program(command: list[str]) -> None:
    """Run a program of the system; `FleetnasError` with what it said where it fails."""
    try:
        done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    except OSError as error:
        raise FleetnasError(f"{command[0]} cannot be run ({error}); is this a system with systemd?") from error
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())[:300]
        raise FleetnasError(f"`{' '.join(command)}` failed with code {done.returncode}: {said}")


def _check(installation: Installation, command: str) -> None:
    if installation.staged:
        return
    if os.geteuid() != 0:
        program = shlex.quote(str(installation.python.with_name("fleetnas-agent")))
        raise UsageError(f"services are root's to install; run: sudo {program} {command} ...")
    if shutil.which("systemctl") is None:
        raise UsageError("this system has no systemd; start `fleetnas-agent run` from whatever starts services here")
    if command == "install-service" and _is_temporary(installation.python):
        raise UsageError(
            f"the service has a /tmp of its own and would not find {installation.python}; install fleetnas in a folder "
            "that stays, such as /opt/fleetnas, and run install-service from there"
        )
    if command == "install-service" and (closed := closed_folder(installation.python)) is not None:
        raise UsageError(
            f"the service runs as the user {USER}, who cannot enter {closed}, where this Python is; install fleetnas "
            "in a folder that everybody may enter, such as /opt/fleetnas, and run install-service from there"
        )


def _is_temporary(path: Path) -> bool:
    return any(path.resolve().is_relative_to(folder) for folder in ("/tmp", "/var/tmp"))


def closed_folder(program: Path) -> Path | None:
    """The outermost folder on the way to a program, and to what it links to, that other users may not enter."""
    for path in (program.absolute(), program.resolve()):
        for folder in reversed(path.parents):
            if not folder.stat().st_mode & stat.S_IXOTH:
                return folder
    return None


def checked_values(values: Mapping[str, str], *, staged: bool) -> dict[str, str]:
    """The configuration as the service can use it: file names are absolute.

    `UsageError` where `run` would end at once with these values. Of a staged installation, whose files are not on this
    machine yet, only the credentials are looked at.
    """
    checked = dict(values)
    for key in FILE_KEYS:
        if checked.get(key):
            checked[key] = str(Path(checked[key]).expanduser().absolute())
    for key, value in checked.items():
        lines = value.split("\n") if key == "settings" else [value]
        if not all(line.isprintable() and line == line.strip() for line in lines):
            raise UsageError(f"{key} {value!r} has characters that a configuration file cannot hold; choose another")
    options = argparse.Namespace(**{**dict.fromkeys(KEYS), "fleet": DEFAULT_FLEET, **checked})
    take_credentials(options)
    if not staged:
        for key in FILE_KEYS[1:]:
            if checked.get(key):
                _check_readable(Path(checked[key]), key)
    broker = broker_address(argparse.Namespace(**{**vars(options), **(dict.fromkeys(FILE_KEYS) if staged else {})}))
    if broker.uses_tls and not staged:
        TlsContext.of(broker)
    Topics(options.fleet)
    if options.name is not None:
        check_name(options.name, "agent name")
    chosen = settings_of(checked)
    for text in chosen:
        parse_setting(text)
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(_configuration_text(checked))
    if settings_of(parser[SECTION]) != chosen or any(
        parser[SECTION].get(key) != value for key, value in checked.items() if key != "settings"
    ):
        raise UsageError("these values cannot be written to a configuration file; leave out what begins with # or ;")
    return checked


def _check_readable(path: Path, key: str) -> None:
    """Whether the service's user can read a file that its configuration names."""
    option = f"--{key.replace('_', '-')}"
    try:
        status = path.stat()
        closed = closed_folder(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); check {option}") from error
    if closed is not None or _is_temporary(path):
        raise UsageError(
            f"the service runs as the user {USER}, who cannot enter {closed or path.parent}; copy {path.name} to a "
            f"folder that everybody may enter and that stays, such as /etc/fleetnas, and give that to {option}"
        )
    if not status.st_mode & stat.S_IROTH and not (status.st_mode & stat.S_IRGRP and status.st_gid == _group_id(USER)):
        make = "" if _has_user(USER) else f"sudo {shlex.join([*_USERADD, USER])} && "
        quoted = shlex.quote(str(path))
        raise UsageError(
            f"the service runs as the user {USER}, who cannot read {path}; run: {make}sudo chgrp {USER} {quoted} && "
            f"sudo chmod 640 {quoted}"
        )


def _group_id(name: str) -> int | None:
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
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
        path.write_text(text, encoding="utf-8")
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
