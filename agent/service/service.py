"""Run the agent: one thread over one connection, one measuring child and one outbox.

`step` waits at most a moment; everything that takes time happens elsewhere (the network
in the transport, the measurement in the child), so tests drive it with a clock of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from fleetnas.agent.host.sensors import Sensors
from fleetnas.agent.service.announcement import Announcement, HeartbeatSender
from fleetnas.agent.service.connection import Connection
from fleetnas.agent.service.identity import Identity
from fleetnas.agent.service.name_claim import NameClaim
from fleetnas.agent.service.order_reader import OrderReader
from fleetnas.agent.service.outbox import Outbox
from fleetnas.agent.service.result_delivery import ResultDelivery
from fleetnas.agent.service.run_resources import RunResources
from fleetnas.agent.service.task_pipeline import TaskPipeline
from fleetnas.agent.service.task_runner import Outcome
from fleetnas.fleet_protocol.codec import decode, decode_chunk, encode
from fleetnas.fleet_protocol.errors import DuplicateAgentError, ProtocolError, TransportError
from fleetnas.fleet_protocol.messages import (
    Accepted,
    AgentInfo,
    AgentState,
    Failed,
    Inventory,
    Rejected,
    TaskKey,
)
from fleetnas.fleet_protocol.orders import CancelTask, CoordinatorState, MeasurementTask
from fleetnas.fleet_protocol.rate_limited_log import RateLimitedLog
from fleetnas.fleet_protocol.security.signing import OrderVerifier
from fleetnas.fleet_protocol.topics import AgentDown, AgentUp, CoordinatorAnnouncement
from fleetnas.fleet_protocol.transports.base import Connected, Disconnected, Received, TransportEvent

#: An idle child is kept this long, with its runtime's memory: a search sends the next task sooner.
KEEP_CHILD_S = 30.0
#: A pause between two tasks that is shorter is not announced.
READY_DELAY_S = 2.0
#: How long one step waits for an event without a task, in seconds.
_IDLE_S = 1.0
#: Messages taken from the connection in one step, so that a flood does not starve the child.
_MAX_EVENTS = 200

_log = logging.getLogger("fleetnas.agent")


class AgentService:
    """One agent at work: call `start`, then `step` again and again, then `stop`."""

    def __init__(
        self,
        *,
        identity: Identity,
        connection: Connection,
        info: AgentInfo,
        outbox: Outbox,
        resources: RunResources,
        sensors: Sensors,
        clock: Callable[[], float],
        verifier: OrderVerifier | None = None,
    ) -> None:
        """Without a `verifier`, the orders of everybody who may publish on this agent's topics are accepted."""
        self._identity = identity
        self._connection = connection
        self._resources = resources
        self._clock = clock
        self._refused = RateLimitedLog(_log.warning, clock)
        self._name_claim = NameClaim(identity)
        self._announcement = Announcement(connection, identity, info, clock)
        self._heartbeat = HeartbeatSender(connection, info, sensors, resources.drift, clock)
        self._results = ResultDelivery(outbox, connection)
        self._orders = OrderReader(verifier, self._refused, self._publish_rejected, self._knows)
        self._tasks = TaskPipeline(info, resources, connection)
        self._coordinator: CoordinatorState | None = None
        self._idle_since: float | None = None
        self.finished = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is queued, running or unacknowledged."""
        return not self._tasks.keys and not self._results.unacknowledged

    @property
    def done(self) -> bool:
        """Whether the agent is idle after at least one task, and no coordinator is there to send another."""
        return self.finished > 0 and self.idle and (self._coordinator is None or self._coordinator.state == "leaving")

    @property
    def connected(self) -> bool:
        """Whether the broker is reached now."""
        return self._connection.connected

    @property
    def _serving(self) -> bool:
        return self._connection.connected and self._name_claim.settled

    def start(self) -> None:
        """Subscribe and begin to connect."""
        self._connection.start()

    def step(self) -> None:
        """Take events, go on with the tasks, and publish what it is time for.

        Raises `DuplicateAgentError` if another agent used this name first, `TransportError` if the broker refuses
        this agent for good, `CodeReplacedError` if fleetnas was updated since this process started.
        """
        self._take_events()
        self._work()
        now = self._clock()
        running, unacknowledged = self._tasks.running, len(self._results.unacknowledged)
        self._heartbeat.step(now, serving=self._serving, running=running, unacknowledged=unacknowledged)
        if self._connection.connected and self._name_claim.is_unanswered(now):
            self._take_name()
        if self._serving:
            self._announcement.repeat(now, *self._state())
            self._results.resend(now)

    def stop(self, reason: str = "") -> None:
        """Reject the tasks that are not done, announce the end and its reason, close. Results stay in the outbox."""
        tasks = self._tasks.keys
        self._tasks.stop()
        if self._serving:
            for key in tasks:
                self._publish_rejected(Rejected(task=key, reason="leaving"))
            self._announcement.publish_change("leaving", reason)
        kept = len(self._results.unacknowledged)
        _log.info("stopping; %d tasks handed back, %d results kept to be delivered", len(tasks), kept)
        self._connection.close()
        self._resources.measurer.close()

    # -- events ------------------------------------------------------------------------------------------------

    def _take_events(self) -> None:
        event = self._connection.poll(self._tasks.event_wait_s(_IDLE_S))
        for _ in range(_MAX_EVENTS):
            if event is None:
                return
            self._handle(event)
            event = self._connection.poll(0.0)
        if event is not None:
            self._handle(event)

    def _handle(self, event: TransportEvent) -> None:
        if isinstance(event, Connected):
            self._on_connected()
        elif isinstance(event, Disconnected):
            if event.fatal:
                raise TransportError(f"the broker refuses this agent: {event.reason}; check its login and access rules")
            _log.warning("not connected to the broker: %s; trying again", event.reason)
        else:
            try:
                self._on_message(event)
            except ProtocolError as error:
                self._refused(f"{event.topic[-80:]}: {error}")

    def _on_connected(self) -> None:
        self._name_claim.on_connected(self._clock())
        _log.info("connected to the broker as %s, session %d", self._identity.name, self._identity.session)
        # Nothing else is published before the name is known to be this agent's alone.
        self._connection.publish("state", self._name_claim.question)

    def _take_name(self) -> None:
        self._name_claim.settle()
        self._announcement.restart_interval()
        self._announcement.publish(*self._state())
        self._tasks.on_reconnected()
        self._send_inventory()

    def _on_message(self, message: Received) -> None:
        address = self._connection.parse(message.topic)
        if isinstance(address, CoordinatorAnnouncement):
            self._on_coordinator(decode(CoordinatorState, message.payload), retained=message.retained)
        elif isinstance(address, AgentUp):
            self._on_own_state(decode(AgentState, message.payload), retained=message.retained)
        elif not self._name_claim.settled:
            return  # it may be for another agent of this name; if it is ours, it comes again after `Inventory`
        elif isinstance(address, AgentDown) and address.channel == "task":
            self._on_order(message.payload)
        elif isinstance(address, AgentDown) and address.channel == "ack":
            acknowledgement = self._orders.read_acknowledgement(message.payload)
            if not acknowledgement.stored:
                _log.warning(
                    "the result of %s is forgotten: no coordinator knows its task", acknowledgement.task.task_id
                )
            self._results.acknowledge(acknowledgement.task)
        else:
            outcome = self._tasks.receive(decode_chunk(message.payload))
            if outcome is not None:
                self._finish(outcome)

    def _on_coordinator(self, state: CoordinatorState, *, retained: bool) -> None:
        previous, self._coordinator = self._coordinator, state
        if state.state == "ready" and (previous != state or not retained):
            # A coordinator that has just started does not know our tasks and results. One that announces the same state
            # again has reconnected, perhaps after us: it missed everything that we published before.
            self._tasks.on_reconnected()
            self._send_inventory()

    def _on_own_state(self, state: AgentState, *, retained: bool) -> None:
        action = self._name_claim.receive(state, retained=retained, now=self._clock())
        if action == "announce" and self._name_claim.settled:
            self._announcement.publish(*self._state())
        elif action == "announce":
            self._take_name()
        elif action == "yield":
            self._connection.mute()
            raise DuplicateAgentError(
                f"another agent called {self._identity.name!r} is already in fleet {self._connection.fleet!r}; stop "
                "it, or start this one with another --name"
            )

    # -- orders ------------------------------------------------------------------------------------------------

    def _on_order(self, payload: bytes) -> None:
        task = self._orders.read_task(payload)
        if isinstance(task, CancelTask):
            self._on_cancel(task)
        elif task is not None:
            for key in task.stored:
                self._results.acknowledge(key)
            self._on_task(task)

    def _on_task(self, task: MeasurementTask) -> None:
        key = task.task
        if self._results.send(key):
            return
        if key in self._tasks.keys:
            self._connection.publish("task", Accepted(task=key), qos=0)
            return
        rejected = self._tasks.add(task, self._clock())
        if rejected is not None:
            self._publish_rejected(rejected)
            return
        self._idle_since = None
        self._connection.publish("task", Accepted(task=key), qos=0)
        self._announcement.publish_change("busy", self._tasks.waits_for)

    def _on_cancel(self, cancel: CancelTask) -> None:
        if self._tasks.cancel(cancel.task):
            # Not kept in the outbox: a coordinator that cancels a task has already forgotten it.
            self._connection.publish("task", Failed(task=cancel.task, reason="cancelled", detail="by the coordinator"))

    def _publish_rejected(self, rejected: Rejected) -> None:
        self._connection.publish("task", rejected)

    # -- work --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        now = self._clock()
        outcome = self._tasks.step(now)
        if outcome is None and self._tasks.running is None:
            self._idle(now)
            return
        self._idle_since = None
        self._announcement.publish_change("busy", self._tasks.waits_for)
        if outcome is not None:
            self._finish(outcome)

    def _idle(self, now: float) -> None:
        """Announce `ready`, and end the child, once there has been nothing to do for a while."""
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since >= READY_DELAY_S and self._announcement.is_busy:
            self._announcement.publish_change("ready", "")
        if now - self._idle_since >= KEEP_CHILD_S:
            self._resources.measurer.close()
            self._idle_since = float("inf")

    def _finish(self, outcome: Outcome) -> None:
        self.finished += 1
        key = outcome.task
        if isinstance(outcome, Rejected):
            _log.warning("task %s not done: %s", key.task_id, outcome.detail or outcome.reason)
            self._publish_rejected(outcome)
            return
        if isinstance(outcome, Failed):
            _log.warning("task %s failed: %s: %s", key.task_id, outcome.reason, outcome.detail)
        else:
            measurement = outcome.measurement
            self._heartbeat.note(measurement.after)
            _log.info("task %s: %.3f ms, %s", key.task_id, measurement.median_ms, measurement.quality)
        self._results.add(key, encode(outcome), self._clock())

    # -- state -------------------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Check that every attempt is in one place: at work, waiting or unacknowledged; `ValueError` if not."""
        places = [*self._tasks.keys, *self._results.unacknowledged]
        twice = {key.task_id for key in places if places.count(key) > 1}
        if twice:
            raise ValueError(f"tasks in several places: {', '.join(sorted(twice))}")

    def _knows(self, key: TaskKey) -> bool:
        return key in self._tasks.keys or self._results.find(key) is not None

    def _state(self) -> tuple[str, str]:
        """The state to announce, and the reason why the task at work waits."""
        return "busy" if self._tasks.keys else "ready", self._tasks.waits_for

    def _send_inventory(self) -> None:
        """Publish which tasks and results this agent has, then every unacknowledged result."""
        if not self._serving:
            return
        self._connection.publish(
            "inventory",
            Inventory(
                session=self._identity.session,
                running=self._tasks.running,
                queued=self._tasks.queued,
                unacknowledged=self._results.unacknowledged,
            ),
        )
        self._results.resend_all(self._clock())
