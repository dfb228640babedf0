"""Make text of any author safe to print: nothing in it steers a terminal, is invisible, or fails to be printed."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import sys

_LAYOUT = "\n\t"
#: One ASCII character for each sign in our output, for streams whose encoding lacks it.
ASCII_SIGNS = str.maketrans("╭╮╰╯─━│█░≥✓✗✘·●◌◆○↓–—…°±×µ’“”", '++++--|#.>+xX-*o%ov--. ~xu\'""')
#: Name of the error handler with which encoding never fails: `text.encode("ascii", PRINTABLE)`.
PRINTABLE = "fleetnas-printable"
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


def plain(text: str) -> str:
    """Return `text` with `?` for control characters and invisible formatting characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _LAYOUT else "?" for c in text)


def _replace_signs(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    cut = error.object[error.start : error.end].translate(ASCII_SIGNS)
    return _NOT_ASCII.sub("?", cut), error.end


codecs.register_error(PRINTABLE, _replace_signs)


def ascii_json(text: str) -> str:
    """Return the same JSON in ASCII alone, so that no encoding changes it."""
    return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)


def use_printable_streams() -> None:
    """Make standard output and standard error accept any text, whatever their encoding, even if they are closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PRINTABLE)
