"""The options of a connection to a fleet's broker."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.transports.base import BrokerAddress

_PASSWORD_VARIABLE = "FLEETNAS_PASSWORD"


@dataclass(frozen=True)
class Connection:
    """A fleet's broker with the coordinator's login, and the key that signs its tasks."""

    broker: BrokerAddress
    fleet: str
    signing_key: bytes | None = None


@dataclass(frozen=True)
class ConnectionOptions:
    """Broker, fleet and login; options go before the contents of the credentials file."""

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

    def connection(self, *, read_only: bool = False) -> Connection:
        """Parse the options, and read the files that they name.

        With `read_only`, a watcher's credentials are accepted beside the coordinator's.

        Raises:
            UsageError: the broker is missing, or an option cannot be used.
        """
        if self.credentials is not None:
            return self._from_credentials(self.credentials, read_only)
        if self.broker is None:
            raise UsageError("where the fleet is must be said: give --broker HOST[:PORT] or --credentials FILE")
        if self.password_file is not None and self.username is None:
            raise UsageError("the password of --password-file is for a login; give its --username too")
        address = replace(
            BrokerAddress.parse(self.broker),
            username=self.username,
            password=_password(self.password_file),
            ca_file=self.ca_file,
            certificate_file=self.certificate_file,
            key_file=self.key_file,
        )
        return Connection(address, self.fleet or "default")

    def _from_credentials(self, file: Path, read_only: bool) -> Connection:
        if any((self.username, self.ca_file, self.certificate_file, self.key_file, self.password_file)):
            raise UsageError(
                "the credentials hold the whole login; leave out --username, --password-file, --ca-file, "
                "--certificate-file and --key-file"
            )
        from fleetnas.fleet_protocol.security.credentials import read_credentials

        known = read_credentials(file, *(("coordinator", "watcher") if read_only else ("coordinator",)))
        address = known.broker
        if self.broker is not None:
            asked = BrokerAddress.parse(self.broker, known.port)
            address = replace(address, host=asked.host, port=asked.port)
        return Connection(address, self.fleet or known.fleet, known.private_key)


def _password(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(_PASSWORD_VARIABLE)
    try:
        return read_text(file).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the password file {file} cannot be read: {error}; check --password-file") from error
