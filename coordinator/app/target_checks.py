"""Check the targets of a plan before the first measurement: against the design space, and against each device."""

from __future__ import annotations

import math

from fleetnas.coordinator.records.agent_abilities import too_old
from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.target_kinds import Target, TargetKind
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.search.problem import AccuracyModel
from fleetnas.coordinator.tuning.floor_search import highest_accuracy
from fleetnas.coordinator.tuning.target_solver import BundleTargetSolver
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import PERCENTILES_MINOR, AgentInfo, RuntimeSetting
from fleetnas.supernet_export.spaces.base import DesignSpace

#: Runtimes of which single run times are not known: programs that print their own summary.
_SUMMARISED = ("adb", "command")


def check_targets(space: DesignSpace, accuracy: AccuracyModel, plan: CampaignPlan) -> None:
    """Raise `UsageError` where automatic targets have no range, or an accuracy is beyond every subnet."""
    requests = [
        (plan.targets, plan.bounds),
        *((e.targets, plan.bounds.with_tighter(e.bounds)) for e in plan.device_targets),
    ]
    for request, _ in requests:
        if request.automatic and space.size == 1:
            raise UsageError(
                f"the bundle holds one network, whose latency is one number, so that auto:{request.automatic} has "
                "no range to span: give a target in milliseconds, or measure it with `fleetnas measure`"
            )
    highest: dict[Bounds, float] = {}
    for request, bounds in requests:
        bounds.check(space)
        for floor in request.floors:
            if bounds not in highest:
                solver = BundleTargetSolver(space, accuracy, plan.strategy, bounds=bounds)
                highest[bounds] = 100.0 * highest_accuracy(space, accuracy, solver)
            if not floor.is_within(highest[bounds]):
                within = f" with {bounds}" if bounds.given() else ""
                possible = math.floor(10 * highest[bounds]) / 10
                raise UsageError(
                    f"no subnet of {space.name}{within} is predicted to reach an accuracy of {floor.value:g} %: the "
                    f"highest found is {highest[bounds]:.2f} %; ask for at most {possible:g}"
                )


def checked_on(request: TargetRequest, info: AgentInfo, setting: RuntimeSetting) -> dict[str, str]:
    """Return why targets cannot be measured on a device setting, by their texts.

    `UsageError` where the device has no targets, or none of them can be measured on it.
    """
    if not request.count:
        raise UsageError("no target is asked for on it; give --targets for the devices that --targets-file leaves out")
    found = {target: reason for target in request.others if (reason := _objection(target, info, setting)) is not None}
    if len(found) == request.count:
        raise UsageError("; ".join(f"{target.label}: {reason}" for target, reason in found.items()))
    return {target.text: reason for target, reason in found.items()}


def _objection(target: Target, info: AgentInfo, setting: RuntimeSetting) -> str | None:
    energy = target.kind is TargetKind.ENERGY or target.minimise == "energy"
    if energy and info.tells_energy is False:
        return f"{info.agent} tells no energy (no power meter that can be read); ask for another target there"
    if target.kind is TargetKind.PERCENTILE:
        if setting.runtime in _SUMMARISED:
            return f"the runtime {setting.runtime} tells no single run times; ask for milliseconds there"
        if info.schema_minor < PERCENTILES_MINOR:
            return too_old(info, "report percentiles")
    return None
