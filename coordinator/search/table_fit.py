"""Write any latency model as block latency tables in OFA's format, and tell what such tables cannot carry.

A table has one entry per layer shape: all blocks of a stage but the first share theirs, whatever their place. A model
that tells them apart, or whose latency is no sum of layers, is approached by least squares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.search.block_table import TABLE_NAME, read_block_table
from fleetnas.coordinator.search.layer_keys import LayerKeys
from fleetnas.supernet_export.output_files import write_atomically
from fleetnas.supernet_export.spaces.base import Genomes, SlotTables
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace

Floats = NDArray[np.float64]

#: Random subnets per resolution that a table is fitted to, and random subnets that it is compared on.
_FITTED, _COMPARED = 600, 2000
_FIT_SEED, _COMPARE_SEED = 101, 102


@dataclass(frozen=True)
class TableError:
    """Difference between tables and the model that they were made of, over random subnets, relative to the latter."""

    rms_percent: float
    most_percent: float
    subnets: int


def write_block_tables(
    folder: Path, space: MBConvSpace, predict: Callable[[Genomes], Floats], start: SlotTables
) -> TableError:
    """Write `<resolution>_lookup_table.yaml` for every resolution of a space.

    Args:
        folder: takes the files; it is made where it is missing.
        space: of square images.
        predict: latency of canonical genomes (n, G), ms, (n,).
        start: an additive model near `predict`, so that entries mean something by themselves.

    Returns: the error of the tables as they are read back.
    """
    rng = np.random.default_rng(_FIT_SEED)
    for place, resolution in enumerate(space.resolutions):
        genomes = space.sample(_FITTED, rng)
        genomes[:, 0] = place
        layers = _fit(space, place, genomes, predict(genomes), start)
        text = "".join(f"{key}:\n  mean: {ms:.12f}\n" for key, ms in sorted(layers.items()))
        write_atomically(folder / TABLE_NAME.format(resolution=resolution), text.encode())
    genomes = space.sample(_COMPARED, np.random.default_rng(_COMPARE_SEED))
    wanted = predict(genomes)
    relative = 100.0 * np.abs(read_block_table(folder, space).predict(genomes) / wanted - 1.0)
    return TableError(float(np.sqrt(np.mean(relative**2))), float(relative.max()), len(genomes))


def _fit(
    space: MBConvSpace, place: int, genomes: Genomes, latency_ms: Floats, start: SlotTables
) -> Mapping[str, float]:
    """Return milliseconds by layer key at the resolution of this place, nearest to `start` among the best fits."""
    keys, (constant_ms, tables) = LayerKeys(space), start
    resolution = space.resolutions[place]
    first, *rest = keys.head(resolution)
    of_slot: list[dict[int, str]] = [{place: keys.stem(resolution)}, {place: keys.first_block(resolution)}]
    width = len(space.expands)
    for block in space.block_list:
        variants = {}
        for (i, j), key in keys.block(block, resolution).items():
            variants[1 + (place * len(space.kernels) + i) * width + j] = key
        of_slot.append(variants)
    of_slot.append({place: first})
    columns = {key: column for column, key in enumerate(dict.fromkeys(k for slot in of_slot for k in slot.values()))}
    begun: list[list[float]] = [[] for _ in columns]
    for slot, variants in enumerate(of_slot):
        for variant, key in variants.items():
            begun[columns[key]].append(float(tables[slot][variant]) + (constant_ms if slot == 0 else 0.0))
    values = np.array([np.mean(found) for found in begun])
    chosen = space.slots(genomes)
    used = np.zeros((len(genomes), len(columns)))
    rows = np.arange(len(genomes))
    for slot, variants in enumerate(of_slot):
        column_of = np.full(len(tables[slot]), -1, dtype=np.intp)
        column_of[list(variants)] = [columns[key] for key in variants.values()]
        found = column_of[chosen[:, slot]]
        present = found >= 0
        np.add.at(used, (rows[present], found[present]), 1.0)
    scale = 1.0 / latency_ms
    missing = latency_ms - used @ values
    values = values + np.linalg.lstsq(used * scale[:, None], missing * scale, rcond=1e-9)[0]
    layers = {key: float(values[column]) for key, column in columns.items()}
    # The predictor has one cost for all that is behind the last block: it stands in the first of these layers.
    return layers | dict.fromkeys(rest, 0.0)
