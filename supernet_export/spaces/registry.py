"""Make design spaces by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.error_text import first_fault
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.compofa import CompOfaElasticSpace, CompOfaSpace
from fleetnas.supernet_export.spaces.digits import DigitsSpace
from fleetnas.supernet_export.spaces.fixed import FixedSpace
from fleetnas.supernet_export.spaces.ofa_mbv3 import OfaMbv3Space
from fleetnas.supernet_export.spaces.ofa_proxyless import OfaProxylessSpace
from fleetnas.supernet_export.spaces.ofa_resnet50 import OfaResNet50Space

_SPACES: dict[str, Callable[..., DesignSpace]] = {
    space.name: space
    for space in (DigitsSpace, OfaMbv3Space, OfaProxylessSpace, OfaResNet50Space, CompOfaSpace, CompOfaElasticSpace)
}


def space_names() -> list[str]:
    """Return the names of all supernets' spaces, sorted; `subnet`, the space of one network, is not among them."""
    return sorted(_SPACES)


def make_space(name: str, options: Mapping[str, Any] | None = None) -> DesignSpace:
    """Make the design space called `name` with its own `options`; `UsageError` if there is none."""
    if name == FixedSpace.name:
        return _fixed_space(options or {})
    if name not in _SPACES:
        raise UsageError(f"no design space is called {name!r}; there are {', '.join(space_names())}")
    try:
        return _SPACES[name](**dict(options or {}))
    except (TypeError, ValueError) as error:
        raise UsageError(f"design space {name!r} does not take these options: {error}") from error


def _fixed_space(options: Mapping[str, Any]) -> FixedSpace:
    """Make the space of one network from its parent's name and options and its architecture."""
    wanted = {"space", "options", "architecture"}
    if set(options) != wanted or options["space"] == FixedSpace.name:
        raise UsageError(
            f"design space 'subnet' takes the options {', '.join(sorted(wanted))}, `space` being that of a supernet; "
            f"found {', '.join(sorted(map(str, options)))[:200]}: write its bundle with `fleetnas finetune`"
        )
    try:
        architecture = Architecture.model_validate(options["architecture"])
    except ValidationError as error:
        raise UsageError(f"design space 'subnet' has no usable architecture: {first_fault(error)}") from error
    return FixedSpace(make_space(str(options["space"]), options["options"]), architecture)
