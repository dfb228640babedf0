"""Subscriptions to the agents of a fleet, without the agents that flood.

All messages come through one connection and wait behind each other. So an agent that goes far beyond its budget is not
only dropped here: the broker is told to deliver its messages no longer. The wildcard of the channel is replaced by one
filter for every other agent, the connection is renewed to get rid of the messages that wait at the broker, and every
agent is asked for what it holds. After a pause the wildcard comes back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fleetnas.coordinator.fleet.message_budget import MessageBudget
from fleetnas.fleet_protocol.topics import UP_CHANNELS, Topics, UpChannel
from fleetnas.fleet_protocol.transports.base import Transport

#: Messages beyond the budget, within a minute, after which an agent is ignored; one that was ignored lately has fewer.
EXCESS, EXCESS_AGAIN, EXCESS_WINDOW_S = 2000, 200, 60.0
#: The first pause, and the longest: each is twice as long as the one before that ended less than `MEMORY_S` earlier. On
#: `state` all are short, so that new agents are seen soon whatever else is flooded.
PAUSE_S, LONGEST_PAUSE_S, MEMORY_S = 60.0, 960.0, 1800.0
#: Filters that one channel may have. In a fleet of more names no agent is ignored, only dropped.
MAX_FILTERS = 10_000
#: Interval between two renewals of the connection.
RENEW_EVERY_S = 1.0
#: Quality of service of each channel.
_QOS: dict[UpChannel, int] = {channel: 0 if channel in ("heartbeat", "blob") else 1 for channel in UP_CHANNELS}


@dataclass(slots=True)
class _Excess:
    """Messages of one agent on one channel beyond its budget."""

    count: int
    since_s: float


@dataclass(slots=True)
class _Pause:
    """Time during which one agent is ignored on one channel."""

    length_s: float
    ends_s: float
    ended: bool = False

    def end(self) -> None:
        """Note that the agent is listened to again."""
        self.ended = True


class AgentSubscriptions:
    """One wildcard filter per channel; while an agent is ignored on it, one filter per other agent.

    A new agent is found by its messages on the channels that still have their wildcard, and by its retained state when
    that of `state` comes back, at most `PAUSE_S` later.
    """

    def __init__(self, transport: Transport, topics: Topics, share: str | None, budget: MessageBudget | None) -> None:
        """`share` is the name of the shared subscription to task messages; without `budget` no agent is ignored."""
        self._transport, self._topics, self._share, self._budget = transport, topics, share, budget
        self._known: dict[str, None] = {}
        self._excess: dict[tuple[str, UpChannel], _Excess] = {}
        self._pauses: dict[tuple[str, UpChannel], _Pause] = {}
        self._ignored_topics: frozenset[str] = frozenset()
        self._renewed_s = float("-inf")
        self._renew_asked = False

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of the agents that are ignored on a channel, sorted."""
        return tuple(sorted({agent for (agent, _), pause in self._pauses.items() if not pause.ended}))

    def start(self) -> None:
        """Subscribe to all channels of all agents."""
        for channel in UP_CHANNELS:
            self._subscribe(self._topics.every_agent(channel), channel)

    def is_ignored(self, topic: str) -> bool:
        """Whether a message on this topic is one of those that the broker had sent before it was told to stop."""
        return topic in self._ignored_topics

    def on_connected(self) -> None:
        """Let every agent send all that it holds, as the announcement of the coordinator asks it to."""
        if self._budget is not None:
            self._budget.fill_up()

    def admits(self, agent: str, channel: UpChannel, size: int) -> bool:
        """Whether a message of `size` bytes is within the agent's budget; far too many others have it ignored."""
        if self._budget is None:
            return True
        if not self._budget.admits(agent, "blob" if channel == "blob" else "message", size):
            self._exceed(agent, channel)
            return False
        if agent not in self._known:
            self._add(agent)
        return True

    def on_tick(self) -> None:
        """End the pauses that are over, and renew the connection where that had to wait."""
        if self._budget is None or not (self._pauses or self._renew_asked):
            return
        now = self._budget.now()
        for (agent, channel), pause in list(self._pauses.items()):
            if now >= pause.ends_s + MEMORY_S:
                del self._pauses[agent, channel]
            elif now >= pause.ends_s and not pause.ended:
                pause.end()
                self._heed(agent, channel)
        if self._renew_asked and now - self._renewed_s >= RENEW_EVERY_S:
            self._renew(now)

    # -- agents and filters ------------------------------------------------------------------------------------

    def _add(self, agent: str) -> None:
        """Remember a new name; subscribe to it on the channels without a wildcard."""
        if len(self._known) >= MAX_FILTERS:
            return
        self._known[agent] = None
        for channel in {channel for (_, channel), pause in self._pauses.items() if not pause.ended}:
            self._subscribe(self._topics.up(agent, channel), channel)

    def _exceed(self, agent: str, channel: UpChannel) -> None:
        assert self._budget is not None
        now = self._budget.now()
        excess = self._excess.get((agent, channel))
        if excess is None or now - excess.since_s > EXCESS_WINDOW_S:
            if len(self._excess) >= MAX_FILTERS:  # of invented names; none of them sends much
                self._excess.clear()
            excess = self._excess[agent, channel] = _Excess(0, now)
        excess.count += 1
        if excess.count < EXCESS_AGAIN or len(self._known) >= MAX_FILTERS:
            return
        if excess.count >= EXCESS or any(name == agent for name, _ in self._pauses):
            self._ignore(agent, channel, now)

    def _ignore(self, agent: str, channel: UpChannel, now: float) -> None:
        """Have the broker deliver no more messages of an agent on one channel, for a pause."""
        assert self._budget is not None
        del self._excess[agent, channel]
        before = self._pauses.get((agent, channel))
        if before is not None and not before.ended:
            return
        had_wildcard = not self._ignored_on(channel)
        length_s = PAUSE_S
        if before is not None and channel != "state":
            length_s = min(2 * before.length_s, LONGEST_PAUSE_S)
        self._pauses[agent, channel] = _Pause(length_s, now + length_s)
        if had_wildcard:
            self._unsubscribe(self._topics.every_agent(channel), channel)
            for other in self._filtered(channel):
                self._subscribe(self._topics.up(other, channel), channel)
        else:
            self._unsubscribe(self._topics.up(agent, channel), channel)
        self._set_ignored_topics()
        self._budget.note(
            f"{agent} sends far too much: its messages on {channel!r} are ignored for {length_s:.0f} s; stop its "
            "agent, or revoke its credentials"
        )
        self._renew(now)

    def _heed(self, agent: str, channel: UpChannel) -> None:
        """Receive an agent's messages again."""
        assert self._budget is not None
        if self._ignored_on(channel):
            self._subscribe(self._topics.up(agent, channel), channel)
        else:  # first the wildcard: a message that arrives twice does no harm
            self._subscribe(self._topics.every_agent(channel), channel)
            for other in self._known:
                self._unsubscribe(self._topics.up(other, channel), channel)
        self._set_ignored_topics()
        self._budget.note(f"{agent} is listened to on {channel!r} again")

    def _renew(self, now: float) -> None:
        """Get rid of the messages that wait; agents send their results again when the coordinator is back."""
        self._renew_asked = now - self._renewed_s < RENEW_EVERY_S
        if not self._renew_asked:
            self._renewed_s = now
            self._transport.renew()

    def _ignored_on(self, channel: UpChannel) -> set[str]:
        return {agent for (agent, where), pause in self._pauses.items() if where == channel and not pause.ended}

    def _filtered(self, channel: UpChannel) -> Iterable[str]:
        ignored = self._ignored_on(channel)
        return [agent for agent in self._known if agent not in ignored]

    def _set_ignored_topics(self) -> None:
        self._ignored_topics = frozenset(
            self._topics.up(agent, channel) for (agent, channel), pause in self._pauses.items() if not pause.ended
        )

    def _subscribe(self, topic_filter: str, channel: UpChannel) -> None:
        share = self._share if channel == "task" else None
        self._transport.subscribe(topic_filter, _QOS[channel], share=share)

    def _unsubscribe(self, topic_filter: str, channel: UpChannel) -> None:
        self._transport.unsubscribe(topic_filter, share=self._share if channel == "task" else None)
