"""A run as the store has it: for whoever can reach the store, while the run is at work and after it has ended."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from fleetnas.coordinator.monitoring.feed import FeedUpdate
from fleetnas.coordinator.monitoring.stored_setting import StoredSetting
from fleetnas.coordinator.records import events
from fleetnas.coordinator.records.plan import settings_of
from fleetnas.coordinator.records.snapshot import DeviceSnapshot, Snapshot
from fleetnas.coordinator.records.stored import DeviceRecord, RunRecord
from fleetnas.coordinator.records.totals import target_totals
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import StoreUnavailableError

_LOG_LINES = 20


class StoreFeed:
    """Reads what was stored since it looked last; a `Feed`."""

    def __init__(
        self,
        store: MeasurementStore,
        run_id: str,
        *,
        wait: Callable[[float], object] = time.sleep,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`UsageError`, which names the known runs, where there is no such run."""
        self.run_id = run_id
        self._store, self._wait, self._wall_clock = store, wait, wall_clock
        self._run = store.run(run_id)
        self._plan = settings_of(self._run).plan
        self._settings: dict[tuple[str, str], StoredSetting] = {}
        self._number = 0
        self._looked = False
        self._log: deque[str] = deque(maxlen=_LOG_LINES)

    def poll(self, timeout_s: float) -> FeedUpdate:
        """What is new in the store, looked at after `timeout_s`; the first time at once."""
        if self._looked:
            self._wait(timeout_s)
        try:
            # The status first: what was stored before it changed is read after it.
            self._run = self._store.run(self.run_id)
            found = self._read()
        except StoreUnavailableError as error:
            self._log.append(str(error))
            return FeedUpdate(snapshot=self._snapshot())
        return FeedUpdate(
            tuple(found), self._snapshot(), end=None if self._run.status == "running" else self._run.status
        )

    def close(self) -> None:
        """Let go of the store."""
        self._store.close()

    def _read(self) -> list[events.Event]:
        found: list[events.Event] = []
        for record in self._store.devices(self.run_id):
            found += self._take_device(record)
        if not self._looked and self._settings:
            self._looked = True
            found.insert(0, self._started())
        for outcome in self._store.outcomes(self.run_id, after=self._number):
            self._number = outcome.number
            setting = self._settings.get((outcome.task.device, outcome.task.setting_label))
            if setting is not None:
                found += setting.take_outcome(outcome)
        for setting in self._settings.values():
            found += setting.take_learning()
        for winner in self._store.winners(self.run_id):
            setting = self._settings.get((winner.device, winner.setting_label))
            if setting is not None:
                found += setting.take_winner(winner)
        if self._run.status in ("complete", "partial", "failed"):
            found.append(self._finished(self._run))
        return found

    def _started(self) -> events.Event:
        return events.CampaignStarted(
            at_s=self._run.created_unix_s,
            run_id=self.run_id,
            supernet=self._run.supernet,
            supernet_sha256=self._run.bundle_sha256,
            strategy=self._plan.strategy.value,
            targets=str(self._plan.targets),
            devices=tuple(f"{device}/{label}" for device, label in self._settings),
            budget=self._plan.budget,
        )

    def _finished(self, run: RunRecord) -> events.Event:
        end_s = run.finished_unix_s or self._wall_clock()
        devices = self._devices()
        totals = target_totals(devices)
        return events.CampaignFinished.model_validate(
            {
                "at_s": end_s,
                "run_id": self.run_id,
                "status": run.status,
                "targets_met": totals.met,
                "targets": totals.asked,
                "devices_lost": tuple(device.label for device in devices if device.state == "lost"),
                "devices_failed": tuple(device.label for device in devices if device.state == "failed"),
                "devices_slowed": tuple(device.label for device in devices if device.quality.often_slowed),
                "elapsed_s": max(0.0, end_s - run.created_unix_s),
            }
        )

    def _take_device(self, record: DeviceRecord) -> list[events.Event]:
        key = (record.device, record.setting.label)
        setting = self._settings.get(key)
        found: list[events.Event] = []
        if setting is None:
            if self._looked and not any(device == record.device for device, _ in self._settings):
                found.append(
                    events.DeviceJoined(
                        at_s=self._wall_clock(),
                        run_id=self.run_id,
                        device=record.device,
                        model=record.info.profile.model,
                        settings=tuple(each.label for each in record.info.settings),
                    )
                )
            setting = StoredSetting(self.run_id, self._plan, self._run.created_unix_s, record)
            self._settings[key] = setting
        setting.record = record
        if record.status == "lost" and not setting.lost:
            setting.lost = True
            found.append(
                events.DeviceLost(at_s=setting.latest_s, run_id=self.run_id, device=record.device, reason=record.reason)
            )
        return found

    def _snapshot(self) -> Snapshot:
        running = self._run.status == "running"
        return Snapshot(
            run_id=self.run_id,
            supernet=self._run.supernet,
            started_s=self._run.created_unix_s,
            now_s=self._wall_clock() if running else self._ended_s(),
            phase=self._phase() if running else self._run.status,
            devices=self._devices(),
            log=tuple(self._log),
        )

    def _devices(self) -> tuple[DeviceSnapshot, ...]:
        running = self._run.status == "running"
        return tuple(setting.snapshot(run_goes_on=running) for setting in self._settings.values())

    def _ended_s(self) -> float:
        latest = max((setting.latest_s for setting in self._settings.values()), default=self._run.created_unix_s)
        return self._run.finished_unix_s or latest

    def _phase(self) -> str:
        if not self._settings:
            return "waiting for devices"
        at_work = [setting for setting in self._settings.values() if setting.record.status == "running"]
        verifying = at_work and all(
            setting.last is not None and setting.last.task.purpose == "verification" for setting in at_work
        )
        return "verifying" if verifying else "searching"
