"""Decide whether this agent is the only one of its name, from the messages on its own state topic.

After a connect an agent first claims its name: it publishes a question, a state that changes nothing for the
coordinator, and an agent that already serves under the name answers by announcing itself. Only a claim without an
answer is followed by an announcement.
"""

from __future__ import annotations

from typing import Literal

from fleetnas.agent.service.identity import Identity
from fleetnas.fleet_protocol.messages import AgentState

#: An agent that serves under the name answers within this; waited for only if the broker remembers one. Seconds.
ANSWER_S = 3.0
#: The broker sends our own question back at once; if it is lost, the claim stands after this.
_ECHO_S = 5.0
#: Two agents that claimed at the same moment decide within this time which one stays; later, the one that serves stays.
_CONTEST_S = 15.0
#: A rival that announced itself this often does not yield by itself.
_MAX_RIVAL_ANNOUNCEMENTS = 3

Action = Literal["ignore", "announce", "yield"]


class NameClaim:
    """Decides between agents of one name; exactly one of them stays."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._connected_at = 0.0
        self._has_retained_rival = False
        self._rival_announcements = 0
        self._settled = False

    @property
    def settled(self) -> bool:
        """Whether the name is ours on this connection."""
        return self._settled

    @property
    def question(self) -> AgentState:
        """The state that asks for an agent of this name; its session 0 is older than every other and has no effect."""
        return AgentState(state="lost", session=0, instance=self._identity.instance)

    def on_connected(self, now: float) -> None:
        """Begin a claim: a connection was made, and `question` is published now, not retained."""
        self._connected_at = now
        self._has_retained_rival = self._settled = False
        self._rival_announcements = 0

    def is_unanswered(self, now: float) -> bool:
        """Whether the claim is open and nobody has answered in time."""
        wait_s = ANSWER_S if self._has_retained_rival else _ECHO_S
        return not self._settled and now - self._connected_at >= wait_s

    def settle(self) -> None:
        """End the claim: the name is ours on this connection."""
        self._settled = True

    def receive(self, state: AgentState, *, retained: bool, now: float) -> Action:
        """Return the action that a state on our own topic asks for."""
        alive = state.state in ("ready", "busy")
        if state.instance == self._identity.instance:
            echo = state.session == 0 and not retained
            return "announce" if echo and not self._settled and not self._has_retained_rival else "ignore"
        if retained:
            # The broker remembers an agent: one that serves, or one that died and whose will was not published yet.
            self._has_retained_rival = self._has_retained_rival or alive
            return "ignore"
        if not self._settled:
            return "yield" if alive else "ignore"
        if not alive:
            # A new agent asks, or the late will of an earlier process has overwritten our retained state.
            return "announce"
        self._rival_announcements += 1
        contested = now - self._connected_at < _CONTEST_S or self._rival_announcements >= _MAX_RIVAL_ANNOUNCEMENTS
        rival_is_older = (state.session, state.instance) < (self._identity.session, self._identity.instance)
        return "yield" if contested and rival_is_older else "announce"
