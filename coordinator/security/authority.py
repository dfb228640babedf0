"""A fleet's authority: the folder from which brokers are configured and agents enrolled.

    authority.json             the set-up, and the enrolled agents
    ca.pem, ca.key             the private authority; the key never leaves this folder
    coordinator.credentials    for `fleetnas search --credentials`; it holds the key that signs orders
    mosquitto/                 the files of the broker's machine, and nothing else

Secret files are readable by their owner only, and only commands made for that overwrite a file.
"""

from __future__ import annotations

import base64
import datetime
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fleetnas.coordinator.security import mosquitto
from fleetnas.coordinator.security.certificates import Issued, issue, new_authority, revocation_list
from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.error_text import reason_of
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.security import signing
from fleetnas.fleet_protocol.security.credentials import (
    MAX_PINNED_KEYS,
    Credentials,
    Role,
    read_credentials,
    write_credentials,
)
from fleetnas.fleet_protocol.topics import Topics, check_name
from fleetnas.fleet_protocol.transports.base import DEFAULT_TLS_PORT

_REGISTER, _BROKER, _COORDINATOR = "authority.json", "mosquitto", "coordinator.credentials"
_SALT_BYTES, _PASSWORD_BYTES = 12, 32
_SECRET, _PUBLIC = 0o600, 0o644


class Enrolment(BaseModel):
    """One login that was issued."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    serial: int | None = Field(default=None, description="of its certificate")
    expires: datetime.datetime | None = None


class Register(BaseModel):
    """The content of `authority.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    fleet: str
    hosts: tuple[str, ...] = Field(min_length=1, description="names and addresses of the broker; agents use the first")
    port: int
    login: mosquitto.Login
    broker_folder: str = Field(description="where the broker's files lie on the broker's machine")
    coordinator_keys: tuple[str, ...] = Field(description="public keys that agents pin, the newest first")
    enrolled: dict[str, Enrolment] = {}
    revoked_serials: tuple[int, ...] = ()


class Authority:
    """An authority's folder. Times are passed in, with their zone."""

    def __init__(self, folder: Path, register: Register) -> None:
        """Take the folder of an authority with its register; see `create` and `open`."""
        self.folder = folder
        self.register = register

    # -- setting up --------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        fleet: str,
        hosts: Sequence[str],
        now: datetime.datetime,
        port: int = DEFAULT_TLS_PORT,
        login: mosquitto.Login = "certificate",
        broker_folder: Path | None = None,
    ) -> Authority:
        """Set up a new authority; `UsageError` where `folder` is not empty."""
        topics = Topics(fleet)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            occupied = next(folder.iterdir(), None)
            if occupied is not None:
                raise UsageError(
                    f"{folder} is not empty (it holds {occupied.name}), and nothing is overwritten; choose a new folder"
                )
            folder.chmod(0o700)
            (folder / _BROKER).mkdir()
        except OSError as error:
            raise UsageError(f"{folder} cannot be written ({error}); choose another folder") from error
        register = Register(
            fleet=fleet,
            hosts=tuple(hosts),
            port=port,
            login=login,
            broker_folder=str(broker_folder or (folder / _BROKER).absolute()),
            coordinator_keys=(),
        )
        authority = cls(folder, register)
        ca = new_authority(fleet, now)
        authority._write("ca.pem", ca.certificate, _PUBLIC)
        authority._write("ca.key", ca.key, _SECRET)
        authority._write(f"{_BROKER}/ca.pem", ca.certificate, _PUBLIC)
        authority._write(f"{_BROKER}/mosquitto.conf", authority._configuration(), _PUBLIC)
        authority._write(f"{_BROKER}/access-rules", mosquitto.access_rules(topics), _SECRET)
        if login == "password":
            authority._write(f"{_BROKER}/passwords", "", _SECRET)
        authority.renew_broker(now)
        login_ = authority._login(mosquitto.COORDINATOR, "coordinator", now)
        authority._new_signing_key(folder / _COORDINATOR, login_, keep=False)
        return authority

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Open the authority in `folder`; `UsageError` where there is none."""
        try:
            return cls(folder, Register.model_validate_json(read_text(folder / _REGISTER)))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or reason_of(error)
            raise UsageError(
                f"{folder} is not a fleet's authority ({_REGISTER} cannot be read: {reason}); give the folder that "
                "`fleetnas broker init` made"
            ) from error

    @property
    def broker_files(self) -> Path:
        """Folder of the files for the broker's machine."""
        return self.folder / _BROKER

    def renew_broker(self, now: datetime.datetime, hosts: Sequence[str] = ()) -> Issued:
        """Issue a new certificate for the broker, under new names if `hosts` gives some."""
        if hosts:
            self._register(hosts=tuple(hosts))
        names = self.register.hosts
        issued = issue(self._ca(), names[0], "server", now, hosts=names)
        self._write(f"{_BROKER}/server.pem", issued.certificate, _PUBLIC)
        self._write(f"{_BROKER}/server.key", issued.key, _SECRET)
        self._write_revoked(now)
        return issued

    # -- logins ------------------------------------------------------------------------------------------------

    def rotate_coordinator(self, path: Path, now: datetime.datetime, *, compromised: bool = False) -> Credentials:
        """Write coordinator's credentials with a new signing key to `path`.

        Agents enrolled from now on pin it beside the keys before it, so that both work until the last agent has its
        new credentials. Where the old ones are `compromised`, agents pin the new key only and the old login is revoked.
        """
        _check_free(path)
        if compromised:
            self._strike(mosquitto.COORDINATOR, now)
            login = self._login(mosquitto.COORDINATOR, "coordinator", now)
        else:
            login = read_credentials(self.folder / _COORDINATOR, "coordinator")
        return self._new_signing_key(path, login, keep=not compromised)

    def forget_old_keys(self) -> None:
        """Let agents enrolled from now on pin only the newest coordinator's key."""
        self._register(coordinator_keys=self.register.coordinator_keys[:1])

    def _new_signing_key(self, path: Path, login: Credentials, *, keep: bool) -> Credentials:
        private_key = signing.new_private_key()
        public = base64.b64encode(signing.public_key_of(private_key)).decode()
        credentials = login.model_copy(
            update={"signing_key": base64.b64encode(private_key).decode(), "coordinator_keys": (public,)}
        )
        write_credentials(path, credentials)
        kept = self.register.coordinator_keys[: MAX_PINNED_KEYS - 1] if keep else ()
        self._register(coordinator_keys=(public, *kept))
        return credentials

    def enroll(self, name: str, path: Path, now: datetime.datetime, *, renew: bool = False) -> Credentials:
        """Write one agent's credentials, or those of all watchers, to `path`.

        With `renew`, the agent's earlier credentials are revoked.
        """
        check_name(name, "agent name")
        role: Role = "watcher" if name == mosquitto.WATCHER else "agent"
        if name == mosquitto.COORDINATOR:
            raise UsageError(f"{name!r} is the login of coordinators and may use every topic; choose another name")
        if name in self.register.enrolled and not renew:
            raise UsageError(
                f"{name} is enrolled already; give --renew to replace its credentials, or choose another name"
            )
        _check_free(path)
        if renew:
            self._strike(name, now)
        credentials = self._login(name, role, now)
        if role == "agent":
            credentials = credentials.model_copy(update={"coordinator_keys": self.register.coordinator_keys})
        write_credentials(path, credentials)
        return credentials

    def revoke(self, name: str, now: datetime.datetime) -> None:
        """Revoke an agent's login; effective once the broker is restarted with the new files."""
        if name not in self.register.enrolled:
            known = ", ".join(sorted(set(self.register.enrolled) - {mosquitto.COORDINATOR})[:10]) or "nobody"
            raise UsageError(f"{name} is not enrolled in fleet {self.register.fleet!r}; enrolled are: {known}")
        self._strike(name, now)

    def _login(self, name: str, role: Role, now: datetime.datetime) -> Credentials:
        credentials = Credentials(
            role=role,
            fleet=self.register.fleet,
            name=name,
            host=self.register.hosts[0],
            port=self.register.port,
            ca=self._read("ca.pem"),
        )
        if self.register.login == "certificate":
            issued = issue(self._ca(), name, "client", now)
            enrolment = Enrolment(serial=issued.serial, expires=issued.expires)
            found = {"certificate": issued.certificate, "key": issued.key}
        else:
            password = secrets.token_urlsafe(_PASSWORD_BYTES)
            line = mosquitto.password_line(name, password, secrets.token_bytes(_SALT_BYTES))
            kept = [old for old in self._passwords() if not old.startswith(f"{name}:")]
            self._write(f"{_BROKER}/passwords", "".join([*kept, line]), _SECRET)
            enrolment, found = Enrolment(), {"password": password}
        self._register(enrolled={**self.register.enrolled, name: enrolment})
        return credentials.model_copy(update=found)

    def _strike(self, name: str, now: datetime.datetime) -> None:
        enrolled = dict(self.register.enrolled)
        gone = enrolled.pop(name, None)
        serials = self.register.revoked_serials
        if gone is not None and gone.serial is not None:
            serials = (*serials, gone.serial)
        self._register(enrolled=enrolled, revoked_serials=serials)
        if self.register.login == "certificate":
            self._write_revoked(now)
        else:
            kept = [line for line in self._passwords() if not line.startswith(f"{name}:")]
            self._write(f"{_BROKER}/passwords", "".join(kept), _SECRET)

    def install_server_identity(self, hosts: Sequence[str], now: datetime.datetime) -> Issued:
        """Issue a certificate of one day for this machine's install server, under `hosts`; it is not stored."""
        return issue(self._ca(), hosts[0], "server", now, days=1, hosts=hosts)

    @property
    def certificate(self) -> str:
        """Certificate of the authority, PEM: public."""
        return self._read("ca.pem")

    # -- files -------------------------------------------------------------------------------------------------

    def _configuration(self) -> str:
        register = self.register
        return mosquitto.configuration(Path(register.broker_folder), register.port, register.login)

    def _ca(self) -> Issued:
        return Issued(self._read("ca.pem"), self._read("ca.key"))

    def _passwords(self) -> list[str]:
        return self._read(f"{_BROKER}/passwords").splitlines(keepends=True)

    def _write_revoked(self, now: datetime.datetime) -> None:
        text = revocation_list(self._ca(), self.register.revoked_serials, now)
        self._write(f"{_BROKER}/revoked.pem", text, _PUBLIC)

    def _register(self, **changes: object) -> None:
        self.register = self.register.model_copy(update=changes)
        self._write(_REGISTER, self.register.model_dump_json(indent=1) + "\n", _SECRET)

    def _read(self, name: str) -> str:
        try:
            return read_text(self.folder / name)
        except OSError as error:
            raise UsageError(
                f"{self.folder / name} cannot be read ({error.strerror}); the authority is not complete, restore it "
                "from its backup"
            ) from error

    def _write(self, name: str, text: str, mode: int) -> None:
        """Replace a file as a whole; a secret file is never readable by others."""
        path = self.folder / name
        temporary = path.with_name(f".{path.name}.new")
        try:
            temporary.unlink(missing_ok=True)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                os.fchmod(handle, mode)
                file.write(text)
                file.flush()
                os.fsync(handle)
            os.replace(temporary, path)
        except OSError as error:
            raise UsageError(f"{path} cannot be written ({error}); free some space, or check the folder") from error


def _check_free(path: Path) -> None:
    if path.exists():
        raise UsageError(f"{path} exists and is not overwritten; remove it, or write to another file")
