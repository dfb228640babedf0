"""Twenty equal boards searched as one device, on a simulated clock: time, winners, and a slow board.

Called by `portfolio.py --only boards`. The boards are copies of one hidden device: their speeds differ by 3 %, a
measurement by 1 %. A measurement takes the time that its protocol and precision ask for, and the planning of a round
half a second, in which the boards wait. One board of the same model is searched by itself for comparison: the one below
whose speed nine in ten of the boards are, since the winners of a class are made for that one.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from figures import Figures
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.search.problem import CachedAccuracy, PredictedAccuracy
from fleetnas.coordinator.tuning.board_speeds import SERVED_SHARE
from fleetnas.coordinator.tuning.board_tuner import BoardTuner
from fleetnas.coordinator.tuning.candidates import measuring_s
from fleetnas.coordinator.tuning.class_tuner import ClassTuner
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.tuning.pooling import BoardPool
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.coordinator.tuning.target_solver import BundleTargetSolver
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.messages import AgentInfo, Measurement, MeasurementProtocol, RuntimeSetting
from fleetnas.supernet_export.spaces.base import DesignSpace

Floats = NDArray[np.float64]

DEVIATION, NOISE, SLOW = 0.03, 0.01, 1.15
BOARDS, TARGETS = 20, 4
PLANNING_S = 0.5
PROFILE = DeviceProfile(model="board", machine="none", cores=4)
SETTING = RuntimeSetting()
PROTOCOL = MeasurementProtocol()


@dataclass
class Model:
    """The latency of one model of board: linear in the features, with a part of 2 % that no predictor knows."""

    space: DesignSpace
    features: FeatureMap
    weights: Floats

    @classmethod
    def made(cls, space: DesignSpace, seed: int) -> Model:
        features = FeatureMap(space)
        typical = features.features(space.sample(300, np.random.default_rng(0))).mean(axis=0)
        weights = np.random.default_rng([seed, 5]).uniform(0.2, 2.0, len(features))
        return cls(space, features, 20.0 * weights / np.maximum(typical * len(features), 1e-9))

    def latency_ms(self, genomes: NDArray[np.int16]) -> Floats:
        wave = 1.0 + 0.02 * np.sin(7.0 * (genomes @ np.arange(genomes.shape[1])))
        found: Floats = (self.features.features(genomes) @ self.weights) * wave
        return found


@dataclass
class Board:
    """One board: its tuner, its speed, and the work that it has."""

    name: str
    factor: float
    rng: np.random.Generator
    tuner: BoardTuner
    queue: deque[Proposal] = field(default_factory=deque)
    running: tuple[float, Proposal] | None = None

    def measure(self, model: Model, proposal: Proposal, now_s: float) -> Measurement:
        genome = np.array([proposal.genome], dtype=np.int16)
        noise = float(np.exp(self.rng.normal(0.0, NOISE)))
        ms = self.factor * float(model.latency_ms(genome)[0]) * noise
        return Measurement(
            model_sha256=f"{abs(hash(proposal.genome)):064x}"[-64:],
            model_bytes=1,
            median_ms=ms,
            mad_ms=0.0,
            p90_ms=ms,
            min_ms=ms,
            runs=50,
            half_width_percent=196 * NOISE,
            quality="ok",
            undisturbed_ms=ms,
            undisturbed_half_width_percent=196 * NOISE,
            times_us=(1000 * ms,),
            provider="simulated",
            build_ms=0.0,
            load_ms=0.0,
            finished_unix_s=1e9 + now_s,
        )


def duration_s(model: Model, proposal: Proposal, factor: float) -> float:
    """Return the time that a measurement takes: of each runtime session that it is averaged over."""
    ms = factor * model.latency_ms(np.array([proposal.genome], dtype=np.int16))
    sessions = proposal.precision.sessions if proposal.precision is not None else 1
    return sessions * float(measuring_s(PROTOCOL, ms)[0])


@dataclass
class Ended:
    """A finished search of a class."""

    boards: list[Board]
    search_s: float
    """Until the last candidate before the first verification was measured."""
    whole_s: float
    """Until the last verification."""
    measured: int

    @property
    def accuracy(self) -> float:
        """Mean accuracy of the class's winners, a fraction; a target without one counts as 0."""
        states = self.boards[0].tuner.class_targets
        return float(np.mean([state.accuracy or 0.0 if state.status is TargetStatus.MET else 0.0 for state in states]))


def searched(
    model: Model,
    accuracy: PredictedAccuracy,
    targets_ms: Floats,
    factors: Floats,
    *,
    seed: int,
    budget: int,
    verify_boards: int | None = None,
) -> Ended:
    """Search boards with these factors on a simulated clock."""

    def make(_: AgentInfo, __: RuntimeSetting) -> ClassTuner:
        solver = BundleTargetSolver(model.space, accuracy, Strategy.BOTTOM_UP, rounds=3)
        design = InitialDesign(model.space, count=10, seed=seed)
        request = TargetRequest.parse(",".join(f"{ms:.6f}" for ms in targets_ms))
        return ClassTuner(design, CachedAccuracy(accuracy), request, solver, budget=budget, protocol=PROTOCOL)

    pool = BoardPool(make, verify_boards=verify_boards, seed=seed)
    boards = []
    for place, factor in enumerate(factors.tolist()):
        info = AgentInfo(
            agent=f"b{place:02}", session=1, profile=PROFILE, settings=(SETTING,), versions={}, host=f"{place:016x}"
        )
        tuner = pool.tuner(info, SETTING)
        assert tuner is not None
        boards.append(Board(info.agent, factor, np.random.default_rng([seed, place]), tuner))
    now_s, search_s, measured, ready_s, rounds, verifies = 0.0, 0.0, 0, 0.0, 0, False
    while not all(board.tuner.finished for board in boards):
        for board in boards:
            if board.running is None and not board.queue and board.tuner.needs_planning:
                board.queue.extend(board.tuner.ask(10_000))
                ready_s = now_s + PLANNING_S
        for board in boards:
            if board.running is None and board.queue:
                proposal = board.queue.popleft()
                begin_s = max(now_s, ready_s)
                board.running = begin_s + duration_s(model, proposal, board.factor), proposal
        at_work = [board for board in boards if board.running is not None]
        if not at_work:
            rounds += 1
            assert rounds < 1000, "no board is asked for anything"
            continue
        first = min(at_work, key=lambda board: board.running[0] if board.running else math.inf)
        assert first.running is not None
        now_s, proposal = first.running
        first.running = None
        measured += 1
        verifies = verifies or proposal.purpose == "verification"
        if not verifies:
            search_s = now_s
        first.tuner.tell(proposal, first.measure(model, proposal, now_s))
    return Ended(boards, search_s, now_s, measured)


def factors_of(seed: int) -> Floats:
    return np.exp(np.random.default_rng([seed, 11]).normal(0.0, DEVIATION, BOARDS))


def add_times(figures: Figures, space: DesignSpace, accuracy: PredictedAccuracy, seeds: int) -> None:
    """Add time and winners of a class beside those of one board."""
    shares: dict[str, list[float]] = {}
    behind, met = [], []
    for seed in range(seeds):
        print(f"equal boards, seed {seed}", file=sys.stderr)
        model, factors = Model.made(space, seed), factors_of(seed)
        targets_ms = targets_of(model)
        served = float(np.sort(factors)[math.ceil(SERVED_SHARE * BOARDS) - 1])
        for budget in (40, 200):
            alone = searched(model, accuracy, targets_ms, np.array([served]), seed=seed, budget=budget)
            for verify in (None, 5):
                pooled = searched(model, accuracy, targets_ms, factors, seed=seed, budget=budget, verify_boards=verify)
                name = f"budget_{budget}_{'all' if verify is None else verify}_verify"
                shares.setdefault(f"search_{name}", []).append(pooled.search_s / alone.search_s)
                shares.setdefault(f"whole_{name}", []).append(pooled.whole_s / alone.whole_s)
                if verify is None and budget == 40:
                    behind.append(100 * (alone.accuracy - pooled.accuracy))
                    states = [state for board in pooled.boards for state in board.tuner.targets]
                    met.append(np.mean([state.status is TargetStatus.MET for state in states]))
    for name, found in shares.items():
        bar = "<= 0.0834" if name.startswith("search") else ""
        figures.add(f"boards_{name}_time_share", float(np.mean(found)), bar)
    figures.add("boards_accuracy_behind_one_board_points", float(np.mean(behind)), "<= 0.1")
    figures.add("boards_share_of_board_targets_met", float(np.mean(met)), ">= 0.9")


def targets_of(model: Model) -> Floats:
    low, high = model.latency_ms(np.concatenate([model.space.smallest(), model.space.largest()]))
    return np.geomspace(1.3 * low, 0.8 * high, TARGETS)


def add_slow(figures: Figures, space: DesignSpace, accuracy: PredictedAccuracy, seeds: int) -> None:
    """Add the seeds in which a slow board is named, and what is said of its targets and of other boards."""
    named = rightly = wrongly = others = 0
    for seed in range(seeds):
        print(f"slow board, seed {seed}", file=sys.stderr)
        model, factors = Model.made(space, seed), factors_of(seed)
        factors[seed % BOARDS] = SLOW
        ended = searched(model, accuracy, targets_of(model), factors, seed=seed, budget=40)
        for place, board in enumerate(ended.boards):
            slow = "slower than the class" in board.tuner.targets_note
            if place != seed % BOARDS:
                others += slow
                continue
            named += slow
            for state in board.tuner.targets:
                if state.status is TargetStatus.MET and state.genome is not None:
                    true_ms = SLOW * float(model.latency_ms(state.genome[None])[0])
                    rightly += true_ms <= state.target_ms
                    wrongly += true_ms > state.target_ms
    figures.add("boards_slow_one_named_seeds", named, f">= {seeds}")
    figures.add("boards_slow_one_targets_beyond_and_called_met", wrongly, "<= 0")
    figures.add("boards_slow_one_targets_within_and_called_met", rightly)
    figures.add("boards_named_that_are_not_slow", others, f"<= {seeds // 10}")
