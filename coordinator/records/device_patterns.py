"""Patterns that name agents: a name, a name with `*` and `?`, or `tag:` and a tag, such as `pi4-*` and `tag:camera`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from fleetnas.fleet_protocol.errors import UsageError

_TAG = "tag:"
_FORM = re.compile(r"tag:[A-Za-z0-9_.:*?-]+|[A-Za-z0-9_.*?-]+")
_DIGITS = re.compile(r"[0-9]+")
#: Names and tags that an error lists.
_MOST_LISTED = 8
#: How much alike two names must be, of 1, for one to be a mistyped other.
_LEAST_ALIKE = 0.6


def parse_patterns(text: str | None, option: str) -> tuple[str, ...]:
    """Parse patterns that commas part, each once; empty without a text. `UsageError` where one cannot name an agent."""
    if text is None:
        return ()
    patterns = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not patterns:
        raise UsageError(f"{option} {text!r} names nobody; give agents such as pi4,pi5, or leave it out")
    for pattern in patterns:
        if not _FORM.fullmatch(pattern):
            raise UsageError(
                f"{option} {pattern!r} can name no agent: letters, digits, `_`, `-` and `.`, with `*` for any text; "
                "give names and patterns such as pi5,pi4-*,tag:camera"
            )
    return patterns


def matches(pattern: str, name: str, tags: Collection[str] = ()) -> bool:
    """Whether a pattern names the agent of this name and these tags."""
    if pattern.startswith(_TAG):
        return any(fnmatchcase(tag, pattern.removeprefix(_TAG)) for tag in tags)
    return fnmatchcase(name, pattern)


def matches_any(patterns: Iterable[str], name: str, tags: Collection[str] = ()) -> bool:
    """Whether one of these patterns names the agent."""
    return any(matches(pattern, name, tags) for pattern in patterns)


def matches_one(pattern: str, agents: Mapping[str, Collection[str]]) -> bool:
    """Whether a pattern names one of these agents; `agents` has the tags of each by its name."""
    return any(matches(pattern, name, tags) for name, tags in agents.items())


def nearest(pattern: str, agents: Mapping[str, Collection[str]]) -> str | None:
    """Return the agent, or the tag as `tag:NAME`, that is most like a pattern; None where nothing is like it.

    `agents` has the tags of each agent by its name.
    """
    tags = sorted({tag for held in agents.values() for tag in held})
    if pattern.startswith(_TAG):
        found = difflib.get_close_matches(pattern.removeprefix(_TAG), tags, n=1, cutoff=_LEAST_ALIKE)
        return f"{_TAG}{found[0]}" if found else None
    # A tag without its prefix is taken for a name.
    if pattern in tags:
        return f"{_TAG}{pattern}"
    found = difflib.get_close_matches(pattern, sorted(agents), n=1, cutoff=_LEAST_ALIKE)
    return found[0] if found else None


def is_mistyped(pattern: str, agents: Mapping[str, Collection[str]]) -> bool:
    """Whether a pattern that names none of these agents is wrong, rather than the name of one that is not started yet.

    A name that differs from the nearest one in its digits alone is that of another board: `pi4-2` beside `pi4-1`.
    """
    if pattern.startswith(_TAG) or any(sign in pattern for sign in "*?"):
        return True
    near = nearest(pattern, agents)
    return near is not None and _DIGITS.sub("", near) != _DIGITS.sub("", pattern)


def absence(patterns: Sequence[str], agents: Mapping[str, Collection[str]], where: str = "--devices") -> str:
    """Explain that patterns, given in `where`, name no agent, with the nearest name of each and the agents there are.

    `agents` has the tags of each agent by its name.
    """
    answers = []
    for pattern in patterns:
        near = nearest(pattern, agents)
        answers.append(f"{pattern} names no agent of this fleet" + (f" (did you mean {near}?)" if near else ""))
    tags = sorted({tag for held in agents.values() for tag in held})
    there = f"there are {_listed(sorted(agents)) or 'none'}" + (f" with the tags {_listed(tags)}" if tags else "")
    return f"{'; '.join(answers)}; {there}: correct {where}, or start the agents first"


def _listed(names: Sequence[str]) -> str:
    """Join names; of many, only the first."""
    rest = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {rest} more" if rest > 0 else "")
