"""Options that several commands share."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.folders import user_folder
from fleetnas.fleet_protocol.security.credentials import read_credentials
from fleetnas.fleet_protocol.transports.base import BrokerAddress

if TYPE_CHECKING:
    from fleetnas.coordinator.store.store import MeasurementStore

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


#: Options of a connection to a broker.
CONNECTION = (
    "--broker",
    "--fleet",
    "--credentials",
    "--username",
    "--password-file",
    "--ca-file",
    "--certificate-file",
    "--key-file",
)


def given(context: typer.Context) -> list[str]:
    """The options that the command line has, by their names; what is given twice or in the environment counts too."""
    return [
        parameter.opts[-1]
        for parameter in context.command.params
        if parameter.param_type_name == "option"
        and parameter.name is not None
        and getattr(context.get_parameter_source(parameter.name), "name", "") in ("COMMANDLINE", "ENVIRONMENT")
    ]


def refuse(context: typer.Context, useless: Collection[str], why: str) -> None:
    """`UsageError` where the command line has options that would change nothing; `why` says so and what to do."""
    found = [option for option in given(context) if option in useless]
    if found:
        raise UsageError(f"{why}; leave out {', '.join(found)}")


def json_object(option: str, text: str) -> dict[str, Any]:
    """What an option holds that takes a JSON object; `UsageError` where it is none."""
    try:
        found = json.loads(text.removeprefix("\ufeff"))
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
    if password_file is not None and username is None:
        raise UsageError("the password of --password-file is for a login; give its --username too")
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
        return read_text(file).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the password file {file} cannot be read: {error}; check --password-file") from error


def store_location(store: str | None) -> str:
    """The store that was asked for, or the default one; `UsageError` where the user has no folder for it."""
    if store is not None:
        return store
    return str(user_folder("XDG_DATA_HOME", ".local/share", "--store FILE") / "fleetnas" / "runs.sqlite")


def open_to_read(store: str | None) -> MeasurementStore:
    """The store of a command that only reads; says on standard error where nobody can do more with it."""
    from fleetnas.coordinator.store.store import MeasurementStore

    opened = MeasurementStore.open(existing_store(store), to_read=True)
    if opened.read_only:
        typer.echo(
            f"the store {opened.url} can only be read here: its runs can be shown and exported, not resumed",
            err=True,
        )
    return opened


def existing_store(store: str | None) -> str:
    """The same, for those who only read: `UsageError` where a file was named that is not there."""
    if store is not None and "://" not in store and not Path(store).exists():
        raise UsageError(f"there is no store {store}; check --store, or leave it out for the one in your data folder")
    return store_location(store)
