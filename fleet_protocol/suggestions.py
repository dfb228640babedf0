"""Suggest what a mistyped word was meant to be."""

from __future__ import annotations

from collections.abc import Iterable

#: Likeness from which a word is suggested, 0 to 1.
_LIKENESS = 0.6


def did_you_mean(word: str, known: Iterable[str], otherwise: str = ";") -> str:
    """Return `; did you mean X?` with the known word most like `word`, and `otherwise` where none is like it."""
    from difflib import get_close_matches

    words = {each.lower(): each for each in known}
    found = get_close_matches(word.lower(), words, n=1, cutoff=_LIKENESS)
    return f"; did you mean {words[found[0]]}?" if found else otherwise
