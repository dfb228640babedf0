"""Validate the smallest, a middle and the largest subnet, each with batch-norm statistics of its own."""

# Linting must not need torch, so its decorators are untyped here.
# mypy: allow-untyped-decorators

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import MissingDependencyError
from fleetnas.fleet_protocol.installing import install_extra
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.training.batches import Floats
from fleetnas.supernet_export.training.elastic import ElasticMBConvNet
from fleetnas.supernet_export.training.image_batches import ImageStore, validation_shares
from fleetnas.supernet_export.training.ranks import Ranks

#: Training images that batch-norm statistics are estimated on, at most.
CALIBRATION_IMAGES = 500
#: Pixels of a batch, and numbers of preprocessed images that are kept for the next epoch.
_BATCH_PIXELS, _KEPT_NUMBERS = 1 << 20, 1 << 26


@dataclass(frozen=True)
class Scores:
    """Scores of one subnet on the validation images: top-1 accuracy, a fraction, and cross-entropy in nats."""

    name: str
    accuracy: float
    cross_entropy: float
    images: int


def validated_subnets(space: DesignSpace) -> dict[str, Architecture]:
    """Return the smallest subnet, one with the middle of every choice, and the largest."""
    middle = space.canonical(((space.cardinalities - 1) // 2)[None].astype(np.int16))
    genomes = {"smallest": space.smallest(), "middle": middle, "largest": space.largest()}
    return {name: space.decode(genome)[0] for name, genome in genomes.items()}


class Validator:
    """Evaluates subnets of a network in training on a copy, which leaves the training as it is."""

    def __init__(
        self, net: ElasticMBConvNet, space: DesignSpace, train: ImageStore, val: ImageStore, ranks: Ranks
    ) -> None:
        self._dtype = next(net.parameters()).dtype
        self._net = copy.deepcopy(net).to(ranks.device, memory_format=torch.channels_last)
        self._net.set_synchronised(False)
        self._subnets = validated_subnets(space)
        self._train, self._val, self._ranks = train, val, ranks
        self._shares = validation_shares(val.listed, ranks)
        self._kept: dict[tuple[str, int], list[Floats]] = {}
        rng = np.random.default_rng(0)
        self._calibration = rng.permutation(len(train.listed))[:CALIBRATION_IMAGES]

    @torch.no_grad()
    def scores(self, state: Mapping[str, Any]) -> list[Scores]:
        """Return the scores of a network with the weights `state` on the validation images of all processes."""
        self._net.load_state_dict(state)
        return [self._scored(name, architecture) for name, architecture in self._subnets.items()]

    @torch.no_grad()
    def calibrated_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return `state` with the largest subnet's batch-norm statistics."""
        self._net.load_state_dict(state)
        self._calibrate(self._subnets["largest"])
        return dict(self._net.state_dict())

    def _scored(self, name: str, architecture: Architecture) -> Scores:
        accuracy, loss = _metrics(self._val.listed.labels.max() + 1, self._ranks)
        self._calibrate(architecture)
        start = 0
        for images in self._batches("val", architecture.r):
            own = self._shares[start : start + len(images)]
            labels = torch.from_numpy(self._val.listed.labels[own]).to(self._ranks.device)
            logits = self._net(self._moved(images)).float()
            accuracy.update(logits, labels)
            loss.update(functional.cross_entropy(logits, labels, reduction="none"))
            start += len(images)
        return Scores(name, float(accuracy.compute()), float(loss.compute()), len(self._val.listed))

    def _calibrate(self, architecture: Architecture) -> None:
        self._net.eval()
        self._net.set_active(architecture)
        self._net.calibrate(*(self._moved(images) for images in self._batches("train", architecture.r)))

    def _moved(self, images: Floats) -> Any:
        return (
            torch.from_numpy(images).to(self._ranks.device, self._dtype).contiguous(memory_format=torch.channels_last)
        )

    def _batches(self, part: str, resolution: int) -> Iterator[Floats]:
        """Yield batches of preprocessed images; small data sets are preprocessed once."""
        key = (part, resolution)
        if key in self._kept:
            yield from self._kept[key]
            return
        indices = self._shares if part == "val" else self._calibration
        height, width = self._val.input_size(resolution)
        size = max(1, _BATCH_PIXELS // (height * width))
        keep = len(indices) * height * width * self._val.preprocessing.channels <= _KEPT_NUMBERS
        made = []
        for start in range(0, len(indices), size):
            batch = np.stack([self._view(part, int(i), resolution) for i in indices[start : start + size]])
            if keep:
                made.append(batch)
            yield batch
        if keep:
            self._kept[key] = made

    def _view(self, part: str, index: int, resolution: int) -> Floats:
        if part == "val":
            return self._val.evaluation_view(index, resolution)
        return self._train.training_view(index, resolution, np.random.default_rng([index, resolution]))


def _metrics(classes: int, ranks: Ranks) -> tuple[Any, Any]:
    try:
        from torchmetrics import MeanMetric
        from torchmetrics.classification import MulticlassAccuracy
    except ImportError as error:
        raise MissingDependencyError(
            f"training needs torchmetrics, which is not installed; run: {install_extra('train')}"
        ) from error
    accuracy = MulticlassAccuracy(num_classes=int(classes), average="micro", validate_args=False)
    return accuracy.to(ranks.device), MeanMetric().to(ranks.device)
