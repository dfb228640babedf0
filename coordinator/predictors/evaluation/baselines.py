"""Baselines of the latency predictor: a measured block table, a MACs line, another device's rescaled table."""

from __future__ import annotations

import itertools

import numpy as np

from fleetnas.coordinator.predictors.prior import Floats
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes


class MacsLine:
    """Latency as a straight line in multiply-accumulates, by least squares."""

    def __init__(self, macs: Floats, latency_ms: Floats) -> None:
        """Fit to measurements, each (n,), n at least 2."""
        if len(macs) < 2:
            raise UsageError(f"a line needs at least 2 measurements; found {len(macs)}")
        centre = macs.mean()
        apart = macs - centre
        self.ms_per_mac = float(apart @ latency_ms / max(float(apart @ apart), 1e-300))
        self.constant_ms = float(latency_ms.mean() - self.ms_per_mac * centre)

    def predict(self, macs: Floats) -> Floats:
        """Latency in ms, (n,)."""
        found: Floats = self.constant_ms + self.ms_per_mac * macs
        return found


class RescaledTable:
    """Another device's prediction times one factor, by least squares, as for a published table."""

    def __init__(self, foreign_ms: Floats, latency_ms: Floats) -> None:
        """Fit to the table's and the measured latencies, ms, each (n,)."""
        self.factor = float(foreign_ms @ latency_ms / (foreign_ms @ foreign_ms))

    def predict(self, foreign_ms: Floats) -> Floats:
        """Latency in ms, (n,)."""
        found: Floats = self.factor * foreign_ms
        return found


def block_table_genomes(space: DesignSpace, base: Genomes) -> Genomes:
    """List the subnets to measure for a complete block table, (n, G), `base` (1, G) first: one per variant of a slot.

    Every other gene value is measured once, and so is each slot variant that only two of them together bring into the
    base network (a block's kernel size and its expand ratio), so the table costs as many measurements as rows are
    returned: hundreds where the predictor takes ten. Resolution and depth are genes like any other; `BlockTable`
    distributes their effect on several slots at once.
    """
    base = space.canonical(base)
    genes = space.cardinalities.tolist()
    single = [(gene, value) for gene, count in enumerate(genes) for value in range(count)]
    changes: list[tuple[tuple[int, int], ...]] = [(change,) for change in single]
    changes += [(one, other) for one, other in itertools.combinations(single, 2) if one[0] != other[0]]
    candidates = np.repeat(base, len(changes) + 1, axis=0)
    for row, change in enumerate(changes, start=1):
        for gene, value in change:
            candidates[row, gene] = value
    candidates = space.canonical(candidates)
    slots = space.slots(candidates)
    covered: set[tuple[int, int]] = set()
    rows = []
    for row, variants in enumerate(slots.tolist()):
        brought = set(enumerate(variants))
        if row <= len(single) or not brought <= covered:
            covered |= brought
            rows.append(row)
    _, first = np.unique(candidates[rows], axis=0, return_index=True)
    found: Genomes = candidates[rows][np.sort(first)]
    return found


class BlockTable:
    """A latency table of slot variants measured on the device itself (ProxylessNAS; OFA's latency estimators).

    The least-norm table that explains the measurements exactly where they allow it: with the subnets of
    `block_table_genomes`, each variant gets its difference to the base network's.
    """

    def __init__(self, space: DesignSpace, genomes: Genomes, latency_ms: Floats) -> None:
        """Fit to measured genomes (n, G) and latencies (n,)."""
        self.space = space
        self._offsets = np.concatenate([[0], np.cumsum([len(costs) for costs in space.slot_costs])])
        design = self._design(genomes)
        self._base_ms = float(latency_ms[0])
        self._base_row = design[0]
        solution, *_ = np.linalg.lstsq(design - design[0], latency_ms - latency_ms[0], rcond=1e-10)
        self._table: Floats = solution

    def predict(self, genomes: Genomes) -> Floats:
        """Latency in ms, (n,)."""
        found: Floats = self._base_ms + (self._design(genomes) - self._base_row) @ self._table
        return found

    def _design(self, genomes: Genomes) -> Floats:
        chosen = self.space.slots(genomes) + self._offsets[:-1]
        design = np.zeros((len(genomes), int(self._offsets[-1])))
        np.put_along_axis(design, chosen, 1.0, axis=1)
        return design
