"""One device setting of a stored run, as events and as a snapshot."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from fleetnas.coordinator.campaign.standing import known_targets_ms, stored_targets_asked
from fleetnas.coordinator.records import events
from fleetnas.coordinator.records.budget import counts_against_budget
from fleetnas.coordinator.records.data_quality import Finding, QualityTally
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.snapshot import DeviceSnapshot, DeviceState, PredictorError, TargetSnapshot
from fleetnas.coordinator.records.stored import DeviceRecord, OutcomeRecord, WinnerRecord
from fleetnas.coordinator.records.totals import unreached
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import Failed, Measurement


@dataclass
class StoredSetting:
    """Takes the stored outcomes, errors and winners of one device setting, in the order in which they were stored."""

    run_id: str
    plan: CampaignPlan
    begun_unix_s: float
    record: DeviceRecord
    measurements: int = 0
    failures: int = 0
    last: OutcomeRecord | None = None
    tally: QualityTally = field(default_factory=QualityTally)
    targets: dict[float, TargetSnapshot] = field(default_factory=dict)
    lost: bool = False
    _learned: int = 0
    _settled: set[float] = field(default_factory=set)
    #: Tasks of which an outcome was read: of several attempts the first counts.
    _known: set[str] = field(default_factory=set)
    #: First median of each subnet, ms, by its fingerprint.
    _measured_ms: dict[str, float] = field(default_factory=dict)

    @property
    def latest_s(self) -> float:
        """Time at which its latest outcome was stored, in Unix seconds."""
        return self.last.stored_unix_s if self.last is not None else self.begun_unix_s

    def take_outcome(self, found: OutcomeRecord) -> list[events.Event]:
        """Take the outcome of one attempt; returns no event for a second outcome of a task."""
        task, outcome = found.task, found.outcome
        if task.task_id in self._known:
            return []
        self._known.add(task.task_id)
        self.last = found
        self.measurements += counts_against_budget(task.purpose, task.target_ms)
        about = {
            **self._about(found.stored_unix_s),
            "task_id": task.task_id,
            "architecture": task.architecture,
            "fingerprint": task.architecture.fingerprint,
        }
        if isinstance(outcome, Failed):
            self.failures += 1
            more = {"reason": outcome.reason, "detail": outcome.detail, "failures": self.failures}
            return [events.MeasurementFailed.model_validate({**about, **more})]
        if task.purpose == "verification" and task.target_ms is not None:
            self.targets[task.target_ms] = TargetSnapshot(
                target_ms=task.target_ms,
                measured_ms=self._measured_ms.get(task.architecture.fingerprint),
                verified_ms=outcome.median_ms,
                accuracy=task.predicted_accuracy,
            )
        self._measured_ms.setdefault(task.architecture.fingerprint, outcome.median_ms)
        taken = events.MeasurementTaken.model_validate(
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
                "measurements": self.measurements,
                "budget": self.plan.budget,
            }
        )
        return [taken, *(self._found(finding, outcome) for finding in self.tally.add(outcome))]

    def _found(self, finding: Finding, measurement: Measurement) -> events.Event:
        about = self._about(self.latest_s)
        if finding == "regime_changed":
            more = {"since_s": measurement.regime_unix_s, "slowdown": measurement.slowdown}
            return events.RegimeChanged.model_validate({**about, **more})
        quality = self.tally.quality
        counts = {"slowed": quality.slowed, "measured": quality.measured, "largest_slowdown": quality.largest_slowdown}
        return events.MeasurementsSlowed.model_validate({**about, **counts})

    def take_learning(self) -> list[events.Event]:
        """The predictor's errors that were stored since the last call."""
        points = self.record.learning[self._learned :]
        self._learned += len(points)
        return [
            events.PredictorUpdated.model_validate(
                {
                    **self._about(self.latest_s),
                    "mape_percent": mape_percent,
                    "spearman": spearman,
                    "held_out": held_out,
                    "measurements": measurements,
                }
            )
            for measurements, mape_percent, spearman, held_out in points
        ]

    def take_winner(self, winner: WinnerRecord) -> list[events.Event]:
        """Take a decided target; returns no event for one that was taken before."""
        if winner.target_ms in self._settled:
            return []
        self._settled.add(winner.target_ms)
        fields = winner.fields
        reason = str(fields.get("reason") or "")
        self.targets[winner.target_ms] = TargetSnapshot(
            target_ms=winner.target_ms,
            predicted_ms=fields.get("predicted_ms"),
            measured_ms=fields.get("measured_ms"),
            verified_ms=fields.get("verified_ms"),
            accuracy=fields.get("predicted_accuracy"),
            evaluated_accuracy=fields.get("accuracy"),
            met=winner.met,
            reason=reason,
            typical_ms=fields.get("typical_ms"),
            note=str(fields.get("note") or ""),
        )
        about = {**self._about(self.latest_s), "target_ms": winner.target_ms}
        if winner.met:
            kept = ("architecture", "predicted_ms", "measured_ms", "verified_ms", "typical_ms", "accuracy", "sha256")
            values = {name: fields.get(name) for name in kept} | {"note": str(fields.get("note") or "")}
            fingerprint = Architecture.model_validate(fields["architecture"]).fingerprint
            return [events.WinnerVerified.model_validate({**about, **values, "fingerprint": fingerprint})]
        if reason.startswith("infeasible"):
            return [events.TargetInfeasible.model_validate({**about, "fastest_ms": None, "reason": reason})]
        latencies = {"verified_ms": fields.get("verified_ms"), "typical_ms": fields.get("typical_ms")}
        return [events.TargetMissed.model_validate({**about, **latencies, "final": True, "reason": reason})]

    def snapshot(self, *, run_goes_on: bool) -> DeviceSnapshot:
        """Present state of the device setting."""
        record, last = self.record, self.last
        after = last.outcome.after if last is not None and isinstance(last.outcome, Measurement) else None
        error = record.learning[-1] if record.learning else None
        return DeviceSnapshot(
            device=record.device,
            setting_label=record.setting.label,
            state=self._state(run_goes_on),
            state_detail=record.reason,
            temperature_c=after.temperature_c if after is not None else None,
            throttled=after.throttled if after is not None else None,
            measurements=self.measurements,
            budget=self.plan.budget,
            failures=self.failures,
            predictor_error=PredictorError(*error[1:]) if error is not None else None,
            targets=self._known_targets(),
            targets_asked=stored_targets_asked(record, self.plan.targets),
            targets_note=record.targets_note,
            quality=self.tally.quality,
        )

    def _state(self, run_goes_on: bool) -> DeviceState:
        if self.record.status == "finished":
            return "done"
        if self.record.status != "running":
            return self.record.status
        if not run_goes_on:
            return "idle"
        if self.last is None:
            return "waiting"
        return "verifying" if self.last.task.purpose == "verification" else "measuring"

    def _known_targets(self) -> tuple[TargetSnapshot, ...]:
        known = {target_ms: TargetSnapshot(target_ms) for target_ms in known_targets_ms(self.record, self.plan.targets)}
        targets = [target for _, target in sorted({**known, **self.targets}.items())]
        status = self.record.status
        if status == "running":
            return tuple(targets)
        return tuple(
            target if target.met is not None else replace(target, met=False, reason=unreached(status))
            for target in targets
        )

    def _about(self, at_s: float) -> dict[str, Any]:
        device, label = self.record.device, self.record.setting.label
        return {"at_s": at_s, "run_id": self.run_id, "device": device, "setting": label}
