"""A disk that fills up under the coordinator's store, or under its results."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rigs.fault_fleet import assert_nothing_lost_nothing_twice, fault_fleet


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int = 4) -> Iterator[Path]:
    """A file system of its own."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
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


as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount a small file system"
)


@as_root
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


@as_root
def test_results_that_do_not_fit_are_told_and_written_by_resuming(tmp_path: Path) -> None:
    with fault_fleet(tmp_path) as fleet, small_disk(fleet.out, 32) as disk:
        fleet.start_agent("alpha")
        fleet.start_search("--targets", "1000", "--budget", "4", "--deadline", "60")
        fleet.until(lambda: any(event["event"] == "measurement" for event in fleet.events()))
        ballast = fill(disk)
        assert fleet.wait_search() == 1
        said = fleet.said("coordinator")
        assert "Traceback" not in said
        (error,) = [line for line in said.splitlines() if line.startswith("error:")]
        for words in (
            "No space left on device",
            str(fleet.out),
            str(fleet.store),
            "Go on with: fleetnas search --store",
        ):
            assert words in error
        assert [path for path in disk.rglob("*") if path.is_file()] == [ballast]  # no half of a file
        stored = fleet.stored()
        ballast.unlink()
        fleet.resume_search()
        assert fleet.wait_search() == 0
        assert fleet.stored() == stored  # nothing was measured again
        assert fleet.results()["status"] == "complete"
        (device,) = fleet.results()["fleet"]
        assert (disk / device["targets"][0]["model"]).is_file()
        assert (disk / "report.html").is_file()
