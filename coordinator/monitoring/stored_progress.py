"""Progress of a stored run and the time that it has left, by the rules of the campaign itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from fleetnas.coordinator.campaign.progress_tracker import ProgressTracker, SettingWork
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.run_progress import RunProgress
from fleetnas.coordinator.records.snapshot import DeviceSnapshot
from fleetnas.coordinator.records.workload import Habits, Seconds

#: Without an outcome for so long, seconds, a run was interrupted: that time is no work.
_BREAK_S = 600.0


class StoredProgress:
    """Follows the outcomes of a run in the order in which they were stored. Times are Unix seconds."""

    def __init__(self, plan: CampaignPlan, began_unix_s: float) -> None:
        self._tracker = ProgressTracker(plan)
        self._latest_s, self._breaks_s = began_unix_s, 0.0

    def expect(self, seconds: Callable[[str, str], Seconds], habits: Habits) -> None:
        """Take what earlier runs tell: the seconds of a setting by device and label, and the habits of searches."""
        self._tracker.expect(seconds, habits)

    def observe(self, at_unix_s: float, settings: Collection[SettingWork]) -> None:
        """Note the device settings to which an outcome was added, or which joined, at that time."""
        self._tracker.observe(self._worked_until(at_unix_s), settings)

    def progress(
        self, now_unix_s: float, settings: Collection[SettingWork], devices: Sequence[DeviceSnapshot], *, ended: bool
    ) -> RunProgress | None:
        """Return how far the run is; `devices` are the snapshots of the settings, in their order."""
        since_s = max(0.0, now_unix_s - self._latest_s)
        return self._tracker.progress(
            self._latest_s - self._breaks_s + min(since_s, _BREAK_S), settings, devices, ended=ended
        )

    def _worked_until(self, at_unix_s: float) -> float:
        """Return the time on a clock that stands still during breaks."""
        since_s = max(0.0, at_unix_s - self._latest_s)
        if since_s > _BREAK_S:
            self._breaks_s += since_s
        self._latest_s = max(self._latest_s, at_unix_s)
        return self._latest_s - self._breaks_s
