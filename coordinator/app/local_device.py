"""A device that coordinates its own search: agent and coordinator in one process, on a broker in memory.

There is no thread and no network: whenever the coordinator has no event to take, its agent gets a turn. The measuring
child is a process of its own, as everywhere.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fleetnas.agent.runtimes.settings import installed_runtime, parse_setting
from fleetnas.agent.service.own_name import own_name, remember_name
from fleetnas.agent.service.running import AgentOptions, default_memory_limit_bytes, open_service
from fleetnas.agent.service.state_folder import default_state_folder
from fleetnas.coordinator.records.stored import DeviceRecord
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.fleet_protocol.transports.base import TransportEvent, Will
from fleetnas.fleet_protocol.transports.memory import MemoryBroker

#: Fleet name of a device alone. The agent's state is kept apart from that of a service on the same device.
LOCAL_FLEET = "local"
#: Sleep between two turns of an agent that is busy with something other than waiting for its child, seconds.
_ACTIVE_S = 0.005


@dataclass(frozen=True)
class LocalDevice:
    """This device, for a search without a broker."""

    settings: tuple[RuntimeSetting, ...] = ()
    """Device settings to measure; empty: those of the resumed run, else the installed runtime's."""
    state_folder: Path | None = None
    """Folder of the agent's results and its copy of the bundle; None: the agent's default."""

    @classmethod
    def parse(
        cls, settings: Sequence[str], runtime: str | None, threads: int | None, state_folder: Path | None
    ) -> LocalDevice:
        """Read settings as `fleetnas-agent run --setting` takes them, or the parts of one setting.

        Raises:
            UsageError: a setting cannot be read, or a whole one is given beside parts.
        """
        if settings and (runtime is not None or threads is not None):
            raise UsageError("--setting describes a whole setting; leave out --runtime and --threads")
        texts = list(settings)
        if runtime is not None or threads is not None:
            part = [] if threads is None else [f"threads={threads}"]
            texts = [",".join([runtime or installed_runtime(), *part])]
        return cls(tuple(dict.fromkeys(parse_setting(text) for text in texts)), state_folder)

    def agent_options(self, stored: Sequence[DeviceRecord]) -> AgentOptions:
        """Make the options of the agent; `stored` are the device settings of a resumed run.

        Raises:
            UsageError: the resumed run has several devices.
        """
        names = sorted({device.device for device in stored})
        if len(names) > 1:
            raise UsageError(
                f"this run is of {len(names)} devices ({', '.join(names[:5])}), so no single one can go on with it; "
                "resume it with --broker"
            )
        known = tuple(device.setting for device in stored)
        state_folder = self.state_folder or default_state_folder()
        name = names[0] if names else own_name(state_folder, LOCAL_FLEET)
        if not names:
            remember_name(state_folder, name)
        return AgentOptions(
            name=name,
            settings=self.settings or known or (parse_setting(installed_runtime()),),
            state_folder=state_folder,
            fleet=LOCAL_FLEET,
            memory_limit_bytes=default_memory_limit_bytes(),
            accept_models=True,  # the files are this user's own
        )


class LocalTransport:
    """The coordinator's connection to the agent in its own process; a `CampaignTransport`."""

    can_share = False

    def __init__(self, options: AgentOptions, client_id: str, will: Will) -> None:
        """Probe the device and open its agent's state; raises the errors of `open_service`."""
        broker = MemoryBroker()
        self._inner = broker.transport(client_id, will)
        self._opened = contextlib.ExitStack()
        self._agent = self._opened.enter_context(open_service(options, broker.transport))
        self._started = False

    def wait_connected(self, timeout_s: float) -> None:
        """Return at once: both sides are in this process."""

    def start(self) -> None:
        """Connect both sides."""
        self._inner.start()
        self._agent.start()
        self._started = True

    def subscribe(self, topic_filter: str, qos: int = 1, *, share: str | None = None) -> None:
        """Receive messages that match, from now on."""
        self._inner.subscribe(topic_filter, qos, share=share)

    def unsubscribe(self, topic_filter: str, *, share: str | None = None) -> None:
        """Receive no more messages by this filter."""
        self._inner.unsubscribe(topic_filter, share=share)

    def renew(self) -> None:
        """Connect anew without the messages that wait."""
        self._inner.renew()

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: float | None = None
    ) -> None:
        """Queue a message for the agent."""
        self._inner.publish(topic, payload, qos=qos, retain=retain, expiry_s=expiry_s)

    def poll(self, timeout_s: float) -> TransportEvent | None:
        """Return the next event, or None; without one, and with time to wait, give the agent a turn before sleeping."""
        event = self._inner.poll(0)
        if event is not None or timeout_s <= 0:
            return event
        self._agent.step()
        event = self._inner.poll(0)
        if event is None:
            time.sleep(timeout_s if self._agent.idle else min(timeout_s, _ACTIVE_S))
        return event

    def close(self) -> None:
        """Give the agent a last turn, and stop it."""
        with contextlib.closing(self._inner), self._opened:
            if self._started:
                self._started = False
                self._opened.callback(self._agent.stop)
                self._agent.step()  # it receives requeued tasks and acknowledgements
