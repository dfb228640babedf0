"""The place of a fine-tuning after one of its steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FineTuningStep:
    """One step of the training; its figures are over the epoch so far."""

    epoch: int  #: from 1
    epochs: int
    step: int  #: of the epoch, from 1
    steps: int
    loss: float  #: mean
    agreement: float  #: share of the images that the student classified as their labels say

    @property
    def ends_epoch(self) -> bool:
        """Whether it was the last step of its epoch."""
        return self.step == self.steps

    @property
    def done(self) -> int:
        """Steps of the whole training that are done."""
        return (self.epoch - 1) * self.steps + self.step

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.steps
