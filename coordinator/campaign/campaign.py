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

from fleetnas.coordinator.campaign import standing
from fleetnas.coordinator.campaign.event_emitter import Announcer
from fleetnas.coordinator.campaign.planning_pool import Planner
from fleetnas.coordinator.campaign.setting_run import PlannedTask, SettingTrack, TrackTask, one_line
from fleetnas.coordinator.campaign.task_dispatcher import LEASE_SLACK_S, TaskDesk
from fleetnas.coordinator.campaign.winner_builder import WinnerModels
from fleetnas.coordinator.fleet.agent_link import FleetWire
from fleetnas.coordinator.fleet.blob_server import BlobServer
from fleetnas.coordinator.fleet.orphaned_results import StrayResults, outcome_to_store
from fleetnas.coordinator.fleet.registry import AgentEntry, FleetRegistry
from fleetnas.coordinator.records.events import Event
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.snapshot import DeviceSnapshot
from fleetnas.coordinator.records.stored import Arrival, DeviceRecord, Outcome, TaskRecord, WinnerRecord
from fleetnas.coordinator.records.totals import TargetTotals, run_end, target_totals
from fleetnas.coordinator.store.circuit_breaker import StoreOutage
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.device_tuner import DeviceSearch
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.fleet_protocol.errors import ProtocolError, TransportError, UsageError
from fleetnas.fleet_protocol.messages import (
    MAX_ATTEMPTS,
    AgentInfo,
    AgentState,
    BlobReference,
    BlobRequest,
    Failed,
    Health,
    Measurement,
    Next,
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

Status = Literal["complete", "partial", "failed"]


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
        wire: FleetWire,
        blobs: BlobServer,
        store: MeasurementStore,
        models: WinnerModels,
        make_search: Callable[[AgentInfo, RuntimeSetting], DeviceSearch],
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
        self.tracks: dict[tuple[str, str], SettingTrack] = {}
        self.log: deque[str] = deque(maxlen=_LOG_LINES)
        self.started_unix_s = wall_clock()
        self.connected = False
        self.connections = 0
        self.resumed = False
        #: Targets whose fate the store knows.
        self.targets_stored = 0
        self._wire, self._blobs, self._store = wire, blobs, store
        self._make_search = make_search
        self._clock, self._wall_clock = clock, wall_clock
        #: Events that are not told yet. They are told when everything else is done, so that the trouble of a view is
        #: not taken for that of a device setting.
        self._happenings: deque[Event] = deque()
        self._on_happening = on_happening
        self._announcer = Announcer(identity.run_id, wall_clock, self._happenings.append)
        self._desk = TaskDesk(
            identity.run_id,
            identity.bundle,
            plan,
            self.tracks,
            mirror=identity.mirror,
            wire=wire,
            blobs=blobs,
            store=store,
            note=self.note,
            give_up=self._give_up,
        )
        self._outage = StoreOutage(clock, self._on_store_away, self._on_store_back)
        self._strays = StrayResults(identity.run_id, wire, store, clock=clock, wall_clock=wall_clock, note=self.note)
        self._started_s = clock()
        self._connected_s: float | None = None
        self._open = False
        self._unanswered: dict[str, int] = {}
        self._pause_until_s: dict[str, float] = {}
        #: Device settings for which no search could be made.
        self._unusable: set[tuple[str, str]] = set()
        #: Device settings whose picture could not be made, which is said once.
        self._unshown: set[str] = set()
        self._swept_s = self._written_s = float("-inf")
        #: Results that are not stored yet: one transaction for all that arrived together.
        self._arrived: dict[TaskKey, tuple[SettingTrack, TrackTask, Outcome]] = {}
        #: To whom something happened: tracks to look at and agents that may want work. Workers fill `_planned`.
        self._due: dict[str, SettingTrack] = {}
        self._hungry: dict[str, None] = {}
        #: Agents that may have settings to take in, what was last taken in of each, and of whom not all is taken.
        self._joining: dict[str, None] = {}
        self._joined: dict[str, AgentInfo] = {}
        self._too_many: set[str] = set()
        #: When a line about an agent's comings and goings was last written, for one that comes and goes without end.
        self._noted_s: dict[str, float] = {}
        self._planned: deque[SettingTrack] = deque()
        self._planner = Planner(models, executor, asks_at_once, self._planned.append)
        #: Devices of the stored run that is taken up, and those that it goes on without.
        self._resumed_with: set[str] = set()
        self._left_out: set[str] = set()
        #: What the store is told at the next sweep.
        self._stale: dict[str, SettingTrack] = {}
        self._fresh: list[SettingTrack] = []
        self._fates: list[WinnerRecord] = []

    # -- the caller's side -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect and subscribe."""
        self._wire.start()

    def on_event(self, event: TransportEvent) -> None:
        """Take one event of the transport."""
        self.on_events((event,))

    def on_events(self, events: Iterable[TransportEvent]) -> None:
        """Take what arrived, in order; the results among it are stored together, and acknowledged after that.

        While the store cannot be written, none is acknowledged.
        """
        try:
            for event in events:
                self._wire.hear(event, self)
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
        for label in list(self._due):
            track = self._due.pop(label)
            if track.status == "running":
                with self.contained(track):
                    self._advance(track, now)
                self._hungry[track.device] = None
            if self._clock() - began_s >= _PLANNING_S:
                break
        hungry, self._hungry = self._hungry, {}
        if self.connected and self._outage.may_try:
            with self._outage.watched():
                if self._fresh:  # before their first tasks: a stored task without its setting could not be taken up
                    self._store.put_devices([self._record_of(track) for track in self._fresh])
                    self._fresh.clear()
                if self._desk.hand_out([agent for agent in hungry if self._takes_work(agent, now)], now):
                    self._outage.over()
                self._strays.work()
        self._desk.acknowledge_rest()
        self._blobs.pump(now)

    def _sweep(self, now: float) -> None:
        """What has to look at everybody."""
        self._take_outcomes()
        for entry in self.registry.on_tick(now):
            self.note(f"{entry.name} is lost: {entry.reason}")
            self._desk.take_back(entry.name)
        if not self._outage.lasts:
            with self._outage.watched():
                self._expire_leases(now)
                self._fail_used_up()
        if not self._open:
            self._gather(now)
        for track in self.tracks.values():
            if track.status == "running":
                self._look_at(track)
        if now - self._written_s >= _STANDINGS_S:
            self._written_s = now
            self._write_standings()

    def _look_at(self, track: SettingTrack) -> None:
        """Something happened to a device setting: see at the next tick what follows."""
        self._due[track.label] = track
        self._hungry[track.device] = None

    def _takes_work(self, agent: str, now: float) -> bool:
        entry = self.registry.agents.get(agent)
        return entry is not None and entry.present and now >= self._pause_until_s.get(agent, 0.0)

    def _write_standings(self) -> None:
        """Store what is known of settings and targets; a coordinator that is killed before finds it out again."""
        if not self._outage.may_try:
            return
        with self._outage.watched():
            records = [self._record_of(track) for track in list(self._stale.values())]
            self._store.put_devices(records)
            self._stale.clear()
            self._store.put_winners(self._fates)
            self.targets_stored += len(self._fates)
            self._fates.clear()

    @property
    def behind(self) -> bool:
        """Whether the next tick has something to do, whatever arrives."""
        return bool(self._due or self._joining or (self._strays.behind and self._outage.may_try))

    @property
    def finished(self) -> bool:
        """Every device setting is finished, lost or given up, and the store knows it or was not seen to be away."""
        if self._outage.lasts and (self._stale or self._fates):
            return False
        return self._open and all(track.status != "running" for track in self.tracks.values())

    @property
    def phase(self) -> str:
        """For people."""
        if not self._open:
            return "waiting for devices"
        if self.finished:
            return "finished"
        phases = {track.search.phase for track in self.tracks.values() if track.status == "running"}
        return "verifying" if phases <= {"verification", "done"} else "searching"

    @property
    def status(self) -> Status:
        """End of the campaign: complete, partial or failed by the targets that were asked for."""
        return run_end(self.totals, [track.status for track in self.tracks.values()])

    @property
    def totals(self) -> TargetTotals:
        """Targets met, of those that were asked for."""
        return target_totals(standing.snapshot_of(self, self._wall_clock()).devices)

    def note(self, line: str) -> None:
        """A line for the log that the view shows."""
        self.log.append(line)
        _log.info("%s", line)

    def stop(self) -> None:
        """Take back what is handed out; the run can be resumed."""
        self._desk.acknowledge_rest()
        for track, task in self._desk.out():
            self._desk.cancel(track.device, task.key)
        self._write_standings()
        self._say("leaving")
        self._tell_happenings()

    def finish(self, write_results: Callable[[], str | None] = lambda: None) -> Status:
        """Close the run in the store, write what is to be taken home, and say how it ended."""
        self._desk.acknowledge_rest()
        self._write_standings()
        self._store.set_run_status(self.identity.run_id, self.status, self._wall_clock())
        try:
            self._announcer.finished(
                list(self.tracks.values()),
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
    def contained(self, track: SettingTrack) -> Iterator[None]:
        """A block about one device setting: an exception in it gives that setting up, and the others go on."""
        try:
            yield
        except Exception as error:
            self._give_up(track, error)

    def _give_up(self, track: SettingTrack, error: Exception) -> None:
        """End a device setting whose search has broken down; the trace is in the log."""
        _log.error("%s is given up: its search failed", track.label, exc_info=error)
        reason = f"its search failed ({one_line(error)}); the log has the trace"
        track.search.abandon(reason)
        track.plan = None
        track.inbox.clear()
        track.evaluations.clear()
        if track.status == "running":
            self._close(track, "failed", reason)

    def _record_of(self, track: SettingTrack) -> DeviceRecord:
        with self.contained(track):
            return track.to_record()
        return track.to_record()  # given up: nothing is computed any more

    def show(self, track: SettingTrack, picture: Callable[[], DeviceSnapshot]) -> DeviceSnapshot:
        """The picture of a device setting for the views, or what is known without its search where that fails.

        A search may be at work in another thread meanwhile: that its state cannot be shown is no reason to end it.
        """
        try:
            return picture()
        except Exception as error:
            if track.label not in self._unshown:
                self._unshown.add(track.label)
                _log.error("%s cannot be shown", track.label, exc_info=error)
                self.note(f"{track.label} cannot be shown: {one_line(error)}; the log has the trace")
        return standing.bare_snapshot(track, self.plan)

    # -- taking up a stored run --------------------------------------------------------------------------------

    def take_up_track(self, device: str, setting: RuntimeSetting, info: AgentInfo) -> SettingTrack | None:
        """Take in a device setting of the stored run; None, with a line, where no search can be made for it."""
        self._resumed_with.add(device)
        return self.make_track(device, setting, info)

    def add_track(self, track: SettingTrack) -> None:
        """Take in a device setting, new or from the store."""
        self.tracks[track.device, track.setting.label] = track
        self._desk.join(track)
        self._look_at(track)

    def restore(self, track: SettingTrack, record: TaskRecord, proposal: Proposal, outcome: Outcome | None) -> None:
        """Take in a stored task, in the order in which outcomes were stored, with the one that counted."""
        lease_ends_s = self._clock() + self.plan.deadline_s + LEASE_SLACK_S
        self._desk.restore(track, record, proposal, done=outcome is not None, lease_ends_s=lease_ends_s)
        if outcome is None:
            track.search.expect(proposal)
        else:
            track.search.tell(proposal, outcome)
            track.count_outcome(outcome)
            self._planner.evaluate(track, proposal)

    # -- who takes part ----------------------------------------------------------------------------------------

    def _gather(self, now: float) -> None:
        if self._connected_s is None or now - self._connected_s < _GATHER_S:
            return
        known = {track.device for track in self.tracks.values()}
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
        self._announcer.started(
            list(self.tracks.values()),
            supernet=self.identity.supernet,
            supernet_sha256=self.identity.bundle.sha256,
            strategy=self.plan.strategy,
            targets=self.plan.targets,
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
        """Make a track for up to `most` settings of an agent that have none yet; True where it has more."""
        info = entry.info
        if not self._open or not entry.present or info is None:
            return False
        self._joined[entry.name] = info
        if not self._wanted(entry.name):
            self._tell_left_out(entry.name)
            return False
        fresh = [setting for setting in info.settings if (entry.name, setting.label) not in self.tracks]
        room = min(MAX_AGENT_SETTINGS - len(self._desk.tracks_of(entry.name)), MAX_SETTINGS - len(self.tracks))
        if len(fresh) > room and entry.name not in self._too_many:
            self._too_many.add(entry.name)
            self.note(
                f"{entry.name} offers more settings than one run takes ({MAX_AGENT_SETTINGS} of one agent, "
                f"{MAX_SETTINGS} of all); the rest takes no part"
            )
        fresh = fresh[: max(0, room)]
        made = [track for setting in fresh[:most] if (track := self.make_track(entry.name, setting, info)) is not None]
        self._fresh += made
        if made and len(fresh) <= most:
            self._announcer.joined(info)
        return len(fresh) > most

    def make_track(self, device: str, setting: RuntimeSetting, info: AgentInfo) -> SettingTrack | None:
        """Take in a device setting; None, with a line, where no search can be made for it."""
        key = device, setting.label
        if key in self._unusable or key in self.tracks:
            return None
        try:
            search = self._make_search(info, setting)
        except Exception as error:
            self._unusable.add(key)
            _log.error("no search can be made for %s/%s", *key, exc_info=error)
            self.note(f"{device}/{setting.label} takes no part: {one_line(error)}; the log has the trace")
            return None
        track = SettingTrack(self.identity.run_id, device, setting, info, search)
        self.add_track(track)
        return track

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
            self._desk.take_back(agent)
        self._hear_of(entry)

    def on_info(self, agent: str, info: AgentInfo, retained: bool) -> None:
        self._hear_of(self.registry.on_info(agent, info, self._clock(), retained=retained))

    def on_health(self, agent: str, health: Health) -> None:
        self._hear_of(self.registry.on_health(agent, health, self._clock()))
        for track in self._desk.tracks_of(agent):
            track.temperature_c = health.conditions.temperature_c
            track.throttled = health.conditions.throttled

    def on_blob_request(self, agent: str, request: BlobRequest) -> None:
        now = self._clock()
        self.registry.on_message(agent, now)
        self._blobs.request(agent, request)
        self._blobs.pump(now)

    def on_next(self, agent: str, held: Next) -> None:
        self._hear_of(self.registry.on_message(agent, self._clock()))
        self._desk.reconcile(agent, held)
        self._hungry[agent] = None

    def on_update(self, agent: str, update: TaskUpdate, size: int) -> None:
        now = self._clock()
        if isinstance(update, Failed) and update.reason == "cancelled":
            return  # our own order carried out: no outcome, and not in its outbox
        found = self._desk.find(update.task.task_id)
        if found is None and self._pass_on(agent, update):
            self.registry.on_message(agent, now)
            if not isinstance(update, Result | Failed) or not self._strays.is_overdue(agent, update.task):
                return
        if found is None and isinstance(update, Result | Failed):
            self.registry.on_message(agent, now)
            if self._outage.may_try:
                with self._outage.watched():
                    self._strays.take(agent, update)
            return
        if found is None or found[0].device != agent or update.task.attempt > found[1].record.attempt:
            raise ProtocolError(f"{agent} speaks of task {update.task.task_id}, which it was not given; it is dropped")
        entry = self.registry.on_message(agent, now)
        track, task = found
        track.wire_bytes += size
        self._desk.renew(agent, now)
        if isinstance(update, Result | Failed):
            outcome = outcome_to_store(task.record, update)
            fresh = update.task not in self._arrived and not self._desk.is_done(task.record.task_id)
            if fresh and isinstance(update, Result) and isinstance(outcome, Failed):
                self.note(f"{track.label}: result of {update.task.task_id} refused: {outcome.detail}")
            self._arrived.setdefault(update.task, (track, task, outcome))
        elif isinstance(update, Progress):
            entry.phase, entry.phase_fraction, entry.phase_task = update.phase, update.fraction, update.task
        elif isinstance(update, Rejected):
            self._rejected(track, task, update)

    def on_refused_result(self, agent: str, failed: Failed, size: int) -> None:
        """End a task of ours whose result breaks the contract; its agent would repeat it, and may forget it so."""
        if self._desk.find(failed.task.task_id) is None:
            raise ProtocolError(failed.detail)
        self.on_update(agent, failed, size)

    def _pass_on(self, agent: str, update: TaskUpdate) -> bool:
        try:
            return self._wire.pass_on(agent, update)
        except TransportError as error:  # A result comes again; of the rest, its lease takes care.
            self.note(str(error))
            return True

    # -- results -----------------------------------------------------------------------------------------------

    def _take_outcomes(self) -> None:
        """Store what arrived, then acknowledge, then learn; a repeated one is only acknowledged."""
        if not self._arrived or not self._outage.may_try:
            return
        now_unix_s = self._wall_clock()
        arrived: dict[TaskKey, tuple[SettingTrack, TrackTask, Outcome]] = {}
        with self._outage.watched():
            self._store.add_outcomes([Arrival(key, found[2], now_unix_s) for key, found in self._arrived.items()])
            arrived, self._arrived = self._arrived, {}
            self._outage.over()
        for key, (track, task, outcome) in arrived.items():
            self._unanswered[track.device] = 0
            self._desk.acknowledge(track, key)
            track.returned = 0
            # Another coordinator of this store may have stored it first; it is ours to learn from all the same.
            if not self._desk.is_done(task.record.task_id):
                with self.contained(track):
                    self._conclude(track, task, key.attempt, outcome)

    def _on_store_away(self, reason: str) -> None:
        self._announcer.store_unavailable(reason)

    def _on_store_back(self, away_s: float) -> None:
        """Nobody is late for having waited for us; who holds results is asked for them."""
        now = self._clock()
        for agent in {track.device for track in self.tracks.values()}:
            self._desk.renew(agent, now, anew=True)
        self._announcer.store_available(away_s)
        self._say("ready")

    def _conclude(self, track: SettingTrack, task: TrackTask, attempt: int, outcome: Outcome) -> None:
        self._desk.conclude(track, task, attempt)
        self._look_at(track)
        entry = self.registry.agents.get(track.device)
        if entry is not None and entry.phase_task is not None and entry.phase_task.task_id == task.record.task_id:
            entry.phase = entry.phase_task = None
        if isinstance(outcome, Measurement):
            track.temperature_c = outcome.after.temperature_c
            track.throttled = outcome.after.throttled
        track.inbox.append((task.proposal, outcome))
        findings = track.count_outcome(outcome)
        self._announcer.outcome(track, task, outcome, track.measurements, self.plan.budget)
        self._announcer.found(track, outcome, findings)
        self._tell(track)

    def _tell(self, track: SettingTrack) -> None:
        """Pass on what came, unless a plan is being made from what was known before."""
        if track.plan is not None:
            return
        for proposal, outcome in track.inbox:
            track.search.tell(proposal, outcome)
            few = len(self.tracks) <= _FEW_SETTINGS
            if (few or track.search.finished or track.learned_much) and track.note_learning():
                self._announcer.learned(track)
                track.search.predict_targets()
            if proposal.purpose != "verification":
                continue
            self._planner.evaluate(track, proposal)
            state = track.search.target(proposal.target_ms)
            if state is not None and state.status == "open" and state.verifications:
                self._announcer.judged(track, state)
        track.inbox.clear()

    # -- plans and ends ----------------------------------------------------------------------------------------

    def _advance(self, track: SettingTrack, now: float) -> None:
        if track.plan is not None and track.plan.done():
            planned, track.plan = track.plan.result(), None
            self._take_plan(track, planned)
            self._tell(track)
        for reason in track.collect_evaluations():
            self.note(f"{track.label}: {reason}")
        if track.plan is None:
            self._settle(track)
        if self._abandoned(track, now):
            return
        if track.search.finished:
            if not track.busy:
                failed = track.search.failure_reason
                self._close(track, "failed" if failed else "finished", failed)
        elif track.search.needs_planning and not track.busy:
            self._stale[track.label] = track
            planned_at_once = self._planner.plan(track)
            if planned_at_once is not None:
                self._take_plan(track, planned_at_once)
                self._look_at(track)

    def _take_plan(self, track: SettingTrack, planned: list[PlannedTask]) -> None:
        self._stale[track.label] = track  # its targets may be known by now
        if len(self.tracks) <= _FEW_SETTINGS and any(item.model is not None for item in planned):
            track.search.predict_targets()
        for item in planned:
            self._choose(track, item)
            self._desk.add(track, item)

    def _choose(self, track: SettingTrack, item: PlannedTask) -> None:
        """Say once which subnet a target has come down to."""
        if item.model is None:
            return
        for state in track.search.targets:
            choice = (state.target_ms, item.proposal.architecture.fingerprint)
            if state.target_ms != item.proposal.target_ms or choice in track.announced:
                continue
            track.announced.add(choice)
            if state.architecture == item.proposal.architecture and state.measured_ms is not None:
                self._announcer.chosen(track, state)

    def _settle(self, track: SettingTrack, *, at_once: bool = False) -> None:
        """Store and announce decided targets, winners with their accuracy; `at_once`: without one not evaluated yet."""
        decided = (
            [state for state in track.search.targets if state.status != "open"] if at_once else track.search.decided
        )
        for state in decided:
            pending = state.architecture is not None and state.architecture.fingerprint in track.evaluations
            if state.target_ms not in track.settled and (at_once or not pending):
                track.settled.add(state.target_ms)
                try:
                    self._fates.append(standing.winner_record(track, state))
                    self._announcer.judged(track, state)
                except Exception as error:  # costs this target alone: a setting that is given up keeps its others
                    _log.error("%s: target %g ms is lost", track.label, state.target_ms, exc_info=error)
                    self.note(f"{track.label}: target {state.target_ms:g} ms is lost: {one_line(error)}")

    def _abandoned(self, track: SettingTrack, now: float) -> bool:
        """Whether a device setting that has work left is given up, because its device is gone for good."""
        if track.returned >= MAX_RETURNED:
            self._close(track, "failed", f"{track.returned} tasks in a row came back undone; see the agent's log")
            return True
        entry = self.registry.agents.get(track.device)
        if (entry is not None and entry.present) or (track.search.finished and not track.leased and not track.ready):
            return False
        if entry is not None and entry.duplicate is not None:
            self._close(track, "failed", str(entry.duplicate))
        else:
            since = self._started_s if entry is None else entry.lost_since_s
            if since is not None and now - since >= self.plan.grace_s:
                self._close(track, "lost", entry.reason if entry is not None else "it did not come back")
        return track.status != "running"

    def _close(self, track: SettingTrack, status: Literal["finished", "lost", "failed"], reason: str) -> None:
        self._settle(track, at_once=True)
        track.status, track.reason = status, reason
        track.ready.clear()
        track.leased.clear()
        self._stale[track.label] = track
        if status == "lost":
            entry = self.registry.agents.get(track.device)
            seen_s = entry.last_seen_s if entry is not None else None
            self._announcer.lost(track.device, reason, None if seen_s is None else self._clock() - seen_s)
        elif status == "failed":
            self.note(f"{track.label} is given up: {reason}")

    def _expire_leases(self, now: float) -> None:
        for track, task in self._desk.expired(now):
            agent = track.device
            if task.expired_leases >= MAX_EXPIRED_LEASES:
                self._fail(track, task, f"{task.expired_leases} attempts ended without a word")
            self._unanswered[agent] = self._unanswered.get(agent, 0) + 1
            if self._unanswered[agent] >= MAX_UNANSWERED:
                self._unanswered[agent] = 0
                reason = f"it takes tasks and heartbeats, but {MAX_UNANSWERED} tasks in a row got no answer"
                self.registry.lose(agent, now, reason)
                for lost in self._desk.tracks_of(agent):
                    if lost.status == "running":
                        self._close(lost, "lost", reason)

    def _fail_used_up(self) -> None:
        """Tasks that were given out as often as any may be count as failed."""
        for task_id, (track, task) in list(self._desk.used_up.items()):
            if track.status == "running":
                self._fail(track, task, f"{task.record.attempt} attempts brought no result")
            self._desk.used_up.pop(task_id, None)

    def _fail(self, track: SettingTrack, task: TrackTask, detail: str) -> None:
        """Count a task as failed, whatever its agent may still say."""
        # Of an attempt that nobody makes: the result of the last one may still come, and is stored then.
        attempt = min(task.record.attempt + 1, MAX_ATTEMPTS)
        failed = Failed(task=TaskKey(task_id=task.record.task_id, attempt=attempt), reason="timeout", detail=detail)
        self._store.add_outcome(failed.task, failed, self._wall_clock())
        if not self._desk.is_done(task.record.task_id):
            with self.contained(track):
                self._conclude(track, task, task.record.attempt, failed)

    def _rejected(self, track: SettingTrack, task: TrackTask, update: Rejected) -> None:
        if update.task != task.key or task.record.task_id not in track.leased:
            return
        self._desk.requeue(track, task)
        if update.reason in ("busy", "expired", "leaving"):
            pause_s = min(_BUSY_AGENT_S * track.returned, _MOST_BUSY_S)
            self._pause_until_s[track.device] = self._clock() + pause_s
            self.note(f"{track.label} gives task {update.task.task_id} back: {update.detail or update.reason}")
        else:
            self._close(track, "failed", f"it refuses tasks ({update.reason}): {update.detail}")

    def _say(self, state: Literal["ready", "leaving"]) -> None:
        try:
            self._wire.say(state)
        except TransportError as error:
            self.note(str(error))
