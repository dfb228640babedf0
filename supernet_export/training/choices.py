"""Choices of a training by their names; they need no torch."""

from __future__ import annotations

from typing import Literal, TypeAlias

Schedule: TypeAlias = Literal["sandwich", "compound", "progressive"]
OptimizerName: TypeAlias = Literal["adamw", "sgd"]
#: Arithmetic of forward passes; weights are float32 in all of them.
ForwardPrecision: TypeAlias = Literal["fp32", "bf16", "fp16"]
#: `fp64` compares trainings: in it the roundings of another order of sums stay out of sight.
Precision: TypeAlias = Literal[ForwardPrecision, "fp64"]
ClassWeights: TypeAlias = Literal["none", "balanced"]
