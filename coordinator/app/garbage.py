"""Cycles of objects are looked for less often while a campaign runs."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

#: Python looks after every 700 new objects, and now and then through all there are: of a thousand devices a million,
#: which live as long as the campaign. What is dropped is mostly freed without looking.
_THRESHOLDS = (50_000, 20, 100)


@contextlib.contextmanager
def rarer_garbage_collection() -> Iterator[None]:
    """Inside, a large campaign spends a tenth less time."""
    before = gc.get_threshold()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
