"""Bounds on the costs of a subnet beside its latency, and subnets within them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.errors import InfeasibleTargetError, UsageError
from fleetnas.supernet_export.spaces.base import COST_NAMES, DesignSpace, Genomes, SlotTables

Floats = NDArray[np.float64]

#: Bytes of a model file beyond its weights, per building block: names, attributes, the graph. An upper estimate for
#: ONNX and TFLite files of fp32 subnets.
FILE_BYTES_PER_SLOT = 2500
_MACS_COLUMNS = [i for i, name in enumerate(COST_NAMES) if name.startswith("macs_")]
#: Prunings of the largest subnet from which the largest one within bounds is taken.
_PRUNINGS = 100
_DESCRIPTIONS: Mapping[str, str] = {
    "parameters": "parameters",
    "macs": "multiply-accumulates",
    "peak_activation_bytes": "bytes of activations at its peak",
    "model_bytes": "bytes of model file",
}


@dataclass(frozen=True)
class Bounds:
    """Upper bounds on the costs of a subnet; None where a cost is not bounded."""

    parameters: float | None = None  #: weights and biases, batch norm folded
    macs: float | None = None  #: multiply-accumulates of one image
    peak_activation_bytes: float | None = None  #: fp32, one image
    model_bytes: float | None = None  #: size of the fp32 model file, estimated from above

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"the bound on {name} must be a number above 0; found {value:g}")

    def given(self) -> dict[str, float]:
        """Return the bounds that are set, by name."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def with_tighter(self, other: Bounds) -> Bounds:
        """Return the tighter bound on every cost."""
        both = {name: min(bound, self.given().get(name, math.inf)) for name, bound in other.given().items()}
        return Bounds(**{**self.given(), **both})

    def __str__(self) -> str:
        return ", ".join(f"at most {bound:,.0f} {_DESCRIPTIONS[name]}" for name, bound in self.given().items())

    def check(self, space: DesignSpace) -> None:
        """Raise `InfeasibleTargetError`, with the least possible costs, where no subnet of the space keeps the bounds.

        The smallest subnet of a space has the least of every cost.
        """
        if not self.given():
            return
        least = {name: float(cost[0]) for name, cost in subnet_costs(space, space.smallest()).items()}
        broken = [
            f"at most {bound:,.0f} {_DESCRIPTIONS[name]}, and the smallest subnet has {least[name]:,.0f}"
            for name, bound in self.given().items()
            if least[name] > bound
        ]
        if broken:
            raise InfeasibleTargetError(
                f"no subnet of {space.name} keeps the bounds: {'; '.join(broken)}; raise the bounds to that at least"
            )

    def slot_tables(self, space: DesignSpace) -> list[tuple[SlotTables, float]]:
        """Return the additive bounds that are set: the costs of each slot's variants, and the bound."""
        present, parameters = (
            [table[:, COST_NAMES.index(name)] for table in space.slot_costs] for name in ("present", "parameters")
        )
        macs = [table[:, _MACS_COLUMNS].sum(axis=1) for table in space.slot_costs]
        files = [
            4.0 * weights + FILE_BYTES_PER_SLOT * there for weights, there in zip(parameters, present, strict=True)
        ]
        every = ((self.parameters, parameters), (self.macs, macs), (self.model_bytes, files))
        return [((0.0, tuple(tables)), bound) for bound, tables in every if bound is not None]

    def banned(self, space: DesignSpace) -> list[NDArray[np.bool_]]:
        """Return for each slot a mask of the variants that break a bound by themselves."""
        column = COST_NAMES.index("peak_bytes")
        most = math.inf if self.peak_activation_bytes is None else self.peak_activation_bytes
        return [table[:, column] > most for table in space.slot_costs]

    def met(self, space: DesignSpace, genomes: Genomes) -> NDArray[np.bool_]:
        """Return a mask of the genomes that keep every bound, (n,)."""
        kept = np.ones(len(genomes), dtype=np.bool_)
        for name, bound in self.given().items():
            kept &= _COSTS[name](space, genomes) <= bound
        return kept


def model_bytes(space: DesignSpace, genomes: Genomes) -> Floats:
    """Estimate the sizes of the fp32 model files from above, in bytes, (n,)."""
    column = COST_NAMES.index("present")
    chosen = space.slots(genomes)
    present = sum(table[chosen[:, s], column] for s, table in enumerate(space.slot_costs))
    return np.asarray(4.0 * space.parameters(genomes) + FILE_BYTES_PER_SLOT * present)


_COSTS: Mapping[str, Callable[[DesignSpace, Genomes], Floats]] = {
    "parameters": lambda space, genomes: space.parameters(genomes),
    "macs": lambda space, genomes: space.macs(genomes),
    "peak_activation_bytes": lambda space, genomes: space.peak_activation_bytes(genomes),
    "model_bytes": model_bytes,
}


def subnet_costs(space: DesignSpace, genomes: Genomes) -> dict[str, Floats]:
    """Return the costs of genomes that can be bounded, by name, (n,) each."""
    return {name: cost(space, genomes) for name, cost in _COSTS.items()}


def lowered(
    space: DesignSpace,
    genomes: Genomes,
    too_much: Callable[[Genomes], NDArray[np.bool_]],
    rng: np.random.Generator,
) -> Genomes:
    """Lower random genes of each genome until it is not too much any more, or no gene can be lowered.

    Source: the Top-down strategy's randomised pruning, arXiv 2012.06748.
    """
    found = genomes.copy()
    rows = np.arange(len(found))
    for _ in range(int(space.cardinalities.sum())):
        broken = too_much(found)
        if not broken.any():
            break
        # A random gene among those that can still be lowered.
        lottery = np.where(found > 0, rng.random(found.shape), -1.0)
        gene = lottery.argmax(axis=1)
        fewer = found.copy()
        fewer[rows, gene] = rng.integers(0, np.maximum(found[rows, gene], 1))
        found = space.canonical(np.where(broken[:, None], fewer, found))
    return found


def sample_within(space: DesignSpace, bounds: Bounds, count: int, rng: np.random.Generator) -> Genomes:
    """Return `count` random genomes within the bounds; those of `space.sample` where all of them are."""
    return lowered(space, space.sample(count, rng), lambda genomes: ~bounds.met(space, genomes), rng)


def largest_within(space: DesignSpace, bounds: Bounds, rng: np.random.Generator) -> Genomes:
    """Return a genome of about the most multiply-accumulates within the bounds, (1, G); the largest where allowed."""
    largest = space.largest()
    if bounds.met(space, largest).all():
        return largest
    found = lowered(space, np.repeat(largest, _PRUNINGS, axis=0), lambda genomes: ~bounds.met(space, genomes), rng)
    best = int(space.macs(found).argmax())
    return found[best : best + 1]
