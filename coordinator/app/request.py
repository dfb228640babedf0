"""Typed requests: one `fleetnas search` on devices, as the command line or Python asks for it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from fleetnas.coordinator.app.local_device import LocalDevice
from fleetnas.coordinator.fleet.bundle_delivery import DEFAULT_AT_ONCE, DEFAULT_RATE_BYTES_PER_S
from fleetnas.coordinator.records.plan import CampaignPlan, RunKind
from fleetnas.coordinator.records.run_connection import RunConnection
from fleetnas.coordinator.records.run_names import LATEST as LATEST
from fleetnas.fleet_protocol.transports.base import BrokerAddress


@dataclass(frozen=True)
class FleetAccess:
    """A fleet on a broker, and the way its agents receive bundles."""

    broker: BrokerAddress
    name: str = "default"
    signing_key: bytes | None = field(default=None, repr=False)
    """Ed25519 key that signs tasks, where the agents' credentials ask for that."""
    credentials: Path | None = None
    """File that the other fields were read from; stored with the run."""
    password_file: Path | None = None
    """File of the login's password; stored with the run, which the password itself is not."""
    origin: str = ""
    """Words on where the broker's address is configured, for errors."""
    mirror: str | None = None
    """URL of a folder where agents may fetch the bundle instead of through the broker."""
    bundle_rate_bytes_per_s: float = DEFAULT_RATE_BYTES_PER_S
    """Rate of bundles through the broker, for all agents together."""
    bundles_at_once: int = DEFAULT_AT_ONCE
    """Number of agents that receive a bundle through the broker at the same time."""
    share: bool = False
    """Share the agents' task messages with the fleet's other coordinators."""

    @property
    def kept(self) -> RunConnection:
        """The way to the fleet as a run keeps it."""
        broker = self.broker
        return RunConnection(
            broker=str(broker),
            credentials=_absolute(self.credentials),
            username=broker.username if self.credentials is None else None,
            password_file=_absolute(self.password_file),
            ca_file=_absolute(broker.ca_file),
            certificate_file=_absolute(broker.certificate_file),
            key_file=_absolute(broker.key_file),
            mirror=self.mirror,
            bundle_rate_bytes_per_s=self.bundle_rate_bytes_per_s,
            bundles_at_once=self.bundles_at_once,
            share=self.share,
        )


@dataclass(frozen=True)
class NewRun:
    """A search, or a measurement of given subnets, from its beginning."""

    supernet: Path
    plan: CampaignPlan
    card: Path | None = None
    """Model card to rewrite once its target is met: of a plan with one given subnet."""
    name: str | None = None
    """Name of the run, beside its id."""


@dataclass(frozen=True)
class ResumedRun:
    """A stored run to go on with."""

    run: str = LATEST
    """Id, name or beginning of one of these, or `LATEST`."""
    supernet: Path | None = None
    """The same bundle at another path; None: where it was."""
    devices: tuple[str, ...] = ()
    """Agents that take part beside those of the run."""
    kind: RunKind = "search"
    """Kind of the latest run."""


@dataclass(frozen=True)
class ImageFolders:
    """Folders with one folder of images per class; None: the built-in digits, or no images."""

    calibration: Path | None = None
    evaluation: Path | None = None
    """Only reported: these images decide nothing."""
    selection: Path | None = None
    """They choose among the `rerank` best candidates of each target."""
    some_classes: bool = False
    """The folders may hold only some of the supernet's classes."""


@dataclass(frozen=True)
class SearchRequest:
    """One search on devices."""

    store: str
    """File or URL of the store; named in the command that resumes the run."""
    devices_at: FleetAccess | LocalDevice
    """A fleet, or this device alone without a broker."""
    run: NewRun | ResumedRun
    out: Path | None = None
    """Folder of results and winners' files; None: no files, or those of the resumed run."""
    images: ImageFolders = ImageFolders()
    metrics: tuple[str, int] | None = None
    """Address and port of the Prometheus metrics."""
    tracking_uri: str | None = field(default=None, repr=False)
    """MLflow's URI, where the ended run is logged."""
    timeout_s: float | None = None
    """Time after which the search ends with the winners verified so far; None: it has all its time."""
    check_devices: Callable[[Collection[str]], None] = lambda names: None
    """Checks the devices that take part, by device and by `DEVICE/SETTING`, before any of them measures."""

    @property
    def kind(self) -> RunKind:
        """Whether subnets are searched, or given ones measured: the command that resumes the run."""
        return self.run.plan.kind if isinstance(self.run, NewRun) else self.run.kind

    @property
    def connection(self) -> RunConnection:
        """The way to the run's devices, as the run keeps it."""
        if isinstance(self.devices_at, LocalDevice):
            return RunConnection(local=True, state_folder=_absolute(self.devices_at.state_folder))
        return self.devices_at.kept


def _absolute(path: Path | str | None) -> str | None:
    return str(Path(path).absolute()) if path is not None else None
