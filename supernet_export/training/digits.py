"""Train the built-in `digits` supernet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fleetnas.supernet_export.digits.data import load_digits, preprocess
from fleetnas.supernet_export.spaces.digits import DigitsSpace
from fleetnas.supernet_export.training.augmentation import Distortion
from fleetnas.supernet_export.training.batches import MemoryBatches
from fleetnas.supernet_export.training.elastic import ElasticMBConvNet
from fleetnas.supernet_export.training.reproducible import reproducible
from fleetnas.supernet_export.training.schedule import Phase
from fleetnas.supernet_export.training.trainer import Progress, Recipe, Trainer, TrainerEvents

_SPACE = DigitsSpace()

RECIPE = Recipe(resolutions=_SPACE.resolutions, batch_size=32)
DISTORTION = Distortion(rotation=0.15, scale=0.1, shear=0.12, shift=0.7)
#: The largest subnet alone, then random subnets taught by it. The second phase is short on purpose: these images are
#: easy, and with three times the epochs the smallest subnets would be as accurate as the largest, with nothing left
#: to search for.
SCHEDULE: tuple[Phase, ...] = (
    Phase("largest", 20, kernels=(7,), expands=(6,), depths=(4,), learning_rate=3e-3, random_subnets=0),
    Phase(
        "elastic",
        10,
        kernels=_SPACE.kernels,
        expands=_SPACE.expands,
        depths=_SPACE.depths,
        learning_rate=1e-3,
        random_subnets=1,
    ),
)


class _Reported(TrainerEvents):
    def __init__(self, report: Callable[[Progress], None]) -> None:
        self._report = report

    def after_epoch(self, trainer: Trainer, progress: Progress) -> None:
        self._report(progress)


def train_digits(
    phases: Sequence[Phase], report: Callable[[Progress], None], *, recipe: Recipe = RECIPE
) -> ElasticMBConvNet:
    """Train the network on the training part; the same phases and recipe give the same weights.

    Its batch-norm statistics are the largest subnet's, estimated on the training images at the largest resolution.
    """
    torch.manual_seed(recipe.seed)
    net = ElasticMBConvNet(_SPACE.network, _SPACE.kernels, _SPACE.expands, _SPACE.depths)
    train = load_digits().train
    batches = MemoryBatches(
        train.images,
        train.labels,
        resolutions=recipe.resolutions,
        batch_size=recipe.batch_size,
        preprocess=preprocess,
        augment=DISTORTION,
    )
    with reproducible(recipe.threads, on_cpu=True):
        Trainer(net, batches, phases, recipe, events=_Reported(report)).run()
        net.set_active(_SPACE.decode(_SPACE.largest())[0])
        net.calibrate(torch.from_numpy(preprocess(train.images, max(_SPACE.resolutions))))
    return net


def state_arrays(net: ElasticMBConvNet) -> dict[str, NDArray[np.float32]]:
    """Return the network's parameters and statistics under their names in published checkpoints."""
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in net.state_dict().items()}
