"""Slice subnets of residual supernets of bottlenecks (OFA-ResNet50 and similar ones).

Source of the semantics: `OFAResNets` and `DynamicResNetBottleneckBlock` of the once-for-all project: the first
channels of every convolution, where widths are elastic along the residual stream as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.graph import (
    INPUT,
    Activation,
    Add,
    Array,
    AveragePool,
    Conv,
    GlobalAveragePool,
    Graph,
    Layer,
    Linear,
    MaxPool,
    Statistics,
)
from fleetnas.supernet_export.slicing.layers import Shapes, Slicer, TensorSource, norm_shapes, sliced_norm
from fleetnas.supernet_export.spaces.resnet import ResNetSpace
from fleetnas.supernet_export.spaces.resnet_network import ResNetBlock


class ResNetSlicer(Slicer):
    """Slices subnets of an `ResNetSpace`."""

    def __init__(self, space: ResNetSpace) -> None:
        self.space = space

    # -- names and shapes --------------------------------------------------------------------------------------

    def checkpoint_shapes(self) -> Shapes:
        """Return the shapes of a checkpoint's tensors, under canonical names."""
        space = self.space
        middle, width, widest = max(space.channels.stem_middle), max(space.channels.stem), len(space.widths) - 1
        shapes: Shapes = {
            "input_stem.0.conv.weight": (middle, space.image_channels, 3, 3),
            **norm_shapes("input_stem.0.bn", middle),
            "input_stem.1.conv.conv.weight": (middle, middle, 3, 3),
            **norm_shapes("input_stem.1.conv.bn", middle),
            "input_stem.2.conv.weight": (width, middle, 3, 3),
            **norm_shapes("input_stem.2.bn", width),
        }
        for block in space.block_list:
            out = max(space.channels.stages[block.stage])
            inner = space.channels.middle(block.stage, widest, max(space.expands))
            prefix = f"blocks.{block.index}"
            shapes |= {
                f"{prefix}.conv1.conv.weight": (inner, width, 1, 1),
                **norm_shapes(f"{prefix}.conv1.bn", inner),
                f"{prefix}.conv2.conv.weight": (inner, inner, 3, 3),
                **norm_shapes(f"{prefix}.conv2.bn", inner),
                f"{prefix}.conv3.conv.weight": (out, inner, 1, 1),
                **norm_shapes(f"{prefix}.conv3.bn", out),
            }
            if block.first:
                shapes[f"{prefix}.downsample.conv.weight"] = (out, width, 1, 1)
                shapes |= norm_shapes(f"{prefix}.downsample.bn", out)
            width = out
        return shapes | {"classifier.linear.weight": (space.classes, width), "classifier.linear.bias": (space.classes,)}

    def bundle_shapes(self) -> Shapes:
        """Return the shapes of a bundle's tensors: those of the checkpoint."""
        return self.checkpoint_shapes()

    def bundle_tensors(self, checkpoint: Mapping[str, Array]) -> dict[str, Array]:
        """Return the checkpoint's tensors unchanged."""
        return dict(checkpoint)

    def spellings(self, name: str) -> Iterable[str]:
        """Return canonical names: the stem's second block is called `conv`, so one `conv` of two may be right."""
        name = name.replace(".bn.bn.", ".bn.").replace(".linear.linear.", ".linear.")
        return (name, name.replace(".conv.conv.weight", ".conv.weight"))

    # -- slicing -----------------------------------------------------------------------------------------------

    def slice(self, tensor: TensorSource, architecture: Architecture, statistics: Statistics | None) -> Graph:
        """Return the subnet; layers are called `stem.conv1`, `stage2.block1.conv1`, ..., `classifier`."""
        (architecture,) = self.space.decode(self.space.encode([architecture]))
        space, w = self.space, architecture.w
        subnet = _Subnet(space, tensor, statistics)
        width = space.channels.stem[w[1]]
        source = subnet.stem(space.channels.stem_middle[w[0]], width, residual=architecture.d[0] == max(space.depths))
        for block, expand in zip(space.block_list, architecture.e, strict=True):
            if block.position < space.least_blocks[block.stage] + architecture.d[1 + block.stage]:
                index = w[2 + block.stage]
                out = space.channels.stages[block.stage][index]
                source = subnet.bottleneck(block, source, width, space.channels.middle(block.stage, index, expand), out)
                width = out
        subnet.head(source, width)
        shape = (space.image_channels, *space.input_size(architecture.r))
        return Graph(tuple(subnet.layers), shape, space.classes)


class _Subnet:
    """Collects the layers of one subnet."""

    def __init__(self, space: ResNetSpace, tensor: TensorSource, statistics: Statistics | None) -> None:
        self.space, self.tensor, self.statistics = space, tensor, statistics
        self.layers: list[Layer] = []

    def stem(self, middle: int, out: int, *, residual: bool) -> str:
        """Add two or three convolutions and the max pooling; return the name of the output."""
        net = self.space.network
        source = self._conv(
            "stem.conv1", INPUT, "input_stem.0", middle, net.image_channels, stride=net.stem_stride, activation="relu"
        )
        if residual:
            inner = self._conv("stem.conv2", source, "input_stem.1.conv", middle, middle, activation="relu")
            source = self._append(Add("stem.add", inner, source))
        source = self._conv("stem.conv3", source, "input_stem.2", out, middle, activation="relu")
        return self._append(MaxPool("stem.pool", source, kernel=3, stride=2, padding=1)) if net.stem_pool else source

    def bottleneck(self, block: ResNetBlock, source: str, width: int, inner: int, out: int) -> str:
        """Add one block from `width` to `out` channels; return the name of its output."""
        name, prefix = f"stage{block.stage + 1}.block{block.position + 1}", f"blocks.{block.index}"
        x = self._conv(f"{name}.conv1", source, f"{prefix}.conv1", inner, width, activation="relu")
        x = self._conv(f"{name}.conv2", x, f"{prefix}.conv2", inner, inner, stride=block.stride, activation="relu")
        x = self._conv(f"{name}.conv3", x, f"{prefix}.conv3", out, inner)
        if block.first:
            if block.stride > 1:
                pool = AveragePool(f"{name}.downsample_pool", source, block.stride, block.stride, ceil=True)
                source = self._append(pool)
            source = self._conv(f"{name}.downsample", source, f"{prefix}.downsample", out, width)
        return self._append(Add(f"{name}.add", x, source, activation="relu"))

    def head(self, source: str, width: int) -> None:
        """Add pooling and classifier."""
        source = self._append(GlobalAveragePool("pool", source))
        weight, bias = self.tensor("classifier.linear.weight"), self.tensor("classifier.linear.bias")
        self._append(Linear("classifier", source, weight[:, :width], bias))

    def _conv(
        self,
        name: str,
        source: str,
        prefix: str,
        out: int,
        inside: int,
        *,
        stride: int = 1,
        activation: Activation = "none",
    ) -> str:
        weight = self.tensor(f"{prefix}.conv.weight")[:out, :inside]
        norm = sliced_norm(
            self.tensor, f"{prefix}.bn", out, self.space.network.batch_norm_epsilon, name, self.statistics
        )
        padding = weight.shape[-1] // 2
        return self._append(
            Conv(name, source, weight, None, norm, stride=stride, padding=padding, groups=1, activation=activation)
        )

    def _append(self, layer: Layer) -> str:
        self.layers.append(layer)
        return layer.name
