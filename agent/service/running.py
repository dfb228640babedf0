"""Compose an agent from its options, and run it until a signal or an error ends it."""

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

from fleetnas.agent.host.battery import BatteryRule
from fleetnas.agent.host.limits import read_limits, thread_objection, total_memory_bytes
from fleetnas.agent.host.sensors import Sensors
from fleetnas.agent.measuring.host_lock import default_host_lock_path
from fleetnas.agent.measuring.worker import Worker, child_command
from fleetnas.agent.service.agent_info import agent_info
from fleetnas.agent.service.announcement import last_will
from fleetnas.agent.service.connection import Connection
from fleetnas.agent.service.identity import Identity
from fleetnas.agent.service.outbox import Outbox
from fleetnas.agent.service.own_name import stranded
from fleetnas.agent.service.run_resources import RunResources
from fleetnas.agent.service.service import AgentService
from fleetnas.agent.service.service_manager import ServiceManager
from fleetnas.agent.service.state_folder import StateFolder
from fleetnas.agent.transfer.blobs import DEFAULT_CACHE_BYTES, BlobCache, limit_partials
from fleetnas.agent.transfer.mirror import MirrorPolicy, Mirrors
from fleetnas.fleet_protocol.errors import BrokerUnreachableError, CodeReplacedError
from fleetnas.fleet_protocol.folders import temporary_folder
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.fleet_protocol.security.signing import OrderVerifier
from fleetnas.fleet_protocol.topics import Topics, check_name
from fleetnas.fleet_protocol.transports.base import BrokerAddress, Transport, Will
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport
from fleetnas.fleet_protocol.transports.tls import trust

#: Why an agent leaves whose code was replaced, for people at the coordinator.
_UPDATED = "fleetnas was updated on this device while its agent ran; restart fleetnas-agent on the device"

_log = logging.getLogger("fleetnas.agent")


@dataclass(frozen=True, kw_only=True)
class AgentOptions:
    """Options of an agent that do not depend on how it reaches its coordinator."""

    name: str
    settings: Sequence[RuntimeSetting]
    state_folder: Path
    fleet: str = "default"
    cache_bytes: int = DEFAULT_CACHE_BYTES
    memory_limit_bytes: int = 0
    battery: BatteryRule = field(default_factory=BatteryRule)
    #: Ed25519 keys, one of which must have signed every order; empty: every order on our topics is accepted.
    trusted_keys: Sequence[bytes] = ()
    mirrors: Mirrors = field(default_factory=Mirrors)
    #: Names that its owner gave the device.
    tags: tuple[str, ...] = ()
    #: Measure model files that a coordinator sends, not subnets of a bundle alone.
    accept_models: bool = False


@dataclass(frozen=True, kw_only=True)
class RunOptions(AgentOptions):
    """Options of `fleetnas-agent run`."""

    broker: BrokerAddress
    #: End with an error if the broker is not reached within this time; None: go on trying.
    connect_timeout_s: float | None = None
    #: End with the first search that sent a task.
    once: bool = False


class _StoppedError(BaseException):
    """A signal asked the agent to stop before it served."""


@dataclass
class _Stop:
    """Set by the first SIGTERM or SIGINT; the second has its default effect."""

    asked: bool = False
    #: Whether the signal also raises `_StoppedError`: preparing the agent may take minutes.
    _raises: bool = True

    def listen(self) -> None:
        """Handle the signals from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def begin_serving(self) -> None:
        """Only set `asked` from now on: the main loop looks at it."""
        self._raises = False

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)
        if self._raises:
            raise _StoppedError


def run_agent(options: RunOptions) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises `FleetnasError` if the agent cannot work: `UsageError` for its options, `StoreError` for its state folder,
    `RuntimeUnavailableError` for a setting, `TransportError` for its broker, `CodeReplacedError` if fleetnas was
    updated meanwhile: a service manager starts it again, with the new code.
    """
    stop = _Stop()
    stop.listen()
    os.umask(0o077)  # results and bundles are for this user alone
    try:
        with open_service(options, lambda client_id, will: MqttTransport(options.broker, client_id, will)) as service:
            stop.begin_serving()
            _serve(service, options, stop)
    except _StoppedError:
        _log.info("stopped before the fleet was joined")


@contextlib.contextmanager
def open_service(options: AgentOptions, make_transport: Callable[[str, Will], Transport]) -> Iterator[AgentService]:
    """Yield an agent that is not started yet, and free everything at the end.

    `make_transport` makes its transport from a client id and a last will.
    """
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
        info = agent_info(folder.name, identity.session, options.settings, worker, folder.probes, tags=options.tags)
        info = info.model_copy(update={"accepts_models": options.accept_models})
        client_id = f"fleetnas-{topics.fleet}-{identity.name}-{identity.instance}"
        _log.info("agent %s of fleet %s on %s", folder.name, topics.fleet, info.profile.model)
        warn_before_serving(folder, options.settings)
        yield AgentService(
            identity=identity,
            connection=Connection(make_transport(client_id, last_will(topics, identity)), topics, identity.name),
            info=info,
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


def warn_before_serving(folder: StateFolder, settings: Sequence[RuntimeSetting]) -> None:
    """Warn once of settings that cannot use all their threads, and of results that wait under another name."""
    limits = read_limits()
    for objection in filter(None, (thread_objection(setting, limits) for setting in settings)):
        _log.warning("%s", objection)
    for other in stranded(folder.root, folder.fleet, folder.name):
        _log.warning(
            "%d results of %s wait in %s; deliver them with: fleetnas-agent run --name %s",
            *(other.unacknowledged, other.name, folder.root, other.name),
        )


def mirrors_beside(broker: BrokerAddress, policy: MirrorPolicy) -> Mirrors:
    """Return mirrors that trust the system's authorities, and the broker's."""

    def tls() -> ssl.SSLContext:
        context = ssl.create_default_context()
        if broker.ca_file is not None or broker.ca_pem is not None:
            trust(context, broker.ca_file, broker.ca_pem)
        return context

    return Mirrors(policy, tls)


def default_memory_limit_bytes() -> int:
    """Return the memory limit of the measuring child: four fifths of the memory that this process may have.

    That is the device's memory, or the limit of its container or service; 0, no limit, if the system does not tell.
    """
    total = total_memory_bytes()
    return int(total * 4 / 5) if total is not None else 0


def _serve(service: AgentService, options: RunOptions, stop: _Stop) -> None:
    manager = ServiceManager()
    service.start()
    manager.ready()
    began = time.monotonic()
    reached = False
    reason = ""
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
    except CodeReplacedError:
        reason = _UPDATED
        raise
    finally:
        manager.stopping()
        service.stop(reason)
