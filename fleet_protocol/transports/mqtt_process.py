"""The transport over MQTT in a process of its own, for an owner that computes between two messages.

Python runs one thread at a time: beside an owner that is always busy paho's thread would wait for every packet. Here a
child does nothing but MQTT, and hands over many events at a time.
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
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeAlias

from fleetnas.fleet_protocol.child_process import child_environment, python_command
from fleetnas.fleet_protocol.errors import TransportError
from fleetnas.fleet_protocol.transports.base import (
    BrokerAddress,
    Disconnected,
    Received,
    TransportEvent,
    Will,
    take_events,
)
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport, first_connection
from fleetnas.fleet_protocol.transports.tls import TlsContext

#: Messages on their way to the child; beyond what the child's own queue to the broker holds.
MAX_ON_THEIR_WAY = 2_000
#: Events that the child hands over together.
_MOST_EVENTS = 500
#: Events that wait for the owner, beyond which it takes no further ones only to learn what was sent.
_MOST_WAITING = 2_000
#: How often the child looks whether there is something to tell where nothing arrives, and whether its queue has room.
_LOOK_S, _ROOM_S = 0.05, 0.01
_CLOSE_S = 5.0
#: Children that die one after another before they have said anything, and what is wrong is not the network.
_MAX_FAILED_STARTS = 5

#: A method of `MqttTransport` with its arguments.
_Call: TypeAlias = tuple[str, tuple[Any, ...], dict[str, Any]]
#: What the child says: events (messages as tuples, which are quicker to hand over), how many of the messages so far it
#: has given to its transport, and whether the broker shares subscriptions.
_Report: TypeAlias = tuple[list[TransportEvent | tuple[str, bytes, bool]], int, bool]


class MqttProcess:
    """A `fleetnas.fleet_protocol.transports.base.Transport` like `MqttTransport`, which it runs in a child. POSIX only.

    A child that dies is a connection that is lost: another one is started, subscribes again and connects.
    """

    def __init__(
        self, address: BrokerAddress, client_id: str, will: Will | None = None, *, prefer_five: bool = False
    ) -> None:
        """As `MqttTransport`; `UsageError` where TLS files cannot be used."""
        if address.uses_tls:
            TlsContext.of(address)  # here, where an error can be told
        self.address = address
        self._arguments = (address, client_id, will, prefer_five)
        self._subscriptions: list[_Call] = []
        self._events: deque[TransportEvent] = deque()
        self._on_their_way = self._given = 0
        self._can_share = False
        self._failed_starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    @property
    def can_share(self) -> bool:
        return self._can_share

    @property
    def pid(self) -> int | None:
        """Process id of the child, if one was started."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        ours, theirs = Pipe()
        self._process = subprocess.Popen(
            python_command("fleetnas.fleet_protocol.transports.mqtt_process", "main", str(theirs.fileno())),
            stdin=subprocess.DEVNULL,
            env=child_environment(),
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # a terminal's signals are the owner's, who has something left to say
        )
        theirs.close()
        self._pipe = ours
        self._on_their_way = self._given = 0
        self._say(self._arguments)
        for call in (*self._subscriptions, ("start", (), {})):
            self._say(call)

    def subscribe(self, topic_filter: str, qos: int = 1, *, share: str | None = None) -> None:
        call: _Call = ("subscribe", (topic_filter, qos), {"share": share})
        self._subscriptions.append(call)
        self._say(call)

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: float | None = None
    ) -> None:
        if self._on_their_way - self._given >= MAX_ON_THEIR_WAY:
            self._receive(0.0, every=True)
            if self._on_their_way - self._given >= MAX_ON_THEIR_WAY:
                raise TransportError(
                    f"the queue to broker {self.address} is full, and {MAX_ON_THEIR_WAY} more messages wait for room "
                    "in it; check the network, then try again"
                )
        self._on_their_way += 1
        self._say(("publish", (topic, payload), {"qos": qos, "retain": retain, "expiry_s": expiry_s}))

    def poll(self, timeout_s: float) -> TransportEvent | None:
        if not self._events:
            self._receive(timeout_s)
        return self._events.popleft() if self._events else None

    def wait_connected(self, timeout_s: float) -> None:
        """As `MqttTransport.wait_connected`."""
        self._events.appendleft(first_connection(self.poll, self.address, timeout_s))

    def close(self) -> None:
        if self._process is None or self._pipe is None:
            return
        self._say(("close", (), {}))
        give_up = time.monotonic() + _CLOSE_S
        with contextlib.suppress(EOFError, OSError):
            while self._pipe.poll(max(0.0, give_up - time.monotonic())) and time.monotonic() < give_up:
                self._pipe.recv_bytes()  # until the child has ended; whatever it has left to say is late
        self._end()

    # -- the child's other end ---------------------------------------------------------------------------------

    def _say(self, what: object) -> None:
        if self._pipe is not None:  # what is subscribed before is said at the start
            with contextlib.suppress(OSError):  # found out when its events are taken
                self._pipe.send_bytes(pickle.dumps(what))

    def _receive(self, timeout_s: float, *, every: bool = False) -> None:
        """Take the next events, or with `every` all that were said so far."""
        assert self._pipe is not None, "start it first"
        try:
            while self._pipe.poll(timeout_s):
                report: _Report = pickle.loads(self._pipe.recv_bytes())
                events, self._given, self._can_share = report
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
                    f"{self._failed_starts} processes in a row ended before they could speak to the broker; what the "
                    "last of them said stands above"
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


# -- the child -------------------------------------------------------------------------------------------------


def main() -> None:
    """Be the child on the descriptor that the first argument is; ends when it is told to or its owner is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they are the owner's; we end with it
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(int(sys.argv[1]))
    address, client_id, will, prefer_five = pickle.loads(pipe.recv_bytes())
    _Child(pipe, MqttTransport(address, client_id, will, prefer_five=prefer_five)).run()


class _Child:
    def __init__(self, pipe: Connection, transport: MqttTransport) -> None:
        self._pipe, self._transport = pipe, transport
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._given = 0
        self._closing, self._closed = threading.Event(), threading.Event()

    def run(self) -> None:
        for work in (self._read, self._carry_out):
            threading.Thread(target=_or_exit, args=(work,), daemon=True).start()
        told: tuple[int, bool] | None = None
        while not self._closed.is_set():
            events = take_events(self._transport, _LOOK_S, _MOST_EVENTS)
            standing = (self._given, self._transport.can_share)
            if events or standing != told:
                told = standing
                report: _Report = (
                    [(e.topic, e.payload, e.retained) if isinstance(e, Received) else e for e in events],
                    *standing,
                )
                try:
                    self._pipe.send_bytes(pickle.dumps(report))
                except OSError:
                    _exit_now()

    def _read(self) -> None:
        # Always, so that the owner never waits for the network.
        try:
            while True:
                call: _Call = pickle.loads(self._pipe.recv_bytes())
                if call[0] == "close":
                    self._closing.set()
                self._calls.put(call)
        except (EOFError, OSError):
            if not self._closed.is_set():
                _exit_now()

    def _carry_out(self) -> None:
        while not self._closed.is_set():
            name, arguments, options = self._calls.get()
            if name == "publish":
                self._publish(arguments, options)
            else:
                getattr(self._transport, name)(*arguments, **options)
            if name == "close":
                self._closed.set()

    def _publish(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        while True:
            with contextlib.suppress(TransportError):
                self._transport.publish(*arguments, **options)
                self._given += 1
                return
            if self._closing.wait(_ROOM_S):
                return


def _or_exit(work: Callable[[], None]) -> None:
    """Half a child would be worse than none: its owner starts another."""
    try:
        work()
    except BaseException:
        traceback.print_exc()
        _exit_now()


def _exit_now() -> None:
    """The owner is gone without a word, and so is this process: the broker publishes the will."""
    os._exit(1)
