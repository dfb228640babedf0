"""Typed requests: one `fleetnas search` on devices, as the command line or Python asks for it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from fleetnas.coordinator.app.local_device import LocalDevice
from fleetnas.coordinator.fleet.bundle_delivery import DEFAULT_AT_ONCE, DEFAULT_RATE_BYTES_PER_S
from fleetnas.coordinator.records.plan import CampaignPlan, RunKind
from fleetnas.fleet_protocol.transports.base import BrokerAddress

#: In place of a run's id: the fleet's latest run that was interrupted.
LATEST = "latest"


@dataclass(frozen=True)
class FleetAccess:
    """A fleet on a broker, and the way its agents receive bundles."""

    broker: BrokerAddress
    name: str = "default"
    signing_key: bytes | None = field(default=None, repr=False)
    """Ed25519 key that signs tasks, where the agents' credentials ask for that."""
    credentials: Path | None = None
    """File that the other fields were read from; named in the command that resumes the run."""
    mirror: str | None = None
    """URL of a folder where agents may fetch the bundle instead of through the broker."""
    bundle_rate_bytes_per_s: float = DEFAULT_RATE_BYTES_PER_S
    """Rate of bundles through the broker, for all agents together."""
    bundles_at_once: int = DEFAULT_AT_ONCE
    """Number of agents that receive a bundle through the broker at the same time."""
    share: bool = False
    """Share the agents' task messages with the fleet's other coordinators."""


@dataclass(frozen=True)
class NewRun:
    """A search, or a measurement of given subnets, from its beginning."""

    supernet: Path
    plan: CampaignPlan
    card: Path | None = None
    """Model card to rewrite once its target is met: of a plan with one given subnet."""


@dataclass(frozen=True)
class ResumedRun:
    """A stored run to go on with."""

    run: str = LATEST
    """Id of the run, or `LATEST`."""
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
