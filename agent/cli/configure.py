"""The command `fleetnas-agent configure`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from fleetnas.agent.cli.configuration import KEYS, default_configuration_files, read_configuration, settings_of
from fleetnas.agent.cli.options import DEFAULT_FLEET, add_broker_options, broker_address, with_credentials
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError

_FILE_KEYS = ("credentials", "password_file", "ca_file", "certificate_file", "key_file")
_LOGIN_KEYS = ("broker", "fleet", "username", *_FILE_KEYS)


def add_configure_options(configure: argparse.ArgumentParser) -> None:
    """Add all options of `configure`."""
    configure.set_defaults(command=configure_command)
    add_broker_options(configure)
    configure.add_argument("--name", help="this agent's name in the fleet")
    configure.add_argument("--fleet", help="which fleet to join")
    configure.add_argument("--setting", action="append", metavar="SETTING", help="a setting to offer, as for `run`")
    # Not `--config` as other commands have it: those read the file before they know their options.
    configure.add_argument(
        "--config",
        dest="file",
        type=Path,
        metavar="FILE",
        help="configuration file to write (default: ~/.config/fleetnas/agent.conf)",
    )


def configure_command(options: argparse.Namespace) -> int:
    """Write the configuration file, and print what became of it; return the exit code."""
    file = options.file or default_configuration_files()[0]
    given = {key: str(getattr(options, key)) for key in (*_LOGIN_KEYS, "name") if getattr(options, key)}
    if options.setting:
        given["settings"] = "\n".join(options.setting)
    before = read_configuration(file, {}) if file.exists() else {}
    values = merged(before, given)
    if values == before:
        sys.stdout.write(f"kept the configuration {file}\n")
        return 0
    _write(file, values)
    sys.stdout.write(f"wrote the configuration {file}\n")
    return 0


def merged(before: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the values of a configuration with `given` ones in the place of those `before`.

    A new broker or new credentials take the place of the whole login. Credentials that are there already are kept
    where only a broker and a fleet are given: they hold both. Raises `UsageError` if `run` would refuse the values.
    """
    from fleetnas.agent.cli.installation.values import configuration_text
    from fleetnas.agent.runtimes.settings import parse_setting
    from fleetnas.fleet_protocol.topics import Topics, check_name

    given = dict(given)
    for key in _FILE_KEYS:
        if given.get(key):
            given[key] = str(Path(given[key]).expanduser().absolute())
    kept = dict(before)
    if before.get("credentials") and "credentials" not in given:
        for key in _LOGIN_KEYS:
            given.pop(key, None)
        given.pop("name", None)
    elif "credentials" in given or given.get("broker", before.get("broker")) != before.get("broker"):
        kept = {key: value for key, value in before.items() if key not in _LOGIN_KEYS}
    if "credentials" in given:
        kept.pop("name", None)
    values = {key: value for key, value in {**kept, **given}.items() if value}
    for key, value in values.items():
        lines = value.split("\n") if key == "settings" else [value]
        if not all(line.isprintable() and line == line.strip() for line in lines):
            raise UsageError(f"{key} {value!r} has characters that a configuration file cannot hold; choose another")
    options = with_credentials(argparse.Namespace(**{**dict.fromkeys(KEYS), "fleet": DEFAULT_FLEET, **values}))
    broker_address(options)
    Topics(options.fleet)
    if options.name is not None:
        check_name(options.name, "agent name")
    for text in settings_of(values):
        parse_setting(text)
    configuration_text(values)
    return values


def _write(file: Path, values: Mapping[str, str]) -> None:
    """Replace the file as a whole; a service's keeps its owner and mode."""
    from fleetnas.agent.cli.installation.values import configuration_text

    temporary = file.with_name(f".{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(configuration_text(values), encoding="utf-8")
        if file.exists():
            status = file.stat()
            temporary.chmod(status.st_mode & 0o7777)
            if os.geteuid() == 0:
                os.chown(temporary, status.st_uid, status.st_gid)
        os.replace(temporary, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise FleetnasError(f"{file} cannot be written: {error.strerror or error}; see who may write there") from error
