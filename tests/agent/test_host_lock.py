"""The lock between agents of one host, with real processes that wait, die, and belong to other users.

Nothing here waits for a time: each step ends when a process has reported it.
"""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rigs import waiting

from fleetnas.agent.measuring import host_lock
from fleetnas.agent.measuring.child import serve
from fleetnas.agent.measuring.framing import FrameDecoder, write_frame
from fleetnas.agent.measuring.host_lock import (
    HostLockBusyError,
    default_host_lock_path,
    hold_host_lock,
    present_host_lock_path,
)
from fleetnas.agent.measuring.messages import PhaseReply, ProbeOrder, Reply, UnreadyReply, decode_reply
from fleetnas.fleet_protocol.errors import FleetnasError
from fleetnas.fleet_protocol.messages import RuntimeSetting

AS_ROOT = os.geteuid() == 0
OTHER_USER, THIRD_USER = 65534, 65533

#: Obeys one-word commands: `hold` holds the lock until `release`; `again` releases and requests at once.
_HOLDER = """\
import os, sys
from pathlib import Path
from fleetnas.agent.measuring.host_lock import hold_host_lock
from fleetnas.fleet_protocol.errors import FleetnasError
path, user = Path(sys.argv[1]), int(sys.argv[2])
if user:
    os.umask(0o077)
    os.setuid(user)
def report(word):
    print(word, flush=True)
report("ready")
command = sys.stdin.readline().strip()
while command in ("hold", "again"):
    try:
        with hold_host_lock(path, lambda: report("waiting")):
            report("held")
            command = sys.stdin.readline().strip()
        if command == "release":
            report("released")
            command = sys.stdin.readline().strip()
    except FleetnasError as error:
        report(f"error: {error}")
        command = sys.stdin.readline().strip()
"""

#: Takes the lock a number of times and appends what happens to a log that all of them share.
_REPEATER = """\
import os, sys
from pathlib import Path
from fleetnas.agent.measuring.host_lock import hold_host_lock
path, log, name, rounds = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
handle = os.open(log, os.O_WRONLY | os.O_APPEND)
def note(event):
    os.write(handle, f"{event} {name}\\n".encode())
for _ in range(rounds):
    note("asks")
    with hold_host_lock(path, lambda: (note("waits"), print("waits", flush=True))):
        note("holds")
        sum(range(200_000))
        note("releases")
"""


class Holder:
    """A process that holds the lock when it is told to."""

    def __init__(self, path: Path, user: int = 0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, str(path), str(user)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout
        assert self.report() == "ready"

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        self.process.stdin.flush()

    def report(self) -> str:
        assert first_to_report([self]) is self
        return self.output.readline().decode().strip()

    def kill(self) -> None:
        self.process.kill()
        with self.process:  # closes its pipes
            waiting.ended(self.process)


def first_to_report(holders: list[Holder]) -> Holder:
    """The one that says something next."""
    outputs = [holder.output for holder in holders]
    watched = [holder.process for holder in holders]
    ready = waiting.until(lambda: select.select(outputs, [], [], 0.02)[0], *watched, what="nobody reports anything")
    return next(holder for holder in holders if holder.output is ready[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "host.lock"


@pytest.fixture
def holder(path: Path) -> Iterator[Callable[..., Holder]]:
    started: list[Holder] = []

    def start(user: int = 0, path: Path = path) -> Holder:
        started.append(Holder(path, user))
        return started[-1]

    yield start
    for process in started:
        process.kill()


class GivenUpError(Exception):
    """Raised where the lock is not free."""


def give_up() -> None:
    raise GivenUpError


def queue_up(holders: list[Holder]) -> None:
    """The first holds the lock, the others wait for it in this order."""
    for number, process in enumerate(holders):
        process.tell("hold")
        assert process.report() == ("waiting" if number else "held")


def expect_next(waiting: list[Holder], expected: Holder) -> None:
    assert first_to_report(waiting) is expected
    assert expected.report() == "held"


# -- order -----------------------------------------------------------------------------------------------------------


def test_who_waits_longest_is_next_and_who_asks_again_at_once_is_last(holder: Callable[..., Holder]) -> None:
    holders = [holder() for _ in range(4)]
    queue_up(holders)
    for turn in range(8):
        current, following = holders[turn % 4], holders[(turn + 1) % 4]
        current.tell("again")
        expect_next([process for process in holders if process is not current], following)
        assert current.report() == "waiting"


def test_nobody_who_waits_is_overtaken_by_a_later_request(
    tmp_path: Path, path: Path, holder: Callable[..., Holder]
) -> None:
    log = tmp_path / "log"
    log.touch()
    first = holder()
    queue_up([first])
    processes = [
        subprocess.Popen([sys.executable, "-c", _REPEATER, str(path), str(log), name, "8"], stdout=subprocess.PIPE)
        for name in "ABCD"
    ]
    for process in processes:
        assert waiting.line(process) == b"waits\n"
    first.tell("release")
    for process in processes:
        with process:
            assert waiting.ended(process) == 0
    events = [tuple(line.split()) for line in log.read_text().splitlines()]
    assert sum(event == "holds" for event, _ in events) == 32
    unacknowledged = [(event, name) for event, name in events if event in ("holds", "releases")]
    for taken, released in zip(unacknowledged[::2], unacknowledged[1::2], strict=True):
        assert (taken[0], released) == ("holds", ("releases", taken[1])), "two held it at once"
    assert sum(event == "waits" for event, _ in events) > 16, "they hardly met"
    for begin, (event, name) in enumerate(events):
        if event == "waits":
            end = events.index(("holds", name), begin)
            during = events[begin:end]
            later = {other for index, (what, other) in enumerate(during) if what == "asks"}
            overtaking = [other for other in later if ("holds", other) in during[during.index(("asks", other)) :]]
            assert not overtaking, f"{overtaking} asked after {name} waited, and held the lock before"


# -- death -----------------------------------------------------------------------------------------------------------


def test_a_killed_holder_leaves_the_lock_to_the_next(holder: Callable[..., Holder]) -> None:
    first, second, third = holders = [holder() for _ in range(3)]
    queue_up(holders)
    first.kill()
    expect_next([second, third], second)
    second.kill()
    expect_next([third], third)


@pytest.mark.parametrize("victim", [1, 2, 3])
def test_a_killed_waiter_is_no_gap_in_the_queue(holder: Callable[..., Holder], victim: int) -> None:
    holders = [holder() for _ in range(5)]
    queue_up(holders)
    holders.pop(victim).kill()
    while len(holders) > 1:
        holders.pop(0).tell("release")
        expect_next(holders, holders[0])


def test_holder_and_first_waiter_killed_together_leave_the_lock_to_the_second(holder: Callable[..., Holder]) -> None:
    holders = [holder() for _ in range(4)]
    queue_up(holders)
    holders[1].kill()
    holders[0].kill()
    expect_next(holders[2:], holders[2])


def test_a_waiter_that_gives_up_is_not_waited_for(path: Path, holder: Callable[..., Holder]) -> None:
    first, second = holder(), holder()
    queue_up([first])
    with pytest.raises(GivenUpError), hold_host_lock(path, give_up):
        pytest.fail("the lock was held twice")
    second.tell("hold")
    assert second.report() == "waiting"
    first.tell("release")
    expect_next([second], second)


# -- the file --------------------------------------------------------------------------------------------------------


def test_a_free_lock_is_taken_without_waiting_and_can_be_taken_again(path: Path) -> None:
    waits: list[str] = []
    for _ in range(3):
        with hold_host_lock(path, lambda: waits.append("waited")):
            assert path.is_file()
    assert waits == []


@pytest.mark.skipif(not AS_ROOT, reason="only root can become other users")
def test_agents_of_different_users_share_one_queue() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o1777)  # as /tmp itself: nobody may touch another user's file
        path = Path(folder, "host.lock")
        holders = [Holder(path, user) for user in (OTHER_USER, THIRD_USER, 0, OTHER_USER, THIRD_USER)]
        try:
            queue_up(holders)
            assert path.stat().st_uid == OTHER_USER
            assert path.stat().st_mode & 0o777 == 0o644, "whatever the umask"
            while len(holders) > 1:
                holders.pop(0).kill()
                expect_next(holders, holders[0])
        finally:
            for process in holders:
                process.kill()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/null", path)])
def test_what_is_no_regular_file_is_refused_by_name_and_does_not_hang(
    path: Path, holder: Callable[..., Holder], make: Callable[[Path], None]
) -> None:
    make(path)
    process = holder()
    process.tell("hold")
    refusal = process.report()
    assert refusal.startswith(f"error: the lock {path}, ")
    assert "FLEETNAS_HOST_LOCK" in refusal


def test_a_lock_file_in_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "lock"
    with pytest.raises(FleetnasError, match=str(missing)), hold_host_lock(missing, lambda: None):
        pytest.fail("there is no lock")


def test_a_waiter_on_a_deleted_file_ends_with_the_lock_on_its_successor(
    path: Path, holder: Callable[..., Holder]
) -> None:
    first, second = holder(), holder()
    queue_up([first, second])
    path.unlink()  # as a cleaner of /tmp does
    first.tell("release")
    expect_next([second], second)
    with pytest.raises(GivenUpError), hold_host_lock(path, give_up):
        pytest.fail("the lock was held twice")


# -- a wait that ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [1, 3], ids=["the next", "behind others"])
def test_a_wait_that_lasts_too_long_ends_with_the_locks_name_and_disturbs_no_other(
    path: Path, holder: Callable[..., Holder], others: int
) -> None:
    holders = [holder() for _ in range(others)]
    queue_up(holders)
    said = f"the lock {path} .*fuser -v {path}.*FLEETNAS_HOST_LOCK"
    with pytest.raises(HostLockBusyError, match=said), hold_host_lock(path, lambda: None, limit_s=0.05):
        pytest.fail("the lock was held twice")
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    while len(holders) > 1:
        holders.pop(0).tell("release")
        expect_next(holders, holders[0])
    holders[0].tell("release")
    assert holders[0].report() == "released"
    with hold_host_lock(path, give_up):
        pass


def test_a_measurement_that_lasts_longer_than_a_wait_may_is_not_interrupted(path: Path) -> None:
    with hold_host_lock(path, lambda: None, limit_s=0.0):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_child_says_which_lock_it_waits_for_and_that_it_gave_up(path: Path, holder: Callable[..., Holder]) -> None:
    queue_up([holder()])
    orders, replies = io.BytesIO(), io.BytesIO()
    write_frame(orders, ProbeOrder(setting=RuntimeSetting()).model_dump_json().encode())
    orders.seek(0)

    def execute(order: object, say: object) -> Reply:
        raise AssertionError("the lock is another's")

    serve(orders, replies, path, execute, wait_s=0.05)
    waiting, last = (decode_reply(frame) for frame in FrameDecoder().feed(replies.getvalue()))
    assert isinstance(waiting, PhaseReply)
    assert (waiting.phase, str(path) in waiting.detail) == ("waiting", True)
    assert isinstance(last, UnreadyReply)
    assert str(path) in last.reason


# -- where it lies ---------------------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host without any of the places; the folder in which a test makes some."""
    monkeypatch.delenv("FLEETNAS_HOST_LOCK", raising=False)
    monkeypatch.setattr(host_lock, "SHARED_FOLDER", tmp_path / "run-fleetnas")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run-user"))
    return tmp_path


def test_the_lock_lies_where_only_the_right_users_can_write(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(f"/tmp/fleetnas-{os.geteuid()}/host.lock")
    assert default_host_lock_path() == own
    (places / "run-user").mkdir(mode=0o700)
    assert default_host_lock_path() == places / "run-user" / "fleetnas-host.lock"
    (places / "run-user").chmod(0o777)
    assert default_host_lock_path() == own, "anybody could put a file there"
    (places / "run-user").chmod(0o700)
    (places / "run-fleetnas").mkdir()
    assert default_host_lock_path() == places / "run-fleetnas" / "host.lock"
    monkeypatch.setenv("FLEETNAS_HOST_LOCK", "/some/where")
    assert default_host_lock_path() == Path("/some/where")


@pytest.mark.skipif(not AS_ROOT, reason="only root can become other users")
def test_who_may_not_write_in_the_shared_folder_has_a_lock_of_its_own(places: Path) -> None:
    shared = places / "run-fleetnas"
    shared.mkdir()
    shared.chmod(0o770)
    program = (
        "import os, sys; from pathlib import Path; import fleetnas.agent.measuring.host_lock as lock\n"
        f"os.setgid({OTHER_USER}); os.setuid({OTHER_USER})\n"
        f"lock.SHARED_FOLDER = Path({str(shared)!r})\n"
        "print(lock.default_host_lock_path())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"/tmp/fleetnas-{OTHER_USER}/host.lock"
    assert default_host_lock_path() == shared / "host.lock"


def test_the_users_own_folder_is_made_closed_and_made_again(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    path = tmp_path / f"fleetnas-{os.geteuid()}" / "host.lock"
    with hold_host_lock(path, give_up):
        assert path.parent.stat().st_mode & 0o777 == 0o700
        other = holder(path=path)
        other.tell("hold")
        assert other.report() == "waiting"
    assert other.report() == "held"
    path.unlink()
    path.parent.rmdir()  # as a cleaner of /tmp does
    with hold_host_lock(path, give_up):
        pass


@pytest.mark.parametrize("trap", ["open to all", "a link", "another user's", "a file"])
def test_a_folder_that_somebody_else_may_have_put_there_is_refused(tmp_path: Path, trap: str) -> None:
    folder = tmp_path / f"fleetnas-{os.geteuid()}"
    target = tmp_path / "theirs"
    target.mkdir(mode=0o700)
    if trap == "a link":
        folder.symlink_to(target)
    elif trap == "a file":
        folder.touch(mode=0o700)
    else:
        folder.mkdir(mode=0o700)
    if trap == "open to all":
        folder.chmod(0o777)
    if trap == "another user's":
        if not AS_ROOT:
            pytest.skip("only root can make files of other users")
        os.chown(folder, OTHER_USER, -1)
    path = folder / "host.lock"
    said = f"the lock {path}.*have it removed.*FLEETNAS_HOST_LOCK"
    with pytest.raises(FleetnasError, match=said), hold_host_lock(path, lambda: None):
        pytest.fail("it was used")
    assert list(target.iterdir()) == []


def test_a_runtime_folder_that_went_with_its_login_is_replaced(places: Path) -> None:
    (places / "run-user").mkdir(mode=0o700)
    path = default_host_lock_path()
    assert present_host_lock_path(path) == path
    (places / "run-user").rmdir()
    assert present_host_lock_path(path) == Path(f"/tmp/fleetnas-{os.geteuid()}/host.lock")
