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
from brokers import free_port, mosquitto_program, until_listening
from untrained_supernet import write_untrained

pytestmark = pytest.mark.xdist_group("endtoend")

FLEETNAS = (sys.executable, "-c", "from coordinator.cli import main; main()")
AGENT = (sys.executable, "-c", "from agent.cli import main; main()")
QUICK = ("--targets", "auto:1", "--budget", "3", "--min-time", "0.05", "--warmup", "0.01", "--join", "60")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "FLEETNAS_HOST_LOCK": str(tmp_path / "lock"), "XDG_CONFIG_HOME": str(tmp_path / "none")}


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[Path]:
    """An authority with its mosquitto running."""
    made, port = tmp_path / "authority", free_port()
    arguments = ("broker", "init", made, "--host", "localhost", "--port", port, "--fleet", "lab")
    subprocess.run([*FLEETNAS, *map(str, arguments)], check=True, timeout=60, stdout=subprocess.DEVNULL)
    configuration = tmp_path / "mosquitto.conf"
    text = (made / "mosquitto" / "mosquitto.conf").read_text()
    configuration.write_text(f"{text}\nuser {getpass.getuser()}\n")
    with (tmp_path / "mosquitto.log").open("ab") as log:
        broker = subprocess.Popen([mosquitto_program(), "-c", str(configuration)], stderr=log)
    try:
        until_listening(port)
        yield made
    finally:
        broker.kill()
        broker.wait()


def test_a_campaign_over_mutual_tls_with_signed_orders(
    authority: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    credentials = tmp_path / "pi.credentials"
    enrolment = ("enroll", "pi", "--authority", authority, "-o", credentials)
    subprocess.run([*FLEETNAS, *map(str, enrolment)], check=True, timeout=60, stdout=subprocess.DEVNULL)
    write_untrained(tmp_path / "s.supernet")
    with (tmp_path / "agent.log").open("ab") as log:
        arguments = ("run", "--credentials", str(credentials), "--state-dir", str(tmp_path / "state"))
        agent = subprocess.Popen([*AGENT, *arguments], env=environment, stderr=log)
    try:
        search = subprocess.run(
            [
                *(*FLEETNAS, "search", "--credentials", str(authority / "coordinator.credentials"), *QUICK, "--json"),
                *("--supernet", str(tmp_path / "s.supernet"), "--out", str(tmp_path / "out")),
                *("--store", str(tmp_path / "runs.sqlite")),
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
    finally:
        agent.terminate()
        agent.wait(20)
    assert search.returncode == 0, search.stderr
    (device,) = json.loads((tmp_path / "out" / "results.json").read_text())["fleet"]
    assert [target["met"] for target in device["targets"]] == [True]
    log_text = (tmp_path / "agent.log").read_text()
    assert "session" in log_text
    assert "WARNING" not in log_text
