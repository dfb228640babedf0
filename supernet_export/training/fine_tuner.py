"""Train one subnet by itself, taught by labels and by a frozen network."""

# Linting must not need torch, so its decorators are untyped here.
# mypy: allow-untyped-decorators

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fleetnas.fleet_protocol.errors import TrainingError, UsageError
from fleetnas.supernet_export.graph import Graph
from fleetnas.supernet_export.training.batches import Floats
from fleetnas.supernet_export.training.distillation_batches import DistillationBatch, DistillationBatches
from fleetnas.supernet_export.training.fine_tuning_recipe import FineTuningRecipe
from fleetnas.supernet_export.training.fine_tuning_step import FineTuningStep
from fleetnas.supernet_export.training.graph_module import GraphModule
from fleetnas.supernet_export.training.optimisation import Optimisation
from fleetnas.supernet_export.training.reproducible import reproducible


class FineTuner:
    """Trains a graph on batches; the same batches, recipe and thread count give the same weights on a CPU.

    The loss is `(1 - distillation)` times the cross-entropy with the labels plus `distillation` times that with the
    teacher's probabilities. Sources: Hinton et al., *Distilling the Knowledge in a Neural Network* (2015), at
    temperature 1; Cai et al., *Once-for-All* (ICLR 2020).
    """

    def __init__(
        self, student: Graph, teacher: Graph | None, batches: DistillationBatches, recipe: FineTuningRecipe
    ) -> None:
        """`teacher` computes with its own statistics; `batches` hold its inputs behind the student's.

        `UsageError` where fp16 is asked for and there is no GPU.
        """
        self.recipe, self._batches = recipe, batches
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if recipe.precision == "fp16" and self._device.type == "cpu":
            raise UsageError("--precision fp16 needs a GPU, and torch finds none here; take fp32 or bf16")
        self._net = self._placed(student).train()
        self._teacher = None if teacher is None else self._placed(teacher).eval().requires_grad_(False)
        self._optimisation = Optimisation(
            self._net,
            learning_rate=recipe.learning_rate,
            steps=recipe.epochs * batches.steps,
            warm_up=recipe.warm_up,
            weight_decay=recipe.weight_decay,
            clip_norm=recipe.clip_norm,
            ema_decay=recipe.ema_decay,
            scaled=recipe.precision == "fp16",
        )
        self._epoch = self._step = 0
        self._loss_sum, self._right, self._seen = 0.0, 0, 0

    def run(self, after_step: Callable[[FineTuningStep], None]) -> None:
        """Train to the end of the last epoch, from where `restore` put it; `after_step` is called after each step.

        `TrainingError` where the loss is not finite.
        """
        with reproducible(self.recipe.threads, on_cpu=self._device.type == "cpu"):
            while self._epoch < self.recipe.epochs:
                for batch in self._batches.epoch(self._epoch, self._step):
                    self._learn(batch)
                    self._step += 1
                    done = FineTuningStep(
                        epoch=self._epoch + 1,
                        epochs=self.recipe.epochs,
                        step=self._step,
                        steps=self._batches.steps,
                        loss=self._loss_sum / self._seen,
                        agreement=self._right / self._seen,
                    )
                    if done.ends_epoch:
                        self._epoch, self._step = self._epoch + 1, 0
                        self._loss_sum, self._right, self._seen = 0.0, 0, 0
                    after_step(done)

    @property
    def steps_done(self) -> int:
        """Steps of all epochs that are done."""
        return self._epoch * self._batches.steps + self._step

    def graph(self) -> Graph:
        """Return the trained network: the moving average of its weights where there is one."""
        average = self._optimisation.average
        module: GraphModule = self._net if average is None else average.module
        return module.graph()

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the training depends on: tensors, numbers and text in dictionaries."""
        return {
            "place": [self._epoch, self._step, self._loss_sum, self._right, self._seen],
            "net": self._net.state_dict(),
            "optimisation": self._optimisation.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned, of a training of the same graph, batches and recipe."""
        self._epoch, self._step, self._loss_sum, self._right, self._seen = state["place"]
        self._net.load_state_dict(state["net"])
        self._optimisation.restore(state["optimisation"])

    def _placed(self, graph: Graph) -> GraphModule:
        # Channels last makes depthwise gradients several times faster on a CPU.
        placed: GraphModule = GraphModule(graph).to(self._device, memory_format=torch.channels_last)
        return placed

    def _learn(self, batch: DistillationBatch) -> None:
        labels = torch.from_numpy(batch.labels).to(self._device)
        self._optimisation.clear()
        logits = self._logits(self._net, batch.inputs[0])
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        if self._teacher is not None:
            share = self.recipe.distillation
            loss = (1 - share) * loss + share * functional.cross_entropy(logits, self._taught(batch))
        self._optimisation.backward(loss)
        value = float(loss.detach())
        if not np.isfinite(value) or not self._optimisation.step():
            self._fail(batch, value)
        self._loss_sum += value * len(labels)
        self._right += int((logits.detach().argmax(1) == labels).sum())
        self._seen += len(labels)

    @torch.no_grad()
    def _taught(self, batch: DistillationBatch) -> Tensor:
        assert self._teacher is not None
        return functional.softmax(self._logits(self._teacher, batch.inputs[1]), dim=1)

    def _logits(self, net: GraphModule, images: Floats) -> Tensor:
        inputs = torch.from_numpy(images).to(self._device).contiguous(memory_format=torch.channels_last)
        if self.recipe.precision == "fp32":
            found: Tensor = net(inputs)
            return found
        kind = torch.bfloat16 if self.recipe.precision == "bf16" else torch.float16
        with torch.autocast(self._device.type, dtype=kind):
            found = net(inputs)
        return found.float()

    def _fail(self, batch: DistillationBatch, loss: float) -> None:
        names = ", ".join(self._batches.name_of(index) for index in batch.chosen[:3].tolist())
        raise TrainingError(
            f"the training has diverged: in epoch {self._epoch + 1}, step {self._step + 1} the loss is {loss:g}, or "
            "its gradients are not finite; start again with a lower --learning-rate than "
            f"{self.recipe.learning_rate:g} or with --precision fp32, and look at the images of this batch ({names}, "
            "...)"
        )
