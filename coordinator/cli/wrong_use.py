"""Errors of typer in this project's words: the rule, the value, and the next action in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

import typer

from fleetnas.device_profiles.plain_text import plain
from fleetnas.fleet_protocol.suggestions import did_you_mean

#: The base of all errors that typer raises for a command line; its module differs between typer's versions.
TyperError = cast(
    "type[Exception]", next(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException")
)
_MOST_CHARACTERS = 200
#: What pydantic says by its kind of fault: what the value is not, and what to give.
_FAULTS = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), ("is not a whole number", "a whole number")),
    **dict.fromkeys(("float_parsing", "float_type", "finite_number"), ("is not a number", "a number")),
    **dict.fromkeys(
        ("greater_than_equal", "greater_than", "less_than_equal", "less_than"), ("is out of range", "a number")
    ),
}
_CHOICES = re.compile(r"(?:Value error, )?(.+) is not one of (.+?)\.?")
_EXTRA = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)")
_NEEDS = re.compile(r"Option '?([^' ]+)'? requires an argument")
_NEEDS_NONE = re.compile(r"Option '?([^' ]+)'? does not take a value")
_RANGE = re.compile(r"(.+) is not in the range (.+?)\.?")
_NO_NUMBER = re.compile(r"(.+) is not a valid (integer|float)(?: range)?\.?")


def explain(error: Any) -> str:
    """Describe an error of typer's in one line; a help text, which typer raises too, as it is."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "fleetnas"
    see = f"see `{command} --help`" if context is not None else "--help shows how the command is used"
    kind = type(error).__name__
    if kind == "NoArgsIsHelpError":
        return str(error.format_message())
    if kind == "NoSuchOption" and context is not None:
        options = [name for each in context.command.get_params(context) for name in (*each.opts, *each.secondary_opts)]
        long = [name for name in options if name.startswith("--")]
        name = _short(error.option_name)
        return f"`{command}` has no option {name}{did_you_mean(name, long)} `{command} --help` lists all"
    parameter = getattr(error, "param", None)
    if kind == "MissingParameter" and parameter is not None:
        return f"`{command}` needs {_missing(parameter)}; {see}"
    if parameter is not None:
        return f"{_wrong_value(error, parameter)}; {see}"
    return f"{_other(error, command)}; {see}"


def is_help(error: Any) -> bool:
    """Whether an error of typer's is a help text, as of a command that does nothing without arguments."""
    return type(error).__name__ == "NoArgsIsHelpError"


def _missing(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name.upper()
    else:
        name = f"{parameter.opts[-1]} {parameter.metavar or 'VALUE'}"
    return f"{name} ({parameter.help.rstrip('.')})" if parameter.help else str(name)


def _wrong_value(error: Any, parameter: Any) -> str:
    """Describe a value that its option or argument does not take."""
    name = parameter.opts[-1] if parameter.param_type_name == "option" else parameter.metavar or parameter.name.upper()
    message = str(error.message)
    choices = _CHOICES.fullmatch(message)
    if choices is not None:
        names = [each.strip(" '\"") for each in choices[2].split(",")]
        value = choices[1].strip("'\"")
        return f"{name} {value!r} is none of {_listed(names)}{did_you_mean(value, names, otherwise='')}"
    fault = _fault(error)
    if fault is not None and fault["type"] in _FAULTS:
        is_not, wanted = _FAULTS[fault["type"]]
        return f"{name} {_short(str(fault['input']))!r} {is_not}; give {wanted}{_range(parameter)}"
    no_number, no_range = _NO_NUMBER.fullmatch(message), _RANGE.fullmatch(message)
    if no_number is not None:
        wanted = "a whole number" if no_number[2] == "integer" else "a number"
        return f"{name} {no_number[1]} is not {wanted}; give {wanted}{_range(parameter)}"
    if no_range is not None:
        return f"{name} {no_range[1]!r} is out of range; give a number{_range(parameter)}"
    value = f" {_short(str(fault['input']))!r}" if fault is not None and "input" in fault else ""
    return f"{name}{value} cannot be used: {message.removeprefix('Value error, ').rstrip('.')}"


def _fault(error: Exception) -> Any:
    """Return the first fault that pydantic found, where the error is due to it."""
    errors = getattr(error.__cause__, "errors", None)
    return errors(include_url=False)[0] if callable(errors) else None


def _range(parameter: Any) -> str:
    kind = getattr(parameter, "type", None)
    least, most = (getattr(parameter, end, None) or getattr(kind, end, None) for end in ("min", "max"))
    if least is None:
        least = getattr(parameter, "min", getattr(kind, "min", None))
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    if least is not None:
        return f" of at least {least:g}"
    return f" of at most {most:g}" if most is not None else ""


def _other(error: Any, command: str) -> str:
    message = str(error.message)
    extra, needs, needs_none = _EXTRA.fullmatch(message), _NEEDS.match(message), _NEEDS_NONE.match(message)
    if extra is not None:
        return f"`{command}` has no use for {_short(extra[1])!r}; leave it out"
    if needs is not None:
        return f"{needs[1]} needs a value behind it"
    if needs_none is not None:
        return f"{needs_none[1]} is a switch and takes no value; give it alone"
    return message.rstrip(".")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _short(text: str) -> str:
    return plain(text)[:_MOST_CHARACTERS]
