"""Keys of block latency tables as OFA and ProxylessNAS publish them: one per layer, by its shapes and choices."""

from __future__ import annotations

from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.mbconv_network import MBConvBlock, reduced


class LayerKeys:
    """Makes the keys of a space's layers, for reading tables and for writing them."""

    def __init__(self, space: MBConvSpace) -> None:
        self._space, self._net = space, space.network
        #: Whether keys are ProxylessNAS's: expand ratios in place of channels, and no squeeze-and-excite.
        self.by_ratio = space.network.final_expand_width is None

    def stem(self, resolution: int) -> str:
        """Return the key of the first convolution."""
        net, side = self._net, self._stem_side(resolution)
        return _layer("Conv", (resolution, resolution, net.image_channels), (side, side, net.stem_width))

    def first_block(self, resolution: int) -> str:
        """Return the key of the block that is not elastic."""
        net, side = self._net, self._stem_side(resolution)
        skip = net.first_block_residual and net.stem_width == net.first_block_width
        key = _block_key(
            side, side, net.stem_width, net.first_block_width, "1" if self.by_ratio else str(net.stem_width)
        )
        key += f"-kernel:3-stride:1-idskip:{int(skip)}"
        return key if self.by_ratio else f"{key}-se:0-hs:{int(net.first_block_activation == 'h_swish')}"

    def block(self, block: MBConvBlock, resolution: int) -> dict[tuple[int, int], str]:
        """Return the keys of an elastic block, by the places of its kernel and its expand ratio among the choices."""
        before = reduced(resolution, block.reduction)
        after = reduced(before, block.stride)
        tail = "" if self.by_ratio else f"-se:{int(block.squeeze)}-hs:{int(block.activation == 'h_swish')}"
        keys = {}
        for i, kernel in enumerate(self._space.kernels):
            for j, expand in enumerate(self._space.expands):
                width = f"{expand:g}" if self.by_ratio else str(round(block.in_width * expand))
                key = _block_key(before, after, block.in_width, block.out_width, width)
                keys[i, j] = f"{key}-kernel:{kernel}-stride:{block.stride}-idskip:{int(block.residual)}{tail}"
        return keys

    def head(self, resolution: int) -> tuple[str, ...]:
        """Return the keys of all layers behind the last block."""
        net, last = self._net, self._space.block_list[-1]
        side, width = reduced(resolution, last.reduction * last.stride), last.out_width
        wide, features, classes = net.final_expand_width, net.feature_width, net.classes
        if wide is None:
            return (
                _layer("Conv_1", (side, side, width), (side, side, features)),
                _layer("Logits", (side, side, features), (classes,)),
            )
        return (
            _layer("Conv_1", (side, side, width), (side, side, wide)),
            _layer("AvgPool2D", (side, side, wide), (1, 1, wide)),
            _layer("Conv_2", (1, 1, wide), (1, 1, features)),
            _layer("Logits", (1, 1, features), (classes,)),
        )

    def _stem_side(self, resolution: int) -> int:
        return reduced(resolution, self._net.stem_stride)


def _layer(name: str, before: tuple[int, ...], after: tuple[int, ...]) -> str:
    return f"{name}-input:{_shape(before)}-output:{_shape(after)}"


def _block_key(before: int, after: int, in_width: int, out_width: int, expand: str) -> str:
    shapes = f"input:{_shape((before, before, in_width))}-output:{_shape((after, after, out_width))}"
    return f"expanded_conv-{shapes}-expand:{expand}"


def _shape(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))
