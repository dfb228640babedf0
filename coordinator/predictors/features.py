"""Physical features of architectures, additive over slots, so that a linear predictor is a block latency table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.prior import INDICATOR, SURCHARGE, Floats
from fleetnas.supernet_export.spaces.base import COST_NAMES, DesignSpace, Genomes

#: Units of the features: layers, 10^6 multiply-accumulates, 10^6 bytes, 10^6 weights.
_UNITS = {"present": 1.0, "bytes_moved": 1e6, "parameters": 1e6}
_MACS_UNIT = 1e6
#: Costs that are part of another.
_COUNTED_ALREADY = {"large_kernel_macs"}


class FeatureMap:
    """phi(genome) = 1, then every slot's physical costs (`COST_NAMES` without the peak, which is not additive).

    Columns that are equal for every variant of their slot are left out: the constant covers them. The first slot,
    whose variants are the input's resolutions, also gets an indicator column for each resolution: its cost for the
    whole network beyond the physical costs (odd sizes, a floor under every layer's time).
    """

    def __init__(self, space: DesignSpace) -> None:
        """Make the F columns of a design space."""
        self.space = space
        columns = [i for i, cost in enumerate(COST_NAMES) if cost != "peak_bytes"]
        units = np.array([_UNITS.get(COST_NAMES[i], _MACS_UNIT) for i in columns])
        names, groups = ["constant"], [0]
        self._tables: list[Floats] = []
        for s, (slot, costs) in enumerate(zip(space.slot_names, space.slot_costs, strict=True)):
            table = costs[:, columns] / units
            kept = np.flatnonzero(np.ptp(table, axis=0) > 0)
            table = table[:, kept]
            names += [f"{slot}.{COST_NAMES[columns[j]]}" for j in kept]
            groups += [SURCHARGE if COST_NAMES[columns[j]] in _COUNTED_ALREADY else 1 + int(j) for j in kept]
            if s == 0 and len(costs) > 1:
                table = np.concatenate([table, np.eye(len(costs))], axis=1)
                names += [f"{slot}.variant{v}" for v in range(len(costs))]
                groups += [INDICATOR] * len(costs)
            self._tables.append(np.ascontiguousarray(table))
        #: Name of each column, such as `stage2.block1.macs_depthwise`.
        self.names: tuple[str, ...] = tuple(names)
        #: Cost group of each column, shape (F,): 0 the constant, 1 + its place in `COST_NAMES`, or `INDICATOR` or
        #: `SURCHARGE`.
        self.groups: NDArray[np.intp] = np.array(groups, dtype=np.intp)

    def __len__(self) -> int:
        return len(self.names)

    def features(self, genomes: Genomes) -> Floats:
        """Features of the genomes, shape (n, F)."""
        chosen = self.space.slots(genomes)
        parts = [np.ones((len(genomes), 1))]
        parts += [table[chosen[:, s]] for s, table in enumerate(self._tables)]
        return np.concatenate(parts, axis=1)

    def slot_tables(self, weights: Floats) -> tuple[float, tuple[Floats, ...]]:
        """Convert `weights` (F,) to a block latency table: `constant_ms`, and per slot its variants' ms.

        `constant_ms + sum over slots of tables[s][slots(genome)[s]]` equals `features(genome) @ weights`.
        """
        tables, start = [], 1
        for table in self._tables:
            stop = start + table.shape[1]
            tables.append(table @ weights[start:stop])
            start = stop
        return float(weights[0]), tuple(tables)
