"""Run the agent: one thread over one connection, one measuring child and one outbox.

`step` does everything that is due and waits at most a moment; everything that takes time happens elsewhere (the network
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
from fleetnas.agent.service.task_queue import TaskQueue
from fleetnas.agent.service.task_runner import Outcome, TaskRunner
from fleetnas.fleet_protocol.codec import decode, decode_chunk, encode
from fleetnas.fleet_protocol.errors import DuplicateAgentError, ProtocolError, TransportError
from fleetnas.fleet_protocol.messages import (
    Accepted,
    AgentInfo,
    AgentState,
    BlobRequest,
    Failed,
    Inventory,
    Phase,
    Progress,
    Rejected,
    TaskKey,
)
from fleetnas.fleet_protocol.orders import CancelTask, CoordinatorState, MeasureTask
from fleetnas.fleet_protocol.rate_limited_log import RateLimitedLog
from fleetnas.fleet_protocol.security.signing import OrderVerifier
from fleetnas.fleet_protocol.topics import AgentDown, AgentUp, CoordinatorAnnouncement
from fleetnas.fleet_protocol.transports.base import Connected, Disconnected, Received, TransportEvent

#: An idle child is kept this long, with its runtime's memory: a search sends the next task sooner.
KEEP_CHILD_S = 30.0
#: A pause between two tasks that is shorter is not announced.
READY_DELAY_S = 2.0
#: How long one step waits without a task, while a child works, and while a fetch or a cooling goes on.
_IDLE_S, _CHILD_S, _ACTIVE_S = 1.0, 0.25, 0.2
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
        self._queue = TaskQueue(info.settings)
        self._run: TaskRunner | None = None
        #: The reason to wait that was announced last.
        self._announced_wait = ""
        self._coordinator: CoordinatorState | None = None
        self._idle_since: float | None = None
        self.finished = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is queued, running or unacknowledged."""
        return self._run is None and not self._queue and not self._results.unacknowledged

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
        """Do everything that is due.

        Raises `DuplicateAgentError` if another agent used this name first, `TransportError` if the broker refuses
        this agent for good.
        """
        self._take_events()
        self._work()
        now = self._clock()
        self._heartbeat.send_if_due(
            now,
            serving=self._serving,
            task_id=self._run.task.task.task_id if self._run is not None else None,
            unacknowledged=len(self._results.unacknowledged),
        )
        if self._connection.connected and self._name_claim.is_unanswered(now):
            self._take_name()
        if self._serving:
            self._announcement.repeat_if_due(now, *self._state())
            self._results.send_due(now)

    def stop(self) -> None:
        """Reject the tasks that are not done, announce the end, close. Results stay in the outbox."""
        tasks = self._tasks()
        if self._run is not None:
            self._run.stop()
            self._run = None
        self._queue.clear()
        if self._serving:
            for key in tasks:
                self._publish_rejected(Rejected(task=key, reason="leaving"))
            self._announcement.publish_change("leaving", "")
        kept = len(self._results.unacknowledged)
        _log.info("stopping; %d tasks handed back, %d results kept to be delivered", len(tasks), kept)
        self._connection.close()
        self._resources.measurer.close()

    # -- events ------------------------------------------------------------------------------------------------

    def _take_events(self) -> None:
        event = self._connection.poll(self._wait_s())
        for _ in range(_MAX_EVENTS):
            if event is None:
                return
            self._handle(event)
            event = self._connection.poll(0.0)
        if event is not None:
            self._handle(event)

    def _wait_s(self) -> float:
        if self._run is None:
            return 0.0 if self._queue else _IDLE_S
        return 0.0 if self._run.measuring else _ACTIVE_S

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
        if self._run is not None:
            self._run.on_reconnected()
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
        elif self._run is not None:
            failed = self._run.receive(decode_chunk(message.payload))
            if failed is not None:
                self._finish(failed)

    def _on_coordinator(self, state: CoordinatorState, *, retained: bool) -> None:
        previous, self._coordinator = self._coordinator, state
        if state.state == "ready" and (previous != state or not retained):
            # A coordinator that has just started does not know our tasks and results. One that announces the same state
            # again has reconnected, perhaps after us: it missed everything that we published before.
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
        if isinstance(task, MeasureTask):
            for key in task.stored:
                self._results.acknowledge(key)
            self._on_task(task)
        elif task is not None:
            self._on_cancel(task)

    def _on_task(self, task: MeasureTask) -> None:
        key = task.task
        if self._results.send(key):
            return
        if key in self._tasks():
            self._connection.publish("task", Accepted(task=key), qos=0)
            return
        rejected = self._queue.add(task, self._clock())
        if rejected is not None:
            self._publish_rejected(rejected)
            return
        self._idle_since = None
        self._connection.publish("task", Accepted(task=key), qos=0)
        self._announcement.publish_change("busy", self._state()[1])

    def _on_cancel(self, cancel: CancelTask) -> None:
        if self._run is not None and self._run.task.task == cancel.task:
            self._run.stop()
            self._run = None
        elif not self._queue.remove(cancel.task):
            return
        # Not kept in the outbox: a coordinator that cancels a task has already forgotten it.
        self._connection.publish("task", Failed(task=cancel.task, reason="cancelled", detail="by the coordinator"))

    def _publish_rejected(self, rejected: Rejected) -> None:
        self._connection.publish("task", rejected)

    # -- work --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        if self._run is None and self._queue:
            self._run = self._start_next()
            self._announced_wait = ""
        if self._run is None:
            self._idle(self._clock())
            return
        self._idle_since = None
        outcome = self._run.step(self._clock(), _CHILD_S)
        if self._run.waits_for != self._announced_wait:
            self._announced_wait = self._run.waits_for
            if self._announced_wait:
                _log.warning("task %s waits: %s", self._run.task.task.task_id, self._announced_wait)
            else:
                _log.info("task %s goes on", self._run.task.task.task_id)
            self._announcement.publish_change("busy", self._announced_wait)
        if outcome is not None:
            self._finish(outcome)

    def _start_next(self) -> TaskRunner:
        queued = self._queue.pop()
        key = queued.task.task

        def request_blob(request: BlobRequest) -> None:
            self._connection.publish("blob", request)

        def report(phase: Phase, fraction: float) -> None:
            self._connection.publish("task", Progress(task=key, phase=phase, fraction=fraction), qos=0)

        return TaskRunner(queued, self._resources, request_blob, report)

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
        self._run = None
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

    def _tasks(self) -> list[TaskKey]:
        """The running attempt, if any, and those that wait."""
        running = [self._run.task.task] if self._run is not None else []
        return [*running, *self._queue.keys]

    def _knows(self, key: TaskKey) -> bool:
        return key in self._tasks() or self._results.find(key) is not None

    def _state(self) -> tuple[str, str]:
        """The state to announce, and the reason why the running task waits."""
        return "busy" if self._tasks() else "ready", self._run.waits_for if self._run is not None else ""

    def _send_inventory(self) -> None:
        """Publish which tasks and results this agent has, then every unacknowledged result."""
        if not self._serving:
            return
        self._connection.publish(
            "inventory",
            Inventory(
                session=self._identity.session,
                running=self._run.task.task if self._run is not None else None,
                queued=self._queue.keys,
                unacknowledged=self._results.unacknowledged,
            ),
        )
        self._results.send_all(self._clock())
