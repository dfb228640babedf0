"""Announce the agent: its state, its description and its heartbeat."""

from __future__ import annotations

from collections.abc import Callable

from fleetnas.agent.host.sensors import Sensors
from fleetnas.agent.service.connection import MAX_RESEND_S, RESEND_EVERY_S, Connection
from fleetnas.agent.service.drift_monitor import DriftMonitor
from fleetnas.agent.service.identity import Identity
from fleetnas.fleet_protocol.codec import encode
from fleetnas.fleet_protocol.messages import AgentInfo, AgentState, Conditions, Heartbeat, TaskKey
from fleetnas.fleet_protocol.topics import Topics
from fleetnas.fleet_protocol.transports.base import Will

HEARTBEAT_EVERY_S = 30.0
_MAX_DETAIL = 200


def last_will(topics: Topics, identity: Identity) -> Will:
    """Return the message that the broker publishes when the agent's connection breaks: its state is `lost`."""
    state = AgentState(state="lost", session=identity.session, instance=identity.instance)
    return Will(topics.up(identity.name, "state"), encode(state))


class Announcement:
    """Publishes the agent's state and `AgentInfo`, both retained, and repeats them at growing intervals.

    An agent that no coordinator knows gets no tasks, and some brokers lose messages silently.
    """

    def __init__(self, connection: Connection, identity: Identity, info: AgentInfo, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._identity = identity
        self._info = info
        self._clock = clock
        self._last: AgentState | None = None
        self._published_at = clock()
        self._repeat_after_s = RESEND_EVERY_S

    @property
    def is_busy(self) -> bool:
        """Whether the state that was published last is `busy`."""
        return self._last is not None and self._last.state == "busy"

    def publish(self, state: str, detail: str) -> None:
        """Publish the state, even if it is unchanged, and the agent's description."""
        self._published_at = self._clock()
        self._publish_state(self._state(state, detail))
        self._connection.publish("info", self._info, retain=True)

    def publish_change(self, state: str, detail: str) -> None:
        """Publish the state if it differs from the one that was published last."""
        new = self._state(state, detail)
        if new != self._last:
            self._publish_state(new)

    def repeat(self, now: float, state: str, detail: str) -> None:
        """Publish everything again if the interval is over, and double the interval."""
        if now - self._published_at >= self._repeat_after_s:
            self._repeat_after_s = min(2 * self._repeat_after_s, MAX_RESEND_S)
            self.publish(state, detail)

    def restart_interval(self) -> None:
        """Begin with the shortest interval again, as after a connect."""
        self._repeat_after_s = RESEND_EVERY_S

    def _state(self, state: str, detail: str) -> AgentState:
        return AgentState.model_validate(
            {
                "state": state,
                "session": self._identity.session,
                "instance": self._identity.instance,
                "detail": detail[:_MAX_DETAIL],
            }
        )

    def _publish_state(self, state: AgentState) -> None:
        self._last = state
        self._connection.publish("state", state, retain=True)


class HeartbeatSender:
    """Publishes a heartbeat every `HEARTBEAT_EVERY_S` s with the state of the device that runs the models."""

    def __init__(
        self,
        connection: Connection,
        info: AgentInfo,
        sensors: Sensors,
        drift: DriftMonitor,
        clock: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._session = info.session
        # A phone that the host drives is not measured by the host's sensors.
        self._reads_sensors = any(setting.runtime != "adb" for setting in info.settings)
        self._sensors = sensors
        self._drift = drift
        self._started_at = self._sent_at = clock()
        self._conditions = Conditions()

    def note(self, conditions: Conditions) -> None:
        """Use the conditions of a measurement that has ended until the sensors are read again."""
        self._conditions = conditions

    def step(self, now: float, *, serving: bool, running: TaskKey | None, unacknowledged: int) -> None:
        """Send a heartbeat if the interval is over; an agent that does not serve leaves it out."""
        if now - self._sent_at < HEARTBEAT_EVERY_S:
            return
        self._sent_at = now
        if not serving:
            return
        # Reading sensors would disturb a measurement, which reads them itself.
        if running is None and self._reads_sensors:
            self._conditions = self._sensors.read()
            self._drift.note_conditions(self._conditions)
        self._connection.publish(
            "heartbeat",
            Heartbeat(
                session=self._session,
                uptime_s=max(0.0, now - self._started_at),
                conditions=self._conditions,
                task_id=running.task_id if running is not None else None,
                outbox=unacknowledged,
            ),
            qos=0,
        )
