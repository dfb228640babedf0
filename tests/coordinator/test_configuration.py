"""Broker, fleet, credentials and store are configured once, and every message says where a value comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rigs.command_line import fleetnas

from fleetnas.coordinator.cli import configuration
from fleetnas.coordinator.cli.connection import ConnectionOptions
from fleetnas.coordinator.cli.search.fleet import FleetOptions
from fleetnas.fleet_protocol.errors import UsageError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without settings."""
    for key in configuration.KEYS:
        monkeypatch.delenv(f"FLEETNAS_{key.upper()}", raising=False)
    monkeypatch.delenv("FLEETNAS_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(configuration._Choice, "file", None)  # noqa: SLF001 - what an earlier command line chose
    (tmp_path / "config" / "fleetnas").mkdir(parents=True)
    return tmp_path


def write(home: Path, text: str) -> Path:
    path = home / "config" / "fleetnas" / "fleetnas.toml"
    path.write_text(text)
    return path


def test_options_go_before_the_environment_and_that_before_the_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home, 'broker = "file.example"\nfleet = "filed"\nstore = "runs.sqlite"\n')
    found = ConnectionOptions().connection()
    assert (str(found.broker), found.fleet) == ("file.example:1883", "filed")
    assert configuration.store_location(None) == str(home / "config" / "fleetnas" / "runs.sqlite")
    monkeypatch.setenv("FLEETNAS_FLEET", "of-environment")
    monkeypatch.setenv("FLEETNAS_STORE", "/elsewhere.sqlite")
    found = ConnectionOptions().connection()
    assert (str(found.broker), found.fleet) == ("file.example:1883", "of-environment")
    assert configuration.store_location(None) == "/elsewhere.sqlite"
    assert configuration.store_location("given.sqlite") == "given.sqlite"
    assert ConnectionOptions(fleet="given").connection().fleet == "given"


def test_a_named_broker_never_gets_the_login_of_another(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "password").write_text("secret")
    write(home, 'broker = "mine.example"\nfleet = "mine"\nusername = "me"\npassword_file = "../../password"\n')
    mine = ConnectionOptions().connection()
    assert (mine.broker.username, mine.broker.password) == ("me", "secret")
    other = ConnectionOptions(broker="other.example").connection()
    assert (other.broker.username, other.broker.password, other.fleet) == (None, None, "default")
    monkeypatch.setenv("FLEETNAS_BROKER", "third.example")
    third = ConnectionOptions().connection()
    assert (third.broker.host, third.broker.username, third.fleet) == ("third.example", None, "default")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('broker = "a b"', "broker 'a b' is not HOST:PORT"),
        ('brocker = "x"', "unknown key 'brocker'; did you mean broker? there are broker, credentials, fleet"),
        ("broker = 5", 'has broker = 5, which is no text such as broker = "..."'),
        ("broker = ", "cannot be read"),
        ('credentials = "missing.credentials"', "missing.credentials"),
        ('broker = "x"\npassword_file = "p"\nusername = "u"', "the password file"),
        ('credentials = "c"\nusername = "u"', "the credentials hold the whole login"),
    ],
)
def test_errors_name_the_file_that_has_the_value(home: Path, text: str, said: str) -> None:
    path = write(home, text)
    with pytest.raises(UsageError) as refusal:
        ConnectionOptions().connection()
    assert said in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_errors_name_the_variable_that_has_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETNAS_BROKER", "host:99999")
    with pytest.raises(UsageError, match=r"port from 1 to 65535.*\(\$FLEETNAS_BROKER says so\)"):
        ConnectionOptions().connection()


def test_a_broker_that_does_not_answer_is_told_with_its_origin(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(home, 'broker = "127.0.0.1:1"\n')
    code, _, err = fleetnas(capsys, "devices", "--wait", "0.2")
    assert code != 0
    assert f"({path} says so)" in err


def test_a_file_in_the_current_folder_is_not_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = home / "project"
    for place in (planted, planted / "fleetnas", planted / "config" / "fleetnas", planted / ".config" / "fleetnas"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "fleetnas.toml").write_text('broker = "attacker.example"\n')
    monkeypatch.chdir(planted)
    monkeypatch.setenv("HOME", str(home / "nobody"))
    for variable in ("config", "", "."):  # relative: it would be below the current folder
        monkeypatch.setenv("XDG_CONFIG_HOME", variable)
        with pytest.raises(UsageError, match="no broker is known"):
            ConnectionOptions().connection()


def test_a_named_file_is_read_in_place_of_the_users(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(home, 'store = "mine.sqlite"\n')
    other = home / "other.toml"
    other.write_text(f'store = "{home}/other.sqlite"\n')
    assert str(home / "other.sqlite") in fleetnas(capsys, "--config", str(other), "runs")[1]
    assert "mine.sqlite" in fleetnas(capsys, "runs")[1]
    code, _, err = fleetnas(capsys, "--config", str(home / "none.toml"), "runs")
    assert (code, "none.toml cannot be read: No such file" in err) == (2, True)


def test_a_relative_path_begins_at_the_file_and_a_tilde_at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    write(home, 'store = "~/runs.sqlite"\nca_file = "ca.pem"\nbroker = "mqtts://x"\n')
    assert configuration.store_location(None) == str(home / "runs.sqlite")
    assert ConnectionOptions().connection().broker.ca_file == str(home / "config" / "fleetnas" / "ca.pem")
    write(home, 'store = "postgresql://user@host/db"\n')
    assert configuration.store_location(None) == "postgresql://user@host/db"


def test_a_run_keeps_the_way_to_its_fleet_without_secrets(home: Path) -> None:
    (home / "password").write_text("secret")
    options = ConnectionOptions(
        broker="mqtts://fleet.example", fleet="lab", username="me", password_file=home / "password", ca_file="/ca.pem"
    )
    access = FleetOptions(mirror="https://mirror.example/x", bundle_rate=3.0, share=True).access(options)
    kept = access.kept
    assert "secret" not in json.dumps(kept.model_dump())
    resumed = FleetOptions().access(ConnectionOptions(), kept=kept, fleet="lab")
    assert resumed.broker == access.broker
    assert (resumed.name, resumed.mirror, resumed.share, resumed.bundle_rate_bytes_per_s) == (
        "lab", "https://mirror.example/x", True, 3e6,
    )  # fmt: skip
    moved = FleetOptions(bundle_rate=5.0).access(
        ConnectionOptions(broker="new.example"), kept=kept, fleet="lab", given=("bundle_rate",)
    )
    assert (moved.broker.host, moved.name, moved.bundle_rate_bytes_per_s) == ("new.example", "lab", 5e6)
    assert moved.broker.username is None
