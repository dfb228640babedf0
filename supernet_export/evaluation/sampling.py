"""Draw the subnets of an evaluation: one seeded list, of which every shard takes its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes

Sampling: TypeAlias = Literal["spread", "uniform", "both"]
#: Draws after which a small space is taken to hold no more subnets.
_ROUNDS = 50


@dataclass(frozen=True)
class DrawnSubnet:
    """One subnet of the list: its place there, its architecture, how it was drawn, and its MACs of one image."""

    index: int
    architecture: Architecture
    drawn: str  #: `uniform` or `spread`
    macs: int


def stratified_genomes(space: DesignSpace, count: int, rng: np.random.Generator) -> Genomes:
    """Draw canonical genomes from the smallest subnets to the largest.

    Uniform genomes are all of middling size. Here each genome first draws how large it leans, evenly between 0 and 1,
    and then each gene from a binomial distribution of that mean.
    """
    leaning = rng.random((count, 1))
    genomes = rng.binomial(space.cardinalities - 1, leaning, (count, space.gene_count))
    return space.canonical(genomes.astype(np.int16))


def draw_subnets(space: DesignSpace, count: int, sampling: Sampling, seed: int) -> list[DrawnSubnet]:
    """Draw `count` distinct subnets, fewer where the space has no more; the same list for the same arguments.

    `both` draws every other one uniformly, so that any beginning of the list holds both kinds.
    """
    rng = np.random.default_rng(seed)
    found: dict[bytes, tuple[Genomes, str]] = {}
    for _ in range(_ROUNDS):
        missing = count - len(found)
        if missing == 0:
            break
        kinds = [_kind(sampling, len(found) + place) for place in range(missing)]
        pools = {"spread": stratified_genomes(space, missing, rng), "uniform": space.sample(missing, rng)}
        for place, kind in enumerate(kinds):
            genome = pools[kind][place]
            found.setdefault(genome.tobytes(), (genome, kind))
    genomes = np.stack([genome for genome, _ in found.values()])
    macs = space.macs(genomes)
    kinds = [kind for _, kind in found.values()]
    return [
        DrawnSubnet(index, architecture, kinds[index], int(macs[index]))
        for index, architecture in enumerate(space.decode(genomes))
    ]


def _kind(sampling: Sampling, place: int) -> str:
    if sampling == "both":
        return ("spread", "uniform")[place % 2]
    return sampling


def parse_shard(text: str) -> tuple[int, int]:
    """Read `i/n`, shard i of n, counted from 0; `UsageError` for anything else."""
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and int(number) < int(total)):
        raise UsageError(
            f"--shard {text!r} is no shard: give i/n with i from 0 to n - 1, such as 0/4; "
            "shards are counted from 0, as Kubernetes' indexed jobs are"
        )
    return int(number), int(total)
