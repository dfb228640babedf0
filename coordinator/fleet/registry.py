"""The agents of a fleet: state, settings and last sign of life of each. Times are passed in, nothing is published."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fleetnas.fleet_protocol.errors import DuplicateAgentError, ProtocolError
from fleetnas.fleet_protocol.messages import (
    AgentInfo,
    AgentState,
    Conditions,
    Heartbeat,
    ParticipantState,
    Phase,
    TaskKey,
)

#: Heartbeats come every 30 s; three of them missed, and an agent is lost even if its last will never came.
LOST_AFTER_S = 95.0
#: An agent known from a retained message alone was asked by the coordinator's announcement: it answers at once.
ANSWER_S = 10.0
#: Names that are remembered: an agent that invents names must not fill the memory.
MAX_AGENTS = 20_000
#: Two agents share one name where one takes over from the other this often, with less than this time in between.
_TAKEOVERS, _RIVALRY_OVER_S = 6, 60.0

_STOPPED = "stopped by its user"

Liveness = Literal["unknown", "busy", ParticipantState]


@dataclass
class AgentEntry:
    """State of one agent. Times are seconds of the clock that the caller passes."""

    name: str
    liveness: Liveness = "unknown"
    session: int = -1
    instance: str = ""
    info: AgentInfo | None = None
    other_info: AgentInfo | None = None
    """Of another session than the one at work, kept in case that session announces itself."""
    last_seen_s: float | None = None
    """None where only retained messages have been seen so far."""
    known_since_s: float = 0.0
    lost_since_s: float | None = None
    reason: str = ""
    """Why it is lost or cannot be used."""
    resting: str = ""
    """Why it waits instead of measuring."""
    conditions: Conditions = field(default_factory=Conditions)
    running: str | None = None
    outbox: int = 0
    phase: Phase | None = None
    phase_fraction: float = 0.0
    phase_task: TaskKey | None = None
    takeovers: int = 0
    """Announcements of one process while another was at work under the same name."""
    rival_seen_s: float = float("-inf")
    duplicate: DuplicateAgentError | None = None

    @property
    def usable(self) -> bool:
        """Whether the agent is there, announced itself, and is alone under its name."""
        return self.liveness in ("ready", "busy") and self.info is not None and self.duplicate is None

    @property
    def present(self) -> bool:
        """Whether it is usable and has sent a message itself: the broker also remembers agents that are gone."""
        return self.usable and self.last_seen_s is not None

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags that its owner gave it."""
        return self.info.tags if self.info is not None else ()

    def idle_reason(self) -> str:
        """Explain to a person who waits for the agent why it does not work, or name its present work."""
        if self.duplicate is not None:
            return str(self.duplicate)
        if self.liveness == "lost":
            return self.reason or "lost: its connection broke; restart fleetnas-agent on the device"
        if self.liveness == "leaving":
            return self.reason if self.reason != _STOPPED else f"{_STOPPED}; start fleetnas-agent on the device again"
        if self.liveness == "unknown":
            return "it has not said that it is ready; update fleetnas-agent on the device"
        if self.info is None:
            return "it has not said what it is; update fleetnas-agent on the device"
        if self.resting:
            return f"waiting: {self.resting}"
        if self.running is not None or self.liveness == "busy":
            return f"working on {self.running or 'a task'}"
        if self.outbox:
            return f"ready; holds {self.outbox} results that no coordinator has taken yet"
        return "ready; no search has given it work"

    # -- changes: called by `FleetRegistry` --------------------------------------------------------------------

    def seen(self, now_s: float, *, retained: bool = False) -> None:
        """Note a sign of life; a retained message is none."""
        if not retained:
            self.last_seen_s = now_s
            # Silence may end without a new state: the session is still the one that was lost.
            if self.liveness == "lost":
                self.liveness, self.reason, self.lost_since_s = "ready", "", None

    def take_over(self, state: AgentState, now_s: float) -> None:
        """Note that the process of this state message is at work, perhaps in place of another one."""
        if not self.is_of(state) and self.liveness in ("ready", "busy"):
            self._count_takeover(now_s)
        self.session, self.instance = state.session, state.instance
        self.liveness, self.reason, self.lost_since_s = state.state, "", None
        self.resting = state.detail
        if self.other_info is not None and self.other_info.session == state.session:
            self.info, self.other_info = self.other_info, None

    def is_of(self, state: AgentState) -> bool:
        """Whether a state message comes from the process at work, or no process is known yet."""
        return self.instance in ("", state.instance)

    def describe(self, info: AgentInfo) -> bool:
        """Take over an announcement of settings; False where that of the session at work, or a newer one, stays.

        A device that was set up anew, with a clock that is behind, begins with an older session than before.
        """
        at_work = self.session if self.liveness in ("ready", "busy") else None
        known = self.info.session if self.info is not None else None
        if known is not None and info.session != at_work and (known == at_work or info.session < known):
            self.other_info = info
            return False
        self.info = info
        return True

    def beat(self, heartbeat: Heartbeat) -> None:
        """Take over the values of a heartbeat."""
        self.conditions, self.running, self.outbox = heartbeat.conditions, heartbeat.task_id, heartbeat.outbox

    def mark_lost(self, now_s: float, reason: str) -> None:
        """Note that the agent is gone."""
        if self.liveness != "lost":
            self.lost_since_s = now_s
        self.liveness, self.reason, self.running, self.phase = "lost", reason, None, None

    def leave(self, state: AgentState, now_s: float) -> None:
        """Note that the agent was stopped, or that the broker published its last will."""
        self.session, self.instance = state.session, state.instance
        left = state.state == "leaving"
        self.mark_lost(now_s, (state.detail or _STOPPED) if left else "its connection broke (last will)")
        if left:
            self.liveness = "leaving"

    def progress(self, task: TaskKey, phase: Phase, fraction: float) -> None:
        """Take over the progress of the task at work; `fraction` of the phase is done."""
        self.phase_task, self.phase, self.phase_fraction = task, phase, fraction

    def end_task(self, task_id: str) -> None:
        """Forget the progress of a task that has an outcome."""
        if self.phase_task is not None and self.phase_task.task_id == task_id:
            self.phase = self.phase_task = None

    def _count_takeover(self, now_s: float) -> None:
        if now_s - self.rival_seen_s > _RIVALRY_OVER_S:
            self.takeovers, self.duplicate = 0, None
        self.rival_seen_s = now_s
        self.takeovers += 1
        if self.takeovers >= _TAKEOVERS:
            self.duplicate = DuplicateAgentError(
                f"two agents call themselves {self.name!r} at the same time and neither yields, so neither can be "
                "trusted with work; stop one of them, or start it under another --name"
            )


class FleetRegistry:
    """All agents that were ever seen."""

    def __init__(self, lost_after_s: float = LOST_AFTER_S) -> None:
        self.agents: dict[str, AgentEntry] = {}
        self._lost_after_s = lost_after_s

    def usable(self) -> list[AgentEntry]:
        """List the agents that can be given work, by name."""
        return sorted((entry for entry in self.agents.values() if entry.usable), key=lambda entry: entry.name)

    def on_state(self, agent: str, state: AgentState, now_s: float, *, retained: bool = False) -> AgentEntry:
        """Take a state message or a last will; those of a process that was replaced since change nothing.

        Of two agents of one name one yields by itself, after a few announcements of both. Where neither does, neither
        is used.
        """
        entry = self._entry(agent, now_s)
        if state.session == 0:  # a process that starts claims its name; see `fleetnas.agent.service.name_claim`
            return entry
        ours = entry.is_of(state)
        if state.state in ("lost", "leaving"):
            if ours and state.session >= entry.session:
                entry.leave(state, now_s)
            return entry
        if (ours and state.session < entry.session) or (not ours and retained):
            return entry
        entry.take_over(state, now_s)
        entry.seen(now_s, retained=retained)
        return entry

    def on_info(self, agent: str, info: AgentInfo, now_s: float, *, retained: bool = False) -> AgentEntry:
        """Take an agent's announcement; that of the session at work counts, else that of the newest."""
        entry = self._entry(agent, now_s)
        if entry.describe(info):
            entry.seen(now_s, retained=retained)
        return entry

    def on_heartbeat(self, agent: str, heartbeat: Heartbeat, now_s: float) -> AgentEntry:
        """Take a heartbeat; it brings back an agent that was only silent."""
        entry = self._entry(agent, now_s)
        if entry.session not in (-1, heartbeat.session):
            return entry
        entry.beat(heartbeat)
        entry.seen(now_s)
        return entry

    def on_message(self, agent: str, now_s: float) -> AgentEntry:
        """Take any other sign of life."""
        entry = self._entry(agent, now_s)
        entry.seen(now_s)
        return entry

    def mark_lost(self, agent: str, now_s: float, reason: str) -> None:
        """Note that the caller found out that an agent is gone."""
        self._entry(agent, now_s).mark_lost(now_s, reason)

    def end_task(self, agent: str, task_id: str) -> None:
        """Forget the progress of a task that has an outcome."""
        entry = self.agents.get(agent)
        if entry is not None:
            entry.end_task(task_id)

    def on_tick(self, now_s: float) -> list[AgentEntry]:
        """Mark and return the agents that are lost from now on, because they have been silent for too long."""
        silent = []
        for entry in self.agents.values():
            if entry.liveness not in ("ready", "busy"):
                continue
            if entry.last_seen_s is None and now_s - entry.known_since_s > ANSWER_S:
                reason = (
                    f"the broker remembers it, and it has not answered for {ANSWER_S:g} s; start fleetnas-agent on the "
                    "device"
                )
            elif entry.last_seen_s is not None and now_s - entry.last_seen_s > self._lost_after_s:
                reason = f"no sign of life for {self._lost_after_s:g} s"
            else:
                continue
            silent.append(entry)
            entry.mark_lost(now_s, reason)
        return silent

    def _entry(self, agent: str, now_s: float) -> AgentEntry:
        entry = self.agents.get(agent)
        if entry is None:
            if len(self.agents) >= MAX_AGENTS:
                raise ProtocolError(f"{agent} is not taken into a fleet of {MAX_AGENTS} agents; it is dropped")
            entry = self.agents[agent] = AgentEntry(agent, known_since_s=now_s)
        return entry
