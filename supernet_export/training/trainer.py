"""Train an elastic network through the phases of a schedule, reproducibly."""

# Linting must not need torch, so its decorators are untyped here.
# mypy: allow-untyped-decorators

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import TrainingError
from fleetnas.supernet_export.training.batches import Batch, Floats, TrainingBatches
from fleetnas.supernet_export.training.choices import OptimizerName, Precision
from fleetnas.supernet_export.training.elastic import ElasticMBConvNet
from fleetnas.supernet_export.training.optimisation import Optimisation, optimizer_of
from fleetnas.supernet_export.training.ranks import Ranks
from fleetnas.supernet_export.training.reproducible import reproducible
from fleetnas.supernet_export.training.schedule import Phase

#: Images that a message names.
_MOST_NAMED = 5


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
    #: Largest norm of all gradients together.
    clip_norm: float = 5.0
    optimizer: OptimizerName = "adamw"
    #: Share of a phase in which the learning rate rises from zero.
    warm_up: float = 0.0
    #: Of the exponential moving average of the weights; 0: none.
    ema_decay: float = 0.0
    precision: Precision = "fp32"
    #: A weight per class for the loss on labels.
    class_weights: tuple[float, ...] | None = None
    #: Random subnets learn from a copy of the largest subnet as it was when its phase ended, not from it as it learns.
    frozen_teacher: bool = False


@dataclass(frozen=True)
class Progress:
    """One finished step or epoch: `loss` is the epoch's mean cross-entropy of the largest subnet so far."""

    phase: str
    epoch: int  #: counted from 1 over all phases
    epochs: int
    loss: float
    step: int = 0  #: steps done in this epoch
    steps: int = 0
    learning_rate: float = 0.0


class TrainerEvents:
    """What happens around a training; this one ignores all of it."""

    def wants_to_stop(self) -> bool:
        """Return whether training should end after the current step."""
        return False

    def after_step(self, trainer: Trainer, progress: Progress, *, stop: bool) -> None:
        """Take note of a step; `stop` where this process or another one wants to stop."""

    def after_epoch(self, trainer: Trainer, progress: Progress) -> None:
        """Take note of an epoch."""


@dataclass(frozen=True)
class Position:
    """How far a training is: the next step."""

    phase: int = 0
    epoch: int = 0  #: within the phase
    step: int = 0
    done_epochs: int = 0  #: over all phases
    #: Sum of the largest subnet's losses in this epoch, and the images they are of.
    loss_sum: float = 0.0
    images: int = 0


@dataclass
class Trainer:
    """Runs phases over one network; the same seed, data and thread count give the same weights.

    `state` and `restore` continue a training in another process with the same result, bit for bit on a CPU.
    """

    net: ElasticMBConvNet
    batches: TrainingBatches
    phases: Sequence[Phase]
    recipe: Recipe
    ranks: Ranks = field(default_factory=Ranks)
    events: TrainerEvents = field(default_factory=TrainerEvents)
    teacher: ElasticMBConvNet | None = None

    def __post_init__(self) -> None:
        # Channels last makes depthwise gradients several times faster on a CPU.
        self._dtype = torch.float64 if self.recipe.precision == "fp64" else torch.float32
        self.net.to(self.ranks.device, self._dtype, memory_format=torch.channels_last)
        self.net.set_synchronised(self.ranks.world > 1)
        self.ranks.copy_from_first([*self.net.parameters(), *self.net.buffers()])
        self.rng = np.random.default_rng(self.recipe.seed)
        self.position = Position()
        self._optimisation: Optimisation | None = None
        weights = self.recipe.class_weights
        self._class_weights = (
            None if weights is None else torch.tensor(weights, device=self.ranks.device, dtype=self._dtype)
        )

    @property
    def epochs(self) -> int:
        """Epochs of all phases."""
        return sum(phase.epochs for phase in self.phases)

    def run(self) -> None:
        """Train from the current position to the end of the last phase."""
        with reproducible(self.recipe.threads, on_cpu=torch.device(self.ranks.device).type == "cpu"):
            while self.position.phase < len(self.phases):
                phase = self.phases[self.position.phase]
                optimisation = self._optimisation or self._begin(phase)
                while self.position.epoch < phase.epochs:
                    self._epoch(phase, optimisation)
                optimisation.adopt_average()
                self._optimisation = None
                if self.recipe.frozen_teacher and phase.random_subnets == 0 and not phase.smallest:
                    self.teacher = self._frozen(phase)
                self._move(phase=self.position.phase + 1, epoch=0)

    def averaged_state(self) -> dict[str, Tensor]:
        """Return parameters and statistics as a result holds them: the moving average where there is one."""
        if self._optimisation is None or self._optimisation.average is None:
            return dict(self.net.state_dict())
        return dict(self._optimisation.average.module.state_dict())

    def state(self) -> dict[str, Any]:
        """Return all that the rest of this training depends on: tensors, numbers and text in dictionaries."""
        optimisation = self._optimisation
        return {
            "position": dict(vars(self.position)),
            "generator": json.dumps(self.rng.bit_generator.state),
            "torch_generator": torch.get_rng_state(),
            "net": self.net.state_dict(),
            "teacher": None if self.teacher is None else self.teacher.state_dict(),
            "optimisation": None if optimisation is None else optimisation.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned, of a trainer with the same phases, recipe and data."""
        self.position = Position(**state["position"])
        bits = np.random.PCG64()
        bits.state = json.loads(state["generator"])
        self.rng = np.random.Generator(bits)
        torch.set_rng_state(state["torch_generator"])
        self.net.load_state_dict(state["net"])
        if state["teacher"] is not None:
            self.teacher = self._frozen(self.phases[0])
            self.teacher.load_state_dict(state["teacher"])
        if state["optimisation"] is not None:
            self._optimisation = self._optimisation_of(self.phases[self.position.phase])
            self._optimisation.restore(state["optimisation"])

    def _begin(self, phase: Phase) -> Optimisation:
        if phase.sort_within:
            self.net.sort_channels(phase.sort_within)
        self._optimisation = self._optimisation_of(phase)
        return self._optimisation

    def _optimisation_of(self, phase: Phase) -> Optimisation:
        recipe = self.recipe
        return Optimisation(
            optimizer_of(self.net, recipe.optimizer, phase.learning_rate, recipe.weight_decay),
            self.net,
            steps=phase.epochs * self.batches.steps,
            warm_up=recipe.warm_up,
            clip_norm=recipe.clip_norm,
            ema_decay=recipe.ema_decay,
            scaled=recipe.precision == "fp16",
        )

    def _frozen(self, phase: Phase) -> ElasticMBConvNet:
        teacher = copy.deepcopy(self.net)
        teacher.requires_grad_(False)
        teacher.set_active(phase.extreme(self.net.network, max(self.recipe.resolutions), largest=True))
        # By the batch's own statistics, as once-for-all's teacher: they fit every resolution.
        teacher.train()
        return teacher

    def _epoch(self, phase: Phase, optimisation: Optimisation) -> None:
        self.net.train()
        stop = False
        for batch in self.batches.epoch(self.position.done_epochs, self.position.step, self.rng):
            loss, stop = self._step(phase, batch, optimisation)
            position, count = self.position, len(batch.labels)
            self._move(
                step=position.step + 1, images=position.images + count, loss_sum=position.loss_sum + loss * count
            )
            if self.position.step < self.batches.steps:
                self.events.after_step(self, self._progress(phase, optimisation), stop=stop)
        progress, position = self._progress(phase, optimisation), self.position
        self._move(epoch=position.epoch + 1, done_epochs=position.done_epochs + 1, step=0, images=0, loss_sum=0.0)
        self.events.after_epoch(self, progress)
        if stop:
            self.events.after_step(self, progress, stop=True)

    def _move(self, **changes: Any) -> None:
        self.position = replace(self.position, **changes)

    def _progress(self, phase: Phase, optimisation: Optimisation) -> Progress:
        position = self.position
        return Progress(
            phase=phase.name,
            epoch=position.done_epochs + 1,
            epochs=self.epochs,
            loss=position.loss_sum / max(1, position.images),
            step=position.step,
            steps=self.batches.steps,
            learning_rate=optimisation.learning_rate,
        )

    def _step(self, phase: Phase, batch: Batch, optimisation: Optimisation) -> tuple[float, bool]:
        """Return the batch's loss of the largest subnet, and whether to stop."""
        network, ranks = self.net.network, self.ranks
        inputs = (
            torch.from_numpy(batch.inputs).to(ranks.device, self._dtype).contiguous(memory_format=torch.channels_last)
        )
        targets = torch.from_numpy(batch.own_labels).to(ranks.device)
        optimisation.clear()
        self.net.set_active(phase.extreme(network, batch.resolution, largest=True))
        logits = self._logits(self.net, inputs)
        loss = self._label_loss(logits, targets, batch)
        optimisation.backward(loss)
        students = [phase.sample(network, batch.resolution, self.rng) for _ in range(phase.random_subnets)]
        if phase.smallest:
            students.append(phase.extreme(network, batch.resolution, largest=False))
        if students:
            soft = functional.softmax(self._teacher_logits(inputs, logits), dim=1)
            share = len(batch.inputs) / len(batch.labels)
            for student in students:
                self.net.set_active(student)
                optimisation.backward(functional.cross_entropy(self._logits(self.net, inputs), soft) * share)
        value, stop = optimisation.exchange(float(loss.detach()), self.events.wants_to_stop(), ranks)
        if not np.isfinite(value) or not optimisation.step():
            self._fail(batch, value)
        return value, stop

    def _logits(self, net: ElasticMBConvNet, inputs: Tensor) -> Tensor:
        if self.recipe.precision in ("fp32", "fp64"):
            return net(inputs)
        kind = torch.bfloat16 if self.recipe.precision == "bf16" else torch.float16
        with torch.autocast(torch.device(self.ranks.device).type, dtype=kind):
            logits = net(inputs)
        return logits.float()

    @torch.no_grad()
    def _teacher_logits(self, inputs: Tensor, largest: Tensor) -> Tensor:
        return largest.detach() if self.teacher is None else self._logits(self.teacher, inputs)

    def _label_loss(self, logits: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """Return this process's part of the global batch's mean loss."""
        weights = self._class_weights
        loss = functional.cross_entropy(logits, targets, weights, label_smoothing=self.recipe.label_smoothing)
        if self.ranks.world == 1:
            return loss
        if weights is None:
            return loss * (len(targets) / len(batch.labels))
        everyone = torch.from_numpy(batch.labels).to(weights.device)
        return loss * (weights[targets].sum() / weights[everyone].sum())

    def _fail(self, batch: Batch, loss: float) -> None:
        position = self.position
        raise TrainingError(
            f"training has diverged in epoch {position.done_epochs + 1}, step {position.step + 1}: loss {loss:g} or "
            "gradients are not finite; use a lower --learning-rate or --precision fp32, and look at the images of "
            f"this batch ({self.batches.described(batch.chosen[:_MOST_NAMED].tolist())}, ...)"
        )


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
