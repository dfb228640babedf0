"""The record that the store keeps of a decided target."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.coordinator.records.bounds import subnet_costs
from fleetnas.coordinator.records.stored import WinnerRecord
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.tuning.target_state import TargetState
from fleetnas.supernet_export.spaces.base import DesignSpace


def winner_record(setting_run: SettingRun, state: TargetState) -> WinnerRecord:
    """Return the record of a target as its search has it now."""
    status = state.status
    accuracy, images = setting_run.accuracy_of(state.architecture if status is TargetStatus.MET else None)
    costs = winner_costs(setting_run.search.space, state.genome.tobytes()) if state.genome is not None else {}
    return WinnerRecord(
        run_id=setting_run.run_id,
        device=setting_run.device,
        setting_label=setting_run.setting.label,
        target_ms=state.asked_ms,
        status=status,
        architecture=state.architecture,
        predicted_ms=state.predicted_ms,
        measured_ms=state.measured_ms,
        verified_ms=state.verified_ms,
        typical_ms=state.typical_ms,
        predicted_accuracy=state.accuracy,
        accuracy=accuracy,
        accuracy_images=images,
        parameters=costs.get("parameters"),
        macs=costs.get("macs"),
        peak_activation_bytes=costs.get("peak_activation_bytes"),
        sha256=state.sha256,
        reason=state.reason,
        note=state.note,
        subnet=state.subnet,
        target=state.text,
        value=state.shown.value,
        value_low=state.shown.low,
        value_high=state.shown.high,
        typical_value=state.shown.typical,
    )


@lru_cache(maxsize=4096)
def winner_costs(space: DesignSpace, genome: bytes) -> dict[str, int]:
    """Return parameters, multiply-accumulates and peak activation bytes of a subnet.

    They are cached, as devices of a fleet often end with the same subnets.
    """
    found = subnet_costs(space, np.frombuffer(genome, dtype=np.int16)[None])
    return {name: round(float(found[name][0])) for name in ("parameters", "macs", "peak_activation_bytes")}
