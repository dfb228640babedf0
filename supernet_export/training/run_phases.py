"""Divide a budget of epochs over the phases of a schedule, for any space of inverted bottlenecks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.training.choices import Schedule
from fleetnas.supernet_export.training.schedule import Phase

#: Learning rates of the first phase, of an opening phase and of a full one, as parts of the peak.
_LARGEST, _OPENING, _FULL = 1.0, 0.1, 1 / 3
#: Parts of the epochs: as in `published_schedules`.
_PART_LARGEST, _PART_OPENING, _PART_FULL = 12, 1, 8


def phases_of(schedule: Schedule, space: MBConvSpace, epochs: int, learning_rate: float, subnets: int) -> list[Phase]:
    """Return the phases of a schedule that take `epochs` in all, with `subnets` random ones in each step at most.

    `sandwich`: the largest subnet alone, then largest, smallest and random subnets (Yu & Huang, ICCV 2019).
    `compound` and `progressive`: CompOFA's and OFA's, see `published_schedules`; a phase that frees nothing in this
    space is left out.

    Raises:
        UsageError: there are fewer epochs than phases, or the space is not one for this schedule.
    """
    if schedule == "progressive" and space.tied:
        raise UsageError(
            f"{space.name} ties expand ratios to depths, which progressive shrinking frees one after the other; use "
            "--schedule compound or sandwich"
        )
    if schedule == "compound" and not space.tied:
        raise UsageError(
            f"--schedule compound trains subnets whose expand ratio is tied to their depth, and {space.name} has "
            "others too; use space mbconv with the option tied, compofa or compofa-elastic, or another schedule"
        )
    made = {"sandwich": _sandwich, "compound": _compound, "progressive": _progressive}[schedule](space, subnets)
    if schedule == "sandwich" and epochs == 1:
        made = made[1:]
    if epochs < len(made):
        raise UsageError(
            f"--schedule {schedule} has {len(made)} phases here ({', '.join(phase.name for phase in made)}) and "
            f"--epochs {epochs} is less than one for each; give at least {len(made)}"
        )
    lengths = divided(epochs, [phase.epochs for phase in made])
    return [
        dataclasses.replace(
            phase,
            epochs=length,
            learning_rate=phase.learning_rate * learning_rate,
            compound=space.tied,
            kernel_per_stage=False,
            stage_kernels=space.stage_kernels,
        )
        for phase, length in zip(made, lengths, strict=True)
    ]


def divided(total: int, parts: Sequence[int]) -> list[int]:
    """Divide `total` in the proportion of `parts`, at least 1 for each; `total` must be no less than their number."""
    shares = np.maximum(1, total * np.array(parts) / sum(parts))
    whole = np.maximum(1, np.floor(shares)).astype(int)
    while whole.sum() < total:
        whole[np.argmax(shares - whole)] += 1
    while whole.sum() > total:
        whole[np.argmax(np.where(whole > 1, whole - shares, -np.inf))] -= 1
    return [int(length) for length in whole]


def _largest(space: MBConvSpace, part: int) -> Phase:
    kernel, expand, depth = max(space.kernels), max(space.expands), max(space.depths)
    return Phase("largest", part, (kernel,), (expand,), (depth,), _LARGEST, random_subnets=0)


def _sandwich(space: MBConvSpace, subnets: int) -> list[Phase]:
    chosen = (tuple(space.kernels), tuple(space.expands), tuple(space.depths))
    return [
        _largest(space, 1),
        Phase("sandwich", 2, *chosen, _FULL, random_subnets=subnets, smallest=True, sort_within=(max(space.expands),)),
    ]


def _compound(space: MBConvSpace, subnets: int) -> list[Phase]:
    chosen, widest = (tuple(space.kernels), tuple(space.expands), tuple(space.depths)), (max(space.expands),)
    opening = Phase("compound-opening", _PART_OPENING, *chosen, _OPENING, random_subnets=subnets, sort_within=widest)
    full = Phase("compound", _PART_FULL - 1, *chosen, _FULL, random_subnets=subnets, sort_within=widest)
    return [_largest(space, _PART_LARGEST), opening, full]


def _progressive(space: MBConvSpace, subnets: int) -> list[Phase]:
    kernels, expands, depths = tuple(space.kernels), tuple(space.expands), tuple(space.depths)
    widest, deepest, two = expands[-1:], depths[-1:], min(2, subnets)
    found = [_largest(space, _PART_LARGEST)]
    if len(kernels) > 1:
        found.append(Phase("kernel", _PART_FULL, kernels, widest, deepest, _FULL, random_subnets=min(1, subnets)))
    if len(depths) > 2:
        last = depths[-2:]
        found.append(Phase("depth-opening", _PART_OPENING, kernels, widest, last, _OPENING, random_subnets=two))
    if len(depths) > 1:
        found.append(Phase("depth", _PART_FULL, kernels, widest, depths, _FULL, random_subnets=two))
    if len(expands) > 2:
        name, two_widest = "expand-opening", expands[-2:]
        found.append(
            Phase(
                name, _PART_OPENING, kernels, two_widest, depths, _OPENING, random_subnets=subnets, sort_within=widest
            )
        )
    if len(expands) > 1:
        within = expands[-2:] if len(expands) > 2 else widest
        found.append(
            Phase("expand", _PART_FULL, kernels, expands, depths, _FULL, random_subnets=subnets, sort_within=within)
        )
    return found
