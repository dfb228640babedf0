"""Simulated agents that take as long as real ones would: by the protocol, at a speed of their own, with scatter."""

from __future__ import annotations

from typing import Any

import numpy as np

from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.run_progress import RunProgress
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.fleet_protocol.orders import MeasureTask
from fleetnas.fleet_protocol.transports.base import Received
from rigs.simulated_fleet import HiddenDevice, SimulatedAgent, Simulation


class TimedAgent(SimulatedAgent):
    """Takes the time of each session's warm-up and timed runs, and some beside."""

    def __init__(
        self, *arguments: Any, seed: int, pace: float = 1.0, scatter: float = 0.2, draw: int = 0, **options: Any
    ) -> None:
        """`pace` multiplies every time; `scatter` is the standard deviation of a time's logarithm.

        Another `draw` is of the same device with other times and other noise.
        """
        super().__init__(*arguments, seed=seed, **options)
        self.devices = {setting: HiddenDevice(seed + 31 * i, draw=draw) for i, setting in enumerate(self.info.settings)}
        self._pace, self._scatter = pace, scatter
        self._times = np.random.default_rng([seed, 77, draw])

    def seconds(self, task: MeasureTask) -> float:
        """Draw the time that a task takes, seconds."""
        protocol = task.protocol
        sessions = max(1, protocol.sessions)
        whole = 0.2 + sessions * (0.3 + protocol.warmup_s) + 1.2 * protocol.min_s * (1.4 if sessions > 1 else 1.0)
        return self._pace * whole * float(np.exp(self._times.normal(0.0, self._scatter)))

    def _hear(self, message: Received) -> None:
        waiting = len(self.queue)
        super()._hear(message)
        if not waiting and self.queue:
            self._ready_at_s = self.clock.now_s + self.seconds(self.queue[0])

    def _work(self, task: MeasureTask) -> None:
        super()._work(task)
        if self.queue:
            self._ready_at_s = self.clock.now_s + self.seconds(self.queue[0])


def timed_fleet(seed: int, **options: Any) -> Simulation:
    """Two boards of unknown speeds and a search of two targets on each; `options` are those of the simulation."""
    plan = CampaignPlan(
        targets=TargetRequest.parse("auto:2"), budget=20, initial_design=8, prior="default", wait_for=2, seed=seed
    )
    fleet = Simulation(plan, checked=False, at_once=True, **options)
    add_boards(fleet, seed)
    return fleet


def add_boards(fleet: Simulation, seed: int, draw: int = 0) -> None:
    """Add the two boards of a seed; another `draw` has other times and noise of the same boards."""
    rng = np.random.default_rng([seed, 5])
    for number in range(2):
        pace = float(np.exp(rng.normal(0.0, 0.4)))  # devices that nobody has timed before
        name, own_seed = f"board-{number}", 10 * seed + number
        fleet.take_in(TimedAgent(fleet.broker, name, fleet.clock, seed=own_seed, pace=pace, draw=draw))


def followed(seed: int) -> list[tuple[float, RunProgress]]:
    """The progress of a whole simulated campaign, with the times at which it was told; the last one is at its end."""
    fleet = timed_fleet(seed)
    fleet.begin()
    told = []
    for _ in range(4000):
        fleet.step(0.25)
        found = fleet.campaign.snapshot(fleet.clock.unix()).progress
        if found is not None:
            told.append((fleet.clock.now_s, found))
        if fleet.campaign.finished:
            return told
    raise AssertionError("the campaign did not end")
