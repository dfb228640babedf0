"""Define `digits`: the built-in space, an OFA-MobileNetV3-style network small enough to train on two cores."""

from __future__ import annotations

from typing import Annotated, Any

from fleetnas.supernet_export.spaces.mbconv_family import MBConvFamily, MBConvOptions
from fleetnas.supernet_export.spaces.mbconv_network import MBConvNetwork, make_divisible
from fleetnas.supernet_export.spaces.options import Channels, Classes, Sides, checked_options, sides_of

#: Input resolutions that 8x8 digits may be resized to, in pixels.
RESOLUTIONS = range(8, 65, 4)


def small_network(width: float, classes: int, image_channels: int, blocks: int) -> MBConvNetwork:
    """Return the fixed part at a width multiplier, with `blocks` in each of the three stages."""
    return MBConvNetwork(
        stem_width=make_divisible(16 * width),
        stem_stride=2,
        stem_activation="h_swish",
        first_block_width=make_divisible(16 * width),
        first_block_activation="relu",
        stage_widths=tuple(make_divisible(channels * width) for channels in (24, 40, 64)),
        stage_blocks=(blocks,) * 3,
        stage_strides=(1, 2, 2),
        stage_activations=("relu", "h_swish", "h_swish"),
        stage_squeeze=(False, True, True),
        final_expand_width=make_divisible(256 * width),
        feature_width=make_divisible(320 * width),
        head_activation="h_swish",
        classes=classes,
        image_channels=image_channels,
    )


DIGITS_NETWORK = small_network(1.0, 10, 1, 4)


class DigitsOptions(MBConvOptions):
    """Options of `digits`."""

    classes: Classes = 10
    image_channels: Channels = 1
    resolutions: Annotated[Sides, sides_of(RESOLUTIONS)] = (8, 12, 16, 24, 32)


class DigitsSpace(MBConvFamily):
    """Three elastic stages on 8x8 grey digits, resized to the architecture's resolution."""

    name = "digits"

    def __init__(self, **options: Any) -> None:
        """Make the space; the options are those of `DigitsOptions`."""
        chosen = checked_options(DigitsOptions, self.name, options)
        network = small_network(chosen.width, chosen.classes, chosen.image_channels, max(chosen.depths))
        super().__init__(network, chosen)
