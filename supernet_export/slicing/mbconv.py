"""Slice subnets of inverted-bottleneck supernets (MobileNetV3, ProxylessNAS and similar ones).

Source of the semantics: `DynamicMBConvLayer` and `DynamicSeparableConv2d` of the once-for-all project: the first
channels of every convolution, and smaller depthwise kernels derived from the centre of the larger ones by a learned
linear map.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.graph import (
    INPUT,
    Activation,
    Add,
    Array,
    Conv,
    GlobalAveragePool,
    Graph,
    Layer,
    Linear,
    Scale,
    Statistics,
)
from fleetnas.supernet_export.slicing.layers import Shapes, Slicer, TensorSource, norm_shapes, sliced_norm
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.mbconv_network import MBConvBlock, squeeze_width

_NEW_BLOCK_SPELLING = re.compile(r"^(blocks\.\d+)\.conv\.(?=inverted_bottleneck\.|depth_conv\.|point_linear\.)")


class MBConvSlicer(Slicer):
    """Slices subnets of an `MBConvSpace`."""

    def __init__(self, space: MBConvSpace) -> None:
        self.space = space

    # -- names and shapes --------------------------------------------------------------------------------------

    def checkpoint_shapes(self) -> Shapes:
        """Return the shapes of a checkpoint's tensors, under canonical names."""
        shapes = self._fixed_shapes()
        for block in self.space.block_list:
            shapes |= self._block_shapes(block)
        return shapes

    def optional_shapes(self) -> Shapes:
        """Return the shapes of the kernel transforms; CompOFA has none: its smaller kernels are the centres."""
        return {
            _matrix_name(block, large, small): (small**2, small**2)
            for block in self.space.block_list
            for large, small in pairwise(reversed(self.space.kernels))
        }

    def bundle_shapes(self) -> Shapes:
        """Return the shapes of a bundle's tensors."""
        shapes = self._fixed_shapes()
        for block in self.space.block_list:
            shapes |= self._block_shapes(block)
            for kernel in self.space.kernels[:-1]:
                shapes[_kernel_name(block, kernel)] = (self._widest(block), 1, kernel, kernel)
        return shapes

    def _fixed_shapes(self) -> Shapes:
        net = self.space.network
        last = net.stage_widths[-1]
        first = "blocks.0.mobile_inverted_conv"
        shapes: Shapes = {
            "first_conv.conv.weight": (net.stem_width, net.image_channels, 3, 3),
            **norm_shapes("first_conv.bn", net.stem_width),
            f"{first}.depth_conv.conv.weight": (net.stem_width, 1, 3, 3),
            **norm_shapes(f"{first}.depth_conv.bn", net.stem_width),
            f"{first}.point_linear.conv.weight": (net.first_block_width, net.stem_width, 1, 1),
            **norm_shapes(f"{first}.point_linear.bn", net.first_block_width),
            "classifier.linear.weight": (net.classes, net.feature_width),
            "classifier.linear.bias": (net.classes,),
        }
        if net.final_expand_width is None:
            shapes["feature_mix_layer.conv.weight"] = (net.feature_width, last, 1, 1)
            shapes |= norm_shapes("feature_mix_layer.bn", net.feature_width)
        else:
            shapes["final_expand_layer.conv.weight"] = (net.final_expand_width, last, 1, 1)
            shapes |= norm_shapes("final_expand_layer.bn", net.final_expand_width)
            shapes["feature_mix_layer.conv.weight"] = (net.feature_width, net.final_expand_width, 1, 1)
        return shapes

    def _block_shapes(self, block: MBConvBlock) -> Shapes:
        prefix, wide, kernel = _block_prefix(block), self._widest(block), self.space.kernels[-1]
        shapes: Shapes = {
            f"{prefix}.inverted_bottleneck.conv.weight": (wide, block.in_width, 1, 1),
            **norm_shapes(f"{prefix}.inverted_bottleneck.bn", wide),
            f"{prefix}.depth_conv.conv.weight": (wide, 1, kernel, kernel),
            **norm_shapes(f"{prefix}.depth_conv.bn", wide),
            f"{prefix}.point_linear.conv.weight": (block.out_width, wide, 1, 1),
            **norm_shapes(f"{prefix}.point_linear.bn", block.out_width),
        }
        if block.squeeze:
            inner, gate = squeeze_width(wide), f"{prefix}.depth_conv.se.fc"
            shapes |= {
                f"{gate}.reduce.weight": (inner, wide, 1, 1),
                f"{gate}.reduce.bias": (inner,),
                f"{gate}.expand.weight": (wide, inner, 1, 1),
                f"{gate}.expand.bias": (wide,),
            }
        return shapes

    def _widest(self, block: MBConvBlock) -> int:
        return block.middle_width(max(self.space.expands))

    def spellings(self, name: str) -> Iterable[str]:
        """Return canonical names: OFA names blocks `mobile_inverted_conv` or `conv`, elastic modules once or twice."""
        name = _NEW_BLOCK_SPELLING.sub(r"\1.mobile_inverted_conv.", name)
        for part in ("conv", "bn", "linear"):
            name = name.replace(f".{part}.{part}.", f".{part}.")
        return (name,)

    def bundle_tensors(self, checkpoint: Mapping[str, Array]) -> dict[str, Array]:
        """Derive the smaller depthwise kernels, which do not depend on the architecture.

        So slicing, wherever it happens, only copies, and every machine builds the same bytes.
        """
        tensors = {name: checkpoint[name] for name in self.bundle_shapes() if name in checkpoint}
        for block in self.space.block_list:
            kernel = checkpoint[_kernel_name(block, None)]
            for large, small in pairwise(reversed(self.space.kernels)):
                matrix = checkpoint.get(_matrix_name(block, large, small))
                kernel = transformed_kernel(kernel, np.eye(small**2, dtype=np.float32) if matrix is None else matrix)
                tensors[_kernel_name(block, small)] = kernel
        return tensors

    # -- slicing -----------------------------------------------------------------------------------------------

    def slice(self, tensor: TensorSource, architecture: Architecture, statistics: Statistics | None) -> Graph:
        """Return the subnet, with layers `stem`, `first_block.project`, `stage2.block1.expand`, ..., `classifier`."""
        (architecture,) = self.space.decode(self.space.encode([architecture]))
        subnet = _Subnet(self.space, tensor, statistics)
        source = subnet.opening()
        for i, block in enumerate(self.space.block_list):
            if block.position < architecture.d[block.stage]:
                source = subnet.block(block, source, architecture.ks[i], architecture.e[i])
        subnet.head(source)
        space = self.space
        shape = (space.image_channels, *space.input_size(architecture.r))
        return Graph(tuple(subnet.layers), shape, space.classes)


class _Subnet:
    """Collects the layers of one subnet."""

    def __init__(self, space: MBConvSpace, tensor: TensorSource, statistics: Statistics | None) -> None:
        self.space, self.network = space, space.network
        self.tensor, self.statistics = tensor, statistics
        self.layers: list[Layer] = []

    def opening(self) -> str:
        """Add the stem and the fixed first block; return the name of the output."""
        net, first = self.network, "blocks.0.mobile_inverted_conv"
        source = stem = self._conv(
            "stem",
            INPUT,
            self.tensor("first_conv.conv.weight"),
            norm="first_conv.bn",
            stride=net.stem_stride,
            activation=net.stem_activation,
        )
        source = self._conv(
            "first_block.depthwise",
            source,
            self.tensor(f"{first}.depth_conv.conv.weight"),
            norm=f"{first}.depth_conv.bn",
            depthwise=True,
            activation=net.first_block_activation,
        )
        source = self._conv(
            "first_block.project",
            source,
            self.tensor(f"{first}.point_linear.conv.weight"),
            norm=f"{first}.point_linear.bn",
        )
        if net.first_block_residual and net.stem_width == net.first_block_width:
            source = self._append(Add("first_block.add", source, stem))
        return source

    def block(self, block: MBConvBlock, source: str, kernel: int, expand: float) -> str:
        """Add one elastic block; return the name of its output."""
        name, prefix = f"stage{block.stage + 1}.block{block.position + 1}", _block_prefix(block)
        middle = block.middle_width(expand)
        before = source
        source = self._conv(
            f"{name}.expand",
            source,
            self.tensor(f"{prefix}.inverted_bottleneck.conv.weight")[:middle],
            norm=f"{prefix}.inverted_bottleneck.bn",
            activation=block.activation,
        )
        source = self._conv(
            f"{name}.depthwise",
            source,
            self.tensor(_kernel_name(block, None if kernel == self.space.kernels[-1] else kernel))[:middle],
            norm=f"{prefix}.depth_conv.bn",
            stride=block.stride,
            depthwise=True,
            activation=block.activation,
        )
        if block.squeeze:
            source = self._squeeze(name, f"{prefix}.depth_conv.se.fc", source, middle)
        source = self._conv(
            f"{name}.project",
            source,
            self.tensor(f"{prefix}.point_linear.conv.weight")[:, :middle],
            norm=f"{prefix}.point_linear.bn",
        )
        return self._append(Add(f"{name}.add", source, before)) if block.residual else source

    def _squeeze(self, name: str, gate: str, source: str, middle: int) -> str:
        inner = squeeze_width(middle)
        pooled = self._append(GlobalAveragePool(f"{name}.squeeze", source))
        reduced = self._conv(
            f"{name}.se_reduce",
            pooled,
            self.tensor(f"{gate}.reduce.weight")[:inner, :middle],
            bias=self.tensor(f"{gate}.reduce.bias")[:inner],
            activation="relu",
        )
        excited = self._conv(
            f"{name}.se_expand",
            reduced,
            self.tensor(f"{gate}.expand.weight")[:middle, :inner],
            bias=self.tensor(f"{gate}.expand.bias")[:middle],
            activation="h_sigmoid",
        )
        return self._append(Scale(f"{name}.scale", source, excited))

    def head(self, source: str) -> None:
        """Add the layers after the last block."""
        net = self.network
        mix = self.tensor("feature_mix_layer.conv.weight")
        if net.final_expand_width is None:
            source = self._conv("feature_mix", source, mix, norm="feature_mix_layer.bn", activation=net.head_activation)
            source = self._append(GlobalAveragePool("pool", source))
        else:
            source = self._conv(
                "final_expand",
                source,
                self.tensor("final_expand_layer.conv.weight"),
                norm="final_expand_layer.bn",
                activation=net.head_activation,
            )
            source = self._append(GlobalAveragePool("pool", source))
            source = self._conv("feature_mix", source, mix, activation=net.head_activation)
        weight, bias = self.tensor("classifier.linear.weight"), self.tensor("classifier.linear.bias")
        self._append(Linear("classifier", source, weight, bias))

    def _conv(
        self,
        name: str,
        source: str,
        weight: Array,
        *,
        norm: str | None = None,
        bias: Array | None = None,
        stride: int = 1,
        depthwise: bool = False,
        activation: Activation = "none",
    ) -> str:
        channels, _, kernel, _ = weight.shape
        batch_norm = None
        if norm is not None:
            epsilon = self.network.batch_norm_epsilon
            batch_norm = sliced_norm(self.tensor, norm, channels, epsilon, name, self.statistics)
        return self._append(
            Conv(
                name,
                source,
                weight,
                bias,
                batch_norm,
                stride=stride,
                padding=kernel // 2,
                groups=channels if depthwise else 1,
                activation=activation,
            )
        )

    def _append(self, layer: Layer) -> str:
        self.layers.append(layer)
        return layer.name


def transformed_kernel(kernel: Array, matrix: Array) -> Array:
    """Return the next smaller depthwise kernels, (C, 1, k, k), from larger ones and OFA's (k*k, k*k) matrix.

    Each output position is a weighted sum over the centre of the larger kernel, summed in a fixed order in
    float64, so that one checkpoint gives one bundle on every machine.
    """
    side = round(len(matrix) ** 0.5)
    start = (kernel.shape[-1] - side) // 2
    centre = kernel[:, 0, start : start + side, start : start + side].reshape(len(kernel), -1).astype(np.float64)
    total = np.zeros((len(kernel), side**2))
    for position in range(side**2):
        total += centre[:, position, None] * matrix[:, position].astype(np.float64)
    return total.astype(np.float32).reshape(-1, 1, side, side)


def _block_prefix(block: MBConvBlock) -> str:
    return f"blocks.{block.index}.mobile_inverted_conv"


def _kernel_name(block: MBConvBlock, kernel: int | None) -> str:
    name = f"{_block_prefix(block)}.depth_conv.conv.weight"
    return name if kernel is None else f"{name}.k{kernel}"


def _matrix_name(block: MBConvBlock, large: int, small: int) -> str:
    return f"{_block_prefix(block)}.depth_conv.conv.{large}to{small}_matrix"
