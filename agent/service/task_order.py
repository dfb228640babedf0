"""Make the order to the measuring child from a task whose blobs are in the cache."""

from __future__ import annotations

from collections.abc import Callable

from fleetnas.agent.host.battery import BatteryRule
from fleetnas.agent.measuring.messages import MeasureOrder, ModelOrder, ReferenceOrder
from fleetnas.fleet_protocol.messages import BlobReference
from fleetnas.fleet_protocol.orders import MeasurementTask, ModelTask


def order_of(
    task: MeasurementTask,
    path_of: Callable[[BlobReference], str],
    references: ReferenceOrder,
    battery: BatteryRule | None,
) -> MeasureOrder | ModelOrder:
    """Return the order; `path_of` finds the file of a blob in the cache."""
    if isinstance(task, ModelTask):
        return ModelOrder(
            bundle_path=path_of(task.bundle),
            bundle_sha256=task.bundle.sha256,
            model_path=path_of(task.model),
            model=task.model,
            setting=task.setting,
            protocol=task.protocol,
            references=references,
            battery=battery,
        )
    return MeasureOrder(
        bundle_path=path_of(task.bundle),
        bundle_sha256=task.bundle.sha256,
        architecture=task.architecture,
        calibration_path=path_of(task.calibration) if task.calibration else None,
        calibration_sha256=task.calibration.sha256 if task.calibration else None,
        setting=task.setting,
        protocol=task.protocol,
        references=references,
        battery=battery,
        profile=task.profile,
    )
