"""Templates of HTML pages, with the filters that write figures as every view does."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from fleetnas.coordinator.view import wording


def template_environment(package: str) -> Environment:
    """Return the environment of the templates that lie in `package`; a name without a value is an error."""
    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(ms=wording.latency, target=wording.target, percent=wording.accuracy)
    return environment
