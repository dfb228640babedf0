"""One fleet-wide search: events of the transport and ticks of a clock in, tasks and results out.

It runs on the transport, clocks and executor that it is given and never waits, so a simulated fleet drives the very
same code. Slow work (planning, calibrating, evaluating) goes to the executor; all else happens on the caller's thread,
in `on_events` and `on_tick`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

from fleetnas.coordinator.campaign.agenda import Agenda
from fleetnas.coordinator.campaign.agent_listener import AgentListener
from fleetnas.coordinator.campaign.campaign_log import CampaignLog
from fleetnas.coordinator.campaign.endings import SettingEndings
from fleetnas.coordinator.campaign.event_emitter import EventEmitter
from fleetnas.coordinator.campaign.live_snapshot import LiveSnapshots, phase_of
from fleetnas.coordinator.campaign.losses import LossMonitor
from fleetnas.coordinator.campaign.membership import MakeSearch, Membership
from fleetnas.coordinator.campaign.outcome_learner import OutcomeLearner
from fleetnas.coordinator.campaign.planning_pool import PlanningPool
from fleetnas.coordinator.campaign.progress_tracker import ProgressTracker
from fleetnas.coordinator.campaign.result_intake import ResultIntake
from fleetnas.coordinator.campaign.roster import Roster
from fleetnas.coordinator.campaign.round_planner import RoundPlanner
from fleetnas.coordinator.campaign.setting_advancer import SettingAdvancer
from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.coordinator.campaign.state_writer import StateWriter
from fleetnas.coordinator.campaign.task_updates import TaskUpdates
from fleetnas.coordinator.fleet.connection import FleetConnection
from fleetnas.coordinator.fleet.orphaned_results import OrphanedResults
from fleetnas.coordinator.fleet.registry import FleetRegistry
from fleetnas.coordinator.fleet.task_dispatcher import TaskDispatcher
from fleetnas.coordinator.fleet.work_queue import WorkQueue
from fleetnas.coordinator.records.campaign_identity import CampaignIdentity
from fleetnas.coordinator.records.clocks import Clocks
from fleetnas.coordinator.records.events import Event
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.snapshot import Snapshot
from fleetnas.coordinator.records.statuses import EndStatus, RunStatus, SettingStatus
from fleetnas.coordinator.records.stored import Outcome, TaskRecord
from fleetnas.coordinator.records.totals import TargetTotals, run_end, target_totals
from fleetnas.coordinator.store.circuit_breaker import CircuitBreaker
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.fleet_protocol.transports.base import TransportEvent

#: Interval between two looks at the whole fleet; in between, only changed device settings are.
_SWEEP_S = 0.5


class Campaign:
    """A campaign at work. `start`, then feed it events and ticks until `finished`."""

    def __init__(
        self,
        identity: CampaignIdentity,
        plan: CampaignPlan,
        connection: FleetConnection,
        store: MeasurementStore,
        *,
        planning: PlanningPool,
        make_search: MakeSearch,
        clocks: Clocks,
        emit: Callable[[Event], None] = lambda _: None,
    ) -> None:
        """`make_search` makes the search of one device setting; `emit` is given every event, in order."""
        self.identity = identity
        self.plan = plan
        self.registry = FleetRegistry()
        self.progress = ProgressTracker(plan)
        self._log = CampaignLog()
        note = self._log.note
        self.started_unix_s = clocks.wall()
        self._started_s = clocks.elapsed()
        self._connection, self._store, self._planning, self._clocks = connection, store, planning, clocks
        #: Events that are not emitted yet. They are when everything else is done, so that an exception of a view is
        #: not taken for one of a device setting.
        self._unemitted: deque[Event] = deque()
        self._emit, self._swept_s = emit, float("-inf")

        events = self._events = EventEmitter(identity.run_id, clocks.wall, self._unemitted.append)
        self._breaker = CircuitBreaker(clocks.elapsed, events.store_unavailable, self._on_store_back)
        agenda = self._agenda = Agenda()
        dispatcher = self._dispatcher = TaskDispatcher(
            identity, plan, connection, store, note=note, give_up=self._give_up
        )
        roster = self._roster = Roster(dispatcher, agenda)
        self._snapshots = LiveSnapshots(plan, self.registry, self._log.note_unshown)
        writer = self._writer = StateWriter(store, self._breaker, planning.take_evaluated)
        self._endings = SettingEndings(writer, events, self.registry, clocks.elapsed, note)
        learner = OutcomeLearner(roster, self.registry, events, planning, agenda, plan.budget)
        self._intake = ResultIntake(store, self._breaker, dispatcher, roster, self._endings, learner, clocks, note)
        self._losses = LossMonitor(
            plan, self.registry, dispatcher, roster, self._intake, self._endings, note, self._started_s
        )
        planner = RoundPlanner(planning, dispatcher, roster, events, writer, agenda)
        self._advancer = SettingAdvancer(planner, learner, self._endings, self._losses, agenda, clocks.elapsed, note)
        self.membership = Membership(
            identity, plan, self.registry, roster, writer=writer, make_search=make_search, events=events, note=note
        )
        self._orphans = OrphanedResults(identity.run_id, connection.link, store, clocks=clocks, note=note)
        updates = TaskUpdates(
            self.registry, dispatcher, self._intake, self._losses, self._orphans, self._breaker, clocks.elapsed
        )
        self._listener = AgentListener(
            connection, self.registry, dispatcher, roster, self.membership, updates, clocks.elapsed, note
        )

    # -- driving -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect and subscribe."""
        self._connection.link.start()

    def on_event(self, event: TransportEvent) -> None:
        """Take one event of the transport."""
        self.on_events((event,))

    def on_events(self, events: Iterable[TransportEvent]) -> None:
        """Take events in order; the results among them are stored together, and acknowledged after that.

        While the store cannot be written, none is acknowledged.
        """
        try:
            for event in events:
                self._connection.link.receive(event, self._listener)
        finally:
            self._store_arrived()
        self._emit_events()

    def on_tick(self) -> None:
        """Check leases and losses, plan and dispatch. Call it a few times a second.

        `UsageError` where the devices asked for do not appear.
        """
        now = self._clocks.elapsed()
        self._connection.link.on_tick()
        if now - self._swept_s >= _SWEEP_S:
            self._swept_s = now
            self._sweep(now)
        self.membership.join_next()
        for setting_run in self._planning.take_finished():
            self._agenda.add(setting_run)
        self._advancer.advance_changed(now)
        self._dispatch(now)
        self._dispatcher.acknowledge_rest()
        self._connection.blobs.pump(now)
        self._emit_events()

    def look_for_devices(self) -> None:
        """Wait for devices alone: nothing is planned or dispatched. `UsageError` where they do not appear."""
        now = self._clocks.elapsed()
        self._connection.link.on_tick()
        self.registry.on_tick(now)
        self.membership.gather(now, self._connection.first_s)

    def _sweep(self, now: float) -> None:
        """Look at the whole fleet."""
        self._store_arrived()
        for entry in self.registry.on_tick(now):
            self.note(f"{entry.name} is lost: {entry.reason}")
            self._dispatcher.requeue_all(entry.name)
        if not self._breaker.is_open:
            with self._breaker.guard():
                self._losses.expire_leases(now)
                self._losses.fail_used_up()
        self.membership.gather(now, self._connection.first_s)
        self.progress.observe(now, self._roster)
        for setting_run in self._running:
            self._agenda.add(setting_run)
        self._writer.write_at_times(now, self._endings.record_of)

    def _dispatch(self, now: float) -> None:
        agents = self._agenda.take_agents()
        if not self._connection.is_open or not self._breaker.may_try:
            return
        with self._breaker.guard():
            self._writer.write_new(self._endings.record_of)
            if self._dispatcher.dispatch([agent for agent in agents if self._losses.takes_work(agent, now)], now):
                self._breaker.reset()
            self._orphans.work()

    def _store_arrived(self) -> None:
        self._losses.note_answers(self._intake.store_arrived())

    def _emit_events(self) -> None:
        while self._unemitted:
            self._emit(self._unemitted.popleft())

    def stop(self) -> None:
        """Cancel the tasks that agents hold; the run can be resumed."""
        self._dispatcher.acknowledge_rest()
        self._cancel_leased()
        self._writer.write(self._endings.record_of)
        self._listener.announce("leaving")
        self._emit_events()

    def _cancel_leased(self) -> None:
        for queue, task in self._dispatcher.leased():
            self._dispatcher.cancel(queue.device, task.key)

    def finish(self, write_results: Callable[[], str | None] = lambda: None, *, timed_out: str = "") -> EndStatus:
        """Close the run in the store, write its results, and emit how it ended.

        `timed_out` says that its time is over: it keeps the winners verified so far, and can be resumed.
        """
        self._dispatcher.acknowledge_rest()
        if timed_out:
            self._endings.suspend(self._running, timed_out)
            self._cancel_leased()
        self._writer.write(self._endings.record_of)
        stored, ended_s = (RunStatus.INTERRUPTED, None) if timed_out else (self.status, self._clocks.wall())
        self._store.set_run_status(self.identity.run_id, stored, ended_s)
        try:
            self._events.finished(
                list(self._roster),
                self.status,
                totals=self.totals,
                elapsed_s=self._clocks.elapsed() - self._started_s,
                results=write_results(),
                timed_out=bool(timed_out),
            )
        finally:
            self._listener.announce("leaving")
            self._emit_events()
        return self.status

    # -- state -------------------------------------------------------------------------------------------------

    @property
    def setting_runs(self) -> Mapping[tuple[str, str], SettingRun]:
        """Device settings that take part, by device and label of the setting."""
        return self._roster.by_key

    @property
    def connection(self) -> FleetConnection:
        """The connection to the fleet."""
        return self._connection

    @property
    def targets_stored(self) -> int:
        """Number of decided targets in the store."""
        return self._writer.targets_stored

    @property
    def behind(self) -> bool:
        """Whether the next tick has something to do, whatever arrives."""
        orphans = self._orphans.behind and self._breaker.may_try
        return self._agenda.has_changes or self.membership.is_behind or orphans

    @property
    def finished(self) -> bool:
        """Whether every device setting has ended and is stored, unless the store was never seen to be away."""
        if self._breaker.is_open and self._writer.is_dirty:
            return False
        return self.membership.is_open and all(each.status is not SettingStatus.RUNNING for each in self._roster)

    @property
    def _running(self) -> list[SettingRun]:
        return [setting_run for setting_run in self._roster if setting_run.status is SettingStatus.RUNNING]

    @property
    def phase(self) -> str:
        """Phase of the campaign, for people."""
        if not self.membership.is_open:
            return "waiting for devices"
        if self.finished:
            return "finished"
        return phase_of(self._running)

    @property
    def status(self) -> EndStatus:
        """End of the campaign: complete, partial or failed by the targets that were asked for."""
        return run_end(self.totals, [setting_run.status for setting_run in self._roster])

    @property
    def totals(self) -> TargetTotals:
        """Targets met, of those that were asked for."""
        return target_totals(self._snapshots.of(self._roster))

    def snapshot(self, now_unix_s: float) -> Snapshot:
        """Return an immutable snapshot of the campaign."""
        devices, now_s = self._snapshots.of(self._roster), self._clocks.elapsed()
        return Snapshot(
            run_id=self.identity.run_id,
            supernet=self.identity.supernet,
            started_s=self.started_unix_s,
            now_s=now_unix_s,
            phase=self.phase,
            devices=devices,
            log=self._log.shown,
            progress=self.progress.progress(now_s, list(self._roster), devices, ended=self.finished),
        )

    def note(self, line: str) -> None:
        """Write a line to the log that views show."""
        self._log.note(line)

    @property
    def log(self) -> Sequence[str]:
        """Latest lines of the log, oldest first."""
        return self._log.lines

    def validate(self) -> None:
        """Check all tasks, queues and searches; `BrokenInvariantError` names the first contradiction. For tests."""
        self._dispatcher.validate()
        for setting_run in self._roster:
            setting_run.search.validate()

    # -- contained exceptions, and resuming --------------------------------------------------------------------

    def contained(self, setting_run: SettingRun) -> AbstractContextManager[None]:
        """Run a block about one device setting: an exception in it ends that setting, and the others go on."""
        return self._endings.contained(setting_run)

    def _give_up(self, queue: WorkQueue, error: Exception) -> None:
        self._endings.give_up(self._roster.of_queue(queue), error)

    def add_setting_run(self, setting_run: SettingRun) -> None:
        """Take in a device setting."""
        self._roster.add(setting_run)

    def restore(self, setting_run: SettingRun, record: TaskRecord, proposal: Proposal, outcome: Outcome | None) -> None:
        """Take in a stored task, in the order in which outcomes were stored, with the outcome that counted."""
        now = self._clocks.elapsed()
        setting_run.restore_model(record)
        self._dispatcher.restore(setting_run.queue, record, proposal, done=outcome is not None, now_s=now)
        if outcome is None:
            setting_run.search.expect(proposal)
        else:
            setting_run.search.tell(proposal, outcome)
            setting_run.count_outcome(outcome)
            self._planning.evaluate(setting_run, proposal)

    def _on_store_back(self, away_s: float) -> None:
        """Renew all leases and ask agents to resend unacknowledged results."""
        for agent in self._roster.devices:
            self._dispatcher.renew(agent, self._clocks.elapsed(), anew=True)
        self._events.store_available(away_s)
        self._listener.announce("ready")
