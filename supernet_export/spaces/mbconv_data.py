"""Define `mbconv`: inverted-bottleneck networks whose stages, stem and head are data."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fleetnas.supernet_export.graph import Activation
from fleetnas.supernet_export.spaces.mbconv_family import MBConvFamily, MBConvOptions
from fleetnas.supernet_export.spaces.mbconv_network import MBConvNetwork, make_divisible
from fleetnas.supernet_export.spaces.options import (
    MAX_BLOCKS,
    MAX_STAGES,
    Classes,
    Listed,
    Resolutions,
    Width,
    checked_options,
)

_Stride = Annotated[int, Field(ge=1, le=4)]
_Blocks = Annotated[int, Field(ge=1, le=16)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Stem(_Part):
    """The 3x3 convolution at the network's beginning."""

    width: Width = 16
    stride: _Stride = 2
    activation: Activation = "h_swish"


class FirstBlock(_Part):
    """The fixed depthwise-separable block after the stem; `residual` adds its input where widths are equal."""

    width: Width = 16
    activation: Activation = "relu"
    residual: bool = True


class Stage(_Part):
    """Elastic blocks of one width; `blocks` is the most that there are, the deepest of `depths` where not given."""

    width: Width
    stride: _Stride = 1
    activation: Activation = "h_swish"
    squeeze: bool = False
    blocks: _Blocks | None = None


class Head(_Part):
    """Layers after the last block.

    With `expand_width` as in MobileNetV3: widen, pool, mix. Without it (null) as in ProxylessNAS: mix, then pool.
    """

    expand_width: Width | None = 256
    features: Width = 320
    activation: Activation = "h_swish"


class MBConvDataOptions(MBConvOptions):
    """Options of `mbconv`. The defaults suit small colour images, of 32 to 96 pixels."""

    always_stored: ClassVar[tuple[str, ...]] = ("classes", "resolutions")

    classes: Classes = 10
    resolutions: Resolutions = (32, 48, 64, 80, 96)
    stem: Stem = Stem()
    first_block: FirstBlock = FirstBlock()
    stages: Annotated[tuple[Stage, ...], Listed, Field(min_length=1, max_length=MAX_STAGES)] = (
        Stage(width=24, activation="relu"),
        Stage(width=40, stride=2, squeeze=True),
        Stage(width=64, stride=2, squeeze=True),
    )
    head: Head = Head()
    batch_norm_epsilon: Annotated[float, Field(ge=1e-7, le=0.1)] = 1e-5
    #: Whether the i-th depth of a stage has the i-th expand ratio, as in CompOFA.
    tied: bool = False

    @model_validator(mode="after")
    def _fits(self) -> MBConvDataOptions:
        blocks = self.stage_blocks()
        if sum(blocks) > MAX_BLOCKS:
            raise ValueError(f"the stages have {sum(blocks)} blocks in all, and an architecture holds {MAX_BLOCKS}")
        return self

    def stage_blocks(self) -> tuple[int, ...]:
        """Return the most blocks of each stage."""
        return tuple(stage.blocks or max(self.depths) for stage in self.stages)

    def network(self) -> MBConvNetwork:
        """Return the fixed part; a width multiplier other than 1 rounds channels as MobileNet does."""

        def scaled(channels: int) -> int:
            return channels if self.width == 1 else make_divisible(channels * self.width)

        head = self.head
        return MBConvNetwork(
            stem_width=scaled(self.stem.width),
            stem_stride=self.stem.stride,
            stem_activation=self.stem.activation,
            first_block_width=scaled(self.first_block.width),
            first_block_activation=self.first_block.activation,
            stage_widths=tuple(scaled(stage.width) for stage in self.stages),
            stage_blocks=self.stage_blocks(),
            stage_strides=tuple(stage.stride for stage in self.stages),
            stage_activations=tuple(stage.activation for stage in self.stages),
            stage_squeeze=tuple(stage.squeeze for stage in self.stages),
            final_expand_width=None if head.expand_width is None else scaled(head.expand_width),
            feature_width=scaled(head.features),
            head_activation=head.activation,
            classes=self.classes,
            image_channels=self.image_channels,
            first_block_residual=self.first_block.residual,
            batch_norm_epsilon=self.batch_norm_epsilon,
        )


class MBConvDataSpace(MBConvFamily):
    """Inverted bottlenecks of the user's own layout: stem, first block, stages and head are options."""

    name = "mbconv"

    def __init__(self, **options: Any) -> None:
        """Make the space; the options are those of `MBConvDataOptions`."""
        chosen = checked_options(MBConvDataOptions, self.name, options)
        super().__init__(chosen.network(), chosen, tied=chosen.tied)
