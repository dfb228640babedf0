"""Options that every family of inverted-bottleneck spaces has, and spaces made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.mbconv_network import MBConvNetwork
from fleetnas.supernet_export.spaces.options import (
    Depths,
    Expands,
    Kernels,
    SpaceOptions,
    StageKernels,
    WidthMultiplier,
)


class MBConvOptions(SpaceOptions):
    """Options of inverted-bottleneck families: the width multiplier and the choices of every block and stage."""

    width: WidthMultiplier = 1.0
    kernels: Kernels = (3, 5, 7)
    expands: Expands = (3, 4, 6)
    depths: Depths = (2, 3, 4)
    #: One kernel size per stage in place of elastic ones.
    stage_kernels: StageKernels | None = None

    @model_validator(mode="after")
    def _fixed_kernels_are_kernels(self) -> MBConvOptions:
        other = sorted(set(self.stage_kernels or ()) - set(self.kernels))
        if other:
            raise ValueError(f"stage_kernels holds {other[0]}, which is not among the kernels {list(self.kernels)}")
        return self


class MBConvFamily(MBConvSpace):
    """An `MBConvSpace` that is made of validated options."""

    def __init__(self, network: MBConvNetwork, chosen: MBConvOptions, *, tied: bool = False) -> None:
        super().__init__(
            network,
            kernels=chosen.kernels,
            expands=chosen.expands,
            depths=chosen.depths,
            resolutions=chosen.resolutions,
            aspect=chosen.aspect,
            tied=tied,
            stage_kernels=chosen.stage_kernels,
        )
        self._chosen = chosen
        self.width = chosen.width

    @property
    def options(self) -> Mapping[str, Any]:
        """The constructor's options, for a bundle's manifest."""
        return self._chosen.stored()
