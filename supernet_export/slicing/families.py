"""Find the slicer of a design space."""

from __future__ import annotations

from importlib import metadata

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.slicing.fixed import FixedSlicer
from fleetnas.supernet_export.slicing.layers import Slicer
from fleetnas.supernet_export.slicing.mbconv import MBConvSlicer
from fleetnas.supernet_export.slicing.resnet import ResNetSlicer
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.fixed import FixedSpace
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.resnet import ResNetSpace

#: Entry point group of other distributions' slicers: a space's name = a callable from the space to its `Slicer`.
ENTRY_POINTS = "fleetnas.slicers"


def slicer_for(space: DesignSpace) -> Slicer:
    """Return the slicer of the family of `space`, or the one registered under its name; `UsageError` without one."""
    if isinstance(space, MBConvSpace):
        return MBConvSlicer(space)
    if isinstance(space, ResNetSpace):
        return ResNetSlicer(space)
    if isinstance(space, FixedSpace):
        return FixedSlicer(space, slicer_for(space.parent))
    for point in metadata.entry_points(group=ENTRY_POINTS):
        if point.name == space.name:
            slicer: Slicer = point.load()(space)
            return slicer
    raise UsageError(f"subnets of {space.name!r} cannot be sliced: no slicer serves {type(space).__name__}")
