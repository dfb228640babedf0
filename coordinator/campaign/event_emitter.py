"""What the campaign says aloud: its happenings as the events that views and `--json` show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from fleetnas.coordinator.campaign.setting_run import SettingRun, SettingTask
from fleetnas.coordinator.records import events
from fleetnas.coordinator.records.data_quality import Finding
from fleetnas.coordinator.records.stored import Outcome
from fleetnas.coordinator.records.totals import TargetTotals
from fleetnas.coordinator.tuning.proposal import TargetState
from fleetnas.fleet_protocol.messages import AgentInfo, Failed


class EventEmitter:
    """Turns happenings of one run into events for `sink`."""

    def __init__(self, run_id: str, wall_clock: Callable[[], float], sink: Callable[[events.Event], None]) -> None:
        self._run_id, self._wall_clock, self._sink = run_id, wall_clock, sink

    def started(
        self,
        setting_runs: Sequence[SettingRun],
        *,
        supernet: str,
        supernet_sha256: str,
        strategy: str,
        targets: str,
        budget: int,
        resumed: bool,
    ) -> None:
        """The campaign begins with these device settings."""
        self._say(
            events.CampaignStarted,
            supernet=supernet,
            supernet_sha256=supernet_sha256,
            strategy=strategy,
            targets=targets,
            devices=tuple(setting_run.label for setting_run in setting_runs),
            budget=budget,
            resumed=resumed,
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
        """The campaign is over."""
        self._say(
            events.CampaignFinished,
            status=status,
            targets_met=totals.met,
            targets=totals.asked,
            devices_lost=tuple(setting_run.label for setting_run in setting_runs if setting_run.status == "lost"),
            devices_failed=tuple(setting_run.label for setting_run in setting_runs if setting_run.status == "failed"),
            devices_slowed=tuple(
                setting_run.label for setting_run in setting_runs if setting_run.tally.quality.often_slowed
            ),
            elapsed_s=elapsed_s,
            results=results,
        )

    def joined(self, info: AgentInfo) -> None:
        """An agent takes part."""
        labels = tuple(setting.label for setting in info.settings)
        self._say(events.DeviceJoined, device=info.agent, model=info.profile.model, settings=labels)

    def lost(self, device: str, reason: str, silent_for_s: float | None) -> None:
        """An agent is given up."""
        last_seen_s = None if silent_for_s is None else self._wall_clock() - silent_for_s
        self._say(events.DeviceLost, device=device, reason=reason, last_seen_s=last_seen_s)

    def outcome(
        self, setting_run: SettingRun, task: SettingTask, outcome: Outcome, measurements: int, budget: int
    ) -> None:
        """A measurement or a failure was stored."""
        about = {
            "task_id": task.record.task_id,
            "architecture": task.record.architecture,
            "fingerprint": task.record.architecture.fingerprint,
        }
        if isinstance(outcome, Failed):
            self._of(
                setting_run,
                events.MeasurementFailed,
                **about,
                reason=outcome.reason,
                detail=outcome.detail,
                failures=setting_run.failures,
            )
            return
        self._of(
            setting_run,
            events.MeasurementTaken,
            **about,
            purpose=task.record.purpose,
            predicted_ms=task.record.predicted_ms,
            measured_ms=outcome.median_ms,
            half_width_percent=outcome.half_width_percent,
            quality=outcome.quality,
            undisturbed_ms=outcome.undisturbed_ms,
            slowdown=outcome.slowdown,
            temperature_c=outcome.after.temperature_c,
            measurements=measurements,
            budget=budget,
        )

    def found(self, setting_run: SettingRun, outcome: Outcome, findings: Sequence[Finding]) -> None:
        """A measurement showed something about its device."""
        if isinstance(outcome, Failed):
            return
        quality = setting_run.tally.quality
        if "regime_changed" in findings:
            self._of(setting_run, events.RegimeChanged, since_s=outcome.regime_unix_s, slowdown=outcome.slowdown)
        if "often_slowed" in findings:
            self._of(
                setting_run,
                events.MeasurementsSlowed,
                slowed=quality.slowed,
                measured=quality.measured,
                largest_slowdown=quality.largest_slowdown,
            )

    def learned(self, setting_run: SettingRun) -> None:
        """The predictor's held-out error changed."""
        measurements, mape_percent, spearman, held_out = setting_run.learning[-1]
        self._of(
            setting_run,
            events.PredictorUpdated,
            mape_percent=mape_percent,
            spearman=spearman,
            held_out=held_out,
            measurements=measurements,
        )

    def chosen(self, setting_run: SettingRun, state: TargetState) -> None:
        """A target's best subnet is about to be verified."""
        assert state.architecture is not None
        self._of(
            setting_run,
            events.TargetResolved,
            target_ms=state.target_ms,
            architecture=state.architecture,
            fingerprint=state.architecture.fingerprint,
            predicted_ms=state.predicted_ms,
            measured_ms=state.measured_ms,
            accuracy=state.accuracy,
        )

    def judged(self, setting_run: SettingRun, state: TargetState) -> None:
        """A verification was made, or a target's fate is known."""
        if state.status == "met":
            assert state.architecture is not None
            self._of(
                setting_run,
                events.WinnerVerified,
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
        elif state.status == "infeasible":
            self._of(
                setting_run,
                events.TargetInfeasible,
                target_ms=state.target_ms,
                fastest_ms=setting_run.search.fastest_ms,
                reason=state.reason,
            )
        else:
            self._of(
                setting_run,
                events.TargetMissed,
                target_ms=state.target_ms,
                verified_ms=state.verified_ms,
                typical_ms=state.typical_ms,
                final=state.status == "missed",
                reason=state.reason,
            )

    def store_unavailable(self, reason: str) -> None:
        """Nothing can be written."""
        self._say(events.StoreUnavailable, reason=reason)

    def store_available(self, away_s: float) -> None:
        """It can again."""
        self._say(events.StoreAvailable, away_s=away_s)

    def _of(self, setting_run: SettingRun, kind: type[events.Event], **fields: object) -> None:
        self._say(kind, device=setting_run.device, setting=setting_run.setting.label, **fields)

    def _say(self, kind: type[events.Event], **fields: object) -> None:
        self._sink(kind(at_s=self._wall_clock(), run_id=self._run_id, **fields))  # type: ignore[arg-type]
