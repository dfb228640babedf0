"""Membership of a campaign: wait for devices, take their settings in, and explain which devices are left out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping

from fleetnas.coordinator.campaign.event_emitter import EventEmitter
from fleetnas.coordinator.campaign.roster import Roster
from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.coordinator.campaign.state_writer import StateWriter
from fleetnas.coordinator.fleet.registry import AgentEntry, FleetRegistry
from fleetnas.coordinator.records.agent_abilities import layers_objection
from fleetnas.coordinator.records.campaign_identity import CampaignIdentity
from fleetnas.coordinator.records.device_patterns import absence, is_mistyped, matches_any, matches_one
from fleetnas.coordinator.records.device_targets import unknown_entries
from fleetnas.coordinator.records.equal_boards import classes_of
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.tuning.setting_tuner import SettingTuner
from fleetnas.fleet_protocol.error_text import one_line
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError
from fleetnas.fleet_protocol.messages import AgentInfo, RuntimeSetting

#: After the first connection retained messages need a moment to arrive before agents are counted.
_GATHER_S = 1.5
#: Device settings of one agent and of all agents in one run: an agent that announces others without end gets no more.
MAX_AGENT_SETTINGS, MAX_SETTINGS = 32, 10_000

_log = logging.getLogger("fleetnas.coordinator")

MakeSearch = Callable[[AgentInfo, RuntimeSetting], SettingTuner]


class Membership:
    """Takes device settings into the roster."""

    def __init__(
        self,
        identity: CampaignIdentity,
        plan: CampaignPlan,
        registry: FleetRegistry,
        roster: Roster,
        *,
        writer: StateWriter,
        make_search: MakeSearch,
        events: EventEmitter,
        note: Callable[[str], None],
    ) -> None:
        """`make_search` makes the search of one device setting."""
        self._identity, self._plan, self._registry, self._roster = identity, plan, registry, roster
        self._writer, self._make_search, self._events, self._note = writer, make_search, events, note
        self._check: Callable[[Collection[str]], None] = lambda names: None
        self._is_open = False
        self._told_absence = False
        self._resumes = False
        #: Devices of the stored run that is resumed, and agents that it goes on without.
        self._resumed_with: set[str] = set()
        self._left_out: set[str] = set()
        #: Device settings for which no search could be made, with the reasons.
        self._unusable: dict[tuple[str, str], str] = {}
        #: Agents that may have settings to take in, the announcement that was last taken in of each, and agents of
        #: which not all settings are taken in.
        self._joining: dict[str, None] = {}
        self._joined: dict[str, AgentInfo] = {}
        self._too_many: set[str] = set()

    @property
    def is_open(self) -> bool:
        """Whether the campaign has begun: the devices that it waits for are there."""
        return self._is_open

    @property
    def is_behind(self) -> bool:
        """Whether agents wait to be taken in."""
        return bool(self._joining)

    @property
    def unusable(self) -> Mapping[tuple[str, str], str]:
        """Why device settings take no part for which no search can be made, by device and setting."""
        return self._unusable

    def before_first(self, check: Callable[[Collection[str]], None]) -> None:
        """Have `check` called before any device measures, with those that take part: `DEVICE` and `DEVICE/SETTING`.

        It may raise `UsageError`, which ends the campaign.
        """
        self._check = check

    # -- a resumed run -----------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Note that the campaign goes on with a stored run."""
        self._resumes = True

    def resume_setting(self, device: str, setting: RuntimeSetting, info: AgentInfo) -> SettingRun | None:
        """Take in a device setting of the stored run; None, with a line, where no search can be made for it."""
        self._resumed_with.add(device)
        return self._make_setting_run(device, setting, info)

    # -- the beginning -----------------------------------------------------------------------------------------

    def gather(self, now_s: float, connected_s: float | None) -> None:
        """Begin once the devices are there; `UsageError` where they do not appear in time.

        `connected_s` is the time of the first connection to the broker; None before it.
        """
        if self._is_open or connected_s is None or now_s - connected_s < _GATHER_S:
            return
        usable = [entry for entry in self._registry.usable() if self._wanted(entry)]
        there = [entry for entry in usable if entry.present]
        tags = {setting_run.device: setting_run.info.tags for setting_run in self._roster}
        tags |= {entry.name: entry.tags for entry in there}
        present = set(tags)
        missing = [pattern for pattern in self._plan.devices if not matches_one(pattern, tags)]
        self._check_patterns(missing)
        # An agent known from a retained message alone has been asked: it answers at once, or is lost soon.
        # A stored device that cannot be read any more takes no part, and is not waited for.
        part = self._resumed_with | set(self._plan.devices)
        fewest = min(self._plan.wait_for, len(part)) if self._resumed_with else self._plan.wait_for
        if not missing and len(present) >= fewest and len(there) == len(usable):
            self._begin(there)
        elif now_s - connected_s > self._plan.join_s:
            raise UsageError(self._absence(missing, len(present)))

    def _check_patterns(self, missing: list[str]) -> None:
        """`UsageError` at once where patterns that name nobody are mistyped, while other agents are there.

        An agent that the broker remembers may come back, and with `wait_for` more of them are expected.
        """
        known = {entry.name: entry.tags for entry in self._registry.agents.values()}
        wrong = [pattern for pattern in missing if not matches_one(pattern, known)]
        there = sum(entry.present for entry in self._registry.agents.values())
        if not wrong or not there:
            return
        if there >= self._plan.wait_for and any(is_mistyped(pattern, known) for pattern in wrong):
            raise UsageError(absence(wrong, known))
        if not self._told_absence:
            self._told_absence = True
            self._note(f"{absence(wrong, known)}; they are waited for until {self._plan.join_s:g} s are over")

    def _absence(self, missing: list[str], count: int) -> str:
        waited = f"after {self._plan.join_s:g} s"
        reasons = [
            f"{entry.name}: {'it has not answered yet' if entry.usable else entry.idle_reason()}"
            for entry in self._registry.agents.values()
            if not entry.present
        ]
        waited += f" ({'; '.join(reasons)})" if reasons else ""
        if missing:
            return f"{', '.join(missing)} did not appear {waited}; start the agents, or leave them out of --devices"
        return (
            f"{count} of {self._plan.wait_for} agents appeared {waited}; run `fleetnas-agent run --broker ...` on "
            "the devices and look at them with `fleetnas devices`"
        )

    def _begin(self, there: list[AgentEntry]) -> None:
        settings = [f"{entry.name}/{setting.label}" for entry in there if entry.info for setting in entry.info.settings]
        self._check({*(entry.name for entry in there), *self._roster.devices, *settings, *self._roster.labels})
        self._is_open = True
        self._check_device_targets()
        for entry in there:
            self._join(entry)
        offered = [(entry.name, setting) for entry in there if entry.info for setting in entry.info.settings]
        if offered and not len(self._roster) and not any(self._plan.settings.takes(setting) for _, setting in offered):
            raise UsageError(self._plan.settings.absence(f"{name}/{setting.label}" for name, setting in offered))
        reasons = [f"{device}/{label}: {reason}" for (device, label), reason in self._unusable.items()]
        if offered and not len(self._roster) and reasons:
            raise UsageError(f"no device setting can take part: {'; '.join(reasons)}")
        for entry in self._registry.usable():
            if not self._wanted(entry):
                self._note_left_out(entry.name)
        if self._plan.verify_boards and not self._plan.pools:
            self._note("boards are searched each by itself with these targets: --verify-boards has no effect")
        elif self._plan.verify_boards and not classes_of({run.device: run.info for run in self._roster}.values()):
            self._note("no two agents are equal boards: --verify-boards has no effect unless an equal one joins")
        self._events.started(list(self._roster), self._identity, self._plan, resumed=self._resumes)

    def _check_device_targets(self) -> None:
        """Raise `UsageError` where targets are given for devices that the fleet does not have."""
        infos = [entry.info for entry in self._registry.agents.values() if entry.info is not None]
        unknown = [] if self._resumes else unknown_entries(self._plan.device_targets, infos)
        if unknown:
            agents = {info.agent: info.tags for info in infos}
            raise UsageError(f"--targets-file: {absence(unknown, agents, 'the file')}")

    # -- joining -----------------------------------------------------------------------------------------------

    def consider(self, entry: AgentEntry) -> None:
        """Have the settings of an agent that sent a message taken in at the next ticks, where there are new ones."""
        if self._is_open and entry.present and entry.info is not self._joined.get(entry.name):
            self._joining[entry.name] = None

    def join_next(self) -> None:
        """Take in one setting of one agent: a search begins with some computing, for which no other agent waits."""
        if not self._joining:
            return
        agent = next(iter(self._joining))
        del self._joining[agent]
        if self._join(self._registry.agents[agent], most=1):
            self._joining[agent] = None  # behind the other agents

    def _join(self, entry: AgentEntry, most: int = MAX_AGENT_SETTINGS) -> bool:
        """Take in up to `most` settings of an agent that have no run yet; True where it has more."""
        info = entry.info
        if not self._is_open or not entry.present or info is None:
            return False
        self._joined[entry.name] = info
        if not self._wanted(entry):
            self._note_left_out(entry.name)
            return False
        new = [
            setting
            for setting in info.settings
            if self._plan.settings.takes(setting) and (entry.name, setting.label) not in self._roster.by_key
        ]
        room = min(MAX_AGENT_SETTINGS - len(self._roster.of_device(entry.name)), MAX_SETTINGS - len(self._roster))
        if len(new) > room and entry.name not in self._too_many:
            self._too_many.add(entry.name)
            self._note(
                f"{entry.name} offers more settings than one run takes ({MAX_AGENT_SETTINGS} of one agent, "
                f"{MAX_SETTINGS} of all); the rest takes no part"
            )
        new = new[: max(0, room)]
        made = [
            setting_run
            for setting in new[:most]
            if (setting_run := self._make_setting_run(entry.name, setting, info)) is not None
        ]
        self._writer.add_new(made)
        if made and len(new) <= most:
            self._events.joined(info)
        if self._plan.profile_winners:
            for setting_run in made:
                if reason := layers_objection(info, setting_run.setting):
                    self._note(f"{setting_run.label}: layers of winners are not timed: {reason}")
        return len(new) > most

    def _make_setting_run(self, device: str, setting: RuntimeSetting, info: AgentInfo) -> SettingRun | None:
        """Take in a device setting; None, with a line, where no search can be made for it."""
        key = device, setting.label
        if key in self._unusable or key in self._roster.by_key:
            return None
        try:
            search = self._make_search(info, setting)
        except Exception as error:  # noqa: BLE001 - contained to its device setting, with the trace in the log
            self._unusable[key] = one_line(error)
            trace = ""
            if not isinstance(error, FleetnasError):
                _log.error("no search can be made for %s/%s", *key, exc_info=error)
                trace = "; the log has the trace"
            self._note(f"{device}/{setting.label} takes no part: {one_line(error)}{trace}")
            return None
        setting_run = SettingRun(self._identity.run_id, device, setting, info, search)
        self._roster.add(setting_run)
        return setting_run

    def _wanted(self, entry: AgentEntry) -> bool:
        """Whether an agent takes part: a resumed run goes on with its own devices and with those that were named."""
        named = matches_any(self._plan.devices, entry.name, entry.tags)
        if self._resumed_with:
            return entry.name in self._resumed_with or named
        return not self._plan.devices or named

    def _note_left_out(self, agent: str) -> None:
        if self._resumed_with and agent not in self._left_out:
            self._left_out.add(agent)
            run_id = self._identity.run_id
            self._note(
                f"{agent} was not in run {run_id}, which goes on without it; start a new search for it, "
                f"or add it with --resume {run_id} --devices {agent}"
            )
