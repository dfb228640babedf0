"""Text that a stranger wrote and a person will read: nothing in it may steer a terminal or hide from the eye."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator

_LAYOUT = "\n\t"


def plain(text: str) -> str:
    """`text` with `?` for escape sequences and other control or invisible formatting characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _LAYOUT else "?" for c in text)


PlainText: TypeAlias = Annotated[str, AfterValidator(plain)]
