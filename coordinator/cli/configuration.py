"""Settings that every command takes from a file and from the environment: broker, fleet, credentials and store.

The command line overrides the environment, the environment overrides the file. The file is TOML::

    broker = "fleet.example:8883"
    fleet = "lab"
    credentials = "~/fleet/coordinator.credentials"
    store = "~/fleet/runs.sqlite"

Only the user's own file and the system's are read by themselves, never one in the current folder: a file that somebody
left there could name a broker of theirs. The environment's variables are `FLEETNAS_BROKER` and so on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fleetnas.coordinator.store import default_store
from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.folders import home_folder
from fleetnas.fleet_protocol.suggestions import did_you_mean

PREFIX = "FLEETNAS_"
#: Names the file; empty: no file is read.
FILE_VARIABLE = "FLEETNAS_CONFIG"
#: Settings that describe one connection; those that name a broker are the first two.
CONNECTION_KEYS = (
    "broker",
    "credentials",
    "fleet",
    "username",
    "password_file",
    "ca_file",
    "certificate_file",
    "key_file",
)
KEYS = (*CONNECTION_KEYS, "store", "index_url")
#: Values of these are paths; `~` is the user's home, and others begin at the file's folder.
_PATH_KEYS = ("credentials", "password_file", "ca_file", "certificate_file", "key_file")


@dataclass(frozen=True)
class Setting:
    """A value, and the place that it comes from, such as `--broker` or a file."""

    value: str
    origin: str


@dataclass(frozen=True)
class Configuration:
    """Settings by key, of one place or of several."""

    settings: Mapping[str, Setting]

    def connection_over(self, lower: Configuration) -> Configuration:
        """Add the connection of another place, which this one overrides.

        Who names a broker or credentials names the whole connection: a login or fleet of another place is not used
        with it.
        """
        if any(key in self.settings for key in CONNECTION_KEYS[:2]):
            return self
        return Configuration({**lower.settings, **self.settings})


class _Choice:
    """The file that this process reads its configuration from."""

    file: Path | None = None

    @classmethod
    def choose(cls, file: Path | None) -> None:
        cls.file = file


def choose_file(file: Path | None) -> None:
    """Read the configuration of this process from `file`; None: from `$FLEETNAS_CONFIG` or a default file."""
    _Choice.choose(file)


def default_files() -> tuple[Path, ...]:
    """Return the default files, of which the first that exists is read: the user's own, then the system's."""
    system = Path("/etc/fleetnas/fleetnas.toml")
    given = os.environ.get("XDG_CONFIG_HOME", "")
    home = home_folder()
    # A relative $XDG_CONFIG_HOME would be a file in the current folder; the XDG specification ignores it too.
    folder = Path(given) if os.path.isabs(given) else home / ".config" if home is not None else None
    return (system,) if folder is None else (folder / "fleetnas" / "fleetnas.toml", system)


def configured(environment: Mapping[str, str] | None = None) -> tuple[Configuration, Configuration]:
    """Return the settings of the environment and those of the file; `UsageError` where one cannot be used."""
    variables = os.environ if environment is None else environment
    found = {
        key: Setting(text, f"${PREFIX}{key.upper()}")
        for key in KEYS
        if (text := variables.get(PREFIX + key.upper(), "").strip())
    }
    return Configuration(found), _of_file(variables)


def connection_settings(
    given: Mapping[str, Setting], kept: Configuration | None = None, environment: Mapping[str, str] | None = None
) -> Mapping[str, Setting]:
    """Return the settings of a connection: those `given`, then those `kept` with a run, then the configured ones."""
    found = Configuration(given)
    for lower in (*((kept,) if kept is not None else ()), *configured(environment)):
        found = found.connection_over(lower)
    return {key: setting for key, setting in found.settings.items() if key in CONNECTION_KEYS}


def configured_value(key: str) -> Setting | None:
    """Return the environment's setting, else the file's; None without either."""
    variables, file = configured()
    return variables.settings.get(key) or file.settings.get(key)


def store_location(store: str | None) -> str:
    """Return the store asked for, else the configured one, else the one in the user's data folder."""
    if store is None:
        setting = configured_value("store")
        store = setting.value if setting is not None else None
    return default_store.store_location(store)


def told_origin(setting: Setting) -> str:
    """Return words on a setting's origin for an error message; empty where it was given on the command line."""
    return "" if setting.origin.startswith("-") else f" ({setting.origin} says so)"


def _of_file(variables: Mapping[str, str]) -> Configuration:
    file = _Choice.file
    if file is None and FILE_VARIABLE in variables:
        if not variables[FILE_VARIABLE].strip():
            return Configuration({})
        file = Path(variables[FILE_VARIABLE].strip())
    if file is not None:
        return _read(file)
    for default in default_files():
        # Not `Path.is_file`, which raises where another user's home is closed to us.
        if os.path.isfile(default) and os.access(default, os.R_OK):
            return _read(default)
    return Configuration({})


def _read(file: Path) -> Configuration:
    try:
        found = _toml(read_text(file))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise UsageError(
            f"the configuration {file} cannot be read: {reason}; correct it, or name another with --config"
        ) from error
    settings = {}
    for key, value in found.items():
        if key not in KEYS:
            near = did_you_mean(key, KEYS)
            raise UsageError(f"the configuration {file} has an unknown key {key!r}{near} there are {', '.join(KEYS)}")
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise UsageError(f'the configuration {file} has {key} = {value!r}, which is no text such as {key} = "..."')
        settings[key] = Setting(_value(key, value.strip(), file), str(file))
    return Configuration(settings)


def _value(key: str, text: str, file: Path) -> str:
    if key in _PATH_KEYS or (key == "store" and "://" not in text):
        home = home_folder()
        if text.startswith("~/") and home is not None:
            return str(home / text[2:])
        return str(file.absolute().parent / text)
    return text


def _toml(text: str) -> dict[str, object]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)
