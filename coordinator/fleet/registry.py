"""Who is there: each agent's state, settings and last sign of life. Time is passed in, nothing is published."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fleetnas.fleet_protocol.errors import DuplicateAgentError, ProtocolError
from fleetnas.fleet_protocol.messages import AgentInfo, AgentState, Conditions, Heartbeat, Phase, TaskKey

#: Heartbeats come every 30 s; three of them missed, and an agent is lost even if its last will never came.
LOST_AFTER_S = 95.0
#: An agent of which only the broker's memory tells was asked by the coordinator's announcement: it answers at once.
ANSWER_S = 10.0
#: Names that are remembered: who invents names must not fill the memory.
MAX_AGENTS = 20_000
#: So many takeovers without a minute's peace, and two agents share one name.
_TAKEOVERS, _RIVALRY_OVER_S = 6, 60.0

Liveness = Literal["unknown", "ready", "busy", "leaving", "lost"]


@dataclass
class AgentEntry:
    """What is known of one agent. Times are seconds of the clock that the caller passes."""

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
        """It is there, said what it is, and is alone under its name."""
        return self.liveness in ("ready", "busy") and self.info is not None and self.duplicate is None

    @property
    def present(self) -> bool:
        """It is usable, and has itself said something since we listen: the broker also remembers the dead."""
        return self.usable and self.last_seen_s is not None

    def idle_reason(self) -> str:
        """Why it does not work, or what it is doing: for a person who waits for it."""
        if self.duplicate is not None:
            return str(self.duplicate)
        if self.liveness == "lost":
            return self.reason or "lost: its connection broke; restart fleetnas-agent on the device"
        if self.liveness == "leaving":
            return "stopped by its user; start fleetnas-agent on the device again"
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


class FleetRegistry:
    """Every agent that was ever heard of."""

    def __init__(self, lost_after_s: float = LOST_AFTER_S) -> None:
        self.agents: dict[str, AgentEntry] = {}
        self._lost_after_s = lost_after_s

    def usable(self) -> list[AgentEntry]:
        """Agents that can be given work, by name."""
        return sorted((entry for entry in self.agents.values() if entry.usable), key=lambda entry: entry.name)

    def on_state(self, agent: str, state: AgentState, now_s: float, *, retained: bool = False) -> AgentEntry:
        """A state message or a last will; what a process says that was replaced since changes nothing.

        Of two agents of one name one gives way by itself, after a few announcements of both. Where neither does,
        neither is used.
        """
        entry = self._entry(agent, now_s)
        if state.session == 0:  # a process that starts asks who is there; see `fleetnas.agent.service.name_claim`
            return entry
        ours = entry.instance in ("", state.instance)
        if state.state in ("lost", "leaving"):
            if ours and state.session >= entry.session:
                entry.session, entry.instance = state.session, state.instance
                self._leave(entry, state, now_s)
            return entry
        if ours and state.session < entry.session:
            return entry
        if not ours and retained:
            return entry
        if not ours and entry.liveness in ("ready", "busy"):
            self._rival(entry, now_s)
        entry.session, entry.instance = state.session, state.instance
        entry.liveness, entry.reason, entry.lost_since_s = state.state, "", None
        entry.resting = state.detail
        if entry.other_info is not None and entry.other_info.session == state.session:
            entry.info, entry.other_info = entry.other_info, None
        self._seen(entry, now_s, retained)
        return entry

    def on_info(self, agent: str, info: AgentInfo, now_s: float, *, retained: bool = False) -> AgentEntry:
        """What an agent says it is; that of the session at work counts, else that of the newest.

        A device that was set up anew, with a clock that is behind, begins with an older session than before.
        """
        entry = self._entry(agent, now_s)
        at_work = entry.session if entry.liveness in ("ready", "busy") else None
        known = entry.info.session if entry.info is not None else None
        if known is not None and info.session != at_work and (known == at_work or info.session < known):
            entry.other_info = info
            return entry
        entry.info = info
        self._seen(entry, now_s, retained)
        return entry

    def on_heartbeat(self, agent: str, health: Heartbeat, now_s: float) -> AgentEntry:
        """A heartbeat; it brings back an agent that was only silent."""
        entry = self._entry(agent, now_s)
        if entry.session not in (-1, health.session):
            return entry
        entry.conditions, entry.running, entry.outbox = health.conditions, health.task_id, health.outbox
        self._seen(entry, now_s, retained=False)
        return entry

    def on_message(self, agent: str, now_s: float) -> AgentEntry:
        """Any other sign of life."""
        entry = self._entry(agent, now_s)
        self._seen(entry, now_s, retained=False)
        return entry

    def lose(self, agent: str, now_s: float, reason: str) -> None:
        """The caller found out that an agent is gone."""
        self._lose(self._entry(agent, now_s), now_s, reason)

    def on_tick(self, now_s: float) -> list[AgentEntry]:
        """Agents that are lost from now on, because they have been silent for too long."""
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
            self._lose(entry, now_s, reason)
        return silent

    def _entry(self, agent: str, now_s: float) -> AgentEntry:
        entry = self.agents.get(agent)
        if entry is None:
            if len(self.agents) >= MAX_AGENTS:
                raise ProtocolError(f"{agent} is not taken into a fleet of {MAX_AGENTS} agents; it is dropped")
            entry = self.agents[agent] = AgentEntry(agent, known_since_s=now_s)
        return entry

    @staticmethod
    def _seen(entry: AgentEntry, now_s: float, retained: bool) -> None:
        if not retained:
            entry.last_seen_s = now_s
            # Silence may end without a new state: the session is still the one that was lost.
            if entry.liveness == "lost":
                entry.liveness, entry.reason, entry.lost_since_s = "ready", "", None

    @staticmethod
    def _lose(entry: AgentEntry, now_s: float, reason: str) -> None:
        if entry.liveness != "lost":
            entry.lost_since_s = now_s
        entry.liveness, entry.reason, entry.running, entry.phase = "lost", reason, None, None

    def _leave(self, entry: AgentEntry, state: AgentState, now_s: float) -> None:
        left = state.state == "leaving"
        self._lose(entry, now_s, "stopped by its user" if left else "its connection broke (last will)")
        if left:
            entry.liveness = "leaving"

    @staticmethod
    def _rival(entry: AgentEntry, now_s: float) -> None:
        if now_s - entry.rival_seen_s > _RIVALRY_OVER_S:
            entry.takeovers, entry.duplicate = 0, None
        entry.rival_seen_s = now_s
        entry.takeovers += 1
        if entry.takeovers >= _TAKEOVERS:
            entry.duplicate = DuplicateAgentError(
                f"two agents call themselves {entry.name!r} at the same time and neither gives way, so neither can be "
                "trusted with work; stop one of them, or start it under another --name"
            )
