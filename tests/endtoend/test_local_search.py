"""A device alone: the whole search in one process tree, with the network taken away from it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rigs import waiting
from rigs.process_fleet import QUICK, events
from rigs.untrained_supernet import write_untrained

from fleetnas.coordinator.store.store import MeasurementStore

pytestmark = pytest.mark.xdist_group("endtoend")

#: Ends the process where Python opens a network socket or looks up a name. Sockets between processes of one machine
#: (AF_UNIX) are no network.
_NO_NETWORK = """
import os, socket, sys
def forbid(event, arguments):
    opened = event == "socket.__new__" and arguments[1] != socket.AF_UNIX
    if opened or event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto"):
        os.write(2, f"NETWORK {event} {arguments!r}\\n".encode())
        os._exit(99)
sys.addaudithook(forbid)
from fleetnas.coordinator.cli import main
main()
"""


class Device:
    """One device's folder, and the searches that ran on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.searches: list[subprocess.Popen[str]] = []
        write_untrained(folder / "untrained.supernet")

    def search(self, *options: str, without: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """A search whose events come on its standard output; `without` takes something away from it first."""
        common = ("--local", "--store", str(self.folder / "runs.sqlite"), "--state-dir", str(self.folder / "state"))
        process = subprocess.Popen(
            [*without, sys.executable, "-c", _NO_NETWORK, "search", *common, "--json", *options],
            stdout=subprocess.PIPE,
            stderr=(self.folder / f"{len(self.searches)}.log").open("w"),
            text=True,
            # A search lowers the priority of its session, which must not be that of the tests.
            start_new_session=True,
            # The lock of this machine's agents would have it wait for other tests.
            env={**os.environ, "OMP_NUM_THREADS": "1", "FLEETNAS_HOST_LOCK": str(self.folder / "lock")},
        )
        self.searches.append(process)
        return process

    def new_search(self, *options: str, without: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        supernet = ("--supernet", str(self.folder / "untrained.supernet"), "--out", str(self.folder / "out"))
        return self.search(*supernet, "--targets", "1000", "--budget", "3", *QUICK, *options, without=without)

    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "out" / "results.json").read_text())
        return found


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path)
    yield made
    for process in made.searches:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_it_finds_and_verifies_its_winners_where_there_is_no_network(device: Device) -> None:
    # A network namespace of its own has no interface that is up, not even the loopback.
    unshare = shutil.which("unshare")
    alone = (unshare, "-rn") if unshare and not subprocess.run([unshare, "-rn", "true"], check=False).returncode else ()
    settings = ("--setting", "onnxruntime", "--setting", "onnxruntime,graph_optimisation=disabled")
    search = device.new_search(*settings, without=alone)
    happenings = [event["event"] for event in events(search)]
    assert waiting.ended(search) == 0, device.log()
    assert happenings[-1] == "campaign_finished"
    results = device.results()
    assert results["status"] == "complete"
    labels = {found["runtime"] for found in results["fleet"]}
    assert labels == {"onnxruntime_cpu_1t_fp32", "onnxruntime_cpu_1t_fp32_opt-disabled"}
    for found in results["fleet"]:
        assert [target["met"] for target in found["targets"]] == [True]
        assert all((device.folder / "out" / target["model"]).is_file() for target in found["targets"])


def test_ctrl_c_ends_it_in_order_and_resuming_measures_nothing_twice(device: Device) -> None:
    first = device.new_search("--threads", "1")
    measured = 0
    for event in events(first):
        measured += event["event"] == "measurement"
        if measured == 2:
            children = psutil.Process(first.pid).children(recursive=True)
            first.send_signal(signal.SIGINT)
            break
    for _ in events(first):
        pass
    assert waiting.ended(first) == 130, device.log()
    assert children
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    store = MeasurementStore.open(device.folder / "runs.sqlite")
    (run,) = store.runs()
    assert run.status == "interrupted"
    before = {found.key: found.outcome for found in store.outcomes(run.run_id)}
    assert len(before) >= 2

    second = device.search("--resume")
    happenings = list(events(second))
    assert waiting.ended(second) == 0, device.log()
    assert next(event for event in happenings if event["event"] == "campaign_started")["resumed"]
    after = [(found.key, found.outcome) for found in store.outcomes(run.run_id)]
    store.close()
    assert before.items() <= dict(after).items()
    assert len({key.task_id for key, _ in after}) == len(after)
    assert device.results()["status"] == "complete"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--local", "--broker", "localhost"], "--broker"),
        (["--local", "--setting", "onnxruntime", "--threads", "2"], "--threads"),
        (["--local", "--setting", "abacus"], "abacus"),
        (["--broker", "localhost", "--threads", "2"], "--local"),
    ],
)
def test_options_that_do_not_go_together_are_refused(device: Device, options: list[str], words: str) -> None:
    command = [
        sys.executable,
        "-c",
        "from fleetnas.coordinator.cli import main; main()",
        "search",
        "--targets",
        "1",
        *options,
    ]
    ended = waiting.run(command)
    assert ended.returncode == 2
    assert words in ended.stderr
