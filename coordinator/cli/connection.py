"""The options of a connection to a fleet's broker."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import typer

from fleetnas.coordinator.cli.configuration import (
    Configuration,
    Setting,
    configured_value,
    connection_settings,
    told_origin,
)
from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.errors import TransportError, UsageError
from fleetnas.fleet_protocol.transports.base import BrokerAddress

_PASSWORD_VARIABLE = "FLEETNAS_PASSWORD"


@dataclass(frozen=True)
class Connection:
    """A fleet's broker with the coordinator's login, and the key that signs its tasks."""

    broker: BrokerAddress
    fleet: str
    signing_key: bytes | None = None
    credentials: Path | None = None
    """File that the other fields were read from."""
    password_file: Path | None = None
    origin: str = ""
    """Words on where the broker's address is configured; empty where the command line has it."""

    @contextlib.contextmanager
    def told_origin(self) -> Iterator[None]:
        """Say in an error of the connection where the broker's address comes from."""
        try:
            yield
        except TransportError as error:
            raise type(error)(f"{error}{self.origin}") from error


@dataclass(frozen=True)
class ConnectionOptions:
    """Broker, fleet and login; options go before what is configured and the contents of the credentials file."""

    broker: Annotated[
        str | None,
        typer.Option("--broker", metavar="HOST[:PORT]", help="The MQTT broker of the fleet; mqtts:// for TLS."),
    ] = None
    fleet: Annotated[
        str | None, typer.Option("--fleet", metavar="NAME", help="Which fleet on that broker (default: default).")
    ] = None
    credentials: Annotated[
        Path | None,
        typer.Option("--credentials", metavar="FILE", help="Broker, login, certificates and signing key in one file."),
    ] = None
    username: Annotated[
        str | None,
        typer.Option(
            "--username", metavar="NAME", help=f"Login; its password is ${_PASSWORD_VARIABLE} or in --password-file."
        ),
    ] = None
    password_file: Annotated[
        Path | None, typer.Option("--password-file", metavar="FILE", help="File that holds the login's password.")
    ] = None
    ca_file: Annotated[
        str | None, typer.Option("--ca-file", metavar="PEM", help="Authority that signed the broker's certificate.")
    ] = None
    certificate_file: Annotated[
        str | None, typer.Option("--certificate-file", metavar="PEM", help="The coordinator's own certificate.")
    ] = None
    key_file: Annotated[str | None, typer.Option("--key-file", metavar="PEM", help="Key of that certificate.")] = None

    @property
    def names_a_broker(self) -> bool:
        """Whether the command line itself says where the fleet is."""
        return self.broker is not None or self.credentials is not None

    def connection(self, *, read_only: bool = False, kept: Configuration | None = None) -> Connection:
        """Parse the options and what is configured, and read the files that these name.

        With `read_only`, a watcher's credentials are accepted beside the coordinator's. `kept` are the settings of a
        resumed run, which the command line alone overrides.

        Raises:
            UsageError: the broker is missing, or a setting cannot be used.
        """
        found = dict(connection_settings(self._given(), kept))
        credentials, broker = found.pop("credentials", None), found.pop("broker", None)
        if credentials is not None:
            return _from_credentials(credentials, broker, found, read_only)
        if broker is None:
            raise UsageError(
                "no broker is known: give --broker HOST[:PORT] or --credentials FILE, set "
                '$FLEETNAS_BROKER, or write broker = "HOST" in ~/.config/fleetnas/fleetnas.toml'
            )
        values = {key: setting.value for key, setting in found.items()}
        password_file = found.get("password_file")
        if password_file is not None and "username" not in values:
            raise UsageError("the password of --password-file is for a login; give its --username too")
        address = replace(
            _address(broker),
            username=values.get("username"),
            password=_password(password_file),
            ca_file=values.get("ca_file"),
            certificate_file=values.get("certificate_file"),
            key_file=values.get("key_file"),
        )
        return Connection(
            address,
            values.get("fleet", "default"),
            password_file=Path(password_file.value) if password_file is not None else None,
            origin=told_origin(broker),
        )

    def _given(self) -> dict[str, Setting]:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: Setting(str(value), f"--{name.replace('_', '-')}")
            for name, value in given.items()
            if value is not None
        }


def is_configured() -> bool:
    """Whether the environment or the configuration names a broker."""
    return any(configured_value(key) is not None for key in ("broker", "credentials"))


def _from_credentials(file: Setting, broker: Setting | None, others: dict[str, Setting], read_only: bool) -> Connection:
    fleet = others.pop("fleet", None)
    if others:
        raise UsageError(
            "the credentials hold the whole login; leave out --username, --password-file, --ca-file, "
            f"--certificate-file and --key-file{told_origin(next(iter(others.values())))}"
        )
    from fleetnas.fleet_protocol.security.credentials import read_credentials

    path = Path(file.value)
    with _naming(file):
        known = read_credentials(path, *(("coordinator", "watcher") if read_only else ("coordinator",)))
    address = known.broker
    if broker is not None:
        asked = _address(broker, known.port)
        address = replace(address, host=asked.host, port=asked.port)
    name = fleet.value if fleet is not None else known.fleet
    return Connection(address, name, known.private_key, path, origin=told_origin(broker or file))


def _address(broker: Setting, default_port: int | None = None) -> BrokerAddress:
    with _naming(broker):
        return BrokerAddress.parse(broker.value, default_port)


@contextlib.contextmanager
def _naming(setting: Setting) -> Iterator[None]:
    """Say in a `UsageError` about a setting where it comes from."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{error}{told_origin(setting)}") from error


def _password(file: Setting | None) -> str | None:
    if file is None:
        return os.environ.get(_PASSWORD_VARIABLE)
    try:
        return read_text(Path(file.value)).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the password file {file.value} cannot be read: {error}; check --password-file{told_origin(file)}"
        ) from error
