"""Search problems for tests: random accuracy and latency models over real spaces, and the public ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fleetnas.coordinator.search.block_table import read_block_table
from fleetnas.coordinator.search.latency import SlotTableLatency
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.spaces.base import COST_NAMES, DesignSpace
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.registry import make_space

NOTE10_RESOLUTIONS = (160, 176, 192, 208, 224)


def random_accuracy(space: DesignSpace, seed: int = 0, hidden: int = 24) -> AccuracyPredictor:
    """A random ReLU network beside a unit that favours costly subnets: rugged, and never free of charge."""
    rng = np.random.default_rng(seed)
    sample = space.sample(600, np.random.default_rng(0))
    one_hot, effort = space.one_hot(sample), np.log(space.macs(sample))
    design = np.column_stack([one_hot, np.ones(len(one_hot))])
    slope = np.linalg.lstsq(design, (effort - effort.mean()) / max(effort.std(), 1e-9), rcond=None)[0]
    shapes = [(hidden, one_hot.shape[1]), (hidden, hidden), (1, hidden)]
    weights = [rng.standard_normal(shape) / np.sqrt(shape[1]) for shape in shapes]
    biases = [0.1 * rng.standard_normal(len(weight)) for weight in weights]
    weights[0][0], biases[0][0] = slope[:-1], slope[-1] + 20.0
    weights[1][0] = weights[1][:, 0] = 0.0
    weights[1][0, 0], biases[1][0] = 1.0, 0.0
    weights[2] *= 0.03
    weights[2][0, 0], biases[2][0] = 0.02, 0.7 - 0.02 * 20.0
    return AccuracyPredictor([w.astype(np.float32) for w in weights], [b.astype(np.float32) for b in biases])


def random_latency(space: DesignSpace, seed: int = 0) -> SlotTableLatency:
    """A table near what the blocks' costs suggest: milliseconds from MACs and presence, each off by up to 20 %."""
    rng = np.random.default_rng(seed)
    macs = [i for i, name in enumerate(COST_NAMES) if name.startswith("macs_")]
    total = space.macs(space.largest())[0]
    tables = []
    for costs in space.slot_costs:
        ms = 40.0 * costs[:, macs].sum(axis=1) / total + 0.2 * costs[:, 0]
        tables.append(ms * rng.uniform(0.8, 1.2, len(costs)))
    return SlotTableLatency(space, 0.5, tables)


def public_problem(data: Path) -> tuple[MBConvSpace, AccuracyPredictor, SlotTableLatency]:
    """OFA-MobileNetV3 on the Samsung Note10."""
    space = make_space("ofa-mbv3", {"width": 1.2, "resolutions": list(NOTE10_RESOLUTIONS)})
    assert isinstance(space, MBConvSpace)
    accuracy = AccuracyPredictor.from_pth(data / "ofa_mbv3" / "acc_predictor.pth")
    return space, accuracy, read_block_table(data / "ofa_mbv3" / "note10_lut", space)
