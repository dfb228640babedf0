"""Groups of options: a command takes a dataclass, and its command line has one option per field.

A field without a default value is an option that must be given.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command for typer from a function of which some parameters are dataclasses.

    Each field of these dataclasses is annotated as an option of typer's. All parameters become keywords.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for parameter in inspect.signature(function).parameters.values():
        annotation = hints[parameter.name]
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            groups[parameter.name] = annotation
            parameters += _parameters_of(annotation)
        else:
            parameters.append(parameter.replace(annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY))

    def flat(**given: Any) -> None:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        function(**made, **given)

    flat.__doc__ = function.__doc__
    flat.__name__ = function.__name__
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return flat


def names(group: type[Any]) -> tuple[str, ...]:
    """Names of a group's parameters, in the order of the command line."""
    return tuple(field.name for field in dataclasses.fields(group))


def given(group: Any) -> dict[str, Any]:
    """Return the options of a group that were given, as in `{"--out": ...}`: not None, and no switch that is off."""
    values = {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}
    found = {name: value for name, value in values.items() if value is not None and value is not False}
    return {f"--{name.replace('_', '-')}": value for name, value in found.items()}


def _parameters_of(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(group)
    ]
