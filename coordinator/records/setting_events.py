"""Events of one device setting, from the records that they are about: the same for a live and for a stored run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fleetnas.coordinator.records import events
from fleetnas.coordinator.records.baselines import BaselineRecord
from fleetnas.coordinator.records.data_quality import DataQuality, Finding
from fleetnas.coordinator.records.predictor_error import PredictorPoint
from fleetnas.coordinator.records.stored import TaskRecord, WinnerRecord
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.records.targets import target_name
from fleetnas.fleet_protocol.messages import Failed, Measurement


@dataclass(frozen=True)
class SettingEvents:
    """Makes the events of one device setting. `at_s` is a time in Unix seconds."""

    run_id: str
    device: str
    setting: str
    """Label of the runtime setting."""

    def failed(self, at_s: float, task: TaskRecord, outcome: Failed, failures: int) -> events.MeasurementFailed:
        """Return the event of a failed measurement; `failures` counts the ones of the device setting so far."""
        return events.MeasurementFailed(
            at_s=at_s,
            run_id=self.run_id,
            device=self.device,
            setting=self.setting,
            task_id=task.task_id,
            architecture=task.architecture,
            fingerprint=task.architecture.fingerprint,
            reason=outcome.reason,
            detail=outcome.detail,
            failures=failures,
        )

    def measured(
        self, at_s: float, task: TaskRecord, outcome: Measurement, measurements: int, budget: int
    ) -> events.MeasurementTaken:
        """Return the event of a measurement; `measurements` are the ones so far that count against `budget`."""
        return events.MeasurementTaken(
            at_s=at_s,
            run_id=self.run_id,
            device=self.device,
            setting=self.setting,
            task_id=task.task_id,
            purpose=task.purpose,
            architecture=task.architecture,
            fingerprint=task.architecture.fingerprint,
            predicted_ms=task.predicted_ms,
            measured_ms=outcome.median_ms,
            half_width_percent=outcome.half_width_percent,
            quality=outcome.quality,
            undisturbed_ms=outcome.undisturbed_ms,
            slowdown=outcome.slowdown,
            temperature_c=outcome.after.temperature_c,
            measurements=measurements,
            budget=budget,
        )

    def findings(
        self, at_s: float, findings: Iterable[Finding], outcome: Measurement, quality: DataQuality
    ) -> list[events.Event]:
        """Return the events of a measurement's findings about its device; `quality` includes that measurement."""
        found: list[events.Event] = []
        for finding in findings:
            if finding == "regime_changed":
                found.append(
                    events.RegimeChanged(
                        at_s=at_s,
                        run_id=self.run_id,
                        device=self.device,
                        setting=self.setting,
                        since_s=outcome.regime_unix_s,
                        slowdown=outcome.slowdown,
                    )
                )
            else:
                found.append(
                    events.MeasurementsSlowed(
                        at_s=at_s,
                        run_id=self.run_id,
                        device=self.device,
                        setting=self.setting,
                        slowed=quality.slowed,
                        measured=quality.measured,
                        largest_slowdown=quality.largest_slowdown,
                    )
                )
        return found

    def learned(self, at_s: float, point: PredictorPoint) -> events.PredictorUpdated:
        """Return the event of a changed held-out error of the predictor."""
        return events.PredictorUpdated(
            at_s=at_s,
            run_id=self.run_id,
            device=self.device,
            setting=self.setting,
            mape_percent=point.error.mape_percent,
            spearman=point.error.spearman,
            held_out=point.error.held_out,
            transfer_weight=point.error.transfer_weight,
            measurements=point.measurements,
        )

    def missed(
        self,
        at_s: float,
        target_ms: float | None,
        verified_ms: float | None,
        typical_ms: float | None,
        *,
        reason: str,
        final: bool,
        subnet: str = "",
        target: str = "",
    ) -> events.TargetMissed:
        """Return the event of a missed target; `final`: no further subnet will be tried."""
        return events.TargetMissed(
            at_s=at_s,
            run_id=self.run_id,
            device=self.device,
            setting=self.setting,
            target_ms=target_ms,
            verified_ms=verified_ms,
            typical_ms=typical_ms,
            final=final,
            reason=reason,
            subnet=subnet,
            target=target,
        )

    def decided(self, at_s: float, winner: WinnerRecord, fastest_ms: float | None = None) -> events.Event:
        """Return the event of a decided target; `fastest_ms` is the latency of the fastest subnet found.

        Raises:
            ValueError: the winner of a target that is met lacks its architecture, latency or hash.
        """
        if winner.status is TargetStatus.INFEASIBLE:
            return events.TargetInfeasible(
                at_s=at_s,
                run_id=self.run_id,
                device=self.device,
                setting=self.setting,
                target_ms=winner.target_ms,
                target=winner.target,
                fastest_ms=fastest_ms,
                reason=winner.reason,
            )
        if winner.status is not TargetStatus.MET:
            return self.missed(
                at_s,
                winner.target_ms,
                winner.verified_ms,
                winner.typical_ms,
                reason=winner.reason,
                final=True,
                subnet=winner.subnet,
                target=winner.target,
            )
        if winner.architecture is None or winner.verified_ms is None or winner.sha256 is None:
            name = target_name(winner.target_ms, winner.subnet, winner.target)
            raise ValueError(
                f"the winner of {self.device}/{self.setting} for {name} has no architecture, latency or hash"
            )
        return events.WinnerVerified(
            at_s=at_s,
            run_id=self.run_id,
            device=self.device,
            setting=self.setting,
            target_ms=winner.target_ms,
            architecture=winner.architecture,
            fingerprint=winner.architecture.fingerprint,
            predicted_ms=winner.predicted_ms,
            measured_ms=winner.measured_ms,
            verified_ms=winner.verified_ms,
            typical_ms=winner.typical_ms,
            accuracy=winner.accuracy,
            sha256=winner.sha256,
            note=winner.note,
            subnet=winner.subnet,
            target=winner.target,
            value=winner.value,
            value_high=winner.value_high,
        )

    def baseline(self, at_s: float, record: BaselineRecord) -> events.BaselineMeasured:
        """Return the event of a baseline with nothing left to measure."""
        measured = record.measurement
        return events.BaselineMeasured(
            at_s=at_s,
            run_id=self.run_id,
            device=self.device,
            setting=self.setting,
            baseline=record.baseline,
            measured_ms=measured.median_ms if measured is not None else None,
            half_width_percent=measured.half_width_percent if measured is not None else None,
            quality=measured.quality if measured is not None else None,
            reason=record.reason,
        )
