"""Proposals of a device setting's search, and the interface of the solver that finds winners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.records.budget import Purpose
from fleetnas.coordinator.records.precision import AskedPrecision
from fleetnas.coordinator.search.latency import TableLatency
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.spaces.base import Genomes

Genome = NDArray[np.int16]
#: Identity of a proposal: genome, purpose, and target.
ProposalKey: TypeAlias = tuple[tuple[int, ...], Purpose, "float | None", str]


class AskedTarget(Protocol):
    """A target of a device setting."""

    @property
    def asked_ms(self) -> float | None:
        """Milliseconds; None where it is about another quantity."""

    @property
    def text(self) -> str:
        """Text of a target of another kind than latency; else empty."""


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
    precision: AskedPrecision | None = None
    """Precision that it needs; None: that of the run's protocol."""
    target: str = ""
    """Text of its target, where that is of another kind than latency."""
    percentiles: tuple[float, ...] = ()
    """Percentiles of run times that are to be measured."""

    @property
    def key(self) -> ProposalKey:
        """Identity among the proposals of one device setting."""
        return self.genome, self.purpose, self.target_ms, self.target

    @property
    def has_target(self) -> bool:
        """Whether it is for one of the targets alone."""
        return self.target_ms is not None or bool(self.target)

    def is_for(self, state: AskedTarget) -> bool:
        """Whether it is for this target."""
        return self.has_target and (self.target_ms, self.target) == (state.asked_ms, state.text)


class TargetSolver(Protocol):
    """Finds, per target, the most accurate subnet that is predicted to meet it."""

    def __call__(
        self, latency: TableLatency, targets_ms: Sequence[float], start: Genomes, rng: np.random.Generator
    ) -> list[Genome | None]:
        """Return one genome (G,) per target; None where no subnet is predicted to meet it.

        Args:
            latency: model of latency, ms.
            targets_ms: targets in the unit of the model, ascending.
            start: subnets (n, G) to begin from.
            rng: source of randomness.
        """
