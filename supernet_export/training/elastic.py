"""The elastic network in torch: one set of weights, of which `set_active` selects a subnet.

Source of the semantics: Cai et al., *Once-for-All* (ICLR 2020) and the published checkpoints, whose parameter names
these modules have. A subnet takes the first channels of each convolution, the first blocks of each stage, and a
kernel cropped to its centre and then multiplied by a learned matrix, one step (7 to 5, 5 to 3) at a time.
"""

# Linting must not need torch, so its classes are Any here.
# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import ArchitectureError
from fleetnas.supernet_export.spaces.mbconv import Activation, MBConvBlock, MBConvNetwork, squeeze_width


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

    `calibrating` makes it normalise by the batch's own statistics and keep exactly those, which is how a subnet's
    statistics are estimated; in training they are a running average of the slice, as in OFA.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, epsilon: float, momentum: float = 0.1) -> None:
        super().__init__()
        self.epsilon, self.momentum = epsilon, momentum
        self.calibrating = False
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        mean, var = self.running_mean[:channels], self.running_var[:channels]
        if self.calibrating:
            # The biased variance, which is what normalisation uses and what OFA keeps; torch would keep the other.
            var.copy_(x.var(dim=(0, 2, 3), unbiased=False))
            mean.copy_(x.mean(dim=(0, 2, 3)))
        weight, bias = self.weight[:channels], self.bias[:channels]
        return functional.batch_norm(x, mean, var, weight, bias, self.training, self.momentum, self.epsilon)


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

    def kernel(self, channels: int) -> Tensor:
        """The active kernel, shape (channels, 1, k, k)."""
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


class _ElasticMBConv(nn.Module):
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
        if kernel not in self.depth_conv.conv.kernels or expand not in self.expands:
            raise ArchitectureError(
                f"block {self.block.index} has kernels {sorted(self.depth_conv.conv.kernels)} and expand ratios "
                f"{list(self.expands)}; kernel {kernel} with expand ratio {expand:g} is not among them"
            )
        self.depth_conv.conv.active_kernel = kernel
        self.inverted_bottleneck.conv.active_out = self.block.middle_width(expand)

    @torch.no_grad()
    def sort_channels(self, within: Sequence[float]) -> None:
        """See `ElasticMBConvNet.sort_channels`."""
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
        out: Tensor = self.point_linear(self.depth_conv(self.inverted_bottleneck(x)))
        return out


def _by_importance(weight: Tensor) -> Tensor:
    """Input channels of a convolution (out, in, k, k), those with the largest sum of magnitudes first."""
    return weight.abs().sum(dim=(0, 2, 3)).argsort(descending=True, stable=True)


class _FixedMBConv(nn.Module):
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
        out: Tensor = self.point_linear(self.depth_conv(x))
        return out


class _Residual(nn.Module):
    def __init__(self, block: nn.Module, shortcut: bool) -> None:
        super().__init__()
        self.mobile_inverted_conv = block
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mobile_inverted_conv(x)
        return x + out if self.shortcut else out


class _Classifier(nn.Module):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


def _conv(
    inside: int, out: int, kernel: int, stride: int, activation: Activation, epsilon: float | None
) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(inside, out, kernel, stride, padding=kernel // 2, bias=False)
    )
    if epsilon is not None:
        layers["bn"] = BatchNorm(out, epsilon)
    layers["act"] = _Activation(activation)
    return nn.Sequential(layers)


class ElasticMBConvNet(nn.Module):
    """An `MBConvNetwork` with elastic kernels, expand ratios and depths; starts as its largest subnet.

    Input: images, float32 of shape (n, image_channels, r, r), any r. Output: logits, shape (n, classes).
    """

    def __init__(
        self, network: MBConvNetwork, kernels: Sequence[int], expands: Sequence[float], depths: Sequence[int]
    ) -> None:
        super().__init__()
        self.network = network
        self.stage_of = [block.stage for block in network.blocks()]
        self.position_of = [block.position for block in network.blocks()]
        self.depths = tuple(depths)
        self.active_depths = [min(max(depths), most) for most in network.stage_blocks]
        epsilon = network.batch_norm_epsilon
        self.first_conv = _conv(
            network.image_channels, network.stem_width, 3, network.stem_stride, network.stem_activation, epsilon
        )
        blocks: list[nn.Module] = [
            _Residual(
                _FixedMBConv(network),
                shortcut=network.first_block_residual and network.stem_width == network.first_block_width,
            )
        ]
        blocks += [
            _Residual(_ElasticMBConv(block, kernels, expands, epsilon), shortcut=block.residual)
            for block in network.blocks()
        ]
        self.blocks = nn.ModuleList(blocks)
        last = network.stage_widths[-1]
        wide, act = network.final_expand_width, network.head_activation
        self.final_expand_layer = None if wide is None else _conv(last, wide, 1, 1, act, epsilon)
        self.feature_mix_layer = _conv(
            wide or last, network.feature_width, 1, 1, act, epsilon if wide is None else None
        )
        self.classifier = _Classifier(network.feature_width, network.classes)
        self._initialise()

    def _initialise(self) -> None:
        """He's normal initialisation over the outputs, as OFA does."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def set_active(self, architecture: Architecture) -> None:
        """Make `forward` compute this subnet; entries of blocks beyond their stage's depth are ignored."""
        wanted = {"ks": len(self.stage_of), "e": len(self.stage_of), "d": len(self.active_depths)}
        for key, count in wanted.items():
            found = len(getattr(architecture, key))
            if found != count:
                raise ArchitectureError(f"this network wants {count} entries in {key!r}, found {found}")
        self.active_depths = [
            min(depth, most) for depth, most in zip(architecture.d, self.network.stage_blocks, strict=True)
        ]
        for i, block in enumerate(self.blocks[1:]):
            if self.position_of[i] < self.active_depths[self.stage_of[i]]:
                block.mobile_inverted_conv.set_active(architecture.ks[i], architecture.e[i])

    def sort_channels(self, within: Sequence[float]) -> None:
        """Put every block's most important expanded channels first, for the smaller expand ratios to keep.

        A channel's importance is the L1 norm of what the projection takes from it. `within` are expand ratios that
        were trained already: no channel crosses their widths, so their subnets compute what they did (but for squeeze
        and excite, whose inner channels are sorted too). Source: `re_organize_middle_weights` of the once-for-all
        project.
        """
        for block in self.blocks[1:]:
            block.mobile_inverted_conv.sort_channels(within)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.first_conv(x))
        for i, block in enumerate(self.blocks[1:]):
            if self.position_of[i] < self.active_depths[self.stage_of[i]]:
                x = block(x)
        if self.final_expand_layer is None:
            x = self.feature_mix_layer(x).mean((2, 3))
        else:
            x = self.final_expand_layer(x).mean((2, 3), keepdim=True)
            x = self.feature_mix_layer(x).flatten(1)
        out: Tensor = self.classifier(x)
        return out

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """Set the active subnet's batch-norm statistics to those of `images`, taken as one batch."""
        norms = [module for module in self.modules() if isinstance(module, BatchNorm)]
        training = self.training
        self.eval()
        for norm in norms:
            norm.calibrating = True
        self(images)
        for norm in norms:
            norm.calibrating = False
        self.train(training)
