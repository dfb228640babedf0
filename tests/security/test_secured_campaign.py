"""The whole way that docs/brokers.md describes, with real processes: init, enroll, run, search."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rigs import waiting
from rigs.brokers import free_port, mosquitto_program, until_listening
from rigs.model_files import onnx_model
from rigs.untrained_supernet import write_untrained

FLEETNAS = (sys.executable, "-c", "from fleetnas.coordinator.cli import main; main()")
AGENT = (sys.executable, "-c", "from fleetnas.agent.cli.main import main; main()")
QUICK = ("--targets", "1000", "--budget", "3", "--min-time", "0.05", "--warmup", "0.01", "--join", "60")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "FLEETNAS_HOST_LOCK": str(tmp_path / "lock"), "XDG_CONFIG_HOME": str(tmp_path / "none")}


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[Path]:
    """An authority with its mosquitto running."""
    made, port = tmp_path / "authority", free_port()
    arguments = ("broker", "init", made, "--host", "localhost", "--port", port, "--fleet", "lab")
    waiting.run([*FLEETNAS, *arguments]).check_returncode()
    configuration = tmp_path / "mosquitto.conf"
    text = (made / "mosquitto" / "mosquitto.conf").read_text()
    configuration.write_text(f"{text}\nuser {getpass.getuser()}\n")
    with (tmp_path / "mosquitto.log").open("ab") as log:
        broker = subprocess.Popen([mosquitto_program(), "-c", str(configuration)], stderr=log)
    try:
        until_listening(port, broker)
        yield made
    finally:
        broker.kill()
        broker.wait()


def test_a_campaign_over_mutual_tls_with_signed_orders(
    authority: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    credentials = tmp_path / "pi.credentials"
    enrolment = ("enroll", "pi", "--authority", authority, "-o", credentials)
    waiting.run([*FLEETNAS, *enrolment]).check_returncode()
    write_untrained(tmp_path / "s.supernet")
    with (tmp_path / "agent.log").open("ab") as log:
        arguments = (
            "run",
            "--credentials",
            str(credentials),
            "--state-dir",
            str(tmp_path / "state"),
            "--accept-models",
        )
        agent = subprocess.Popen([*AGENT, *arguments], env=environment, stderr=log)
    model = tmp_path / "mine.onnx"
    model.write_bytes(onnx_model())
    try:
        search = waiting.run(
            [
                *(*FLEETNAS, "search", "--credentials", str(authority / "coordinator.credentials"), *QUICK, "--json"),
                *("--supernet", str(tmp_path / "s.supernet"), "--out", str(tmp_path / "out"), "--baseline", str(model)),
                *("--store", str(tmp_path / "runs.sqlite")),
            ],
            env=environment,
            start_new_session=True,  # whose priority it lowers
        )
    finally:
        agent.terminate()
        waiting.ended(agent)
    assert search.returncode == 0, search.stderr
    (device,) = json.loads((tmp_path / "out" / "results.json").read_text())["fleet"]
    assert [target["met"] for target in device["targets"]] == [True]
    (baseline,) = device["baselines"]
    assert baseline["reason"] == ""
    assert baseline["measurements"] >= 3
    log_text = (tmp_path / "agent.log").read_text()
    assert "session" in log_text
    assert "WARNING" not in log_text
