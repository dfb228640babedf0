"""A run as the store has it: for whoever can reach the store, while the run is at work and after it has ended."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from coordinator.campaign.plan import RunSettings
from coordinator.store.records import DeviceRecord, OutcomeRecord, RunRecord, WinnerRecord
from coordinator.store.store import MeasurementStore
from coordinator.view import events
from coordinator.view.snapshot import DeviceSnapshot, PredictorError, Snapshot, TargetSnapshot
from coordinator.watching.feed import News
from fleet_protocol.architecture import Architecture
from fleet_protocol.errors import StoreUnavailableError
from fleet_protocol.messages import Failed, Measurement

_LOG_LINES = 20


@dataclass
class _Setting:
    """What was read of one device setting so far."""

    record: DeviceRecord
    measurements: int = 0
    failures: int = 0
    last: OutcomeRecord | None = None
    learned: int = 0
    lost: bool = False
    targets: dict[float, TargetSnapshot] = field(default_factory=dict)
    settled: set[float] = field(default_factory=set)


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
        self._plan = RunSettings.model_validate(self._run.settings).plan
        self._settings: dict[tuple[str, str], _Setting] = {}
        self._number = 0
        self._looked = False
        self._log: deque[str] = deque(maxlen=_LOG_LINES)

    def poll(self, timeout_s: float) -> News:
        """What is new in the store, looked at after `timeout_s`; the first time at once."""
        if self._looked:
            self._wait(timeout_s)
        try:
            # The status first: what was stored before it changed is read after it.
            self._run = self._store.run(self.run_id)
            found = self._read()
        except StoreUnavailableError as error:
            self._log.append(str(error))
            return News(snapshot=self._snapshot())
        return News(tuple(found), self._snapshot(), end=None if self._run.status == "running" else self._run.status)

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
                found += self._take_outcome(setting, outcome)
        for key, setting in self._settings.items():
            found += self._learned(*key, setting)
        for winner in self._store.winners(self.run_id):
            setting = self._settings.get((winner.device, winner.setting_label))
            if setting is not None and winner.target_ms not in setting.settled:
                setting.settled.add(winner.target_ms)
                found.append(self._settle(setting, winner))
        if self._run.status in ("complete", "partial", "failed"):
            found.append(self._finished(self._run))
        return found

    def _started(self) -> events.Event:
        return events.CampaignStarted(
            at_s=self._run.created_unix_s,
            run_id=self.run_id,
            supernet=self._run.supernet,
            supernet_sha256=self._run.bundle_sha256,
            strategy=self._plan.strategy,
            targets=self._plan.targets,
            devices=tuple(f"{device}/{label}" for device, label in self._settings),
            budget=self._plan.budget,
        )

    def _finished(self, run: RunRecord) -> events.Event:
        end_s = run.finished_unix_s or self._wall_clock()
        targets = [target for setting in self._settings.values() for target in setting.targets.values()]
        return events.CampaignFinished.model_validate(
            {
                "at_s": end_s,
                "run_id": self.run_id,
                "status": run.status,
                "targets_met": sum(target.met is True for target in targets),
                "targets": len(targets),
                "devices_lost": tuple(f"{key[0]}/{key[1]}" for key, value in self._settings.items() if value.lost),
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
            setting = self._settings[key] = _Setting(record)
        setting.record = record
        if record.status == "lost" and not setting.lost:
            setting.lost = True
            at_s = setting.last.stored_unix_s if setting.last is not None else self._run.created_unix_s
            found.append(events.DeviceLost(at_s=at_s, run_id=self.run_id, device=record.device, reason=record.reason))
        return found

    def _take_outcome(self, setting: _Setting, found: OutcomeRecord) -> list[events.Event]:
        task, outcome = found.task, found.outcome
        about = {
            "at_s": found.stored_unix_s,
            "run_id": self.run_id,
            "device": task.device,
            "setting": task.setting_label,
            "task_id": task.task_id,
            "architecture": task.architecture,
            "fingerprint": task.architecture.fingerprint,
        }
        setting.last = found
        setting.measurements += task.purpose != "verification" and task.target_ms is None
        if isinstance(outcome, Failed):
            setting.failures += 1
            more = {"reason": outcome.reason, "detail": outcome.detail, "failures": setting.failures}
            return [events.MeasurementFailed.model_validate({**about, **more})]
        if task.purpose == "verification" and task.target_ms is not None:
            setting.targets[task.target_ms] = TargetSnapshot(
                target_ms=task.target_ms,
                predicted_ms=task.predicted_ms,
                measured_ms=outcome.median_ms,
                accuracy=task.predicted_accuracy,
            )
        return [
            events.MeasurementTaken.model_validate(
                {
                    **about,
                    "purpose": task.purpose,
                    "predicted_ms": task.predicted_ms,
                    "measured_ms": outcome.median_ms,
                    "half_width_percent": outcome.half_width_percent,
                    "quality": outcome.quality,
                    "undisturbed_ms": outcome.undisturbed_ms,
                    "slowdown": outcome.slowdown,
                    "temperature_c": outcome.after.temperature_c,
                    "measurements": setting.measurements,
                    "budget": self._plan.budget,
                }
            )
        ]

    def _learned(self, device: str, label: str, setting: _Setting) -> list[events.Event]:
        points = setting.record.learning[setting.learned :]
        setting.learned += len(points)
        at_s = setting.last.stored_unix_s if setting.last is not None else self._run.created_unix_s
        return [
            events.PredictorUpdated(
                at_s=at_s,
                run_id=self.run_id,
                device=device,
                setting=label,
                mape_percent=mape_percent,
                spearman=spearman,
                held_out=held_out,
                measurements=measurements,
            )
            for measurements, mape_percent, spearman, held_out in points
        ]

    def _settle(self, setting: _Setting, winner: WinnerRecord) -> events.Event:
        fields = winner.fields
        reason = str(fields.get("reason") or "")
        setting.targets[winner.target_ms] = TargetSnapshot(
            target_ms=winner.target_ms,
            predicted_ms=fields.get("predicted_ms"),
            measured_ms=fields.get("measured_ms"),
            verified_ms=fields.get("verified_ms"),
            accuracy=fields.get("predicted_accuracy"),
            evaluated_accuracy=fields.get("accuracy"),
            met=winner.met,
            reason=reason,
        )
        about = {
            "at_s": setting.last.stored_unix_s if setting.last is not None else self._run.created_unix_s,
            "run_id": self.run_id,
            "device": winner.device,
            "setting": winner.setting_label,
            "target_ms": winner.target_ms,
        }
        if winner.met:
            kept = ("architecture", "predicted_ms", "measured_ms", "verified_ms", "accuracy", "sha256")
            values = {name: fields.get(name) for name in kept}
            fingerprint = Architecture.model_validate(fields["architecture"]).fingerprint
            return events.WinnerVerified.model_validate({**about, **values, "fingerprint": fingerprint})
        if reason.startswith("infeasible"):
            return events.TargetInfeasible.model_validate({**about, "fastest_ms": None, "reason": reason})
        return events.TargetMissed.model_validate(
            {**about, "verified_ms": fields.get("verified_ms"), "final": True, "reason": reason}
        )

    def _snapshot(self) -> Snapshot:
        running = self._run.status == "running"
        return Snapshot(
            run_id=self.run_id,
            supernet=self._run.supernet,
            started_s=self._run.created_unix_s,
            now_s=self._wall_clock() if running else self._ended_s(),
            phase=self._phase() if running else self._run.status,
            devices=tuple(self._device(setting) for setting in self._settings.values()),
            log=tuple(self._log),
        )

    def _ended_s(self) -> float:
        latest = (setting.last.stored_unix_s for setting in self._settings.values() if setting.last is not None)
        return self._run.finished_unix_s or max(latest, default=self._run.created_unix_s)

    def _phase(self) -> str:
        if not self._settings:
            return "waiting for devices"
        at_work = [setting for setting in self._settings.values() if setting.record.status == "running"]
        verifying = at_work and all(
            setting.last is not None and setting.last.task.purpose == "verification" for setting in at_work
        )
        return "verifying" if verifying else "searching"

    def _device(self, setting: _Setting) -> DeviceSnapshot:
        record, last = setting.record, setting.last
        after = last.outcome.after if last is not None and isinstance(last.outcome, Measurement) else None
        error = record.learning[-1] if record.learning else None
        verifying = last is not None and last.task.purpose == "verification"
        at_work = "verifying" if verifying else "measuring" if last is not None else "waiting"
        states = {"running": at_work, "lost": "lost", "finished": "done", "failed": "done"}
        interrupted = record.status == "running" and self._run.status != "running"
        return DeviceSnapshot(
            device=record.device,
            setting_label=record.setting.label,
            state="idle" if interrupted else states[record.status],  # type: ignore[arg-type]
            state_detail=record.reason,
            temperature_c=after.temperature_c if after is not None else None,
            throttled=after.throttled if after is not None else None,
            measurements=setting.measurements,
            budget=self._plan.budget,
            failures=setting.failures,
            predictor_error=PredictorError(*error[1:]) if error is not None else None,
            targets=tuple(self._targets(setting)),
        )

    def _targets(self, setting: _Setting) -> Sequence[TargetSnapshot]:
        known = {target_ms: TargetSnapshot(target_ms) for target_ms in self._plan.request.fixed_ms or ()}
        return [target for _, target in sorted({**known, **setting.targets}.items())]
