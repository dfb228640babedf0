"""The state folder: closed to other users, and never larger than it may be."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from rigs.agent_rig import BLOB, BUNDLE, Rig, task

from fleetnas.agent.measuring.messages import ProbedReply
from fleetnas.agent.measuring.worker import Measurer
from fleetnas.agent.service.agent_info import MAX_PROBES, agent_info
from fleetnas.agent.service.state_folder import StateFolder
from fleetnas.agent.transfer.blobs import MAX_PARTIALS, limit_partials, partial_file
from fleetnas.device_profiles.profile import MicroBenchmarks
from fleetnas.fleet_protocol.errors import StoreError
from fleetnas.fleet_protocol.messages import RuntimeSetting


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def folders(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_dir())


@pytest.fixture(params=[0o022, 0o000], ids=["usual umask", "no umask"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_every_folder_is_closed_to_other_users(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "new" / "state", "lab", "pi")
    folder.prepare()
    assert folder.agent.is_dir()
    assert {mode(path) for path in [folder.root, *folders(folder.root)]} == {0o700}
    folder.prepare()


@pytest.mark.usefixtures("umask")
def test_open_folders_of_earlier_versions_are_closed_and_an_existing_root_is_kept(tmp_path: Path) -> None:
    root = tmp_path / "state"
    for name in ("fleets/lab/pi/partial", "blobs", "probes", "engines", "mine"):
        (root / name).mkdir(parents=True)
    for path in [root, *folders(root)]:
        path.chmod(0o755)
    (root / "blobs" / "a").touch()
    StateFolder(root, "lab", "pi").prepare()
    assert {name: mode(root / name) for name in ("fleets", "blobs", "probes", "engines")} == dict.fromkeys(
        ("fleets", "blobs", "probes", "engines"), 0o700
    )
    assert (mode(root), mode(root / "mine")) == (0o755, 0o755)
    assert (root / "blobs" / "a").exists()


def test_a_folder_that_cannot_be_made_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(StoreError, match=f"{tmp_path}/state cannot be written.*--state-dir"):
        StateFolder(tmp_path / "state", "lab", "pi").prepare()


# -- blobs on their way in ---------------------------------------------------------------------------------------


def leave(folder: Path, number: int, size: int = 10) -> Path:
    """A partial blob of a fetch that was never taken up again; a higher number is a later one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = partial_file(folder, f"{number:064x}")
    path.write_bytes(bytes(size))
    os.utime(path, (number, number))
    return path


def test_few_blobs_on_their_way_in_are_kept_the_newest_and_the_wanted(tmp_path: Path) -> None:
    files = [leave(tmp_path, number) for number in range(1, 31)]
    other = tmp_path / "notes"
    other.touch()
    limit_partials(tmp_path, [f"{1:064x}"], 1000)
    kept = {path for path in files if path.exists()}
    assert kept == {files[0], *files[-(MAX_PARTIALS - 1) :]}
    assert other.exists()


def test_they_take_no_more_than_the_cache_may(tmp_path: Path) -> None:
    files = [leave(tmp_path, number, 400) for number in range(1, 5)]
    limit_partials(tmp_path, (), 1000)
    assert [path.exists() for path in files] == [False, False, True, True]


def test_an_agent_that_is_sent_one_bundle_after_the_other_keeps_few_of_them(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    partials = tmp_path / "state" / "partial"
    for number in range(1, 41):
        leave(partials, number)
    agent = rig.agent()
    rig.run(agent)
    rig.coordinator.send("pi", "task", task())
    rig.run(agent)
    assert len(rig.coordinator.updates("result")) == 1
    assert len(list(partials.iterdir())) <= MAX_PARTIALS
    assert (tmp_path / "state" / "blobs" / BUNDLE.sha256).read_bytes() == BLOB


def test_where_the_disk_has_no_room_left_they_are_given_up_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    partials = tmp_path / "state" / "partial"
    files = [leave(partials, number, 50_000) for number in range(1, 4)]
    disk = 32 * 1024**2 + len(BLOB) - 100_000  # without them: 50,000 more than are needed

    def usage(_: Path) -> object:
        class Usage:
            free = disk + sum(50_000 for path in files if not path.exists())

        return Usage

    monkeypatch.setattr("fleetnas.agent.transfer.blobs.shutil.disk_usage", usage)
    agent = rig.agent()
    rig.run(agent)
    rig.coordinator.send("pi", "task", task())
    rig.run(agent)
    assert len(rig.coordinator.updates("result")) == 1
    assert not any(path.exists() for path in files)


# -- probes --------------------------------------------------------------------------------------------------------


class Probing(Measurer):
    """Answers a probe."""

    def submit(self, order: object) -> None:
        del order

    def poll(self, timeout_s: float) -> ProbedReply:
        del timeout_s
        return ProbedReply(version="1", providers=("cpu",), active_provider="cpu", micro_benchmarks=MicroBenchmarks())

    def kill(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_old_probes_and_what_killed_processes_left_of_new_ones_are_forgotten(tmp_path: Path) -> None:
    for number in range(100):
        path = tmp_path / f"{number}.json"
        path.touch()
        os.utime(path, (number, number))
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    (tmp_path / f"probe.{pid}").touch()
    (tmp_path / f"probe.{os.getpid()}").touch()
    agent_info("pi", 1, [RuntimeSetting()], Probing(), tmp_path)
    kept = {path.name for path in tmp_path.iterdir()}
    assert len([name for name in kept if name.endswith(".json")]) == MAX_PROBES
    assert not kept & {f"{number}.json" for number in range(100 - MAX_PROBES + 1)}
    assert f"probe.{pid}" not in kept
    assert f"probe.{os.getpid()}" in kept
