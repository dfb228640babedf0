"""Define `resnet`: residual networks of bottlenecks whose stem and stages are data."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from fleetnas.supernet_export.spaces.options import (
    MAX_BLOCKS,
    MAX_STAGES,
    BatchNormEpsilon,
    Classes,
    Listed,
    OptionGroup,
    Resolutions,
    Stride,
    Width,
    checked_options,
)
from fleetnas.supernet_export.spaces.resnet import ResNetSpace
from fleetnas.supernet_export.spaces.resnet_network import ResNetNetwork
from fleetnas.supernet_export.spaces.resnet_options import ResNetOptions


class ResNetStem(OptionGroup):
    """Two or three 3x3 convolutions, the first with the stride, and a max pooling by two."""

    width: Width = 32
    stride: Stride = 1
    pool: bool = True


class ResNetStage(OptionGroup):
    """Bottlenecks of one output width at multiplier 1; `blocks` is the least, to which `depths` add."""

    width: Width
    stride: Stride = 2
    blocks: Annotated[int, Field(ge=1, le=16)] = 2


class ResNetDataOptions(ResNetOptions):
    """Options of `resnet`. The defaults suit small colour images, of 32 to 96 pixels."""

    always_stored: ClassVar[tuple[str, ...]] = ("classes", "resolutions")

    classes: Classes = 10
    resolutions: Resolutions = (32, 48, 64, 80, 96)
    stem: ResNetStem = ResNetStem()
    stages: Annotated[tuple[ResNetStage, ...], Listed, Field(min_length=1, max_length=MAX_STAGES)] = (
        ResNetStage(width=128, stride=1),
        ResNetStage(width=256),
        ResNetStage(width=512),
    )
    batch_norm_epsilon: BatchNormEpsilon = 1e-5

    @model_validator(mode="after")
    def _fits(self) -> ResNetDataOptions:
        blocks = sum(stage.blocks + max(self.depths) for stage in self.stages)
        if blocks > MAX_BLOCKS:
            raise ValueError(f"the stages have {blocks} blocks in all, and an architecture holds {MAX_BLOCKS}")
        return self

    def network(self) -> ResNetNetwork:
        """Return the fixed part."""
        return ResNetNetwork(
            stem_width=self.stem.width,
            stem_stride=self.stem.stride,
            stem_pool=self.stem.pool,
            stage_widths=tuple(stage.width for stage in self.stages),
            least_blocks=tuple(stage.blocks for stage in self.stages),
            stage_strides=tuple(stage.stride for stage in self.stages),
            classes=self.classes,
            image_channels=self.image_channels,
            batch_norm_epsilon=self.batch_norm_epsilon,
        )


class ResNetDataSpace(ResNetSpace):
    """Bottlenecks of the user's own layout: stem and stages are options."""

    name = "resnet"

    def __init__(self, **options: Any) -> None:
        """Make the space; the options are those of `ResNetDataOptions`."""
        chosen = checked_options(ResNetDataOptions, self.name, options)
        super().__init__(chosen.network(), chosen)
