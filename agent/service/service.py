"""The agent's main loop: one thread over one transport, one measuring child and one outbox.

`step` does what is due and waits at most a moment; everything that takes time happens elsewhere (the network in the
transport, the measuring in the child), so tests drive it with a clock of their own.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from fleetnas.agent.host.sensors import Sensors
from fleetnas.agent.service.identity import Identity
from fleetnas.agent.service.name_claim import NameClaim
from fleetnas.agent.service.outbox import Outbox
from fleetnas.agent.service.task_runner import Outcome, PausableDeadline, QueuedTask, RunResources, TaskRunner
from fleetnas.fleet_protocol.codec import decode, decode_chunk, decode_task, encode
from fleetnas.fleet_protocol.envelope import read_envelope
from fleetnas.fleet_protocol.errors import (
    DuplicateAgentError,
    ProtocolError,
    StoreError,
    TransportError,
    UntrustedError,
)
from fleetnas.fleet_protocol.messages import (
    Accepted,
    Acknowledgement,
    AgentInfo,
    AgentState,
    BlobRequest,
    CancelTask,
    Conditions,
    CoordinatorState,
    Failed,
    Heartbeat,
    Inventory,
    MeasureTask,
    Message,
    Phase,
    Progress,
    Rejected,
    Task,
    TaskKey,
)
from fleetnas.fleet_protocol.rate_limited_log import RateLimitedLog
from fleetnas.fleet_protocol.security.signing import OrderVerifier
from fleetnas.fleet_protocol.topics import AgentDown, AgentUp, CoordinatorAnnouncement, Topics, UpChannel
from fleetnas.fleet_protocol.transports.base import Connected, Disconnected, Received, Transport, TransportEvent, Will

HEALTH_EVERY_S = 30.0
#: A result that was not acknowledged is sent again after this long on the same connection, then after twice as long,
#: up to the maximum: its coordinator may be gone for good. So is who we are: some brokers lose messages silently, and
#: an agent that nobody knows gets no work.
RESEND_EVERY_S = 30.0
MAX_RESEND_S = 1800.0
#: Tasks that may wait; the coordinator sends one or two ahead.
QUEUE_LIMIT = 8
#: Results kept for coordinators that have not come back; of more, the oldest are given up.
OUTBOX_LIMIT = 1000
#: A child that has nothing to do keeps its runtime's memory this long: a search asks again sooner, a shelf does not.
KEEP_CHILD_S = 30.0
#: Nobody need hear of a pause between two tasks that is shorter.
SAY_READY_S = 2.0
#: How long one step waits where there is nothing to do, where a child works, and where a fetch or a cooling runs.
_IDLE_S, _CHILD_S, _ACTIVE_S = 1.0, 0.25, 0.2
#: Messages taken from the transport in one step, so that a flood does not starve the child.
_MAX_EVENTS = 200
_UNSENT = (float("-inf"), 0.0)

_log = logging.getLogger("fleetnas.agent")


def last_will(topics: Topics, identity: Identity) -> Will:
    """What the broker says for us when we vanish."""
    state = AgentState(state="lost", session=identity.session, instance=identity.instance)
    return Will(topics.up(identity.name, "state"), encode(state))


class AgentService:
    """An agent at work. `start`, then `step` again and again, then `stop`."""

    def __init__(
        self,
        *,
        identity: Identity,
        topics: Topics,
        info: AgentInfo,
        transport: Transport,
        outbox: Outbox,
        resources: RunResources,
        sensors: Sensors,
        clock: Callable[[], float],
        verifier: OrderVerifier | None = None,
    ) -> None:
        """Without a `verifier`, whoever may publish on this agent's topics is believed."""
        self._identity = identity
        self._topics = topics
        self._info = info
        self._transport = transport
        self._outbox = outbox
        self._resources = resources
        self._sensors = sensors
        self._clock = clock
        self._verifier = verifier
        self._refusals = RateLimitedLog(_log.warning, clock)
        self._name_claim = NameClaim(identity)
        self._queue: deque[QueuedTask] = deque()
        self._run: TaskRunner | None = None
        self._rests_for = ""
        #: Results that the disk did not take: sent like the others, and lost only with the process.
        self._unsaved: dict[TaskKey, bytes] = {}
        #: When each result that is not acknowledged was last sent, and how long to wait before the next time.
        self._sent: dict[TaskKey, tuple[float, float]] = dict.fromkeys((key for key, _ in outbox.pending()), _UNSENT)
        self._connected = False
        self._state: AgentState | None = None
        self._announced_at = self._started_at = clock()
        self._announce_again_s = RESEND_EVERY_S
        self._coordinator: CoordinatorState | None = None
        self._conditions = Conditions()
        self._health_at = self._started_at
        self._idle_since: float | None = None
        self._drives_a_phone = all(setting.runtime == "adb" for setting in info.settings)
        self.finished = 0

    @property
    def idle(self) -> bool:
        """Nothing queued, nothing running, nothing unacknowledged."""
        return self._run is None and not self._queue and not self._sent

    @property
    def done(self) -> bool:
        """Idle after at least one task, with no coordinator about that could give another."""
        return self.finished > 0 and self.idle and (self._coordinator is None or self._coordinator.state == "leaving")

    @property
    def connected(self) -> bool:
        """Whether the broker is reached now."""
        return self._connected

    @property
    def _serving(self) -> bool:
        return self._connected and self._name_claim.settled

    def start(self) -> None:
        """Subscribe and begin to connect."""
        name = self._identity.name
        for channel in ("task", "ack"):
            self._transport.subscribe(self._topics.down(name, channel))
        self._transport.subscribe(self._topics.down(name, "blob"), qos=0)
        self._transport.subscribe(self._topics.up(name, "state"))
        self._transport.subscribe(self._topics.coordinator)
        self._transport.start()

    def step(self) -> None:
        """Do what is due.

        `DuplicateAgentError` where another agent of this name was here first, `TransportError` where the broker
        refuses us for good.
        """
        self._take_events()
        self._work()
        now = self._clock()
        if now - self._health_at >= HEALTH_EVERY_S:
            self._health_at = now
            self._send_health(now)
        if self._connected and self._name_claim.due(now):
            self._take_the_name()
        if self._serving:
            if now - self._announced_at >= self._announce_again_s:
                self._announce_again_s = min(2 * self._announce_again_s, MAX_RESEND_S)
                self._announce()
            self._send_pending(now)

    def stop(self) -> None:
        """Hand back what is not done, say goodbye, close. Results stay in the outbox."""
        held = self._held()
        if self._run is not None:
            self._run.stop()
            self._run = None
        self._queue.clear()
        if self._serving:
            for key in held:
                self._publish("task", Rejected(task=key, reason="leaving"))
            self._announce_state("leaving")
        _log.info("stopping; %d tasks handed back, %d results kept to be delivered", len(held), len(self._sent))
        self._transport.close()
        self._resources.measurer.close()

    # -- events ------------------------------------------------------------------------------------------------

    def _take_events(self) -> None:
        run = self._run
        wait_s = _IDLE_S if run is None and not self._queue else 0.0 if run and run.measuring else _ACTIVE_S
        if self._queue and run is None:
            wait_s = 0.0
        event = self._transport.poll(wait_s)
        for _ in range(_MAX_EVENTS):
            if event is None:
                return
            self._handle(event)
            event = self._transport.poll(0.0)
        if event is not None:
            self._handle(event)

    def _handle(self, event: TransportEvent) -> None:
        if isinstance(event, Connected):
            self._on_connected()
        elif isinstance(event, Disconnected):
            self._connected = False
            if event.fatal:
                raise TransportError(f"the broker refuses this agent: {event.reason}; check its login and access rules")
            _log.warning("not connected to the broker: %s; trying again", event.reason)
        else:
            try:
                self._on_message(event)
            except ProtocolError as error:
                self._refusals(f"{event.topic[-80:]}: {error}")

    def _on_connected(self) -> None:
        now = self._clock()
        self._connected = True
        self._name_claim.connected(now)
        _log.info("connected to the broker as %s, session %d", self._identity.name, self._identity.session)
        # First make sure that the name is ours alone.
        self._publish("state", self._name_claim.question)

    def _take_the_name(self) -> None:
        self._name_claim.settled = True
        self._announce_again_s = RESEND_EVERY_S
        self._announce()
        if self._run is not None:
            self._run.reconnected()
        self._send_next()

    def _on_message(self, message: Received) -> None:
        address = self._topics.parse(message.topic)
        if isinstance(address, CoordinatorAnnouncement):
            self._on_coordinator(decode(CoordinatorState, message.payload), retained=message.retained)
        elif isinstance(address, AgentUp):
            self._on_own_state(decode(AgentState, message.payload), retained=message.retained)
        elif not self._name_claim.settled:
            return  # it may be another's of this name; if it is ours, it comes again after `Inventory`
        elif isinstance(address, AgentDown) and address.channel == "task":
            task = self._read_order(message.payload)
            if task is None or not self._trusted(task, message.payload):
                return
            if isinstance(task, MeasureTask):
                for key in task.stored:
                    self._on_acknowledgement(key)
                self._on_task(task)
            else:
                self._on_cancel(task)
        elif isinstance(address, AgentDown) and address.channel == "ack":
            acknowledgement = decode(Acknowledgement, message.payload)
            if self._verifier is not None:
                self._verifier.check("ack", message.payload)
            if not acknowledgement.stored:
                _log.warning(
                    "the result of %s is forgotten: no coordinator knows its task", acknowledgement.task.task_id
                )
            self._on_acknowledgement(acknowledgement.task)
        elif self._run is not None:
            failed = self._run.receive(decode_chunk(message.payload))
            if failed is not None:
                self._finish(failed)

    def _read_order(self, payload: bytes) -> Task | None:
        """The order in a payload. A coordinator whose order is not understood is told so, though not often."""
        try:
            return decode_task(payload)
        except ProtocolError as error:
            if self._verifier is not None:
                self._verifier.check("task", payload)
            envelope = read_envelope(payload)
            said = self._refusals(f"task {envelope.key.task_id if envelope is not None else 'without a name'}: {error}")
            if said and envelope is not None and envelope.op != "cancel":
                detail = str(error)[:500]
                self._publish("task", Rejected(task=envelope.key, reason="not_understood", detail=detail))
            return None

    def _trusted(self, task: Task, payload: bytes) -> bool:
        """Whether the pinned coordinator gave this order. One that lacks the key is told so, though not often."""
        if self._verifier is None:
            return True
        try:
            self._verifier.check("task", payload)
        except UntrustedError as error:
            said = self._refusals(f"task {task.task.task_id}: {error}")
            ours = task.task in self._held() or self._stored(task.task) is not None
            if said and error.answerable and isinstance(task, MeasureTask) and not ours:
                self._publish("task", Rejected(task=task.task, reason="not_trusted", detail=str(error)[:500]))
            return False
        return True

    def _on_coordinator(self, state: CoordinatorState, *, retained: bool) -> None:
        previous, self._coordinator = self._coordinator, state
        if state.state == "ready" and (previous != state or not retained):
            # One that has just started knows nothing of what we hold. One that says the same again has connected again,
            # perhaps after us: what we told a broker that had just been restarted, nobody heard.
            self._send_next()

    def _on_own_state(self, state: AgentState, *, retained: bool) -> None:
        action = self._name_claim.hear(state, retained=retained, now=self._clock())
        if action == "announce" and self._name_claim.settled:
            self._announce()
        elif action == "announce":
            self._take_the_name()
        elif action == "give_way":
            self._connected = False  # and say nothing more: what this name holds is the other's
            raise DuplicateAgentError(
                f"another agent called {self._identity.name!r} is already in fleet {self._topics.fleet!r}; stop it, or "
                "start this one with another --name"
            )

    def _on_task(self, task: MeasureTask) -> None:
        key = task.task
        stored = self._stored(key)
        if stored is not None:
            self._publish_bytes("task", stored)
            return
        if key in self._held():
            self._publish("task", Accepted(task=key), qos=0)
            return
        # A newer attempt replaces one that still waits; the coordinator has given that one up.
        self._queue = deque(queued for queued in self._queue if queued.task.task.task_id != key.task_id)
        reason = self._objection(task)
        if reason is not None:
            self._publish("task", reason)
            return
        self._queue.append(QueuedTask(task, PausableDeadline(task.deadline_s, self._clock())))
        self._idle_since = None
        self._publish("task", Accepted(task=key), qos=0)
        self._announce_state("busy")

    def _objection(self, task: MeasureTask) -> Rejected | None:
        if task.setting not in self._info.settings:
            offered = ", ".join(setting.label for setting in self._info.settings)
            detail = f"this agent offers {offered}, not {task.setting.label}"
            return Rejected(task=task.task, reason="setting_unavailable", detail=detail[:500])
        if len(self._queue) >= QUEUE_LIMIT:
            return Rejected(task=task.task, reason="busy", detail=f"{QUEUE_LIMIT} tasks wait already")
        return None

    def _on_cancel(self, cancel: CancelTask) -> None:
        if self._run is not None and self._run.task.task == cancel.task:
            self._run.stop()
            self._run = None
        elif any(queued.task.task == cancel.task for queued in self._queue):
            self._queue = deque(queued for queued in self._queue if queued.task.task != cancel.task)
        else:
            return
        # Not kept in the outbox: who cancels has already forgotten the task.
        self._publish("task", Failed(task=cancel.task, reason="cancelled", detail="by the coordinator"))

    def _on_acknowledgement(self, key: TaskKey) -> None:
        self._unsaved.pop(key, None)
        self._sent.pop(key, None)
        try:
            self._outbox.acknowledge(key)
        except StoreError as error:
            _log.error("%s; the result of %s will be sent again, which does no harm", error, key.task_id)

    # -- work --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        if self._run is None and self._queue:
            queued = self._queue.popleft()
            key = queued.task.task

            def say(phase: Phase, fraction: float) -> None:
                self._publish("task", Progress(task=key, phase=phase, fraction=fraction), qos=0)

            def ask(request: BlobRequest) -> None:
                self._publish("blob", request)

            self._run = TaskRunner(queued, self._resources, ask, say)
            self._rests_for = ""
        if self._run is None:
            self._idle(self._clock())
            return
        self._idle_since = None
        outcome = self._run.step(self._clock(), _CHILD_S)
        if self._run.resting != self._rests_for:
            self._rests_for = self._run.resting
            if self._rests_for:
                _log.warning("task %s waits: %s", self._run.task.task.task_id, self._rests_for)
            else:
                _log.info("task %s goes on", self._run.task.task.task_id)
            self._announce_state("busy")
        if outcome is not None:
            self._finish(outcome)

    def _idle(self, now: float) -> None:
        """Say so, and let the child go, once there has been nothing to do for a while."""
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since >= SAY_READY_S and self._state is not None and self._state.state == "busy":
            self._announce_state("ready")
        if now - self._idle_since >= KEEP_CHILD_S:
            self._resources.measurer.close()
            self._idle_since = float("inf")

    def _finish(self, outcome: Outcome) -> None:
        self._run = None
        self.finished += 1
        key = outcome.task
        if isinstance(outcome, Rejected):
            _log.warning("task %s not done: %s", key.task_id, outcome.detail or outcome.reason)
            self._publish("task", outcome)
            return
        if isinstance(outcome, Failed):
            _log.warning("task %s failed: %s: %s", key.task_id, outcome.reason, outcome.detail)
        else:
            measurement = outcome.measurement
            self._conditions = measurement.after
            _log.info("task %s: %.3f ms, %s", key.task_id, measurement.median_ms, measurement.quality)
        payload = encode(outcome)
        self._keep(key, payload)
        self._sent[key] = self._clock(), RESEND_EVERY_S
        self._publish_bytes("task", payload)

    def _keep(self, key: TaskKey, payload: bytes) -> None:
        try:
            self._outbox.put(key, payload)
            for dropped in self._outbox.give_up_oldest(OUTBOX_LIMIT) if len(self._sent) >= OUTBOX_LIMIT else ():
                self._sent.pop(dropped, None)
                _log.error(
                    "the result of %s is given up: %d newer ones wait to be acknowledged", dropped.task_id, OUTBOX_LIMIT
                )
        except StoreError as error:
            _log.error("%s; the result of %s is kept in memory and sent from there", error, key.task_id)
            self._unsaved[key] = payload

    def _held(self) -> list[TaskKey]:
        running = [self._run.task.task] if self._run is not None else []
        return running + [queued.task.task for queued in self._queue]

    # -- sending -----------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        self._announced_at = self._clock()
        self._announce_state("busy" if self._held() else "ready", again=True)
        self._publish("info", self._info, retain=True)

    def _announce_state(self, state: str, *, again: bool = False) -> None:
        resting = self._run.resting[:200] if self._run is not None else ""
        announced = AgentState.model_validate(
            {
                "state": state,
                "session": self._identity.session,
                "instance": self._identity.instance,
                "detail": resting,
            }
        )
        if again or announced != self._state:
            self._state = announced
            self._publish("state", announced, retain=True)

    def _send_next(self) -> None:
        """After every connect: what we hold, and then every result that was not acknowledged."""
        if not self._serving:
            return
        self._publish(
            "inventory",
            Inventory(
                session=self._identity.session,
                running=self._run.task.task if self._run is not None else None,
                queued=tuple(queued.task.task for queued in self._queue),
                unacknowledged=tuple(self._sent),
            ),
        )
        self._sent = dict.fromkeys(self._sent, _UNSENT)
        self._send_pending(self._clock())

    def _send_pending(self, now: float) -> None:
        for key, (sent_at, wait_s) in list(self._sent.items()):
            if now - sent_at >= wait_s:
                self._sent[key] = now, min(max(RESEND_EVERY_S, 2 * wait_s), MAX_RESEND_S)
                payload = self._stored(key)
                if payload is not None:
                    self._publish_bytes("task", payload)

    def _stored(self, key: TaskKey) -> bytes | None:
        """The result of an attempt that was made, from memory or disk."""
        try:
            return self._unsaved.get(key) or self._outbox.find(key)
        except StoreError as error:
            _log.error("%s", error)
            return None

    def _send_health(self, now: float) -> None:
        if not self._serving:
            return
        # Beside a measurement, which reads them itself, sensors would disturb it; and they are not those of a phone.
        if self._run is None and not self._drives_a_phone:
            self._conditions = self._sensors.read()
            self._resources.speed.saw(self._conditions)
        self._publish(
            "heartbeat",
            Heartbeat(
                session=self._identity.session,
                uptime_s=max(0.0, now - self._started_at),
                conditions=self._conditions,
                task_id=self._run.task.task.task_id if self._run is not None else None,
                outbox=len(self._sent),
            ),
            qos=0,
        )

    def _publish(self, channel: UpChannel, message: Message, *, qos: int = 1, retain: bool = False) -> None:
        self._publish_bytes(channel, encode(message), qos=qos, retain=retain)

    def _publish_bytes(self, channel: UpChannel, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        if not self._connected:
            return  # stale by the next connect, after which whatever counts is said again
        topic = self._topics.up(self._identity.name, channel)
        try:
            self._transport.publish(topic, payload, qos=qos, retain=retain)
        except TransportError as error:
            # Nothing durable rests on it: state and results are sent again after the next connect.
            _log.warning("%s", error)
