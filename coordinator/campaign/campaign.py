"""One fleet-wide search: who takes part, what was measured, what follows from it, and when to give up on whom.

It runs on whatever transport, clocks and executor it is given and never waits, so a simulated fleet drives the very
same code. What takes time (planning, calibrating, evaluating) goes to the executor; all else happens on the caller's
thread, in `on_event` and `on_tick`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from fleetnas.coordinator.campaign.event_emitter import EventEmitter
from fleetnas.coordinator.campaign.live_snapshot import LiveSnapshots
from fleetnas.coordinator.campaign.planning_pool import PlanningPool
from fleetnas.coordinator.campaign.setting_run import PlannedTask, SettingRun, SettingTask
from fleetnas.coordinator.campaign.task_dispatcher import LEASE_SLACK_S, TaskDispatcher
from fleetnas.coordinator.campaign.winner_builder import WinnerBuilder
from fleetnas.coordinator.campaign.winner_record import winner_record
from fleetnas.coordinator.fleet.agent_link import AgentLink
from fleetnas.coordinator.fleet.blob_server import BlobServer
from fleetnas.coordinator.fleet.orphaned_results import OrphanedResults, outcome_to_store
from fleetnas.coordinator.fleet.registry import AgentEntry, FleetRegistry
from fleetnas.coordinator.records.events import Event
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.snapshot import Snapshot
from fleetnas.coordinator.records.statuses import EndStatus, SettingStatus
from fleetnas.coordinator.records.stored import Arrival, DeviceRecord, Outcome, TaskRecord, WinnerRecord
from fleetnas.coordinator.records.totals import TargetTotals, run_end, target_totals
from fleetnas.coordinator.store.circuit_breaker import CircuitBreaker
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.fleet_protocol.error_text import one_line
from fleetnas.fleet_protocol.errors import ProtocolError, TransportError, UsageError
from fleetnas.fleet_protocol.messages import (
    MAX_ATTEMPTS,
    AgentInfo,
    AgentState,
    BlobReference,
    BlobRequest,
    Failed,
    Heartbeat,
    Inventory,
    Measurement,
    Progress,
    Rejected,
    Result,
    RuntimeSetting,
    TaskKey,
    TaskUpdate,
)
from fleetnas.fleet_protocol.transports.base import TransportEvent

#: Leases that one task may lose before its subnet counts as failed, and that one agent may lose in a row before it
#: counts as lost: more, so that neither one subnet nor an unlucky network is taken for a dead device.
MAX_EXPIRED_LEASES, MAX_UNANSWERED = 3, 6
#: Tasks of one device setting that may come back undone in a row before it is given up.
MAX_RETURNED = 50
#: After the first connection retained messages need a moment to arrive before anyone is counted.
_GATHER_S = 1.5
#: How long an agent that gives a task back is left alone, for each task in a row, and at most.
_BUSY_AGENT_S, _MOST_BUSY_S = 5.0, 60.0
_LOG_LINES = 200
#: Of these, the latest that a snapshot shows.
_SHOWN_LOG_LINES = 20
#: Of an agent that comes and goes, a line this often.
_NOTE_S = 10.0
#: How often everybody is looked at; in between, only those to whom something happened.
_SWEEP_S = 0.5
#: Planning in one tick: who has its tasks already must not wait until a hundred others have theirs.
_PLANNING_S = 0.05
#: Device settings of one agent and of all agents in one run: whoever announces others without end gets no more.
MAX_AGENT_SETTINGS, MAX_SETTINGS = 32, 10_000
#: How often the store is told how settings and targets stand.
_STANDINGS_S = 2.0
#: Device settings up to which the predictor's error, which costs as much as a plan, is noted after every measurement;
#: of more, whenever it has learned from twice as many, and at the end.
_FEW_SETTINGS = 16

_log = logging.getLogger("fleetnas.coordinator")


@dataclass(frozen=True)
class CampaignIdentity:
    """Names of the run and of what it searches."""

    run_id: str
    supernet: str
    bundle: BlobReference
    mirror: str | None = None
    """Where agents may fetch the bundle beside the broker."""


class Campaign:
    """A campaign at work. `start`, then feed it events and ticks until `finished`."""

    def __init__(
        self,
        identity: CampaignIdentity,
        plan: CampaignPlan,
        *,
        link: AgentLink,
        blobs: BlobServer,
        store: MeasurementStore,
        models: WinnerBuilder,
        make_search: Callable[[AgentInfo, RuntimeSetting], DeviceTuner],
        executor: Executor,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        asks_at_once: Callable[[], bool] = lambda: False,
        on_happening: Callable[[Event], None] = lambda _: None,
    ) -> None:
        """`asks_at_once` says that searches answer too quickly to be worth another thread."""
        self.identity = identity
        self.plan = plan
        self.registry = FleetRegistry()
        self.setting_runs: dict[tuple[str, str], SettingRun] = {}
        self.log: deque[str] = deque(maxlen=_LOG_LINES)
        self.started_unix_s = wall_clock()
        self.connected = False
        self.connections = 0
        self.resumed = False
        #: Targets whose fate the store knows.
        self.targets_stored = 0
        self._link, self._blobs, self._store = link, blobs, store
        self._make_search = make_search
        self._clock, self._wall_clock = clock, wall_clock
        #: Events that are not told yet. They are told when everything else is done, so that the trouble of a view is
        #: not taken for that of a device setting.
        self._happenings: deque[Event] = deque()
        self._on_happening = on_happening
        self._events = EventEmitter(identity.run_id, wall_clock, self._happenings.append)
        self._dispatcher = TaskDispatcher(
            identity.run_id,
            identity.bundle,
            plan,
            self.setting_runs,
            mirror=identity.mirror,
            link=link,
            blobs=blobs,
            store=store,
            note=self.note,
            give_up=self._give_up,
        )
        self._breaker = CircuitBreaker(clock, self._on_store_away, self._on_store_back)
        self._orphans = OrphanedResults(
            identity.run_id, link, store, clock=clock, wall_clock=wall_clock, note=self.note
        )
        self._started_s = clock()
        self._connected_s: float | None = None
        self._open = False
        self._unanswered: dict[str, int] = {}
        self._pause_until_s: dict[str, float] = {}
        #: Device settings for which no search could be made.
        self._unusable: set[tuple[str, str]] = set()
        self._snapshots = LiveSnapshots(plan, self.registry, self.note)
        self._swept_s = self._written_s = float("-inf")
        #: Results that are not stored yet: one transaction for all that arrived together.
        self._arrived: dict[TaskKey, tuple[SettingRun, SettingTask, Outcome]] = {}
        #: To whom something happened: setting runs to look at and agents that may want work. Workers fill `_planned`.
        self._changed: dict[str, SettingRun] = {}
        self._agents_to_supply: dict[str, None] = {}
        #: Agents that may have settings to take in, what was last taken in of each, and of whom not all is taken.
        self._joining: dict[str, None] = {}
        self._joined: dict[str, AgentInfo] = {}
        self._too_many: set[str] = set()
        #: When a line about an agent's comings and goings was last written, for one that comes and goes without end.
        self._noted_s: dict[str, float] = {}
        self._planned: deque[SettingRun] = deque()
        self._planning_pool = PlanningPool(models, executor, asks_at_once, self._planned.append)
        #: Devices of the stored run that is taken up, and those that it goes on without.
        self._resumed_with: set[str] = set()
        self._left_out: set[str] = set()
        #: What the store is told at the next sweep.
        self._dirty_settings: dict[str, SettingRun] = {}
        self._new_settings: list[SettingRun] = []
        self._pending_winners: list[WinnerRecord] = []

    # -- the caller's side -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect and subscribe."""
        self._link.start()

    def on_event(self, event: TransportEvent) -> None:
        """Take one event of the transport."""
        self.on_events((event,))

    def on_events(self, events: Iterable[TransportEvent]) -> None:
        """Take what arrived, in order; the results among it are stored together, and acknowledged after that.

        While the store cannot be written, none is acknowledged.
        """
        try:
            for event in events:
                self._link.hear(event, self)
        finally:
            self._take_outcomes()
        self._tell_happenings()

    def on_tick(self) -> None:
        """Do what time brings: leases, losses, plans, hand-outs. Call it a few times a second.

        `UsageError` where the devices asked for do not appear.
        """
        self._tick(self._clock())
        self._tell_happenings()

    def _tell_happenings(self) -> None:
        while self._happenings:
            self._on_happening(self._happenings.popleft())

    def _tick(self, now: float) -> None:
        if now - self._swept_s >= _SWEEP_S:
            self._swept_s = now
            self._sweep(now)
        self._join_next()
        while self._planned:
            self._look_at(self._planned.popleft())
        began_s = self._clock()
        for label in list(self._changed):
            setting_run = self._changed.pop(label)
            if setting_run.status is SettingStatus.RUNNING:
                with self.contained(setting_run):
                    self._advance(setting_run, now)
                self._agents_to_supply[setting_run.device] = None
            if self._clock() - began_s >= _PLANNING_S:
                break
        agents_to_supply, self._agents_to_supply = self._agents_to_supply, {}
        if self.connected and self._breaker.may_try:
            with self._breaker.guard():
                if (
                    self._new_settings
                ):  # before their first tasks: a stored task without its setting could not be taken up
                    self._store.put_devices([self._record_of(setting_run) for setting_run in self._new_settings])
                    self._new_settings.clear()
                if self._dispatcher.dispatch(
                    [agent for agent in agents_to_supply if self._takes_work(agent, now)], now
                ):
                    self._breaker.reset()
                self._orphans.work()
        self._dispatcher.acknowledge_rest()
        self._blobs.pump(now)

    def _sweep(self, now: float) -> None:
        """What has to look at everybody."""
        self._take_outcomes()
        for entry in self.registry.on_tick(now):
            self.note(f"{entry.name} is lost: {entry.reason}")
            self._dispatcher.requeue_all(entry.name)
        if not self._breaker.is_open:
            with self._breaker.guard():
                self._expire_leases(now)
                self._fail_used_up()
        if not self._open:
            self._gather(now)
        for setting_run in self.setting_runs.values():
            if setting_run.status is SettingStatus.RUNNING:
                self._look_at(setting_run)
        if now - self._written_s >= _STANDINGS_S:
            self._written_s = now
            self._write_standings()

    def _look_at(self, setting_run: SettingRun) -> None:
        """Something happened to a device setting: see at the next tick what follows."""
        self._changed[setting_run.label] = setting_run
        self._agents_to_supply[setting_run.device] = None

    def _takes_work(self, agent: str, now: float) -> bool:
        entry = self.registry.agents.get(agent)
        return entry is not None and entry.present and now >= self._pause_until_s.get(agent, 0.0)

    def _write_standings(self) -> None:
        """Store what is known of settings and targets; a coordinator that is killed before finds it out again."""
        if not self._breaker.may_try:
            return
        with self._breaker.guard():
            records = [self._record_of(setting_run) for setting_run in list(self._dirty_settings.values())]
            self._store.put_devices(records)
            self._dirty_settings.clear()
            self._store.put_winners(self._pending_winners)
            self.targets_stored += len(self._pending_winners)
            self._pending_winners.clear()

    @property
    def behind(self) -> bool:
        """Whether the next tick has something to do, whatever arrives."""
        return bool(self._changed or self._joining or (self._orphans.behind and self._breaker.may_try))

    @property
    def finished(self) -> bool:
        """Every device setting is finished, lost or given up, and the store knows it or was not seen to be away."""
        if self._breaker.is_open and (self._dirty_settings or self._pending_winners):
            return False
        return self._open and all(
            setting_run.status is not SettingStatus.RUNNING for setting_run in self.setting_runs.values()
        )

    @property
    def phase(self) -> str:
        """For people."""
        if not self._open:
            return "waiting for devices"
        if self.finished:
            return "finished"
        phases = {
            setting_run.search.phase
            for setting_run in self.setting_runs.values()
            if setting_run.status is SettingStatus.RUNNING
        }
        return "verifying" if phases <= {"verification", "done"} else "searching"

    @property
    def status(self) -> EndStatus:
        """End of the campaign: complete, partial or failed by the targets that were asked for."""
        return run_end(self.totals, [setting_run.status for setting_run in self.setting_runs.values()])

    @property
    def totals(self) -> TargetTotals:
        """Targets met, of those that were asked for."""
        return target_totals(self._snapshots.of(self.setting_runs.values()))

    def snapshot(self, now_unix_s: float) -> Snapshot:
        """Return an immutable snapshot of the campaign."""
        return Snapshot(
            run_id=self.identity.run_id,
            supernet=self.identity.supernet,
            started_s=self.started_unix_s,
            now_s=now_unix_s,
            phase=self.phase,
            devices=self._snapshots.of(self.setting_runs.values()),
            log=tuple(self.log)[-_SHOWN_LOG_LINES:],
        )

    def note(self, line: str) -> None:
        """A line for the log that the view shows."""
        self.log.append(line)
        _log.info("%s", line)

    def stop(self) -> None:
        """Take back what is handed out; the run can be resumed."""
        self._dispatcher.acknowledge_rest()
        for setting_run, task in self._dispatcher.out():
            self._dispatcher.cancel(setting_run.device, task.key)
        self._write_standings()
        self._say("leaving")
        self._tell_happenings()

    def finish(self, write_results: Callable[[], str | None] = lambda: None) -> EndStatus:
        """Close the run in the store, write what is to be taken home, and say how it ended."""
        self._dispatcher.acknowledge_rest()
        self._write_standings()
        self._store.set_run_status(self.identity.run_id, self.status, self._wall_clock())
        try:
            self._events.finished(
                list(self.setting_runs.values()),
                self.status,
                totals=self.totals,
                elapsed_s=self._clock() - self._started_s,
                results=write_results(),
            )
        finally:
            self._say("leaving")
            self._tell_happenings()
        return self.status

    # -- trouble of one device setting -------------------------------------------------------------------------

    @contextmanager
    def contained(self, setting_run: SettingRun) -> Iterator[None]:
        """A block about one device setting: an exception in it gives that setting up, and the others go on."""
        try:
            yield
        except Exception as error:
            self._give_up(setting_run, error)

    def _give_up(self, setting_run: SettingRun, error: Exception) -> None:
        """End a device setting whose search has broken down; the trace is in the log."""
        _log.error("%s is given up: its search failed", setting_run.label, exc_info=error)
        reason = f"its search failed ({one_line(error)}); the log has the trace"
        setting_run.search.abandon(reason)
        setting_run.plan = None
        setting_run.inbox.clear()
        setting_run.evaluations.clear()
        if setting_run.status is SettingStatus.RUNNING:
            self._close(setting_run, SettingStatus.FAILED, reason)

    def _record_of(self, setting_run: SettingRun) -> DeviceRecord:
        with self.contained(setting_run):
            return setting_run.to_record()
        return setting_run.to_record()  # given up: nothing is computed any more

    # -- taking up a stored run --------------------------------------------------------------------------------

    def resume_setting_run(self, device: str, setting: RuntimeSetting, info: AgentInfo) -> SettingRun | None:
        """Take in a device setting of the stored run; None, with a line, where no search can be made for it."""
        self._resumed_with.add(device)
        return self.make_setting_run(device, setting, info)

    def add_setting_run(self, setting_run: SettingRun) -> None:
        """Take in a device setting, new or from the store."""
        self.setting_runs[setting_run.device, setting_run.setting.label] = setting_run
        self._dispatcher.join(setting_run)
        self._look_at(setting_run)

    def restore(self, setting_run: SettingRun, record: TaskRecord, proposal: Proposal, outcome: Outcome | None) -> None:
        """Take in a stored task, in the order in which outcomes were stored, with the one that counted."""
        lease_ends_s = self._clock() + self.plan.deadline_s + LEASE_SLACK_S
        self._dispatcher.restore(setting_run, record, proposal, done=outcome is not None, lease_ends_s=lease_ends_s)
        if outcome is None:
            setting_run.search.expect(proposal)
        else:
            setting_run.search.tell(proposal, outcome)
            setting_run.count_outcome(outcome)
            self._planning_pool.evaluate(setting_run, proposal)

    # -- who takes part ----------------------------------------------------------------------------------------

    def _gather(self, now: float) -> None:
        if self._connected_s is None or now - self._connected_s < _GATHER_S:
            return
        known = {setting_run.device for setting_run in self.setting_runs.values()}
        usable = [entry for entry in self.registry.usable() if self._wanted(entry.name)]
        there = [entry for entry in usable if entry.present]
        present = known | {entry.name for entry in there}
        missing = [name for name in self.plan.devices if name not in present]
        # Whoever the broker only remembers has been asked: it answers at once, or is lost soon.
        # A stored device that cannot be read any more takes no part, and is not waited for.
        part = self._resumed_with | set(self.plan.devices)
        fewest = min(self.plan.wait_for, len(part)) if self._resumed_with else self.plan.wait_for
        if not missing and len(present) >= fewest and len(there) == len(usable):
            self._begin(there)
        elif now - self._connected_s > self.plan.join_s:
            raise UsageError(self._absence(missing, len(present)))

    def _absence(self, missing: list[str], count: int) -> str:
        waited = f"after {self.plan.join_s:g} s"
        reasons = [
            f"{e.name}: {'it has not answered yet' if e.usable else e.idle_reason()}"
            for e in self.registry.agents.values()
            if not e.present
        ]
        why = f" ({'; '.join(reasons)})" if reasons else ""
        if missing:
            return (
                f"{', '.join(missing)} did not appear {waited}{why}; start the agents, or leave them out of --devices"
            )
        return (
            f"{count} of {self.plan.wait_for} agents appeared {waited}{why}; run `fleetnas-agent run --broker ...` on "
            "the devices and look at them with `fleetnas devices`"
        )

    def _begin(self, there: list[AgentEntry]) -> None:
        self._open = True
        for entry in there:
            self._join(entry)
        for entry in self.registry.usable():
            if not self._wanted(entry.name):
                self._tell_left_out(entry.name)
        self._events.started(
            list(self.setting_runs.values()),
            supernet=self.identity.supernet,
            supernet_sha256=self.identity.bundle.sha256,
            strategy=self.plan.strategy.value,
            targets=str(self.plan.targets),
            budget=self.plan.budget,
            resumed=self.resumed,
        )

    def _hear_of(self, entry: AgentEntry) -> None:
        """An agent has said something: see at the next ticks whether it has settings to take in."""
        if self._open and entry.present and entry.info is not self._joined.get(entry.name):
            self._joining[entry.name] = None

    def _join_next(self) -> None:
        """Take in one setting of one agent: a search begins with some computing, for which nobody else should wait."""
        if not self._joining:
            return
        agent = next(iter(self._joining))
        del self._joining[agent]
        if self._join(self.registry.agents[agent], most=1):
            self._joining[agent] = None  # behind the other agents

    def _join(self, entry: AgentEntry, most: int = MAX_AGENT_SETTINGS) -> bool:
        """Make a setting run for up to `most` settings of an agent that have none yet; True where it has more."""
        info = entry.info
        if not self._open or not entry.present or info is None:
            return False
        self._joined[entry.name] = info
        if not self._wanted(entry.name):
            self._tell_left_out(entry.name)
            return False
        fresh = [setting for setting in info.settings if (entry.name, setting.label) not in self.setting_runs]
        room = min(
            MAX_AGENT_SETTINGS - len(self._dispatcher.setting_runs_of(entry.name)),
            MAX_SETTINGS - len(self.setting_runs),
        )
        if len(fresh) > room and entry.name not in self._too_many:
            self._too_many.add(entry.name)
            self.note(
                f"{entry.name} offers more settings than one run takes ({MAX_AGENT_SETTINGS} of one agent, "
                f"{MAX_SETTINGS} of all); the rest takes no part"
            )
        fresh = fresh[: max(0, room)]
        made = [
            setting_run
            for setting in fresh[:most]
            if (setting_run := self.make_setting_run(entry.name, setting, info)) is not None
        ]
        self._new_settings += made
        if made and len(fresh) <= most:
            self._events.joined(info)
        return len(fresh) > most

    def make_setting_run(self, device: str, setting: RuntimeSetting, info: AgentInfo) -> SettingRun | None:
        """Take in a device setting; None, with a line, where no search can be made for it."""
        key = device, setting.label
        if key in self._unusable or key in self.setting_runs:
            return None
        try:
            search = self._make_search(info, setting)
        except Exception as error:
            self._unusable.add(key)
            _log.error("no search can be made for %s/%s", *key, exc_info=error)
            self.note(f"{device}/{setting.label} takes no part: {one_line(error)}; the log has the trace")
            return None
        setting_run = SettingRun(self.identity.run_id, device, setting, info, search)
        self.add_setting_run(setting_run)
        return setting_run

    def _wanted(self, agent: str) -> bool:
        """A resumed run goes on with the devices that it had, and with those that were named."""
        if self._resumed_with:
            return agent in self._resumed_with or agent in self.plan.devices
        return not self.plan.devices or agent in self.plan.devices

    def _tell_left_out(self, agent: str) -> None:
        if self._resumed_with and agent not in self._left_out:
            self._left_out.add(agent)
            self.note(
                f"{agent} was not in run {self.identity.run_id}, which goes on without it; start a new search for it, "
                f"or add it with --resume {self.identity.run_id} --devices {agent}"
            )

    # -- what agents say (`FleetListener`) ---------------------------------------------------------------------

    def on_connected(self) -> None:
        self.connected = True
        self.connections += 1
        if self._connected_s is None:
            self._connected_s = self._clock()
        self._say("ready")

    def on_disconnected(self, reason: str, fatal: bool) -> None:
        if fatal:
            raise TransportError(f"the broker refuses this coordinator: {reason}; check its login and access rules")
        if self.connected:
            self.note(f"not connected to the broker: {reason}; trying again")
        self.connected = False

    def on_state(self, agent: str, state: AgentState, retained: bool) -> None:
        before = self.registry.agents.get(agent)
        was_usable = before is not None and before.usable
        entry = self.registry.on_state(agent, state, self._clock(), retained=retained)
        if was_usable and not entry.usable:
            now = self._clock()
            if now - self._noted_s.get(agent, float("-inf")) >= _NOTE_S:
                self._noted_s[agent] = now
                self.note(f"{agent}: {entry.idle_reason()}")
            self._dispatcher.requeue_all(agent)
        self._hear_of(entry)

    def on_info(self, agent: str, info: AgentInfo, retained: bool) -> None:
        self._hear_of(self.registry.on_info(agent, info, self._clock(), retained=retained))

    def on_heartbeat(self, agent: str, health: Heartbeat) -> None:
        self._hear_of(self.registry.on_heartbeat(agent, health, self._clock()))
        for setting_run in self._dispatcher.setting_runs_of(agent):
            setting_run.temperature_c = health.conditions.temperature_c
            setting_run.throttled = health.conditions.throttled

    def on_blob_request(self, agent: str, request: BlobRequest) -> None:
        now = self._clock()
        self.registry.on_message(agent, now)
        self._blobs.request(agent, request)
        self._blobs.pump(now)

    def on_inventory(self, agent: str, held: Inventory) -> None:
        self._hear_of(self.registry.on_message(agent, self._clock()))
        self._dispatcher.reconcile(agent, held)
        self._agents_to_supply[agent] = None

    def on_update(self, agent: str, update: TaskUpdate, size: int) -> None:
        now = self._clock()
        if isinstance(update, Failed) and update.reason == "cancelled":
            return  # our own order carried out: no outcome, and not in its outbox
        found = self._dispatcher.find(update.task.task_id)
        if found is None and self._forward(agent, update):
            self.registry.on_message(agent, now)
            if not isinstance(update, Result | Failed) or not self._orphans.is_overdue(agent, update.task):
                return
        if found is None and isinstance(update, Result | Failed):
            self.registry.on_message(agent, now)
            if self._breaker.may_try:
                with self._breaker.guard():
                    self._orphans.take(agent, update)
            return
        if found is None or found[0].device != agent or update.task.attempt > found[1].record.attempt:
            raise ProtocolError(f"{agent} speaks of task {update.task.task_id}, which it was not given; it is dropped")
        entry = self.registry.on_message(agent, now)
        setting_run, task = found
        setting_run.wire_bytes += size
        self._dispatcher.renew(agent, now)
        if isinstance(update, Result | Failed):
            outcome = outcome_to_store(task.record, update)
            fresh = update.task not in self._arrived and not self._dispatcher.is_done(task.record.task_id)
            if fresh and isinstance(update, Result) and isinstance(outcome, Failed):
                self.note(f"{setting_run.label}: result of {update.task.task_id} refused: {outcome.detail}")
            self._arrived.setdefault(update.task, (setting_run, task, outcome))
        elif isinstance(update, Progress):
            entry.phase, entry.phase_fraction, entry.phase_task = update.phase, update.fraction, update.task
        elif isinstance(update, Rejected):
            self._rejected(setting_run, task, update)

    def on_refused_result(self, agent: str, failed: Failed, size: int) -> None:
        """End a task of ours whose result breaks the contract; its agent would repeat it, and may forget it so."""
        if self._dispatcher.find(failed.task.task_id) is None:
            raise ProtocolError(failed.detail)
        self.on_update(agent, failed, size)

    def _forward(self, agent: str, update: TaskUpdate) -> bool:
        try:
            return self._link.forward(agent, update)
        except TransportError as error:  # A result comes again; of the rest, its lease takes care.
            self.note(str(error))
            return True

    # -- results -----------------------------------------------------------------------------------------------

    def _take_outcomes(self) -> None:
        """Store what arrived, then acknowledge, then learn; a repeated one is only acknowledged."""
        if not self._arrived or not self._breaker.may_try:
            return
        now_unix_s = self._wall_clock()
        arrived: dict[TaskKey, tuple[SettingRun, SettingTask, Outcome]] = {}
        with self._breaker.guard():
            self._store.add_outcomes([Arrival(key, found[2], now_unix_s) for key, found in self._arrived.items()])
            arrived, self._arrived = self._arrived, {}
            self._breaker.reset()
        for key, (setting_run, task, outcome) in arrived.items():
            self._unanswered[setting_run.device] = 0
            self._dispatcher.acknowledge(setting_run, key)
            setting_run.returned = 0
            # Another coordinator of this store may have stored it first; it is ours to learn from all the same.
            if not self._dispatcher.is_done(task.record.task_id):
                with self.contained(setting_run):
                    self._complete(setting_run, task, key.attempt, outcome)

    def _on_store_away(self, reason: str) -> None:
        self._events.store_unavailable(reason)

    def _on_store_back(self, away_s: float) -> None:
        """Nobody is late for having waited for us; who holds results is asked for them."""
        now = self._clock()
        for agent in {setting_run.device for setting_run in self.setting_runs.values()}:
            self._dispatcher.renew(agent, now, anew=True)
        self._events.store_available(away_s)
        self._say("ready")

    def _complete(self, setting_run: SettingRun, task: SettingTask, attempt: int, outcome: Outcome) -> None:
        self._dispatcher.complete(setting_run, task, attempt)
        self._look_at(setting_run)
        entry = self.registry.agents.get(setting_run.device)
        if entry is not None and entry.phase_task is not None and entry.phase_task.task_id == task.record.task_id:
            entry.phase = entry.phase_task = None
        if isinstance(outcome, Measurement):
            setting_run.temperature_c = outcome.after.temperature_c
            setting_run.throttled = outcome.after.throttled
        setting_run.inbox.append((task.proposal, outcome))
        findings = setting_run.count_outcome(outcome)
        self._events.outcome(setting_run, task, outcome, setting_run.measurements, self.plan.budget)
        self._events.found(setting_run, outcome, findings)
        self._tell(setting_run)

    def _tell(self, setting_run: SettingRun) -> None:
        """Pass on what came, unless a plan is being made from what was known before."""
        if setting_run.plan is not None:
            return
        for proposal, outcome in setting_run.inbox:
            setting_run.search.tell(proposal, outcome)
            few = len(self.setting_runs) <= _FEW_SETTINGS
            if (few or setting_run.search.finished or setting_run.learned_much) and setting_run.note_learning():
                self._events.learned(setting_run)
                setting_run.search.predict_targets()
            if proposal.purpose != "verification":
                continue
            self._planning_pool.evaluate(setting_run, proposal)
            state = setting_run.search.target(proposal.target_ms)
            if state is not None and state.status == "open" and state.verifications:
                self._events.missed(setting_run, state)
        setting_run.inbox.clear()

    # -- plans and ends ----------------------------------------------------------------------------------------

    def _advance(self, setting_run: SettingRun, now: float) -> None:
        if setting_run.plan is not None and setting_run.plan.done():
            planned, setting_run.plan = setting_run.plan.result(), None
            self._take_plan(setting_run, planned)
            self._tell(setting_run)
        for reason in setting_run.collect_evaluations():
            self.note(f"{setting_run.label}: {reason}")
        if setting_run.plan is None:
            self._settle(setting_run)
        if self._abandoned(setting_run, now):
            return
        if setting_run.search.finished:
            if not setting_run.busy:
                failed = setting_run.search.failure_reason
                self._close(setting_run, SettingStatus.FAILED if failed else SettingStatus.FINISHED, failed)
        elif setting_run.search.needs_planning and not setting_run.busy:
            self._dirty_settings[setting_run.label] = setting_run
            planned_at_once = self._planning_pool.plan(setting_run)
            if planned_at_once is not None:
                self._take_plan(setting_run, planned_at_once)
                self._look_at(setting_run)

    def _take_plan(self, setting_run: SettingRun, planned: list[PlannedTask]) -> None:
        self._dirty_settings[setting_run.label] = setting_run  # its targets may be known by now
        if len(self.setting_runs) <= _FEW_SETTINGS and any(item.model is not None for item in planned):
            setting_run.search.predict_targets()
        for item in planned:
            self._choose(setting_run, item)
            self._dispatcher.add(setting_run, item)

    def _choose(self, setting_run: SettingRun, item: PlannedTask) -> None:
        """Say once which subnet a target has come down to."""
        if item.model is None:
            return
        for state in setting_run.search.targets:
            choice = (state.target_ms, item.proposal.architecture.fingerprint)
            if state.target_ms != item.proposal.target_ms or choice in setting_run.announced:
                continue
            setting_run.announced.add(choice)
            if state.architecture == item.proposal.architecture and state.measured_ms is not None:
                self._events.chosen(setting_run, state)

    def _settle(self, setting_run: SettingRun, *, at_once: bool = False) -> None:
        """Store and announce decided targets, winners with their accuracy; `at_once`: without one not evaluated yet."""
        decided = (
            [state for state in setting_run.search.targets if state.status != "open"]
            if at_once
            else setting_run.search.decided
        )
        for state in decided:
            pending = state.architecture is not None and state.architecture.fingerprint in setting_run.evaluations
            if state.target_ms not in setting_run.settled and (at_once or not pending):
                setting_run.settled.add(state.target_ms)
                try:
                    winner = winner_record(setting_run, state)
                    self._pending_winners.append(winner)
                    self._events.decided(setting_run, winner)
                except Exception as error:  # costs this target alone: a setting that is given up keeps its others
                    _log.error("%s: target %g ms is lost", setting_run.label, state.target_ms, exc_info=error)
                    self.note(f"{setting_run.label}: target {state.target_ms:g} ms is lost: {one_line(error)}")

    def _abandoned(self, setting_run: SettingRun, now: float) -> bool:
        """Whether a device setting that has work left is given up, because its device is gone for good."""
        if setting_run.returned >= MAX_RETURNED:
            self._close(
                setting_run,
                SettingStatus.FAILED,
                f"{setting_run.returned} tasks in a row came back undone; see the agent's log",
            )
            return True
        entry = self.registry.agents.get(setting_run.device)
        if (entry is not None and entry.present) or (
            setting_run.search.finished and not setting_run.leased and not setting_run.ready
        ):
            return False
        if entry is not None and entry.duplicate is not None:
            self._close(setting_run, SettingStatus.FAILED, str(entry.duplicate))
        else:
            since = self._started_s if entry is None else entry.lost_since_s
            if since is not None and now - since >= self.plan.grace_s:
                self._close(
                    setting_run, SettingStatus.LOST, entry.reason if entry is not None else "it did not come back"
                )
        return setting_run.status is not SettingStatus.RUNNING

    def _close(self, setting_run: SettingRun, status: SettingStatus, reason: str) -> None:
        self._settle(setting_run, at_once=True)
        setting_run.status, setting_run.reason = status, reason
        setting_run.ready.clear()
        setting_run.leased.clear()
        self._dirty_settings[setting_run.label] = setting_run
        if status is SettingStatus.LOST:
            entry = self.registry.agents.get(setting_run.device)
            seen_s = entry.last_seen_s if entry is not None else None
            self._events.lost(setting_run.device, reason, None if seen_s is None else self._clock() - seen_s)
        elif status is SettingStatus.FAILED:
            self.note(f"{setting_run.label} is given up: {reason}")

    def _expire_leases(self, now: float) -> None:
        for setting_run, task in self._dispatcher.expired(now):
            agent = setting_run.device
            if task.expired_leases >= MAX_EXPIRED_LEASES:
                self._fail(setting_run, task, f"{task.expired_leases} attempts ended without a word")
            self._unanswered[agent] = self._unanswered.get(agent, 0) + 1
            if self._unanswered[agent] >= MAX_UNANSWERED:
                self._unanswered[agent] = 0
                reason = f"it takes tasks and heartbeats, but {MAX_UNANSWERED} tasks in a row got no answer"
                self.registry.lose(agent, now, reason)
                for lost in self._dispatcher.setting_runs_of(agent):
                    if lost.status is SettingStatus.RUNNING:
                        self._close(lost, SettingStatus.LOST, reason)

    def _fail_used_up(self) -> None:
        """Tasks that were given out as often as any may be count as failed."""
        for task_id, (setting_run, task) in list(self._dispatcher.used_up.items()):
            if setting_run.status is SettingStatus.RUNNING:
                self._fail(setting_run, task, f"{task.record.attempt} attempts brought no result")
            self._dispatcher.used_up.pop(task_id, None)

    def _fail(self, setting_run: SettingRun, task: SettingTask, detail: str) -> None:
        """Count a task as failed, whatever its agent may still say."""
        # Of an attempt that nobody makes: the result of the last one may still come, and is stored then.
        attempt = min(task.record.attempt + 1, MAX_ATTEMPTS)
        failed = Failed(task=TaskKey(task_id=task.record.task_id, attempt=attempt), reason="timeout", detail=detail)
        self._store.add_outcome(failed.task, failed, self._wall_clock())
        if not self._dispatcher.is_done(task.record.task_id):
            with self.contained(setting_run):
                self._complete(setting_run, task, task.record.attempt, failed)

    def _rejected(self, setting_run: SettingRun, task: SettingTask, update: Rejected) -> None:
        if update.task != task.key or task.record.task_id not in setting_run.leased:
            return
        self._dispatcher.requeue(setting_run, task)
        if update.reason in ("busy", "expired", "leaving"):
            pause_s = min(_BUSY_AGENT_S * setting_run.returned, _MOST_BUSY_S)
            self._pause_until_s[setting_run.device] = self._clock() + pause_s
            self.note(f"{setting_run.label} gives task {update.task.task_id} back: {update.detail or update.reason}")
        else:
            self._close(setting_run, SettingStatus.FAILED, f"it refuses tasks ({update.reason}): {update.detail}")

    def _say(self, state: Literal["ready", "leaving"]) -> None:
        try:
            self._link.say(state)
        except TransportError as error:
            self.note(str(error))
