"""Make design spaces by their names: the built-in ones, and those that installed distributions register."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from fleetnas.fleet_protocol.errors import FleetnasError, UsageError
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.compofa import CompOfaElasticSpace, CompOfaSpace
from fleetnas.supernet_export.spaces.digits import DigitsSpace
from fleetnas.supernet_export.spaces.mbconv_data import MBConvDataSpace
from fleetnas.supernet_export.spaces.ofa_mbv3 import OfaMbv3Space
from fleetnas.supernet_export.spaces.ofa_proxyless import OfaProxylessSpace
from fleetnas.supernet_export.spaces.ofa_resnet50 import OfaResNet50Space

#: Entry point group of other distributions' spaces: name = a callable that takes options and returns a `DesignSpace`.
ENTRY_POINTS = "fleetnas.spaces"

_SPACES: dict[str, Callable[..., DesignSpace]] = {
    space.name: space
    for space in (
        *(DigitsSpace, OfaMbv3Space, OfaProxylessSpace, OfaResNet50Space, CompOfaSpace, CompOfaElasticSpace),
        MBConvDataSpace,
    )
}


def built_in_space_names() -> list[str]:
    """Return the names of the built-in spaces, sorted."""
    return sorted(_SPACES)


def space_names() -> list[str]:
    """Return every registered name, sorted."""
    return sorted({*_SPACES, *(point.name for point in metadata.entry_points(group=ENTRY_POINTS))})


def make_space(name: str, options: Mapping[str, Any] | None = None) -> DesignSpace:
    """Make the design space called `name` with its own `options`; `UsageError` if there is none."""
    make = _SPACES.get(name) or _registered(name)
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
        raise UsageError(f"no design space is called {name!r}; there are {', '.join(space_names())}")
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
