"""Define the two published ways to train a supernet: progressive shrinking (OFA) and the compound schedule (CompOFA).

Which choices a phase has, how many subnets a step teaches and where channels are sorted are those of the authors'
training scripts: `train_ofa_net.py` and `progressive_shrinking.py` of mit-han-lab/once-for-all (whose package now
sorts within the widths that were trained before) and of gatech-sysml/CompOFA. Epochs are the caller's; the learning
rates suit this trainer's AdamW, a tenth of the first phase's for a short opening and a third of it for a full phase.
"""

from __future__ import annotations

from typing import Literal

from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.training.schedule import Phase

ScheduleName = Literal["progressive-shrinking", "compound"]

_LARGEST, _OPENING, _FULL = 3e-3, 3e-4, 1e-3
#: Kernel size of the compound schedule.
_FIXED_KERNEL = 5


def published_schedule(name: ScheduleName, space: MBConvSpace, epochs: int) -> tuple[Phase, ...]:
    """Return a schedule by its name, scaled down as for `docs/training.md`.

    Args:
        name: the schedule.
        space: the design space to train.
        epochs: length of progressive shrinking's full phases, at least 2. The first phase takes half as many again;
            the compound schedule's full phase takes one less, which keeps it under half of the sample-steps.
    """
    largest = 3 * epochs // 2
    if name == "progressive-shrinking":
        return progressive_shrinking(space, largest=largest, kernel=epochs, opening=1, full=epochs)
    return compound_schedule(space, fixed_kernel=_FIXED_KERNEL, largest=largest, opening=1, full=epochs - 1)


def progressive_shrinking(
    space: MBConvSpace, *, largest: int, kernel: int, opening: int, full: int
) -> tuple[Phase, ...]:
    """Return OFA's schedule: the largest subnet alone, then elastic kernels, then depth too, then expand ratio too.

    Depth and expand ratio open with their two largest values for `opening` epochs, then have all for `full`.
    Source: Cai et al., *Once-for-All* (ICLR 2020).
    """
    kernels, expands, depths = tuple(sorted(space.kernels)), tuple(sorted(space.expands)), tuple(sorted(space.depths))
    widest, deepest = expands[-1:], depths[-1:]
    return (
        Phase("largest", largest, kernels[-1:], widest, deepest, _LARGEST, random_subnets=0),
        Phase("kernel", kernel, kernels, widest, deepest, _FULL, random_subnets=1),
        Phase("depth-opening", opening, kernels, widest, depths[-2:], _OPENING, random_subnets=2),
        Phase("depth", full, kernels, widest, depths, _FULL, random_subnets=2),
        Phase("expand-opening", opening, kernels, expands[-2:], depths, _OPENING, random_subnets=4, sort_within=widest),
        Phase("expand", full, kernels, expands, depths, _FULL, random_subnets=4, sort_within=expands[-2:]),
    )


def compound_schedule(
    space: MBConvSpace, *, fixed_kernel: int, largest: int, opening: int, full: int
) -> tuple[Phase, ...]:
    """Return CompOFA's schedule: the largest subnet alone, then elastic depth per stage, which fixes the expand ratio.

    `opening` epochs at a low learning rate, then `full`, both over all choices and each after sorting all channels.
    One kernel size from the start to the end. Source: Sahni et al., *CompOFA* (ICLR 2021).
    """
    kernels, expands, depths = (fixed_kernel,), tuple(sorted(space.expands)), tuple(sorted(space.depths))
    widest, deepest = expands[-1:], depths[-1:]

    def compound(name: str, epochs: int, learning_rate: float) -> Phase:
        return Phase(
            name,
            epochs,
            kernels,
            expands,
            depths,
            learning_rate,
            random_subnets=4,
            compound=True,
            sort_within=widest,
        )

    return (
        Phase("largest", largest, kernels, widest, deepest, _LARGEST, random_subnets=0),
        compound("compound-opening", opening, _OPENING),
        compound("compound", full, _FULL),
    )
