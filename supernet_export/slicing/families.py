"""Find the slicer of a design space."""

from __future__ import annotations

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.slicing.fixed import FixedSlicer
from fleetnas.supernet_export.slicing.layers import Slicer
from fleetnas.supernet_export.slicing.mbconv import MBConvSlicer
from fleetnas.supernet_export.slicing.resnet import ResNetSlicer
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.fixed import FixedSpace
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.ofa_resnet50 import OfaResNet50Space


def slicer_for(space: DesignSpace) -> Slicer:
    """Return the slicer of the family of `space`."""
    if isinstance(space, MBConvSpace):
        return MBConvSlicer(space)
    if isinstance(space, OfaResNet50Space):
        return ResNetSlicer(space)
    if isinstance(space, FixedSpace):
        return FixedSlicer(space, slicer_for(space.parent))
    raise UsageError(f"subnets of {space.name!r} cannot be sliced: no slicer serves {type(space).__name__}")
