"""Read and write credentials: everything that one agent or coordinator needs to join a fleet, in one secret file."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fleetnas.device_profiles.text_files import decode_text
from fleetnas.fleet_protocol.addresses import check_host
from fleetnas.fleet_protocol.error_text import fault_words
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import Identifier
from fleetnas.fleet_protocol.security.signing import KEY_BYTES
from fleetnas.fleet_protocol.transports.base import BrokerAddress

FORMAT_VERSION: Literal[1] = 1
#: Keys of coordinators that one agent may trust at a time.
MAX_PINNED_KEYS = 8
_MAX_BYTES = 256 * 1024


def _checked_key(text: str) -> str:
    if len(base64.b64decode(text, validate=True)) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes in base64")
    return text


def _checked_host(text: str) -> str:
    try:
        return check_host(text)
    except UsageError as error:
        raise ValueError(str(error)) from None


Key = Annotated[str, Field(max_length=64), AfterValidator(_checked_key)]
Pem = Annotated[str, Field(max_length=64 * 1024)]


Role = Literal["agent", "coordinator", "watcher"]
_WHERE: dict[Role, tuple[str, str]] = {
    "agent": ("an agent", "run `fleetnas enroll NAME`"),
    "coordinator": ("a coordinator", "take coordinator.credentials of the authority"),
    "watcher": ("a watcher", "run `fleetnas enroll watcher`"),
}


class Credentials(BaseModel):
    """The content of a credentials file. Its text forms never show a secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = FORMAT_VERSION
    role: Role
    fleet: Identifier
    name: Identifier = Field(description="the login's name, and an agent's name in the fleet")
    host: Annotated[str, AfterValidator(_checked_host)] = Field(
        min_length=1, max_length=255, description="the broker's, as its certificate has it; IPv6 without brackets"
    )
    port: int = Field(ge=1, le=65535)
    ca: Pem | None = Field(default=None, description="authority of the broker's certificate; None: the system's")
    certificate: Pem | None = Field(default=None, description="this client's own")
    key: Pem | None = Field(default=None, repr=False)
    password: str | None = Field(default=None, repr=False, max_length=1024)
    coordinator_keys: tuple[Key, ...] = Field(
        default=(),
        max_length=MAX_PINNED_KEYS,
        description="Ed25519 keys, in base64, one of which must have signed every order",
    )
    signing_key: Key | None = Field(default=None, repr=False, description="the coordinator's own, to sign with")

    @property
    def broker(self) -> BrokerAddress:
        """The broker with this login, over TLS."""
        return BrokerAddress(
            self.host,
            self.port,
            username=self.name if self.password is not None else None,
            password=self.password,
            tls=True,
            ca_pem=self.ca,
            certificate_pem=self.certificate,
            key_pem=self.key,
        )

    @property
    def trusted_keys(self) -> tuple[bytes, ...]:
        """The pinned public keys."""
        return tuple(base64.b64decode(key) for key in self.coordinator_keys)

    @property
    def private_key(self) -> bytes | None:
        """The coordinator's private key; None in other credentials."""
        return base64.b64decode(self.signing_key) if self.signing_key is not None else None


def read_credentials(path: Path, *roles: Role) -> Credentials:
    """Return the credentials in a file.

    Raises `UsageError` if other users may read the file, if it holds no credentials, or none of the given `roles`.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            payload = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the credentials {path} cannot be read ({error.strerror}); check --credentials") from error
    if mode & stat.S_IRWXO:
        raise UsageError(
            f"the credentials {path} hold secret keys and every user of this machine may read them; "
            f"run: chmod 600 {path}"
        )
    try:
        if len(payload) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes")
        found = Credentials.model_validate_json(decode_text(payload))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise UsageError(
            f"{path} is not a credentials file ({where}: {fault_words(first)}); make one with `fleetnas enroll`"
        ) from None
    except ValueError as error:
        raise UsageError(f"{path} is not a credentials file ({error}); make one with `fleetnas enroll`") from None
    if roles and found.role not in roles:
        who, where = _WHERE[roles[0]]
        raise UsageError(f"{path} are the credentials of {_WHERE[found.role][0]}, and {who} needs its own; {where}")
    return found


def write_credentials(path: Path, credentials: Credentials) -> None:
    """Write a new file that only its owner can read; `UsageError` if it exists or cannot be made."""
    text = credentials.model_dump_json(indent=1, exclude_none=True) + "\n"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{path} exists and is not overwritten; remove it, or write to another file") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}); choose another place") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        path.unlink()  # a part of the file is useless
        raise UsageError(f"{path} cannot be written ({error.strerror}); make room there, or choose another") from error
