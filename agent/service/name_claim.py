"""Whether this agent is the only one of its name, from what it hears on its own state topic.

After a connect an agent first claims its name: it asks, with a message that changes nothing for the coordinator, and
an incumbent answers by announcing itself. Only a claim without an answer is followed by an announcement.
"""

from __future__ import annotations

from typing import Literal

from fleetnas.agent.service.identity import Identity
from fleetnas.fleet_protocol.messages import AgentState

#: An incumbent answers within this; waited for only where the broker remembers one.
ANSWER_S = 3.0
#: The broker sends our own question back at once; if it is lost, we go on after this.
_ECHO_S = 5.0
#: Two agents that claimed at the same moment settle it within this long; later, an incumbent stays.
_SETTLING_S = 15.0
#: A rival heard this often does not give way by itself.
_STUBBORN = 3

Action = Literal["ignore", "announce", "give_way"]


class NameClaim:
    """Decides between agents of one name; exactly one of them stays."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._connected_at = 0.0
        self._rival_remembered = False
        self._heard = 0
        #: The name is ours on this connection.
        self.settled = False

    @property
    def question(self) -> AgentState:
        """What asks for an incumbent: a state of session 0 is older than every other and counts for nothing."""
        return AgentState(state="lost", session=0, instance=self._identity.instance)

    def connected(self, now: float) -> None:
        """A connection was made, the first or again; `question` is sent now, not retained."""
        self._connected_at = now
        self._rival_remembered = self.settled = False
        self._heard = 0

    def due(self, now: float) -> bool:
        """Nobody has answered in time."""
        wait_s = ANSWER_S if self._rival_remembered else _ECHO_S
        return not self.settled and now - self._connected_at >= wait_s

    def hear(self, state: AgentState, *, retained: bool, now: float) -> Action:
        """What to do about a state on our own topic."""
        alive = state.state in ("ready", "busy")
        if state.instance == self._identity.instance:
            echo = state.session == 0 and not retained
            return "announce" if echo and not self.settled and not self._rival_remembered else "ignore"
        if retained:
            # The broker's memory: an incumbent, or one that died without its will having been published yet.
            self._rival_remembered = self._rival_remembered or alive
            return "ignore"
        if not self.settled:
            return "give_way" if alive else "ignore"
        if not alive:
            # A newcomer asks, or a predecessor's late will has overwritten our retained state.
            return "announce"
        self._heard += 1
        contested = now - self._connected_at < _SETTLING_S or self._heard >= _STUBBORN
        rival_is_older = (state.session, state.instance) < (self._identity.session, self._identity.instance)
        return "give_way" if contested and rival_is_older else "announce"
