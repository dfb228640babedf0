"""Check the broker: its name, its port, the login and a round trip of one message."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

from fleetnas.agent.cli.doctor.finding import DoctorContext, Finding
from fleetnas.fleet_protocol.codec import decode, encode
from fleetnas.fleet_protocol.errors import FleetnasError, ProtocolError
from fleetnas.fleet_protocol.messages import AgentState
from fleetnas.fleet_protocol.topics import Topics
from fleetnas.fleet_protocol.transports.base import BrokerAddress, Received
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport

_BROKER_TIMEOUT_S = 10.0


def check_broker(context: DoctorContext) -> Iterator[Finding]:
    """Resolve the broker's name, connect to its port, log in and send one message to ourselves."""
    broker = context.broker
    if broker is None:
        yield Finding("broker", "warning", "not tested", "fleetnas-agent doctor --broker HOST:PORT")
        return
    try:
        address = socket.getaddrinfo(broker.host, broker.port, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        fix = "check the name, or give the broker's IP address"
        yield Finding("broker name", "broken", f"{broker.host} is not known: {error}", fix)
        return
    yield Finding("broker name", "ok", f"{broker.host} is {address}")
    try:
        socket.create_connection((broker.host, broker.port), timeout=_BROKER_TIMEOUT_S).close()
    except OSError as error:
        fix = "start the broker (`fleetnas broker`), check its port and any firewall between"
        yield Finding("broker port", "broken", f"{broker} does not answer: {error}", fix)
        return
    yield Finding("broker port", "ok", f"{broker} answers")
    yield from _round_trip(context, broker)


def _round_trip(context: DoctorContext, broker: BrokerAddress) -> Iterator[Finding]:
    """Log in, and send ourselves a state of session 0, which has no effect on coordinators."""
    topic = Topics(context.fleet).up(context.name, "state")
    instance = os.urandom(8).hex()
    transport = MqttTransport(broker, f"fleetnas-doctor-{instance}")
    transport.subscribe(topic)
    transport.start()
    try:
        try:
            transport.wait_connected(_BROKER_TIMEOUT_S)
        except FleetnasError as error:
            fix = "check --credentials, or --username, $FLEETNAS_PASSWORD, and --ca-file where the broker speaks TLS"
            yield Finding("broker login", "broken", str(error), fix)
            return
        yield Finding("broker login", "ok", f"{_login(broker)}, {'over TLS' if broker.uses_tls else 'unencrypted'}")
        begin = time.monotonic()
        transport.publish(topic, encode(AgentState(state="lost", session=0, instance=instance)))
        while (left_s := begin + _BROKER_TIMEOUT_S - time.monotonic()) > 0:
            event = transport.poll(left_s)
            if isinstance(event, Received) and _instance(event) == instance:
                took_ms = 1000 * (time.monotonic() - begin)
                yield Finding("round trip", "ok", f"{took_ms:.1f} ms through {topic}")
                return
        fix = f"let this login publish and subscribe below {topic.removesuffix('up/state')}"
        yield Finding("round trip", "broken", f"nothing came back through {topic}", fix)
    finally:
        transport.close()


def _login(broker: BrokerAddress) -> str:
    if broker.username is not None:
        return f"as {broker.username}"
    return "by certificate" if broker.certificate_file or broker.certificate_pem else "as anonymous"


def _instance(event: Received) -> str:
    try:
        return decode(AgentState, event.payload).instance
    except ProtocolError:
        return ""
