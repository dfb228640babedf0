"""What the task runs of one agent share: its cache, its measuring child, its knowledge of the device's speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fleetnas.agent.host.battery import BatteryRule
from fleetnas.agent.measuring.worker import Measurer
from fleetnas.agent.service.drift_monitor import DriftMonitor
from fleetnas.agent.transfer.blobs import BlobCache
from fleetnas.agent.transfer.mirror import Mirrors


@dataclass(frozen=True)
class RunResources:
    """Resources of every run; `wall_clock` gives Unix seconds."""

    cache: BlobCache
    partial_folder: Path
    measurer: Measurer
    wall_clock: Callable[[], float]
    drift: DriftMonitor = field(default_factory=DriftMonitor)
    battery: BatteryRule = field(default_factory=BatteryRule)
    mirrors: Mirrors = field(default_factory=Mirrors)
