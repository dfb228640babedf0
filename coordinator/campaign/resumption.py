"""Resume a stored run: searches are told the stored outcomes again, tasks under way are waited for."""

from __future__ import annotations

import numpy as np

from fleetnas.coordinator.campaign.campaign import Campaign
from fleetnas.coordinator.records.stored import Outcome, TaskRecord
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.supernet_export.spaces.base import DesignSpace


def take_up(campaign: Campaign, store: MeasurementStore, space: DesignSpace) -> None:
    """Bring a campaign that has not started to the state of the stored run of its id."""
    run_id = campaign.identity.run_id
    campaign.membership.resume()
    for device in store.devices(run_id):
        made = campaign.membership.resume_setting(device.device, device.setting, device.info)
        if made is not None:
            made.restore(device)
    # Of several attempts at one task the first outcome to arrive counted.
    counted: dict[str, Outcome] = {}
    for found in store.outcomes(run_id):
        counted.setdefault(found.key.task_id, found.outcome)
        if found.refused:
            task = found.task
            campaign.note(
                f"{task.device}/{task.setting_label}: the stored result of {task.task_id} is skipped and counts as a "
                f"failure: {found.refused}"
            )
    in_order = sorted(store.tasks(run_id), key=lambda record: int(record.task_id.rpartition(".")[2]))
    records = {record.task_id: record for record in in_order}
    for task_id in [*counted, *(task_id for task_id in records if task_id not in counted)]:
        record = records.get(task_id)
        setting_run = campaign.setting_runs.get((record.device, record.setting_label)) if record is not None else None
        if record is not None and setting_run is not None:  # settings that take no part any more were named before
            with campaign.contained(setting_run):
                campaign.restore(setting_run, record, _proposal(record, space), counted.get(task_id))


def _proposal(record: TaskRecord, space: DesignSpace) -> Proposal:
    genome: np.ndarray[tuple[int, ...], np.dtype[np.int16]] = space.encode([record.architecture])[0]
    return Proposal(
        genome=tuple(int(gene) for gene in genome),
        architecture=record.architecture,
        purpose=record.purpose,
        target_ms=record.target_ms,
        target=record.target,
        percentiles=record.asked_percentiles or (),
        predicted_ms=record.predicted_ms,
        predicted_std_ms=record.predicted_std_ms,
        predicted_accuracy=record.predicted_accuracy,
        precision=record.asked_precision,
    )
