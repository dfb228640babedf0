"""One phase's optimisation: optimiser, learning rate's course, gradient exchange, clipping and averaged weights."""

# Linting must not need torch, so its decorators are untyped here.
# mypy: allow-untyped-decorators

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fleetnas.supernet_export.training.choices import OptimizerName
from fleetnas.supernet_export.training.ranks import Ranks


class Optimisation:
    """Optimiser of a phase of `steps` steps; its gradients are sums over several subnets."""

    def __init__(
        self,
        optimizer: Any,
        net: nn.Module,
        *,
        steps: int,
        warm_up: float,
        clip_norm: float,
        ema_decay: float,
        scaled: bool,
    ) -> None:
        """Prepare the course of the learning rate of `optimizer`; `scaled` scales losses, for float16."""
        self._net, self._clip_norm = net, clip_norm
        self._optimizer = optimizer
        self._schedule = _course(self._optimizer, steps, round(warm_up * steps))
        self._scaler = torch.amp.GradScaler("cuda") if scaled else None
        self.average = _average(net, ema_decay) if ema_decay else None

    @property
    def learning_rate(self) -> float:
        """The learning rate now."""
        rate: float = self._optimizer.param_groups[0]["lr"]
        return rate

    def clear(self) -> None:
        """Forget all gradients."""
        self._optimizer.zero_grad()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    @torch.no_grad()
    def exchange(self, loss: float, stop: bool, ranks: Ranks) -> tuple[float, bool]:
        """Add up the gradients, losses and wishes to stop of all processes, in one exchange."""
        if ranks.world == 1:
            return loss, stop
        gradients = [p.grad for p in self._net.parameters() if p.grad is not None]
        own = [gradient.reshape(-1) for gradient in gradients]
        flat = ranks.add(torch.cat([*own, own[0].new_tensor([loss, float(stop)])]))
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()
        loss, stopping = flat[start:].tolist()
        return loss, stopping > 0

    def step(self) -> bool:
        """Clip the gradients and change the weights; return False, and change nothing, if they are not finite."""
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self._net.parameters(), self._clip_norm)
        if self._scaler is not None:  # which leaves a step out where float16 overflowed, and scales less from then on
            self._scaler.step(self._optimizer)
            self._scaler.update()
        elif torch.isfinite(norm):
            self._optimizer.step()
        else:
            return False
        self._schedule.step()
        if self.average is not None:
            self.average.update_parameters(self._net)
        return True

    def adopt_average(self) -> None:
        """Give the network the averaged weights, with which the next phase begins."""
        if self.average is not None:
            self._net.load_state_dict(self.average.module.state_dict())

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "schedule": _plain(self._schedule.state_dict()),
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        if self._scaler is not None:
            self._scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def optimizer_of(net: nn.Module, name: OptimizerName, learning_rate: float, weight_decay: float) -> Any:
    """Return AdamW, or SGD with Nesterov's momentum as once-for-all has it.

    `learning_rate` is the highest. Neither vectors nor kernel transforms decay.
    """
    decayed = [p for name, p in net.named_parameters() if p.dim() > 1 and not name.endswith("_matrix")]
    plain = [p for name, p in net.named_parameters() if p.dim() <= 1 or name.endswith("_matrix")]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=learning_rate)


def _course(optimizer: Any, steps: int, warm_up: int) -> Any:
    """Linear warm-up, then half a cosine down to zero."""
    courses = torch.optim.lr_scheduler
    cosine = courses.CosineAnnealingLR(optimizer, max(1, steps - warm_up))
    if warm_up == 0:
        return cosine
    rise = courses.LinearLR(optimizer, start_factor=1 / (warm_up + 1), total_iters=warm_up)
    return courses.SequentialLR(optimizer, [rise, cosine], milestones=[warm_up])


def _average(net: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average with a shorter memory at first: at most a tenth of the steps so far."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        steps = int(count)
        weight = 1 - min(decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(averaged, current, weight)

    average = AveragedModel(net, multi_avg_fn=update)
    average.update_parameters(net)  # the first call copies
    return average


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Return a scheduler's state without objects, which a checkpoint must not hold."""
    found: dict[str, Any] = {}
    for key, value in state.items():
        if key == "_schedulers":
            found[key] = [_plain(inner) for inner in value]
        elif isinstance(value, (int, float, str, list, tuple, type(None))):
            found[key] = value
    return found
