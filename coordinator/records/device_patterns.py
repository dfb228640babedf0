"""Patterns that name devices: their names, names with `*` and `?`, or `tag:NAME`."""

from __future__ import annotations

from fnmatch import fnmatchcase

_TAG = "tag:"


def matches(pattern: str, name: str, tags: frozenset[str]) -> bool:
    """Tell whether a pattern names the device `name` with these tags."""
    if pattern.startswith(_TAG):
        return any(fnmatchcase(tag, pattern.removeprefix(_TAG)) for tag in tags)
    return fnmatchcase(name, pattern)
