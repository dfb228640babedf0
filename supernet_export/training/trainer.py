"""Train an elastic network on images in memory, reproducibly."""

# Linting must not need torch, so its decorators are untyped here.
# mypy: allow-untyped-decorators

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.training.elastic import ElasticMBConvNet
from fleetnas.supernet_export.training.schedule import Phase

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
#: Images (n, ...) and a resolution to network input (n, channels, resolution, resolution).
Preprocess = Callable[[Floats, int], Floats]
#: Images (n, ...) to distorted images of the same shape.
Augment = Callable[[Floats, np.random.Generator], Floats]


@dataclass(frozen=True)
class Recipe:
    """Settings that all phases share."""

    resolutions: tuple[int, ...]
    batch_size: int = 64
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    seed: int = 0
    #: One thread is slower on an idle machine and many times faster on a busy one, and gives the same weights on every
    #: machine: another number takes sums in another order.
    threads: int = 1


@dataclass(frozen=True)
class Progress:
    """One finished epoch: `loss` is the mean cross-entropy of the largest subnet."""

    phase: str
    epoch: int
    epochs: int
    loss: float


class Trainer:
    """Runs phases over one network; the same seed, data and thread count give the same weights."""

    def __init__(
        self,
        net: ElasticMBConvNet,
        images: Floats,
        labels: Integers,
        *,
        recipe: Recipe,
        preprocess: Preprocess,
        augment: Augment,
    ) -> None:
        # Channels last makes depthwise gradients several times faster on a CPU.
        self.net, self.recipe = net.to(memory_format=torch.channels_last), recipe
        self.images, self.labels = images, labels
        self.preprocess, self.augment = preprocess, augment
        self.rng = np.random.default_rng(recipe.seed)

    def run(self, phases: Sequence[Phase], report: Callable[[Progress], None]) -> None:
        """Train through `phases`; `report` is called after every epoch."""
        torch.set_num_threads(self.recipe.threads)
        deterministic = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        torch.set_flush_denormal(True)
        epoch, epochs = 0, sum(phase.epochs for phase in phases)
        try:
            for phase in phases:
                if phase.sort_within:
                    self.net.sort_channels(phase.sort_within)
                steps = math.ceil(len(self.labels) / self.recipe.batch_size)
                optimizer = self._optimizer(phase.learning_rate)
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, phase.epochs * steps)
                for _ in range(phase.epochs):
                    loss = self._epoch(phase, optimizer, schedule)
                    epoch += 1
                    report(Progress(phase.name, epoch, epochs, loss))
        finally:
            torch.use_deterministic_algorithms(deterministic)
            torch.set_flush_denormal(False)

    def _optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        decayed = [p for name, p in self.net.named_parameters() if p.dim() > 1 and not name.endswith("_matrix")]
        plain = [p for name, p in self.net.named_parameters() if p.dim() <= 1 or name.endswith("_matrix")]
        groups = [{"params": decayed, "weight_decay": self.recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=learning_rate)

    def _epoch(
        self, phase: Phase, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
    ) -> float:
        self.net.train()
        order = self.rng.permutation(len(self.labels))
        total = 0.0
        for start in range(0, len(order), self.recipe.batch_size):
            chosen = order[start : start + self.recipe.batch_size]
            resolution = int(self.rng.choice(self.recipe.resolutions))
            distorted = self.augment(self.images[chosen], self.rng)
            inputs = torch.from_numpy(self.preprocess(distorted, resolution))
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            targets = torch.from_numpy(self.labels[chosen])
            total += self._step(phase, resolution, inputs, targets, optimizer) * len(chosen)
            schedule.step()
        return total / len(order)

    def _step(
        self, phase: Phase, resolution: int, inputs: Tensor, targets: Tensor, optimizer: torch.optim.Optimizer
    ) -> float:
        network = self.net.network
        optimizer.zero_grad()
        self.net.set_active(phase.extreme(network, resolution, largest=True))
        logits = self.net(inputs)
        loss = functional.cross_entropy(logits, targets, label_smoothing=self.recipe.label_smoothing)
        loss.backward()
        teacher = functional.softmax(logits.detach(), dim=1)
        students = [phase.sample(network, resolution, self.rng) for _ in range(phase.random_subnets)]
        if phase.smallest:
            students.append(phase.extreme(network, resolution, largest=False))
        for student in students:
            self.net.set_active(student)
            functional.cross_entropy(self.net(inputs), teacher).backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        optimizer.step()
        return float(loss.detach())


@torch.no_grad()
def calibrated_logits(net: ElasticMBConvNet, architecture: Architecture, calibration: Floats, images: Floats) -> Floats:
    """Return a subnet's logits, shape (n, classes), after its batch-norm statistics are re-estimated.

    `calibration` and `images` are preprocessed. The network keeps those statistics.
    """
    net.eval()
    net.set_active(architecture)
    net.calibrate(torch.from_numpy(calibration))
    logits: Floats = net(torch.from_numpy(images)).numpy()
    return logits
