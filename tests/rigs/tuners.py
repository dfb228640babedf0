"""Searches of one simulated device setting, driven to their end without a campaign."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.coordinator.tuning.target_solver import BundleTargetSolver
from fleetnas.fleet_protocol.messages import Failed, Measurement
from rigs.simulated_fleet import ACCURACY, SPACE, HiddenDevice, measurement

SEARCH = BundleTargetSolver(SPACE, ACCURACY, Strategy.BOTTOM_UP, rounds=3)
Answer = Callable[[Proposal], Measurement | Failed]


def make(targets: str = "auto:4", *, budget: int = 20, initial: int = 8, seed: int = 0) -> DeviceTuner:
    design = InitialDesign(SPACE, count=min(initial, budget), seed=seed)
    return DeviceTuner(design, ACCURACY, TargetRequest.parse(targets), SEARCH, budget=budget)


def run(search: DeviceTuner, answer: Answer, at_once: int = 2) -> list[tuple[Proposal, Measurement | Failed]]:
    """Drive a search to its end."""
    told: list[tuple[Proposal, Measurement | Failed]] = []
    waiting: list[Proposal] = []
    for _ in range(500):
        waiting += search.ask(at_once - len(waiting))
        search.validate()
        if search.finished:
            return told
        assert waiting, "it neither asks nor ends"
        proposal = waiting.pop(0)
        outcome = answer(proposal)
        told.append((proposal, outcome))
        search.tell(proposal, outcome)
        search.validate()
    raise AssertionError("it does not end")


def slower_than_when_explored(seed: int, low: float, high: float) -> Callable[[Proposal], Measurement]:
    """A device that is slowed by up to 1.3 times at first, and irregularly by `low` to `high` from the targets on."""
    hidden, rng = HiddenDevice(seed), np.random.default_rng(seed)

    def answer(proposal: Proposal) -> Measurement:
        undisturbed_ms = hidden.latency_ms(proposal.architecture) * float(np.exp(rng.normal(0, 0.02)))
        slowdown = float(rng.uniform(low, high) if proposal.has_target else rng.uniform(1.0, 1.3))
        return measurement(
            undisturbed_ms * slowdown,
            quality="slowed" if slowdown > 1.1 else "ok",
            undisturbed_ms=undisturbed_ms if rng.random() > 0.4 else None,
        )

    return answer
