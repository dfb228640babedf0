"""What the demonstration says at its end: commands that work on the run that it left."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from rigs.command_line import fleetnas

from fleetnas.coordinator.app.demo import store_of
from fleetnas.coordinator.cli.demo import next_steps
from fleetnas.coordinator.store.store import MeasurementStore


def test_the_next_steps_name_the_demonstrations_own_store(tmp_path: Path) -> None:
    out = tmp_path / "out of a demo"
    (command,) = re.findall(r"(fleetnas dashboard .*)", next_steps(out))
    assert shlex.split(command) == ["fleetnas", "dashboard", "--store", str(store_of(out))]


def test_a_store_without_a_run_leads_to_that_of_the_demonstration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "runs.sqlite"
    MeasurementStore.open(str(store)).close()
    said = f"the store {store} holds no run yet; give the --store of the search (of `fleetnas demo`: "
    code, out, _ = fleetnas(capsys, "runs", "--store", str(store))
    assert (code, out.partition(said)[1]) == (0, said)
    code, _, err = fleetnas(capsys, "results", "latest", "--store", str(store))
    assert (code, err.partition(said)[1]) == (2, said)
    assert str(store_of(Path("fleetnas-out"))) in err
