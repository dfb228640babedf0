"""An agent whose installed code is replaced while it runs, as an update of the wheel does it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rigs import waiting
from rigs.process_fleet import Fleet, events, process_fleet

import fleetnas
from fleetnas.agent.host.installed_code import InstalledCode
from fleetnas.fleet_protocol.errors import CodeReplacedError

PACKAGES = ("device_profiles", "fleet_protocol", "supernet_export", "agent")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with process_fleet(tmp_path) as started:
        yield started


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder with a copy of the installed agent."""
    installed = Path(fleetnas.__file__).parent
    copy = tmp_path / "site" / "fleetnas"
    copy.mkdir(parents=True)
    shutil.copy(installed / "__init__.py", copy)
    for name in PACKAGES:
        shutil.copytree((installed / name).resolve(), copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy.parent


def update(code: Path) -> None:
    """Install a version whose child answers with a field that the version before does not know."""
    messages = code / "fleetnas" / "agent" / "measuring" / "messages.py"
    text = messages.read_text()
    field = "    inference_s: float = Field(ge=0, description="
    assert text.count(field) == 1
    messages.write_text(text.replace(field, f"    new_field: int = 0\n{field}"))


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def why_idle(fleet: Fleet, name: str) -> str:
    address = str(fleet.broker.address)

    def found() -> str | None:
        devices = fleet.start("fleetnas", "devices", "--broker", address, "--wait", "1", "--json", pipe=True)
        out, _ = waiting.outputs(devices)
        listed = map(json.loads, out.splitlines())
        return next((str(device["why"]) for device in listed if device["device"] == name), None)

    return waiting.until(found, what=f"the broker does not know {name}")


def test_an_agent_whose_code_was_replaced_says_so_and_leaves(fleet: Fleet, code: Path) -> None:
    agent = fleet.agent("pi", code=code)
    log = fleet.folder / "0-fleetnas-agent.log"
    waiting.until(lambda: "connected to the broker" in log.read_text(), what="the agent did not join")
    update(code)
    for child in children(agent.pid):  # the warm one still runs the code from before
        os.kill(child, signal.SIGKILL)
    search = fleet.new_search()
    assert waiting.ended(agent, search) == 1, log.read_text()
    assert "error: fleetnas was updated on this device after this program had started" in log.read_text()
    assert why_idle(fleet, "pi") == (
        "fleetnas was updated on this device while its agent ran; restart fleetnas-agent on the device"
    )
    fleet.agent("pi", code=code)  # as a service manager does it
    kinds = (event["event"] for event in events(search))
    assert next(kind for kind in kinds if kind in ("measurement", "failure")) == "measurement", fleet.complaints()


def test_code_that_only_looks_new_is_the_same_code(code: Path) -> None:
    root = code / "fleetnas"
    installed = InstalledCode(root)
    module = root / "agent" / "__main__.py"
    module.write_text(module.read_text())
    installed.check()
    module.unlink()
    with pytest.raises(CodeReplacedError, match="start it again"):
        installed.check()


def test_code_that_is_replaced_while_it_is_looked_at_is_other_code(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update removes whole folders, at any moment."""
    root = code / "fleetnas"
    installed = InstalledCode(root)
    scan = os.scandir

    def scan_after_removal(path: Any) -> Any:
        if isinstance(path, Path | str) and Path(path) == root / "agent" / "host":
            shutil.rmtree(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_after_removal)
    with pytest.raises(CodeReplacedError, match="start it again"):
        installed.check()
    assert not (root / "agent" / "host").exists()
