"""The outbox keeps results through restarts and gives each out until it is acknowledged."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rigs import waiting

from fleetnas.agent.service.outbox import Outbox
from fleetnas.fleet_protocol.errors import StoreError
from fleetnas.fleet_protocol.messages import TaskKey


def key(number: int, attempt: int = 1) -> TaskKey:
    return TaskKey(task_id=f"task-{number}", attempt=attempt)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.sqlite"


def test_results_survive_reopening_in_their_order(path: Path) -> None:
    outbox = Outbox(path)
    for number in (3, 1, 2):
        assert outbox.put(key(number), b"result %d" % number)
    outbox.close()
    again = Outbox(path)
    assert again.pending() == [(key(n), b"result %d" % n) for n in (3, 1, 2)]
    assert len(again) == 3


def test_the_first_result_of_an_attempt_stays(path: Path) -> None:
    outbox = Outbox(path)
    assert outbox.put(key(1), b"first")
    assert not outbox.put(key(1), b"second")
    assert outbox.put(key(1, attempt=2), b"of another attempt")
    assert outbox.find(key(1)) == b"first"
    assert len(outbox) == 2


def test_an_acknowledged_result_is_not_sent_again_but_still_answers_a_repeated_task(path: Path) -> None:
    outbox = Outbox(path)
    outbox.put(key(1), b"result")
    assert outbox.acknowledge(key(1))
    assert not outbox.acknowledge(key(1))
    assert not outbox.acknowledge(key(2))
    assert outbox.pending() == []
    assert Outbox(path).find(key(1)) == b"result"
    assert not outbox.put(key(1), b"measured twice")


def test_acknowledged_results_are_forgotten_oldest_first_and_waiting_ones_never(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetnas.agent.service.outbox.MAX_ACKNOWLEDGED", 20)
    outbox = Outbox(path)
    outbox.put(key(0), b"waits")
    for number in range(1, 20 + 4):
        outbox.put(key(number), b"x")
        outbox.acknowledge(key(number))
    assert [outbox.find(key(n)) for n in (1, 2, 3)] == [None, None, None]
    assert outbox.find(key(4)) == b"x"
    assert outbox.pending() == [(key(0), b"waits")]


def test_the_oldest_are_given_up_only_beyond_the_limit_and_are_named(path: Path) -> None:
    outbox = Outbox(path)
    for number in range(5):
        outbox.put(key(number), b"x")
    assert outbox.drop_oldest(5) == []
    assert outbox.drop_oldest(3) == [key(0), key(1)]
    assert [found for found, _ in outbox.pending()] == [key(2), key(3), key(4)]


def test_a_killed_process_loses_nothing(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from fleetnas.agent.service.outbox import Outbox\n"
        "from fleetnas.fleet_protocol.messages import TaskKey\n"
        f"outbox = Outbox(Path({str(path)!r}))\n"
        "outbox.put(TaskKey(task_id='task-1', attempt=1), b'result'); print('stored', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert waiting.line(process) == b"stored\n"
        os.kill(process.pid, signal.SIGKILL)
    assert Outbox(path).pending() == [(key(1), b"result")]


def test_a_full_disk_is_a_clear_error_and_what_was_stored_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def connect_and_keep(*arguments: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", connect_and_keep)
    outbox = Outbox(path)
    (database,) = opened
    outbox.put(key(1), b"result")
    # SQLite's own limit gives the error of a full disk.
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match=r"full.*free some space"):
        outbox.put(key(2), b"x" * 100_000)
    assert outbox.pending() == [(key(1), b"result")]


def test_a_file_that_is_no_outbox_is_refused(path: Path) -> None:
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match="move it away"):
        Outbox(path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"absent/outbox\.sqlite"):
        Outbox(tmp_path / "absent" / "outbox.sqlite")


def test_it_writes_ahead(path: Path) -> None:
    Outbox(path).put(key(1), b"result")
    assert sqlite3.connect(path).execute("PRAGMA journal_mode").fetchone() == ("wal",)
