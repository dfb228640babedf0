"""Define `ofa-mbv3`: the design space of OFA-MobileNetV3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.spaces.base import checked_sides
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.mbconv_network import MBConvNetwork, make_divisible

#: Input resolutions of the published searches, in pixels.
RESOLUTIONS = tuple(range(128, 225, 16))
_STAGE_WIDTHS = (24, 40, 80, 112, 160)


def check_resolutions(resolutions: Sequence[int]) -> tuple[int, ...]:
    """Return the resolutions, ascending; `UsageError` unless OFA's supernets were trained for each."""
    return checked_sides(resolutions, range(128, 225, 4))


def mobilenet_v3(width: float) -> MBConvNetwork:
    """Return the fixed part of OFA-MobileNetV3 at a width multiplier."""
    return MBConvNetwork(
        stem_width=make_divisible(16 * width),
        stem_stride=2,
        stem_activation="h_swish",
        first_block_width=make_divisible(16 * width),
        first_block_activation="relu",
        stage_widths=tuple(make_divisible(channels * width) for channels in _STAGE_WIDTHS),
        stage_blocks=(4, 4, 4, 4, 4),
        stage_strides=(2, 2, 2, 1, 2),
        stage_activations=("relu", "relu", "h_swish", "h_swish", "h_swish"),
        stage_squeeze=(False, True, False, True, True),
        final_expand_width=make_divisible(960 * width),
        feature_width=make_divisible(1280 * width),
        head_activation="h_swish",
        classes=1000,
    )


class OfaMbv3Space(MBConvSpace):
    """Five stages of up to four blocks, kernel 3/5/7, expand ratio 3/4/6, depth 2/3/4 (Cai et al., ICLR 2020)."""

    name = "ofa-mbv3"

    def __init__(self, width: float = 1.0, resolutions: Sequence[int] = RESOLUTIONS) -> None:
        if width not in (1.0, 1.2):
            raise UsageError(f"OFA-MobileNetV3 was published at width 1.0 and 1.2, not {width:g}; take one of them")
        self.width = width
        super().__init__(mobilenet_v3(width), resolutions=check_resolutions(resolutions))

    @property
    def options(self) -> Mapping[str, Any]:
        """The constructor's options, for a bundle's manifest."""
        return {"width": self.width, "resolutions": list(self.resolutions)}

    def _resolution_columns(self) -> tuple[NDArray[np.intp], int]:
        """Return eight columns in steps of 16 pixels from 112: the input of OFA's published accuracy predictor."""
        return (np.array(self.resolutions, dtype=np.intp) - 112) // 16, 8
