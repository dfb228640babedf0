"""A disk that fills up under the coordinator's store."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_fleet import assert_nothing_lost_nothing_twice, fault_fleet


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own of 4 MB."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip() or 'root can'}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take all the space that is left; returns the file that has it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    return ballast


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount a small file system")
def test_nothing_is_acknowledged_that_is_not_stored(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, fault_fleet(tmp_path / "fleet") as fleet:
        fleet.store_folder = disk
        fleet.start_agent("alpha")
        fleet.start_search("--targets", "auto:2", "--budget", "10", "--deadline", "60")
        fleet.until(lambda: len(fleet.outbox("alpha")) >= 3)
        ballast = fill(disk)
        fleet.until(lambda: "disk is full" in fleet.said("coordinator"))
        assert "Traceback" not in fleet.said("coordinator")
        # The agent has measured what it had in hand, and was not told that it is safe.
        fleet.until(lambda: any(not acknowledged for _, acknowledged in fleet.outbox("alpha").values()))
        fleet.kill("coordinator")
        known = {key for key, (_, acknowledged) in fleet.outbox("alpha").items() if acknowledged}
        ballast.unlink()
        assert known <= {record.key for record in fleet.stored()}
        fleet.resume_search()
        assert fleet.wait_search() == 0
        assert_nothing_lost_nothing_twice(fleet)
        assert fleet.results()["status"] == "complete"
