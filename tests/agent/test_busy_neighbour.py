"""A core that other processes keep busy: real inference, real neighbours, and the latency without them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from rigs import waiting
from rigs.agent_rig import AgentProcess, Rig, task
from rigs.supernets import random_bundle

from fleetnas.agent.measuring.worker import Worker, child_command
from fleetnas.fleet_protocol.messages import BlobReference, Measurement, MeasurementProtocol, Result, RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.spaces.registry import make_space

SPACE = make_space("digits")
NEIGHBOURS = 6
PROTOCOL = MeasurementProtocol(warmup_runs=2, warmup_s=0.01, min_runs=6, min_s=0.1, half_width_percent=1000)
#: Spins on one core from when it has said so until it is killed.
NEIGHBOUR = "import os, sys\nos.sched_setaffinity(0, {{{core}}})\nprint('busy', flush=True)\nwhile True: pass"


@contextmanager
def busy(core: int) -> Iterator[None]:
    """Processes that never rest on `core`: so many that it shows even where other tests disturbed the reference."""
    command = [sys.executable, "-c", NEIGHBOUR.format(core=core)]
    neighbours = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(NEIGHBOURS)]
    try:
        for neighbour in neighbours:
            assert waiting.line(neighbour) == b"busy\n"
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

    def measure(self, number: int, of: int) -> Measurement:
        """Measurement `number`, of subnet `of`."""
        architecture = SPACE.decode(SPACE.sample(1, np.random.default_rng(of)))[0]
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
                    return update.measurement
        raise AssertionError("no result came")


@pytest.mark.soak  # real timing: other tests beside it change what it compares with
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin a process to a core")
def test_a_measurement_beside_busy_neighbours_has_its_undisturbed_latency_or_none(
    tmp_path: Path, bundle: SupernetBundle
) -> None:
    core = max(os.sched_getaffinity(0))
    pinned = Pinned(tmp_path, bundle, core)
    alone = [pinned.measure(number, of=number % 2) for number in range(6)]
    with busy(core):
        beside = [pinned.measure(number, of=number % 2) for number in range(6, 12)]
    pinned.worker.close()
    # Other tests disturb the undisturbed ones too: the fastest of three tells what the subnet takes.
    for subnet in range(2):
        undisturbed_ms = min(found.undisturbed_ms or found.median_ms for found in alone[subnet::2])
        for found in beside[subnet::2]:
            assert found.median_ms >= 0.8 * undisturbed_ms
            if found.undisturbed_ms is not None:
                margin = 0.15 + 2 * found.undisturbed_half_width_percent / 100
                assert abs(found.undisturbed_ms / undisturbed_ms - 1) < margin, found
            else:
                assert found.slowdown is None
    slowed = max(np.mean(found.times_us) / 1000 for found in beside[0::2])
    assert slowed > 1.5 * min(found.median_ms for found in alone[0::2]), "the neighbours did disturb"
