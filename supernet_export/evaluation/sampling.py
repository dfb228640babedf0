"""Draw the subnets of an evaluation: one seeded list, of which every shard takes its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.evaluation.choices import Sampling as Sampling
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes

#: Genomes that are drawn at once. Another number would give other lists.
_DRAWN = 64
#: Rounds of draws without a new subnet after which a small space is taken to hold no more.
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
    """Draw `count` distinct subnets, fewer where the space has no more.

    The list of a smaller count is the beginning of that of a larger one. `both` draws every other subnet uniformly, so
    that any beginning holds both kinds.
    """
    rng = np.random.default_rng(seed)
    found: dict[bytes, tuple[Genomes, str]] = {}
    in_vain = 0
    while len(found) < count and in_vain < _ROUNDS:
        before = len(found)
        pools = {"spread": stratified_genomes(space, _DRAWN, rng), "uniform": space.sample(_DRAWN, rng)}
        for place in range(_DRAWN):
            kind = _kind(sampling, place)
            genome = pools[kind][place]
            found.setdefault(genome.tobytes(), (genome, kind))
        in_vain = in_vain + 1 if len(found) == before else 0
    chosen = list(found.values())[:count]
    genomes = np.stack([genome for genome, _ in chosen])
    macs = space.macs(genomes)
    return [
        DrawnSubnet(index, architecture, chosen[index][1], int(macs[index]))
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
