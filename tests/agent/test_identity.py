"""Who holds a name: locks that are held, and file systems that give none."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from fleetnas.agent.service.host_status import read_host_status
from fleetnas.agent.service.identity import Identity
from fleetnas.fleet_protocol.errors import DuplicateAgentError, StoreError


def test_a_name_is_held_by_one_process(tmp_path: Path) -> None:
    folder = tmp_path / "fleets" / "default" / "pi"
    identity = Identity.claim(folder, "pi", 1.0)
    with pytest.raises(DuplicateAgentError, match="--name"):
        Identity.claim(folder, "pi", 2.0)
    assert [agent.running for agent in read_host_status(tmp_path).agents] == [True]
    identity.release()
    assert Identity.claim(folder, "pi", 3.0).session > identity.session


@pytest.mark.parametrize("answer", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_not_another_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    folder = tmp_path / "fleets" / "default" / "pi"
    Identity.claim(folder, "pi", 1.0).release()

    def no_locks(*_: object) -> None:
        raise OSError(answer, "as the file system says")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(StoreError, match=r"cannot be locked \(as the file system says\).*--state-dir"):
        Identity.claim(folder, "pi", 2.0)
    assert [agent.running for agent in read_host_status(tmp_path).agents] == [False]
