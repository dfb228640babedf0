"""`fleetnas-agent configure`: the configuration file, written and changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetnas.agent.cli.configure import merged
from fleetnas.agent.cli.main import main, parse_options
from fleetnas.fleet_protocol.errors import UsageError


def configure(file: Path, *words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["configure", "--config", str(file), *words])
    return int(ended.value.code or 0)


def test_what_is_written_is_what_run_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "agent.conf"
    words = ("--broker", "10.0.0.1", "--fleet", "lab", "--name", "pi4")
    assert configure(file, *words, "--setting", "onnxruntime,threads=2", "--setting", "onnxruntime,threads=1") == 0
    assert capsys.readouterr().out == f"wrote the configuration {file}\n"
    options = parse_options(["run", "--config", str(file)])
    assert (options.broker, options.fleet, options.name) == ("10.0.0.1", "lab", "pi4")
    assert options.configured_settings == ["onnxruntime,threads=2", "onnxruntime,threads=1"]
    before = file.read_bytes()
    assert configure(file, *words) == 0
    assert capsys.readouterr().out == f"kept the configuration {file}\n"
    assert file.read_bytes() == before


def test_a_new_broker_keeps_the_name_and_settings_and_drops_the_login_of_the_old() -> None:
    before = {
        "broker": "old",
        "username": "me",
        "fleet": "lab",
        "name": "pi4",
        "settings": "onnxruntime",
        "cache_mb": "9",
    }
    assert merged(before, {"broker": "new"}) == {
        "broker": "new", "name": "pi4", "settings": "onnxruntime", "cache_mb": "9",
    }  # fmt: skip
    assert merged(before, {"broker": "old", "fleet": "b"}) == {**before, "fleet": "b"}


def test_credentials_that_are_there_are_kept_where_only_a_broker_is_named(tmp_path: Path) -> None:
    from fleetnas.fleet_protocol.security.credentials import Credentials, write_credentials

    file = tmp_path / "pi4.credentials"
    write_credentials(
        file, Credentials(role="agent", fleet="lab", name="pi4", host="b.example", port=8883, password="x")
    )
    before = {"credentials": str(file), "settings": "onnxruntime"}
    assert merged(before, {"broker": "10.0.0.1", "fleet": "other"}) == before
    changed = merged({"broker": "10.0.0.1", "name": "old", "cache_mb": "9"}, {"credentials": str(file), "fleet": "lab"})
    assert changed == {"credentials": str(file), "fleet": "lab", "cache_mb": "9"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "no broker was named"),
        ({"broker": "a b"}, "is not HOST:PORT"),
        ({"broker": "b", "name": "a b"}, "a b"),
        ({"broker": "b", "fleet": "a/b"}, "a/b"),
        ({"broker": "b", "settings": "onnxruntime,threads=none"}, "threads"),
        ({"broker": "b", "name": "x\n[other]"}, "cannot hold"),
        ({"credentials": "/none"}, "/none"),
    ],
)
def test_values_that_run_would_refuse_are_not_written(given: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        merged({}, given)
    assert said in str(refusal.value)


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert configure(tmp_path / "file" / "agent.conf", "--broker", "b") == 1
    assert "cannot be written" in capsys.readouterr().err
