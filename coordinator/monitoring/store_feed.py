"""Feed of a run from its store, while the run is at work and after it has ended."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable

from fleetnas.coordinator.monitoring.feed import FeedUpdate
from fleetnas.coordinator.monitoring.stored_progress import StoredProgress
from fleetnas.coordinator.monitoring.stored_setting import StoredSetting
from fleetnas.coordinator.records import events
from fleetnas.coordinator.records.plan import CampaignPlan, settings_of
from fleetnas.coordinator.records.snapshot import DeviceSnapshot, Snapshot
from fleetnas.coordinator.records.statuses import EndStatus, RunStatus, end_status
from fleetnas.coordinator.records.stored import DeviceRecord, OutcomeRecord, RunRecord, WinnerRecord
from fleetnas.coordinator.records.totals import target_totals
from fleetnas.coordinator.records.workload import Habits, Seconds
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.error_text import one_line
from fleetnas.fleet_protocol.errors import StoreUnavailableError

_LOG_LINES = 20


class StoreFeed:
    """Reads what was stored since its last poll; a `Feed`."""

    def __init__(
        self,
        store: MeasurementStore,
        run_id: str,
        *,
        wait: Callable[[float], object] = time.sleep,
        wall_clock: Callable[[], float] = time.time,
        on_outcome: Callable[[OutcomeRecord], object] = lambda _: None,
    ) -> None:
        """`on_outcome` is given each outcome once, without its raw samples.

        `UsageError`, which names the known runs, where there is no such run.
        """
        self.run_id = run_id
        self._store, self._wait, self._wall_clock, self._on_outcome = store, wait, wall_clock, on_outcome
        self._run = store.run(run_id)
        self._plan = settings_of(self._run).plan
        self._settings: dict[tuple[str, str], StoredSetting] = {}
        self._progress = StoredProgress(self._plan, self._run.created_unix_s)
        self._winners: tuple[WinnerRecord, ...] = ()
        self._number = 0
        self._looked = False
        self._fault = ""
        self._log: deque[str] = deque(maxlen=_LOG_LINES)

    def poll(self, timeout_s: float) -> FeedUpdate:
        """Return what is new in the store, read after `timeout_s` seconds; the first time at once."""
        if self._looked:
            self._wait(timeout_s)
        try:
            # The status first: what was stored before it changed is read after it.
            self._run = self._store.run(self.run_id)
            found = self._read()
        except StoreUnavailableError as error:
            self._fault = str(error)
            if not self._log or self._log[-1] != self._fault:
                self._log.append(self._fault)
            return FeedUpdate(snapshot=self._snapshot())
        self._fault = ""
        return FeedUpdate(tuple(found), self._snapshot(), end=None if self._running else self._run.status)

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def expect(self, seconds: Callable[[str, str], Seconds], habits: Habits) -> None:
        """Take what earlier runs tell of the time that measurements take; before the first poll."""
        self._progress.expect(seconds, habits)

    @property
    def run(self) -> RunRecord:
        """The run as it was stored at the last poll."""
        return self._run

    @property
    def fault(self) -> str:
        """Why the store could not be read at the last poll; empty where it could."""
        return self._fault

    @property
    def plan(self) -> CampaignPlan:
        """What the user asked for."""
        return self._plan

    @property
    def records(self) -> tuple[DeviceRecord, ...]:
        """The device settings as they were stored at the last poll."""
        return tuple(setting.record for setting in self._settings.values())

    @property
    def winners(self) -> tuple[WinnerRecord, ...]:
        """The decided targets as they were stored at the last poll."""
        return self._winners

    @property
    def _running(self) -> bool:
        return self._run.status is RunStatus.RUNNING

    def _read(self) -> list[events.Event]:
        found: list[events.Event] = []
        for record in self._store.devices(self.run_id):
            found += self._take_device(record)
        if not self._looked and self._settings:
            self._looked = True
            found.insert(0, self._started())
        for outcome in self._store.outcome_table.without_samples(self.run_id, after=self._number):
            self._number = outcome.number
            self._on_outcome(outcome)
            setting = self._settings.get((outcome.task.device, outcome.task.setting_label))
            if setting is not None:
                found += setting.take_outcome(outcome)
                self._progress.observe(outcome.stored_unix_s, [setting])
        self._take_together()
        for setting in self._settings.values():
            found += setting.take_learning()
        self._winners = tuple(self._store.winners(self.run_id))
        for winner in self._winners:
            setting = self._settings.get((winner.device, winner.setting_label))
            if setting is not None:
                found += self._take_winner(setting, winner)
        if self._plan.baselines:
            for baseline in self._store.baselines.of_run(self.run_id):
                setting = self._settings.get((baseline.device, baseline.setting_label))
                if setting is not None:
                    found += setting.take_baseline(baseline)
        ended = end_status(self._run.status)
        if ended is not None:
            found.append(self._finished(ended))
        return found

    def _take_together(self) -> None:
        """Give every device setting the number of first measurements of its class of equal boards."""
        together: Counter[tuple[str, str]] = Counter()
        for setting in self._settings.values():
            together[_class_of(setting)] += setting.measurements
        for setting in self._settings.values():
            setting.take_together(together[_class_of(setting)])

    def _take_winner(self, setting: StoredSetting, winner: WinnerRecord) -> list[events.Event]:
        """Take a decided target; one that is damaged costs its event and a line."""
        try:
            return setting.take_winner(winner)
        except ValueError as error:
            self._log.append(one_line(error))
            return []

    def _started(self) -> events.Event:
        return events.CampaignStarted(
            at_s=self._run.created_unix_s,
            run_id=self.run_id,
            supernet=self._run.supernet,
            supernet_sha256=self._run.bundle_sha256,
            strategy=self._plan.method,
            targets=self._plan.targets_text,
            devices=tuple(f"{device}/{label}" for device, label in self._settings),
            budget=self._plan.budget,
            subnets=tuple(architecture.fingerprint for architecture in self._plan.architectures),
        )

    def _finished(self, status: EndStatus) -> events.Event:
        end_s = self._run.finished_unix_s or self._wall_clock()
        devices = self._devices()
        totals = target_totals(devices)
        return events.CampaignFinished(
            at_s=end_s,
            run_id=self.run_id,
            status=status,
            targets_met=totals.met,
            targets=totals.asked,
            devices_lost=tuple(device.label for device in devices if device.state == "lost"),
            devices_failed=tuple(device.label for device in devices if device.state == "failed"),
            devices_slowed=tuple(device.label for device in devices if device.quality.often_slowed),
            elapsed_s=max(0.0, end_s - self._run.created_unix_s),
            without_target=totals.without_target,
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
            self._progress.observe(self._run.created_unix_s, [setting])
        return found + setting.take_record(record)

    def _snapshot(self) -> Snapshot:
        running, devices = self._running, self._devices()
        now_s = self._wall_clock() if running else self._ended_s()
        progress = None
        # The time that is left is that of the searches: of baselines it is not known.
        if self._run.status is not RunStatus.INTERRUPTED and not (running and self._searched):
            progress = self._progress.progress(now_s, self._settings.values(), devices, ended=not running)
        return Snapshot(
            run_id=self.run_id,
            supernet=self._run.supernet,
            started_s=self._run.created_unix_s,
            now_s=now_s,
            phase=self._phase() if running else str(self._run.status),
            devices=devices,
            log=tuple(self._log),
            progress=progress,
        )

    @property
    def _searched(self) -> bool:
        """Whether the search of every device setting has ended."""
        return bool(self._settings) and not any(setting.running for setting in self._settings.values())

    def _devices(self) -> tuple[DeviceSnapshot, ...]:
        return tuple(setting.snapshot(run_goes_on=self._running) for setting in self._settings.values())

    def _ended_s(self) -> float:
        latest = max((setting.latest_s for setting in self._settings.values()), default=self._run.created_unix_s)
        return self._run.finished_unix_s or latest

    def _phase(self) -> str:
        if not self._settings:
            return "waiting for devices"
        if self._searched:
            return "measuring baselines" if self._plan.baselines else "finished"
        at_work = [setting for setting in self._settings.values() if setting.running]
        return "verifying" if at_work and all(setting.verifying for setting in at_work) else "searching"


def _class_of(setting: StoredSetting) -> tuple[str, str]:
    """Return what the settings of one class of equal boards share; a board alone is its own class."""
    board = setting.record.board
    return ("class " + board.class_name if board is not None else setting.device, setting.setting.label)
