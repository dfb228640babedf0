"""Check the service's configuration, and write it."""

from __future__ import annotations

import argparse
import configparser
import grp
import pwd
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path

from fleetnas.agent.cli.configuration import KEYS, SECTION, settings_of
from fleetnas.agent.cli.installation.layout import USER
from fleetnas.agent.cli.options import DEFAULT_FLEET, broker_address, with_credentials
from fleetnas.agent.cli.tags import parse_tags
from fleetnas.agent.runtimes.settings import parse_setting
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.topics import Topics, check_name
from fleetnas.fleet_protocol.transports.tls import TlsContext

#: Options that name a file; the first is copied.
FILE_KEYS = ("credentials", "password_file", "ca_file", "certificate_file", "key_file")
USERADD = ("useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/var/lib/fleetnas")


def checked_values(values: Mapping[str, str], *, staged: bool) -> dict[str, str]:
    """Return the configuration in a form that the service can use: file names are absolute.

    Raises `UsageError` if `run` would end at once with these values. Of a staged installation, whose files are not on
    this machine yet, only the credentials are checked.
    """
    checked = dict(values)
    for key in FILE_KEYS:
        if checked.get(key):
            checked[key] = str(Path(checked[key]).expanduser().absolute())
    for key, value in checked.items():
        lines = value.split("\n") if key == "settings" else [value]
        if not all(line.isprintable() and line == line.strip() for line in lines):
            raise UsageError(f"{key} {value!r} has characters that a configuration file cannot hold; choose another")
    options = with_credentials(argparse.Namespace(**{**dict.fromkeys(KEYS), "fleet": DEFAULT_FLEET, **checked}))
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
    parse_tags([checked.get("tags", "")])
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(configuration_text(checked))
    if settings_of(parser[SECTION]) != chosen or any(
        parser[SECTION].get(key) != value for key, value in checked.items() if key != "settings"
    ):
        raise UsageError("these values cannot be written to a configuration file; leave out what begins with # or ;")
    return checked


def _check_readable(path: Path, key: str) -> None:
    """Raise `UsageError` if the service's user cannot read a file that its configuration names."""
    option = f"--{key.replace('_', '-')}"
    try:
        status = path.stat()
        closed = closed_folder(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); check {option}") from error
    if closed is not None or is_temporary(path):
        raise UsageError(
            f"the service runs as the user {USER}, who cannot enter {closed or path.parent}; copy {path.name} to a "
            f"folder that everybody may enter and that stays, such as /etc/fleetnas, and give that to {option}"
        )
    if not status.st_mode & stat.S_IROTH and not (status.st_mode & stat.S_IRGRP and status.st_gid == _group_id(USER)):
        make = "" if has_user(USER) else f"sudo {shlex.join([*USERADD, USER])} && "
        quoted = shlex.quote(str(path))
        raise UsageError(
            f"the service runs as the user {USER}, who cannot read {path}; run: {make}sudo chgrp {USER} {quoted} && "
            f"sudo chmod 640 {quoted}"
        )


def _group_id(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def configuration_text(values: Mapping[str, str]) -> str:
    """Return the configuration file of these values."""
    lines = []
    for key, value in values.items():
        # A value of several lines is indented, as INI continues lines.
        lines.append(
            f"{key} = {value}" if "\n" not in value else f"{key} =" + "".join(f"\n    {v}" for v in value.split("\n"))
        )
    return "[agent]\n" + "\n".join(lines) + "\n"


def is_temporary(path: Path) -> bool:
    """Whether a path is in a folder for temporary files, which the service sees empty."""
    return any(path.resolve().is_relative_to(folder) for folder in ("/tmp", "/var/tmp"))


def closed_folder(program: Path) -> Path | None:
    """Return the outermost folder above a program, or above its link target, that other users may not enter."""
    for path in (program.absolute(), program.resolve()):
        for folder in reversed(path.parents):
            if not folder.stat().st_mode & stat.S_IXOTH:
                return folder
    return None


def has_user(name: str) -> bool:
    """Whether the system has this user."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
