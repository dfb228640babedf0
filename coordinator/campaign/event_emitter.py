"""Emit the events of a campaign, for views and for `--json`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.coordinator.fleet.task import Task
from fleetnas.coordinator.records import events
from fleetnas.coordinator.records.campaign_identity import CampaignIdentity
from fleetnas.coordinator.records.data_quality import Finding
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.stored import Outcome
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.records.totals import TargetTotals
from fleetnas.coordinator.tuning.target_state import TargetState
from fleetnas.fleet_protocol.messages import AgentInfo, Failed, Measurement


class EventEmitter:
    """Makes the events of one run and hands them to `sink`."""

    def __init__(self, run_id: str, wall_clock: Callable[[], float], sink: Callable[[events.Event], None]) -> None:
        self._run_id, self._now, self._sink = run_id, wall_clock, sink

    # -- the campaign ------------------------------------------------------------------------------------------

    def started(
        self, setting_runs: Sequence[SettingRun], identity: CampaignIdentity, plan: CampaignPlan, *, resumed: bool
    ) -> None:
        """Emit that the campaign begins with these device settings."""
        self._sink(
            events.CampaignStarted(
                at_s=self._now(),
                run_id=self._run_id,
                supernet=identity.supernet,
                supernet_sha256=identity.bundle.sha256,
                strategy=plan.strategy,
                targets=plan.targets,
                devices=tuple(setting_run.label for setting_run in setting_runs),
                budget=plan.budget,
                resumed=resumed,
            )
        )

    def finished(
        self,
        setting_runs: Sequence[SettingRun],
        status: Literal["complete", "partial", "failed"],
        *,
        totals: TargetTotals,
        elapsed_s: float,
        results: str | None,
    ) -> None:
        """Emit that the campaign is over; `results` is the path of its results."""
        self._sink(
            events.CampaignFinished(
                at_s=self._now(),
                run_id=self._run_id,
                status=status,
                targets_met=totals.met,
                targets=totals.asked,
                devices_lost=tuple(one.label for one in setting_runs if one.status == "lost"),
                devices_failed=tuple(one.label for one in setting_runs if one.status == "failed"),
                devices_slowed=tuple(one.label for one in setting_runs if one.tally.quality.often_slowed),
                elapsed_s=elapsed_s,
                results=results,
            )
        )

    def joined(self, info: AgentInfo) -> None:
        """Emit that an agent takes part."""
        labels = tuple(setting.label for setting in info.settings)
        self._sink(
            events.DeviceJoined(
                at_s=self._now(), run_id=self._run_id, device=info.agent, model=info.profile.model, settings=labels
            )
        )

    def lost(self, device: str, reason: str, silent_for_s: float | None) -> None:
        """Emit that an agent is given up; it sent nothing for `silent_for_s`, or nothing ever (None)."""
        now = self._now()
        last_seen_s = None if silent_for_s is None else now - silent_for_s
        self._sink(
            events.DeviceLost(at_s=now, run_id=self._run_id, device=device, reason=reason, last_seen_s=last_seen_s)
        )

    def store_unavailable(self, reason: str) -> None:
        """Emit that the store cannot be written."""
        self._sink(events.StoreUnavailable(at_s=self._now(), run_id=self._run_id, reason=reason))

    def store_available(self, away_s: float) -> None:
        """Emit that the store can be written again, after `away_s` seconds."""
        self._sink(events.StoreAvailable(at_s=self._now(), run_id=self._run_id, away_s=away_s))

    # -- measurements ------------------------------------------------------------------------------------------

    def outcome(self, setting_run: SettingRun, task: Task, outcome: Outcome, measurements: int, budget: int) -> None:
        """Emit that a measurement or a failure was stored."""
        record = task.record
        if isinstance(outcome, Failed):
            self._sink(
                events.MeasurementFailed(
                    at_s=self._now(),
                    run_id=self._run_id,
                    device=setting_run.device,
                    setting=setting_run.setting.label,
                    task_id=record.task_id,
                    architecture=record.architecture,
                    fingerprint=record.architecture.fingerprint,
                    reason=outcome.reason,
                    detail=outcome.detail,
                    failures=setting_run.failures,
                )
            )
            return
        self._sink(
            events.MeasurementTaken(
                at_s=self._now(),
                run_id=self._run_id,
                device=setting_run.device,
                setting=setting_run.setting.label,
                task_id=record.task_id,
                architecture=record.architecture,
                fingerprint=record.architecture.fingerprint,
                purpose=record.purpose,
                predicted_ms=record.predicted_ms,
                measured_ms=outcome.median_ms,
                half_width_percent=outcome.half_width_percent,
                quality=outcome.quality,
                undisturbed_ms=outcome.undisturbed_ms,
                slowdown=outcome.slowdown,
                temperature_c=outcome.after.temperature_c,
                measurements=measurements,
                budget=budget,
            )
        )

    def found(self, setting_run: SettingRun, outcome: Outcome, findings: Sequence[Finding]) -> None:
        """Emit findings of a measurement about its device."""
        if not isinstance(outcome, Measurement):
            return
        device, setting = setting_run.device, setting_run.setting.label
        if "regime_changed" in findings:
            self._sink(
                events.RegimeChanged(
                    at_s=self._now(),
                    run_id=self._run_id,
                    device=device,
                    setting=setting,
                    since_s=outcome.regime_unix_s,
                    slowdown=outcome.slowdown,
                )
            )
        if "often_slowed" in findings:
            quality = setting_run.tally.quality
            self._sink(
                events.MeasurementsSlowed(
                    at_s=self._now(),
                    run_id=self._run_id,
                    device=device,
                    setting=setting,
                    slowed=quality.slowed,
                    measured=quality.measured,
                    largest_slowdown=quality.largest_slowdown,
                )
            )

    def learned(self, setting_run: SettingRun) -> None:
        """Emit that the predictor's held-out error changed."""
        measurements, mape_percent, spearman, held_out = setting_run.learning[-1]
        self._sink(
            events.PredictorUpdated(
                at_s=self._now(),
                run_id=self._run_id,
                device=setting_run.device,
                setting=setting_run.setting.label,
                mape_percent=mape_percent,
                spearman=spearman,
                held_out=held_out,
                measurements=measurements,
            )
        )

    # -- targets -----------------------------------------------------------------------------------------------

    def chosen(self, setting_run: SettingRun, state: TargetState) -> None:
        """Emit that a target's best subnet is about to be verified."""
        assert state.architecture is not None
        assert state.measured_ms is not None
        self._sink(
            events.TargetResolved(
                at_s=self._now(),
                run_id=self._run_id,
                device=setting_run.device,
                setting=setting_run.setting.label,
                target_ms=state.target_ms,
                architecture=state.architecture,
                fingerprint=state.architecture.fingerprint,
                predicted_ms=state.predicted_ms,
                measured_ms=state.measured_ms,
                accuracy=state.accuracy,
            )
        )

    def judged(self, setting_run: SettingRun, state: TargetState) -> None:
        """Emit that a verification was made, or that a target is decided."""
        if state.status is TargetStatus.MET:
            self._met(setting_run, state)
        elif state.status is TargetStatus.INFEASIBLE:
            self._sink(
                events.TargetInfeasible(
                    at_s=self._now(),
                    run_id=self._run_id,
                    device=setting_run.device,
                    setting=setting_run.setting.label,
                    target_ms=state.target_ms,
                    fastest_ms=setting_run.search.fastest_ms,
                    reason=state.reason,
                )
            )
        else:
            self._sink(
                events.TargetMissed(
                    at_s=self._now(),
                    run_id=self._run_id,
                    device=setting_run.device,
                    setting=setting_run.setting.label,
                    target_ms=state.target_ms,
                    verified_ms=state.verified_ms,
                    typical_ms=state.typical_ms,
                    final=state.status is TargetStatus.MISSED,
                    reason=state.reason,
                )
            )

    def _met(self, setting_run: SettingRun, state: TargetState) -> None:
        assert state.architecture is not None
        assert state.verified_ms is not None
        assert state.sha256 is not None
        self._sink(
            events.WinnerVerified(
                at_s=self._now(),
                run_id=self._run_id,
                device=setting_run.device,
                setting=setting_run.setting.label,
                target_ms=state.target_ms,
                architecture=state.architecture,
                fingerprint=state.architecture.fingerprint,
                predicted_ms=state.predicted_ms,
                measured_ms=state.measured_ms,
                verified_ms=state.verified_ms,
                typical_ms=state.typical_ms,
                accuracy=setting_run.accuracy_of(state.architecture)[0],
                sha256=state.sha256,
                note=state.note,
            )
        )
