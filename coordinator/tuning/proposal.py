"""Proposals and targets of a device's search, and the interface of the search for winners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.records.budget import Purpose
from fleetnas.coordinator.search.latency import TableLatency
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.spaces.base import Genomes

Genome = NDArray[np.int16]


@dataclass(frozen=True)
class Proposal:
    """A subnet to measure. Latencies are milliseconds, at the typical speed of the run."""

    genome: tuple[int, ...]
    architecture: Architecture
    purpose: Purpose
    target_ms: float | None = None
    """Target of a verification, or of a candidate after a miss."""
    predicted_ms: float | None = None
    predicted_std_ms: float | None = None
    predicted_accuracy: float | None = None
    wait_above: float | None = None
    """Wait for a device that takes more than this factor times its undisturbed latency."""

    @property
    def key(self) -> tuple[tuple[int, ...], Purpose, float | None]:
        """What tells two proposals of one device setting apart."""
        return self.genome, self.purpose, self.target_ms


@dataclass
class TargetState:
    """One target and its best subnet so far. Latencies are milliseconds."""

    target_ms: float
    status: Literal["open", "met", "missed", "infeasible"] = "open"
    genome: Genome | None = None
    architecture: Architecture | None = None
    predicted_ms: float | None = None
    """By the predictor, with this subnet's own measurements left out."""
    measured_ms: float | None = None
    verified_ms: float | None = None
    """The re-measurement as it ran."""
    typical_ms: float | None = None
    """The same at the typical speed of the run; None where its ratio to the reference said nothing."""
    accuracy: float | None = None
    """As predicted, a fraction."""
    sha256: str | None = None
    reason: str = ""
    note: str = ""
    """A remark on a target that was met."""
    missed_by: list[float] = field(default_factory=list)
    """How far re-measurements that missed were beyond what was expected, relative."""
    verifications: int = 0
    disturbed: int = 0
    slowed_down: int = 0
    """Verifications that count as misses because the device was slowed down."""
    replacements: int = 0
    failures: int = 0
    given_up: bool = False
    """No measured subnet was within it; what is measured later may change that."""


class TargetSolver(Protocol):
    """Finds, per target, the most accurate subnet that is predicted to meet it."""

    def __call__(
        self, latency: TableLatency, targets_ms: Sequence[float], start: Genomes, rng: np.random.Generator
    ) -> list[Genome | None]:
        """One genome per ascending target; None where no subnet is predicted to meet it.

        `start` are subnets (n, G) to begin from.
        """
