"""Read the tags of an agent: names that its owner gives to a device, for `--devices` and for classes of boards."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fleetnas.device_profiles.quantities import MAX_TAGS, TAG_PATTERN
from fleetnas.fleet_protocol.errors import UsageError


def parse_tags(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the tags in these texts, each once, in their order; commas, semicolons and line ends part them.

    `UsageError` where one cannot be a tag, or there are too many.
    """
    found = [tag.strip() for text in texts for tag in re.split(r"[,;\n]", text)]
    tags = tuple(dict.fromkeys(tag for tag in found if tag))
    for tag in tags:
        if not re.fullmatch(TAG_PATTERN, tag):
            raise UsageError(
                f"{tag!r} is no tag: up to 64 letters, digits, `_`, `-`, `.` and `:`, the first one a letter or digit; "
                "give one such as camera or class:pi4"
            )
    if len(tags) > MAX_TAGS:
        raise UsageError(f"an agent has at most {MAX_TAGS} tags, and {len(tags)} are given; leave some out")
    return tags


def chosen_tags(given: list[str] | None, configured: str) -> tuple[str, ...]:
    """Return the tags of the command line, else the configured ones; see `parse_tags`."""
    return parse_tags(given if given is not None else [configured])
