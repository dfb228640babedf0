"""Which slicer serves which design space."""

from __future__ import annotations

from fleet_protocol.errors import UsageError
from supernet_export.mbconv_slicing import MBConvSlicer
from supernet_export.resnet_slicing import ResNetSlicer
from supernet_export.slicing import Slicer
from supernet_export.spaces.base import DesignSpace
from supernet_export.spaces.mbconv import MBConvSpace
from supernet_export.spaces.ofa_resnet50 import OfaResNet50Space


def slicer_for(space: DesignSpace) -> Slicer:
    """The slicer of the family that `space` belongs to."""
    if isinstance(space, MBConvSpace):
        return MBConvSlicer(space)
    if isinstance(space, OfaResNet50Space):
        return ResNetSlicer(space)
    raise UsageError(f"subnets of {space.name!r} cannot be sliced: no slicer serves {type(space).__name__}")
