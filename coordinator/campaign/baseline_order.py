"""The order to measure a baseline: of a subnet as a winner is verified, of a model file as it is."""

from __future__ import annotations

from typing import Any

from fleetnas.coordinator.campaign.baseline_row import BaselineRow
from fleetnas.coordinator.fleet.blob_server import BlobServer
from fleetnas.coordinator.fleet.task_dispatcher import REMEASURE_WAIT_S
from fleetnas.coordinator.records.campaign_identity import CampaignIdentity
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.precision import protocol_for
from fleetnas.coordinator.tuning.needed_precision import VERIFICATION
from fleetnas.coordinator.tuning.proposer import WAIT_ABOVE
from fleetnas.fleet_protocol.messages import TaskKey
from fleetnas.fleet_protocol.orders import MeasurementTask, MeasureTask, ModelTask


def order_of(
    row: BaselineRow, key: TaskKey, identity: CampaignIdentity, plan: CampaignPlan, blobs: BlobServer
) -> MeasurementTask:
    """Return the order of a prepared row; `blobs` serves the statistics of a subnet from now on.

    `pydantic.ValidationError` where the order would be out of the wire contract.
    """
    common: dict[str, Any] = {
        "task": key,
        "run_id": identity.run_id,
        "bundle": identity.bundle,
        "mirror": identity.mirror,
        "setting": row.setting_run.setting,
        "protocol": protocol_for(plan.protocol, VERIFICATION if plan.precision == "auto" else None),
        "condition": plan.conditions,
        "deadline_s": plan.deadline_s,
    }
    if plan.conditions == "cool":
        common["wait_s"] = plan.cool_s
    elif row.waits:
        common |= {"wait_s": REMEASURE_WAIT_S, "wait_above": WAIT_ABOVE}
    if row.baseline.file is not None:
        return ModelTask(model=row.baseline.file.reference, **common)
    assert row.prepared is not None
    model = row.prepared.model
    assert model is not None  # of a subnet
    calibration = blobs.add(model.calibration) if model.calibration is not None else None
    return MeasureTask(architecture=model.architecture, calibration=calibration, **common)
