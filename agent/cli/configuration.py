"""Read the configuration of `run`, `doctor` and the service from a file and from the environment.

The command line overrides the environment, the environment overrides the file. The file is INI with one section::

    [agent]
    broker = fleet.example:8883
    ca_file = /etc/fleetnas/ca.pem
    settings =
        onnxruntime,threads=1
        litert,threads=4
    tags = camera, pi4

The environment's variables are `FLEETNAS_BROKER` and so on; in `FLEETNAS_SETTINGS` a semicolon parts settings.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from pathlib import Path

from fleetnas.device_profiles.text_files import open_text
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.folders import user_folder
from fleetnas.fleet_protocol.suggestions import did_you_mean

SECTION = "agent"
PREFIX = "FLEETNAS_"
#: Every key, as the command line's option without dashes; `settings` and `tags` are lists.
KEYS = (
    "broker",
    "credentials",
    "fleet",
    "name",
    "username",
    "password_file",
    "ca_file",
    "certificate_file",
    "key_file",
    "settings",
    "tags",
    "state_dir",
    "cache_mb",
    "memory_limit_mb",
    "min_battery",
    "max_charging_temperature",
    "connect_timeout",
    "bundle_mirrors",
    "accept_models",
    "log_level",
)


def default_configuration_files() -> tuple[Path, ...]:
    """Return the default files, of which the first that exists is read: the user's own, then the system's."""
    system = Path("/etc/fleetnas/agent.conf")
    try:
        return user_folder("XDG_CONFIG_HOME", ".config") / "fleetnas" / "agent.conf", system
    except UsageError:
        return (system,)


def read_configuration(file: Path | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the configured values by key; `UsageError` if a file or key is wrong.

    `file` must exist; without one the default files are tried, and none is needed.
    """
    values = _read_file(file) if file is not None else _read_first(default_configuration_files())
    for key in KEYS:
        if PREFIX + key.upper() in environment:
            values[key] = environment[PREFIX + key.upper()].strip()  # files of variables may have Windows line ends
    return values


def settings_of(values: Mapping[str, str]) -> list[str]:
    """Return the texts of the configured settings."""
    return [text.strip() for text in values.get("settings", "").replace(";", "\n").splitlines() if text.strip()]


def _read_first(files: tuple[Path, ...]) -> dict[str, str]:
    for file in files:
        # Not `Path.is_file`, which raises where another user's home is closed to us.
        if os.path.isfile(file) and os.access(file, os.R_OK):
            return _read_file(file)
    return {}


def _read_file(file: Path) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open_text(file) as lines:
            parser.read_file(lines)
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"the configuration {file} cannot be read: {reason}; correct it, or give another") from error
    if parser.sections() != [SECTION]:
        raise UsageError(f"the configuration {file} must have one section [{SECTION}], and has {parser.sections()}")
    values = dict(parser[SECTION])
    unknown = sorted(set(values) - set(KEYS))
    if unknown:
        near = did_you_mean(unknown[0], KEYS)
        raise UsageError(
            f"the configuration {file} has an unknown key {unknown[0]!r}{near} there are {', '.join(KEYS)}"
        )
    return values
