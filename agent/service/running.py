"""`fleetnas-agent run`: everything put together, until a signal or an error ends it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from fleetnas.agent.cli.service_manager import ServiceManager
from fleetnas.agent.host.battery import BatteryRule
from fleetnas.agent.host.limits import read_limits, thread_objection, total_memory_bytes
from fleetnas.agent.host.probe import agent_info
from fleetnas.agent.host.sensors import Sensors
from fleetnas.agent.measuring.host_lock import default_host_lock_path
from fleetnas.agent.measuring.worker import Worker, child_command
from fleetnas.agent.service.identity import Identity
from fleetnas.agent.service.outbox import Outbox
from fleetnas.agent.service.own_name import stranded
from fleetnas.agent.service.service import AgentService, last_will
from fleetnas.agent.service.state_folder import StateFolder
from fleetnas.agent.service.task_runner import RunResources
from fleetnas.agent.transfer.blobs import DEFAULT_CACHE_BYTES, BlobCache, limit_partials
from fleetnas.agent.transfer.mirror import MirrorPolicy, Mirrors
from fleetnas.fleet_protocol.errors import BrokerUnreachableError
from fleetnas.fleet_protocol.folders import temporary_folder
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.fleet_protocol.security.signing import OrderVerifier
from fleetnas.fleet_protocol.topics import Topics, check_name
from fleetnas.fleet_protocol.transports.base import BrokerAddress, Transport, Will
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport
from fleetnas.fleet_protocol.transports.tls import trust

_log = logging.getLogger("fleetnas.agent")


@dataclass(frozen=True, kw_only=True)
class AgentOptions:
    """What an agent is, however it reaches its coordinator."""

    name: str
    settings: Sequence[RuntimeSetting]
    state_folder: Path
    fleet: str = "default"
    cache_bytes: int = DEFAULT_CACHE_BYTES
    memory_limit_bytes: int = 0
    battery: BatteryRule = field(default_factory=BatteryRule)
    #: Ed25519 keys one of which must have signed every order; empty: whoever may publish on our topics is believed.
    trusted_keys: Sequence[bytes] = ()
    mirrors: Mirrors = field(default_factory=Mirrors)


@dataclass(frozen=True, kw_only=True)
class RunOptions(AgentOptions):
    """What `fleetnas-agent run` was asked for."""

    broker: BrokerAddress
    #: End with an error when the broker was not reached by then; None: go on trying.
    connect_timeout_s: float | None = None
    #: End with the first search that gave it work.
    once: bool = False


class _StoppedError(BaseException):
    """A signal asked to stop while the agent was not yet serving."""


@dataclass
class _Stop:
    """Set by the first SIGTERM or SIGINT; the second ends the process as it always does."""

    asked: bool = False
    #: Whether the signal also raises `_StoppedError`: the agent is made ready, which may take minutes.
    raises: bool = True

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)
        if self.raises:
            raise _StoppedError


def run_agent(options: RunOptions) -> None:
    """Serve until SIGTERM or SIGINT. Raises what keeps the agent from working."""
    stop = _Stop()
    stop.listen()
    os.umask(0o077)  # results and bundles are nobody else's
    try:
        with open_service(options, lambda client_id, will: MqttTransport(options.broker, client_id, will)) as service:
            stop.raises = False
            _serve(service, options, stop)
    except _StoppedError:
        _log.info("stopped before the fleet was joined")


@contextlib.contextmanager
def open_service(options: AgentOptions, make_transport: Callable[[str, Will], Transport]) -> Iterator[AgentService]:
    """An agent that is not started yet, on a transport made of its client id and last will; let go at the end."""
    topics = Topics(options.fleet)
    folder = StateFolder(options.state_folder, topics.fleet, check_name(options.name, "agent name"))
    temporary_folder()
    folder.prepare()
    identity = Identity.claim(folder.agent, folder.name, time.time())
    limit_partials(folder.partial, (), options.cache_bytes)
    verifier = None
    if options.trusted_keys:
        verifier = OrderVerifier(options.trusted_keys, topics.fleet, identity.name, identity.session)
    outbox = Outbox(folder.outbox)
    worker = Worker(child_command(default_host_lock_path(), options.memory_limit_bytes, folder.engines))
    try:
        info = agent_info(folder.name, identity.session, options.settings, worker, folder.probes)
        client_id = f"fleetnas-{topics.fleet}-{identity.name}-{identity.instance}"
        _log.info("agent %s of fleet %s on %s", folder.name, topics.fleet, info.profile.model)
        _warn(folder, options.settings)
        yield AgentService(
            identity=identity,
            topics=topics,
            info=info,
            transport=make_transport(client_id, last_will(topics, identity)),
            outbox=outbox,
            resources=RunResources(
                BlobCache(folder.blobs, options.cache_bytes),
                folder.partial,
                worker,
                time.time,
                battery=options.battery,
                mirrors=options.mirrors,
            ),
            sensors=Sensors(),
            clock=time.monotonic,
            verifier=verifier,
        )
    finally:
        worker.kill()
        outbox.close()
        identity.release()


def _warn(folder: StateFolder, settings: Sequence[RuntimeSetting]) -> None:
    """Say once what keeps settings from running as they say, and results from being delivered."""
    limits = read_limits()
    for objection in filter(None, (thread_objection(setting, limits) for setting in settings)):
        _log.warning("%s", objection)
    for other in stranded(folder.root, folder.fleet, folder.name):
        _log.warning(
            "%d results of %s wait in %s; deliver them with: fleetnas-agent run --name %s",
            *(other.unacknowledged, other.name, folder.root, other.name),
        )


def mirrors_beside(broker: BrokerAddress, policy: MirrorPolicy) -> Mirrors:
    """Mirrors whose certificates the system's authorities vouch for, or the broker's own."""

    def tls() -> ssl.SSLContext:
        context = ssl.create_default_context()
        if broker.ca_file is not None or broker.ca_pem is not None:
            trust(context, broker.ca_file, broker.ca_pem)
        return context

    return Mirrors(policy, tls)


def default_memory_limit_bytes() -> int:
    """Four fifths of the memory that this process may have, for the measuring child.

    That is the device's, or what its container or service is limited to; 0, no limit, where the system does not tell.
    """
    total = total_memory_bytes()
    return int(total * 4 / 5) if total is not None else 0


def _serve(service: AgentService, options: RunOptions, stop: _Stop) -> None:
    manager = ServiceManager()
    service.start()
    manager.ready()
    began = time.monotonic()
    reached = False
    try:
        while not stop.asked and not (options.once and service.done):
            service.step()
            manager.alive(time.monotonic())
            reached = reached or service.connected
            limit_s = options.connect_timeout_s
            if not reached and limit_s is not None and time.monotonic() - began > limit_s:
                raise BrokerUnreachableError(
                    f"broker {options.broker} was not reached within {limit_s:g} s; check that it runs, the address, "
                    "the port and any firewall, or run `fleetnas-agent doctor`"
                )
    finally:
        manager.stopping()
        service.stop()
