"""A core that another process keeps busy: real inference, a real neighbour, and what the coordinator learns from it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from agent_rig import AgentProcess, Rig, task
from simulated_fleet import ACCURACY
from supernets import random_bundle

from agent.worker import Worker, child_command
from coordinator.campaign.device_search import DeviceSearch
from coordinator.campaign.proposal import Proposal
from coordinator.campaign.targets import TargetRequest
from coordinator.campaign.winner_search import BundleSearch
from fleet_protocol.messages import BlobReference, Measurement, MeasurementProtocol, Result, RuntimeSetting
from supernet_export.bundle import SupernetBundle
from supernet_export.spaces.registry import make_space

SPACE = make_space("digits")
NEIGHBOURS = 6
PROTOCOL = MeasurementProtocol(warmup_runs=2, warmup_s=0.01, min_runs=6, min_s=0.02, half_width_percent=1000)
#: Spins on one core from when it has said so until it is killed.
NEIGHBOUR = "import os, sys\nos.sched_setaffinity(0, {{{core}}})\nprint('busy', flush=True)\nwhile True: pass"


@contextmanager
def busy(core: int) -> Iterator[None]:
    """Processes that never rest on `core`: so many that it shows even where other tests disturbed the reference."""
    command = [sys.executable, "-c", NEIGHBOUR.format(core=core)]
    neighbours = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(NEIGHBOURS)]
    try:
        for neighbour in neighbours:
            assert neighbour.stdout is not None
            assert neighbour.stdout.readline() == b"busy\n"
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.communicate()


@pytest.fixture
def bundle(tmp_path: Path) -> SupernetBundle:
    return random_bundle(tmp_path / "digits.supernet", SPACE)


class Pinned:
    """An agent whose child is a real one, and measures on one core; its clock goes on by a tick per step."""

    def __init__(self, folder: Path, bundle: SupernetBundle, core: int) -> None:
        self.rig = Rig(folder, blobs=[bundle.path.read_bytes()])
        self.setting = RuntimeSetting(affinity=(core,))
        self.worker = Worker(child_command(folder / "lock"))
        self.agent = AgentProcess(self.rig, "pi", folder / "state", self.worker, settings=(self.setting,))
        self.bundle = BlobReference(sha256=bundle.sha256, size=bundle.size)
        self.rig.run(self.agent)

    def measure(self, number: int) -> tuple[Proposal, Measurement]:
        genome = SPACE.sample(1, np.random.default_rng(number))[0]
        architecture = SPACE.decode(genome[None])[0]
        order = task(
            number,
            bundle=self.bundle,
            architecture=architecture,
            setting=self.setting,
            protocol=PROTOCOL,
            deadline_s=100_000,
        )
        self.rig.coordinator.send("pi", "task", order)
        for _ in range(10_000):
            self.rig.run(self.agent, seconds=0.25)
            assert not self.rig.coordinator.updates("failed"), self.rig.coordinator.updates("failed")
            for update in self.rig.coordinator.updates("result"):
                assert isinstance(update, Result)
                if update.task == order.task:
                    return Proposal(tuple(map(int, genome)), architecture, "candidate"), update.measurement
        raise AssertionError("no result came")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin a process to a core")
def test_what_is_measured_beside_a_busy_neighbour_is_tagged_and_never_fitted(
    tmp_path: Path, bundle: SupernetBundle
) -> None:
    core = max(os.sched_getaffinity(0))
    pinned = Pinned(tmp_path, bundle, core)
    alone = [pinned.measure(number) for number in range(1, 3)]
    with busy(core):
        disturbed = [pinned.measure(number) for number in range(3, 5)]
    pinned.worker.close()
    assert [measurement.quality for _, measurement in disturbed] == ["slowed"] * 2

    search = DeviceSearch(SPACE, ACCURACY, TargetRequest.parse("auto:4"), BundleSearch(SPACE, ACCURACY, "bottom-up"))
    pool = SPACE.sample(50, np.random.default_rng(0))
    for proposal, measurement in alone:
        search.tell(proposal, measurement.model_copy(update={"quality": "ok"}))
    learned, _ = search.predict(pool)
    for proposal, measurement in disturbed:
        search.tell(proposal, measurement)
    assert np.array_equal(search.predict(pool)[0], learned)
    proposal, measurement = disturbed[0]
    search.tell(proposal, measurement.model_copy(update={"quality": "ok"}))
    assert not np.array_equal(search.predict(pool)[0], learned), (
        "the same measurement would have been fitted if untagged"
    )
