"""Transport over MQTT in a process of its own, for an owner that computes between two messages.

Python runs one thread at a time: beside a busy owner, paho's thread would wait for every packet. A child process
speaks MQTT instead, and passes many events at a time.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeAlias

from fleetnas.fleet_protocol.child_process import child_environment, python_command
from fleetnas.fleet_protocol.errors import TransportError
from fleetnas.fleet_protocol.transports import mqtt
from fleetnas.fleet_protocol.transports.base import (
    BrokerAddress,
    Disconnected,
    Received,
    Transport,
    TransportEvent,
    Will,
    take_events,
)
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport, first_connection
from fleetnas.fleet_protocol.transports.tls import TlsContext

#: Messages in the pipe to the child, in addition to those in the child's own queue to the broker.
MAX_IN_PIPE = 2_000
#: Events that the child passes together.
_MOST_EVENTS = 500
#: Events that may wait for the owner; with more, it reads no report only to learn how many messages were sent.
_MOST_WAITING = 2_000
#: How often the child checks for something to report if no event arrives, and whether its queue has room.
_LOOK_S, _ROOM_S = 0.05, 0.01
#: Messages that the owner passes together at most, and the time for which the child waits after an event for others to
#: report with it.
_MOST_AT_ONCE, _GATHER_S = 200, 0.002
#: A larger message is passed at once.
_LARGE_BYTES = 16_384
_CLOSE_S = 5.0
#: Children that end one after another before their first report: the network is not the cause.
_MAX_FAILED_STARTS = 5

#: A method of `MqttTransport` with its arguments; several messages to publish are one call `publish_all`.
_Call: TypeAlias = tuple[str, tuple[Any, ...], dict[str, Any]]
#: Arguments of `publish`: topic, payload, quality of service, retained, expiry in seconds.
_Message: TypeAlias = tuple[str, bytes, int, bool, float | None]
#: A report of the child: events (messages as tuples, which are faster to pickle), how many messages it has passed to
#: its transport so far, and whether the broker shares subscriptions.
_Report: TypeAlias = tuple[list[TransportEvent | tuple[str, bytes, bool]], int, bool]


class MqttProcess:
    """A `fleetnas.fleet_protocol.transports.base.Transport` that runs `MqttTransport` in a child process. POSIX only.

    If the child ends, the connection is lost: another child is started, subscribes again and connects.
    """

    def __init__(
        self, address: BrokerAddress, client_id: str, will: Will | None = None, *, prefer_five: bool = False
    ) -> None:
        """Take the arguments of `MqttTransport`; `UsageError` if TLS files cannot be used."""
        if address.uses_tls:
            TlsContext.of(address)  # raises here and not in the child
        self.address = address
        self._arguments = (address, client_id, will, prefer_five, mqtt.FIRST_WAIT_MS)
        self._subscriptions: dict[tuple[str, str | None], _Call] = {}
        self._events: deque[TransportEvent] = deque()
        self._sent = self._accepted = 0
        #: Messages that the child gets with the next call; more than one in a block of `together` only.
        self._unsent: list[_Message] = []
        self._together = False
        self._can_share = False
        self._failed_starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    @property
    def can_share(self) -> bool:
        """Whether the broker shares subscriptions; False before it has accepted the connection."""
        return self._can_share

    @property
    def pid(self) -> int | None:
        """Process id of the child, if one was started."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the child, which connects; return at once."""
        ours, theirs = Pipe()
        self._process = subprocess.Popen(
            python_command("fleetnas.fleet_protocol.transports.mqtt_process", "main", str(theirs.fileno())),
            stdin=subprocess.DEVNULL,
            env=child_environment(),
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # a terminal's signals are for the owner, which still sends messages then
        )
        theirs.close()
        self._pipe = ours
        self._sent, self._accepted = len(self._unsent), 0
        for what in (self._arguments, *self._subscriptions.values(), ("start", (), {})):
            self._send(what)
        self._flush()

    def subscribe(self, topic_filter: str, qos: int = 1, *, share: str | None = None) -> None:
        """Receive messages on matching topics, from now on and after every reconnect."""
        call: _Call = ("subscribe", (topic_filter, qos), {"share": share})
        self._subscriptions[topic_filter, share] = call
        self._send_to_child(call)

    def unsubscribe(self, topic_filter: str, *, share: str | None = None) -> None:
        """Receive no more messages by this filter. Those that wait at the broker already still arrive."""
        if self._subscriptions.pop((topic_filter, share), None) is not None:
            self._send_to_child(("unsubscribe", (topic_filter,), {"share": share}))

    def renew(self) -> None:
        """Connect anew without the messages that wait at the broker for this client; `Connected` follows."""
        self._send_to_child(("renew", (), {}))

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: float | None = None
    ) -> None:
        """Queue a message; `TransportError` if the queue is full.

        In a block of `together` the child gets it with the others of the block.
        """
        if self._sent - self._accepted >= MAX_IN_PIPE:
            self._flush()
            self._receive(0.0, every=True)
            if self._sent - self._accepted >= MAX_IN_PIPE:
                raise TransportError(
                    f"the queue to broker {self.address} is full, and {MAX_IN_PIPE} more messages wait for room "
                    "in it; check the network, then try again"
                )
        self._sent += 1
        self._unsent.append((topic, payload, qos, retain, expiry_s))
        if not self._together or len(self._unsent) >= _MOST_AT_ONCE or len(payload) > _LARGE_BYTES:
            self._flush()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Pass the messages of a block to the child together: waking it costs more than a message."""
        self._together = True
        try:
            yield
        finally:
            self._together = False
            self._flush()

    def poll(self, timeout_s: float) -> TransportEvent | None:
        """Return the next event, waiting up to `timeout_s`; None if there was none.

        Raises `TransportError` if children end before their first report, one after another.
        """
        if not self._events:
            self._receive(timeout_s)
        return self._events.popleft() if self._events else None

    def wait_connected(self, timeout_s: float) -> None:
        """Block until connected; `BrokerUnreachableError` with the last reason after `timeout_s` s."""
        self._events.appendleft(first_connection(self.poll, self.address, timeout_s))

    def close(self) -> None:
        """Send the queued messages, waiting at most a few seconds, disconnect cleanly and end the child."""
        if self._process is None or self._pipe is None:
            return
        self._send_to_child(("close", (), {}))
        give_up = time.monotonic() + _CLOSE_S
        with contextlib.suppress(EOFError, OSError):
            while self._pipe.poll(max(0.0, give_up - time.monotonic())) and time.monotonic() < give_up:
                self._pipe.recv_bytes()  # until the child has ended; its last reports are not used
        self._end()

    # -- the child's other end ---------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Pass the queued messages to the child; without a child they wait for one."""
        if self._unsent and self._pipe is not None:
            unsent, self._unsent = self._unsent, []
            self._send(("publish_all", (unsent,), {}))

    def _send_to_child(self, call: _Call) -> None:
        """Have a method of the child's transport called, after the messages that were published before."""
        self._flush()
        self._send(call)

    def _send(self, what: object) -> None:
        if self._pipe is not None:  # subscriptions before the start are sent by `start`
            with contextlib.suppress(OSError):  # `_receive` notices that the child has ended
                self._pipe.send_bytes(pickle.dumps(what))

    def _receive(self, timeout_s: float, *, every: bool = False) -> None:
        """Take the next report that has events, or with `every` all reports that are there."""
        assert self._pipe is not None, "start it first"
        try:
            while self._pipe.poll(timeout_s):
                report: _Report = pickle.loads(self._pipe.recv_bytes())
                events, self._accepted, self._can_share = report
                self._failed_starts = 0
                self._events.extend(Received(*event) if isinstance(event, tuple) else event for event in events)
                if (events and not every) or len(self._events) >= _MOST_WAITING:
                    return
                timeout_s = 0.0
        except (EOFError, OSError):
            self._end()
            self._failed_starts += 1
            if self._failed_starts > _MAX_FAILED_STARTS:
                raise TransportError(
                    f"{self._failed_starts} processes in a row ended before they could speak to the broker; see the "
                    "output of the last one above"
                ) from None
            self._events.append(Disconnected("the process that speaks to the broker has ended; starting another"))
            self.start()

    def _end(self) -> None:
        assert self._process is not None
        assert self._pipe is not None
        self._pipe.close()
        try:
            self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def sent_together(transport: Transport) -> contextlib.AbstractContextManager[None]:
    """Open a block whose messages a transport in another process gets together; others send each at once."""
    return transport.together() if isinstance(transport, MqttProcess) else contextlib.nullcontext()


# -- the child -------------------------------------------------------------------------------------------------


def main() -> None:
    """Run the child on the file descriptor in the first argument, until it is closed or its owner has ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they are for the owner; this child ends with it
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(int(sys.argv[1]))
    address, client_id, will, prefer_five, wait_ms = pickle.loads(pipe.recv_bytes())
    _Child(pipe, MqttTransport(address, client_id, will, prefer_five=prefer_five, first_wait_ms=wait_ms)).run()


class _Child:
    def __init__(self, pipe: Connection, transport: MqttTransport) -> None:
        self._pipe, self._transport = pipe, transport
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._accepted = 0
        self._closing, self._closed = threading.Event(), threading.Event()

    def run(self) -> None:
        """Report events until the transport is closed."""
        for work in (self._read_calls, self._execute_calls):
            threading.Thread(target=_or_exit, args=(work,), daemon=True).start()
        reported: tuple[int, bool] | None = None
        while not self._closed.is_set():
            events = take_events(self._transport, _LOOK_S, 1)
            if events:
                time.sleep(_GATHER_S)
                events += take_events(self._transport, 0.0, _MOST_EVENTS - 1)
            state = (self._accepted, self._transport.can_share)
            if events or state != reported:
                reported = state
                report: _Report = (
                    [(e.topic, e.payload, e.retained) if isinstance(e, Received) else e for e in events],
                    *state,
                )
                try:
                    self._pipe.send_bytes(pickle.dumps(report))
                except OSError:
                    _exit_now()

    def _read_calls(self) -> None:
        # In a thread of its own, so that the owner never waits for the network.
        try:
            while True:
                call: _Call = pickle.loads(self._pipe.recv_bytes())
                if call[0] == "close":
                    self._closing.set()
                self._calls.put(call)
        except (EOFError, OSError):
            if not self._closed.is_set():
                _exit_now()

    def _execute_calls(self) -> None:
        while not self._closed.is_set():
            name, arguments, options = self._calls.get()
            if name == "publish_all":
                for message in arguments[0]:
                    self._publish(message)
            else:
                getattr(self._transport, name)(*arguments, **options)
            if name == "close":
                self._closed.set()

    def _publish(self, message: _Message) -> None:
        topic, payload, qos, retain, expiry_s = message
        while True:
            with contextlib.suppress(TransportError):
                self._transport.publish(topic, payload, qos=qos, retain=retain, expiry_s=expiry_s)
                self._accepted += 1
                return
            if self._closing.wait(_ROOM_S):
                return


def _or_exit(work: Callable[[], None]) -> None:
    """If one thread fails, exit; the parent restarts the process."""
    try:
        work()
    except BaseException:  # noqa: BLE001 - printed, then the process ends
        traceback.print_exc()
        _exit_now()


def _exit_now() -> None:
    """Exit without closing the connection, so that the broker publishes the will."""
    os._exit(1)
