"""Errors as one line for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fleetnas.device_profiles.plain_text import plain
from fleetnas.fleet_protocol.errors import FleetnasError

if TYPE_CHECKING:
    from pydantic import ValidationError

#: Characters of a line about an error.
_MOST_CHARACTERS = 300
#: Kinds of pydantic's faults, and what they mean to a person; the first match counts.
_WORDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("missing",), "it is missing"),
    (("extra_forbidden", "unexpected_keyword_argument"), "there is no such field"),
    (("int_parsing", "int_type", "int_from_float", "int_parsing_size"), "it must be a whole number"),
    (("float_parsing", "float_type"), "it must be a number"),
    (("finite_number",), "it must be a finite number"),
    (("bool_parsing", "bool_type"), "it must be true or false"),
    (("string_type", "string_sub_type", "string_unicode"), "it must be text"),
    (("bytes_type",), "it must be bytes"),
    (("none_required",), "it must be null"),
    (("string_pattern_mismatch",), "it must match the pattern {pattern}"),
    (("string_too_long",), "it must have at most {max_length} characters"),
    (("string_too_short",), "it must have at least {min_length} characters"),
    (("too_long",), "it must have at most {max_length} entries"),
    (("too_short",), "it must have at least {min_length} entries"),
    (("greater_than_equal",), "it must be at least {ge}"),
    (("greater_than",), "it must be above {gt}"),
    (("less_than_equal",), "it must be at most {le}"),
    (("less_than",), "it must be below {lt}"),
    (("literal_error", "enum"), "it must be {expected}"),
    (("union_tag_invalid",), "it must be one of {expected_tags}"),
    (("union_tag_not_found",), "it does not say its kind"),
    (("list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type"), "it must be a list"),
    (("dict_type", "model_type", "model_attributes_type", "dataclass_type", "mapping_type"), "it must be an object"),
    (("json_invalid", "json_type"), "it is not JSON"),
    (("recursion_loop",), "it is nested too deeply"),
)


def one_line(error: BaseException) -> str:
    """Describe an exception in at most 300 printable characters.

    A deliberate error gives its own text, a failed file operation the file and its reason, any other error its class
    and text.
    """
    if isinstance(error, FleetnasError):
        text = str(error)
    elif type(error).__name__ == "ValidationError":  # pydantic's, of a value from elsewhere
        return reason_of(error)  # type: ignore[arg-type]
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return plain(joined_lines(text))


def joined_lines(text: str) -> str:
    """Return at most 300 characters of a text, with each run of white space replaced by one blank."""
    return " ".join(text.split())[:_MOST_CHARACTERS]


def first_fault(error: ValidationError, *, with_value: bool = False) -> str:
    """Describe the first fault that pydantic found, as `plan.targets: it is missing`.

    `with_value` adds the value that is at fault, which may be long, or come from outside.
    """
    fault = error.errors(include_url=False)[0]
    value = f" {fault['input']!r}" if with_value else ""
    return f"{fault_path(error) or 'it'}{value}: {fault_words(fault)}"


def reason_of(error: Exception) -> str:
    """Describe in one line why a value or a file was refused.

    Pydantic's first fault in plain words, the system's reason of a failed file operation, any other error's text.
    """
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return plain(joined_lines(first_fault(error)))
    return plain(joined_lines(getattr(error, "strerror", None) or str(error)))


def fault_words(fault: Mapping[str, Any]) -> str:
    """Describe a fault that pydantic found in plain words, such as `it must be a whole number`."""
    kind, limits = str(fault["type"]), fault.get("ctx") or {}
    if kind in ("value_error", "assertion_error"):
        return str(fault["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    for kinds, words in _WORDS:
        if kind in kinds:
            return words.format_map(_Limits(limits))
    return str(fault["msg"])


class _Limits(dict[str, Any]):
    """Limits of a rule, by the names of pydantic's contexts."""

    def __missing__(self, key: str) -> str:
        return "?"


def fault_path(error: ValidationError) -> str:
    """Return the dotted path of the first fault that pydantic found; empty for the value as a whole."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return ".".join(map(str, fault["loc"]))
