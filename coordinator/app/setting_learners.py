"""The predictors of a stored run's device settings, learned again from what the run measured."""

from __future__ import annotations

from collections.abc import Sequence

from fleetnas.coordinator.app.tuners import stored_priors
from fleetnas.coordinator.predictors.prior import Prior
from fleetnas.coordinator.records.outcome import DeviceOutcome
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.board_speeds import BoardSpeeds
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.tuning.setting_latency import SettingLatency
from fleetnas.supernet_export.spaces.base import DesignSpace


class SettingLearners:
    """Makes the predictor of each device setting again, from the prior that it began with."""

    def __init__(self, store: MeasurementStore, space: DesignSpace, plan: CampaignPlan, created_unix_s: float) -> None:
        """`created_unix_s` is the creation of the run: its priors are of what was stored before."""
        self._store, self._space, self._plan = store, space, plan
        self._priors = stored_priors(store, space, plan, created_unix_s, lambda note: None)
        self._designs: dict[Prior | None, InitialDesign] = {}

    def latency(self, run_id: str, device: DeviceOutcome, fleet: Sequence[DeviceOutcome] = ()) -> SettingLatency:
        """Learn the stored measurements of a device setting.

        Those of its class of equal boards, found in `fleet`, count too, restated at the speed of this board.
        """
        record = next(
            found
            for found in self._store.devices(run_id)
            if (found.device, found.setting.label) == (device.device, device.setting.label)
        )
        prior = None
        if self._priors is not None:
            prior = self._priors.prior(record.info.profile, device.setting, device.device)
        if prior not in self._designs:
            self._designs[prior] = InitialDesign(
                self._space, count=1, seed=self._plan.seed, prior=prior, bounds=self._plan.bounds
            )
        equals = [other for other in fleet if other.is_equal_board(device)]
        several = len(equals) > 1
        found = SettingLatency(self._designs[prior], BoardSpeeds(device.device) if several else None)
        for board in equals if several else (device,):
            found.observations.measured_by(board.device if several else "")
            for row in board.rows:
                if row.counted:
                    found.add(self._space.encode([row.architecture])[0], row.measurement)
        return found
