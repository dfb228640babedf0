"""Devices on which something is missing or full: the agent says so, and works or stops cleanly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rigs import waiting
from rigs.agent_rig import ARCHITECTURE, BLOB, BUNDLE, Rig, task
from rigs.supernets import random_bundle

from fleetnas.agent.cli.doctor.device import check_clock
from fleetnas.agent.cli.doctor.finding import DoctorContext
from fleetnas.agent.service.connection import RESEND_EVERY_S
from fleetnas.agent.service.identity import Identity
from fleetnas.agent.transfer.blobs import BlobFetch
from fleetnas.fleet_protocol.codec import BlobChunk
from fleetnas.fleet_protocol.errors import BundleError
from fleetnas.fleet_protocol.messages import BlobRequest, Result, RuntimeSetting
from fleetnas.supernet_export.model_file import build_model
from fleetnas.supernet_export.spaces.registry import make_space

AS_ROOT = os.geteuid() == 0
#: Runs a command with one folder that nobody, not even root, can write to; only in its own view of the file system.
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
#: Runs a command without `/sys`.
WITHOUT_SYS = 'mount -t tmpfs none /sys && exec "$@"'


def in_own_mounts(script: str, argument: str) -> list[str]:
    """The beginning of a command line that changes mounts for the rest of it; skips where that is not allowed."""
    command = ["unshare", "--mount", "sh", "-c", script, argument]
    tried = subprocess.run([*command, "true"], capture_output=True, check=False) if shutil.which("unshare") else None
    if tried is None or tried.returncode != 0:
        pytest.skip("mounts cannot be changed here, even for one process")
    return command


def read_only(folder: Path) -> list[str]:
    """The beginning of a command line for which `folder` is read-only."""
    if AS_ROOT:
        return in_own_mounts(READ_ONLY, str(folder))
    folder.chmod(0o555)
    return []


def agent(
    *arguments: object, environment: dict[str, str], within: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    return waiting.run([*(within or []), sys.executable, "-m", "fleetnas.agent", *arguments], env=environment)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("XDG_STATE_HOME", "STATE_DIRECTORY")}
    home = tmp_path / "home"
    home.mkdir()
    return {**kept, "HOME": str(home), "FLEETNAS_HOST_LOCK": str(tmp_path / "lock")}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    space = make_space("digits")
    bundle = random_bundle(tmp_path / "digits.supernet", space)
    file = tmp_path / "model.onnx"
    file.write_bytes(build_model(bundle, space.decode(space.smallest())[0], None, RuntimeSetting()))
    return file


BENCH = ("--runs", "5", "--time", "0.01", "--json")


def statuses(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    checks = json.loads(done.stdout)["checks"]
    assert all(check["fix"] for check in checks if check["status"] != "ok"), "a trouble without its fix"
    return {check["name"]: check["status"] for check in checks}


# -- what is not there ---------------------------------------------------------------------------------------------


def test_without_psutil_everything_works(tmp_path: Path, environment: dict[str, str], model: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "psutil.py").write_text("raise ImportError('no psutil on this board')\n")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(blocked), environment.get("PYTHONPATH")]))
    examined = agent("doctor", "--json", environment=environment)
    assert examined.returncode == 0, examined.stdout + examined.stderr
    assert "broken" not in statuses(examined).values()
    measured = agent("bench", model, *BENCH, environment=environment)
    assert json.loads(measured.stdout)["timing"]["median_ms"] > 0


def test_without_sensors_the_doctor_says_so_and_measuring_works(environment: dict[str, str], model: Path) -> None:
    if not AS_ROOT:
        pytest.skip("only root can take /sys away from a process")
    within = in_own_mounts(WITHOUT_SYS, "sh")
    examined = agent("doctor", "--json", environment=environment, within=within)
    assert examined.returncode == 0, examined.stdout + examined.stderr
    assert statuses(examined)["temperature"] == "warning"
    measured = agent("bench", model, *BENCH, environment=environment, within=within)
    reply = json.loads(measured.stdout)
    assert reply["timing"]["median_ms"] > 0
    assert (reply["before"]["temperature_c"], reply["before"]["governor"], reply["energy_mj"]) == (None, None, None)


# -- what cannot be written ----------------------------------------------------------------------------------------


def test_a_read_only_home_is_named_with_its_fix_and_another_state_folder_works(
    tmp_path: Path, environment: dict[str, str], model: Path
) -> None:
    within = read_only(tmp_path / "home")
    refused = agent("run", "--broker", "127.0.0.1:1", environment=environment, within=within)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert str(tmp_path / "home") in refused.stderr
    assert "--state-dir" in refused.stderr
    examined = agent("doctor", "--json", environment=environment, within=within)
    assert (examined.returncode, statuses(examined)["state folder"]) == (1, "broken")
    elsewhere = agent("doctor", "--json", "--state-dir", tmp_path / "state", environment=environment, within=within)
    assert (elsewhere.returncode, statuses(elsewhere)["state folder"]) == (0, "ok")
    measured = agent("bench", model, *BENCH, environment=environment, within=within)
    assert json.loads(measured.stdout)["timing"]["median_ms"] > 0


def test_a_state_folder_that_became_read_only_stops_the_agent_and_stays_readable(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    state = tmp_path / "state"
    folder = state / "fleets" / "default" / "pi"
    Identity.claim(folder, "pi", 0.0).release()
    (folder / "session").chmod(0o444)
    folder.chmod(0o555)
    within = read_only(state)
    stopped = agent(
        "run", "--broker", "127.0.0.1:1", "--name", "pi", "--state-dir", state, environment=environment, within=within
    )
    assert stopped.returncode == 1
    assert "cannot be written" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    looked = agent("status", "--state-dir", state, environment=environment, within=within)
    assert looked.returncode == 0
    assert "default/pi: stopped" in looked.stdout
    folder.chmod(0o755)


# -- what is full ----------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = AS_ROOT and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", folder], check=False)
    if not mounted or mounted.returncode != 0:
        pytest.skip("a disk to fill can only be mounted by root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Leave that many bytes free; the file to remove for more."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        while (free := shutil.disk_usage(disk).free) > leave:
            file.write(bytes(min(1024**2, free - leave)))
            file.flush()
    return filler


def results(rig: Rig) -> list[str]:
    return [update.task.task_id for update in rig.coordinator.updates("result") if isinstance(update, Result)]


def test_results_beside_a_full_disk_are_sent_from_memory_and_later_ones_are_stored(
    tmp_path: Path, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(disk)
    process = rig.agent()
    rig.run(process)
    rig.coordinator.send("pi", "task", task(1))
    rig.run(process)
    rig.coordinator.acknowledge("pi", task(1).task)
    rig.run(process)
    filler = fill(disk)
    for number in range(2, 12):  # SQLite's log has some room of its own
        rig.coordinator.send("pi", "task", task(number))
        rig.run(process)
    assert sorted(set(results(rig))) == sorted(f"task-{number}" for number in range(1, 12))
    assert "kept in memory" in caplog.text
    assert "free some space" in caplog.text
    before = len(results(rig))
    rig.run(process, seconds=RESEND_EVERY_S + 5)
    assert len(results(rig)) > before, "it is sent again until it is acknowledged, from memory"
    filler.unlink()
    for number in range(2, 12):
        rig.coordinator.acknowledge("pi", task(number).task)
    rig.coordinator.send("pi", "task", task(12))
    rig.run(process)
    assert [key.task_id for key, _ in process.outbox.pending()] == ["task-12"]


def test_a_bundle_without_room_on_the_disk_is_a_failure_until_there_is_room(disk: Path) -> None:
    rig = Rig(disk)
    process = rig.agent()
    rig.run(process)
    filler = fill(disk, leave=4 * 1024**2)
    rig.coordinator.send("pi", "task", task(1))
    rig.run(process)
    (failed,) = rig.coordinator.updates("failed")
    assert failed.reason == "bundle"
    assert "free some space" in failed.detail
    assert rig.coordinator.on("blob") == [], "nothing was fetched in vain"
    filler.unlink()
    rig.coordinator.send("pi", "task", task(1, attempt=2))
    rig.run(process)
    assert results(rig) == ["task-1"]


def test_a_disk_that_fills_while_a_bundle_comes_in_is_named(disk: Path) -> None:
    requests: list[BlobRequest] = []
    fetch = BlobFetch(BUNDLE, disk / "partial" / "bundle", requests.append)
    fetch.step(0.0)
    fill(disk)
    first = BlobChunk(requests[0].sha256, 0, BLOB[: requests[0].length])
    with pytest.raises(BundleError, match=r"cannot be written.*free"):
        fetch.receive(first)


def test_an_agent_whose_disk_is_full_from_the_start_says_so(disk: Path, environment: dict[str, str]) -> None:
    fill(disk)
    environment["TMPDIR"] = str(disk.parent)
    done = agent("run", "--broker", "127.0.0.1:1", "--state-dir", disk / "state", environment=environment)
    assert done.returncode == 1
    assert "free some space" in done.stderr
    assert "Traceback" not in done.stderr


# -- a clock that jumps ----------------------------------------------------------------------------------------------


def test_a_wall_clock_that_jumps_back_and_forth_costs_no_measurement(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    wall = iter([1.7e9, 0.0, -3600.0, 4e9, 1.7e9])
    process = rig.agent(wall_clock=lambda: next(wall))
    rig.run(process)
    for number in range(1, 6):
        rig.coordinator.send("pi", "task", task(number))
        rig.run(process)
    told = [update for update in rig.coordinator.updates("result") if isinstance(update, Result)]
    assert [result.measurement.finished_unix_s for result in told] == [1.7e9, 0.0, 0.0, 4e9, 1.7e9]
    assert [result.measurement.median_ms for result in told] == [4.0] * 5


def test_sessions_grow_through_a_clock_that_was_reset(tmp_path: Path) -> None:
    sessions = []
    for now in (1.7e9, 0.0, -5.0, 1.6e9, 1.8e9):
        identity = Identity.claim(tmp_path / "pi", "pi", now)
        sessions.append(identity.session)
        identity.release()
    assert sessions == sorted(set(sessions))


def test_a_device_that_slept_through_a_deadline_reports_it_and_goes_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    process = rig.agent()
    rig.run(process)
    rig.measurer.script.append(None)
    rig.coordinator.send("pi", "task", task(1))
    rig.run(process)
    rig.now += 86_400
    rig.run(process)
    (failed,) = rig.coordinator.updates("failed")
    assert failed.reason == "timeout"
    rig.coordinator.send("pi", "task", task(2, architecture=ARCHITECTURE))
    rig.run(process)
    assert results(rig) == ["task-2"]


def test_a_clock_that_was_never_set_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetnas.agent.cli.doctor.device.time.time", lambda: 12.0)
    context = DoctorContext(tmp_path, "default", "pi", None)
    (finding,) = check_clock(context)
    assert (finding.status, finding.fix) == ("warning", "sudo timedatectl set-ntp true")
