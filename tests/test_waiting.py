"""The waits of the tests: what rests is given up, what moves is not, however slowly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rigs import waiting
from rigs.waiting import Motion, Patience, StalledError, until


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def looks(patience: Patience, clock: Clock, step_s: float) -> int:
    """Looks until the patience is exhausted."""
    for count in range(1, 100_000):
        clock.now_s += step_s
        if patience.exhausted:
            return count
    raise AssertionError("it is never exhausted")


def test_rest_exhausts_patience() -> None:
    clock = Clock()
    assert looks(Patience(stall_s=10, last_s=1000, clock=clock), clock, 1.0) == 10


def test_what_moves_is_waited_for_until_the_last_bound() -> None:
    clock = Clock()
    assert looks(Patience(lambda elapsed_s: True, stall_s=10, last_s=1000, clock=clock), clock, 1.0) == 1000


def test_one_move_makes_the_rest_begin_anew() -> None:
    clock = Clock()
    moves = iter([False] * 9 + [True])
    patience = Patience(lambda elapsed_s: next(moves, False), stall_s=10, last_s=1000, clock=clock)
    assert looks(patience, clock, 1.0) == 20


def test_a_test_that_is_kept_from_a_core_is_as_patient_in_looks() -> None:
    clock = Clock()
    assert looks(Patience(stall_s=20, last_s=1000, clock=clock), clock, 30.0) == 10


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        for member in waiting.tree(process.pid):
            member.kill()
        process.communicate()


def begin(started: list[subprocess.Popen[bytes]], program: str) -> subprocess.Popen[bytes]:
    """A process that has said `ready`."""
    command = [sys.executable, "-S", "-c", f"print('ready', flush=True)\n{program}"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    started.append(process)
    assert waiting.line(process) == b"ready\n"
    return process


def test_a_process_that_computes_or_waits_for_a_core_moves(started: list[subprocess.Popen[bytes]]) -> None:
    assert Motion([begin(started, "while True: pass")])(1.0)


def test_so_does_one_whose_child_computes(started: list[subprocess.Popen[bytes]]) -> None:
    child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'while True: pass']); sys.stdin.read()"
    process = begin(started, child)
    until(lambda: len(waiting.tree(process.pid)) == 2)
    assert Motion([process])(1.0)


def test_one_that_reads_what_nobody_writes_rests(started: list[subprocess.Popen[bytes]]) -> None:
    process = begin(started, "import sys; sys.stdin.read()")
    motion = Motion([process])
    until(lambda: not motion(1.0))


def test_a_file_that_grows_moves(tmp_path: Path) -> None:
    motion = Motion([tmp_path])
    assert not motion(1.0)
    (tmp_path / "log").write_text("a line\n")
    assert motion(1.0)
    assert not motion(1.0)


def test_a_condition_that_never_holds_is_given_up_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "Patience", lambda moves: Patience(moves, last_s=0.0))
    with pytest.raises(StalledError, match="the moon"):
        until(lambda: False, what=lambda: "the moon")


def test_a_process_that_rests_is_killed_and_reading_from_it_fails(
    started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = begin(started, "import sys; sys.stdin.read()")
    monkeypatch.setattr(waiting, "Patience", lambda moves: Patience(moves, stall_s=1.0))
    with pytest.raises(StalledError, match="killed"):
        waiting.line(process)


def test_a_program_ends_with_its_code_and_its_words() -> None:
    done = waiting.run([sys.executable, "-S", "-c", "import sys; print('out'); sys.exit('err')"])
    assert (done.returncode, done.stdout, done.stderr) == (1, "out\n", "err\n")
