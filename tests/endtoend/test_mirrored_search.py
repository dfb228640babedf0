"""A search whose supernet comes from a mirror: real processes, a real web server."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from rigs.mirror_server import MirrorServer, mirror
from rigs.process_fleet import Fleet, events
from rigs.untrained_supernet import write_untrained
from typer.testing import CliRunner

from fleetnas.coordinator.cli.app import app


def laid_out(supernet: Path, folder: Path) -> dict[str, bytes]:
    """A mirror's folder as `fleetnas mirror` makes it, by path."""
    said = CliRunner().invoke(app, ["mirror", str(supernet), str(folder)])
    assert said.exit_code == 0, said.output
    return {f"/{path.name}": path.read_bytes() for path in folder.iterdir()}


def test_a_supernet_is_laid_out_under_its_hash_and_again_without_harm(tmp_path: Path) -> None:
    supernet = write_untrained(tmp_path / "a.supernet")
    digest = hashlib.sha256(supernet.read_bytes()).hexdigest()
    for _ in range(2):
        assert laid_out(supernet, tmp_path / "mirror") == {f"/{digest}.supernet": supernet.read_bytes()}
    assert (tmp_path / "mirror" / f"{digest}.supernet").stat().st_mode & 0o777 == 0o644


def test_what_is_no_supernet_is_not_laid_out(tmp_path: Path) -> None:
    (tmp_path / "a.supernet").write_bytes(b"x" * 100)
    said = CliRunner().invoke(app, ["mirror", str(tmp_path / "a.supernet"), str(tmp_path / "mirror")])
    assert said.exit_code != 0
    assert not (tmp_path / "mirror").exists()


@pytest.mark.parametrize("served", [True, False], ids=["served", "missing"])
def test_the_fleet_measures_what_the_mirror_serves_or_else_the_broker(fleet: Fleet, served: bool) -> None:
    files = laid_out(fleet.supernet, fleet.folder / "mirror")
    with mirror(MirrorServer(files if served else {})) as server:
        fleet.agent("alpha", "--bundle-mirrors", "any")
        search = fleet.new_search(
            "--budget", "10", "--mirror", server.url, "--bundle-rate", "4", "--bundles-at-once", "1"
        )
        happened = {event["event"] for event in events(search)}
        # Whether a target is met depends on what else this machine does; that it was measured does not.
        assert happened >= {"campaign_started", "measurement", "campaign_finished"}, fleet.complaints()
        assert [path for path, _ in server.asked] == list(files)
    (said,) = [path.read_text() for path in fleet.folder.glob("*-fleetnas-agent.log")]
    assert f"from {server.url}" in said
    assert ("through the broker instead" in said) is not served
    (bundle,) = [path for path in (fleet.folder / "agents" / "blobs").iterdir() if f"/{path.name}.supernet" in files]
    assert bundle.read_bytes() == fleet.supernet.read_bytes()
