"""Errors as one line for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleetnas.device_profiles.plain_text import plain
from fleetnas.fleet_protocol.errors import FleetnasError

if TYPE_CHECKING:
    from pydantic import ValidationError

#: Characters of a line about an error.
_MOST_CHARACTERS = 300


def one_line(error: BaseException) -> str:
    """Describe an exception in at most 300 printable characters.

    A deliberate error gives its own text, a failed file operation the file and its reason, any other error its class
    and text.
    """
    if isinstance(error, FleetnasError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return plain(joined_lines(text))


def joined_lines(text: str) -> str:
    """Return at most 300 characters of a text, with each run of white space replaced by one blank."""
    return " ".join(text.split())[:_MOST_CHARACTERS]


def first_fault(error: ValidationError, *, with_value: bool = False) -> str:
    """Describe the first fault that pydantic found, as `plan.targets: Field required`.

    `with_value` adds the value that is at fault, which may be long, or come from outside.
    """
    fault = error.errors(include_url=False, include_context=False)[0]
    value = f" {fault['input']!r}" if with_value else ""
    return f"{fault_path(error) or 'it'}{value}: {fault['msg']}"


def fault_path(error: ValidationError) -> str:
    """Return the dotted path of the first fault that pydantic found; empty for the value as a whole."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return ".".join(map(str, fault["loc"]))
