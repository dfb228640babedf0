"""The embedded MQTT broker (amqtt): for one machine, for tests and for a trusted network.

It accepts every client. Use a real broker with TLS and access rules in production.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from fleetnas.fleet_protocol.addresses import check_host, host_and_port
from fleetnas.fleet_protocol.errors import MissingDependencyError, TransportError
from fleetnas.fleet_protocol.installing import install_package
from fleetnas.fleet_protocol.transports.base import DEFAULT_PORT, BrokerAddress

if TYPE_CHECKING:
    from amqtt.broker import Broker
    from amqtt.session import Session

_START_S, _STOP_S = 20.0, 10.0


class EmbeddedBroker:
    """A broker on a thread of its own, with its own event loop; a context manager.

    Port 0 takes a free one. The broker ends with its process and keeps no state: agents and coordinator store what
    must last.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = DEFAULT_PORT) -> None:
        self._host, self._port = check_host(host) if host else host, port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="embedded-broker", daemon=True)

    @property
    def address(self) -> BrokerAddress:
        """Address of the broker; if it listens on every interface, the loopback address."""
        ways_in = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
        return BrokerAddress(ways_in.get(self._host, self._host), self._port)

    def start(self) -> None:
        """Listen; `TransportError` where the port is not available."""
        self._thread.start()
        if not self._ready.wait(_START_S):
            raise TransportError(f"the embedded broker did not start within {_START_S:g} s; try again")
        if self._error is not None:
            if isinstance(self._error, MissingDependencyError):
                raise self._error
            raise TransportError(
                f"the embedded broker cannot listen on {host_and_port(self._host, self._port)}: {self._error}; stop "
                "what uses the port, or choose another with --port"
            ) from self._error

    def stop(self) -> None:
        """Disconnect all clients and stop listening."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_STOP_S)

    def __enter__(self) -> EmbeddedBroker:
        self.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.stop()

    # -- its own thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # noqa: BLE001 - `start` raises it on the caller's thread
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        broker = _make_broker(self._host, self._port)
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        # A client that disappears in the middle of a packet is not an error.
        self._loop.set_exception_handler(lambda _, __: None)
        await broker.start()
        self._port = _listening_port(broker)
        self._ready.set()
        await self._stop.wait()
        await broker.shutdown()


def _make_broker(host: str, port: int) -> Broker:
    try:
        from amqtt.broker import Broker
    except ImportError as error:
        raise MissingDependencyError(
            f"the embedded broker needs amqtt ({error}); run: {install_package('amqtt')}"
        ) from error
    for name in ("amqtt", "transitions"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    bind = f"{host}:{port}"  # IPv6 too: amqtt hands brackets on to the resolver, which knows none

    class OwnRetainedBroker(Broker):  # type: ignore[misc]
        """Offers a new client the retained messages of its own subscriptions; amqtt those of all clients."""

        async def _publish_retained_messages_for_subscription(
            self, subscription: tuple[str, int], session: Session
        ) -> None:
            if any(subscriber is session for subscriber, _ in self._subscriptions.get(subscription[0], ())):
                await super()._publish_retained_messages_for_subscription(subscription, session)

    return OwnRetainedBroker(
        {
            "listeners": {"default": {"type": "tcp", "bind": bind}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )


def _listening_port(broker: Broker) -> int:
    # amqtt does not publish the port that the system chose.
    server = broker._servers["default"].instance  # noqa: SLF001 - no public way
    return int(server.sockets[0].getsockname()[1])
