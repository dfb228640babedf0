"""Define `ofa-resnet50`: the design space of OFA-ResNet50.

Source of the layout: the `ofa` package's `OFAResNets`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from fleetnas.supernet_export.spaces.options import MAX_BLOCKS, Resolutions, checked_options
from fleetnas.supernet_export.spaces.resnet import ResNetSpace
from fleetnas.supernet_export.spaces.resnet_network import ResNetNetwork
from fleetnas.supernet_export.spaces.resnet_options import ResNetOptions

#: Input resolutions in pixels of OFA's published accuracy predictor, in the order of its input.
RESOLUTIONS = (128, 144, 160, 176, 192, 224, 240, 256)
LEAST_BLOCKS = (2, 2, 4, 2)
STAGE_WIDTHS = (256, 512, 1024, 2048)
STEM_WIDTH = 64


class OfaResNet50Options(ResNetOptions):
    """Options of `ofa-resnet50`."""

    resolutions: Resolutions = RESOLUTIONS

    @model_validator(mode="after")
    def _fits(self) -> OfaResNet50Options:
        blocks = sum(LEAST_BLOCKS) + len(LEAST_BLOCKS) * max(self.depths)
        if blocks > MAX_BLOCKS:
            raise ValueError(f"the stages have {blocks} blocks in all, and an architecture holds {MAX_BLOCKS}")
        return self


class OfaResNet50Space(ResNetSpace):
    """Four stages of 2 to 6 blocks, expand ratios 0.2/0.25/0.35, widths 0.65/0.8/1.0 (Cai et al., ICLR 2020)."""

    name = "ofa-resnet50"

    def __init__(self, **options: Any) -> None:
        """Make the space; the options are those of `OfaResNet50Options`."""
        chosen = checked_options(OfaResNet50Options, self.name, options)
        network = ResNetNetwork(
            stem_width=STEM_WIDTH,
            stem_stride=2,
            stem_pool=True,
            stage_widths=STAGE_WIDTHS,
            least_blocks=LEAST_BLOCKS,
            stage_strides=(1, 2, 2, 2),
            classes=chosen.classes,
            image_channels=chosen.image_channels,
        )
        super().__init__(network, chosen)

    def _resolution_columns(self) -> tuple[NDArray[np.intp], int]:
        """Return the columns of OFA's published accuracy predictor, where that has one for every resolution."""
        if not set(self.resolutions) <= set(RESOLUTIONS):
            return super()._resolution_columns()
        return np.array([RESOLUTIONS.index(side) for side in self.resolutions]), len(RESOLUTIONS)
