"""A campaign with honest devices beside ones whose every answer holds a hostile value."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleetnas.coordinator.app.run_artifacts import write_artifacts
from fleetnas.coordinator.campaign.winner_builder import CalibratedModel
from fleetnas.coordinator.monitoring.metrics import Metrics
from fleetnas.coordinator.monitoring.view_group import ViewGroup
from fleetnas.coordinator.records.outcome import TargetOutcome
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.view.lines import JsonView, LinesView
from fleetnas.fleet_protocol.messages import RuntimeSetting, TaskKey
from fleetnas.fleet_protocol.orders import MeasureTask
from fleetnas.fleet_protocol.topics import UpChannel
from fleetnas.fleet_protocol.transports.memory import MemoryBroker
from rigs.simulated_fleet import TOPICS, FakeClock, SimulatedAgent, Simulation, StandInModels

#: Stand in every hostile message for the task that its agent holds.
TASK_ID, ATTEMPT = "PLACEHOLDER.7", 7
KEY = TaskKey(task_id=TASK_ID, attempt=ATTEMPT)
HONEST = ("pi0", "pi1")
PLAN = CampaignPlan(targets="auto:2", budget=56, initial_design=50, wait_for=2, grace_s=20, join_s=60, deadline_s=30)

#: Longer than a lease.
_PATIENCE_S = 120.0

Said = tuple[UpChannel, bytes]


class ShippedModels(StandInModels):
    """Winners' files whose hashes are those that the simulated devices measured."""

    def file(self, model: CalibratedModel) -> bytes:
        import hashlib

        statistics = hashlib.sha256(model.calibration or b"").hexdigest()
        return f"{model.architecture.fingerprint} {statistics}".encode()


class HostileAgent(SimulatedAgent):
    """Answers tasks with `answers`, then honestly, and publishes `noise`; with noise alone it does no task."""

    def __init__(
        self,
        broker: MemoryBroker,
        name: str,
        clock: FakeClock,
        *,
        answers: Iterable[bytes] = (),
        noise: Iterable[Said] = (),
        at_once: int = 40,
        **options: Any,
    ) -> None:
        super().__init__(broker, name, clock, **options)
        self.answers, self.noise, self._at_once = deque(answers), deque(noise), at_once
        self._works = bool(self.answers)
        self.thrown = 0
        self._answered_at_s = clock.now_s
        self._key = TaskKey(task_id="run-1.1", attempt=1)

    def step(self) -> None:
        super().step()
        if self.answers and self.clock.now_s - self._answered_at_s > _PATIENCE_S:
            # It was given up, and is asked no more: what it would have answered it says all the same.
            self.noise.extend(("task", payload) for payload in self.answers)
            self.answers.clear()
        for _ in range(min(self._at_once, len(self.noise))):
            channel, payload = self.noise.popleft()
            self.transport.publish(TOPICS.up(self.name, channel), self._about_my_task(payload))
            self.thrown += 1

    def _work(self, task: MeasureTask) -> None:
        self._key = task.task
        if not self.answers:
            if self._works and task.setting in self.devices:
                super()._work(task)
            return
        self._ready_at_s = self.clock.now_s + self._seconds_per_task
        self._answered_at_s = self.clock.now_s
        self.transport.publish(TOPICS.up(self.name, "task"), self._about_my_task(self.answers.popleft()))
        self.thrown += 1

    def _about_my_task(self, payload: bytes) -> bytes:
        named = payload.replace(f'"{TASK_ID}"'.encode(), f'"{self._key.task_id}"'.encode())
        return named.replace(f'"attempt": {ATTEMPT}'.encode(), f'"attempt": {self._key.attempt}'.encode())


@dataclass
class HostileCampaign:
    """One campaign; what its honest devices come to is what they come to alone."""

    fleet: Simulation = field(
        default_factory=lambda: Simulation(PLAN, models=ShippedModels(), at_once=True, together=True)
    )
    hostile: list[HostileAgent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fleet.design = InitialDesign(self.fleet.space, count=PLAN.initial_design, seed=PLAN.seed)
        for seed, name in enumerate(HONEST):
            self.fleet.add(name, seed=seed)

    def add(self, name: str, *, settings: int = 1, **options: Any) -> None:
        offered = tuple(RuntimeSetting(threads=1 + number) for number in range(settings))
        agent = HostileAgent(self.fleet.broker, name, self.fleet.clock, settings=offered, seed=50, **options)
        self.hostile.append(self.fleet.take_in(agent))

    def run(self, out: Path) -> Sequence[str]:
        """To the end, with every view and everything that is written; returns the lines about trouble."""
        metrics = Metrics("127.0.0.1", 0)
        views = ViewGroup([LinesView(io.StringIO()), JsonView(io.StringIO()), metrics])
        try:
            campaign = self.fleet.begin()
            for number in range(4000):
                if campaign.finished:
                    break
                self.fleet.step()
                if number % 25 == 0:
                    views.update(campaign.snapshot(self.fleet.clock.unix()))
                if not any(agent.noise or agent.answers for agent in self.hostile):
                    for agent in self.hostile:  # nothing is left to say: what they hold is given up
                        self.fleet.broker.cut(agent.name)
                        if agent in self.fleet.agents:
                            self.fleet.agents.remove(agent)
            for event in self.fleet.events:
                views.event(event)
            assert campaign.finished, list(campaign.log)[-5:]
            troubles: list[str] = []
            campaign.finish(lambda: troubles.extend(self.write(out)))  # type: ignore[func-returns-value, arg-type]
            return troubles
        finally:
            views.close()

    def write(self, out: Path) -> list[str]:
        return write_artifacts(self.fleet.store, self.fleet.run_id, out, self.fleet.models)

    def winners(self) -> dict[str, tuple[TargetOutcome, ...]]:
        outcome = outcome_of(self.fleet.store, self.fleet.run_id)
        return {device.device: device.targets for device in outcome.devices if device.device in HONEST}
