"""Elastic layers in torch: the first channels of their weights, and kernels cropped and transformed.

Source of the semantics: Cai et al., *Once-for-All* (ICLR 2020) and the published checkpoints, whose parameter names
these modules have. A smaller kernel is the centre of the larger one, multiplied by a learned matrix, one step (7 to 5,
5 to 3) at a time.
"""

# Linting must not need torch, so its classes are Any here.
# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fleetnas.fleet_protocol.errors import ArchitectureError
from fleetnas.supernet_export.graph import Activation
from fleetnas.supernet_export.spaces.mbconv_network import MBConvBlock, MBConvNetwork, squeeze_width
from fleetnas.supernet_export.training.ranks import global_moments


class _Activation(nn.Module):
    def __init__(self, kind: Activation) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "none":
                return x
            case "relu":
                return functional.relu(x)
            case "relu6":
                return functional.relu6(x)
            case "h_swish":
                return functional.hardswish(x)
            case "h_sigmoid":
                return functional.hardsigmoid(x)


class BatchNorm(nn.Module):
    """Batch norm over the first channels of its parameters, as many as its input has.

    While calibrating, it normalises by the batch's own statistics and keeps exactly those: so a subnet's statistics are
    estimated. In training they are a running average of the slice, as in OFA. Where several processes train, it
    normalises by the statistics of the batches of all (`set_synchronised`).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, epsilon: float, momentum: float = 0.1) -> None:
        super().__init__()
        self.epsilon, self.momentum = epsilon, momentum
        self.calibrating = self.synchronised = False
        self.calibrated = 0
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def set_calibrating(self, calibrating: bool) -> None:
        """Begin or end calibration; the batches between give the mean of their statistics."""
        self.calibrating, self.calibrated = calibrating, 0

    def set_synchronised(self, synchronised: bool) -> None:
        """Take the statistics of all processes' batches in training, or this process's."""
        self.synchronised = synchronised

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, shape (n, channels, height, width)."""
        channels = x.shape[1]
        mean, var = self.running_mean[:channels], self.running_var[:channels]
        if self.calibrating:
            # The biased variance, with which normalisation computes and which OFA keeps; torch keeps the other one.
            batch_var, batch_mean = x.var(dim=(0, 2, 3), unbiased=False), x.mean(dim=(0, 2, 3))
            self.calibrated += 1
            var.lerp_(batch_var, 1 / self.calibrated)
            mean.lerp_(batch_mean, 1 / self.calibrated)
            mean, var = batch_mean, batch_var
        weight, bias = self.weight[:channels], self.bias[:channels]
        if self.training and self.synchronised:
            return self._normalised_with_others(x, mean, var)
        return functional.batch_norm(x, mean, var, weight, bias, self.training, self.momentum, self.epsilon)

    def _normalised_with_others(self, x: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
        channels = x.shape[1]
        wide = x.to(self.weight.dtype)  # of mixed precision
        mean, var, count = global_moments(wide)
        with torch.no_grad():
            running_mean.lerp_(mean, self.momentum)
            running_var.lerp_(var * (count / max(1, count - 1)), self.momentum)
        scale = self.weight[:channels] * torch.rsqrt(var + self.epsilon)
        scaled = (wide - mean[:, None, None]) * scale[:, None, None]
        return (scaled + self.bias[:channels, None, None]).to(x.dtype)


class _Elastic(nn.Module):
    """Batch norm one name deeper, as elastic layers have it in published checkpoints."""

    def __init__(self, channels: int, epsilon: float) -> None:
        super().__init__()
        self.bn = BatchNorm(channels, epsilon)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(x)
        return out


class _Pointwise(nn.Module):
    """1x1 convolution between the first channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.active_out = out_channels

    def set_active_out(self, channels: int) -> None:
        """Compute only the first output channels."""
        self.active_out = channels

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.conv.weight[: self.active_out, : x.shape[1]])


class _Depthwise(nn.Module):
    """Depthwise convolution of the first channels with an elastic kernel."""

    def __init__(self, channels: int, kernels: Sequence[int], stride: int) -> None:
        super().__init__()
        self.kernels = sorted(kernels, reverse=True)
        self.stride = stride
        self.active_kernel = self.kernels[0]
        self.conv = nn.Conv2d(channels, channels, self.kernels[0], stride, groups=channels, bias=False)
        for larger, smaller in zip(self.kernels, self.kernels[1:], strict=False):
            self.register_parameter(f"{larger}to{smaller}_matrix", nn.Parameter(torch.eye(smaller**2)))

    def set_active_kernel(self, kernel: int) -> None:
        """Compute with this kernel size."""
        self.active_kernel = kernel

    def kernel(self, channels: int) -> Tensor:
        """Return the active kernel, shape (channels, 1, k, k)."""
        weight = self.conv.weight[:channels]
        for larger, smaller in zip(self.kernels, self.kernels[1:], strict=False):
            if smaller < self.active_kernel:
                break
            edge = (larger - smaller) // 2
            centre = weight[:, :, edge : edge + smaller, edge : edge + smaller].reshape(channels, smaller**2)
            matrix = self.get_parameter(f"{larger}to{smaller}_matrix")
            weight = functional.linear(centre, matrix).view(channels, 1, smaller, smaller)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        return functional.conv2d(
            x, self.kernel(channels), stride=self.stride, padding=self.active_kernel // 2, groups=channels
        )


class _SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = squeeze_width(channels)
        self.fc = nn.Sequential(OrderedDict(reduce=nn.Conv2d(channels, inner, 1), expand=nn.Conv2d(inner, channels, 1)))

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        inner = squeeze_width(channels)
        reduce, expand = self.fc.reduce, self.fc.expand
        gate = x.mean((2, 3), keepdim=True)
        gate = functional.relu(functional.conv2d(gate, reduce.weight[:inner, :channels], reduce.bias[:inner]))
        gate = functional.conv2d(gate, expand.weight[:channels, :inner], expand.bias[:channels])
        return x * functional.hardsigmoid(gate)


class ElasticMBConv(nn.Module):
    """Inverted bottleneck with elastic kernel and expand ratio."""

    def __init__(self, block: MBConvBlock, kernels: Sequence[int], expands: Sequence[float], epsilon: float) -> None:
        super().__init__()
        self.block = block
        self.expands = tuple(expands)
        middle = block.middle_width(max(expands))
        self.inverted_bottleneck = nn.Sequential(
            OrderedDict(
                conv=_Pointwise(block.in_width, middle),
                bn=_Elastic(middle, epsilon),
                act=_Activation(block.activation),
            )
        )
        depth_conv: OrderedDict[str, nn.Module] = OrderedDict(
            conv=_Depthwise(middle, kernels, block.stride),
            bn=_Elastic(middle, epsilon),
            act=_Activation(block.activation),
        )
        if block.squeeze:
            depth_conv["se"] = _SqueezeExcite(middle)
        self.depth_conv = nn.Sequential(depth_conv)
        self.point_linear = nn.Sequential(
            OrderedDict(conv=_Pointwise(middle, block.out_width), bn=_Elastic(block.out_width, epsilon))
        )

    def set_active(self, kernel: int, expand: float) -> None:
        """Choose a kernel and an expand ratio; `ArchitectureError` if the block does not have them."""
        if kernel not in self.depth_conv.conv.kernels or expand not in self.expands:
            raise ArchitectureError(
                f"block {self.block.index} has kernels {sorted(self.depth_conv.conv.kernels)} and expand ratios "
                f"{list(self.expands)}; kernel {kernel} with expand ratio {expand:g} is not among them"
            )
        self.depth_conv.conv.set_active_kernel(kernel)
        self.inverted_bottleneck.conv.set_active_out(self.block.middle_width(expand))

    @torch.no_grad()
    def sort_channels(self, within: Sequence[float]) -> None:
        """Put the most important expanded channels first, within the widths of the expand ratios in `within`."""
        project = self.point_linear.conv.conv.weight
        ends = sorted(self.block.middle_width(expand) for expand in within)
        groups = zip([0, *ends], [*ends, project.shape[1]], strict=False)
        order = torch.cat([start + _by_importance(project[:, start:end]) for start, end in groups])
        depthwise = self.depth_conv
        for tensor in (self.inverted_bottleneck.conv.conv.weight, depthwise.conv.conv.weight):
            tensor.copy_(tensor[order])
        project.copy_(project[:, order])
        for norm in (self.inverted_bottleneck.bn.bn, depthwise.bn.bn):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.copy_(tensor[order])
        if self.block.squeeze:
            reduce, expand = depthwise.se.fc.reduce, depthwise.se.fc.expand
            reduce.weight.copy_(reduce.weight[:, order])
            expand.weight.copy_(expand.weight[order])
            expand.bias.copy_(expand.bias[order])
            inner = _by_importance(expand.weight)
            expand.weight.copy_(expand.weight[:, inner])
            reduce.weight.copy_(reduce.weight[inner])
            reduce.bias.copy_(reduce.bias[inner])

    def forward(self, x: Tensor) -> Tensor:
        """Run the chosen kernel and width on x, shape (n, channels, height, width)."""
        out: Tensor = self.point_linear(self.depth_conv(self.inverted_bottleneck(x)))
        return out


def _by_importance(weight: Tensor) -> Tensor:
    """Input channels of a convolution (out, in, k, k), those with the largest sum of magnitudes first."""
    return weight.abs().sum(dim=(0, 2, 3)).argsort(descending=True, stable=True)


class FixedMBConv(nn.Module):
    """The first block: expand ratio 1, kernel 3."""

    def __init__(self, network: MBConvNetwork) -> None:
        super().__init__()
        inside, out, epsilon = network.stem_width, network.first_block_width, network.batch_norm_epsilon
        self.depth_conv = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(inside, inside, 3, padding=1, groups=inside, bias=False),
                bn=BatchNorm(inside, epsilon),
                act=_Activation(network.first_block_activation),
            )
        )
        self.point_linear = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(inside, out, 1, bias=False), bn=BatchNorm(out, epsilon))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on x, shape (n, channels, height, width)."""
        out: Tensor = self.point_linear(self.depth_conv(x))
        return out


class Residual(nn.Module):
    """A block with or without a shortcut, one name deeper, as published checkpoints have it."""

    def __init__(self, block: nn.Module, shortcut: bool) -> None:
        super().__init__()
        self.mobile_inverted_conv = block
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on x, and add x if there is a shortcut."""
        out: Tensor = self.mobile_inverted_conv(x)
        return x + out if self.shortcut else out


class Classifier(nn.Module):
    """The last linear layer."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of features x, shape (n, features)."""
        out: Tensor = self.linear(x)
        return out


def conv_layer(
    inside: int, out: int, kernel: int, stride: int, activation: Activation, epsilon: float | None
) -> nn.Sequential:
    """Return a convolution, batch norm unless `epsilon` is None, and an activation."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(inside, out, kernel, stride, padding=kernel // 2, bias=False)
    )
    if epsilon is not None:
        layers["bn"] = BatchNorm(out, epsilon)
    layers["act"] = _Activation(activation)
    return nn.Sequential(layers)
