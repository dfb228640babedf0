"""Make design spaces by their names: the built-in ones, and those that installed distributions register."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from pydantic import ValidationError

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.error_text import first_fault
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError
from fleetnas.fleet_protocol.suggestions import did_you_mean
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.compofa import CompOfaElasticSpace, CompOfaSpace
from fleetnas.supernet_export.spaces.digits import DigitsSpace
from fleetnas.supernet_export.spaces.fixed import FixedSpace
from fleetnas.supernet_export.spaces.mbconv_data import MBConvDataSpace
from fleetnas.supernet_export.spaces.ofa_mbv3 import OfaMbv3Space
from fleetnas.supernet_export.spaces.ofa_proxyless import OfaProxylessSpace
from fleetnas.supernet_export.spaces.ofa_resnet50 import OfaResNet50Space
from fleetnas.supernet_export.spaces.resnet_data import ResNetDataSpace

#: Entry point group of other distributions' spaces: name = a callable that takes options and returns a `DesignSpace`.
ENTRY_POINTS = "fleetnas.spaces"

_SPACES: dict[str, Callable[..., DesignSpace]] = {
    space.name: space
    for space in (
        *(DigitsSpace, OfaMbv3Space, OfaProxylessSpace, OfaResNet50Space, CompOfaSpace, CompOfaElasticSpace),
        *(MBConvDataSpace, ResNetDataSpace),
    )
}


def built_in_space_names() -> list[str]:
    """Return the names of the built-in spaces, sorted."""
    return sorted(_SPACES)


def space_names() -> list[str]:
    """Return the names of all supernets' spaces, sorted; `subnet`, the space of one network, is not among them."""
    return sorted({*_SPACES, *(point.name for point in metadata.entry_points(group=ENTRY_POINTS))})


def make_space(name: str, options: Mapping[str, Any] | None = None) -> DesignSpace:
    """Make the design space called `name` with its own `options`; `UsageError` if there is none."""
    make = _fixed_space if name == FixedSpace.name else _SPACES.get(name) or _registered(name)
    try:
        return make(**dict(options or {}))
    except FleetnasError:
        raise
    except Exception as error:
        raise UsageError(
            f"design space {name!r} does not take these options: {' '.join(str(error).split())[:300]}; correct them"
        ) from error


def _registered(name: str) -> Callable[..., DesignSpace]:
    found = [point for point in metadata.entry_points(group=ENTRY_POINTS) if point.name == name]
    if not found:
        raise UsageError(
            f"no design space is called {name[:80]!r}{did_you_mean(name[:80], space_names())} there are "
            f"{', '.join(space_names())}; a space of another package needs that package installed here"
        )
    if len(found) > 1:
        values = ", ".join(sorted(point.value for point in found))
        raise UsageError(
            f"{len(found)} distributions register a design space {name!r} ({values}); uninstall all but one"
        )
    try:
        make: Callable[..., DesignSpace] = found[0].load()
    except Exception as error:
        raise UsageError(
            f"the design space {name!r} of {found[0].value} cannot be imported: {' '.join(str(error).split())[:300]}; "
            "install its distribution again"
        ) from error
    return make


def _fixed_space(**given: Any) -> FixedSpace:
    """Make the space of one network from its parent's name and options and its architecture."""
    if sorted(given) != ["architecture", "options", "space"]:
        raise UsageError(
            "the design space 'subnet' is of one network, and its options are architecture, options and space: "
            "`fleetnas finetune` writes bundles of it"
        )
    space, options, architecture = given["space"], given["options"], given["architecture"]
    if space == FixedSpace.name:
        raise UsageError("the design space 'subnet' is cut out of a supernet's space, not out of another 'subnet'")
    try:
        found = Architecture.model_validate(architecture)
    except ValidationError as error:
        raise UsageError(f"design space 'subnet' has no usable architecture: {first_fault(error)}") from error
    return FixedSpace(make_space(space, options), found)
