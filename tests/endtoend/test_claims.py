"""Every printed claim of a search agrees with the measurements it left; and the checker finds the ones that do not."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from claims import contradictions
from rich.console import Console
from simulated_fleet import BUNDLE, SPACE, HiddenDevice, Simulation, file_sha256, measurement

from coordinator.broker import EmbeddedBroker
from coordinator.campaign.plan import CampaignPlan
from coordinator.campaign.standing import outcome_of
from coordinator.demo import PROTOCOL, agents
from coordinator.report.take_home import TakeHome
from coordinator.view.lines import LinesView
from coordinator.view.summary import summary
from fleet_protocol.messages import Measurement, MeasureTask
from supernet_export.export import export_digits

pytestmark = pytest.mark.xdist_group("endtoend")

_SEARCH = "from coordinator.cli import main; main()"
#: Spins on one core until it is killed.
_NEIGHBOUR = "import os\nif hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"


# -- a real search beside busy neighbours ----------------------------------------------------------------------------


@contextmanager
def busy_cores() -> Iterator[None]:
    """One process per core that never rests."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    neighbours = [subprocess.Popen([sys.executable, "-c", _NEIGHBOUR.format(core=core)]) for core in cores]
    try:
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


def test_no_claim_of_a_search_beside_busy_neighbours_is_false(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tests of other workers must not wait for this search, nor it for them.
    monkeypatch.setenv("FLEETNAS_HOST_LOCK", str(tmp_path / "lock"))
    export_digits(tmp_path / "digits.supernet")
    fleet = [("one-thread", ("--threads", "1"))]
    with EmbeddedBroker(port=0) as broker, agents(broker.address, tmp_path, fleet), busy_cores():
        for targets in ("auto:3", "0.0001,1000"):
            out = tmp_path / targets.partition(":")[0]
            options = {
                "broker": str(broker.address),
                "store": str(tmp_path / "runs.sqlite"),
                "supernet": str(tmp_path / "digits.supernet"),
                "devices": "one-thread",
                "targets": targets,
                "budget": "12",
                "warmup": "0.05",
                "min-time": "0.1",
                "min-runs": str(PROTOCOL.min_runs),
                "out": str(out),
            }
            arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
            ended = subprocess.run(
                [sys.executable, "-c", _SEARCH, "search", *arguments],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "COLUMNS": "400"},
            )
            assert "targets met" in ended.stdout, ended.stderr
            assert contradictions(ended.stdout, out) == []


# -- the checker itself ----------------------------------------------------------------------------------------------


class SlowedDevice(HiddenDevice):
    """Every second measurement is slowed, each third of these at unknown speed; a lasting speed begins after nine."""

    taken = 0

    def measure(self, task: MeasureTask, finished_unix_s: float) -> Measurement:
        self.taken += 1
        undisturbed_ms = self.latency_ms(task.architecture) * float(np.exp(self._rng.normal(0, 0.01)))
        slowdown = 1.5 + 0.01 * self.taken if self.taken % 2 else 1.0
        return measurement(
            undisturbed_ms * slowdown,
            file_sha256(task.architecture, task.calibration),
            finished_unix_s,
            quality="slowed" if slowdown > 1 else "ok",
            undisturbed_ms=None if self.taken % 6 == 5 else undisturbed_ms,
            regime_unix_s=1.0 if self.taken < 10 else finished_unix_s if self.taken == 10 else self._since,
        )

    @property
    def _since(self) -> float:
        return 2.0
