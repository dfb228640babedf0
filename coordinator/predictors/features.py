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
#: Costs that are part of another and whose surcharge is one for the whole network.
_OF_THE_NETWORK = ("medium_kernel_macs", "strided_macs")
#: Costs with their ridge points, as quantiles over all slots' variants. A slot takes the larger of two times: a fixed
#: one (a launch, weights from memory) and that of its work (Williams et al., *Roofline*, CACM 2009). Both are linear in
#: the work once what exceeds the ridge point is a column of its own.
_RIDGE_POINTS = {"macs_depthwise": 0.75, "macs_project": 0.5, "bytes_moved": 0.9}
#: Typical value of a column of the whole network: its part of a typical latency is as uncertain as that of as many
#: indicators.
_TYPICAL = 3.0


class FeatureMap:
    """phi(genome) = 1, then every slot's physical costs (`COST_NAMES` without the peak, which is not additive).

    Columns that are equal for every variant of their slot are left out: the constant covers them. The first slot,
    whose variants are the input's resolutions, also gets an indicator column for each resolution: its cost for the
    whole network beyond the physical costs (odd sizes, a floor under every layer's time).

    The last columns are sums over all slots, so that a few measurements tell how a device differs in one respect
    throughout the network: the MACs of 5x5 depthwise kernels, those of convolutions of stride 2, and the work of each
    slot beyond a ridge point.
    """

    def __init__(self, space: DesignSpace) -> None:
        """Make the F columns of a design space."""
        self.space = space
        columns = [i for i, cost in enumerate(COST_NAMES) if cost not in ("peak_bytes", *_OF_THE_NETWORK)]
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
        shared, self._network_tables = _network_columns(space)
        #: Name of each column, such as `stage2.block1.macs_depthwise` or `network.strided_macs`.
        self.names: tuple[str, ...] = (*names, *shared)
        #: Cost group of each column, shape (F,): 0 the constant, 1 + its place in `COST_NAMES`, or `INDICATOR` or
        #: `SURCHARGE`.
        self.groups: NDArray[np.intp] = np.array([*groups, *[INDICATOR] * len(shared)], dtype=np.intp)

    def __len__(self) -> int:
        return len(self.names)

    def features(self, genomes: Genomes) -> Floats:
        """Features of the genomes, shape (n, F)."""
        chosen = self.space.slots(genomes)
        parts = [np.ones((len(genomes), 1))]
        parts += [table[chosen[:, s]] for s, table in enumerate(self._tables)]
        network = np.zeros((len(genomes), self._network_tables[0].shape[1]))
        for s, table in enumerate(self._network_tables):
            network += table[chosen[:, s]]
        return np.concatenate([*parts, network], axis=1)

    def slot_tables(self, weights: Floats) -> tuple[float, tuple[Floats, ...]]:
        """Convert `weights` (F,) to a block latency table: `constant_ms`, and per slot its variants' ms.

        `constant_ms + sum over slots of tables[s][slots(genome)[s]]` equals `features(genome) @ weights`.
        """
        tables, start = [], 1
        shared = weights[len(self) - self._network_tables[0].shape[1] :]
        for table, network in zip(self._tables, self._network_tables, strict=True):
            stop = start + table.shape[1]
            tables.append(table @ weights[start:stop] + network @ shared)
            start = stop
        return float(weights[0]), tuple(tables)


def _network_columns(space: DesignSpace) -> tuple[list[str], list[Floats]]:
    """Return the names of the columns of the whole network, and each slot's part of them, (variants, columns)."""
    names = [*_OF_THE_NETWORK, *(f"excess_{cost}" for cost in _RIDGE_POINTS)]
    costs = {name: [table[:, i] for table in space.slot_costs] for i, name in enumerate(COST_NAMES)}
    columns = [costs[name] for name in _OF_THE_NETWORK]
    for cost, quantile in _RIDGE_POINTS.items():
        work = np.concatenate(costs[cost])
        ridge = np.quantile(work[work > 0], quantile) if work.any() else 0.0
        columns.append([np.maximum(part - ridge, 0.0) for part in costs[cost]])
    kept = [j for j, column in enumerate(columns) if any(np.ptp(part) > 0 for part in column)]
    typical = [sum(part.mean() for part in columns[j]) / _TYPICAL for j in kept]
    tables = [
        np.column_stack(
            [np.zeros((len(table), 0)), *(columns[j][s] / scale for j, scale in zip(kept, typical, strict=True))]
        )
        for s, table in enumerate(space.slot_costs)
    ]
    return [f"network.{names[j]}" for j in kept], tables
