"""Options that several commands share."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet_protocol.credentials import read_credentials
from fleet_protocol.errors import UsageError
from fleet_protocol.folders import user_folder
from fleet_protocol.transport import BrokerAddress

_PASSWORD_VARIABLE = "FLEETNAS_PASSWORD"

Broker = Annotated[
    str | None, typer.Option("--broker", metavar="HOST[:PORT]", help="The MQTT broker of the fleet; mqtts:// for TLS.")
]
Fleet = Annotated[
    str | None, typer.Option("--fleet", metavar="NAME", help="Which fleet on that broker (default: default).")
]
CredentialsFile = Annotated[
    Path | None,
    typer.Option("--credentials", metavar="FILE", help="Broker, login, certificates and signing key in one file."),
]
Username = Annotated[
    str | None,
    typer.Option(
        "--username", metavar="NAME", help=f"Login; its password is ${_PASSWORD_VARIABLE} or in --password-file."
    ),
]
PasswordFile = Annotated[
    Path | None, typer.Option("--password-file", metavar="FILE", help="File that holds the login's password.")
]
CaFile = Annotated[
    str | None, typer.Option("--ca-file", metavar="PEM", help="Authority that signed the broker's certificate.")
]
CertificateFile = Annotated[
    str | None, typer.Option("--certificate-file", metavar="PEM", help="The coordinator's own certificate.")
]
KeyFile = Annotated[str | None, typer.Option("--key-file", metavar="PEM", help="Key of that certificate.")]
Store = Annotated[
    str | None,
    typer.Option("--store", metavar="FILE|URL", help="Where runs are kept (default: in the user's data folder)."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line instead of a view.")]


def json_object(option: str, text: str) -> dict[str, Any]:
    """What an option holds that takes a JSON object; `UsageError` where it is none."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{option} {text!r} is not JSON ({error}); give an object such as {{}}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{option} {text!r} is no JSON object; give one such as '{{\"width\": 1.2}}'")
    return found


@dataclass(frozen=True)
class Connection:
    """Where the fleet is, and how the coordinator proves who it is."""

    broker: BrokerAddress
    fleet: str
    signing_key: bytes | None = None


def connection(
    broker: str | None,
    fleet: str | None,
    credentials: Path | None = None,
    username: str | None = None,
    ca_file: str | None = None,
    certificate_file: str | None = None,
    key_file: str | None = None,
    password_file: Path | None = None,
    *,
    watching: bool = False,
) -> Connection:
    """From the options, which go before what the credentials say; `UsageError` where something is missing or wrong.

    With `watching`, a watcher's credentials do as well as the coordinator's.
    """
    if credentials is not None:
        if any((username, ca_file, certificate_file, key_file, password_file)):
            raise UsageError(
                "the credentials hold the whole login; leave out --username, --password-file, --ca-file, "
                "--certificate-file and --key-file"
            )
        known = read_credentials(credentials, *(("coordinator", "watcher") if watching else ("coordinator",)))
        address = known.broker
        if broker is not None:
            asked = BrokerAddress.parse(broker, known.port)
            address = replace(address, host=asked.host, port=asked.port)
        return Connection(address, fleet or known.fleet, known.private_key)
    if broker is None:
        raise UsageError("where the fleet is must be said: give --broker HOST[:PORT] or --credentials FILE")
    address = replace(
        BrokerAddress.parse(broker),
        username=username,
        password=_password(password_file),
        ca_file=ca_file,
        certificate_file=certificate_file,
        key_file=key_file,
    )
    return Connection(address, fleet or "default")


def _password(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(_PASSWORD_VARIABLE)
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the password file {file} cannot be read: {error}; check --password-file") from error


def store_location(store: str | None) -> str:
    """The store that was asked for, or the default one; `UsageError` where the user has no folder for it."""
    if store is not None:
        return store
    return str(user_folder("XDG_DATA_HOME", ".local/share", "--store FILE") / "fleetnas" / "runs.sqlite")


def existing_store(store: str | None) -> str:
    """The same, for those who only read: `UsageError` where a file was named that is not there."""
    if store is not None and "://" not in store and not Path(store).exists():
        raise UsageError(f"there is no store {store}; check --store, or leave it out for the one in your data folder")
    return store_location(store)
