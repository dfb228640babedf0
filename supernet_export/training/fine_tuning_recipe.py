"""Settings of the fine-tuning of one subnet."""

from __future__ import annotations

from dataclasses import dataclass

from fleetnas.supernet_export.training.choices import ForwardPrecision


@dataclass(frozen=True)
class FineTuningRecipe:
    """How one subnet is trained on."""

    epochs: int = 5
    learning_rate: float = 2e-3  #: at its peak; it rises linearly, then falls as a cosine to 0
    batch_size: int = 32
    precision: ForwardPrecision = "fp32"
    seed: int = 0
    threads: int = 1  #: another number takes sums in another order
    distillation: float = 0.5  #: share of the teacher in the loss
    label_smoothing: float = 0.1
    weight_decay: float = 0.01
    warm_up: float = 0.1  #: share of the steps in which the learning rate rises
    clip_norm: float = 5.0  #: largest norm of all gradients together
    ema_decay: float = 0.99  #: of the moving average of the weights, which is the result; 0: none
