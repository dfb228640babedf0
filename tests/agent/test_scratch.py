"""Temporary files of children: gone with the child, however it and its agent end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from rigs import waiting

from fleetnas.agent.measuring.messages import BenchOrder, ProbeOrder
from fleetnas.agent.measuring.scratch import ScratchFolder, remove_abandoned
from fleetnas.agent.measuring.worker import Worker, child_command
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting

COMMAND = RuntimeSetting(runtime="command")
#: A user's program that says where its temporary file is, and then never ends.
_HANGS = """\
import os, sys, tempfile, time
kept = tempfile.NamedTemporaryFile(delete=False)
kept.write(b"model")
kept.flush()
with open(sys.argv[2], "w") as pipe:
    pipe.write(f"{os.getpid()} {kept.name}")
time.sleep(600)
"""
#: An agent that has a child which measures with that program.
_AGENT = """\
import sys
from pathlib import Path
from fleetnas.agent.measuring.messages import BenchOrder
from fleetnas.agent.measuring.worker import Worker, child_command
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
worker = Worker(child_command(Path(sys.argv[1])))
setting = RuntimeSetting(runtime="command")
worker.submit(BenchOrder(model_path=sys.argv[2], setting=setting, protocol=MeasurementProtocol()))
while True:
    worker.poll(60)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of this test and of what it starts."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


class Program:
    """The user's program, once it runs."""

    def __init__(self, pipe: Path) -> None:
        self._pipe = pipe
        self._handle: int | None = None

    def begun(self) -> Path:
        """Wait until it runs; its temporary file."""
        process, _, model = self._pipe.read_text().partition(" ")
        self._handle = os.pidfd_open(int(process))
        return Path(model)

    def has_ended(self) -> bool:
        """Wait until it has ended."""
        return bool(waiting.until(lambda: select.select([self._handle], [], [], 0)[0]))

    def end(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            os.close(self._handle)


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """A user's program that measures for ever."""
    program, pipe = tmp_path / "hangs.py", tmp_path / "pipe"
    program.write_text(_HANGS)
    os.mkfifo(pipe)
    monkeypatch.setenv("FLEETNAS_COMMAND", f"{sys.executable} {program} {{model}} {pipe}")
    (tmp_path / "model.onnx").write_bytes(b"model")
    running = Program(pipe)
    yield running
    running.end()


def bench(tmp_path: Path) -> BenchOrder:
    return BenchOrder(model_path=str(tmp_path / "model.onnx"), setting=COMMAND, protocol=MeasurementProtocol())


def test_a_child_that_is_killed_while_it_measures_leaves_nothing(
    tmp_path: Path, temporary: Path, hanging: Program
) -> None:
    worker = Worker(child_command(tmp_path / "lock"))
    worker.submit(bench(tmp_path))
    model = hanging.begun()
    assert model.read_bytes() == b"model"
    assert model.is_relative_to(temporary)
    worker.kill()
    assert hanging.has_ended()
    assert list(temporary.iterdir()) == []


def test_files_of_an_agent_killed_with_its_child_go_when_the_next_one_starts(
    tmp_path: Path, temporary: Path, hanging: Program
) -> None:
    command = [sys.executable, "-c", _AGENT, str(tmp_path / "lock"), str(tmp_path / "model.onnx")]
    with subprocess.Popen(command) as agent:
        model = hanging.begun()
        agent.kill()
    assert hanging.has_ended()
    assert model.exists(), "nobody was left to remove it"
    worker = Worker(child_command(tmp_path / "other lock"))
    try:
        worker.submit(ProbeOrder(setting=COMMAND))
        assert not model.exists()
        assert len(list(temporary.iterdir())) == 1, "the new child's own"
    finally:
        worker.kill()
    assert list(temporary.iterdir()) == []


def test_what_is_in_use_or_not_ours_stays(temporary: Path) -> None:
    used = ScratchFolder.make()
    (used.path / "model").write_bytes(b"model")
    other = temporary / "fleetnas-profile"
    other.mkdir()
    link = temporary / "fleetnas-child-link"
    target = temporary / "precious"
    target.mkdir()
    (target / "file").touch()
    link.symlink_to(target)
    (temporary / "fleetnas-child-file").touch()
    remove_abandoned()
    assert (used.path / "model").exists()
    assert other.exists()
    assert (target / "file").exists()
    assert (temporary / "fleetnas-child-file").exists()
    used.remove()
    assert not used.path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")
def test_another_users_folder_stays(temporary: Path) -> None:
    folder = temporary / "fleetnas-child-other"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    remove_abandoned()
    assert folder.exists()


def test_a_folder_is_closed_to_others_and_locked_until_it_is_removed() -> None:
    scratch = ScratchFolder.make()
    assert scratch.path.stat().st_mode & 0o777 == 0o700
    handle = os.open(scratch.path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(handle)
    scratch.remove()


def test_many_agents_that_start_at_once_take_no_folder_from_each_other(tmp_path: Path, temporary: Path) -> None:
    program = (
        "import sys\n"
        "from fleetnas.agent.measuring.scratch import ScratchFolder, remove_abandoned\n"
        "for _ in range(200):\n"
        "    remove_abandoned()\n"
        "    scratch = ScratchFolder.make()\n"
        "    remove_abandoned()\n"
        "    (scratch.path / 'model').write_bytes(b'model')\n"
        "    scratch.remove()\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [waiting.ended(process) for process in processes] == [0, 0, 0]
    assert list(temporary.iterdir()) == []
