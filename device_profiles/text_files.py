"""Read text files that people write, on any machine: with or without a byte-order mark, with any line ends."""

from __future__ import annotations

import codecs
import io
from pathlib import Path
from typing import TextIO

_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def open_text(path: Path) -> TextIO:
    """Open a file in UTF-8 or, if its mark says so, in UTF-16; the mark is left out, every line ends in a line feed.

    Raises `OSError`; reading raises `UnicodeDecodeError`, a `ValueError`, if the file is in another encoding.
    """
    file = path.open("rb")
    return io.TextIOWrapper(file, encoding=_encoding(file.peek(2)[:2]))


def read_text(path: Path) -> str:
    """Return the whole text; raises the errors of `open_text` and of reading."""
    with open_text(path) as file:
        return file.read()


def decode_text(content: bytes) -> str:
    """Return the text of a file's content; `UnicodeDecodeError` if it is in another encoding."""
    return content.decode(_encoding(content[:2])).replace("\r\n", "\n").replace("\r", "\n")


def _encoding(start: bytes) -> str:
    return "utf-16" if start in _UTF16_MARKS else "utf-8-sig"
