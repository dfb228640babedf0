"""Define `ofa-mbv3`: the design space of OFA-MobileNetV3."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fleetnas.supernet_export.spaces.mbconv_family import MBConvFamily, MBConvOptions
from fleetnas.supernet_export.spaces.mbconv_network import MBConvNetwork, make_divisible
from fleetnas.supernet_export.spaces.options import Resolutions, checked_options

#: Input resolutions of the published searches, in pixels.
RESOLUTIONS = tuple(range(128, 225, 16))
_STAGE_WIDTHS = (24, 40, 80, 112, 160)
#: Columns of the published accuracy predictor's resolution: steps of 16 pixels from 112.
_FIRST_COLUMN, _COLUMN_STEP, _COLUMNS = 112, 16, 8


class OfaMbv3Options(MBConvOptions):
    """Options of `ofa-mbv3`; width 1.0 and 1.2 were published."""

    always_stored: ClassVar[tuple[str, ...]] = ("width", "resolutions")

    resolutions: Resolutions = RESOLUTIONS


def mobilenet_v3(width: float, classes: int = 1000, image_channels: int = 3, blocks: int = 4) -> MBConvNetwork:
    """Return the fixed part of OFA-MobileNetV3 at a width multiplier, with at most `blocks` in a stage."""
    return MBConvNetwork(
        stem_width=make_divisible(16 * width),
        stem_stride=2,
        stem_activation="h_swish",
        first_block_width=make_divisible(16 * width),
        first_block_activation="relu",
        stage_widths=tuple(make_divisible(channels * width) for channels in _STAGE_WIDTHS),
        stage_blocks=(blocks,) * 5,
        stage_strides=(2, 2, 2, 1, 2),
        stage_activations=("relu", "relu", "h_swish", "h_swish", "h_swish"),
        stage_squeeze=(False, True, False, True, True),
        final_expand_width=make_divisible(960 * width),
        feature_width=make_divisible(1280 * width),
        head_activation="h_swish",
        classes=classes,
        image_channels=image_channels,
    )


class OfaMbv3Space(MBConvFamily):
    """Five stages of up to four blocks, kernel 3/5/7, expand ratio 3/4/6, depth 2/3/4 (Cai et al., ICLR 2020)."""

    name = "ofa-mbv3"
    _options_model: ClassVar[type[OfaMbv3Options]] = OfaMbv3Options
    #: Whether a stage's depth fixes its expand ratio.
    _tied: ClassVar[bool] = False

    def __init__(self, **options: Any) -> None:
        """Make the space; the options are those of `OfaMbv3Options`."""
        chosen = checked_options(self._options_model, self.name, options)
        network = mobilenet_v3(chosen.width, chosen.classes, chosen.image_channels, max(chosen.depths))
        super().__init__(network, chosen, tied=self._tied)

    def _resolution_columns(self) -> tuple[NDArray[np.intp], int]:
        """Return the columns of OFA's published accuracy predictor, where every resolution has one for itself."""
        columns = (np.array(self.resolutions, dtype=np.intp) - _FIRST_COLUMN) // _COLUMN_STEP
        if len(set(columns.tolist())) < len(columns) or columns.min() < 0 or columns.max() >= _COLUMNS:
            return super()._resolution_columns()
        return columns, _COLUMNS
