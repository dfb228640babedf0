"""Write the state of device settings and decided targets to the store, now and then.

A coordinator that is killed before a write finds the same state out again from the stored outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.coordinator.records.stored import DeviceRecord, EvaluationRecord, WinnerRecord
from fleetnas.coordinator.store.circuit_breaker import CircuitBreaker
from fleetnas.coordinator.store.store import MeasurementStore

#: Interval between two writes, and device settings that one of them stores: a thousand would hold up the agents, and
#: making their records would take a tenth of the coordinator's time.
_INTERVAL_S, _MOST_SETTINGS = 2.0, 200

RecordOf = Callable[[SettingRun], DeviceRecord]


class StateWriter:
    """Collects changed device settings and decided targets, and stores them."""

    def __init__(
        self, store: MeasurementStore, breaker: CircuitBreaker, take_evaluated: Callable[[], list[EvaluationRecord]]
    ) -> None:
        """`take_evaluated` returns the evaluations that were made since its last call."""
        self._store, self._breaker, self._take_evaluated = store, breaker, take_evaluated
        self._evaluations: list[EvaluationRecord] = []
        self._dirty_settings: dict[str, SettingRun] = {}
        self._new_settings: list[SettingRun] = []
        self._pending_winners: list[WinnerRecord] = []
        self._targets_stored = 0
        self._written_s = float("-inf")

    @property
    def targets_stored(self) -> int:
        """Number of decided targets in the store."""
        return self._targets_stored

    @property
    def is_dirty(self) -> bool:
        """Whether changes of known device settings, or decided targets, wait to be stored."""
        return bool(self._dirty_settings or self._pending_winners)

    def add_new(self, setting_runs: Iterable[SettingRun]) -> None:
        """Have new device settings stored before their first tasks."""
        self._new_settings += setting_runs

    def mark_dirty(self, setting_run: SettingRun) -> None:
        """Have the state of a device setting stored."""
        self._dirty_settings[setting_run.label] = setting_run

    def add_winner(self, winner: WinnerRecord) -> None:
        """Have a decided target stored."""
        self._pending_winners.append(winner)

    def write_new(self, record_of: RecordOf) -> None:
        """Store new device settings: a stored task without its setting could not be resumed.

        `StoreUnavailableError` keeps them waiting.
        """
        if self._new_settings:
            self._store.put_devices([record_of(setting_run) for setting_run in self._new_settings])
            self._new_settings.clear()

    def write_at_times(self, now_s: float, record_of: RecordOf) -> None:
        """Write where the last attempt is some seconds ago: of many changed settings those that have waited longest."""
        if now_s - self._written_s >= _INTERVAL_S:
            self._written_s = now_s
            self.write(record_of, _MOST_SETTINGS)

    def write(self, record_of: RecordOf, most: int | None = None) -> None:
        """Store all that waits, unless the store is unavailable; `record_of` makes the record of a setting.

        With `most`, that many changed settings are stored, and the others wait.
        """
        if not self._breaker.may_try:
            return
        with self._breaker.guard():
            chosen = dict(islice(self._dirty_settings.items(), most))
            self._store.put_devices([record_of(setting_run) for setting_run in chosen.values()])
            for label in chosen:
                self._dirty_settings.pop(label, None)
            self._evaluations += self._take_evaluated()  # before the winners, whose results tell of them
            self._store.evaluations.put(self._evaluations)
            self._evaluations.clear()
            self._store.put_winners(self._pending_winners)
            self._targets_stored += len(self._pending_winners)
            self._pending_winners.clear()
