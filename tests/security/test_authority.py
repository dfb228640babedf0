"""The authority's folder and the credentials it issues, through the commands that people type."""

from __future__ import annotations

import contextlib
import io
import json
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from cryptography import x509
from rigs.security_rig import NOW

from fleetnas.agent.cli.installation.layout import Installation
from fleetnas.agent.cli.installation.service import install
from fleetnas.agent.cli.main import build_parser
from fleetnas.agent.cli.options import broker_address, trusted_keys, with_credentials
from fleetnas.coordinator.cli import main
from fleetnas.coordinator.cli.connection import ConnectionOptions
from fleetnas.coordinator.cli.security import install_commands
from fleetnas.coordinator.security.authority import Authority
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.security.credentials import read_credentials, write_credentials
from fleetnas.fleet_protocol.security.signing import public_key_of


@dataclass
class Ended:
    """What a command did."""

    returncode: int
    stdout: str
    stderr: str


def fleetnas(*arguments: object) -> Ended:
    """The command line, in this process: starting one for each would take longer than the tests."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["fleetnas", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("made") / "authority"
    run = fleetnas("broker", "init", made, "--host", "fleet.example", "--host", "10.0.0.7", "--fleet", "lab")
    assert run.returncode == 0, run.stderr
    assert "fleetnas enroll NAME" in run.stdout
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_secret_is_readable_to_nobody_else(folder: Path, tmp_path: Path) -> None:
    run = fleetnas("enroll", "pi4", "--authority", folder, "-o", tmp_path / "pi4.credentials")
    assert run.returncode == 0, run.stderr
    assert mode(folder) == 0o700
    secrets = ["ca.key", "coordinator.credentials", "authority.json", "mosquitto/server.key", "mosquitto/access-rules"]
    assert {mode(folder / name) for name in secrets} == {0o600}
    assert mode(tmp_path / "pi4.credentials") == 0o600
    everything = [path for path in folder.rglob("*") if path.is_file()] + [tmp_path / "pi4.credentials"]
    holding_keys = {path.name for path in everything if "PRIVATE KEY" in path.read_text()}
    assert holding_keys == {"ca.key", "server.key", "coordinator.credentials", "pi4.credentials"}
    assert "signing_key" not in json.loads((tmp_path / "pi4.credentials").read_text())


def test_the_brokers_certificate_has_its_names_and_can_sign_nothing(folder: Path) -> None:
    certificate = x509.load_pem_x509_certificate((folder / "mosquitto" / "server.pem").read_bytes())
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fleet.example"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    certificate.verify_directly_issued_by(authority)


def test_who_starts_mosquitto_can_read_its_files(folder: Path) -> None:
    """Started by root, mosquitto becomes a user of its own, whom the authority's folder is closed to."""
    authority = Authority.open(folder)
    there = authority.broker_files.absolute()
    assert f"mosquitto -c {there}" in install_commands(authority, there, as_root=False)
    assert "--install-at /etc/mosquitto/fleetnas" in install_commands(authority, there, as_root=True)
    assert f"chown -R mosquitto: {there}/else" in install_commands(authority, there / "else", as_root=True)


def test_nothing_is_overwritten(folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = fleetnas("broker", "init", folder)
    assert again.returncode == 2
    assert "not empty" in again.stderr
    (tmp_path / "taken").write_text("x")
    enrolled = fleetnas("enroll", "pi5", "--authority", folder, "-o", tmp_path / "taken")
    assert enrolled.returncode == 2
    assert "not overwritten" in enrolled.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [("coordinator", "login of coordinators"), ("a/b", "cannot be used"), ("+", "cannot be used"), ("%u", "cannot be")],
)
def test_names_that_would_open_other_topics_are_refused(folder: Path, tmp_path: Path, name: str, reason: str) -> None:
    run = fleetnas("enroll", name, "--authority", folder, "-o", tmp_path / "c")
    assert run.returncode == 2
    assert reason in run.stderr
    assert not (tmp_path / "c").exists()


def test_a_name_is_enrolled_once_unless_it_is_renewed(folder: Path, tmp_path: Path) -> None:
    assert fleetnas("enroll", "twice", "--authority", folder, "-o", tmp_path / "1").returncode == 0
    second = fleetnas("enroll", "twice", "--authority", folder, "-o", tmp_path / "2")
    assert second.returncode == 2
    assert "--renew" in second.stderr
    assert fleetnas("enroll", "twice", "--renew", "--authority", folder, "-o", tmp_path / "2").returncode == 0
    old = x509.load_pem_x509_certificate(json.loads((tmp_path / "1").read_text())["certificate"].encode())
    new = x509.load_pem_x509_certificate(json.loads((tmp_path / "2").read_text())["certificate"].encode())
    revoked = x509.load_pem_x509_crl((folder / "mosquitto" / "revoked.pem").read_bytes())
    assert revoked.get_revoked_certificate_by_serial_number(old.serial_number) is not None
    assert revoked.get_revoked_certificate_by_serial_number(new.serial_number) is None


def test_who_was_never_enrolled_cannot_be_revoked(folder: Path) -> None:
    run = fleetnas("revoke", "nobody", "--authority", folder)
    assert run.returncode == 2
    assert "not enrolled" in run.stderr


def test_a_bundle_is_signed_and_verified_by_command(folder: Path, tmp_path: Path) -> None:
    bundle, credentials = tmp_path / "x.supernet", folder / "coordinator.credentials"
    bundle.write_bytes(bytes(10_000))
    assert fleetnas("sign", bundle, "--credentials", credentials).returncode == 0
    assert fleetnas("verify", bundle, "--credentials", credentials).returncode == 0
    bundle.write_bytes(bytes(9_999) + b"\1")
    altered = fleetnas("verify", bundle, "--credentials", credentials)
    assert altered.returncode == 1
    assert "altered" in altered.stderr


def test_keys_are_rotated_without_a_moment_in_which_nobody_is_obeyed(folder: Path, tmp_path: Path) -> None:
    def enroll(name: str) -> tuple[bytes, ...]:
        run = fleetnas("enroll", name, "--authority", folder, "-o", tmp_path / name)
        assert run.returncode == 0, run.stderr
        return read_credentials(tmp_path / name, "agent").trusted_keys

    def key_of(path: Path) -> bytes:
        private_key = read_credentials(path, "coordinator").private_key
        assert private_key is not None
        return public_key_of(private_key)

    old = key_of(folder / "coordinator.credentials")
    assert enroll("before") == (old,)
    assert fleetnas("broker", "rotate", folder, "-o", tmp_path / "next").returncode == 0
    new = key_of(tmp_path / "next")
    assert enroll("meanwhile") == (new, old)
    assert fleetnas("broker", "rotate", folder, "--finish").returncode == 0
    assert enroll("after") == (new,)
    assert fleetnas("broker", "rotate", folder, "-o", tmp_path / "last", "--compromised").returncode == 0
    assert enroll("afterwards") == (key_of(tmp_path / "last"),)
    opened = Authority.open(folder)
    assert len(opened.register.revoked_serials) > 0


class TestTheAgentsCommandLine:
    @pytest.fixture
    def credentials(self, folder: Path, tmp_path: Path) -> Path:
        path = tmp_path / "pi.credentials"
        Authority.open(folder).enroll(f"pi-{tmp_path.name}"[:60], path, NOW)
        return path

    def test_one_file_says_everything(self, credentials: Path) -> None:
        parser, _ = build_parser()
        options = parser.parse_args(["run", "--credentials", str(credentials)])
        options = with_credentials(options)
        found = read_credentials(credentials, "agent")
        address = broker_address(options)
        assert (options.name, options.fleet) == (found.name, "lab")
        assert (address.host, address.port, address.uses_tls) == ("fleet.example", 8883, True)
        assert (address.ca_pem, address.certificate_pem, address.key_pem) == (found.ca, found.certificate, found.key)
        assert trusted_keys(options) == found.trusted_keys != ()
        assert found.key is not None
        assert found.key not in repr(address) + repr(found) + str(address)

    @pytest.mark.parametrize(
        "more", [("--name", "other"), ("--fleet", "other"), ("--ca-file", "x"), ("--username", "x")]
    )
    def test_what_contradicts_it_is_refused(self, credentials: Path, more: tuple[str, str]) -> None:
        parser, _ = build_parser()
        options = parser.parse_args(["run", "--credentials", str(credentials), *more])
        with pytest.raises(UsageError, match=more[0]):
            with_credentials(options)

    def test_a_service_gets_its_own_copy_that_only_it_can_read(self, credentials: Path, tmp_path: Path) -> None:
        installation = Installation(tmp_path / "root")
        install(installation, {"credentials": str(credentials)}, start=True, run=lambda _: None)
        assert installation.credentials.read_bytes() == credentials.read_bytes()
        assert mode(installation.credentials) == 0o640
        assert read_credentials(installation.credentials, "agent") == read_credentials(credentials, "agent")
        assert "credentials = /etc/fleetnas/agent.credentials" in installation.configuration.read_text()

    def test_the_coordinators_file_is_no_agents(self, folder: Path) -> None:
        with pytest.raises(UsageError, match="enroll"):
            read_credentials(folder / "coordinator.credentials", "agent")

    def test_a_file_that_others_may_read_is_refused(self, credentials: Path) -> None:
        credentials.chmod(0o644)
        with pytest.raises(UsageError, match="chmod 600"):
            read_credentials(credentials, "agent")

    @pytest.mark.parametrize("content", ["", "{}", "-----BEGIN", '{"format_version": 2}', "x" * 300_000])
    def test_what_is_no_credentials_file_is_one_line(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "c"
        path.write_text(content)
        path.chmod(0o600)
        with pytest.raises(UsageError, match="not a credentials file") as error:
            read_credentials(path, "agent")
        assert "\n" not in str(error.value)

    def test_a_written_file_is_never_replaced(self, credentials: Path) -> None:
        with pytest.raises(UsageError, match="not overwritten"):
            write_credentials(credentials, read_credentials(credentials, "agent"))


class TestTheCoordinatorsCommandLine:
    def test_one_file_says_everything(self, folder: Path) -> None:
        found_at = ConnectionOptions(credentials=folder / "coordinator.credentials").connection()
        assert (str(found_at.broker), found_at.fleet) == ("mqtts://fleet.example:8883", "lab")
        assert found_at.signing_key == read_credentials(folder / "coordinator.credentials").private_key is not None

    def test_a_second_login_beside_it_is_refused(self, folder: Path) -> None:
        with pytest.raises(UsageError, match="whole login"):
            ConnectionOptions(credentials=folder / "coordinator.credentials", username="me").connection()

    def test_a_password_stands_in_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("hush\n")
        address = (
            ConnectionOptions("mqtts://h", "f", username="me", password_file=tmp_path / "secret").connection().broker
        )
        assert (address.username, address.password, address.port, address.uses_tls) == ("me", "hush", 8883, True)
        assert "hush" not in repr(address)
        with pytest.raises(UsageError, match="--password-file"):
            ConnectionOptions("h", "f", username="me", password_file=tmp_path / "none").connection()
