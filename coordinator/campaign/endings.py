"""End device settings: finished, lost or failed, with an exception in one of them contained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from fleetnas.coordinator.campaign.event_emitter import EventEmitter
from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.coordinator.campaign.state_writer import StateWriter
from fleetnas.coordinator.campaign.winner_record import winner_record
from fleetnas.coordinator.fleet.registry import FleetRegistry
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.records.stored import DeviceRecord
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.records.targets import target_name
from fleetnas.fleet_protocol.error_text import one_line
from fleetnas.fleet_protocol.errors import FleetnasError

_log = logging.getLogger("fleetnas.coordinator")


class SettingEndings:
    """Ends device settings and stores their decided targets."""

    def __init__(
        self,
        writer: StateWriter,
        events: EventEmitter,
        registry: FleetRegistry,
        clock: Callable[[], float],
        note: Callable[[str], None],
    ) -> None:
        self._writer, self._events, self._registry = writer, events, registry
        self._clock, self._note = clock, note

    @contextmanager
    def contained(self, setting_run: SettingRun) -> Iterator[None]:
        """Run a block about one device setting: an exception in it ends that setting, and the others go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - contained to its device setting, with the trace in the log
            self.give_up(setting_run, error)

    def give_up(self, setting_run: SettingRun, error: Exception) -> None:
        """End a device setting whose search raised an exception; the trace of an unexpected one is in the log."""
        reason = f"its search failed: {one_line(error)}"
        if not isinstance(error, FleetnasError):
            _log.error("%s is given up: its search failed", setting_run.label, exc_info=error)
            reason = f"its search failed ({one_line(error)}); the log has the trace"
        setting_run.break_down(reason)
        if setting_run.status is SettingStatus.RUNNING:
            self.close(setting_run, SettingStatus.FAILED, reason)

    def close(self, setting_run: SettingRun, status: SettingStatus, reason: str) -> None:
        """End a device setting; its decided targets are kept."""
        self.settle(setting_run, at_once=True)
        setting_run.close(status, reason)
        self._writer.mark_dirty(setting_run)
        if status is SettingStatus.LOST:
            entry = self._registry.agents.get(setting_run.device)
            seen_s = entry.last_seen_s if entry is not None else None
            self._events.lost(setting_run.device, reason, None if seen_s is None else self._clock() - seen_s)
        elif status is SettingStatus.FAILED:
            self._note(f"{setting_run.label} is given up: {reason}")

    def suspend(self, setting_runs: Iterable[SettingRun], reason: str) -> None:
        """Keep the decided targets of device settings that are stopped before their end, and can be resumed."""
        for setting_run in setting_runs:
            self.settle(setting_run, at_once=True)
            setting_run.suspend(reason)
            self._writer.mark_dirty(setting_run)

    def settle(self, setting_run: SettingRun, *, at_once: bool = False) -> None:
        """Store and announce decided targets, winners with their accuracy; `at_once`: without one not evaluated yet."""
        decided = (
            [state for state in setting_run.search.targets if state.status is not TargetStatus.OPEN]
            if at_once
            else setting_run.search.decided
        )
        for state in decided:
            pending = state.architecture is not None and state.architecture.fingerprint in setting_run.evaluations
            if (at_once or not pending) and setting_run.settle(state):
                try:
                    winner = winner_record(setting_run, state)
                    self._writer.add_winner(winner)
                    self._events.decided(setting_run, winner)
                except Exception as error:  # noqa: BLE001 - costs this target alone: the setting keeps its others
                    name = target_name(state.asked_ms, state.subnet, state.text)
                    _log.error("%s: %s is lost", setting_run.label, name, exc_info=error)
                    self._note(f"{setting_run.label}: {name} is lost: {one_line(error)}")

    def record_of(self, setting_run: SettingRun) -> DeviceRecord:
        """Return the record of a device setting; where it cannot be computed, the setting is given up first."""
        with self.contained(setting_run):
            return setting_run.to_record()
        return setting_run.to_record()  # given up: nothing is computed any more
