"""Make design spaces by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.compofa import CompOfaElasticSpace, CompOfaSpace
from fleetnas.supernet_export.spaces.digits import DigitsSpace
from fleetnas.supernet_export.spaces.ofa_mbv3 import OfaMbv3Space
from fleetnas.supernet_export.spaces.ofa_proxyless import OfaProxylessSpace
from fleetnas.supernet_export.spaces.ofa_resnet50 import OfaResNet50Space

_SPACES: dict[str, Callable[..., DesignSpace]] = {
    space.name: space
    for space in (DigitsSpace, OfaMbv3Space, OfaProxylessSpace, OfaResNet50Space, CompOfaSpace, CompOfaElasticSpace)
}


def space_names() -> list[str]:
    """Return every registered name, sorted."""
    return sorted(_SPACES)


def make_space(name: str, options: Mapping[str, Any] | None = None) -> DesignSpace:
    """Make the design space called `name` with its own `options`; `UsageError` if there is none."""
    if name not in _SPACES:
        raise UsageError(f"no design space is called {name!r}; there are {', '.join(space_names())}")
    try:
        return _SPACES[name](**dict(options or {}))
    except (TypeError, ValueError) as error:
        raise UsageError(f"design space {name!r} does not take these options: {error}") from error
