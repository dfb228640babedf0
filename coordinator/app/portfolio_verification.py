"""Verify a chosen portfolio: its subnets are measured as given subnets on the devices that they serve."""

from __future__ import annotations

from collections.abc import Callable

from fleetnas.coordinator.app.portfolio import PortfolioProblem, RunPortfolio, Service
from fleetnas.coordinator.records.outcome import CampaignOutcome
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.setting_filter import SettingFilter
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.records.verdict import meets_target
from fleetnas.coordinator.tuning.subnet_tuner import REPEATS
from fleetnas.fleet_protocol.messages import MeasurementProtocol

#: Choices at most: each verification tells the next choice which predictions failed.
MOST_ROUNDS = 6


def verified_portfolio(
    problem: PortfolioProblem,
    choose: Callable[[], RunPortfolio],
    measure: Callable[[CampaignPlan], CampaignOutcome],
    protocol: MeasurementProtocol,
) -> RunPortfolio:
    """Choose, verify and choose again, until all that the choice rests on is verified.

    Args:
        problem: is told every verified latency.
        choose: makes a choice by what `problem` knows.
        measure: executes a plan of given subnets.
        protocol: of the measurements.

    Returns: the last choice. A service that is not `verified` could not be measured, or rounds ended.
    """
    for _ in range(MOST_ROUNDS):
        chosen = choose()
        open_ = [each for each in chosen.services if each.architecture is not None and each.known_by != "verified"]
        if not open_ or not tell_verified(problem, open_, measure(verification_plan(open_, protocol))):
            return chosen
    return choose()


def verification_plan(services: list[Service], protocol: MeasurementProtocol) -> CampaignPlan:
    """Make the plan that measures every subnet of `services` on every device and setting among them."""
    architectures = tuple(dict.fromkeys(each.architecture for each in services if each.architecture is not None))
    return CampaignPlan(
        targets=TargetRequest(),
        architectures=architectures,
        budget=REPEATS * max(1, len(architectures)),
        prior="default",
        devices=tuple(dict.fromkeys(each.demand.device for each in services)),
        wait_for=len({each.demand.device for each in services}),
        settings=SettingFilter(labels=tuple(dict.fromkeys(each.demand.setting for each in services))),
        protocol=protocol,
    )


def tell_verified(problem: PortfolioProblem, services: list[Service], outcome: CampaignOutcome) -> int:
    """Tell `problem` what was verified for any of its demands; return how many of `services` are decided by it."""
    decided = 0
    wanted = {(each.demand, each.architecture) for each in services}
    for device in outcome.devices:
        for found in device.targets:
            if found.architecture is None or found.verified_ms is None:
                continue
            latency_ms = max(found.verified_ms, found.typical_ms or 0.0)
            for demand in problem.demands:
                if demand.is_of(device):
                    same = found.target_ms == demand.target_ms
                    met = found.met if same else meets_target(demand.target_ms, found.verified_ms, found.typical_ms)
                    problem.tell(found.architecture, demand, latency_ms, met=met)
                    decided += (demand, found.architecture) in wanted
    return decided
