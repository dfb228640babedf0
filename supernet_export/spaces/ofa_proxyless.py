"""Define `ofa-proxyless`: the design space of OFA-ProxylessNAS."""

from __future__ import annotations

from typing import Any, ClassVar

from fleetnas.supernet_export.spaces.mbconv_family import MBConvFamily, MBConvOptions
from fleetnas.supernet_export.spaces.mbconv_network import MBConvNetwork, make_divisible
from fleetnas.supernet_export.spaces.ofa_mbv3 import RESOLUTIONS
from fleetnas.supernet_export.spaces.options import Resolutions, WidthMultiplier, checked_options

_STAGE_WIDTHS = (24, 40, 80, 96, 192, 320)


class ProxylessOptions(MBConvOptions):
    """Options of `ofa-proxyless`."""

    always_stored: ClassVar[tuple[str, ...]] = ("width", "resolutions")

    width: WidthMultiplier = 1.3
    resolutions: Resolutions = RESOLUTIONS


def proxyless(width: float, classes: int = 1000, image_channels: int = 3, blocks: int = 4) -> MBConvNetwork:
    """Return the fixed part of OFA-ProxylessNAS at a width multiplier, with at most `blocks` in a stage."""
    return MBConvNetwork(
        stem_width=make_divisible(32 * width),
        stem_stride=2,
        stem_activation="relu6",
        first_block_width=make_divisible(16 * width),
        first_block_activation="relu6",
        stage_widths=tuple(make_divisible(channels * width) for channels in _STAGE_WIDTHS),
        stage_blocks=(blocks,) * 5 + (1,),
        stage_strides=(2, 2, 2, 1, 2, 1),
        stage_activations=("relu6",) * 6,
        stage_squeeze=(False,) * 6,
        final_expand_width=None,
        feature_width=make_divisible(1280 * width),
        head_activation="relu6",
        classes=classes,
        image_channels=image_channels,
        first_block_residual=False,
        batch_norm_epsilon=1e-3,
    )


class OfaProxylessSpace(MBConvFamily):
    """Five stages of up to four blocks and a last stage of one; kernel 3/5/7, expand ratio 3/4/6, depth 2/3/4.

    Width 1.3 is OFA's published supernet; 1.0 is what ProxylessNAS's block latency table was measured at.
    """

    name = "ofa-proxyless"

    def __init__(self, **options: Any) -> None:
        """Make the space; the options are those of `ProxylessOptions`."""
        chosen = checked_options(ProxylessOptions, self.name, options)
        super().__init__(proxyless(chosen.width, chosen.classes, chosen.image_channels, max(chosen.depths)), chosen)
