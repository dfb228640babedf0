"""Define `digits`: the built-in space, an OFA-MobileNetV3-style network small enough to train on two cores."""

from __future__ import annotations

from collections.abc import Sequence

from fleetnas.supernet_export.spaces.base import checked_sides
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.mbconv_network import MBConvNetwork

#: Input resolutions that 8x8 digits may be resized to, in pixels.
RESOLUTIONS = range(8, 65, 4)
DIGITS_NETWORK = MBConvNetwork(
    stem_width=16,
    stem_stride=2,
    stem_activation="h_swish",
    first_block_width=16,
    first_block_activation="relu",
    stage_widths=(24, 40, 64),
    stage_blocks=(4, 4, 4),
    stage_strides=(1, 2, 2),
    stage_activations=("relu", "h_swish", "h_swish"),
    stage_squeeze=(False, True, True),
    final_expand_width=256,
    feature_width=320,
    head_activation="h_swish",
    classes=10,
    image_channels=1,
)


class DigitsSpace(MBConvSpace):
    """Three elastic stages on 8x8 grey digits, resized to the architecture's resolution."""

    name = "digits"

    def __init__(self, resolutions: Sequence[int] = (8, 12, 16, 24, 32)) -> None:
        super().__init__(DIGITS_NETWORK, resolutions=checked_sides(resolutions, RESOLUTIONS))
