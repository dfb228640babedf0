"""A simulated device whose winners are the coordinator's real files."""

from __future__ import annotations

from fleetnas.coordinator.campaign.winner_builder import BundleWinnerBuilder
from fleetnas.fleet_protocol.messages import Measurement, RuntimeSetting
from fleetnas.fleet_protocol.orders import MeasureTask
from rigs.simulated_fleet import HiddenDevice, measurement


class MeasuringDevice(HiddenDevice):
    """Says of each winner that it measured the coordinator's own file of it."""

    def __init__(self, models: BundleWinnerBuilder, setting: RuntimeSetting) -> None:
        super().__init__(seed=1)
        self._models, self._setting = models, setting

    def measure(self, task: MeasureTask, finished_unix_s: float) -> Measurement:
        found = super().measure(task, finished_unix_s)
        if task.calibration is None:
            return found
        file = self._models.calibrate(task.architecture, self._setting)
        return measurement(found.median_ms, file.sha256, finished_unix_s)
