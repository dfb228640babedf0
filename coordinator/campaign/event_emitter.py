"""Events of a live campaign, for views and `--json`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.coordinator.fleet.task import Task
from fleetnas.coordinator.records import events
from fleetnas.coordinator.records.campaign_identity import CampaignIdentity
from fleetnas.coordinator.records.data_quality import Finding
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.setting_events import SettingEvents
from fleetnas.coordinator.records.statuses import EndStatus, SettingStatus
from fleetnas.coordinator.records.stored import Outcome, WinnerRecord
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.records.totals import TargetTotals
from fleetnas.coordinator.tuning.target_state import TargetState
from fleetnas.fleet_protocol.messages import AgentInfo, Failed


class EventEmitter:
    """Makes the events of one run and gives them to `sink`."""

    def __init__(self, run_id: str, wall_clock: Callable[[], float], sink: Callable[[events.Event], None]) -> None:
        """`wall_clock` returns Unix seconds."""
        self._run_id, self._wall_clock, self._sink = run_id, wall_clock, sink

    def started(
        self, setting_runs: Sequence[SettingRun], identity: CampaignIdentity, plan: CampaignPlan, *, resumed: bool
    ) -> None:
        """Emit `CampaignStarted` with these device settings."""
        self._sink(
            events.CampaignStarted(
                at_s=self._wall_clock(),
                run_id=self._run_id,
                supernet=identity.supernet,
                supernet_sha256=identity.bundle.sha256,
                strategy=plan.method,
                targets=plan.targets_text,
                devices=tuple(setting_run.label for setting_run in setting_runs),
                budget=plan.budget,
                resumed=resumed,
                subnets=tuple(architecture.fingerprint for architecture in plan.architectures),
            )
        )

    def finished(
        self,
        setting_runs: Sequence[SettingRun],
        status: EndStatus,
        *,
        totals: TargetTotals,
        elapsed_s: float,
        results: str | None,
        timed_out: bool = False,
    ) -> None:
        """Emit `CampaignFinished`; `results` is the path of results.json."""
        self._sink(
            events.CampaignFinished(
                at_s=self._wall_clock(),
                run_id=self._run_id,
                status=status,
                targets_met=totals.met,
                targets=totals.asked,
                devices_lost=_labels(setting_runs, SettingStatus.LOST),
                devices_failed=_labels(setting_runs, SettingStatus.FAILED),
                devices_slowed=tuple(
                    setting_run.label for setting_run in setting_runs if setting_run.tally.quality.often_slowed
                ),
                elapsed_s=elapsed_s,
                results=results,
                without_target=totals.without_target,
                timed_out=timed_out,
            )
        )

    def joined(self, info: AgentInfo) -> None:
        """Emit `DeviceJoined` for an agent that takes part."""
        self._sink(
            events.DeviceJoined(
                at_s=self._wall_clock(),
                run_id=self._run_id,
                device=info.agent,
                model=info.profile.model,
                settings=tuple(setting.label for setting in info.settings),
            )
        )

    def lost(self, device: str, reason: str, silent_for_s: float | None) -> None:
        """Emit `DeviceLost` for an agent that is given up."""
        now_s = self._wall_clock()
        last_seen_s = None if silent_for_s is None else now_s - silent_for_s
        self._sink(
            events.DeviceLost(at_s=now_s, run_id=self._run_id, device=device, reason=reason, last_seen_s=last_seen_s)
        )

    def outcome(self, setting_run: SettingRun, task: Task, outcome: Outcome, measurements: int, budget: int) -> None:
        """Emit `MeasurementTaken` or `MeasurementFailed` for a stored outcome."""
        now_s, of = self._wall_clock(), self._of(setting_run)
        if isinstance(outcome, Failed):
            self._sink(of.failed(now_s, task.record, outcome, setting_run.failures))
        else:
            self._sink(of.measured(now_s, task.record, outcome, measurements, budget))

    def found(self, setting_run: SettingRun, outcome: Outcome, findings: Sequence[Finding]) -> None:
        """Emit `RegimeChanged` and `MeasurementsSlowed` where a measurement showed them."""
        if isinstance(outcome, Failed):
            return
        of, quality = self._of(setting_run), setting_run.tally.quality
        for event in of.findings(self._wall_clock(), findings, outcome, quality):
            self._sink(event)

    def learned(self, setting_run: SettingRun) -> None:
        """Emit `PredictorUpdated` with the latest held-out error."""
        self._sink(self._of(setting_run).learned(self._wall_clock(), setting_run.learning[-1]))

    def chosen(self, setting_run: SettingRun, state: TargetState) -> None:
        """Emit `TargetResolved` for a target whose best subnet is about to be verified."""
        assert state.architecture is not None
        assert state.measured_ms is not None
        self._sink(
            events.TargetResolved(
                at_s=self._wall_clock(),
                run_id=self._run_id,
                device=setting_run.device,
                setting=setting_run.setting.label,
                target_ms=state.asked_ms,
                target=state.text,
                architecture=state.architecture,
                fingerprint=state.architecture.fingerprint,
                predicted_ms=state.predicted_ms,
                measured_ms=state.measured_ms,
                accuracy=state.accuracy,
            )
        )

    def missed(self, setting_run: SettingRun, state: TargetState) -> None:
        """Emit `TargetMissed` for a re-measurement beyond its target; the search may go on to another subnet."""
        now_s, of = self._wall_clock(), self._of(setting_run)
        self._sink(
            of.missed(
                now_s,
                state.asked_ms,
                state.verified_ms,
                state.typical_ms,
                reason=state.reason,
                final=False,
                target=state.text,
            )
        )

    def decided(self, setting_run: SettingRun, winner: WinnerRecord) -> None:
        """Emit `WinnerVerified`, `TargetMissed` or `TargetInfeasible` for a decided target."""
        # Asked of the search where it is shown alone: a search that broke down computes nothing any more.
        fastest_ms = setting_run.search.fastest_ms if winner.status is TargetStatus.INFEASIBLE else None
        self._sink(self._of(setting_run).decided(self._wall_clock(), winner, fastest_ms))

    def store_unavailable(self, reason: str) -> None:
        """Emit `StoreUnavailable`."""
        self._sink(events.StoreUnavailable(at_s=self._wall_clock(), run_id=self._run_id, reason=reason))

    def store_available(self, away_s: float) -> None:
        """Emit `StoreAvailable`; `away_s` is for how long the store could not be written, in seconds."""
        self._sink(events.StoreAvailable(at_s=self._wall_clock(), run_id=self._run_id, away_s=away_s))

    def _of(self, setting_run: SettingRun) -> SettingEvents:
        return SettingEvents(self._run_id, setting_run.device, setting_run.setting.label)


def _labels(setting_runs: Sequence[SettingRun], status: SettingStatus) -> tuple[str, ...]:
    return tuple(setting_run.label for setting_run in setting_runs if setting_run.status is status)
