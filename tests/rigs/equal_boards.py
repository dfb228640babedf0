"""Campaigns over equal boards: one model of board, whose copies differ a little in speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fleetnas.agent.service.announcement import HEARTBEAT_EVERY_S
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.tuning.board_tuner import BoardTuner
from fleetnas.coordinator.tuning.class_tuner import ClassTuner
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.tuning.pooling import BoardPool
from fleetnas.coordinator.tuning.setting_tuner import SettingTuner
from fleetnas.coordinator.tuning.target_solver import BundleTargetSolver
from fleetnas.fleet_protocol.messages import AgentInfo, Heartbeat, Measurement, RuntimeSetting
from fleetnas.fleet_protocol.orders import MeasureTask
from rigs.simulated_fleet import SimulatedAgent, Simulation, measurement


class EqualBoard(SimulatedAgent):
    """A board of one model: the latencies of the model's table times its own factor."""

    def __init__(self, *given: Any, factor: float = 1.0, tags: tuple[str, ...] = (), host: str = "", **options: Any):
        super().__init__(*given, **options)
        self.factor = factor
        #: Measurements from the first one on that are slowed, at a speed that is not known.
        self.disturbed = 0
        #: The slow-down of a task, and whether it is known.
        self.slowdown: Callable[[MeasureTask], tuple[float, bool]] = lambda task: (1.0, True)
        self._beaten_s = 0.0
        self.info = self.info.model_copy(update={"tags": tags, "host": host})

    def step(self) -> None:
        """Work, and send a heartbeat now and then: a board of a class may wait for the others."""
        super().step()
        if self.clock.now_s - self._beaten_s >= HEARTBEAT_EVERY_S:
            self._beaten_s = self.clock.now_s
            self._say("heartbeat", Heartbeat(session=self.session, uptime_s=self.clock.now_s))

    def _measure(self, task: MeasureTask) -> Measurement:
        found = super()._measure(task)
        changes = {"quality": "slowed", "undisturbed_ms": None} if self.disturbed > 0 else {}
        self.disturbed -= 1
        slowdown, known = self.slowdown(task)
        median_ms = self.factor * found.median_ms
        if slowdown > 1.0:
            changes = {"quality": "slowed", "undisturbed_ms": median_ms if known else None}
        return measurement(slowdown * median_ms, found.model_sha256, found.finished_unix_s, **changes)


class PooledSimulation(Simulation):
    """A campaign that searches equal boards as one device."""

    pool: BoardPool | None = None

    def board(self, name: str, factor: float = 1.0, *, host: str | None = None, **options: Any) -> EqualBoard:
        """Start a board, by itself on its machine unless `host` says otherwise."""
        mark = f"{len(self.agents) + 1:016x}" if host is None else host
        agent = EqualBoard(self.broker, name, self.clock, factor=factor, host=mark, **options)
        # The noise of two boards is not the same.
        for device in agent.devices.values():
            device.reseed(len(self.agents))
        return self.take_in(agent)

    def begin(self, *, resume: bool = False) -> Any:
        plan = self.plan
        self.pool = BoardPool(self.class_tuner, verify_boards=plan.verify_boards, seed=plan.seed)
        return super().begin(resume=resume)

    def make_search(self, info: AgentInfo, setting: RuntimeSetting) -> SettingTuner:
        assert self.pool is not None
        found = self.pool.tuner(info, setting)
        return super().make_search(info, setting) if found is None else found

    def class_tuner(self, info: AgentInfo, setting: RuntimeSetting) -> ClassTuner:
        plan: CampaignPlan = self.plan
        design = InitialDesign(
            self.space, count=min(plan.initial_design, plan.budget), seed=plan.seed, bounds=plan.bounds
        )
        solver = BundleTargetSolver(
            self.space, self.accuracy, plan.strategy, bounds=plan.bounds, rounds=self.search_rounds
        )
        return ClassTuner(
            design, self.accuracy, plan.targets, solver, budget=plan.budget, rerank=plan.rerank, protocol=plan.protocol
        )


def board_of(fleet: Simulation, name: str) -> BoardTuner:
    """Return a board's tuner."""
    found = next(run.search for run in fleet.campaign.setting_runs.values() if run.device == name)
    assert isinstance(found, BoardTuner)
    return found
