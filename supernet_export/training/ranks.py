"""The processes that train one network together: their number, their devices and their exchanges."""

# Linting must not need torch, so its classes are Any here.
# mypy: allow-subclassing-any

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fleetnas.fleet_protocol.errors import MissingDependencyError, UsageError
from fleetnas.fleet_protocol.installing import install_extra

#: Parts of the messages, in small letters, with which gloo and NCCL report it; they have no error class of their own.
_SIGNS_OF_A_LOST_PROCESS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")


@dataclass(frozen=True)
class Ranks:
    """This process among `world` processes; one process alone by default, which exchanges nothing."""

    rank: int = 0
    world: int = 1
    local_world: int = 1
    device: Any = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def share(self, chosen: NDArray[Any]) -> NDArray[Any]:
        """Return this process's part of a global batch, contiguous and as large as the others' or one larger."""
        return np.array_split(chosen, self.world)[self.rank]

    def check_shares(self, images: int, batch_size: int) -> None:
        """Raise `UsageError` where not every process gets images of each batch."""
        if images < 2 * self.world:
            raise UsageError(f"{images} images are too few for {self.world} processes; start fewer")
        if batch_size < self.world:
            raise UsageError(
                f"--batch-size {batch_size} is less than an image for each of {self.world} processes; give a larger "
                "one, or start fewer"
            )

    def add(self, tensor: Tensor) -> Tensor:
        """Return the sum of `tensor` over all processes, in place."""
        if self.world > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def copy_from_first(self, tensors: list[Tensor]) -> None:
        """Overwrite `tensors` with those of the first process."""
        if self.world > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor.detach(), 0)

    def lost_by(self, error: RuntimeError) -> bool:
        """Whether an exchange raised `error` because another process has ended."""
        return self.world > 1 and any(sign in str(error).lower() for sign in _SIGNS_OF_A_LOST_PROCESS)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            torch.distributed.barrier()


def open_ranks() -> Ranks:
    """Join the processes that `torchrun` or `accelerate launch` started; one process alone without them.

    Uses a GPU where torch sees one, NCCL between GPUs and gloo between CPUs.
    `MissingDependencyError` without accelerate.
    """
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingDependencyError(
            f"training needs accelerate, which is not installed; run: {install_extra('train')}"
        ) from error
    state = PartialState(cpu=not torch.cuda.is_available())
    local = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
    return Ranks(state.process_index, state.num_processes, local, state.device)


def close_ranks() -> None:
    """Leave the processes that `open_ranks` joined."""
    from accelerate import PartialState

    PartialState().destroy_process_group()


class _GatheredMoments(torch.autograd.Function):
    """Gather each process's (count, means, variances), differentiably: the backward pass adds up all gradients."""

    @staticmethod
    def forward(ctx: Any, moments: Tensor) -> Tensor:
        """Return the rows of all processes, shape (world, ...)."""
        rows = [torch.empty_like(moments) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(rows, moments.contiguous())
        return torch.stack(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient of this process's row."""
        gradient = gradient.contiguous()
        torch.distributed.all_reduce(gradient)
        return gradient[torch.distributed.get_rank()]


def global_moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the mean and the biased variance of each channel of x (n, channels, height, width) over all processes.

    The third value is the count of all numbers of a channel. Source of the combination: Chan, Golub & LeVeque,
    *Updating formulae and a pairwise algorithm for computing sample variances* (1979).
    """
    count = x.numel() // x.shape[1]
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), unbiased=False)
    rows = _GatheredMoments.apply(torch.cat([mean.new_tensor([count]), mean, variance]))
    counts, means, variances = rows[:, :1].detach(), rows[:, 1 : 1 + len(mean)], rows[:, 1 + len(mean) :]
    whole = counts.sum()
    mean = (counts * means).sum(0) / whole
    variance = (counts * (variances + (means - mean) ** 2)).sum(0) / whole
    return mean, variance, int(whole)
